"""What ``zoo.load("mobilequant")`` returns, and what it makes: ``method.py`` behind the interface
``Quantizer``, and a folder of transformers that holds the result.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from zoo.errors import DeviceError, InputError
from zoo.hookspecs import BuildRequest
from zoo.interfaces import Estimate, QuantizedModel, Quantizer
from zoo.isolation import isolated, learning

from . import planning
from .calibrate import Clipped, windows
from .families import describe
from .method import Fitted, fit
from .original import Original, opened, read, tokenizer_of
from .pretrained import FORMAT, METHOD, check_format, state
from .quantizers import Grid
from .recipe import SCHEMES, Recipe, make
from .simulate import Site, watching
from .work import Work

if TYPE_CHECKING:
    from zoo.progress import Progress

PROMPT, SAID = 12, 24
"""Tokens of the sample in the report: the first of the calibration, and what follows them."""


def build(request: BuildRequest) -> MobileQuant | MobileQuantized:
    """The quantizer, or what it saved."""
    if request.saved and request.saved["kind"] == MobileQuantized.kind:
        return MobileQuantized.open(request)
    return MobileQuant(request)


class MobileQuant(Quantizer):
    """Quantizes weights and activations of causal language models by static integers."""

    schemes = tuple(SCHEMES)

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        self._device = torch.device(request.device)

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: str | torch.device) -> Self:
        self._device = torch.device(device)
        return self

    @learning()
    def quantize(
        self,
        model: Any,
        calibration: Any = None,
        *,
        scheme: str | None = None,
        tokenizer: Any = None,
        seed: int = 0,
        progress: Progress = False,
        recipe: str = "mobilequant",
        pairs: Any = None,
        alpha: float | None = None,
        grid: bool | None = None,
        steps: int | None = None,
        learn: Any = None,
        loss: str | None = None,
        prefix_tokens: int | None = None,
        weights: str | None = None,
        table: bool | None = None,
        fallback: int | None = None,
        budget: float | None = None,
        checkpoint: str | Path | None = None,
    ) -> MobileQuantized:
        """Quantize a causal language model of transformers (Llama, Mistral, Qwen2, Qwen3, StableLM
        or Gemma 1 to 3).

        ``calibration``: None is the model's own ``calibration.txt``, if its folder has one, else
        zoo's short texts.
        ``recipe``: the method, or a baseline (``recipe.RECIPES``); what follows changes a setting
        of it (``recipe.Recipe``). ``pairs``, ``learn``: words, or text with commas. ``fallback``:
        at most so many activations may have 16 bits where the KL divergence is above ``budget``
        nats for each token. ``checkpoint``: a folder to keep work in; the same call goes on from
        there.

        Raises InputError for an unsupported architecture, for a model that is quantized already,
        for calibration data that cannot be used, and where a weight or an activation is not finite;
        OptionError for settings.
        """
        chosen = make(
            recipe,
            self.schemes[0] if scheme is None else scheme,
            {
                "pairs": pairs, "alpha": alpha, "grid": grid, "steps": steps, "learn": learn,
                "loss": loss, "prefix_tokens": prefix_tokens, "weights": weights,
                "table": table, "fallback": fallback, "budget": budget,
            },
        )  # fmt: skip
        started = time.perf_counter()
        original = opened(model, self.device)
        layers = describe(original.network)
        words = original.tokenizer if tokenizer is None else tokenizer
        given = original.calibration if calibration is None else calibration
        if words is not None and not callable(words):
            raise InputError(f"tokenizer={words!r:.60}: expected a tokenizer of transformers.")
        rows, remarks = windows(given, words, original.network.config)
        _require_finite(original.network)
        # The first row may begin with the token that begins a chat; the second is plain text.
        begin, said = rows[:2, :PROMPT][-1:].to(self.device), ""
        if words is not None:
            said = continued(original.network, begin, words)
        work = None
        if checkpoint is not None:
            facts = {"recipe": chosen.kept(), "seed": seed, "model": dict(original.source)}
            facts["calibration"] = _digest([rows])
            if isinstance(model, nn.Module):
                facts["weights"] = _digest(original.network.parameters())
            work = Work(Path(checkpoint), facts)
        with _enough_memory():
            found = fit(
                original.network, layers, rows.to(self.device), chosen,
                seed=seed, progress=progress, work=work,
            )  # fmt: skip
        found.report["notes"] = remarks + found.report["notes"]
        if words is not None:
            prompt = words.decode(begin[0], skip_special_tokens=True)
            quantized = continued(original.network, begin, words)
            found.report["sample"] = {"prompt": prompt, "original": said, "quantized": quantized}
        found.report["calibration"] = {"windows": len(rows), "length": rows.shape[1]}
        found.report["seconds"] = time.perf_counter() - started
        return MobileQuantized.made(self, original, words, chosen, found)

    @isolated()
    def estimate(
        self,
        model: Any,
        calibration: Any = None,
        *,
        scheme: str | None = None,
        recipe: str = "mobilequant",
        **changes: Any,
    ) -> Estimate:
        """What ``quantize`` would cost; ``notes`` has the pairs found. Reads no weights."""
        for name in ("tokenizer", "seed", "progress", "checkpoint"):
            changes.pop(name, None)
        chosen = make(recipe, self.schemes[0] if scheme is None else scheme, changes)
        return planning.plan(model, calibration, chosen, self.device)


class MobileQuantized(QuantizedModel):
    """A language model that computes as its integers would, in float32.

    Called like the original. ``config`` has ``recipe`` and ``source_model``; ``module`` is the
    network of transformers, with sites.
    """

    def __init__(
        self, made_from: Any, network: Any, config: Mapping[str, Any], tokenizer: Any
    ) -> None:
        super().__init__(made_from)
        self.module: Any = network.eval()  # sites were added to it
        self.config = config
        self.tokenizer = tokenizer
        self.sites: Mapping[str, Site] = {}
        """Name, such as ``3.h`` -> where an activation is quantized."""
        self.grids: Mapping[str, Grid] = {}
        """Path of a linear layer -> the grid of its weight."""
        self.layers = describe(network)
        self._warned = False

    @property
    def recipe(self) -> Recipe:
        """The settings it was made with."""
        return Recipe.restored(self.config["recipe"])

    @classmethod
    def made(
        cls,
        quantizer: MobileQuant,
        original: Original,
        tokenizer: Any,
        recipe: Recipe,
        found: Fitted,
    ) -> Self:
        """What ``fit`` made of an original."""
        report = found.report
        config = {
            "format": FORMAT,
            "recipe": recipe.kept(),
            "source_model": dict(original.source),
            "wide": report["wide"],
        }
        model = cls(quantizer, original.network, config, tokenizer)
        model.sites, model.grids = found.sites, found.grids
        errors = report.pop("errors")
        bits = {name: site.bits for name, site in model.sites.items()}
        layers = {
            layer.path(name): {
                "weight_bits": recipe.weight_bits,
                "activation_bits": bits[f"{layer.index}.{layer.inputs[name]}"],
                "error": errors[layer.path(name)],
            }
            for layer in model.layers
            for name in layer.linears
        }
        config["report"] = {
            "bytes_before": original.bytes,
            "bytes_after": _size(model.state()),
            **report,
            "layers": layers,
        }
        config["report"]["summary"] = summary(config["report"])
        return model

    @classmethod
    def open(cls, request: BuildRequest) -> Self:
        """A saved folder."""
        assert request.folder is not None
        folder, config = request.folder, request.config
        if request.dtype != "float32":
            raise DeviceError(
                f"dtype={request.dtype!r}: the simulation of integers computes in float32, which "
                "holds 16-bit codes exactly. Leave dtype out."
            )
        check_format(config.get("format"), str(folder))
        network = read(folder, str(folder))
        reader = network.hf_quantizer
        reader.remove_quantization_config(network)  # it is one of ours now, not transformers'
        model = cls(request, network, config, tokenizer_of(folder))
        model.sites, model.grids = reader.sites, reader.grids
        return model.to(request.device)

    def to(self, device: str | torch.device) -> Self:
        super().to(device)
        self.grids = {path: grid.to(device) for path, grid in self.grids.items()}
        return self

    # --- use --------------------------------------------------------------------------------------

    @isolated()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given: Any = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        cache = kwargs.get("past_key_values")
        before = cache.get_seq_length() if cache is not None else 0
        output = self.module(*args, **kwargs)
        self._warn_if_long(before + int(given.shape[1]))
        return output

    @isolated()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        made = self.module.generate(*args, **kwargs)
        self._warn_if_long(int((made if isinstance(made, Tensor) else made.sequences).shape[1]))
        return made

    def _warn_if_long(self, length: int) -> None:
        """Once: positions that calibration did not reach may leave the ranges of activations."""
        calibrated = self.config["report"]["calibration"]["length"]
        if length > calibrated and not self._warned:
            self._warned = True
            warnings.warn(
                f"{length} tokens; activations were calibrated on {calibrated}. Beyond, their "
                "ranges may not fit: quantize with (N, T) token ids of the length in use.",
                stacklevel=4,  # beyond the decorators
            )

    @isolated()
    @torch.no_grad()
    def integers(self, exact: bool = False) -> Any:
        """The network of transformers on integers, on the CPU (``runtime.py``).

        Called like the original, and generates like it. ``exact``: products are those of integers
        on any CPU, and slow; else this CPU's quickest, with a warning where these are not right
        with the weights as they are. Raises OptionError for a recipe that needs floats
        (``prefix_tokens``, ``weights="paper"``).
        """
        from .kernels import plan
        from .runtime import integers

        if not exact and (remark := plan().remark):
            warnings.warn(remark, stacklevel=4)  # beyond the decorators
        network, grids = self.module, self.grids
        if self.device.type != "cpu":
            network = deepcopy(network).to("cpu")
            grids = {path: grid.to("cpu") for path, grid in grids.items()}
        return integers(network, grids, self.recipe, exact)

    @isolated()
    def export(  # type: ignore[override]  # options are spelled out
        self,
        path: str | Path,
        format: str = "onnx-qdq",
        *,
        length: int | None = None,
        cache: int | None = None,
        target: str = "npu",
        windows: int = 4,
    ) -> Path:
        """Write a folder with two ONNX graphs of fixed shapes, ``prefill.onnx`` for a prompt and
        ``decode.onnx`` for one token after it, which share ``weights.data``; beside them
        ``tokenizer.json``, and ``model.json`` with names, shapes and limits.

        ``length``: tokens of a prompt, 256 unless the cache is smaller. ``cache``: tokens of a
        sequence, 1024 unless the model has fewer positions. ``target``: ``npu`` has every rounding
        of the simulation; for a ``cpu`` activations of 16 bits stay floats and 4-bit weights take a
        byte each, which onnxruntime computes quicker. ``windows``: of calibration text, on which
        the graphs are compared with the simulation in onnxruntime; 0: none.

        Raises OptionError for an option, and for a recipe that needs floats (``prefix_tokens``,
        ``weights="paper"``, ``table=False``); NotReadyError for a model without a tokenizer, and
        for attention or an activation function of another form.
        """
        from .qdq.export import export

        how: dict[str, Any] = {"length": length, "cache": cache, "target": target}
        return export(self, Path(path), format, windows=windows, **how)

    def export_report(self, path: str | Path) -> Sequence[str]:
        """Sizes and limits of an export, and how far it was from the simulation."""
        from .qdq.export import report

        return report(Path(path))

    @isolated()
    @torch.no_grad()
    def clipped(self, ids: Tensor) -> Mapping[str, float]:
        """Site -> share, from 0 to 1, of its values on token ids (N,T) that its range cuts off."""
        counts = Clipped()
        with watching(self.sites, counts):
            for row in ids:
                self.module(row[None].to(self.device))
        return counts.shares

    def report(self) -> Mapping[str, Any]:
        """Also ``kl``, ``agreement``, ``perplexity`` beside ``perplexity_original`` on windows that
        learning did not see (on all where there are fewer than four), the same ``before_learning``,
        ``strength`` and ``strengths`` (eq. 22), ``wide`` and ``clipped`` sites, ``sample`` (a
        ``prompt`` and its continuations), ``summary``, ``notes``.
        """
        report: Mapping[str, Any] = self.config["report"]
        return report

    # --- the folder -------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Tensor]:
        """Tensors under the names of transformers. Of linear layers: ``weight``, its codes, packed
        (``packed.py``), ``step`` and, where there is one, ``zero``; of sites ``step`` and ``zero``.
        """
        return state(self.module, self.grids, getattr(torch, self.source_model["dtype"]))

    def save_files(self, folder: Path) -> None:
        super().save_files(folder)
        config = deepcopy(self.module.config)
        facts = {key: self.config[key] for key in ("format", "recipe", "wide")}
        config.quantization_config = {"quant_method": METHOD, **facts}
        config.save_pretrained(folder)
        if getattr(self.module, "generation_config", None) is not None:
            self.module.generation_config.save_pretrained(folder)


@torch.no_grad()
def continued(network: Any, begin: Tensor, tokenizer: Any) -> str:
    """What a network says after token ids (1,T): ``SAID`` tokens, the likeliest each."""
    made = network.generate(
        begin, attention_mask=torch.ones_like(begin), max_new_tokens=SAID, do_sample=False
    )
    text: str = tokenizer.decode(made[0, begin.shape[1] :], skip_special_tokens=True)
    return text


def _require_finite(network: nn.Module) -> None:
    """InputError that names a weight with NaN or infinity. What becomes so on the calibration data
    alone is found there.
    """
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(f"the original's {name} is not finite. Get its weights again.")


def _digest(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of tensors' values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr(tuple(tensor.shape)).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _enough_memory() -> Iterator[None]:
    """If memory is too small, raise a DeviceError that names what needs less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(
            "quantize needs more memory than there is. Learn layer by layer (recipe='layerwise'), "
            "or without learning (steps=0), or pass shorter calibration windows: (N, T) token ids."
        ) from error


def summary(report: Mapping[str, Any]) -> list[str]:
    """What people want to know first, in lines."""
    before, after = report["perplexity_original"], report["perplexity"]
    few = report["calibration"]["windows"] < 4
    text = "calibration text, none held back" if few else "held-back calibration text"
    lines = [
        f"{text}: perplexity {before:.2f} -> {after:.2f}, "
        f"KL divergence {report['kl']:.3f} nats a token, "
        f"same likeliest token at {report['agreement']:.1%} of positions",
        f"weights: {report['bytes_before'] / 1e6:.1f} MB -> {report['bytes_after'] / 1e6:.1f} MB",
    ]
    if sample := report.get("sample"):
        for who in ("prompt", "original", "quantized"):
            lines.append(f"{who + ':':10} {' '.join(sample[who].split())}")
    return lines


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
