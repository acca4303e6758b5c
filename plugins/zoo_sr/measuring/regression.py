"""The baselines for diffusion: plain networks of the same size, trained on the same photos.

Residual blocks at the LR image's own size, a pixel shuffle at the end, trained with L1, like EDSR
and its small variants. It gives the blurred mean that scores high in PSNR. Fine-tuned with our
decoder's texture term, it shows how much of our perceptual score comes from that term alone.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InputError
from zoo.training import CHECKPOINT, Run
from zoo.weights import load_tensors, save_tensors

from ..networks import ResBlock, conv3, zero
from ..pixels import back_project, bicubic_up
from ..training.decoder import decoder_loss
from ..training.recipe import Batch, Recipe, Stage

RECIPE = Stage(14000, 4e-4, 16, crop=64)
"""Steps and batch size of yonos-sr's x4 stage."""
TEXTURE, TEXTURE_STEPS = 0.4, 3000
"""Weight and steps of yonos-sr's decoder stage."""
LEARNS = 500
"""Steps after which a network must be better than bicubic."""
CHECKED = 64
"""Crops on which this is checked."""
FILE = "baseline.safetensors"
TEXTURED = "textured.safetensors"


class PlainSR(nn.Module):
    """x_l (B,3,h,w) in [-1,1] to x^ (B,3,scale*h,scale*w): bicubic plus a learned residual."""

    def __init__(self, scale: int = 4, width: int = 112, blocks: int = 12) -> None:
        super().__init__()
        self.scale = scale
        self.conv_in = conv3(3, width)
        self.blocks = nn.Sequential(*(ResBlock(width, width) for _ in range(blocks)))
        self.conv_out = zero(conv3(width, 3 * scale**2))

    def forward(self, x_l: Tensor) -> Tensor:
        h = self.conv_in(x_l)  # (B,width,h,w)
        h = self.conv_out(self.blocks(h) + h)
        return bicubic_up(x_l, self.scale) + functional.pixel_shuffle(h, self.scale)


def regression(job: Recipe, folder: Path, steps: int, progress: bool = False) -> PlainSR:
    """The baseline for ``job``'s scale, photos and degradation, saved in ``folder`` and reused.

    Raises InputError if the saved one was trained on other photos, with another seed or for other
    steps, and if training failed: a baseline no better than bicubic would make every comparison
    look good.
    """
    torch.manual_seed(job.request.seed)
    network = PlainSR(job.scale)

    def loss(x: Tensor, batch: Batch) -> Tensor:
        return (x - batch.x_h).abs().mean()

    @torch.no_grad()
    def refuse() -> None:
        batch = job.batch(job.run.draw("regression gain", CHECKED), RECIPE.crop)
        bicubic = bicubic_up(batch.x_l, job.scale)
        gain = float(loss(bicubic, batch) - loss(network(batch.x_l), batch))
        if steps >= LEARNS and not gain > 0:
            raise InputError(
                f"The regression baseline is no better than bicubic after {steps} steps (mean L1 "
                f"error lower by {gain:.5f}): it is not a valid baseline. Check the photographs, "
                f"or lower its learning rate, {RECIPE.lr}."
            )

    facts = _facts(job, steps)
    return _trained(job, network, loss, folder / FILE, facts, steps, progress, refuse)


def textured(
    job: Recipe, plain: PlainSR, folder: Path, steps: int, texture: float, progress: bool = False
) -> PlainSR:
    """``plain`` fine-tuned with the loss of our decoders (``decoder``), saved in ``folder`` too."""
    facts = {**_facts(job, steps), "texture": str(texture)}
    network = copy.deepcopy(plain)
    return _trained(
        job,
        network,
        lambda x, batch: decoder_loss(x, batch.x_h, texture),
        folder / TEXTURED,
        facts,
        steps,
        progress,
    )


def _facts(job: Recipe, steps: int) -> dict[str, str]:
    """The training facts that a saved network must match."""
    return {
        "scale": str(job.scale),
        "steps": str(steps),
        "seed": str(job.request.seed),
        "photos": job.photos.hash,
        "degradation": str(job.degradation),
    }


def _trained(
    job: Recipe,
    network: PlainSR,
    loss_of: Callable[[Tensor, Batch], Tensor],
    path: Path,
    facts: Mapping[str, str],
    steps: int,
    progress: bool,
    refuse: Callable[[], None] = lambda: None,
) -> PlainSR:
    """The network saved at ``path``, or trained on ``loss_of`` (image, batch) and saved there.

    Raises InputError if the file was trained with other facts. ``refuse`` may raise before a newly
    trained network is saved.
    """
    network.to(memory_format=torch.channels_last)
    if path.is_file():
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            found = file.metadata() or {}
        if any(found.get(k) != v for k, v in facts.items()):
            differs = ", ".join(k for k in facts if found.get(k) != facts[k])
            raise InputError(f"{path} was trained with another {differs}: give another folder.")
        network.load_state_dict(load_tensors(path))
        return network.requires_grad_(False).eval().to(job.run.device)
    # A separate run on the recipe's photographs: an interruption costs a minute.
    name = path.stem
    out = path.parent / f"{name}-run"
    options = {"precision": job.request.options["precision"]}
    request = replace(
        job.request, out=out, options=options, steps=steps, stage=None, progress=progress
    )
    run = Run(request, {name: network}, {name: RECIPE}, facts=facts)
    if (out / CHECKPOINT).is_file():
        run.restore()
    if run.stage != name:
        run.begin(name)

    def loss(batch: Batch) -> Tensor:
        with run.autocast():
            x = network(batch.x_l)
        return loss_of(x.float(), batch)

    run.minimise({name: network}, lambda draw: job.batch(draw, RECIPE.crop), loss)
    try:
        refuse()
    except InputError:
        shutil.rmtree(out, ignore_errors=True)  # its checkpoint would be refused again
        raise
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(
        path, {k: v.cpu().contiguous() for k, v in network.state_dict().items()}, {**facts}
    )
    shutil.rmtree(out, ignore_errors=True)
    return network.eval()


@torch.no_grad()
def enlarge(network: PlainSR, x_l: Tensor, consistency: int = 0) -> Tensor:
    """x_l (3,h,w) in [0,1] to (3,scale*h,scale*w) in [0,1], after steps of back-projection."""
    where = next(network.parameters()).device
    made = (network(2 * x_l[None].to(where) - 1).cpu() + 1) / 2  # (1,3,H,W)
    return back_project(made, x_l[None], network.scale, consistency)[0].clamp(0, 1)
