"""Products of 8-bit activations and 8-bit weights, on what this CPU computes right.

Everything that depends on the CPU or on operators that torch does not document is in this file.
CPUs with AVX2 but without VNNI add pairs of products in 16 bits, which saturate without a word: up
to a quarter of the result is wrong. So each kernel is tested with codes of the full range before it
is used; where none is right, weights get 7 bits, with which no pair can saturate, and where that is
not right either, products are computed in floats that hold them exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .quantizers import Grid

HALF = 63
"""The largest magnitude of a weight's code with which two products of u8 and s8 fit 16 bits."""
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

    def halved(self) -> Weight:
        """The same with 7-bit codes: half of the 8-bit ones, with twice the step."""
        codes = (self.codes.float() / 2).round().clamp(-HALF, HALF).to(torch.int8)
        return Weight(codes, self.steps * 2, self.bias, self.input)


class Product(Protocol):
    """A linear layer on codes: x (M,K) uint8."""

    def floats(self, x: Tensor) -> Tensor:
        """(M,N) float32: the exact sum, rounded once, times its step, plus bias."""

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        """(M,N) uint8: ``floats`` on an 8-bit grid, without floats on the way."""


class OneDNN:
    """oneDNN's static u8 x s8 product: quick for many rows, and for one where there is VNNI."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.packed = torch.ops.onednn.qlinear_prepack(weight.codes, None)
        self.zeros = torch.zeros(len(weight.steps), dtype=torch.int32)
        self.step, self.zero = float(weight.input.step), int(weight.input.zero)

    def floats(self, x: Tensor) -> Tensor:
        return self._run(x, 1.0, 0, torch.float32)

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        return self._run(x, float(grid.step), int(grid.zero), torch.uint8)

    def _run(self, x: Tensor, step: float, zero: int, kind: torch.dtype) -> Tensor:
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.step, self.zero, self.packed, self.weight.steps, self.zeros, self.weight.bias,
            step, zero, kind, "none", [], "",
        )  # fmt: skip
        return found


class Fbgemm:
    """FBGEMM's static product: quick for one row, also without VNNI."""

    def __init__(self, weight: Weight) -> None:
        zeros = torch.zeros(len(weight.steps), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch will have no quantized tensors one day
            quantized = torch._make_per_channel_quantized_tensor(
                weight.codes, weight.steps.double(), zeros, 0
            )
            self.packed = torch.ops.quantized.linear_prepack(quantized, weight.bias)
        self.step, self.zero = float(weight.input.step), int(weight.input.zero)

    def floats(self, x: Tensor) -> Tensor:
        values = (x.float() - self.zero) * self.step  # which the operator turns into codes again
        found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            values, self.step, self.zero, self.packed
        )
        return found

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        given = torch._make_per_tensor_quantized_tensor(x, self.step, self.zero)
        found = torch.ops.quantized.linear(given, self.packed, float(grid.step), int(grid.zero))
        codes: Tensor = found.int_repr()
        return codes


class Floats:
    """The same sums in float32, ``EXACT`` products at a time: right on any CPU, and slow."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.parts = [part.float().T.contiguous() for part in weight.codes.split(EXACT, 1)]

    def floats(self, x: Tensor) -> Tensor:
        centred = x.float() - self.weight.input.zero
        sums = torch.zeros(len(x), len(self.weight.steps), dtype=torch.int32)
        for part, columns in zip(self.parts, centred.split(EXACT, 1), strict=True):
            sums += (columns @ part).to(torch.int32)
        found = sums.float() * (self.weight.steps * self.weight.input.step)
        return found if self.weight.bias is None else found + self.weight.bias

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        return grid.codes(self.floats(x)).to(torch.uint8)


Kernel = type[OneDNN] | type[Fbgemm] | type[Floats]
"""What makes a product of a weight."""


@dataclass(frozen=True)
class Plan:
    """What this CPU computes with."""

    prefill: Kernel
    decode: Kernel
    bits: int
    """Of the weights as they run: 8, or 7 where 8 would saturate."""

    @property
    def reason(self) -> str:
        """In a sentence, for people."""
        names = f"{self.prefill.__name__} for prompts, {self.decode.__name__} for single tokens"
        if self.bits == 8:
            return f"Weights run with their 8 bits: {names}."
        return (
            f"This CPU saturates products of 8-bit activations and weights: weights run with 7 of "
            f"their 8 bits ({names})."
        )


@cache
def plan(vnni: bool | None = None) -> Plan:
    """The kernels that are right on this CPU, the quickest first.

    ``vnni``: whether the CPU adds products in 32 bits; None: ask it. Without, FBGEMM is quicker for
    single rows (section of the method's page on speed).
    """
    if vnni is None:
        vnni = torch.cpu._is_vnni_supported()
    decoders: Sequence[Kernel] = (OneDNN, Fbgemm) if vnni else (Fbgemm, OneDNN)
    for bits in (8, 7):
        prefill = [kernel for kernel in (OneDNN, Fbgemm) if is_right(kernel, bits, SEVERAL)]
        decode = [kernel for kernel in decoders if is_right(kernel, bits, 1)]
        if prefill and decode:
            return Plan(prefill[0], decode[0], bits)
    return Plan(Floats, Floats, 8)


@torch.no_grad()
def is_right(kernel: Kernel, bits: int = 8, rows: int = SEVERAL) -> bool:
    """Whether a kernel gives what integers give, on random codes of the full range.

    Codes near zero would pass anywhere: only large ones saturate.
    """
    chance = torch.Generator().manual_seed(0)
    most = 127 if bits == 8 else HALF
    x = torch.randint(0, 256, (rows, 384), generator=chance).to(torch.uint8)
    codes = torch.randint(-most - (bits == 8), most + 1, (64, 384), generator=chance)
    codes[:8] = most  # a row of the largest, against the largest inputs
    x[0] = 255
    grid = Grid(torch.tensor(0.02), torch.tensor(3.0), 0, 255)
    steps = torch.rand(64, generator=chance) + 0.5
    weight = Weight(codes.to(torch.int8), steps, None, grid)
    right = ((x.double() - 3) @ codes.double().T) * 0.02 * steps.double()
    try:
        product = kernel(weight)
        found = product.floats(x)
        out = Grid((right.max() - right.min()).float() / 255, torch.tensor(128.0), 0, 255)
        requantized = product.codes(x, out).double()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # this build of torch has no such operator
    wanted = out.codes(right.float()).double()
    close = (found - right).abs().max() <= TOLERANCE * right.abs().max()
    return bool(close) and bool((requantized - wanted).abs().max() <= 1)
