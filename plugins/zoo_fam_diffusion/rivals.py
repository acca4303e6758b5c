"""What the method is compared to: other ways to guide the target pass, and overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .frequency import Size, modulate, response
from .sampling import FAM, decode
from .steering import Mix, enlarge_latent, scheduler_like

POWER = 3
"""alpha_1 of DemoFusion's skip residual."""


class SkipResidual(FAM):
    """DemoFusion's: all frequencies alike, strong at first and not at all at the end."""

    def mix(self, z: Tensor) -> Mix:
        def blend(z_t: Tensor, reference: Tensor, rho: float, native: Size) -> Tensor:
            weight = (0.5 * (1 + math.cos(math.pi * (1 - rho)))) ** POWER
            return weight * reference + (1 - weight) * z_t

        return blend


class Reversed(FAM):
    """K = 1 - rho in the box: strong in a small box at first, nothing at the end."""

    def mix(self, z: Tensor) -> Mix:
        def blend(z_t: Tensor, reference: Tensor, rho: float, native: Size) -> Tensor:
            k = response((z_t.shape[-2], z_t.shape[-1]), rho, self.settings.cutoff)
            return modulate(z_t, reference, torch.where(k < 1, 1 - rho, 1.0))

        return blend


class Static(FAM):
    """Low frequencies of the clean enlarged latent at all steps, without its noise."""

    def mix(self, z: Tensor) -> Mix:
        def blend(z_t: Tensor, reference: Tensor, rho: float, native: Size) -> Tensor:
            size = (z_t.shape[-2], z_t.shape[-1])
            clean = enlarge_latent(z, size)
            return modulate(z_t, clean, response(size, rho, self.settings.cutoff))

        return blend


class MultiDiffusion:
    """MultiDiffusion in its plain form: each step's noise is the mean over overlapping windows.

    Windows have the native size and overlap by half. There is no native pass.
    """

    def __init__(self, pipe: Any, scheduler: str = "ddim") -> None:
        self.pipe, self.scheduler = pipe, scheduler

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], size: Size, steps: int, seed: int, weight: float
    ) -> Tensor:
        """Images (B,3,H,W) in [0,1]; ``weight`` of classifier-free guidance."""
        pipe = self.pipe
        side = int(pipe.unet.config.sample_size)
        height, width = (pixels // pipe.vae_scale_factor for pixels in size)
        positive, negative = pipe.encode_prompt(list(prompts), pipe.device, 1, True)
        text = torch.cat([negative, positive])
        scheduler = scheduler_like(pipe, self.scheduler)
        scheduler.set_timesteps(steps)
        shape = (len(prompts), pipe.unet.config.in_channels, height, width)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
        places = [(y, x) for y in _starts(height, side) for x in _starts(width, side)]
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(z, t)
            total, count = torch.zeros_like(z), torch.zeros(height, width)
            for y, x in places:
                window = given[..., y : y + side, x : x + side]
                noise = pipe.unet(torch.cat([window] * 2), t, text).sample
                without, with_ = noise.chunk(2)
                total[..., y : y + side, x : x + side] += without + weight * (with_ - without)
                count[y : y + side, x : x + side] += 1
            z = scheduler.step(total / count, t, z).prev_sample
        return decode(pipe, z)


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin, half a window apart, the last one at the end."""
    last = max(0, length - side)
    return sorted({*range(0, last, side // 2), last})
