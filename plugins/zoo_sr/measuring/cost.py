"""The FLOPs of a network, counted from shapes alone. ``zoo.experiment`` measures seconds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(
    counter: FlopCounterMode, network: nn.Module, size: tuple[int, int], *arguments: object
) -> None:
    """Count ``network(image, *arguments)`` with ``counter`` for an image of ``size`` (height,
    width).

    Nothing is computed and no weight is copied: only shapes pass through the network and the hooks
    on its modules.
    """
    shapes = {k: torch.empty_like(v, device="meta") for k, v in network.state_dict().items()}
    image = torch.empty(1, 3, *size, dtype=next(network.parameters()).dtype, device="meta")
    with torch.device("meta"), torch.no_grad(), counter:
        torch.func.functional_call(network, shapes, (image, *arguments))
