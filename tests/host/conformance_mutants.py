"""The models of ``zoo new``, each broken in one way, under their conformance suites.

``test_conformance.py`` runs this file as a program, in a process that sees the six models: the
whole suite on each as it is, and of each mutant the one test that is there to catch it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

TOYS = {
    "SRModel": "toy-upscaler",
    "VLAligner": "toy-aligner",
    "Quantizer": "toy-rounder",
    "DataSelector": "toy-selector",
    "Detector": "toy-spotter",
    "QAGenerator": "toy-asker",
}
CLASSES = {
    interface: "".join(word.capitalize() for word in name.split("-"))
    for interface, name in TOYS.items()
}


@dataclass(frozen=True)
class Mutant:
    interface: str
    caught_by: str
    make: Callable[[Any, type], dict[str, Any]]
    """(module, its class) -> what to put in place in the module."""
    model: str = ""
    """Another model than the interface's toy."""


MUTANTS: dict[str, Mutant] = {}


def mutant(interface: str, caught_by: str, model: str = "") -> Callable[[Any], Any]:
    """Register a mutant: a function (module, class) that returns a class, or names to replace."""

    def register(make: Callable[[Any, type], Any]) -> Any:
        def replaced(toy: Any, cls: type) -> dict[str, Any]:
            made = make(toy, cls)
            return made if isinstance(made, dict) else {CLASSES[interface]: made}

        name = make.__name__
        assert name not in MUTANTS, name
        MUTANTS[name] = Mutant(interface, caught_by, replaced, model)
        return make

    return register


def after(verb: str, change: Callable[[Any], Any]) -> Callable[[Any, type], type]:
    """A mutation that changes what a verb returns."""

    def make(toy: Any, cls: type) -> type:
        def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
            return change(getattr(cls, verb)(self, *args, **kwargs))

        changed.__signature__ = __import__("inspect").signature(getattr(cls, verb))  # type: ignore[attr-defined]
        return type("Broken", (cls,), {verb: changed})

    return make


VARIANTS: dict[str, tuple[str, Callable[[Any, Any], type]]] = {}


def variant(interface: str) -> Callable[[Any], Any]:
    """Register a model that keeps the contract in another way: it must pass the whole suite."""

    def register(make: Callable[[Any, Any], type]) -> Any:
        VARIANTS[make.__name__] = (interface, make)
        return make

    return register


def returns(
    name: str, interface: str, caught_by: str, verb: str, change: Callable[[Any], Any]
) -> None:
    make = after(verb, change)
    make.__name__ = name
    mutant(interface, caught_by)(make)


# --- any model ------------------------------------------------------------------------------------


@mutant("SRModel", "test_is_of_its_interface", model="toy-spotter")
def another_interface(toy: Any, cls: type) -> dict[str, Any]:
    return {}


@mutant("SRModel", "test_class_of_the_entry")
def another_class(toy: Any, cls: type) -> dict[str, Any]:
    from zoo.interfaces import SRModel

    namespace = {key: value for key, value in vars(cls).items() if not key.startswith("_abc")}
    return {"build": type("Other", (SRModel,), namespace)}


@mutant("SRModel", "test_verbs_take_what_the_interface_says")
def no_seed(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, *, scale=None, prompt=None, tile="auto", progress=False):
            return super().upscale(images, scale=scale)

    return Broken


@mutant("SRModel", "test_verbs_take_what_the_interface_says")
def another_default(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, *, scale=4, prompt=None, seed=0, tile="auto", progress=False):
            return super().upscale(images, scale=scale)

    return Broken


