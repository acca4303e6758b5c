"""``zoo.load`` and related functions: each step works, or fails with its own error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import zoo
from tests.conftest import MINIMAL_REGISTRY, Site
from zoo import actions, api, arguments, bases, hookspecs, interfaces, registry
from zoo.errors import (
    DeviceError,
    InputError,
    NotReadyError,
    OptionError,
    OutputError,
    PluginError,
    UnknownModelError,
    UsageError,
    WeightsError,
    WeightsNotFoundError,
    ZooError,
)

INIT = """
from zoo.hookspecs import hookimpl

@hookimpl
def zoo_build(request):
    from .model import Model
    return Model.build(request)

@hookimpl
def zoo_train(request):
    from zoo.hookspecs import BuildRequest
    from .model import Model, Net
    if request.init:
        model = Model.build(BuildRequest(request.entry, request.init, options={"gain": 1.0}))
    else:
        model = Model(BuildRequest(request.entry, None, options={"gain": 1.0}))
        model.module = Net(**request.entry.config)
    model.module.weight.data += request.seed + request.options["rate"]
    request.out.mkdir(exist_ok=True)
    return model.save_pretrained(request.out / "model")
"""
MODEL = """
import torch
from zoo.images import transform
from zoo.interfaces import SRModel
from zoo.weights import load_module

