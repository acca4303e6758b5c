"""The claims of Edge-SD-SR at our size: one cheap step beats interpolation; each part pays.

``edge-sd-sr`` is measured on clean bicubic inputs, as published tables are; ``edge-sd-sr-photo`` on
degraded ones, beside the clean model. ``zoo_sr.measuring.tables`` says what ``--data`` holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo_sr.degrade import RealESRGAN
from zoo_sr.latent import channel_weights
from zoo_sr.measuring import speed
from zoo_sr.measuring.quality import RULE, Quality, baselines_for
from zoo_sr.measuring.tables import (
    CONFIDENT,
    HIGHER,
    X4,
    better_than_interpolation,
    compare,
    described,
    find_sets,
    interpolated,
    interpolations,
    measure,
    photos_below,
    picture,
    table_of,
)
from zoo_sr.training.photos import Photos

from zoo.errors import NotReadyError
from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest
from zoo.interfaces import Claim, Metric, Results
from zoo.progress import track
from zoo.training import Rate, cosine, draw_curve, whole_curve

from .model import EdgeNetwork, EdgeSDSR
from .train import TINY_RECIPE, recipe, train_lr_encoder, unet_loss

OURS = "edge-sd-sr"
OPTIONS: Mapping[str, Any] = {
    "batch": 0,
    "crop": 0,
    "texture": 0.0,
    "degradation": "light",
    "degraded": 0.0,
    "distill": False,
    "precision": "auto",
}


def weights_of(name: str) -> Path:
    """The folder of a model's bundled weights."""
    return Path(__file__).parent / "weights" / name


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    folder = weights_of(request.entry.name)
    if not (folder / "model.safetensors").is_file():
        raise NotReadyError(
            f"{request.entry.name} has no weights to measure. Train it with "
            f"`zoo train {request.entry.name}`; `zoo bench {OURS}` measures the small one."
        )
    made = clean(request, folder) if request.entry.name == OURS else degraded(request, folder)
    draw_curve(whole_curve(folder / "train.json"), request.out / "training.png")
    return replace(made, pictures=["before-after.png", "training.png"])


def clean(request: BenchRequest, folder: Path) -> Results:
    """From bicubic inputs: quality, ablations, speed."""
    sets, photos = find_sets(request.data, request.quick, 4), photos_below(request.data)
    baselines = None
    if photos is not None:
        with tempfile.TemporaryDirectory() as scratch:
            asked = TrainRequest(
                request.entry,
                Path(scratch),
                seed=request.seed,
                device=request.device,
                options={**OPTIONS, "degraded": 0.15},
            )
            baselines = baselines_for(request, recipe(asked, Photos(photos)), Path(scratch))
    quality = Quality(EdgeSDSR, request, folder, baselines)
    table, claims = quality.measure(sets)
    from .full import CONFIG

    rows, more = speed.speed_rows(quality.model, request.quick, CONFIG, request.progress)
    for row, cells in rows.items():
        table[row] = table.get(row, {}) | cells
    claims += more
    if photos is not None and not request.quick:
        rows, more = ablations(request, quality.model, photos)
        for row, cells in rows.items():
            table[row] = table.get(row, {}) | cells
        claims += more
    picture(request.out / "before-after.png", quality.shown(), sets, 4)
    return Results(
        table,
        claims,
        described(sets),
        [request.seed] if request.quick else [request.seed + i for i in range(SEEDS)],
        {
            **{f"{s} {k}": higher for s in sets for k, higher in HIGHER.items()},
            **speed.HIGHER,
            ONE: True,
            MANY: True,
        },
    )


def degraded(request: BenchRequest, folder: Path) -> Results:
    """From inputs as photos on the web are: blurred, resized, noisy, compressed; seed 0."""
    sets = find_sets(request.data, request.quick, 4)
    name = request.entry.name
    ours = EdgeSDSR.build(BuildRequest(request.entry, folder, device=request.device))
    other = replace(request.entry, name=OURS)
    plain = EdgeSDSR.build(BuildRequest(other, weights_of(OURS), device=request.device))
    methods = {**interpolations(4), OURS: plain.upscale, name: ours.upscale}
    real = RealESRGAN(share=1.0)
    values = measure(methods, sets, 4, request.progress, real)
    on_clean = measure(methods, sets, 4, request.progress)
    table = table_of(values)
    for method, cells in table_of(on_clean, ", clean").items():
        table[method] |= cells
    claims = better_than_interpolation(values, name, 4)
    claims += [
        compare(
            f"better-on-degraded-{metric.lower()}",
            f"On degraded inputs {name} has a better {metric} than {OURS}, which learnt on nearly "
            "clean ones.",
            RULE,
            [v for s in sets for v in values[name][s][metric]],
            [v for s in sets for v in values[OURS][s][metric]],
            higher=higher,
        )
        for metric, higher in HIGHER.items()
    ]
    shown = {m: methods[m] for m in ("bicubic", OURS, name)}
    picture(request.out / "before-after.png", shown, sets, 4, real)
    return Results(
        table,
        claims,
        described(sets),
        [0],
        {
            f"{s}{suffix} {k}": higher
            for s in sets
            for suffix in ("", ", clean")
            for k, higher in HIGHER.items()
        },
    )


# --- ablations: short trainings on the frozen autoencoder -----------------------------------------

