"""G-DISTS: DISTS on Gabor magnitudes instead of VGG features. No weights.

DISTS (Ding, Ma, Wang, Simoncelli, TPAMI 2022) compares two images by the means and the correlations
of feature maps; computed in windows, it tolerates the right texture at a slightly different place.
Here the features are those of simple models of the primary visual cortex: the magnitude of a wave
of a given length and direction around each pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zoo.metrics import luma

WAVES = (3.0, 6.0, 12.0)
"""Lengths in pixels; one octave wide each."""
DIRECTIONS = 4
WINDOW, STRIDE = 16, 8
C1, C2 = 1e-4, 1e-5
"""Two maps below these squared amplitudes count as equally empty."""


def gdists(x: Tensor, y: Tensor, border: int) -> float:
    """Distance in [0, 1], 0 is equal, of x to the truth y, both (3,H,W) in [0,1].

    1 - mean over 12 Gabor maps and all windows of (l + s) / 2, with
    l = (2 m_x m_y + c1) / (m_x^2 + m_y^2 + c1)        the means m
    s = (2 c_xy + c2) / (v_x + v_y + c2)               variances v, covariance c
    of the magnitudes in the window. Both are rounded to 8 bits and a border of ``border`` pixels
    is cut, as for the other metrics (``zoo.metrics``); at least 16 pixels a side must remain.
    """
    if x.shape != y.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[-2:]) < 2 * border + WINDOW:
        raise ValueError(
            f"{tuple(x.shape)} has less than a window of {WINDOW} pixels inside a border of "
            f"{border}"
        )
    a, b = (_magnitudes(_grey(image, border)) for image in (x, y))  # (12,h,w)
    mean_a, mean_b = _pool(a), _pool(b)
    var_a, var_b = _pool(a * a) - mean_a**2, _pool(b * b) - mean_b**2
    both = _pool(a * b) - mean_a * mean_b
    means = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * both + C2) / (var_a + var_b + C2)
    return 1 - float((means + structure).mean()) / 2


def _grey(x: Tensor, border: int) -> Tensor:
    """Luma in [0,1] of the 8-bit picture inside the border, (h,w) float64."""
    height, width = x.shape[-2:]
    inner = x.detach().cpu()[:, border : height - border, border : width - border]
    return (luma((inner.float().clamp(0, 1) * 255).round() / 255) - 16) / 219


def _pool(maps: Tensor) -> Tensor:
    """Means over the windows, (12,h,w) to (12,~h/8,~w/8)."""
    return functional.avg_pool2d(maps, WINDOW, STRIDE)


def _magnitudes(grey: Tensor) -> Tensor:
    """Local amplitudes of 12 waves: |grey * complex Gabor|, (h,w) to (12,h,w).

    The filters are Gaussians in the frequency plane around one side of each wave, so their real
    and imaginary parts are in quadrature. A wave of amplitude A gives A.
    """
    height, width = grey.shape
    (top, bottom), (left, right) = map(_margins, grey.shape)
    padded = functional.pad(grey[None, None], (left, right, top, bottom), mode="reflect")[0, 0]
    spectrum = torch.fft.fft2(padded)
    spectrum[0, 0] = 0  # brightness is not a wave
    fy, fx = (2 * math.pi * torch.fft.fftfreq(n, dtype=grey.dtype) for n in padded.shape)
    maps = []
    for wave in WAVES:
        centre, spread = 2 * math.pi / wave, 0.56 * wave  # frequency; width of the kernel in pixels
        for k in range(DIRECTIONS):
            cy, cx = centre * math.sin(math.pi * k / 4), centre * math.cos(math.pi * k / 4)
            distance = (fy[:, None] - cy).square() + (fx - cx).square()
            response = 2 * torch.exp(-0.5 * spread**2 * distance)
            maps.append(torch.fft.ifft2(spectrum * response).abs())
    return torch.stack(maps)[:, top : top + height, left : left + width]


def _margins(side: int) -> tuple[int, int]:
    """Reflected pixels before and after a side: half the longest kernel, and a fast FFT length.

    The transform of a side of 508 = 4 * 127 takes ten times as long as that of 512.
    """
    from scipy.fft import next_fast_len

    before = min(math.ceil(max(WAVES) * 1.5), side - 1)  # no pixel is repeated
    return before, min(next_fast_len(side + 2 * before) - side - before, side - 1)
