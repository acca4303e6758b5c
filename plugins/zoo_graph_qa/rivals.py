"""A general language model as the rival: it answers the same questions, and writes pairs itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .candidates import Candidates
from .facts import UNSTATED
from .questions import Pair

ASK = (
    "Answer the question about the text in as few words as possible, with words from the text. "
    f'If the text does not say it, answer "{UNSTATED}".'
)
WRITE = (
    "Write {count} different questions about this text, each with a short answer copied from the "
    "text. Use this form for each:\nQ: question\nA: answer"
)
SHOWN = (
    ("1. Boil the rice for 12 minutes.\n2. Drain it.", "How long do I boil it?", "12 minutes"),
    ("1. Open the lid.\n2. Wipe the seal with a cloth.", "What do I wipe it with?", "a cloth"),
    ("1. Glue the leg on.\n2. Clamp it overnight.", "What kind of glue do I need?", UNSTATED),
)
"""The three examples."""
NEW_TOKENS = 32
PAIR_TOKENS = 320
PAIRS = re.compile(r"Q\s*\d*[:.]\s*(?P<q>.+?)\s*\n+\s*A\s*\d*[:.]\s*(?P<a>.+)")


class Rival:
    """A causal language model of transformers with its chat template; greedy."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval().to(device)
        self.parameters = sum(p.numel() for p in model.parameters())

    def answer(self, question: str, text: str, examples: int = 0) -> str:
        """The first line of its answer. ``examples``: 0 to 3."""
        messages = [{"role": "system", "content": ASK}]
        for shown, asked, said in SHOWN[:examples]:
            messages += [
                {"role": "user", "content": f"{shown}\n\nQuestion: {asked}"},
                {"role": "assistant", "content": said},
            ]
        messages.append({"role": "user", "content": f"{text}\n\nQuestion: {question}"})
        said = self._said(messages, NEW_TOKENS).strip()
        return said.splitlines()[0].strip().strip('"').rstrip(".") if said else ""

    def pairs(self, about: Candidates, count: int = 10) -> list[Pair]:
        """The pairs that it writes about a procedure; those whose answer is in the text."""
        text = about.graph.procedure.text
        prompt = f"{text}\n\n{WRITE.format(count=count)}"
        said = self._said([{"role": "user", "content": prompt}], PAIR_TOKENS)
        return parsed(said, text)

    @torch.inference_mode()
    def _said(self, messages: Sequence[dict[str, str]], tokens: int) -> str:
        prompt = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        row = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        row = {k: v.to(self._model.device) for k, v in row.items() if k != "token_type_ids"}
        made = self._model.generate(**row, max_new_tokens=tokens, do_sample=False)
        said: str = self._tokenizer.decode(made[0, row["input_ids"].shape[1] :], True)
        return said


def parsed(said: str, text: str) -> list[Pair]:
    """The pairs in what a model wrote whose answer stands in the text, none twice."""
    found: dict[str, Pair] = {}
    low = text.lower()
    for match in PAIRS.finditer(said):
        question, answer = match["q"].strip(), match["a"].strip().strip('"').rstrip(".")
        start = low.find(answer.lower()) if answer and len(low) == len(text) else -1
        if start >= 0 and question not in found:
            end = start + len(answer)
            found[question] = Pair(question, text[start:end], (), "written", None, None, start, end)
    return list(found.values())
