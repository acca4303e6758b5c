"""A network of transformers that computes as the integer one would (the table of eq. 14).

``attach`` puts a ``Site`` where a tensor of a decoder layer is made: with hooks on its modules, and
inside attention with an attention function of our own. Modelling code stays as it is, and with all
sites off the network gives bit for bit what it gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from . import transform
from .families import Layer
from .quantizers import Grid, WeightFormat, asymmetric, clipping

TABLE: Mapping[str, int] = {
    "x1": 16,  # the residual, as the norms read it
    "n1": 8,  # what q, k and v read: quantized once
    "q": 8,
    "k": 8,
    "v": 8,
    "q_rope": 8,
    "k_rope": 8,
    "qk": 16,
    "p": 16,  # softmax
    "a": 8,  # what o reads
    "o": 16,  # it is added to the residual
    "x2": 16,
    "n2": 8,
    "gate": 8,
    "up": 8,
    "sigmoid": 8,
    "act": 8,
    "h": 8,  # what down reads
    "down": 16,  # it is added to the residual
}
"""Bits of every activation in the 8-bit schemes (eq. 14)."""
INSIDE = ("q_rope", "k_rope", "qk", "p", "a")
"""The tensors inside attention."""
ATTENTION = "zoo_static"


class Positions:
    """Which positions of the sequence stay in float: the first ``prefix`` ones."""

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.queries: Tensor | None = None
        """(B,T): where each row of this call stands in its sequence."""

    def note(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A hook before the decoder runs."""
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        given, cache = kwargs.get("position_ids"), kwargs.get("past_key_values")
        if given is None:
            begin = cache.get_seq_length() if cache is not None else 0
            given = torch.arange(tokens.shape[1], device=tokens.device)[None] + begin
        self.queries = given

    def exempt(self, x: Tensor, axis: str) -> Tensor | None:
        """The mask of what stays in float, in a shape that broadcasts against x, or None."""
        if not self.prefix or self.queries is None:
            return None
        at = self.queries
        if axis == "keys":  # (B,S): the last key belongs to the last query
            at = at[:, -1:] - torch.arange(x.shape[2] - 1, -1, -1, device=x.device)
        early = (at >= 0) & (at < self.prefix)
        if axis == "rows":
            return early.reshape(*early.shape, *[1] * (x.ndim - 2))
        return early[:, None, :, None]


class Site(nn.Module):
    """Where a tensor is quantized: a static grid, in the scale in which the tensor is easiest.

    Off, it gives back what it gets. ``divisor``: the tensor is divided by it before, and multiplied
    after, as if the transformation were in the weights already (eq. 15).
    """

    step: Tensor
    zero: Tensor

    def __init__(self, name: str, bits: int, axis: str, positions: Positions) -> None:
        super().__init__()
        self.name = name
        """``3.h``: the layer's number and the tensor."""
        self.bits = bits
        self.axis = axis
        self.positions = positions
        self.on = False
        self.divisor: Tensor | None = None
        self.learned: Grid | None = None
        self.register_buffer("step", torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))

    @property
    def grid(self) -> Grid:
        """The grid in force: the one that is being learned, else the fixed one."""
        return self.learned or Grid(self.step, self.zero, 0, 2**self.bits - 1)

    def set(self, grid: Grid) -> None:
        """Fix the grid."""
        self.bits = (grid.high + 1).bit_length() - 1
        self.step.copy_(grid.step.detach())
        self.zero.copy_(grid.zero.detach())

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        found = self.grid(x) if self.divisor is None else self.grid(x / self.divisor) * self.divisor
        exempt = self.exempt(x)
        return found if exempt is None else torch.where(exempt, x, found)

    def exempt(self, x: Tensor) -> Tensor | None:
        """Which of x stays in float: a mask that broadcasts against it, or None."""
        return self.positions.exempt(x, self.axis)

    def before(self, module: nn.Module, args: Any) -> Any:
        """A hook on a module that reads the tensor."""
        return (self(args[0]), *args[1:])

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A hook on a module that makes the tensor."""
        found: Tensor = self(output)
        return found

    def gated(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A hook on SiLU, which integers compute as x times a quantized sigmoid(x)."""
        return args[0] * self(torch.sigmoid(args[0])) if self.on else output


class FakeWeight(nn.Module):
    """A weight as the integers have it: a parametrization of ``torch.nn.utils`` (eq. 15).

    Off, it gives the weight itself. ``divided``: the divisors in force. ``clip``: logits of eq. 12,
    or None for the whole range.
    """

    def __init__(self, layer: Layer, name: str, form: WeightFormat) -> None:
        super().__init__()
        self.layer, self.name, self.form = layer, name, form
        self.on = False
        self.divided: Mapping[str, Tensor] = {}
        self.clip: Tensor | None = None

    def grid(self, weight: Tensor) -> Grid:
        """The grid for a transformed weight."""
        return self.form.grid(weight, None if self.clip is None else clipping(self.clip))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        moved = transform.scaled(self.layer, self.name, weight, None, self.divided)[0]
        rounded = self.grid(moved)(moved)
        back = {tensor: 1 / d for tensor, d in self.divided.items()}
        return transform.scaled(self.layer, self.name, rounded, None, back)[0]


