"""Written files equal the computed images: every Pillow mode in every format that zoo writes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from zoo import images
from zoo.errors import InputError, OutputError
from zoo.pictures import WRITABLE

SIDE = 16
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB",
    "I", "I;16", "I;16B", "I;16L",
)  # fmt: skip
TRANSPARENT = ("P", "RGB", "L", "1")
"""Modes that can have one transparent colour instead of an alpha channel."""
CASES = [(mode, False) for mode in MODES] + [(mode, True) for mode in TRANSPARENT]
HOLDS = {  # format -> the modes that come back from it, as the documents of the formats say
    ".png": {"L", "LA", "RGB", "RGBA", "I;16"},
    ".tif": {"L", "LA", "RGB", "RGBA", "I;16"},
    ".tiff": {"L", "LA", "RGB", "RGBA", "I;16"},
    ".webp": {"L", "LA", "RGB", "RGBA"},
    ".jpg": {"L", "RGB"},
    ".jpeg": {"L", "RGB"},
    ".bmp": {"L", "RGB"},
}
LOSSY = {".jpg", ".jpeg", ".webp"}


def ramp(mode: str, transparent: bool = False) -> Image.Image:
    """A smooth image: lossy formats change it little, a wrong mode much."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.uint8) * 12 + 30
    colours = Image.fromarray(np.stack([x, y, 255 - x // 2 - y // 2], 2))
    alpha = Image.fromarray(np.where(x > 100, 255, 160).astype(np.uint8))
    if mode.startswith("I"):
        values = np.asarray(x).astype(np.uint16) * 256 + y
        if mode == "I":
            return Image.fromarray(values.astype(np.int32))
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, (SIDE, SIDE), values.astype(order).tobytes())
    if mode in ("La", "RGBa"):
        return ramp(mode[:-1] + "A").convert(mode)
    plain = {"LA": "L", "RGBA": "RGB", "PA": "P"}.get(mode, mode)
    made = colours.quantize(256) if plain == "P" else colours.convert(plain)
    if mode in ("LA", "RGBA", "PA"):
        made = made.convert(mode)
        made.putalpha(alpha)
    if transparent:
        corner = made.getpixel((0, 0))
        made.info["transparency"] = corner
    return made


def seen(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H,W,3) and opacity (H,W) in [0,1], by Pillow alone, without the tested code."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 65535
        return np.stack([grey] * 3, 2), np.ones(grey.shape)
    through = image.convert("LA") if image.mode in ("La",) else image
    through = through.convert("RGB") if image.mode in ("LAB", "HSV") else through
    rgba = np.asarray(through.convert("RGBA")) / 255
    return rgba[..., :3], rgba[..., 3]


@pytest.mark.parametrize("suffix", sorted(WRITABLE))
@pytest.mark.parametrize(("mode", "transparent"), CASES)
def test_it_comes_back_or_is_refused(
    tmp_path: Path, mode: str, transparent: bool, suffix: str
) -> None:
    image, path = ramp(mode, transparent), tmp_path / f"a{suffix}"
    before, info = image.tobytes(), dict(image.info)
    kept = images.kept_mode(image)
    if kept not in HOLDS[suffix]:
        for write in (
            lambda: images.save(image, path),
            lambda: images.check_output(path, mode=kept),
        ):
            with pytest.raises(OutputError, match=r"has no (transparency|16 bits).* \.png"):
                write()
        assert list(tmp_path.iterdir()) == []
        return
    images.check_output(path, mode=kept, size=image.size)
    images.save(image, path)
    with Image.open(path) as again:
        colours, alpha = seen(again)
        if mode.startswith("I"):
            assert again.mode == "I;16"
    wanted, opacity = seen(image)
    assert np.abs(alpha - opacity).max() < 0.01
    visible = opacity > 0
    error = np.abs(colours - wanted)[visible].max()
    assert error == 0 if suffix not in LOSSY else error < (1 if mode == "1" else 0.16)
    assert np.abs(colours - wanted)[visible].mean() < 0.04
    assert (image.tobytes(), image.info) == (before, info)


def test_the_table_is_of_every_format() -> None:
    assert HOLDS.keys() == WRITABLE.keys()
    assert {s: set(form.modes) for s, form in WRITABLE.items()} == HOLDS


SIZES = {".webp": 16_383, ".jpg": 65_500}


@pytest.mark.parametrize("suffix", SIZES)
def test_a_format_that_is_too_small(tmp_path: Path, suffix: str) -> None:
    most, path = SIZES[suffix], tmp_path / f"a{suffix}"
    for size in ((most, 1), (1, most)):
        images.check_output(path, mode="RGB", size=size, overwrite=True)
        images.save(Image.new("RGB", size), path, overwrite=True)
        assert images.read(path).size == size
    for size in ((most + 1, 1), (1, most + 1)):
        for write in (
            lambda s=size: images.check_output(path, size=s, overwrite=True),
            lambda s=size: images.save(Image.new("RGB", s), path, overwrite=True),
        ):
            with pytest.raises(OutputError, match=rf"holds at most {most} in a row .*\.png"):
                write()


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_a_file_of_four_gigabytes(tmp_path: Path, suffix: str) -> None:
    images.check_output(tmp_path / f"a{suffix}", mode="L", size=(60_000, 60_000))
    with pytest.raises(OutputError, match=r"4 GB.*\.png"):
        images.check_output(tmp_path / f"a{suffix}", mode="RGB", size=(60_000, 60_000))
    images.check_output(tmp_path / "a.png", mode="RGB", size=(60_000, 60_000))


def test_floats_are_refused(tmp_path: Path) -> None:
    for refuse in (
        lambda: images.save(Image.new("F", (2, 2)), tmp_path / "a.tif"),
        lambda: images.kept_mode(Image.new("F", (2, 2))),
    ):
        with pytest.raises(InputError, match="mode F"):
            refuse()
    assert list(tmp_path.iterdir()) == []


# --- sixteen bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_of_grey_are_scaled_where_eight_are_wanted(
    tmp_path: Path, suffix: str, mode: Any
) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path)
    for given in (path, path.read_bytes(), Image.fromarray(values)):
        made = images.read(given, mode)
        assert made.mode == mode
        expected = np.round(values / 257)
        assert np.array_equal(np.asarray(made if mode == "L" else made.getchannel(1)), expected)
    tensor = images.to_tensor(images.read(path))
    assert torch.equal(tensor[0], torch.from_numpy(values.astype(np.float32)) / 65535)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(path: Path) -> Path:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = zlib.compress(b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 1, 2, 65535))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))
    return path


