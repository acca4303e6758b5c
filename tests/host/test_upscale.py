"""``zoo upscale``: paths of results, and errors before a model is loaded or runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from zoo_edge_sd_sr.model import EdgeSDSR

from zoo import api, images
from zoo.cli import main
from zoo.files import new_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, mode in (("a.png", "RGB"), ("b.png", "RGB"), ("clear.png", "RGBA")):
        Image.new(mode, (8, 8)).save(name)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("deep.png")
    Image.new("P", (8, 8)).save("hole.png", transparency=0)
    Image.new("RGB", (4100, 1)).save("wide.png")
    return tmp_path


def upscale(*args: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", "edge-sd-sr", *args, "--quiet"])
    return int(stopped.value.code or 0)


def never(*args: Any, **options: Any) -> None:
    pytest.fail("this comes too late")


CANNOT = {
    "alpha in JPEG": ("clear.png", "out.jpg", "has no transparency"),
    "alpha in BMP": ("clear.png", "out.bmp", "has no transparency"),
    "a transparent colour": ("hole.png", "out.jpeg", "has no transparency"),
    "16 bits in JPEG": ("deep.png", "out.jpg", "has no 16 bits"),
    "16 bits in WebP": ("deep.png", "out.webp", "has no 16 bits"),
    "no such format": ("a.png", "out.xyz", "not an image format"),
    "no such folder": ("a.png", "gone/out.png", "not a folder"),
    "there already": ("a.png", "b.png", "--force"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_refused_before_a_model_is_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    source, out, said = CANNOT[case]
    monkeypatch.setattr(api, "load", never)
    before = sorted(here.rglob("*"))
    assert upscale(source, "-o", out) == 1
    assert said in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("scale", ["nan", "inf", "0", "-2"])
def test_a_scale_is_a_number_above_0(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    monkeypatch.setattr(api, "load", never)
    assert upscale("a.png", "-o", "new/", "--scale", scale) == 2
    assert "expected a number above 0" in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_scale_among_the_options_names_the_results(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(self: Any, image: Path, *, scale: int, **options: Any) -> Image.Image:
        return images.read(image).resize((8 * scale, 8 * scale))

    monkeypatch.setattr(EdgeSDSR, "upscale", doubled)
    monkeypatch.setattr("zoo.cli.verbs.split_settings", lambda *_: ({}, {"scale": 2}))
    assert upscale("a.png", "-O", "scale=2") == 0
    assert images.read("a-x2.png").size == (16, 16)


@pytest.mark.parametrize("more", [(), ("--scale", "4")])
def test_too_wide_for_webp_before_the_work(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    monkeypatch.setattr(EdgeSDSR, "upscale", never)
    assert upscale("wide.png", "-o", "out.webp", *more) == 1
    assert "16400 x 4 pixels, and WEBP holds at most 16383" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "out", "made"),
    [
        (["a.png"], "results/", ["results/a-x4.png"]),
        (["a.png"], "results", ["results/a-x4.png"]),
        (["a.png"], "new/results.v2/", ["new/results.v2/a-x4.png"]),
        (["a.png", "b.png"], "out.v2", ["out.v2/a-x4.png", "out.v2/b-x4.png"]),
        (["a.png", "b.png"], "out", ["out/a-x4.png", "out/b-x4.png"]),
        (["a.png"], "large.webp", ["large.webp"]),
        (["a.png"], ".", ["a-x4.png"]),
    ],
)
def test_where_results_go(here: Path, inputs: list[str], out: str, made: list[str]) -> None:
    before = {*here.rglob("*")}
    assert upscale(*inputs, "-o", out) == 0
    new = [p.relative_to(here).as_posix() for p in {*here.rglob("*")} - before if p.is_file()]
    assert sorted(new) == made
    assert all(images.read(here / name).size == (32, 32) for name in made)


@pytest.mark.parametrize(
    "args",
    [
        ["a.png", "b.png", "-o", "new", "--scale", "3"],
        ["a.png", "x/a.png", "-o", "new/deeper"],
        ["a.png", "b.png", "-o", "new/", "--tile", "1"],
        ["a.png", "b.png", "-o", "new", "-O", "noise_scale=7"],
        ["a.png", "b.png", "-o", "new.png"],
        ["a.png", "-o", "b.png/"],
    ],
)
def test_a_refused_command_leaves_nothing(here: Path, args: list[str]) -> None:
    (here / "x").mkdir()
    Image.new("RGB", (8, 8)).save(here / "x" / "a.png")
    before = sorted(here.rglob("*"))
    assert upscale(*args) in (1, 2)
    assert sorted(here.rglob("*")) == before


def test_what_was_made_before_an_error_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = EdgeSDSR.upscale

    def once(self: EdgeSDSR, image: Path, **options: Any) -> Any:
        if image.name == "b.png":
            raise KeyboardInterrupt
        return real(self, image, **options)

    monkeypatch.setattr(EdgeSDSR, "upscale", once)
    assert upscale("a.png", "b.png", "-o", "new/deeper") == 130
    assert [p.name for p in (here / "new" / "deeper").iterdir()] == ["a-x4.png"]


def test_a_folder_that_was_there_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "old", tmp_path / "old" / "new"):
        with pytest.raises(KeyError), new_folder(path):
            raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["old"]
