"""graph-qa: questions and answers from the graph of a procedure (EACL 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.interfaces import Results

    from .full import GraphQAFull, T5Reader
    from .model import GraphQA, Reader


@hookimpl
def zoo_build(request: BuildRequest) -> GraphQA | Reader | GraphQAFull | T5Reader:
    if request.entry.size == "full":
        from .full import build_full

        return build_full(request)
    from .model import build

    return build(request)


@hookimpl
def zoo_train(request: TrainRequest) -> Path:
    if request.entry.size == "full":
        from .full_train import train_full

        return train_full(request)
    from .train import train

    return train(request)


@hookimpl
def zoo_bench(request: BenchRequest) -> Results:
    from .bench import bench

    return bench(request)
