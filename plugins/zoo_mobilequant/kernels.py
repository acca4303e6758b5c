"""Products of 8-bit activations and 8-bit weights, on what this CPU computes right.

Everything that depends on the CPU or on operators that torch does not document is in this file.
CPUs with AVX2 but without VNNI add pairs of products in 16 bits, which saturate without a word: up
to a quarter of the result is wrong. So each kernel is tested with codes of the full range before it
is used; where none is right, the steps of weights get so much larger that no pair can saturate, and
where that is not right either, products are computed in floats that hold them exactly.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

from .quantizers import Grid

PAIR = 128
"""What two neighbours' codes may add up to, so that their products with bytes fit 16 bits."""
SEVERAL = 16
"""From so many rows on, a product counts as prefill."""
EXACT = 512
"""So many products of u8 and s8 add up to less than 2^24, so exactly in float32."""
TOLERANCE = 1e-6
"""Relative error of a right kernel: rounding of the float that an exact sum becomes."""


@dataclass(frozen=True)
class Weight:
    """What a linear layer is made of: codes (N,K) int8, steps (N,), bias (N,) or None, and the grid
    of its input, of 8 bits.
    """

    codes: Tensor
    steps: Tensor
    bias: Tensor | None
    input: Grid

    def coarser(self) -> Weight:
        """The same in codes of which no two neighbours in a row, of one sign, add up to more than
        ``PAIR``: rows where some do get as much larger steps as they need, at most twice as large.
        """
        pairs = nn.functional.pad(self.codes.float(), (0, self.codes.shape[1] % 2)).unflatten(
            1, (-1, 2)
        )
        sums = torch.maximum(pairs.clamp_min(0).sum(2), -pairs.clamp_max(0).sum(2)).amax(1)
        factor = torch.where(sums > PAIR, sums / (PAIR - 1), 1.0)  # rounding may add 1 to a sum
        codes = (self.codes.float() / factor[:, None]).round().to(torch.int8)
        return Weight(codes, self.steps * factor, self.bias, self.input)


class Product(Protocol):
    """A linear layer on codes."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M,N) float32 of x (M,K), floats: their codes on the grid of the input, the exact sum of
        products, rounded once, times its step, plus bias.
        """


def encoded(x: Tensor, step: float, zero: int) -> Tensor:
    """The codes, uint8, of floats on a grid of 8 bits: one pass, and no copy."""
    found = torch.quantize_per_tensor(x, step, zero, torch.quint8)
    plain = torch.empty(0, dtype=torch.uint8)
    return plain.set_(found.untyped_storage(), 0, found.shape, found.stride())


def rounded(x: Tensor, step: float, zero: int) -> Tensor:
    """Floats moved to a grid of 8 bits, in two passes."""
    return torch.quantize_per_tensor(x, step, zero, torch.quint8).dequantize()


with warnings.catch_warnings():  # torch says once that it will have no quantized tensors one day
    warnings.simplefilter("ignore")
    rounded(torch.zeros(1), 1.0, 0)


class OneDNN:
    """oneDNN's static u8 x s8 product: quick for many rows."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.packed = torch.ops.onednn.qlinear_prepack(weight.codes, None)
        self.zeros = torch.zeros(len(weight.steps), dtype=torch.int32)
        self.step, self.zero = float(weight.input.step), int(weight.input.zero)

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            encoded(x, self.step, self.zero), self.step, self.zero,
            self.packed, self.weight.steps, self.zeros, self.weight.bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return found


class Fbgemm:
    """FBGEMM's static product: quick for one row."""

    def __init__(self, weight: Weight) -> None:
        zeros = torch.zeros(len(weight.steps), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(
            weight.codes, weight.steps.double(), zeros, 0
        )
        self.packed = torch.ops.quantized.linear_prepack(quantized, weight.bias)
        self.step, self.zero = float(weight.input.step), int(weight.input.zero)

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, self.step, self.zero, self.packed
        )
        return found


class Floats:
    """The same sums in float32, ``EXACT`` products at a time: right on any CPU, and slow."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.parts = [part.float().T.contiguous() for part in weight.codes.split(EXACT, 1)]

    def __call__(self, x: Tensor) -> Tensor:
        centred = self.weight.input.codes(x) - self.weight.input.zero
        sums = torch.zeros(len(x), len(self.weight.steps), dtype=torch.int32)
        for part, columns in zip(self.parts, centred.split(EXACT, 1), strict=True):
            sums += (columns @ part).to(torch.int32)
        found = sums.float() * (self.weight.steps * self.weight.input.step)
        return found if self.weight.bias is None else found + self.weight.bias


Kernel = type[OneDNN] | type[Fbgemm] | type[Floats]
"""What makes a product of a weight."""


@dataclass(frozen=True)
class Plan:
    """What this CPU computes with."""

    prefill: Kernel
    decode: Kernel
    whole: bool = True
    """Do weights run with the codes that they have? Else with coarser ones."""

    @property
    def remark(self) -> str:
        """What people should know of it; empty where weights run as they are, quickly."""
        if self.prefill is Floats:
            return (
                "No product of 8-bit integers is right on this CPU and this build of torch: floats "
                "compute the same sums, exactly and slowly."
            )
        return "" if self.whole else self.reason

    @property
    def reason(self) -> str:
        """In a sentence, for people."""
        names = f"{self.prefill.__name__} for prompts, {self.decode.__name__} for single tokens"
        if self.whole:
            return f"Weights run with the codes that they have: {names}."
        return (
            f"This CPU saturates products of 8-bit activations and weights: weights run with "
            f"coarser codes ({names})."
        )

    def run(self, weight: Weight) -> Weight:
        """A weight as it runs."""
        return weight if self.whole else weight.coarser()


def has_vnni() -> bool:
    """Whether the CPU adds products of bytes in 32 bits."""
    return bool(torch.cpu._is_vnni_supported())


@cache
def plan() -> Plan:
    """The kernels that are right on this CPU, the quickest first: oneDNN's for many rows, FBGEMM's
    for one, with VNNI and without (section of the method's page on speed).
    """
    for whole in (True, False):
        prefill = [kernel for kernel in (OneDNN, Fbgemm) if is_right(kernel, whole, SEVERAL)]
        decode = [kernel for kernel in (Fbgemm, OneDNN) if is_right(kernel, whole, 1)]
        if prefill and decode:
            return Plan(prefill[0], decode[0], whole)
    return Plan(Floats, Floats)


@torch.no_grad()
def is_right(kernel: Kernel, whole: bool = True, rows: int = SEVERAL) -> bool:
    """Whether a kernel gives what integers give, on random codes of the full range, or on what
    ``Weight.coarser`` makes of them.

    Codes near zero would pass anywhere: only large ones saturate.
    """
    chance = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows, 384), generator=chance).to(torch.uint8)
    codes = torch.randint(-128, 128, (64, 384), generator=chance)
    codes[:8] = 127  # rows of the largest, against the largest inputs
    codes[8:16, 1::2] = 1
    codes[8:16, ::2] = 127
    codes[16:24] = -128
    x[0] = 255
    grid = Grid(torch.tensor(0.02), torch.tensor(3.0), 0, 255)
    steps = torch.rand(64, generator=chance) + 0.5
    weight = Weight(codes.to(torch.int8), steps, None, grid)
    weight = weight if whole else weight.coarser()
    right = ((x.double() - 3) @ weight.codes.double().T) * 0.02 * weight.steps.double()
    try:
        found = kernel(weight)((x.float() - 3) * 0.02)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # this build of torch has no such operator
    return bool((found - right).abs().max() <= TOLERANCE * right.abs().max())
