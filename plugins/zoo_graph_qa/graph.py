"""The procedure graph: nodes with places in the text, edges for roles and for the flow.

Page: rules 3 and 4, eqs. 3 to 5. Edges lead forward (an action to its fillers, a material or an
earlier action to the action that uses it), so the graph has no cycle, and the order of ``nodes`` is
topological.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .corpora import Span
from .flow import describe, head
from .quantities import Material
from .roles import preposition
from .text import Part, Procedure
from .words import PRONOUNS, command, content, tokenize

NO = r"(?:not|never|avoid|without|don['’]t)"
NEGATION = re.compile(rf"\b{NO}\s+(?:let\s+(?:\w+\s+){{1,2}}|\w+\s+)?$", re.IGNORECASE)
"""Before a verb; ``NEGATED``: in its own words."""
NEGATED = re.compile(rf"(?:do\s+)?{NO}\s+", re.IGNORECASE)
OPTIONAL = re.compile(
    r"\b(?:if desired|if you like|if you wish|as desired|optionally)\b|\(optional\)"
    r"|^\W*optional\b", re.IGNORECASE,
)  # fmt: skip
BREAK = re.compile(r"[.!?;](?:\s|$)")


@dataclass(frozen=True)
class Node:
    """A part of the procedure: ``text == procedure.text[start:end]``."""

    id: str
    kind: str
    """step, material, action, object, tool, duration, temperature, until, purpose or other."""
    text: str
    start: int
    end: int
    step: int | None
    negated: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Edge:
    """``role``: one of ``corpora.ROLES``, or of the flow: next, uses, material, again."""

    source: str
    target: str
    role: str
    score: float = 1.0


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and edges."""

    procedure: Procedure
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    materials: Mapping[str, Material] = field(default_factory=dict)

    @cached_property
    def node(self) -> dict[str, Node]:
        """Id -> node."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def actions(self) -> tuple[Node, ...]:
        """In the order of the text."""
        return tuple(n for n in self.nodes if n.kind == "action")

    @cached_property
    def steps(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.kind == "step")

    @cached_property
    def out(self) -> dict[str, list[tuple[int, Edge]]]:
        """Node -> its edges to others, with their numbers."""
        found: dict[str, list[tuple[int, Edge]]] = {n.id: [] for n in self.nodes}
        for i, edge in enumerate(self.edges):
            found[edge.source].append((i, edge))
        return found

    def fillers(self, action: str, *roles: str) -> list[tuple[int, Node]]:
        """The nodes that fill the roles of an action, in the order of the text."""
        found = [(i, self.node[e.target]) for i, e in self.out[action] if e.role in roles]
        return sorted(found, key=lambda pair: pair[1].start)

    @property
    def silent(self) -> list[Node]:
        """The steps in which no action was found."""
        acted = {action.step for action in self.actions}
        return [node for node in self.steps if node.step not in acted]

    def plain(self) -> dict[str, Any]:
        """JSON-like, as ``QASet.graph``."""
        nodes = []
        for n in self.nodes:
            row = {"id": n.id, "text": n.text, "kind": n.kind, "start": n.start, "end": n.end,
                   "step": n.step}  # fmt: skip
            row |= {name: True for name in ("negated", "optional") if getattr(n, name)}
            nodes.append(row)
        edges = [
            {"source": e.source, "target": e.target, "role": e.role, "score": round(e.score, 4)}
            for e in self.edges
        ]
        skipped = [
            {"start": p.start, "end": p.end, "text": self.procedure.of(p)}
            for p in self.procedure.skipped
        ]
        silent = [n.step for n in self.silent]
        return {"nodes": nodes, "edges": edges, "skipped": skipped, "steps_without_action": silent}


def build(
    procedure: Procedure,
    steps: Sequence[Sequence[Span]],
    roles: Sequence[Sequence[tuple[int, int, str, float]]],
    producers: Sequence[Sequence[tuple[int, float]]],
    materials: Sequence[Material],
) -> Graph:
    """Put the parts together.

    ``steps``: the spans of each step; ``roles``: of each step (action, span, role, probability),
    indices into its spans; ``producers``: for each action, in the order of the text, the earlier
    ones whose product it uses.
    """
    text, clean = procedure.text, procedure.clean
    nodes: list[Node] = []
    edges: list[Edge] = []
    parts: dict[str, Material] = {}
    for i, found in enumerate(materials):
        place = found.line
        nodes.append(
            Node(f"m{i}", "material", text[place.start : place.end], place.start, place.end, None)
        )
        parts[f"m{i}"] = found
    actions: list[Node] = []
    by_step: list[list[Node]] = []
    for k, (place, spans) in enumerate(zip(procedure.steps, steps, strict=True)):
        nodes.append(
            Node(f"s{k}", "step", text[place.start : place.end], place.start, place.end, k)
        )
        row = []
        for j, span in enumerate(spans):
            before = clean[max(place.start, span.start - 24) : span.start]
            acts = span.kind == "action"
            said = clean[span.start : span.end]
            row.append(
                Node(
                    f"s{k}.{j}",
                    span.kind,
                    text[span.start : span.end],
                    span.start,
                    span.end,
                    k,
                    acts and bool(NEGATION.search(before) or NEGATED.match(said)),
                    acts and bool(OPTIONAL.search(_clause(clean, place, span, spans))),
                )
            )
        by_step.append(row)
        for node in sorted(row, key=lambda n: (n.kind != "action", n.start)):
            nodes.append(node)
        actions += [n for n in row if n.kind == "action"]
    for row, arcs in zip(by_step, roles, strict=True):
        for at, tail, role, score in arcs:
            edges.append(Edge(row[at].id, row[tail].id, role, score))
    edges += [Edge(a.id, b.id, "next") for a, b in itertools.pairwise(actions)]
    for i, row_of in enumerate(producers):
        edges += [Edge(actions[j].id, actions[i].id, "uses", p) for j, p in row_of]
    pairs = [[(at, tail) for at, tail, _, _ in arcs] for arcs in roles]
    edges += _materials(procedure, nodes, edges, parts)
    edges += _again(actions, clean, steps, pairs)
    return Graph(procedure, tuple(nodes), tuple(edges), parts)


def _clause(clean: str, place: Part, action: Span, spans: Sequence[Span]) -> str:
    """The words around an action: to the neighbouring actions, within its sentence."""
    others = [s for s in spans if s.kind == "action" and s is not action]
    start = max([place.start, *(s.end for s in others if s.end <= action.start)])
    end = min([place.end, *(s.start for s in others if s.start >= action.end)])
    before = [m.end() for m in BREAK.finditer(clean, start, action.start)]
    after = BREAK.search(clean, action.end, end)
    return clean[max([start, *before]) : after.start() if after else end]


def _materials(
    procedure: Procedure,
    nodes: Sequence[Node],
    edges: Sequence[Edge],
    parts: Mapping[str, Material],
) -> list[Edge]:
    """A material and the actions with an object or tool that names it."""
    owner = {e.target: e.source for e in edges}
    names = {}
    for key, found in parts.items():
        text = procedure.clean[found.name.start : found.name.end]
        names[key] = (head(text), frozenset(content(text)))
    made: dict[tuple[str, str], Edge] = {}
    for node in nodes:
        if node.kind not in ("object", "tool") or node.id not in owner:
            continue
        words = frozenset(content(procedure.clean[node.start : node.end]))
        last = head(procedure.clean[node.start : node.end])
        best = max(
            ((len(words & all_words) / len(words | all_words), key)
             for key, (noun, all_words) in names.items()
             if noun in words or last in all_words),
            default=None, key=lambda pair: pair[0],
        )  # fmt: skip
        if best is not None and best[0] > 0:
            edge = Edge(best[1], owner[node.id], "material", round(best[0], 4))
            made.setdefault((edge.source, edge.target), edge)
    return list(made.values())


def _again(
    actions: Sequence[Node], clean: str, steps: Sequence[Sequence[Span]],
    pairs: Sequence[Sequence[tuple[int, int]]],
) -> list[Edge]:  # fmt: skip
    """An action and the next one with the same tool, if it is in another step."""
    last: dict[str, Node] = {}
    made = []
    for node, about in zip(actions, describe(clean, steps, pairs), strict=True):
        for tool in dict.fromkeys(about.tools):
            if tool in PRONOUNS:
                continue
            if tool in last and last[tool].step != node.step:
                made.append(Edge(last[tool].id, node.id, "again"))
            last[tool] = node
    return made


def base_form(text: str) -> str:
    """An action's words as a command, without a "not": ``stirring in`` -> ``stir in``."""
    first, gap, rest = NEGATED.sub("", text, count=1).partition(" ")
    return command(first.lower()) + gap + rest