def deep_grey_and_alpha(path: Path) -> Path:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 4, 0, 0, 0))
    data = zlib.compress(b"\0" + struct.pack(">2H", 0x1234, 0x5678))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))
    return path


def deep_ppm(path: Path) -> Path:
    path.write_bytes(b"P6 1 1 65535\n" + struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    return path


def deep_tiff(path: Path) -> Path:
    """Two pixels of 3 x 16 bits, little-endian, not compressed."""
    pixels = struct.pack("<6H", *range(0, 60000, 10000))
    tags = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12)]
    body = b"II*\0" + struct.pack("<I", 26) + struct.pack("<3H", 16, 16, 16) + pixels
    body += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    path.write_bytes(body + bytes(4))
    return path


@pytest.mark.parametrize("make", [deep_png, deep_grey_and_alpha, deep_ppm, deep_tiff])
def test_what_pillow_reads_with_half_its_bits_is_said(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "a.picture")
    with Image.open(path) as opened:
        for given in (path, opened):
            with pytest.warns(UserWarning, match="16 bits in each channel, of which Pillow reads"):
                made = images.transform(given, lambda x: x)
            assert made.size == opened.size


def test_an_array_keeps_its_sixteen_bits_of_colour() -> None:
    array = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), dtype=np.uint16)
    assert np.array_equal(images.transform(array, lambda x: x), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [*WRITABLE, ".gif", ".ppm"])
def test_eight_bits_are_not_said_to_be_more(tmp_path: Path, suffix: str) -> None:
    ramp("RGB").save(tmp_path / f"a{suffix}")
    images.transform(tmp_path / f"a{suffix}", lambda x: x)


def test_a_bitmap_of_sixteen_bits_a_pixel_is_no_deep_one(tmp_path: Path) -> None:
    """5, 6 and 5 bits: Pillow's name for that looks like its name for three times 16."""
    body = struct.pack("<4H", 0x7FFF, 0, 0, 0)
    head = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, len(body), 0, 0, 0, 0)
    file = b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body
    (tmp_path / "a.bmp").write_bytes(file)
    assert images.transform(tmp_path / "a.bmp", lambda x: x).mode == "RGB"


