"""Images that cannot be used: each is refused by name, in one line, with what to do."""

from __future__ import annotations

import io
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
from PIL import Image, features

from zoo import images
from zoo.errors import InputError
from zoo.pictures import _READ


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
    "a plane": (lambda: torch.rand(4, 5), "float32 tensor of shape (4, 5) is not an image"),
    "five dimensions": (lambda: torch.rand(1, 1, 3, 4, 5), "(1, 1, 3, 4, 5) is not an image"),
    "a number": (lambda: torch.tensor(0.5), "shape () is not an image"),
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
    "5-D array": (lambda: np.zeros((1, 2, 4, 5, 3), np.uint8), "is not an image"),
    "1-D array": (lambda: np.zeros(9, np.uint8), "is not an image"),
    "nine channels": (lambda: np.zeros((8, 8, 9), np.uint8), "is not an image"),
    "zero-sized array": (lambda: np.zeros((0, 5, 3), np.uint8), "has no pixels"),
    "zero-sized PIL image": (lambda: Image.new("RGB", (0, 3)), "its size is 0 x 3"),
    "mode F": (lambda: pil("F", 0.5), "mode F"),
    "mode I above 16 bits": (lambda: pil("I", 70_000), "values from 70000 to 70000"),
    "mode I below zero": (lambda: pil("I", -1), "from -1 to -1"),
    "None": (lambda: None, "NoneType is not an image"),
    "a plain number": (lambda: 3, "int is not an image"),
    "a numpy number": (lambda: np.float32(3), "float32 is not an image"),
    "a mapping": (lambda: {"image": 1}, "dict is not an image"),
    "bytes": (lambda: b"\x89PNG", "io.BytesIO"),
    "a generator": (lambda: (x for x in ()), "generator is not an image"),  # type: ignore[var-annotated]
    "a list in a list": (
        lambda: [[torch.rand(SHAPE)]],
        "image 0 of the list: list is not an image",
    ),
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


# --- broken metadata on sound pixels --------------------------------------------------------------


def chunk(kind: bytes, data: bytes, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + data) ^ (not sound)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def encoded(format: str) -> bytes:
    y, x = np.mgrid[:12, :16].astype(np.uint8) * 10
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, x + y], 2)).save(file, format)
    return file.getvalue()


SOUND = {name: encoded(name) for name in ("PNG", "JPEG")}
PIXELS = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in SOUND.items()}
ODD_EXIF = Image.Exif()
ODD_EXIF[0x010F] = "a camera"
ODD_EXIF[0x8769] = {0x829A: 0.02, 0x9003: "2020:01:01 00:00:00"}
EXIF = ODD_EXIF.tobytes()


def with_metadata(format: str, kind: bytes, data: bytes, sound: bool = True) -> bytes:
    """The picture with one more PNG chunk, or JPEG segment (``kind``: its marker)."""
    content = SOUND[format]
    if format == "JPEG":
        return content[:2] + segment(kind[0], data) + content[2:]
    return content[:33] + chunk(kind, data, sound) + content[33:]


def unharmed(content: bytes, format: str) -> None:
    assert np.array_equal(np.asarray(images.read(content)), PIXELS[format])


