"""Questions with right answers, and how well a reader answers them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .candidates import Candidates
from .corpora import Asked, Labelled
from .facts import UNSTATED
from .questions import Controls, Pair, ask
from .score import exact, f1
from .templates import HELD_OUT

MOST = 40
"""Questions of a type in the set U."""


@dataclass(frozen=True)
class Item:
    """A question about one of the procedures."""

    about: int
    kind: str
    question: str
    step: int | None
    """The step that the person is at, from 0."""
    answers: tuple[str, ...]
    """Right answers; ``UNSTATED`` where the text has none."""


Answers = Callable[[Sequence[Item]], Sequence[str]]


def people(asked: Sequence[Asked], recipes: Sequence[Labelled]) -> list[Item]:
    """Questions of CookDial's people; ``about`` counts the recipes."""
    found = []
    for one in asked:
        text = recipes[one.recipe].procedure.text
        answers = tuple(text[a:b] for a, b in one.answers) or (UNSTATED,)
        found.append(Item(one.recipe, one.kind, one.question, one.step, answers))
    return found


def unseen(about: Sequence[Candidates], seed: int = 0) -> list[Item]:
    """The set U: at most ``MOST`` questions of each type, in words that no reader is trained on.

    ``about``: of the annotated graphs, so that what is asked does not depend on the parser.
    """
    by_kind: dict[str, list[Item]] = {}
    controls = Controls(paraphrases=1, ways=HELD_OUT, short=False)
    for number, candidates in enumerate(about):
        for pair in ask(candidates.graph, controls, seed)[1]:
            item = Item(number, pair.kind, pair.question, None, (pair.answer,))
            by_kind.setdefault(pair.kind, []).append(item)
    rng = np.random.default_rng(seed)
    found = []
    for _, items in sorted(by_kind.items()):
        chosen = rng.permutation(len(items))[:MOST]
        found += [items[i] for i in sorted(chosen)]
    return found


def howtos() -> tuple[list[str], list[Item]]:
    """The texts of the twenty how-tos, and the questions over them.

    An amount is also right as the whole line of the list, as in CookDial.
    """
    folder = Path(__file__).parent / "howtos"
    names = sorted(p.stem for p in folder.glob("*.md") if p.stem != "README")
    texts = [(folder / f"{name}.md").read_text("utf-8") for name in names]
    items = []
    for line in (folder / "questions.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        about = names.index(row["howto"])
        answers = [row["answer"] if row["answer"] is not None else UNSTATED]
        if row["asks"] in ("amount", "size") and row["step"] is None:
            text = texts[about]
            begin = text.rfind("\n", 0, row["start"]) + 1
            answers.append(text[begin : text.index("\n", begin)].removeprefix("- "))
        kind = {"none": "unanswerable", "next": "next", "order": "order"}.get(
            row["asks"], "factoid"
        )
        at = None if row["at"] is None else row["at"] - 1
        items.append(Item(about, kind, row["question"], at, tuple(answers)))
    return texts, items


def scored(items: Sequence[Item], answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Type -> EM and F1 in per cent, the best over an item's right answers; and ``macro``."""
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for item, answer in zip(items, answers, strict=True):
        best = (
            max(exact(answer, a) for a in item.answers),
            max(f1(answer, a) for a in item.answers),
        )
        by_kind.setdefault(item.kind, []).append(best)
    found = {
        kind: {
            "EM": 100 * statistics.fmean(e for e, _ in rows),
            "F1": 100 * statistics.fmean(f for _, f in rows),
        }
        for kind, rows in sorted(by_kind.items())
    }
    macro = {m: statistics.fmean(row[m] for row in found.values()) for m in ("EM", "F1")}
    return {**found, "macro": macro}


def spans(
    parsed: Sequence[set[tuple[str, int, int]]], gold: Sequence[set[tuple[str, int, int]]]
) -> float:
    """F1 of sets, in per cent, over all procedures."""
    right = sum(len(a & b) for a, b in zip(parsed, gold, strict=True))
    total = sum(map(len, parsed)) + sum(map(len, gold))
    return 200 * right / total if total else 0.0


def arcs_of(candidates: Candidates) -> set[tuple[int, int, str]]:
    """(begin of the action, begin of the filler, role) of each role edge to what is no action."""
    graph = candidates.graph
    return {
        (graph.node[e.source].start, graph.node[e.target].start, e.role)
        for e in graph.edges
        if e.role not in ("next", "uses", "again", "material")
        and graph.node[e.target].kind != "action"
    }


def gold_arcs(recipe: Labelled) -> set[tuple[int, int, str]]:
    """The same of an annotated recipe."""
    return {
        (recipe.spans[a.head].start, recipe.spans[a.tail].start, a.role)
        for a in recipe.arcs
        if recipe.spans[a.tail].kind != "action"
    }


def pairs_as_items(pairs: Mapping[int, Sequence[Pair]]) -> list[Item]:
    """Generated pairs as questions."""
    return [
        Item(about, p.kind, p.question, p.step, (p.answer,))
        for about, rows in pairs.items()
        for p in rows
    ]
