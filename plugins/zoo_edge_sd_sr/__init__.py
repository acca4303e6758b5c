"""Edge-SD-SR: one-step latent-diffusion super-resolution small enough for a phone (CVPR 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from zoo.interfaces import Results

    from .model import EdgeSDSR


@hookimpl
def zoo_build(request: BuildRequest) -> EdgeSDSR:
    from .model import EdgeSDSR

    return EdgeSDSR.build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
