"""Compares a method's bundled model with interpolation and a plain network of its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from zoo.experiment import Book, load
from zoo.hookspecs import BenchRequest

from ..degrade import Degradation
from ..training.recipe import Recipe
from ..upscaler import LatentSR
from . import regression
from .tables import (
    Enlarge,
    claim_better_than_interpolation,
    columns,
    interpolations,
    measure,
    unsharp,
)

PLAIN = "regression, same size"
CONSISTENCY = 2
"""Steps of back-projection in the fidelity setting; the regression network gets as many.

Fidelity and perception are a trade-off (Blau, Michaeli, CVPR 2018), so there are two settings: the
default, whose decoder was tuned for texture, and the plain decoder with back-projection.
"""
CONSISTENT = f"{PLAIN}, {CONSISTENCY} back-projections"
SHARPENED = f"{PLAIN}, unsharp"
TEXTURED = f"{PLAIN}, tuned for texture"
STEPS = (2, 8)
QUICK = 8
"""Steps of a baseline in a quick run: it learns nothing, and its claims say so."""
MARGIN = 0.05
"""Differences in dB below this count as a match."""


def baselines_for(
    request: BenchRequest, job: Recipe, scratch: Path
) -> tuple[regression.PlainSR, regression.PlainSR]:
    """The regression network trained with L1, and fine-tuned with our decoder's texture term.

    Loaded from the folder of the option ``baseline``, or trained and saved there.
    """
    folder = Path(request.options.get("baseline") or scratch)
    steps = QUICK if request.quick else regression.RECIPE.steps
    plain = regression.regression(job, folder, steps, request.progress)
    steps = QUICK if request.quick else regression.TEXTURE_STEPS
    texture = regression.TEXTURE
    return plain, regression.textured(job, plain, folder, steps, texture, request.progress)


class Quality:
    """Rows and claims about the image quality of a model, or of a saved one of its kind."""

    def __init__(
        self,
        request: BenchRequest,
        baselines: tuple[regression.PlainSR, regression.PlainSR] | None,
        saved: Path | None = None,
    ) -> None:
        self.request = request
        self.name = request.entry.name
        self.model: LatentSR = load(request, saved)
        self.untuned: LatentSR = load(request, saved, fidelity=0.0)
        self.half: LatentSR = load(request, saved, fidelity=0.5)
        self.baselines = baselines
        self.consistent = f"{self.name}, {CONSISTENCY} back-projections"
        self.fidelity = f"{self.name}, fidelity setting"
        self.frozen = f"{self.name}, decoder not fine-tuned"

    def methods(self) -> dict[str, Enlarge]:
        """Row -> function that enlarges an image."""
        methods = interpolations(self.model.module.scale)
        if self.baselines is not None:
            plain, textured = self.baselines
            methods[PLAIN] = lambda x: regression.enlarge(plain, x)
            methods[CONSISTENT] = lambda x: regression.enlarge(plain, x, CONSISTENCY)
            methods[SHARPENED] = lambda x: unsharp(regression.enlarge(plain, x)[None])[0]
            methods[TEXTURED] = lambda x: regression.enlarge(textured, x)
        methods |= {
            self.name: self.model.upscale,
            self.consistent: lambda x: self.model.upscale(x, consistency=CONSISTENCY),
            self.fidelity: lambda x: self.untuned.upscale(x, consistency=CONSISTENCY),
            self.frozen: self.untuned.upscale,
            f"{self.name}, fidelity 0.5": self.half.upscale,
        }
        if self.model.noise_scale == 0:
            methods[f"{self.name}, from noise"] = lambda x: self.model.upscale(x, noise_scale=1.0)
        for steps in STEPS:
            methods[self.steps(steps)] = lambda x, k=steps: self.model.upscale(x, steps=k)  # type: ignore[misc]
        return methods

    def steps(self, count: int) -> str:
        """The name of the row with this number of steps."""
        return f"{self.name}, {count} steps"

    def shown(self) -> dict[str, Enlarge]:
        """The methods that the card's picture shows."""
        methods = self.methods()
        return {m: methods[m] for m in ("bicubic", PLAIN, self.name) if m in methods}

    def measure(
        self,
        book: Book,
        sets: Mapping[str, Sequence[Tensor]],
        degradation: Degradation | None = None,
    ) -> None:
        """Enter the scores of every method on every set, and the claims."""
        scale = self.model.module.scale
        measure(book, self.methods(), sets, scale, self.request.progress, degradation)
        claim_better_than_interpolation(book, self.name, sets, scale)
        if self.baselines is not None:
            self._against_regression(book, [*sets], None)  # most images are BSD100's
            for name in sets:
                self._against_regression(book, [name], name)
        self._parts(book, sets)

    def _against_regression(self, book: Book, sets: Sequence[str], only: str | None) -> None:
        where = f"On {only}" if only else "Over all images"
        suffix = f"-{only}".lower().replace(" ", "-") if only else ""

        steps = QUICK if self.request.quick else regression.RECIPE.steps
        note = f"the regression network was trained for {steps} steps"
        if self.request.quick:
            note += ", too few to say anything"

        def better(identity: str, ours: str, others: Sequence[str], words: str) -> None:
            book.claim(
                f"{identity}{suffix}",
                f"{where}, {ours} has a better G-DISTS (a perceptual score "
                f"that no network here was trained on) than {words}.",
                book.better(ours, others, columns(sets, "G-DISTS")),
                note=note,
            )

        book.claim(
            f"fidelity-near-regression{suffix}",
            f"{where}, the fidelity setting of {self.name} (fidelity=0: "
            f"the decoder before fine-tuning; consistency={CONSISTENCY}: steps of "
            "back-projection) comes within 0.5 dB of a regression network of its size that "
            "saw the same photographs and is back-projected too.",
            book.not_worse(self.fidelity, CONSISTENT, columns(sets, "PSNR-Y"), margin=0.5),
            note=note,
        )
        better(
            "best-perceptual-score",
            self.name,
            ("bicubic", "bicubic + unsharp", PLAIN),
            "bicubic, with and without unsharp masking, and the regression network",
        )
        better(
            "best-perceptual-score-back-projected",
            self.consistent,
            [CONSISTENT],
            "the regression network that is back-projected too",
        )
        better(
            "perceptual-score-without-diffusion",
            self.name,
            [SHARPENED, TEXTURED],
            "the regression network sharpened by unsharp masking or tuned for texture with "
            "our decoder's loss",
        )

    def _parts(self, book: Book, sets: Iterable[str]) -> None:
        fidelity = columns(sets, "PSNR-Y")
        for metric in ("HaarPSI", "G-DISTS"):
            book.claim(
                f"decoder-fine-tuning-{metric.lower()}",
                f"Fine-tuning the decoder on one-step outputs improves {metric} and costs at most "
                "0.3 dB of PSNR.",
                book.better(self.name, self.frozen, columns(sets, metric)),
                book.not_worse(self.name, self.frozen, fidelity, margin=0.3),
            )
        for count in STEPS:
            book.claim(
                f"one-step-matches-{count}",
                f"One step matches (within {MARGIN} dB of PSNR-Y) or beats {count} steps of "
                "the same network.",
                book.not_worse(self.name, self.steps(count), fidelity, margin=MARGIN),
            )
