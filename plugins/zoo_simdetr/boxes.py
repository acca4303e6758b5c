"""Boxes as tensors: conversions and overlaps.

Inside the network a box is (centre x, centre y, width, height), as fractions of the image's sides;
outside it is (x1, y1, x2, y2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """(...,4) centre and size to corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centred(boxes: Tensor) -> Tensor:
    """(...,4) corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Tensor) -> Tensor:
    """(...) areas of boxes given by corners."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, GIoU) of boxes given by corners; shapes are broadcast.

    GIoU is the IoU less the share of the smallest box around both that neither covers (eq. 7);
    it is in (-1, 1], and has a gradient for boxes apart.
    """
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    both = inner[..., 0] * inner[..., 1]
    union = area(a) + area(b) - both
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    around = outer[..., 0] * outer[..., 1]
    iou = both / union.clamp(min=1e-9)
    return iou, iou - (around - union) / around.clamp(min=1e-9)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(...,N,M) IoU of (...,N,4) with (...,M,4), by corners."""
    return overlap(a[..., :, None, :], b[..., None, :, :])[0]


def first_of_each(boxes: Tensor, limit: float) -> Tensor:
    """(...,N) bool: no box before it overlaps it by more than ``limit``.

    Boxes are sorted, best first, by corners. Unlike ``distinct``, a box that is left out also
    rejects others: no loop, so it works on batches and in exported graphs.
    """
    iou = pairwise_iou(boxes, boxes).triu(1)
    return iou.amax(-2) <= limit


def distinct(boxes: Tensor, limit: float) -> Tensor:
    """(N,) bool: greedy non-maximum suppression of sorted boxes, by corners, best first.

    A box stays unless one that stays before it overlaps it by more than ``limit``.
    """
    over = (pairwise_iou(boxes, boxes) > limit).cpu()
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if stays[i]:
            stays[i + 1 :] &= ~over[i, i + 1 :]
    return stays.to(boxes.device)
