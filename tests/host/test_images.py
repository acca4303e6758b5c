"""Images: the output is of the input's kind, and only the size changes."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from zoo import images
from zoo.errors import InputError, OutputError, PluginError
from zoo.pictures import WRITABLE

MODES = {  # mode in -> mode out
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB",
    "RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB",
    "I;16": "I;16", "I;16B": "I;16", "I;16L": "I;16", "I": "I;16",
}  # fmt: skip


def same(x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    assert x.ndim == 3
    assert x.shape[0] == 3
    assert x.min() >= 0
    assert x.max() <= 1
    return x


def twice(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Nearest x2 in bands of three rows."""
    big = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    yield from big.split(3, 1)


def random_array(seed: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    if mode.startswith("I"):
        made = Image.fromarray(random_array(seed, height, width, dtype=np.uint16))
        return (
            made if mode == "I;16" else made.convert("I") if mode == "I" else _sixteen(made, mode)
        )
    if mode in ("P", "PA"):
        made = Image.frombytes("P", (width, height), random.Random(seed).randbytes(width * height))
        made.putpalette(random.Random(seed).randbytes(768))
        return made.convert("PA") if mode == "PA" else made
    bands = {"L": 1, "1": 1, "LA": 2, "La": 2}.get(mode, len(mode) if mode.isupper() else 3)
    bands = {"RGBa": 4, "YCbCr": 3}.get(mode, bands)
    if mode == "1":
        return Image.fromarray(random_array(seed, height, width)).convert("1")
    return Image.frombytes(
        mode, (width, height), random_array(seed, height, width, bands).tobytes()
    )


def _sixteen(image: Image.Image, mode: str) -> Image.Image:
    order = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, image.size, np.asarray(image).astype(order).tobytes())


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


# --- round trips ----------------------------------------------------------------------------------


