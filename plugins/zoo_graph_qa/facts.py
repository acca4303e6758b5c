"""Everything that a graph can be asked: a fact is (part of the graph, type of question, answer).

Page: the table of rule 5. Every node is in a fact, and every edge has one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .corpora import ROLES
from .graph import Graph, Node, base_form, covering, phrase, with_preposition
from .quantities import alternates, unit
from .text import Part
from .words import content, kinds, lemma, participle

ORDER_WINDOW = 2
"""Actions apart, at most, of an order question: all pairs would be too many in a long text."""
TRIED = 50
"""Fillers of other steps that are looked at, at most, for a wrong one: long texts stay linear."""
UNSTATED = "not stated"
"""The answer of a question that the text does not answer."""

ASKED = {
    "place": "where", "goal": "whereto", "source": "wherefrom", "instrument": "tool",
    "duration": "howlong", "until": "until", "heat": "temp", "purpose": "why", "manner": "how",
    "shape": "how",
}  # fmt: skip
"""Role -> type of question."""
ABSENT = ("howlong", "temp", "why", "tool", "where")
"""Types asked of actions that lack the role, without an answer."""
SUBSTITUTES = (
    "honey", "olive oil", "yogurt", "cornstarch", "coconut milk", "glue", "tape", "a spoon",
    "a screwdriver", "white wine", "almond flour", "hot water",
)  # fmt: skip
KINDS = (
    "what", "do", "where", "whereto", "wherefrom", "tool", "howlong", "until", "temp", "why", "how",
    "amount", "after", "before", "first", "last", "count", "nth", "madefrom", "usedin", "order",
    "parallel", "polar", "none", "size", "unit", "ready", "subst", "need", "again", "during",
    "mention",
)  # fmt: skip
"""All types of questions."""


@dataclass(frozen=True)
class Answer:
    """``place`` is where it stands in the text; None for yes, no, numbers and ``UNSTATED``."""

    text: str
    place: Part | None = None

    @property
    def kind(self) -> str:
        if self.place is not None:
            return "span"
        return {"yes": "yes", "no": "no", UNSTATED: "none"}.get(self.text, "number")


@dataclass(frozen=True)
class Fact:
    """What a question asks, before it has words."""

    kind: str
    nodes: tuple[str, ...]
    answer: Answer
    edge: int | None = None
    step: int | None = None
    """The step that the question is about; for after, the one that is done."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """What the templates need."""
    asks: str = ""
    """For none: the type that the question looks like."""


YES, NO, NOTHING = Answer("yes"), Answer("no"), Answer(UNSTATED)


class _Facts:
    """The facts of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.text = graph.procedure.text
        self.lower = graph.procedure.clean.lower()
        self.step = {n.step: n for n in graph.steps}
        self.vp = {a.id: phrase(graph, a) for a in graph.actions}
        self.longer = {a.id: phrase(graph, a, longer=True) for a in graph.actions}
        self.commands = [a for a in graph.actions if not a.negated]
        self.at: dict[int | None, list[Node]] = {}
        for action in self.commands:
            self.at.setdefault(action.step, []).append(action)

    def span(self, place: Node | Part) -> Answer:
        return Answer(self.text[place.start : place.end], Part(place.start, place.end))

    def of_step(self, step: int | None) -> Answer:
        return self.span(self.step[step])

    def slots(self, action: Node, **more: str) -> dict[str, str]:
        """Words for an action."""
        verb = base_form(action.text)
        obj = self.vp[action.id].removeprefix(verb).strip().replace("them", "these") or "it"
        return {
            "vp": self.vp[action.id],
            "vpx": self.longer[action.id],
            "verb": verb,
            "done": participle(verb),
            "obj": uncapital(obj),
            **_number(obj),
            **more,
        }

    def said(self, node: Node) -> str:
        words = self.graph.procedure.clean[node.start : node.end].split()
        return uncapital(" ".join(words))

    # --- the types, in the order of the page ---

    def roles(self) -> Iterator[Fact]:
        """What fills a role, and what is done with an object."""
        for action in self.graph.actions:
            if action.negated:
                yield from self._forbidden(action)
                continue
            yield from self._patients(action)
            for role, kind in ASKED.items():
                for number, node in self.graph.fillers(action.id, role):
                    slots = self.slots(action, filler=self.said(node))
                    about = (action.id, node.id)
                    yield Fact(kind, about, self.span(node), number, action.step, slots)
                    if role in ("until", "duration") and kind != "ready":
                        yield Fact("ready", about, self.span(node), number, action.step, slots)
                    named = [self.said(n) for _, n in self.graph.fillers(action.id, "patient")]
                    thing = named[0] if named else f"step {(action.step or 0) + 1}"
                    slots |= {"thing": thing, **_number(thing)}
                    for name, place in self._in_units(action, node):
                        yield Fact(
                            "unit",
                            about,
                            self.span(place),
                            number,
                            action.step,
                            slots | {"unit": name},
                        )
            for number, node in self.graph.fillers(action.id, "simultaneous"):
                slots = self.slots(action)
                yield Fact(
                    "during",
                    (action.id, node.id),
                    self.of_step(action.step),
                    number,
                    action.step,
                    slots,
                )

    def _forbidden(self, action: Node) -> Iterator[Fact]:
        """That it is not to be done, alone and with each of its fillers: nothing else is asked."""
        said = f"Should I {self.vp[action.id]}"
        patients = self.graph.fillers(action.id, "patient")
        names = (action.id, *(node.id for _, node in patients))
        first = patients[0][0] if patients else None
        slots = self.slots(action, filler="", question=f"{said}?")
        yield Fact("polar", names, NO, first, action.step, slots)
        others = [(i, self.graph.node[e.target]) for i, e in self.graph.out[action.id]
                  if e.role in ROLES and e.role != "patient"]  # fmt: skip
        for number, node in [*patients[1:], *others]:
            more = (
                self.said(node)
                if node in dict(patients).values()
                else with_preposition(self.graph, node)
            )
            slots = self.slots(action, filler="", question=f"{said} {more}?")
            yield Fact("polar", (action.id, node.id), NO, number, action.step, slots)

    def _patients(self, action: Node) -> Iterator[Fact]:
        patients = self.graph.fillers(action.id, "patient")
        rest = [*patients]
        while rest:
            group = covering(self.graph, [n for _, n in rest])
            inside = [(i, n) for i, n in rest if group and n.end <= group.end]
            assert group is not None
            names = tuple(n.id for _, n in inside)
            yield Fact(
                "what",
                (action.id, *names),
                self.span(group),
                inside[0][0],
                action.step,
                self.slots(action),
            )
            rest = rest[len(inside) :]
        for number, node in patients:
            yield Fact(
                "do",
                (action.id, node.id, f"s{action.step}"),
                self.of_step(action.step),
                number,
                action.step,
                self.slots(action, obj=self.said(node), **_number(node.text)),
            )

    def _in_units(self, action: Node, node: Node) -> Iterator[tuple[str, Part]]:
        """Each alternative of a quantity: within the node, or in another node of the role."""
        inside = alternates(self.graph.procedure.clean, node.start, node.end)
        if inside:
            yield from inside
            return
        mine = unit(node.text)
        others = [n for _, n in self.graph.fillers(action.id, "heat") if n.id != node.id]
        if (
            mine
            and node.kind == "temperature"
            and any(unit(n.text) not in (None, mine) for n in others)
        ):
            yield mine, Part(node.start, node.end)

    def materials(self) -> Iterator[Fact]:
        """Amounts, sizes, units, uses, substitutes."""
        clean = self.graph.procedure.clean
        keys = [*self.graph.materials]
        for i, key in enumerate(keys):
            found, node = self.graph.materials[key], self.graph.node[key]
            name = uncapital(" ".join(clean[found.name.start : found.name.end].split()))
            slots = {"name": name, "thing": name, **_number(name)}
            about = (key,)
            if found.amount is not None:
                yield Fact(
                    "amount",
                    about,
                    self.span(node),
                    None,
                    None,
                    slots | {"many": _many(name, clean[found.amount.start : found.amount.end])},
                )
            else:
                yield Fact("need", about, YES, None, None, slots)
            if found.size is not None:
                yield Fact("size", about, self.span(found.size), None, None, slots)
            for unit_name, place in alternates(clean, found.line.start, found.line.end):
                yield Fact("unit", about, self.span(place), None, None, slots | {"unit": unit_name})
            other = SUBSTITUTES[(i + len(name)) % len(SUBSTITUTES)]
            if other.split()[-1] not in self.lower:
                yield Fact("subst", about, NOTHING, None, None, slots | {"other": other})
        for number, edge in enumerate(self.graph.edges):
            if edge.role == "material":
                found = self.graph.materials[edge.source]
                action = self.graph.node[edge.target]
                name = uncapital(" ".join(clean[found.name.start : found.name.end].split()))
                yield Fact(
                    "usedin",
                    (edge.source, edge.target, f"s{action.step}"),
                    self.of_step(action.step),
                    number,
                    action.step,
                    self.slots(action, name=name, obj=name, **_number(name)),
                )

    def flow(self) -> Iterator[Fact]:
        """Order, and what is made from what."""
        steps = self.graph.steps
        for one, following in itertools.pairwise(steps):
            about = (one.id, following.id)
            first = next(iter(self.at.get(one.step, ())), None)
            then = next(iter(self.at.get(following.step, ())), None)
            last = self.at.get(one.step, [])[-1:]
            if last:
                yield Fact(
                    "after",
                    (*about, last[0].id),
                    self.span(following),
                    self._next(last[0], then),
                    one.step,
                    self.slots(last[0]),
                )
            elif first is None:
                named = f"step {(one.step or 0) + 1}"
                yield Fact(
                    "after",
                    about,
                    self.span(following),
                    None,
                    one.step,
                    {"vp": f"do {named}", "obj": named, "done": "done", **_number(named)},
                )
            if then is not None:
                yield Fact(
                    "before",
                    (*about, then.id),
                    self.span(one),
                    None,
                    following.step,
                    self.slots(then),
                )
        yield Fact("first", (steps[0].id,), self.span(steps[0]), None, None)
        yield Fact("last", (steps[-1].id,), self.span(steps[-1]), None, None)
        yield Fact("count", (), Answer(str(len(steps))), None, None)
        for node in steps:
            assert node.step is not None
            yield Fact(
                "nth", (node.id,), self.span(node), None, node.step, {"nth": str(node.step + 1)}
            )
        for number, edge in enumerate(self.graph.edges):
            a, b = self.graph.node[edge.source], self.graph.node[edge.target]
            flows = edge.role in ("uses", "again", "next")
            if flows and (a.negated or b.negated):  # one of them is not to be done
                slots = {"vp": self.vp[a.id], "then": self.vp[b.id]}
                yield Fact("order", (a.id, b.id), NO, number, a.step, slots)
            elif edge.role == "uses":
                slots = self.slots(a, then=self.vp[b.id])
                yield Fact(
                    "madefrom",
                    (a.id, b.id, f"s{b.step}"),
                    self.of_step(b.step),
                    number,
                    a.step,
                    slots,
                )
            elif edge.role == "again":
                tool = self._shared(a, b)
                yield Fact(
                    "again",
                    (a.id, b.id, f"s{b.step}"),
                    self.of_step(b.step),
                    number,
                    a.step,
                    self.slots(a, tool=tool),
                )
            elif edge.role == "next" and a.step == b.step:
                yield Fact(
                    "order",
                    (a.id, b.id),
                    YES,
                    number,
                    a.step,
                    {"vp": self.vp[a.id], "then": self.vp[b.id]},
                )

    def _next(self, a: Node, b: Node | None) -> int | None:
        return next(
            (
                i
                for i, e in self.graph.out[a.id]
                if e.role == "next" and b is not None and e.target == b.id
            ),
            None,
        )

    def _shared(self, a: Node, b: Node) -> str:
        from .flow import head

        clean = self.graph.procedure.clean
        tools = {head(clean[n.start : n.end]): n for n in self._tools(a)}
        for node in self._tools(b):
            if head(clean[node.start : node.end]) in tools:
                return self.said(tools[head(clean[node.start : node.end])])
        return "it"

    def _tools(self, action: Node) -> list[Node]:
        found = (self.graph.node[e.target] for _, e in self.graph.out[action.id] if e.role in ROLES)
        return [n for n in found if n.kind == "tool"]

    def order(self) -> Iterator[Fact]:
        """Yes or no: is one action before another? Near ones only."""
        for i, a in enumerate(self.commands):
            for j in range(i + 1, min(i + 1 + ORDER_WINDOW, len(self.commands))):
                b = self.commands[j]
                if a.step == b.step or self.vp[a.id] == self.vp[b.id]:
                    continue
                edge = self._next(a, b)
                forward = {"vp": self.vp[a.id], "then": self.vp[b.id]}
                back = {"vp": self.vp[b.id], "then": self.vp[a.id]}
                yield Fact("order", (a.id, b.id), YES, edge, a.step, forward)
                yield Fact("order", (a.id, b.id), NO, edge, a.step, back)

    def parallel(self) -> Iterator[Fact]:
        """What can be done while an action goes on: the next step that does not need it."""
        needs = {e.target for e in self.graph.edges if e.role in ("uses", "again")}
        materials: dict[str, set[str]] = {}
        for edge in self.graph.edges:
            if edge.role == "material":
                materials.setdefault(edge.target, set()).add(edge.source)
        commands = self.commands
        for i, a in enumerate(commands):
            if not any(_long(n.text) for _, n in self.graph.fillers(a.id, "duration")):
                continue
            for b in commands[i + 1 : i + 5]:
                shared = materials.get(a.id, set()) & materials.get(b.id, set())
                if b.step != a.step and b.id not in needs and not shared:
                    yield Fact(
                        "parallel",
                        (a.id, b.id, f"s{b.step}"),
                        self.of_step(b.step),
                        None,
                        a.step,
                        self.slots(a),
                    )
                    break

    def polar(self) -> Iterator[Fact]:
        """Yes or no: does an action have this filler? The wrong one is from another step."""
        by_role: dict[str, dict[str, Node]] = {}  # the first of each text
        for edge in self.graph.edges:
            if edge.role in ("place", "goal", "instrument", "duration", "heat"):
                node = self.graph.node[edge.target]
                by_role.setdefault(edge.role, {}).setdefault(node.text.lower(), node)
        others = {
            role: [(text, node, {*content(text)}) for text, node in [*nodes.items()][:TRIED]]
            for role, nodes in by_role.items()
        }
        for action in self.commands:
            for role, candidates in others.items():
                for number, node in self.graph.fillers(action.id, role)[:1]:
                    yield Fact(
                        "polar",
                        (action.id, node.id),
                        YES,
                        number,
                        action.step,
                        self._polar(action, node),
                    )
                    there = self.graph.procedure.clean[
                        self.step[action.step].start : self.step[action.step].end
                    ].lower()
                    own = {*content(node.text)}
                    wrong = next(
                        (
                            other
                            for text, other, words in candidates
                            if other.step != action.step and text not in there and not words & own
                        ),
                        None,
                    )
                    if wrong is not None:
                        yield Fact(
                            "polar",
                            (action.id, node.id),
                            NO,
                            number,
                            action.step,
                            self._polar(action, wrong),
                        )
            if action.optional:
                yield Fact(
                    "polar",
                    (action.id,),
                    NO,
                    None,
                    action.step,
                    self.slots(action, filler="", question=f"Do I have to {self.vp[action.id]}?"),
                )

    def _polar(self, action: Node, filler: Node) -> dict[str, str]:
        return self.slots(action, filler=with_preposition(self.graph, filler))

    def absent(self) -> Iterator[Fact]:
        """Questions whose answer the text does not have."""
        kind_roles: dict[str, tuple[str, ...]] = {}
        for role, kind in ASKED.items():
            kind_roles[kind] = (*kind_roles.get(kind, ()), role)
        kind_roles["howlong"] = ("duration", "until")
        kind_roles["where"] = ("place", "goal")
        for action in self.commands:
            for kind in ABSENT:
                if not self.graph.fillers(action.id, *kind_roles[kind]):
                    yield Fact(
                        "none", (action.id,), NOTHING, None, action.step, self.slots(action), kind
                    )

    def rest(self, covered: set[str]) -> Iterator[Fact]:
        """What no other fact is about: spans and actions on their own."""
        for node in self.graph.nodes:
            if node.id not in covered:
                yield Fact(
                    "mention",
                    (node.id, f"s{node.step}"),
                    self.of_step(node.step),
                    None,
                    node.step,
                    {"mention": self.said(node)},
                )


