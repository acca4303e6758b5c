"""The language model that is to be quantized: opened, copied, described by what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from zoo import calibration
from zoo.bases import resolve
from zoo.errors import InputError, WeightsError

from .families import quantized_already, unsupported
from .simulate import Site

CALIBRATION = "calibration.txt"
"""A model's folder may bring the text to calibrate it with."""


@dataclass(frozen=True)
class Original:
    """A copy of the network, float32 and in eval mode, and what is known of it."""

    network: Any
    tokenizer: Any
    source: Mapping[str, Any]
    """``id``, ``revision``, ``license``, ``sha256`` of a folder, ``dtype`` of the weights."""
    bytes: int
    """Of all weights, as the original has them."""
    calibration: Sequence[str] | None = None
    """The texts that come with the model, if any."""


def opened(model: Any, device: torch.device | str = "cpu") -> Original:
    """``model``: a module, a folder, or a Hub id. Raises InputError for what is none of them, and
    for a model that is quantized already.
    """
    if isinstance(model, nn.Module):
        _check_module(model)
        kind = next(model.parameters()).dtype
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        source = {"id": str(name), "revision": None, "license": None, "sha256": None}
        network, tokenizer, texts = deepcopy(model), None, None
    elif isinstance(model, str | Path):
        base = resolve(model)
        assert base.folder is not None  # resolve gives one or raises
        _check_config(base.folder, str(model))
        network, tokenizer = read(base.folder, str(model)), tokenizer_of(base.folder)
        kind, texts = _dtype(base.folder), texts_of(base.folder)
        source = {"id": base.id, "revision": base.revision, "license": base.license}
        source |= {"sha256": base.sha256}
    else:
        raise InputError(
            f"model={model!r:.60}: expected a causal language model of transformers, a folder, or "
            "a Hub id."
        )
    size = size_of(network, kind)
    network = network.to(device, torch.float32).eval().requires_grad_(False)
    source["dtype"] = str(kind).removeprefix("torch.")
    return Original(network, tokenizer, source, size, texts)


def read(folder: Path, shown: str) -> Any:
    """The network of a transformers folder in float32, every weight from the file."""
    try:
        with _quiet():
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
    except WeightsError:
        raise  # our own reader's, which says more
    except SafetensorError as error:
        raise WeightsError(
            f"the weights in {shown} are damaged: {error}. Get them again."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{shown} cannot be read as a causal language model: {error}") from error
    network, loading = found
    if loading["missing_keys"] or loading["mismatched_keys"]:
        wrong = [key[0] for key in loading["mismatched_keys"]]  # (name, shape, wanted shape)
        names = sorted([*loading["missing_keys"], *wrong])
        raise WeightsError(
            f"{shown} lacks weights, or their shapes are not those of its config.json: "
            f"{', '.join(names[:5])}."
        )
    return network


def _check_module(model: nn.Module) -> None:
    """InputError for a module that is no causal language model, or has sites already."""
    head = getattr(model, "get_output_embeddings", lambda: None)
    if not hasattr(model, "config") or head() is None:
        raise InputError(f"{type(model).__name__} is no causal language model of transformers.")
    if any(isinstance(part, Site) for part in model.modules()):
        raise quantized_already(type(model).__name__)


def _check_config(folder: Path, shown: str) -> None:
    """InputError for a folder that cannot be opened as a causal language model with floating-point
    weights, by its configuration.

    transformers offers to run a folder's own code where it does not know the architecture itself:
    such a folder is refused before it is asked.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{shown} is no language model of transformers: it has no config.json.")
    try:
        config = json.loads(file.read_text("utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is no configuration of transformers: {error}.") from None
    if config.get("quantization_config"):
        raise quantized_already(shown)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unsupported(str(kind), "transformers knows no causal language model of this kind.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bar and its report on loading, which ``read`` checks."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def outline(model: Any) -> tuple[Any, Sequence[str] | None]:
    """The network without its weights, on the meta device, by its configuration alone; and the
    calibration texts that come with it.
    """
    texts = None
    if isinstance(model, nn.Module):
        _check_module(model)
        config: Any = deepcopy(model.config)
    else:
        folder = resolve(model).folder
        assert folder is not None
        _check_config(folder, str(model))
        texts = texts_of(folder)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{model} is no language model of transformers: {error}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), texts


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer that lies in a folder, or None. Raises InputError where it cannot be read."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers has no exceptions of its own
        why = " ".join(str(error).split())
        raise InputError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {why:.300})."
        ) from error


def texts_of(folder: Path) -> Sequence[str] | None:
    """The calibration texts that lie in a folder, or None."""
    file = folder / CALIBRATION
    return calibration.read(file) if file.is_file() else None


def size_of(network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all weights in a dtype, tied ones once."""
    return sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize


def _dtype(folder: Path) -> torch.dtype:
    """What a folder's configuration says its weights have; float32 where it does not."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32