BROKEN: dict[str, tuple[str, bytes, bytes, bool]] = {
    "EXIF of nonsense": ("JPEG", b"\xe1", b"Exif\0\0" + b"nonsense" * 3, True),
    "EXIF cut short": ("JPEG", b"\xe1", EXIF[: len(EXIF) // 2], True),
    "EXIF that points outside": ("JPEG", b"\xe1", b"Exif\0\0MM\0*\xff\xff\xff\xff", True),
    "no EXIF in its segment": ("JPEG", b"\xe1", b"Exif\0\0", True),
    "a short JFIF": ("JPEG", b"\xe0", b"JFIF\0", True),
    "a short Adobe": ("JPEG", b"\xee", b"Adobe", True),
    "a profile without number": ("JPEG", b"\xe2", b"ICC_PROFILE\0", True),
    "a profile of one part of many": ("JPEG", b"\xe2", b"ICC_PROFILE\0\7\x09" + bytes(9), True),
    "an index of no pictures": ("JPEG", b"\xe2", b"MPF\0MM\0*\0\0\0\x08", True),
    "a Photoshop block": ("JPEG", b"\xed", b"Photoshop 3.0\0008BIM\x04\x04\0\0\xff", True),
    "XMP that is no XML": ("JPEG", b"\xe1", b"http://ns.adobe.com/xap/1.0/\0<x:x\xff", True),
    "eXIf of nonsense": ("PNG", b"eXIf", b"nonsense", True),
    "eXIf with a wrong checksum": ("PNG", b"eXIf", EXIF[6:], False),
    "text with a wrong checksum": ("PNG", b"tEXt", b"Comment\0hello", False),
    "a profile that is not packed": ("PNG", b"iCCP", b"name\0\0not zlib", True),
    "text that unpacks to 9 MB": (
        "PNG",
        b"zTXt",
        b"a\0\0" + zlib.compress(bytes(9_000_000)),
        True,
    ),
    "a size of pixels cut short": ("PNG", b"pHYs", b"\0", True),
    "a gamma cut short": ("PNG", b"gAMA", b"", True),
    "an animation of no frames": ("PNG", b"acTL", bytes(8), True),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.filterwarnings("error")
def test_metadata_that_cannot_be_read_is_ignored(case: str) -> None:
    format, kind, data, sound = BROKEN[case]
    unharmed(with_metadata(format, kind, data, sound), format)


@given(
    marker=st.sampled_from([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE]),
    head=st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", b"MPF\0", b"JFIF\0"]),
    tail=st.binary(max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_any_segment_of_a_jpeg_is_ignored(marker: int, head: bytes, tail: bytes) -> None:
    made = images.read(with_metadata("JPEG", bytes([marker]), head + tail))
    assert sorted(made.size) == [12, 16]  # an orientation, by chance


@given(
    kind=st.sampled_from(
        [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL"]
    ),
    data=st.binary(max_size=60),
    sound=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_chunk_of_a_png_is_ignored(kind: bytes, data: bytes, sound: bool) -> None:
    made = images.read(with_metadata("PNG", kind, data, sound))
    assert sorted(made.size) == [12, 16]


@pytest.mark.parametrize("at", range(6, len(EXIF), 7))
def test_exif_with_one_wrong_byte_is_ignored(at: int) -> None:
    content = bytearray(EXIF)
    content[at] ^= 0xFF
    unharmed(with_metadata("JPEG", b"\xe1", bytes(content)), "JPEG")
    unharmed(with_metadata("PNG", b"eXIf", bytes(content[6:])), "PNG")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_orientation_is_kept_beside_what_is_broken(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    kind, other = (b"\xe1", (b"\xee", b"Adobe")) if format == "JPEG" else (b"eXIf", (b"gAMA", b""))
    content = with_metadata(format, kind, data if format == "JPEG" else data[6:])
    broken = segment(other[0][0], other[1]) if format == "JPEG" else chunk(*other)
    at = 2 if format == "JPEG" else 33
    content = content[:at] + broken + content[at:]
    made = np.asarray(images.read(content))
    assert np.array_equal(made, np.rot90(PIXELS[format], -1))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_broken_pixels_stay_an_error_beside_broken_metadata(format: str) -> None:
    kind, data = (b"gAMA", b"") if format == "PNG" else (b"\xee", b"Adobe")
    content = with_metadata(format, kind, data)
    with pytest.raises(InputError, match="cut short or damaged"):
        images.read(content[: len(content) * 3 // 4])


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), name=st.sampled_from(["AVIF", "WEBP"]))
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_in_newer_formats(at: int, byte: int, name: str) -> None:
    if name == "AVIF" and not features.check("avif"):
        return
    content = bytearray(encoded(name))
    content[at % len(content)] = byte
    try:
        images.read(bytes(content), "RGB")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


# --- folders --------------------------------------------------------------------------------------


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


HIDDEN = (
    "._a.png", ".b.jpg", "Thumbs.db", "desktop.ini", ".DS_Store", ".ipynb_checkpoints/c.png",
    "__MACOSX/d.png", "@eaDir/e.png",
)  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_what_is_hidden_is_no_picture(tmp_path: Path) -> None:
    filled(tmp_path, "b.PNG", "a.jpeg", "c.tif", "below/d.webp", *HIDDEN)
    assert [p.name for p in images.listed(tmp_path)] == ["a.jpeg", "b.PNG", "c.tif"]
    below = [p.relative_to(tmp_path).as_posix() for p in images.listed(tmp_path, below=True)]
    assert below == ["a.jpeg", "b.PNG", "below/d.webp", "c.tif"]
    top = {name.split("/")[0] for name in HIDDEN}
    assert {p.name for p in tmp_path.iterdir() if images.hidden(p)} == top


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    filled(tmp_path, "a.png", "notes.txt", "movie.mp4", "below/x.json", ".hidden.txt")
    with pytest.warns(UserWarning, match=r"left out 2 of 3 files.*: movie\.mp4, notes\.txt\.$"):
        images.listed(tmp_path)
    with pytest.warns(UserWarning, match=r"left out 3 of 4 files.*: below.x\.json, movie"):
        images.listed(tmp_path, below=True)
    filled(tmp_path, *(f"{i}.txt" for i in range(9)))
    with pytest.warns(UserWarning, match=r"left out 11 of 12 .*4\.txt, \.\.\.\.$"):
        images.listed(tmp_path)


def test_what_is_no_folder_of_pictures(tmp_path: Path) -> None:
    for path in (tmp_path / "none", filled(tmp_path, "a.png") / "a.png"):
        with pytest.raises(InputError, match="is not a folder"):
            images.listed(path)


def test_a_picture_in_every_format_that_is_read_is_listed(tmp_path: Path) -> None:
    Image.init()
    known = {end for end, format in Image.EXTENSION.items() if format in _READ}
    rare = {".jpe", ".dib", ".apng", ".avifs", ".jpc", ".jpf", ".jpx", ".j2c", ".pfm", ".tiff"}
    assert known - rare <= {*images.ENDINGS}
    assert {*images.ENDINGS} <= known


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
