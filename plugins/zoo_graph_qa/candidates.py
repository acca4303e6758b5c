"""What can be an answer to a question about a procedure, and how a question relates to each.

Page: rules 9 and 10. A question is compared with the words of each candidate, of its action, its
step and the steps around it, each word weighted by how rare it is in the procedure.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .corpora import ROLES
from .facts import UNSTATED
from .graph import Graph, covering
from .quantities import alternates, unit
from .text import Part
from .words import content, tokenize

WORDS = 5120
"""Buckets of words and pairs of neighbouring words."""
KINDS = ("none", "yes", "no", "number", "material", "size", "unit", "step", *ROLES)
"""Kinds of candidates."""
_BITS = ("patient", "place", "goal", "source", "instrument", "duration", "until", "heat", "purpose",
         "manner")  # fmt: skip
BAGS = 6
FEATURES = BAGS + 1 + 1 + 6 + 3 + 1 + 1 + len(_BITS) + 10
"""Numbers for each pair of a question and a candidate."""
AT_STEP = re.compile(r"^\s*(?:at|in|on)\s+step\s+(\d+)\s*,?\s*", re.IGNORECASE)
NTH = re.compile(r"\bstep\s+(?:number\s+)?(\d+)\b", re.IGNORECASE)
UNIT = re.compile(r"\b(?:in|many|is that in)\s+([^\W\d_]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """A possible answer; ``place`` is None where it is not in the text."""

    kind: str
    text: str
    place: Part | None = None
    step: int | None = None
    node: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class Question:
    """A question as the reader sees it."""

    words: tuple[int, ...]
    """Buckets of its words and pairs of words."""
    content: frozenset[str]
    step: int | None
    """The step that the person is at."""
    nth: int | None
    """The step that it names."""
    halves: tuple[frozenset[str], frozenset[str]]
    """Content words before and after "before", "after" or "first ... then"."""
    turned: bool
    """Is it "after" that divides them?"""
    unit: str | None


def question(text: str, step: int | None = None) -> Question:
    """Read a question: its last sentence, without the step that it begins with."""
    said = _last_sentence(text)
    match = AT_STEP.match(said)
    if match:
        step, said = int(match[1]) - 1, said[match.end() :]
    tokens = [t.lower for t in tokenize(said)]
    words = [t if not t[0].isdigit() else "9" for t in tokens]
    pairs = [f"{a} {b}" for a, b in zip(["<", *words], [*words, ">"], strict=True)]
    named = NTH.search(said)
    middle = next(
        (i for i, t in enumerate(tokens) if i and t in ("before", "after", "then", "later")), -1
    )
    halves = (
        frozenset(content(" ".join(tokens[:middle] if middle > 0 else tokens))),
        frozenset(content(" ".join(tokens[middle + 1 :] if middle > 0 else []))),
    )
    return Question(
        tuple(zlib.crc32(w.encode()) % WORDS for w in (*words, *pairs)),
        frozenset(content(said)),
        step,
        int(named[1]) - 1 if named else None,
        halves,
        middle > 0 and tokens[middle] == "after",
        next((unit(f"1 {m[1]}") for m in UNIT.finditer(said) if unit(f"1 {m[1]}")), None),
    )


def _last_sentence(text: str) -> str:
    """The last sentence that asks something: people say other things first."""
    sentences = [s for s in re.findall(r"[^.!?…]+(?:[.](?=\d)[^.!?…]+)*[.!?…]*", text) if s.strip()]
    asking = [s for s in sentences if s.rstrip().endswith("?")]
    return (asking or sentences or [text])[-1].strip()


class Candidates:
    """All candidates of a graph, with the words that questions are compared with."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.items = [*_candidates(graph)]
        self._clean = graph.procedure.clean

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        return np.array([KINDS.index(c.kind) for c in self.items])

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(C,) begin and end in the text; -1 where there is none."""
        found = [(-1, -1) if c.place is None else (c.place.start, c.place.end) for c in self.items]
        table = np.array(found)
        return table[:, 0], table[:, 1]

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        words: dict[str, int] = {}
        for node in self.graph.nodes:
            for word in content(self._clean[node.start : node.end]):
                words.setdefault(word, len(words))
        return words

    def _row(self, words: frozenset[str] | Sequence[str]) -> NDArray[np.float32]:
        row = np.zeros(len(self._vocabulary) + 1, np.float32)
        for word in words:
            if word in self._vocabulary:
                row[self._vocabulary[word]] = 1
        return row

    @cached_property
    def _actions(self) -> tuple[dict[str, int], NDArray[np.float32], NDArray[np.float32]]:
        """Action -> row; its verb; all its words."""
        rows = {a.id: i for i, a in enumerate(self.graph.actions)}
        verbs, whole = [], []
        for action in self.graph.actions:
            verb = content(action.text)
            fillers = (self.graph.node[e.target] for _, e in self.graph.out[action.id]
                       if e.role in ROLES)  # fmt: skip
            verbs.append(self._row(verb))
            whole.append(self._row([*verb, *(w for n in fillers for w in content(n.text))]))
        shape = (0, len(self._vocabulary) + 1)
        return (
            rows,
            np.array(verbs, np.float32) if verbs else np.zeros(shape, np.float32),
            np.array(whole, np.float32) if whole else np.zeros(shape, np.float32),
        )

    @cached_property
    def _bags(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(BAGS, C, V) words of: the candidate, its action's verb, its action, its step, the steps
        before and after; and (V,) weights.
        """
        rows, verbs, whole = self._actions
        empty = self._row(())
        steps = [self._row(content(self._clean[s.start : s.end])) for s in self.graph.steps]
        by_step: dict[int, list[int]] = {}
        for action in self.graph.actions:
            by_step.setdefault(action.step or 0, []).append(rows[action.id])
        made = []
        for item in self.items:
            own = self._row(content(item.text)) if item.place else empty
            at = item.step
            if item.action is not None:
                verb, act = verbs[rows[item.action]], whole[rows[item.action]]
                act = np.clip(act - own, 0, 1)
            elif item.kind == "step" and at in by_step:
                verb, act = verbs[by_step[at]].max(0), whole[by_step[at]].max(0)
            else:
                verb = act = empty
            around = [
                steps[at + k] if at is not None and 0 <= at + k < len(steps) else empty
                for k in (0, -1, 1)
            ]
            made.append([own, verb, act, *around])
        count = np.sum(steps, axis=0) if steps else empty
        weight = np.log((1 + len(steps)) / (0.5 + count)).clip(0.1).astype(np.float32)
        return np.array(made, np.float32).transpose(1, 0, 2).copy(), weight

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.bool_]]]:
        """(C,) the step of each candidate or -99, its action's row or -1; unit -> who has it."""
        rows, _, _ = self._actions
        steps = np.array([-99 if c.step is None else c.step for c in self.items])
        actions = np.array([rows.get(c.action or "", -1) for c in self.items])
        units = [
            unit(c.text) if c.place is not None and c.kind != "step" else None for c in self.items
        ]
        return steps, actions, {u: np.array([x == u for x in units]) for u in {*units} if u}

    @cached_property
    def _roles(self) -> NDArray[np.float32]:
        """(A, roles) which roles each action has."""
        made = np.zeros((len(self.graph.actions) + 1, len(_BITS)), np.float32)
        for i, action in enumerate(self.graph.actions):
            roles = {e.role for _, e in self.graph.out[action.id]}
            made[i] = [role in roles for role in _BITS]
        return made

    def features(self, asked: Sequence[Question]) -> NDArray[np.float32]:
        """(Q, C, FEATURES) numbers."""
        bags, weight = self._bags
        _, verbs, whole = self._actions
        steps, owners, units = self._places
        there = steps >= 0
        last = max(len(self.graph.steps) - 1, 1)
        words = np.stack([self._row(q.content) for q in asked]) * weight
        known = np.array([sum(w in self._vocabulary for w in q.content) for q in asked])
        sizes = np.array([len(q.content) for q in asked])
        total = words.sum(1) + (sizes - known) + 1e-6
        made = np.zeros((len(asked), len(self.items), FEATURES), np.float32)
        made[:, :, :BAGS] = (bags @ words.T).transpose(2, 1, 0) / total[:, None, None]
        own = np.maximum(bags[0] @ weight, 1e-6)
        made[:, :, BAGS] = words @ bags[0].T / own
        fit = (words @ whole.T + 0.5 * (words @ verbs.T)) / total[:, None]  # (Q, A)
        places = np.array([a.step or 0 for a in self.graph.actions])
        for i, q in enumerate(asked):
            row = made[i]
            scores = fit[i] if q.step is None else fit[i] + 0.3 * (places == q.step)
            best = int(scores.argmax()) if len(scores) and scores.max() > 0 else -1
            at = BAGS + 1
            row[:, at] = (owners == best) & (best >= 0)
            at += 1
            if q.step is None:
                row[:, at] = 1
            else:
                gap = steps - q.step
                near = (gap == 0, gap == 1, gap == -1, gap > 1, gap < -1)
                row[:, at + 1 : at + 6] = np.stack(near, 1) & there[:, None]
            at += 6
            row[:, at] = steps == 0
            row[:, at + 1] = steps == len(self.graph.steps) - 1
            row[:, at + 2] = np.where(there, steps / last, 0)
            at += 3
            row[:, at] = there & (steps == (-1 if q.nth is None else q.nth))
            if q.unit in units:
                row[:, at + 1] = units[q.unit]
            at += 2
            row[:, at : at + len(_BITS)] = self._roles[best]
            at += len(_BITS)
            order, clear = self._order(q)
            said = words[i]
            row[:, at:] = [
                float(whole[best] @ said) / total[i] if best >= 0 else 0.0,
                float(best >= 0 and verbs[best] @ said > 0),
                float(best >= 0 and (said * (whole[best] == 0)).max() > 0),  # a word of elsewhere
                float(best >= 0 and self.graph.actions[best].negated),
                1 - known[i] / max(sizes[i], 1),
                order,
                clear,
                float(q.nth is not None),
                float(q.step is not None),
                min(sizes[i], 8) / 8,
            ]
        return made

    def _order(self, asked: Question) -> tuple[float, float]:
        """1 or -1: the first named action comes first, or not; and how clearly both are named."""
        _, verbs, whole = self._actions
        _, weight = self._bags
        if not len(whole) or not asked.halves[0] or not asked.halves[1]:
            return 0.0, 0.0
        found, sure = [], []
        for half in asked.halves:
            row = self._row(half) * weight
            fit = whole @ row + 0.5 * (verbs @ row)
            fit = fit - 0.02 * np.maximum(whole @ weight - row.sum(), 0)
            found.append(int(fit.argmax()))
            sure.append(float(whole[found[-1]] @ row) / max(float(row.sum()), 1e-6))
        sign = float(np.sign(found[1] - found[0])) * (-1 if asked.turned else 1)
        return sign, min(sure)