def attach(network: Any, layers: Sequence[Layer], bits: int, prefix: int = 0) -> dict[str, Site]:
    """Put sites into a network, all off; name -> site.

    ``bits``: of the activations that ``TABLE`` gives 8. ``prefix``: so many first positions stay
    in float. The network computes attention as transformers' eager mode does from then on.
    """
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    network.config._attn_implementation = ATTENTION
    positions = Positions(prefix)
    if prefix:
        network.get_decoder().register_forward_pre_hook(positions.note, with_kwargs=True)
    found: dict[str, Site] = {}
    for layer in layers:
        sites = {
            name: Site(f"{layer.index}.{name}", max(width, bits), _axis(name), positions)
            for name, width in TABLE.items()
            if _has(layer, name)
        }
        sites |= {
            f"{name}_added": Site(f"{layer.index}.{name}_added", 16, "rows", positions)
            for name in layer.added
        }
        layer.attention.sites = nn.ModuleDict({n: s for n, s in sites.items() if n in INSIDE})
        layer.module.sites = nn.ModuleDict({n: s for n, s in sites.items() if n not in INSIDE})
        _hook(layer, sites)
        device = layer.linears["q"].weight.device
        found |= {site.name: site.to(device) for site in sites.values()}
    return found


def _has(layer: Layer, name: str) -> bool:
    if name == "sigmoid":
        return isinstance(layer.activation, nn.SiLU) or "SiLU" in type(layer.activation).__name__
    return name not in ("x2", "n2") or "n2" in layer.norms


def _axis(name: str) -> str:
    """Where the positions of a tensor are: (B,T,...), or (B,heads,T,...) of queries or keys."""
    if name == "k_rope":
        return "keys"
    return "heads" if name in ("q_rope", "qk", "p") else "rows"


def _hook(layer: Layer, sites: Mapping[str, Site]) -> None:
    for number in ("1", "2"):
        if f"n{number}" in sites:
            norm = layer.norms[f"n{number}"]
            norm.register_forward_pre_hook(sites[f"x{number}"].before)
            norm.register_forward_hook(sites[f"n{number}"].after)
    for name, linear in layer.linears.items():
        linear.register_forward_hook(sites[name].after)
    for name, norm in layer.added.items():
        norm.register_forward_hook(sites[f"{name}_added"].after)
    if "sigmoid" in sites:
        layer.activation.register_forward_hook(sites["sigmoid"].gated)
    layer.activation.register_forward_hook(sites["act"].after)
    layer.linears["down"].register_forward_pre_hook(sites["h"].before)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with its sites. query (B,heads,T,d); key, value (B,kv heads,S,d), cache included.

    Gives (B,T,heads,d) and the probabilities (B,heads,T,S). There is no dropout: nothing is trained
    here but the quantizers.
    """
    sites = module.sites
    query, key = sites["q_rope"](query), sites["k_rope"](key)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = sites["qk"](scores)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = sites["p"](weights)
    output = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return sites["a"](output), weights


Switch: TypeAlias = "Site | FakeWeight"


def attach_weights(
    layers: Sequence[Layer], form: Mapping[str, WeightFormat]
) -> dict[str, FakeWeight]:
    """Give the linear layers fake weights, all off; path of the layer -> fake weight.

    ``form``: linear layer (``q`` ... ``down``) -> how it is quantized.
    """
    found = {}
    for layer in layers:
        for name, linear in layer.linears.items():
            fake = FakeWeight(layer, name, form[name])
            parametrize.register_parametrization(linear, "weight", fake)
            found[layer.path(name)] = fake
    return found


@torch.no_grad()
def settle(
    layer: Layer, fakes: Mapping[str, FakeWeight], divided: Mapping[str, Tensor]
) -> list[tuple[str, Grid, float]]:
    """Fold a layer and replace its fake weights by weights on their grids (eq. 20).

    Gives (path, grid, relative error of the weight) of each linear layer. The weights of its norms
    get 16 bits.
    """
    for linear in layer.linears.values():
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    transform.fold(layer, divided)
    found = []
    for name, linear in layer.linears.items():
        path, weight = layer.path(name), linear.weight.data
        grid = fakes[path].grid(weight)
        rounded = grid(weight)
        error = (rounded - weight).norm() / weight.norm().clamp_min(1e-30)
        weight.copy_(rounded)
        found.append((path, grid, float(error)))
    for norm in (*layer.norms.values(), *layer.added.values()):
        for part in norm.modules():  # StableLM has one for each head inside
            scale: Any = getattr(part, "weight", None)
            if scale is not None:
                scale.copy_(asymmetric(scale.min(), scale.max(), 16)(scale))
    return found


@contextmanager
def watching(
    sites: Mapping[str, Site], watch: Callable[[Site, Tensor, Tensor], None]
) -> Iterator[None]:
    """``watch(site, x, found)`` is told of every tensor that comes to the sites."""
    hooks = [
        site.register_forward_hook(lambda site, args, found: watch(site, args[0], found))
        for site in sites.values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def switched(parts: Iterable[Switch], on: bool) -> Iterator[None]:
    """Sites and fake weights on or off, for a while."""
    states = [(part, part.on) for part in parts]
    for part, _ in states:
        part.on = on
    try:
        yield
    finally:
        for part, was in states:
            part.on = was
