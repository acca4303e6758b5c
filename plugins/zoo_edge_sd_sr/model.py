"""Edge-SD-SR: one-step latent-diffusion super-resolution with bidirectional conditioning.

I. Hadji, M. Noroozi, V. Escorcia, A. Zaganidis, B. Martinez, G. Tzimiropoulos: "Edge-SD-SR: Low
Latency and Parameter Efficient On-device Super-Resolution with Stable Diffusion via Bidirectional
Conditioning", CVPR 2025, arXiv 2412.06978. Equations are numbered as in this plugin's README.md,
which separates the paper's statements from our reading.

    x_l --E_L--> mu_l, log sigma_l^2        the LR image, by its own trained encoder   (eq. 1)
    z_1 = mu_l + s_l eps                    the forward process ends at the LR latent  (eq. 3)
    v^  = UNet(concat[z_1, mu_l], t=1)      the reverse process sees it too            (eq. 4)
    z^  = -v^                               one DDIM step: alpha_1 = 0, sigma_1 = 1    (eq. 11)
    x^  = D(z^)                             a decoder tuned on exactly these z^        (eq. 12)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_sr import latent
from zoo_sr.latent import ForwardNoise
from zoo_sr.networks import LatentNetwork, ResBlock, TinyDecoder, TinyEncoder, TinyUNet, conv3, zero
from zoo_sr.pixels import bicubic_up
from zoo_sr.upscaler import LatentSR

LOG_VAR = (-8.0, 2.0)
"""Bounds of log sigma_l^2 (eq. 1)."""
LOG_VAR_START = -2.4
"""Initial log sigma_l^2: s_l = 0.3. With s_l = 1, several steps lost much PSNR."""


class LREncoder(nn.Module):
    """E_L: the LR image at its own size to mu_l and log sigma_l^2, each (B,latent,h,w)."""

    def __init__(self, latent: int = 8, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.conv_in = conv3(3, width)
        self.blocks = nn.Sequential(*(ResBlock(width, width) for _ in range(blocks)))
        self.conv_out = zero(conv3(width, 2 * latent))

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,h,w) in [-1,1] to (B,2*latent,h,w): the mean, then the raw log-variance."""
        return self.conv_out(functional.silu(self.blocks(self.conv_in(x))))


class EdgeNetwork(LatentNetwork):
    """The joint network, with four verbs; the configuration determines its parts.

    Inference uses ``lr_encoder``, ``unet`` and ``decoder`` (the published 169 M at the full size).
    ``hr_encoder`` is E_H: frozen, needed for further training. ``decoder_base`` is D before
    fine-tuning, which ``fidelity`` 0 restores.
    """

    def __init__(self, parts: Mapping[str, nn.Module], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.lr_encoder = parts["lr_encoder"]
        self.unet = parts["unet"]
        self.decoder = parts["decoder"]
        self.hr_encoder = parts["hr_encoder"]
        self.decoder_base = parts["decoder_base"]
        self.scale = 4
        self.factor = config["factor"]
        self.latent = config["latent"]
        self.stride = config["stride"]
        self.residual: bool = config["lr_encoder"]["kind"] == "residual"
        self.noise = ForwardNoise(config["mean"], config["var"], config["const"])

    # --- the verbs: all other code uses only these ---

    def encode_hr(self, x_h: Tensor) -> Tensor:
        """x_h (B,3,H,W) in [-1,1] to z_h (B,latent,H/f,W/f). Never trained with E_L (eq. 1)."""
        return self.hr_encoder(x_h)

    def encode(self, x_l: Tensor) -> tuple[Tensor, Tensor]:
        """x_l (B,3,h,w) in [-1,1] to mu_l and log sigma_l^2, each (B,latent,4h/f,4w/f)."""
        mu, log_var = self.lr_encoder(x_l).chunk(2, dim=1)
        if self.residual:  # mu_l = E_H(up(x_l)) + r(x_l), r = 0 at first (eq. 8)
            mu = mu + self.hr_encoder(bicubic_up(x_l, self.scale))
        return mu, (log_var + LOG_VAR_START).clamp(*LOG_VAR)

    def denoise(self, z_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """v^ from z_t and mu_l (B,latent,h',w') and t (B,)."""
        return self.unet(torch.cat([z_t, mu], dim=1), t)

    # --- inference (eq. 11) ---

    def one_step(self, x_l: Tensor, eps: Tensor | None = None, steps: int = 1) -> Tensor:
        """z^ (B,latent,h',w') from x_l (B,3,h,w) in [-1,1]; eps None is noise_scale 0."""
        mu, log_var = self.encode(x_l)
        if eps is None:
            eps = torch.zeros_like(mu)
        z_1 = self.noise.n(eps.to(mu), mu, log_var)  # alpha_1 = 0: it contains nothing of z_h
        return latent.ddim(lambda z, t: self.denoise(z, mu, t), z_1, steps)


def build_network(config: Mapping[str, Any]) -> EdgeNetwork:
    """The network of a configuration: ours (``network: tiny``) or from diffusers classes."""
    if config["network"] == "diffusers":
        from .full import diffusers_parts

        return EdgeNetwork(diffusers_parts(config), config)
    latent = config["latent"]
    return EdgeNetwork(
        {
            "lr_encoder": LREncoder(latent, config["lr_encoder"]["width"]),
            "unet": TinyUNet(2 * latent, latent, config["unet"]["widths"]),
            "decoder": TinyDecoder(latent, config["decoder"]["widths"]),
            "hr_encoder": TinyEncoder(latent, config["hr_encoder"]["widths"]),
            "decoder_base": TinyDecoder(latent, config["decoder"]["widths"]),
        },
        config,
    )


# --- what zoo.load returns ------------------------------------------------------------------------


class EdgeSDSR(LatentSR):
    """Edge-SD-SR as an ``SRModel``: 4x. Without noise (the default) one step starts at mu_l."""

    module: EdgeNetwork

    @classmethod
    def network(cls, config: Mapping[str, Any]) -> EdgeNetwork:
        return build_network(config)
