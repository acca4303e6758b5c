"""What a network costs: FLOPs, counted by shapes alone, and seconds of one thread.

On a CPU the seconds are those that this process computed.

What else a machine does meanwhile does not count then: CPU time of one thread is the time on an
idle core, within a few per cent, and comparisons hold on a machine that others use too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(
    counter: FlopCounterMode, network: nn.Module, size: tuple[int, int], *arguments: object
) -> None:
    """Let ``counter`` see ``network(image, *arguments)`` for an image of ``size`` (height, width).

    Nothing is computed and no weight is copied: only shapes go through the network, and past the
    hooks on its modules.
    """
    shapes = {k: torch.empty_like(v, device="meta") for k, v in network.state_dict().items()}
    image = torch.empty(1, 3, *size, dtype=next(network.parameters()).dtype, device="meta")
    with torch.device("meta"), torch.no_grad(), counter:
        torch.func.functional_call(network, shapes, (image, *arguments))


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    *,
    warm_up: int = 1,
    patience: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; no new round once they are ``patience`` together."""
    spent: dict[str, list[float]] = {label: [] for label in runs}
    with one_thread(), torch.inference_mode():
        for i in range(warm_up + rounds):
            if i > warm_up and sum(map(sum, spent.values())) > patience:
                break
            for label, run in runs.items():
                before = now(device)
                run()
                if i >= warm_up:
                    spent[label].append(now(device) - before)
    return spent


def now(device: torch.device) -> float:
    """Seconds that this process has computed (CPU), or the time after all that waits is done."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
