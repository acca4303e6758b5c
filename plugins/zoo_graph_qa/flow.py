"""The flow graph: which earlier actions' products an action uses. Page: eqs. 4 and 5."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .corpora import Labelled, Span
from .words import PRONOUNS, lemma, tokenize, word_class

WINDOW = 12
"""Actions back that can be the producer."""
BUCKETS = 4096
LIKELY = 0.35
"""A second producer needs this probability."""
PRODUCTS = frozenset(
    "mixture batter dough sauce rest remainder remaining filling marinade glaze paste cream result "
    "whole all half contents piece".split()
)
"""Words for what earlier steps made."""


@dataclass(frozen=True)
class Action:
    """What the scorer knows of an action."""

    verb: str
    step: int
    objects: tuple[str, ...]
    """Head lemmas of its explicit objects."""
    tools: tuple[str, ...]
    pronoun: bool
    product: bool
    fronted: bool
    """Does "meanwhile" or the like stand before it?"""


class Flow(nn.Module):
    """A weight for each hashed feature of a pair of actions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(BUCKETS))

    def loss(self, numbers: Tensor, gold: Tensor) -> Tensor:
        """Eq. 5, mean over actions. ``numbers`` (B, 1 + WINDOW, F) with -1 where there is none,
        ``gold`` (B, 1 + WINDOW) bool.
        """
        scores = self.scores(numbers)
        right = scores.masked_fill(~gold, -torch.inf).logsumexp(1)
        return (scores.logsumexp(1) - right).mean()

    def scores(self, numbers: Tensor) -> Tensor:
        """(B, 1 + WINDOW); minus infinity for a candidate that does not exist."""
        summed = (self.weight[numbers.clamp(min=0)] * (numbers >= 0)).sum(2)
        return summed.masked_fill(numbers[:, :, 0] < 0, -torch.inf)


def head(text: str) -> str:
    """The lemma of the head of a noun phrase: its last word before a preposition or comma."""
    words: list[str] = []
    for token in tokenize(text):
        low = token.lower
        cls = word_class(low)
        if words and cls in ("prep", "comma", "open", "conj", "sub"):
            break
        if cls in ("word", "unit", "time") or (cls == "pron" and not words):
            words.append(low)
    return lemma(words[-1]) if words else text.lower()


def describe(
    clean: str, steps: Sequence[Sequence[Span]], pairs: Sequence[Sequence[tuple[int, int]]]
) -> list[Action]:
    """The actions of a procedure, in the order of the text. ``pairs``: of ``roles.attach``."""
    found = []
    for number, (spans, attached) in enumerate(zip(steps, pairs, strict=True)):
        for i, span in enumerate(spans):
            if span.kind != "action":
                continue
            mine = [spans[tail] for at, tail in attached if at == i]
            heads = {
                kind: tuple(head(clean[s.start : s.end]) for s in mine if s.kind == kind)
                for kind in ("object", "tool")
            }
            words = [t.lower for s in mine if s.kind == "object"
                     for t in tokenize(clean, s.start, s.end)]  # fmt: skip
            earlier = max([0, *(s.end for s in spans if s.end <= span.start)])
            before = clean[earlier : span.start].lower() if earlier else ""
            found.append(
                Action(
                    lemma(clean[span.start : span.end].split(" ", 1)[0].lower()),
                    number,
                    heads["object"],
                    heads["tool"],
                    bool(PRONOUNS & {*words[:1]}),
                    bool(PRODUCTS & {*words}),
                    "meanwhile" in before or "separate" in before,
                )
            )
    return found


def candidates(actions: Sequence[Action]) -> NDArray[np.int64]:
    """(N, 1 + WINDOW, F) hashed features of NONE and of the actions before; -1 fills up."""
    rows: list[list[list[int]]] = []
    seen: set[str] = set()
    for i, action in enumerate(actions):
        new = sum(o not in seen for o in action.objects)
        row = [[_bucket(f) for f in _none(action, i, new)]]
        for j in range(i - 1, max(-1, i - WINDOW - 1), -1):
            row.append([_bucket(f) for f in _pair(actions, j, i, new)])
        rows.append(row)
        seen |= {*action.objects}
    width = max((len(f) for row in rows for f in row), default=1)
    made = np.full((len(rows), 1 + WINDOW, width), -1, np.int64)
    for i, row in enumerate(rows):
        for j, numbers in enumerate(row):
            made[i, j, : len(numbers)] = numbers
    return made


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode()) % BUCKETS


