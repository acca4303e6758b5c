"""Real features for the benchmarks: CIFAR-10 through an image network of timm, once.

``features`` keeps what it made, so that the benchmarks of this plugin share it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.experiment import read_cifar
from zoo.progress import Progress
from zoo.weights import atomic_file

from .towers import ImageTower

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
UNLABELLED = 4000
"""Training photographs for what learns without labels: the first in ``read_cifar``'s order."""
POOL = 2000
"""Training photographs after those, from which few-shot support sets are drawn."""
TESTS = 4000
"""Test photographs."""


def features(
    data: Path, part: str, count: int, tower: ImageTower, kept: Path | None, progress: Progress
) -> tuple[Tensor, Tensor]:
    """``count`` photographs of CIFAR-10's ``part`` (train or test), in ``read_cifar``'s order:
    pooled features (N,d) float32, as the network gives them, and labels (N,).

    ``kept``: folder where they are looked for and kept, under the network's digest.
    """
    pictures, labels = read_cifar(data / f"{part}.parquet", count)
    file = kept / f"cifar10_{part}_{tower.digest[:12]}.npy" if kept is not None else None
    if file is not None and file.is_file():
        found = np.load(file)
        if len(found) >= count and found.shape[1] == tower.width:
            return torch.from_numpy(found[:count].copy()), labels
    made = tower(list(pictures), progress)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, made.numpy())
    return made, labels
