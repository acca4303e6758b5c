"""YONOS-SR: one-step latent-diffusion super-resolution by scale distillation (ECCV 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from zoo.entry import Entry
    from zoo.interfaces import Results

    from .model import YonosSR


def _full(entry: Entry) -> bool:
    """Is it the paper's size, from diffusers classes?"""
    return bool(entry.config["network"] == "diffusers")


@hookimpl
def zoo_build(request: BuildRequest) -> YonosSR:
    if _full(request.entry):
        from .full import YonosSRFull

        return YonosSRFull.build(request)
    from .model import YonosSR

    return YonosSR.build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    if _full(request.entry):
        from .full_train import train
    else:
        from .train import train
    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
