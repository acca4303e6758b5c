"""From the network's outputs to detections: scores, boxes in pixels, suppression of duplicates."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo.interfaces import Detections

from . import boxes as geometry
from .detector import Network
from .outputs import Seen
from .scenes import resized, seen_sides

THRESHOLD = 0.45
"""Lowest score that ``detect`` shows: the bundled detector's best F1 on its training images."""
NMS = 0.6
"""IoU above which the weaker of two boxes of a class is a duplicate."""
MOST = 100
"""Detections of an image."""
Head = Literal["decoder", "dense"]


def look(network: Network, image: Tensor, size: int) -> Seen:
    """The outputs for one image (3,h,w), float in [0,1] or uint8."""
    if image.dtype == torch.uint8:
        image = image.float() / 255
    like = next(network.parameters())
    small = resized(image, seen_sides(image.shape[1], image.shape[2], size))
    with torch.inference_mode():
        seen: Seen = network(small.to(like, memory_format=torch.channels_last))  # as in training
    return seen


def ranked(
    seen: Seen,
    *,
    nms: float | None = NMS,
    head: Head = "decoder",
    threshold: float = 0.0,
    agnostic: bool = False,
    owner: Tensor | None = None,
    most: int = MOST,
) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes (n,4) corners as fractions, scores (n,), labels (n,)) of one image, best first.

    A query may answer in several classes (eq. 11). ``agnostic``: boxes of different classes are
    duplicates too. ``owner`` (K,): the class that each of the network's own counts as.
    """
    logits, found = (
        (seen.logits[-1][0], seen.boxes[-1][0])
        if head == "decoder"
        else (seen.dense_logits[0], seen.dense_boxes[0])
    )
    scores = logits.float().sigmoid()
    best = scores.flatten().topk(min(scores.numel(), 4 * most))
    kept = best.values >= threshold
    values, at = best.values[kept], best.indices[kept]
    labels = at % scores.shape[1]
    labels = labels if owner is None else owner[labels]
    boxes = geometry.corners(found.float()[at // scores.shape[1]]).clamp(0, 1)
    if nms is not None:
        apart = boxes if agnostic else boxes + 2 * labels[:, None]  # classes never overlap
        stays = geometry.distinct(apart, nms)
        boxes, values, labels = boxes[stays], values[stays], labels[stays]
    return boxes[:most], values[:most], labels[:most]


def detections(
    found: tuple[Tensor, Tensor, Tensor], width: int, height: int, names: tuple[str, ...]
) -> Detections:
    """In pixels of the image; boxes without area are left out."""
    boxes, scores, labels = (t.detach().cpu().numpy() for t in found)
    sides = np.array([width, height, width, height], np.float32)
    pixels = np.minimum(boxes.astype(np.float32) * sides, sides)
    kept = (pixels[:, 2:] > pixels[:, :2]).all(1)
    return Detections(
        pixels[kept], scores[kept].astype(np.float32), labels[kept].astype(np.int64), names
    )
