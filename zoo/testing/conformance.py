"""What every model of an interface must do: suites that a plugin's author runs with pytest.

    from zoo.testing import SRModelSuite

    class TestMyModel(SRModelSuite):
        name = "my-model"

That is a whole test file. A model that needs more to be loaded sets ``load_with`` (keywords of
``zoo.load``) or overrides ``load``; where the sample data does not suit it, its fixture is
overridden (``pairs``, ``network``, ``task``, ``scenes``, ``text``). Further tests of the author's
own are ordinary methods; they too may ask for ``model`` and ``ready``.

Everything here follows from ``zoo.interfaces``; nothing is asked of a model's quality beyond what a
toy shows: that higher is better, that what is useful weighs more.
"""

from __future__ import annotations

import inspect
import json
import math
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ..errors import InputError, NotReadyError, OptionError, OutputError, ZooError
from ..interfaces import (
    INTERFACES,
    Detections,
    Model,
    QAPair,
    QASet,
    QuantizedModel,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..entry import Entry, Option

HEAVY = (
    "torch", "numpy", "PIL", "transformers", "diffusers", "timm", "open_clip", "scipy", "sklearn",
    "skimage", "pandas", "cv2", "matplotlib", "onnx", "onnxruntime", "tensorflow", "jax",
)  # fmt: skip
"""What importing a plugin's package may not import: `zoo info` and every first use would wait."""


class ModelSuite:
    """What holds for whatever ``zoo.load`` returns; the suite of each interface builds on it."""

    name: ClassVar[str] = ""
    """The model, as ``zoo.load`` takes it."""
    load_with: ClassVar[Mapping[str, Any]] = {}
    """Further keywords of ``zoo.load``, such as a small ``base``."""
    interface: ClassVar[str] = ""

    def load(self, **options: Any) -> Any:
        """A model of its own, not shared with other tests."""
        from .. import load

        assert self.name, f"set {type(self).__name__}.name to the model's name"
        return load(self.name, **{"device": "cpu", **self.load_with, **options})

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for the whole class and kept until its last test."""
        cls = type(self)
        if "_kept" not in vars(cls):
            cls._kept = {}
        if key not in cls._kept:
            _shake(0)  # the tests that make it again do so from another state
            cls._kept[key] = make()
        return cls._kept[key]

    _kept: ClassVar[dict[str, Any]]

    @classmethod
    def teardown_class(cls) -> None:
        """Let go of models: a file may test several."""
        cls._kept = {}

    @pytest.fixture
    def model(self) -> Any:
        """The model that most tests share."""
        return self.once("model", self.load)

    @pytest.fixture
    def ready(self, model: Any) -> Any:
        """The model in the state in which it is used and saved: fitted, where it can be."""
        return model

    @pytest.fixture
    def sample(self) -> Any:
        """What ``outputs`` is asked about."""
        return None

    def outputs(self, ready: Any, sample: Any) -> Any:
        """What a saved and loaded model must give again."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def network_calls(self) -> Iterator[list[str]]:
        """Cuts the network (this machine's own addresses stay) and notes who wanted to use it."""
        calls: list[str] = self.once("network calls", list)
        real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

        def connect(self: socket.socket, address: Any) -> None:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _here(address[0]):
                calls.append(str(address))
                raise ConnectionRefusedError("a conformance suite has no network")
            real_connect(self, address)

        def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
            if not _here(host):
                calls.append(str(host))
                raise socket.gaierror("a conformance suite has no network")
            return real_lookup(host, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", connect)
            patch.setattr(socket, "getaddrinfo", lookup)
            yield calls

    # the entry and the class

    def test_is_of_its_interface(self, model: Any) -> None:
        """Entry, class and suite agree on what this is."""
        entry: Entry = model.entry
        assert entry.interface == self.interface, f"{entry.name} is a {entry.interface}"
        assert isinstance(model, INTERFACES[self.interface])

    def test_class_of_the_entry(self, model: Any) -> None:
        """``class`` in the registry is what ``zoo.load`` returns: editors rely on it."""
        from importlib import import_module

        target = model.entry.class_
        module, _, name = target.partition(":")
        named = getattr(import_module(module), name)
        assert isinstance(model, named), f"loading gives a {type(model).__qualname__}, not {target}"

    def test_verbs_take_what_the_interface_says(self, model: Any) -> None:
        """Same parameters, passed the same way, with the same defaults; more must be optional."""
        abstract = INTERFACES[self.interface]
        for verb in sorted(abstract.__abstractmethods__):
            if callable(getattr(abstract, verb)):
                problem = _signature_problem(getattr(abstract, verb), getattr(type(model), verb))
                assert not problem, f"{verb}: {problem}"

    def test_options_are_in_force(self, model: Any) -> None:
        """Each declared load option has its default, and takes another value when told."""
        declared: Mapping[str, Option] = model.entry.options.get("load", {})
        given = {key: self.load_with[key] for key in declared if key in self.load_with}
        assert dict(model.options) == {k: o.default for k, o in declared.items()} | given
        for key, option in declared.items():
            value = _another(option)
            if value is not None:
                found = self.load(**{key: value}).options.get(key)
                assert found == value, f"asked for {key}={value!r}, model.options has {found!r}"

    def test_import_is_light(self, model: Any) -> None:
        """Importing the package alone brings no numerical library: that is for the hooks."""
        heavy = _imports(model.entry.plugin)
        assert not heavy, f"import {model.entry.plugin} imports {', '.join(heavy)}"

    # the weights

    def test_weights_are_ready_for_use(self, model: Any) -> None:
        """In eval mode, all there, float32 unless told."""
        import torch

        assert model.to("cpu") is model
        assert model.device == torch.device("cpu")
        if (module := model.module) is None:
            return
        assert not any(part.training for part in module.modules()), "a part is in training mode"
        for key, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor):
                assert not tensor.is_meta, f"{key} has no values"
                if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
                    assert tensor.dtype == torch.float32, f"{key} is {tensor.dtype}"

    def test_check_input(self, model: Any) -> None:
        """``zoo verify``: the entry's check input gives the expected output."""
        from ..actions import verify

        if model.entry.check is None or model.source not in ("bundled", "cache", "hub"):
            pytest.skip("the entry has no check input, or these are not its own weights")
        verify(model)

    # use

    def test_needs_no_network_and_prints_nothing(
        self, ready: Any, sample: Any, network_calls: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The host has fetched everything; stdout belongs to the user's program."""
        self.outputs(ready, sample)
        assert not network_calls, f"it wanted to reach {', '.join(sorted(set(network_calls)))}"
        assert not capfd.readouterr().out, "it prints to stdout"

    def test_same_again(self, ready: Any, sample: Any) -> None:
        """The same call gives the same result, whatever the state of the global generators."""
        _shake(1)
        first = self.outputs(ready, sample)
        _shake(2)
        same(first, self.outputs(ready, sample))

    def test_saved_and_loaded(self, ready: Any, sample: Any, tmp_path: Path) -> None:
        """A saved folder has ``zoo.json``, can be moved, is not overwritten, and gives the same."""
        from .. import load

        before = self.outputs(ready, sample)
        assert ready.save_pretrained(tmp_path / "made") == tmp_path / "made"
        with pytest.raises(OutputError):
            ready.save_pretrained(tmp_path / "made")
        folder = (tmp_path / "made").rename(tmp_path / "moved")
        manifest = json.loads((folder / "zoo.json").read_text("utf-8"))
        entry: Entry = ready.entry
        assert (manifest["plugin"], manifest["model"]) == (entry.plugin, entry.name)
        assert (manifest["interface"], manifest["kind"]) == (ready.interface, ready.kind)
        again = load(folder, device="cpu")
        assert type(again) is type(ready)
        assert again.source == "folder"
        assert dict(again.options) == dict(ready.options)
        same(before, self.outputs(again, sample))


# --- super-resolution -----------------------------------------------------------------------------

KINDS = (
    "path", "text", "RGB", "RGBA", "L", "LA", "I;16", "P", "1", "CMYK",
    "uint8 HWC", "uint8 HW", "uint8 HW4", "uint16 HWC",
    "float CHW", "float 1HW", "float 4HW", "float NCHW", "float16 CHW",
)  # fmt: skip
"""Every kind of image that a verb must take, by the name that ``make_image`` knows."""

_BAD_IMAGES: Mapping[str, Callable[[], Any]] = {
    "float HWC array": lambda: picture(5, 4) / 255.0,
    "float32 HWC array": lambda: (picture(5, 4) / 255.0).astype("float32"),
    "NaN": lambda: _tensor(5, 4) * float("nan"),
    "tensor of 0 to 255": lambda: _tensor(5, 4) * 255,
    "whole numbers": lambda: (_tensor(5, 4) * 255).long(),
    "five dimensions": lambda: _tensor(5, 4)[None, None],
    "HWC tensor": lambda: _tensor(9, 8).permute(1, 2, 0),
    "no pixels": lambda: picture(5, 4)[:0],
    "missing file": lambda: "no/such/picture.png",
    "nothing": lambda: None,
}


class SRModelSuite(ModelSuite):
    """Kinds and sizes of images, scales, seeds, prompts, tiles, refusals."""

    interface = "SRModel"

    @pytest.fixture
    def sample(self) -> Any:
        """One image."""
        return _tensor(12, 9)

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Pixels."""
        return ready.upscale(sample, seed=3)

    def test_scales(self, model: Any) -> None:
        """At least one, whole numbers; the first is the default; each gives its size."""
        scales = model.scales
        assert isinstance(scales, tuple)
        assert scales
        assert all(type(s) is int and s >= 1 for s in scales)
        assert len(set(scales)) == len(scales)
        for scale in scales:
            assert model.upscale(picture(7, 5), scale=scale).shape == (5 * scale, 7 * scale, 3)
        assert model.upscale(picture(7, 5)).shape == (5 * scales[0], 7 * scales[0], 3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_kind_of_image(self, model: Any, kind: str, tmp_path: Path) -> None:
        """Comes back as it went in, exactly scale times as large, and the input is as it was."""
        image = make_image(kind, 12, 9, tmp_path)
        kept = _copied(image)
        result = model.upscale(image)
        check_image(kind, result, 12 * model.scales[0], 9 * model.scales[0])
        same(kept, image)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (17, 5), (13, 8)])
    def test_size_of_image(self, model: Any, size: tuple[int, int]) -> None:
        """Whatever the sides, odd or a single pixel."""
        width, height = size
        scale = model.scales[0]
        made = model.upscale(picture(width, height))
        assert made.shape == (height * scale, width * scale, 3)
        made = model.upscale(_tensor(width, height))
        assert tuple(made.shape) == (3, height * scale, width * scale)

    def test_list(self, model: Any) -> None:
        """In order, each as its own kind; a list of one and an empty list stay lists."""
        images = [picture(5, 4), make_image("L", 6, 3), _tensor(4, 5)]
        made = model.upscale(images)
        assert isinstance(made, list)
        scale = model.scales[0]
        assert [type(m) for m in made] == [type(i) for i in images]
        assert made[0].shape == (4 * scale, 5 * scale, 3)
        assert made[1].size == (6 * scale, 3 * scale)
        assert tuple(made[2].shape) == (3, 5 * scale, 4 * scale)
        assert isinstance(model.upscale([picture(5, 4)]), list)
        assert model.upscale([]) == []

    def test_looks_like_the_input(self, model: Any) -> None:
        """Channel by channel the mean stays: a swapped channel or a wrong range shows here."""
        import numpy as np

        source = np.empty((24, 32, 3), "uint8")
        source[:] = (200, 120, 40)
        source[:12] = (180, 140, 60)
        made = model.upscale(source)
        off = np.abs(made.mean((0, 1)) - source.mean((0, 1))) / 255
        assert off.max() < 0.1, f"means of R, G, B are off by {off.round(3).tolist()}"

    def test_kinds_agree(self, model: Any) -> None:
        """The same pixels give the same result as an array, a PIL image and a tensor."""
        import numpy as np
        from PIL import Image

        pixels = picture(12, 9)
        array = model.upscale(pixels).astype(int)
        pil = np.asarray(model.upscale(Image.fromarray(pixels))).astype(int)
        tensor = model.upscale(_tensor(12, 9)).permute(1, 2, 0).numpy() * 255
        assert np.abs(array - pil).max() <= 1
        assert np.abs(array - tensor).max() <= 1.01

    def test_alpha(self, model: Any) -> None:
        """What was opaque stays opaque, what was invisible stays invisible."""
        import numpy as np

        image = np.concatenate([picture(8, 8), np.full((8, 8, 1), 255, "uint8")], 2)
        assert (model.upscale(image)[:, :, 3] == 255).all()
        image[:, :, 3] = 0
        assert (model.upscale(image)[:, :, 3] == 0).all()

    def test_result_is_plain(self, model: Any) -> None:
        """A tensor in [0, 1] without a graph, of the input's dtype."""
        made = model.upscale(_tensor(6, 5))
        assert not made.requires_grad
        assert made.isfinite().all()
        assert made.min() >= 0
        assert made.max() <= 1

    def test_seed(self, model: Any) -> None:
        """The same seed gives the same pixels, whatever happened in between."""
        image = picture(12, 9)
        for seed in (0, 7):
            _shake(seed + 1)
            first = model.upscale(image, seed=seed)
            model.upscale(picture(5, 7), seed=99)
            _shake(seed + 2)
            same(first, model.upscale(image, seed=seed))

    def test_tile(self, model: Any) -> None:
        """One evaluation, or tiles of the model's own size: the result has the same size."""
        scale = model.scales[0]
        tiles = [None] if model.tile is None else [None, model.tile]
        for tile in tiles:
            assert model.upscale(picture(13, 9), tile=tile).shape == (9 * scale, 13 * scale, 3)
        if model.tile is not None:
            assert model.tile % model.multiple == 0
            for tile in (0, -1, "small"):
                with pytest.raises(ZooError):
                    model.upscale(picture(13, 9), tile=tile)

    @pytest.mark.parametrize("scale", [0, -2, 1000, 1.5, "2"])
    def test_wrong_scale_is_refused(self, model: Any, scale: Any) -> None:
        """With what is possible in the message."""
        with pytest.raises(ZooError, match=str(model.scales[0])):
            model.upscale(picture(5, 4), scale=scale)

    def test_prompt(self, model: Any) -> None:
        """Used, or refused; never dropped in silence by a method that takes none."""
        image = _tensor(12, 9)
        try:
            made = model.upscale(image, prompt="a red house")
        except OptionError:
            return
        plain = model.upscale(image)
        assert made.shape == plain.shape
        assert not made.equal(plain), "a prompt is accepted and changes nothing"

    @pytest.mark.parametrize("case", _BAD_IMAGES)
    def test_bad_image_is_refused(self, model: Any, case: str) -> None:
        """By an InputError, alone and in a list."""
        with pytest.raises(InputError):
            model.upscale(_BAD_IMAGES[case]())
        with pytest.raises(InputError):
            model.upscale([picture(5, 4), _BAD_IMAGES[case]()])

    def test_progress(self, model: Any) -> None:
        """Told as it goes, for one image and for several."""
        check_progress(lambda progress: model.upscale(picture(12, 9), progress=progress))
        check_progress(lambda progress: model.upscale([picture(6, 5)] * 2, progress=progress))


# --- vision-language alignment --------------------------------------------------------------------


class VLAlignerSuite(ModelSuite):
    """Fitting on pairs, similarity, embeddings, refusals.

    Override ``pairs`` with raw images and texts (lists) for a method that takes no features.
    """

    interface = "VLAligner"

    @pytest.fixture
    def pairs(self) -> tuple[Any, Any]:
        """Images and texts, row by row: here float features with a linear relation and noise."""
        import numpy as np

        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(96, 6))
        images = hidden @ rng.normal(size=(6, 24)) + 0.1 * rng.normal(size=(96, 24))
        texts = hidden @ rng.normal(size=(6, 16)) + 0.1 * rng.normal(size=(96, 16))
        return images.astype("float32"), texts.astype("float32")

    @pytest.fixture
    def ready(self, model: Any, pairs: tuple[Any, Any]) -> Any:
        """Fitted on the pairs."""

        def fit() -> Any:
            kept = _copied(pairs)
            fitted = model.align(*pairs)
            assert fitted is model, "align() returns self"
            same(kept, pairs)
            return fitted

        return self.once("ready", fit)

    @pytest.fixture
    def sample(self, pairs: tuple[Any, Any]) -> Any:
        """A few rows: five images, seven texts."""
        return _rows(pairs[0], range(5)), _rows(pairs[1], range(7))

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Similarities."""
        return ready.similarity(*sample)

    def test_similarity(self, ready: Any, sample: Any) -> None:
        """(N, M) float32, finite, whichever side is longer."""
        import numpy as np

        found = ready.similarity(*sample)
        assert isinstance(found, np.ndarray)
        assert (found.shape, found.dtype) == ((5, 7), np.float32)
        assert np.isfinite(found).all()
        one = ready.similarity(_rows(sample[0], [0]), _rows(sample[1], [0]))
        assert one.shape == (1, 1)

    def test_higher_is_better(self, ready: Any, pairs: tuple[Any, Any]) -> None:
        """What belongs together is more similar than what does not."""
        import numpy as np

        count = min(len(pairs[0]), 16)
        found = ready.similarity(_rows(pairs[0], range(count)), _rows(pairs[1], range(count)))
        own = np.diag(found).mean()
        others = found[~np.eye(count, dtype=bool)].mean()
        assert own > others, f"own pairs {own:.3f}, others {others:.3f}"

    def test_each_pair_stands_alone(self, ready: Any, sample: Any) -> None:
        """A similarity does not depend on what else is asked about."""
        import numpy as np

        whole = ready.similarity(*sample)
        part = ready.similarity(_rows(sample[0], [3]), _rows(sample[1], [2, 5]))
        np.testing.assert_allclose(whole[3:4, [2, 5]], part, atol=1e-4)

    def test_embeddings(self, ready: Any, sample: Any) -> None:
        """(N, d) float32 of unit norm in one space; or none at all, said by NotReadyError."""
        import numpy as np

        try:
            images, texts = ready.embed_images(sample[0]), ready.embed_texts(sample[1])
        except NotReadyError:
            return
        assert images.dtype == texts.dtype == np.float32
        assert (len(images), len(texts)) == (5, 7)
        assert images.ndim == texts.ndim == 2
        assert images.shape[1] == texts.shape[1]
        for rows in (images, texts):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)

    def test_align_again(self, ready: Any, sample: Any, pairs: tuple[Any, Any]) -> None:
        """The same pairs give the same model."""
        _shake(5)
        same(self.outputs(ready, sample), self.outputs(self.load().align(*pairs), sample), 1e-4)

    def test_labels(self, pairs: tuple[Any, Any]) -> None:
        """Several images for one text, by the text's number."""
        labels = [i % 4 for i in range(24)]
        rows = [label + 4 * (i // 8) for i, label in enumerate(labels)]
        images = _rows(pairs[0], rows)
        fitted = self.load().align(images, _rows(pairs[1], range(4)), labels=labels)
        assert fitted.similarity(images, _rows(pairs[1], range(4))).shape == (24, 4)

    def test_wrong_pairs_are_refused(self, pairs: tuple[Any, Any]) -> None:
        """Unequal numbers without labels, labels without a text, too few labels, nothing at all."""
        images, texts = pairs
        few = _rows(texts, range(3))
        some = _rows(images, range(4))
        with pytest.raises(ZooError):
            self.load().align(some, few)
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1, 2, 3])
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1, -1, 0])
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1])
        with pytest.raises(ZooError):
            self.load().align(_rows(images, []), _rows(texts, []))

    def test_wrong_features_are_refused(self, ready: Any, pairs: tuple[Any, Any]) -> None:
        """NaN, and another number of columns than was fitted."""
        import numpy as np

        images, texts = pairs
        if not isinstance(images, np.ndarray):
            pytest.skip("the pairs are raw")
        with pytest.raises(ZooError):
            self.load().align(images * np.float32("nan"), texts)
        with pytest.raises(ZooError):
            ready.similarity(images[:2] * np.float32("nan"), texts[:2])
        with pytest.raises(ZooError):
            ready.similarity(images[:2, :-1], texts[:2])

    def test_before_align(self, sample: Any) -> None:
        """A model that must be fitted first says so; a trained one answers."""
        import numpy as np

        try:
            found = self.load().similarity(*sample)
        except ZooError:
            return
        assert np.isfinite(found).all()

    def test_progress(self, pairs: tuple[Any, Any]) -> None:
        """Told as it goes."""
        check_progress(lambda progress: self.load().align(*pairs, progress=progress))


