"""Annotated procedures: CookDial's graphs and dialogues, RISeC's links, recipes without labels.

CookDial (Jiang et al., MIT) annotates each instruction of 260 recipes as an extended AMR; RISeC
(the same recipes, MIT) has links from an action to the one whose product it uses.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import InputError

from .text import Part, Procedure

TYPES = (
    "action", "object", "tool", "duration", "temperature", "until", "purpose", "other",
)  # fmt: skip
"""Kinds of spans that are tagged, in the order of the tags."""
_TYPE = dict(
    zip(
        "AC FOOD TOOL DUR TEMPERATURE CONDITION_CLAUSE PURPOSE_CLAUSE OTHER".split(),
        TYPES, strict=True,
    )
)  # fmt: skip
ROLES = (
    "patient", "place", "goal", "source", "instrument", "duration", "until", "heat", "purpose",
    "manner", "shape", "simultaneous",
)  # fmt: skip
"""What a span is to its action."""
_ROLE = {
    "ppt": "patient", "loc": "place", "gol": "goal", "source": "source", "instrument": "instrument",
    "duration": "duration", "until": "until", "heat": "heat", "prp": "purpose", "mnr": "manner",
    "reshape": "shape", "simultaneous": "simultaneous", "option": "patient", "before": "until",
    "when": "until", "todo": "manner", "ref": "patient",
}  # fmt: skip
_ARC = {
    "Arg1_PPT": "patient", "Arg2_PPT": "patient", "ArgM_LOC": "place", "Arg1_GOL": "goal",
    "Arg2_GOL": "goal", "Arg3_GOL": "goal", "Arg4_GOL": "goal",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A tagged stretch of a step; offsets in the text of the procedure."""

    kind: str
    start: int
    end: int
    name: str = ""
    """The corpus's own name for it, which dialogues point to."""


@dataclass(frozen=True)
class Arc:
    """``spans[head]`` is an action, ``spans[tail]`` what fills the role."""

    head: int
    tail: int
    role: str


@dataclass(frozen=True)
class Labelled:
    """A procedure with its spans and arcs; ``links`` are (consumer, producer) indices of spans."""

    name: str
    procedure: Procedure
    spans: tuple[Span, ...]
    arcs: tuple[Arc, ...]
    links: tuple[tuple[int, int], ...] = ()
    ids: tuple[str, ...] = ()
    """The corpus's names of materials, then steps."""


def cookdial(folder: Path) -> list[Labelled]:
    """The 260 recipes of ``cookdial/recipe``, in the order of their numbers."""
    files = sorted((folder / "cookdial" / "recipe").glob("*.json"))
    if not files:
        raise InputError(f"{folder}: expected CookDial's recipes in cookdial/recipe/.")
    return [_recipe(json.loads(file.read_text("utf-8"))) for file in files]


def risec(folder: Path) -> dict[str, list[Labelled]]:
    """RISeC's three parts: train, dev and test."""
    parts = {}
    for part in ("train", "dev", "test"):
        files = sorted((folder / "risec" / part).glob("*.txt"))  # one .ann has no text
        if not files:
            raise InputError(f"{folder}: expected RISeC's recipes in risec/{part}/.")
        parts[part] = [_brat(file) for file in files]
    return parts


def plain(folder: Path) -> list[str]:
    """The texts of ``recipes-unlicense``, in alphabetical order."""
    files = sorted((folder / "recipes-unlicense").glob("*.md"))
    return [f.read_text("utf-8") for f in files if not f.name.startswith("_")]


# --- CookDial -------------------------------------------------------------------------------------

_EAMR = re.compile(r'\s+|(?P<text>"[^"]*")|(?P<at>@-?\d+:-?\d+)|(?P<role>:[\w-]+)|(?P<mark>[()/])'
                   r"|(?P<word>[^\s()/:@\"]+)|(?P<other>.)")  # fmt: skip


@dataclass
class _Node:
    name: str = ""
    text: str = ""
    start: int = -1
    end: int = -1
    kind: str = ""


def _recipe(raw: dict[str, Any]) -> Labelled:
    """Title, ingredients and instructions as lines of one text."""
    text = raw["title"] + "\n"
    materials, steps, names = [], [], []
    spans: list[Span] = []
    arcs: list[Arc] = []
    for row in raw["content"]:
        body = row["text"].replace("\n", " ")
        number = re.match(r"\d+\) ", body)
        start = len(text) + (number.end() if number else 0)
        place = Part(start, len(text) + len(body.rstrip()))
        if row["type"] == "ingredient":
            materials.append(place)
            spans_of: list[Span] = []
        elif row["type"] == "instruction":
            steps.append(place)
            spans_of, arcs_of = _eamr(row["eamr"], body, len(text), len(spans))
            spans += spans_of
            arcs += arcs_of
        names.append((row["type"], row["id"]))
        text += body + "\n"
    procedure = Procedure(text, text, Part(0, len(raw["title"])), tuple(materials), tuple(steps))
    ids = [n for kind, n in names if kind == "ingredient"]
    ids += [n for kind, n in names if kind == "instruction"]
    return Labelled(raw["id"], procedure, tuple(spans), tuple(arcs), ids=tuple(ids))


def _eamr(eamr: str, body: str, offset: int, first: int) -> tuple[list[Span], list[Arc]]:
    """The spans of an instruction that have a type and a place, without overlaps, and its arcs."""
    edges = [*_walk(eamr)]  # nodes are complete only after the walk
    places: dict[int, int] = {}
    spans: list[Span] = []
    taken: list[tuple[int, int]] = []
    for _, _, node in edges:
        kind = _TYPE.get(node.kind)
        if kind is None or id(node) in places or not node.text:
            continue
        start, end = node.start, node.end
        if start < 0 or body[start:end] != node.text:
            start = body.find(node.text)
            end = start + len(node.text)
        if start < 0 or any(start < e and s < end for s, e in taken):
            continue
        taken.append((start, end))
        places[id(node)] = first + len(spans)
        spans.append(Span(kind, start + offset, end + offset, node.name))
    arcs = []
    for head, role, node in edges:
        if head is not None and id(head) in places and id(node) in places and role in _ROLE:
            arcs.append(Arc(places[id(head)], places[id(node)], _ROLE[role]))
    return spans, arcs


