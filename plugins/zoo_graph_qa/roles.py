"""Which action a span belongs to, and what it is to it. Page: rule 3 and eq. 3."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .corpora import ROLES, TYPES, Arc, Labelled, Span
from .words import PREPOSITIONS, lemma, tokenize

PREPS = ("", *sorted(PREPOSITIONS))
VERBS = 4096
"""Buckets of (kind, preposition, verb)."""
_THINGS = ("patient", "place", "goal", "source", "instrument", "manner", "shape")
POSSIBLE = {
    "object": _THINGS,
    "tool": _THINGS,
    "duration": ("duration",),
    "temperature": ("heat",),
    "until": ("until", "purpose", "duration"),
    "purpose": ("purpose", "until"),
    "other": tuple(r for r in ROLES if r not in ("simultaneous", "duration", "heat")),
}
"""Roles that a kind of span can have."""
PRIOR = 2.0
"""Weight of the coarser count in the finer one: eq. 3."""


class Roles(nn.Module):
    """Counts of roles by kind and preposition, and by kind, preposition and verb."""

    coarse: Tensor
    fine: Tensor

    def __init__(self) -> None:
        super().__init__()
        shape = (len(TYPES), len(PREPS), len(ROLES))
        self.register_buffer("coarse", torch.zeros(shape))
        self.register_buffer("fine", torch.zeros(VERBS, len(ROLES)))

    def count(self, recipes: Sequence[Labelled]) -> None:
        """Fill the tables from annotated arcs."""
        self.coarse.zero_()
        self.fine.zero_()
        for recipe in recipes:
            clean = recipe.procedure.clean
            for arc in recipe.arcs:
                span, head = recipe.spans[arc.tail], recipe.spans[arc.head]
                kind, prep, bucket = _key(clean, span, head)
                role = ROLES.index(arc.role)
                self.coarse[kind, prep, role] += 1
                self.fine[bucket, role] += 1

    def tables(self) -> RoleTables:
        return RoleTables(self.coarse.double().cpu().numpy(), self.fine.double().cpu().numpy())


class RoleTables:
    """The most probable role of a span: eq. 3."""

    def __init__(self, coarse: NDArray[np.float64], fine: NDArray[np.float64]) -> None:
        general = coarse.sum(1) + 0.01
        general /= general.sum(1, keepdims=True)
        total = coarse.sum(2, keepdims=True)
        self._coarse = (coarse + PRIOR * general[:, None]) / (total + PRIOR)
        self._fine = fine
        self._possible = np.array([[r in POSSIBLE.get(k, ()) for r in ROLES] for k in TYPES])

    def role(self, clean: str, span: Span, head: Span) -> tuple[str, float]:
        """The role and its probability."""
        kind, prep, bucket = _key(clean, span, head)
        row = self._fine[bucket]
        chances = (row + PRIOR * self._coarse[kind, prep]) / (row.sum() + PRIOR)
        best = int((chances * self._possible[kind]).argmax())
        return ROLES[best], float(chances[best])


def preposition(clean: str, span: Span) -> str:
    """The preposition before a span, or its own first word if that is one; else ""."""
    first = clean[span.start : span.end].split(" ", 1)[0].lower()
    if first in PREPOSITIONS:
        return first
    before = clean[max(0, span.start - 24) : span.start].split()
    last = before[-1].lower() if before else ""
    if last in ("about", "approximately", "another", "least", "the", "a") and len(before) > 1:
        last = before[-2].lower()
    return last if last in PREPOSITIONS else ""


def _key(clean: str, span: Span, head: Span) -> tuple[int, int, int]:
    prep = preposition(clean, span)
    verb = lemma(clean[head.start : head.end].split(" ", 1)[0].lower())
    bucket = zlib.crc32(f"{span.kind}|{prep}|{verb}".encode()) % VERBS
    return TYPES.index(span.kind), PREPS.index(prep), bucket


def attach(clean: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """(action, span) indices for the spans of one step, in order: rule 3.

    A span belongs to the nearest action before it, unless a full stop, a semicolon or ", then"
    stands between and an action follows: then it is a fronted phrase of the next one.
    """
    actions = [i for i, span in enumerate(spans) if span.kind == "action"]
    found = []
    for i, span in enumerate(spans):
        if span.kind == "action" or not actions:
            continue
        before = [a for a in actions if spans[a].end <= span.start]
        after = [a for a in actions if spans[a].start >= span.end]
        chosen = before[-1] if before else after[0] if after else None
        if before and after:
            between = clean[spans[before[-1]].end : span.start]
            if _ends(between) and not _ends(clean[span.end : spans[after[0]].start]):
                chosen = after[0]
        if chosen is not None:
            found.append((chosen, i))
    return found


def _ends(between: str) -> bool:
    tokens = [t.lower for t in tokenize(between)]
    return any(t in (".", ";", "!") for t in tokens) or any(
        a == "," and b == "then" for a, b in itertools.pairwise(tokens)
    )


def arcs(clean: str, steps: Sequence[Sequence[Span]], tables: RoleTables) -> list[list[Arc]]:
    """The arcs of each step; indices into the spans of that step."""
    found = []
    for spans in steps:
        row = []
        for head, tail in attach(clean, spans):
            role, _ = tables.role(clean, spans[tail], spans[head])
            row.append(Arc(head, tail, role))
        found.append(row)
    return found
