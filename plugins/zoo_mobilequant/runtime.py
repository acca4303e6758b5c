"""A quantized model that computes on integers, on the CPU.

The network stays that of transformers. Layers that read the same tensor are one product of its
codes (``kernels.py``); an activation function of codes is a table of 256 values; keys and values
are kept as codes. What has 16 bits in the table of eq. 14 (the residual, what is added to it,
scores and probabilities) stays in the floats that norms, RoPE and softmax compute: a rounding takes
as long as they do, and changes a 65,535th of the range. So the result differs from the simulation's
(``simulate.py``) where a value lies between two codes. 16-bit inputs of products are two bytes
each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from zoo.errors import NotReadyError, OptionError

from .families import Layer, describe
from .kernels import SEVERAL, Floats, Plan, Product, Weight, encoded, plan, rounded
from .quantizers import Grid
from .recipe import Recipe
from .simulate import Site
from .tables import tables

ATTENTION = "zoo_integers"


class Rounding:
    """To a static grid, in as few passes as possible.

    Step and zero point are kept as tensors too: from a Python number an operator makes a tensor at
    each call, which takes as long as a pass over a short row.
    """

    def __init__(self, grid: Grid) -> None:
        self.step, self.zero, self.bits = float(grid.step), int(grid.zero), grid.bits
        self.low, self.high = grid.low - self.zero, grid.high - self.zero
        self.steps, self.zeros = grid.step.clone(), grid.zero.clone()

    def __call__(self, x: Tensor) -> Tensor:
        if self.bits == 8:
            return rounded(x, self.step, self.zero)
        return x.div(self.steps).clamp_(self.low, self.high).round_().mul_(self.steps)

    def codes(self, x: Tensor) -> Tensor:
        """uint8, of an 8-bit grid."""
        return encoded(x, self.step, self.zero)

    def centred(self, codes: Tensor) -> Tensor:
        """Whole numbers, in floats: codes without their zero point, in steps."""
        return codes.float().sub_(self.zeros)

    def before(self, module: nn.Module, args: Any) -> Any:
        """A hook on a module that reads the tensor."""
        return (self(args[0]), *args[1:])

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A hook on a module that makes the tensor."""
        return self(output)

    def gated(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A hook on SiLU: x times the rounded sigmoid(x)."""
        return args[0] * self(torch.sigmoid(args[0]))


class Linear:
    """A product by the number of rows: each kernel packs the weight when it is first used."""

    def __init__(self, weight: Weight, chosen: Plan) -> None:
        self.weight, self.chosen = chosen.run(weight), chosen
        self.made: dict[Any, Product] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(M,N) of floats (M,K)."""
        kernel = self.chosen.prefill if len(x) >= SEVERAL else self.chosen.decode
        if kernel not in self.made:
            self.made[kernel] = kernel(self.weight)
        return self.made[kernel](x)


class Wide:
    """A product that reads 16 bits: upper and lower bytes are rows of one product of bytes."""

    def __init__(self, weight: Weight, chosen: Plan) -> None:
        self.read = Rounding(weight.input)
        self.upper, lower = divmod(self.read.zero, 256)  # the zero point, in bytes
        bytes_ = Grid(weight.input.step, torch.tensor(float(self.upper)), 0, 255)
        self.linear = Linear(Weight(weight.codes, weight.steps, None, bytes_), chosen)
        run = self.linear.weight  # the lower bytes too are centred by the upper's zero point
        sums = run.codes.sum(1, dtype=torch.int32) * (self.upper - lower)
        self.added = sums * run.steps * self.read.step
        if weight.bias is not None:
            self.added += weight.bias

    def __call__(self, x: Tensor) -> Tensor:
        """(M,N) of floats (M,K)."""
        read = self.read
        codes = x.div(read.steps).clamp_(read.low, read.high).round_().add_(read.zeros).int()
        both = torch.cat([codes >> 8, codes & 255]).sub_(self.upper) * read.steps
        upper, lower = self.linear(both).chunk(2)
        return upper.mul_(256).add_(lower).add_(self.added)


class Fused:
    """Linear layers that read the same tensor, one after the other, as one product."""

    def __init__(
        self, weights: Sequence[Weight], given: Sequence[Rounding | None], chosen: Plan
    ) -> None:
        biases = [w.bias for w in weights if w.bias is not None]
        joined = Weight(
            torch.cat([w.codes for w in weights]),
            torch.cat([w.steps for w in weights]),
            torch.cat(biases) if biases else None,
            weights[0].input,
        )
        self.sizes = [len(w.steps) for w in weights]
        self.product = (Linear if joined.input.bits == 8 else Wide)(joined, chosen)
        self.given = given
        self.last: tuple[Tensor, Sequence[Tensor]] | None = None
        """What was read last, and what it gave: one value, so that threads do not mix theirs."""

    def part(self, index: int, x: Tensor) -> Tensor:
        """What the layer of this number gives for x."""
        last = self.last
        if last is None or last[0] is not x:
            whole = self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
            last = x, whole.split(self.sizes, -1) if len(self.sizes) > 1 else (whole,)
        self.last = last if index < len(self.sizes) - 1 else None
        found, rounding = last[1][index], self.given[index]
        return found if rounding is None else rounding(found)


class Part(nn.Module):
    """A linear layer in the network: one of a product's."""

    def __init__(self, whole: Fused, index: int) -> None:
        super().__init__()
        self.whole, self.index = whole, index
        self.out_features = whole.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.whole.part(self.index, x)


class Lookup(nn.Module):
    """An activation function of codes: the 256 values that it can give."""

    def __init__(self, function: Callable[[Tensor], Tensor], read: Rounding) -> None:
        super().__init__()
        self.read = read
        values = read.centred(torch.arange(256)) * read.step
        self.register_buffer("values", function(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.read.codes(x).int()
        values: Tensor = self.values  # type: ignore[assignment]
        return values.index_select(0, codes.view(-1)).view(x.shape)


class Rows(nn.Module):
    """An embedding whose rows are codes."""

    def __init__(self, embedding: nn.Embedding, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("codes", grid.codes(embedding.weight).to(torch.int8))
        self.register_buffer("step", grid.step)
        self.factor = getattr(embedding, "scalar_embed_scale", None)
        """Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        found = nn.functional.embedding(ids, self.codes).float()  # type: ignore[arg-type]
        found.mul_(nn.functional.embedding(ids, self.step))  # type: ignore[arg-type]
        return found if self.factor is None else found.mul_(self.factor)


# --- attention and its cache ----------------------------------------------------------------------


@dataclass(frozen=True)
class Inside:
    """The roundings inside attention. The layer behind it rounds what it gives; scores and
    probabilities stay floats, since to round them to 16 bits changes next to nothing.
    """

    v: Rounding
    q_rope: Rounding
    k_rope: Rounding

    @property
    def kept(self) -> bool:
        """Does the cache hold codes?"""
        return self.v.bits == self.k_rope.bits == 8


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
) -> tuple[Tensor, None]:
    """Attention of transformers, with keys and values that are codes, if the cache has them, or
    floats. The steps of codes are factors of what they are multiplied to.
    """
    inside: Inside = module.inside
    query, key_step = inside.q_rope(query), 1.0
    if key.dtype == torch.uint8:
        key, key_step = inside.k_rope.centred(key), inside.k_rope.step
        value = inside.v.centred(value).mul_(inside.v.steps)
    else:
        key = inside.k_rope(key)
    scaling *= key_step
    if softcap is None:
        causal = attention_mask is None and query.shape[2] > 1
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal, scale=scaling, enable_gqa=True
        )
    else:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = torch.tanh(torch.matmul(query, key.transpose(2, 3)) * (scaling / softcap))
        if attention_mask is None:
            seen = scores.new_ones(scores.shape[2:], dtype=torch.bool)
            attention_mask = seen.tril(seen.shape[1] - seen.shape[0])
        scores = (scores * softcap).masked_fill(~attention_mask, -torch.inf)
        found = torch.matmul(torch.softmax(scores, dim=-1), value)
    return found.transpose(1, 2).contiguous(), None


class _Codes:
    """A layer of a cache of transformers that holds codes, and gives them."""

    inside: Inside

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys = self.inside.k_rope.codes(key_states)
        values = self.inside.v.codes(value_states)
        found: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)  # type: ignore[misc]
        return found


class _Growing(_Codes, DynamicLayer):
    pass


class _Sliding(_Codes, DynamicSlidingWindowLayer):
    pass


class Caches:
    """Lets a decoder keep codes: what a new cache of transformers is made of is replaced."""

    def __init__(self, insides: Sequence[Inside]) -> None:
        self.insides = insides

    def supply(self, decoder: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A hook before the decoder runs."""
        cache, wanted = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and (decoder.config.use_cache if wanted is None else wanted):
            cache = kwargs["past_key_values"] = DynamicCache(config=decoder.config)
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            layers = cache.layers or [DynamicLayer() for _ in self.insides]
            cache.layers = [
                self._layer(layer, inside)
                for layer, inside in zip(layers, self.insides, strict=True)
            ]
        return args, kwargs

    @staticmethod
    def _layer(layer: Any, inside: Inside) -> Any:
        if not inside.kept or isinstance(layer, _Codes):
            return layer
        sliding = isinstance(layer, DynamicSlidingWindowLayer)
        made = _Sliding(layer.sliding_window) if sliding else _Growing()
        made.inside = inside
        return made


# --- the network ----------------------------------------------------------------------------------


@torch.no_grad()
def integers(network: Any, grids: Mapping[str, Grid], recipe: Recipe, exact: bool = False) -> Any:
    """A copy of a quantized network, on the CPU, that computes on integers.

    ``network``: with sites, its weights on ``grids`` (path -> grid). Embedding and head stay floats
    where they have no grids. ``exact``: with products that are those of integers on any CPU, and
    slow. Raises OptionError for a recipe that needs floats.
    """
    if recipe.prefix_tokens:
        raise OptionError(
            f"prefix_tokens={recipe.prefix_tokens}: the first positions need floating-point "
            "products, which the integer runtime does not have. Quantize with prefix_tokens=0."
        )
    if recipe.weights == "paper":
        raise OptionError(
            "weights='paper' gives weights a zero point, which the integer runtime does not have. "
            "Quantize with weights='row'."
        )
    chosen = Plan(Floats, Floats) if exact else plan()
    swapped: dict[int, nn.Module] = {}
    for layer in describe(network):
        lookups = _lookups(layer)
        swapped |= {**lookups, **_parts(layer, grids, chosen, bool(lookups))}
    swapped |= _tables(network, grids, chosen)
    made = deepcopy(network, dict(swapped))
    _unhook(made)
    insides = [_connect(layer) for layer in describe(made)]
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    made.config._attn_implementation = ATTENTION
    made.get_decoder().register_forward_pre_hook(Caches(insides).supply, with_kwargs=True)
    made.save_pretrained = _refuse_saving
    return made


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    """What transformers would write lacks the products."""
    raise NotReadyError(
        "a network on integers is not saved. Save the quantized model that it comes from."
    )


def _sites(layer: Layer) -> dict[str, Site]:
    parts: list[Any] = [layer.module.sites, layer.attention.sites]
    return {name: site for part in parts for name, site in part.items()}


def _weight(linear: Any, grid: Grid, read: Site) -> Weight:
    steps = grid.step.flatten().expand(len(linear.weight)).contiguous()
    return Weight(grid.codes(linear.weight).to(torch.int8), steps, linear.bias, read.grid)


def _lookups(layer: Layer) -> dict[int, nn.Module]:
    """id of the activation function -> its table, if its tensors have 8 bits."""
    sites = _sites(layer)
    around = [sites[name] for name in ("gate", "sigmoid", "act") if name in sites]
    if any(site.bits > 8 for site in around):
        return {}
    return {id(layer.activation): Lookup(layer.activation, Rounding(sites["gate"].grid))}


def _parts(
    layer: Layer, grids: Mapping[str, Grid], chosen: Plan, lookup: bool
) -> dict[int, nn.Module]:
    """id of a linear layer -> its part of a product. ``lookup``: a table rounds what gate gives."""
    sites, found = _sites(layer), dict[int, nn.Module]()
    for read in dict.fromkeys(layer.inputs.values()):
        names = [name for name, tensor in layer.inputs.items() if tensor == read]
        weights = [_weight(layer.linears[n], grids[layer.path(n)], sites[read]) for n in names]
        given = [
            None if sites[n].bits > 8 or (lookup and n == "gate") else Rounding(sites[n].grid)
            for n in names
        ]
        whole = Fused(weights, given, chosen)
        found |= {id(layer.linears[name]): Part(whole, i) for i, name in enumerate(names)}
    return found


def _tables(network: Any, grids: Mapping[str, Grid], chosen: Plan) -> dict[int, nn.Module]:
    """id of embedding and head -> rows of codes, and a product of codes; else themselves."""
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    if not hasattr(head, "site"):
        return {id(part): part for part in (embedding, head)}
    own = tables(network)
    grid = {id(part): grids[path] for path, part in own.items()}
    rows = Rows(embedding, grid[id(embedding)])
    weight = _weight(head, grid.get(id(head), grid[id(embedding)]), head.site)
    return {id(embedding): rows, id(head): Part(Fused([weight], [None], chosen), 0)}


def _unhook(network: nn.Module) -> None:
    """Take the simulation's hooks away."""
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), Site):
                    del hooks[key]


def _connect(layer: Layer) -> Inside:
    """Round what no product and no table rounds."""
    roundings = {name: Rounding(site.grid) for name, site in _sites(layer).items()}
    if not isinstance(layer.activation, Lookup):
        if "sigmoid" in roundings:
            layer.activation.register_forward_hook(roundings["sigmoid"].gated)
        layer.activation.register_forward_hook(roundings["act"].after)
    made = Inside(**{name: roundings[name] for name in ("v", "q_rope", "k_rope")})
    layer.attention.inside = made  # type: ignore[assignment]
    del layer.module.sites, layer.attention.sites
    return made
