"""What a reader is trained on: arms of equal size that differ in what their pairs cover.

Page, "The claim". ALL goes through the facts in turn; P50, P25 and P10 know a random share of the
facts and ask for each more often; SAL knows the types that people ask most; ROLE knows the roles of
single steps alone; CLOZE blanks out a random part of a step, as methods do that have no graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Candidates
from .facts import ASKED
from .questions import Controls, Pair, ask
from .train import TRAINED_WAYS

ARMS = ("ALL", "P50", "P25", "P10", "SAL", "ROLE", "CLOZE")
SHARES = {"P50": 0.5, "P25": 0.25, "P10": 0.1}
NEGATIVES = 0.22
"""Largest share of questions without an answer."""
SALIENT = {
    "amount": 0.5, "howlong": 1.0, "until": 1.0, "temp": 1.0, "what": 1.0, "do": 0.1, "after": 0.2,
    "first": 1.0, "last": 1.0,
}  # fmt: skip
"""Types of SAL, and the share of their facts."""
ROLE_KINDS = ("what", *dict.fromkeys(ASKED.values()))


@dataclass(frozen=True)
class Drawn:
    """A pair and the number of its procedure."""

    about: int
    pair: Pair


@dataclass(frozen=True)
class Arm:
    """The pairs of an arm."""

    pairs: tuple[Drawn, ...]
    facts: int | None
    """Facts that they ask about; None where there are none."""


def _fact(drawn: Drawn) -> tuple[object, ...]:
    p = drawn.pair
    return (drawn.about, p.kind, p.asks, p.nodes, p.edge, p.answer, p.start)


class Source:
    """All pairs of some procedures, from which the arms are drawn."""

    def __init__(
        self, about: Sequence[Candidates], seed: int = 0, ways: Sequence[int] = TRAINED_WAYS
    ) -> None:
        self.about = about
        controls = Controls(paraphrases=len(ways), ways=tuple(ways), negatives=NEGATIVES)
        self.by_fact: dict[tuple[object, ...], list[Drawn]] = {}
        for number, candidates in enumerate(about):
            for pair in ask(candidates.graph, controls, seed)[1]:
                drawn = Drawn(number, pair)
                self.by_fact.setdefault(_fact(drawn), []).append(drawn)

    def arm(self, name: str, size: int, seed: int) -> Arm:
        """``size`` pairs of an arm; the same for the same seed."""
        rng = np.random.default_rng([seed, ARMS.index(name)])
        if name == "CLOZE":
            return Arm(tuple(self._cloze(size, rng)), None)
        facts = [*self.by_fact]
        order = rng.permutation(len(facts))
        if name in SHARES:
            chosen = [facts[i] for i in order[: max(1, int(len(facts) * SHARES[name]))]]
        elif name == "SAL":
            chosen = [facts[i] for i in order if rng.random() < SALIENT.get(str(facts[i][1]), 0.0)]
        elif name == "ROLE":
            chosen = [facts[i] for i in order if facts[i][1] in ROLE_KINDS]
        else:
            chosen = [facts[i] for i in order]
        pairs = self._in_turn(chosen, size, rng)
        return Arm(tuple(pairs), len({_fact(d) for d in pairs}))

    def _in_turn(
        self, chosen: Sequence[tuple[object, ...]], size: int, rng: np.random.Generator
    ) -> list[Drawn]:
        """Each fact once, then each again in other words, ...; then the same once more."""
        found: list[Drawn] = []
        turns = {f: rng.permutation(len(self.by_fact[f])) for f in chosen}
        turn = 0
        while len(found) < size:
            for fact in chosen:
                forms = self.by_fact[fact]
                if turn < len(forms) or turn >= 8:
                    found.append(forms[turns[fact][turn % len(forms)]])
                    if len(found) == size:
                        break
            turn += 1
        return found

    def _cloze(self, size: int, rng: np.random.Generator) -> list[Drawn]:
        """A part of a step is the answer, the rest of the step with "what" in its place the
        question. The parts are the graph's, so that the pointer can give them.
        """
        places = [
            (number, item)
            for number, about in enumerate(self.about)
            for item in about.items
            if item.place is not None and item.step is not None and item.kind != "step"
        ]
        found: list[Drawn] = []
        for i in rng.integers(0, len(places), size):
            number, item = places[i]
            graph = self.about[number].graph
            step = graph.steps[item.step or 0]
            assert item.place is not None
            text = graph.procedure.text
            start, end = _sentence(text, step.start, step.end, item.place.start)
            rest = f"{text[start : item.place.start]}what{text[item.place.end : end]}"
            question = " ".join(rest.rstrip(" .!\n").split()) + "?"
            pair = Pair(question, item.text, (step.id,), "cloze", None, step.step,
                        item.place.start, item.place.end, "cloze/0")  # fmt: skip
            found.append(Drawn(number, pair))
        return found


def _sentence(text: str, start: int, end: int, inside: int) -> tuple[int, int]:
    """The sentence of ``text[start:end]`` around a place."""
    for match in re.finditer(r"[.!?]\s+", text[start:end]):
        if start + match.end() <= inside:
            start_of = start + match.end()
            if start_of < end:
                start, end = start_of, end
                return _sentence(text, start, end, inside)
        else:
            return start, start + match.start() + 1
    return start, end


def by_procedure(arm: Arm) -> Mapping[int, list[Pair]]:
    """The pairs of each procedure."""
    found: dict[int, list[Pair]] = {}
    for drawn in arm.pairs:
        found.setdefault(drawn.about, []).append(drawn.pair)
    return found
