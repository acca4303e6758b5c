"""The tiny networks. Without norms over space and attention, a pixel depends on its neighbourhood
only.

GroupNorm and self-attention make a tile's result depend on the whole tile, which causes brightness
steps between tiles (YONOS-SR, eq. 13). Without them a tiled run equals an untiled one.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (or halves it with stride 2)."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


def zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The same layer with weights and bias 0, so that it adds nothing at first."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), with a scale and shift per channel if there is a time. The
    second convolution starts at zero, which keeps a deep stack without norms stable.
    """

    def __init__(self, c_in: int, c_out: int, time: int = 0) -> None:
        super().__init__()
        self.conv1 = conv3(c_in, c_out)
        self.conv2 = zero(conv3(c_out, c_out))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.time = nn.Linear(time, 2 * c_out) if time else None

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(functional.silu(x))  # (B,c_out,h,w)
        if self.time is not None and emb is not None:
            scale, shift = self.time(emb)[:, :, None, None].chunk(2, dim=1)  # (B,c_out,1,1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(functional.silu(h))


class TinyUNet(nn.Module):
    """v^ from the latents and t: a few levels, joined by strided convolutions and shuffles."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 2,
        time: int = 64,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        # v^ at t=1 is -z_h, which is mostly in the input already: a linear path carries it, and the
        # levels learn only the rest.
        self.linear = nn.Conv2d(c_in, c_out, 1)
        self.conv_in = conv3(c_in, widths[0])
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for width, deeper in pairwise(widths):
            self.down.append(nn.ModuleList(ResBlock(width, width, time) for _ in range(blocks)))
            self.shrink.append(conv3(width, deeper, stride=2))
        self.middle = nn.ModuleList(ResBlock(widths[-1], widths[-1], time) for _ in range(blocks))
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for width, deeper in reversed(list(pairwise(widths))):
            self.grow.append(nn.Sequential(nn.Conv2d(deeper, 4 * width, 1), nn.PixelShuffle(2)))
            self.up.append(
                nn.ModuleList(
                    ResBlock(2 * width if i == 0 else width, width, time) for i in range(blocks)
                )
            )
        self.conv_out = zero(conv3(widths[0], c_out))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B,c_in,h,w), h and w multiples of ``stride``; t (B,) in [0,1]; to (B,c_out,h,w)."""
        emb = self.time(_embed(t))  # (B,time)
        h = self.conv_in(x)  # (B,w0,h,w)
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for block in blocks.children():
                h = block(h, emb)
            skips.append(h)
            h = shrink(h)  # (B,w1,h/2,w/2)
        for block in self.middle:
            h = block(h, emb)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            h = torch.cat([grow(h), skips.pop()], dim=1)  # (B,2*w0,h,w)
            for block in blocks.children():
                h = block(h, emb)
        return self.linear(x) + self.conv_out(functional.silu(h))


def _embed(t: Tensor) -> Tensor:
    """t (B,) in [0,1] to 16 sines and 16 cosines (B,32), periods from 2 down to 1/32."""
    frequency = torch.exp(torch.linspace(0, math.log(64), 16, device=t.device)) * math.pi
    angle = t.float()[:, None] * frequency  # (B,16)
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(t.dtype)


# --- autoencoder ----------------------------------------------------------------------------------
#
# The tiny autoencoder: factor 4, 8 channels. Latents of an HR image are on the LR grid.
#
# Factor 8 with 4 channels, as in Stable Diffusion, is too lossy at this size: even the best linear
# code of that size reconstructs worse than bicubic x4. The rule: reconstruction must be at least 4
# dB above bicubic x4, or no denoiser can make super-resolution better than bicubic.


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
    first layer multiplied. Without this, s_l and the noise level would have no meaning
    (Edge-SD-SR, eq. 1).
    """
    conv_out.weight /= std[:, None, None, None]
    assert conv_out.bias is not None
    conv_out.bias /= std
    for conv_in in conv_ins:
        conv_in.weight *= std[None, :, None, None]


# --- the base class of a method's network ---------------------------------------------------------


class LatentNetwork(nn.Module, abc.ABC):
    """The base class of both methods' networks.

    ``decoder_base`` is D before it was fine-tuned on one-step outputs, which ``fidelity`` 0
    restores.
    """

    unet: nn.Module
    decoder: nn.Module
    decoder_base: nn.Module
    scale: int
    """HR pixels per LR pixel, along a side."""
    factor: int
    """HR pixels per latent, along a side."""
    latent: int
    """Channels of a latent."""
    stride: int
    """The LR size must be a multiple of this."""

    @abc.abstractmethod
    def encode_hr(self, x_h: Tensor) -> Tensor:
        """x_h (B,3,H,W) in [-1,1] to z_h (B,latent,H/factor,W/factor): the target of training."""

    @abc.abstractmethod
    def one_step(self, x_l: Tensor, eps: Tensor | None = None, steps: int = 1) -> Tensor:
        """z^ (B,latent,h',w') from x_l (B,3,h,w) in [-1,1]; eps None: no noise."""

    def decode(self, z: Tensor) -> Tensor:
        """z (B,latent,h',w') to (B,3,f h',f w'), about in [-1,1]."""
        made: Tensor = self.decoder(z)
        return made

    def forward(self, x_l: Tensor, eps: Tensor | None = None, steps: int = 1) -> Tensor:
        """x_l (B,3,h,w) in [0,1] to x^ (B,3,scale*h,scale*w), about in [0,1]."""
        return (self.decode(self.one_step(2 * x_l - 1, eps, steps)) + 1) / 2
