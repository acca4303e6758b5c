"""A folder of images with boxes, and which of them are for testing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoo.annotations import read as read_boxes
from zoo.errors import InputError
from zoo.images import size
from zoo.interfaces import Detections


@dataclass(frozen=True)
class Part:
    """Images with their true boxes."""

    images: tuple[Path, ...]
    truth: tuple[Detections, ...]

    def __len__(self) -> int:
        return len(self.images)

    def sides(self) -> list[tuple[int, int]]:
        """(width, height) of each image."""
        return [size(path) for path in self.images]


@dataclass(frozen=True)
class Dataset:
    """Training and test images of one folder; the classes are the same in both."""

    train: Part
    test: Part
    names: tuple[str, ...]


def read(folder: Path | None) -> Dataset:
    """Annotations as ``zoo.annotations.read`` knows them, or ``images/`` beside ``annotations/`` or
    ``labels/`` with VOC XML.

    ``test.txt``, in the folder or in ``splits/``, names the test images, one a line, without
    ending; without it there are none. Raises InputError.
    """
    if folder is None:
        raise InputError("give --data: a folder of images with boxes.")
    beside = [folder / name for name in ("annotations", "labels")]
    voc = next((place for place in beside if place.is_dir() and any(place.glob("*.xml"))), None)
    pictures = folder / "images"
    found = read_boxes(voc or folder, pictures if voc is not None and pictures.is_dir() else None)
    lists = [
        path for path in (folder / "test.txt", folder / "splits" / "test.txt") if path.is_file()
    ]
    held = set(lists[0].read_text("utf-8").split()) if lists else set()
    known = {path.stem for path in found.images}
    if missing := sorted(held - known):
        raise InputError(f"{lists[0]} names {missing[0]!r}, which has no image or no annotation.")
    parts = []
    for testing in (False, True):
        chosen = [i for i, path in enumerate(found.images) if (path.stem in held) is testing]
        parts.append(
            Part(tuple(found.images[i] for i in chosen), tuple(found.truth[i] for i in chosen))
        )
    if not len(parts[0]):
        raise InputError(f"{folder} has no images for training: all are in {lists[0].name}.")
    return Dataset(parts[0], parts[1], found.names)
