"""The two graphs of a quantized model: a prompt, and one token after it.

Both compute what the simulation computes (``simulate.py``): where that has a site, they have a
QuantizeLinear and a DequantizeLinear. Batches are of one sequence, so activations have no axis for
them: (T,H), and (heads,T,d) inside attention. Keys and values leave and enter as codes.

For a CPU (``target="cpu"``) activations of 16 bits stay floats, and codes of 4 bits take a byte:
onnxruntime's kernels multiply 8 bits, and it recognises them by what stands around a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import NotReadyError

from ..families import Layer
from ..quantizers import Grid
from ..tables import HEAD, tables
from .graph import KINDS, Graph, Weights

if TYPE_CHECKING:
    from ..model import MobileQuantized

LEAST = float(np.finfo(np.float32).min)
"""The score of what must not be seen: softmax makes 0 of it."""

BIAS = 2**30
"""Codes of a bias are smaller, so that sums of products still fit 32 bits beside them."""


@dataclass(frozen=True)
class Positions:
    """What a layer is told of positions 0 to C - 1."""

    cosines: Tensor
    """(C, rotary / 2)"""
    sines: Tensor
    window: int | None
    """A position sees so many, itself included; None: all before it."""


@torch.no_grad()
def positions(model: MobileQuantized, count: int) -> list[Positions]:
    """For each layer, what the network itself gives its attention for ``count`` positions.

    Raises NotReadyError for attention of another form, and for angles that depend on the length.
    """
    short, found = ([_position(told) for told in _told(model, n)] for n in (2, count))
    pairs = [(a, b) for a, b in zip(short, found, strict=True) if a is not None and b is not None]
    same = [b for a, b in pairs if torch.equal(a.cosines, b.cosines[:2])]
    if len(same) < len(found):
        raise NotReadyError(
            "this model's attention or rotary embedding has a form that the export does not know. "
            "It knows causal attention, with a sliding window or without, and rotary embeddings "
            "by halves, with angles that do not depend on the length."
        )
    return same


def _told(model: MobileQuantized, count: int) -> list[Mapping[str, Any]]:
    told: list[Mapping[str, Any]] = []
    hooks = [
        layer.attention.register_forward_pre_hook(
            lambda module, args, kwargs: told.append(kwargs), with_kwargs=True
        )
        for layer in model.layers
    ]
    ids = torch.zeros(1, count, dtype=torch.long, device=model.device)
    try:
        model.module.get_decoder()(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return told


def _position(told: Mapping[str, Any]) -> Positions | None:
    """None where the attention has another form."""
    cosines, sines = (table[0].float().cpu() for table in told["position_embeddings"])
    count, half = len(cosines), cosines.shape[1] // 2
    seen = (told["attention_mask"][0, 0] > LEAST / 2).cpu()
    window = int(seen[-1].sum())
    distance = torch.arange(count)[:, None] - torch.arange(count)
    regular = torch.equal(seen, (distance >= 0) & (distance < window))
    if not regular or not torch.equal(cosines[:, :half], cosines[:, half:]):
        return None
    return Positions(cosines[:, :half], sines[:, :half], window if window < count else None)


class Network:
    """Writes the graphs of one model. ``cache``: the most tokens that a sequence can have."""

    def __init__(self, model: MobileQuantized, weights: Weights, cache: int, target: str) -> None:
        self.model, self.weights, self.cache = model, weights, cache
        self.cpu = target == "cpu"
        self.positions = positions(model, cache)

    @property
    def form(self) -> type[Pass]:
        """What writes a graph."""
        return Pass

    def prefill(self, length: int) -> onnx.ModelProto:
        """``input_ids`` (1,L) and ``last`` (1,), where the last token of the prompt is, to its
        ``logits`` (1,V), and ``key.I`` and ``value.I`` (kv heads,L,d) of each layer.

        What stands behind the last token is not seen by those before it.
        """
        return self.form(self, length, past=False).model()

    def decode(self) -> onnx.ModelProto:
        """``input_ids`` (1,1), its ``position`` (1,) and ``cache.key.I``, ``cache.value.I`` (kv
        heads,C,d) to ``logits`` (1,V) and the token's own ``key.I``, ``value.I`` (kv heads,1,d),
        which belong into the cache at its position.
        """
        return self.form(self, 1, past=True).model()


class Pass:
    """One graph: ``tokens`` at once, after those in the cache (``past``) or first in a sequence."""

    def __init__(self, network: Network, tokens: int, past: bool) -> None:
        self.network, self.tokens, self.past = network, tokens, past
        self.quantized = network.model
        self.decoder: Any = self.quantized.module.get_decoder()
        self.graph = Graph(network.weights)

    def grid(self, layer: Layer, name: str) -> Grid:
        return self.quantized.sites[f"{layer.index}.{name}"].grid

    def at(self, x: str, layer: Layer, name: str) -> str:
        """A tensor on the grid of its site."""
        return self.rounded(x, f"{layer.index}.{name}")

    def rounded(self, x: str, site: str) -> str:
        grid = self.quantized.sites[site].grid
        return x if self.floats(grid) else self.graph.rounded(x, grid, site)

    def kind(self, layer: Layer, name: str) -> int:
        """The type of a tensor's codes."""
        return KINDS[self.grid(layer, name).bits]

    def floats(self, grid: Grid) -> bool:
        """Does an activation stay as it is?"""
        return self.network.cpu and grid.bits > 8

    def model(self) -> onnx.ModelProto:
        graph, tokens = self.graph, self.tokens
        graph.input("input_ids", TensorProto.INT32, [1, tokens])
        if self.past:
            graph.input("position", TensorProto.INT32, [1])
        else:
            graph.input("last", TensorProto.INT32, [1])
        x = self.embedding(graph.shaped("input_ids", [tokens], "ids"))
        for layer, positions in zip(self.quantized.layers, self.network.positions, strict=True):
            x = self.layer(x, layer, positions)
        if not self.past:
            x = graph.op("Gather", x, "last", name="last.x", axis=0)
        self.head(self.norm(x, self.decoder.norm, self.quantized.layers[0].offset, "norm"))
        graph.output("logits", TensorProto.FLOAT, [1, self.quantized.module.config.vocab_size])
        for layer in self.quantized.layers:
            for name, site in (("key", "k_rope"), ("value", "v")):
                shape = [layer.kv_heads, tokens, layer.head_dim]
                graph.output(f"{name}.{layer.index}", self.kind(layer, site), shape)
        return graph.model("decode" if self.past else "prefill", {})

    # --- outside the layers -----------------------------------------------------------------------

    def table(self, module: Any) -> str:
        """The name of the embedding's or the head's constants; one where they are tied."""
        parts = tables(self.quantized.module)
        path = next(path for path, part in parts.items() if part.weight is module.weight)
        self.weight(path, module.weight, self.quantized.grids[path])
        return path

    def weight(self, name: str, weight: Tensor, grid: Grid) -> None:
        """Constants ``NAME.codes`` (N,K), ``NAME.steps`` and ``NAME.zeros`` (N,) of a weight."""
        known = [self.graph.known(f"{name}.{part}") for part in ("codes", "steps", "zeros")]
        if all(known):
            return
        rows = len(weight)
        wide = grid.bits == 8 or self.network.cpu
        kind = TensorProto.INT8 if wide else TensorProto.INT4
        codes = grid.codes(weight).to(torch.int8).cpu().numpy()
        self.graph.constant(f"{name}.codes", codes, kind)
        steps = grid.step.flatten().expand(rows).float().cpu().numpy()
        self.graph.constant(f"{name}.steps", steps)
        self.graph.constant(f"{name}.zeros", np.zeros(rows, np.int8), kind)

    def dequantized(self, name: str) -> str:
        parts = (f"{name}.{part}" for part in ("codes", "steps", "zeros"))
        return self.graph.op("DequantizeLinear", *parts, name=f"{name}.weight", axis=0)

    def embedding(self, ids: str) -> str:
        """(T,H). Codes are looked up before they become floats."""
        graph, module = self.graph, self.quantized.module.get_input_embeddings()
        name = self.table(module)
        codes = graph.op("Gather", f"{name}.codes", ids, name="embedded.codes", axis=0)
        steps = graph.op("Gather", f"{name}.steps", ids, name="embedded.steps", axis=0)
        codes = graph.op("Cast", codes, name="embedded.floats", to=TensorProto.FLOAT)
        steps = graph.shaped(steps, [self.tokens, 1], "embedded.step")
        x = graph.op("Mul", codes, steps, name="embedded")
        scale = float(getattr(module, "embed_scale", 1.0))
        return x if scale == 1.0 else self.scaled(x, scale, "embedded.scaled")

    def head(self, x: str) -> None:
        graph = self.graph
        name, x = self.table(self.quantized.module.get_output_embeddings()), self.rounded(x, HEAD)
        cap = getattr(self.quantized.module.config, "final_logit_softcapping", None)
        called = "logits" if cap is None else "head.logits"
        graph.op("Gemm", x, self.dequantized(name), name=called, transB=1)
        if cap is not None:
            self.capped(called, cap, "logits")

    def scaled(self, x: str, factor: float, name: str) -> str:
        by = self.graph.constant(f"{name}.by", np.float32(factor))
        return self.graph.op("Mul", x, by, name=name)

    def capped(self, x: str, cap: float, name: str) -> str:
        """cap tanh(x / cap)"""
        inner = self.scaled(x, 1 / cap, f"{name}.inner")
        return self.scaled(self.graph.op("Tanh", inner, name=f"{name}.tanh"), cap, name)

    # --- a layer (eq. 1) --------------------------------------------------------------------------

    def layer(self, x: str, layer: Layer, positions: Positions) -> str:
        i = layer.index
        n1 = self.read(x, layer, "1")
        o = self.linear(self.attention(n1, layer, positions), layer, "o")
        x2 = self.graph.op("Add", x, self.added(o, layer, "o"), name=f"{i}.middle")
        n2 = self.read(x2, layer, "2") if "n2" in layer.norms else n1
        gate, up = self.linear(n2, layer, "gate"), self.linear(n2, layer, "up")
        act = self.at(self.activated(gate, layer), layer, "act")
        h = self.at(self.graph.op("Mul", act, up, name=f"{i}.product"), layer, "h")
        down = self.added(self.linear(h, layer, "down"), layer, "down")
        return self.graph.op("Add", x2, down, name=f"{i}.end")

    def read(self, x: str, layer: Layer, number: str) -> str:
        """What the linear layers read of the residual."""
        name = f"n{number}"
        x = self.at(x, layer, f"x{number}")
        found = self.norm(x, layer.norms[name], layer.offset, f"{layer.index}.{name}.norm")
        return self.at(found, layer, name)

    def added(self, x: str, layer: Layer, name: str) -> str:
        """What the residual gets of ``o`` or ``down``."""
        if name not in layer.added:
            return x
        whole = f"{name}_added"
        found = self.norm(x, layer.added[name], layer.offset, f"{layer.index}.{whole}.norm")
        return self.at(found, layer, whole)

    def linear(self, x: str, layer: Layer, name: str) -> str:
        """(T,N), on the grid of its site."""
        return self.at(self.sums(x, layer, name), layer, name)

    def sums(self, x: str, layer: Layer, name: str) -> str:
        """(T,N), what a linear layer gives before it is rounded."""
        module, path = layer.linears[name], layer.path(name)
        self.weight(path, module.weight, self.quantized.grids[path])
        inputs, sums = [x, self.dequantized(path)], f"{path}.sums"
        values: Any = module.bias
        if values is None:
            return self.graph.op("Gemm", *inputs, name=sums, transB=1)
        if self.bias(layer, name):
            return self.graph.op("Gemm", *inputs, f"{path}.bias", name=sums, transB=1)
        products = self.graph.op("Gemm", *inputs, name=f"{path}.products", transB=1)
        bias = self.constant(f"{path}.bias", values)
        return self.graph.op("Add", products, bias, name=sums)

    def bias(self, layer: Layer, name: str) -> bool:
        """A bias in 32 bits, in the unit of the sums of products, if it fits.

        A float bias must not be an input of the product: onnxruntime would make 32 bits of it.
        """
        bias: Any = layer.linears[name].bias
        path, read = layer.path(name), self.grid(layer, layer.inputs[name])
        step = self.quantized.grids[path].step.flatten().double().expand(len(bias))
        step = step * read.step.double()
        codes = (bias.double() / step).round()
        if float(codes.abs().max()) >= BIAS or self.floats(read):
            return False
        parts = (
            self.graph.constant(f"{path}.bias.codes", codes.to(torch.int32).cpu().numpy()),
            self.graph.constant(f"{path}.bias.steps", step.float().cpu().numpy()),
        )
        self.graph.op("DequantizeLinear", *parts, name=f"{path}.bias", axis=0)
        return True

    def activated(self, gate: str, layer: Layer) -> str:
        """act(gate); SiLU is gate times its quantized sigmoid."""
        graph, name = self.graph, f"{layer.index}.act.value"
        if f"{layer.index}.sigmoid" in self.quantized.sites:
            sigmoid = graph.op("Sigmoid", gate, name=f"{layer.index}.sigmoid.value")
            return graph.op("Mul", gate, self.at(sigmoid, layer, "sigmoid"), name=name)
        probe = torch.linspace(-6, 6, 241)
        found = layer.activation.forward(probe)
        for kind, attributes, wanted in (
            ("Gelu", {"approximate": "tanh"}, functional.gelu(probe, approximate="tanh")),
            ("Gelu", {"approximate": "none"}, functional.gelu(probe)),
            ("Relu", {}, functional.relu(probe)),
        ):
            if torch.allclose(found, wanted, rtol=0, atol=1e-6):
                return graph.op(kind, gate, name=name, **attributes)
        raise NotReadyError(
            f"{type(layer.activation).__name__} cannot be exported: only SiLU, GELU, its tanh form "
            "and ReLU."
        )

    def norm(self, x: str, module: Any, offset: float, name: str) -> str:
        """RMSNorm or LayerNorm over the last axis; of each head, where the module has several."""
        if (heads := getattr(module, "norms", None)) is not None:  # StableLM's: (heads,T,d)
            first = heads[0]
            weight = torch.stack([head.weight for head in heads])[:, None]
            bias = first.bias is not None and torch.stack([head.bias for head in heads])[:, None]
            ones = self.graph.constant(f"{name}.ones", np.ones(len(first.weight), np.float32))
            plain = f"{name}.plain"
            x = self.graph.op("LayerNormalization", x, ones, name=plain, axis=-1, epsilon=first.eps)
            return self.affine(x, weight, bias if isinstance(bias, Tensor) else None, name)
        weight = module.weight + offset
        if isinstance(module, nn.LayerNorm):
            parts = [self.constant(f"{name}.weight", weight)]
            if module.bias is not None:
                parts.append(self.constant(f"{name}.bias", module.bias))
            return self.graph.op(
                "LayerNormalization", x, *parts, name=name, axis=-1, epsilon=module.eps
            )
        eps = getattr(module, "variance_epsilon", None) or module.eps
        graph = self.graph
        two, last = (
            graph.constant("two", np.float32(2)),
            graph.constant("last axis", np.array([-1])),
        )
        square = graph.op("Pow", x, two, name=f"{name}.square")
        mean = graph.op("ReduceMean", square, last, name=f"{name}.mean", keepdims=1)
        least = graph.constant(f"eps {eps}", np.float32(eps))
        mean = graph.op("Add", mean, least, name=f"{name}.variance")
        root = graph.op("Sqrt", mean, name=f"{name}.root")
        x = graph.op("Div", x, root, name=f"{name}.plain")
        return self.affine(x, weight, None, name)

    def affine(self, x: str, weight: Tensor, bias: Tensor | None, name: str) -> str:
        by = self.constant(f"{name}.weight", weight)
        if bias is None:
            return self.graph.op("Mul", x, by, name=name)
        x = self.graph.op("Mul", x, by, name=f"{name}.scaled")
        return self.graph.op("Add", x, self.constant(f"{name}.bias", bias), name=name)

    def constant(self, name: str, values: Tensor) -> str:
        return self.graph.constant(name, values.detach().float().cpu().numpy())

    # --- attention --------------------------------------------------------------------------------

    def attention(self, n1: str, layer: Layer, positions: Positions) -> str:
        """(T, heads * d), on the grid of ``a``."""
        graph, i, d, tokens = self.graph, layer.index, layer.head_dim, self.tokens
        group = layer.heads // layer.kv_heads
        q = self.split(self.linear(n1, layer, "q"), layer.heads, layer, "q")
        k = self.split(self.linear(n1, layer, "k"), layer.kv_heads, layer, "k")
        q, k = (self.turned(self.head_norm(x, layer, n), layer, positions, n)
                for n, x in (("q", q), ("k", k)))  # fmt: skip
        q = graph.shaped(
            self.at(q, layer, "q_rope"), [layer.kv_heads, group * tokens, d], f"{i}.qs"
        )
        v = self.split(self.sums(n1, layer, "v"), layer.kv_heads, layer, "v")
        keys = self.cached(k, layer, "key", "k_rope")
        values = self.cached(v, layer, "value", "v")
        seen = tokens + (self.network.cache if self.past else 0)
        keys = graph.op("Transpose", keys, name=f"{i}.keys.turned", perm=[0, 2, 1])
        scores = graph.op("MatMul", q, keys, name=f"{i}.scores")
        scores = self.scaled(scores, layer.scaling, f"{i}.scores.scaled")
        scores = graph.shaped(scores, [layer.heads, tokens, seen], f"{i}.scores.heads")
        scores = self.at(scores, layer, "qk")
        if layer.softcap is not None:
            scores = self.capped(scores, layer.softcap, f"{i}.scores.capped")
        scores = graph.op("Add", scores, self.mask(positions.window), name=f"{i}.scores.seen")
        p = self.at(graph.op("Softmax", scores, name=f"{i}.softmax", axis=-1), layer, "p")
        p = graph.shaped(p, [layer.kv_heads, group * tokens, seen], f"{i}.p.groups")
        a = graph.op("MatMul", p, values, name=f"{i}.mixed")
        a = graph.shaped(a, [layer.heads, tokens, d], f"{i}.mixed.heads")
        a = graph.op("Transpose", a, name=f"{i}.mixed.turned", perm=[1, 0, 2])
        a = graph.shaped(a, [tokens, layer.heads * d], f"{i}.mixed.row")
        return self.at(a, layer, "a")

    def split(self, x: str, heads: int, layer: Layer, name: str) -> str:
        """(T, heads * d) to (heads,T,d)."""
        name = f"{layer.index}.{name}"
        x = self.graph.shaped(x, [self.tokens, heads, layer.head_dim], f"{name}.split")
        return self.graph.op("Transpose", x, name=f"{name}.heads", perm=[1, 0, 2])

    def head_norm(self, x: str, layer: Layer, name: str) -> str:
        norm = layer.norms.get(f"{name}_norm")
        if norm is None:
            return x
        return self.norm(x, norm, layer.offset, f"{layer.index}.{name}.norm")

    def turned(self, x: str, layer: Layer, positions: Positions, name: str) -> str:
        """Rotary embedding: channels i and i + r/2 of the first r turn by the position's angle."""
        graph, half = self.graph, positions.cosines.shape[1]
        name, rest = f"{layer.index}.{name}", layer.head_dim - 2 * half
        cos, sin = (self.angles(positions, part) for part in ("cosines", "sines"))
        parts = [f"{name}.part{n}" for n in range(3 if rest else 2)]
        sizes = np.array([half, half, rest] if rest else [half, half], np.int64)
        sizes_name = graph.constant(f"parts{sizes.tolist()}", sizes)
        graph.several("Split", x, sizes_name, names=parts, axis=-1)
        one, two = parts[:2]

        def times(a: str, b: str, n: str) -> str:
            return graph.op("Mul", a, b, name=f"{name}.{n}")

        first = graph.op("Sub", times(one, cos, "1c"), times(two, sin, "2s"), name=f"{name}.first")
        second = graph.op(
            "Add", times(two, cos, "2c"), times(one, sin, "1s"), name=f"{name}.second"
        )
        return graph.op("Concat", first, second, *parts[2:], name=f"{name}.turned", axis=-1)

    def angles(self, positions: Positions, part: str) -> str:
        """(T, r/2) cosines or sines of this pass's positions."""
        table: Tensor = getattr(positions, part)
        number = next(
            n
            for n, other in enumerate(self.network.positions)
            if torch.equal(other.cosines, positions.cosines)
        )  # layers with the same angles share a table
        name = f"{part}.{number}"
        graph = self.graph
        if not self.past:
            return self.constant(f"{name}.prompt", table[: self.tokens])
        if f"{name}.here" not in graph.named:
            graph.op("Gather", self.constant(name, table), "position", name=f"{name}.here", axis=0)
        return f"{name}.here"

    def cached(self, x: str, layer: Layer, name: str, site: str) -> str:
        """The keys or values of all positions (kv heads,S,d), those of the cache first."""
        graph, grid, whole = self.graph, self.grid(layer, site), f"{name}.{layer.index}"
        codes = graph.codes(x, grid, f"{layer.index}.{site}", whole)
        if self.past:
            shape = [layer.kv_heads, self.network.cache, layer.head_dim]
            past = graph.input(f"cache.{whole}", self.kind(layer, site), shape)
            codes = graph.op("Concat", past, codes, name=f"all.{whole}", axis=1)
        return graph.floats(codes, grid, f"{layer.index}.{site}")

    def mask(self, window: int | None) -> str:
        """What is added to the scores (T,S): 0 where a position is seen, else ``LEAST``."""
        graph, name = self.graph, f"mask{window or ''}"
        if not self.past:
            distance = np.arange(self.tokens)[:, None] - np.arange(self.tokens)
            near = (distance >= 0) & (distance < (window or self.tokens))
            values = np.where(near, np.float32(0), np.float32(LEAST))
            return graph.constant(f"{name}.prompt", values)
        if name in graph.named:
            return name
        columns = graph.constant("columns", np.arange(self.network.cache, dtype=np.int32))
        seen = graph.op("Less", columns, "position", name=f"{name}.before")
        if window is not None:
            width = graph.constant(f"{name}.width", np.int32(window))
            first = graph.op("Sub", "position", width, name=f"{name}.first")
            inside = graph.op("Greater", columns, first, name=f"{name}.inside")
            seen = graph.op("And", seen, inside, name=f"{name}.both")
        zero = graph.constant("zero", np.zeros(1, np.float32))
        least = graph.constant("least", np.full(1, LEAST, np.float32))
        past = graph.op("Where", seen, zero, least, name=f"{name}.cache")
        return graph.op("Concat", past, zero, name=name, axis=0)
