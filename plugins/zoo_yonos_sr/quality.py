"""The bundled model of either method against interpolation and a plain network of its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from zoo.hookspecs import BenchRequest, BuildRequest
from zoo.interfaces import Claim, Metric

from . import regression
from .degrade import Degradation
from .measure import (
    HIGHER,
    Enlarge,
    Values,
    all_of,
    better_than_interpolation,
    compare,
    decide,
    interpolations,
    measure,
    paired,
    table_of,
)
from .trainer import Trainer
from .upscaler import LatentSR

PLAIN = "regression, same size"
CONSISTENCY = 2
"""Steps of back-projection of the fidelity setting; the regression network gets as many.

Fidelity and perception pull apart (Blau, Michaeli, CVPR 2018), so there are two settings: the
default, whose decoder was tuned for texture, and the plain decoder with back-projection.
"""
CONSISTENT = f"{PLAIN}, {CONSISTENCY} back-projections"
STEPS = (2, 8)
RULE = "mean paired difference over all images above two standard errors"


def baseline_for(request: BenchRequest, run: Trainer, scratch: Path) -> regression.PlainSR:
    """The trained regression network, from the folder of the option ``baseline`` or made there."""
    kept = request.options.get("baseline")
    steps = 8 if request.quick else regression.RECIPE.steps
    return regression.regression(run, Path(kept) if kept else scratch, steps, request.progress)


class Quality:
    """Rows and claims about a bundled model's pictures."""

    def __init__(
        self,
        kind: type[LatentSR],
        request: BenchRequest,
        folder: Path,
        baseline: regression.PlainSR | None,
    ) -> None:
        build = BuildRequest(request.entry, folder, device=request.device)
        self.request = request
        self.name = request.entry.name
        self.model = kind.build(build)
        self.untuned = kind.build(replace(build, options={"fidelity": 0.0}))
        self.half = kind.build(replace(build, options={"fidelity": 0.5}))
        self.baseline = baseline
        self.fidelity = f"{self.name}, fidelity setting"
        self.frozen = f"{self.name}, decoder not fine-tuned"

    def methods(self) -> dict[str, Enlarge]:
        """Row -> what enlarges an image."""
        methods = interpolations(self.model.module.scale)
        if (plain := self.baseline) is not None:
            methods[PLAIN] = lambda x: regression.enlarge(plain, x)
            methods[CONSISTENT] = lambda x: regression.enlarge(plain, x, CONSISTENCY)
        methods |= {
            self.name: self.model.upscale,
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
            *better_than_interpolation(values, self.name),
            *self._against_regression(values),
            *self._parts(values),
        ]
        return table_of(values), claims

    def _against_regression(self, values: Values) -> list[Claim]:
        if self.baseline is None:
            return []
        ours, plain = (all_of(values, m, "PSNR-Y") for m in (self.fidelity, CONSISTENT))
        difference, error = paired([a + 0.5 for a in ours], plain)
        mean = [sum(v) / len(v) for v in (ours, plain)]
        others = ("bicubic", "bicubic + unsharp", PLAIN)
        score = {m: sum(v := all_of(values, m, "G-DISTS")) / len(v) for m in others}
        rival = min(others, key=lambda m: score[m])
        return [
            Claim(
                "fidelity-near-regression",
                f"The fidelity setting of {self.name} (fidelity=0: the decoder before fine-tuning; "
                f"consistency={CONSISTENCY}: steps of back-projection) comes within 0.5 dB of a "
                "regression network of its size that saw the same photographs and is "
                "back-projected too.",
                "mean paired PSNR-Y difference over all images, plus 0.5 dB, above two standard "
                "errors",
                mean[0],
                mean[1],
                error if len(ours) > 1 else 0.0,
                decide(difference, error),
            ),
            compare(
                "best-perceptual-score",
                f"{self.name} has a better G-DISTS (a perceptual score that no network here was "
                "trained on) than bicubic, with and without unsharp masking, and the regression "
                "network.",
                f"{RULE}, against the best of the three ({rival})",
                all_of(values, self.name, "G-DISTS"),
                all_of(values, rival, "G-DISTS"),
                higher=HIGHER["G-DISTS"],
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
                    f"one-step-beats-{count}",
                    f"One step has a higher PSNR-Y than {count} steps of the same network.",
                    RULE,
                    all_images(self.name, "PSNR-Y"),
                    all_images(self.steps(count), "PSNR-Y"),
                )
                for count in STEPS
            ),
        ]
