"""Small worlds with outliers, made of tiny-lm: what is measured without a download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .families import Layer, describe
from .learn import last_hidden
from .method import Fitted, compare, fit
from .original import opened
from .passages import Words
from .recipe import Recipe
from .transform import divisors, fold, shape

MODEL = "tiny-lm"
FACTOR, SHARE = 32.0, 0.03
"""How large outliers of channels are, and in which share of the channels."""
GATE, UP = 60.0, 10.0
"""What the neuron of the first position gives there: gate and up, so 600 of both together."""
LENGTH, LESSONS, TESTS = 128, 20, 12
"""Tokens of a window, windows to learn from, windows to test on."""


@torch.no_grad()
def channels(network: Any, rows: Tensor) -> None:
    """Make some channels of n1, n2, v and up larger, and what reads them smaller: the function
    stays, its activations become hard to quantize.
    """
    dice = torch.Generator().manual_seed(0)
    for layer in describe(network):
        scales = {}
        for pair in ("n1", "n2", "vo", "ud"):
            chosen = torch.rand(shape(layer, pair), generator=dice) < SHARE
            scales[pair] = torch.where(chosen, 1 / FACTOR, 1.0)
        fold(layer, divisors(layer, scales))


@torch.no_grad()
def first_position(network: Any, rows: Tensor) -> None:
    """Let a neuron of the first layer answer to the first position alone, with massive values in
    two channels of the residual, as real language models have them. No transformation of channels
    undoes that. (The function changes: what is compared with is the network that has the neuron.)
    """
    layer = describe(network)[0]
    states = torch.stack([_read(layer, network, row) for row in rows])
    first, rest = states[:, 0].mean(0), states[:, 1:].flatten(0, 1)
    spread = rest.T.cov() + 1e-2 * torch.eye(len(first))
    direction = torch.linalg.solve(spread, first - rest.mean(0))
    direction /= direction @ first
    layer.linears["gate"].weight[0] = GATE * direction
    layer.linears["up"].weight[0] = UP * direction
    column = layer.linears["down"].weight[:, 0].zero_()
    column[0], column[1] = 1.0, -1.0


def _read(layer: Layer, network: Any, row: Tensor) -> Tensor:
    """(T,H): n2 of a layer for a window (T,)."""
    seen: list[Tensor] = []
    hook = layer.norms["n2"].register_forward_hook(lambda norm, args, given: seen.append(given))
    last_hidden(network, row)
    hook.remove()
    return seen[0][0]


@dataclass(frozen=True)
class World:
    """A model with outliers, windows to learn from and windows to test on."""

    original: Any
    lessons: Tensor
    tests: Tensor
    wanted: Sequence[Tensor]

    @classmethod
    def made(cls, plant: Callable[[Any, Tensor], None]) -> World:
        """Of tiny-lm, on the text that comes with it, which it did not learn."""
        found = opened(MODEL)
        text = "\n\n".join(found.calibration or ())
        rows = Words(found.tokenizer, LENGTH).windows(text, LESSONS + TESTS)
        plant(found.network, rows[:-TESTS])
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
