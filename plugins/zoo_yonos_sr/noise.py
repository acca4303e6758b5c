"""What the forward process adds, and one noise field for an image of any size.

``ForwardNoise`` is both methods in one class, so that the difference is a configuration:

    n = m + s * eps,   eps ~ N(0, I)
    YONOS-SR    mean="zero", var="unit"      m = 0,     s = 1
    Edge-SD-SR  mean="lr",   var="learned"   m = mu_l,  s = exp(log sigma_l^2 / 2)

(Edge-SD-SR, section 2.2: bidirectional conditioning and variance conditioning.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForwardNoise:
    """The law of the noise n given what the LR encoder says about the LR image."""

    mean: Literal["zero", "lr"] = "zero"
    var: Literal["unit", "const", "learned"] = "unit"
    const: float = 0.3
    """s where ``var`` is "const"."""

    def n(self, eps: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        """eps, mu_l and log sigma_l^2, each (B,C,h,w), to n (B,C,h,w)."""
        if self.var == "unit":
            scaled = eps
        elif self.var == "const":
            scaled = self.const * eps
        else:
            scaled = torch.exp(0.5 * log_var) * eps
        return mu + scaled if self.mean == "lr" else scaled


def kl_to_unit(log_var: Tensor) -> Tensor:
    """KL(N(0, sigma^2) || N(0, 1)), mean over elements.

    Under a squared error a learned variance shrinks to nothing; this holds against it (2.2).
    """
    return 0.5 * (log_var.exp() - log_var - 1).mean()


# --- a field that is addressed by position --------------------------------------------------------
#
# Tiles must see the same noise where they overlap (YONOS-SR, 2.9). A field for the whole image
# would make memory grow with the image, so each value is a function of (seed, channel, y, x).

_MASK = {k: (1 << (64 - k)) - 1 for k in (27, 30, 31, 40)}


def _shift(x: Tensor, k: int) -> Tensor:
    return (x >> k) & _MASK[k]  # a logical shift: torch's own one keeps the sign


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9 as a signed number
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def noise_field(seed: int, channels: int, y: int, x: int, height: int, width: int) -> Tensor:
    """The part (channels, height, width) at row y, column x of the endless field of ``seed``.

    Float32, standard normal, on the CPU. Any two parts agree where they overlap, bit for bit.
    """
    rows = torch.arange(y, y + height)[None, :, None]  # (1,h,1)
    columns = torch.arange(x, x + width)[None, None, :]  # (1,1,w)
    planes = torch.arange(channels)[:, None, None]  # (C,1,1)
    key = _mix(torch.tensor(seed & 0x7FFF_FFFF_FFFF_FFFF))
    h = _mix(_mix(_mix(key + planes) + rows) + columns)  # (C,h,w)
    # Box-Muller on two uniforms of 24 bits; the first is never 0, so its logarithm is finite.
    u1 = (_shift(h, 40) + 1).double() / (1 << 24)
    u2 = _shift(_mix(h + 1), 40).double() / (1 << 24)
    return (torch.sqrt(-2 * torch.log(u1)) * torch.cos(2 * math.pi * u2)).float()
