"""All code of plugins that opens images gets the same as from ``zoo.images``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from zoo_bayesian_dps import data
from zoo_sr.measuring.tables import read_hr
from zoo_sr.training.photos import OnDisk, Photos
from zoo_yonos_sr.linear import photographs

from zoo import images, tables
from zoo.cli import main
from zoo.errors import InputError

Reader = Callable[[Path], torch.Tensor]
"""A file to (3,H,W) or (1,H,W) in [0,1]."""


def as_tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).permute(2, 0, 1) / 255


def compared(path: Path) -> torch.Tensor:
    """The left half of the sheet, shrunk again by bicubic: nearly the image that was read."""
    out = path.with_name("sheet.png")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "edge-sd-sr", "compare", str(path), "-o", str(out)])
    if stopped.value.code:
        raise InputError("refused")
    sheet = Image.open(out)
    half = sheet.crop((0, 0, (sheet.width - 8) // 2, sheet.height))
    out.unlink()
    return as_tensor(half.resize((half.width // 4, half.height // 4), Image.Resampling.BOX))


def opened_before(path: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about odd EXIF
        return data.pixels_of(Image.open(path))


READERS: dict[str, tuple[Reader, float]] = {
    "zoo.images": (lambda p: images.each(p, lambda x: x), 0),
    "to_tensor": (lambda p: images.to_tensor(images.read(p)), 0),
    "rows of bayesian-dps": (lambda p: data.pixels_of(str(p)), 1 / 255),
    "bytes of bayesian-dps": (lambda p: data.pixels_of({"bytes": p.read_bytes()}), 1 / 255),
    "an image of bayesian-dps": (opened_before, 1 / 255),
    "photos to train on": (lambda p: as_tensor(Photos(p.parent).train[0]), 1 / 255),
    "photos on disk": (lambda p: as_tensor(OnDisk(p, False, ())[:]), 1 / 255),
    "test images": (lambda p: read_hr(p, 4), 1 / 255),
    "zoo run edge-sd-sr compare": (compared, 0.03),
    "luminance of yonos-sr": (lambda p: torch.from_numpy(photographs(p.parent)[0])[None], 2 / 255),
}


def smooth() -> np.ndarray:
    y, x = np.mgrid[:32, :48]
    return (y / 32 * 0.5 + x / 48 * 0.4 + 0.05).astype(np.float32)


def grey16(folder: Path) -> Path:
    Image.fromarray((smooth() * 65535).astype(np.uint16)).save(folder / "a.png")
    return folder / "a.png"


def turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((smooth() * 255).astype(np.uint8)).save(folder / "a.jpg", exif=exif, quality=98)
    return folder / "a.jpg"


def odd_exif(folder: Path) -> Path:
    Image.fromarray((smooth() * 255).astype(np.uint8)).save(
        folder / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=98
    )
    return folder / "a.jpg"


def beside_hidden(folder: Path) -> Path:
    (folder / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(90))
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a.png").write_bytes(b"x")
    return grey16(folder)


@pytest.mark.parametrize("make", [grey16, turned, odd_exif, beside_hidden])
@pytest.mark.parametrize("name", READERS)
def test_all_readers_agree(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    reader, slack = READERS[name]
    (tmp_path / "in").mkdir()
    found = reader(make(tmp_path / "in"))
    wanted = torch.from_numpy(smooth())
    wanted = wanted.rot90(-1) if make is turned else wanted
    assert found.shape[1:] == wanted.shape
    assert (found - wanted).abs().max() < 0.015 + slack


@pytest.mark.parametrize("name", READERS)
def test_a_bomb_is_refused_in_words(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grey16(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    reader, _ = READERS[name]
    if name != "an image of bayesian-dps":  # that one is opened by the caller
        with pytest.raises(InputError):
            reader(path)


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        grey16(tmp_path / name)
        (tmp_path / name / "._a.png").write_bytes(b"x")
    found = tables.read(tmp_path)
    assert (len(found), found.labels) == (2, ["cat", "dog"])
    assert [found[i].parent.name for i in (0, 1)] == ["cat", "dog"]


def test_two_classes_of_sixteen_bits_can_be_told_apart(tmp_path: Path) -> None:
    for value in (10_000, 40_000):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"{value}.png")
    means = [data.pixels_of(tmp_path / f"{v}.png").mean().item() for v in (10_000, 40_000)]
    assert means == pytest.approx([10_000 / 65535, 40_000 / 65535], abs=1 / 255)