def _walk(eamr: str) -> Iterator[tuple[_Node | None, str, _Node]]:
    """(parent, role, node) in the order of the text; the root itself is left out."""
    stack: list[_Node] = []
    role = ""
    after_slash = False
    for match in _EAMR.finditer(re.sub(r"#.*?#", " ", eamr)):
        kind, value = match.lastgroup, match[0]
        if value == "(":
            node = _Node()
            if stack:  # the root, which is the step itself, is left out
                yield (stack[-1] if len(stack) > 1 else None, role, node)
            stack.append(node)
            after_slash = False
        elif value == ")":
            stack = stack[:-1]
        elif value == "/":
            after_slash = True
        elif kind == "role":
            role = value[1:]
        elif stack and kind == "text":
            stack[-1].text = value[1:-1]
        elif stack and kind == "at":
            stack[-1].start, stack[-1].end = map(int, value[1:].split(":"))
        elif stack and kind == "word":
            if after_slash:
                stack[-1].kind, after_slash = value, False
            elif not stack[-1].name and role != "_result":
                stack[-1].name = value


# --- RISeC ----------------------------------------------------------------------------------------


def _brat(file: Path) -> Labelled:
    """A recipe of RISeC; its annotated text has the instructions alone."""
    text = file.read_text("utf-8")
    notes = file.with_suffix(".ann").read_text("utf-8").splitlines()
    spans: list[Span] = []
    index: dict[str, int] = {}
    arcs, links = [], []
    for line in notes:
        name, _, rest = line.partition("\t")
        if name.startswith("T"):
            kind, *places = re.split(r"[ ;]", rest.partition("\t")[0])
            if kind in _TYPE:
                index[name] = len(spans)
                spans.append(Span(_TYPE[kind], int(places[0]), int(places[-1]), name))
    for line in notes:
        name, _, rest = line.partition("\t")
        if name.startswith("R"):
            role, a, b = rest.split()[:3]
            head, tail = index.get(a[5:]), index.get(b[5:])
            if head is None or tail is None:
                continue
            if role.endswith(("_X", "_Z")):
                if spans[tail].kind == "action" and spans[tail].start < spans[head].start:
                    links.append((head, tail))
            elif role in _ARC:
                arcs.append(Arc(head, tail, _ARC[role]))
    steps = []
    for match in re.finditer(r"^(?:\d+\) )?(.+)$", text, re.MULTILINE):
        steps.append(Part(match.start(1), match.end(1)))
    procedure = Procedure(text, text, None, (), tuple(steps))
    return Labelled(file.stem, procedure, tuple(spans), tuple(arcs), tuple(links))


# --- questions of people --------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question that a person asked in a dialogue of CookDial about a recipe."""

    recipe: int
    kind: str
    """factoid, unanswerable or next."""
    question: str
    step: int | None
    """The step that the person is at, from 0."""
    answers: tuple[tuple[int, int], ...] = ()
    """Places of the right answers in the recipe's text; for next, of a whole step."""


_FACTOID = ("inform_amount", "inform_duration", "inform_temperature", "inform_tool")


def dialogues(folder: Path, recipes: Sequence[Labelled]) -> list[Asked]:
    """The questions of all dialogues whose answer points to the recipe, or is a refusal."""
    found = []
    for number, recipe in enumerate(recipes):
        file = folder / "cookdial" / "dialog" / f"{number:03d}.1.json"
        messages = json.loads(file.read_text("utf-8"))["messages"]
        places = _places(recipe)
        for said, reply in itertools.pairwise(messages):
            if not said["bot"] and reply["bot"]:
                asked = _asked(number, recipe, said, reply["annotations"], places)
                if asked is not None:
                    found.append(asked)
    return found


def _places(recipe: Labelled) -> dict[str, tuple[int, int]]:
    parts = [*recipe.procedure.materials, *recipe.procedure.steps]
    places = {n: (p.start, p.end) for n, p in zip(recipe.ids, parts, strict=True)}
    return {s.name: (s.start, s.end) for s in recipe.spans if s.name} | places


def _asked(
    number: int, recipe: Labelled, said: dict[str, Any], reply: str,
    places: dict[str, tuple[int, int]],
) -> Asked | None:  # fmt: skip
    """The question of one turn, or None if it asks for nothing that can be scored."""
    about = json.loads(said["annotations"])
    intents = {i.strip() for i in about["intent"].split(";")}
    steps = [i for i in recipe.ids if i.startswith("inst")]
    at = about["tracker_completed_step"]
    step = steps.index(at) if at in steps else None
    calls = re.findall(r"(\w+)\(([^()]*)\)", reply)
    question = said["utterance"]
    if "?" not in question:
        return None
    told = [places[a] for call, args in calls if call in _FACTOID
            for a in re.findall(r"[\w-]+", args) if a in places]  # fmt: skip
    if told:
        return Asked(number, "factoid", question, step, tuple(told))
    if [call for call, _ in calls] == ["fence"]:
        return Asked(number, "unanswerable", question, step)
    if "req_instruction" in intents and step is not None and len(calls) == 1:
        call, target = calls[0]
        if call == "inform_instruction" and target in steps:
            return Asked(number, "next", question, step, (places[target],))
    return None
