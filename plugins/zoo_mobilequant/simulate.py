"""A network of transformers that computes as the integer one would (the table of eq. 14).

``attach`` puts a ``Site`` where a tensor of a decoder layer is made: with hooks on its modules, and
inside attention with an attention function of our own. Modelling code stays as it is, and with all
sites off the network gives bit for bit what it gave before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from .families import Layer
from .quantizers import Grid

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
    after, as if the transformation were in the weights already (eq. 15). ``watch``: is shown the
    tensor.
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
        self.watch: Any = None
        self.register_buffer("step", torch.ones(()), persistent=False)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

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
        if self.watch is None and not self.on:
            return x
        exempt = self.positions.exempt(x, self.axis)
        if self.watch is not None:
            self.watch(self, x, exempt)
        if not self.on:
            return x
        scaled = x if self.divisor is None else x / self.divisor
        found = self.grid(scaled)
        if self.divisor is not None:
            found = found * self.divisor
        return found if exempt is None else torch.where(exempt, x, found)

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


@contextmanager
def watching(sites: Mapping[str, Site], watch: Mapping[str, Any]) -> Iterator[None]:
    """Show what passes the sites to watchers, by name, with all sites off."""
    states = {name: site.on for name, site in sites.items()}
    try:
        for name, site in sites.items():
            site.on, site.watch = False, watch.get(name)
        yield
    finally:
        for name, site in sites.items():
            site.on, site.watch = states[name], None


def switch(sites: Mapping[str, Site], on: bool) -> None:
    """All sites on or off."""
    for site in sites.values():
        site.on = on


@contextmanager
def switched(sites: Mapping[str, Site], on: bool) -> Iterator[None]:
    """All sites on or off, for a while."""
    states = {name: site.on for name, site in sites.items()}
    switch(sites, on)
    try:
        yield
    finally:
        for name, site in sites.items():
            site.on = states[name]
