"""The paper's last claim, which instruction rows serve a task, on a real language model.

A mixture of questions with their own answers, questions with another question's answer (CookDial)
and continuations of WikiText; the target: right pairs of other dialogues. What is trained is LoRA
on the upper third of the model's layers. The layers below are frozen, so what they give a row is
computed once (``Stack``). Each row of the table is kept in a work folder, under a digest of the
model and the settings: a finished one is not run again, an interrupted one goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.errors import InputError, MissingDependencyError
from zoo.weights import load_tensors, save_tensors

from .baselines import auroc
from .joint import Joint
from .model import BayesianDPS, Plan
from .sampler import Recipe, WeightSampler, plain
from .tasks import IGNORED, adamw

Row = dict[str, list[int]]
"""``input_ids`` and ``labels``, which are -100 on the prompt."""
RIGHT, WRONG, IRRELEVANT = 0, 1, 2
BATCH, RATE, KEEP = 8, 5e-4, 1 / 3
"""Rows of each set a step, AdamW's rate for LoRA, and the share of the mixture that is right."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows and steps."""

    third: int = 200
    target: int = 64
    held_out: int = 128
    tokens: int = 96
    steps: int = 300


QUICK = Sizes(third=8, target=8, held_out=8, tokens=32, steps=3)


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What one seed trains on and is tested on; no dialogue is in two of the three sets."""

    train: list[Row]
    kind: Tensor
    """(N,) RIGHT, WRONG or IRRELEVANT."""
    target: list[Row]
    held_out: list[Row]


def read_rows(data: Path, tokenizer: Any, sizes: Sizes, seed: int) -> Rows:
    """The rows of a seed. InputError where ``data`` lacks the dialogues or WikiText."""
    dialogues = sorted((data / "procedures" / "cookdial" / "dialog").glob("*.json"))
    wiki = data / "wikitext-2" / "valid.txt"
    if not dialogues or not wiki.is_file():
        raise InputError(
            f"--data {data}: --base language=... needs procedures/cookdial/dialog/*.json and "
            "wikitext-2/valid.txt there."
        )
    dice = torch.Generator().manual_seed(seed)
    known: set[str] = set()
    wanted = [sizes.target, sizes.held_out, 2 * sizes.third]
    sets: list[list[tuple[str, str]]] = [[], [], []]
    for i in torch.randperm(len(dialogues), generator=dice).tolist():
        place = next((p for p in range(3) if len(sets[p]) < wanted[p]), None)
        if place is not None:  # each answer once, so that another question's is never the same
            found = [pair for pair in pairs(dialogues[i]) if pair[1] not in known]
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
    answers = questions[1:] + questions[:1]
    wrong = [(question, answer) for (question, _), (_, answer) in zip(questions, answers)]
    irrelevant = continuations(wiki.read_text("utf-8"), right, dice)

    def encoded(rows: Sequence[tuple[str, str]]) -> list[Row]:
        return [encode(tokenizer, prompt, answer, sizes.tokens) for prompt, answer in rows]

    kind = torch.arange(3).repeat_interleave(sizes.third)
    return Rows(
        encoded([*right, *wrong, *irrelevant]), kind, encoded(target), encoded(held_out)
    )


def pairs(dialogue: Path) -> list[tuple[str, str]]:
    """Questions of the person in a dialogue, and the answer that follows each."""
    turns = json.loads(dialogue.read_text("utf-8"))["messages"]
    return [
        (f"{a['utterance'].strip()}\n", b["utterance"].strip())
        for a, b in zip(turns, turns[1:])
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
    found = []
    for i, (a, b) in zip(torch.randperm(len(paragraphs), generator=dice).tolist(), like):
        start, words = len(a.split()), len(b.split())
        found.append(
            (" ".join(paragraphs[i][:start]), " " + " ".join(paragraphs[i][start : start + words]))
        )
    if len(found) < len(like):
        raise InputError("wikitext-2/valid.txt has too few paragraphs.")
    return found


def encode(tokenizer: Any, prompt: str, answer: str, most: int) -> Row:
    """A row of at most ``most`` tokens, of which the prompt has at most half; labels are the answer
    and the end."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"][: most // 2]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    after = after[: most - len(before)]
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


# --- the model ------------------------------------------------------------------------------------


class Stack:
    """The upper third of a causal language model, on what the frozen layers below give each row."""

    def __init__(self, folder: Path) -> None:
        try:
            import peft
            import transformers
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "--base language=... needs transformers and peft. Run: "
                "pip install 'edgezoo[bench]'",
                name=str(error.name),
            ) from error
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.net = transformers.AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
        ).eval()
        self.peft = peft
        layers = self.net.model.layers
        self.cut = 2 * len(layers) // 3
        self.lower = deepcopy(self.net.model)
        self.lower.layers = self.lower.layers[: self.cut + 1]
        self.net.model.layers = layers[self.cut :]
        self.hidden: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def below(self, ids: Sequence[int]) -> Tensor:
        """(T,d) what the upper layers take."""
        key = tuple(ids)
        if key not in self.hidden:
            found = self.lower(
                input_ids=torch.tensor([key]), output_hidden_states=True, use_cache=False
            )
            self.hidden[key] = found.hidden_states[self.cut][0].clone()
        return self.hidden[key]

    def collate(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Rows one after the other, without padding: positions start anew with each, and attention
        stays within a row. Logits are computed where an answer's token is next.

        ``labels`` (B,T) are padded by -100.
        """
        sizes = [len(row["input_ids"]) for row in rows]
        labels = torch.full((len(rows), max(sizes)), IGNORED)
        for i, row in enumerate(rows):
            labels[i, : sizes[i]] = torch.tensor(row["labels"])
        packed = torch.cat([torch.tensor(row["labels"][1:] + [IGNORED]) for row in rows])
        return {
            "labels": labels,
            "inputs_embeds": torch.cat([self.below(row["input_ids"]) for row in rows])[None],
            "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
            "logits_to_keep": (packed != IGNORED).nonzero()[:, 0],
        }

    def adapted(self, seed: int) -> nn.Module:
        """A copy with LoRA on every linear layer, of the seed's first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = self.peft.LoraConfig(
                r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            net: nn.Module = self.peft.get_peft_model(deepcopy(self.net), config)
            net.config.use_cache = False  # type: ignore[union-attr]
            return net


def answer_loss(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """(B,) mean negative log-likelihood of the answer's tokens, in nats."""
    wanted = batch["labels"][:, 1:]
    counted = wanted != IGNORED
    losses = output.logits.new_zeros(wanted.shape)
    losses[counted] = functional.cross_entropy(
        output.logits[0].float(), wanted[counted], reduction="none"
    )
    return losses.sum(1) / counted.sum(1).clamp_min(1)


def forward(net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """(B,) losses of a batch of ``Stack.collate``."""
    return answer_loss(net(**{k: v for k, v in batch.items() if k != "labels"}), batch)
