"""Decoder fine-tuning on the latents that one step really gives (YONOS-SR, 2.4).

The denoiser is frozen; its one-step answer is a conditional mean, so smooth. The decoder learns to
make the picture from *that*:   L = || x^ - x_h ||_1 + lambda * texture(x^, x_h).

The texture term compares local contrast, which a smooth answer lacks, without asking for a match
of single pixels. It needs no downloaded network and is none of the metrics we report.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def local_contrast(x: Tensor, window: int) -> Tensor:
    """Root mean square of the gradient in overlapping windows: (B,3,H,W) to (B,6,~2H/w,~2W/w)."""
    dy = x[..., 1:, :-1] - x[..., :-1, :-1]  # (B,3,H-1,W-1)
    dx = x[..., :-1, 1:] - x[..., :-1, :-1]
    energy = functional.avg_pool2d(torch.cat([dy, dx], 1).square(), window, stride=window // 2)
    return (energy + 1e-4).sqrt()


def texture_loss(x: Tensor, x_h: Tensor) -> Tensor:
    """Mean absolute difference of local contrast, at windows of 4 and 8 pixels."""
    return torch.stack(
        [(local_contrast(x, w) - local_contrast(x_h, w)).abs().mean() for w in (4, 8)]
    ).mean()


def decoder_loss(x: Tensor, x_h: Tensor, texture: float) -> Tensor:
    """The loss of the decoder stage; x, x_h (B,3,H,W) in [-1,1]."""
    loss = (x - x_h).abs().mean()
    return loss + texture * texture_loss(x, x_h) if texture else loss
