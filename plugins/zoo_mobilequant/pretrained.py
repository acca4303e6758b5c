"""Saved folders as transformers reads them: a quantizer and its configuration, registered there.

    import zoo_mobilequant.pretrained
    network = AutoModelForCausalLM.from_pretrained(folder)

gives the network that ``zoo.load(folder)`` has inside: this module is how zoo reads folders too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from zoo.errors import WeightsError
from zoo.weights import header

from .families import layers_of
from .packed import make_room, packed, unpack
from .quantizers import Grid, WeightFormat
from .recipe import Recipe
from .simulate import Site, attach
from .tables import FORM, HEAD, attach_head, tables, tied

METHOD = "mobilequant"
"""``quant_method`` in ``config.json``."""
FORMAT = 2
"""Of a saved folder: 1 had floats that lie on the grids, 2 has codes."""


@register_quantization_config(METHOD)
class MobileQuantConfig(QuantizationConfigMixin):
    """``quantization_config`` of ``config.json``: the recipe, and sites that got 16 bits."""

    def __init__(
        self, format: int = 0, recipe: Mapping[str, Any] | None = None, wide: Sequence[str] = (),
        **rest: Any,
    ) -> None:  # fmt: skip
        self.quant_method: Any = METHOD
        self.format, self.recipe, self.wide = format, dict(recipe or {}), list(wide)


@register_quantizer(METHOD)
class MobileQuantReader(HfQuantizer):
    """Makes room for codes in a network, and turns them into the simulation once they are loaded.

    Raises WeightsError for another format, and for a file whose tensors are not those of the
    configuration.
    """

    requires_calibration = True
    quantization_config: MobileQuantConfig

    def __init__(self, quantization_config: MobileQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        check_format(quantization_config.format, "This folder")
        self.recipe = Recipe.restored(quantization_config.recipe)
        self.sites: dict[str, Site] = {}
        self.grids: dict[str, Grid] = {}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float32, which holds 16-bit codes exactly."""
        return torch.float32

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] = (), **kwargs: Any
    ) -> None:
        layers, recipe = layers_of(model), self.recipe
        self.sites = attach(model, layers, recipe.activation_bits, recipe.prefix_tokens)
        if recipe.table:
            self.sites[HEAD] = attach_head(model)
        for name in self.quantization_config.wide:
            self.sites[name].bits = 16
        for part, form in _parts(model, recipe).values():
            make_room(part, form)
        check_files(model, [Path(file) for file in checkpoint_files])

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for path, (part, form) in _parts(model, self.recipe).items():
            self.grids[path] = unpack(part, form)
        model.tie_weights()
        for name, grid in {**self.grids, **{n: s.grid for n, s in self.sites.items()}}.items():
            if not bool(((grid.step > 0) & grid.step.isfinite()).all()):
                raise WeightsError(f"the step of {name} is no positive number. Quantize again.")
        for site in self.sites.values():
            site.on = True
        return model.requires_grad_(False)

    def is_serializable(self) -> bool:
        """False: ``zoo.load(folder)`` saves."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _parts(model: Any, recipe: Recipe) -> dict[str, tuple[Any, WeightFormat]]:
    """Path -> layer whose weight is packed, and how."""
    found: dict[str, tuple[Any, WeightFormat]] = {
        layer.path(name): (linear, recipe.form(name))
        for layer in layers_of(model)
        for name, linear in layer.linears.items()
    }
    if recipe.table:
        found |= {path: (part, FORM) for path, part in tables(model).items()}
    return found


def check_format(found: Any, what: str) -> None:
    """WeightsError for a folder of another version."""
    if found != FORMAT:
        raise WeightsError(
            f"{what} has format {found!r}; this plugin reads {FORMAT}. Quantize the original again."
        )


def check_files(model: nn.Module, files: Sequence[Path]) -> None:
    """WeightsError where the tensors in files are not those that a network asks for: by name,
    shape, and whether they are whole numbers. Reads headers only.
    """
    found = {name: facts for file in files for name, facts in header(file).items()}
    wanted = {name: t for name, t in model.state_dict().items() if name not in tied(model)}
    where = files[0].parent if files else "the folder"
    if missing := sorted(wanted.keys() - found):
        raise WeightsError(f"{where} lacks {', '.join(missing[:5])}. Quantize again.")
    for name, tensor in wanted.items():
        dtype, shape = found[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        same = dtype == kind or ("float" in dtype and "float" in kind)
        if not same or shape != tuple(tensor.shape):
            raise WeightsError(
                f"{name} in {where} is {dtype} {shape}; its configuration asks for {kind} "
                f"{tuple(tensor.shape)}. Quantize again."
            )


def state(network: nn.Module, grids: Mapping[str, Grid], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a file holds of a network whose weights are on ``grids``: codes, steps and zero points;
    other matrices in ``dtype``.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():
        path = name.removesuffix(".weight")
        if tensor.data_ptr() in seen and not tensor.is_meta:  # tied
            continue
        seen.add(tensor.data_ptr())
        if path in grids:
            grid = grids[path]
            found[name], found[f"{path}.step"] = packed(tensor, grid), grid.step
            if grid.low == 0:
                found[f"{path}.zero"] = grid.zero
        else:  # norms and biases were changed by the fold; the embedding was not
            found[name] = tensor.to(dtype) if tensor.ndim > 1 else tensor
    return found
