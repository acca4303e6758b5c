"""An ONNX graph that is written node by node, and the file that holds the weights of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..quantizers import Grid

OPSET = 21
"""The first with 16-bit and 4-bit codes."""
IR = 10
"""The version of the file format that goes with it."""
INLINE = 4096
"""Smaller tensors, in bytes, are in the graph itself."""
PAGE = 4096
"""Tensors begin at multiples of it, so that a runtime can map the file into memory."""
KINDS: Mapping[int, int] = {8: TensorProto.UINT8, 16: TensorProto.UINT16}
"""Bits of an activation -> the type of its codes."""


class Weights:
    """A file of large tensors that several graphs share: one of a name is written once."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("wb")
        self.known: dict[str, onnx.TensorProto] = {}
        """The initializers by name."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def tensor(self, name: str, values: np.ndarray, type_: int | None = None) -> onnx.TensorProto:
        """The initializer ``name``. ``type_``: of ONNX; by default that of the array. Codes of 4
        bits come as int8, from -8 to 7.
        """
        if (known := self.known.get(name)) is not None:
            return known
        kind = helper.np_dtype_to_tensor_dtype(values.dtype) if type_ is None else type_
        data = (packed(values) if kind == TensorProto.INT4 else values).tobytes()
        found = TensorProto(name=name, data_type=kind, dims=values.shape)
        if len(data) < INLINE:
            found.raw_data = data
        else:
            self._file.write(b"\0" * (-self._file.tell() % PAGE))
            place = {"location": self.name, "offset": self._file.tell(), "length": len(data)}
            for key, value in place.items():
                found.external_data.add(key=key, value=str(value))
            found.data_location = TensorProto.EXTERNAL
            self._file.write(data)
        self.known[name] = found
        return found


def packed(codes: np.ndarray) -> np.ndarray:
    """4-bit codes, two in a byte: the first one in the low half."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[::2] | flat[1::2] << 4


class Graph:
    """Nodes in the order in which they are added; each value has the name of its node's output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.named: set[str] = set()
        """The values that nodes have given."""

    def input(self, name: str, type_: int, shape: Sequence[int]) -> str:
        """Take in a value of this name."""
        self.inputs.append(helper.make_tensor_value_info(name, type_, shape))
        return name

    def output(self, name: str, type_: int, shape: Sequence[int]) -> None:
        """Give out a value that has this name."""
        self.outputs.append(helper.make_tensor_value_info(name, type_, shape))

    def known(self, name: str) -> bool:
        """Whether another graph has the constant ``name``; then this one has it too."""
        tensor = self.weights.known.get(name)
        if tensor is not None:
            self.constants[name] = tensor
        return tensor is not None

    def constant(self, name: str, values: Any, type_: int | None = None) -> str:
        """The same as ``Weights.tensor``; only what nodes read gets into the model."""
        if name not in self.constants:
            self.constants[name] = self.weights.tensor(name, np.asarray(values), type_)
        return name

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """A node with one output, ``name``."""
        self.several(kind, *inputs, names=[name], **attributes)
        return name

    def several(self, kind: str, *inputs: str, names: Sequence[str], **attributes: Any) -> None:
        """A node with outputs of these names."""
        self.nodes.append(helper.make_node(kind, inputs, names, names[0], **attributes))
        self.named.update(names)

    def shaped(self, x: str, shape: Sequence[int], name: str) -> str:
        """x in another shape."""
        sizes = self.constant(f"shape{tuple(shape)}", np.array(shape, np.int64))
        return self.op("Reshape", x, sizes, name=name)

    # --- quantization (eq. 9) ---------------------------------------------------------------------

    def codes(self, x: str, grid: Grid, name: str, called: str = "") -> str:
        """The codes of an activation; their own name is ``called``."""
        return self.op(
            "QuantizeLinear", x, *self._scale(grid, name), name=called or f"{name}.codes"
        )

    def floats(self, codes: str, grid: Grid, name: str) -> str:
        """The values of codes."""
        return self.op("DequantizeLinear", codes, *self._scale(grid, name), name=name)

    def rounded(self, x: str, grid: Grid, name: str) -> str:
        """An activation on its grid."""
        return self.floats(self.codes(x, grid, name), grid, name)

    def _scale(self, grid: Grid, name: str) -> tuple[str, str]:
        kind = np.uint8 if grid.bits == 8 else np.uint16
        step = self.constant(f"{name}.step", np.float32(grid.step.item()))
        return step, self.constant(f"{name}.zero", kind(grid.zero.item()))

    # --- the whole --------------------------------------------------------------------------------

    def model(self, name: str, told: Mapping[str, str]) -> onnx.ModelProto:
        """What can be saved, beside the file of weights. Only constants that nodes read are in."""
        read = {i for node in self.nodes for i in node.input}
        kept = [tensor for key, tensor in self.constants.items() if key in read]
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, kept)
        opset = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(graph, opset_imports=opset, ir_version=IR, producer_name="zoo")
        helper.set_model_props(made, dict(told))
        return made
