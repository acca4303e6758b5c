"""Self-training and the change of classes (eq. 12 and 13): uses of a detector's own boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.progress import Advance

from . import boxes as geometry
from .detector import Classes, Network
from .reading import NMS, look, ranked
from .scenes import Scene

MORE = 1.15
"""Boxes of a pseudo-class after a round, as a multiple of those before."""
SPARE = 4
"""Queries of an image that are never all used for labels."""
LOST = 0.5
"""A pseudo-class that keeps less than this share of its boxes gets its earlier ones back."""
FEWEST = 0.3
"""Share of the earlier boxes below which a round is not trusted: a detector that finds the same few
boxes everywhere. There cannot be many more boxes than before."""
KNOWN = 0.5
"""Score that hits a class, summed, from which its row starts from a pseudo-class's."""
HIT = 0.5
"""IoU from which a detection hits an object."""


@dataclass(frozen=True)
class Relabelled:
    """Labels of a round of self-training."""

    scenes: list[Scene]
    before: tuple[int, ...]
    """Boxes of each pseudo-class before the round."""
    own: tuple[int, ...]
    """Those that the detector found itself."""
    after: tuple[int, ...]
    """And after it, with the earlier ones of lost classes."""
    thresholds: tuple[float, ...]
    """Score from which a box of each pseudo-class is kept."""

    @property
    def trusted(self) -> bool:
        """Does the detector find boxes of its own?"""
        return sum(self.own) >= FEWEST * sum(self.before)


def counts(scenes: Sequence[Scene], classes: int) -> Tensor:
    """(K,) int64 boxes of each class."""
    return torch.bincount(torch.cat([s.labels for s in scenes]), minlength=classes)


def relabel(
    network: Network, scenes: Sequence[Scene], size: int, advance: Advance | None = None
) -> Relabelled:
    """The detector's own boxes as labels of the same images (eq. 12).

    A threshold for each pseudo-class keeps ``MORE`` times the boxes that it had: scores of a
    detector that learned from noisy labels lie close together, and one threshold for all would
    lose the rare classes. A class that loses many boxes all the same keeps its earlier ones
    where no new box is.
    """
    classes = network.classes.count
    before = counts(scenes, classes)
    found = []
    for scene in scenes:
        seen = look(network, scene.image, size)
        found.append([t.clone() for t in ranked(seen, nms=NMS, agnostic=True)])
        if advance is not None:
            advance()
    scores = torch.cat([one[1] for one in found])
    labels = torch.cat([one[2] for one in found])
    thresholds = torch.ones(classes)
    for k in range(classes):
        mine = scores[labels == k].sort(descending=True).values
        wanted = min(len(mine), round(float(before[k]) * MORE))
        if wanted:
            thresholds[k] = mine[wanted - 1]
    made = []
    most = max(1, network.queries - SPARE)
    for scene, (boxes, score, label) in zip(scenes, found, strict=True):
        kept = (score >= thresholds[label]).nonzero()[:most, 0]
        made.append(Scene(scene.image, boxes[kept].cpu(), label[kept].cpu()))
    own = counts(made, classes)
    lost = own < LOST * before
    made = [_with_lost(new, old, lost, most) for new, old in zip(made, scenes, strict=True)]
    after = counts(made, classes)
    return Relabelled(
        made,
        tuple(before.tolist()),
        tuple(own.tolist()),
        tuple(after.tolist()),
        tuple(round(t, 4) for t in thresholds.tolist()),
    )


def _with_lost(new: Scene, old: Scene, lost: Tensor, most: int) -> Scene:
    """The new labels, and the old ones of lost classes that no new box overlaps by half."""
    back = lost[old.labels]
    if len(new.boxes):
        back &= geometry.pairwise_iou(old.boxes, new.boxes).amax(1) <= HIT
    boxes = torch.cat([new.boxes, old.boxes[back]])[:most]
    return Scene(new.image, boxes, torch.cat([new.labels, old.labels[back]])[:most])


def hits(
    network: Network, scenes: Sequence[Scene], size: int, classes: int
) -> tuple[Tensor, list[float]]:
    """(A,C) summed scores of detections of class a that hit an object of class c; and the share of
    each class's objects that any detection hits.

    A low share means that pretraining took the class for background. NaN for a class without
    objects.
    """
    table = torch.zeros(network.classes.count, classes)
    hit, total = torch.zeros(classes), torch.zeros(classes)
    for scene in scenes:
        boxes, scores, labels = (t.clone().cpu() for t in ranked(look(network, scene.image, size)))
        over = geometry.pairwise_iou(boxes, scene.boxes) >= HIT
        for c in scene.labels.unique().tolist():
            of_class = over[:, scene.labels == c]
            any_object = of_class.any(1)
            table[:, c].index_add_(0, labels[any_object], scores[any_object])
            total[c] += of_class.shape[1]
            hit[c] += of_class.any(0).sum()
    return table, (hit / total).tolist()


def warm(old: Classes, table: Tensor, new: Classes) -> list[int | None]:
    """Start each class from the pseudo-class that finds it (eq. 13); returns which, None for fresh.

    ``table``: of ``hits``. ``new``: freshly made; its rows are overwritten in place.
    """
    sources: list[int | None] = []
    with torch.no_grad():
        for c in range(new.count):
            best = int(table[:, c].argmax())
            if float(table[best, c]) <= KNOWN:
                sources.append(None)
                continue
            sources.append(best)
            for theirs, mine in zip(old.linears(), new.linears(), strict=True):
                mine.weight[c], mine.bias[c] = theirs.weight[best], theirs.bias[best]
            if new.embedding is not None:
                new.embedding.weight[c] = old.embedding.weight[best]
    return sources
