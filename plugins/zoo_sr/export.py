"""ONNX export: one graph, image in, image out; onnxruntime runs it without torch.

A model whose chain starts at noise gets a second input, ``noise``: standard normal, of the latents'
shape. The graph's metadata has what a caller must know: ``scale``, ``multiple``
(sides of the input), ``factor`` (output pixels per latent), ``range`` of the values, ``precision``,
``model``.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import MissingDependencyError, NotReadyError, OptionError
from zoo.experiment import take_turns
from zoo.metrics import psnr_y
from zoo.weights import atomic_file

from .degrade import round8
from .pixels import bicubic_down
from .tiles import noise_field, reflect

if TYPE_CHECKING:
    from zoo.entry import Entry

    from .networks import LatentNetwork

OPSET = 18
LARGEST = 2**31
"""Bytes: more does not fit into one ONNX file."""
CALIBRATION = ("coffee", "chelsea", "rocket")
"""CC0 or public-domain photographs from scikit-image that determine the ranges of int8."""
MEASURED = "astronaut"
"""The photograph that the report measures on; it determines no range."""


class Exportable(Protocol):
    """The parts of a ``LatentSR`` that the export uses."""

    @property
    def entry(self) -> Entry: ...
    @property
    def module(self) -> LatentNetwork: ...
    @property
    def noise_scale(self) -> float: ...
    @property
    def multiple(self) -> int: ...
    @property
    def device(self) -> torch.device: ...


class Graph(nn.Module):
    """The exported network: its result is clamped."""

    def __init__(self, network: LatentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(1,3,h,w) in [0,1] to (1,3,scale*h,scale*w) in [0,1]."""
        made: Tensor = self.network(image, noise)
        return made.clamp(0, 1)


