"""Other ways to propose boxes in an image, for the benchmark: chance, colour, Selective Search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zoo.errors import MissingDependencyError
from zoo.interfaces import Detections

from .proposals import Array, Preset, Regions, Scale, propose
from .scenes import resized

SIDE = 160
"""Longest side of the image for Selective Search, in pixels: its time grows with the area."""
COLOUR_SIDE = 80
"""Longest side of the grid of colours."""


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,4) corners as fractions: centres anywhere, sides from 0.03 to 0.35."""
    centre, half = rng.uniform(0, 1, (count, 2)), rng.uniform(0.015, 0.175, (count, 2))
    return np.clip(np.concatenate([centre - half, centre + half], 1), 0, 1).astype("float32")


def of_colour(image: Tensor, preset: Preset) -> Regions:
    """Our proposals (eq. 1) with colours in place of features; image (3,h,w) uint8."""
    height, width = image.shape[1:]
    scale = COLOUR_SIDE / max(height, width)
    sides = max(1, round(height * scale)), max(1, round(width * scale))
    colours = 2 * resized(image.float() / 255, sides) - 1
    cells = torch.cat([colours, torch.ones_like(colours[:, :1])], 1)  # grey keeps its brightness
    scale_of = Scale((torch.zeros(4, 1, 1),), (torch.ones(4, 1, 1),))
    return propose([cells], scale_of, replace(preset, levels=(0,), fine=0))


def selective_search(image: Tensor) -> Array:
    """(n,4) corners as fractions: OpenCV's fast Selective Search, in its order.

    ``image``: (3,h,w) uint8. Raises MissingDependencyError without opencv-contrib.
    """
    try:
        import cv2

        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            "Selective Search needs OpenCV's contributed modules. Run: "
            "pip install opencv-contrib-python-headless",
            name="cv2",
        ) from error
    height, width = image.shape[1:]
    scale = SIDE / max(height, width)
    sides = max(1, round(height * scale)), max(1, round(width * scale))
    small = (resized(image.float() / 255, sides)[0] * 255).round().to(torch.uint8)
    search.setBaseImage(np.ascontiguousarray(small.permute(1, 2, 0).numpy()[..., ::-1]))
    search.switchToSelectiveSearchFast()
    x, y, w, h = np.asarray(search.process(), np.float32).reshape(-1, 4).T
    high, wide = sides
    made: Array = np.stack([x / wide, y / high, (x + w) / wide, (y + h) / high], 1)
    return made


def fractions(truth: Detections, sides: tuple[int, int]) -> np.ndarray:
    """True boxes as fractions of their image."""
    made: np.ndarray = truth.boxes / np.array([*sides, *sides], "float32")
    return made
