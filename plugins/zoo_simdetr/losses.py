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

from zoo.errors import InputError

from . import boxes as geometry
from .outputs import Noised, Seen, Target

CLASS, L1, GIOU = 2.0, 5.0, 2.0
"""Weights of the three parts of the matching cost."""
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
class Pairs:
    """Queries of a batch, and the objects that they answer for; (P,) each, boxes (P,4)."""

    image: Tensor
    query: Tensor
    labels: Tensor
    boxes: Tensor


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
    matched. Raises InputError if an output is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        costs = [cost(*one) for one in zip(logits, boxes, targets, strict=True)]
        flat = torch.cat([c.reshape(-1) for c in costs]).cpu().numpy()  # one copy for the batch
    if not np.isfinite(flat).all():
        raise InputError("the detector's outputs are no longer finite: train with a lower rate.")
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
    logits: Tensor, boxes: Tensor, pairs: Pairs, count: float, used: Tensor | None = None
) -> Tensor:
    """The loss where each query of ``pairs`` answers for its object (eq. 7 and 8).

    Sums over queries are divided by ``count``. ``used`` (N,Q) bool: the queries that learn classes;
    None: all.
    """
    found = boxes[pairs.image, pairs.query]
    iou, giou = geometry.overlap(geometry.corners(found), geometry.corners(pairs.boxes))
    quality = torch.zeros_like(logits)
    quality[pairs.image, pairs.query, pairs.labels] = iou.detach().clamp(1e-3, 1)
    if used is not None:
        logits, quality = logits[used], quality[used]
    box_loss = L1 * (found - pairs.boxes).abs().sum() + GIOU * (1 - giou).sum()
    return (classified(logits, quality) + box_loss) / max(1.0, count)


def paired(targets: Sequence[Target], found: Sequence[tuple[Tensor, Tensor]]) -> Pairs:
    """The (queries, objects) of each image, as pairs of the batch."""
    both = [*zip(targets, found, strict=True)]
    return Pairs(
        torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(found)]),
        torch.cat([q for q, _ in found]),
        torch.cat([t.labels[o] for t, (_, o) in both]),
        torch.cat([t.boxes[o] for t, (_, o) in both]),
    )


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


def loss(
    seen: Seen, targets: Sequence[Target], noised: tuple[Pairs, Tensor] | None = None
) -> Tensor:
    """The loss of a batch: dense head, each decoder layer, and denoising.

    ``noised``: what ``noise`` returned beside the queries.
    """
    count = float(sum(len(t.labels) for t in targets))
    dense = (seen.dense_logits, seen.dense_boxes)
    with torch.no_grad():
        cells = paired(targets, [nearest(*one) for one in zip(*dense, targets, strict=True)])
    total = assigned(*dense, cells, len(cells.query))
    for layer in zip(seen.logits, seen.boxes, strict=True):
        total = total + assigned(*layer, paired(targets, match(*layer, targets)), count)
    if noised is not None:
        pairs, used = noised
        for layer in zip(seen.noised_logits, seen.noised_boxes, strict=True):
            total = total + assigned(*layer, pairs, len(pairs.query), used)
    return total


def noise(
    targets: Sequence[Target], classes: int, generator: torch.Generator
) -> tuple[Noised, Pairs, Tensor] | None:
    """Denoising queries (eq. 9) and what they stand for; None without objects.

    Each image's objects are repeated in groups, up to ``NOISY`` queries; in each group boxes are
    shifted and scaled anew and some labels are false. A group sees itself alone. The second part
    says what each stands for, the third (N,D) which are no padding.
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
    real = (image, query, labels[image, query], truth[image, query])
    return queries, Pairs(*(t.to(device) for t in real)), used.to(device)