def _many(action: Action) -> str:
    marks = ("p" if action.pronoun else "") + ("r" if action.product else "")
    return f"{min(len(action.objects), 2)}{marks}"


def _none(action: Action, i: int, new: int) -> list[str]:
    many, first = _many(action), min(i, 2)
    return [
        "none", f"none many {many}", f"none verb {action.verb}", f"none new {min(new, 2)} {many}",
        f"none first {first}", f"none verb {action.verb} {many}", f"none tools {len(action.tools)}",
        f"none fronted {action.fronted}",
    ]  # fmt: skip


def _pair(actions: Sequence[Action], j: int, i: int, new: int) -> list[str]:
    a, b = actions[j], actions[i]
    distance, many = min(i - j, 7), _many(b)
    objects = bool({*a.objects} & {*b.objects})
    tools = bool({*a.tools} & {*b.tools})
    chain = all(not actions[k].objects for k in range(j + 1, i))
    gap = min(b.step - a.step, 4)
    fronted = any(actions[k].fronted for k in range(j + 1, i + 1))
    object_tool = bool({*a.tools} & {*b.objects}) or bool({*a.objects} & {*b.tools})
    return [
        f"d {distance}", f"d {distance} {many}", f"gap {gap}", f"gap {gap} {many}",
        f"verbs {a.verb} {b.verb}", f"from {a.verb}", f"to {b.verb} {distance}",
        f"objects {objects} {min(distance, 3)}", f"tools {tools} {min(distance, 3)}",
        f"chain {chain} {many}", f"chain {chain} {distance}", f"fronted {fronted} {distance}",
        f"new {min(new, 2)} {many} {min(distance, 3)}", f"has {min(len(a.objects), 2)} {many}",
        f"crossed {object_tool}", f"from {a.verb} {distance}",
    ]  # fmt: skip


def producers(
    numbers: NDArray[np.int64], weight: NDArray[np.float32]
) -> list[list[tuple[int, float]]]:
    """For each action, the earlier actions whose product it uses, with probabilities: eq. 4.

    The most probable candidate, unless that is NONE, and every other above ``LIKELY``.
    """
    if not len(numbers):
        return []
    there = numbers[:, :, 0] >= 0
    scores = np.where(there, (weight[np.maximum(numbers, 0)] * (numbers >= 0)).sum(2), -np.inf)
    chances = np.exp(scores - scores.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    found = []
    for i, row in enumerate(chances):
        best = int(row.argmax())
        found.append(
            [(i - k, float(row[k])) for k in range(1, WINDOW + 1) if row[k] > LIKELY or (k == best)]
        )
    return found


def linked(recipe: Labelled) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Training rows of an annotated recipe: ``candidates``, and which are right."""
    from .roles import attach

    parts = recipe.procedure.steps
    steps: list[list[Span]] = [[] for _ in parts]
    order: list[int] = []
    for k, part in enumerate(parts):
        inside = [n for n, s in enumerate(recipe.spans) if part.start <= s.start < part.end]
        inside.sort(key=lambda n: recipe.spans[n].start)
        steps[k] = [recipe.spans[n] for n in inside]
        order += [n for n in inside if recipe.spans[n].kind == "action"]
    clean = recipe.procedure.clean
    numbers = candidates(describe(clean, steps, [attach(clean, s) for s in steps]))
    gold = np.zeros(numbers.shape[:2], bool)
    place = {n: i for i, n in enumerate(order)}
    for consumer, producer in recipe.links:
        if consumer in place and producer in place:
            back = place[consumer] - place[producer]
            if 0 < back <= WINDOW:
                gold[place[consumer], back] = True
    gold[:, 0] = ~gold[:, 1:].any(1)
    return numbers, gold