class Net(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return (x * self.weight).repeat_interleave(2, -1).repeat_interleave(2, -2)

class Model(SRModel):
    scales = (2,)

    @classmethod
    def build(cls, request):
        self = cls(request)
        self.module = load_module(
            lambda: Net(**self.config), request.folder, device=request.device, dtype=request.dtype
        )
        self.request = request
        return self

    def upscale(self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False):
        gain = self.options["gain"]
        with torch.no_grad():
            return transform(images, lambda x: self.module(x) * gain, scale=2)
"""
ENTRY = """
  {name}:
    interface: SRModel
    status: {status}
    method: {method}
    summary: multiplies and repeats
    class: "tiny_sr.model:Model"
    config: {{channels: 3}}
    options:
      load:
        gain: {{type: float, default: 1.0, min: 0, max: 1}}
        mode: {{choices: [fast, good], default: fast}}
      train: {{rate: {{type: float, default: 0.5}}}}
"""
BASE = """
  with-base:
    interface: SRModel
    status: ready
    summary: works on another model
    class: "tiny_sr.model:Model"
    base: {kind: timm, default: small-base}
bases:
  small-base:
    summary: a base
    files: [{path: a.json, size: 2, sha256: SHA}]
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third-party plugin with a ready model, an untrained one, another method and a base."""
    monkeypatch.chdir(tmp_path)
    folder = here.plugin("tiny_sr", distribution="tiny-dist", init=INIT, model=MODEL)
    bundle = folder / "weights" / "tiny-sr"
    bundle.mkdir(parents=True)
    save_file({"weight": torch.full((3, 1, 1), 0.5)}, bundle / "model.safetensors")
    save_file({"output": torch.full((3, 4, 4), 0.25)}, bundle / "expected.safetensors")
    from PIL import Image

    Image.new("RGB", (2, 2), (128, 128, 128)).save(bundle / "check.png")
    files = "".join(
        f"      - {{path: {p.name}, size: {p.stat().st_size}, sha256: {digest(p)}}}\n"
        for p in sorted(bundle.iterdir())
    )
    base = folder / "weights" / "small-base"
    base.mkdir()
    (base / "a.json").write_text("{}")
    text = (
        "schema: 1\nzoo_api: 1\nmodels:"
        + ENTRY.format(name="tiny-sr", status="ready", method="tiny")
        + f"    files:\n{files}"
        + "    check: {input: check.png, expected: expected.safetensors, atol: 0.01}\n"
        + ENTRY.format(name="tiny-sr-full", status="untrained", method="tiny")
        + ENTRY.format(name="other-sr", status="untrained", method="other")
        + BASE.replace("SHA", digest(base / "a.json"))
    )
    (folder / "registry.yaml").write_text(text)
    registry.forget()
    return folder


# --- names ----------------------------------------------------------------------------------------


def test_the_public_names() -> None:
    """The public names of zoo change only on purpose."""
    assert zoo.__all__ == [
        "__version__",
        "load",
        "list_models",
        "info",
        "Model",
        "SRModel",
        "VLAligner",
        "Quantizer",
        "DataSelector",
        "Detector",
        "QAGenerator",
        "ZooError",
    ]
    assert set(zoo.__all__) <= set(dir(zoo))
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    assert zoo.load is api.load
    assert [n for n in zoo.__all__ if n in interfaces.INTERFACES] == [*interfaces.INTERFACES]
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'lode'"):
        zoo.lode  # type: ignore[attr-defined]  # noqa: B018


def test_list_models(tiny: Path) -> None:
    names = zoo.list_models()
    assert {"tiny-sr", "tiny-sr-full", "vladva"} <= set(names)
    assert names.index("vladva") < names.index("tiny-sr")  # zoo's own first
    assert zoo.list_models("tiny-*") == ["tiny-sr", "tiny-sr-full"]
    assert zoo.list_models("TINY-*") == []
    assert zoo.list_models(interface="Quantizer") == ["mobilequant"]
    assert zoo.list_models("tiny*", interface="Detector") == []
    with pytest.raises(OptionError, match=r"interface='SR': expected one of SRModel, VLAligner"):
        zoo.list_models(interface="SR")
    for name in names:
        assert zoo.info(name).name == name.rpartition(":")[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-sar", r"no model is called 'tiny-sar'; did you mean 'tiny-sr'"),
        ("tiny-dist:tiny-sar", r"did you mean 'tiny-dist:tiny-sr'"),
        ("nowhere:tiny-sr", r"no model is called 'nowhere:tiny-sr'"),
        ("qqqqqq", r"no model is called 'qqqqqq'. `zoo list` shows all"),
        ("", r"no model is called ''"),
        ("a\0b", r"no model is called 'a\\x00b'"),
        ("x" * 5000, r"no model is called 'xxxxx"),
    ],
    ids=lambda value: value[:20],
)
def test_unknown_names(tiny: Path, name: str, words: str) -> None:
    with pytest.raises(UnknownModelError, match=words) as caught:
        zoo.load(name)
    assert isinstance(caught.value, LookupError)


def test_a_bare_folder_is_not_guessed_at(tiny: Path) -> None:
    Path("things").mkdir()
    with pytest.raises(UsageError, match=r"there is a folder 'things'. Write './things'"):
        zoo.load("things")
    with pytest.raises(
        WeightsNotFoundError, match=r"things is not a saved model: it has no zoo.json"
    ):
        zoo.load("./things")
    with pytest.raises(WeightsNotFoundError, match="there is no folder"):
        zoo.load("./nothing")
    Path("tiny-sr").mkdir()
    assert zoo.load("tiny-sr").source == "bundled"  # a known name stays the model


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("./a", "a"), ("../a", "../a"), ("/a", "/a"), ("~", "~"),
        (r"C:\a", r"C:\a"), ("D:/a", "D:/a"),
        ("a", None), ("org/a", None), ("dist:a", None), (Path("a"), "a"), ("org/a@main", None),
    ],
)  # fmt: skip
def test_what_counts_as_a_folder(text: str | Path, folder: str | None) -> None:
    expected = None if folder is None else Path(folder).expanduser()
    assert arguments.as_folder(text) == expected


# --- the steps of load ----------------------------------------------------------------------------


def test_it_loads_what_is_bundled(tiny: Path) -> None:
    model = zoo.load("tiny-sr")
    assert isinstance(model, zoo.SRModel)
    assert (model.source, model.base, model.entry.name) == ("bundled", None, "tiny-sr")
    assert dict(model.options) == {"gain": 1.0, "mode": "fast"}
    picture = np.full((2, 2, 3), 200, np.uint8)
    assert (model.upscale(picture) == 100).all()
    assert repr(model) == f"<Model 'tiny-sr' on {model.device}>"
    assert zoo.load("tiny-dist:tiny-sr", gain=0.5).upscale(picture).max() == 50
    assert zoo.load("tiny-sr", device="cpu", dtype="float16").module.weight.dtype == torch.float16
    assert zoo.load("tiny-sr", device="cpu", dtype=torch.bfloat16).request.dtype == "bfloat16"


def test_the_request(tiny: Path) -> None:
    request = zoo.load("tiny-sr", mode="good", device=torch.device("cpu")).request
    assert isinstance(request, hookspecs.BuildRequest)
    assert request.folder == tiny / "weights" / "tiny-sr"
    assert (request.saved, request.base, request.device, request.dtype) == (
        None,
        None,
        "cpu",
        "float32",
    )
    assert request.options == {"gain": 1.0, "mode": "good"}
    assert request.config == {"channels": 3}
    for frozen in (request, request.entry, request.entry.files[0]):
        field = dataclasses.fields(frozen)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, None)
    for kind in (hookspecs.BuildRequest, hookspecs.TrainRequest, hookspecs.BenchRequest):
        assert kind.__dataclass_params__.frozen  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("vladva", {}, NotReadyError, "vladva is planned: .* Ready now: .*tiny-sr"),
        ("vladva", {"anything": 1}, NotReadyError, "vladva is planned"),
        (
            "tiny-sr-full",
            {},
            NotReadyError,
            "tiny-sr-full has no trained weights. Train some with `zoo train tiny-sr-full --data "
            r"PATH -o runs/tiny-sr-full`, then zoo.load\(\"./runs/tiny-sr-full/model\"\)",
        ),
        ("tiny-sr", {"gian": 1}, OptionError, "no option 'gian' for load; did you mean 'gain'"),
        ("tiny-sr", {"zzz": 1}, OptionError, r"no option 'zzz' for load. It takes: gain, mode"),
        ("tiny-sr", {"gain": 2}, OptionError, "gain=2 is out of range: a number from 0 to 1"),
        ("tiny-sr", {"gain": "much"}, OptionError, "gain='much': expected a number from 0 to 1"),
        ("tiny-sr", {"gain": None}, OptionError, "gain=None: expected a number"),
        ("tiny-sr", {"mode": "slow"}, OptionError, "expected one of fast, good"),
        (
            "tiny-sr",
            {"base": "x"},
            OptionError,
            "tiny-sr uses no base model; leave out base='x'",
        ),
        (
            "tiny-sr",
            {"device": "gpu"},
            DeviceError,
            "device='gpu' is not available. This machine has cpu",
        ),
        ("tiny-sr", {"device": "meta"}, DeviceError, "device='meta' is not available"),
        ("tiny-sr", {"device": "cuda:99"}, DeviceError, "device='cuda:99' is not available"),
        ("tiny-sr", {"device": "xla"}, DeviceError, "device='xla' is not available"),
        ("tiny-sr", {"device": "vulkan"}, DeviceError, "device='vulkan' is not available"),
        ("tiny-sr", {"device": "privateuseone"}, DeviceError, "'privateuseone' is not available"),
        ("tiny-sr", {"device": ""}, DeviceError, "device='' is not available"),
        ("tiny-sr", {"device": None}, DeviceError, "device='None' is not available"),
        ("tiny-sr", {"dtype": "int8"}, DeviceError, "dtype='int8': expected float32, float16"),
        ("tiny-sr", {"dtype": torch.float64}, DeviceError, "dtype='torch.float64': expected"),
        ("tiny-sr", {"dtype": "half"}, DeviceError, "dtype='half': expected float32"),
        ("tiny-sr", {"weights": "./none"}, WeightsNotFoundError, "there is no folder none"),
        ("with-base", {"base": "./none"}, UsageError, "base='./none': there is no such folder"),
    ],
)
def test_each_step_fails_in_its_own_words(
    tiny: Path, name: str, arguments: dict[str, Any], error: type[ZooError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        zoo.load(name, **arguments)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_cuda_where_there_is_none(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        DeviceError, match=r'device=\'cuda\' is not available. .*"auto" chooses the best'
    ):
        zoo.load("tiny-sr", device="cuda")


def test_options_are_checked_before_anything_is_imported(tiny: Path) -> None:
    import sys

    with pytest.raises(OptionError):
        zoo.load("tiny-sr", gain=7)
    with pytest.raises(DeviceError):
        zoo.load("tiny-sr", device="gpu")
    assert "tiny_sr" not in sys.modules


def test_a_damaged_bundle(tiny: Path) -> None:
    path = tiny / "weights" / "tiny-sr" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(WeightsError, match=r"tiny-sr: a bundled file is damaged: .* Reinstall"):
        zoo.load("tiny-sr")
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"model.safetensors is not there"):
        zoo.load("tiny-sr")


def test_bases(tiny: Path, tmp_path: Path) -> None:
    """A name under bases:, a folder, and a bare folder that is not guessed at."""
    entry = zoo.info("with-base")
    found = bases.find(entry, None, "build")["base"]
    assert (found.id, found.folder) == ("small-base", tiny / "weights" / "small-base")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}", "utf-8")
    assert bases.find(entry, "./mine", "build")["base"].folder == Path("mine")
    with pytest.raises(UsageError, match=r"base='mine': .* Write './mine'"):
        bases.find(entry, "mine", "build")
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin"):
        bases.find(entry, "./mine", "build")


# --- saved folders --------------------------------------------------------------------------------


def test_a_saved_folder_comes_back(tiny: Path, tmp_path: Path) -> None:
    """Weights, configuration and options of the folder; the caller's options take precedence."""
    model = zoo.load("tiny-sr", gain=0.5)
    model.module.weight.data.fill_(0.8)
    path = model.save_pretrained(tmp_path / "mine")
    back = zoo.load(path)
    assert type(back) is type(model)
    assert torch.equal(back.module.weight, model.module.weight)
    assert (back.source, back.options["gain"]) == ("folder", 0.5)
    assert back.request.saved["model"] == "tiny-sr"
    picture = np.full((2, 2, 3), 100, np.uint8)
    assert back.upscale(picture).max() == 40
    assert zoo.load("./mine", gain=1).upscale(picture).max() == 80
    assert zoo.SRModel.from_pretrained(path, mode="good").options == {"gain": 0.5, "mode": "good"}
    with pytest.raises(
        PluginError, match=r"mine holds a Model, not a Detector. Load it with zoo.load"
    ):
        zoo.Detector.from_pretrained(path)
    with pytest.raises(OptionError, match="gain=3 is out of range"):
        zoo.load(path, gain=3)
    with pytest.raises(UsageError, match=r"has its own weights; leave out weights='./x'"):
        zoo.load(path, weights="./x")
    with pytest.raises(OptionError, match="uses no base model"):
        zoo.load(path, base="x")
    with pytest.raises(OutputError):
        model.save_pretrained(path)
    assert api.entry_of("./mine").name == "tiny-sr"
    back.save_pretrained(path, overwrite=True)


def test_the_options_of_a_saved_folder_are_checked_again(tiny: Path, tmp_path: Path) -> None:
    path = zoo.load("tiny-sr").save_pretrained(tmp_path / "mine")
    manifest = json.loads((path / "zoo.json").read_text())
    manifest["options"]["gain"] = 9
    (path / "zoo.json").write_text(json.dumps(manifest))
    with pytest.raises(OptionError, match="gain=9 is out of range"):
        zoo.load(path)
    assert zoo.load(path, gain=1.0).options["gain"] == 1.0


def test_a_saved_folder_of_a_plugin_that_is_gone(tiny: Path, here: Site, tmp_path: Path) -> None:
    path = zoo.load("tiny-sr").save_pretrained(tmp_path / "mine")
    here.plugin("impostor", registry=MINIMAL_REGISTRY.format(name="tiny-sr", package="impostor"))
    assert zoo.load(path).entry.plugin == "tiny_sr"  # by distribution, not by name
    for file in (here.path / "tiny-dist-1.0.dist-info").iterdir():
        file.unlink()
    registry.forget()
    words = (
        r"was made by 'tiny-sr' of 'tiny-dist', which is not installed. Run: zoo install tiny-dist"
    )
    with pytest.raises(UsageError, match=words):
        zoo.load(path)


def test_weights_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    """weights= accepts a saved folder of the same method, or a plain folder that fits."""
    zoo.load("tiny-sr").save_pretrained(tmp_path / "saved")
    model = zoo.load("tiny-sr-full", weights="./saved")
    assert (model.source, model.entry.name) == ("folder", "tiny-sr-full")
    assert model.request.saved["model"] == "tiny-sr"
    with pytest.raises(
        UsageError, match=r"weights='./saved' were made by tiny-sr, not by other-sr"
    ):
        zoo.load("other-sr", weights="./saved")

    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(WeightsNotFoundError, match=r"plain holds no weights"):
        zoo.load("tiny-sr", weights=plain)
    save_file({"weight": torch.ones(3, 1, 1)}, plain / "model.safetensors")
    assert zoo.load("tiny-sr", weights=plain).module.weight.min() == 1
    save_file({"weight": torch.ones(4, 1, 1)}, plain / "model.safetensors")
    with pytest.raises(WeightsError, match="weight"):
        zoo.load("tiny-sr", weights=plain)
    (plain / "model.bin").touch()
    with pytest.raises(WeightsError, match=r"holds model.bin: such files can run code"):
        zoo.load("tiny-sr", weights=plain)


# --- pull, verify, train --------------------------------------------------------------------------


def test_pull_imports_nothing(tiny: Path) -> None:
    import sys

    located = actions.pull("tiny-sr")
    assert (located.folder, located.source) == (tiny / "weights" / "tiny-sr", "bundled")
    assert actions.pull("with-base").folder is None
    with pytest.raises(NotReadyError, match="is planned"):
        actions.pull("vladva")
    with pytest.raises(NotReadyError, match="has no trained weights"):
        actions.pull("tiny-sr-full")
    assert "tiny_sr" not in sys.modules


def test_verify(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load("tiny-sr")
    off = actions.verify(model)
    assert off is not None
    assert off < 0.01
    model.module.weight.data += 0.1
    with pytest.raises(WeightsError, match=r"the output is off by 0.05\d*, more than 0.01"):
        actions.verify(model)
    for wrong, words in (
        ({"output": torch.full((3, 4, 4), torch.nan)}, "off by inf"),
        ({"output": torch.zeros(3, 2, 2)}, r"output is \(3, 2, 2\), expected \(3, 4, 4\)"),
        ({}, r"output is nothing, expected \(3, 4, 4\)"),
    ):
        monkeypatch.setattr(model, "run_check", lambda path, wrong=wrong: wrong)
        with pytest.raises(WeightsError, match=words):
            actions.verify(model)
    saved = zoo.load("tiny-sr").save_pretrained(tmp_path / "mine")
    with pytest.raises(NotReadyError, match="these are from a folder"):
        actions.verify(zoo.load(saved))
    assert actions.verify(zoo.load("tiny-sr-full", weights=saved)) is None


def test_train_makes_what_load_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    folder = actions.train(
        zoo.info("tiny-sr-full"), out, seed=2, device="cpu", options={"rate": "0.25"}
    )
    assert zoo.load(folder).module.weight.max() == 2.25
    entry = zoo.info("tiny-sr")
    again = actions.train(entry, tmp_path / "more", init=folder, device="cpu")
    assert zoo.load(again).module.weight.max() == 2.75
    named = actions.train(entry, tmp_path / "named", init="tiny-sr", device="cpu")
    assert zoo.load(named).module.weight.max() == 1.0
    with pytest.raises(OutputError, match=r"is not empty. Continue with --resume"):
        actions.train(entry, out, device="cpu")
    refused: list[tuple[dict[str, Any], type[ZooError], str]] = [
        ({"data": tmp_path / "none"}, InputError, "there is no such file or folder"),
        ({"steps": 0}, OptionError, "steps=0: expected at least 1"),
        ({"init": "./none"}, InputError, "there is no such folder"),
        ({"init": "unknown"}, UnknownModelError, "no model is called"),
        ({"base": "org/x"}, OptionError, "tiny-sr uses no base model"),
        ({"options": {"rat": 1}}, OptionError, "no option 'rat' for train; did you mean 'rate'"),
        ({"device": "gpu"}, DeviceError, "is not available"),
    ]
    for given, error, words in refused:
        with pytest.raises(error, match=words):
            actions.train(entry, tmp_path / "new", **given)
    with pytest.raises(NotReadyError, match="is planned"):
        actions.train(zoo.info("vladva"), tmp_path / "new")
    monkeypatch.chdir(tmp_path)  # where "run/model" is a folder
    with pytest.raises(UsageError, match=r"init='run/model': .* Write '\./run/model' if you mean"):
        actions.train(entry, tmp_path / "new", init="run/model")
    assert not (tmp_path / "new").exists()
