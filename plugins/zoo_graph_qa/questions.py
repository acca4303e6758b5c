"""From facts to pairs: wording, no question twice, no question with two answers, budgets.

Page: rules 6 to 8. The same text, seed and controls give the same pairs in any process.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zoo.errors import OptionError
from zoo.interfaces import QAPair

from .facts import KINDS, UNSTATED, Fact, facts
from .graph import Graph
from .templates import MOST, SHORT, WAYS

ALL_WAYS = tuple(range(MOST))
SHORT_AFTER = 4
"""For so many paraphrases a fact is asked for by a short form once more."""


@dataclass(frozen=True)
class Pair(QAPair):
    """A pair with its origin."""

    template: str = ""
    """Type and way of asking: ``howlong/2``; ``howlong/short`` for a form that names its step."""
    answer_kind: str = "span"
    """span, yes, no, number, or none where the text does not say."""
    asks: str = ""
    """For none: the type that the question looks like."""


@dataclass(frozen=True)
class Controls:
    """What is asked, and how often; checked when it is made."""

    kinds: tuple[str, ...] = KINDS
    """Types of questions."""
    paraphrases: int = 2
    """Ways to ask for a fact, at most."""
    short: bool = True
    """Also the short form of those who are at a step."""
    max_pairs: int = 0
    """At most so many pairs, facts in turn; 0: all."""
    negatives: float = 0.25
    """Largest share of pairs that the text does not answer."""
    ways: tuple[int, ...] = ALL_WAYS
    """Which ways of asking may be used."""

    @classmethod
    def of(cls, kinds: str | Sequence[str] | None = None, without: str | Sequence[str] = (),
           **numbers: object) -> Controls:  # fmt: skip
        """From a caller's keywords. Raises OptionError."""
        chosen = _listed(kinds) if kinds is not None else KINDS
        dropped = _listed(without)
        for name in (*chosen, *dropped):
            if name not in KINDS:
                raise OptionError(
                    f"there is no type of question {name!r}. Types: {', '.join(KINDS)}."
                )
        made = cls(tuple(k for k in KINDS if k in chosen and k not in dropped), **numbers)  # type: ignore[arg-type]
        if not made.kinds:
            raise OptionError("no type of question is left: leave out kinds= or without=.")
        if not 1 <= made.paraphrases <= len(ALL_WAYS):
            raise OptionError(f"paraphrases={made.paraphrases}: expected 1 to {len(ALL_WAYS)}.")
        if made.max_pairs < 0:
            raise OptionError(f"max_pairs={made.max_pairs}: expected 0 (all) or more.")
        if not 0 <= made.negatives <= 1:
            raise OptionError(f"negatives={made.negatives:g}: expected a share from 0 to 1.")
        return made


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(n.strip() for n in names.split(",")) if isinstance(names, str) else tuple(names)


class _Draft:
    """A fact with a way of asking; its question is written when it is needed.

    ``way``: -1 is the short form.
    """

    def __init__(self, fact: Fact, way: int, form: str) -> None:
        self.fact, self.way, self.form = fact, way, form
        self.key = " ".join(fact.answer.text.lower().split())
        self.question = self._written(0) or ""
        self.plain = plain_words(self.question)
        self.level = 0

    def clearer(self) -> bool:
        """Write the next clearer version of the question; False if there is none."""
        while self.level < 3:
            self.level += 1
            made = self._written(self.level)
            if made is not None and made != self.question:
                self.question, self.plain = made, plain_words(made)
                return True
        return False

    def _written(self, level: int) -> str | None:
        """0: the question alone; 1: with the action's place or tool; 2: with its step, or the line
        of its material; 3: with both step and action.
        """
        fact, slots = self.fact, self.fact.slots
        if self.way < 0:
            at = f"At step {(fact.step or 0) + 1}, "
            said = self.form.format(**slots)
            named = slots.get("vp") if level else None
            return f"{at}as I {named}, {said}" if named else at + said
        if level == 1:
            if slots.get("vpx", slots.get("vp")) == slots.get("vp"):
                return None
            return _tidy(self.form.format(**{**slots, "vp": slots["vpx"]}))
        plain = _tidy(self.form.format(**slots))
        if level == 0:
            return plain
        if fact.step is not None and fact.kind != "nth":
            said = plain if plain.startswith("I ") else plain[0].lower() + plain[1:]
            named = f" as I {slots['vp']}," if level == 3 and slots.get("vp") else ""
            return f"In step {fact.step + 1},{named} {said}"
        if fact.nodes and fact.nodes[0].startswith("m"):
            return f"{plain[:-1]} (line {int(fact.nodes[0][1:]) + 1} of the list)?"
        return None