def test_a_transparent_grey_of_sixteen_bits_is_said_to_be_lost(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 700, np.uint16)).save(tmp_path / "a.png", transparency=700)
    with pytest.warns(UserWarning, match="transparent grey of a 16-bit image"):
        images.transform(tmp_path / "a.png", lambda x: x)


# --- colour profiles ------------------------------------------------------------------------------


def profile(space: bytes) -> bytes:
    """The header of a profile of this colour space; not usable for conversion."""
    body = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    body[16:20] = space
    return bytes(body)


SRGB, GREY, INKS = profile(b"RGB "), profile(b"GRAY"), profile(b"CMYK")


@pytest.mark.parametrize(
    ("mode", "given", "kept"),
    [
        ("RGB", SRGB, True),
        ("RGBA", SRGB, True),
        ("P", SRGB, True),
        ("L", GREY, True),
        ("LA", GREY, True),
        ("I;16", GREY, True),
        ("1", GREY, True),
        ("L", SRGB, False),
        ("I;16", SRGB, False),
        ("RGB", GREY, False),
        ("RGB", INKS, False),
        ("CMYK", INKS, False),
        ("CMYK", SRGB, False),
        ("LAB", profile(b"Lab "), False),
        ("RGB", b"no profile", False),
        ("RGB", b"", False),
        ("RGB", "text", False),
    ],
)
def test_a_profile_stays_where_it_fits(tmp_path: Path, mode: str, given: Any, kept: bool) -> None:
    image = ramp(mode)
    image.info["icc_profile"] = given
    wanted = given if kept else None
    made = images.transform(image, lambda x: x)
    assert made.info.get("icc_profile") == wanted
    for suffix in sorted(WRITABLE):
        if made.mode not in HOLDS[suffix]:
            continue
        for picture in (made, image):
            with Image.open(images.save(picture, tmp_path / f"a{suffix}", overwrite=True)) as again:
                assert again.info.get("icc_profile") == (None if suffix == ".bmp" else wanted)
    assert images.read(image, "RGB").info.get("icc_profile") == (
        wanted if mode in ("RGB", "RGBA", "P") else None
    )


def inks_profile() -> bytes:
    """A press that prints all but black as plain mid grey: CMYK to L*a*b* = (50, 0, 0)."""
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    lut += bytes([0, *range(1, 256)]) * 4  # input curves
    lut += bytes([128, 128, 128, 0, 128, 128]) * 2**3  # L* = 50.2, a* = b* = 0; with black L* = 0
    lut += bytes(range(256)) * 3  # output curves
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    tags, at, table = [(b"A2B0", lut), (b"wtpt", white), (b"cprt", text)], 128 + 4 + 3 * 12, b""
    data = b""
    for name, body in tags:
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body
    head = bytearray(128)
    head[0:4] = struct.pack(">I", at + len(data))
    head[8:12] = bytes([2, 64, 0, 0])
    head[12:24] = b"prtrCMYKLab "
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(head) + struct.pack(">I", len(tags)) + table + data


def test_inks_become_colours_through_their_profile(tmp_path: Path) -> None:
    image = Image.new("CMYK", (4, 4), (255, 0, 255, 0))
    image.save(tmp_path / "a.jpg", icc_profile=inks_profile(), quality=100)
    for made in (
        images.transform(tmp_path / "a.jpg", lambda x: x),
        images.read(tmp_path / "a.jpg", "RGB"),
    ):
        assert made.mode == "RGB"
        assert made.info == {}
        assert np.abs(np.asarray(made).astype(int) - 119).max() <= 3  # L* = 50 in sRGB
    image.save(tmp_path / "plain.jpg", quality=100)
    plain = np.asarray(images.read(tmp_path / "plain.jpg", "RGB")).astype(int)
    assert np.abs(plain - (0, 255, 0)).max() <= 3


def test_eight_bits_leave_alpha_out() -> None:
    image = Image.fromarray(np.full((2, 2, 4), (10, 20, 30, 0), np.uint8))
    assert images.read(image, "RGB").getpixel((0, 0)) == (10, 20, 30)
    assert images.read(image, "L").mode == "L"


def test_bytes_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    ramp("RGB").save(buffer, "PNG")
    assert np.array_equal(np.asarray(images.read(buffer.getvalue())), np.asarray(ramp("RGB")))
    for wrong in (b"", b"hello", None, 3):
        with pytest.raises(InputError):
            images.read(wrong)  # type: ignore[arg-type]
