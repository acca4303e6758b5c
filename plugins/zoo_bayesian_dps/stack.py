"""The upper part of a language model, trained on packed rows; the lower part is run once a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import MissingDependencyError

from .instructions import Row
from .tasks import IGNORED


class Stack:
    """The upper fifth of a causal language model, on what the frozen layers below give each row."""

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
        self.cut = 4 * len(layers) // 5
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
        packed = torch.cat([torch.tensor([*row["labels"][1:], IGNORED]) for row in rows])
        return {
            "labels": labels,
            "inputs_embeds": torch.cat([self.below(row["input_ids"]) for row in rows])[None],
            "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
            "logits_to_keep": (packed != IGNORED).nonzero()[:, 0],
        }

    def adapted(self, seed: int) -> nn.Module:
        """A copy with LoRA on every linear layer, of the seed's first weights."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft is behind transformers
            torch.manual_seed(seed)
            config = self.peft.LoraConfig(
                r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            net: nn.Module = self.peft.get_peft_model(deepcopy(self.net), config)
            net.config.use_cache = False  # type: ignore[union-attr]
            return net


def answer_loss(output: Any, batch: Any) -> Tensor:
    """(B,) mean negative log-likelihood of the answer's tokens, in nats."""
    wanted = batch["labels"][:, 1:]
    counted = wanted != IGNORED
    losses = torch.zeros(wanted.shape, device=wanted.device)
    losses[counted] = functional.cross_entropy(
        output.logits[0].float(), wanted[counted], reduction="none"
    )
    return losses.sum(1) / counted.sum(1).clamp_min(1)


def forward(net: Callable[..., Any], batch: Any) -> Tensor:
    """(B,) losses of a batch of ``Stack.collate``."""
    return answer_loss(net(**{k: v for k, v in batch.items() if k != "labels"}), batch)


def losses_of(net: nn.Module, stack: Stack, rows: Sequence[Row]) -> Tensor:
    """(N,) of rows, in float32."""
    net.eval()
    with torch.no_grad():
        parts = [rows[i : i + 16] for i in range(0, len(rows), 16)]
        return torch.cat([forward(net, stack.collate(part)) for part in parts])
