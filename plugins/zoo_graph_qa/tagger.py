"""The tagger: a linear-chain CRF over hashed features. Page: eqs. 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .corpora import TYPES, Labelled, Span
from .features import BITS, features
from .text import Procedure

TAGS = ("O", *(f"{b}-{kind}" for kind in TYPES for b in "BI"))
"""17 tags: outside, and the beginning and inside of each kind of span."""
FORBIDDEN = -1e4
"""Added where the inside of a span would not follow its own beginning or inside."""


def allowed() -> Tensor:
    """(18, 17): 0 where the second tag may follow the first (the last row: at the start)."""
    table = torch.zeros(len(TAGS) + 1, len(TAGS))
    for j, tag in enumerate(TAGS):
        if tag.startswith("I-"):
            kind = tag[2:]
            for i, before in enumerate((*TAGS, "O")):
                if before[2:] != kind:
                    table[i, j] = FORBIDDEN
    return table


class Tagger(nn.Module):
    """Scores of tags from features, and of a tag after another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2**BITS, len(TAGS)))
        self.follow = nn.Parameter(torch.zeros(len(TAGS) + 1, len(TAGS)))
        """[i, j]: j after i; the last row: j first."""

    def emissions(self, numbers: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, 17) scores of tokens from their (N, F) features; ``keep`` (N, F): factors of them."""
        return nn.functional.embedding_bag(
            numbers, self.weight, mode="sum", per_sample_weights=keep
        )

    def transitions(self) -> Tensor:
        """(18, 17), with what is forbidden."""
        return self.follow + allowed().to(self.follow)

    def loss(self, scores: Tensor, gold: Tensor, lengths: Tensor) -> Tensor:
        """Eq. 1, a mean. ``scores`` (B, L, 17), ``gold`` tags (B, L), ``lengths`` (B,)."""
        table = self.transitions()
        return (self.partition(scores, lengths) - self.score(scores, gold, lengths, table)).mean()

    def score(self, scores: Tensor, gold: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """(B,) score of one sequence of tags for each sentence."""
        inside = torch.arange(scores.shape[1], device=scores.device)[None] < lengths[:, None]
        emitted = scores.gather(2, gold[..., None]).squeeze(2)
        first = torch.full_like(gold[:, :1], len(TAGS))
        moved = table[torch.cat([first, gold[:, :-1]], 1), gold]
        return ((emitted + moved) * inside).sum(1)

    def partition(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """(B,) logarithm of the sum of exp(score) over all sequences."""
        table = self.transitions()
        alpha = scores[:, 0] + table[-1]
        for i in range(1, scores.shape[1]):
            step = torch.logsumexp(alpha[:, :, None] + table[None, :-1], 1) + scores[:, i]
            alpha = torch.where((i < lengths)[:, None], step, alpha)
        return torch.logsumexp(alpha, 1)


class Decoder:
    """A trained tagger as arrays: tags procedures without torch's overhead."""

    def __init__(self, tagger: Tagger) -> None:
        self.weight = tagger.weight.detach().float().cpu().numpy()
        self.table = tagger.transitions().detach().float().cpu().numpy()

    def spans(self, procedure: Procedure) -> list[list[Span]]:
        """The spans of each step, in order, with offsets in the text."""
        steps, numbers = features(procedure)
        scores = np.zeros((len(numbers), len(TAGS)), np.float32)
        for i in range(0, len(numbers), 4096):  # bounds the memory of very long texts
            scores[i : i + 4096] = self.weight[numbers[i : i + 4096]].sum(1)
        tags = viterbi(scores, [len(tokens) for tokens in steps], self.table)
        found, at = [], 0
        for tokens in steps:
            places = [(t.start, t.end) for t in tokens]
            found.append(joined(tags[at : at + len(tokens)], places))
            at += len(tokens)
        return found


def viterbi(
    scores: NDArray[np.float32], lengths: Sequence[int], table: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The best tags (N,) of consecutive sentences with (N, 17) scores: eq. 2."""
    tags = np.zeros(len(scores), np.int64)
    order = np.argsort([-n for n in lengths], kind="stable")
    starts = np.concatenate([[0], np.cumsum(lengths)])[order]
    sizes = np.array(lengths, np.int64)[order]
    for block in range(0, len(order), 256):
        first, size = starts[block : block + 256], sizes[block : block + 256]
        first, size = first[size > 0], size[size > 0]
        if not len(size):
            continue
        best = scores[first] + table[-1]
        back = np.zeros((size[0], len(size), len(TAGS)), np.int64)
        ends = [best]
        for i in range(1, size[0]):  # sentences by length: those still going on come first
            live = int((size > i).sum())
            options = best[:live, :, None] + table[None, :-1]
            back[i, :live] = options.argmax(1)
            best = options.max(1) + scores[first[:live] + i]
            ends.append(best)
        tag = np.zeros(len(size), np.int64)
        for i in range(size[0] - 1, -1, -1):
            live = int((size > i).sum())
            longer = int((size > i + 1).sum())
            if longer:
                tag[:longer] = back[i + 1, np.arange(longer), tag[:longer]]
            tag[longer:live] = ends[i][longer:live].argmax(1)
            tags[first[:live] + i] = tag[:live]
    return tags


def joined(
    tags: Sequence[int] | NDArray[np.int64], places: Sequence[tuple[int, int]]
) -> list[Span]:
    """Spans from the tags of a step's tokens at ``places``."""
    spans: list[Span] = []
    for tag, (start, end) in zip(tags, places, strict=True):
        if not tag:
            continue
        kind = TYPES[(int(tag) - 1) // 2]
        if tag % 2 == 0 and spans and spans[-1].kind == kind:
            spans[-1] = Span(kind, spans[-1].start, end)
        else:
            spans.append(Span(kind, start, end))
    return spans


def tagged(recipe: Labelled) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Training sentences: (L, F) features and (L,) tags of each step that has tokens."""
    steps, numbers = features(recipe.procedure)
    rows, golds, at = [], [], 0
    for tokens in steps:
        gold = np.zeros(len(tokens), np.int64)
        for span in recipe.spans:
            first = True
            for i, token in enumerate(tokens):
                if span.start < token.end and token.start < span.end:
                    gold[i] = 1 + 2 * TYPES.index(span.kind) + (0 if first else 1)
                    first = False
        if tokens:
            rows.append(numbers[at : at + len(tokens)])
            golds.append(gold)
        at += len(tokens)
    return rows, golds
