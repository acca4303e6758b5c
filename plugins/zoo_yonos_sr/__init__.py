"""YONOS-SR: one-step latent-diffusion super-resolution by scale distillation (ECCV 2024).

Also the ground that it shares with ``zoo_edge_sd_sr``: latent schedule, forward noise, resizing,
degradations, tiles, scale distillation, decoder fine-tuning, the tiny networks, the training loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from zoo.interfaces import Results

    from .model import YonosSR


@hookimpl
def zoo_build(request: BuildRequest) -> YonosSR:
    from .model import YonosSR, YonosSRFull

    full = request.config["network"] == "diffusers"
    return (YonosSRFull if full else YonosSR).build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