def ask(graph: Graph, controls: Controls, seed: int = 0) -> tuple[list[Fact], list[Pair]]:
    """The facts that are asked about, and the pairs: each fact once, then each again, ..."""
    asked = [f for f in facts(graph) if f.kind in controls.kinds]
    drafts = [*_drafts(asked, controls, seed)]
    _clarify(drafts)
    pairs: list[Pair] = []
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    edges: set[int | None] = {None}
    nodes: set[str] = set()
    for draft in drafts:
        fact = draft.fact
        if draft.plain in seen and fact.edge in edges and nodes.issuperset(fact.nodes):
            continue  # the same question with the same answer, and nothing new in the graph
        while draft.plain in seen and draft.clearer():
            pass
        if draft.plain in seen:  # what cannot be told apart by words is numbered
            same, asked_before = draft.question.rstrip("?."), draft.plain
            while draft.plain in seen:
                numbers[asked_before] = numbers.get(asked_before, 1) + 1
                draft.question = f"{same} ({numbers[asked_before]})?"
                draft.plain = plain_words(draft.question)
        seen.add(draft.plain)
        edges.add(fact.edge)
        nodes.update(fact.nodes)
        pairs.append(_pair(fact, draft.question, draft.way))
    pairs = _capped(pairs, controls.negatives)
    return asked, pairs[: controls.max_pairs] if controls.max_pairs else pairs


def _clarify(drafts: Sequence[_Draft]) -> None:
    """Write questions that have several answers more clearly, until none has or none can be."""
    for _ in range(4):
        answers: dict[str, set[str]] = {}
        for draft in drafts:
            answers.setdefault(draft.plain, set()).add(draft.key)
        unclear = [d for d in drafts if len(answers[d.plain]) > 1]
        if not [d for d in unclear if d.clearer()]:
            break
    answers = {}
    for draft in drafts:  # what cannot be told apart by words is numbered
        known = answers.setdefault(draft.plain, set())
        if known and draft.key not in known:
            draft.question = f"{draft.question.rstrip('?.')} ({len(known) + 1})?"
            draft.plain = plain_words(draft.question)
        known.add(draft.key)


def _drafts(asked: Sequence[Fact], controls: Controls, seed: int) -> Iterator[_Draft]:
    """Round by round: the first question of every fact, then the second, ...; short forms last."""
    ways = controls.ways
    starts = [zlib.crc32(f"{seed} {f.kind} {f.nodes} {f.answer.text[:3]}".encode()) for f in asked]
    for turn in range(controls.paraphrases):
        for fact, start in zip(asked, starts, strict=True):
            forms = _forms(fact)
            usable = [w for w in ways if w < len(forms)] or [0]
            if turn < len(usable):
                way = usable[(start + turn) % len(usable)]
                yield _Draft(fact, way, forms[way])
    for turn in range(max(1, controls.paraphrases // SHORT_AFTER) if controls.short else 0):
        for fact, start in zip(asked, starts, strict=True):
            short = SHORT.get(fact.asks or fact.kind, ())
            if turn < len(short) and fact.step is not None:
                yield _Draft(fact, -1, short[(start + turn) % len(short)])


def _forms(fact: Fact) -> tuple[str, ...]:
    if "question" in fact.slots:
        return (fact.slots["question"].replace("{", "{{").replace("}", "}}"),)
    return WAYS[fact.asks or fact.kind]


def _tidy(question: str) -> str:
    if "the " in question:
        question = _TWICE.sub(r"\1", question)
    if question.endswith(" ?"):
        question = question[:-2] + "?"
    return question[:1].upper() + question[1:]


_TWICE = re.compile(r"\bthe (the|a|an|your|some|my)\b")


def plain_words(question: str) -> str:
    """What makes two questions the same."""
    return " ".join(re.findall(r"\w+", question.lower()))


def _pair(fact: Fact, question: str, way: int) -> Pair:
    place = fact.answer.place
    return Pair(
        question,
        fact.answer.text,
        fact.nodes,
        fact.kind,
        fact.edge,
        fact.step,
        None if place is None else place.start,
        None if place is None else place.end,
        f"{fact.asks or fact.kind}/{'short' if way < 0 else way}",
        fact.answer.kind,
        fact.asks,
    )


def _capped(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """At most this share of pairs without an answer; those that stay are spread evenly."""
    negative = [i for i, p in enumerate(pairs) if p.answer == UNSTATED]
    others = len(pairs) - len(negative)
    most = len(pairs) if share >= 1 else int(share * others / (1 - share))
    if len(negative) <= most:
        return [*pairs]
    kept = {negative[int(i * len(negative) / most)] for i in range(most)}
    dropped = {*negative} - kept
    return [p for i, p in enumerate(pairs) if i not in dropped]
