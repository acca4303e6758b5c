"""LFA: few-shot adaptation of vision-language features by one linear map (ICCV 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.interfaces import Results

    from .model import LFA
    from .photos import Photos

PHOTOS = "lfa-photos"


@hookimpl
def zoo_build(request: BuildRequest) -> LFA | Photos:
    if request.entry.name == PHOTOS:
        from .photos import Photos

        return Photos.build(request)
    from .model import LFA

    return LFA.build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .photos_train import train  # the method itself has no weights: it is fitted by align

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    if request.entry.name == PHOTOS:
        from .photos_bench import bench as photos

        return photos(request)
    from .bench import bench

    return bench(request)
