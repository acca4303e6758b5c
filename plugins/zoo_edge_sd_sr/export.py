"""ONNX export: one graph, one input, one output; onnxruntime runs it without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import MissingDependencyError, NotReadyError, OptionError
from zoo.weights import atomic_file

if TYPE_CHECKING:
    from .model import EdgeNetwork, EdgeSDSR

OPSET = 18


class Graph(nn.Module):
    """The network as it is exported: noise_scale 0, result clamped."""

    def __init__(self, network: EdgeNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(1,3,h,w) in [0,1] to (1,3,4h,4w) in [0,1]."""
        return self.network(image).clamp(0, 1)


def export_onnx(model: EdgeSDSR, path: Path, size: int | tuple[int, int] | None = None) -> Path:
    """Write the graph; ``size`` (a side, or height and width) fixes the shape, None leaves it free.

    Raises OptionError for a size that the network cannot take.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it and says so less clearly)
    except ImportError as error:
        raise MissingDependencyError(
            "Export needs onnx and onnxscript: pip install 'edgezoo[sr]'."
        ) from error
    network, multiple = model.module, model.multiple
    if isinstance(size, int):
        size = size, size
    if next(network.parameters()).dtype != torch.float32:
        raise NotReadyError("Only float32 is exported: load the model with dtype='float32'.")
    if size is not None and (len(size) != 2 or any(n < 1 or n % multiple for n in size)):
        raise OptionError(f"size={size!r}: expected (height, width), multiples of {multiple}.")
    height, width = size or (16 * multiple, 24 * multiple)
    example = torch.rand(1, 3, height, width, device=model.device)
    shapes = None
    if size is None:
        # Free sizes are declared as multiple * n: then every level of the UNet divides evenly.
        rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
        shapes = {"image": {2: multiple * rows, 3: multiple * columns}}
    # The optimiser logs a warning for each operator that it leaves as it is: nothing to act on.
    chatter = logging.getLogger("onnxscript.optimizer")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        program = _program(network, example, shapes)
    finally:
        chatter.setLevel(level)
    with atomic_file(path) as temporary:
        onnx.save_model(program.model_proto, str(temporary))
    return path


def _program(network: EdgeNetwork, example: Tensor, shapes: Any) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        Graph(network).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["enlarged"],
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None
    return program
