"""Decoder fine-tuning on the actual latents of one step (YONOS-SR, eq. 8).

The denoiser is frozen; its one-step output is a conditional mean and therefore smooth. The decoder
learns to make the image from it:

    L = || x^ - x_h ||_1 + lambda * texture(x^, x_h).

The texture term compares local contrast, which a smooth output lacks, without comparing single
pixels. It needs no downloaded network and is not one of the reported metrics.

A decoder has no noise to make grain from: if the loss demands contrast that the latents do not
explain, it draws a regular pattern. Two things penalise that: contrast is also compared at half
size, where a pattern of single pixels vanishes, and ``FLOOR`` weakens the term for low contrast.
With the weights of our recipes, a pattern instead of grain increases the loss for grain up to 3 of
255; for coarser texture it can still decrease it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 1e-3
"""Floor of squared contrast, in [-1,1] units: 4 of 255 from pixel to pixel."""


def local_contrast(x: Tensor, window: int) -> Tensor:
    """Root mean square of the gradient in overlapping windows: (B,3,H,W) to (B,6,~2H/w,~2W/w)."""
    dy = x[..., 1:, :-1] - x[..., :-1, :-1]  # (B,3,H-1,W-1)
    dx = x[..., :-1, 1:] - x[..., :-1, :-1]
    energy = functional.avg_pool2d(torch.cat([dy, dx], 1).square(), window, stride=window // 2)
    return (energy + FLOOR).sqrt()


def texture_loss(x: Tensor, x_h: Tensor) -> Tensor:
    """Mean absolute difference of contrast in windows of 8 pixels, and of 4 at half the size."""
    fine = local_contrast(x, 8) - local_contrast(x_h, 8)
    x, x_h = functional.avg_pool2d(x, 2), functional.avg_pool2d(x_h, 2)
    coarse = local_contrast(x, 4) - local_contrast(x_h, 4)
    return (fine.abs().mean() + coarse.abs().mean()) / 2


def decoder_loss(x: Tensor, x_h: Tensor, texture: float) -> Tensor:
    """The loss of the decoder stage; x, x_h (B,3,H,W) in [-1,1], H and W at least 10."""
    loss = (x - x_h).abs().mean()
    return loss + texture * texture_loss(x, x_h) if texture else loss
