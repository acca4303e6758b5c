"""The standard loss of a detection transformer: matching, then class and box losses (eq. 6 to 9).

Pretraining uses it as it is, on pseudo-labels: that is the method's point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from . import boxes as geometry
from .detector import Noised, Seen

CLASS, L1, GIOU = 2.0, 5.0, 2.0
"""Weights of the three parts of the matching cost."""
LOSS_CLASS = 1.0
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal cost."""
BACKGROUND = 0.75
"""Weight of background in the class loss."""
POSITIVES = 5
"""Cells of the dense head that learn one object."""
NOISY = 40
"""Denoising queries of an image."""
WRONG_LABEL, SHIFT = 0.25, 0.5
"""Denoising: share of false labels, and largest shift in half sides."""


@dataclass(frozen=True)
class Target:
    """The objects of one image."""

    labels: Tensor
    """(n,) int64"""
    boxes: Tensor
    """(n,4) centre and size, as fractions."""


def cost(logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """(Q,n): what it costs to let a query answer for an object (eq. 6)."""
    p = logits.sigmoid()[:, target.labels]
    background = (1 - ALPHA) * p**GAMMA * -(1 - p).clamp(min=1e-8).log()
    focal = ALPHA * (1 - p) ** GAMMA * -p.clamp(min=1e-8).log() - background
    distance = torch.cdist(boxes, target.boxes, p=1)
    sides, truth = geometry.corners(boxes), geometry.corners(target.boxes)
    giou = geometry.overlap(sides[:, None], truth[None])[1]
    return CLASS * focal + L1 * distance - GIOU * giou


def match(logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> list[tuple[Tensor, Tensor]]:
    """(queries, objects) of each image: the cheapest one-to-one assignment.

    logits (N,Q,K), boxes (N,Q,4). With more objects than queries, as many as there are queries are
    matched. Raises ValueError for a cost that is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        costs = [cost(*one) for one in zip(logits, boxes, targets, strict=True)]
        flat = torch.cat([c.reshape(-1) for c in costs]).cpu().numpy()  # one copy for the batch
    found, at = [], 0
    for c in costs:
        part = flat[at : at + c.numel()].reshape(c.shape)
        at += c.numel()
        rows, columns = linear_sum_assignment(part)
        found.append(
            (
                torch.from_numpy(np.asarray(rows)).to(logits.device),
                torch.from_numpy(np.asarray(columns)).to(logits.device),
            )
        )
    return found


def classified(logits: Tensor, quality: Tensor) -> Tensor:
    """The sum of the varifocal loss (eq. 8): an object's logit learns the IoU of its box.

    ``quality``: like logits (...,K): the IoU in the object's class, else 0.
    """
    p = logits.detach().sigmoid()
    weight = torch.where(quality > 0, quality, BACKGROUND * p**GAMMA)
    return binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum")


def assigned(
    logits: Tensor,
    boxes: Tensor,
    image: Tensor,
    query: Tensor,
    labels: Tensor,
    truth: Tensor,
    count: float,
    used: Tensor | None = None,
) -> Tensor:
    """The loss where query[i] of image[i] answers for an object with label and true box i.

    Sums over queries are divided by ``count``. ``used`` (N,Q) bool: the queries that learn classes;
    None: all.
    """
    found = boxes[image, query]
    sides, wanted = geometry.corners(found), geometry.corners(truth)
    iou, giou = geometry.overlap(sides, wanted)
    quality = torch.zeros_like(logits)
    quality[image, query, labels] = iou.detach().clamp(1e-3, 1)
    class_loss = (
        classified(logits, quality) if used is None else classified(logits[used], quality[used])
    )
    box_loss = L1 * (found - truth).abs().sum() + GIOU * (1 - giou).sum()
    return (LOSS_CLASS * class_loss + box_loss) / count


def flat(targets: Sequence[Target], pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """(image, query, label, box) of all matched pairs of a batch."""
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(pairs)])
    query = torch.cat([q for q, _ in pairs])
    labels = torch.cat([t.labels[o] for t, (_, o) in zip(targets, pairs, strict=True)])
    truth = torch.cat([t.boxes[o] for t, (_, o) in zip(targets, pairs, strict=True)])
    return image, query, labels, truth


def nearest(logits: Tensor, boxes: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """(cells, objects) of one image that the dense head learns from (eq. 10).

    For each object the best cells by p^0.5 IoU^3; a cell that is wanted twice takes the object that
    it overlaps most. logits (T,K), boxes (T,4).
    """
    if not len(target.labels):
        empty = target.labels.new_zeros(0)
        return empty, empty
    iou = geometry.pairwise_iou(geometry.corners(boxes), geometry.corners(target.boxes))
    p = logits.sigmoid()[:, target.labels]
    chosen = (p.sqrt() * iou**3).topk(min(POSITIVES, len(iou)), 0).indices
    wanted = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, chosen, True)
    best = torch.where(wanted, iou, torch.full_like(iou, -1)).argmax(1)
    cells = wanted.any(1).nonzero()[:, 0]
    return cells, best[cells]


def loss(seen: Seen, targets: Sequence[Target], noised: Sequence[Tensor] | None = None) -> Tensor:
    """The loss of a batch: dense head, each decoder layer, and denoising.

    ``noised``: what ``noise`` returned beside the queries.
    """
    count = float(max(1, sum(len(t.labels) for t in targets)))
    with torch.no_grad():
        dense = [
            nearest(*one) for one in zip(seen.dense_logits, seen.dense_boxes, targets, strict=True)
        ]
    pairs = flat(targets, dense)
    total = assigned(
        seen.dense_logits, seen.dense_boxes, *pairs, count=float(max(1, len(pairs[0])))
    )
    for logits, boxes in zip(seen.logits, seen.boxes, strict=True):
        total = total + assigned(
            logits, boxes, *flat(targets, match(logits, boxes, targets)), count=count
        )
    if noised is not None:
        image, query, labels, truth, used = noised
        for logits, boxes in zip(seen.noised_logits, seen.noised_boxes, strict=True):
            total = total + assigned(
                logits, boxes, image, query, labels, truth, float(max(1, len(image))), used.bool()
            )
    return total


def noise(
    targets: Sequence[Target], classes: int, generator: torch.Generator
) -> tuple[Noised, list[Tensor]] | None:
    """Denoising queries (eq. 9) and what they stand for; None without objects.

    Each image's objects are repeated in groups, up to ``NOISY`` queries; in each group boxes are
    shifted and scaled anew and some labels are false. A group sees itself alone. The second part is
    (image, query, label, box) of each, and (N,D) which queries are real.
    """
    most = min(NOISY, max(len(t.labels) for t in targets))
    if not most:
        return None
    groups = max(1, NOISY // most)
    device = targets[0].boxes.device
    labels = torch.zeros(len(targets), groups, most, dtype=torch.int64)
    truth = torch.full((len(targets), groups, most, 4), 0.5)
    used = torch.zeros(len(targets), groups, most, dtype=torch.bool)
    for i, target in enumerate(targets):
        n = min(most, len(target.labels))
        labels[i, :, :n] = target.labels[:n].cpu()
        truth[i, :, :n] = target.boxes[:n].cpu()
        used[i, :, :n] = True
    shape = (len(targets), groups * most)
    labels, truth, used = labels.view(shape), truth.view(*shape, 4), used.view(shape)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    false = uniform(*shape) < WRONG_LABEL
    other = torch.randint(classes, shape, generator=generator)
    moved = (2 * uniform(*shape, 4) - 1) * SHIFT
    half = truth[..., 2:] / 2
    centre = truth[..., :2] + moved[..., :2] * half
    size = truth[..., 2:] * (1 + moved[..., 2:])
    boxes = torch.cat([centre, size], -1).clamp(1e-3, 1 - 1e-3)
    group = torch.arange(groups).repeat_interleave(most)
    queries = Noised(
        torch.where(false, other, labels).to(device),
        boxes.to(device),
        (group[:, None] == group[None]).to(device),
    )
    image, query = used.nonzero(as_tuple=True)
    real = [image, query, labels[image, query], truth[image, query], used]
    return queries, [t.to(device) for t in real]
