"""How far channels are evened out before learning: the strength of eq. 8 (eq. 22)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo_mobilequant.families import describe
from zoo_mobilequant.method import fit
from zoo_mobilequant.recipe import make
from zoo_mobilequant.start import NONE, STRENGTHS, candidates
from zoo_mobilequant.transform import divisors, fold, pairs_of, shape

from tests.plugins.tiny_lms import tiny_lm, tokens

ROWS = tokens(8)


def quantized(network: Any, scheme: str = "w8a8", **changes: Any) -> dict[str, Any]:
    recipe = make("mobilequant", scheme, {"steps": 0, **changes})
    return fit(network, describe(network), ROWS, recipe).report


def planted(factor: float) -> Any:
    """A network whose activations have a few channels ``factor`` times as large; same function."""
    network = tiny_lm("llama GQA")
    for layer in describe(network):
        chance = torch.Generator().manual_seed(layer.index)
        scales: dict[str, Tensor] = {p: torch.ones(shape(layer, p)) for p in pairs_of(layer)}
        for scale in scales.values():
            scale[torch.rand(scale.shape, generator=chance) < 0.2] = 1 / factor
        fold(layer, divisors(layer, scales))
    return network


def test_candidates() -> None:
    """A given strength is taken as it is, and without pairs there is nothing to choose."""
    assert candidates(make("mobilequant", "w8a8", {})) == [NONE, *map(str, STRENGTHS)]
    assert candidates(make("mobilequant", "w8a8", {"alpha": 0.2})) == ["0.2"]
    assert candidates(make("smoothquant-all", "w8a8", {})) == ["0.5"]
    assert candidates(make("rtn", "w8a8", {})) == [NONE]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_the_strength_with_the_least_loss_is_taken(scheme: str) -> None:
    """The losses tried are those of the same strength when it is given, and the least one wins."""
    report = quantized(planted(8), scheme)
    tried = report["strengths"]
    assert list(tried) == [NONE, *map(str, STRENGTHS)]
    assert report["strength"] == min(tried, key=tried.get)
    for strength in STRENGTHS:
        alone = quantized(planted(8), scheme, alpha=strength)
        assert alone["strengths"] == {}
        # Folded or in force at the sites (eq. 15), it is the same up to the rounding of floats,
        # which moves a few values by one code.
        assert alone["kl"] == pytest.approx(tried[str(strength)], rel=0.1)
    plain = quantized(planted(8), scheme, pairs="none")
    assert plain["kl"] == pytest.approx(tried[NONE], rel=0.1)


def test_planted_channels_are_evened_out() -> None:
    """Where a few channels are 32 times as large, any strength beats none."""
    report = quantized(planted(32))
    assert report["strength"] != NONE
    assert report["kl"] < report["strengths"][NONE] / 4


def test_no_smoothing_where_it_harms() -> None:
    """With activations of 16 bits there is little to gain, and some networks' 4-bit weights lose:
    these are left as they are, and the default is ahead of the published strength.
    """
    report = quantized(tiny_lm("llama GQA", 2), "w4a16")
    assert report["strength"] == NONE
    assert report["kl"] == pytest.approx(report["strengths"][NONE], rel=0.1)
    assert report["kl"] < 0.9 * quantized(tiny_lm("llama GQA", 2), "w4a16", alpha=0.5)["kl"]
    plain = quantized(tiny_lm("llama GQA", 2), "w4a16", pairs="none")
    assert report["kl"] == plain["kl"]
