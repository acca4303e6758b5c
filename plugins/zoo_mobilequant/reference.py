"""A quantized Llama computed with whole numbers alone: slow, and the proof that it can be.

``Reference(model)`` turns every step and weight into whole numbers once: factors into multipliers
with a shift, exp, SiLU and the reciprocal square root into tables. From then on, from token ids to
the codes of the logits, there are sums, products, shifts, comparisons, table look-ups and one
whole-number division (of softmax). Products of weights add up in 32 bits, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError

from .families import Layer
from .quantizers import Grid

UNIT = 2.0**-14
"""Of the residual, a whole number of 32 bits."""
ANGLE = 14
"""Bits behind the point of cosines and sines."""
EXP = 15
"""Bits behind the point of exponentials."""
ROOT = 16
"""Bits that index the table of reciprocal square roots."""
RATIO = 24
"""Bits behind the point of a softmax before it becomes codes."""
LOGIT = 2.0**-16
"""Of the logits."""
LAST = Grid(torch.tensor(2.0**-10), torch.tensor(0.0), -(2**22), 2**22)
"""What the last norm reads, which no site rounds: so fine that it does not matter."""


class Factor:
    """Real numbers to multiply with, below 2^28: whole ones of 30 bits and a shift to the right."""

    def __init__(self, real: Tensor | float) -> None:
        real = torch.as_tensor(real, dtype=torch.float64)
        self.shift = (30 - torch.frexp(real).exponent.long()).clamp_max(62)
        self.number = torch.ldexp(real, self.shift).round().long()

    def __call__(self, x: Tensor) -> Tensor:
        """x times the factor, to the nearest whole number. x has at most 32 bits."""
        return (x * self.number + (1 << self.shift - 1)) >> self.shift


class Codes:
    """Whole numbers to the codes of a grid, without their zero point."""

    def __init__(self, grid: Grid, unit: Tensor | float) -> None:
        """``unit``: what 1 stands for before."""
        self.step, zero = float(grid.step), int(grid.zero)
        self.low, self.high = grid.low - zero, grid.high - zero
        self.factor = Factor(torch.as_tensor(unit, dtype=torch.float64) / self.step)

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor(x).clamp(self.low, self.high)


def product(x: Tensor, codes: Tensor) -> Tensor:
    """x (...,K) times weights (N,K), with the check that sums have 32 bits."""
    found = x @ codes.T
    assert int(found.abs().max()) < 2**31
    return found


class Norm:
    """RMS norm: the mean square enters by a table of reciprocal roots."""

    def __init__(self, norm: Any, read: Grid, given: Grid) -> None:
        weight = norm.weight.detach().double()
        size, most = len(weight), float(weight.abs().max())
        self.read = Codes(read, UNIT)
        self.weight = (weight / most * (2**15 - 1)).round().long()
        self.eps = round(size * norm.variance_epsilon / float(read.step) ** 2)
        point = 14 + ROOT // 2  # so many bits behind it have the roots, which are below 2^15
        entries = torch.arange(2**ROOT, dtype=torch.float64).clamp_min(1)
        self.roots = torch.ldexp(entries.rsqrt(), torch.tensor(point)).round().long()
        unit = most / (2**15 - 1) * size**0.5 * 2.0 ** (6 - point)
        self.given = Codes(given, unit)

    def __call__(self, x: Tensor) -> Tensor:
        codes = self.read(x)
        square = (codes * codes).sum(-1, keepdim=True) + self.eps
        high = torch.zeros_like(square)  # its highest bit
        for power in (32, 16, 8, 4, 2, 1):
            high += power * (square >> high >= 1 << power)
        half = (high + 2 - ROOT).clamp_min(0) // 2  # square = m 4^half, m an index of the table
        scaled = codes * self.weight * self.roots[square >> 2 * half]
        return self.given(scaled >> half + 6)


class Block:
    """A decoder layer."""

    def __init__(self, layer: Layer, sites: Mapping[str, Grid], codes: Any, turn: Any) -> None:
        """``sites``: tensor -> grid. ``codes``: linear layer -> its codes and steps. ``turn``:
        cosines and sines (T,d), whole numbers.
        """
        self.layer, self.turn = layer, turn
        step = {name: grid.step.double() for name, grid in sites.items()}
        self.weights: dict[str, Tensor] = {}
        self.given: dict[str, Codes] = {}
        for name, read in layer.inputs.items():
            self.weights[name], steps = codes(layer.path(name))
            self.given[name] = Codes(sites[name], steps.double() * step[read])
        self.norms = [Norm(layer.norms[f"n{i}"], sites[f"x{i}"], sites[f"n{i}"]) for i in (1, 2)]
        angle = 2.0**-ANGLE
        self.q_rope = Codes(sites["q_rope"], step["q"] * angle)
        self.k_rope = Codes(sites["k_rope"], step["k"] * angle)
        scaling = layer.head_dim**-0.5
        self.qk = Codes(sites["qk"], step["q_rope"] * step["k_rope"] * scaling)
        steps = torch.arange(256, dtype=torch.float64) * step["qk"]
        self.exp = [(torch.exp(-s) * 2**EXP).round().long() for s in (steps, steps * 256)]
        self.p = Codes(sites["p"], 2.0**-RATIO)
        self.a = Codes(sites["a"], step["p"] * step["v"])
        gate = sites["gate"]
        values = layer.activation((torch.arange(256) - gate.zero) * gate.step)
        self.act = (values / sites["act"].step).round().long()
        self.zero = int(gate.zero)
        self.h = Codes(sites["h"], step["act"] * step["up"])
        self.added = {name: Factor(step[name] / UNIT) for name in ("o", "down")}

    def __call__(self, x: Tensor) -> Tensor:
        """The residual (T,H), in units of ``UNIT``."""
        x = x + self.added["o"](self.linear("o", self.attention(self.norms[0](x))))
        read = self.norms[1](x)
        act = self.act[self.linear("gate", read) + self.zero]
        h = self.h(act * self.linear("up", read))
        return x + self.added["down"](self.linear("down", h))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.given[name](product(x, self.weights[name]))

    def attention(self, x: Tensor) -> Tensor:
        layer, length = self.layer, len(x)
        heads = [self.linear(n, x).view(length, -1, layer.head_dim).transpose(0, 1) for n in "qkv"]
        query, key = self.q_rope(self.turned(heads[0])), self.k_rope(self.turned(heads[1]))
        group = layer.heads // layer.kv_heads
        key, value = (t.repeat_interleave(group, 0) for t in (key, heads[2]))
        scores = self.qk(query @ key.transpose(1, 2))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        below = scores.masked_fill(hidden, -(2**20)).amax(-1, keepdim=True) - scores
        below = below.masked_fill(hidden, 0)
        found = self.exp[0][below & 255] * self.exp[1][below >> 8] >> EXP
        found = found.masked_fill(hidden, 0)
        sums = found.sum(-1, keepdim=True)
        weights = self.p(((found << RATIO) + (sums >> 1)) // sums)
        return self.a(weights @ value).transpose(0, 1).flatten(1)

    def turned(self, x: Tensor) -> Tensor:
        """RoPE of (heads,T,d)."""
        first, second = x.chunk(2, -1)
        cos, sin = (part[: x.shape[1]] for part in self.turn)
        return x * cos + torch.cat([-second, first], -1) * sin


class Reference:
    """A quantized Llama in whole numbers."""

    def __init__(self, model: Any) -> None:
        """``model``: MobileQuantized, on the CPU. Raises InputError for what this page of code does
        not have: other architectures, biases, activations of 16 bits in front of linear layers, and
        recipes that keep floats.
        """
        network, recipe = model.module, model.recipe
        plain = network.config.model_type == "llama" and recipe.table and recipe.weights == "row"
        plain = plain and recipe.activation_bits == 8 and not recipe.prefix_tokens
        if not plain or any(linear.bias is not None for linear in model.layers[0].linears.values()):
            raise InputError(
                "the reference is for Llamas without biases, a8, with tables of codes."
            )

        def codes(path: str) -> tuple[Tensor, Tensor]:
            grid = model.grids[path]
            return grid.codes(network.get_submodule(path).weight).long(), grid.step.flatten()

        length = network.config.max_position_embeddings
        turn = network.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
        angles = [(part[0].double() * 2**ANGLE).round().long() for part in turn]
        self.blocks = []
        for layer in model.layers:
            begin = f"{layer.index}."
            own = {
                name.removeprefix(begin): site.grid
                for name, site in model.sites.items()
                if name.startswith(begin)
            }
            self.blocks.append(Block(layer, own, codes, angles))
        rows, steps = codes("model.embed_tokens")
        self.embedded = Factor(steps[:, None].double() / UNIT)(rows)
        head = model.sites["head"].grid
        self.norm = Norm(network.model.norm, LAST, head)
        if "lm_head" in model.grids:
            rows, steps = codes("lm_head")
        unit = steps.double() * head.step.double() / LOGIT
        self.rows, self.upper, self.lower = rows, Factor(unit * 256), Factor(unit)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (T,vocabulary) of token ids (T,), whole numbers in units of ``LOGIT``."""
        x = self.embedded[ids]
        for block in self.blocks:
            x = block(x)
        codes = self.norm(x)
        upper, lower = product(codes >> 8, self.rows), product(codes & 255, self.rows)
        return self.upper(upper) + self.lower(lower)