# --- quantization ---------------------------------------------------------------------------------


class QuantizerSuite(ModelSuite):
    """A language model in, one of few bits out. Override ``network`` for another architecture."""

    interface = "Quantizer"
    scheme: ClassVar[str] = "w8a8"
    """One that the method supports and that loses little."""

    @pytest.fixture
    def network(self) -> Any:
        """The original: here a Llama of transformers with two layers and random weights."""
        transformers = pytest.importorskip("transformers")
        import torch

        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip

        def build() -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return transformers.LlamaForCausalLM(config).eval()

        return self.once("network", build)

    @pytest.fixture
    def calibration(self) -> Any:
        """(N, T) token ids."""
        import torch

        return torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(1))

    @pytest.fixture
    def ready(self, model: Any, network: Any, calibration: Any) -> Any:
        """The quantized model; the original is left as it was."""

        def quantize() -> Any:
            before = _copied(dict(network.state_dict()))
            training = network.training
            made = model.quantize(network, calibration, scheme=self.scheme)
            same(before, dict(network.state_dict()), 0)
            assert network.training == training, "the original changed its mode"
            return made

        return self.once("ready", quantize)

    @pytest.fixture
    def sample(self) -> Any:
        """(N, T) token ids that calibration has not seen."""
        import torch

        return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(2))

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Logits."""
        import torch

        with torch.no_grad():
            return _logits(ready(sample))

    def test_is_another_model(self, ready: Any, network: Any) -> None:
        """A QuantizedModel that shares no parameter with the original."""
        assert isinstance(ready, QuantizedModel)
        mine = {t.data_ptr() for t in ready.state().values() if t.numel()}
        theirs = {t.data_ptr() for t in network.state_dict().values() if t.numel()}
        assert not mine & theirs, "a tensor is the original's own: changing one changes both"

    def test_called_like_the_original(self, ready: Any, network: Any, sample: Any) -> None:
        """Same arguments, same kind of output, and nearly the same numbers."""
        import torch

        with torch.no_grad():
            for arguments, keywords in (((sample,), {}), ((), {"input_ids": sample})):
                original = network(*arguments, **keywords)
                found = ready(*arguments, **keywords)
                assert type(found) is type(original)
                a, b = _logits(original).double(), _logits(found).double()
                assert a.shape == b.shape
                error = float((a - b).norm() / a.norm())
                assert error < 0.2, f"the logits are off by {error:.0%}"

    def test_is_quantized(self, ready: Any, network: Any, sample: Any) -> None:
        """Something was rounded: the output is not exactly the original's."""
        import torch

        with torch.no_grad():
            assert not torch.equal(_logits(network(sample)), _logits(ready(sample)))

    def test_generate(self, ready: Any, network: Any, sample: Any) -> None:
        """Same arguments and shape as the original's."""
        if not hasattr(network, "generate"):
            pytest.skip("the original has no generate")
        keywords = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        found = ready.generate(sample, **keywords)
        assert found.shape == network.generate(sample, **keywords).shape
        same(_copied(sample), found[:, : sample.shape[1]])

    def test_report(self, ready: Any) -> None:
        """JSON, smaller than before, and a line for each layer."""
        report = ready.report()
        json.dumps(report, allow_nan=False)
        assert 0 < report["bytes_after"] < report["bytes_before"]
        assert isinstance(report["layers"], Mapping)
        assert report["layers"]

    def test_quantize_again(self, ready: Any, network: Any, calibration: Any, sample: Any) -> None:
        """The same model and calibration give the same numbers."""
        _shake(4)
        again = self.load().quantize(network, calibration, scheme=self.scheme)
        same(self.outputs(ready, sample), self.outputs(again, sample), 1e-4)

    @pytest.mark.parametrize("scheme", ["w0a8", "w8", "int8!", "", "a8w8"])
    def test_wrong_scheme_is_refused(self, model: Any, network: Any, scheme: str) -> None:
        """Before any work."""
        with pytest.raises(ZooError):
            model.quantize(network, scheme=scheme)

    @pytest.mark.parametrize("thing", [None, 3, "./no/such/folder"])
    def test_what_is_no_model_is_refused(self, model: Any, thing: Any) -> None:
        """In words."""
        with pytest.raises(ZooError):
            model.quantize(thing, scheme=self.scheme)

    def test_progress(self, model: Any, network: Any, calibration: Any) -> None:
        """Told as it goes."""
        check_progress(
            lambda progress: model.quantize(
                network, calibration, scheme=self.scheme, progress=progress
            )
        )


