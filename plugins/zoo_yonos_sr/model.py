"""YONOS-SR: one-step latent-diffusion super-resolution by scale distillation.

M. Noroozi, I. Hadji, B. Martinez, A. Bulat, G. Tzimiropoulos: "You Only Need One Step: Fast
Super-Resolution with Stable Diffusion via Scale Distillation", ECCV 2024, arXiv 2401.17258.
Equations are numbered as in this plugin's README.md, which separates the paper's statements from
our reading.

    z_l = E(up_N(x_l))                      the LR image at HR size, by the HR encoder     (eq. 1)
    z_1 = eps                               the chain starts at pure noise: alpha_1 = 0    (eq. 7)
    v^  = UNet(concat[z_1, z_l], t=1)                                                      (eq. 3)
    z^  = -v^                               one DDIM step                                  (eq. 7)
    x^  = D(z^)                             a decoder tuned on exactly these z^            (eq. 8)

One step is enough because of how the UNet is trained: see ``zoo_sr.latent`` and ``train``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from zoo_sr import latent
from zoo_sr.networks import LatentNetwork, TinyDecoder, TinyEncoder, TinyUNet
from zoo_sr.pixels import bicubic_up
from zoo_sr.upscaler import LatentSR


class YonosNetwork(LatentNetwork):
    """E, the UNet and D, with the verbs of the method; the caller chooses the networks.

    E and ``decoder_base`` are frozen after the first stage; a UNet is for one ``scale``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        unet: nn.Module,
        decoder: nn.Module,
        decoder_base: nn.Module,
        *,
        scale: int,
        factor: int,
        latent: int,
        unet_stride: int,
    ) -> None:
        super().__init__()
        self.hr_encoder = encoder
        self.unet = unet
        self.decoder = decoder
        self.decoder_base = decoder_base
        self.scale, self.factor, self.latent = scale, factor, latent
        # The enlarged LR image must have a number of latents that the UNet can halve.
        self.stride = factor * unet_stride // gcd(factor * unet_stride, scale)

    def encode_hr(self, x_h: Tensor) -> Tensor:
        """x_h (B,3,H,W) in [-1,1] to z_h (B,latent,H/f,W/f)."""
        z: Tensor = self.hr_encoder(x_h)
        return z

    def encode(self, x_l: Tensor, scale: int | None = None) -> Tensor:
        """z_l (B,latent,H/f,W/f) of x_l (B,3,H/scale,W/scale), which is enlarged first (eq. 1)."""
        return self.encode_hr(bicubic_up(x_l, scale or self.scale))

    def denoise(self, z_t: Tensor, z_l: Tensor, t: Tensor) -> Tensor:
        """v^ from z_t and z_l (B,latent,h',w') and t (B,)."""
        v: Tensor = self.unet(torch.cat([z_t, z_l], dim=1), t)
        return v

    def one_step(
        self, x_l: Tensor, eps: Tensor | None = None, steps: int = 1, scale: int | None = None
    ) -> Tensor:
        z_l = self.encode(x_l, scale)
        z_1 = torch.zeros_like(z_l) if eps is None else eps.to(z_l)
        return latent.ddim(lambda z, t: self.denoise(z, z_l, t), z_1, steps)


def build_network(config: Mapping[str, Any]) -> YonosNetwork:
    """The tiny network of a configuration (``network: tiny``); ``full`` has the paper's."""
    latent, widths = config["latent"], config["unet"]["widths"]
    return YonosNetwork(
        TinyEncoder(latent, config["encoder"]["widths"]),
        TinyUNet(2 * latent, latent, widths),
        TinyDecoder(latent, config["decoder"]["widths"]),
        TinyDecoder(latent, config["decoder"]["widths"]),
        scale=config["scale"],
        factor=config["factor"],
        latent=latent,
        unet_stride=2 ** (len(widths) - 1),
    )


class YonosSR(LatentSR):
    """YONOS-SR as an ``SRModel``.

    The paper's chain starts at noise (``noise_scale=1``; ``seed`` chooses it). One step gives
    nearly the mean over that noise, so the default starts at the mean of the noise, which measured
    slightly better and needs no seed.
    """

    module: YonosNetwork

    @classmethod
    def network(cls, config: Mapping[str, Any]) -> YonosNetwork:
        return build_network(config)
