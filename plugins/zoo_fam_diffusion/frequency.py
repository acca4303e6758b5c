"""Frequency modulation: the low frequencies of a latent move towards those of a reference (eq. 3).

    z~_t   the enlarged native latent, diffused to step t (the reference)
    z_t    the latent that is being denoised at the target size
    f(z~_t, z_t) = IDFT(K * DFT(z_t) + (1 - K) * DFT(z~_t)),   K = rho near DC, else 1

rho = t / T falls during sampling and the box grows: at first nearly nothing is replaced, at the end
nearly all low frequencies are. Works on any latents; knows no pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width), of a grid of latents or tokens."""


def response(size: Size, rho: float, cutoff: float, band: Size | None = None) -> Tensor:
    """K (eq. 4) at the frequencies of ``torch.fft.rfft2`` on a grid of ``size``: (H, W//2+1),
    float32.

    ``rho``: t / T in [0, 1]. ``cutoff``: c in [0, 1]. ``band``: h, w of the box's sides
    tau = c (h, w) (1 - rho); None: the grid itself.
    """
    height, width = size
    rows = torch.fft.fftfreq(height, 1 / height)  # whole frequencies, in the order of the DFT
    columns = torch.fft.rfftfreq(width, 1 / width)
    tau = [cutoff * side * (1 - rho) for side in band or size]
    inside = (rows.abs() < tau[0] / 2)[:, None] & (columns.abs() < tau[1] / 2)
    return torch.where(inside, rho, 1.0)


def modulate(z: Tensor, reference: Tensor, k: Tensor) -> Tensor:
    """f(reference, z) (eq. 3), for latents (..., H, W) of one shape and k (H, W//2+1).

    Computed in float32, because half-precision FFTs exist for powers of two only; the result has
    z's dtype.
    """
    first, second = z.float(), reference.float()
    # The same as eq. 3, with one transform less: z + IDFT((1 - K) DFT(reference - z)).
    spectrum = (1 - k.to(z.device)) * torch.fft.rfft2(second - first)
    return (first + torch.fft.irfft2(spectrum, s=first.shape[-2:])).to(z.dtype)


@dataclass(frozen=True)
class Frequency:
    """Frequency modulation with its two constants: ``Frequency()(z, reference, rho, native)``."""

    cutoff: float = 0.5
    """c of eq. 4"""
    grid: Literal["target", "native"] = "target"
    """Whose sides the box is measured in."""

    def __call__(self, z: Tensor, reference: Tensor, rho: float, native: Size) -> Tensor:
        """z, reference (B,C,H,W) at the same step, rho = t / T, ``native``: (h, w) of the native
        latent."""
        size = (z.shape[-2], z.shape[-1])
        band = native if self.grid == "native" else size
        return modulate(z, reference, response(size, rho, self.cutoff, band))
