"""The recipe at the paper's size: a Stable Diffusion checkpoint learns the chain of magnifications.

    zoo train yonos-sr-full --base ORG/REPO --data PHOTOS -o OUT
    accelerate launch -m zoo train yonos-sr-full --base ORG/REPO --data PHOTOS -o OUT

x2            the UNet, widened to see z_l, on the true latents; it learns v            (2.1)
x4, x8        a copy of it, on the answers of the one before, up to the target scale     (2.2)
decoder       D is tuned on what one step really gives                                   (2.4)

E and the first D stay the base's. With ``-O micro=N`` a run is the same, up to the order of sums,
on any number of processes. float32 weights, gradients, moments, averages and teacher of 866 M
parameters take about 21 GB; ``-O micro`` and ``-O checkpointing`` decide what comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo_sr.training.photos import Photos
from zoo_sr.training.stages import train_decoder
from zoo_sr.training.trainer import Stage, fit

from zoo.errors import UsageError
from zoo.hookspecs import TrainRequest

from .full import YonosSRFull
from .train import YonosTrainer

FULL_RECIPE: Mapping[str, Stage] = {
    "x2": Stage(50_000, 5e-5, 64, 512, ema=0.9999, decay=0.01),
    "x4": Stage(30_000, 5e-5, 64, 512, ema=0.9999, decay=0.01),
    "x8": Stage(30_000, 5e-5, 64, 512, ema=0.9999, decay=0.01),
    "decoder": Stage(20_000, 5e-5, 16, 512, ema=0.999, decay=0.01),
}
"""Our choice (section 3): the paper's schedule is not public."""


class FullTrainer(YonosTrainer):
    """Starts from ``--base``, or from an earlier result with ``--init``."""

    model = YonosSRFull
    recipes: ClassVar = {"diffusers": FULL_RECIPE}
    stages: ClassVar = {**YonosTrainer.stages, "decoder": partial(train_decoder, noisy=1.0)}
    """Always with the noise that inference starts from."""

    def __init__(self, request: TrainRequest, photos: Photos | None = None) -> None:
        if (request.base is None) == (request.init is None):
            raise UsageError(
                f"{request.entry.name} starts from a Stable Diffusion checkpoint: give either "
                "--base ORG/REPO (or a folder), or --init with the result of an earlier stage."
            )
        super().__init__(request, photos)
        if request.options.get("checkpointing"):
            for part in (self.net.unet, self.net.decoder):
                recompute(part)

    def start(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        request = self.request
        if request.base is None:
            return super().start()
        from .full import read_base

        config, tensors = read_base(request.base)
        return {**request.entry.config, **config, "base": request.base_record}, tensors


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    return fit(FullTrainer(request))


def recompute(network: nn.Module) -> None:
    """Keep only the inputs of diffusers' blocks for the backward pass, which computes them again.

    By hand, for diffusers offers it for whole models and we hold the VAE's decoder alone.
    """
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            block: Any = module
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            block.gradient_checkpointing = True
