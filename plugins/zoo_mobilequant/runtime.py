"""A quantized model whose linear layers compute on integers.

The network stays that of transformers. Where the simulation (``simulate.py``) rounds a tensor that
linear layers read, here it becomes codes, once for all its readers, and a linear layer is a product
of codes (``kernels.py``) that gives codes again where the table of eq. 14 has 8 bits. Norms, RoPE,
softmax and the residual stay floats, with the same roundings as in the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import OptionError

from .families import Layer, describe
from .kernels import SEVERAL, Plan, Product, Weight, plan
from .quantizers import Grid
from .recipe import Recipe
from .simulate import Site


class Codes:
    """The codes of one tensor, computed once for the layers that read it one after the other."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.of: Tensor | None = None
        self.found: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, channels) uint8."""
        if self.found is None or self.of is not x:
            step, zero = float(self.grid.step), float(self.grid.zero)
            scaled = torch.div(x, step).round_().add_(zero).clamp_(0, self.grid.high)
            self.of, self.found = x, scaled.flatten(0, -2).to(torch.uint8)
        return self.found

    def forget(self) -> None:
        """Free what was kept, after the last reader."""
        self.of = self.found = None


class Integer(nn.Module):
    """A linear layer on codes: floats in, floats out, integers in between."""

    def __init__(
        self, weight: Weight, inputs: Codes, last: bool, output: Grid | None, chosen: Plan
    ) -> None:
        super().__init__()
        run = weight if chosen.bits == 8 else weight.halved()
        self.prefill: Product = chosen.prefill(run)
        same = chosen.decode is chosen.prefill
        self.decode: Product = self.prefill if same else chosen.decode(run)
        self.inputs, self.last, self.output = inputs, last, output
        self.out_features = len(weight.steps)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.inputs(x)
        if self.last:
            self.inputs.forget()
        product = self.prefill if len(codes) >= SEVERAL else self.decode
        if self.output is None:
            found = product.floats(codes)
        else:
            found = product.codes(codes, self.output).float()
            found.sub_(self.output.zero).mul_(self.output.step)
        return found.view(*x.shape[:-1], self.out_features)


def integers(network: Any, grids: Mapping[str, Grid], recipe: Recipe) -> Any:
    """A copy of a quantized network, on the CPU, whose linear layers are ``Integer``.

    ``network``: with sites, its weights on ``grids`` (path -> grid). What is no linear layer of a
    decoder layer is shared with it. Layers that read 16-bit activations stay simulated. Raises
    OptionError for a recipe that needs floats.
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
    chosen = plan()
    swapped: dict[int, Any] = {}
    for layer in describe(network):
        swapped |= _products(layer, grids, chosen)
    for module in network.modules():
        if isinstance(module, nn.Embedding) or module is network.get_output_embeddings():
            swapped.setdefault(id(module), module)
    made = deepcopy(network, swapped)
    for layer in describe(made):
        _connect(layer)
    return made


def _connect(layer: Layer) -> None:
    """Products give what the sites behind linear layers gave; sites in front of them are off."""
    sites = _sites(layer)
    products = {n: linear for n, linear in layer.linears.items() if isinstance(linear, Integer)}
    for name, product in products.items():
        if product.output is None:  # 16 bits: a rounding of floats, as before
            product.register_forward_hook(sites[name].after)
    for read in {*layer.inputs.values()}:
        if all(name in products for name, tensor in layer.inputs.items() if tensor == read):
            sites[read].on = False


def _sites(layer: Layer) -> dict[str, Site]:
    parts: list[Any] = [layer.module.sites, layer.attention.sites]
    return {name: site for part in parts for name, site in part.items()}


def _products(layer: Layer, grids: Mapping[str, Grid], chosen: Plan) -> dict[int, Integer]:
    """id of a linear layer -> its product."""
    sites, found = _sites(layer), dict[int, Integer]()
    inputs: dict[str, Codes] = {}
    readers = [n for n in layer.linears if sites[layer.inputs[n]].bits == 8]
    for name in readers:
        read = layer.inputs[name]
        linear, grid = layer.linears[name], grids[layer.path(name)]
        codes = inputs.setdefault(read, Codes(sites[read].grid))
        weight = Weight(
            grid.codes(linear.weight).to(torch.int8),
            grid.step.flatten().expand(linear.out_features).contiguous(),
            linear.bias,
            sites[read].grid,
        )
        last = name == [n for n in readers if layer.inputs[n] == read][-1]
        output = sites[name].grid if sites[name].bits == 8 else None
        found[id(linear)] = Integer(weight, codes, last, output, chosen)
    return found
