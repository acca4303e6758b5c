"""Training stages of both recipes, and shared parts of their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..latent import channel_weights
from ..networks import normalise_latents
from .decoder import decoder_loss
from .recipe import Batch, Recipe


def draw_t(batch: Batch) -> Tensor:
    """t (B,): 1 with probability one half, because inference uses t=1 only; else uniform.

    YONOS-SR, eq. 5; Edge-SD-SR, eq. 7.
    """
    u = batch.uniform()
    return torch.where(u < 0.5, torch.ones_like(u), 2 * (u - 0.5))


def conditional(unet: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A UNet as a function of (z_t, z_l, t)."""
    return lambda z_t, z_l, t: unet(torch.cat([z_t, z_l], dim=1), t)


def train_autoencoder(job: Recipe) -> None:
    """E and D learn to reconstruct (L1); the latents are then brought to unit variance."""
    net = job.net

    def loss(batch: Batch) -> Tensor:
        with job.autocast():
            x = net.decoder_base(net.hr_encoder(batch.x_h))
        return (x.float() - batch.x_h).abs().mean()

    job.minimise({"hr_encoder": net.hr_encoder, "decoder_base": net.decoder_base}, loss)
    with torch.no_grad():
        z = net.encode_hr(job.some("latent spread", 128).x_h)  # (128,latent,h,w)
    net.decoder.load_state_dict(net.decoder_base.state_dict())
    ends: list[Any] = [net.hr_encoder.conv_out, net.decoder_base.conv_in, net.decoder.conv_in]
    normalise_latents(ends[0], ends[1:], z.std((0, 2, 3)))
    job.validate("autoencoder", lambda x_h, x_l: net.decode(net.encode_hr(x_h)))


def latent_metric(job: Recipe) -> Tensor:
    """The weight of an error in each latent channel (C,); a function of the frozen E and D."""
    batch = job.some("latent metric", 32)
    z_h = job.net.encode_hr(batch.x_h)
    return channel_weights(job.net.decoder_base, z_h, batch.noise(z_h))


def train_decoder(job: Recipe, noisy: float) -> None:
    """Train D on the one-step latents; a share ``noisy`` of them starts from noise."""
    net = job.net

    def loss(batch: Batch) -> Tensor:
        with job.autocast():
            with torch.no_grad():
                b, _, height, width = batch.x_h.shape
                on = (batch.uniform() < noisy).to(batch.x_h)[:, None, None, None]  # (B,1,1,1)
                shape = (b, net.latent, height // net.factor, width // net.factor)
                z = net.one_step(batch.x_l, on * batch.noise(batch.x_h.new_empty(shape)))
            x = net.decode(z)
        return decoder_loss(x.float(), batch.x_h, job.texture)

    job.minimise({"decoder": net.decoder}, loss)
    job.validate("model", lambda x_h, x_l: net.decode(net.one_step(x_l)))