@mutant("SRModel", "test_options_are_in_force")
def deaf_to_options(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def __init__(self, request):
            super().__init__(request)
            self.options = {"sharpness": 0.3}

    return Broken


@mutant("SRModel", "test_import_is_light", model="toy-heavy")
def heavy_import(toy: Any, cls: type) -> dict[str, Any]:
    return {}


@mutant("SRModel", "test_check_input", model="toy-off")
def another_output_than_published(toy: Any, cls: type) -> dict[str, Any]:
    return {}


@mutant("SRModel", "test_weights_are_ready_for_use")
def in_training_mode(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def __init__(self, request):
            super().__init__(request)
            self.module = toy.torch.nn.Linear(2, 2)

    return Broken


@mutant("SRModel", "test_weights_are_ready_for_use")
def half_precision(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def __init__(self, request):
            super().__init__(request)
            self.module = toy.torch.nn.Linear(2, 2).half().eval()

    return Broken


@mutant("SRModel", "test_needs_no_network_and_prints_nothing")
def talkative(toy: Any, cls: Any) -> type:
    return after("upscale", lambda made: print("done") or made)(toy, cls)


@mutant("SRModel", "test_needs_no_network_and_prints_nothing")
def calls_home(toy: Any, cls: Any) -> type:
    def call(made: Any) -> Any:
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=0.1)
        except OSError:
            return made

    return after("upscale", call)(toy, cls)


@mutant("SRModel", "test_same_again")
def chance_without_seed(toy: Any, cls: Any) -> type:
    return after("upscale", lambda made: (made + 1e-2 * toy.torch.rand_like(made)).clamp(0, 1))(
        toy, cls
    )


@mutant("VLAligner", "test_saved_and_loaded")
def saves_zeros(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def state(self):
            return {key: 0 * value for key, value in super().state().items()}

    return Broken


@mutant("VLAligner", "test_saved_and_loaded")
def saves_nothing(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def state(self):
            return {}

    return Broken


@mutant("Quantizer", "test_saved_and_loaded")
def loads_random_weights(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Rounded):
        @classmethod
        def open(cls, request):
            made = super().open(request)
            made.module.lm_head.weight.data.normal_()
            return made

    return {"Rounded": Broken}


@mutant("SRModel", "test_dtype")
def deaf_to_the_dtype(toy: Any, cls: Any) -> type:
    return _with_module(toy, cls, lambda module, request: module.to(request.device))


@mutant("SRModel", "test_device")
def deaf_to_the_device(toy: Any, cls: Any) -> type:
    return _with_module(
        toy, cls, lambda module, request: module.to(getattr(toy.torch, request.dtype))
    )


@mutant("SRModel", "test_device")
def a_part_stays_behind(toy: Any, cls: Any) -> type:
    class Sum(toy.torch.nn.Linear):
        def _apply(self, fn, recurse=True):
            bias = self.bias.data
            super()._apply(fn, recurse)
            self.bias.data = bias
            return self

    return _with_module(toy, cls, lambda module, request: Sum(2, 2).eval().to(request.device))


@mutant("SRModel", "test_device")
def never_moves(toy: Any, cls: Any) -> type:
    def place(module: Any, request: Any) -> Any:
        return module.to(request.device, getattr(toy.torch, request.dtype))

    return type("Broken", (_with_module(toy, cls, place),), {"to": lambda self, device: self})


def _with_module(toy: Any, cls: Any, place: Callable[[Any, Any], Any]) -> type:
    class Broken(cls):
        def __init__(self, request):
            super().__init__(request)
            self.module = place(toy.torch.nn.Linear(2, 2).eval(), request)

        def state(self):
            return {}

    return Broken


@mutant("SRModel", "test_export")
def exports_any_format(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def export(self, path, format="onnx", **options):
            path.write_text(format, "utf-8")
            return path

    return Broken


@mutant("VLAligner", "test_saved_and_loaded")
def opens_something_else(toy: Any, cls: Any) -> type:
    class Broken(cls):
        @classmethod
        def from_pretrained(cls, path, **options):
            return path

    return Broken


# --- super-resolution -----------------------------------------------------------------------------


@variant("SRModel")
def free_scale(toy: Any, cls: Any) -> type:
    from zoo.errors import OptionError
    from zoo.images import scaled, transform
    from zoo.interfaces import ScaleRange

    class Free(cls):
        scales = ScaleRange(1, 3.5, 2.5)

        def upscale(
            self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False
        ):  # fmt: skip
            scale = self.default_scale if scale is None else scale
            if scale not in self.scales or prompt is not None:
                raise OptionError(f"scale={scale!r}: expected {self.scales}.")
            many = len(images) if isinstance(images, list) else 1
            with toy.track(max(many, 1), progress, "upscale") as advance:

                def enlarge(colours):
                    size = scaled(colours.shape[1], scale), scaled(colours.shape[2], scale)
                    advance()
                    return toy.F.interpolate(colours[None], size, mode="bilinear")[0]

                return transform(images, enlarge, scale=scale)

    return Free


@mutant("SRModel", "test_scales")
def a_range_without_its_default(toy: Any, cls: Any) -> type:
    from zoo.interfaces import ScaleRange

    return type("Broken", (free_scale(toy, cls),), {"scales": ScaleRange(1, 2, 4)})


@mutant("SRModel", "test_scales")
def another_default_scale(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"default_scale": 3})


@mutant("SRModel", "test_tile")
def tiles_of_any_multiple(toy: Any, cls: Any) -> type:
    class Broken(cls):
        tile, multiple = 8, 4

        def upscale(self, images, *, tile="auto", **rest):
            if tile not in ("auto", None) and not (isinstance(tile, int) and tile > 0):
                raise toy.OptionError("tile")
            return super().upscale(images, **rest)

    return Broken


@mutant("SRModel", "test_estimate")
def estimates_in_words(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"estimate": lambda self, size, **options: "not long"})


@mutant("SRModel", "test_estimate")
def estimates_one_size_for_all(toy: Any, cls: Any) -> type:
    from zoo.interfaces import Estimate

    return type("Broken", (cls,), {"estimate": lambda self, size, **o: Estimate(1, 1.0, 1, 1.0)})


@mutant("SRModel", "test_check_output")
def checks_another_scale(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def run_check(self, path):
            from zoo.images import read, to_tensor

            return {"output": self.upscale(to_tensor(read(path)), scale=3)}

    return Broken


def _arrays(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda made: change(made) if hasattr(made, "dtype") else made


returns("swaps_channels", "SRModel", "test_looks_like_the_input", "upscale",
        _arrays(lambda made: made[:, :, ::-1] if made.shape[-1] == 3 else made))  # fmt: skip
returns("a_tuple_for_a_list", "SRModel", "test_list", "upscale",
        lambda made: tuple(made) if isinstance(made, list) else made)  # fmt: skip
returns("out_of_order", "SRModel", "test_list", "upscale",
        lambda made: made[::-1] if isinstance(made, list) else made)  # fmt: skip
returns("no_alpha", "SRModel", "test_kind_of_image", "upscale",
        _arrays(lambda made: made[:, :, :3] if made.ndim == 3 else made))  # fmt: skip
returns("pil_for_everything", "SRModel", "test_kind_of_image", "upscale",
        lambda made: __import__("PIL.Image").Image.new("RGB", (24, 18)))  # fmt: skip
returns("one_row_less", "SRModel", "test_size_of_image", "upscale",
        _arrays(lambda made: made[:-1]))  # fmt: skip
returns("brighter_tensors", "SRModel", "test_kinds_agree", "upscale",
        lambda made: (made + 0.05).clamp(0, 1) if hasattr(made, "clamp") else made)  # fmt: skip
returns("nearly_opaque", "SRModel", "test_alpha", "upscale",
        _arrays(lambda made: made.clip(1, 250)))  # fmt: skip
returns("keeps_the_graph", "SRModel", "test_result_is_plain", "upscale",
        lambda made: made.requires_grad_() if hasattr(made, "clamp") else made)  # fmt: skip
returns("beyond_one", "SRModel", "test_result_is_plain", "upscale",
        lambda made: made * 2 if hasattr(made, "clamp") else made)  # fmt: skip


@mutant("SRModel", "test_scales")
def scales_are_a_list(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"scales": [2, 3, 4]})


@mutant("SRModel", "test_scales")
def a_scale_it_cannot_do(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, *, scale=None, **rest):
            return super().upscale(images, scale=2 if scale == 3 else scale, **rest)

    return Broken


@mutant("SRModel", "test_kind_of_image")
def writes_into_its_input(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, **rest):
            made = super().upscale(images, **rest)
            if hasattr(images, "dtype"):
                images[:] = 0
            return made

    return Broken


@mutant("SRModel", "test_seed")
def ignores_the_seed(toy: Any, cls: Any) -> type:
    def noisy(made: Any) -> Any:
        return made ^ (toy.torch.rand(made.shape) > 0.5).numpy() if made.dtype == "uint8" else made

    return after("upscale", noisy)(toy, cls)


@mutant("SRModel", "test_tile")
def tiles_are_cut_off(toy: Any, cls: Any) -> type:
    class Broken(cls):
        tile = 8

        def upscale(self, images, *, tile="auto", **rest):
            made = super().upscale(images, **rest)
            return made[: 2 * tile, : 2 * tile] if isinstance(tile, int) else made

    return Broken


@mutant("SRModel", "test_tile")
def any_tile_will_do(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"tile": 8})


@mutant("SRModel", "test_wrong_scale_is_refused")
def takes_the_nearest_scale(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, *, scale=None, **rest):
            return super().upscale(images, scale=scale if scale in self.scales else None, **rest)

    return Broken


@mutant("SRModel", "test_prompt")
def drops_the_prompt(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, *, prompt=None, **rest):
            return super().upscale(images, **rest)

    return Broken


@mutant("SRModel", "test_bad_image_is_refused")
def mends_nan(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, **rest):
            images = images.nan_to_num() if hasattr(images, "nan_to_num") else images
            return super().upscale(images, **rest)

    return Broken


@mutant("SRModel", "test_bad_image_is_refused")
def takes_float_arrays(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def upscale(self, images, **rest):
            if getattr(images, "dtype", None) == "float64":
                images = (images * 255).astype("uint8")
            return super().upscale(images, **rest)

    return Broken


def _no_progress(verb: str) -> Callable[[Any, Any], type]:
    def make(toy: Any, cls: Any) -> type:
        def silent(self, *args, progress=False, **rest):
            return getattr(cls, verb)(self, *args, **rest)

        return type("Broken", (cls,), {verb: silent})

    return make


def _half_way(verb: str) -> Callable[[Any, Any], type]:
    def make(toy: Any, cls: Any) -> type:
        def stops(self, *args, progress=False, **rest):
            def half(done: int, total: int) -> None:
                progress(done, 2 * total)

            return getattr(cls, verb)(self, *args, progress=progress and half, **rest)

        return type("Broken", (cls,), {verb: stops})

    return make


def _unstoppable(verb: str) -> Callable[[Any, Any], type]:
    def make(toy: Any, cls: Any) -> type:
        def deaf(self, *args, progress=False, **rest):
            def guarded(done: int, total: int) -> None:
                try:
                    progress(done, total)
                except Exception:
                    return

            return getattr(cls, verb)(self, *args, progress=progress and guarded, **rest)

        return type("Broken", (cls,), {verb: deaf})

    return make


for _interface, _verb in {
    "SRModel": "upscale",
    "VLAligner": "align",
    "Quantizer": "quantize",
    "DataSelector": "fit",
    "Detector": "finetune",
    "QAGenerator": "train_reader",
}.items():
    for _what in (_no_progress, _half_way, _unstoppable):
        _make: Any = _what(_verb)
        _make.__name__ = f"{_verb}{_what.__name__}"
        mutant(_interface, "test_progress")(_make)


# --- vision-language alignment --------------------------------------------------------------------

returns("double_precision", "VLAligner", "test_similarity", "similarity",
        lambda made: made.astype("float64"))  # fmt: skip
returns("transposed", "VLAligner", "test_similarity", "similarity", lambda made: made.T)
returns("distances", "VLAligner", "test_higher_is_better", "similarity", lambda made: -made)
returns("normalised_over_texts", "VLAligner", "test_each_pair_stands_alone", "similarity",
        lambda made: made - made.mean(1, keepdims=True))  # fmt: skip
returns("any_norm", "VLAligner", "test_embeddings", "embed_images", lambda made: 2 * made)
returns("any_norm_of_texts", "VLAligner", "test_embeddings", "embed_texts", lambda made: 2 * made)
returns("another_space", "VLAligner", "test_embeddings", "embed_texts", lambda made: made[:, :-1])
returns("returns_none", "VLAligner", "test_similarity", "align", lambda made: None)


@mutant("VLAligner", "test_similarity")
def centres_the_callers_features(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, **rest):
            images -= images.mean(0)
            return super().align(images, texts, **rest)

    return Broken


@mutant("VLAligner", "test_align_again")
def random_start(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, **rest):
            super().align(images, texts, **rest)
            self._map = self._map + 0.3 * toy.torch.randn(self._map.shape).numpy()  # type: ignore[has-type]
            return self

    return Broken


@mutant("VLAligner", "test_labels")
def no_labels(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, *, labels=None, **rest):
            return super().align(images, texts, **rest)

    return Broken


@mutant("VLAligner", "test_labels")
def labels_the_other_way_round(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, *, labels=None, **rest):
            labels = labels and [(label + 1) % 4 for label in labels]
            return super().align(images, texts, labels=labels, **rest)

    return Broken


returns("scores_for_probabilities", "VLAligner", "test_predict_proba", "predict_proba",
        lambda made: made * 2)  # fmt: skip
returns("probabilities_of_the_opposite", "VLAligner", "test_predict_proba", "predict_proba",
        lambda made: (1 - made) / (made.shape[1] - 1))  # fmt: skip


@mutant("VLAligner", "test_classes")
def forgets_its_classes(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"classes": ()})


@mutant("VLAligner", "test_classes")
def sorts_its_classes(toy: Any, cls: Any) -> type:
    return type(
        "Broken", (cls,), {"classes": property(lambda s: tuple(sorted(cls.classes.fget(s))))}
    )


@mutant("VLAligner", "test_wrong_pairs_are_refused")
def pairs_what_there_is(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, *, labels=None, **rest):
            if labels is None:
                count = min(len(images), len(texts))
                images, texts = images[:count], texts[:count]
            return super().align(images, texts, labels=labels, **rest)

    return Broken


@mutant("VLAligner", "test_wrong_pairs_are_refused")
def labels_from_the_end(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, *, labels=None, **rest):
            if labels is not None:
                labels = [label % len(texts) for label in labels]
            return super().align(images, texts, labels=labels, **rest)

    return Broken


@mutant("VLAligner", "test_wrong_features_are_refused")
def any_features(toy: Any, cls: Any) -> dict[str, Any]:
    return {"_finite": lambda rows: toy.np.nan_to_num(rows).astype("float32")}


@mutant("VLAligner", "test_raw_rows")
def stumbles_over_raw_rows(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, **rest):
            return super().align(images.astype("float32"), texts, **rest)

    return Broken


@mutant("VLAligner", "test_raw_rows")
def takes_lists_alone(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, **rest):
            if texts is None:
                raise toy.InputError("images: expected a list of images, and texts.")
            return super().align(images, texts, **rest)

    return Broken


@mutant("VLAligner", "test_raw_rows")
def numbers_the_folders(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def align(self, images, texts=None, **rest):
            super().align(images, texts, **rest)
            if texts is None:
                numbers = [str(i) for i, _ in enumerate(self.classes)]
                self.config = {**self.config, "classes": numbers}  # type: ignore[has-type]
            return self

    return Broken


@mutant("VLAligner", "test_before_align")
def untrained_answers(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def similarity(self, images, texts):
            if self._map is None:
                return toy.np.full((len(images), len(texts)), toy.np.nan, "float32")
            return super().similarity(images, texts)

    return Broken


# --- quantization ---------------------------------------------------------------------------------


def _opened(change: Callable[[Any, Any, Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """Another ``opened``: ``change`` gets (module, original, what ``opened`` gives of it)."""

    def replaced(toy: Any) -> dict[str, Any]:
        real = toy.opened
        return {"opened": lambda model: change(toy, model, real(model))}

    return replaced


@mutant("Quantizer", "test_original_is_unchanged")
def quantizes_in_place(toy: Any, cls: Any) -> dict[str, Any]:
    def same(toy: Any, model: Any, found: Any) -> Any:
        return toy.deepcopy(model).eval() if model.training else model, *found[1:]

    def in_place(toy: Any, model: Any, found: Any) -> Any:
        model.lm_head.weight.data *= 1.01
        return same(toy, model, found)

    return _opened(in_place)(toy)


@mutant("Quantizer", "test_original_is_unchanged")
def changes_the_originals_mode(toy: Any, cls: Any) -> dict[str, Any]:
    return _opened(lambda toy, model, found: (model.eval(), found)[1])(toy)


@mutant("Quantizer", "test_original_is_unchanged")
def freezes_the_original(toy: Any, cls: Any) -> dict[str, Any]:
    return _opened(lambda toy, model, found: (model.requires_grad_(False), found)[1])(toy)


@mutant("Quantizer", "test_original_is_unchanged")
def leaves_a_hook(toy: Any, cls: Any) -> dict[str, Any]:
    def hooked(toy: Any, model: Any, found: Any) -> Any:
        model.model.register_forward_pre_hook(lambda *_: None)
        return found

    return _opened(hooked)(toy)


@mutant("Quantizer", "test_is_another_model")
def shares_the_embedding(toy: Any, cls: Any) -> dict[str, Any]:
    def shared(toy: Any, model: Any, found: Any) -> Any:
        found[0].model.embed_tokens.weight = model.model.embed_tokens.weight
        return found

    return _opened(shared)(toy)


def _rounded(**changes: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda toy, cls: {"Rounded": type("Broken", (toy.Rounded,), changes)}


def _codes(change: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """Different integers in the layers."""

    def replaced(toy: Any) -> dict[str, Any]:
        class Broken(toy.Linear8):
            @classmethod
            def of(cls, layer, largest):
                made = super().of(layer, largest)
                made.codes.copy_(change(made.codes.float()))
                return made

        return {"Linear8": Broken}

    return replaced


@mutant("Quantizer", "test_is_another_model")
def result_in_training_mode(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Rounded):
        def __init__(self, *args):
            super().__init__(*args)
            self.module.train()

    return {"Rounded": Broken}


@mutant("Quantizer", "test_is_another_model")
def quantized_is_a_quantizer(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(interface="Quantizer")(toy, cls)


@mutant("Quantizer", "test_called_like_the_original")
def only_logits(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(__call__=lambda self, *a, **k: self.module(*a, **k).logits)(toy, cls)


@mutant("Quantizer", "test_called_like_the_original")
def no_keywords(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(__call__=lambda self, ids: self.module(ids))(toy, cls)


@mutant("Quantizer", "test_called_like_the_original")
def too_few_bits(toy: Any, cls: Any) -> dict[str, Any]:
    return _codes(lambda codes: (codes / 127).round() * 127)(toy)


@mutant("Quantizer", "test_is_quantized")
def rounds_nothing(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Linear8):
        @classmethod
        def of(cls, layer, largest):
            made = super().of(layer, 0.0)
            made.weight = lambda: layer.weight
            return made

    return {"Linear8": Broken}


@mutant("Quantizer", "test_generate")
def new_tokens_only(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(
        generate=lambda self, ids, **k: self.module.generate(ids, **k)[:, ids.shape[1] :]
    )(toy, cls)


def _report(**changes: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda toy, cls: _rounded(
        report=lambda self: {**self.config["report"], **changes}
    )(toy, cls)  # fmt: skip


_reports: tuple[tuple[str, dict[str, Any]], ...] = (
    ("report_with_a_set", {"layers": {1, 2}}),
    ("report_without_layers", {"layers": {}}),
    ("bytes_after_1", {"bytes_after": 1}),
    ("bytes_before_1000000", {"bytes_before": 1_000_000}),
)
for _name, _changes in _reports:
    _make = _report(**_changes)
    _make.__name__ = _name
    mutant("Quantizer", "test_report")(_make)


@mutant("Quantizer", "test_source")
def keeps_no_tokenizer(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(save_files=lambda self, folder: self.module.config.save_pretrained(folder))(
        toy, cls
    )


@mutant("Quantizer", "test_source")
def ignores_the_tokenizer(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Rounded):
        def __init__(self, made_from, network, config, tokenizer):
            super().__init__(made_from, network, config, None)

    return {"Rounded": Broken}


@mutant("Quantizer", "test_source")
def forgets_the_licence(toy: Any, cls: Any) -> dict[str, Any]:
    return _opened(lambda toy, model, found: (found[0], {"id": "x", "revision": None}, found[2]))(
        toy
    )


@mutant("Quantizer", "test_source")
def forgets_what_it_was(toy: Any, cls: Any) -> dict[str, Any]:
    return _rounded(source_model={})(toy, cls)


@mutant("Quantizer", "test_folder")
def leaves_the_folders_tokenizer(toy: Any, cls: Any) -> dict[str, Any]:
    return _opened(lambda toy, model, found: (*found[:2], None))(toy)


@mutant("Quantizer", "test_folder")
def takes_modules_alone(toy: Any, cls: Any) -> dict[str, Any]:
    real = toy.opened

    def opened(model: Any) -> Any:
        if isinstance(model, str | Path):
            raise toy.InputError(f"{model} is no module.")
        return real(model)

    return {"opened": opened}


def _calibrated(change: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], dict[str, Any]]:
    def make(toy: Any, cls: Any) -> dict[str, Any]:
        real = toy.token_ids
        return {"token_ids": lambda given, tokenizer: change(real, given, tokenizer)}

    return make


for _name, _caught, _change in (
    ("ignores_ids", "test_calibration",
     lambda real, given, tokenizer: real(given, tokenizer) * 0 + 7),
    ("ignores_texts", "test_calibration",
     lambda real, given, tokenizer: real(given if hasattr(given, "shape") else None, tokenizer)),
    ("texts_of_its_own", "test_calibration",
     lambda real, given, tokenizer: real(["hello"] if given is None else given, tokenizer)),
    ("texts_without_a_tokenizer", "test_calibration",
     lambda real, given, tokenizer: real(given, tokenizer or (_ for _ in ()).throw(TypeError()))),
    ("any_calibration", "test_wrong_calibration_is_refused",
     lambda real, given, tokenizer: real(given if hasattr(given, "shape") else None, tokenizer)),
):  # fmt: skip
    _make = _calibrated(_change)
    _make.__name__ = _name
    mutant("Quantizer", _caught)(_make)


@mutant("Quantizer", "test_quantize_again")
def random_rounding(toy: Any, cls: Any) -> dict[str, Any]:
    return _codes(lambda codes: codes * (toy.torch.rand_like(codes) > 0.1))(toy)


@mutant("Quantizer", "test_quantize_again")
def ignores_quantizes_seed(toy: Any, cls: Any) -> dict[str, Any]:
    def quantize(self, model, calibration=None, *, seed=0, **rest):
        seed = int(toy.torch.randint(1000, ()))
        return cls.quantize(self, model, calibration, seed=seed, **rest)

    return {CLASSES["Quantizer"]: type("Broken", (cls,), {"quantize": quantize}), "ROWS": 2}


@mutant("Quantizer", "test_schemes")
def schemes_are_a_list(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"schemes": ["w8a8", "w8a16"]})


@mutant("Quantizer", "test_every_scheme")
def a_scheme_it_cannot_do(toy: Any, cls: Any) -> type:
    class Broken(cls):
        schemes = (*cls.schemes, "w4a4")

        def quantize(self, model, calibration=None, *, scheme=None, **rest):
            if scheme == "w4a4":
                raise toy.OptionError("not this one")
            return super().quantize(model, calibration, scheme=scheme, **rest)

    return Broken


@mutant("Quantizer", "test_the_first_scheme_is_the_default")
def the_last_scheme_is_the_default(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def quantize(self, model, calibration=None, *, scheme=None, **rest):
            scheme = self.schemes[-1] if scheme is None else scheme
            return super().quantize(model, calibration, scheme=scheme, **rest)

    return Broken


@mutant("Quantizer", "test_wrong_scheme_is_refused")
def some_scheme(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def quantize(self, model, calibration=None, *, scheme=None, **rest):
            return super().quantize(model, calibration, scheme="w8a16", **rest)

    return Broken


@mutant("Quantizer", "test_what_is_no_model_is_refused")
def stumbles_over_what_is_no_model(toy: Any, cls: Any) -> dict[str, Any]:
    return {"opened": lambda model: (toy.deepcopy(model).eval(), {}, None)}


# --- data selection -------------------------------------------------------------------------------


def _weights(change: Callable[[Any], Any]) -> Callable[[Any, Any], type]:
    return lambda toy, cls: type(
        "Broken", (cls,), {"weights": property(lambda self: change(cls.weights.fget(self)))}
    )


_wrong_weights: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("weights_of_double_precision", "test_weights", lambda w: w.astype("float64")),
    ("weights_above_one", "test_weights", lambda w: 3 * w),
    ("a_column_of_weights", "test_weights", lambda w: w[:, None]),
    ("the_far_weigh_more", "test_what_is_useful_weighs_more", lambda w: 1 - w),
)
for _name, _caught, _weigh in _wrong_weights:
    _make = _weights(_weigh)
    _make.__name__ = _name
    mutant("DataSelector", _caught)(_make)

returns("lightest_first", "DataSelector", "test_select", "select", lambda made: made[::-1].copy())
returns("indices_of_32_bits", "DataSelector", "test_select", "select",
        lambda made: made.astype("int32"))  # fmt: skip


@mutant("DataSelector", "test_select")
def half_for_every_fraction(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def select(self, *, fraction=None, k=None):
            return super().select(fraction=fraction and 0.5, k=k)

    return Broken


@mutant("DataSelector", "test_select_without_a_number")
def estimates_the_first_rows(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def select(self, *, fraction=None, k=None):
            if fraction is None and k is None:
                return toy.np.arange(3)
            return super().select(fraction=fraction, k=k)

    return Broken


@mutant("DataSelector", "test_weights")
def ids_of_a_few_rows(toy: Any, cls: Any) -> type:
    return type("Broken", (cls,), {"ids": ("a", "b")})


@mutant("DataSelector", "test_weights")
def fit_returns_the_weights(toy: Any, cls: Any) -> type:
    return after("fit", lambda made: made.weights)(toy, cls)


@mutant("DataSelector", "test_weights")
def fit_changes_the_data(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def fit(self, train, target, **rest):
            train[0][0].mul_(2)
            return super().fit(train, target, **rest)

    return Broken


@mutant("DataSelector", "test_ties")
def ties_from_the_end(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def select(self, *, fraction=None, k=None):
            count = len(super().select(fraction=fraction, k=k))
            return toy.np.lexsort((-toy.np.arange(len(self.weights)), -self.weights))[:count]

    return Broken


@mutant("DataSelector", "test_seed")
def goes_on_from_the_last_fit(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def fit(self, train, target, **rest):
            before = self._weights  # type: ignore[has-type]
            super().fit(train, target, **rest)
            if before is not None:
                self._weights = (self._weights + before**2) / 2  # type: ignore[has-type]
            return self

    return Broken


@mutant("DataSelector", "test_wrong_selection_is_refused")
def takes_what_there_is(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def select(self, *, fraction=None, k=None):
            k = round(len(self.weights) * fraction) if fraction == fraction and fraction else k or 0
            return toy.np.argsort(-self.weights, kind="stable")[: max(k, 0)]

    return Broken


@mutant("DataSelector", "test_empty_data_is_refused")
def nothing_is_enough(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def fit(self, train, target, **rest):
            if not len(train) or not len(target):
                self._weights = toy.np.zeros(len(train), "float32")
                return self
            return super().fit(train, target, **rest)

    return Broken


@mutant("DataSelector", "test_before_fit")
def weights_of_nothing(toy: Any, cls: Any) -> type:
    class Broken(cls):
        weights = property(lambda self: self._weights)

    return Broken


# --- detection ------------------------------------------------------------------------------------


def _boxes(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def one(found: Any) -> Any:
        return [one(f) for f in found] if isinstance(found, list) else replace(
            found, boxes=change(found.boxes)
        )  # fmt: skip

    return one


returns("half_pixels", "Detector", "test_kind_of_image", "detect",
        _boxes(lambda boxes: boxes.astype("float64")))  # fmt: skip
returns("centre_and_size", "Detector", "test_finds", "detect",
        _boxes(lambda b: __import__("numpy").concatenate(
            [(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1)))  # fmt: skip
returns("corner_and_size", "Detector", "test_finds", "detect",
        _boxes(lambda b: b - [[0, 0, 1, 1]] * b[:, [0, 1, 0, 1]]))  # fmt: skip
returns("rows_before_columns", "Detector", "test_finds", "detect",
        _boxes(lambda boxes: boxes[:, [1, 0, 3, 2]]))  # fmt: skip
returns("in_another_scale", "Detector", "test_finds", "detect",
        _boxes(lambda boxes: boxes / 64))  # fmt: skip
returns("one_for_a_list_of_many", "Detector", "test_list", "detect",
        lambda found: found[0] if isinstance(found, list) and found else found)  # fmt: skip
returns("list_out_of_order", "Detector", "test_list", "detect",
        lambda found: found[::-1] if isinstance(found, list) else found)  # fmt: skip


def _found(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Different fields in each ``Detections``."""

    def one(found: Any) -> Any:
        if isinstance(found, list):
            return [one(f) for f in found]
        return replace(found, **{name: change(found) for name, change in changes.items()})

    return one


returns("scores_of_double_precision", "Detector", "test_kind_of_image", "detect",
        _found(scores=lambda found: found.scores.astype("float64")))  # fmt: skip
returns("scores_that_rise", "Detector", "test_threshold", "detect",
        _found(scores=lambda f: 0.9 + 0.01 * __import__("numpy").arange(len(f), dtype="float32"),
               boxes=lambda f: f.boxes))  # fmt: skip
returns("labels_of_32_bits", "Detector", "test_kind_of_image", "detect",
        _found(labels=lambda found: found.labels.astype("int32")))  # fmt: skip
returns("labels_without_a_name", "Detector", "test_threshold", "detect",
        _found(labels=lambda found: found.labels + len(found.names)))  # fmt: skip
returns("boxes_beyond_the_image", "Detector", "test_threshold", "detect",
        _boxes(lambda boxes: boxes + __import__("numpy").float32([0, 0, 30, 30])))  # fmt: skip
returns("names_of_another_model", "Detector", "test_names", "detect",
        _found(names=lambda found: ("person", *found.names)))  # fmt: skip
returns("finetune_returns_none", "Detector", "test_learns", "finetune", lambda made: None)


@variant("Detector")
def detects_alone(toy: Any, cls: Any) -> type:
    from zoo.interfaces import Detector

    return type("Only", (cls,), {"pretrain": Detector.pretrain, "finetune": Detector.finetune})


@mutant("Detector", "test_names")
def names_are_a_list(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def __init__(self, request):
            super().__init__(request)
            self.names = [*self.names]  # type: ignore[has-type]

    return Broken


@mutant("Detector", "test_learns")
def keeps_its_own_names(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, *args, **rest):
            super().finetune(*args, **rest)
            self.names = ("bright",)
            return self

    return Broken


@mutant("Detector", "test_learns")
def learns_nothing(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, *args, **rest):
            super().finetune(*args, **rest)
            self.level = 0.99
            return self

    return Broken


@mutant("Detector", "test_learns")
def writes_into_the_labels(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, images, labels, **rest):
            super().finetune(images, labels, **rest)
            if isinstance(labels, list):
                labels[0].boxes[:] = 0
            return self

    return Broken


@mutant("Detector", "test_annotations")
def reads_no_files(toy: Any, cls: Any) -> dict[str, Any]:
    return {"pairs": lambda images, labels: (images, labels)}


@mutant("Detector", "test_how_long")
def ignores_steps(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, *args, steps=None, epochs=None, **rest):
            if (steps is not None and steps < 1) or epochs == 0 or (steps and epochs):
                raise toy.OptionError("epochs, steps")
            return super().finetune(*args, epochs=epochs, **rest)

    return Broken


@mutant("Detector", "test_how_long")
def any_number_of_epochs(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, *args, steps=None, epochs=None, **rest):
            return super().finetune(*args, steps=steps if steps and steps > 0 else None, **rest)

    return Broken


@mutant("Detector", "test_pretrain")
def pretrained_by_chance(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def pretrain(self, *args, **rest):
            made = super().pretrain(*args, **rest)
            self.level = float(toy.torch.rand(()))
            return made

    return Broken


@mutant("Detector", "test_size_of_image")
def stumbles_where_nothing_is(toy: Any, cls: Any) -> type:
    return after("detect", lambda found: (found.scores.max(), found)[1])(toy, cls)


@mutant("Detector", "test_kinds_agree")
def shrinks_pil_images(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def detect(self, images, *, threshold=None):
            if hasattr(images, "resize") and hasattr(images, "mode"):
                images = images.resize((images.width // 2, images.height // 2))
            return super().detect(images, threshold=threshold)

    return Broken


@mutant("Detector", "test_threshold")
def its_own_threshold(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def detect(self, images, *, threshold=None):
            return super().detect(images, threshold=0.0)

    return Broken


@mutant("Detector", "test_wrong_threshold_is_refused")
def any_threshold(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def detect(self, images, *, threshold=None):
            return super().detect(
                images, threshold=threshold if 0 <= (threshold or 0) <= 1 else 0.5
            )

    return Broken


@mutant("Detector", "test_finetune_again")
def tuned_by_chance(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, *args, **rest):
            super().finetune(*args, **rest)
            self.level = 0.15 * float(toy.torch.rand(1))  # within the ground's grain
            return self

    return Broken


@mutant("Detector", "test_tuned_saved_and_loaded")
def forgets_what_it_learnt(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def state(self):
            return {"level": toy.torch.tensor(0.95, dtype=toy.torch.float64)}

    return Broken


@mutant("Detector", "test_wrong_labels_are_refused")
def labels_for_some(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def finetune(self, images, labels, **rest):
            count = min(len(images), len(labels))
            return super().finetune(images[:count], labels[:count], **rest)

    return Broken


returns("report_of_arrays", "Detector", "test_pretrain", "pretrain",
        lambda report: {"mean": __import__("numpy").float32(report["mean"])})  # fmt: skip


@mutant("Detector", "test_bad_image_is_refused")
def looks_at_nan(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def detect(self, images, *, threshold=None):
            images = images.nan_to_num() if hasattr(images, "nan_to_num") else images
            return super().detect(images, threshold=threshold)

    return Broken


# --- question-answer generation -------------------------------------------------------------------


def _first(**changes: Any) -> Callable[[Any], Any]:
    def change(made: Any) -> Any:
        if isinstance(made, list):
            return [change(one) for one in made]
        return replace(
            made, pairs=tuple(replace(p, **changes) for p in made.pairs[:1]) + made.pairs[1:]
        )

    return change


returns("an_empty_answer", "QAGenerator", "test_pairs", "generate", _first(answer=" "))
returns("a_pair_twice", "QAGenerator", "test_pairs", "generate",
        lambda made: replace(made, pairs=made.pairs + made.pairs[:1]))  # fmt: skip
returns("a_node_that_is_not", "QAGenerator", "test_graph", "generate", _first(nodes=("nowhere",)))
returns("an_edge_to_nowhere", "QAGenerator", "test_graph", "generate",
        lambda made: replace(made, graph={**made.graph, "edges": [
            {"source": "s0", "target": "nowhere", "role": "next"}]}))  # fmt: skip
returns("coverage_of_pairs", "QAGenerator", "test_coverage", "generate",
        lambda made: replace(made, coverage=len(made) / 10))  # fmt: skip
returns("one_for_a_list", "QAGenerator", "test_list", "generate",
        lambda made: made[0] if isinstance(made, list) and made else made)  # fmt: skip
returns("sets_out_of_order", "QAGenerator", "test_list", "generate",
        lambda made: made[::-1] if isinstance(made, list) else made)  # fmt: skip
_wrong_pairs: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a_pair_of_no_kind", {"kind": ""}),
    ("an_edge_that_is_not", {"edge": 1000}),
    ("a_step_before_the_first", {"step": -1}),
    ("an_answer_elsewhere", {"start": 0, "end": 3}),
    ("half_a_place", {"end": None}),
)
for _name, _changes in _wrong_pairs:
    returns(_name, "QAGenerator", "test_places", "generate", _first(**_changes))
returns("loses_the_text", "QAGenerator", "test_places", "generate",
        lambda made: replace(made, text=made.text.lower()))  # fmt: skip
returns("answers_with_none", "QAGenerator", "test_answer", "answer", lambda made: None)


@mutant("QAGenerator", "test_text_without_content")
def stumbles_over_nothing(toy: Any, cls: Any) -> type:
    return after("generate", lambda made: (made.pairs[0], made)[1])(toy, cls)


@mutant("QAGenerator", "test_what_is_no_text_is_refused")
def any_text(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def generate(self, text, *, seed=0):
            return super().generate(text if isinstance(text, list) else str(text))

    return Broken


@mutant("QAGenerator", "test_seed")
def questions_by_chance(toy: Any, cls: Any) -> type:
    import random

    def fewer(made: Any) -> Any:
        return replace(made, pairs=tuple(random.sample(made.pairs, len(made) - 1)))

    return after("generate", fewer)(toy, cls)


returns("a_picture_that_is_not", "QAGenerator", "test_illustrate", "illustrate",
        lambda files: (*files, "graph.png"))  # fmt: skip


@mutant("QAGenerator", "test_illustrate")
def a_picture_unsaid(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def illustrate(self, qa, folder, *, title=""):
            (folder / "graph.svg").write_text("<svg/>")
            return ()

    return Broken


@mutant("QAGenerator", "test_reader")
def reader_is_no_model(toy: Any, cls: Any) -> type:
    class Plain:
        def answer(self, question: str, text: str) -> str:
            return text

    return after("train_reader", lambda made: Plain())(toy, cls)


@mutant("QAGenerator", "test_reader_again")
def reader_by_chance(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Reader):
        def __init__(self, *args):
            import torch

            super().__init__(*args)
            self.place = int(torch.randint(1000, (1,)))

        def answer(self, question, text):
            return f"{self.place}"

    return {"Reader": Broken}


@mutant("QAGenerator", "test_reader_saved_and_loaded")
def reader_loads_as_generator(toy: Any, cls: Any) -> dict[str, Any]:
    return {"build": lambda request: cls(request)}


@mutant("QAGenerator", "test_reader_saved_and_loaded")
def reader_forgets(toy: Any, cls: Any) -> dict[str, Any]:
    class Broken(toy.Reader):
        def __init__(self, made_from, config=None):
            super().__init__(made_from, config)
            self.fresh = config is not None

        def answer(self, question, text):
            return super().answer(question, text) if self.fresh else "?"

    return {"Reader": Broken}


@mutant("QAGenerator", "test_reader_needs_questions")
def reader_of_nothing(toy: Any, cls: Any) -> type:
    class Broken(cls):
        def train_reader(self, qa, **rest):
            return super().train_reader(qa, **rest) if qa else toy.Reader(self, {"rare": {}})

    return Broken


# --- promises, and the mutants that break them ----------------------------------------------------

PROMISES: dict[str, dict[str, str]] = {
    "interfaces": {
        "One in, one out; a list in, a list out.": "a_tuple_for_a_list out_of_order",
        "Images come back as they went in": "pil_for_everything no_alpha brighter_tensors",
        "``progress``": "upscale_no_progress upscale_half_way upscale_unstoppable "
        "align_no_progress align_half_way align_unstoppable quantize_no_progress "
        "quantize_half_way quantize_unstoppable fit_no_progress fit_half_way fit_unstoppable "
        "finetune_no_progress finetune_half_way finetune_unstoppable train_reader_no_progress "
        "train_reader_half_way train_reader_unstoppable",
        "the same seed gives the same result": "ignores_the_seed chance_without_seed "
        "goes_on_from_the_last_fit random_start random_rounding ignores_quantizes_seed",
        "Arguments are not modified.": "writes_into_its_input fit_changes_the_data "
        "centres_the_callers_features",
        "A verb prints nothing and opens no connection.": "talkative calls_home",
    },
    "hookspecs": {"so keep it light": "heavy_import"},
    "BuildRequest.device": {"A torch device": "deaf_to_the_device"},
    "BuildRequest.dtype": {"for floating-point weights": "deaf_to_the_dtype "
                           "half_precision"},
    "Entry.class_": {"``module:Class`` of what ``zoo.load`` returns": "another_class"},
    "Model": {"device, saving and loading then work": "a_part_stays_behind in_training_mode"},
    "Model.interface": {"Name of the interface": "another_interface"},
    "Model.kind": {"what a saved folder holds": "reader_loads_as_generator"},
    "Model.options": {"The load options in force, defaults included.": "deaf_to_options"},
    "Model.config": {"from which a saved folder rebuilds it": "reader_forgets"},
    "Model.to": {"Move to a torch device; returns self.": "never_moves"},
    "Model.state": {"that ``save_pretrained`` writes": "saves_zeros saves_nothing"},
    "Model.save_pretrained": {"that ``zoo.load`` accepts": "loads_random_weights"},
    "Model.from_pretrained": {"same as ``zoo.load": "opens_something_else"},
    "Model.export": {"if the method supports it": "exports_any_format"},
    "Model.estimate": {"The cost of a run on this input": "estimates_in_words"},
    "Model.run_check": {"What ``zoo verify`` compares": "another_output_than_published"},
    # super-resolution
    "SRModel": {"``estimate(size)`` is the cost": "estimates_one_size_for_all"},
    "ScaleRange": {"any scale from ``min`` to ``max``": "a_range_without_its_default"},
    "SRModel.scales": {"integers, or a continuous range": "scales_are_a_list a_scale_it_cannot_do"},
    "SRModel.default_scale": {"The scale of ``upscale(scale=None)``": "another_default_scale"},
    "SRModel.multiple": {"Sides of a tile must be a multiple": "tiles_of_any_multiple"},
    "SRModel.tile": {"Side in input pixels of the tile": "any_tile_will_do"},
    "SRModel.upscale": {
        "the result is of the input's kind": "swaps_channels keeps_the_graph beyond_one",
        "scale times as large": "one_row_less",
        "any of ``scales``, else OptionError": "takes_the_nearest_scale",
        "(None: ``default_scale``)": "another_default no_seed",
        "if it accepts one (else OptionError)": "drops_the_prompt",
        "None for a single evaluation of the whole image": "tiles_are_cut_off",
        "Alpha is enlarged with the colours": "nearly_opaque",
        "Raises InputError for unusable images": "mends_nan takes_float_arrays",
    },
    "SRModel.run_check": {"the check image, enlarged with default options": "checks_another_scale"},
    # vision-language alignment
    "VLAligner.align": {
        "Fit on pairs; returns self, fitted.": "returns_none untrained_answers "
        "pairs_what_there_is",
        "a kind that the method does not support": "any_features stumbles_over_raw_rows",
        "A method for raw images also accepts": "takes_lists_alone numbers_the_folders",
        "indices into ``texts``": "no_labels labels_the_other_way_round labels_from_the_end",
    },
    "VLAligner.similarity": {
        "(N, M) float32": "double_precision transposed",
        "higher is better": "distances normalised_over_texts",
    },
    "VLAligner.classes": {"The texts of a fit with labels": "forgets_its_classes",
                          "in the order of the labels": "sorts_its_classes"},
    "VLAligner.predict_proba": {
        "Each row sums to 1": "scores_for_probabilities",
        "softmax of ``similarity / temperature``": "probabilities_of_the_opposite",
    },
    "VLAligner.embed_images": {"float32 of unit norm": "any_norm"},
    "VLAligner.embed_texts": {"float32 of unit norm": "any_norm_of_texts another_space"},
    # quantization
    "QuantizedModel": {"``interface`` stays None": "quantized_is_a_quantizer"},
    "QuantizedModel.tokenizer": {"it is saved with the weights": "ignores_the_tokenizer"},
    "QuantizedModel.source_model": {
        "The model that was quantized": "forgets_what_it_was",
        "``license``: as the original states it": "forgets_the_licence",
    },
    "QuantizedModel.save_files": {"Write the tokenizer's files": "keeps_no_tokenizer"},
    "QuantizedModel.__call__": {"same arguments and outputs": "only_logits no_keywords "
                                "too_few_bits"},
    "QuantizedModel.generate": {"same arguments and outputs": "new_tokens_only"},
    "QuantizedModel.report": {
        "JSON-like": "report_with_a_set",
        "``bytes_before``: all weights of the original": "bytes_before_1000000",
        "``bytes_after``: all that ``save_pretrained`` writes": "bytes_after_1",
        "``layers``": "report_without_layers",
    },
    "Quantizer": {"to a few bits": "rounds_nothing"},
    "Quantizer.schemes": {
        "Weight and activation bits": "schemes_are_a_list",
        "that ``quantize`` supports": "a_scheme_it_cannot_do",
    },
    "Quantizer.quantize": {
        "Hub id, folder, or the module itself": "takes_modules_alone "
        "stumbles_over_what_is_no_model",
        "``calibration``: texts, or (N, T) token ids": "ignores_ids ignores_texts any_calibration",
        "None: zoo's short texts": "texts_of_its_own",
        "None: the one next to the model": "leaves_the_folders_tokenizer",
        "Texts without a tokenizer raise InputError": "texts_without_a_tokenizer",
        "one of ``schemes``, else OptionError": "some_scheme",
        "None: the first": "the_last_scheme_is_the_default",
        "keeps its weights, modes and hooks": "quantizes_in_place changes_the_originals_mode "
        "freezes_the_original leaves_a_hook shares_the_embedding",
        "The result is in eval mode": "result_in_training_mode",
    },
    # data selection
    "DataSelector.ids": {"(N,) ids of the rows of ``train``": "ids_of_a_few_rows"},
    "DataSelector.fit": {
        "that serve the small ``target`` set": "the_far_weigh_more nothing_is_enough",
        "Returns self, fitted.": "fit_returns_the_weights",
    },
    "DataSelector.weights": {"(N,) float32 in [0, 1]": "weights_of_double_precision "
                             "weights_above_one a_column_of_weights weights_of_nothing"},
    "DataSelector.select": {
        "(k,) int64 indices": "indices_of_32_bits half_for_every_fraction",
        "heaviest first, ties by index": "lightest_first ties_from_the_end",
        "Give one of fraction and k": "takes_what_there_is",
        "as many as the method estimates": "estimates_the_first_rows",
    },
    # detection
    "Detections.boxes": {
        "(N, 4) float32": "half_pixels",
        "x1 y1 x2 y2": "centre_and_size corner_and_size rows_before_columns",
        "in pixels of the given image": "in_another_scale boxes_beyond_the_image "
        "shrinks_pil_images",
    },
    "Detections.scores": {
        "(N,) float32 in [0, 1]": "scores_of_double_precision",
        "descending": "scores_that_rise",
    },
    "Detections.labels": {"(N,) int64 into ``names``": "labels_of_32_bits labels_without_a_name"},
    "Detector.names": {"as in the ``names`` of its ``Detections``": "names_are_a_list "
                       "names_of_another_model"},
    "Detector.detect": {
        "``Detections`` for an image, a list of them for a list": "one_for_a_list_of_many "
        "list_out_of_order stumbles_where_nothing_is",
        "no scores below ``threshold``": "its_own_threshold",
        "Raises OptionError for a threshold outside [0, 1]": "any_threshold",
        "InputError for unusable images": "looks_at_nan",
    },
    "Detector.pretrain": {
        "returns a JSON-like report": "report_of_arrays pretrained_by_chance",
        "at least 1, not both (OptionError)": "any_number_of_epochs",
    },
    "Detector.finetune": {
        "Learn from labelled images": "learns_nothing writes_into_the_labels "
        "tuned_by_chance forgets_what_it_learnt",
        "returns self": "finetune_returns_none",
        "one ``Detections`` for each image of a list": "labels_for_some",
        "or a COCO JSON": "reads_no_files",
        "Afterwards ``names`` are the labels' names": "keeps_its_own_names",
        "``epochs``, ``steps``: as in ``pretrain``": "ignores_steps",
    },
    # question-answer generation
    "QAPair.nodes": {"Ids of the graph's nodes": "a_node_that_is_not"},
    "QAPair.kind": {"The question's type": "a_pair_of_no_kind"},
    "QAPair.edge": {"Index of the edge": "an_edge_that_is_not"},
    "QAPair.step": {"from 0": "a_step_before_the_first"},
    "QAPair.end": {
        "``text[start:end] == answer``": "an_answer_elsewhere",
        "both None": "half_a_place",
    },
    "QASet.graph": {'"edges"': "an_edge_to_nowhere"},
    "QASet.coverage": {"Share of the graph's nodes": "coverage_of_pairs"},
    "QASet.text": {"The given text":  "loses_the_text"},
    "QAGenerator.generate": {
        "the questions that the text's graph supports": "an_empty_answer stumbles_over_nothing "
        "questions_by_chance",
        "a list for a list": "one_for_a_list sets_out_of_order",
        "All questions differ": "a_pair_twice",
        "Raises InputError for anything but text": "any_text",
    },
    "QAGenerator.train_reader": {
        "a ``Model`` with ``answer(question, text) -> str``": "reader_is_no_model "
        "reader_by_chance",
        "Raises InputError if there are no questions": "reader_of_nothing",
    },
    "QAGenerator.answer": {"Answer with the bundled reader": "answers_with_none"},
    "QAGenerator.illustrate": {
        "to an existing folder": "a_picture_that_is_not",
        "returns the files": "a_picture_unsaid",
    },
}  # fmt: skip
"""Where in the host's text -> the promise, word for word -> the mutants that break it."""


# --- the run --------------------------------------------------------------------------------------


def _suite(
    interface: str, model: str, replacements: dict[str, Any], toy: Any, only: str = ""
) -> type:
    """The suite on a model; with ``only``, that one test of it: collecting all would take longer
    than running these.
    """
    from zoo import testing

    def broken(self: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in replacements.items():
            monkeypatch.setattr(toy, name, value)

    base = getattr(testing, f"{interface}Suite")
    others = [name for name in dir(base) if name.startswith("test_") and only not in ("", name)]
    fixture = pytest.fixture(autouse=True)(broken)
    return type("Suite", (base,), {**dict.fromkeys(others), "name": model, "broken": fixture})


def _define() -> None:
    """The test classes: the six models, their variants, then the mutants."""
    for interface, model in TOYS.items():
        toy = import_module(model.replace("-", "_") + ".model")
        globals()[f"TestGood{interface}"] = _suite(interface, model, {}, toy)
        for name, (of, make) in VARIANTS.items():
            if of == interface:
                changed = {CLASSES[interface]: make(toy, getattr(toy, CLASSES[interface]))}
                globals()[f"TestGood_{name}"] = _suite(interface, model, changed, toy)
        for name, broken in MUTANTS.items():
            if broken.interface == interface:
                made = broken.make(toy, getattr(toy, CLASSES[interface]))
                globals()[f"Test_{name}"] = _suite(
                    interface, broken.model or model, made, toy, broken.caught_by
                )


class Outcomes:
    """Records the outcome of every test for every model."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, suite, test = report.nodeid.split("::", 2)
        tests = self.found.setdefault(suite, {})
        if report.outcome != "passed" or report.when == "call":
            tests[test] = report.outcome if tests.get(test) != "failed" else "failed"


if os.environ.get("ZOO_TEST_MUTANTS"):
    _define()

if __name__ == "__main__":
    outcomes = Outcomes()
    status = pytest.main(
        [__file__, "-q", "-p", "no:cacheprovider", "-p", "no:logging", "-W", "error",
         "--import-mode=importlib",
         "--tb=short" if "-v" in sys.argv else "--tb=no", "-c", os.devnull,
         "--rootdir", str(Path(__file__).parent)],
        plugins=[outcomes],
    )  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps({"status": int(status), **outcomes.found}), "utf-8")
