"""How LR images are made from HR images; parameters are drawn once, as data (YONOS-SR, 2.2, 2.8).

Scale distillation needs an *easier* version of the *same* degradation for its teacher: draw the
parameters once for the final scale, then apply them at both scales.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .resize import bicubic, bicubic_down


@dataclass(frozen=True)
class Params:
    """One image's degradation. Lengths are in LR pixels of the final scale."""

    blur: float = 0.0
    """Standard deviation of a Gaussian blur, LR pixels; 0 is none."""
    noise: float = 0.0
    """Standard deviation of additive Gaussian noise, in [0, 1] image units; 0 is none."""
    noise_seed: int = 0
    jpeg: int | None = None
    """JPEG quality, or None."""


def round8(x: Tensor) -> Tensor:
    """To the nearest of 256 levels in [0, 1]: a stored LR image has 8 bits."""
    return (x.clamp(0, 1) * 255).round() / 255


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic shrinking, rounded to 8 bits: the convention of published tables."""

    def sample(self, rng: np.random.Generator, count: int) -> list[Params]:
        return [Params() for _ in range(count)]

    def apply(self, x_h: Tensor, scale: int, params: Sequence[Params], final: int) -> Tensor:
        """x_h (B,3,H,W) in [0,1] to x_l (B,3,H/scale,W/scale)."""
        return round8(bicubic_down(x_h, scale))


@dataclass(frozen=True)
class RealLite:
    """Bicubic, and for a share of the images a little blur, noise and JPEG besides."""

    share: float = 1.0
    """Which part of the images is degraded beyond bicubic, in [0, 1]."""
    blur: tuple[float, float] = (0.1, 1.2)
    noise: tuple[float, float] = (0.0, 8 / 255)
    jpeg: tuple[int, int] = (60, 95)

    def sample(self, rng: np.random.Generator, count: int) -> list[Params]:
        drawn = []
        for _ in range(count):
            # Always draw the same number of values, so that ``share`` does not shift the rest.
            degraded = rng.random() < self.share
            params = Params(
                blur=float(rng.uniform(*self.blur)),
                noise=float(rng.uniform(*self.noise)),
                noise_seed=int(rng.integers(2**31)),
                jpeg=int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)),
            )
            drawn.append(params if degraded else Params())
        return drawn

    def apply(self, x_h: Tensor, scale: int, params: Sequence[Params], final: int) -> Tensor:
        """x_h (B,3,H,W) in [0,1] to x_l (B,3,H/scale,W/scale), at ``scale`` <= ``final``.

        The same parameters at a smaller scale give the same blur in HR pixels, the same noise
        field resized, and the same JPEG quality.
        """
        images = []
        for x, p in zip(x_h, params, strict=True):
            x = x[None]  # (1,3,H,W)
            if p.blur:
                x = _gaussian_blur(x, p.blur * final)
            x = bicubic_down(x, scale)
            if p.noise:
                generator = torch.Generator().manual_seed(p.noise_seed)
                size = (x_h.shape[-2] // final, x_h.shape[-1] // final)
                field = torch.randn((1, 3, *size), generator=generator)
                if scale != final:
                    field = bicubic(field, (x.shape[-2], x.shape[-1]))
                x = x + p.noise * field.to(x.device)
            x = round8(x)
            images.append(_jpeg(x, p.jpeg) if p.jpeg else x)
        return torch.cat(images)


def _gaussian_blur(x: Tensor, std: float) -> Tensor:
    """(1,3,H,W), standard deviation in its own pixels; edges are replicated."""
    radius = max(1, round(3 * std))
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (taps / std) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)  # (3,1,2r+1)
    x = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = functional.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    return functional.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


def _jpeg(x: Tensor, quality: int) -> Tensor:
    """(1,3,h,w) in [0,1] through a JPEG file of this quality."""
    pixels = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()  # (h,w,3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].to(x)
