"""How well generated questions cover others: answer and semantic coverage, syntactic diversity.

Page: eqs. 8 to 10. The encoder is all-MiniLM-L6-v2 where it is given, else TF-IDF over lemmas; each
number is named for the one that made it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluate import Item
from .score import f1
from .words import content, lemma, tokenize

THRESHOLD = 0.7
"""Cosine from which a question counts as covered."""
MATCH = 0.8
"""Token F1 from which an answer does."""

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]


class TfIdf:
    """(N, V) unit vectors of texts: words and neighbours as lemmas, weighted by rarity."""

    name = "TF-IDF"

    def __init__(self, texts: Sequence[str]) -> None:
        count = Counter(w for text in {*texts} for w in {*self._words(text)})
        self._index = {w: i for i, w in enumerate(sorted(count))}
        self._weight = np.array(
            [math.log((1 + len(texts)) / (1 + count[w])) + 1 for w in self._index], np.float32
        )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        made = np.zeros((len(texts), len(self._index)), np.float32)
        for row, text in zip(made, texts, strict=True):
            for word in self._words(text):
                if word in self._index:
                    row[self._index[word]] += self._weight[self._index[word]]
        size = np.linalg.norm(made, axis=1, keepdims=True)
        return np.asarray(made / np.maximum(size, 1e-9))

    def _words(self, text: str) -> list[str]:
        return [lemma(t.lower) for t in tokenize(text) if t.text[0].isalnum()]


class Sentences:
    """(N, d) unit vectors by a sentence encoder of transformers: the mean over its tokens."""

    name = "MiniLM"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        new = sorted({t for t in texts if t not in self._known}, key=len)
        for i in range(0, len(new), 64):
            part = new[i : i + 64]
            rows = self._tokenizer(
                part, padding=True, truncation=True, max_length=48, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self._model(**rows).last_hidden_state
            mask = rows["attention_mask"][:, :, None]
            mean = (states * mask).sum(1) / mask.sum(1)
            mean = torch.nn.functional.normalize(mean, dim=1).numpy()
            self._known.update(zip(part, mean, strict=True))
        return np.stack([self._known[t] for t in texts])


def said(item: Item) -> str:
    """A question with its answer."""
    return f"{item.question} {item.answers[0]}"


def semantic(made: Sequence[Item], wanted: Sequence[Item], encode: Encoder) -> tuple[float, float]:
    """Eq. 9, in per cent: the mean of the best cosine of each wanted question with a generated one
    on the same procedure, and the share that reaches ``THRESHOLD``.
    """
    by_text = _grouped(made)
    best = []
    for about, rows in _grouped(wanted).items():
        own = by_text.get(about, [])
        if not own:
            best += [0.0] * len(rows)
            continue
        cosines = encode([said(i) for i in rows]) @ encode(sorted({said(i) for i in own})).T
        best += [float(c) for c in cosines.max(1)]
    if not best:
        return 0.0, 0.0
    return 100 * float(np.mean(best)), 100 * float(np.mean(np.array(best) >= THRESHOLD - 1e-6))


def answered(made: Sequence[Item], wanted: Sequence[Item]) -> float:
    """Eq. 8, in per cent: wanted questions whose answer a generated pair on the text has too."""
    by_text = {k: {i.answers[0] for i in rows} for k, rows in _grouped(made).items()}
    hits = [
        any(f1(a, b) >= MATCH for a in by_text.get(item.about, ()) for b in item.answers)
        for item in wanted
    ]
    return 100 * float(np.mean(hits)) if hits else 0.0


def _grouped(items: Sequence[Item]) -> Mapping[int, list[Item]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.about, []).append(item)
    return found


def distinct_2(questions: Sequence[str]) -> float:
    """Eq. 10, in per cent: different pairs of neighbouring words among all of them."""
    pairs = [p for q in questions for p in _neighbours(q)]
    return 100 * len({*pairs}) / max(len(pairs), 1)


def _neighbours(question: str) -> list[tuple[str, str]]:
    words = re.findall(r"\w+", question.lower())
    return [*itertools.pairwise(words)]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; 0 where one side is constant."""
    ranks = []
    for values in (np.asarray(a, float), np.asarray(b, float)):
        order = np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])
        ranks.append(order - order.mean())
    size = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    return float(ranks[0] @ ranks[1] / size) if size else 0.0


class Bank:
    """A reader without training: the answer of the most similar generated question.

    With ``step``: a question from the same step is taken to be a little more similar.
    """

    BONUS = 0.2

    def __init__(self, pairs: Mapping[int, Sequence[Any]], encode: Encoder | None = None) -> None:
        self._pairs = pairs
        self._encode = encode or TfIdf([p.question for rows in pairs.values() for p in rows])
        self._vectors: dict[int, NDArray[np.float32]] = {}

    def __call__(self, items: Sequence[Item]) -> list[str]:
        found = []
        for item in items:
            rows = self._pairs.get(item.about, ())
            if not rows:
                found.append("")
                continue
            if item.about not in self._vectors:
                self._vectors[item.about] = self._encode([p.question for p in rows])
            scores = self._vectors[item.about] @ self._encode([item.question])[0]
            if item.step is not None:
                scores = scores + self.BONUS * np.array([p.step == item.step for p in rows])
            found.append(rows[int(scores.argmax())].answer)
        return found


def retrieved(texts: Mapping[int, Sequence[str]], items: Sequence[Item]) -> list[str]:
    """A rule: the step or material that shares most rare words with the question."""
    found = []
    for item in items:
        rows = texts[item.about]
        bags = [{*content(r)} for r in rows]
        count = Counter(w for bag in bags for w in bag)
        asked = {*content(item.question)}
        scores = [sum(math.log(1 + len(rows) / count[w]) for w in bag & asked) for bag in bags]
        found.append(rows[int(np.argmax(scores))] if rows else "")
    return found
