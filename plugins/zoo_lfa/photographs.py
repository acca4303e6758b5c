"""What ``zoo bench lfa`` measures on two real encoders that never met: an image network of timm and
a sentence encoder of transformers, on CIFAR-10 and on ImageNet's class names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zoo.experiment import kept, read_cifar
from zoo.hookspecs import BenchRequest
from zoo.progress import Progress

from .real import CLASSES, POOL, TESTS, features, support
from .towers import ImageTower, both, imagenet
from .worlds import Task

FRAMES, VIDEOS, TEST_VIDEOS = 8, 250, 400
CANVAS = 48
"""Pixels of the side of a frame, in which a photograph of 32 moves."""


class Photographs(NamedTuple):
    """Features, not normalised, and the texts of the classes."""

    x: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    y: Tensor

    def task(self, shots: int, seed: int) -> Task:
        """``shots`` of each class, drawn with this seed."""
        rows = support(self.labels, shots, seed)
        return Task(self.x[rows], self.labels[rows], self.y, self.test, self.test_labels)


class World(NamedTuple):
    """All that is measured on the two encoders."""

    photos: Photographs
    videos: Photographs
    """(N,frames,d)."""
    rows: Tensor
    """(1000,d) the image network's own classifier: a row stands for the images of a class."""
    names: Tensor
    """(1000,e) the sentence encoder's rows of ImageNet's names and definitions."""


def made(request: BenchRequest, data: Path) -> World:
    """The features, from ``-O features=FOLDER`` where an earlier run kept them there."""
    image, text = both(request.bases, request.device)
    folder = Path(request.options["features"]) if request.options["features"] else None
    pool, tests = (400, 300) if request.quick else (POOL, TESTS)
    y = text([f"a photo of a {name}." for name in CLASSES])
    bar: Progress = request.progress
    photos = Photographs(
        *features(data, "train", pool, image, folder, bar),
        *features(data, "test", tests, image, folder, bar),
        y,
    )
    few, test = (40, 20) if request.quick else (VIDEOS, TEST_VIDEOS)
    videos = Photographs(
        *moving(data, "train", few, image, folder, bar),
        *moving(data, "test", test, image, folder, bar),
        y,
    )
    return World(photos, videos, image.classifier.weight.detach(), text(imagenet()))


def frames(pictures: Tensor, seed: int = 0) -> Tensor:
    """(N,8,3,48,48): each photograph moves in a straight line over its own blurred ground."""
    dice = torch.Generator().manual_seed(seed)
    room = CANVAS - pictures.shape[-1]
    ends = (room * torch.rand(2, len(pictures), 2, generator=dice)).round().long()
    ground = functional.avg_pool2d(pictures, 8)
    ground = functional.interpolate(ground, (CANVAS, CANVAS), mode="bilinear")
    made = ground[:, None].repeat(1, FRAMES, 1, 1, 1)
    side = pictures.shape[-1]
    for t in range(FRAMES):
        places = ends[0] + (ends[1] - ends[0]) * t // (FRAMES - 1)
        for i, (top, left) in enumerate(places.tolist()):
            made[i, t, :, top : top + side, left : left + side] = pictures[i]
    return made


def moving(
    data: Path, part: str, count: int, tower: ImageTower, folder: Path | None, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Features (N,8,d) of moving photographs and their labels, kept as ``features`` does."""
    pictures, labels = read_cifar(data / f"{part}.parquet", count)
    # the number of pictures is in the name, as each path depends on it
    name = f"cifar10_moving_{part}_{count}_{tower.digest[:12]}.safetensors"

    def make() -> Tensor:
        return tower(list(frames(pictures).flatten(0, 1)), progress).unflatten(0, (count, FRAMES))

    return kept(folder and folder / name, count, make), labels
