"""Controls: how much of the gain of scale distillation comes from distillation?

Small UNets are trained on the bundled weights' frozen autoencoder, with equal photographs and
steps. The x2 teacher trains for ``T`` steps, and every x4 student for ``S``:

    distilled             starts as the teacher, learns its outputs            the method
    direct, S             starts untrained, learns the truth                   (a)
    direct, T + S         the same, for the steps of teacher and student       (b)
    curriculum            starts as the teacher, learns the truth              (c)
    distilled, fresh      starts untrained, learns the teacher's outputs       (d)
    regression, t = 1     as (a), but always at t = 1: no diffusion            (e)

At x8, students learn from the x4 student (the chain), from the x2 teacher (skipping a scale) and
from the truth. Finally, the decoder is tuned on one-step outputs of the distilled student (eq. 8),
with and without the texture term.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_sr.degrade import Bicubic
from zoo_sr.measuring import regression
from zoo_sr.measuring.gdists import gdists
from zoo_sr.measuring.tables import X4, X4_GDISTS, X4_HAAR, X8, interpolated
from zoo_sr.training.photos import Photos
from zoo_sr.training.stages import latent_metric, train_decoder

from zoo.experiment import Book, training
from zoo.hookspecs import BenchRequest
from zoo.metrics import haarpsi, psnr_y
from zoo.progress import track

from .train import TINY_RECIPE, YonosRecipe, recipe, scale_loss

WIDTHS = (32, 48, 64)
OPTIONS: Mapping[str, Any] = {"scale": "4", "autoencoder": False, "texture": 0.0, "degraded": 0.0}
"""Options of ``zoo train`` in which the controls differ from the recipe."""
X4_MANY = "held-out x4 PSNR-Y, best of 2, 4, 8 steps"
X4_MANY_GDISTS = "held-out x4 G-DISTS, best of 2, 4, 8 steps"
ERROR = "latent error"
STEPS = (2, 4, 8)


@dataclass(frozen=True)
class Budget:
    """Training steps, batch size and seeds of the controls."""

    teacher: int = 800
    """T."""
    student: int = 500
    """S."""
    decoder: int = 300
    batch: int = 8
    seeds: int = 3


QUICK = Budget(6, 4, 2, 2, 1)


class Controls:
    """The UNets of one seed, on one frozen autoencoder."""

    def __init__(self, job: YonosRecipe, autoencoder: Mapping[str, Tensor], budget: Budget) -> None:
        """Load E and D; ``budget``: steps of each stage."""
        self.job, self.budget, self.net = job, budget, job.net
        self.net.load_state_dict(autoencoder, strict=False)
        self.net.decoder.load_state_dict(self.net.decoder_base.state_dict())
        self.net.eval()
        self.drawn = {k: v.clone() for k, v in self.net.unet.state_dict().items()}
        self.channels = latent_metric(job)

    def student(
        self,
        stage: str,
        steps: int,
        *,
        start: Mapping[str, Tensor] | None = None,
        teacher: Mapping[str, Tensor] | None = None,
        easier: int | None = None,
        last_only: bool = False,
    ) -> dict[str, Tensor]:
        """Train the UNet for ``stage`` and return its weights.

        ``teacher``: trained at scale ``easier``; None: learn the truth.
        """
        job, unet = self.job, self.net.unet
        unet.load_state_dict(self.drawn if start is None else start)
        taught = None
        if teacher is not None:
            taught = job.new_unet().requires_grad_(False).to(job.run.device)
            taught.load_state_dict(teacher)
        job.scale, job.easier = int(stage[1:]), easier
        job.run.begin(stage, replace(TINY_RECIPE[stage], steps=steps, batch=self.budget.batch))
        job.minimise(
            {"unet": unet},
            lambda batch: scale_loss(job, batch, self.channels, taught, last_only=last_only),
        )
        return {k: v.clone() for k, v in unet.state_dict().items()}

    @torch.no_grad()
    def scores(self, unet: Mapping[str, Tensor], scale: int) -> dict[str, float]:
        """The scores of this UNet on the held-out photographs, from clean bicubic inputs."""
        net = self.net
        net.unet.load_state_dict(unet)
        x_h = self.job.photos.validation()
        assert x_h is not None
        clean = Bicubic()
        x_l = 2 * clean.apply(x_h, scale, [], scale).to(self.job.run.device) - 1
        z_h = net.encode_hr(2 * x_h.to(self.job.run.device) - 1)
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(z_h.shape, generator=generator).to(z_h)
        z = net.one_step(x_l, eps, scale=scale)

        def pictures(z: Tensor) -> Tensor:
            made: Tensor = (net.decoder(z).cpu() + 1) / 2
            return made

        def mean(of: Callable[[Tensor, Tensor, int], float], made: Tensor) -> float:
            return sum(of(a, b, scale) for a, b in zip(made, x_h, strict=True)) / len(x_h)

        if scale == 8:
            return {X8: mean(psnr_y, pictures(z))}
        error = ((z - z_h).square() * self.channels[:, None, None]).mean()
        one = pictures(z)
        many = [pictures(net.one_step(x_l, eps, steps, scale=scale)) for steps in STEPS]
        return {
            ERROR: float(error),
            X4: mean(psnr_y, one),
            X4_HAAR: mean(haarpsi, one),
            X4_GDISTS: mean(gdists, one),
            X4_MANY: max(mean(psnr_y, made) for made in many),
            X4_MANY_GDISTS: min(mean(gdists, made) for made in many),
        }

    def tuned(self, unet: Mapping[str, Tensor], texture: float) -> dict[str, float]:
        """``scores`` of this UNet at x4, with a decoder tuned on its one-step outputs."""
        net, job = self.net, self.job
        net.unet.load_state_dict(unet)
        job.scale, job.easier, job.texture = 4, None, texture
        budget = self.budget
        stage = replace(TINY_RECIPE["decoder"], steps=budget.decoder, batch=budget.batch)
        job.run.begin("decoder", stage)
        train_decoder(job, noisy=1.0)
        found = self.scores(unet, 4)
        net.decoder.load_state_dict(net.decoder_base.state_dict())
        return found


DISTILLED = "small: distilled x2 to x4"
DIRECT = "small: direct, S steps"
LONGER = "small: direct, T + S steps"
CURRICULUM = "small: starts as the teacher, learns the truth"
FRESH = "small: distilled, fresh start"
REGRESSION = "small: regression, t = 1 only"
CHAIN = "small: x8 taught by x4"
SKIP = "small: x8 taught by x2"
DIRECT8 = "small: x8 direct"
TUNED = "small: distilled, decoder tuned"
TUNED_L1 = "small: distilled, decoder tuned by L1 alone"


def one_seed(run: Controls) -> dict[str, dict[str, float]]:
    """All rows for one seed."""
    t, s = run.budget.teacher, run.budget.student
    x2 = run.student("x2", t)
    x4 = run.student("x4", s, start=x2, teacher=x2, easier=2)
    four = {
        DISTILLED: x4,
        DIRECT: run.student("x4", s),
        LONGER: run.student("x4", t + s),
        CURRICULUM: run.student("x4", s, start=x2),
        FRESH: run.student("x4", s, teacher=x2, easier=2),
        REGRESSION: run.student("x4", s, last_only=True),
    }
    eight = {
        CHAIN: run.student("x8", s, start=x4, teacher=x4, easier=4),
        SKIP: run.student("x8", s, start=x2, teacher=x2, easier=2),
        DIRECT8: run.student("x8", s),
    }
    return (
        {name: run.scores(unet, 4) for name, unet in four.items()}
        | {name: run.scores(unet, 8) for name, unet in eight.items()}
        | {TUNED: run.tuned(x4, regression.TEXTURE), TUNED_L1: run.tuned(x4, 0.0)}
    )


def controls(
    book: Book, request: BenchRequest, folder: Path, autoencoder: nn.Module, budget: Budget
) -> None:
    """Rows and claims over the seeds; ``folder``: photographs; ``autoencoder``: contains E and
    D."""
    photos = Photos(folder)
    frozen = {k: v for k, v in autoencoder.state_dict().items() if not k.startswith("unet.")}
    config = {**request.entry.config, "unet": {"widths": list(WIDTHS)}}
    entry = replace(request.entry, config=config)
    for column, value in interpolated(photos).items():
        book.add("bicubic", column, value)
    with track(budget.seeds, request.progress, "controls") as advance:
        for seed in range(request.seed, request.seed + budget.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                asked = training(request, Path(scratch), entry=entry, seed=seed, **OPTIONS)
                run = Controls(recipe(asked, photos), frozen, budget)
                for name, scores in one_seed(run).items():
                    for column, value in scores.items():
                        book.add(name, column, value, seed)
            advance(1)
    _claim(book, budget)


def _claim(book: Book, budget: Budget) -> None:
    """Scale distillation against each control, decided by the paired differences over seeds."""
    note = f"T = {budget.teacher}, S = {budget.student} steps"
    tuning = f"{note}; the decoder takes {budget.decoder}"
    learns = "At one step, scale distillation has a higher x4 PSNR-Y than"
    against = {
        "direct": (DIRECT, "training directly for the student's steps"),
        "direct-longer": (LONGER, "training directly for teacher's and student's steps together"),
        "curriculum": (CURRICULUM, "starting as the teacher but learning the truth"),
        "fresh-start": (FRESH, "distilling into a fresh network"),
        "regression": (REGRESSION, "plain regression at t = 1"),
    }
    claims = [
        *(
            (f"scale-distillation-vs-{name}", f"{learns} {words}.", (DISTILLED, row, X4))
            for name, (row, words) in against.items()
        ),
        (
            "scale-distillation-latent-error",
            "Scale distillation has a lower latent error than training directly for the student's "
            "steps.",
            (DISTILLED, DIRECT, ERROR),
        ),
        (
            "progressive-beats-skipping",
            "At x8, a chain x2, x4, x8 beats one that skips x4.",
            (CHAIN, SKIP, X8),
        ),
        (
            "progressive-beats-direct",
            "At x8, the chain beats training directly for the student's steps.",
            (CHAIN, DIRECT8, X8),
        ),
    ]
    for identity, statement, compared in claims:
        book.claim(identity, statement, book.better(*compared), note=note)
    many = "2, 4 or 8 steps from noise of the one trained directly for T + S steps."
    book.claim(
        "one-distilled-step-beats-many",
        f"One step of the distilled network has a higher PSNR-Y than {many} "
        "(PSNR favours few steps by itself.)",
        book.better(DISTILLED, LONGER, X4, than_columns=X4_MANY),
        note=note,
    )
    book.claim(
        "one-distilled-step-beats-many-g-dists",
        f"One step of the distilled network has a better G-DISTS than {many}",
        book.better(DISTILLED, LONGER, X4_GDISTS, than_columns=X4_MANY_GDISTS),
        note=note,
    )
    decoders = [
        (
            "decoder-tuning-haarpsi",
            "A decoder tuned on one-step outputs has a higher HaarPSI than the plain one.",
            (TUNED, DISTILLED, X4_HAAR),
        ),
        (
            "decoder-tuning-g-dists",
            "A decoder tuned on one-step outputs has a better G-DISTS than the plain one.",
            (TUNED, DISTILLED, X4_GDISTS),
        ),
        (
            "texture-term",
            "Tuned with the texture term the decoder has a better G-DISTS than tuned by L1 alone.",
            (TUNED, TUNED_L1, X4_GDISTS),
        ),
    ]
    for identity, statement, compared in decoders:
        book.claim(identity, statement, book.better(*compared), note=tuning)
