"""Integers in files: 8-bit codes as they are, two 4-bit codes in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import WeightsError


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (N,K), whole numbers from -2^(bits-1), as int8 (N,K), or for 4 bits as uint8
    (N, ceil(K/2)): the even column in the low half of a byte, the next one in the high half.
    """
    if bits == 8:
        return codes.to(torch.int8)
    shifted = (codes + 8).to(torch.uint8)
    if shifted.shape[1] % 2:
        shifted = torch.nn.functional.pad(shifted, (0, 1))
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int8 codes (N,K) of what ``pack`` gave. Raises WeightsError where the sizes do not fit."""
    wanted = columns if bits == 8 else (columns + 1) // 2
    kind = torch.int8 if bits == 8 else torch.uint8
    if packed.ndim != 2 or packed.shape[1] != wanted or packed.dtype != kind:
        raise WeightsError(
            f"packed weights of shape {tuple(packed.shape)} and type {packed.dtype}: {bits}-bit "
            f"codes of {columns} columns have {wanted} bytes in a row. The file is damaged or of "
            "another version."
        )
    if bits == 8:
        return packed
    halves = torch.stack([packed & 15, packed >> 4], 2).flatten(1)[:, :columns]
    return halves.to(torch.int8) - 8
