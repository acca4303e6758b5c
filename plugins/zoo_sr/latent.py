"""The latent process that both methods share: schedule, forward noise, scale distillation.

    z_t = alpha_t z_h + sigma_t n        alpha_t^2 + sigma_t^2 = 1        t in [0, 1]
    v   = alpha_t n - sigma_t z_h
    z^  = alpha_t z_t - sigma_t v^       n^  = sigma_t z_t + alpha_t v^

    n   = m + s eps,   eps ~ N(0, I)     YONOS-SR    m = 0,     s = 1
                                         Edge-SD-SR  m = mu_l,  s = exp(log sigma_l^2 / 2)

    L   = omega(t) || z^_theta(z_t, z_l, t) - y ||^2
    y   = z_h                            plain training
    y   = stopgrad z^_phi(z_t', z_l', t) scale distillation: the teacher phi sees z_l', the same
                                         image at half the factor

In this order: YONOS-SR, eq. 2, 3, 4 and 6; Edge-SD-SR, eq. 2, 4, 3, 5 and 10, in the README.md of
each plugin.

The schedule is variance-preserving and linear in n, so it works for any noise n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

# --- schedule, v-prediction, DDIM -----------------------------------------------------------------

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t (B,C,h,w), t (B,)) -> v^ (B,C,h,w)."""


def _broadcast(t: Tensor, z: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (z.dim() - 1))  # (B,) -> (B,1,1,1)


def alpha(t: Tensor) -> Tensor:
    """Signal level of the cosine schedule, cos(pi t / 2); in a form for which alpha(1) is exactly
    0."""
    return torch.sin((1 - t) * (math.pi / 2))


def sigma(t: Tensor) -> Tensor:
    """Noise level, sin(pi t / 2): exactly 0 at t=0 and 1 at t=1 (zero terminal SNR)."""
    return torch.sin(t * (math.pi / 2))


def snr(t: Tensor) -> Tensor:
    """alpha^2 / sigma^2, falling from infinity to 0."""
    return alpha(t) ** 2 / sigma(t) ** 2


def loss_weight(t: Tensor, ceiling: float = 5.0) -> Tensor:
    """omega(t) = max(SNR, 1), clipped: the truncated-SNR weight of an x0 loss (YONOS-SR, eq. 4)."""
    return snr(t).clamp(1.0, ceiling)


def forward(z_h: Tensor, n: Tensor, t: Tensor) -> Tensor:
    """z_t from the clean latent z_h (B,C,h,w), noise n (B,C,h,w) and t (B,)."""
    t = _broadcast(t, z_h)
    return alpha(t) * z_h + sigma(t) * n


def velocity(z_h: Tensor, n: Tensor, t: Tensor) -> Tensor:
    """The true v of (z_h, n) at t. With shifted noise it uses n, not epsilon."""
    t = _broadcast(t, z_h)
    return alpha(t) * n - sigma(t) * z_h


def x0_from_v(z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latent that v implies for z_t. At t=1 it is -v: no division by a small alpha."""
    t = _broadcast(t, z_t)
    return alpha(t) * z_t - sigma(t) * v


def noise_from_v(z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise n^ that v implies for z_t."""
    t = _broadcast(t, z_t)
    return sigma(t) * z_t + alpha(t) * v


def ddim(denoise: Denoiser, z_T: Tensor, steps: int = 1) -> Tensor:
    """Deterministic DDIM (eta=0) from t=1 to 0 in equal steps; returns z^ (B,C,h,w).

    One step is the method: z^ = -v^(z_1, 1). Steps have "trailing" spacing: they start at t=1, the
    only level of one-step inference.
    """
    z_t = z_T
    times = torch.linspace(1, 0, steps + 1, dtype=z_T.dtype, device=z_T.device)
    for t, t_next in pairwise(times):
        t, t_next = t.expand(len(z_t)), t_next.expand(len(z_t))  # (B,)
        v = denoise(z_t, t)
        z_t = forward(x0_from_v(z_t, v, t), noise_from_v(z_t, v, t), t_next)
    return z_t


# --- forward noise: one class for both methods, which differ only in its configuration ------------


@dataclass(frozen=True)
class ForwardNoise:
    """The distribution of the noise n, given the LR encoder's output."""

    mean: Literal["zero", "lr"] = "zero"
    var: Literal["unit", "const", "learned"] = "unit"
    const: float = 0.3
    """s if ``var`` is "const"."""

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

    A squared error alone would shrink a learned variance to zero; this prevents it (Edge-SD-SR, eq.
    6).
    """
    return 0.5 * (log_var.exp() - log_var - 1).mean()


# --- the denoising loss; its target is the true latent or a teacher's output ----------------------

ConditionalDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t (B,C,h,w), z_l (B,C,h,w), t (B,)) -> v^ (B,C,h,w)."""

REVERSE_ONLY = ForwardNoise("zero", "unit")
"""The usual process: only the network sees the condition."""


def denoising_loss(
    denoise: ConditionalDenoiser,
    z_t: Tensor,
    z_l: Tensor,
    t: Tensor,
    y: Tensor,
    channels: Tensor | None = None,
) -> Tensor:
    """omega(t) || z^ - y ||^2, mean over elements.

    ``channels`` (C,): the weight of an error in each latent channel, see ``channel_weights``.
    """
    v = denoise(z_t, z_l, t).to(z_t.dtype)
    error = (x0_from_v(z_t, v, t) - y).square()  # (B,C,h,w)
    if channels is not None:
        error = error * channels[:, None, None]
    error = error.flatten(1).mean(1)  # (B,)
    return (loss_weight(t) * error).mean()


@torch.no_grad()
def teacher_target(
    teacher: ConditionalDenoiser,
    z_h: Tensor,
    eps: Tensor,
    t: Tensor,
    z_l_easy: Tensor,
    noise: ForwardNoise = REVERSE_ONLY,
) -> Tensor:
    """y: the teacher's output for the same z_h, eps and t, with its easier condition (B,C,h,w).

    If the teacher's noise has the student's distribution (YONOS-SR: zero, unit), both see the same
    z_t. An Edge-SD-SR student has its own shifted noise; its teacher stays a reverse-only model and
    shares z_h, eps and t (Edge-SD-SR, eq. 10).
    """
    z_t = forward(z_h, noise.n(eps, z_l_easy, torch.zeros_like(z_l_easy)), t)
    v = teacher(z_t, z_l_easy, t).to(z_t.dtype)
    return x0_from_v(z_t, v, t)


@torch.no_grad()
def channel_weights(decode: Callable[[Tensor], Tensor], z_h: Tensor, eps: Tensor) -> Tensor:
    """The effect of an error in each latent channel on the image: (C,), mean 1.

    All channels have unit variance, but one may carry brightness and another unpredictable fine
    grain. With equal weights, the second would take up a small network's capacity. The weight is
    the squared change of the decoded image when 0.1 eps is added to one channel of z_h (B,C,h,w).
    """
    clean = decode(z_h)
    change = []
    for c in range(z_h.shape[1]):
        shifted = z_h.clone()
        shifted[:, c] += 0.1 * eps[:, c]
        change.append((decode(shifted) - clean).square().mean())
    weights = torch.stack(change).float()
    return weights / weights.mean()
