"""Rows of the benchmark: features of CIFAR-10 by an image network of timm, made once.

``features`` keeps what it made under the network's digest, so that a second run starts at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, MissingDependencyError
from zoo.experiment import kept, read_cifar
from zoo.weights import load_module, sha256


class Encoder:
    """Pooled features of a timm network that is one safetensors file named after its
    architecture, such as ``tf_efficientnet_lite0.safetensors``."""

    def __init__(self, folder: Path) -> None:
        try:
            import timm
            from timm.data.config import resolve_data_config
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "features of images need timm. Run: pip install 'edgezoo[bench]'", name="timm"
            ) from error
        files = [f for f in sorted(folder.glob("*.safetensors")) if timm.is_model(f.stem)]
        if not files:
            raise InputError(
                f"--base image={folder}: expected a safetensors file named after an architecture "
                "of timm, such as tf_efficientnet_lite0.safetensors."
            )
        self.digest = sha256(files[0])
        name = files[0].stem
        self.net: nn.Module = load_module(
            lambda: timm.create_model(name, pretrained=False), files[0]
        ).eval()
        settings = resolve_data_config({}, model=self.net)
        self.side = int(settings["input_size"][1])
        self.mean, self.std = (
            torch.tensor(settings[key])[:, None, None] for key in ("mean", "std")
        )

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """(N,3,H,W) in [0,1] -> (N,d) float32."""
        found = []
        for part in x.split(32):
            larger = nn.functional.interpolate(
                part, size=self.side, mode="bicubic", antialias=True, align_corners=False
            )
            inputs = (larger.clamp(0, 1) - self.mean) / self.std
            net: Any = self.net
            found.append(net.forward_head(net.forward_features(inputs), pre_logits=True))
        return torch.cat(found).clone()


def features(
    data: Path, encoder: Encoder, count: int, folder: Path | None, change: str = ""
) -> tuple[Tensor, Tensor]:
    """(N,d) of ``count`` training photographs of CIFAR-10 in ``read_cifar``'s order, and labels.

    ``change``: "inverted" for negatives. ``folder``: where features are looked for and kept.
    """
    x, labels = read_cifar(data / "cifar10" / "train.parquet", count)
    name = f"dps{change}_train_{encoder.digest[:12]}.safetensors"
    return kept(folder and folder / name, count, lambda: encoder(1 - x if change else x)), labels
