"""What the tagger sees of each token: hashed features, all tokens of a procedure at once.

A feature is a template (which property of which neighbour) with its value; its number is a hash
that does not depend on the process. Page: rule 2.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .text import Procedure
from .words import CONJUNCTIONS, PREPOSITIONS, Token, content, kinds, lemma, tokenize, word_class

BITS = 16
"""Features are hashed into 2**BITS buckets."""
OUTSIDE = zlib.crc32(b"<outside>")
STATIC = 6  # columns that depend on the word alone
WORD, LEMMA, SUFFIX, SHAPE, KINDS, CLASS, LISTED, CLAUSE, PREP, PLACE = range(10)

_SINGLE = (
    [(WORD, k) for k in (-2, -1, 0, 1, 2)] + [(LEMMA, k) for k in (-1, 0, 1)]
    + [(SUFFIX, k) for k in (-1, 0, 1)] + [(SHAPE, 0)]
    + [(KINDS, k) for k in (-2, -1, 0, 1, 2)] + [(CLASS, k) for k in (-2, -1, 0, 1, 2)]
    + [(LISTED, k) for k in (-1, 0, 1)] + [(CLAUSE, k) for k in (-1, 0, 1)]
    + [(PREP, 0), (PLACE, 0)]
)  # fmt: skip
_DOUBLE = [
    ((WORD, -1), (WORD, 0)), ((WORD, 0), (WORD, 1)), ((KINDS, 0), (CLAUSE, 0)),
    ((KINDS, -1), (KINDS, 0)), ((KINDS, 0), (KINDS, 1)), ((PREP, 0), (KINDS, 0)),
    ((LISTED, 0), (KINDS, 0)), ((PREP, 0), (LISTED, 0)), ((CLASS, -1), (CLASS, 0)),
    ((CLASS, 0), (CLASS, 1)), ((CLASS, -1), (KINDS, 0)), ((KINDS, 0), (CLASS, 1)),
    ((LEMMA, 0), (CLAUSE, 0)), ((PREP, 0), (CLASS, 0)),
]  # fmt: skip
COUNT = len(_SINGLE) + len(_DOUBLE)
"""Features of a token."""
LEXICAL = np.array(
    [column in (WORD, LEMMA) for column, _ in _SINGLE]
    + [WORD in (a[0], b[0]) or LEMMA in (a[0], b[0]) for a, b in _DOUBLE]
)
"""Which of them know the word itself."""
_ODD = np.array([(2654435761 * (2 * i + 1)) & 0xFFFFFFFF | 1 for i in range(COUNT)], np.uint32)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


@lru_cache(maxsize=100_000)
def _static(word: str) -> tuple[int, ...]:
    """Hashes of what depends on the word alone; ``word`` as written."""
    low = word.lower()
    number = word_class(low) == "number"
    shape = "".join(
        "X" if c.isupper() else "x" if c.islower() else "9" if c.isdigit() else c for c in word[:4]
    )
    return (
        _hash("9" if number else low),
        _hash("9" if number else lemma(low)),
        _hash(low[-3:]),
        _hash(shape),
        _hash(kinds(low)),
        _hash(word_class(low)),
    )


def clauses(tokens: Sequence[Token]) -> tuple[list[int], list[str]]:
    """For each token: tokens since its clause began (at most 3), and the last preposition in it."""
    since, preps = [], []
    count, prep, after_mark = 0, "", True
    for token in tokens:
        low = token.lower
        if after_mark:
            count, prep = 0, ""
        since.append(min(count, 3))
        preps.append(prep)
        if low in PREPOSITIONS:
            prep = low
        after_mark = low in (".", ",", ";", ":", "(", ")", "!") or low in CONJUNCTIONS
        count += 1
    return since, preps


def listed(procedure: Procedure) -> frozenset[str]:
    """The lemmas of the content words of the materials."""
    texts = (procedure.clean[p.start : p.end] for p in procedure.materials)
    return frozenset(w for text in texts for w in content(text) if w.isalpha())


def features(
    procedure: Procedure,
) -> tuple[list[list[Token]], NDArray[np.int64]]:
    """The tokens of each step, and (N, COUNT) feature numbers of all of them in order."""
    steps = [tokenize(procedure.clean, p.start, p.end) for p in procedure.steps]
    materials = listed(procedure)
    rows: list[tuple[int, ...]] = []
    outside = (OUTSIDE,) * 10
    inside: list[int] = []
    for tokens in steps:
        rows += [outside, outside]
        since, preps = clauses(tokens)
        for i, token in enumerate(tokens):
            low = token.lower
            known = 1 if lemma(low) in materials else 2 if not materials else 0
            inside.append(len(rows))
            rows.append(
                (*_static(token.text), known, 11 + since[i], _hash(preps[i]), 31 + min(i, 2))
            )
        rows += [outside, outside]
    if not inside:
        return steps, np.zeros((0, COUNT), np.int64)
    table = np.array(rows, np.uint32)
    at = np.array(inside)
    columns = [table[at + k, column] for column, k in _SINGLE]
    columns += [
        table[at + i, a] * np.uint32(0x9E3779B1) ^ table[at + j, b] for (a, i), (b, j) in _DOUBLE
    ]
    values = np.stack(columns, 1)
    values = (values ^ (values >> 15)) * _ODD
    values ^= values >> 13
    values *= np.uint32(0x85EBCA6B)
    return steps, (values >> np.uint32(32 - BITS)).astype(np.int64)
