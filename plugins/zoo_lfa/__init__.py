"""LFA: few-shot adaptation of vision-language features by one linear map (ICCV 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, hookimpl

if TYPE_CHECKING:
    from zoo.interfaces import Results

    from .model import LFA


@hookimpl
def zoo_build(request: BuildRequest) -> LFA:
    from .model import LFA

    return LFA.build(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
