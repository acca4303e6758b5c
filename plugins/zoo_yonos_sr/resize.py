"""Bicubic resizing, the one that published super-resolution tables mean."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,H,W) to (B,C,*size), with antialiasing in both directions.

    ``antialias=True`` makes torch equal PIL (cubic coefficient -0.5); without it torch uses -0.75,
    which differs by up to 21 grey levels even when enlarging.
    """
    return functional.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)


def bicubic_up(x: Tensor, scale: int) -> Tensor:
    """(B,C,h,w) to (B,C,h*scale,w*scale)."""
    return bicubic(x, (x.shape[-2] * scale, x.shape[-1] * scale))


def bicubic_down(x: Tensor, scale: int) -> Tensor:
    """(B,C,H,W) to (B,C,H//scale,W//scale); H and W must be multiples of scale."""
    if x.shape[-2] % scale or x.shape[-1] % scale:
        raise ValueError(f"{tuple(x.shape[-2:])} is not a multiple of {scale}")
    return bicubic(x, (x.shape[-2] // scale, x.shape[-1] // scale))


def back_project(x: Tensor, x_l: Tensor, scale: int, steps: int) -> Tensor:
    """Make x (B,3,H,W) shrink to x_l (B,3,h,w): each step adds the enlarged error of the shrunk x.

    Right where x_l was made by bicubic shrinking; elsewhere it writes the input's artefacts back.
    """
    for _ in range(steps):
        x = x + bicubic_up(x_l - bicubic_down(x, scale), scale)
    return x
