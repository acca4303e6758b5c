"""The texts that the benchmark measures on, as windows of token ids, and its choices.

Windows of running text begin with ``<|endoftext|>`` (or what stands for it), those of chats as the
model's own template begins. Only ``WIKITEXT`` and the recipes come from ``--data``; code is
Python's own, and chats are written by the model itself, in float.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError

from .evaluate import Choice, read_text

LENGTH = 256
"""Tokens of a window, with the one that it begins with."""
WIKITEXT = "wikitext-2"
COOKDIAL = "procedures/cookdial/recipe"
QUESTIONS = (
    "Explain to a child why the sky is blue and why sunsets are red.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "How do I plan a week of cheap and healthy dinners for two people?",
    "What are the differences between a list and a tuple in Python? Give examples.",
)
ANSWER = 128
"""Tokens of an answer, at most."""

SPACED = (
    (r" @([-,.])@ ", r"\1"),  # 1 @,@ 000 and up @-@ to @-@ date
    (r" ([:;.!?,]) ", r"\1 "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= (?==)", "="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
"""What undoes the spaces of WikiText's words, as lm-eval does: pattern, replacement, in order."""


def plain(text: str) -> str:
    """WikiText as one would write it."""
    text = text.replace("s '", "s'")
    for pattern, replacement in SPACED:
        text = re.sub(pattern, replacement, text)
    return text


def wikitext(data: Path, part: str) -> str:
    """``valid`` or ``test``. Raises InputError where it is missing."""
    file = data / WIKITEXT / f"{part}.txt"
    if not file.is_file():
        raise InputError(f"--data {data}: expected {WIKITEXT}/{part}.txt in it.")
    return plain(read_text(file))


@dataclass(frozen=True)
class Words:
    """A tokenizer, and the tokens that running text and chats begin with."""

    tokenizer: Any
    length: int = LENGTH
    """Tokens of a window."""

    @property
    def text_begin(self) -> int:
        """``<|endoftext|>``, else what the tokenizer begins texts with."""
        known = self.tokenizer.get_vocab()
        found = known.get("<|endoftext|>", self.tokenizer.bos_token_id)
        return int(self.tokenizer.eos_token_id if found is None else found)

    @property
    def chat_begin(self) -> int:
        """The begin token, else the one of texts."""
        found = self.tokenizer.bos_token_id
        return self.text_begin if found is None else int(found)

    def ids(self, text: str) -> Tensor:
        """(n,) token ids and nothing else."""
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def windows(self, text: str, count: int, length: int | None = None) -> Tensor:
        """(count, length): the first windows of a text, each after the begin token."""
        length = length or self.length
        ids = self.ids(text)[: count * (length - 1)]
        if len(ids) < count * (length - 1):
            raise InputError(f"{count} windows of {length} tokens: the text has only {len(ids)}.")
        begin = torch.full((count, 1), self.text_begin)
        return torch.cat([begin, ids.view(count, length - 1)], 1)

    def drawn(self, ids: Tensor, count: int, seed: int) -> Tensor:
        """(count, self.length): windows of a text's ids (n,) from places drawn by chance; every
        second one begins as chats do.
        """
        dice, length = torch.Generator().manual_seed(seed), self.length
        places = torch.randint(len(ids) - length + 2, (count,), generator=dice).tolist()
        found = torch.stack([ids[at : at + length - 1] for at in places])
        begin = torch.full((count, 1), self.text_begin)
        begin[1::2] = self.chat_begin
        return torch.cat([begin, found], 1)

    def code(self, count: int) -> Tensor:
        """(count, self.length): source of Python's standard library."""
        return self.windows(inspect.getsource(textwrap), count)

    @torch.no_grad()
    def chats(self, network: Any, questions: Sequence[str] = QUESTIONS) -> Tensor:
        """(N,T): questions in the model's template, each with the greedy answer of ``network``, cut
        to the length of the shortest.
        """
        rows = []
        for question in questions:
            asked = self.ids(self._asked(question))[None]
            rows.append(network.generate(asked, max_new_tokens=ANSWER, do_sample=False)[0])
        shortest = min(map(len, rows))
        return torch.stack([row[:shortest] for row in rows])

    def _asked(self, question: str) -> str:
        if not self.tokenizer.chat_template:
            return question
        turn = [{"role": "user", "content": question}]
        said: str = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return said


def next_steps(data: Path, most: int, seed: int = 0) -> list[Choice]:
    """Which step of a recipe comes next: the right one among three of other recipes (CookDial).

    Two questions of each recipe at places drawn by chance, recipes in an order drawn by chance.
    """
    files = sorted((data / COOKDIAL).glob("*.json"))
    if len(files) < 4:
        raise InputError(f"--data {data}: expected the recipes of CookDial in {COOKDIAL}.")
    dice = random.Random(seed)
    recipes = [_recipe(json.loads(file.read_text("utf-8"))) for file in files]
    recipes = [(title, steps) for title, steps in recipes if len(steps) > 2]
    found = []
    for _ in range(2):
        for i in dice.sample(range(len(recipes)), len(recipes)):
            title, steps = recipes[i]
            at = dice.randrange(1, len(steps))
            others = dice.sample([j for j in range(len(recipes)) if j != i], 3)
            choices = [dice.choice(recipes[j][1]) for j in others]
            answer = dice.randrange(4)
            choices.insert(answer, steps[at])
            before = " ".join(steps[max(0, at - 3) : at])
            found.append(Choice(f"{title}. {before}", choices, answer))
    return found[:most]


def _recipe(found: Any) -> tuple[str, list[str]]:
    """(title, steps without their numbers)."""
    said = [part["text"] for part in found["content"] if part["type"] == "instruction"]
    return found["title"], [re.sub(r"^\d+\)\s*", "", text) for text in said]
