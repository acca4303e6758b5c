"""Reading a procedure: which parts of a text are its title, its materials and its steps.

Accepts plain text, numbered and bulleted lists, Markdown, HTML and tables. Every place is an offset
in the given text: marks and tags are blanked out in a copy of equal length, never removed.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from zoo.errors import InputError

from .words import STOP, kinds, tokenize

MATERIALS = re.compile(
    r"(?:^|\b)(ingredients?|materials?|tools?|parts|equipment|supplies|you(?:'ll| will)? need|"
    r"what you need|requirements|utensils|shopping list|take|prerequisites)\b",
    re.IGNORECASE,
)
STEPS = re.compile(
    r"\b(directions?|instructions?|steps?|methods?|procedures?|preparation|how to|process|"
    r"preparing|making|assembly|cooking)\b",
    re.IGNORECASE,
)
ASIDE = re.compile(
    r"\b(notes?|tips?|nutrition|contributors?|contribution|sources?|references|see also|warnings?|"
    r"background|introduction|about|description|serving|storage|variations?)\b",
    re.IGNORECASE,
)
NUMBERED = re.compile(
    r"(?:step\s*)?(?:\(?\d{1,5}[.):]|\(\d{1,5}\)|\d{1,5}\N{VARIATION SELECTOR-16}?"
    r"\N{COMBINING ENCLOSING KEYCAP})(?=\s)\s*|step\s+\d{1,5}\s*[-–—:.]?\s+",
    re.IGNORECASE,
)
BULLET = re.compile(r"[-*+•‣◦▪–—·●○■□✓✔☐](?:\s*\[[ xX]\])?\s+")
HEADING = re.compile(r"#{1,6}\s+")
AMOUNT = re.compile(r"\W*[\d\u00bc-\u00be\u2150-\u215e]")
"""How a line of a list of materials begins."""
TAG = re.compile(r"<!--.*?-->|<(script|style|head)\b.*?</\1\s*>|</?[a-zA-Z][^<>]*>", re.DOTALL)
ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,5}|[a-zA-Z]{2,10});")
IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)|(?<=\])\([^)\s]*\)|https?://\S+")
SENTENCE = re.compile(r"[.!?…]+(?=[\s\"'”’)]|$)[\"'”’)]*|\n\s*\n")
ABBREVIATIONS = frozenset(
    "approx no nos tbsp tsp oz lb lbs min mins sec hr hrs ca e.g i.e etc".split()
)
ENGLISH = 0.12
"""Least share of function words in a text of some length that is taken to be English."""
LONG = 25
"""Words from which the language is checked."""


@dataclass(frozen=True)
class Part:
    """A stretch of the text: ``text[start:end]``."""

    start: int
    end: int


@dataclass(frozen=True)
class Procedure:
    """A text and where its parts are."""

    text: str
    clean: str
    """The text with marks and tags blanked out, of the same length."""
    title: Part | None
    materials: tuple[Part, ...]
    steps: tuple[Part, ...]
    skipped: tuple[Part, ...] = ()
    """What is neither title, material nor step."""
    numbers: tuple[int, ...] = ()
    """Of the numbered lines, as they are written."""

    def of(self, part: Part) -> str:
        """The words of a part."""
        return self.text[part.start : part.end]


@dataclass
class _Line:
    start: int
    end: int
    kind: str
    """heading, numbered, bullet, amount, plain, rule or blank."""
    indent: int = 0
    number: int | None = None
    row: bool = False
    """Of a table?"""


def read(text: str, *, force: bool = False) -> Procedure:
    """Find the parts. Raises InputError for anything but text, for text without a step, and for
    text that is not English unless ``force``.
    """
    if not isinstance(text, str):
        raise InputError(f"expected a text, not {type(text).__name__}.")
    clean = _blank(text)
    if not any(c.isalpha() for c in clean):
        raise InputError(
            "no steps found: the text has no words. Give sentences or a list that say what to do."
        )
    if not force:
        _check_language(clean)
    lines = _measured(clean, _underlined([*_lines(clean)]))
    clean = clean.replace("|", ",")  # between the cells of a row
    title = _title(clean, lines)
    if title is not None:
        lines.remove(title)
    materials, steps, skipped = _sort(clean, lines)
    if not steps:
        raise InputError(
            "no steps found: looked for numbered or bulleted lines, and for sentences, outside the "
            "list of materials. Put each step on its own line."
        )
    return Procedure(
        text,
        clean,
        None if title is None else Part(title.start, title.end),
        tuple(materials),
        tuple(steps),
        tuple(skipped),
        tuple(line.number for line in lines if line.number is not None),
    )


# --- blanking -------------------------------------------------------------------------------------


def _blank(text: str) -> str:
    """A copy of the same length in which list tags have become list marks, all others spaces."""
    clean = re.sub(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]", lambda m: "\n".rjust(len(m[0])), text)
    if TAG.search(clean):
        clean = TAG.sub(_tag, clean)
    clean = ENTITY.sub(lambda m: html.unescape(m[0])[-1:].rjust(len(m[0])), clean)
    clean = IMAGE.sub(lambda m: " " * len(m[0]), clean)
    if clean.startswith("---\n") and (end := clean.find("\n---", 4)) > 0:
        clean = re.sub(r"[^\n]", " ", clean[: end + 4]) + clean[end + 4 :]
    clean = re.sub(r"(\*\*|__|`+|\\(?=\W))", lambda m: " " * len(m[0]), clean)
    return re.sub(r"(?<!\w)[_*](?=\w)|(?<=\w)[_*](?!\w)", " ", clean)


def _tag(match: re.Match[str]) -> str:
    found = match[0].lower()
    name = re.match(r"</?\s*([a-z][a-z0-9]*)", found)
    mark = {"li": "\n- "}.get(name[1], "") if name and not found.startswith("</") else ""
    if name and name[1] in ("h1", "h2", "h3", "h4") and not found.startswith("</"):
        mark = "\n# "
    if name and not mark:
        block = (
            "p",
            "div",
            "br",
            "ul",
            "ol",
            "li",
            "tr",
            "table",
            "section",
            "h1",
            "h2",
            "h3",
            "h4",
        )
        mark = "\n" if name[1] in block else ""
    return mark.ljust(len(found))[: len(found)] if mark else " " * len(found)


def _lines(clean: str) -> Iterator[_Line]:
    """Each line with its kind, without its mark."""
    at = 0
    for raw in clean.split("\n"):
        start, end = at, at + len(raw)
        at = end + 1
        body = raw.strip()
        if not any(c.isalnum() for c in body):
            if len(body) > 2 and set(body) <= set("=-|: ") and set(body) & set("=-"):
                yield _Line(start, end, "rule")
            else:
                yield _Line(start, end, "blank")
            continue
        start += len(raw) - len(raw.lstrip())
        indent = len(raw) - len(raw.lstrip())
        end = start + len(body)
        if body.startswith("|") or body.count(" | ") > 1:
            yield from _row(clean, start, end)
            continue
        while body.startswith(">"):
            start += 1 + len(body[1:]) - len(body[1:].lstrip())
            body = body[1:].lstrip()
        kind, number = "plain", None
        for name, pattern in (("heading", HEADING), ("bullet", BULLET), ("numbered", NUMBERED)):
            match = pattern.match(clean, start, end)
            if match and match.end() < end:
                kind, start = name, match.end()
                inner = NUMBERED.match(clean, start, end) if name == "bullet" else None
                if inner:
                    kind, start = "numbered", min(inner.end(), end)
                if kind == "numbered":
                    number = _digits((inner or match)[0])
                break
        if kind == "heading":
            end = start + len(clean[start:end].rstrip("# "))
        elif kind == "plain" and body.endswith(":") and len(body) < 60 and body.count(" ") < 7:
            kind = "heading"
        if start < end:
            yield _Line(start, end, kind, indent, number)


def _row(clean: str, start: int, end: int) -> Iterator[_Line]:
    """A table's row, which is a numbered step if its first cell is a number: that cell is left out,
    the others stay together.
    """
    cells = [m for m in re.finditer(r"[^|]+", clean[start:end]) if m[0].strip()]
    number = None
    if len(cells) > 1 and re.fullmatch(r"\s*\d+[.)]?\s*", cells[0][0]):
        number = _digits(cells[0][0])
        cells = cells[1:]
    first, last = cells[0], cells[-1]
    at = start + first.start() + len(first[0]) - len(first[0].lstrip())
    to = start + last.start() + len(last[0].rstrip())
    if re.search(r"[^\W\d_]", clean[at:to]):
        yield _Line(at, to, "bullet" if number is None else "numbered", 0, number, row=True)


def _digits(mark: str) -> int:
    return int("".join(re.findall(r"\d", mark)))


def _underlined(lines: list[_Line]) -> list[_Line]:
    """A line over a rule is a heading, a table's too."""
    for line, below in itertools.pairwise(lines):
        if below.kind == "rule" and (line.kind == "plain" or line.row):
            line.kind = "heading"
    return [line if line.kind != "rule" else replace(line, kind="blank") for line in lines]


