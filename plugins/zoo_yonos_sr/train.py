"""The recipe of YONOS-SR: learn an easy magnification, and distil it into a harder one.

autoencoder   E and D learn to reconstruct; then both are frozen and the latents normalised
              (``-O autoencoder=false`` keeps those of ``--init``)
x2            the first UNet, on the true latents                                        (eq. 4)
x4, x8        a copy of it, on the previous one's outputs, up to the target scale        (eq. 6)
decoder       D is tuned on the actual output of one step                                (eq. 8)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_sr import latent
from zoo_sr.latent import denoising_loss, teacher_target
from zoo_sr.training.photos import Photos
from zoo_sr.training.recipe import Batch, Recipe, Stage, starting_point
from zoo_sr.training.stages import (
    conditional,
    draw_t,
    latent_metric,
    train_autoencoder,
    train_decoder,
)

from zoo.errors import OptionError
from zoo.hookspecs import TrainRequest

from .model import YonosSR

TINY_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(4000, 1e-3, 16, crop=64),
    "x2": Stage(8000, 8e-4, 16, crop=64),
    "x4": Stage(14000, 8e-4, 16, crop=64),
    "x8": Stage(14000, 8e-4, 16, crop=64),
    "decoder": Stage(3000, 4e-4, 16, crop=64),
}
"""For ``yonos-sr``: about two hours on one CPU core with bfloat16 (AMX), else a day."""


def factor_of(stage: str) -> int | None:
    """N of a stage called xN."""
    return int(stage[1:]) if stage.startswith("x") else None


def scale_loss(
    job: Recipe,
    batch: Batch,
    channels: Tensor | None,
    teacher: nn.Module | None,
    *,
    last_only: bool = False,
) -> Tensor:
    """Eq. 4 for one batch; the target is a teacher's output (eq. 6), or the truth without a
    teacher.

    ``last_only``: always t = 1, which is plain regression, for comparison.
    """
    net = job.net
    with job.autocast():
        z_h = net.encode_hr(batch.x_h).float()  # no gradient: E is frozen
        z_l = net.encode(batch.x_l, job.scale).float()
        t, eps = draw_t(batch), batch.noise(z_h)
        if last_only:
            t = torch.ones_like(t)
        y = z_h
        if teacher is not None:
            assert batch.x_l_easy is not None
            z_l_easy = net.encode(batch.x_l_easy, job.easier).float()
            y = teacher_target(conditional(teacher), z_h, eps, t, z_l_easy)
        z_t = latent.forward(z_h, eps, t)  # the same z_t that the teacher saw
        return denoising_loss(net.denoise, z_t, z_l, t, y, channels)


def train_scale(job: YonosRecipe, scale: int) -> None:
    """One link of the chain: the UNet for N, taught by the truth (x2) or by the UNet for N/2."""
    net, run = job.net, job.run
    easier = scale // 2 if scale > 2 else None
    job.require_unet(easier)
    job.scale, job.easier = scale, easier
    teacher = None
    if easier is not None:  # the teacher is the chain's current UNet
        teacher = run.keep("teacher", lambda: copy.deepcopy(net.unet))
    # Stable Diffusion's channels have equal weights, as in the paper; our own do not.
    channels = latent_metric(job) if job.config["network"] == "tiny" else None
    job.minimise({"unet": net.unet}, lambda batch: scale_loss(job, batch, channels, teacher))
    run.drop("teacher")  # no longer needed; the decoder stage needs its memory
    job.validate(
        f"x{scale}, frozen decoder",
        lambda x_h, x_l: net.decoder_base(net.one_step(x_l, scale=scale)),
    )
    job.scale, job.easier = net.scale, None


def tune_decoder(job: YonosRecipe) -> None:
    """Tune D on one step of the last UNet, always with the noise at the start of inference."""
    job.require_unet(job.net.scale)
    train_decoder(job, noisy=1.0)


class YonosRecipe(Recipe):
    """The chain of magnifications, which ends at the configuration's scale."""

    unet_drawn = False
    """Is the UNet random although there is an ``--init``?"""

    def adopt(self, tensors: dict[str, Tensor]) -> None:
        """Start from all tensors, or from another method's autoencoder of the same shape."""
        own = self.net.state_dict()
        base = {k: v for k, v in tensors.items() if k.startswith(("hr_encoder.", "decoder_base."))}
        if tensors.keys() == own.keys() or not base:  # or no autoencoder: refused
            return self.start_from(tensors)
        self.unet_drawn = True
        tuned = {k.replace("_base", "", 1): v for k, v in base.items() if k.startswith("decoder")}
        for made in self.run.before:  # only the autoencoder is used
            made["curve"] = [point for point in made["curve"] if point[0] == "autoencoder"]
        self.start_from({**own, **base, **tuned})

    def require_unet(self, needed: int | None) -> None:
        """Raise OptionError unless the UNet is for factor ``needed``: a link needs that of the
        previous link, the decoder that of the last."""
        run = self.run
        if needed is None or not run.fresh:  # continued: checked when the stage began
            return
        earlier = (
            [] if self.unet_drawn else [stage for made in run.before for stage in made["done"]]
        )
        known = [factor_of(stage) for stage in (*earlier, *run.done) if factor_of(stage)]
        if known[-1:] == [needed] or (not known and not self.unet_drawn):  # or nothing is recorded
            return
        has = f"is for x{known[-1]}" if known else "is not trained"
        raise OptionError(
            f"Stage {run.stage!r} continues from a UNet for x{needed}; that of --init {has}. "
            f"Run stage 'x{needed}' first, or all of them without --stage."
        )

    def fit_chain(self) -> Path:
        """Run all requested stages."""
        request = self.request
        begins = request.init is None and not request.resume
        if begins and not request.options.get("autoencoder", True):
            raise OptionError(
                "autoencoder=false keeps the autoencoder of --init: add --init, for example "
                "--init edge-sd-sr."
            )
        links = {name: factor_of(name) for name in self.run.stages}
        return self.fit(
            {
                "autoencoder": partial(train_autoencoder, self),
                **{name: partial(train_scale, self, n) for name, n in links.items() if n},
                "decoder": partial(tune_decoder, self),
            }
        )


def stages_left_out(stages: Mapping[str, Stage], options: Mapping[str, Any]) -> list[str]:
    """The autoencoder if it is kept, and the links beyond the requested scale."""
    return [
        name
        for name in stages
        if (name == "autoencoder" and not options.get("autoencoder", True))
        or (factor_of(name) or 0) > int(options["scale"])
    ]


def recipe(request: TrainRequest, photos: Photos | None = None) -> YonosRecipe:
    """The recipe of a request, from scratch or from ``--init``, ours or another method's."""
    options = request.options
    config, tensors = starting_point(request)
    config |= {"scale": int(options["scale"])}
    skip = stages_left_out(TINY_RECIPE, options)
    job = YonosRecipe(request, YonosSR, config, TINY_RECIPE, skip=skip, photos=photos)
    if tensors is not None:
        job.adopt(tensors)
    return job


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    return recipe(request).fit_chain()
