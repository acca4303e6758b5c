"""CPU time of a quantized model on integers, beside the same network in floats."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from zoo.experiment import take_turns

if TYPE_CHECKING:
    from .model import MobileQuantized


@torch.no_grad()
def compared(
    model: MobileQuantized, prompt: int = 256, repeats: int = 5
) -> dict[str, tuple[float, float]]:
    """CPU-seconds of a prompt of so many tokens (with the last row of the head), and of one token
    after it, on one thread: ``floats``, the network of transformers as it comes, in float32 with
    random weights, and ``integers``. They take turns; the quickest of ``repeats`` counts.
    """
    config = model.module.config.__class__(**model.module.config.to_dict())
    config._attn_implementation = "sdpa"
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    networks = {"floats": plain.eval().requires_grad_(False), "integers": model.integers()}
    ids = torch.arange(prompt)[None] % config.vocab_size
    caches: dict[str, Any] = {}

    def fill(name: str) -> None:
        made = networks[name](ids, use_cache=True, logits_to_keep=1)
        caches[name] = made.past_key_values

    def follow(name: str) -> None:
        networks[name](ids[:, :1], past_key_values=caches[name], use_cache=True)

    prompts = take_turns({n: partial(fill, n) for n in networks}, rounds=repeats)
    tokens = take_turns({n: partial(follow, n) for n in networks}, rounds=repeats)
    return {name: (min(prompts[name]), min(tokens[name])) for name in networks}
