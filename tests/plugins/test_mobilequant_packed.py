"""Weights as files have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_mobilequant.packed import make_room, packed, unpack, unpacked
from zoo_mobilequant.quantizers import WeightFormat

FORMS = [
    WeightFormat(bits, per_row, zero_point)
    for bits in (4, 8)
    for per_row in (True, False)
    for zero_point in (True, False)
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [6, 7])
def test_codes_come_back(form: WeightFormat, columns: int) -> None:
    """Every code, in as many bytes as bits ask for; the layer has the very floats again."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(300, columns, generator=chance)
    grid = form.grid(weight)
    assert (grid.bits, (grid.low, grid.high)) == (form.bits, form.codes)
    stored = packed(weight, grid)
    width = columns if form.bits == 8 else (columns + 1) // 2
    assert stored.shape == (300, width)
    assert stored.element_size() == 1
    assert torch.equal(unpacked(stored, grid, columns), grid.codes(weight))
    layer = nn.Linear(columns, 300, bias=False)
    make_room(layer, form)
    assert layer.weight.dtype == stored.dtype
    assert layer.weight.shape == stored.shape
    layer.weight.data.copy_(stored)
    layer.step = grid.step
    if form.zero_point:
        layer.zero = grid.zero
    again = unpack(layer, form)
    assert torch.equal(layer.weight, grid(weight))
    assert torch.equal(again.codes(weight), grid.codes(weight))
    assert [*layer.state_dict()] == ["weight"]


def test_the_even_column_is_in_the_lower_half() -> None:
    form = WeightFormat(4)
    grid = form.grid(torch.tensor([[7.0, -7.0, 0.0]]))
    stored = packed(torch.tensor([[-7.0, 3.0, 1.0]]), grid)
    assert stored.tolist() == [[1 | 11 << 4, 9]]  # codes from -8 on: 1, 11 and 9
