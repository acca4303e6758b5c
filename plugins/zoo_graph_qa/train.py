"""The recipe: ``zoo train graph-qa --data PATH -o OUT``.

tagger   the CRF, on CookDial's spans (eq. 1); the roles are counted on its arcs (eq. 3)
flow     the scorer of producers, on RISeC's links (eq. 5)
reader   the pointer (eq. 7), on the questions that the trained parser makes about the recipes of
         CookDial and the unlabelled ones

PATH holds ``cookdial``, ``risec`` and ``recipes-unlicense``. The benchmark trains parts of it on
some of the recipes by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import InputError
from zoo.hookspecs import TrainRequest
from zoo.interfaces import QAPair
from zoo.training import Draw, Run, Stage, read_saved

from .candidates import Candidates
from .corpora import Labelled, cookdial, plain, risec
from .features import COUNT
from .flow import linked
from .model import GraphQA, Network
from .parse import Parser
from .pointer import Batch, Example, Lessons, Pointer, examples
from .questions import Controls, ask
from .tagger import TAGS, Tagger, tagged
from .templates import HELD_OUT, MOST
from .text import Procedure, read

DROP = 0.3
"""Share of a token's features that are left out in training."""
STAGES = {
    "tagger": Stage(1500, 1e-2, 32, ema=0.99, decay=1e-2),
    "flow": Stage(400, 3e-2, 256, ema=0.99, decay=0.3),
    "reader": Stage(2500, 3e-3, 64, ema=0.998, decay=1e-2),
}
PAIRS = 20_000
"""Questions that the bundled reader learns from."""
TRAINED_WAYS = tuple(w for w in range(MOST) if w not in HELD_OUT)
"""Ways of asking that readers are trained on."""


class TaggerData:
    """Sentences of annotated recipes, as batches."""

    def __init__(self, recipes: Sequence[Labelled]) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._gold: list[NDArray[np.int64]] = []
        for recipe in recipes:
            rows, gold = tagged(recipe)
            self._rows += rows
            self._gold += gold

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (B, L, F), tags (B, L), lengths (B,), and factors of features (B * L, F)."""
        chosen = draw.rng.integers(0, len(self._rows), draw.count)
        lengths = np.array([len(self._gold[i]) for i in chosen])
        most = int(lengths.max())
        numbers = np.zeros((len(chosen), most, COUNT), np.int64)
        gold = np.zeros((len(chosen), most), np.int64)
        for row, i in enumerate(chosen):
            numbers[row, : lengths[row]] = self._rows[i]
            gold[row, : lengths[row]] = self._gold[i]
        kept = draw.rng.random((len(chosen) * most, COUNT), np.float32) > DROP
        factors = kept.astype(np.float32) / (1 - DROP)
        arrays = (numbers, gold, lengths, factors)
        a, b, c, d = (torch.from_numpy(x) for x in arrays)
        return a, b, c, d

    def loss(self, tagger: Tagger, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Eq. 1."""
        numbers, gold, lengths, factors = (x.to(tagger.weight.device) for x in batch)
        scores = tagger.emissions(numbers.view(-1, COUNT), factors)
        return tagger.loss(scores.view(*gold.shape, len(TAGS)), gold, lengths)


class FlowData:
    """Actions with their candidates, as batches."""

    def __init__(self, recipes: Sequence[Labelled]) -> None:
        rows = [linked(r) for r in recipes]
        most = max(numbers.shape[2] for numbers, _ in rows)
        padded = [
            np.pad(n, ((0, 0), (0, 0), (0, most - n.shape[2])), constant_values=-1) for n, _ in rows
        ]
        self._numbers = torch.from_numpy(np.concatenate(padded))
        self._gold = torch.from_numpy(np.concatenate([gold for _, gold in rows]))

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Features (B, 1 + WINDOW, F) and what is right (B, 1 + WINDOW)."""
        chosen = torch.from_numpy(draw.rng.integers(0, len(self._gold), draw.count))
        return self._numbers[chosen], self._gold[chosen]


def drawn(
    about: Sequence[tuple[Candidates, Sequence[QAPair]]], most: int, seed: int = 0
) -> list[Example]:
    """``most`` questions on procedures to learn from, drawn evenly from all."""
    rng = np.random.default_rng(seed)
    total = sum(len(pairs) for _, pairs in about)
    rows: list[Example] = []
    for candidates, pairs in about:
        count = min(len(pairs), -(-most * len(pairs) // total))
        chosen = sorted(rng.permutation(len(pairs))[:count])
        rows += examples(candidates, [pairs[i] for i in chosen], rng)
    return rows


def generated(
    parser: Parser, procedures: Sequence[Procedure], controls: Controls, seed: int = 0
) -> list[tuple[Candidates, Sequence[QAPair]]]:
    """Candidates and pairs of each procedure, by a parser."""
    made: list[tuple[Candidates, Sequence[QAPair]]] = []
    for procedure in procedures:
        graph = parser.graph(procedure)
        made.append((Candidates(graph), ask(graph, controls, seed)[1]))
    return made


def readable(texts: Sequence[str]) -> list[Procedure]:
    """The procedures of texts that are some."""
    found = []
    for text in texts:
        try:
            found.append(read(text))
        except InputError:
            continue
    return found


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    if request.data is None:
        raise InputError(
            "--data: give the folder that holds cookdial, risec and recipes-unlicense."
        )
    data = request.data
    network = Network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network.pointer = Pointer()
    if request.init is not None:
        _, tensors = read_saved(request.init, request.entry.config)
        network.load_state_dict(tensors)
    run = Run(request, {"network": network}, STAGES)
    parser = network.parser

    def tag() -> None:
        recipes = cookdial(data)
        parser.roles.count(recipes)
        source = TaggerData(recipes)
        run.minimise(
            {"tagger": parser.tagger}, source.draw, lambda b: source.loss(parser.tagger, b)
        )

    def flow() -> None:
        source = FlowData([r for part in risec(data).values() for r in part])

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            numbers, gold = (x.to(run.device) for x in batch)
            return parser.flow.loss(numbers, gold)

        run.minimise({"flow": parser.flow}, source.draw, loss)

    def reader() -> None:
        procedures = [r.procedure for r in cookdial(data)] + readable(plain(data))
        controls = Controls(paraphrases=3, ways=TRAINED_WAYS)
        about = generated(Parser(parser), procedures, controls, request.seed)
        source = Lessons(drawn(about, PAIRS, request.seed))

        def draw(one: Draw) -> Batch:
            return source.draw(one.rng, one.count)

        run.minimise({"pointer": network.pointer}, draw, network.pointer.loss)

    def model() -> GraphQA:
        return GraphQA(run.build_request(), network.cpu())

    return run.fit({"tagger": tag, "flow": flow, "reader": reader}, model)
