"""Makes LR images from HR images; random parameters are drawn once, as data (YONOS-SR, eq. 6).

Scale distillation needs an *easier* version of the *same* degradation for its teacher: draw the
parameters once for the final scale, then apply them at both scales.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from zoo import images

from .pixels import bicubic, bicubic_down


class Degradation(Protocol):
    """A way to make LR images. ``sample`` draws all random parameters; ``apply`` is
    deterministic."""

    @property
    def share(self) -> float:
        """Share of the images that are degraded beyond shrinking."""

    def sample(self, rng: np.random.Generator, count: int) -> Sequence[Any]:
        """The parameters of ``count`` images."""

    def apply(self, x_h: Tensor, scale: int, params: Sequence[Any], final: int) -> Tensor:
        """x_h (B,3,H,W) in [0,1] to x_l (B,3,H/scale,W/scale), at ``scale`` <= ``final``."""


@dataclass(frozen=True)
class Params:
    """One image's degradation. Lengths are in LR pixels of the final scale."""

    blur: float = 0.0
    """Standard deviation of a Gaussian blur, LR pixels; 0: no blur."""
    noise: float = 0.0
    """Standard deviation of additive Gaussian noise, in [0, 1] image units; 0: no noise."""
    noise_seed: int = 0
    jpeg: int | None = None
    """JPEG quality, or None."""


def round8(x: Tensor) -> Tensor:
    """Round to the nearest of 256 levels in [0, 1]: a stored LR image has 8 bits."""
    return (x.clamp(0, 1) * 255).round() / 255


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic shrinking, rounded to 8 bits: the convention of published tables."""

    share: ClassVar[float] = 0.0

    def sample(self, rng: np.random.Generator, count: int) -> list[Params]:
        return [Params() for _ in range(count)]

    def apply(self, x_h: Tensor, scale: int, params: Sequence[Params], final: int) -> Tensor:
        """x_h (B,3,H,W) in [0,1] to x_l (B,3,H/scale,W/scale)."""
        return round8(bicubic_down(x_h, scale))


@dataclass(frozen=True)
class RealLite:
    """Bicubic shrinking, with a little blur, noise and JPEG for a share of the images."""

    share: float = 1.0
    """The share of images that are degraded beyond bicubic, in [0, 1]."""
    blur: tuple[float, float] = (0.1, 1.2)
    noise: tuple[float, float] = (0.0, 8 / 255)
    jpeg: tuple[int, int] = (60, 95)

    def sample(self, rng: np.random.Generator, count: int) -> list[Params]:
        drawn = []
        for _ in range(count):
            # Always draw the same number of values, so that ``share`` does not change the others.
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


@dataclass(frozen=True)
class Blur:
    """A low-pass filter with the frequency response exp(-q^shape / 2), q = w' S w.

    shape 1 is a Gaussian with covariance S; below 1 the kernel has a sharp peak and long tails; far
    above 1 it cuts off at |w| = 1/spread and rings like a sinc filter. Our choice, in place of the
    usual lists of blur kernels.
    """

    spread: tuple[float, float]
    """Square roots of the eigenvalues of S, in LR pixels of the final scale."""
    angle: float = 0.0
    """Direction of the first axis, radians."""
    shape: float = 1.0


Mode: TypeAlias = Literal["bicubic", "bilinear", "area"]
MODES: tuple[Mode, ...] = ("bicubic", "bilinear", "area")


@dataclass(frozen=True)
class Resize:
    """Resize to another grid."""

    factor: float
    """Side of the new grid as a multiple of the LR image's; at most as fine as the HR image."""
    mode: Mode = "bicubic"


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, on the current grid."""

    std: float
    """In [0, 1] image units; with ``shot``, the value at white."""
    seed: int
    grey: bool = False
    """The same in all three colours."""
    shot: bool = False
    """The noise grows with the square root of the brightness, like photon noise."""


@dataclass(frozen=True)
class Jpeg:
    """JPEG compression, on the current grid."""

    quality: int


Chain: TypeAlias = tuple[Blur | Resize | Noise | Jpeg, ...]
"""One image's degradation, in order, before a final bicubic resize to the LR grid."""


