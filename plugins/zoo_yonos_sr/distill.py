"""The denoising loss; its target is the true latent or a teacher's answer (YONOS-SR, 2.1-2.2).

L    = omega(t) || z^_theta(z_t, z_l, t) - y ||^2
y    = z_h                                     plain training
y    = stopgrad z^_phi(z_t', z_l', t)          scale distillation: phi is a teacher that sees
                                               z_l', the same image at half the factor
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import schedule
from .noise import ForwardNoise

ConditionalDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t (B,C,h,w), z_l (B,C,h,w), t (B,)) -> v^ (B,C,h,w)."""

REVERSE_ONLY = ForwardNoise("zero", "unit")
"""The usual process: the condition enters the network only."""


def denoising_loss(
    denoise: ConditionalDenoiser,
    z_t: Tensor,
    z_l: Tensor,
    t: Tensor,
    y: Tensor,
    channels: Tensor | None = None,
) -> Tensor:
    """omega(t) || z^ - y ||^2, mean over elements.

    ``channels`` (C,): what an error in each latent channel counts, see ``channel_weights``.
    """
    v = denoise(z_t, z_l, t).to(z_t.dtype)
    error = (schedule.x0_from_v(z_t, v, t) - y).square()  # (B,C,h,w)
    if channels is not None:
        error = error * channels[:, None, None]
    error = error.flatten(1).mean(1)  # (B,)
    return (schedule.loss_weight(t) * error).mean()


@torch.no_grad()
def teacher_target(
    teacher: ConditionalDenoiser,
    z_h: Tensor,
    eps: Tensor,
    t: Tensor,
    z_l_easy: Tensor,
    noise: ForwardNoise = REVERSE_ONLY,
) -> Tensor:
    """y: what the teacher makes of the same z_h, eps and t with its easier condition (B,C,h,w).

    With the teacher's noise law equal to the student's (YONOS-SR: zero, unit) both see the same
    z_t. An Edge-SD-SR student has its own shifted noise; its teacher stays a reverse-only model
    and shares z_h, eps and t (Edge-SD-SR, 2.5, step 4).
    """
    z_t = schedule.forward(z_h, noise.n(eps, z_l_easy, torch.zeros_like(z_l_easy)), t)
    v = teacher(z_t, z_l_easy, t).to(z_t.dtype)
    return schedule.x0_from_v(z_t, v, t)


@torch.no_grad()
def channel_weights(decode: Callable[[Tensor], Tensor], z_h: Tensor, eps: Tensor) -> Tensor:
    """How much an error in each latent channel shows in the picture: (C,), mean 1.

    All channels have unit variance, but one may carry brightness and another fine grain that
    nobody can predict. Counted alike, the second would use up a small network. The weight is the
    squared change of the decoded picture when 0.1 eps is added to one channel of z_h (B,C,h,w).
    """
    clean = decode(z_h)
    change = []
    for c in range(z_h.shape[1]):
        shifted = z_h.clone()
        shifted[:, c] += 0.1 * eps[:, c]
        change.append((decode(shifted) - clean).square().mean())
    weights = torch.stack(change).float()
    return weights / weights.mean()
