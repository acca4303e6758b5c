"""Tokens with their places in a text, and what is known of words: lemmas, kinds, small classes.

The table of words is lemminflect's (MIT; ``lexicon/``). Nothing here knows a recipe or how-to.
"""

from __future__ import annotations

import gzip
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

TOKEN = re.compile(
    r"\d+(?:[.,/⁄]\d+)*|[¼½¾⅐-⅞]|°[CF]?|[^\W\d_]+(?:['’\-‐‑][^\W\d_]+)*|[^\w\s]|_", re.UNICODE
)
"""A number with its fraction, a word with accents, hyphens and apostrophes, or one character."""

PREPOSITIONS = frozenset(
    "about above across after against along among around as at before behind below beneath beside "
    "between beyond by down during for from in inside into like near of off on onto out outside "
    "over past per round since through throughout to toward towards under underneath until till up "
    "upon via with within without".split()
)
TIMES = frozenset(
    "second minute hour day night week month year overnight sec min hr h s moment while".split()
)
UNITS = frozenset(
    "cup tablespoon teaspoon tbsp tsp ounce oz pound lb gram g kg kilogram ml l liter litre dl cl "
    "quart pint gallon stick clove can jar package packet bag box bottle envelope slice bunch "
    "sprig head stalk pinch dash inch inches in cm mm m meter metre foot feet degree degrees "
    "celsius fahrenheit c f piece drop sheet roll tube tin cartridge spoon container carton bar "
    "cube pack handful strip loaf jigger fluid litres volt v ohm amp watt nm n".split()
)
NUMBERS = {
    w: i
    for i, w in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
} | {"a": 1, "an": 1, "half": 0.5, "quarter": 0.25, "dozen": 12, "several": 3, "couple": 2}
DETERMINERS = frozenset(
    "a an the this that these those each every all both some any its your their one two".split()
)
PRONOUNS = frozenset("it them they these those this that everything".split())
CONJUNCTIONS = frozenset("and or but then plus nor".split())
SUBORDINATORS = frozenset("if when once while because so unless although whenever where as".split())
AUXILIARIES = frozenset(
    "is are was were be been being do does did have has had will would can could should may might "
    "must shall not don't doesn't isn't cannot can't never".split()
)
PARTICLES = frozenset("up down out in off on over together aside apart away back open".split())
STOP = (
    PREPOSITIONS | DETERMINERS | PRONOUNS | CONJUNCTIONS | SUBORDINATORS | AUXILIARIES
    | frozenset("i you he she we my our his her what which who how why there here just".split())
    | {"very"}
)  # fmt: skip


class Token(NamedTuple):
    """A token of a text: ``text[start:end]``."""

    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        return self.text.lower()


def tokenize(text: str, start: int = 0, end: int | None = None) -> list[Token]:
    """The tokens of ``text[start:end]``; their places count from the beginning of ``text``."""
    found = TOKEN.finditer(text, start, len(text) if end is None else end)
    return [Token(m[0], m.start(), m.end()) for m in found]


@cache
def table() -> dict[str, tuple[str, str]]:
    """Word -> (kinds, lemma). Kinds: v base form of a verb, V another form of one, n noun,
    a adjective, r adverb.
    """
    raw = gzip.decompress((Path(__file__).parent / "lexicon" / "words.txt.gz").read_bytes())
    rows = {}
    for line in raw.decode().split("\n"):
        word, kinds, *lemma = line.split(" ")
        rows[word] = (kinds, lemma[0] if lemma else word)
    return rows


@lru_cache(maxsize=100_000)
def kinds(word: str) -> str:
    """What a word in lower case can be; "" where it is unknown. See ``table``."""
    found = table().get(word)
    if found is None and "-" in word:
        found = table().get(word.rpartition("-")[2])
    if found is None and word[-1:] == "s":
        found = table().get(word[:-1])
    return found[0] if found else ""


@lru_cache(maxsize=100_000)
def lemma(word: str) -> str:
    """The dictionary form of a word in lower case; of an unknown one, without a plural's s."""
    found = table().get(word)
    if found is not None:
        return found[1]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return lemma(word[:-1])
    return word


@lru_cache(maxsize=10_000)
def command(word: str) -> str:
    """The base form of a verb in lower case: ``stirring`` -> ``stir``; others stay as they are."""
    known = kinds(word)
    if "v" in known or "V" not in known:
        return word
    if lemma(word) != word:
        return lemma(word)
    for end in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(end)
        if stem != word:
            doubled = stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem
            for form in (stem, stem + "e", doubled):
                if "v" in kinds(form):
                    return form
    return word


IRREGULAR = {
    "make": "made", "keep": "kept", "hold": "held", "take": "taken", "beat": "beaten",
    "build": "built", "leave": "left", "lay": "laid", "bend": "bent", "wind": "wound",
    "sweep": "swept", "bring": "brought", "break": "broken", "freeze": "frozen", "shake": "shaken",
    "give": "given", "draw": "drawn", "do": "done", "feed": "fed",
    "grind": "ground", "hang": "hung", "sew": "sewn", "tear": "torn", "find": "found",
    "stick": "stuck", "stand": "stood", "blow": "blown", "get": "got", "buy": "bought",
} | {w: w for w in "cut put set let spread split shut fit slit knit".split()}  # fmt: skip


@lru_cache(maxsize=10_000)
def participle(verb: str) -> str:
    """The past participle of a command: ``stir in`` -> ``stirred in``."""
    first, gap, rest = verb.partition(" ")
    if first in IRREGULAR:
        return IRREGULAR[first] + gap + rest
    if first.endswith("e"):
        made = first + "d"
    elif first.endswith("y") and first[-2:-1] not in "aeiou":
        made = first[:-1] + "ied"
    else:
        doubled = first + first[-1:] + "ed"
        made = doubled if lemma(doubled) == first else first + "ed"
    return made + gap + rest


@lru_cache(maxsize=100_000)
def word_class(word: str) -> str:
    """The small class of a word in lower case: what a sentence is put together with."""
    if word[:1].isdigit() or word in "¼½¾" or (len(word) == 1 and "⅐" <= word <= "⅞"):
        return "number"
    if not word[:1].isalpha():
        return {",": "comma", ".": "stop", ";": "semicolon", "(": "open", ")": "close"}.get(
            word, "mark"
        )
    if word in PREPOSITIONS:
        return "prep"
    if lemma(word) in TIMES:
        return "time"
    for name, members in (
        ("conj", CONJUNCTIONS), ("sub", SUBORDINATORS), ("aux", AUXILIARIES),
        ("pron", PRONOUNS), ("det", DETERMINERS), ("numword", NUMBERS),
    ):  # fmt: skip
        if word in members:
            return name
    return "unit" if word in UNITS or lemma(word) in UNITS else "word"


def content(text: str) -> list[str]:
    """The lemmas of the words in a text that carry meaning, in order."""
    lowered = (token.lower for token in tokenize(text))
    return [lemma(w) for w in lowered if w not in STOP and (w[0].isalnum() or w[0] in "¼½¾")]
