"""Learning transformation, clipping and ranges together (eq. 16 to 19)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from .families import Layer, head
from .quantizers import Grid, round_ste
from .recipe import Recipe
from .simulate import FakeWeight, Site, Switch, switched
from .transform import divisors, pairs_of, shape
from .work import Work

RATES = {"transformation": 5e-3, "clipping": 1e-2, "scale": 4e-2, "zero": 4e-3}
"""Adam's learning rates (eq. 16)."""
LAST_RATE = 0.1
"""What is left of them at the end."""
CLIP_START = 4.0
"""Logits of eq. 12: 0.982 of the range."""
CHUNK = 256
"""Positions whose logits are in memory at once."""
MASSIVE = 20.0
"""A position is massive if its largest value exceeds the median position's by this factor."""
RECOMPUTE = 200_000_000
"""Networks with more parameters compute the inside of their layers again for the gradients."""


class Learned:
    """What is learned, and how it comes into force: divisors, clipping, ranges (eq. 16)."""

    def __init__(
        self,
        layers: Sequence[Layer],
        sites: Mapping[str, Site],
        weights: Mapping[str, FakeWeight],
        recipe: Recipe,
    ) -> None:
        self.layers, self.sites, self.weights, self.recipe = layers, sites, weights, recipe
        self.values: dict[str, Tensor] = {}
        """``0/ud`` (lambda), ``0/clip/gate`` (logits), ``0/scale/h`` and ``0/zero/h``."""
        self.fixed = {name: site.grid for name, site in sites.items()}
        for layer in layers:
            for name, value in self._start(layer).items():
                self.values[f"{layer.index}/{name}"] = value.requires_grad_()

    def _start(self, layer: Layer) -> dict[str, Tensor]:
        device, made = layer.linears["q"].weight.device, dict[str, Tensor]()
        learns = self.recipe.learns
        if "transformation" in learns:
            for pair in pairs_of(layer):
                if pair in self.recipe.pairs:
                    made[pair] = torch.zeros(shape(layer, pair), device=device)
        if "clipping" in learns:
            for name in layer.linears:
                rows = self.weights[layer.path(name)].form.per_row
                sizes = (2, layer.linears[name].out_features, 1) if rows else (2,)
                made[f"clip/{name}"] = torch.full(sizes, CLIP_START, device=device)
        if "ranges" in learns:
            for name in self.sites_of(layer):
                made[f"scale/{name}"] = torch.zeros((), device=device)
                made[f"zero/{name}"] = torch.zeros((), device=device)
        return made

    @property
    def parts(self) -> list[Switch]:
        """All that quantizes, to be switched on and off."""
        return [*self.sites.values(), *self.weights.values()]

    def sites_of(self, layer: Layer) -> dict[str, Site]:
        """Tensor -> site, of one layer."""
        begin = f"{layer.index}."
        return {n.removeprefix(begin): s for n, s in self.sites.items() if n.startswith(begin)}

    def divided(self, layer: Layer) -> dict[str, Tensor]:
        """The divisors of a layer's tensors as they are learned now."""
        names = {pair: f"{layer.index}/{pair}" for pair in pairs_of(layer)}
        found = {p: self.values[n].exp() for p, n in names.items() if n in self.values}
        return divisors(layer, found)

    def apply(self, layers: Sequence[Layer] | None = None, *, exact: bool = False) -> None:
        """Put the present values into force, with their gradients.

        ``exact``: weights are quantized as they will be after folding; else those of 8 bits without
        the transformation, which hardly changes them (eq. 15).
        """
        follow = exact or self.recipe.weight_bits < 8
        for layer in self.layers if layers is None else layers:
            divided = self.divided(layer)
            for name, site in self.sites_of(layer).items():
                site.divisor = divided.get(name)
                site.learned = self._grid(layer, name)
            for name in layer.linears:
                weight = self.weights[layer.path(name)]
                weight.divided = divided if follow else {}
                weight.clip = self.values.get(f"{layer.index}/clip/{name}")

    def _grid(self, layer: Layer, name: str) -> Grid | None:
        scale = self.values.get(f"{layer.index}/scale/{name}")
        if scale is None:
            return None
        fixed, zero = self.fixed[f"{layer.index}.{name}"], self.values[f"{layer.index}/zero/{name}"]
        moved = round_ste(fixed.zero + fixed.high * zero).clamp(0, fixed.high)
        return Grid(fixed.step * scale.exp(), moved, 0, fixed.high)

    def drop(self) -> None:
        """Forget what was learned, and take it out of force."""
        self.values = {}
        for site in self.sites.values():
            site.divisor = site.learned = None
        for weight in self.weights.values():
            weight.divided, weight.clip = {}, None

    def of(self, layer: Layer) -> dict[str, Tensor]:
        """What is learned of one layer."""
        begin = f"{layer.index}/"
        return {name: value for name, value in self.values.items() if name.startswith(begin)}


