"""A folder of images with boxes, and which of them are for testing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoo.annotations import held_out
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
    """A folder as ``zoo.annotations`` reads it, divided by its list of test images if it has one.

    Raises InputError.
    """
    if folder is None:
        raise InputError("give --data: a folder of images with boxes.")
    found = read_boxes(folder)
    held = held_out(folder, found.images)
    parts = []
    for testing in (False, True):
        chosen = [i for i, kept in enumerate(held) if kept is testing]
        parts.append(
            Part(tuple(found.images[i] for i in chosen), tuple(found.truth[i] for i in chosen))
        )
    if not len(parts[0]):
        raise InputError(f"{folder} has no images for training: all are for testing.")
    return Dataset(parts[0], parts[1], found.names)
