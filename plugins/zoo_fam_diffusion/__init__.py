"""FAM diffusion: images beyond a model's training size, without training (arXiv:2411.18552)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.interfaces import Results

    from .model import FAMDiffusion


@hookimpl
def zoo_build(request: BuildRequest) -> FAMDiffusion:
    from .model import FAMDiffusion

    return FAMDiffusion.build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