def _candidates(graph: Graph) -> list[Candidate]:
    """In a fixed order; each place in the text once for each kind."""
    text, clean = graph.procedure.text, graph.procedure.clean
    found = [
        Candidate("none", UNSTATED), Candidate("yes", "yes"), Candidate("no", "no"),
        Candidate("number", str(len(graph.steps))),
    ]  # fmt: skip
    taken: set[tuple[str, int, int]] = set()

    def add(kind: str, place: Part, **more: object) -> None:
        key = (kind, place.start, place.end)
        if key not in taken:
            taken.add(key)
            found.append(Candidate(kind, text[place.start : place.end], place, **more))  # type: ignore[arg-type]

    for key, parts in graph.materials.items():
        add("material", Part(graph.node[key].start, graph.node[key].end), node=key)
        if parts.size is not None:
            add("size", parts.size, node=key)
        for _, place in alternates(clean, parts.line.start, parts.line.end):
            add("unit", place, node=key)
    for node in graph.steps:
        add("step", Part(node.start, node.end), step=node.step, node=node.id)
    for action in graph.actions:
        patients = [n for _, n in graph.fillers(action.id, "patient")]
        while patients:
            group = covering(graph, patients)
            assert group is not None
            add("patient", group, step=action.step, node=patients[0].id, action=action.id)
            patients = [n for n in patients if n.start >= group.end]
        for role in ROLES[1:]:
            for _, node in graph.fillers(action.id, role):
                if node.kind != "action":
                    add(role, Part(node.start, node.end), step=action.step, node=node.id,
                        action=action.id)  # fmt: skip
                    for _, place in alternates(clean, node.start, node.end):
                        add("unit", place, step=action.step, node=node.id, action=action.id)
    return found
