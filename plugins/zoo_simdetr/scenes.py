"""Images with boxes for training: small copies in memory, and random views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from zoo.errors import InputError
from zoo.images import each
from zoo.interfaces import Detections
from zoo.progress import Advance
from zoo.training import Draw

from . import boxes as geometry
from .outputs import Target

STEP = 32
"""Sides of what the network sees are multiples of this."""
ROOM = 1.25
"""A training copy is this much larger than what the network sees: views are cuts of it."""
ZOOM = 0.6
"""Smallest side of a view, as a share of the image's."""
UNREADABLE = 0.1
"""Share of a folder's files that may be unreadable."""
LEFT = 0.4
"""Share of a box that a view must contain for the object to count."""
TILT = 0.2
"""Largest change of a view's aspect, as a logarithm."""
LIGHT, TINT = 0.25, 0.1
"""Largest changes of brightness and contrast, and of a channel."""


@dataclass(frozen=True)
class Scene:
    """One image for training."""

    image: Tensor
    """(3,h,w) uint8"""
    boxes: Tensor
    """(n,4) corners, as fractions of the image."""
    labels: Tensor
    """(n,) int64"""


@dataclass(frozen=True)
class Batch:
    """Views of scenes, and the objects in them."""

    images: Tensor
    """(N,3,H,W) in [0,1]"""
    targets: list[Target]
    generator: torch.Generator


def seen_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) at which the network sees an image: the longest side is ``size``.

    Both are rounded to multiples of 32, so that nothing is padded.
    """
    longest = max(height, width)
    sides = [max(STEP, round(side * size / longest / STEP) * STEP) for side in (height, width)]
    return sides[0], sides[1]


def resized(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """(3,h,w) float to (1,3,*sides)."""
    return interpolate(image[None], size=sides, mode="bilinear", antialias=True).clamp(0, 1)


def shrunk(image: Tensor, size: int) -> Tensor:
    """(3,h,w) in [0,1] to uint8, the longest side at most ``size``; never enlarged."""
    h, w = image.shape[1:]
    if max(h, w) > size:
        scale = size / max(h, w)
        image = resized(image, (max(1, round(h * scale)), max(1, round(w * scale))))[0]
    return (image * 255).round().to(torch.uint8)


def load(images: Sequence[Any], size: int, advance: Advance | None = None) -> list[Tensor]:
    """(3,h,w) uint8 for anything that ``zoo.images`` takes. Raises InputError."""
    made = []
    for i, image in enumerate(images):
        try:
            one = each(image, lambda colours: shrunk(colours, size))
        except InputError as error:
            raise InputError(f"image {i} of the list: {error}") from error
        if isinstance(one, list):
            raise InputError(f"image {i} of the list is a batch. Pass its images one by one.")
        made.append(one)
        if advance is not None:
            advance()
    return made


def load_readable(
    files: Sequence[Any], size: int, advance: Advance | None = None
) -> tuple[list[Tensor | None], list[str]]:
    """``load`` of files, with None for one that cannot be read; and the names of those.

    Raises InputError if they are more than ``UNREADABLE`` of all.
    """
    made: list[Tensor | None] = []
    skipped = []
    for file in files:
        try:
            made += load([file], size)
        except InputError:
            made.append(None)
            skipped.append(str(file))
        if advance is not None:
            advance()
    if len(skipped) > UNREADABLE * len(files):
        raise InputError(
            f"{len(skipped)} of {len(files)} images cannot be read, such as {skipped[0]}. Remove "
            "them or give another folder."
        )
    return made, skipped


def scene_of(image: Tensor, width: int, height: int, truth: Detections) -> Scene:
    """A scene from its small copy and true boxes in pixels of a width x height image.

    Boxes are clipped to the image; those without area are left out.
    """
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = (torch.from_numpy(np.asarray(truth.boxes, np.float32)) / sides).clamp(0, 1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Scene(image, boxes[kept], torch.from_numpy(np.asarray(truth.labels, np.int64))[kept])


def canvas(scenes: Sequence[Scene], size: int) -> tuple[int, int]:
    """(height, width) of training views: the scenes' usual aspect, the longest side ``size``."""
    aspect = median(s.image.shape[1] / s.image.shape[2] for s in scenes)
    return seen_sides(
        *((1000, round(1000 / aspect)) if aspect > 1 else (round(1000 * aspect), 1000)), size
    )


def view(
    scene: Scene, sides: tuple[int, int], rng: np.random.Generator, *, upside_down: bool
) -> tuple[Tensor, Target]:
    """A random cut of a scene, mirrored half of the time, in other light: (3,*sides).

    ``upside_down``: also mirror from top to bottom, where no side is up. A box of which less than
    ``LEFT`` is in the cut is left out.
    """
    h, w = scene.image.shape[1:]
    aspect = sides[1] / sides[0] * float(np.exp(rng.uniform(-TILT, TILT)))
    share = rng.uniform(ZOOM, 1)
    high = share * min(h, w / aspect)
    wide = high * aspect
    high, wide = min(h, max(1, round(high))), min(w, max(1, round(wide)))
    top, left = int(rng.integers(0, h - high + 1)), int(rng.integers(0, w - wide + 1))
    image = scene.image[:, top : top + high, left : left + wide].float() / 255
    image = resized(image, sides)[0]
    scale = torch.tensor([w / wide, h / high] * 2)
    moved = torch.tensor([left / wide, top / high] * 2)
    boxes = scene.boxes * scale - moved
    cut = boxes.clamp(0, 1)
    kept = geometry.area(cut) > LEFT * geometry.area(boxes).clamp(min=1e-9)
    cut, labels = cut[kept], scene.labels[kept]
    if rng.random() < 0.5:
        image, cut = (
            image.flip(2),
            torch.stack([1 - cut[:, 2], cut[:, 1], 1 - cut[:, 0], cut[:, 3]], 1),
        )
    if upside_down and rng.random() < 0.5:
        image, cut = (
            image.flip(1),
            torch.stack([cut[:, 0], 1 - cut[:, 3], cut[:, 2], 1 - cut[:, 1]], 1),
        )
    image = relit(image, rng)
    return image, Target(labels, geometry.centred(cut))


def relit(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Other brightness, contrast and tint."""
    gain = 1 + rng.uniform(-LIGHT, LIGHT)
    tint = torch.tensor(1 + rng.uniform(-TINT, TINT, (3, 1, 1)), dtype=torch.float32)
    shift = rng.uniform(-LIGHT, LIGHT) / 2
    mean = image.mean()
    return (((image - mean) * gain + mean + shift) * tint).clamp(0, 1)


def drawn(
    scenes: Sequence[Scene], sides: tuple[int, int], draw: Draw, *, upside_down: bool
) -> Batch:
    """Views of random scenes, as many as the draw asks for."""
    chosen = draw.rng.integers(0, len(scenes), draw.count)
    made = [view(scenes[i], sides, draw.rng, upside_down=upside_down) for i in chosen]
    return Batch(torch.stack([image for image, _ in made]), [t for _, t in made], draw.generator)