def _measured(clean: str, lines: list[_Line]) -> list[_Line]:
    """Marks a list of materials that has neither heading nor bullets, as "amount".

    It stands before the steps, and at least half of its lines begin with a number.
    """
    begins = len(lines)
    for i, line in enumerate(lines):
        words = clean[line.start : line.end]
        if line.kind == "numbered" or (line.kind == "heading" and STEPS.search(words)):
            begins = i
            break
    marked = [*lines]
    at = 0
    for kind, some in itertools.groupby(lines[:begins], lambda line: line.kind):
        run = [*some]
        bodies = [clean[line.start : line.end] for line in run]
        opens = [bool(AMOUNT.match(body)) for body in bodies]
        phrases = [len(body) < 90 and not body.endswith((".", "!", "?")) for body in bodies]
        first = 0 if at or opens[0] else 1  # the title, right above the list
        if kind == "plain" and len(run) > first + 1 and 2 * sum(opens) >= len(run) - first:
            for i in range(first, len(run)):
                if opens[i] or phrases[i]:
                    marked[at + i] = replace(run[i], kind="amount")
        at += len(run)
    return marked


def _title(clean: str, lines: Sequence[_Line]) -> _Line | None:
    """The first line, if it is a heading or short and not a step."""
    first = next((line for line in lines if line.kind != "blank"), None)
    if first is None:
        return None
    rest = [line for line in lines if line is not first and line.kind != "blank"]
    short = first.end - first.start < 80
    listed = any(line.kind in ("numbered", "bullet", "heading", "amount") for line in rest)
    bodies = [clean[line.start : line.end].rstrip() for line in (first, *rest)]
    sentences = [body.endswith((".", "!", "?")) for body in bodies]
    above = bool(rest) and not sentences[0] and all(sentences[1:])  # the others are sentences
    if first.kind == "heading" or (first.kind == "plain" and short and (listed or above)):
        return first
    return None


