"""The detector as one ONNX file, for runtimes without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.errors import MissingDependencyError

from . import boxes as geometry
from .detector import Network

OPSET = 20
"""The first with bilinear sampling as torch has it."""


class Graph(nn.Module):
    """Pixels to boxes and scores; duplicates are still in."""

    def __init__(self, network: Network, rows: Sequence[int], classes: int) -> None:
        super().__init__()
        self.network = network
        self.rows = [[i for i, owner in enumerate(rows) if owner == c] for c in range(classes)]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) uint8 to (Q,4) corners as fractions of the image, (Q,C) scores in [0,1]."""
        seen = self.network(pixels.permute(0, 3, 1, 2).float() / 255)
        scores = seen.logits[-1][0].sigmoid()
        merged = torch.stack([scores[:, rows].amax(1) for rows in self.rows], 1)
        return geometry.corners(seen.boxes[-1][0]).clamp(0, 1), merged


def onnx_of(graph: Graph, sides: tuple[int, int], told: Mapping[str, object]) -> bytes:
    """The file's content for images of ``sides`` (height, width); ``told``: metadata, as JSON."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it and says so less clearly)
    except ImportError as error:
        raise MissingDependencyError(
            "export needs onnx and onnxscript. Run: pip install 'edgezoo[export]'", name="onnx"
        ) from error
    program = torch.onnx.export(
        graph.eval(),
        (torch.zeros(1, *sides, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["boxes", "scores"],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    return bytes(model.SerializeToString())
