"""What the benchmark is measured on: parsers trained on some recipes, the others to be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from zoo.experiment import digest
from zoo.isolation import learning
from zoo.training import Draw
from zoo.weights import load_tensors, save_tensors

from .candidates import Candidates
from .corpora import Labelled, cookdial, dialogues, risec
from .evaluate import Item, people, unseen
from .parse import Parser, ParserModule, gold_spans
from .train import STAGES, FlowData, TaggerData

HALVES = 2
TEST = 30
"""Recipes that the parser's floors are measured on."""


@learning()
def trained(
    recipes: Sequence[Labelled], links: Sequence[Labelled], seed: int, quick: bool = False
) -> ParserModule:
    """A parser from annotated recipes, by the recipe's numbers."""
    module = ParserModule()
    module.roles.count(recipes)
    tags, flow = TaggerData(recipes), FlowData(links)
    for name in ("tagger", "flow"):
        stage = STAGES[name]
        steps = stage.steps // (10 if quick else 1)
        part = module.tagger if name == "tagger" else module.flow
        optimizer = torch.optim.AdamW(part.parameters(), lr=stage.lr, weight_decay=stage.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for i in range(steps):
            draw = Draw(stage.batch, np.random.default_rng([seed, i]), torch.Generator())
            if name == "tagger":
                loss = tags.loss(module.tagger, tags.draw(draw))
            else:
                loss = module.flow.loss(*flow.draw(draw))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.requires_grad_(False)


def kept_parser(
    work: Path, recipes: Sequence[Labelled], links: Sequence[Labelled], seed: int, quick: bool
) -> Parser:
    """``trained``, or what it made the last time."""
    names = [seed, quick, [r.name for r in recipes], [r.name for r in links], str(STAGES)]
    file = work / f"parser-{digest(names)}.safetensors"
    if not file.is_file():
        module = trained(recipes, links, seed, quick)
        save_tensors(file, dict(module.state_dict()))
    module = ParserModule()
    module.load_state_dict(load_tensors(file))
    return Parser(module.requires_grad_(False))


def first_words(recipe: Labelled) -> str:
    """What tells recipes apart in both corpora: the letters of the first two steps."""
    parts = recipe.procedure.steps[:2]
    return re.sub(r"\W+", "", "".join(recipe.procedure.of(p) for p in parts).lower())[:60]


@dataclass(frozen=True)
class Corpora:
    """CookDial and RISeC, read once."""

    folder: Path

    @cached_property
    def recipes(self) -> list[Labelled]:
        return cookdial(self.folder)

    @cached_property
    def linked(self) -> dict[str, list[Labelled]]:
        return risec(self.folder)

    @cached_property
    def questions(self) -> list[Item]:
        """Of CookDial's people."""
        return people(dialogues(self.folder, self.recipes), self.recipes)

    def shuffled(self) -> list[int]:
        """The numbers of all recipes in a random order, always the same."""
        return [int(i) for i in np.random.default_rng(0).permutation(len(self.recipes))]

    def apart_from(self, recipes: Sequence[Labelled]) -> list[Labelled]:
        """RISeC's recipes that are none of these."""
        known = {first_words(r) for r in recipes}
        return [r for part in self.linked.values() for r in part if first_words(r) not in known]


@dataclass(frozen=True)
class Fold:
    """One half of the recipes, parsed by a parser that was trained on the other half."""

    number: int
    recipes: tuple[Labelled, ...]
    about: tuple[Candidates, ...]
    asked: tuple[Item, ...]
    """Questions of people."""
    unseen: tuple[Item, ...]
    """The set U."""
    parser: Parser


def fold(corpora: Corpora, number: int, work: Path, quick: bool) -> Fold:
    """The fold 0 or 1."""
    order = corpora.shuffled()
    mine = sorted(order[number::HALVES])
    others = [corpora.recipes[i] for i in sorted({*order} - {*mine})]
    recipes = [corpora.recipes[i] for i in mine]
    parser = kept_parser(work, others, corpora.apart_from(recipes), 0, quick)
    about = [Candidates(parser.graph(r.procedure)) for r in recipes]
    gold = [Candidates(parser.graph(r.procedure, gold_spans(r))) for r in recipes]
    place = {recipe: i for i, recipe in enumerate(mine)}
    asked = [
        Item(place[q.about], q.kind, q.question, q.step, q.answers)
        for q in corpora.questions
        if q.about in place
    ]
    return Fold(number, tuple(recipes), tuple(about), tuple(asked), tuple(unseen(gold)), parser)
