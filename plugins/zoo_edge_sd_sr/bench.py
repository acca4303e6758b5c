"""The claims of Edge-SD-SR at our size: one cheap step beats interpolation; each part helps.

``edge-sd-sr`` is measured on clean bicubic inputs, as published tables are; ``edge-sd-sr-photo`` on
degraded ones, next to the clean model. ``zoo_sr.measuring.tables`` describes ``--data``.
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
from zoo_sr.measuring.quality import Quality, baselines_for
from zoo_sr.measuring.speed import measure_speed
from zoo_sr.measuring.tables import (
    METRICS,
    X4,
    claim_better_than_interpolation,
    columns,
    described,
    find_sets,
    interpolated,
    interpolations,
    less_is_better,
    measure,
    photos_below,
    picture,
)
from zoo_sr.training.photos import Photos

from zoo.experiment import Book, files, load, training
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Results
from zoo.progress import track
from zoo.training import Rate, cosine, draw_curve, whole_curve

from .model import EdgeNetwork, EdgeSDSR
from .train import TINY_RECIPE, recipe, train_lr_encoder, unet_loss

OURS = "edge-sd-sr"
OPTIONS: Mapping[str, Any] = {"texture": 0.0, "degraded": 0.0}
"""Options of ``zoo train`` in which short trainings differ from the recipe."""


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    load(request)  # fails without weights, before minutes of training a baseline
    made = clean(request) if request.entry.name == OURS else degraded(request)
    draw_curve(whole_curve(files(request) / "train.json"), request.out / "training.png")
    return replace(made, pictures=["before-after.png", "training.png"])


def clean(request: BenchRequest) -> Results:
    """Measure on bicubic inputs: quality, ablations, speed."""
    sets, photos = find_sets(request.data, request.quick, 4), photos_below(request.data)
    book = Book(less_is_better)
    baselines = None
    if photos is not None:
        with tempfile.TemporaryDirectory() as scratch:
            asked = training(request, Path(scratch), **{**OPTIONS, "degraded": 0.15})
            baselines = baselines_for(request, recipe(asked, Photos(photos)), Path(scratch))
    quality = Quality(request, baselines)
    quality.measure(book, sets)
    from .full import CONFIG

    measure_speed(book, quality.model, request.quick, CONFIG, request.progress)
    if photos is not None and not request.quick:
        ablations(book, request, load(request), photos)
    picture(request.out / "before-after.png", quality.shown(), sets, 4)
    seeds = 1 if request.quick else SEEDS
    return book.results(data=described(sets), seeds=[request.seed + i for i in range(seeds)])


def degraded(request: BenchRequest) -> Results:
    """Measure on inputs like photos on the web: blurred, resized, noisy, compressed; seed 0."""
    sets = find_sets(request.data, request.quick, 4)
    name = request.entry.name
    ours, plain = load(request), load(request, OURS)
    methods = {**interpolations(4), OURS: plain.upscale, name: ours.upscale}
    real, book = RealESRGAN(share=1.0), Book(less_is_better)
    measure(book, methods, sets, 4, request.progress, real)
    measure(book, methods, sets, 4, request.progress, suffix=", clean")
    claim_better_than_interpolation(book, name, sets, 4)
    for metric in METRICS:
        book.claim(
            f"better-on-degraded-{metric.lower()}",
            f"On degraded inputs {name} has a better {metric} than {OURS}, which learnt on nearly "
            "clean ones.",
            book.better(name, OURS, columns(sets, metric)),
        )
    shown = {m: methods[m] for m in ("bicubic", OURS, name)}
    picture(request.out / "before-after.png", shown, sets, 4, real)
    return book.results(data=described(sets), seeds=[0])


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


def ablations(book: Book, request: BenchRequest, model: EdgeSDSR, folder: Path) -> None:
    """Train UNet and E_L for a few hundred steps, equal for all variants; three seeds.

    These are too few steps to reach bicubic, as the table shows: they only compare the variants.
    """
    photos, net = Photos(folder), model.module
    x_h = 2 * photos.crops(np.random.default_rng(request.seed), 16, 64).to(model.device) - 1
    with torch.no_grad():
        z_h = net.encode_hr(x_h)
    noise = torch.randn(z_h.shape, generator=torch.Generator().manual_seed(request.seed))
    channels = channel_weights(net.decoder_base, z_h, noise.to(z_h))
    with track(SEEDS * len(VARIANTS), request.progress, "ablations") as advance:
        for seed in range(request.seed, request.seed + SEEDS):
            for name, (changes, joint) in VARIANTS.items():
                made = short_training(request, model, photos, channels, seed, changes, joint)
                for metric, value in made.items():
                    book.add(name, metric, value, seed)
                advance(1)
    reverse, reverse_less, unit, const, learned, frozen = VARIANTS
    claims = (
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
    for identity, statement, a, b, metric in claims:
        note = f"{ABLATION_STEPS} steps each"
        book.claim(identity, statement, book.better(a, b, metric), note=note)
    book.add("bicubic", ONE, interpolated(photos)[X4])


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
        job = recipe(training(request, Path(scratch), entry=entry, seed=seed, **OPTIONS), photos)
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
    """z^ as in the training of all variants: with the noise at the start of the process."""
    mu, _ = net.encode(x_l)
    return net.one_step(
        x_l, torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)), steps
    )
