"""What a quantization would cost, from the configuration of the model alone."""

from __future__ import annotations

import time
from typing import Any

import torch

from zoo.interfaces import Estimate

from .calibrate import LENGTH
from .families import describe
from .learn import RECOMPUTE
from .method import CLOSED_FORM, FEW, HELD_BACK
from .original import outline
from .recipe import Recipe
from .start import candidates
from .transform import pairs_of

ROUNDING = 4.0
"""Time of a pass of learning, in units of its matrix products (measured on 135 M parameters)."""


def plan(model: Any, calibration: Any, recipe: Recipe, device: torch.device) -> Estimate:
    """The passes of ``method.fit``; a pass for the gradient counts as two, three where layers are
    computed again.
    """
    network, texts = outline(model)
    layers = describe(network)
    parameters = sum(p.numel() for p in network.parameters())
    config = network.config
    rows, length = _shape(texts if calibration is None else calibration, config)
    large = parameters > RECOMPUTE
    tried = len(candidates(recipe)) if recipe.pairs and recipe.alpha is None else 0
    passes = rows + 2 * min(rows, CLOSED_FORM) + (3 + tried) * min(HELD_BACK, rows)
    passes += min(rows, FEW) if tried else 0
    lessons = recipe.steps * (4 if large else 3) if recipe.learns else 0
    products = 2.0 * parameters * length
    seconds = products * (passes + ROUNDING * lessons) / _speed(device)
    hidden, inner = config.hidden_size, config.intermediate_size
    states = rows * length * hidden * 4
    layer = length * (30 * hidden + 12 * inner) + 6 * config.num_attention_heads * length**2
    weights = sum(linear.weight.numel() for each in layers for linear in each.linears.values())
    copies = weights * (1 if recipe.weight_bits == 8 else 5) * 4
    kept = layer * 4
    if recipe.learns:  # for gradients: of every layer at once, or of one
        kept = (len(layers) * layer * 6 + copies) // (len(layers) if large else 1)
    head = 8 * min(length, LENGTH) * config.vocab_size * 4  # logits of both, and what KL needs
    saved = parameters * 2 * 2  # the 16-bit weights, and the file that is made of them
    pairs = {pair: sum(pair in pairs_of(each) for each in layers) for pair in recipe.pairs}
    notes = [
        f"{type(network).__name__}: {parameters / 1e6:.2f} M parameters, {len(layers)} layers, "
        f"{parameters * 4 / 1e6:.1f} MB in float32",
        "pairs: " + (", ".join(f"{n} {pair}" for pair, n in pairs.items() if n) or "none"),
        f"calibration: {rows} windows of {length} tokens; {recipe.steps if recipe.learns else 0} "
        "steps of learning",
    ]
    memory = int(max(states + kept + head, saved))
    return Estimate(passes + lessons, products * (passes + lessons), memory, seconds, tuple(notes))


def _shape(calibration: Any, config: Any) -> tuple[int, int]:
    """(windows, tokens of each); of texts, by their length: four characters to a token."""
    from zoo.calibration import texts

    if hasattr(calibration, "shape"):
        return int(calibration.shape[0]), int(calibration.shape[1])
    given = texts() if calibration is None else calibration
    length = min(LENGTH, int(getattr(config, "max_position_embeddings", None) or LENGTH))
    return max(1, sum(map(len, given)) // 4 // length), length


def _speed(device: torch.device) -> float:
    """FLOP/s of a matrix product on this machine, as it is now."""
    if device.type == "meta":
        return 1e10
    a = torch.ones(512, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((a @ a.T).sum())
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 512 * 1024 / best
