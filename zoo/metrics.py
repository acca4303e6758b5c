"""The metrics of all super-resolution models, so that tables are comparable.

Conventions are those of published x4 tables: LR images are made by antialiased bicubic shrinking
and rounded to 8 bits; the result is rounded to 8 bits; PSNR and SSIM are of the luma Y
of ITU-R BT.601 in studio range (16 to 235), with a border of ``scale`` pixels cut.

All functions take float tensors (3,H,W) in [0,1] and return a float. Heavy imports happen inside,
because ``zoo`` must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def luma(x: Tensor) -> Tensor:
    """Y in [16, 235] of an RGB image (3,H,W) in [0,1], (H,W): BT.601, as MATLAB's rgb2ycbcr."""
    r, g, b = x.double()
    return 16 + 65.481 * r + 128.553 * g + 24.966 * b


def _pair(x: Tensor, truth: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Both images rounded to 8 bits with the border cut, (3,H-2b,W-2b)."""
    if x.shape != truth.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(truth.shape)}")
    if min(x.shape[-2:]) <= 2 * border:
        raise ValueError(f"{tuple(x.shape)} has no pixels inside a border of {border}")
    inner = (slice(None), slice(border, x.shape[-2] - border), slice(border, x.shape[-1] - border))
    a, b = ((y.detach().cpu().float().clamp(0, 1) * 255).round() / 255 for y in (x, truth))
    return a[inner], b[inner]


def psnr_y(x: Tensor, truth: Tensor, scale: int) -> float:
    """Peak signal-to-noise ratio of Y in dB, peak 255; infinity for equal images."""
    import math

    a, b = _pair(x, truth, scale)
    error = float((luma(a) - luma(b)).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim_y(x: Tensor, truth: Tensor, scale: int) -> float:
    """Structural similarity of Y in [-1, 1]: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004.

    Gaussian window 11x11 with sigma 1.5, constants 0.01 and 0.03 of 255, mean over all windows
    inside the image. Images need at least 11 pixels a side inside the border.
    """
    import torch
    from torch.nn import functional

    a, b = (luma(y)[None, None] for y in _pair(x, truth, scale))  # (1,1,H,W)
    taps = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blur(y: Tensor) -> Tensor:
        return functional.conv2d(
            functional.conv2d(y, taps[None, None, None, :]), taps[None, None, :, None]
        )

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return float(similarity.mean())


def haarpsi(x: Tensor, truth: Tensor, scale: int) -> float:
    """Haar wavelet perceptual similarity in [0, 1], 1 is equal, of the RGB image.

    Reisenhofer, Bosse, Kutyniok, Wiegand, Signal Processing: Image Communication 2018; the
    implementation is piq's. It needs no downloaded network, and follows human judgement of
    structure better than PSNR and SSIM do, even with noise or block artefacts.
    """
    try:
        import piq
    except ModuleNotFoundError as error:
        from .errors import MissingDependencyError

        raise MissingDependencyError(
            "HaarPSI needs piq, which is not installed. Run: pip install 'edgezoo[bench]'",
            name="piq",
        ) from error

    a, b = _pair(x, truth, scale)
    return float(piq.haarpsi(a[None], b[None], data_range=1.0))