SEEDS = 3
ABLATION_STEPS = IMITATION_STEPS = 400
ONE, MANY = "held-out PSNR-Y, from noise", "held-out PSNR-Y, 8 steps from noise"
VARIANTS: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    # name: changed configuration, does E_L learn together with the UNet?
    "short: reverse-only, s = 1": ({"mean": "zero", "var": "unit"}, True),
    "short: reverse-only, s = 0.3": ({"mean": "zero", "var": "const"}, True),
    "short: bidirectional, s = 1": ({"mean": "lr", "var": "unit"}, True),
    "short: bidirectional, s = 0.3": ({"mean": "lr", "var": "const"}, True),
    "short: bidirectional, learned s": ({"mean": "lr", "var": "learned"}, True),
    "short: bidirectional, learned s, E_L frozen": ({"mean": "lr", "var": "learned"}, False),
}


def ablations(
    request: BenchRequest, model: EdgeSDSR, folder: Path
) -> tuple[dict[str, dict[str, Metric]], list[Claim]]:
    """UNet and E_L trained anew for a few hundred steps, equal for all variants; three seeds.

    Too few to reach bicubic, which the table shows: they tell the variants apart, no more.
    """
    photos, net = Photos(folder), model.module
    x_h = 2 * photos.crops(np.random.default_rng(request.seed), 16, 64).to(model.device) - 1
    with torch.no_grad():
        z_h = net.encode_hr(x_h)
    noise = torch.randn(z_h.shape, generator=torch.Generator().manual_seed(request.seed))
    channels = channel_weights(net.decoder_base, z_h, noise.to(z_h))
    found: dict[str, dict[str, list[float]]] = {v: {ONE: [], MANY: []} for v in VARIANTS}
    with track(SEEDS * len(VARIANTS), request.progress, "ablations") as advance:
        for seed in range(request.seed, request.seed + SEEDS):
            for name, (changes, joint) in VARIANTS.items():
                made = short_training(request, model, photos, channels, seed, changes, joint)
                for metric, value in made.items():
                    found[name][metric].append(value)
                advance(1)
    rows = {v: {k: Metric.of(x) for k, x in by.items()} for v, by in found.items()}
    reverse, reverse_less, unit, const, learned, frozen = VARIANTS
    claims = [
        compare(
            identity,
            statement,
            f"mean paired difference of PSNR-Y over {SEEDS} seeds, {ABLATION_STEPS} steps each, "
            f"above {CONFIDENT}",
            found[a][metric],
            found[b][metric],
        )
        for identity, statement, a, b, metric in (
            (
                "joint-encoder",
                "Training E_L jointly beats an E_L that learnt to imitate E_H and was frozen.",
                learned,
                frozen,
                ONE,
            ),
            (
                "bidirectional",
                "Bidirectional conditioning (learned s) beats reverse-only (s = 1).",
                learned,
                reverse,
                ONE,
            ),
            (
                "bidirectional-8-steps",
                "Bidirectional conditioning (learned s) beats reverse-only (s = 1) in eight steps.",
                learned,
                reverse,
                MANY,
            ),
            (
                "mean-shift",
                "At the same noise (s = 1) shifting its mean to the input beats reverse-only.",
                unit,
                reverse,
                ONE,
            ),
            (
                "mean-shift-8-steps",
                "At the same noise (s = 0.3) shifting its mean to the input beats reverse-only in "
                "eight steps.",
                const,
                reverse_less,
                MANY,
            ),
            (
                "less-noise-8-steps",
                "Without a shift, less noise (s = 0.3) beats s = 1 in eight steps.",
                reverse_less,
                reverse,
                MANY,
            ),
            ("variance", "A learned s beats a constant one.", learned, const, ONE),
        )
    ]
    rows["bicubic"] = {ONE: interpolated(photos)[X4]}
    return rows, claims


def short_training(
    request: BenchRequest,
    model: EdgeSDSR,
    photos: Photos,
    channels: Tensor,
    seed: int,
    changes: Mapping[str, Any],
    joint: bool,
) -> dict[str, float]:
    """PSNR-Y on held-out crops after a few hundred steps of UNet and E_L; E_H and D are frozen."""
    with tempfile.TemporaryDirectory() as scratch:
        entry = replace(request.entry, config={**request.entry.config, **changes})
        job = recipe(
            TrainRequest(entry, Path(scratch), seed=seed, device=request.device, options=OPTIONS),
            photos,
        )
        net, run = job.net.eval(), job.run
        net.hr_encoder.load_state_dict(model.module.hr_encoder.state_dict())
        net.decoder_base.load_state_dict(model.module.decoder_base.state_dict())
        run.begin("lr_encoder", replace(TINY_RECIPE["lr_encoder"], steps=IMITATION_STEPS))
        train_lr_encoder(job)
        run.begin("unet", replace(TINY_RECIPE["unet"], steps=ABLATION_STEPS, batch=8))
        parts: dict[str, nn.Module | tuple[nn.Module, Rate]] = {"unet": net.unet}
        if joint:
            parts["lr_encoder"] = (net.lr_encoder, lambda p: 0.3 * cosine(p))
        job.minimise(parts, lambda batch: unet_loss(job, batch, channels))

        job.validate(ONE, lambda x_h, x_l: net.decoder_base(from_noise(net, x_l, 1)))
        job.validate(MANY, lambda x_h, x_l: net.decoder_base(from_noise(net, x_l, 8)))
        return {metric: float(run.validated[metric]["psnr_y"]) for metric in (ONE, MANY)}


def from_noise(net: EdgeNetwork, x_l: Tensor, steps: int) -> Tensor:
    """z^ as all variants have met it in training: with the noise that the process starts from."""
    mu, _ = net.encode(x_l)
    return net.one_step(
        x_l, torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)), steps
    )
