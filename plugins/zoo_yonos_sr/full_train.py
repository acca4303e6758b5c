"""The recipe at the paper's size: a Stable Diffusion checkpoint learns the chain of magnifications.

    zoo train yonos-sr-full --base ORG/REPO --data PHOTOS -o OUT
    accelerate launch -m zoo train yonos-sr-full --base ORG/REPO --data PHOTOS -o OUT

x2            the UNet, widened to see z_l, on the true latents; it learns v             (eq. 4)
x4, x8        a copy of it, on the previous one's outputs, up to the target scale        (eq. 6)
decoder       D is tuned on the actual output of one step                                (eq. 8)

E and the initial D are the base's. With ``-O micro=N`` a run is the same, up to the order of sums,
on any number of processes. float32 weights, gradients, moments, averages and teacher of 866 M
parameters take about 21 GB; ``-O micro`` and ``-O checkpointing`` determine the additional memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo_sr.training.photos import Photos
from zoo_sr.training.recipe import Stage, starting_point

from zoo.errors import UsageError
from zoo.hookspecs import TrainRequest

from .full import YonosSRFull, read_base
from .train import YonosRecipe, stages_left_out

FULL_RECIPE: Mapping[str, Stage] = {
    "x2": Stage(50_000, 5e-5, 64, crop=512, ema=0.9999, decay=0.01),
    "x4": Stage(30_000, 5e-5, 64, crop=512, ema=0.9999, decay=0.01),
    "x8": Stage(30_000, 5e-5, 64, crop=512, ema=0.9999, decay=0.01),
    "decoder": Stage(20_000, 5e-5, 16, crop=512, ema=0.999, decay=0.01),
}
"""Our choice: the paper's schedule is not public."""


def recipe(request: TrainRequest, photos: Photos | None = None) -> YonosRecipe:
    """The recipe of a request, from ``--base`` or from an earlier result with ``--init``."""
    if (request.base is None) == (request.init is None):
        raise UsageError(
            f"{request.entry.name} starts from a Stable Diffusion checkpoint: give either "
            "--base ORG/REPO (or a folder), or --init with the result of an earlier stage."
        )
    tensors: dict[str, Tensor] | None
    if request.base is None:
        config, tensors = starting_point(request)
    else:
        assert request.base.folder is not None  # a base to train on always has one
        read, tensors = read_base(request.base.folder)
        kept = {"id": request.base.id, "revision": request.base.revision}
        config = {**request.entry.config, **read, "base": kept}
    config |= {"scale": int(request.options["scale"])}
    skip = stages_left_out(FULL_RECIPE, request.options)
    job = YonosRecipe(request, YonosSRFull, config, FULL_RECIPE, skip=skip, photos=photos)
    assert tensors is not None  # one of the two was given
    job.adopt(tensors)
    if request.options.get("checkpointing"):
        for part in (job.net.unet, job.net.decoder):
            recompute(part)
    return job


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    return recipe(request).fit_chain()


def recompute(network: nn.Module) -> None:
    """Keep only the inputs of diffusers' blocks for the backward pass, which recomputes the rest.

    diffusers supports this only for whole models, but our decoder is a part of the VAE.
    """
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            block: Any = module
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            block.gradient_checkpointing = True
