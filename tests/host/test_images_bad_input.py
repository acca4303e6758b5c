"""Images that cannot be used: each is refused by name, in one line, with what to do."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zoo import images
from zoo.errors import InputError


def photo(path: Path, **options: Any) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def cut(path: Path, share: float) -> Path:
    content = photo(path).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes that promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return written(
        path,
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    )


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda t: t / "none.png", "there is no file"),
    "text that is no path": (lambda t: "a red car\non a street", r"there is no file a red car\n"),
    "long text": (lambda t: "word " * 999, "..."),
    "a null byte": (lambda t: "a\0b.png", "there is no file"),
    "no text": (lambda t: "", "is a folder"),
    "an address": (lambda t: "https://example.org/a.png", "download the image"),
    "an address as a Path": (lambda t: Path("https://example.org/a.png"), "download the image"),
    "a folder": (lambda t: t, "is a folder"),
    "empty": (lambda t: written(t / "a.png", b""), "a.png is empty (0 bytes)"),
    "not an image": (
        lambda t: written(t / "a.png", b"hello " * 99),
        "not an image of a known format",
    ),
    "a program's format": (
        lambda t: written(t / "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not an image of a known format",
    ),
    "a cut JPEG": (lambda t: cut(t / "a.jpg", 0.5), "a.jpg is cut short or damaged"),
    "a cut PNG": (lambda t: cut(t / "a.png", 0.5), "a.png is cut short or damaged"),
    "a cut TIFF": (lambda t: cut(t / "a.tif", 0.5), "a.tif is"),
    "a cut WebP": (lambda t: cut(t / "a.webp", 0.5), "a.webp is"),
    "a cut GIF": (lambda t: cut(t / "a.gif", 0.5), "a.gif is"),
    "a cut BMP": (lambda t: cut(t / "a.bmp", 0.5), "a.bmp is cut short or damaged"),
    "a bomb": (lambda t: bomb(t / "a.png", 50_000), "pixels, as decompression bombs do"),
    "half a bomb": (lambda t: bomb(t / "a.png", 10_000), "pixels, as decompression bombs do"),
}

SHAPE = (3, 4, 5)


def spoiled(at: tuple[int, ...], value: float) -> torch.Tensor:
    tensor = torch.rand(SHAPE)
    tensor[at] = value
    tensor[2, 3, 4] = value
    return tensor


def pil(mode: str, value: float) -> Image.Image:
    return Image.new(mode, (2, 2), value)


VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: spoiled((1, 2, 3), torch.nan), "has nan at (1, 2, 3)"),
    "infinity": (lambda: spoiled((0, 0, 1), -torch.inf), "has -inf at (0, 0, 1)"),
    "NaN in a batch": (lambda: spoiled((0, 1, 1), torch.nan)[None], "has nan at (0, 0, 1, 1)"),
    "range -1 to 1": (lambda: torch.linspace(-1, 1, 60).view(SHAPE), "values from -1 to 1; bring"),
    "range 0 to 255": (lambda: torch.linspace(0, 255, 60).view(SHAPE), "from 0 to 255"),
    "float HWC tensor": (lambda: torch.rand(6, 5, 3), "looks like HWC; pass CHW"),
    "float NHWC tensor": (lambda: torch.rand(2, 6, 5, 3), "looks like HWC; pass CHW"),
    "two channels": (lambda: torch.rand(2, 7, 7), "has 2 channels; pass 1, 3 or 4"),
    "a plane": (lambda: torch.rand(4, 5), "float32 tensor of shape (4, 5) is no image"),
    "five dimensions": (lambda: torch.rand(1, 1, 3, 4, 5), "(1, 1, 3, 4, 5) is no image"),
    "a number": (lambda: torch.tensor(0.5), "shape () is no image"),
    "no rows": (lambda: torch.rand(3, 0, 5), "has no pixels"),
    "an empty batch": (lambda: torch.rand(0, 3, 4, 5), "has no pixels"),
    "uint8 tensor": (lambda: torch.zeros(SHAPE, dtype=torch.uint8), "divide it by 255"),
    "int64 tensor": (lambda: torch.zeros(SHAPE, dtype=torch.int64), "int64 tensor"),
    "bool tensor": (lambda: torch.zeros(SHAPE, dtype=torch.bool), "make it float"),
    "complex tensor": (lambda: torch.zeros(SHAPE, dtype=torch.complex64), "complex64 tensor"),
    "sparse tensor": (lambda: torch.rand(SHAPE).to_sparse(), "no dense values"),
    "meta tensor": (lambda: torch.rand(SHAPE, device="meta"), "no dense values"),
    "float HWC array": (
        lambda: np.zeros((4, 5, 3), np.float32),
        "a float32 array of shape (4, 5, 3) cannot be used; pass it as a float CHW torch tensor",
    ),
    "float64 CHW array": (lambda: np.zeros(SHAPE), "float64 array"),
    "int64 array": (lambda: np.zeros((4, 5, 3), np.int64), "int64 array"),
    "bool array": (lambda: np.zeros((4, 5), bool), "bool array"),
    "object array": (lambda: np.array([[None]]), "object array"),
    "array of text": (lambda: np.array([["a"]]), "array of shape (1, 1) cannot be used"),
    "CHW array": (lambda: np.zeros(SHAPE, np.uint8), "looks like CHW; arrays are HWC"),
    "batch of arrays": (lambda: np.zeros((2, 4, 5, 3), np.uint8), "pass a list of its images"),
    "5-D array": (lambda: np.zeros((1, 2, 4, 5, 3), np.uint8), "is no image"),
    "1-D array": (lambda: np.zeros(9, np.uint8), "is no image"),
    "nine channels": (lambda: np.zeros((8, 8, 9), np.uint8), "is no image"),
    "zero-sized array": (lambda: np.zeros((0, 5, 3), np.uint8), "has no pixels"),
    "zero-sized PIL image": (lambda: Image.new("RGB", (0, 3)), "its size is 0 x 3"),
    "mode F": (lambda: pil("F", 0.5), "mode F"),
    "mode I above 16 bits": (lambda: pil("I", 70_000), "values from 70000 to 70000"),
    "mode I below zero": (lambda: pil("I", -1), "from -1 to -1"),
    "None": (lambda: None, "NoneType is no image"),
    "a plain number": (lambda: 3, "int is no image"),
    "a numpy number": (lambda: np.float32(3), "float32 is no image"),
    "a mapping": (lambda: {"image": 1}, "dict is no image"),
    "bytes": (lambda: b"\x89PNG", "io.BytesIO"),
    "a generator": (lambda: (x for x in ()), "generator is no image"),  # type: ignore[var-annotated]
    "a list in a list": (lambda: [[torch.rand(SHAPE)]], "image 0 of the list: list is no image"),
    "the second of two": (lambda: [torch.rand(SHAPE), "none.png"], "image 1 of the list: there is"),
}


def refuse(value: Any) -> str:
    def never(x: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(InputError) as caught:
        images.transform(value, never)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert re.search(r"\.$", message)
    return message


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    make, expected = FILES[case]
    value = make(tmp_path)
    assert expected in refuse(value)
    with pytest.raises(InputError):
        images.read(value)


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_used(case: str) -> None:
    make, expected = VALUES[case]
    assert expected in refuse(make())


@given(share=st.floats(0.02, 0.98), suffix=st.sampled_from([".jpg", ".png", ".webp", ".tif"]))
@settings(max_examples=40, deadline=None)
def test_a_cut_file_is_an_input_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, share: float, suffix: str
) -> None:
    path = cut(tmp_path_factory.mktemp("cut") / f"a{suffix}", share)
    try:
        assert images.read(path).size == (64, 64)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
@settings(max_examples=80, deadline=None)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes) -> None:
    path = written(tmp_path_factory.mktemp("any") / "a.png", head + tail)
    with pytest.raises(InputError):
        images.read(path)


@given(at=st.integers(0, 4000), byte=st.integers(1, 255), suffix=st.sampled_from([".jpg", ".png"]))
@settings(max_examples=80, deadline=None)
def test_a_flipped_byte_is_an_input_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, suffix: str
) -> None:
    path = photo(tmp_path_factory.mktemp("flip") / f"a{suffix}")
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= byte
    path.write_bytes(content)
    try:
        images.transform(path, lambda x: x)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
