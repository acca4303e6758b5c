"""Bad input, as a user meets it: one line that says what to do, the right exit code, no traceback.

Every row runs the command itself on edge-sd-sr, in one process so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import zoo
from zoo.cli import main
from zoo.errors import InputError, OptionError, OutputError, UsageError, WeightsError, ZooError

MODEL = "edge-sd-sr"


@pytest.fixture(scope="module")
def model() -> zoo.SRModel:
    return zoo.load(MODEL)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").convert("RGB").resize((24, 16)).save(path)
    return path


def command(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str]:
    """Exit code and stderr of ``zoo *args``."""
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, args)))
    code = stopped.value.code
    return (code if isinstance(code, int) else 1), capsys.readouterr().err


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header says 60,000 x 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:1500])


FILES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("not an image", "a.png", lambda p: p.write_text("hello"), "not an image"),
    ("empty file", "a.png", lambda p: p.write_bytes(b""), "empty"),
    ("truncated JPEG", "a.jpg", truncated, "truncated"),
    ("missing file", "a.png", lambda p: None, "there is no such file"),
    ("folder", "a.png", lambda p: p.mkdir(), "a.png"),
    ("decompression bomb", "a.png", bomb, "pixels"),
]


@pytest.mark.parametrize(
    ("name", "make", "said"), [r[1:] for r in FILES], ids=[r[0] for r in FILES]
)
def test_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], object],
    said: str,
) -> None:
    path = tmp_path / name
    make(path)
    code, text = command(capsys, "upscale", MODEL, str(path), "-o", str(tmp_path / "out.png"))
    assert code == 1
    assert said in text.lower()
    assert str(path) in text
    assert text.startswith("zoo: ")
    assert text.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


USAGE: list[tuple[str, list[str], int, str]] = [
    ("unknown model", ["upscale", "edge-sdsr", "PHOTO"], 2, "did you mean 'edge-sd-sr'"),
    ("planned model", ["upscale", "fam-diffusion", "PHOTO"], 1, "planned"),
    ("untrained model", ["upscale", "edge-sd-sr-full", "PHOTO"], 1, "zoo train edge-sd-sr-full"),
    ("another interface", ["upscale", "graph-qa", "PHOTO"], 1, "graph-qa"),
    ("unknown option", ["upscale", MODEL, "PHOTO", "-O", "fidelty=1"], 2, "mean 'fidelity'"),
    ("option out of range", ["upscale", MODEL, "PHOTO", "-O", "fidelity=2"], 2, "from 0 to 1"),
    ("option of a wrong type", ["upscale", MODEL, "PHOTO", "-O", "fidelity=much"], 2, "a number"),
    ("wrong device", ["upscale", MODEL, "PHOTO", "--device", "cuda:77"], 2, "has cpu"),
    ("no such device", ["upscale", MODEL, "PHOTO", "--device", "toaster"], 2, "has cpu"),
    ("wrong scale", ["upscale", MODEL, "PHOTO", "--scale", "3"], 2, "4"),
    ("wrong tile", ["upscale", MODEL, "PHOTO", "--tile", "big"], 2, "--tile 'big'"),
    ("unknown suffix", ["upscale", MODEL, "PHOTO", "-o", "DIR/out.xyz"], 1, ".png"),
    ("not a folder", ["upscale", MODEL, "PHOTO", "-o", "DIR/gone/out.png"], 1, "gone"),
    ("a file as folder", ["upscale", MODEL, "PHOTO", "-o", "PHOTO/out.png"], 1, "photo.png"),
    ("existing output", ["upscale", MODEL, "PHOTO", "-o", "PHOTO"], 1, "--force"),
    ("missing folder of a model", ["verify", "DIR/gone"], 1, "gone"),
    ("training without data", ["train", MODEL, "-o", "DIR/run"], 1, "--data"),
    ("training on nothing", ["train", MODEL, "--data", "DIR/gone", "-o", "DIR/run"], 1, "gone"),
    ("training over something", ["train", MODEL, "--data", "DIR", "-o", "DIR"], 1, "--resume"),
    (
        "export of nothing known",
        ["export", MODEL, "-o", "DIR/m.tflite", "--format", "tflite"],
        2,
        "onnx",
    ),
    ("unknown command of a method", ["run", MODEL, "nothing"], 2, "nothing"),
]


@pytest.mark.parametrize(
    ("args", "wanted", "said"), [r[1:] for r in USAGE], ids=[r[0] for r in USAGE]
)
def test_usage(
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    wanted: int,
    said: str,
) -> None:
    before = sorted(tmp_path.iterdir()), photo.read_bytes()
    filled = [a.replace("PHOTO", str(photo)).replace("DIR", str(tmp_path)) for a in args]
    code, text = command(capsys, *filled)
    assert code == wanted, text
    assert said in text
    assert "Traceback" not in text
    assert text.startswith("zoo: ")
    assert text.count("\n") == 1
    assert (sorted(tmp_path.iterdir()), photo.read_bytes()) == before  # nothing made, nothing lost


@pytest.mark.slow
def test_force_replaces(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"mine")
    assert command(capsys, "upscale", MODEL, photo, "-o", out, "--quiet")[0] == 1
    assert out.read_bytes() == b"mine"
    assert command(capsys, "upscale", MODEL, photo, "-o", out, "--quiet", "--force")[0] == 0
    with Image.open(out) as image:
        assert image.size == (96, 64)


VALUES: list[tuple[str, Callable[[], object], str]] = [
    ("NaN", lambda: torch.full((3, 8, 8), float("nan")), "nan"),
    ("infinity", lambda: torch.full((3, 8, 8), float("inf")), "inf"),
    ("0 to 255 as floats", lambda: torch.full((3, 8, 8), 200.0), "200"),
    ("negative", lambda: torch.full((3, 8, 8), -1.0), "-1"),
    ("uint8 tensor", lambda: torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8"),
    ("float HWC tensor", lambda: torch.rand(9, 8, 3), "hwc"),
    ("float HWC array", lambda: np.zeros((9, 8, 3), np.float32), "float32"),
    ("five channels", lambda: torch.rand(5, 8, 8), "channel"),
    ("five axes", lambda: torch.rand(1, 1, 3, 8, 8), "(1, 1, 3, 8, 8)"),
    ("int64 array", lambda: np.zeros((8, 8, 3), np.int64), "int64"),
    ("nothing in it", lambda: torch.rand(3, 0, 8), "(3, 0, 8)"),
    ("None", lambda: None, "none"),
    ("a number", lambda: 7, "int"),
]


@pytest.mark.parametrize(("make", "said"), [r[1:] for r in VALUES], ids=[r[0] for r in VALUES])
def test_values(model: zoo.SRModel, make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        model.upscale(make())  # type: ignore[arg-type]
    assert said in str(caught.value).lower()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5000), (37, 53), (1, 40)])
def test_odd_sizes_are_not_bad(model: zoo.SRModel, height: int, width: int) -> None:
    out = model.upscale(torch.rand(3, height, width, generator=torch.manual_seed(0)))
    assert out.shape == (3, 4 * height, 4 * width)
    assert bool(out.isfinite().all())


def test_wrong_calls(model: zoo.SRModel, photo: Path) -> None:
    with pytest.raises(OptionError, match="base"):
        zoo.load(MODEL, base="org/x")
    with pytest.raises(OptionError, match="prompt"):
        model.upscale(photo, prompt="a cat")
    with pytest.raises(OptionError, match="scale"):
        model.upscale(photo, scale=3)
    with pytest.raises(OptionError, match="tile"):
        model.upscale(photo, tile=-4)
    with pytest.raises(UsageError):
        zoo.load(MODEL, dtype="float8")


# --- weights --------------------------------------------------------------------------------------


def spoil(kind: str, file: Path) -> None:
    """Break a good ``model.safetensors`` in one way."""
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
        return
    tensors = load_file(file)
    first = sorted(tensors)[0]
    if kind == "missing":
        del tensors[first]
    elif kind == "extra":
        tensors["stowaway"] = torch.zeros(3)
    elif kind == "misshapen":
        tensors[first] = torch.zeros(7, 7)
    elif kind == "wrong dtype":
        tensors[first] = tensors[first].to(torch.int32)
    save_file(tensors, file)


@pytest.mark.parametrize("kind", ["cut short", "missing", "extra", "misshapen", "wrong dtype"])
def test_spoilt_weights(tmp_path: Path, kind: str) -> None:
    """A plain folder has no hashes, so the file is compared with the network."""
    entry = zoo.info(MODEL)
    from zoo.actions import pull

    source = pull(MODEL).folder
    assert source is not None
    shutil.copy(source / entry.files[0].path, tmp_path / "model.safetensors")
    zoo.load(MODEL, weights=tmp_path)  # good so far
    spoil(kind, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        zoo.load(MODEL, weights=tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "old/model.pt", "model.pkl", "model.ckpt"])
def test_pickles_are_refused_unopened(model: zoo.SRModel, tmp_path: Path, name: str) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"never opened")
    for where in (folder, str(folder)):
        with pytest.raises(WeightsError, match=Path(name).suffix):
            zoo.load(where)


def test_a_changed_byte_in_a_saved_folder(model: zoo.SRModel, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        zoo.load(folder)


def test_saving_never_replaces_what_is_not_a_saved_folder(
    model: zoo.SRModel, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError):
        model.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_every_error_is_one_of_ours_and_a_built_in() -> None:
    """Each error can be caught as a built-in exception."""
    with pytest.raises(LookupError):
        zoo.load("no-such-model")
    with pytest.raises(ValueError, match="fidelity"):
        zoo.load(MODEL, fidelity=7)
    with pytest.raises(FileNotFoundError):
        zoo.load("./no-such-folder")
    assert issubclass(InputError, ZooError)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """SIGINT in the middle of a large upscale: exit code 130, one line, no file."""
    photo = tmp_path / "large.png"
    Image.linear_gradient("L").convert("RGB").resize((1200, 1200)).save(photo)
    process = subprocess.Popen(
        [sys.executable, "-c", "from zoo.cli import main; main()", "upscale", MODEL, "large.png"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    process.stderr.readline()  # the bar's label: loading is over
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["large.png"]


@pytest.mark.slow
def test_a_methods_own_command(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    args = ["run", MODEL, "compare", str(photo), "-o", str(sheet)]
    assert command(capsys, *args)[0] == 0
    with Image.open(sheet) as image:
        assert image.size == (2 * 96 + 8, 64)
    code, said = command(capsys, *args)
    assert code == 1
    assert "--force" in said
    assert command(capsys, *args, "--force")[0] == 0
    assert command(capsys, "run", MODEL, "compare")[0] == 2
    for asked, answer in (
        (["run", "--help"], "Usage: zoo run"),
        (["run", MODEL], f"zoo run {MODEL} compare: IN -o OUT"),
        (["run", MODEL, "--help"], f"zoo run {MODEL} compare: IN -o OUT"),
        (["run", MODEL, "compare", "--help"], "Replace what is already there"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(asked)
        assert (stopped.value.code or 0, answer in capsys.readouterr().out) == (0, True), asked


def test_json_on_request(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", MODEL, str(photo), "-o", str(tmp_path / "big.png"), "--json"])
    assert stopped.value.code == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["size"] == [96, 64]
    assert said["weights"] == "bundled"
