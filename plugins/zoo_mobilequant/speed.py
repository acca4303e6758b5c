"""CPU time of a quantized model on integers, beside the same network in floats."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import MobileQuantized


@torch.no_grad()
def compared(
    model: MobileQuantized, prompt: int = 256, threads: int = 1, repeats: int = 5
) -> dict[str, tuple[float, float]]:
    """CPU-seconds of a prompt of so many tokens (with the last row of the head), and of one token
    after it: ``floats``, the network of transformers as it comes, with random weights, and
    ``integers``. They take turns; the quickest of ``repeats`` counts.
    """
    config = model.module.config.__class__(**model.module.config.to_dict())
    config._attn_implementation = "sdpa"
    networks = {"floats": AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)}
    networks["integers"] = model.integers()
    ids = torch.arange(prompt)[None] % config.vocab_size
    best = {name: [float("inf"), float("inf")] for name in networks}
    with _threads(threads):
        for turn in range(repeats + 1):  # the first one is a warm-up
            for name, network in networks.items():
                seconds = _once(network, ids)
                if turn:
                    best[name] = [min(a, b) for a, b in zip(best[name], seconds, strict=True)]
    return {name: (a, b) for name, (a, b) in best.items()}


def _once(network: Any, ids: torch.Tensor) -> tuple[float, float]:
    cache: list[Any] = []

    def fill() -> None:
        cache.append(network(ids, use_cache=True, logits_to_keep=1).past_key_values)

    first = _timed(fill)
    last = _timed(lambda: network(ids[:, :1], past_key_values=cache[0], use_cache=True))
    return first, last


def _timed(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
