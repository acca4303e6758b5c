"""Uniform quantizers: a step, a zero point, and a rounding that gradients pass (eq. 9 to 13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-7
"""The least step of a weight: below, a 16-bit float could not tell two codes apart."""


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer, exactly; the gradient passes as if nothing had happened."""
    found: Tensor = _Round.apply(x)
    return found


class _OnGrid(torch.autograd.Function):
    """Eq. 9 with its gradients, keeping one tensor for them instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        ctx.save_for_backward(scaled, step, zero)
        ctx.bounds = low, high
        return scaled.clamp(low - zero, high - zero).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, step, zero = ctx.saved_tensors
        low, high = (bound - zero for bound in ctx.bounds)
        inside = (scaled >= low) & (scaled <= high)
        x = gradient * inside if ctx.needs_input_grad[0] else None
        by_step = by_zero = None
        if ctx.needs_input_grad[1]:
            slope = scaled.clamp(low, high).round_().sub_(scaled * inside)
            by_step = (gradient * slope).sum_to_size(step.shape)
        if ctx.needs_input_grad[2]:
            by_zero = (gradient * ~inside * -step).sum_to_size(zero.shape)
        return x, by_step, by_zero, None, None


@dataclass(frozen=True)
class Grid:
    """The values that a quantizer can give: ``(code - zero) * step``, codes ``low`` to ``high``.

    ``step`` and ``zero`` broadcast against what is quantized: (), or (rows, 1) for the rows of a
    weight. ``zero`` is a whole number among the codes, so that 0 is exact.
    """

    step: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, x: Tensor) -> Tensor:
        """Whole numbers, in floats, for x (eq. 9)."""
        bounds = self.low - self.zero, self.high - self.zero
        return (x / self.step).clamp(*bounds).round() + self.zero

    def __call__(self, x: Tensor) -> Tensor:
        """x moved to the nearest value of the grid (eq. 9).

        Gradients pass the rounding as if it were nothing, and stop at the clamp.
        """
        found: Tensor = _OnGrid.apply(x, self.step, self.zero, self.low, self.high)
        return found

    def to(self, device: str | torch.device) -> Grid:
        """The same grid on another device."""
        return Grid(self.step.to(device), self.zero.to(device), self.low, self.high)

    @property
    def bits(self) -> int:
        """How many bits a code needs."""
        return (self.high - self.low).bit_length()

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value."""
        return (self.low - self.zero) * self.step, (self.high - self.zero) * self.step


def asymmetric(least: Tensor, largest: Tensor, bits: int, floor: float = 1e-9) -> Grid:
    """The grid of 2^bits codes over [least, largest], widened to hold 0 (eq. 10)."""
    least, largest = least.clamp(max=0), largest.clamp(min=0)
    high = 2**bits - 1
    step = ((largest - least) / high).clamp_min(floor)
    zero = round_ste(-least / step).clamp(0, high)
    return Grid(step, zero, 0, high)


def symmetric(least: Tensor, largest: Tensor, bits: int, floor: float = 1e-9) -> Grid:
    """The grid without a zero point that reaches the larger of both magnitudes (eq. 11)."""
    high = 2 ** (bits - 1) - 1
    step = (torch.maximum(-least, largest) / high).clamp_min(floor)
    return Grid(step, torch.zeros_like(step), -high - 1, high)


@dataclass(frozen=True)
class WeightFormat:
    """How weights are quantized: bits, a grid for each row or one, with zero point or without."""

    bits: int
    per_row: bool = True
    zero_point: bool = False

    @property
    def codes(self) -> tuple[int, int]:
        """The least and the largest code."""
        half = 2 ** (self.bits - 1)
        return (0, 2 * half - 1) if self.zero_point else (-half, half - 1)

    def grid(self, weight: Tensor, clip: tuple[Tensor, Tensor] | None = None) -> Grid:
        """The grid for a weight (N,K). ``clip``: shares of its least and largest value (eq. 12)."""
        if self.per_row:
            least, largest = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        else:
            least, largest = weight.min(), weight.max()
        if clip is not None:
            least, largest = least * clip[0], largest * clip[1]
        return (asymmetric if self.zero_point else symmetric)(least, largest, self.bits, SMALLEST)


def clipping(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the range, (2, rows, 1) or (2,) logits through a sigmoid (eq. 12)."""
    low, high = torch.sigmoid(logits)
    return low, high


def searched(
    values: Tensor, counts: Tensor, least: float, largest: float, bits: int, rounds: int = 2
) -> tuple[float, float]:
    """The range, inside [least, largest], of least squared error on samples (eq. 13).

    ``values`` (n,) and how often each stands for itself and its like, ``counts`` (n,). Bounds move
    in turn over 1.0, 0.95, ... 0.1 of where they began. Massive values weigh as much as they are
    large, so they are not clipped away as a percentile would.
    """
    bounds = [min(least, 0.0), max(largest, 0.0)]
    shares = torch.linspace(1.0, 0.1, 19, device=values.device)

    def errors(low: Tensor, high: Tensor) -> Tensor:
        grid = asymmetric(low[:, None], high[:, None], bits)
        return ((grid(values) - values).square() * counts).sum(1)

    best = list(bounds)
    for _ in range(rounds):
        for side in (1, 0):
            tried = bounds[side] * shares
            fixed = torch.full_like(tried, best[1 - side])
            found = errors(fixed, tried) if side else errors(tried, fixed)
            best[side] = float(tried[found.argmin()])
    return best[0], best[1]
