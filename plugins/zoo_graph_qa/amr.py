"""Abstract meaning representations: from a model's words to the spans and roles of a sentence.

AMRBART writes a graph depth first; a node that is met again is its pointer alone::

    ( <pointer:0> bake-01 :mode imperative :ARG1 ( <pointer:1> cake ) :duration ( <pointer:2>
    temporal-quantity :quant 45 :unit ( <pointer:3> minute ) ) )

What a model writes may be broken anywhere: the rest is read. Page: rule 11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .corpora import Span
from .roles import preposition
from .words import Token, lemma, tokenize, word_class

_TOKEN = re.compile(r'<lit>.*?</lit>|"[^"]*"|<pointer:\d+>|[()]|[^\s()"<]+|.', re.DOTALL)
_FRAME = re.compile(r"-\d\d$")
_JOINING = ("and", "or", "multi-sentence", "contrast-01", "have-condition-91")
_ROLES = {
    ":ARG1": "patient", ":location": "place", ":destination": "goal", ":source": "source",
    ":instrument": "instrument", ":duration": "duration", ":purpose": "purpose",
    ":manner": "manner", ":time": "until",
}  # fmt: skip
_BY_PREPOSITION = {
    "in": "place", "on": "place", "over": "place", "at": "place", "into": "goal", "onto": "goal",
    "to": "goal", "with": "instrument", "using": "instrument", "from": "source", "off": "source",
    "for": "purpose",
}  # fmt: skip
"""What a numbered argument other than :ARG1 is."""
_KINDS = {
    "patient": "object", "duration": "duration", "heat": "temperature", "until": "until",
    "purpose": "purpose", "manner": "other",
}  # fmt: skip
"""Role -> kind of span; others are tools."""


@dataclass
class Node:
    """A concept such as ``bake-01``, or a literal such as ``45``, with (role, node) in order."""

    concept: str
    out: list[tuple[str, Node]] = field(default_factory=list)

    @property
    def frame(self) -> bool:
        """Is it an event?"""
        return bool(_FRAME.search(self.concept))

    @property
    def word(self) -> str:
        return _FRAME.sub("", self.concept).lower()

    def get(self, *roles: str) -> list[Node]:
        return [node for role, node in self.out if role in roles]


def read(written: str) -> Node | None:
    """The root of a graph in AMRBART's words; None if there is none. Never raises."""
    known: dict[str, Node] = {}
    stack: list[Node] = []
    root: Node | None = None
    role, pointer, opened = ":op1", "", False
    for match in _TOKEN.finditer(written):
        word = match[0].strip()
        if word.startswith("<lit>"):
            word = f'"{word[5:-6].strip()}"'
        if not word or (word.startswith("<") and not word.startswith("<pointer")):
            continue
        if word == "(":
            opened, pointer = True, ""
        elif word == ")":
            opened = False
            stack = stack[:-1]
            if root is not None and not stack:
                break
        elif word.startswith("<pointer"):
            pointer = word
            if not opened and stack and word in known:
                stack[-1].out.append((role, known[word]))
        elif word.startswith(":") and len(word) > 1:
            role, opened = word, False
        elif opened:  # the concept of a new node
            node = Node(word)
            known.setdefault(pointer, node)
            if stack:
                stack[-1].out.append((role, node))
            root = root or node
            stack.append(node)
            opened = False
        elif stack:
            stack[-1].out.append((role, Node(word.strip('"'))))
    return root


def actions(root: Node) -> list[Node]:
    """The events that the sentence asks for: joined ones each for itself."""
    found: list[Node] = []
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.word in _JOINING or node.concept in _JOINING:
            waiting = [n for role, n in node.out if re.match(r":(op|snt|ARG)\d", role)] + waiting
        elif node.frame:
            found.append(node)
    return found


class Aligned:
    """A sentence whose graph's concepts are tied to its words, each word to one concept."""

    def __init__(self, clean: str, start: int, end: int, root: Node) -> None:
        self._clean = clean
        self._tokens = tokenize(clean, start, end)
        self._place: dict[int, int] = {}
        self._order = {id(n): i for i, n in enumerate(_walk(root))}
        free = {i: (t.lower, lemma(t.lower)) for i, t in enumerate(self._tokens)}
        for node in _walk(root):
            near = min((self._place[id(n)] for n in _walk(node) if id(n) in self._place), default=0)
            for part in dict.fromkeys((node.word, *node.word.split("-"))):
                hits = [i for i, words in free.items() if part in words]
                if hits:
                    self._place[id(node)] = best = min(hits, key=lambda i: (i < near, i))
                    del free[best]
                    break

    def _below(self, node: Node) -> Iterator[Node]:
        """A node and what is first met below it: what was met before belongs elsewhere."""
        first = self._order[id(node)]
        return (n for n in _walk(node) if self._order[id(n)] >= first)

    def at(self, node: Node) -> Token | None:
        """The word of a concept alone."""
        place = self._place.get(id(node))
        return None if place is None else self._tokens[place]

    def span(self, node: Node, kind: str) -> Span | None:
        """The stretch of the words of a node and of all below it."""
        places = [self._place[id(n)] for n in self._below(node) if id(n) in self._place]
        if not places:
            return None
        first, last = min(places), max(places)
        while first and word_class(self._tokens[first - 1].lower) in ("det", "number"):
            first -= 1
        while last + 1 < len(self._tokens) and self._is_unit(last + 1, kind):
            last += 1
        return Span(kind, self._tokens[first].start, self._tokens[last].end)

    def _is_unit(self, place: int, kind: str) -> bool:
        word = self._tokens[place].lower
        units = ("unit", "time") if kind != "temperature" else ("unit", "time", "degree")
        return word_class(word) in units or (kind == "temperature" and word in ("°", "c", "f"))


def _walk(node: Node) -> Iterator[Node]:
    """A node and those below it, each once."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [n for _, n in reversed(one.out)]


def roles(
    clean: str, start: int, end: int, root: Node
) -> tuple[list[Span], list[tuple[int, int, str, float]]]:
    """The spans of a sentence without overlaps, and (action, span, role, 1.0)."""
    aligned = Aligned(clean, start, end, root)
    spans: list[Span] = []
    arcs: list[tuple[int, int, str, float]] = []
    acting = [(node, token) for node in actions(root) if (token := aligned.at(node)) is not None]
    spans += [Span("action", token.start, token.end) for _, token in acting]
    for head, (action, _) in enumerate(acting):
        for role, filler in action.out:
            for part in _parts(filler):
                found = _filler(clean, aligned, role, part)
                if found is None:
                    continue
                name, span = found
                if any(span.start < s.end and s.start < span.end for s in spans):
                    continue
                arcs.append((head, len(spans), name, 1.0))
                spans.append(span)
    return spans, arcs


def _parts(filler: Node) -> Sequence[Node]:
    """What a list joins."""
    if filler.concept in ("and", "or"):
        return [n for role, n in filler.out if role.startswith(":op")]
    return [filler]


def _filler(clean: str, aligned: Aligned, role: str, node: Node) -> tuple[str, Span] | None:
    name = _ROLES.get(role)
    if node.concept == "temperature-quantity":
        name = "heat"
    elif node.concept == "temporal-quantity":
        name = "duration"
    elif name == "until" and node.concept != "until":
        return None  # when, not until when
    if name is None and re.fullmatch(r":ARG[2-9]", role):
        whole = aligned.span(node, "tool")
        name = None if whole is None else _BY_PREPOSITION.get(preposition(clean, whole))
    if name is None:
        return None
    span = aligned.span(node, _KINDS.get(name, "tool"))
    return None if span is None else (name, span)
