"""Tools for measuring super-resolution: test images, interpolation baselines, claims, pictures.

``--data`` is a folder with any of ``set5``, ``bsd100`` (also below ``sr-eval``) and ``photos-cc0``,
or one of them itself. Without it a photograph from scikit-image is used. Only CC0 photos that were
held out from training are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from zoo import images
from zoo.errors import InputError
from zoo.experiment import Book
from zoo.interfaces import Data
from zoo.metrics import haarpsi, psnr_y, ssim_y
from zoo.progress import track

from ..degrade import Bicubic, Degradation, round8
from ..pixels import bicubic_down, bicubic_up
from ..training.photos import HELD_OUT, Photos
from .gdists import gdists

METRICS: Mapping[str, Callable[[Tensor, Tensor, int], float]] = {
    "PSNR-Y": psnr_y,
    "SSIM": ssim_y,
    "HaarPSI": haarpsi,
    "G-DISTS": gdists,
}
LICENSES = {
    "Set5": "research use",
    "BSD100": "research use",
    "held-out photos": "CC0-1.0",
    "astronaut": "public domain (NASA)",
}
Enlarge = Callable[[Tensor], Tensor]
"""x_l (3,h,w) in [0,1] to (3,scale*h,scale*w)."""
LESS = ("G-DISTS", "latent error", "risk", "parameters", "GFLOP", "seconds", "time, ratio")


def less_is_better(column: str) -> bool:
    """For ``zoo.experiment.Book``: is a smaller number better in this column?"""
    return any(word in column for word in LESS)


# --- images ---------------------------------------------------------------------------------------


def read_hr(path: Path, scale: int, crop: int | None = None) -> Tensor:
    """(3,H,W) in [0,1], sides cut to multiples of the scale, or a centre crop."""
    return cut(images.to_tensor(images.read(path, "RGB")), scale, crop)


def cut(x: Tensor, scale: int, crop: int | None = None) -> Tensor:
    """x (3,H,W) with sides that are multiples of the scale, at most ``crop``, from the centre."""
    h, w = (min(crop or n, n) // scale * scale for n in x.shape[1:])
    y, z = (0, 0) if crop is None else ((x.shape[1] - h) // 2, (x.shape[2] - w) // 2)
    return x[:, y : y + h, z : z + w]


def find_sets(data: Path | None, quick: bool, scale: int) -> dict[str, list[Tensor]]:
    """Name -> HR images (3,H,W) in [0,1] of each test set under ``data``.

    ``quick``: fewer images, and only their centres.
    """
    if data is None:
        from skimage.data import astronaut

        picture = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
        return {"astronaut": [cut(picture, scale, 256 if quick else None)]}
    sets: dict[str, list[Tensor]] = {}
    crop = 256 if quick else None
    for name in ("Set5", "BSD100"):
        for folder in (data / name.lower(), data / "sr-eval" / name.lower(), data):
            if folder.name == name.lower() and (files := _pngs(folder)):
                few = quick and len(files) > 10
                sets[name] = [read_hr(p, scale, crop) for p in (files[::25] if few else files)]
                break
    if below := photos_below(data):
        files = sorted(p for p in below.glob("*.jpg") if p.stem in HELD_OUT)
        sets["held-out photos"] = [read_hr(p, scale, 256 if quick else 512) for p in files]
    if not sets:
        raise InputError(
            f"{str(data)!r} has neither set5, bsd100 nor photos-cc0 (the held-out photos "
            f"{', '.join(HELD_OUT)}). Leave --data out to measure on a bundled photograph."
        )
    return sets


def _pngs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if not images.hidden(path))


def photos_below(data: Path | None) -> Path | None:
    """The folder of CC0 photos under ``data``, if there is one."""
    for folder in () if data is None else (data / "photos-cc0", data):
        if any(p.stem in HELD_OUT for p in folder.glob("*.jpg")):
            return folder
    return None


def described(sets: Mapping[str, Sequence[Tensor]]) -> list[Data]:
    """The sets as described in a results file."""
    return [Data(s, LICENSES[s], f"{len(x)} image{'s' * (len(x) > 1)}") for s, x in sets.items()]


# --- measuring ------------------------------------------------------------------------------------


def unsharp(x: Tensor, amount: float = 1.0) -> Tensor:
    """x + amount (x - blur(x)), Gaussian of 2 pixels: a baseline at no cost. (B,3,H,W)."""
    taps = torch.exp(-0.5 * (torch.arange(-6, 7) / 2.0) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, -1)  # (3,1,13)
    blur = functional.conv2d(
        functional.pad(x, (6, 6, 6, 6), mode="replicate"), taps[:, :, None, :], groups=3
    )
    blur = functional.conv2d(blur, taps[:, :, :, None], groups=3)
    return x + amount * (x - blur)


def interpolations(scale: int) -> dict[str, Enlarge]:
    """The baselines at no cost: bicubic, and sharpened bicubic."""
    return {
        "bicubic": lambda x: bicubic_up(x[None], scale)[0],
        "bicubic + unsharp": lambda x: unsharp(bicubic_up(x[None], scale))[0],
    }


def measure(
    book: Book,
    methods: Mapping[str, Enlarge],
    sets: Mapping[str, Sequence[Tensor]],
    scale: int,
    progress: Any = False,
    degradation: Degradation | None = None,
    suffix: str = "",
) -> None:
    """Enter the scores of each method on each image, shrunk by ``degradation`` with seed 0."""
    degradation = degradation or Bicubic()
    with track(sum(map(len, sets.values())), progress, "measure") as advance:
        for name, images in sets.items():
            rng = np.random.default_rng(0)
            for i, x_h in enumerate(images):
                params = degradation.sample(rng, 1)
                x_l = degradation.apply(x_h[None], scale, params, scale)[0]  # (3,h,w)
                for method, enlarge in methods.items():
                    x = enlarge(x_l).clamp(0, 1)
                    for metric, of in METRICS.items():
                        column = f"{name}{suffix} {metric}"
                        book.add(method, column, of(x, x_h, scale), f"{name} {i + 1}")
                advance(1)


def columns(sets: Iterable[str], metric: str) -> list[str]:
    """The columns of a metric: the images of several sets are compared together."""
    return [f"{name} {metric}" for name in sets]


def claim_better_than_interpolation(book: Book, ours: str, sets: Iterable[str], scale: int) -> None:
    """Claim on each set and metric: ours beats the better of bicubic and bicubic with unsharp."""
    for name in sets:
        for metric in METRICS:
            book.claim(
                f"beats-interpolation-{name}-{metric}".lower().replace(" ", "-"),
                f"On {name} x{scale}, {ours} has a better {metric} than bicubic with and without "
                "unsharp masking.",
                book.better(ours, [*interpolations(scale)], f"{name} {metric}"),
            )


# --- the held-out photographs' crops, on which short trainings are compared -----------------------

X4, X4_HAAR = "held-out x4 PSNR-Y", "held-out x4 HaarPSI"
X4_GDISTS, X8 = "held-out x4 G-DISTS", "held-out x8 PSNR-Y"


def interpolated(photos: Photos) -> dict[str, float]:
    """The scores of bicubic interpolation on the same crops: short trainings may be below them."""
    x_h = photos.validation()
    assert x_h is not None

    def mean(of: Callable[[Tensor, Tensor, int], float], scale: int) -> float:
        made = bicubic_up(Bicubic().apply(x_h, scale, [], scale), scale)
        return sum(of(a, b, scale) for a, b in zip(made, x_h, strict=True)) / len(x_h)

    return {
        X4: mean(psnr_y, 4),
        X4_HAAR: mean(haarpsi, 4),
        X4_GDISTS: mean(gdists, 4),
        X8: mean(psnr_y, 8),
    }


# --- picture --------------------------------------------------------------------------------------


def busiest(x: Tensor, side: int) -> Tensor:
    """The (3,side,side) window of x (3,H,W) with the most detail."""
    detail = (x[:, 1:, 1:] - x[:, :-1, :-1]).abs().mean(0)[None, None]  # (1,1,H-1,W-1)
    score = functional.avg_pool2d(detail, side - 1, stride=16)[0, 0]
    row, column = divmod(int(score.argmax()), score.shape[1])
    return x[:, 16 * row : 16 * row + side, 16 * column : 16 * column + side]


def picture(
    path: Path,
    methods: Mapping[str, Enlarge],
    sets: Mapping[str, Sequence[Tensor]],
    scale: int,
    degradation: Degradation | None = None,
    side: int = 192,
) -> None:
    """Input, each method and truth side by side; CC0 or public-domain photos only."""
    if "held-out photos" in sets:
        photos = list(sets["held-out photos"])[:4]
    else:
        from skimage.data import astronaut

        photos = [torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255]
    degradation, rng, rows = degradation or Bicubic(), np.random.default_rng(0), []
    for photo in photos:
        x_h = busiest(photo, side)
        x_l = degradation.apply(x_h[None], scale, degradation.sample(rng, 1), scale)
        nearest = functional.interpolate(x_l, scale_factor=scale, mode="nearest")[0]
        columns = [nearest, *(enlarge(x_l[0]) for enlarge in methods.values()), x_h]
        rows.append(torch.cat([functional.pad(c, (2, 2, 2, 2), value=1.0) for c in columns], 2))
    sheet = (torch.cat(rows, 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + 16), "white")
    image.paste(Image.fromarray(sheet), (0, 16))
    draw = ImageDraw.Draw(image)
    labels = ["input", *methods, "truth"]
    for i, label in enumerate(labels):
        draw.text((i * sheet.shape[1] // len(labels) + 4, 2), label, fill="black")
    from zoo.images import save

    path.parent.mkdir(parents=True, exist_ok=True)
    save(image, path, overwrite=True)


def small(x_h: Tensor, scale: int) -> Tensor:
    """x_h (3,H,W) shrunk without further degradation, 8 bits: (3,H/scale,W/scale)."""
    return round8(bicubic_down(x_h[None], scale))[0]
