"""Weights as a file has them: whole codes, one to a byte, or two of 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .quantizers import Grid, WeightFormat


def packed(weight: Tensor, grid: Grid) -> Tensor:
    """The codes of a weight (N,K) on a grid, on the CPU.

    8 bits: (N,K), int8 where the grid has no zero point, else uint8. 4 bits: (N, K/2 rounded up)
    uint8, codes from 0 on, the one of the even column in the lower half of the byte.
    """
    codes = grid.codes(weight).cpu()
    if grid.bits == 8:
        return codes.to(torch.int8 if grid.low else torch.uint8)
    pairs = nn.functional.pad(codes - grid.low, (0, codes.shape[1] % 2)).to(torch.uint8)
    return pairs[:, ::2] | pairs[:, 1::2] << 4


def unpacked(stored: Tensor, grid: Grid, columns: int) -> Tensor:
    """The codes (N,K) of what ``packed`` gave, as float32."""
    if grid.bits == 8:
        return stored.float()
    pairs = torch.stack([stored & 15, stored >> 4], 2).flatten(1)
    return pairs[:, :columns].float() + grid.low


def make_room(part: nn.Linear | nn.Embedding, form: WeightFormat) -> None:
    """Give a layer the tensors of its packed weight, ``weight``, ``step`` and, where the format has
    one, ``zero``; their values are to be loaded.
    """
    rows, columns = part.weight.shape
    kind = torch.int8 if form.bits == 8 and not form.zero_point else torch.uint8
    width = columns if form.bits == 8 else (columns + 1) // 2
    where = part.weight.device
    room = torch.empty(rows, width, dtype=kind, device=where)
    part.weight = nn.Parameter(room, requires_grad=False)
    for name in ("step", "zero") if form.zero_point else ("step",):
        sizes = (rows, 1) if form.per_row else ()
        part.register_buffer(name, torch.empty(sizes, device=where))


def unpack(part: nn.Linear | nn.Embedding, form: WeightFormat) -> Grid:
    """Replace the tensors of ``make_room`` by the weight that they stand for; gives its grid."""
    step: Any = part.step
    zero: Any = part.zero if form.zero_point else torch.zeros_like(step)
    grid = Grid(step, zero, *form.codes)
    columns = part.in_features if isinstance(part, nn.Linear) else part.embedding_dim
    values = (unpacked(part.weight, grid, columns) - zero) * step
    part.weight = nn.Parameter(values, requires_grad=False)
    for name in ("step", "zero") if form.zero_point else ("step",):
        delattr(part, name)
    return grid