# --- sorting --------------------------------------------------------------------------------------


def _sort(clean: str, lines: Sequence[_Line]) -> tuple[list[Part], list[Part], list[Part]]:
    """Materials, steps and the rest."""
    opened = {_opened(clean[line.start : line.end], "") for line in lines if line.kind == "heading"}
    named = "steps" in opened
    numbered = any(line.kind == "numbered" for line in lines)
    materials: list[Part] = []
    steps: list[Part] = []
    skipped: list[Part] = []
    section = ""
    previous: _Line | None = None
    blank = False
    for line in lines:
        if line.kind == "blank":
            blank = True
            continue
        part = Part(line.start, line.end)
        if line.kind == "heading":
            section = _opened(clean[line.start : line.end], section)
            skipped.append(part)
        elif line.kind == "amount" or (
            section == "materials" and line.kind != "numbered" and _is_material(clean, line)
        ):
            materials.append(part)
        elif section == "aside" or (not section and "materials" in opened and not steps):
            skipped.append(part)
        elif line.kind == "numbered":
            steps.append(part)
        elif line.kind == "bullet":
            if numbered and not steps and section != "steps":
                materials.append(part)
            elif previous is not None and previous.kind == "numbered" and line.indent > 1:
                steps.append(part)  # a step's own steps
            elif section == "steps" or _commands(clean, part):
                steps.append(part)
            else:
                materials.append(part) if not steps else skipped.append(part)
        elif not blank and previous is not None and previous.kind == "numbered" and steps:
            steps[-1] = Part(steps[-1].start, line.end)  # the line goes on
        elif (named or numbered) and section not in ("steps", "materials") and not steps:
            skipped.append(part)  # an introduction
        elif numbered and steps:
            skipped.append(part)
        else:
            steps += _sentences(clean, part, steps, previous, blank)
        previous = line
        blank = False
    if not steps and materials and not named:  # a list of phrases without a verb
        materials, steps = [], materials
    return materials, [s for s in steps if _words(clean, s)], skipped


