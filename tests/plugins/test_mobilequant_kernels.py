"""Integer products against integer arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_mobilequant import kernels
from zoo_mobilequant.kernels import HALF, Fbgemm, Floats, OneDNN, Plan, Weight, is_right, plan
from zoo_mobilequant.quantizers import Grid


def weight(n: int = 40, k: int = 600, most: int = 127, bias: bool = True) -> Weight:
    chance = torch.Generator().manual_seed(n + k)
    codes = torch.randint(-most, most + 1, (n, k), generator=chance).to(torch.int8)
    steps = torch.rand(n, generator=chance) * 0.01 + 1e-3
    grid = Grid(torch.tensor(0.03), torch.tensor(117.0), 0, 255)
    return Weight(codes, steps, torch.randn(n, generator=chance) if bias else None, grid)


def by_integers(w: Weight, x: Tensor) -> Tensor:
    sums = (x.long() - int(w.input.zero)) @ w.codes.long().T
    found = sums.double() * w.steps.double() * float(w.input.step)
    return found if w.bias is None else found + w.bias.double()


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_integers(rows: int, bias: bool) -> None:
    """The kernels of this CPU's plan, with the weights as they run: one rounding to float32."""
    w = weight(bias=bias)
    chosen = plan()
    run = w if chosen.bits == 8 else w.halved()
    x = torch.randint(0, 256, (rows, 600), generator=torch.Generator().manual_seed(1))
    x = x.to(torch.uint8)
    right = by_integers(run, x)
    out = Grid(torch.tensor(0.05), torch.tensor(100.0), 0, 255)
    for kernel in {chosen.prefill, chosen.decode, Floats}:
        product = kernel(run)
        assert float((product.floats(x) - right).abs().max() / right.abs().max()) < 1e-6
        # A value that lies between two codes may go to either by the rounding of the float.
        apart = (product.codes(x, out).long() - out.codes(right.float()).long()).abs()
        assert int(apart.max()) <= 1
        assert float((apart > 0).float().mean()) < 1e-3


class Saturating(Floats):
    """What AVX2 does without VNNI: sums of two neighbouring products are cut off at 16 bits."""

    def floats(self, x: Tensor) -> Tensor:
        w = self.weight
        pairs = (x.long()[:, None] * w.codes.long()).unflatten(2, (-1, 2)).sum(3)
        sums = pairs.clamp(-(2**15), 2**15 - 1).sum(2) - int(w.input.zero) * w.codes.long().sum(1)
        return sums.float() * (w.steps * w.input.step)


def test_a_cpu_that_saturates_gets_7_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test sees the saturation with 8 bits, and none with 7; the weights are then off by
    half a step of 7 bits at most, which is one of 8.
    """
    assert not is_right(Saturating)
    assert is_right(Saturating, 7)
    monkeypatch.setattr(kernels, "OneDNN", Saturating)
    monkeypatch.setattr(kernels, "Fbgemm", Saturating)
    chosen = plan.__wrapped__()
    assert chosen == Plan(Saturating, Saturating, 7)
    assert "7 of their 8 bits" in chosen.reason
    w = weight(most=127)
    assert int(w.halved().codes.abs().max()) == HALF
    values, halves = (v.codes.float() * v.steps[:, None] for v in (w, w.halved()))
    inside = w.codes.abs() <= 2 * HALF
    assert float(((values - halves).abs() / w.steps[:, None])[inside].max()) < 1.001


def test_without_a_right_kernel_floats_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: Weight) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(kernels, "OneDNN", missing)
    monkeypatch.setattr(kernels, "Fbgemm", missing)
    assert plan.__wrapped__() == Plan(Floats, Floats, 8)


def test_the_self_test_needs_the_full_range() -> None:
    """With small codes a saturating CPU passes: why ``is_right`` uses large ones."""
    w = weight(n=16, k=64, most=60, bias=False)
    x = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    right = by_integers(w, x)
    assert float((Saturating(w).floats(x) - right).abs().max() / right.abs().max()) < 1e-6


@pytest.mark.parametrize("vnni", [False, True])
def test_single_tokens_have_a_kernel_of_their_own(vnni: bool) -> None:
    chosen = plan.__wrapped__(vnni)
    if is_right(OneDNN, chosen.bits, 1) and is_right(Fbgemm, chosen.bits, 1):
        assert chosen.decode is (OneDNN if vnni else Fbgemm)
