"""The same two graphs in float32, and what other tools make of them: to compare speed with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor

from ..families import Layer
from ..model import MobileQuantized
from ..quantizers import Grid
from . import FORMAT
from .graph import Weights
from .network import Network, Pass

GRAPHS = ("prefill", "decode")


class FloatNetwork(Network):
    """Writes the graphs of a quantized model as if nothing were quantized."""

    @property
    def form(self) -> type[Pass]:
        return FloatPass


class FloatPass(Pass):
    """One graph in float32, with products as other tools look for them: MatMul by a constant."""

    def rounded(self, x: str, site: str) -> str:
        return x

    def kind(self, layer: Layer, name: str) -> int:
        return int(TensorProto.FLOAT)

    def floats(self, grid: Grid) -> bool:
        return True

    def product(self, x: str, weight: Tensor, name: str, called: str) -> str:
        """x (T,K) times a weight (N,K)."""
        by = self.constant(f"{name}.turned", weight.T.contiguous())
        return self.graph.op("MatMul", x, by, name=called)

    def embedding(self, ids: str) -> str:
        module: Any = self.quantized.module.get_input_embeddings()
        table = self.constant("table", module.weight)
        x = self.graph.op("Gather", table, ids, name="embedded", axis=0)
        scale = float(getattr(module, "embed_scale", 1.0))
        return x if scale == 1.0 else self.scaled(x, scale, "embedded.scaled")

    def head(self, x: str) -> None:
        self.product(x, self.quantized.module.get_output_embeddings().weight, "head", "logits")

    def sums(self, x: str, layer: Layer, name: str) -> str:
        module: Any = layer.linears[name]
        path = layer.path(name)
        if module.bias is None:
            return self.product(x, module.weight, path, f"{path}.sums")
        products = self.product(x, module.weight, path, f"{path}.products")
        bias = self.constant(f"{path}.bias", module.bias)
        return self.graph.op("Add", products, bias, name=f"{path}.sums")

    def cached(self, x: str, layer: Layer, name: str, site: str) -> str:
        graph, whole = self.graph, f"{name}.{layer.index}"
        graph.op("Identity", x, name=whole)
        if not self.past:
            return whole
        shape = [layer.kv_heads, self.network.cache, layer.head_dim]
        past = graph.input(f"cache.{whole}", self.kind(layer, site), shape)
        return graph.op("Concat", past, whole, name=f"all.{whole}", axis=1)


def written(model: MobileQuantized, folder: Path, length: int, cache: int, floats: bool) -> Path:
    """The graphs of a model, in float32 or with codes for a CPU, for ``Session``: a new folder."""
    folder.mkdir()
    with Weights(folder / "weights.data") as weights:
        network = (FloatNetwork if floats else Network)(model, weights, cache, "cpu")
        graphs = network.prefill(length), network.decode()
    for name, graph in zip(GRAPHS, graphs, strict=True):
        onnx.save_model(graph, str(folder / f"{name}.onnx"))
    told = {"format": FORMAT, "length": length, "cache": cache}
    told |= {"vocabulary": model.module.config.vocab_size}
    (folder / "model.json").write_text(json.dumps(told), "utf-8")
    return folder


def static(floats: Path, folder: Path, vnni: bool) -> Path:
    """onnxruntime's static quantization: 8-bit weights for each channel and 8-bit activations, of
    every product with a weight. Without VNNI weights have 7 bits, as its documentation advises.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Once(CalibrationDataReader):
        """Time does not depend on the values: zeros."""

        def __init__(self, graph: onnx.GraphProto) -> None:
            self.given: Iterator[dict[str, np.ndarray]] = iter([_zeros(graph)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.given, None)

    folder.mkdir()
    for name in GRAPHS:
        graph = onnx.load(floats / f"{name}.onnx", load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        quantize_static(
            floats / f"{name}.onnx", folder / f"{name}.onnx", Once(graph),
            nodes_to_quantize=[
                node.name for node in graph.node
                if node.op_type == "MatMul" and node.input[1] in constants
            ],
            per_channel=True, reduce_range=not vnni,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )  # fmt: skip
    return _told(floats, folder)


def four_bits(floats: Path, folder: Path) -> Path:
    """onnxruntime's weights of 4 bits in blocks of 32, with activations in float32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    folder.mkdir()
    for name in GRAPHS:
        made = MatMulNBitsQuantizer(onnx.load(floats / f"{name}.onnx"), block_size=32)
        made.process()
        made.model.save_model_to_file(str(folder / f"{name}.onnx"), True)
    return _told(floats, folder)


def _zeros(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {
        value.name: np.zeros(
            [size.dim_value for size in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in graph.input
    }


def _told(floats: Path, folder: Path) -> Path:
    (folder / "model.json").write_bytes((floats / "model.json").read_bytes())
    return folder