def phrase(graph: Graph, action: Node, *, longer: bool = False) -> str:
    """The action with its object, for a question: ``bake the cake``; ``it`` if nothing is named.

    ``longer``: with its place, goal or tool too.
    """
    verb = base_form(action.text)
    objects = [n for _, n in graph.fillers(action.id, "patient")]
    group = covering(graph, objects)
    said = graph.procedure.clean[group.start : group.end] if group else "it"
    more = ""
    if longer:
        for _, node in graph.fillers(action.id, "place", "goal", "source", "instrument"):
            more += " " + with_preposition(graph, node)
            break
    return " ".join(f"{verb} {said}{more}".split())


def covering(graph: Graph, nodes: Sequence[Node]) -> Part | None:
    """The stretch from the first to the last of them, if nothing but a list lies between."""
    if not nodes:
        return None
    start, end = nodes[0].start, nodes[0].end
    for node in nodes[1:]:
        between = graph.procedure.clean[end : node.start]
        if any(
            t.lower not in (",", "and", "or", "&", "the", "a", "plus", ";")
            for t in tokenize(between)
        ):
            break
        end = node.end
    return Part(start, end)


def with_preposition(graph: Graph, node: Node) -> str:
    """A filler with the preposition before it."""
    prep = preposition(graph.procedure.clean, Span(node.kind, node.start, node.end))
    said = " ".join(graph.procedure.clean[node.start : node.end].split())
    return said if not prep or said.lower().startswith(prep) else f"{prep} {said}"
