"""How good a language model is on somebody's text: perplexity, and choices between answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.progress import Progress, track

WINDOW = 255
"""Tokens of text in a window, beside the one that it begins with."""


@dataclass(frozen=True)
class Choice:
    """A question, what may be answered, and which of it is right."""

    question: str
    choices: Sequence[str]
    answer: int


def read_text(path: Path) -> str:
    """A UTF-8 file that is not empty. Raises InputError."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not text.strip():
        raise InputError(f"{path} is empty.")
    return text


def read_choices(path: Path) -> list[Choice]:
    """A JSONL file: ``question``, ``choices`` (texts), ``answer`` (its number, from 0, or itself)
    on each line. Raises InputError with the line that is wrong.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, choices, answer = row["question"], row["choices"], row["answer"]
            if isinstance(answer, str):
                answer = choices.index(answer)
            right = isinstance(question, str) and isinstance(choices, list) and len(choices) > 1
            right = right and all(isinstance(c, str) and c for c in choices)
            right = right and type(answer) is int and 0 <= answer < len(choices)
            if not right:
                raise ValueError("a value is of the wrong kind")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f'{path}, line {number}: expected {{"question": text, "choices": [text, ...], '
                f'"answer": number or text}} ({error}).'
            ) from None
        found.append(Choice(question, choices, answer))
    return found


def text_windows(tokenizer: Any, text: str, length: int = WINDOW) -> list[Tensor]:
    """Windows (T,) of a text's tokens, each after the token that texts begin with, if any."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = _begin(tokenizer)
    if len(ids) < 2:
        raise InputError("the text has fewer than two tokens.")
    parts = [part for part in ids.split(length) if len(part) > 1]
    return [torch.cat([torch.tensor(begin, dtype=torch.long), part]) for part in parts]


@torch.no_grad()
def perplexity(
    model: Callable[[Tensor], Any],
    tokenizer: Any,
    text: str,
    device: Any = "cpu",
    progress: Progress = False,
    length: int = WINDOW,
) -> dict[str, float]:
    """``perplexity`` of a text's tokens, in windows of ``length``, and how many they are."""
    total, count = 0.0, 0
    windows = text_windows(tokenizer, text, length)
    first = len(_begin(tokenizer))
    with track(len(windows), progress, "perplexity") as advance:
        for row in windows:
            logs = _logs(model, row.to(device))
            scored = logs[max(first - 1, 0) :].gather(1, row.to(device)[max(first, 1) :, None])
            total, count = total - float(scored.sum()), count + len(scored)
            advance()
    return {"perplexity": math.exp(min(total / count, 700)), "tokens": float(count)}


@torch.no_grad()
def accuracy(
    model: Callable[[Tensor], Any],
    tokenizer: Any,
    items: Sequence[Choice],
    device: Any = "cpu",
    progress: Progress = False,
) -> list[bool]:
    """For each item, whether the right answer is the likeliest: log-likelihood after the question,
    divided by the answer's length in bytes.
    """
    right = []
    with track(len(items), progress, "choices") as advance:
        for item in items:
            before = _begin(tokenizer) + _ids(tokenizer, item.question)
            scores = [_score(model, tokenizer, before, c, device) for c in item.choices]
            right.append(max(range(len(scores)), key=lambda i: scores[i]) == item.answer)
            advance()
    return right


def _score(model: Any, tokenizer: Any, before: list[int], choice: str, device: Any) -> float:
    after = _ids(tokenizer, " " + choice)
    row = torch.tensor(before + after, device=device)
    logs = _logs(model, row)[len(before) - 1 :]
    found = float(logs.gather(1, row[len(before) :, None]).sum())
    return found / len(choice.encode())


def _logs(model: Any, row: Tensor) -> Tensor:
    """(T - 1, vocabulary): log-probabilities of each token but the first, from those before."""
    logs: Tensor = model(row[None]).logits[0, :-1].float().log_softmax(-1)
    return logs


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _begin(tokenizer: Any) -> list[int]:
    begin = getattr(tokenizer, "bos_token_id", None)
    return [] if begin is None else [begin]


def report(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table for people: one line for each model."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    width = max(map(len, rows))
    lines = [f"{'':{width}}  " + "  ".join(f"{c:>12}" for c in columns)]
    for name, row in rows.items():
        cells = (f"{row[c]:12.4g}" if c in row else " " * 12 for c in columns)
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
