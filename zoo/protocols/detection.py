"""Detectors: average precision by COCO's rules, and what is right at the default threshold.

The data are what ``zoo.annotations`` reads: COCO, VOC, YOLO; of a folder with a list of test images
(``test.txt``) those alone are measured. Classes are compared by name: one that a model does not
know counts as not found. AP is a class's, over all images; its mean is over the classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, NotReadyError, UsageError
from ..interfaces import Data, Detections, Detector
from . import Measured, Skip

HIGHER = {"AP": True, "AP50": True, "recall": True, "precision": True, "CPU-s/image": False}
FOUND = 0.5
"""IoU from which a box finds an object, for recall and precision."""


@dataclass(frozen=True, eq=False)
class Item:
    """An image and its objects."""

    name: str
    path: Path
    truth: Detections


def items(data: Path | None, most: int | None = None, skip: Skip | None = None) -> list[Item]:
    """The images of a data set, or its first ``most``.

    ``skip``: called for each image that cannot be read. Raises InputError, UsageError.
    """
    from .. import images
    from ..annotations import held_out, read

    if data is None:
        raise UsageError("zoo has no images with boxes. Pass --data: a COCO, VOC or YOLO data set.")
    found = read(data)
    held = held_out(data, found.images) if data.is_dir() else []
    made = []
    for i, (path, truth) in enumerate(zip(found.images, found.truth, strict=True)):
        if any(held) and not held[i]:
            continue
        if skip is not None:
            try:
                images.read(path)
            except InputError as error:
                skip(error)
                continue
        made.append(Item(path.name, path, truth))
    if len({item.name for item in made}) < len(made):
        made = [Item(str(item.path), item.path, item.truth) for item in made]
    return made[:most]


def described(data: Path | None, items: Sequence[Item]) -> Data:
    """The description of the images for a record."""
    objects = sum(len(item.truth) for item in items)
    classes = len(items[0].truth.names) if items else 0
    size = f"{len(items)} images, {objects} objects, {classes} classes"
    return Data(str(data.name) if data else "", "not stated", size)


def references() -> dict[str, Detector]:
    """No baselines: any detector that knows the classes is a rival."""
    return {}


def measure(model: Detector, items: Sequence[Item]) -> Iterator[Measured]:
    """Each image at the model's default threshold; then each class, over all images.

    Raises NotReadyError for a model that knows none of the classes.
    """
    from .. import precision
    from ..experiment import one_thread

    names = items[0].truth.names
    if not {*names} & {*model.names}:
        raise NotReadyError(
            f"it finds {', '.join(model.names)}, and none of the data's classes: "
            f"{', '.join(names)}. Fine-tune it with finetune()"
        )
    ranked = []
    with one_thread():  # several busy-wait for each other, which counts
        model.detect(items[0].path)  # warm up, outside the timing
    for item in items:
        with one_thread():
            began = time.process_time()
            seen = model.detect(item.path)
            seconds = time.process_time() - began
            ranked.append(model.detect(item.path, threshold=0.0))
        recall, good = _right(seen, item.truth)
        scores = {"CPU-s/image": seconds}
        scores |= {"recall": recall} if len(item.truth) else {}
        scores |= {"precision": good} if len(seen) else {}
        missed = round((1 - recall) * len(item.truth)) if len(item.truth) else 0
        false = round((1 - good) * len(seen)) if len(seen) else 0
        note = f"{missed} of {len(item.truth)} missed, {false} false" if missed or false else ""
        right = len(item.truth) - missed
        quality = 2 * right / max(1, len(item.truth) + len(seen)) if missed or false else 1.0
        yield Measured(item.name, scores, quality, "", note)
    for name, table in precision.tables(ranked, [item.truth for item in items]).items():
        found = {"AP": float(table.mean()), "AP50": float(table[0])}
        yield Measured(f"class: {name}", found, found["AP50"], name)


def _right(seen: Detections, truth: Detections) -> tuple[float, float]:
    """(share of the objects found, share of the boxes that are right), in their class."""
    from .. import precision

    hits = 0
    for name in truth.names:
        wanted = truth.boxes[[truth.names[label] == name for label in truth.labels]]
        mine = seen.boxes[[seen.names[label] == name for label in seen.labels]]
        hits += int(precision.hits(mine, wanted, (FOUND,)).sum())
    return hits / max(1, len(truth)), hits / max(1, len(seen))