# --- losses ---------------------------------------------------------------------------------------


def last_hidden(network: Any, row: Tensor) -> tuple[Tensor, Tensor]:
    """(what the last norm reads, what it gives), each (T,H), for one window (T,)."""
    seen: list[Tensor] = []
    decoder = network.get_decoder()
    hook = decoder.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        output = decoder(input_ids=row[None], use_cache=False).last_hidden_state
    finally:
        hook.remove()
    return seen[0][0], output[0]


def divergence(network: Any, hidden: Tensor, wanted: Tensor) -> Tensor:
    """Mean KL divergence of the next token (eq. 17), by chunks of positions.

    ``hidden``, ``wanted`` (T,H): what the last norm gives, quantized and of the original.
    """

    def part(mine: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            p = head(network, theirs).float().log_softmax(-1)
        q = head(network, mine).float().log_softmax(-1)
        return (p.exp() * (p - q)).sum()

    total = hidden.new_zeros(())
    for mine, theirs in zip(hidden.split(CHUNK), wanted.split(CHUNK), strict=True):
        if mine.requires_grad:
            total = total + _AtOnce.apply(mine, partial(part, theirs=theirs))
        else:
            total = total + part(mine, theirs)
    return total / len(hidden)


class _AtOnce(torch.autograd.Function):
    """A function of one tensor whose gradient is computed with it, so that nothing else is kept:
    logits need not be in memory until the backward pass, nor be computed again in it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            value = function(leaf)
        ctx.save_for_backward(*torch.autograd.grad(value, leaf))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


def distance(hidden: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of the residual (T,H), without massive positions (eq. 18)."""
    largest = wanted.abs().amax(1)
    plain = largest <= MASSIVE * largest.median()
    return (hidden - wanted)[plain].square().mean()


# --- the two ways of learning ---------------------------------------------------------------------


def joint(
    network: Any,
    learned: Learned,
    rows: Tensor,
    wanted: Sequence[Tensor] | Mapping[int, Tensor],
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
    work: Work | None = None,
) -> list[str]:
    """Learn through all layers (eq. 17 or 18); returns remarks.

    ``rows`` (N,T), ``wanted`` for each that is drawn: what the last norm gives in the original, or
    for ``mse`` what it reads.
    """
    recipe = learned.recipe

    def loss(step: int) -> Tensor:
        which = draw(step, len(rows), seed)
        learned.apply()
        read, given = last_hidden(network, rows[which])
        if recipe.loss == "mse":
            return distance(read, wanted[which])
        return divergence(network, given, wanted[which])

    large = sum(p.numel() for p in network.parameters()) > RECOMPUTE
    with ExitStack() as stack:
        stack.enter_context(switched(learned.parts, True))
        stack.enter_context(recomputed(learned.layers if large else ()))
        if recipe.weight_bits == 8 and not large:  # quantized once: they stay (eq. 15)
            stack.enter_context(parametrize.cached())
        return minimise(learned.values, loss, recipe.steps, advance, work)


def layerwise(
    network: Any,
    learned: Learned,
    rows: Tensor,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
    work: Work | None = None,
) -> list[str]:
    """Learn one layer after the other (eq. 19); returns remarks. Memory is that of one layer."""
    recipe, remarks = learned.recipe, list[str]()
    with torch.no_grad(), switched(learned.parts, False):
        calls, begin = _calls(network, learned.layers, rows)
    float_in, in_ = begin, list(begin)
    for layer in learned.layers:
        run = calls[layer.index]
        with torch.no_grad(), switched(learned.parts, False):
            targets = [run(x) for x in float_in]

        def loss(
            step: int,
            layer: Layer = layer,
            run: Callable[[Tensor], Tensor] = run,
            inputs: Sequence[Tensor] = in_,
            targets: Sequence[Tensor] = targets,
        ) -> Tensor:
            which = draw(step, len(rows), seed)
            learned.apply([layer])
            return distance(run(inputs[which])[0], targets[which][0])

        with switched(learned.parts, True):
            part = work.part(f"layer {layer.index}") if work else None
            remarks += minimise(learned.of(layer), loss, recipe.steps, advance, part)
            with torch.no_grad():
                learned.apply([layer], exact=True)
                in_ = [run(x) for x in in_]
        float_in = targets
    return remarks


def minimise(
    values: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    advance: Callable[[], None],
    work: Work | None = None,
) -> list[str]:
    """Adam with cosine rates; ``loss`` of a step. Returns remarks.

    With ``work``, it goes on from the last checkpoint, and ends as if never interrupted. A loss or
    gradient that is not finite ends it: the last values with a finite one stay.
    """
    if not values:
        for _ in range(steps):
            advance()
        return []
    groups = [{"params": [v], "lr": _rate(name), "rate": _rate(name)} for name, v in values.items()]
    adam = torch.optim.Adam(groups, foreach=False)
    done = work.restore(values, adam) if work else 0
    good = {name: value.detach().clone() for name, value in values.items()}
    for _ in range(done):
        advance()
    for step in range(done, steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for group in adam.param_groups:
            group["lr"] = group["rate"] * (LAST_RATE + (1 - LAST_RATE) * cosine)
        adam.zero_grad()
        error = loss(step)
        finite = bool(torch.isfinite(error))
        if finite:
            error.backward()
            finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(values.values(), 1.0)))
        if not finite:
            _copy(good, values)
            for _ in range(step, steps):
                advance()
            return [
                f"Learning ended at step {step + 1} of {steps}: the loss was not finite. The "
                "values learned before that are kept."
            ]
        _copy(values, good)
        adam.step()
        if work:
            work.step(step + 1, steps, values, adam)
        advance()
    return []


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        target[name].copy_(value)