@given(mode=st.sampled_from(sorted(MODES)), size=sizes, seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_pil_images_come_back(mode: str, size: tuple[int, int], seed: int) -> None:
    image = picture(mode, *size, seed)
    before = image.tobytes()
    made = images.transform(image, same)
    assert made.mode == MODES[mode]
    assert made.size == image.size
    expected = np.asarray(image if mode.startswith("I") else image.convert(MODES[mode]))
    assert np.array_equal(np.asarray(made), expected)
    big = images.transform(image, twice, scale=2)
    assert (big.mode, big.size) == (MODES[mode], (2 * size[0], 2 * size[1]))
    colours = slice(0, 1 if made.mode == "LA" else 3)
    opaque = np.ones(size[::-1], bool) if "A" not in made.mode else expected[:, :, -1] > 0
    small, large = np.asarray(made), np.asarray(big)[::2, ::2]
    if small.ndim == 3:
        small, large = small[:, :, colours], large[:, :, colours]
    assert np.array_equal(large[opaque], small[opaque])
    assert image.tobytes() == before


@given(
    size=sizes,
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_arrays_come_back(
    size: tuple[int, int], channels: int | None, dtype: type, seed: int
) -> None:
    shape = size if channels is None else (*size, channels)
    array = random_array(seed, *shape, dtype=dtype)
    array.flags.writeable = False
    made = images.transform(array, same)
    assert made.dtype == dtype
    assert np.array_equal(made, array)
    big = images.transform(array, twice, scale=2)
    assert big.dtype == dtype
    assert big.shape == (2 * size[0], 2 * size[1], *shape[2:])
    if channels in (None, 1, 3):
        assert np.array_equal(big, array.repeat(2, 0).repeat(2, 1))


@given(
    size=sizes,
    channels=st.sampled_from([1, 3, 4]),
    batch=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_tensors_come_back(
    size: tuple[int, int], channels: int, batch: int | None, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = (channels, *size) if batch is None else (batch, channels, *size)
    tensor = torch.rand(shape).to(dtype).requires_grad_()
    made = images.transform(tensor, same)
    assert made.dtype == dtype
    assert made.shape == tensor.shape
    assert not made.requires_grad
    assert torch.allclose(made.float(), tensor.float(), atol=1e-6)
    assert made.data_ptr() != tensor.data_ptr()
    big = images.transform(tensor, twice, scale=2)
    assert big.shape == (*shape[:-2], 2 * size[0], 2 * size[1])
    assert big.min() >= 0
    assert big.max() <= 1


def test_every_value_of_8_and_16_bits_survives() -> None:
    for dtype in (np.uint8, np.uint16):
        values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(256, -1)
        assert np.array_equal(images.transform(values, same), values)
        coloured = np.stack([values] * 3, 2)
        assert np.array_equal(images.transform(coloured, same), coloured)


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    image = picture("RGBA", *size)
    assert images.transform(image, twice, scale=2).size == (2 * size[0], 2 * size[1])
    tensor = torch.rand(4, *size)
    assert images.transform(tensor, twice, scale=2).shape == (4, 2 * size[0], 2 * size[1])


def test_one_in_one_out_list_in_list_out(tmp_path: Path) -> None:
    picture("RGB", 3, 2).save(tmp_path / "a.png")
    mixed: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        picture("L", 2, 2),
        random_array(0, 3, 3, 3),
        torch.rand(3, 2, 2),
    ]
    made = images.transform(mixed, same)
    assert [type(m) for m in made] == [Image.Image] * 3 + [np.ndarray, torch.Tensor]
    assert isinstance(images.transform(tuple(mixed), same), list)
    assert images.transform([], same) == []


def test_the_model_cannot_change_its_input() -> None:
    for given_ in (torch.rand(3, 2, 2), torch.rand(2, 1, 2, 2), random_array(0, 2, 2, 3)):
        kept = given_.clone() if isinstance(given_, torch.Tensor) else given_.copy()
        images.transform(given_, lambda x: x.zero_())
        assert (given_ == kept).all()  # type: ignore[union-attr]


def test_out_of_range_is_clamped() -> None:
    array = random_array(0, 4, 4, 3)
    assert images.transform(array, lambda x: x * 9 + 1).min() == 255
    assert images.transform(array, lambda x: -x).max() == 0
    slack = torch.full((3, 1, 1), 1.0005)
    assert images.transform(slack, same).max() == 1


def test_greyscale_is_the_mean() -> None:
    def tint(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[0] * 0, x[1], x[2] * 0.5])

    made = images.transform(np.full((2, 2), 100, np.uint8), tint)
    assert (made == 50).all()


# --- what PIL images carry ------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = ImageOps.scale(picture("RGB", 4, 3), 8, Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    path = tmp_path / f"in{suffix}"
    more: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    image.save(path, exif=exif, **more)
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
        from_pil = images.transform(opened, same)
    made = images.transform(path, same)
    assert made.size == ((24, 32) if orientation > 4 else (32, 24))
    assert np.array_equal(np.asarray(made), np.asarray(upright))
    assert np.array_equal(np.asarray(from_pil), np.asarray(upright))
    # nothing of the EXIF is left to be applied a second time, whatever it is saved as
    for out in WRITABLE:
        with Image.open(images.save(made, tmp_path / f"out{out}")) as again:
            assert again.size == made.size
            assert 0x0112 not in again.getexif() or again.getexif()[0x0112] == 1
            assert 0x010F not in again.getexif()
    read = images.read(path)
    assert read.size == made.size
    with Image.open(images.save(read, tmp_path / f"read{suffix}")) as again:
        assert again.getexif().get(0x0112, 1) == 1


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    for mode, transparent, out in (
        ("P", 3, "RGBA"),
        ("P", bytes(range(256)), "RGBA"),
        ("RGB", (1, 2, 3), "RGBA"),
        ("L", 7, "LA"),
        ("1", 0, "LA"),
    ):
        image = picture(mode, 16, 16)
        if not isinstance(transparent, bytes):
            image.putpixel((0, 0), transparent)
        path = tmp_path / f"{mode}.png"
        image.save(path, transparency=transparent)
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGBA"))[:, :, 3]
        made = images.transform(path, same)
        assert made.mode == out
        assert np.array_equal(np.asarray(made)[:, :, -1], expected)
        assert expected.min() < 255


def test_sixteen_bits_stay(tmp_path: Path) -> None:
    array = random_array(0, 5, 7, dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "a.png")
    made = images.transform(tmp_path / "a.png", same)
    assert made.mode == "I;16"
    images.save(made, tmp_path / "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), array)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    made = images.transform(path, same)
    assert isinstance(made, Image.Image)
    assert np.abs(np.asarray(made.convert("RGB")).astype(int) - (255, 0, 0)).max() < 6


def test_no_dark_fringe_around_what_is_transparent() -> None:
    """A white disc on invisible black: all visible pixels stay white after enlarging."""
    yy, xx = np.mgrid[:32, :32]
    disc = ((yy - 16) ** 2 + (xx - 16) ** 2 < 100).astype(np.uint8) * 255
    cases = [np.stack([disc] * 4, 2), np.stack([disc] * 2, 2)]

    def smooth(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x[None], scale_factor=4, mode="bicubic")[0]

    for array in cases:
        made = images.transform(array, smooth, scale=4)
        assert made[made[:, :, -1] > 0][:, 0].min() >= 254
    tensor = torch.from_numpy(cases[0]).permute(2, 0, 1) / 255
    made = images.transform(tensor, smooth, scale=4)
    assert made[0][made[3] > 0.002].min() > 0.99


def test_alpha_is_as_smooth_as_bicubic() -> None:
    array = random_array(0, 8, 8, 4)
    made = images.transform(array, lambda x: torch.zeros(3, 32, 32), scale=4)
    alpha = Image.fromarray(array[:, :, 3]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(made[:, :, 3], np.asarray(alpha))


# --- bands ----------------------------------------------------------------------------------------

BAD_RESULTS = {
    "too few rows": (lambda x: x[:, :-1], "returned 3 rows, expected 4"),
    "too many rows": (lambda x: torch.cat([x, x], 1), "more than 4 rows"),
    "too many bands": (lambda x: itertools.repeat(x), "more than 4 rows"),
    "too narrow": (lambda x: x[:, :, 1:], "(3, 4, 4), expected (3, rows, 5)"),
    "one channel": (lambda x: x[:1], "(1, 4, 5), expected (3, rows, 5)"),
    "a batch": (lambda x: x[None], "(1, 3, 4, 5)"),
    "flat": (lambda x: x.flatten(), "(60,)"),
    "an array": (lambda x: x.numpy(), "ndarray"),
    "nothing": (lambda x: None, "NoneType"),
    "an empty band": (lambda x: [x[:, :0], x], "(3, 0, 5), expected (3, rows, 5)"),
    "infinity": (lambda x: torch.where(x == x.max(), torch.inf, x), "NaN or infinity"),
    "one NaN": (lambda x: torch.where(x == x.max(), torch.nan, x), "NaN or infinity"),
    "no bands": (lambda x: [], "returned 0 rows"),
    "NaN": (lambda x: x * torch.nan, "NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_model_that_breaks_its_contract(case: str, kind: str) -> None:
    fn, message = BAD_RESULTS[case]
    given_ = torch.rand(3, 4, 5) if kind == "tensor" else random_array(0, 4, 5, 3)
    with pytest.raises(PluginError) as caught:
        images.transform(given_, fn)
    assert message in str(caught.value)


def test_float_memory_is_bounded_by_a_band() -> None:
    def rows(x: torch.Tensor) -> Iterator[torch.Tensor]:
        for row in x.unbind(1):
            yield row[:, None].repeat_interleave(8, 1).repeat_interleave(8, 2)

    array = random_array(0, 128, 128, 3)
    images.transform(array, rows, scale=8)
    tracemalloc.start()  # counts numpy's memory; torch's is at most one band of each step
    made = images.transform(array, rows, scale=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.shape == (1024, 1024, 3)
    assert peak < 1.5 * made.nbytes


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*WRITABLE, ".gif", ".ppm", ".jp2", ".avif"])
def test_formats_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = ImageOps.scale(picture("RGB", 3, 3), 8)
    image.save(tmp_path / f"a{suffix}")
    made = images.transform(tmp_path / f"a{suffix}", twice, scale=2)
    assert (made.size, made.mode) == ((48, 48), "RGB")


@pytest.mark.parametrize("suffix", sorted(WRITABLE))
def test_save_and_read(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    path = images.save(image, tmp_path / f"a{suffix.upper()}")
    assert np.abs(np.asarray(images.read(path)).astype(int) - (200, 100, 50)).max() <= 3
    with pytest.raises(OutputError, match=r"already exists.*--force"):
        images.save(image, path)
    images.save(Image.new("RGB", (2, 2)), path, overwrite=True)
    assert images.read(path).size == (2, 2)
    assert len(list(tmp_path.iterdir())) == 1


BAD_OUTPUTS = {
    "unknown ending": ("a.xyz", r"'\.xyz' is not an image format.*\.png, \.jpg"),
    "a document": ("a.pdf", r"'\.pdf' is not an image format"),
    "no ending": ("a", r"'' is not an image format"),
    "not a folder": ("none/a.png", "none is not a folder"),
    "below a file": ("file/a.png", "file is not a folder"),
    "a folder": ("folder.png", "is a folder"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_where_an_image_cannot_go(tmp_path: Path, case: str) -> None:
    name, message = BAD_OUTPUTS[case]
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for write in (lambda p: images.save(picture("RGB", 2, 2), p), images.check_output):
        with pytest.raises(OutputError, match=message) as caught:
            write(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".jpg"), ("I;16", ".jpg"), ("LA", ".bmp")])
def test_a_format_that_cannot_hold_it(tmp_path: Path, mode: str, suffix: str) -> None:
    with pytest.raises(OutputError, match=rf"mode {mode}.*fits in a \.png"):
        images.save(picture(mode, 2, 2), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_importing_costs_nothing() -> None:
    code = """
        import sys
        from zoo import images, progress, weights
        heavy = {"torch", "numpy", "PIL", "click", "safetensors"}
        assert not heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_alpha_is_enlarged_alike_whatever_the_container() -> None:
    """The same picture as PIL image and as tensor: alphas differ only by rounding."""
    # Far from 0 and 255: PIL clips between its two passes, torch only at the end.
    noise = np.random.default_rng(0).integers(80, 176, (9, 7, 4), dtype=np.uint8)

    def nearest(rgb: torch.Tensor) -> torch.Tensor:
        return rgb.repeat_interleave(4, 1).repeat_interleave(4, 2)

    as_pil = np.asarray(images.transform(Image.fromarray(noise), nearest, scale=4))[..., 3]
    tensor = torch.from_numpy(noise).permute(2, 0, 1).float() / 255
    as_tensor = images.transform(tensor, nearest, scale=4)[3].numpy() * 255
    assert np.abs(as_pil.astype(float) - as_tensor).max() <= 1.01  # PIL rounds twice: rows, columns


# --- fractional scales, sizes without decoding ----------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 0.3, 2.0])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "uint8 HWC", "uint8 HW4", "float 4HW", "float CHW"])
def test_any_scale_rounds_each_side(scale: float, kind: str) -> None:
    from zoo.testing.checks import check_image, make_image

    def resize(colours: torch.Tensor) -> torch.Tensor:
        size = images.scaled(5, scale), images.scaled(7, scale)
        return torch.nn.functional.interpolate(colours[None], size)[0]

    made = images.transform(make_image(kind, 7, 5), resize, scale=scale)
    check_image(kind, made, round(7 * scale), round(5 * scale))


def test_a_side_is_never_nothing() -> None:
    assert [images.scaled(1, 0.1), images.scaled(7, 1.5), images.scaled(3, 4)] == [1, 10, 12]


def test_the_size_of_a_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation, size in ((1, (9, 5)), (3, (9, 5)), (6, (5, 9)), (8, (5, 9))):
        exif[0x0112] = orientation
        for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
            Image.new("RGB", (9, 5)).save(tmp_path / name, exif=exif)
            assert images.size(tmp_path / name) == size == images.read(tmp_path / name).size
    (tmp_path / "b.png").write_bytes(b"no picture")
    for wrong in (tmp_path / "b.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError):
            images.size(wrong)