@dataclass(frozen=True)
class RealESRGAN:
    """Blur, resize, noise and JPEG in random order, once or twice, for a share of the images.

    The idea of Real-ESRGAN (Wang, Xie, Dong, Shan 2021), with our own ranges for the most frequent
    inputs of x4: phone photos and thumbnails of web pages. Noise and JPEG come after the first
    resize, so their grids depend on ``scale``: at a smaller scale the noise field is the same,
    enlarged, and JPEG's blocks cover less of the image. So the teacher's version stays the easier
    one.
    """

    share: float = 0.9
    """The share of images that are degraded beyond bicubic, in [0, 1]."""
    twice: float = 0.4
    """The share of these with a second round, in [0, 1]."""
    each: float = 0.75
    """Probability of each blur, noise and JPEG step."""
    blur: tuple[float, float] = (0.1, 0.8)
    """LR pixels of the final scale."""
    factor: tuple[float, float] = (0.7, 2.5)
    """Sides of the intermediate grids, as multiples of the LR image's; drawn log-uniformly."""
    noise: tuple[float, float] = (0.0, 12 / 255)
    jpeg: tuple[int, int] = (30, 95)

    def sample(self, rng: np.random.Generator, count: int) -> list[Chain]:
        drawn: list[Chain] = []
        for _ in range(count):
            degraded = rng.random() < self.share
            if rng.random() < self.twice:
                chain = self._round(rng, True, False) + self._round(rng, False, True)
            else:
                chain = self._round(rng, True, True)
            drawn.append(chain if degraded else ())
        return drawn

    def _round(self, rng: np.random.Generator, first: bool, last: bool) -> Chain:
        # Most images are saved at their final size: JPEG on the LR grid itself.
        fixed = last and rng.random() < 0.7
        factor = 1.0 if fixed else math.exp(rng.uniform(*np.log(self.factor)))
        mode = MODES[rng.integers(len(MODES))]
        one, two = rng.uniform(*self.blur, size=2)
        kind = rng.random()
        shape = 1.0 if kind < 0.6 else rng.uniform(0.5, 1) if kind < 0.8 else rng.uniform(1, 6)
        optics: list[Blur | Resize | Noise | Jpeg] = [
            Resize(factor, mode),
            Blur(
                spread=(float(one), float(two if rng.random() < 0.5 else one)),
                angle=float(rng.uniform(0, math.pi)),
                shape=float(shape),
            ),
        ]
        file: list[Blur | Resize | Noise | Jpeg] = [
            Noise(
                std=float(rng.uniform(*self.noise)),
                seed=int(rng.integers(2**31)),
                grey=bool(rng.random() < 0.4),
                shot=bool(rng.random() < 0.5),
            ),
            Jpeg(int(rng.integers(self.jpeg[0], self.jpeg[1] + 1))),
        ]
        groups = [optics, file] if first else [optics + file]
        steps = [group[i] for group in groups for i in rng.permutation(len(group))]
        chances = rng.random(len(steps))
        return tuple(
            step
            for step, chance in zip(steps, chances, strict=True)
            if isinstance(step, Resize) or chance < self.each
        )

    def apply(self, x_h: Tensor, scale: int, params: Sequence[Chain], final: int) -> Tensor:
        """x_h (B,3,H,W) in [0,1] to x_l (B,3,H/scale,W/scale), at ``scale`` <= ``final``.

        The same parameters at a smaller scale give the same blur in HR pixels, the same noise
        fields enlarged, and JPEG of the same quality on a finer grid.
        """
        x_l = bicubic_down(x_h, scale)
        images = [
            _run(chain, x[None], scale, final) if chain else clean[None]
            for x, clean, chain in zip(x_h, x_l, params, strict=True)
        ]
        return round8(torch.cat(images))


def _run(chain: Chain, x: Tensor, scale: int, final: int) -> Tensor:
    """x (1,3,H,W) to (1,3,H/scale,W/scale), not yet rounded."""
    height, width = x.shape[-2:]

    def grid(factor: float, scale: int) -> tuple[int, int]:
        sides = (min(n, max(1, round(factor * n / scale))) for n in (height, width))
        return next(sides), next(sides)

    at_final = (height, width)  # the current grid if this were the final scale
    for step in chain:
        match step:
            case Blur():
                x = _blur(x, step, final * x.shape[-1] / width)
            case Resize(factor, mode):
                at_final = grid(factor, final)
                x = _resize(x, grid(factor, scale), mode)
            case Noise():
                x = _noise(x, step, at_final)
            case Jpeg(quality):
                x = _jpeg(round8(x), quality)
    return _resize(x, grid(1, scale), "bicubic")


def _resize(x: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    if x.shape[-2:] == size:
        return x
    if mode == "area":
        return functional.interpolate(x, size=size, mode="area")
    return functional.interpolate(x, size=size, mode=mode, antialias=True, align_corners=False)


def _blur(x: Tensor, blur: Blur, unit: float) -> Tensor:
    """(1,3,h,w); ``unit``: pixels of x per LR pixel. Edges are replicated."""
    one, two = (s * unit for s in blur.spread)
    pad = math.ceil(3 * max(one, two))
    padded = functional.pad(x, (pad, pad, pad, pad), mode="replicate")
    height, width = padded.shape[-2:]
    fy = 2 * math.pi * torch.fft.fftfreq(height, device=x.device)[:, None]  # (h,1) radians/pixel
    fx = 2 * math.pi * torch.fft.rfftfreq(width, device=x.device)  # (w/2+1,)
    cos, sin = math.cos(blur.angle), math.sin(blur.angle)
    q = (one * (cos * fx + sin * fy)).square() + (two * (cos * fy - sin * fx)).square()
    response = torch.exp(-0.5 * q**blur.shape)  # (h,w/2+1)
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * response, s=(height, width))
    return blurred[..., pad : height - pad, pad : width - pad]


def _noise(x: Tensor, noise: Noise, size: tuple[int, int]) -> Tensor:
    """(1,3,h,w) with noise drawn on a grid of ``size``, enlarged if x is finer."""
    generator = torch.Generator().manual_seed(noise.seed)
    field = torch.randn((1, 1 if noise.grey else 3, *size), generator=generator)
    field = _resize(field, (x.shape[-2], x.shape[-1]), "bicubic").to(x)
    return x + noise.std * (x.clamp(0, 1).sqrt() * field if noise.shot else field)


def _gaussian_blur(x: Tensor, std: float) -> Tensor:
    """(1,3,H,W), standard deviation in pixels of x; edges are replicated."""
    radius = max(1, round(3 * std))
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (taps / std) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)  # (3,1,2r+1)
    x = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = functional.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    return functional.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


def _jpeg(x: Tensor, quality: int) -> Tensor:
    """(1,3,h,w) in [0,1], compressed as JPEG of this quality."""
    pixels = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()  # (h,w,3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    decoded = np.asarray(images.read(file.getvalue()), np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].to(x)
