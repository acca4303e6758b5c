"""A general language model as the rival: it answers the same questions, and writes pairs itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .facts import UNSTATED
from .questions import Pair
from .text import Part, Procedure

ASK = (
    "Answer the question about the text in as few words as possible, with words from the text. "
    f'If the text does not say it, answer "{UNSTATED}".'
)
WRITE = (
    "Write three different questions about the text, each with a short answer copied from the "
    "text. Use this form for each:\nQ: question\nA: answer"
)
SHOWN = (
    ("1. Boil the rice for 12 minutes.\n2. Drain it.", "How long do I boil it?", "12 minutes"),
    ("1. Open the lid.\n2. Wipe the seal with a cloth.", "What do I wipe it with?", "a cloth"),
    ("1. Glue the leg on.\n2. Clamp it overnight.", "What kind of glue do I need?", UNSTATED),
)
"""The three examples of answers."""
PAIRS_SHOWN = (
    (
        "Boil the rice for 12 minutes in salted water.",
        (
            ("How long do I boil the rice?", "12 minutes"),
            ("What do I boil the rice in?", "salted water"),
            ("What do I boil?", "the rice"),
        ),
    ),
    (
        "2 large M6 bolts, cut to length",
        (
            ("How many bolts do I need?", "2"),
            ("What size of bolts do I need?", "M6"),
            ("What do I do with the bolts first?", "cut to length"),
        ),
    ),
)
"""Two examples of three pairs each: without them the smallest models write no pair at all."""
ANSWER_TOKENS, PAIR_TOKENS = 24, 72
BATCH = 8
PAIRS = re.compile(r"Q\s*\d*[:.]\s*(?P<q>.+?)\s*\n+\s*A\s*\d*[:.]\s*(?P<a>.+)")


class Rival:
    """A causal language model of transformers with its chat template; greedy.

    What prompts have in common is read once, and their continuations are written together: the
    cheapest way that gives the same tokens as one prompt after the other.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval().to(device)
        self.parameters = sum(p.numel() for p in model.parameters())

    def answers(self, asked: Sequence[tuple[str, str]], examples: int = 0) -> list[str]:
        """The first line of its answer to each (text, question). ``examples``: 0 to 3."""
        head = [{"role": "system", "content": ASK}]
        for text, question, said in SHOWN[:examples]:
            head += [_user(_about(text, question)), {"role": "assistant", "content": said}]
        chats = [[*head, _user(_about(*one))] for one in asked]
        return [_short(said) for said in self._written(chats, ANSWER_TOKENS, 1)]

    def pairs(self, about: Procedure) -> list[Pair]:
        """The pairs that it writes about each line of the list and each step.

        Each is a prompt of its own, because a small model writes few pairs about a whole text.
        Those whose answer is not in that line are left out.
        """
        parts: list[tuple[int | None, Part]] = [(None, part) for part in about.materials]
        parts += enumerate(about.steps)
        head = [{"role": "system", "content": WRITE}]
        for text, made in PAIRS_SHOWN:
            told = "\n".join(f"Q: {question}\nA: {answer}" for question, answer in made)
            head += [_user(text), {"role": "assistant", "content": told}]
        found: list[Pair] = []
        for i in range(0, len(parts), BATCH):
            some = parts[i : i + BATCH]
            chats = [[*head, _user(about.of(part))] for _, part in some]
            for (step, part), said in zip(some, self._written(chats, PAIR_TOKENS, 6), strict=True):
                found += parsed(said, about.text, part, step)
        return found

    @torch.inference_mode()
    def _written(
        self, chats: Sequence[Sequence[dict[str, str]]], most: int, lines: int
    ) -> list[str]:
        """At most ``most`` tokens of each chat's next turn, and as many lines."""
        rows = [self._tokens(chat) for chat in chats]
        least = min(map(len, rows)) - 1  # each has a token of its own to begin with
        alike = (len({*column}) == 1 for column in zip(*rows, strict=False))
        shared = sum(itertools.takewhile(bool, itertools.islice(alike, least)))
        width = max(map(len, rows)) - shared
        ends = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), shared + width, dtype=torch.long)
        mask[:, :shared] = 1
        for i, row in enumerate(rows):
            ends[i, width - len(row) + shared :] = torch.tensor(row[shared:])
            mask[i, len(mask[i]) - len(row) + shared :] = 1
        cache = None
        if shared:
            head = torch.tensor([rows[0][:shared]], device=self._model.device)
            cache = self._model(head, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(rows))
        ends, mask = ends.to(self._model.device), mask.to(self._model.device)
        places = mask.cumsum(1)[:, shared:].sub(1).clamp(0)
        told: list[list[int]] = [[] for _ in rows]
        over = [False] * len(rows)
        while not all(over) and len(told[0]) < most:
            made = self._model(
                ends, attention_mask=mask, position_ids=places, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache, ends = made.past_key_values, made.logits[:, -1:].argmax(2)
            for i, token in enumerate(ends[:, 0].tolist()):
                told[i].append(token)
                over[i] |= token == self._tokenizer.eos_token_id
                over[i] |= self._tokenizer.decode(told[i]).lstrip().count("\n") >= lines
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            places = places[:, -1:] + 1
        return [self._said(row) for row in told]

    def _tokens(self, chat: Sequence[dict[str, str]]) -> list[int]:
        prompt = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        tokens: list[int] = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return tokens

    def _said(self, tokens: Sequence[int]) -> str:
        end = self._tokenizer.eos_token_id
        kept = [*itertools.takewhile(lambda token: token != end, tokens)]
        said: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return said.strip()


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _about(text: str, question: str) -> str:
    return f"{text}\n\nQuestion: {question}"


def _short(said: str) -> str:
    return said.splitlines()[0].strip().strip('"').rstrip(".") if said else ""


def parsed(said: str, text: str, part: Part, step: int | None = None) -> list[Pair]:
    """The pairs in what a model wrote whose answer stands in this part of the text, none twice."""
    found: dict[str, Pair] = {}
    low = text.lower()
    for match in PAIRS.finditer(said):
        question, answer = match["q"].strip(), match["a"].strip().strip('"').rstrip(".")
        start = -1
        if answer and len(low) == len(text):
            start = low.find(answer.lower(), part.start, part.end)
        if start >= 0 and question not in found:
            end = start + len(answer)
            found[question] = Pair(question, text[start:end], (), "written", None, step, start, end)
    return list(found.values())