def uncapital(text: str) -> str:
    """Without the capital of a sentence's beginning."""
    first = text.partition(" ")[0]
    if (
        first[:1].isupper()
        and (first in ("A", "I") or first[1:].islower())
        and kinds(first.lower())
    ):
        return text[0].lower() + text[1:]
    return text[0].lower() + text[1:] if first in ("The", "A", "An", "Your", "Some") else text


def _long(duration: str) -> bool:
    """Is it time enough for something else: five minutes or more?"""
    numbers = [int(n) for n in re.findall(r"\d+", duration)]
    if re.search(r"\b(hours?|days?|weeks?|months?|night|overnight)\b", duration):
        return True
    return bool(numbers) and "min" in duration and max(numbers) >= 5


def _number(noun: str) -> dict[str, str]:
    """Verbs in the number of a noun phrase."""
    plural = _plural(noun) or " and " in noun or noun in ("these", "those")
    return {"is": "are", "does": "do"} if plural else {"is": "is", "does": "does"}


def _plural(name: str) -> bool:
    words = [w for w in name.lower().split() if w.isalpha()]
    return bool(words) and lemma(words[-1]) != words[-1] and words[-1].endswith("s")


def _many(name: str, amount: str) -> str:
    """many or much."""
    return "many" if _plural(name) and re.fullmatch(r"[\d\s¼½¾⅐-⅞/.,⁄–-]+|\w+", amount) else "much"


def facts(graph: Graph) -> list[Fact]:
    """All facts of a graph, the most informative types first; the same order every time."""
    made = _Facts(graph)
    found = [
        fact
        for kind in (
            made.roles,
            made.materials,
            made.flow,
            made.order,
            made.parallel,
            made.polar,
            made.absent,
        )
        for fact in kind()
    ]
    covered = {node for fact in found for node in fact.nodes}
    return [*found, *made.rest(covered)]
