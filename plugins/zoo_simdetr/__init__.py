"""SimDETR: detectors that are pretrained on images without labels (arXiv:2307.15697)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.interfaces import Results

    from .model import SimDETR


@hookimpl
def zoo_build(request: BuildRequest) -> SimDETR:
    if request.entry.size == "full":
        from .full import SimDETRFull

        return SimDETRFull.build(request)
    from .model import SimDETR

    return SimDETR.build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
