"""The bundled model of either method against interpolation and a plain network of its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from zoo.hookspecs import BenchRequest, BuildRequest
from zoo.interfaces import Claim, Metric

from ..degrade import Degradation
from ..training.recipe import Recipe
from ..upscaler import LatentSR
from . import regression
from .tables import (
    CONFIDENT,
    HIGHER,
    Enlarge,
    Values,
    all_of,
    better_than_interpolation,
    compare,
    interpolations,
    measure,
    paired,
    table_of,
    unsharp,
)

PLAIN = "regression, same size"
CONSISTENCY = 2
"""Steps of back-projection of the fidelity setting; the regression network gets as many.

Fidelity and perception pull apart (Blau, Michaeli, CVPR 2018), so there are two settings: the
default, whose decoder was tuned for texture, and the plain decoder with back-projection.
"""
CONSISTENT = f"{PLAIN}, {CONSISTENCY} back-projections"
SHARPENED = f"{PLAIN}, unsharp"
TEXTURED = f"{PLAIN}, tuned for texture"
STEPS = (2, 8)
MARGIN = 0.05
"""dB that count as a match."""
RULE = f"mean paired difference over all images above {CONFIDENT}"


def baselines_for(
    request: BenchRequest, job: Recipe, scratch: Path
) -> tuple[regression.PlainSR, regression.PlainSR]:
    """The regression network by L1, and tuned on with our decoder's texture term.

    From the folder of the option ``baseline``, or made there.
    """
    folder = Path(request.options.get("baseline") or scratch)
    steps = 8 if request.quick else regression.RECIPE.steps
    plain = regression.regression(job, folder, steps, request.progress)
    steps = 8 if request.quick else regression.TEXTURE_STEPS
    texture = regression.TEXTURE
    return plain, regression.textured(job, plain, folder, steps, texture, request.progress)


Kind = TypeVar("Kind", bound=LatentSR)


class Quality(Generic[Kind]):
    """Rows and claims about a bundled model's pictures."""

    def __init__(
        self,
        kind: type[Kind],
        request: BenchRequest,
        folder: Path,
        baselines: tuple[regression.PlainSR, regression.PlainSR] | None,
    ) -> None:
        build = BuildRequest(request.entry, folder, device=request.device)
        self.request = request
        self.name = request.entry.name
        self.model = kind.build(build)
        self.untuned = kind.build(replace(build, options={"fidelity": 0.0}))
        self.half = kind.build(replace(build, options={"fidelity": 0.5}))
        self.baselines = baselines
        self.consistent = f"{self.name}, {CONSISTENCY} back-projections"
        self.fidelity = f"{self.name}, fidelity setting"
        self.frozen = f"{self.name}, decoder not fine-tuned"

    def methods(self) -> dict[str, Enlarge]:
        """Row -> what enlarges an image."""
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
        """The row of several steps."""
        return f"{self.name}, {count} steps"

    def shown(self) -> dict[str, Enlarge]:
        """The methods that the card's picture shows."""
        methods = self.methods()
        return {m: methods[m] for m in ("bicubic", PLAIN, self.name) if m in methods}

    def measure(
        self, sets: Mapping[str, Sequence[Tensor]], degradation: Degradation | None = None
    ) -> tuple[dict[str, dict[str, Metric]], list[Claim]]:
        """Every method on every set; what of it is claimed."""
        scale = self.model.module.scale
        values = measure(self.methods(), sets, scale, self.request.progress, degradation)
        claims = [
            *better_than_interpolation(values, self.name, scale),
            *self._against_regression(values),
            *self._parts(values),
        ]
        return table_of(values), claims

    def _against_regression(self, values: Values) -> list[Claim]:
        """On all images (most are BSD100's) and on each set."""
        if self.baselines is None:
            return []
        return [
            claim
            for only in (None, *values[self.name])
            for claim in self._against_regression_on(values, only)
        ]

    def _against_regression_on(self, values: Values, only: str | None) -> list[Claim]:
        where = f"On {only}" if only else "Over all images"
        suffix = f"-{only}".lower().replace(" ", "-") if only else ""

        def of(method: str, metric: str) -> list[float]:
            return all_of(values, method, metric, only)

        def better(identity: str, ours: str, others: Sequence[str], words: str) -> Claim:
            score = {m: sum(v := of(m, "G-DISTS")) / len(v) for m in others}
            rival = min(others, key=lambda m: score[m])
            against = f", against the best of them ({rival})" if len(others) > 1 else ""
            return compare(
                f"{identity}{suffix}",
                f"{where}, {ours} has a better G-DISTS (a perceptual score "
                f"that no network here was trained on) than {words}.",
                f"mean paired difference above {CONFIDENT}{against}",
                of(ours, "G-DISTS"),
                of(rival, "G-DISTS"),
                higher=HIGHER["G-DISTS"],
            )

        plain = ("bicubic", "bicubic + unsharp", PLAIN)
        return [
            compare(
                f"fidelity-near-regression{suffix}",
                f"{where}, the fidelity setting of {self.name} (fidelity=0: "
                f"the decoder before fine-tuning; consistency={CONSISTENCY}: steps of "
                "back-projection) comes within 0.5 dB of a regression network of its size that "
                "saw the same photographs and is back-projected too.",
                f"mean paired PSNR-Y difference plus 0.5 dB above {CONFIDENT}",
                of(self.fidelity, "PSNR-Y"),
                of(CONSISTENT, "PSNR-Y"),
                margin=0.5,
            ),
            better(
                "best-perceptual-score",
                self.name,
                plain,
                "bicubic, with and without unsharp masking, and the regression network",
            ),
            better(
                "best-perceptual-score-back-projected",
                self.consistent,
                [CONSISTENT],
                "the regression network that is back-projected too",
            ),
            better(
                "perceptual-score-without-diffusion",
                self.name,
                [SHARPENED, TEXTURED],
                "the regression network sharpened by unsharp masking or tuned for texture with "
                "our decoder's loss",
            ),
        ]

    def _parts(self, values: Values) -> list[Claim]:
        def all_images(method: str, metric: str) -> list[float]:
            return all_of(values, method, metric)

        tuned = [
            compare(
                f"decoder-fine-tuning-{metric.lower()}",
                f"Fine-tuning the decoder on one-step outputs improves {metric} and costs at most "
                "0.3 dB of PSNR.",
                f"{RULE}, and mean PSNR-Y at most 0.3 dB lower",
                all_images(self.name, metric),
                all_images(self.frozen, metric),
                higher=HIGHER[metric],
            )
            for metric in ("HaarPSI", "G-DISTS")
        ]
        loss, _ = paired(all_images(self.frozen, "PSNR-Y"), all_images(self.name, "PSNR-Y"))
        if loss > 0.3:
            tuned = [replace(claim, holds=False) for claim in tuned]
        return [
            *tuned,
            *(
                compare(
                    f"one-step-matches-{count}",
                    f"One step matches (within {MARGIN} dB of PSNR-Y) or beats {count} steps of "
                    "the same network.",
                    f"mean paired difference over all images plus {MARGIN} dB above {CONFIDENT}",
                    all_images(self.name, "PSNR-Y"),
                    all_images(self.steps(count), "PSNR-Y"),
                    margin=MARGIN,
                )
                for count in STEPS
            ),
        ]
