"""Average precision and recall of detectors, by the rules of COCO.

Boxes are (n,4) float, x1 y1 x2 y2. Heavy imports happen inside, because ``zoo`` must stay light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .interfaces import Detections

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OVERLAPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""IoU from which a box counts as found, in turn."""
MOST = 100
"""Detections of a class in an image that count."""
RECALLS = tuple(i / 100 for i in range(101))
"""Points of the precision-recall curve that AP is the mean of."""


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
    import numpy as np

    by_class = tables(found, truth)
    if not by_class:
        return Precision(0.0, 0.0, {})
    return Precision(
        float(np.mean([table.mean() for table in by_class.values()])),
        float(np.mean([table[0] for table in by_class.values()])),
        {name: float(table[0]) for name, table in by_class.items()},
    )


def tables(
    found: Sequence[Detections], truth: Sequence[Detections]
) -> dict[str, NDArray[np.float64]]:
    """Class -> (10,) AP at each IoU of ``OVERLAPS``; classes without objects are left out."""
    made = {name: _of_class(found, truth, name) for name in truth[0].names}
    return {name: table for name, table in made.items() if table is not None}


def _of_class(
    found: Sequence[Detections], truth: Sequence[Detections], name: str
) -> NDArray[np.float64] | None:
    """(10,) AP at each IoU; None if there are no objects of the class."""
    import numpy as np

    scores: list[NDArray[np.float32]] = []
    hit: list[NDArray[np.bool_]] = []
    total = 0
    for seen, real in zip(found, truth, strict=True):
        wanted = real.boxes[[real.names[label] == name for label in real.labels]]
        mine = np.array([seen.names[label] == name for label in seen.labels], bool)
        total += len(wanted)
        order = np.argsort(-seen.scores[mine], kind="stable")[:MOST]
        scores.append(seen.scores[mine][order])
        hit.append(hits(seen.boxes[mine][order], wanted))
    if not total:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right, rank = np.concatenate(hit)[order].cumsum(0), np.arange(1, len(order) + 1)[:, None]
    recall, precision = right / total, right / rank
    precision = np.maximum.accumulate(precision[::-1], 0)[::-1]  # never rises with recall
    made = np.zeros(len(OVERLAPS))
    for i in range(len(OVERLAPS)):
        at = np.searchsorted(recall[:, i], RECALLS, side="left")
        made[i] = np.mean([precision[k, i] if k < len(precision) else 0.0 for k in at])
    return made


def hits(
    boxes: NDArray[np.float32], truth: NDArray[np.float32], overlaps: Sequence[float] = OVERLAPS
) -> NDArray[np.bool_]:
    """(n,t): which boxes, best first, take a true box that none has taken, at each IoU."""
    import numpy as np

    made = np.zeros((len(boxes), len(overlaps)), bool)
    if not len(boxes) or not len(truth):
        return made
    iou = pairwise_iou(boxes, truth)
    for t, limit in enumerate(overlaps):
        free = np.ones(len(truth), bool)
        for i, row in enumerate(iou):
            best = int(np.where(free, row, -1.0).argmax())
            if free[best] and row[best] >= min(limit, 1 - 1e-10):
                made[i, t], free[best] = True, False
    return made


def pairwise_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,m): the overlap of each box of ``a`` with each of ``b``, intersection over union."""
    import numpy as np

    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    made: NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-9)
    return made


def recall(
    boxes: Sequence[NDArray[np.float32]], truth: Sequence[NDArray[np.float32]], limit: float = 0.5
) -> tuple[float, float]:
    """(recall, precision) of boxes whatever their class: some box, or true box, overlaps enough."""
    hit = good = total = count = 0
    for found, real in zip(boxes, truth, strict=True):
        total, count = total + len(real), count + len(found)
        if len(real) and len(found):
            iou = pairwise_iou(real, found)
            hit += int((iou.max(1) >= limit).sum())
            good += int((iou.max(0) >= limit).sum())
    return hit / max(1, total), good / max(1, count)
