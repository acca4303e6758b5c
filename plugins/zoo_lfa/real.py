"""What both benchmarks share: features of CIFAR-10 by an image network, and how answers count."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.experiment import kept, read_cifar
from zoo.progress import Progress

from .towers import ImageTower

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
UNLABELLED = 4000
"""Training photographs for what learns without labels: the first in ``read_cifar``'s order."""
POOL = 2000
"""Training photographs from which few-shot support sets are drawn."""
TESTS = 4000
"""Test photographs."""


def cifar(data: Path | None) -> Path | None:
    """The folder with CIFAR-10: ``data``, or ``cifar10`` in it."""
    return data / "cifar10" if data and (data / "cifar10").is_dir() else data


def features(
    data: Path, part: str, count: int, tower: ImageTower, folder: Path | None, progress: Progress
) -> tuple[Tensor, Tensor]:
    """``count`` photographs of CIFAR-10's ``part`` (train or test), in ``read_cifar``'s order:
    pooled features (N,d) float32, not normalised, and labels (N,).

    ``folder``: where features are kept from one benchmark to the next.
    """
    pictures, labels = read_cifar(data / f"{part}.parquet", count)
    file = folder and folder / f"cifar10_{part}_{tower.digest[:12]}.safetensors"
    return kept(file, count, lambda: tower(list(pictures), progress)), labels


def support(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Row numbers of a support set: ``shots`` of each class of CIFAR-10, drawn with this seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:shots] for c in range(len(CLASSES))])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Per cent right."""
    return 100 * float((scores.argmax(1) == labels).double().mean())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (ECE) in [0,1]: the mean of |confidence - accuracy| over bins of
    equal width, weighted by their rows."""
    confidence, best = probabilities.double().max(1)
    gap = confidence - (best == labels).double()
    at = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins).double().index_add_(0, at, gap).abs().sum() / len(labels))
