"""Average precision and recall, by the rules of COCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.interfaces import Detections

from . import boxes as geometry

OVERLAPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""IoU from which a box counts as found, in turn."""
MOST = 100
"""Detections of a class in an image that count."""
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Precision:
    """Average precision over a set of images, in [0,1]."""

    ap: float
    """Mean over classes and over IoU .50 to .95."""
    ap50: float
    """Mean over classes at IoU .50."""
    classes: Mapping[str, float]
    """Name -> AP at IoU .50; classes without objects are left out."""


def average_precision(found: Sequence[Detections], truth: Sequence[Detections]) -> Precision:
    """AP of detections, compared by class names; one ``Detections`` for each image in both."""
    names = truth[0].names
    tables = {name: _of_class(found, truth, name) for name in names}
    present = {name: table for name, table in tables.items() if table is not None}
    if not present:
        return Precision(0.0, 0.0, {})
    return Precision(
        float(np.mean([table.mean() for table in present.values()])),
        float(np.mean([table[0] for table in present.values()])),
        {name: float(table[0]) for name, table in present.items()},
    )


def _of_class(
    found: Sequence[Detections], truth: Sequence[Detections], name: str
) -> NDArray[np.float64] | None:
    """(10,) AP at each IoU; None if there are no objects of the class."""
    scores: list[NDArray[np.float32]] = []
    hits: list[NDArray[np.bool_]] = []
    total = 0
    for seen, real in zip(found, truth, strict=True):
        wanted = real.boxes[[real.names[label] == name for label in real.labels]]
        mine = np.array([seen.names[label] == name for label in seen.labels], bool)
        total += len(wanted)
        order = np.argsort(-seen.scores[mine], kind="stable")[:MOST]
        scores.append(seen.scores[mine][order])
        hits.append(_hits(seen.boxes[mine][order], wanted))
    if not total:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    right, rank = hit.cumsum(0), np.arange(1, len(hit) + 1)[:, None]
    recall, precision = right / total, right / rank
    precision = np.maximum.accumulate(precision[::-1], 0)[::-1]  # never rises with recall
    made = np.zeros(len(OVERLAPS))
    for i in range(len(OVERLAPS)):
        at = np.searchsorted(recall[:, i], RECALLS, side="left")
        made[i] = np.mean([precision[k, i] if k < len(precision) else 0.0 for k in at])
    return made


def _hits(boxes: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,10): which boxes, best first, take a true box that none has taken, at each IoU."""
    made = np.zeros((len(boxes), len(OVERLAPS)), bool)
    if not len(boxes) or not len(truth):
        return made
    iou = geometry.pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(truth)).numpy()
    for t, limit in enumerate(OVERLAPS):
        free = np.ones(len(truth), bool)
        for i, row in enumerate(iou):
            best = int(np.where(free, row, -1.0).argmax())
            if free[best] and row[best] >= min(limit, 1 - 1e-10):
                made[i, t], free[best] = True, False
    return made


def recall(
    boxes: Sequence[NDArray[np.float32]], truth: Sequence[NDArray[np.float32]], limit: float = 0.5
) -> tuple[float, float]:
    """(recall, precision) of boxes whatever their class: some box, or true box, overlaps enough."""
    hit = good = total = count = 0
    for found, real in zip(boxes, truth, strict=True):
        total, count = total + len(real), count + len(found)
        if len(real) and len(found):
            iou = geometry.pairwise_iou(torch.from_numpy(real), torch.from_numpy(found)).numpy()
            hit += int((iou.max(1) >= limit).sum())
            good += int((iou.max(0) >= limit).sum())
    return hit / max(1, total), good / max(1, count)
