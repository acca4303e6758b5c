"""The reader's network: it points at one of the candidates. Page: eqs. 6 and 7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.interfaces import QAPair

from .candidates import FEATURES, KINDS, WORDS, Candidates, Question, question
from .facts import UNSTATED

WIDTH, KIND_WIDTH, HIDDEN = 32, 16, 64
DROPPED = 0.3
"""Share of a question's words that are left out in training: people use others than templates."""


class Pointer(nn.Module):
    """A score for each candidate, from the question's words, the candidate's kind, and features."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(WORDS, WIDTH))  # a word never seen says nothing
        self.kinds = nn.Parameter(torch.randn(len(KINDS), KIND_WIDTH) * 0.1)
        self.asked = nn.Linear(WIDTH, KIND_WIDTH)
        self.hidden = nn.Linear(WIDTH + KIND_WIDTH + FEATURES, HIDDEN)
        self.linear = nn.Parameter(torch.zeros(len(KINDS), FEATURES))
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, batch: Batch) -> Tensor:
        """(B, C) scores; minus infinity where there is no candidate."""
        meant = nn.functional.embedding_bag(
            batch.words, self.words, batch.offsets, mode="mean"
        )  # (B, WIDTH)
        kinds = self.kinds[batch.kinds]  # (B, C, KIND_WIDTH)
        typed = (kinds * self.asked(meant)[:, None]).sum(2)
        # hidden([meant; kinds; features]), with what candidates share computed once
        of_q, of_kind, of_f = self.hidden.weight.split((WIDTH, KIND_WIDTH, FEATURES), 1)
        inner = torch.addmm(self.hidden.bias, meant, of_q.T)[:, None] + batch.features @ of_f.T
        inner = torch.relu(inner + (self.kinds @ of_kind.T)[batch.kinds])
        plain = (self.linear[batch.kinds] * batch.features).sum(2)
        scores = self.out(inner).squeeze(2) + typed + plain
        return scores.masked_fill(~batch.there, -torch.inf)

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 7: minus the logarithm of the right candidates' probability, mean over questions."""
        scores = self(batch)
        assert batch.gold is not None
        right = scores.masked_fill(~batch.gold, -torch.inf).logsumexp(1)
        return (scores.logsumexp(1) - right).mean()


@dataclass(frozen=True)
class Batch:
    """Questions with their candidates, filled up to the longest list."""

    words: Tensor
    """Buckets of all questions, one after the other; ``offsets`` (B,) are their beginnings."""
    offsets: Tensor
    kinds: Tensor
    """(B, C)"""
    features: Tensor
    """(B, C, FEATURES)"""
    there: Tensor
    """(B, C) bool"""
    gold: Tensor | None = None


@dataclass(frozen=True)
class Example:
    """A question to learn from; ``about`` is shared by all questions on a procedure."""

    about: Candidates
    asked: Question
    gold: NDArray[np.bool_]
    features: NDArray[np.float16]
    """(C, FEATURES), as ``Candidates.features``."""
    kind: str = ""
    """Type of the question, yes and no apart."""


class Lessons:
    """Examples as batches: all types of questions equally often, some of their words left out."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        count = Counter(e.kind for e in examples)
        weights = np.array([1 / count[e.kind] for e in examples])
        self._weights = weights / weights.sum()

    def __len__(self) -> int:
        return len(self._examples)

    def draw(
        self, rng: np.random.Generator, count: int, device: torch.device | str = "cpu"
    ) -> Batch:
        """``count`` examples, some perhaps twice."""
        chosen = rng.choice(len(self._examples), count, p=self._weights)
        return batched([_shortened(self._examples[i], rng) for i in chosen], device)


def _shortened(example: Example, rng: np.random.Generator) -> Example:
    words = example.asked.words
    kept = np.array(words)[rng.random(len(words)) >= DROPPED].tolist()
    asked = replace(example.asked, words=tuple(kept) or words)
    return replace(example, asked=asked)


def batched(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """The batch of some examples."""
    most = max(len(e.gold) for e in examples)
    count = len(examples)
    kinds = np.zeros((count, most), np.int64)
    features = np.zeros((count, most, FEATURES), np.float32)
    there = np.zeros((count, most), bool)
    gold = np.zeros((count, most), bool)
    words: list[int] = []
    offsets = []
    for i, example in enumerate(examples):
        size = len(example.gold)
        kinds[i, :size] = example.about.kinds
        features[i, :size] = example.features
        there[i, :size] = True
        gold[i, :size] = example.gold
        offsets.append(len(words))
        words += example.asked.words
    arrays = [np.array(words, np.int64), np.array(offsets, np.int64), kinds, features, there, gold]
    return Batch(*(torch.from_numpy(a).to(device) for a in arrays))


def right(about: Candidates, pair: QAPair) -> NDArray[np.bool_]:
    """(C,) which candidates are the pair's answer: a step, or a part of one."""
    if pair.start is None:
        kind = {"yes": "yes", "no": "no", UNSTATED: "none"}.get(pair.answer, "number")
        return np.asarray(about.kinds == KINDS.index(kind))
    starts, ends = about.places
    exact = (starts == pair.start) & (ends == pair.end)
    parts = exact & (about.kinds != KINDS.index("step"))
    return parts if pair.kind not in STEPS and parts.any() else np.asarray(exact)


STEPS = frozenset(
    "do usedin after before first last nth madefrom again parallel during mention".split()
)
"""Types whose answer is a step."""


def examples(
    about: Candidates,
    pairs: Sequence[QAPair],
    rng: np.random.Generator,
    hints: float = 0.5,
) -> list[Example]:
    """Those of the pairs whose answer is a candidate.

    ``hints``: share of the questions that come with the step that the person is at, which is in one
    of five the step before or after.
    """
    kept: list[tuple[Question, NDArray[np.bool_]]] = []
    kinds: list[str] = []
    for pair in pairs:
        gold = right(about, pair)
        step = None
        if pair.step is not None and rng.random() < hints:
            step = max(0, pair.step + int(rng.choice([0, 0, 0, 0, 0, 0, 0, 0, -1, 1])))
        if gold.any():
            kept.append((question(pair.question, step), gold))
            said = f" {pair.answer}" if pair.answer in ("yes", "no") else ""
            kinds.append(pair.kind + said)
    found = made(about, kept)
    return [replace(one, kind=kind) for one, kind in zip(found, kinds, strict=True)]


def made(about: Candidates, asked: Sequence[tuple[Question, NDArray[np.bool_]]]) -> list[Example]:
    """Examples of questions with their right candidates."""
    found: list[Example] = []
    for i in range(0, len(asked), 256):  # bounds the memory of long texts
        part = asked[i : i + 256]
        features = about.features([q for q, _ in part]).astype(np.float16)
        found += [Example(about, q, g, f) for (q, g), f in zip(part, features, strict=True)]
    return found
