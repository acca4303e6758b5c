"""Integer products against integer arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_mobilequant import kernels
from zoo_mobilequant.kernels import (
    PAIR,
    Fbgemm,
    Floats,
    OneDNN,
    Plan,
    Weight,
    encoded,
    is_right,
    plan,
)
from zoo_mobilequant.quantizers import Grid


def weight(n: int = 40, k: int = 600, most: int = 127, bias: bool = True) -> Weight:
    chance = torch.Generator().manual_seed(n + k)
    codes = torch.randint(-most, most + 1, (n, k), generator=chance).to(torch.int8)
    steps = torch.rand(n, generator=chance) * 0.01 + 1e-3
    grid = Grid(torch.tensor(0.03), torch.tensor(117.0), 0, 255)
    return Weight(codes, steps, torch.randn(n, generator=chance) if bias else None, grid)


def values(w: Weight, x: Tensor) -> Tensor:
    """What codes of the input stand for."""
    return (x.float() - w.input.zero) * w.input.step


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
    run = chosen.run(w)
    x = torch.randint(0, 256, (rows, 600), generator=torch.Generator().manual_seed(1))
    x = x.to(torch.uint8)
    right = by_integers(run, x)
    for kernel in {chosen.prefill, chosen.decode, Floats}:
        found = kernel(run)(values(w, x))
        assert float((found - right).abs().max() / right.abs().max()) < 1e-6


def test_codes_are_those_of_the_grid() -> None:
    """Also of a slice, whose rows do not follow one another; values in between go to either."""
    grid = Grid(torch.tensor(0.03), torch.tensor(117.0), 0, 255)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 3
    for part in (x, x[:, 7:30], x[:1]):
        apart = (encoded(part, 0.03, 117).float() - grid.codes(part)).abs()
        between = ((part / 0.03).frac().abs() - 0.5).abs() < 1e-4
        assert bool((apart[~between] == 0).all())
        assert float(apart.max()) <= 1


class Saturating(Floats):
    """What AVX2 does without VNNI: sums of two neighbouring products are cut off at 16 bits."""

    def __call__(self, given: Tensor) -> Tensor:
        w = self.weight
        x = w.input.codes(given)
        pairs = (x.long()[:, None] * w.codes.long()).unflatten(2, (-1, 2)).sum(3)
        sums = pairs.clamp(-(2**15), 2**15 - 1).sum(2) - int(w.input.zero) * w.codes.long().sum(1)
        return sums.float() * (w.steps * w.input.step)


def test_a_cpu_that_saturates_gets_coarser_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test sees the saturation of full codes, and none with the coarser ones."""
    assert not is_right(Saturating)
    assert is_right(Saturating, whole=False)
    monkeypatch.setattr(kernels, "OneDNN", Saturating)
    monkeypatch.setattr(kernels, "Fbgemm", Saturating)
    chosen = plan.__wrapped__()
    assert chosen == Plan(Saturating, Saturating, whole=False)
    assert "coarser codes" in chosen.reason


@pytest.mark.parametrize("k", [600, 601])
def test_coarser_codes_are_no_coarser_than_needed(k: int) -> None:
    """No two neighbours of one sign exceed PAIR; a value moves by half of its row's new step at
    most; rows without large neighbours stay, 4-bit weights so too; and steps at most double.
    """
    w = weight(k=k)
    w.codes[3] = w.codes[3] // 2
    coarse = w.coarser()
    for sign in (1, -1):
        pairs = (sign * coarse.codes[:, : k // 2 * 2].int()).clamp_min(0).unflatten(1, (-1, 2))
        assert int(pairs.sum(2).max()) <= PAIR
    factors = coarse.steps / w.steps
    assert float(factors.max()) <= 2.001
    assert float(factors[3]) == 1
    assert torch.equal(coarse.codes[3], w.codes[3])
    values, moved = (v.codes.float() * v.steps[:, None] for v in (w, coarse))
    assert bool(((values - moved).abs() <= coarse.steps[:, None] * 0.5001).all())
    four = weight(most=8)
    assert torch.equal(four.coarser().codes, four.codes)


def test_without_a_right_kernel_floats_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: Weight) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(kernels, "OneDNN", missing)
    monkeypatch.setattr(kernels, "Fbgemm", missing)
    assert plan.__wrapped__() == Plan(Floats, Floats)


def test_the_self_test_needs_the_full_range() -> None:
    """With small codes a saturating CPU passes: why ``is_right`` uses large ones."""
    w = weight(n=16, k=64, most=60, bias=False)
    x = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    right = by_integers(w, x)
    assert float((Saturating(w)(values(w, x)) - right).abs().max() / right.abs().max()) < 1e-6


def test_prompts_and_single_tokens_have_kernels_of_their_own() -> None:
    chosen = plan.__wrapped__()
    if all(is_right(kernel, chosen.whole, rows) for kernel in (OneDNN, Fbgemm) for rows in (1, 16)):
        assert (chosen.prefill, chosen.decode) == (OneDNN, Fbgemm)
