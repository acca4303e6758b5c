"""How far the channels are evened out before learning: the strength of eq. 8 that serves best.

Evening activations out makes weights harder to quantize: what 8-bit weights gain by can cost 4-bit
ones more than it brings. So a few strengths, and none, are tried on held-back windows (eq. 22).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .calibrate import Peaks, Spread
from .families import Layer
from .recipe import Recipe
from .simulate import FakeWeight, Site, switched
from .transform import smooth

STRENGTHS = (0.5, 0.3, 0.7)
"""What is tried, beside no smoothing."""
NONE = "none"

Divided = Mapping[int, Mapping[str, Tensor]]
"""Number of a layer -> the divisors of its tensors."""


def divided_by(layers: Sequence[Layer], peaks: Peaks, recipe: Recipe, strength: str) -> Divided:
    """The divisors that a strength, ``NONE`` or a number, means (eq. 8)."""
    if strength == NONE:
        return {layer.index: {} for layer in layers}
    return {
        layer.index: smooth(layer, peaks.of(layer.index), recipe.pairs, float(strength))
        for layer in layers
    }


def candidates(recipe: Recipe) -> list[str]:
    """The strengths that a recipe allows."""
    if not recipe.pairs:
        return [NONE]
    return [NONE, *map(str, STRENGTHS)] if recipe.alpha is None else [str(recipe.alpha)]


@torch.no_grad()
def judged(
    layers: Sequence[Layer],
    sites: Mapping[str, Site],
    weights: Mapping[str, FakeWeight],
    plans: Mapping[str, Divided],
    recipe: Recipe,
    *,
    observe: Callable[[Callable[[Site, Tensor, Tensor], None]], object],
    loss: Callable[[], float],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Strength -> the loss with it, every quantizer on and nothing learned.

    ``observe`` shows the float network's tensors to a watcher; ``loss`` is that of eq. 17 on
    windows. Nothing is folded: divisors are in force at the sites and in the fake weights (eq. 15),
    and are gone afterwards.
    """
    by_site = {
        name: {f"{i}.{tensor}": d for i, divided in plan.items() for tensor, d in divided.items()}
        for name, plan in plans.items()
    }
    spreads = {name: Spread(recipe.grid, seed, divided) for name, divided in by_site.items()}

    def watch(site: Site, x: Tensor, found: Tensor) -> None:
        for spread in spreads.values():
            spread(site, x, found)

    observe(watch)
    losses = {}
    with switched([*sites.values(), *weights.values()], True):
        for name, plan in plans.items():
            _put(layers, sites, weights, plan)
            for site in sites.values():
                site.set(spreads[name].grid(site))
            losses[name] = torch.tensor(loss())
    _put(layers, sites, weights, {})
    return losses


def _put(
    layers: Sequence[Layer],
    sites: Mapping[str, Site],
    weights: Mapping[str, FakeWeight],
    plan: Divided,
) -> None:
    """Put divisors into force."""
    for layer in layers:
        divided = plan.get(layer.index, {})
        for name in layer.linears:
            weights[layer.path(name)].divided = divided
        for name, site in sites.items():
            number, _, tensor = name.partition(".")
            if int(number) == layer.index:
                site.divisor = divided.get(tensor)
