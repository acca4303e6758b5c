"""Amounts, sizes and units in lines of materials and in phrases. Page: rule 4."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .text import Part
from .words import NUMBERS, UNITS, lemma, tokenize, word_class

NUMBER = r"(?:\d+(?:[.,/⁄]\d+)*(?:\s+\d+[/⁄]\d+)?\s*[¼½¾⅐-⅞]?|[¼½¾⅐-⅞])"
RANGE = rf"{NUMBER}(?:\s*(?:-|–|to|or)\s*{NUMBER})?"
SIZE = re.compile(
    rf"{RANGE}[\s-]*(?:[^\W\d_]+|°\s?[CF]|%)(?:\s*(?:x|by|×)\s*{RANGE}[\s-]*[^\W\d_]+)?",
    re.IGNORECASE,
)
UNIT_NAMES = {
    "Celsius": ("c", "celsius", "centigrade"),
    "Fahrenheit": ("f", "fahrenheit"),
    "grams": ("g", "gram", "kg", "kilogram"),
    "ounces": ("oz", "ounce"),
    "pounds": ("lb", "pound"),
    "cups": ("cup",),
    "millilitres": ("ml", "millilitre", "milliliter"),
    "litres": ("l", "litre", "liter"),
    "centimetres": ("cm", "centimetre", "centimeter"),
    "inches": ("in", "inch", '"'),
    "millimetres": ("mm", "millimetre", "millimeter"),
}


@dataclass(frozen=True)
class Material:
    """The parts of a line of materials."""

    line: Part
    name: Part
    amount: Part | None
    size: Part | None


def material(clean: str, line: Part) -> Material:
    """``2 (16 ounce) cans of beans, drained``: amount ``2``, size ``16 ounce``, name ``beans``."""
    tokens = tokenize(clean, line.start, line.end)
    while len(tokens) > 1 and word_class(tokens[0].lower) in ("mark", "comma", "stop"):
        tokens = tokens[1:]
    at, amount = 0, None
    match = re.compile(rf"(?P<n>{RANGE})\s*", re.IGNORECASE).match(clean, tokens[0].start, line.end)
    if match:
        amount = Part(match.start("n"), match.start("n") + len(match["n"].rstrip()))
        at = next((i for i, t in enumerate(tokens) if t.start >= match.end()), len(tokens))
    elif tokens and tokens[0].lower in NUMBERS and len(tokens) > 1:
        amount, at = Part(tokens[0].start, tokens[0].end), 1
    size = None
    if at < len(tokens) and tokens[at].text == "(":
        close = next((i for i, t in enumerate(tokens) if i > at and t.text == ")"), None)
        if close is not None:
            size = _size(clean, tokens[at].end, tokens[close].start)
            at = close + 1
    while at < len(tokens) - 1 and _is_unit(tokens[at].lower) and amount is not None:
        amount = Part(amount.start, tokens[at].end) if size is None else amount
        at += 1
        if tokens[at].text == ".":
            at += 1
        if size is not None:
            break
    while at < len(tokens) - 1 and tokens[at].lower in ("of", "a", "an", "the", "x"):
        at += 1
    end = next(
        (
            i
            for i, t in enumerate(tokens)
            if i > at and (t.text in ",(;:" or t.lower in ("with", "for"))
        ),
        len(tokens),
    )
    if at >= len(tokens):
        return Material(line, line, amount, size)
    name = Part(tokens[at].start, tokens[end - 1].end)
    if size is None:
        size = _size(clean, name.end, line.end)
    return Material(line, name, amount, size)


def _is_unit(word: str) -> bool:
    return word in UNITS or lemma(word) in UNITS


def _size(clean: str, start: int, end: int) -> Part | None:
    """The first number with a unit in a stretch."""
    for match in SIZE.finditer(clean, start, end):
        unit = tokenize(match[0])[-1].lower
        if _is_unit(unit) or unit in ("%", "°c", "°f"):
            return Part(match.start(), match.end())
    return None


@lru_cache(maxsize=10_000)
def unit(text: str) -> str | None:
    """The unit of a phrase such as ``350 degrees F``, in words; of several the first."""
    for token in tokenize(text.replace("°", " ")):
        low = token.lower
        for name, forms in UNIT_NAMES.items():
            if (low in forms or lemma(low) in forms) and word_class(low) != "number":
                if len(low) == 1 and not re.search(rf"(?:\d|degrees?|°)\s*{low}\b", text.lower()):
                    continue
                return name
    return None


def alternates(clean: str, start: int, end: int) -> list[tuple[str, Part]]:
    """(unit, place) of each quantity in ``350 F (175 C)``, if there are several units."""
    found: dict[str, Part] = {}
    for match in re.compile(
        rf"{RANGE}[\s-]*(?:degrees?|°)?\s*(?:[^\W\d_]+)?", re.IGNORECASE
    ).finditer(clean, start, end):
        name = unit(match[0])
        if name is not None and name not in found:
            found[name] = Part(match.start(), match.start() + len(match[0].rstrip()))
    return list(found.items()) if len(found) > 1 else []
