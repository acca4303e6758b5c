"""Weight-equivalent transformations: the float function stays, ranges get easier (eq. 2 to 8).

A tensor t of a layer is divided, channel by channel, by d[t]. Each linear layer then multiplies its
columns by the divisors of what it reads and divides its rows by those of what it gives, and each
norm divides its weight: nothing changes but the scale of the channels in between. A pair is one
free choice of such divisors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .families import Layer

PAIRS = ("vo", "ud", "qk", "n1", "n2")
"""In the order in which they are computed: n1 and n2 look at the weights that the others change."""
FLOOR = 1e-5
"""The least scale."""
OBSERVED = ("n1", "n2", "a", "h", "q_rope", "k_rope")
"""The tensors whose largest values in each channel ``smooth`` needs."""

Scales = Mapping[str, Tensor]
"""Pair -> its free scales s > 0."""


def pairs_of(layer: Layer) -> tuple[str, ...]:
    """The pairs that a layer has."""
    absent = set() if "n2" in layer.norms else {"n2"}
    if not hasattr(layer.norms.get("q_norm"), "weight") and "q_norm" in layer.norms:
        absent |= {"qk"}  # a norm for each head
    return tuple(pair for pair in PAIRS if pair not in absent)


def shape(layer: Layer, pair: str) -> tuple[int, ...]:
    """The shape of a pair's scales.

    ``vo``: (kv heads, head_dim), shared by the query heads of a group. ``qk``: (kv heads,
    rotary / 2 + the channels that do not rotate): the two channels of a rotary pair share one; with
    norms on queries and keys, all heads do.
    """
    if pair == "vo":
        return layer.kv_heads, layer.head_dim
    if pair == "qk":
        free = layer.head_dim - layer.rotary // 2
        return (1 if "q_norm" in layer.norms else layer.kv_heads), free
    return (layer.linears["up" if pair == "ud" else "down"].out_features,)


def divisors(layer: Layer, scales: Scales) -> dict[str, Tensor]:
    """Tensor -> what it is divided by, in the shape of its channels (eq. 3 to 7).

    ``n1 n2 v q k up h``: flat; ``a q_rope`` (heads, head_dim) and ``k_rope`` (kv heads, head_dim).
    """
    group = layer.heads // layer.kv_heads
    found: dict[str, Tensor] = {pair: scales[pair] for pair in ("n1", "n2") if pair in scales}
    if "vo" in scales:
        found["v"] = scales["vo"].flatten()
        found["a"] = scales["vo"].repeat_interleave(group, 0)  # heads of a group stand together
    if "ud" in scales:
        found["up"] = found["h"] = scales["ud"]
    if "qk" in scales:
        keys = _both(scales["qk"], layer.rotary)
        if "q_norm" in layer.norms:
            found["q_norm"], found["k_norm"] = keys[0], 1 / keys[0]
            keys = keys.expand(layer.kv_heads, -1)
        queries = keys.repeat_interleave(group, 0)
        found["q_rope"], found["k_rope"] = queries[:, None], 1 / keys[:, None]
        if "q_norm" not in layer.norms:
            found["q"], found["k"] = queries.flatten(), 1 / keys.flatten()
    return found


def _both(free: Tensor, rotary: int) -> Tensor:
    """(n, head_dim): one scale for channels i and i + rotary / 2, which RoPE mixes."""
    turned, still = free[:, : rotary // 2], free[:, rotary // 2 :]
    return torch.cat([turned, turned, still], 1)


@torch.no_grad()
def fold(layer: Layer, divided: Mapping[str, Tensor]) -> None:
    """Write divisors into the weights, in place (eq. 2)."""
    for name, linear in layer.linears.items():
        own = stored(linear)
        weight, bias = scaled(layer, name, own, linear.bias, divided)
        own.copy_(weight)
        if linear.bias is not None:
            linear.bias.copy_(bias)
    for name, norm in layer.norms.items():
        if name in divided:
            part: Any = norm
            part.weight.copy_((layer.offset + part.weight) / divided[name] - layer.offset)
            if getattr(part, "bias", None) is not None:
                part.bias.div_(divided[name])


def stored(linear: nn.Linear) -> Tensor:
    """The weight that a linear layer holds, also beneath a parametrization."""
    if parametrize.is_parametrized(linear, "weight"):
        parts: Any = linear.parametrizations
        found: Tensor = parts.weight.original
        return found
    return linear.weight


def scaled(
    layer: Layer, name: str, weight: Tensor, bias: Tensor | None, divided: Mapping[str, Tensor]
) -> tuple[Tensor, Any]:
    """Weight and bias of a linear layer under divisors of what it reads and gives (eq. 2)."""
    read, given = divided.get(layer.inputs[name]), divided.get(name)
    if read is not None:
        weight = weight * read.flatten()
    if given is not None:
        weight = weight / given[:, None]
        bias = None if bias is None else bias / given
    return weight, bias


@torch.no_grad()
def smooth(
    layer: Layer, peaks: Mapping[str, Tensor], pairs: Sequence[str] = PAIRS, alpha: float = 0.5
) -> dict[str, Tensor]:
    """The divisors of SmoothQuant's closed form for every pair, in order (eq. 8).

    ``peaks``: the largest magnitude of each channel of ``OBSERVED``. Because n1 and n2 are computed
    last, from the weights that the other pairs change, any scale that was planted in a pair before
    is undone.
    """
    group = layer.heads // layer.kv_heads
    found: dict[str, Tensor] = {}
    for pair in PAIRS:
        if pair not in pairs or pair not in pairs_of(layer):
            continue
        if pair == "qk":
            queries = peaks["q_rope"].view(layer.kv_heads, group, -1).amax(1)
            keys = peaks["k_rope"].view(layer.kv_heads, -1)
            if "q_norm" in layer.norms:
                queries, keys = queries.amax(0, keepdim=True), keys.amax(0, keepdim=True)
            queries, keys = _larger(queries, layer.rotary), _larger(keys, layer.rotary)
            scale = _safe(queries, keys, (queries / keys).sqrt())
        else:
            reads = {"vo": "a", "ud": "h"}.get(pair, pair)
            consumers = [n for n, tensor in layer.inputs.items() if tensor == reads]
            changed = [scaled(layer, n, stored(layer.linears[n]), None, found) for n in consumers]
            columns = torch.stack([weight.abs().amax(0) for weight, _ in changed])
            x, w = peaks[reads].flatten(), columns.amax(0)
            if pair == "vo":
                x, w = (t.view(layer.kv_heads, group, -1).amax(1) for t in (x, w))
            scale = _safe(x, w, x**alpha / w ** (1 - alpha))
        found |= divisors(layer, {pair: scale})
    return found


def _larger(peaks: Tensor, rotary: int) -> Tensor:
    """(n, rotary / 2 + rest): the larger of the two channels of each rotary pair."""
    half = rotary // 2
    turned = torch.maximum(peaks[:, :half], peaks[:, half:rotary])
    return torch.cat([turned, peaks[:, rotary:]], 1)


def _safe(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    """A channel that was never seen, or that nothing reads, is left as it is."""
    return torch.where((x > 0) & (w > 0), scale, torch.ones_like(scale)).clamp_min(FLOOR)
