"""What goes into a detector's loss: its outputs for a batch, and the objects of each image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The objects of one image."""

    labels: Tensor
    """(n,) int64"""
    boxes: Tensor
    """(n,4) centre and size, as fractions."""


@dataclass(frozen=True)
class Noised:
    """Denoising queries: groups of true boxes with noise, and their labels (eq. 9)."""

    labels: Tensor
    """(N,D) int64, some of them wrong on purpose."""
    boxes: Tensor
    """(N,D,4)"""
    mask: Tensor
    """(D,D) bool: which may attend to which."""


@dataclass(frozen=True)
class Seen:
    """What the network makes of a batch."""

    dense_logits: Tensor
    """(N,T,K) for every cell of the three maps."""
    dense_boxes: Tensor
    """(N,T,4)"""
    logits: tuple[Tensor, ...]
    """(N,Q,K) after each decoder layer."""
    boxes: tuple[Tensor, ...]
    """(N,Q,4) after each decoder layer."""
    noised_logits: tuple[Tensor, ...] = ()
    """(N,D,K) of the denoising queries."""
    noised_boxes: tuple[Tensor, ...] = ()
