"""The variance-preserving latent schedule, v-prediction, and DDIM (YONOS-SR, section 2.1 and 2.5).

    z_t = alpha_t z_h + sigma_t n        alpha_t^2 + sigma_t^2 = 1        t in [0, 1]
    v   = alpha_t n - sigma_t z_h
    z^  = alpha_t z_t - sigma_t v^       n^  = sigma_t z_t + alpha_t v^

n is standard normal in YONOS-SR; in Edge-SD-SR it is the shifted noise of ``noise.ForwardNoise``.
All of the above is linear in n, so nothing here needs to know which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t (B,C,h,w), t (B,)) -> v^ (B,C,h,w)."""


def _broadcast(t: Tensor, z: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (z.dim() - 1))  # (B,) -> (B,1,1,1)


def alpha(t: Tensor) -> Tensor:
    """Signal level of the cosine schedule, cos(pi t / 2); written so that alpha(1) is exactly 0."""
    return torch.sin((1 - t) * (math.pi / 2))


def sigma(t: Tensor) -> Tensor:
    """Noise level, sin(pi t / 2): exactly 0 at t=0 and 1 at t=1 (zero terminal SNR)."""
    return torch.sin(t * (math.pi / 2))


def snr(t: Tensor) -> Tensor:
    """alpha^2 / sigma^2, falling from infinity to 0."""
    return alpha(t) ** 2 / sigma(t) ** 2


def loss_weight(t: Tensor, ceiling: float = 5.0) -> Tensor:
    """omega(t) = max(SNR, 1), clipped: the truncated-SNR weight of an x0 loss (section 2.1)."""
    return snr(t).clamp(1.0, ceiling)


def forward(z_h: Tensor, n: Tensor, t: Tensor) -> Tensor:
    """z_t from the clean latent z_h (B,C,h,w), noise n (B,C,h,w) and t (B,)."""
    t = _broadcast(t, z_h)
    return alpha(t) * z_h + sigma(t) * n


def velocity(z_h: Tensor, n: Tensor, t: Tensor) -> Tensor:
    """The true v of (z_h, n) at t. With shifted noise it is built from n, not from epsilon."""
    t = _broadcast(t, z_h)
    return alpha(t) * n - sigma(t) * z_h


def x0_from_v(z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latent that v says z_t came from. At t=1 it is -v: no division by a small alpha."""
    t = _broadcast(t, z_t)
    return alpha(t) * z_t - sigma(t) * v


def noise_from_v(z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise n^ that v says z_t holds."""
    t = _broadcast(t, z_t)
    return sigma(t) * z_t + alpha(t) * v


def ddim(denoise: Denoiser, z_T: Tensor, steps: int = 1) -> Tensor:
    """Deterministic DDIM (eta=0) from t=1 to 0 in equal steps; returns z^ (B,C,h,w).

    One step is the method: z^ = -v^(z_1, 1). Steps are spaced "trailing", that is they start at
    t=1, the only level that one-step inference ever meets.
    """
    z_t = z_T
    times = torch.linspace(1, 0, steps + 1, dtype=z_T.dtype, device=z_T.device)
    for t, t_next in pairwise(times):
        t, t_next = t.expand(len(z_t)), t_next.expand(len(z_t))  # (B,)
        v = denoise(z_t, t)
        z_t = forward(x0_from_v(z_t, v, t), noise_from_v(z_t, v, t), t_next)
    return z_t
