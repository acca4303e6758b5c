"""Peer super-resolution networks of published sizes, for counting FLOPs and measuring time.

Weights are random, because time does not depend on them. Each network maps (1,3,h,w) to
(1,3,4h,4w).

    LDM-SR             Rombach et al. 2022, diffusers' LDMSuperResolutionPipeline
    SD x4 upscaler     diffusers' StableDiffusionUpscalePipeline
    Real-ESRGAN x4plus RRDBNet: 23 blocks of 3 dense blocks, Wang et al. 2021
    Real-ESRGAN compact  SRVGGNetCompact: 32 plain convolutions at the input's size

Only the parts of the pipelines that run for each image are here: UNet and decoder. Text encoder,
VAE encoder and guidance (which doubles the UNet's work) are left out, in the peers' favour.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor, nn
from torch.nn import functional

from ..networks import conv3


class Diffusion(nn.Module, abc.ABC):
    """A latent of the input's size, denoised by a UNet together with the input, then decoded to
    4x."""

    unet: Any
    vae: Any
    latent: int

    @abc.abstractmethod
    def step(self, z: Tensor, x_l: Tensor) -> Tensor:
        """One evaluation of the UNet: z (1,latent,h,w) and x_l (1,3,h,w) to (1,latent,h,w)."""

    def decode(self, z: Tensor) -> Tensor:
        """z (1,latent,h,w) to (1,3,4h,4w)."""
        made: Tensor = self.vae.decode(z).sample
        return made

    def start(self, x_l: Tensor) -> Tensor:
        """The noise that the chain begins with, (1,latent,h,w)."""
        return torch.randn_like(x_l[:, :1].expand(-1, self.latent, -1, -1))

    def forward(self, x_l: Tensor, steps: int = 1) -> Tensor:
        z = self.start(x_l)
        for _ in range(steps):
            z = self.step(z, x_l)
        return self.decode(z)


FACTOR_4: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
}
"""The configuration that both autoencoders share."""


class LDM(Diffusion):
    """The 4x model of latent diffusion: UNet of 113.6 M parameters, VQ-f4 of 55.3 M."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = 3
        self.unet = UNet2DModel(
            in_channels=6,
            out_channels=3,
            block_out_channels=(160, 320, 320, 640),
            layers_per_block=2,
            down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
            attention_head_dim=32,
        )
        self.vae = VQModel(latent_channels=3, num_vq_embeddings=8192, **FACTOR_4)

    def step(self, z: Tensor, x_l: Tensor) -> Tensor:
        made: Tensor = self.unet(torch.cat([z, x_l], 1), torch.zeros(1, device=z.device)).sample
        return made


class SDUpscaler(Diffusion):
    """Stable Diffusion's x4 upscaler: UNet of 473.4 M parameters, KL-f4 of 55.3 M."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = 4
        self.unet = UNet2DConditionModel(
            in_channels=7,
            out_channels=4,
            block_out_channels=(256, 512, 512, 1024),
            layers_per_block=2,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            attention_head_dim=8,
            cross_attention_dim=1024,
            num_class_embeds=1000,
            only_cross_attention=(True, True, True, False),
            use_linear_projection=True,
        )
        self.vae = AutoencoderKL(latent_channels=4, **FACTOR_4)

    def step(self, z: Tensor, x_l: Tensor) -> Tensor:
        prompt = torch.zeros(1, 77, 1024, device=z.device, dtype=z.dtype)
        level = torch.full((1,), 20, device=z.device)  # of the noise added to x_l
        made: Tensor = self.unet(
            torch.cat([z, x_l], 1), torch.zeros(1, device=z.device), prompt, class_labels=level
        ).sample
        return made


class _Dense(nn.Module):
    """Five convolutions, each on the outputs of all earlier ones."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.grow = nn.ModuleList(conv3(width + i * growth, growth) for i in range(4))
        self.fuse = conv3(width + 4 * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.grow:
            seen = torch.cat([seen, functional.leaky_relu(conv(seen), 0.2)], 1)
        return x + 0.2 * self.fuse(seen)


class RRDBNet(nn.Module):
    """Real-ESRGAN x4plus."""

    def __init__(self, width: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        self.conv_in = conv3(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Dense(width, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.body = conv3(width, width)
        self.up = nn.ModuleList(conv3(width, width) for _ in range(2))
        self.last = conv3(width, width)
        self.conv_out = conv3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.conv_in(x)
        for block in self.blocks:
            h = h + 0.2 * block(h)
        h = first + self.body(h)
        for conv in self.up:
            h = functional.leaky_relu(conv(functional.interpolate(h, scale_factor=2.0)), 0.2)
        made: Tensor = self.conv_out(functional.leaky_relu(self.last(h), 0.2))
        return made


class Compact(nn.Module):
    """Real-ESRGAN's small general model."""

    def __init__(self, width: int = 64, convs: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3(3, width), nn.PReLU(width)]
        for _ in range(convs):
            layers += [conv3(width, width), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, conv3(width, 3 * 16))

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.body(x), 4) + functional.interpolate(
            x, scale_factor=4.0
        )


PEERS: Mapping[str, Callable[[], nn.Module]] = {
    "Real-ESRGAN compact": Compact,
    "Real-ESRGAN x4plus": RRDBNet,
    "LDM super-resolution": LDM,
    "Stable Diffusion x4 upscaler": SDUpscaler,
}
