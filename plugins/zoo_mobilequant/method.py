"""MobileQuant from beginning to end: even out, choose ranges, learn, fold.

The steps are those of the method's page. ``fit`` changes the network in place: afterwards its
linear weights lie on their grids, and its sites quantize every activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.progress import Progress, track

from . import learn
from .calibrate import Clipped, Peaks, Spread
from .fallback import widen
from .families import Layer, head
from .learn import Learned, draw, last_hidden
from .quantizers import Grid
from .recipe import Recipe
from .simulate import Site, attach, attach_weights, settle, switched, watching
from .start import candidates, divided_by, judged
from .tables import HEAD, attach_head, settle_tables
from .transform import fold
from .work import Work

CLOSED_FORM = 32
"""Windows that the closed forms look at (eq. 8 and 13)."""
FEW = 8
"""Windows from which the ranges come that the choice of eq. 22 is made with."""
HELD_BACK = 4
"""Windows that learning does not see, at most: they decide whether it helped (eq. 20)."""
CLIPPED = 0.01
"""Sites that clip a larger share of their values are reported."""


@dataclass
class Fitted:
    """What ``fit`` made of a network, beside its weights."""

    sites: Mapping[str, Site]
    grids: Mapping[str, Grid]
    """Path of a linear layer -> the grid of its weight."""
    report: dict[str, Any]
    """``kl``, ``agreement`` and so on (``compare``), the same ``before_learning``, the ``strength``
    of eq. 8 and the KL divergence of all ``strengths`` tried, ``errors`` of each linear layer,
    ``wide`` and ``clipped`` sites, ``notes``."""


def fit(
    network: Any,
    layers: Sequence[Layer],
    rows: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress = False,
    work: Work | None = None,
) -> Fitted:
    """Quantize a network, in place, by windows of token ids (N,T)."""
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    held = min(HELD_BACK, len(rows) // 4)  # where there are few, learning has all of them
    tests, lessons = (rows[:held] if held else rows), rows[held:]
    closed = lessons[:CLOSED_FORM]
    sites = attach(network, layers, recipe.activation_bits, recipe.prefix_tokens)

    # What the original gives (eq. 1), and how large its channels get.
    wanted = _originals(network, tests, progress)
    count = recipe.steps if recipe.learns and recipe.jointly else 0
    shown = sorted({draw(step, len(lessons), seed) for step in range(count)})
    originals = _originals(network, lessons[shown], progress, recipe.loss)
    targets = dict(zip(shown, originals, strict=True))
    peaks = Peaks()
    peaks.found = _kept(work, "peaks", lambda: _observe(network, sites, closed, peaks, progress))

    # Even the channels out, as far as it serves (eq. 8 and 22): the function stays.
    weights = attach_weights(layers, {name: recipe.form(name) for name in layers[0].linears})
    names = candidates(recipe)
    plans = {name: divided_by(layers, peaks, recipe, name) for name in names}
    tried: dict[str, Tensor] = {}
    if len(names) > 1:

        def judge() -> dict[str, Tensor]:
            few = closed[:FEW]
            return judged(
                layers, sites, weights, plans, recipe, seed=seed,
                observe=lambda watch: _observe(network, sites, few, watch, progress),
                loss=lambda: compare(network, tests, wanted)["kl"],
            )  # fmt: skip

        tried = _kept(work, "strengths", judge)
    strength = min(names, key=lambda name: float(tried.get(name, 0)))
    for layer in layers:
        fold(layer, plans[strength][layer.index])

    # The grids of activations (eq. 13) and of weights (eq. 11).
    spread = Spread(recipe.grid, seed)

    def ranges() -> dict[str, Tensor]:
        _observe(network, sites, closed, spread, progress)
        grids = {name: spread.grid(site) for name, site in sites.items()}
        return {name: torch.stack([grid.step, grid.zero]) for name, grid in grids.items()}

    for name, (step, zero) in _kept(work, "ranges", ranges).items():
        sites[name].set(Grid(step, zero, 0, 2 ** sites[name].bits - 1))

    # Learn (eq. 16 to 19), and keep what was learned where it helped (eq. 20).
    learned = Learned(layers, sites, weights, recipe)
    notes: list[str] = []
    with switched(learned.parts, True):
        before = found = compare(network, tests, wanted)
        if recipe.learns:
            with track(_steps(recipe, layers), progress, "learn") as advance:
                how: dict[str, Any] = {"seed": seed, "advance": advance, "work": work}
                if recipe.jointly:
                    notes += learn.joint(network, learned, lessons, targets, **how)
                else:
                    notes += learn.layerwise(network, learned, lessons, **how)
            learned.apply(exact=True)
            found = compare(network, tests, wanted)
            if not found["kl"] < before["kl"]:
                learned.drop()
                notes.append(
                    f"Learning did not help on held-out windows: KL divergence {found['kl']:.4f} "
                    f"with it, {before['kl']:.4f} without. The learned values were discarded. "
                    "More calibration text may help."
                )

    # Fold (eq. 2), and move the weights to their grids for good (eq. 20).
    grids: dict[str, Grid] = {}
    errors: dict[str, float] = {}
    for layer in layers:
        for name, grid, error in settle(layer, weights, learned.divided(layer)):
            grids[name], errors[name] = grid, error
    for site in sites.values():
        site.set(site.grid)
        site.divisor = site.learned = None
        site.on = True

    # Where the user allows it, what 8 bits cannot hold gets 16 (eq. 21).
    def bounds() -> Spread:
        plain = Spread(False)
        _observe(network, sites, closed, plain, False)
        return plain

    wide = widen(network, sites, tests, wanted, recipe, bounds, progress)

    # Embedding and head as one table of 8-bit rows, and a grid for what the head reads (eq. 23).
    whole = deepcopy(network.get_output_embeddings())  # the original's, to compare with
    if recipe.table:
        grids |= settle_tables(network)
        site, ends = attach_head(network), Spread(False)
        for row in closed:
            ends(site, last_hidden(network, row)[1][None], row)
        site.set(ends.grid(site))
        site.on = True
        sites[HEAD] = site
    clipped = Clipped()
    with watching(sites, clipped):
        final = compare(network, tests, wanted, whole)
    report = {
        **final,
        "before_learning": before,
        "strength": strength,
        "strengths": {name: float(kl) for name, kl in tried.items()},
        "errors": errors,
        "wide": wide,
        "clipped": {name: share for name, share in clipped.shares.items() if share > CLIPPED},
        "notes": notes,
    }
    return Fitted(sites, grids, report)


@torch.no_grad()
def compare(
    network: Any, rows: Tensor, wanted: Sequence[Tensor], whole: nn.Module | None = None
) -> dict[str, float]:
    """A network against the original, whose last states are ``wanted``, on windows (N,T).

    ``whole``: the original's head, where the network's is quantized.

    ``kl``: mean KL divergence in nats for each token (eq. 17); ``agreement``: share of the
    positions with the same likeliest token; ``perplexity`` and ``perplexity_original``: of the
    windows' own next tokens.
    """
    sums = dict.fromkeys(("kl", "agreement", "perplexity", "perplexity_original"), 0.0)
    for row, original in zip(rows, wanted, strict=True):
        hidden = last_hidden(network, row)[1]
        following = row.roll(-1)
        parts = (t.split(learn.CHUNK) for t in (hidden, original, following))
        for mine, theirs, next_ in zip(*parts, strict=True):
            q = head(network, mine).float().log_softmax(-1)
            p = head(network, theirs, whole).float().log_softmax(-1)
            sums["kl"] += float((p.exp() * (p - q)).sum())
            sums["agreement"] += float((p.argmax(-1) == q.argmax(-1)).sum())
            sums["perplexity"] -= float(q.gather(1, next_[:, None]).sum())
            sums["perplexity_original"] -= float(p.gather(1, next_[:, None]).sum())
            last = (q, p)
        for name, logs in zip(("perplexity", "perplexity_original"), last, strict=True):
            sums[name] += float(logs[-1, following[-1]])  # nothing follows the last one
    positions = rows.numel()
    following_count = max(positions - len(rows), 1)
    return {
        "kl": sums["kl"] / positions,
        "agreement": sums["agreement"] / positions,
        "perplexity": math.exp(min(sums["perplexity"] / following_count, 700)),
        "perplexity_original": math.exp(min(sums["perplexity_original"] / following_count, 700)),
    }


@torch.no_grad()
def _originals(network: Any, rows: Tensor, progress: Progress, loss: str = "kl") -> list[Tensor]:
    """For each window (T,H): what the last norm gives, or reads where the loss is ``mse``."""
    found = []
    with track(len(rows), progress, "original") as advance:
        for row in rows:
            read, given = last_hidden(network, row)
            found.append(read if loss == "mse" else given)
            advance()
    return found


@torch.no_grad()
def _observe(
    network: Any, sites: Mapping[str, Site], rows: Tensor, watcher: Any, progress: Progress
) -> dict[str, Tensor]:
    """Show the tensors of the float network to a watcher; gives what it ``found``."""
    with (
        track(len(rows), progress, "calibrate") as advance,
        switched(sites.values(), False),
        watching(sites, watcher),
    ):
        for row in rows:
            last_hidden(network, row)
            advance()
    return getattr(watcher, "found", {})


def _kept(work: Work | None, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    return work.stage(name, make) if work else make()


def _steps(recipe: Recipe, layers: Sequence[Layer]) -> int:
    return recipe.steps * (1 if recipe.jointly else len(layers))
