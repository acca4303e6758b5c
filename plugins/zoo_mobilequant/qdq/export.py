"""``zoo export FOLDER --format onnx-qdq``: two graphs that share a file of weights, in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.errors import MissingDependencyError, NotReadyError, OptionError
from zoo.weights import atomic_folder, sha256

from . import FORMAT

if TYPE_CHECKING:
    from ..model import MobileQuantized

LENGTH, CACHE = 256, 1024
"""Tokens of a prompt, and of a whole sequence, unless asked for or beyond what the model has."""
TARGETS = ("npu", "cpu")
"""What the graphs are for."""


@torch.no_grad()
def export(
    model: MobileQuantized,
    path: Path,
    format: str,
    *,
    length: int | None = None,
    cache: int | None = None,
    target: str = TARGETS[0],
    windows: int = 4,
) -> Path:
    """Write the folder, whole or not at all, checked in onnxruntime; see ``MobileQuantized.export``
    for the arguments and errors.
    """
    if format != "onnx-qdq":
        raise OptionError(
            f"{model.entry.name} is exported as onnx-qdq, not as {format}: --format onnx-qdq."
        )
    longest = int(model.module.config.max_position_embeddings)
    cache = _whole("cache", min(CACHE, longest) if cache is None else cache, 2, longest)
    length = _whole("length", min(LENGTH, cache) if length is None else length, 1, cache)
    windows = _whole("windows", windows, 0, 10_000)
    if target not in TARGETS:
        raise OptionError(f"target={target!r}: expected one of {', '.join(TARGETS)}.")
    _require_integers(model)
    try:
        import onnx
        import onnxruntime  # noqa: F401  (the check needs it: fail before the work)
    except ImportError as error:
        raise MissingDependencyError(
            "Export needs onnx and onnxruntime. Run: pip install 'edgezoo[export]'", name="onnx"
        ) from error
    from .check import checked
    from .graph import Weights
    from .network import Network

    with atomic_folder(path) as folder:
        model.tokenizer.save_pretrained(folder)
        if not (folder / "tokenizer.json").is_file():
            raise NotReadyError("this model's tokenizer has no tokenizer.json: it is a slow one.")
        with Weights(folder / "weights.data") as weights:
            network = Network(model, weights, cache, target)
            graphs = {"prefill": network.prefill(length), "decode": network.decode()}
        for name, graph in graphs.items():
            onnx.save_model(graph, str(folder / f"{name}.onnx"))
        told = _told(model, length, cache, target) | {"graphs": _values(graphs)}
        told["sha256"] = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        _write(folder, told)
        if windows:
            told["check"] = checked(model, folder, windows)
            _write(folder, told)
    return path


def report(path: Path) -> list[str]:
    """What an export is, and how it did in onnxruntime, in lines."""
    from .check import lines

    told = json.loads((path / "model.json").read_text("utf-8"))
    sizes = {file.name: file.stat().st_size / 1e6 for file in path.iterdir()}
    found = [
        f"prompts of up to {told['length']} tokens, sequences of up to {told['cache']}, one at a "
        f"time; {told['scheme']} for {'a CPU' if told['target'] == 'cpu' else 'an NPU'}",
        "MB: " + ", ".join(f"{name} {size:.1f}" for name, size in sorted(sizes.items())),
    ]
    if told["cache"] > told["calibrated"]:
        found.append(
            f"note: activations were calibrated on {told['calibrated']} tokens. Beyond, their "
            "ranges may not fit: quantize with (N, T) token ids of the length in use."
        )
    if check := told.get("check"):
        found += lines(check)
    return found


def _require_integers(model: MobileQuantized) -> None:
    """OptionError for a recipe that the graphs cannot hold; NotReadyError without a tokenizer."""
    recipe = model.recipe
    if recipe.prefix_tokens:
        raise OptionError(
            f"prefix_tokens={recipe.prefix_tokens}: the first positions need floating-point "
            "products, which a static integer graph does not have. Quantize with prefix_tokens=0."
        )
    if recipe.weights == "paper":
        raise OptionError(
            "weights='paper' gives weights a zero point; the export has symmetric ones alone, as "
            "NPUs do. Quantize with weights='row'."
        )
    if not recipe.table:
        raise OptionError(
            "table=False leaves embedding and head in floats; the export has them as integers. "
            "Quantize with table=True."
        )
    if model.tokenizer is None:
        raise NotReadyError("this model was saved without a tokenizer. Pass one to quantize().")


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise OptionError(f"{name}={value!r}: expected a whole number from {low} to {high}.")
    return value


def _told(model: MobileQuantized, length: int, cache: int, target: str) -> dict[str, Any]:
    """What a program that runs the graphs must know."""
    settings = getattr(model.module, "generation_config", None) or model.module.config
    end = settings.eos_token_id
    return {
        "format": FORMAT,
        "source": {key: model.source_model.get(key) for key in ("id", "revision", "license")},
        "scheme": model.recipe.scheme,
        "target": target,
        "batch": 1,
        "length": length,
        "cache": cache,
        "vocabulary": model.module.config.vocab_size,
        "end": end if isinstance(end, list) else [] if end is None else [end],
        "calibrated": model.report()["calibration"]["length"],
    }


def _values(graphs: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> type and shape of what goes into each graph and comes out."""
    from onnx import helper

    def facts(values: Any) -> dict[str, Any]:
        found = {}
        for value in values:
            tensor = value.type.tensor_type
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            found[value.name] = [str(kind), [size.dim_value for size in tensor.shape.dim]]
        return found

    return {
        name: {"inputs": facts(made.graph.input), "outputs": facts(made.graph.output)}
        for name, made in graphs.items()
    }


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
