"""Training photographs: random crops from a seed, and held-out photographs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo import images
from zoo.errors import InputError

HELD_OUT = (
    "book-beside-flowers",
    "casa-mila",
    "japanese-shop",
    "oakland-zoo-otters",
    "perched-osprey",
    "tea-gardens",
)
"""Photographs of the CC0 set that training never sees: validation and the benchmark use them."""


MEMORY = 8e9
"""Bytes of decoded photographs that each process keeps; further ones are read again each time."""
HELD = 32
"""The most photographs of a user's set that are held out: all of them stay in memory."""


@dataclass(frozen=True)
class OnDisk:
    """A photograph that is decoded for each crop."""

    path: Path
    half: bool
    shape: tuple[int, ...]

    def __getitem__(self, where: Any) -> np.ndarray:
        cut: np.ndarray = _pixels(images.read(self.path, "RGB"), self.half)[where]
        return cut


def _pixels(rgb: Image.Image, half: bool) -> np.ndarray:
    """(H,W,3) uint8, at full or at half size."""
    size = (rgb.width // 2, rgb.height // 2)
    return np.asarray(rgb.resize(size, Image.Resampling.BICUBIC) if half else rgb)


class Photos:
    """Photographs, in memory as far as they fit, and random crops of them."""

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            raise InputError("Training needs photographs: give a folder of images with --data.")
        paths = images.listed(folder)
        if not paths:
            raise InputError(
                f"No images in {str(folder)!r} itself (subfolders are not searched): nothing to "
                f"train on."
            )
        digest = hashlib.sha256()
        self.train: list[np.ndarray | OnDisk] = []  # (H,W,3) uint8, each at full and at half size
        self.held_out: dict[str, np.ndarray] = {}
        known = any(p.stem in HELD_OUT for p in paths)
        room = MEMORY
        for i, path in enumerate(paths):
            digest.update(path.name.encode() + path.read_bytes())
            rgb = images.read(path, "RGB")
            # Users' photos: every tenth is held out, if there are enough.
            if path.stem in HELD_OUT if known else i % 10 == 9 and i < 10 * HELD:
                self.held_out[path.stem] = np.asarray(rgb)
                continue
            for half in (False, True):  # half size has finer detail per pixel
                pixels = _pixels(rgb, half)
                room -= pixels.nbytes
                self.train.append(pixels if room >= 0 else OnDisk(path, half, pixels.shape))
        if not self.train:
            raise InputError(f"{str(folder)!r} contains only held-out photos.")
        self.hash = digest.hexdigest()
        self.count = len(paths)

    def crops(self, rng: np.random.Generator, count: int, side: int) -> Tensor:
        """(count,3,side,side) in [0,1]: the more detailed of two candidates, randomly flipped and
        rotated."""
        usable = [a for a in self.train if min(a.shape[:2]) >= side]
        if not usable:
            raise InputError(f"No training photo is at least {side} pixels wide and high.")
        area = np.array([a.shape[0] * a.shape[1] for a in usable], dtype=np.float64) ** 0.5
        batch = []
        for _ in range(count):
            best, detail = usable[0][:0], -1.0
            for index in rng.choice(len(usable), 2, p=area / area.sum()):
                a = usable[index]
                y = int(rng.integers(a.shape[0] - side + 1))
                x = int(rng.integers(a.shape[1] - side + 1))
                crop = a[y : y + side, x : x + side]  # (side,side,3)
                green = crop[..., 1].astype(np.int16)
                found = float(np.abs(np.diff(green, axis=0)).mean())
                if found > detail:
                    best, detail = crop, found
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            turned = np.rot90(best[:, ::-1] if flip else best, turns)
            batch.append(torch.from_numpy(turned.transpose(2, 0, 1).copy()))
        return torch.stack(batch).float() / 255

    def validation(self, side: int = 256) -> Tensor | None:
        """(N,3,side,side) in [0,1]: centre crops of the held-out photos, or None."""
        crops = []
        for a in self.held_out.values():
            y, x = (a.shape[0] - side) // 2, (a.shape[1] - side) // 2
            if y >= 0 and x >= 0:
                crop = a[y : y + side, x : x + side].transpose(2, 0, 1).copy()
                crops.append(torch.from_numpy(crop))
        return torch.stack(crops).float() / 255 if crops else None
