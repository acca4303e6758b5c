"""The tiny autoencoder: factor 4, 8 channels. Latents of an HR image stand on the LR grid.

Factor 8 with 4 channels, as Stable Diffusion has it, is too lossy at this size: its reconstruction
is below plain bicubic x4 (Edge-SD-SR, 7.2). The rule there: reconstruction at least 4 dB above
bicubic x4, or super-resolution cannot win whatever the denoiser does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import ResBlock, conv3


class TinyEncoder(nn.Module):
    """E_H: (B,3,H,W) in [-1,1] to z_h (B,latent,H/4,W/4)."""

    def __init__(self, latent: int = 8, widths: Sequence[int] = (32, 96), blocks: int = 2) -> None:
        super().__init__()
        fine, coarse = widths
        self.conv_in = conv3(3 * 4, fine)
        self.fine = nn.Sequential(*(ResBlock(fine, fine) for _ in range(1)))
        self.shrink = conv3(4 * fine, coarse)
        self.coarse = nn.Sequential(*(ResBlock(coarse, coarse) for _ in range(blocks)))
        self.conv_out = conv3(coarse, latent)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fine(self.conv_in(functional.pixel_unshuffle(x, 2)))  # (B,fine,H/2,W/2)
        h = self.coarse(self.shrink(functional.pixel_unshuffle(h, 2)))  # (B,coarse,H/4,W/4)
        return self.conv_out(functional.silu(h))


class TinyDecoder(nn.Module):
    """D: z (B,latent,h,w) to (B,3,4h,4w), about in [-1,1]."""

    def __init__(self, latent: int = 8, widths: Sequence[int] = (96, 48), blocks: int = 2) -> None:
        super().__init__()
        coarse, fine = widths
        self.conv_in = conv3(latent, coarse)
        self.coarse = nn.Sequential(*(ResBlock(coarse, coarse) for _ in range(blocks)))
        self.grow = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine = nn.Sequential(*(ResBlock(fine, fine) for _ in range(blocks)))
        self.conv_out = conv3(fine, 3 * 4)

    def forward(self, z: Tensor) -> Tensor:
        h = self.coarse(self.conv_in(z))  # (B,coarse,h,w)
        h = self.fine(functional.pixel_shuffle(self.grow(functional.silu(h)), 2))  # (B,fine,2h,2w)
        return functional.pixel_shuffle(self.conv_out(functional.silu(h)), 2)  # (B,3,4h,4w)


@torch.no_grad()
def normalise_latents(conv_out: nn.Conv2d, conv_ins: Sequence[nn.Conv2d], std: Tensor) -> None:
    """Give each latent channel unit variance, exactly, without a new parameter.

    ``std`` (C,) is the measured spread; the encoder's last layer is divided by it and the decoders'
    first is multiplied. Without this s_l and the noise level would mean nothing (section 11).
    """
    conv_out.weight /= std[:, None, None, None]
    assert conv_out.bias is not None
    conv_out.bias /= std
    for conv_in in conv_ins:
        conv_in.weight *= std[None, :, None, None]
