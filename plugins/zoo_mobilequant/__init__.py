"""MobileQuant: language models whose weights and activations are integers (EMNLP 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, hookimpl

if TYPE_CHECKING:
    from zoo.interfaces import Results

    from .model import MobileQuant, MobileQuantized


@hookimpl
def zoo_build(request: BuildRequest) -> MobileQuant | MobileQuantized:
    from .model import build

    return build(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
