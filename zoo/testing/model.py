"""Tests of any model that ``zoo.load`` returns; the suite of each interface extends them."""

from __future__ import annotations

import abc
import inspect
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ..errors import DeviceError, OptionError, OutputError, PluginError, ZooError
from ..interfaces import INTERFACES, verbs
from .checks import same, shake

if TYPE_CHECKING:
    from ..entry import Entry, Option

HEAVY = (
    "torch", "numpy", "PIL", "transformers", "diffusers", "timm", "open_clip", "scipy", "sklearn",
    "skimage", "pandas", "cv2", "matplotlib", "onnx", "onnxruntime", "tensorflow", "jax",
)  # fmt: skip
"""Modules that a plugin's package must not import, because they are slow to import."""


class ModelSuite(abc.ABC):
    """Tests of any model that ``zoo.load`` returns; the suite of each interface extends them."""

    name: ClassVar[str] = ""
    """The name of the model, for ``zoo.load``."""
    load_with: ClassVar[Mapping[str, Any]] = {}
    """Further keywords of ``zoo.load``, such as a small ``base``."""
    interface: ClassVar[str] = ""

    def load(self, **options: Any) -> Any:
        """A new model, not shared with other tests."""
        from .. import load

        assert self.name, f"set {type(self).__name__}.name to the model's name"
        return load(self.name, **{"device": "cpu", **self.load_with, **options})

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of ``make``, made once for the whole class and kept until its last test."""
        cls = type(self)
        if "_kept" not in vars(cls):
            cls._kept = {}
        if key not in cls._kept:
            shake(0)  # tests that make it again start from another state
            cls._kept[key] = make()
        return cls._kept[key]

    _kept: ClassVar[dict[str, Any]]

    @classmethod
    def teardown_class(cls) -> None:
        """Release the models: a file may test several."""
        cls._kept = {}

    @pytest.fixture
    def model(self) -> Any:
        """The model that most tests share."""
        return self.once("model", self.load)

    @pytest.fixture
    def ready(self, model: Any) -> Any:
        """The model in the state in which it is used and saved: fitted, if it can be."""
        return model

    @pytest.fixture
    def sample(self) -> Any:
        """The input of ``outputs``."""
        return None

    @abc.abstractmethod
    def outputs(self, ready: Any, sample: Any) -> Any:
        """The outputs that a saved and loaded model must reproduce."""

    @pytest.fixture(autouse=True)
    def network_calls(self) -> Iterator[list[str]]:
        """Blocks the network (except this machine) and records attempts to use it."""
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
        """Entry, class and suite have the same interface."""
        entry: Entry = model.entry
        assert entry.interface == self.interface, f"{entry.name} is a {entry.interface}"
        assert isinstance(model, INTERFACES[self.interface])

    def test_class_of_the_entry(self, model: Any) -> None:
        """``class`` in the registry is the class that ``zoo.load`` returns: editors rely on it."""
        from importlib import import_module

        target = model.entry.class_
        module, _, name = target.partition(":")
        named = getattr(import_module(module), name)
        assert isinstance(model, named), f"loading gives a {type(model).__qualname__}, not {target}"

    def test_verbs_take_what_the_interface_says(self, model: Any) -> None:
        """Parameters have the interface's names, kinds and defaults; others must be optional."""
        for verb in verbs(self.interface):
            wanted = getattr(INTERFACES[self.interface], verb)
            problem = _signature_problem(wanted, getattr(type(model), verb))
            assert not problem, f"{verb}: {problem}"

    def test_options_are_in_force(self, model: Any) -> None:
        """Each declared load option has its default, and accepts another value."""
        declared: Mapping[str, Option] = model.entry.options.get("load", {})
        given = {key: self.load_with[key] for key in declared if key in self.load_with}
        assert dict(model.options) == {k: o.default for k, o in declared.items()} | given
        for key, option in declared.items():
            value = _another(option)
            if value is not None:
                found = self.load(**{key: value}).options.get(key)
                assert found == value, f"asked for {key}={value!r}, model.options has {found!r}"

    def test_import_is_light(self, model: Any) -> None:
        """Importing the package alone imports no numerical library: hooks import them."""
        heavy = _imports(model.entry.plugin)
        assert not heavy, f"import {model.entry.plugin} imports {', '.join(heavy)}"

    # the weights

    def test_weights_are_ready_for_use(self, model: Any) -> None:
        """Weights are complete, in eval mode, and float32 by default."""
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

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_dtype(self, dtype: str) -> None:
        """Floating-point weights have the requested dtype, or DeviceError is raised."""
        try:
            module = self.load(dtype=dtype).module
        except DeviceError:
            return
        for key, tensor in module.named_parameters() if module is not None else ():
            if tensor.is_floating_point():
                assert str(tensor.dtype) == f"torch.{dtype}", f"{key} is {tensor.dtype}"

    def test_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The whole module is on the requested device, after loading and after ``to``.

        The device is torch's ``meta``, which every machine has: it keeps shapes and no values.
        """
        from .. import api

        moved = self.load().to("meta")
        monkeypatch.setattr(api, "torch_device", lambda device, entry: str(device))
        try:
            made = self.load(device="meta")
        except PluginError as error:
            if "meta" not in str(error.__cause__):  # else its code reads values while it builds
                raise
            made = moved
        for model, when in ((made, "after loading"), (moved, "after to()")):
            if model.module is not None and [*model.module.parameters()]:
                assert model.device.type == "meta", f"model.device is {model.device} {when}"
                for key, tensor in model.module.state_dict(keep_vars=True).items():
                    place = getattr(tensor, "device", model.device)
                    assert place.type == "meta", f"{key} is on {place} {when}"

    def test_export(self, ready: Any, tmp_path: Path) -> None:
        """An unknown format is refused, and nothing is written."""
        with pytest.raises(ZooError):
            ready.export(tmp_path / "exported", "no-such-format")
        assert not [*tmp_path.iterdir()], "it left something behind"

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
        """The host has downloaded everything; stdout belongs to the user's program."""
        self.outputs(ready, sample)
        assert not network_calls, f"it tried to reach {', '.join(sorted(set(network_calls)))}"
        assert not capfd.readouterr().out, "it prints to stdout"

    def test_same_again(self, ready: Any, sample: Any) -> None:
        """The same call gives the same result, whatever the state of the global generators."""
        shake(1)
        first = self.outputs(ready, sample)
        shake(2)
        same(first, self.outputs(ready, sample))

    def test_saved_and_loaded(self, ready: Any, sample: Any, tmp_path: Path) -> None:
        """A saved folder has ``zoo.json``, can be moved, is not overwritten, and gives the same
        outputs."""
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
        assert type(type(ready).from_pretrained(folder, device="cpu")) is type(ready)


def _here(host: Any) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host)
    return text in ("localhost", "::1", "None", "") or text.startswith("127.")


def _another(option: Option) -> Any:
    """A valid value of an option other than its default; None if none is known."""
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
    """The modules of ``HEAVY`` that importing a package imports, in a separate process."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import {package}; "
        f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"import {package} failed:\n{done.stderr}"
    return done.stdout.split()
