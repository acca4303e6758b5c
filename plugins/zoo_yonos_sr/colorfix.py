"""Colours of the input for the result: the low frequencies of x^ become those of the LR image.

Networks of Stable Diffusion's size shift colours, which users notice first. The a-trous wavelet of
five levels splits a picture into detail and what remains; only the remainder is exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 5


def low_pass(x: Tensor, levels: int = LEVELS) -> Tensor:
    """What an a-trous wavelet of B3 splines leaves after ``levels``: (B,C,H,W) to the same."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    kernel = taps.expand(x.shape[1], 1, 5)  # (C,1,5)
    for level in range(levels):
        gap = 2**level
        pad = (2 * gap,) * 2
        y = functional.pad(x, (*pad, 0, 0), mode="replicate")
        y = functional.conv2d(y, kernel[:, :, None, :], dilation=gap, groups=x.shape[1])
        y = functional.pad(y, (0, 0, *pad), mode="replicate")
        x = functional.conv2d(y, kernel[:, :, :, None], dilation=gap, groups=x.shape[1])
    return x


def wavelet_fix(x: Tensor, reference: Tensor, levels: int = LEVELS) -> Tensor:
    """x (B,3,H,W) with the low frequencies of ``reference`` (B,3,H,W); both in [0,1]."""
    return x + low_pass(reference - x, levels)  # the filter is linear: one pass, not two