def _opened(heading: str, current: str) -> str:
    """The section that a heading opens; others are parts of the current one."""
    for name, pattern in (("materials", MATERIALS), ("steps", STEPS), ("aside", ASIDE)):
        if pattern.search(heading):
            return name
    return "" if current == "aside" else current


def _is_material(clean: str, line: _Line) -> bool:
    return line.kind == "bullet" or line.end - line.start < 90


def _words(clean: str, part: Part) -> bool:
    return any(c.isalpha() for c in clean[part.start : part.end])


def _commands(clean: str, part: Part) -> bool:
    """Does it begin with a verb, or is it a sentence?"""
    body = clean[part.start : part.end]
    first = re.match(r"\W*([^\W\d_]+)", body)
    verb = bool(first) and "v" in kinds(first[1].lower()) if first else False
    return verb or (body.rstrip().endswith(".") and len(body) > 25)


def _sentences(
    clean: str, part: Part, steps: list[Part], previous: _Line | None, blank: bool
) -> list[Part]:
    """Each sentence of a paragraph is a step; a line that goes on joins the one before."""
    found = []
    at = part.start
    for match in SENTENCE.finditer(clean, part.start, part.end):
        word = re.search(r"(\S+)$", clean[at : match.start()])
        if match[0] == "." and word and word[1].lower().strip("(") in ABBREVIATIONS:
            continue
        found.append((at, match.end()))
        at = match.end()
    found.append((at, part.end))
    made = []
    for start, end in found:
        body = clean[start:end]
        start += len(body) - len(body.lstrip())
        end -= len(body) - len(body.rstrip())
        if start < end and any(c.isalpha() for c in clean[start:end]):
            made.append(Part(start, end))
    goes_on = (
        made and steps and previous is not None and previous.kind == "plain" and not blank
        and not re.search(r"[.!?…:]\W*$", clean[steps[-1].start : steps[-1].end])
        and clean[made[0].start].islower()
    )  # fmt: skip
    if goes_on:
        steps[-1] = Part(steps[-1].start, made[0].end)
        made = made[1:]
    return made


def _check_language(clean: str) -> None:
    """Raises InputError for a long text with hardly any English function words."""
    words = [t.lower for t in tokenize(clean[:20_000]) if t.text[0].isalpha()]
    if len(words) < LONG:
        letters = [c for c in clean[:2000] if c.isalpha()]
        foreign = sum(ord(c) > 0x24F for c in letters)
        if letters and foreign > len(letters) / 2:
            _refuse()
        return
    known = sum(w in STOP for w in words) / len(words)
    if known < ENGLISH and sum(bool(kinds(w)) for w in words) / len(words) < 0.75:
        _refuse()


def _refuse() -> None:
    raise InputError(
        "this text does not look English, the only language that graph-qa knows. Pass force=True "
        "(-O force=true) to try it all the same."
    )