def draw(step: int, count: int, seed: int) -> int:
    """The window of a step: each once in every round, in an order of its own."""
    chance = torch.Generator().manual_seed(seed * 1_000_003 + step // count)
    return int(torch.randperm(count, generator=chance)[step % count])


def _rate(name: str) -> float:
    kind = name.split("/")[1]
    return RATES.get({"clip": "clipping"}.get(kind, kind), RATES["transformation"])


@contextmanager
def recomputed(layers: Sequence[Layer]) -> Iterator[None]:
    """Layers keep only their input for the gradient, and compute the rest again."""
    with ExitStack() as stack:
        for layer in layers:
            module: Any = layer.module
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
            stack.callback(delattr, module, "forward")
        yield


Call = Callable[[Tensor], Tensor]


def _calls(
    network: Any, layers: Sequence[Layer], rows: Tensor
) -> tuple[dict[int, Call], list[Tensor]]:
    """How the decoder calls each layer, and what comes to the first one, (1,T,H) for each row.

    Masks and rotary angles are the same for all rows, which are equally long.
    """
    calls: dict[int, Call] = {}
    first: list[Tensor] = []

    def note(layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if layer.index == layers[0].index:
                first.append(args[0])

            def run(x: Tensor) -> Tensor:
                found = module(x, *args[1:], **kwargs)
                return found if isinstance(found, Tensor) else found[0]

            calls.setdefault(layer.index, run)

        return layer.module.register_forward_pre_hook(hook, with_kwargs=True)

    class Enough(Exception):  # noqa: N818
        """The first layer has been reached: no need to go on."""

    def stop(module: nn.Module, args: Any) -> None:
        raise Enough

    hooks = [note(layer) for layer in layers]
    decoder = network.get_decoder()
    try:
        decoder(input_ids=rows[:1], use_cache=False)
        hooks.append(layers[0].module.register_forward_pre_hook(stop))
        for row in rows[1:]:
            with suppress(Enough):
                decoder(input_ids=row[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, first