# --- data selection -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelectionTask:
    """What a selector is fitted on."""

    train: Any
    target: Any
    model: Any = None
    loss: Any = None
    relevant: Any = None
    """(N,) bool: which training examples serve the target; None skips the test of it."""


class DataSelectorSuite(ModelSuite):
    """Weights, selection, ties, seeds, refusals."""

    interface = "DataSelector"
    epochs: ClassVar[int | None] = 3

    @pytest.fixture
    def task(self) -> SelectionTask:
        """Two classes; a third of the training set lies elsewhere and is wrongly labelled."""
        import torch

        random = torch.Generator().manual_seed(0)
        x = torch.randn(84, 6, generator=random)
        y = torch.arange(84) % 2
        x[:, 0] += 4.0 * y - 2.0
        relevant = torch.ones(60, dtype=torch.bool)
        relevant[1::3] = False
        wrong = torch.arange(84)[:60][~relevant]
        x[wrong, 1] += 5.0
        labels = y.clone()
        labels[wrong] = 1 - y[wrong]
        data = list(zip(x, labels, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Linear(6, 2)

        def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(output, batch[1], reduction="none")

        return SelectionTask(data[:60], data[60:], model, loss, relevant.numpy())

    def fit(self, model: Any, task: SelectionTask, **keywords: Any) -> Any:
        """Fit on the task, with a network of its own."""
        from copy import deepcopy

        return model.fit(
            task.train, task.target, model=deepcopy(task.model), loss=task.loss,
            epochs=self.epochs, **keywords,
        )  # fmt: skip

    @pytest.fixture
    def ready(self, model: Any, task: SelectionTask) -> Any:
        """Fitted on the task."""

        def fit() -> Any:
            kept = _copied((task.train, task.target))
            fitted = self.fit(model, task)
            assert fitted is model, "fit() returns self"
            same(kept, (task.train, task.target), 0)
            return fitted

        return self.once("ready", fit)

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Weights and a selection."""
        return ready.weights, ready.select(k=5)

    def test_weights(self, ready: Any, task: SelectionTask) -> None:
        """(N,) float32 in [0, 1]."""
        import numpy as np

        weights = ready.weights
        assert isinstance(weights, np.ndarray)
        assert (weights.shape, weights.dtype) == ((len(task.train),), np.float32)
        assert np.isfinite(weights).all()
        assert weights.min() >= 0
        assert weights.max() <= 1

    def test_what_is_useful_weighs_more(self, ready: Any, task: SelectionTask) -> None:
        """In the order of ``train``."""
        if task.relevant is None:
            pytest.skip("the task does not say what is relevant")
        useful, useless = ready.weights[task.relevant], ready.weights[~task.relevant]
        assert useful.mean() > useless.mean(), f"{useful.mean():.3f}, {useless.mean():.3f}"

    def test_select(self, ready: Any, task: SelectionTask) -> None:
        """(k,) int64, heaviest first, ties by index."""
        import numpy as np

        count = len(task.train)
        order = np.argsort(-ready.weights, kind="stable")
        for k in (1, 7, count):
            found = ready.select(k=k)
            assert found.dtype == np.int64
            same(order[:k], found)
        for fraction in (0.25, 0.5, 1.0):
            found = ready.select(fraction=fraction)
            assert abs(len(found) - fraction * count) < 1
            same(order[: len(found)], found)

    def test_ties(self, task: SelectionTask) -> None:
        """Equal examples weigh the same and come out by index."""
        import numpy as np

        twice = SelectionTask(
            [task.train[0]] * 12, task.target, task.model, task.loss, task.relevant
        )
        fitted = self.fit(self.load(), twice)
        same(np.argsort(-fitted.weights, kind="stable")[:12], fitted.select(k=12))

    def test_seed(self, ready: Any, task: SelectionTask) -> None:
        """The same seed gives the same weights, also when the model was fitted before."""
        _shake(3)
        fresh = self.fit(self.load(), task, seed=0)
        same(ready.weights, fresh.weights)
        self.fit(fresh, task, seed=1)
        _shake(4)
        same(ready.weights, self.fit(fresh, task, seed=0).weights)

    @pytest.mark.parametrize(
        "wrong",
        [
            {}, {"fraction": 0.5, "k": 3}, {"k": 1000}, {"k": -1}, {"fraction": 1.5},
            {"fraction": -0.1}, {"fraction": float("nan")},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_selection_is_refused(self, ready: Any, wrong: dict[str, Any]) -> None:
        """One of the two, and one that is possible."""
        with pytest.raises(ZooError):
            ready.select(**wrong)

    def test_empty_data_is_refused(self, task: SelectionTask) -> None:
        """On either side."""
        for train, target in (([], task.target), (task.train, [])):
            with pytest.raises(ZooError):
                self.load().fit(train, target, model=task.model, loss=task.loss)

    def test_before_fit(self) -> None:
        """There are no weights, and that is said."""
        fresh = self.load()
        with pytest.raises(ZooError):
            _ = fresh.weights
        with pytest.raises(ZooError):
            fresh.select(k=1)

    def test_progress(self, task: SelectionTask) -> None:
        """Told as it goes."""
        check_progress(lambda progress: self.fit(self.load(), task, progress=progress))


# --- detection ------------------------------------------------------------------------------------


class DetectorSuite(ModelSuite):
    """Boxes for every kind of image, thresholds, fine-tuning, refusals."""

    interface = "Detector"
    finds: ClassVar[bool] = True
    """Does the model, fine-tuned on ``scenes``, find their objects? False for another domain."""

    @pytest.fixture
    def scenes(self) -> tuple[list[Any], list[Detections]]:
        """Images and what is in them: here bright rectangles on dark ground, wider than high."""
        import numpy as np

        rng = np.random.default_rng(0)
        images, truth = [], []
        for i in range(6):
            image = rng.integers(0, 40, (40, 64, 3)).astype("uint8")
            boxes = [(4 + i, 5, 18 + i, 15), (36, 20 + i, 56, 32 + i)][: 1 + i % 2]
            for left, top, right, bottom in boxes:
                image[top:bottom, left:right] = rng.integers(200, 255, 3)
            images.append(image)
            count = len(boxes)
            truth.append(
                Detections(
                    np.array(boxes, "float32"),
                    np.ones(count, "float32"),
                    np.zeros(count, "int64"),
                    ("thing",),
                )
            )
        return images, truth

    @pytest.fixture
    def sample(self, scenes: tuple[list[Any], list[Detections]]) -> Any:
        """The images."""
        return scenes[0]

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Detections, the weak ones too."""
        return ready.detect(sample, threshold=0.05)

    @pytest.fixture
    def tuned(self, scenes: tuple[list[Any], list[Detections]]) -> Any:
        """A model of its own, fine-tuned on the scenes."""

        def finetune() -> Any:
            model = self.load()
            kept = _copied(scenes)
            assert model.finetune(*scenes, seed=0) is model, "finetune() returns self"
            same(kept, scenes, 0)
            return model

        return self.once("tuned", finetune)

    @pytest.mark.parametrize("kind", KINDS)
    def test_kind_of_image(self, model: Any, kind: str, tmp_path: Path) -> None:
        """Every kind is taken and left as it was; boxes lie in the image that was given."""
        image = make_image(kind, 33, 24, tmp_path)
        kept = _copied(image)
        found = model.detect(image, threshold=0.05)
        same(kept, image)
        if kind == "float NCHW":
            assert isinstance(found, list)
        for one in found if isinstance(found, list) else [found]:
            check_detections(one, 33, 24, 0.05)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (31, 7)])
    def test_size_of_image(self, model: Any, size: tuple[int, int]) -> None:
        """Whatever the sides, and where there is nothing to see."""
        import numpy as np

        width, height = size
        check_detections(model.detect(picture(width, height)), width, height, 0.4)
        blank = np.zeros((height, width, 3), "uint8")
        check_detections(model.detect(blank), width, height, 0.4)

    def test_list(self, model: Any, sample: Any) -> None:
        """A list for a list, in order; the same as one by one."""
        found = model.detect(sample)
        assert isinstance(found, list)
        assert len(found) == len(sample)
        same(found[1], model.detect(sample[1]), 1e-3)
        assert model.detect([]) == []

    def test_kinds_agree(self, model: Any, sample: Any) -> None:
        """The same pixels give the same boxes as an array, a PIL image and a tensor."""
        import torch
        from PIL import Image

        if not hasattr(sample[1], "shape"):
            pytest.skip("the scenes are not arrays")
        array = model.detect(sample[1])
        same(array, model.detect(Image.fromarray(sample[1])), 1e-2)
        tensor = torch.from_numpy(sample[1]).permute(2, 0, 1).float() / 255
        same(array, model.detect(tensor), 1e-2)

    def test_threshold(self, tuned: Any, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Drops what scores less and changes nothing else."""
        import numpy as np

        everything = tuned.detect(scenes[0][1], threshold=0.0)
        check_detections(everything, 64, 40, 0.0, shape_known=hasattr(scenes[0][1], "shape"))
        for threshold in (0.3, 0.6, 0.9):
            found = tuned.detect(scenes[0][1], threshold=threshold)
            assert (found.scores >= threshold).all()
            left = everything.scores >= threshold
            np.testing.assert_allclose(found.boxes, everything.boxes[left], atol=1e-2)

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_wrong_threshold_is_refused(self, model: Any, sample: Any, threshold: float) -> None:
        """A score lies in [0, 1]."""
        with pytest.raises(ZooError):
            model.detect(sample[0], threshold=threshold)

    def test_finds(self, tuned: Any, scenes: tuple[list[Any], list[Detections]]) -> None:
        """After fine-tuning each object has a box that covers it by half, under its name."""
        if not self.finds:
            pytest.skip("the model does not learn these scenes")
        for image, truth in zip(*scenes, strict=True):
            found = tuned.detect(image, threshold=0.05)
            for box, label in zip(truth.boxes, truth.labels, strict=True):
                best = max(range(len(found)), key=lambda i: _iou(found.boxes[i], box), default=None)
                assert best is not None, "nothing is found"
                overlap = _iou(found.boxes[best], box)
                assert overlap > 0.5, f"{box.tolist()}: the best box covers {overlap:.0%}"
                assert found.names[found.labels[best]] == truth.names[label]

    def test_finetune_again(
        self, tuned: Any, scenes: tuple[list[Any], list[Detections]], sample: Any
    ) -> None:
        """The same seed gives the same detector."""
        _shake(6)
        again = self.load().finetune(*scenes, seed=0)
        same(self.outputs(tuned, sample), self.outputs(again, sample), 1e-3)

    def test_tuned_saved_and_loaded(self, tuned: Any, sample: Any, tmp_path: Path) -> None:
        """What was learnt is kept."""
        from .. import load

        tuned.save_pretrained(tmp_path / "tuned")
        again = load(tmp_path / "tuned", device="cpu")
        same(self.outputs(tuned, sample), self.outputs(again, sample), 1e-3)

    def test_wrong_labels_are_refused(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """One ``Detections`` for each image, at least one image."""
        images, truth = scenes
        for wrong in ((images, truth[:-1]), ([], []), (images[:1], [None])):
            with pytest.raises(ZooError):
                self.load().finetune(*wrong)

    def test_pretrain(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """From images alone, with a report that can be kept as JSON."""
        report = self.load().pretrain(scenes[0], seed=0)
        assert isinstance(report, Mapping)
        json.dumps(dict(report), allow_nan=False)
        with pytest.raises(ZooError):
            self.load().pretrain([])

    @pytest.mark.parametrize("case", _BAD_IMAGES)
    def test_bad_image_is_refused(self, model: Any, case: str) -> None:
        """By an InputError, alone and in a list."""
        with pytest.raises(InputError):
            model.detect(_BAD_IMAGES[case]())
        with pytest.raises(InputError):
            model.detect([picture(5, 4), _BAD_IMAGES[case]()])

    def test_progress(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Told as it goes, in both kinds of training."""
        check_progress(lambda progress: self.load().pretrain(scenes[0], progress=progress))
        check_progress(lambda progress: self.load().finetune(*scenes, progress=progress))


def check_detections(
    found: Any, width: int, height: int, threshold: float, *, shape_known: bool = True
) -> None:
    """Assert what holds for every ``Detections`` of an image of this size."""
    import numpy as np

    assert isinstance(found, Detections)
    count = len(found)
    assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((count,), np.float32)
    assert (found.labels.shape, found.labels.dtype) == ((count,), np.int64)
    assert isinstance(found.names, tuple)
    if not count:
        return
    assert np.isfinite(found.boxes).all()
    x1, y1, x2, y2 = found.boxes.T
    assert (x1 < x2).all(), "a box has no area, or is not x1 y1 x2 y2"
    assert (y1 < y2).all(), "a box has no area, or is not x1 y1 x2 y2"
    if shape_known:
        assert found.boxes.min() >= 0
        assert (x2 <= width).all(), "a box leaves the image"
        assert (y2 <= height).all(), "a box leaves the image"
    assert (np.diff(found.scores) <= 0).all(), "scores must fall"
    assert found.scores.min() >= threshold
    assert found.scores.max() <= 1
    assert found.labels.min() >= 0
    assert found.labels.max() < len(found.names)


# --- question-answer generation -------------------------------------------------------------------

PROCEDURE = (
    "Preheat the oven to 180 degrees. Mix the flour and the sugar in a bowl. "
    "Add two eggs and stir for 3 minutes. Pour the dough into a tin. Bake the cake for 40 minutes."
)


class QAGeneratorSuite(ModelSuite):
    """Questions, graph, coverage, readers."""

    interface = "QAGenerator"

    @pytest.fixture
    def text(self) -> str:
        """A procedure that the method can make questions about."""
        return PROCEDURE

    @pytest.fixture
    def sample(self, text: str) -> Any:
        """The text."""
        return text

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Questions and an answer."""
        made = ready.generate(sample)
        return made, ready.answer(made.pairs[0].question, sample)

    @pytest.fixture
    def made(self, model: Any, text: str) -> QASet:
        """The questions about the text."""
        found: QASet = self.once("made", lambda: model.generate(text))
        return found

    @pytest.fixture
    def reader(self, model: Any, made: QASet) -> Any:
        """A reader trained on them."""
        return self.once("reader", lambda: model.train_reader([made], seed=0))

    def test_pairs(self, made: QASet) -> None:
        """Some, each with words on both sides, none twice."""
        assert isinstance(made, QASet)
        assert len(made) > 0, "no question about the text"
        for pair in made.pairs:
            assert isinstance(pair, QAPair)
            assert pair.question.strip()
            assert pair.answer.strip()
        assert len({(p.question, p.answer) for p in made.pairs}) == len(made), "a pair comes twice"

    def test_graph(self, made: QASet) -> None:
        """Ids are unique; edges and pairs name nodes that exist; it can be kept as JSON."""
        json.dumps(made.graph, allow_nan=False)
        nodes = [node["id"] for node in made.graph["nodes"]]
        assert nodes
        assert len(set(nodes)) == len(nodes), "an id is used twice"
        for node in made.graph["nodes"]:
            assert {"id", "text", "kind"} <= set(node)
        for edge in made.graph["edges"]:
            assert {"source", "target", "role"} <= set(edge)
            assert {edge["source"], edge["target"]} <= set(nodes), f"{edge}: no such node"
        for pair in made.pairs:
            assert set(pair.nodes) <= set(nodes), f"{pair}: no such node"

    def test_coverage(self, made: QASet) -> None:
        """The share of nodes that a pair is about."""
        assert 0 <= made.coverage <= 1
        asked = {node for pair in made.pairs for node in pair.nodes}
        assert math.isclose(made.coverage, len(asked) / len(made.graph["nodes"]), abs_tol=1e-6)

    def test_text_without_content(self, model: Any) -> None:
        """Refused, or no question; never a crash."""
        for nothing in ("", " \n\t", "?!…", "\N{GRINNING FACE}" * 3):
            try:
                made = model.generate(nothing)
            except ZooError:
                continue
            assert 0 <= made.coverage <= 1

    @pytest.mark.parametrize("wrong", [None, 3, b"Mix it.", ["Mix it."]], ids=repr)
    def test_what_is_no_text_is_refused(self, model: Any, wrong: Any) -> None:
        """In words."""
        with pytest.raises(ZooError):
            model.generate(wrong)
        with pytest.raises(ZooError):
            model.answer("What is mixed?", wrong)

    def test_answer(self, model: Any, made: QASet, text: str) -> None:
        """The bundled reader answers with text."""
        for pair in made.pairs[:5]:
            assert isinstance(model.answer(pair.question, text), str)

    def test_reader(self, reader: Any, made: QASet, text: str) -> None:
        """A ``Model`` of no interface that answers with text."""
        assert issubclass(type(reader), Model)
        assert reader.interface is None
        for pair in made.pairs[:5]:
            assert isinstance(reader.answer(pair.question, text), str)

    def test_reader_again(self, reader: Any, model: Any, made: QASet, text: str) -> None:
        """The same questions and seed give the same reader."""
        _shake(8)
        again = model.train_reader([made], seed=0)
        for pair in made.pairs:
            assert again.answer(pair.question, text) == reader.answer(pair.question, text)

    def test_reader_saved_and_loaded(
        self, reader: Any, made: QASet, text: str, tmp_path: Path
    ) -> None:
        """``zoo.load`` gives the reader, not the generator, and it answers as before."""
        from .. import load

        reader.save_pretrained(tmp_path / "reader")
        again = load(tmp_path / "reader", device="cpu")
        assert type(again) is type(reader)
        for pair in made.pairs:
            assert again.answer(pair.question, text) == reader.answer(pair.question, text)

    def test_reader_needs_questions(self, model: Any) -> None:
        """Nothing to learn from is refused."""
        with pytest.raises(ZooError):
            model.train_reader([])

    def test_progress(self, model: Any, made: QASet) -> None:
        """Told as it goes."""
        check_progress(lambda progress: model.train_reader([made], progress=progress))


# --- what the suites share ------------------------------------------------------------------------


def picture(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: soft colours with a little grain, always the same."""
    import numpy as np

    y, x = np.mgrid[0:height, 0:width].astype("float32")
    planes = [0.3 + 0.4 * x / max(width - 1, 1), 0.7 - 0.4 * y / max(height - 1, 1), 0.5 + 0 * x]
    grain = np.random.default_rng(width * 1000 + height).normal(0, 0.03, (height, width, 3))
    return ((np.stack(planes, 2) + grain).clip(0, 1) * 255).round().astype("uint8")


def make_image(kind: str, width: int, height: int, folder: Path | None = None) -> Any:
    """An image of one of ``KINDS``; "path" and "text" need a folder to write to."""
    import numpy as np
    from PIL import Image

    pixels = picture(width, height)
    alpha = np.full((height, width, 1), 255, "uint8")
    alpha[: height // 2] = 128
    if kind in ("path", "text"):
        assert folder is not None
        Image.fromarray(pixels).save(folder / "picture.png")
        return folder / "picture.png" if kind == "path" else str(folder / "picture.png")
    if kind in ("RGB", "L", "P", "1", "CMYK"):
        return Image.fromarray(pixels).convert(kind)
    if kind in ("RGBA", "LA"):
        return Image.fromarray(np.concatenate([pixels, alpha], 2)).convert(kind)
    if kind == "I;16":
        return Image.fromarray(pixels[:, :, 0].astype("uint16") * 257)
    if kind == "uint8 HWC":
        return pixels
    if kind == "uint8 HW":
        return pixels[:, :, 0].copy()
    if kind == "uint8 HW4":
        return np.concatenate([pixels, alpha], 2)
    if kind == "uint16 HWC":
        return pixels.astype("uint16") * 257
    tensor = _tensor(width, height)
    if kind == "float 4HW":
        import torch

        return torch.cat([tensor, torch.from_numpy(alpha).permute(2, 0, 1) / 255])
    made = {
        "float CHW": tensor,
        "float 1HW": tensor[:1],
        "float NCHW": tensor.expand(2, -1, -1, -1).clone(),
        "float16 CHW": tensor.half(),
    }
    return made[kind]


def check_image(kind: str, made: Any, width: int, height: int) -> None:
    """Assert that a result is of the kind that ``make_image(kind, ...)`` went in as."""
    import numpy as np
    import torch
    from PIL import Image

    modes = {"path": "RGB", "text": "RGB", "P": "RGB", "1": "L", "CMYK": "RGB"}
    if kind in ("path", "text", "RGB", "RGBA", "L", "LA", "I;16", "P", "1", "CMYK"):
        assert isinstance(made, Image.Image), f"{type(made).__name__} for a PIL image or path"
        assert made.mode == modes.get(kind, kind)
        assert made.size == (width, height)
    elif kind.startswith("uint"):
        assert isinstance(made, np.ndarray), f"{type(made).__name__} for an array"
        word, _, layout = kind.partition(" ")
        assert made.dtype == word
        channels = {"HW": (), "HWC": (3,), "HW4": (4,)}[layout]
        assert made.shape == (height, width, *channels)
    else:
        assert isinstance(made, torch.Tensor), f"{type(made).__name__} for a tensor"
        word, _, layout = kind.partition(" ")
        assert made.dtype == (torch.float16 if word == "float16" else torch.float32)
        front = {"CHW": (3,), "1HW": (1,), "4HW": (4,), "NCHW": (2, 3)}[layout]
        assert tuple(made.shape) == (*front, height, width)


def check_progress(call: Callable[[Any], Any]) -> None:
    """Assert that ``call(progress)`` reports: each phase counts up to its total, none stops short.

    What the callback raises must end the work and reach the caller.
    """
    seen: list[tuple[int, int]] = []
    call(lambda done, total: seen.append((done, total)))
    assert seen, "progress was never called"
    previous = (0, seen[0][1])
    for done, total in seen:
        assert 0 <= done <= total, f"{done} of {total}"
        if total != previous[1] or done < previous[0]:  # the next phase of the work
            assert previous[0] == previous[1], f"a phase stopped at {previous[0]} of {previous[1]}"
        previous = (done, total)
    assert previous[0] == previous[1], f"progress stopped at {previous[0]} of {previous[1]}"

    class Stop(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        call(stop)


def same(expected: Any, found: Any, atol: float = 1e-5) -> None:
    """Assert equality of arrays, tensors, images and what holds them.

    Floats may be off by ``atol`` times the largest of their array.
    """
    import numpy as np

    expected, found = _plain(expected), _plain(found)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert expected.shape == found.shape, f"{expected.shape}, then {found.shape}"
        if expected.dtype.kind == "f":
            largest = float(np.abs(expected).max(initial=0)) or 1.0
            np.testing.assert_allclose(found, expected, atol=atol * largest, rtol=0)
        else:
            np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            same(value, found[key], atol)
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            same(a, b, atol)
    else:
        assert expected == found


def _plain(value: Any) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, Image.Image):
        return [value.mode, np.asarray(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value


def _copied(value: Any) -> Any:
    from copy import deepcopy

    return deepcopy(value)


def _tensor(width: int, height: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(picture(width, height)).permute(2, 0, 1).float() / 255


def _rows(values: Any, which: Sequence[int]) -> Any:
    return [values[i] for i in which] if isinstance(values, list | tuple) else values[list(which)]


def _shake(seed: int) -> None:
    """Put the global generators somewhere else: results may not depend on them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _logits(output: Any) -> torch.Tensor:
    found: torch.Tensor = (
        output if hasattr(output, "shape") else getattr(output, "logits", output[0])
    )
    return found.detach()


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    both = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / (both - width * height)


def _here(host: Any) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host)
    return text in ("localhost", "::1", "None", "") or text.startswith("127.")


def _another(option: Option) -> Any:
    """A value that an option takes and that is not its default; None where that cannot be known."""
    if option.type == "bool":
        return not option.default
    if option.type == "choice":
        return next((choice for choice in option.choices if choice != option.default), None)
    if option.type == "str":
        return None
    number = int if option.type == "int" else float
    candidates = [option.min, option.max, (option.default or 0) + 1, (option.default or 0) / 2]
    for value in candidates:
        if value is not None and number(value) == value and value != option.default:
            try:
                return option.check(number(value))
            except OptionError:
                continue
    return None


def _signature_problem(wanted: Any, found: Any) -> str:
    theirs = inspect.signature(found).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    for name, parameter in inspect.signature(wanted).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if name not in theirs:
            if not (anything and parameter.kind is parameter.KEYWORD_ONLY):
                return f"lacks the parameter {name!r}"
        elif theirs[name].kind is not parameter.kind:
            return f"{name!r} must be {parameter.kind.description}"
        elif theirs[name].default != parameter.default:
            return f"{name!r} must default to {parameter.default!r}"
    known = inspect.signature(wanted).parameters
    for name, parameter in theirs.items():
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in known and parameter.default is parameter.empty and not optional:
            return f"its own parameter {name!r} must have a default"
    return ""


@cache
def _imports(package: str) -> list[str]:
    """Which of ``HEAVY`` importing a package alone brings in, in a process of its own."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import {package}; "
        f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"import {package} failed:\n{done.stderr}"
    return done.stdout.split()


__all__ = [
    "HEAVY",
    "KINDS",
    "DataSelectorSuite",
    "DetectorSuite",
    "ModelSuite",
    "QAGeneratorSuite",
    "QuantizerSuite",
    "SRModelSuite",
    "SelectionTask",
    "VLAlignerSuite",
    "check_detections",
    "check_image",
    "check_progress",
    "make_image",
    "picture",
    "same",
]
