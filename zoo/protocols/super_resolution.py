"""Super-resolution: x4 from antialiased bicubic shrinking; PSNR-Y, SSIM, HaarPSI, cost.

Cost is in CPU-seconds of one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NotReadyError, UsageError
from ..interfaces import Data
from . import Measured, Skip

if TYPE_CHECKING:
    from PIL import Image

SCALE = 4
HIGHER = {"PSNR-Y": True, "SSIM": True, "HaarPSI": True, "CPU-s/megapixel": False}
EXACT = 100.0
"""PSNR in dB for an image equal to the truth (such as a flat one), so that means stay finite."""
LEAST = 16 + 2 * SCALE
"""The smallest side in pixels: HaarPSI's widest filter inside the border."""


@dataclass(frozen=True)
class Item:
    """An image and its small version."""

    name: str
    truth: Image.Image
    """RGB, sides that are multiples of ``SCALE``."""
    small: Image.Image


def items(data: Path | None, most: int | None = None, skip: Skip | None = None) -> list[Item]:
    """The images in a folder and its subfolders, else three photographs from scikit-image.

    Raises UsageError if the folder has none, InputError for an image that is broken or too small,
    unless ``skip`` takes it.
    """
    from PIL import Image

    from .. import images

    if data is None:
        from skimage import data as samples

        names = ("astronaut", "chelsea", "coffee")[:most]
        return [_item(name, Image.fromarray(getattr(samples, name)())) for name in names]
    paths = images.listed(data, below=True)[:most]
    if not paths:
        raise UsageError(f"{data} contains no images.")
    found = []
    for path in paths:
        try:
            found.append(_item(path.relative_to(data).as_posix(), images.read(path, "RGB")))
        except InputError as error:
            if skip is None:
                raise
            skip(error)
    return found


def _item(name: str, image: Image.Image) -> Item:
    from PIL import Image

    width, height = (side // SCALE for side in image.size)
    if min(width, height) * SCALE < LEAST:
        raise InputError(
            f"{name} is {image.width} x {image.height}, too small to measure. Leave out images "
            f"of less than {LEAST} pixels a side."
        )
    truth = image.crop((0, 0, width * SCALE, height * SCALE))
    # PIL's bicubic is antialiased, as in published x4 tables
    return Item(name, truth, truth.resize((width, height), Image.Resampling.BICUBIC))


def described(data: Path | None, items: Sequence[Item]) -> Data:
    """The description of the images for a record."""
    size = f"{len(items)} images"
    if data is None:
        return Data("scikit-image photographs", "CC0 / public domain", size)
    return Data(str(data.name), "not stated", size)


class Bicubic:
    """The baseline: bicubic interpolation."""

    scales = (SCALE,)

    def upscale(self, image: Image.Image, *, scale: int) -> Image.Image:
        """Enlarge with PIL's bicubic interpolation."""
        from PIL import Image

        return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def references() -> dict[str, Bicubic]:
    """Bicubic interpolation."""
    return {"bicubic": Bicubic()}


def measure(model: Any, items: Sequence[Item]) -> Iterator[Measured]:
    """Enlarge and compare each image. Raises NotReadyError for a model of other scales."""
    from .. import metrics
    from ..experiment import one_thread, timed
    from ..images import to_tensor

    if SCALE not in model.scales:
        raise NotReadyError(f"it enlarges by {model.scales}, not by {SCALE}")
    with one_thread():  # several busy-wait for each other, which counts
        model.upscale(items[0].small, scale=SCALE)  # warm up, outside the timing
    for item in items:
        with one_thread():
            made, seconds = timed(lambda item=item: model.upscale(item.small, scale=SCALE))  # type: ignore[misc]
        x, y = to_tensor(made), to_tensor(item.truth)
        scores = {
            "PSNR-Y": min(metrics.psnr_y(x, y, SCALE), EXACT),
            "SSIM": metrics.ssim_y(x, y, SCALE),
            "HaarPSI": metrics.haarpsi(x, y, SCALE),
            "CPU-s/megapixel": seconds / (made.width * made.height / 1e6),
        }
        yield Measured(item.name, scores, scores["PSNR-Y"])
