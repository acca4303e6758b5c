"""graph-qa: questions and answers from the graph of a procedure (EACL 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.interfaces import Results

    from .model import GraphQA, Reader


@hookimpl
def zoo_build(request: BuildRequest) -> GraphQA | Reader:
    from .model import build

    return build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
