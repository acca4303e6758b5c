"""Bayesian data point selection: instance weights by Langevin sampling (NeurIPS 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, hookimpl

if TYPE_CHECKING:
    from zoo.interfaces import Results

    from .model import BayesianDPS


@hookimpl
def zoo_build(request: BuildRequest) -> BayesianDPS:
    from .model import BayesianDPS

    return BayesianDPS(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
