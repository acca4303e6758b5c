"""The recipe of the full size: ``zoo train graph-qa-full --base parser=... --base reader=...``.

reader   a T5, on the questions that the parser's graphs give about the procedures in --data: a
         folder of .txt and .md files

The parser and the writer are used as they are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from zoo.errors import InputError
from zoo.hookspecs import TrainRequest
from zoo.training import Draw, Run, Stage

from .full import GraphQAFull, Seq2Seq, lessons
from .model import ProcedureQA

FULL_STAGES = {"reader": Stage(5000, 3e-4, 32, ema=0.999, decay=0.01)}
PARAPHRASES = 3


def texts(data: Path | None) -> list[str]:
    """The procedures of a folder. Raises InputError."""
    files = [] if data is None else [p for p in data.rglob("*") if p.suffix in (".txt", ".md")]
    if not files:
        raise InputError("--data: give a folder of procedures as .txt or .md files.")
    return [file.read_text("utf-8") for file in sorted(files)]


def train_full(request: TrainRequest) -> Path:
    """Run the recipe and return the saved folder ``out/model``."""
    source = request.init or request.bases["reader"].folder
    assert source is not None  # a base to train on always has one
    reader = Seq2Seq.opened(source, request.device)
    run = Run(request, {"reader": reader.network}, FULL_STAGES)

    def model() -> GraphQAFull:
        kept = {name: base for name, base in request.bases.items() if name != "reader"}
        return GraphQAFull(replace(run.build_request(), bases=kept), reader)

    def learn() -> None:
        asker = model()
        made: list[ProcedureQA] = []
        for text in texts(request.data):
            try:
                one = asker.generate(text, seed=request.seed, paraphrases=PARAPHRASES)
            except InputError:
                continue  # not a procedure
            assert isinstance(one, ProcedureQA)
            made.append(one)
        rows = lessons(made)

        def draw(draw: Draw) -> list[tuple[str, str]]:
            return [rows[i] for i in draw.rng.integers(0, len(rows), draw.count)]

        def loss(batch: list[tuple[str, str]]) -> Tensor:
            return reader.loss(*zip(*batch, strict=True))

        run.minimise({"reader": reader.network}, draw, loss)

    return run.fit({"reader": learn}, model)
