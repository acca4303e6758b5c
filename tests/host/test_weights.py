"""Weights: matching files are loaded completely and without copies, others raise clear errors."""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo import weights
from zoo.entry import Base, Entry
from zoo.errors import DeviceError, PluginError, WeightsError, WeightsNotFoundError, ZooError
from zoo.interfaces import Model


class Net(nn.Module):
    """Every sort of state: parameters, tied ones, a counter, a buffer that is not in the file."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros(width), persistent=False)

    def recompute_buffers(self, device: torch.device | str) -> None:
        self.steps = torch.arange(self.steps.numel(), device=device).float()  # type: ignore[has-type]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids) + self.steps))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net().eval()
    made.recompute_buffers("cpu")
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return weights.save_tensors(tmp_path / "model.safetensors", net().state_dict())


def raw(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


# --- load_module ----------------------------------------------------------------------------------


def test_loads_the_same_network(saved: Path) -> None:
    loaded: Any = weights.load_module(Net, saved)
    ids = torch.arange(6)
    assert torch.equal(loaded(ids), net()(ids))
    assert not loaded.training
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.body[1].num_batches_tracked.dtype == torch.int64
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.slow
def test_loading_imports_little(saved: Path) -> None:
    """Normal numbers on the meta device import sympy, which takes half as long as torch."""
    code = f"""
        import sys, torch
        from torch import nn
        from zoo import weights

        def build():
            made = nn.Embedding(6, 4)
            nn.init.normal_(made.weight, std=0.02)
            nn.init.trunc_normal_(made.weight)
            return made

        file = weights.save_tensors({str(saved)!r}, {{"weight": torch.ones(6, 4)}})
        assert "sympy" not in sys.modules, "torch does it by itself: drop this test"
        assert weights.load_module(build, file).weight.sum() == 24
        assert "sympy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_folder_will_do(saved: Path) -> None:
    assert isinstance(weights.load_module(Net, saved.parent), Net)


@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("asked", ["float16", "float32", "bfloat16"])
def test_the_asked_dtype_wins(tmp_path: Path, stored: torch.dtype, asked: str) -> None:
    file = weights.save_tensors(tmp_path / "w.safetensors", net().to(stored).state_dict())
    loaded: Any = weights.load_module(Net, file, dtype=asked)
    assert {str(p.dtype) for p in loaded.parameters()} == {f"torch.{asked}"}
    assert loaded.body[1].running_mean.dtype == getattr(torch, asked)
    assert loaded.body[1].num_batches_tracked.dtype == torch.int64
    assert loaded.steps.dtype == torch.float32  # as recompute_buffers makes it


def test_a_wrong_dtype_is_a_usage_error(saved: Path) -> None:
    for word in ("int8", "nn", "float31"):
        with pytest.raises(DeviceError, match=word):
            weights.load_module(Net, saved, dtype=word)


def test_loaded_weights_are_not_tied_to_the_file(saved: Path) -> None:
    loaded: Any = weights.load_module(Net, saved)
    before = loaded.embed.weight.detach().clone()
    size = saved.stat().st_size
    with saved.open("r+b") as file:  # overwritten in place, as cp does
        file.write(b"\0" * size)
    assert torch.equal(loaded.embed.weight, before)


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_tied_parameters_may_be_stored_once(tmp_path: Path, kept: str) -> None:
    state = {n: t.clone() for n, t in net().state_dict().items()}
    del state[{"embed.weight": "head.weight", "head.weight": "embed.weight"}[kept]]
    loaded: Any = weights.load_module(Net, weights.save_tensors(tmp_path / "w.safetensors", state))
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, net().embed.weight)


