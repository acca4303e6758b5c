"""Rows of the experiment on a language model: which of a mixture serve the target?

The mixture: questions with their own answers, questions with another question's answer (CookDial's
human dialogues), continuations of WikiText. The target: right pairs of other dialogues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.interfaces import Data

from .tasks import IGNORED

DATA = [
    Data(
        "CookDial", "MIT", "400 questions and answers of a mixture, 64 of the target, 128 held out"
    ),
    Data("WikiText-2", "CC BY-SA 3.0", "200 continuations of the mixture"),
]
Row = dict[str, list[int]]
"""``input_ids`` and ``labels``, which are -100 on the prompt."""
RIGHT, WRONG, IRRELEVANT = 0, 1, 2


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows, of their tokens, and of steps."""

    third: int = 200
    target: int = 64
    held_out: int = 128
    tokens: int = 32
    steps: int = 300


QUICK = Sizes(third=8, target=8, held_out=8, tokens=32, steps=3)


@dataclass(frozen=True)
class Rows:
    """What one seed trains on and is tested on; no dialogue is in two of the three sets."""

    train: list[Row]
    kind: Tensor
    """(N,) RIGHT, WRONG or IRRELEVANT."""
    target: list[Row]
    held_out: list[Row]


def read_rows(data: Path, tokenizer: Any, sizes: Sizes, seed: int) -> Rows:
    """The rows of a seed, from pairs that fit in ``sizes.tokens``. InputError where ``data`` lacks
    the dialogues or WikiText."""
    dialogues = sorted((data / "procedures" / "cookdial" / "dialog").glob("*.json"))
    wiki = data / "wikitext-2" / "valid.txt"
    if not dialogues or not wiki.is_file():
        raise InputError(
            f"--data {data}: --base language=... needs procedures/cookdial/dialog/*.json and "
            "wikitext-2/valid.txt there."
        )

    def fits(pair: tuple[str, str]) -> bool:
        return len(encode(tokenizer, *pair, 4096)["input_ids"]) <= sizes.tokens

    dice = torch.Generator().manual_seed(seed)
    known: set[str] = set()
    wanted = [sizes.target, sizes.held_out, 2 * sizes.third]
    sets: list[list[tuple[str, str]]] = [[], [], []]
    for i in torch.randperm(len(dialogues), generator=dice).tolist():
        place = next((p for p in range(3) if len(sets[p]) < wanted[p]), None)
        if place is not None:  # each answer once, so that another question's is never the same
            found = [pair for pair in pairs(dialogues[i]) if pair[1] not in known and fits(pair)]
            found = list({answer: (question, answer) for question, answer in found}.values())
            known |= {answer for _, answer in found}
            sets[place] += found
    if any(len(s) < w for s, w in zip(sets, wanted, strict=True)):
        raise InputError(f"--data {data}: too few dialogues in procedures/cookdial.")
    target, held_out, mixture = (
        [s[i] for i in torch.randperm(len(s), generator=dice)[:w].tolist()]
        for s, w in zip(sets, wanted, strict=True)
    )
    right, questions = mixture[: sizes.third], mixture[sizes.third :]
    others = questions[1:] + questions[:1]
    wrong = [(one[0], other[1]) for one, other in zip(questions, others, strict=True)]
    irrelevant = continuations(wiki.read_text("utf-8"), right, dice)

    def encoded(rows: Sequence[tuple[str, str]]) -> list[Row]:
        return [encode(tokenizer, prompt, answer, sizes.tokens) for prompt, answer in rows]

    kind = torch.arange(3).repeat_interleave(sizes.third)
    return Rows(encoded([*right, *wrong, *irrelevant]), kind, encoded(target), encoded(held_out))


def pairs(dialogue: Path) -> list[tuple[str, str]]:
    """Questions of the person in a dialogue, and the answer that follows each."""
    turns = json.loads(dialogue.read_text("utf-8"))["messages"]
    return [
        (f"{a['utterance'].strip()}\n", b["utterance"].strip())
        for a, b in pairwise(turns)
        if not a["bot"] and b["bot"] and "?" in a["utterance"]
    ]


def continuations(
    text: str, like: Sequence[tuple[str, str]], dice: torch.Generator
) -> list[tuple[str, str]]:
    """Starts of paragraphs and how they go on, as many words each as the pairs ``like``: the
    length of a row says nothing of its kind."""
    for mark in ("-", ",", "."):
        text = text.replace(f" @{mark}@ ", mark)
    paragraphs = [p.split() for p in text.splitlines() if p.strip() and not p.startswith(" =")]
    longest = max(len(a.split()) + len(b.split()) for a, b in like)
    paragraphs = [p for p in paragraphs if len(p) > longest]
    if len(paragraphs) < len(like):
        raise InputError("wikitext-2/valid.txt has too few paragraphs.")
    order = torch.randperm(len(paragraphs), generator=dice)[: len(like)].tolist()
    found = []
    for i, (prompt, answer) in zip(order, like, strict=True):
        start, words = len(prompt.split()), len(answer.split())
        chosen = paragraphs[i][: start + words]
        found.append((" ".join(chosen[:start]), " " + " ".join(chosen[start:])))
    return found


def encode(tokenizer: Any, prompt: str, answer: str, most: int) -> Row:
    """A row of at most ``most`` tokens, of which the prompt has at most three quarters; labels are
    the answer and the end."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"][: 3 * most // 4]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    after = after[: most - len(before)]
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}
