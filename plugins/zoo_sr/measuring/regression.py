"""The baselines that diffusion has to answer to: plain networks of the same size, same photos.

Residual blocks at the LR image's own size, a pixel shuffle at the end, trained with L1: what EDSR
and its many small relatives are. It gives the blurred mean that scores high in PSNR. Tuned on with
our decoder's texture term it tells what of our perceptual score that term gives anybody.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InputError
from zoo.progress import track, whole_steps
from zoo.weights import load_tensors, save_tensors

from ..networks import ResBlock, conv3, zero
from ..pixels import back_project, bicubic_up
from ..training.decoder import decoder_loss
from ..training.stages import cosine
from ..training.trainer import Batch, Stage, Trainer

RECIPE = Stage(14000, 4e-4, 16, 64)
"""As many steps, and as many pictures in one, as yonos-sr's x4 stage takes."""
TEXTURE, TEXTURE_STEPS = 0.4, 3000
"""As yonos-sr's decoder stage."""
LEARNS = 500
"""Steps after which a network that is no better than bicubic has gone wrong."""
FILE = "baseline.safetensors"
TEXTURED = "textured.safetensors"


class PlainSR(nn.Module):
    """x_l (B,3,h,w) in [-1,1] to x^ (B,3,scale*h,scale*w): bicubic plus what was learnt."""

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


def regression(run: Trainer, folder: Path, steps: int, progress: Any = False) -> PlainSR:
    """The baseline for ``run``'s scale, photos and degradation; kept in ``folder`` and found again.

    A folder that holds one trained on other photos, by another seed or for other steps is refused:
    InputError. So is a training that went wrong, for a baseline that is no better than bicubic
    would make everything beside it look good.
    """
    torch.manual_seed(run.request.seed)
    network = PlainSR(run.net.scale).to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    facts = _facts(run, steps)
    if not _found(network, folder / FILE, facts):
        gains: list[float] = []  # bicubic's error less the network's, in each step

        def loss(x: Tensor, batch: Batch) -> Tensor:
            error = (x - batch.x_h).abs().mean()
            bicubic = (bicubic_up(batch.x_l, run.net.scale) - batch.x_h).abs().mean()
            gains.append(float(bicubic - error.detach()))
            return error

        average = _train(run, network, loss, steps, "regression", progress)
        gain = sum(gains[-100:]) / len(gains[-100:])
        if steps >= LEARNS and not gain > 0:
            raise InputError(
                f"The regression baseline is no better than bicubic after {steps} steps (mean L1 "
                f"error lower by {gain:.5f}): nothing can be measured against it. Look at the "
                f"photographs, or lower its learning rate, {RECIPE.lr}."
            )
        _keep(network, folder / FILE, average, facts)
    return network.requires_grad_(False).eval()


def textured(
    run: Trainer, plain: PlainSR, folder: Path, steps: int, texture: float, progress: Any = False
) -> PlainSR:
    """``plain`` tuned on with the loss of our decoders (``decoder``), kept in ``folder`` too."""
    network = copy.deepcopy(plain).requires_grad_(True)
    facts = {**_facts(run, steps), "texture": str(texture)}
    if not _found(network, folder / TEXTURED, facts):
        average = _train(
            run,
            network,
            lambda x, batch: decoder_loss(x, batch.x_h, texture),
            steps,
            "textured",
            progress,
        )
        _keep(network, folder / TEXTURED, average, facts)
    return network.requires_grad_(False).eval()


def _facts(run: Trainer, steps: int) -> dict[str, str]:
    """What a kept network must have been trained with."""
    return {
        "scale": str(run.net.scale),
        "steps": str(steps),
        "seed": str(run.request.seed),
        "photos": run.photos.hash,
        "degradation": str(run.degradation),
    }


def _found(network: PlainSR, path: Path, facts: Mapping[str, str]) -> bool:
    """Does the file exist? Then its weights are taken over; InputError where its facts differ."""
    if not path.is_file():
        return False
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        found = file.metadata() or {}
    if any(found.get(k) != v for k, v in facts.items()):
        differs = ", ".join(k for k in facts if found.get(k) != facts[k])
        raise InputError(f"{path} was trained with another {differs}: give another folder.")
    network.load_state_dict(load_tensors(path))
    return True


def _keep(
    network: PlainSR, path: Path, average: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    network.load_state_dict(average)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {k: v.cpu().contiguous() for k, v in average.items()}, dict(facts))


def _train(
    run: Trainer,
    network: PlainSR,
    loss_of: Callable[[Tensor, Batch], Tensor],
    steps: int,
    name: str,
    progress: Any,
) -> dict[str, Tensor]:
    """Minimise ``loss_of`` (what the network made, the batch); the weights' moving average."""
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = {k: v.detach().clone() for k, v in network.named_parameters()}
    with track(steps, progress, f"{name} baseline") as advance, whole_steps() as interrupted:
        for step in range(steps):
            batch = run.batch(RECIPE, f"{name} {step}")
            for group in optimizer.param_groups:
                group["lr"] = RECIPE.lr * cosine(step / steps) * min(1.0, (step + 1) / 100)
            with run.autocast():
                x = network(batch.x_l)
            optimizer.zero_grad(set_to_none=True)
            loss_of(x.float(), batch).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            keep = min(0.999, (1 + step) / (10 + step))
            for key, value in network.named_parameters():
                average[key].lerp_(value.detach(), 1 - keep)
            advance(1)
            if interrupted():
                raise KeyboardInterrupt
    return average


@torch.no_grad()
def enlarge(network: PlainSR, x_l: Tensor, consistency: int = 0) -> Tensor:
    """x_l (3,h,w) in [0,1] to (3,scale*h,scale*w) in [0,1], after steps of back-projection."""
    where = next(network.parameters()).device
    made = (network(2 * x_l[None].to(where) - 1).cpu() + 1) / 2  # (1,3,H,W)
    return back_project(made, x_l[None], network.scale, consistency)[0].clamp(0, 1)
