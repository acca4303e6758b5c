"""A small language model with outliers in its channels: what is measured without a download."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.calibration import texts

from .families import Layer, describe
from .learn import last_hidden
from .method import Fitted, compare, fit
from .original import opened
from .passages import Words
from .recipe import Recipe
from .transform import divisors, fold, shape

MODEL = "tiny-lm"
FACTOR, SHARE = 32.0, 0.03
"""How large outliers are, and in which share of the channels."""
LENGTH = 64
"""Tokens of a window: the texts are short."""
TESTS = 4
"""Windows that nothing is learned from."""


@torch.no_grad()
def plant(layers: Sequence[Layer], seed: int, factor: float = FACTOR) -> None:
    """Make some channels of n1, n2, v and up larger, and what reads them smaller: the function
    stays, its activations become hard to quantize.
    """
    dice = torch.Generator().manual_seed(seed)
    for layer in layers:
        scales = {}
        for pair in ("n1", "n2", "vo", "ud"):
            chosen = torch.rand(shape(layer, pair), generator=dice) < SHARE
            scales[pair] = torch.where(chosen, 1 / factor, 1.0)
        fold(layer, divisors(layer, scales))


@dataclass(frozen=True)
class Planted:
    """The model with its outliers, windows to learn from and windows to test on."""

    original: Any
    lessons: Tensor
    tests: Tensor
    wanted: Sequence[Tensor]

    @classmethod
    def made(cls, seed: int, model: Any = MODEL) -> Planted:
        """From tiny-lm, on zoo's own texts."""
        found = opened(model)
        plant(describe(found.network), seed)
        words, text = Words(found.tokenizer, LENGTH), "\n\n".join(texts())
        rows = words.windows(text, len(words.ids(text)) // (LENGTH - 1))
        with torch.no_grad():
            wanted = [last_hidden(found.network, row)[1] for row in rows[-TESTS:]]
        return cls(found.network, rows[:-TESTS], rows[-TESTS:], wanted)

    def network(self) -> Any:
        """A copy to quantize."""
        return deepcopy(self.original)

    def fitted(self, network: Any, recipe: Recipe, seed: int) -> Fitted:
        """Quantize a copy."""
        return fit(network, describe(network), self.lessons, recipe, seed=seed)

    def compared(self, network: Any) -> dict[str, float]:
        """A copy against the model."""
        return compare(network, self.tests, self.wanted)
