"""16 bits for the activations that 8 cannot hold, where the user allows it (eq. 21)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.progress import Progress, track

from .calibrate import Spread
from .learn import divergence, last_hidden
from .recipe import Recipe
from .simulate import Site, watching


def widen(
    network: Any,
    sites: Mapping[str, Site],
    rows: Tensor,
    wanted: Sequence[Tensor],
    recipe: Recipe,
    bounds: Callable[[], Spread],
    progress: Progress = False,
) -> list[str]:
    """Give sites 16 bits, best first, until the loss is within the budget; names those that got it.

    ``rows``, ``wanted``: windows (N,T) and the original's last states. ``bounds``: from least to
    largest value of every site, observed when needed.
    """

    @torch.no_grad()
    def loss() -> float:
        pairs = zip(rows, wanted, strict=True)
        each = [divergence(network, last_hidden(network, r)[1], w) for r, w in pairs]
        return float(torch.stack(each).mean())

    wide: list[str] = []
    if not recipe.fallback or loss() <= recipe.budget:
        return wide
    seen = bounds()
    with track(recipe.fallback, progress, "fall back") as advance:
        for _ in range(recipe.fallback):
            if not wide or loss() > recipe.budget:
                gains = _gains(network, sites, rows, wanted)  # anew: they depend on one another
                name = max(gains, key=lambda name: gains[name])
                sites[name].bits = 16
                sites[name].set(seen.grid(sites[name]))
                wide.append(name)
            advance()
    return wide


def _gains(
    network: Any, sites: Mapping[str, Site], rows: Tensor, wanted: Sequence[Tensor]
) -> dict[str, float]:
    """8-bit site -> by how much the loss would fall, to first order, without its quantizer."""
    narrow = {name: site for name, site in sites.items() if site.bits == 8}
    gains = dict.fromkeys(narrow, 0.0)
    for row, target in zip(rows, wanted, strict=True):
        seen: list[tuple[str, Tensor, Tensor]] = []

        def note(site: Site, x: Tensor, found: Tensor, seen: list[Any] = seen) -> None:
            if not found.requires_grad:
                found.requires_grad_()
            found.retain_grad()
            seen.append((site.name, x.detach(), found))

        with torch.enable_grad(), watching(narrow, note):
            divergence(network, last_hidden(network, row)[1], target).backward()
        for name, x, found in seen:
            if found.grad is not None:
                gains[name] += float(((found.detach() - x) * found.grad).sum())
    return gains
