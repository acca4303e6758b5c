"""Exact match and F1 of answers, as SQuAD 2.0 defines them."""

from __future__ import annotations

import re
import string
from collections import Counter


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact(a: str, b: str) -> float:
    """1.0 if both are the same once normalised, else 0.0."""
    return float(normal(a) == normal(b))


def f1(a: str, b: str) -> float:
    """Harmonic mean of precision and recall of words; of an empty answer, 1 only if both are."""
    mine, theirs = normal(a).split(), normal(b).split()
    if not mine or not theirs:
        return float(mine == theirs)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * shared / (len(mine) + len(theirs))
