"""The recipe of YONOS-SR: learn the easy magnification, hand it on to the harder one.

autoencoder   E and D learn to reconstruct; then both are frozen and the latents normalised
              (``-O autoencoder=false`` keeps those of ``--init``)
x2            the first UNet, on the true latents                                       (2.1)
x4, x8        a copy of it, on the answers of the one before, up to the target scale     (2.2)
decoder       D is tuned on what one step really gives                                   (2.4)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from zoo_sr import latent
from zoo_sr.latent import denoising_loss, teacher_target
from zoo_sr.training.stages import (
    conditional,
    cosine,
    draw_t,
    latent_metric,
    train_autoencoder,
    train_decoder,
)
from zoo_sr.training.trainer import Batch, Stage, Trainer, fit

from zoo.errors import OptionError
from zoo.hookspecs import TrainRequest

from .model import YonosSR

TINY_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(4000, 1e-3, 16, 64),
    "x2": Stage(8000, 8e-4, 16, 64),
    "x4": Stage(14000, 8e-4, 16, 64),
    "x8": Stage(14000, 8e-4, 16, 64),
    "decoder": Stage(3000, 4e-4, 16, 64),
}
"""For ``yonos-sr``: about two hours on one CPU core that computes bfloat16 (AMX), else a day."""


def factor_of(stage: str) -> int | None:
    """N of a stage called xN."""
    return int(stage[1:]) if stage.startswith("x") else None


def scale_loss(
    run: Trainer,
    batch: Batch,
    channels: Tensor | None,
    teacher: nn.Module | None,
    *,
    last_only: bool = False,
) -> Tensor:
    """One iteration of section 2.2; without a teacher the target is the truth (2.1).

    ``last_only``: t = 1 always, which is plain regression, for comparison.
    """
    net, (scale, easier) = run.net, run.factors()
    with run.autocast():
        z_h = net.encode_hr(batch.x_h).float()  # no gradient: E is frozen
        z_l = net.encode(batch.x_l, scale).float()
        t, eps = draw_t(batch), batch.noise(z_h)
        if last_only:
            t = torch.ones_like(t)
        y = z_h
        if teacher is not None:
            assert batch.x_l_easy is not None
            z_l_easy = net.encode(batch.x_l_easy, easier).float()
            y = teacher_target(conditional(teacher), z_h, eps, t, z_l_easy)
        z_t = latent.forward(z_h, eps, t)  # the same z_t that the teacher saw
        return denoising_loss(net.denoise, z_t, z_l, t, y, channels)


def train_scale(run: Trainer) -> None:
    """One link of the chain: the UNet for N, taught by the truth (x2) or by the UNet for N/2."""
    net, name = run.net, run.current
    scale, easier = run.factors()
    if easier is not None and run.stage != name:  # not where a checkpoint is gone on from
        run.teacher = copy.deepcopy(net.unet).requires_grad_(False)  # what the chain has learnt
    # Stable Diffusion's channels count alike, as in the paper; those of our own do not.
    channels = latent_metric(run) if run.config["network"] == "tiny" else None
    teacher = run.teacher if easier is not None else None
    run.run(
        name, {"unet": (net.unet, cosine)}, lambda batch: scale_loss(run, batch, channels, teacher)
    )
    run.teacher = None  # has said all it knows; the decoder stage needs its memory
    run.validate(
        f"x{scale}, frozen decoder",
        lambda x_h, x_l: net.decoder_base(net.one_step(x_l, scale=scale)),
    )


class YonosTrainer(Trainer):
    """The recipe; the chain of magnifications ends at the configuration's scale."""

    model = YonosSR
    recipes: ClassVar = {"tiny": TINY_RECIPE}
    stages: ClassVar = {
        "autoencoder": train_autoencoder,
        "x2": train_scale,
        "x4": train_scale,
        "x8": train_scale,
        "decoder": partial(train_decoder, noisy=1.0),
    }

    fresh = False
    """Is the UNet drawn by chance, though there is an ``--init``?"""

    def configured(self, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"scale": int(self.request.options["scale"])}

    def adopted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of them, or the autoencoder of another method that has one of this shape."""
        own = self.net.state_dict()
        if tensors.keys() == own.keys():
            return tensors
        base = {k: v for k, v in tensors.items() if k.startswith(("hr_encoder.", "decoder_base."))}
        if not base:
            return tensors  # nothing of ours: refused
        self.fresh = True
        tuned = {k.replace("_base", "", 1): v for k, v in base.items() if k.startswith("decoder")}
        for run in self.before:  # the rest of what it learnt is not here
            run["curve"] = [point for point in run["curve"] if point[0] == "autoencoder"]
        return {**own, **base, **tuned}

    def wanted(self, names: Sequence[str]) -> list[str]:
        own = [n for n in names if n != "autoencoder" or self.request.options["autoencoder"]]
        return [n for n in own if (factor_of(n) or 0) <= self.net.scale]

    def ready(self) -> None:
        """A link of the chain needs the UNet of the one before; the decoder that of the last."""
        request = self.request
        begins = request.init is None and not request.resume
        if begins and not request.options.get("autoencoder", True):
            raise OptionError(
                "autoencoder=false keeps the autoencoder of --init: add --init, for example "
                "--init edge-sd-sr."
            )
        needed = self.net.scale if self.current == "decoder" else self.factors()[1]
        if needed is None or self.stage == self.current:  # gone on with: seen to be right before
            return
        earlier = [] if self.fresh else [stage for run in self.before for stage in run["done"]]
        known = [factor_of(stage) for stage in (*earlier, *self.done) if factor_of(stage)]
        if known[-1:] == [needed] or (not known and not self.fresh):  # or nothing is recorded
            return
        has = f"is for x{known[-1]}" if known else "is not trained"
        raise OptionError(
            f"Stage {self.current!r} goes on from a UNet for x{needed}; that of --init {has}. "
            f"Run stage 'x{needed}' first, or all of them without --stage."
        )

    def factors(self) -> tuple[int, int | None]:
        scale = factor_of(self.current) or self.net.scale
        chain = self.current.startswith("x") and scale > 2
        return scale, scale // 2 if chain else None


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    return fit(YonosTrainer(request))
