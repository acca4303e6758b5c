"""Seconds of one thread; on a CPU, those that this process computed.

What else a machine does meanwhile does not count then: CPU time of one thread is the time on an
idle core, within a few per cent, and comparisons hold on a machine that others use too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


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