def test_shared_when_saved_but_not_in_the_network(tmp_path: Path) -> None:
    one = torch.randn(3, 3)
    file = weights.save_tensors(
        tmp_path / "w.safetensors", {"1.weight": one, "0.weight": one, "0.bias": torch.ones(3)}
    )
    loaded: Any = weights.load_module(
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False)), file
    )
    assert torch.equal(loaded[0].weight, one)
    assert torch.equal(loaded[1].weight, one)
    assert loaded[0].weight.data_ptr() != loaded[1].weight.data_ptr()


def broken(change: object) -> dict[str, torch.Tensor]:
    state = {n: t.clone() for n, t in net().state_dict().items()}
    change(state)  # type: ignore[operator]
    return state


UNFIT = {
    "missing": (lambda s: s.pop("body.0.bias"), "1 missing: body.0.bias"),
    "extra": (lambda s: s.update(more=torch.ones(1)), "1 not in the network: more"),
    "misshapen": (
        lambda s: s.update({"body.0.bias": torch.ones(5)}),
        "1 of another shape: body.0.bias (5,) for (4,)",
    ),
    "another kind": (
        lambda s: s.update({"body.0.bias": torch.ones(4, dtype=torch.int8)}),
        "1 of another dtype: body.0.bias int8 for float32",
    ),
    "an integer too narrow": (
        lambda s: s.update({"body.1.num_batches_tracked": torch.tensor(1, dtype=torch.int32)}),
        "num_batches_tracked int32 for int64",
    ),
    "both tied": (
        lambda s: (s.pop("head.weight"), s.pop("embed.weight")),
        "2 missing: embed.weight, head.weight",
    ),
    "many": (
        lambda s: s.update({f"x{i:02}": torch.ones(1) for i in range(25)}),
        "25 not in the network: x00, x01, x02, x03, x04, x05, x06, x07, x08, x09 and 15 more",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_named(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = UNFIT[case]
    file = weights.save_tensors(tmp_path / "w.safetensors", broken(change))
    monkeypatch.setattr(weights, "_tensors", None)  # no tensor may be read
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        weights.load_module(Net, file)
    assert "Net" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_stays_without_a_value(tmp_path: Path) -> None:
    class Forgot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("freqs", torch.ones(2), persistent=False)

    file = weights.save_tensors(tmp_path / "w.safetensors", Forgot().state_dict())
    with pytest.raises(PluginError, match=r"Forgot: freqs got no value.*recompute_buffers"):
        weights.load_module(Forgot, file)


def test_parts(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["head.weight"]
    names = list(state)
    where = {n: f"part-{i % 2}.safetensors" for i, n in enumerate(names)}
    for part in set(where.values()):
        weights.save_tensors(tmp_path / part, {n: state[n] for n in names if where[n] == part})
    index = tmp_path / weights.INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    loaded: Any = weights.load_module(Net, tmp_path)
    assert torch.equal(loaded(torch.arange(6)), net()(torch.arange(6)))

    for bad, message in (
        ({"x": "part-0.safetensors"}, "4 missing"),
        ({**where, "x": "../part-0.safetensors"}, "not a safetensors file in this folder"),
        ({**where, "x": "part-0.bin"}, "not a safetensors file in this folder"),
        ({**where, "x": "part-9.safetensors"}, "part-9.safetensors is missing"),
        ({"x": 3}, "is not an index"),
        ([], "is not an index"),
    ):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(WeightsError, match=re.escape(message)):
            weights.load_module(Net, tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"neither model\.safetensors nor"):
        weights.load_module(Net, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_that_of_the_weights(tmp_path: Path) -> None:
    """300 MB, once."""
    layers, side = 12, 2560
    size = 4 * side * side
    head = {
        f"{i}.weight": {
            "dtype": "F32", "shape": [side, side], "data_offsets": [i * size, (i + 1) * size]
        }
        for i in range(layers)
    }  # fmt: skip
    file = raw(tmp_path / "big.safetensors", head)
    with file.open("r+b") as out:
        out.truncate(file.stat().st_size + layers * size)
    code = f"""
        import pathlib, re, torch
        from torch import nn
        from zoo import weights

        def peak():
            status = pathlib.Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])

        def build():
            return nn.Sequential(*(nn.Linear({side}, {side}, bias=False) for _ in range({layers})))

        tiny = pathlib.Path({str(tmp_path)!r}) / "tiny.safetensors"
        weights.save_tensors(tiny, nn.Linear(2, 2).state_dict())
        weights.load_module(lambda: nn.Linear(2, 2), tiny)  # what torch imports when first used
        weights.sha256({str(file)!r})
        before = peak()
        module = weights.load_module(build, {str(file)!r})
        print((peak() - before) * 1024 / sum(p.numel() * 4 for p in module.parameters()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(done.stdout) <= 1.15


# --- files that are not what they seem ------------------------------------------------------------


def entry(start: int, end: int, shape: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


DAMAGED = {
    "empty": (b"", "only 0 bytes"),
    "seven bytes": (b"1234567", "only 7 bytes"),
    "a length": (struct.pack("<Q", 9), "only 8 bytes"),
    "a length past all bounds": (struct.pack("<Q", 2**40) + b"{}", "does not start"),
    "random": (b"\xff" * 99, "does not start with a header"),
    "a web page": (b"<!DOCTYPE html><html></html>", "does not start with a header"),
    "a zip checkpoint": (b"PK\x03\x04" + b"\0" * 40, "can run code"),
    **{
        f"a pickle of protocol {n}": (pickle.dumps({"a": [1.0] * 9}, n), "can run code")
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "cut in the header": (struct.pack("<Q", 50) + b"{}", "cut short: its header alone has 50"),
    "not JSON": (struct.pack("<Q", 4) + b"{a:}", "damaged header"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', "damaged header"),
    "not an object": (struct.pack("<Q", 2) + b"[]", "does not start with a header"),
    "deep": (struct.pack("<Q", 99_999) + b'{"a":' + b"[" * 99_994, "nested too deep"),
    "NaN": (struct.pack("<Q", 9) + b'{"a":NaN}', "NaN is not JSON"),
    "twice": (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "a key appears twice"),
}
BAD_HEADERS = {
    "no dtype": ({"a": {}}, 0, "damaged header: 'a' is {}"),
    "not a mapping": ({"a": 3}, 0, "damaged header: 'a' is 3"),
    "unknown dtype": ({"a": entry(0, 4, [1], "F3")}, 4, "'F3'"),
    "dtype of another type": ({"a": entry(0, 4, [1], [])}, 4, "'a'"),  # type: ignore[arg-type]
    "negative shape": ({"a": entry(0, 4, [-1, -1])}, 4, "damaged header: 'a' is"),
    "true as a number": ({"a": entry(0, 4, [True])}, 4, "damaged header: 'a' is"),
    "float shape": ({"a": entry(0, 4, [1.0])}, 4, "damaged header: 'a' is"),
    "shape of another type": ({"a": entry(0, 4, {"1": 1})}, 4, "'a'"),  # type: ignore[arg-type]
    "size": ({"a": entry(0, 8, [1])}, 8, "'shape': [1], 'data_offsets': [0, 8]"),
    "gap": ({"a": entry(4, 8, [1])}, 8, "'a' leaves a gap or overlaps"),
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, 8, "'b' leaves a gap"),
    "cut": ({"a": entry(0, 400, [100])}, 399, "cut short"),
    "too long": ({"a": entry(0, 4, [1])}, 6, "2 bytes after its last tensor"),
    "offsets past the file": ({"a": entry(0, 2**62, [2**60])}, 4, "cut short"),
}


@pytest.mark.parametrize("read", [weights.header, weights.load_tensors])
@pytest.mark.parametrize("case", [*DAMAGED, *BAD_HEADERS])
def test_damaged_files_are_refused_in_words(tmp_path: Path, case: str, read: object) -> None:
    path = tmp_path / "model.safetensors"
    if case in DAMAGED:
        content, message = DAMAGED[case]
        path.write_bytes(content)
    else:
        head, size, message = BAD_HEADERS[case]
        raw(path, head, b"\0" * size)
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        read(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="is missing"):
        weights.header(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        weights.sha256(tmp_path / "none")
    with pytest.raises(WeightsError, match="cannot read"):
        weights.header(tmp_path)


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), byte=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_never_does_worse_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    path = weights.save_tensors(
        folder / "a.safetensors", {"a": torch.ones(3, 5), "b": torch.zeros(2, dtype=torch.int8)}
    )
    content = bytearray(path.read_bytes())
    content[flip % len(content)] ^= byte
    path.write_bytes(content[: len(content) - cut % len(content)])
    try:
        tensors = weights.load_tensors(path)
    except WeightsError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= len(content)


# --- tensors --------------------------------------------------------------------------------------

DTYPES = [
    getattr(torch, name)
    for name, _ in weights._DTYPES.values()  # what the table promises must hold
]


@given(
    st.dictionaries(
        st.text(max_size=12).filter(lambda t: t != "__metadata__" and t.isprintable()),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.booleans()),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    spec: dict[str, tuple[torch.dtype, list[int], bool]],
) -> None:
    tensors = {}
    for name, (dtype, shape, turned) in spec.items():
        values = torch.randint(0, 2, shape or (), dtype=torch.int32).to(dtype)
        tensors[name] = values.movedim(0, -1) if turned and values.ndim > 1 else values
    path = tmp_path_factory.mktemp("round", numbered=True) / "t.safetensors"
    weights.save_tensors(path, tensors, {"note": "x"})
    assert weights.header(path) == {
        n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()
    }
    loaded = weights.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(*(t.to(torch.complex64) for t in (loaded[name], tensor)))


def test_other_programs_read_what_we_write(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = weights.save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, 3)}, {"b": "c"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "b": "c"}
        assert torch.equal(file.get_tensor("a"), torch.ones(2, 3))


def test_shared_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    tensors = {
        "whole": whole,
        "again": whole,
        "part": whole[2:5],
        "view": whole.view(3, 4),
        "turned": whole.view(3, 4).T,
        "wide": torch.ones(1).expand(4),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    path = weights.save_tensors(tmp_path / "a.safetensors", tensors)
    loaded = weights.load_tensors(path)
    assert all(torch.equal(loaded[n], t) for n, t in tensors.items())
    assert len({t.data_ptr() for t in loaded.values()}) == len(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": 3}, "int is not a torch tensor"),
        ({3: torch.ones(1)}, "cannot save 3"),
        ({"a": torch.ones(2, device="meta")}, "on the meta device"),
        ({"a": torch.eye(2).to_sparse()}, "not a dense tensor"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "complex128"),
        ({"__metadata__": torch.ones(1)}, "reserves"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, tensors: dict, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        weights.save_tensors(tmp_path / "a.safetensors", tensors)
    assert list(tmp_path.iterdir()) == []


def test_sha256_and_verify(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert weights.sha256(path) == digest
    weights.verify(path, 3, digest)
    with pytest.raises(WeightsError, match="has 3 bytes, expected 4"):
        weights.verify(path, 4, digest)
    path.write_bytes(b"abd")
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.verify(path, 3, digest)


# --- saved folders --------------------------------------------------------------------------------

ENTRY = Entry("net", "SRModel", "zoo_net", "ready", "a net", distribution="dist")


class Saveable(Model):
    kind = "reader"


def model(config: dict | None = None, module: nn.Module | None = None) -> Saveable:
    made = Saveable(
        SimpleNamespace(entry=ENTRY, options={"k": 0.5}, config=config or {"width": 4}, bases={})
    )
    made.module = module
    return made


def test_a_model_is_saved_and_read(tmp_path: Path) -> None:
    made = model(module=net())
    made.bases = {"base": Base("org/x", tmp_path, "a" * 40, None, "mit")}
    path = made.save_pretrained(tmp_path / "out")
    assert path == tmp_path / "out"
    assert sorted(p.name for p in path.iterdir()) == ["model.safetensors", "zoo.json"]
    saved = weights.read_saved(path)
    assert saved.folder == path
    assert saved.options == {"k": 0.5}
    manifest = dict(saved.manifest)
    file = manifest.pop("files")["model.safetensors"]
    assert file["sha256"] == weights.sha256(path / "model.safetensors")
    assert manifest.pop("zoo")
    assert manifest == {
        "format": 1,
        "plugin": "zoo_net",
        "distribution": "dist",
        "model": "net",
        "kind": "reader",
        "interface": None,
        "class": f"{Saveable.__module__}:Saveable",
        "config": {"width": 4},
        "options": {"k": 0.5},
        "bases": {"base": {"id": "org/x", "revision": "a" * 40, "sha256": None, "license": "mit"}},
    }
    assert isinstance(weights.load_module(Net, path), Net)


def test_a_model_without_weights_has_no_weights_file(tmp_path: Path) -> None:
    path = model().save_pretrained(tmp_path / "out")
    assert [p.name for p in path.iterdir()] == ["zoo.json"]
    assert weights.read_saved(path).manifest["files"] == {}


def test_a_model_may_add_files(tmp_path: Path) -> None:
    class More(Saveable):
        def save_files(self, folder: Path) -> None:
            (folder / "words").mkdir()
            (folder / "words" / "vocab.txt").write_text("a b c")

    made = More(SimpleNamespace(entry=ENTRY, options={}, config={}, bases={}))
    path = made.save_pretrained(tmp_path / "out")
    assert list(weights.read_saved(path).manifest["files"]) == ["words/vocab.txt"]
    (path / "words" / "vocab.txt").write_text("a b d")
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.read_saved(path)


def test_saving_twice_needs_overwrite(tmp_path: Path) -> None:
    path = model({"width": 1}).save_pretrained(tmp_path / "out")
    with pytest.raises(OSError, match="already exists"):
        model({"width": 2}).save_pretrained(path)
    assert weights.read_saved(path).manifest["config"] == {"width": 1}
    model({"width": 2}).save_pretrained(path, overwrite=True)
    assert weights.read_saved(path).manifest["config"] == {"width": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("config", [{"a": object()}, {"a": math.nan}, {"a": Path("x")}])
def test_a_config_that_is_not_json(tmp_path: Path, config: dict) -> None:
    with pytest.raises(PluginError, match="is not JSON"):
        model(config).save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["old.bin", "model.pt", "a/b.PKL", "x.pth", "c.ckpt", "d.npy"])
def test_pickles_in_a_folder_are_refused_by_name(tmp_path: Path, saved: Path, name: str) -> None:
    path = model(module=net()).save_pretrained(tmp_path / "out")
    for folder, check in (
        (path, weights.read_saved),
        (saved.parent / "plain", weights.check_plain_folder),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
        with pytest.raises(WeightsError, match=rf"{name}.*Convert to safetensors"):
            check(folder)


def test_plain_folders(tmp_path: Path, saved: Path) -> None:
    assert weights.check_plain_folder(saved.parent) == saved.parent
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsNotFoundError, match="holds no weights"):
        weights.check_plain_folder(empty)
    with pytest.raises(WeightsNotFoundError, match="there is no folder"):
        weights.check_plain_folder(tmp_path / "ghost")


GOOD = {
    "format": 1, "zoo": "1", "plugin": "p", "distribution": "d", "model": "m", "kind": "model",
    "interface": None, "class": "p:C", "config": {}, "options": {}, "bases": {}, "files": {},
}  # fmt: skip
HASH = "0" * 64
BAD_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "a later format": ({"format": 2}, "format 2; this zoo reads up to 1. Upgrade"),
    "no format": ({"format": None}, "format must be 1"),
    "format as text": ({"format": "1"}, "format must be 1"),
    "true is not 1": ({"format": True}, "format must be 1"),
    "plugin": ({"plugin": 3}, "plugin cannot be 3"),
    "config": ({"config": []}, "config cannot be []"),
    "interface": ({"interface": 1}, "interface cannot be 1"),
    "base": ({"bases": {"lvlm": {"id": 1}}}, "bases: lvlm must be {id, revision"),
    "bases": ({"bases": None}, "bases cannot be None"),
    "several": ({"model": 1, "kind": 2}, "model cannot be 1; kind cannot be 2"),
    "file without a hash": ({"files": {"a.txt": {"size": 1}}}, "'a.txt' needs a size"),
    "upper-case hash": ({"files": {"a": {"size": 0, "sha256": "A" * 64}}}, "lower-case hex"),
    **{
        f"path {name!r}": ({"files": {name: {"size": 0, "sha256": HASH}}}, "inside the folder")
        for name in ("../a", "/a", "a/../b", "a\\b", "c:a", "", "a//b", "./a", "zoo.json")
    },
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest(tmp_path: Path, case: str) -> None:
    change, message = BAD_MANIFESTS[case]
    (tmp_path / "zoo.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(WeightsError, match=re.escape(message)):
        weights.read_saved(tmp_path)


@pytest.mark.parametrize("base", [None, {"id": "org/x", "revision": None}])
def test_a_folder_from_before_several_bases(tmp_path: Path, base: dict | None) -> None:
    old = {k: v for k, v in GOOD.items() if k != "bases"}
    (tmp_path / "zoo.json").write_text(json.dumps({**old, "base": base}))
    found = weights.read_saved(tmp_path).manifest["bases"]
    more = {"sha256": None, "license": None}
    assert found == ({} if base is None else {"base": {**base, **more}})


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "zoo.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))
    with pytest.raises(WeightsError, match=key):
        weights.read_saved(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[]", "not an object"),
        ("[" * 5000, "nested too deep"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": Infinity}', "Infinity is not JSON"),
        (" " * 1_100_000 + "{}", "larger than"),
    ],
)
def test_a_manifest_that_is_no_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "zoo.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        weights.read_saved(tmp_path)


def test_folders_that_are_not_saved_models(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "no", "there is no folder"), (tmp_path, "no zoo.json")):
        with pytest.raises(WeightsNotFoundError, match=message):
            weights.read_saved(folder)
    (tmp_path / "zoo.json").write_text(
        json.dumps({**GOOD, "files": {"a.json": {"size": 1, "sha256": HASH}}})
    )
    with pytest.raises(WeightsNotFoundError, match=r"a\.json is missing"):
        weights.read_saved(tmp_path)


def test_every_damage_to_a_saved_folder_is_seen(tmp_path: Path) -> None:
    path = model(module=net()).save_pretrained(tmp_path / "out") / "model.safetensors"
    content = path.read_bytes()
    for changed in (content[:-1], content + b"\0", content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(changed)
        with pytest.raises(ZooError, match="Delete it and get it again"):
            weights.read_saved(path.parent)


def test_no_torch_for_reading_a_saved_folder(tmp_path: Path) -> None:
    path = model(module=net()).save_pretrained(tmp_path / "out")
    code = f"""
        import sys
        from zoo import weights
        weights.read_saved({str(path)!r})
        weights.header({str(path / "model.safetensors")!r})
        assert not {{"torch", "numpy", "safetensors"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("length", range(512, 768, 8))
def test_a_header_may_have_any_length(tmp_path: Path, length: int) -> None:
    """640 starts with the byte that pickles start with."""
    text = json.dumps({"a": entry(0, 0, [0])}).encode().ljust(length)
    assert weights.header(raw(tmp_path / "a.safetensors", text)) == {"a": ("float32", (0,))}