def inputs(model: Exportable, image: Tensor) -> dict[str, Tensor]:
    """The graph's inputs for this image (1,3,h,w), by name; the noise is that of seed 0."""
    if not model.noise_scale:
        return {"image": image}
    net = model.module
    h, w = (n * net.scale // net.factor for n in image.shape[-2:])
    noise = model.noise_scale * noise_field(0, net.latent, 0, 0, h, w)[None]
    return {"image": image, "noise": noise.to(image)}


def export_onnx(
    model: Exportable,
    path: Path,
    *,
    size: int | Sequence[int] | None = None,
    int8: bool = False,
) -> Path:
    """Write the graph; ``size`` (a side, or height and width) fixes the shape, None leaves it free.

    ``int8`` quantizes it (``quantize``). Raises OptionError for a size that the network does not
    support.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it; its own error is less clear)
    except ImportError as error:
        raise MissingDependencyError(
            "Export needs onnx and onnxscript. Run: pip install 'edgezoo[export]'", name="onnx"
        ) from error
    shape = _shape(size, model.multiple)
    if not isinstance(int8, bool):
        raise OptionError(f"int8={int8!r}: expected true or false.")
    weights = list(model.module.parameters())
    if weights[0].dtype != torch.float32:
        raise NotReadyError("Only float32 is exported: load the model with dtype='float32'.")
    if 4 * sum(w.numel() for w in weights) > LARGEST:
        raise NotReadyError(
            f"{model.entry.name} has more than the 2 GiB that one ONNX file can hold."
        )
    graph = _trace(model, shape)
    if int8:
        graph = quantize(graph, model, shape)
    told = {
        "model": model.entry.name,
        "scale": str(model.module.scale),
        "multiple": str(model.multiple),
        "factor": str(model.module.factor),
        "range": "0 1",
        "precision": "int8" if int8 else "float32",
    }
    onnx.helper.set_model_props(graph, told)
    with atomic_file(path) as temporary:
        onnx.save_model(graph, str(temporary))
    return path


def _shape(size: Any, multiple: int) -> tuple[int, int] | None:
    """(height, width), or None for a free size."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    right = isinstance(sides, list | tuple) and len(sides) == 2
    if not right or not all(type(n) is int and n > 0 and n % multiple == 0 for n in sides):
        raise OptionError(
            f"size={size!r}: expected a side, or [height, width], in multiples of {multiple}."
        )
    return sides[0], sides[1]


def _trace(model: Exportable, shape: tuple[int, int] | None) -> Any:
    """The float32 graph as an onnx.ModelProto."""
    multiple = model.multiple
    height, width = shape or (16 * multiple, 24 * multiple)
    example = inputs(model, torch.rand(1, 3, height, width, device=model.device))
    free = None
    if shape is None:
        # Free sizes are declared as multiple * n, so that every level of the UNet divides evenly.
        rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
        free = {}
        for name, x in example.items():
            units = multiple * x.shape[2] // height  # multiple * scale / factor for the noise
            free[name] = {2: units * rows, 3: units * columns}
    # The optimiser logs a harmless warning for each operator that it does not change.
    with _quiet("onnxscript.optimizer"), _norms_of_rank_4(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # the noise's sides follow the image's
        program = torch.onnx.export(
            Graph(model.module).eval(),
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=[*example],
            output_names=["enlarged"],
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet(name: str | None) -> Iterator[None]:
    """Silence this logger (None: the root) below errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _norms_of_rank_4() -> Iterator[None]:
    """Group norms trace as norms over (1,groups,channels/groups,pixels).

    torch's own trace is three-dimensional, which phones' accelerators run on the CPU instead.
    """

    def forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
        """x (B,C,...), as in torch."""
        x_g = x.reshape(x.shape[0], self.num_groups, self.num_channels // self.num_groups, -1)
        y = functional.instance_norm(x_g, eps=self.eps).reshape(x.shape)
        if self.affine:
            per_channel = (1, -1, *(1,) * (x.dim() - 2))
            y = y * self.weight.view(per_channel) + self.bias.view(per_channel)
        return y

    own = nn.GroupNorm.forward
    nn.GroupNorm.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.GroupNorm.forward = own  # type: ignore[method-assign]


# --- int8 -----------------------------------------------------------------------------------------

QUANTIZED = ["Conv"]
"""The operators in 8 bits. Sums, gates and norms between convolutions stay float: in 8 bits they
would nearly double the largest error (10 instead of 6 of 255) for about a third less time
(edge-sd-sr before its decoder was tuned for texture, one photograph, timed once)."""
ENDS = ("conv_in.", "conv_out.", "unet.linear.")
"""Layers from and to images and latents. They stay float: they have few operations, and in 8 bits
they cause two thirds of the total loss (0.2 dB, measured on edge-sd-sr)."""


def quantize(graph: Any, model: Exportable, shape: tuple[int, int] | None) -> Any:
    """The graph with 8-bit weights (per channel) and activations (static, from photographs).

    The ranges are the extremes on photographs at full size and shrunk, so that they cover sharp and
    soft inputs.
    """
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingDependencyError(
            "int8=true needs onnxruntime. Run: pip install 'edgezoo[export]'", name="onnxruntime"
        ) from error
    height, width = shape or (96, 96)  # 96 is a multiple of every stride
    photographs = iter(list(_calibration(model.module.scale, height, width)))

    class Photographs(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(photographs, None)
            return None if x is None else {k: v.numpy() for k, v in inputs(model, x).items()}

    with tempfile.TemporaryDirectory() as scratch, _quiet(None):
        traced, folded, made = (Path(scratch) / f"{name}.onnx" for name in ("a", "b", "c"))
        onnx.save_model(graph, str(traced))
        # Folds constants, and scales of a convolution's output into its weights.
        quant_pre_process(str(traced), str(folded), skip_symbolic_shape=True)
        nodes = onnx.load(folded).graph.node
        ends = [
            node.name
            for node in nodes
            if node.op_type == "Conv" and any(end in i for i in node.input for end in ENDS)
        ]
        quantize_static(
            str(folded),
            str(made),
            Photographs(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=ends,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(made)


def photograph(name: str, height: int, width: int) -> Tensor:
    """The centre (3,height,width) in [0,1] of a photograph from scikit-image, mirrored if it is
    small."""
    try:
        import skimage.data
    except ImportError as error:
        raise MissingDependencyError(
            "Calibration uses photographs from scikit-image. Run: pip install 'edgezoo[export]'",
            name="skimage",
        ) from error
    x = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1).float() / 255
    top, left = (
        max(0, n - wanted) // 2 for n, wanted in zip(x.shape[1:], (height, width), strict=True)
    )
    x = x[:, top : top + height, left : left + width]
    for axis, wanted in ((1, height), (2, width)):
        if x.shape[axis] < wanted:
            x = reflect(x, wanted)
    return x[:, :height, :width].contiguous()


def _calibration(scale: int, height: int, width: int) -> Iterator[Tensor]:
    """Inputs (1,3,height,width): shrunk photographs, then the same ones at full size."""
    for name in CALIBRATION:
        yield round8(bicubic_down(photograph(name, scale * height, scale * width)[None], scale))
    for name in CALIBRATION:
        yield photograph(name, height, width)[None]


# --- the report -----------------------------------------------------------------------------------


def report(model: Exportable, path: Path, *, patience: float = 20.0) -> list[str]:
    """Lines that compare an exported file with the model in torch, on one photograph.

    Both take turns on one thread (``zoo.experiment``), for about ``patience`` seconds at most.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Running the file needs onnxruntime. Run: pip install 'edgezoo[export]'",
            name="onnxruntime",
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    scale, fixed = model.module.scale, session.get_inputs()[0].shape[2:]
    height, width = (n if isinstance(n, int) else 128 for n in fixed)
    x_h = photograph(MEASURED, scale * height, scale * width)
    x_l = round8(bicubic_down(x_h[None], scale))
    graph = Graph(model.module)
    given = inputs(model, x_l)
    there = [
        x.to(model.device).contiguous(memory_format=torch.channels_last) for x in given.values()
    ]
    fed = {name: x.numpy() for name, x in given.items()}

    def ours() -> Tensor:
        with torch.inference_mode():
            made: Tensor = graph(*there)
            return made.cpu()

    def theirs() -> Tensor:
        return torch.from_numpy(session.run(None, fed)[0])

    a, b = ours(), theirs()
    with torch.inference_mode():
        spent = take_turns(
            {"torch": ours, "onnxruntime": theirs},
            rounds=7,
            device=model.device,
            patience=patience,
        )
    rounds = len(spent["torch"])
    torch_s, ort_s = statistics.median(spent["torch"]), statistics.median(spent["onnxruntime"])
    off = (a - b).abs() * 255
    lines = [
        f"{path.stat().st_size / 1e6:.1f} MB; pixels differ from torch by at most "
        f"{float(off.max()):.2g}/255, {float(off.mean()):.2g}/255 on average",
        f"{height}x{width} to {scale * height}x{scale * width}: onnxruntime {ort_s:.3g} s, torch "
        f"{torch_s:.3g} s on {model.device}, ratio {ort_s / torch_s:.2f} (median of "
        f"{rounds} each in turn, one thread)",
    ]
    if session.get_modelmeta().custom_metadata_map["precision"] == "int8":
        before, after = psnr_y(a[0], x_h, scale), psnr_y(b[0], x_h, scale)
        lines.append(
            f"PSNR-Y on a photograph not used for calibration ({MEASURED}): int8 {after:.2f} dB, "
            f"float32 {before:.2f} dB: {after - before:+.2f} dB"
        )
    return lines
