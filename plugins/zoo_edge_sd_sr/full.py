"""The paper's size from diffusers classes: about 169 M parameters and 142 GFLOP for 128 to 512.

    E_L    vae.Encoder on the native LR image               0.74 M     8.1 GFLOP
    UNet   UNet2DModel, 8 channels in, 4 out, no text     166.4  M    80.4 GFLOP
    D      vae.Decoder                                      2.0  M    53.0 GFLOP

The widths are ours (the paper's table is not public); they meet both published totals.
E_H and D before fine-tuning come on top, for training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

CONFIG: Mapping[str, Any] = {
    "network": "diffusers",
    "factor": 8,
    "latent": 4,
    "stride": 16,
    "tile": 128,
    "lr_encoder": {"kind": "native", "widths": [48, 96], "groups": 16},
    "unet": {"widths": [160, 192, 512, 768], "attention": [2, 3], "head": 32, "groups": 32},
    "decoder": {"widths": [16, 32, 64, 128], "groups": 16},
    "hr_encoder": {"widths": [32, 64, 128, 128], "groups": 16},
    "mean": "lr",
    "var": "learned",
    "const": 0.3,
}
"""The configuration of edge-sd-sr-full in the registry (a test compares them), for benchmarks."""

TIMESTEPS = 999
"""diffusers' UNet expects t = 0 ... 999; our t is in [0, 1]."""


class DiffusersUNet(nn.Module):
    """``UNet2DModel`` with the method's interface: (x, t in [0, 1]) -> v^."""

    def __init__(self, c_in: int, c_out: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, attention = config["widths"], config["attention"]
        with_attention = [level in attention for level in range(len(widths))]
        self.net: Any = UNet2DModel(
            in_channels=c_in,
            out_channels=c_out,
            block_out_channels=tuple(widths),
            layers_per_block=2,
            down_block_types=tuple(
                "AttnDownBlock2D" if a else "DownBlock2D" for a in with_attention
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(with_attention)
            ),
            attention_head_dim=config["head"],
            norm_num_groups=config["groups"],
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B,2*latent,h,w), t (B,) to (B,latent,h,w)."""
        return self.net(x, t.float() * TIMESTEPS).sample


def encoder(c_out: int, widths: list[int], groups: int, double: bool) -> nn.Module:
    """diffusers' VAE encoder without attention; halves the size for each width except the last."""
    return Encoder(
        in_channels=3,
        out_channels=c_out,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=2,
        norm_num_groups=groups,
        double_z=double,
        mid_block_add_attention=False,
    )


def decoder(c_in: int, widths: list[int], groups: int) -> nn.Module:
    """diffusers' VAE decoder without attention."""
    return Decoder(
        in_channels=c_in,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=2,
        norm_num_groups=groups,
        mid_block_add_attention=False,
    )


def diffusers_parts(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The parts of ``EdgeNetwork`` from diffusers classes."""
    latent = config["latent"]
    small, large = config["lr_encoder"], config["hr_encoder"]
    shape = config["decoder"]["widths"], config["decoder"]["groups"]
    lr_encoder = encoder(latent, small["widths"], small["groups"], double=True)
    with torch.no_grad():  # mu_l and log sigma_l^2 start near 0, as in our own encoder
        lr_encoder.conv_out.weight.mul_(0.1)  # type: ignore[union-attr, operator]
    return {
        "lr_encoder": lr_encoder,
        "unet": DiffusersUNet(2 * latent, latent, config["unet"]),
        "decoder": decoder(latent, *shape),
        "hr_encoder": encoder(latent, large["widths"], large["groups"], double=False),
        "decoder_base": decoder(latent, *shape),
    }
