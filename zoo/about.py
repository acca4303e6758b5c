"""A model's prose: ``about.md`` next to its card, Markdown whose numbers come from results.json.

    What the model does, in a paragraph or more.

    ## Picture

    What the card's picture shows, in one paragraph.

    ## What it is not good for

    - One item for each limit: {{acme-blur | PSNR-Y}} dB against {{bicubic | PSNR-Y}} of bicubic.

``{{row | metric}}`` is a mean in the table of ``results.json`` or of a part of it;
``{{claim.value}}``, ``.against`` and ``.spread`` are what decided the claim of that id. A
placeholder without a number is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .entry import near
from .errors import InputError

FILE = "about.md"
PICTURE, LIMITS = "Picture", "What it is not good for"
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
_ITEM = re.compile(r"^- +", re.MULTILINE)
_MEASURED = re.compile(r"\d+\.\d+|\d\s*(%|dB\b)")


@dataclass(frozen=True)
class About:
    """The prose of a card, which no command can generate, with its numbers filled in."""

    text: str = ""
    """What the model does: Markdown without headings."""
    caption: str = ""
    """What the picture shows, in one line."""
    limits: tuple[str, ...] = ()
    """What the model is not, and is not good for; one line each."""


def read(folder: Path, records: Sequence[Mapping[str, Any]]) -> About:
    """The prose in a card's folder; empty if there is no ``about.md``.

    ``records``: those that fill in the numbers (``bench.records``). Raises InputError for a number
    that they do not contain and for an unknown heading.
    """
    where = str(folder / FILE)
    return parse(fill(raw(folder), records, where), where)


def parse(text: str, where: str) -> About:
    """Prose from its Markdown; ``where`` is for messages."""
    first, *rest = _HEADING.split(text)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    unknown = [name for name in parts if name not in (PICTURE, LIMITS)]
    if unknown:
        raise InputError(
            f"{where}: the heading {unknown[0]!r} is not known. "
            f"A card has '## {PICTURE}' and '## {LIMITS}'."
        )
    return About(first.strip(), _line(parts.get(PICTURE, "")), limits(text))


def limits(text: str) -> tuple[str, ...]:
    """The items under ``## What it is not good for``, of prose or of a whole card."""
    _, *rest = _HEADING.split(text)
    found = dict(zip(rest[::2], rest[1::2], strict=True)).get(LIMITS, "")
    return tuple(_line(item) for item in _ITEM.split(found)[1:])


def fill(text: str, records: Sequence[Mapping[str, Any]], where: str) -> str:
    """The text with each placeholder replaced by its number, four significant digits.

    Raises InputError with the line of every placeholder that has no number.
    """
    wrong: list[str] = []

    def number(found: re.Match[str]) -> str:
        try:
            return f"{_number(_line(found[1]), records):.4g}"
        except KeyError as error:
            line = text.count("\n", 0, found.start()) + 1
            wrong.append(f"line {line}: {_line(found[0])}: {error.args[0]}")
            return ""

    filled = _PLACEHOLDER.sub(number, text)
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}.")
    return filled


def _number(name: str, records: Sequence[Mapping[str, Any]]) -> float:
    """The value of a placeholder; the KeyError says what is unknown."""
    if not records:
        raise KeyError("nothing has been measured yet; run `zoo bench MODEL --write FOLDER`")
    if "|" in name:
        row, _, metric = (part.strip() for part in name.partition("|"))
        cells: dict[str, Any] = {}
        for one in _known("row", row, _rows(records)):
            cells |= one
        mean: float = _known("metric", metric, cells)["mean"]
        return mean
    claim, dot, field = name.rpartition(".")
    if not dot:
        raise KeyError("expected {{row | metric}} or {{claim.value}}")
    fields = ("value", "against", "spread")
    found = _known("claim", claim, {c["id"]: c for r in records for c in r["claims"]})
    value: float = _known("number", field, {name: found[name] for name in fields})
    return value


def _rows(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Row -> its cells in each record that has it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for row, cells in record["table"].items():
            found.setdefault(row, []).append(cells)
    return found


def _known(what: str, name: str, table: Mapping[str, Any]) -> Any:
    if name in table:
        return table[name]
    hint = near(name, table)
    also = f"; did you mean {hint[0]!r}?" if hint else ""
    raise KeyError(f"results.json has no {what} {name!r}{also}")


def typed_numbers(text: str) -> Iterator[tuple[str, str]]:
    """(number, its line) for each number that looks measured but was typed by hand."""
    for line in _PLACEHOLDER.sub("", text).splitlines():
        for found in _MEASURED.finditer(line):
            yield found[0], line.strip()


def raw(folder: Path) -> str:
    """The unfilled text of ``about.md``; "" if there is none."""
    path = folder / FILE
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error


def _line(text: str) -> str:
    return " ".join(text.split())
