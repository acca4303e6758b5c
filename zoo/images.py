"""Any image in, the same kind out: containers, ranges, alpha. ``pictures`` reads and writes files.

============================  ==============================================================
in                            out
============================  ==============================================================
path or PIL image             PIL image: L, LA, RGB, RGBA or I;16 (see ``transform``)
uint8 or uint16 numpy array   the same shape but for the size; (H, W) or (H, W, C), C 1 to 4
float torch tensor            same dtype and device; (C, H, W) or (N, C, H, W), C 1, 3 or 4, [0, 1]
list or tuple of these        a list, in order
============================  ==============================================================

Anything else raises an InputError of one line: what it was, and what to do.

zoo and its plugins open all images with ``read``; ``listed`` finds the images in a folder. No pixel
depends on the caller's autocast, default dtype or default device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import InputError, PluginError
from .isolation import isolated
from .pictures import (
    ENDINGS,
    Mode,
    check_output,
    hidden,
    kept_mode,
    listed,
    name_of,
    opened,
    plain,
    read,
    save,
    size,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .interfaces import Images

    Fn: TypeAlias = "Callable[[torch.Tensor], torch.Tensor | Iterable[torch.Tensor]]"

__all__ = [
    "ENDINGS", "Mode", "check_output", "each", "hidden", "kept_mode", "listed", "read", "save",
    "scaled", "size", "to_tensor", "transform",
]  # fmt: skip

_SLACK = 1e-3  # tolerance for rounding outside [0, 1]


@isolated()
def transform(images: Images, fn: Fn, *, scale: int | float = 1) -> Any:
    """Apply ``fn`` to each image's colours; same kind out, ``scale`` times as large.

    ``fn`` gets a float32 tensor (3, h, w) in [0, 1] on the CPU, its own copy, and returns a tensor
    (3, h * scale, w * scale) or an iterable of horizontal bands (3, rows, w * scale) from top to
    bottom, on any device; if ``scale`` is not an integer, sides are ``scaled(h, scale)`` and
    ``scaled(w, scale)``. Each band is clamped and converted to the type of the result immediately,
    so a large image needs floats for one band only.

    Greyscale is passed as three equal channels, and their mean is returned. Alpha is enlarged
    bicubically; for ``scale`` > 1 invisible pixels first take the colour of their visible
    neighbours, which avoids dark fringes. 16 bits stay 16 bits.

    PIL: EXIF orientation is applied and all EXIF dropped. 1 becomes L, P becomes RGB or RGBA, RGBa
    RGBA, I (if in the range of 16 bits) I;16; CMYK and other colour spaces become RGB, through
    their ICC profile where they have a usable one. A profile is kept if it fits the result: a grey
    one on grey, an RGB one on colours. Only the first frame of an animated file is used. Pillow has
    no mode for 16-bit colours or 16-bit grey with alpha: such files are reduced to 8 bits, with a
    warning for PNG, TIFF and PPM (pass a uint16 array to keep 16).

    Raises InputError for an unusable image, PluginError if ``fn`` returns anything else.
    """
    if isinstance(images, list | tuple):
        made = []
        for i, image in enumerate(images):
            try:
                made.append(_one(image, fn, scale))
            except InputError as error:
                raise InputError(f"image {i} of the list: {error}") from error
        return made
    return _one(images, fn, scale)


def scaled(side: int, scale: int | float) -> int:
    """Pixels of a side that is ``scale`` times as large, at least 1."""
    return max(1, round(side * scale))


def each(images: Images, fn: Callable[[torch.Tensor], Any]) -> Any:
    """The result of ``fn`` for each image's colours, for models that return no images.

    ``fn`` gets the same tensors as in ``transform``. One result for one image, a list for a list or
    an (N, C, H, W) tensor. Raises InputError as ``transform`` does.
    """
    if isinstance(images, list | tuple):
        made = []
        for i, image in enumerate(images):
            try:
                made.append(each(image, fn))
            except InputError as error:
                raise InputError(f"image {i} of the list: {error}") from error
        return made
    found: list[Any] = []

    def look(colours: torch.Tensor) -> torch.Tensor:
        found.append(fn(colours.clone()))
        return colours

    transform(images, look)
    return found if getattr(images, "ndim", 0) == 4 else found[0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A PIL image as a float32 tensor (3, H, W) in [0, 1], colours only; all 16 bits are used."""
    tensor: torch.Tensor = each(image, lambda colours: colours)
    return tensor


# --- one image ------------------------------------------------------------------------------------


def _one(image: Any, fn: Fn, scale: int | float) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(image, str | Path | Image.Image):
        upright, deep = opened(image)
        if deep:
            name = "the PIL image" if isinstance(image, Image.Image) else name_of(image)
            warnings.warn(
                f"{name} has 16 bits in each channel, of which Pillow reads 8. "
                "Pass a uint16 array of shape (H, W, C) to use them all.",
                stacklevel=4,
            )
        return _pil(plain(upright), fn, scale)
    if isinstance(image, torch.Tensor):
        return _tensor(image, fn, scale)
    if isinstance(image, np.ndarray):
        return _array(_checked_array(image), fn, scale)
    if isinstance(image, bytes):
        raise InputError(
            "bytes are not an image; pass a path, or PIL.Image.open(io.BytesIO(data))."
        )
    raise InputError(
        f"{type(image).__name__} is not an image; pass a path, a PIL image, a uint8 HWC array, "
        "a float CHW tensor in [0, 1], or a list of them."
    )


def _pil(image: Image.Image, fn: Fn, scale: int | float) -> Image.Image:
    import numpy as np
    from PIL import Image

    made = Image.fromarray(_array(np.asarray(image), fn, scale))
    made.info = dict(image.info)
    return made


def _checked_array(array: Any) -> np.ndarray:
    import numpy as np

    kind, shape = array.dtype, array.shape
    what = f"a {kind} array of shape {shape}"
    if kind not in (np.uint8, np.uint16):
        advice = (
            "as a float CHW torch tensor in [0, 1], or as uint8 HWC"
            if kind.kind == "f"
            else "as uint8 or uint16, (H, W) or (H, W, C)"
        )
        raise InputError(f"{what} cannot be used; pass it {advice}.")
    if 0 in shape:
        raise InputError(f"{what} has no pixels.")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4):
        return np.asarray(array)
    if len(shape) == 3 and shape[0] <= 4:
        raise InputError(f"{what} looks like CHW; arrays are HWC: array.transpose(1, 2, 0).")
    if len(shape) == 4:
        raise InputError(f"{what} looks like a batch; pass a list of its images.")
    raise InputError(f"{what} is not an image; pass (H, W) or (H, W, C) with 1 to 4 channels.")


def _array(array: np.ndarray, fn: Fn, scale: int | float) -> np.ndarray:
    """(H, W) or (H, W, C) of uint8 or uint16, C = grey, grey + alpha, RGB, RGBA; the same out."""
    import numpy as np
    import torch
    from PIL import Image

    cube = array[:, :, None] if array.ndim == 2 else array
    height, width, channels = cube.shape
    colours = 1 if channels <= 2 else 3
    top = int(np.iinfo(array.dtype).max)
    planes = cube[:, :, :colours].transpose(2, 0, 1).astype(np.float32, order="C")
    source = torch.from_numpy(planes).div_(top)
    size = scaled(width, scale), scaled(height, scale)
    out = np.empty((*size[::-1], channels), array.dtype)
    if channels > colours:
        alpha = np.ascontiguousarray(cube[:, :, -1])
        out[:, :, -1] = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))
        if scale > 1:
            source = _bleed(source, torch.from_numpy(alpha > 0))
    for row, band in _bands(source, fn, scale):
        band = band.mul_(top).round_()
        out[row : row + band.shape[1], :, :colours] = band.permute(1, 2, 0).numpy()
    return out[:, :, 0] if array.ndim == 2 else out


def _tensor(images: torch.Tensor, fn: Fn, scale: int | float) -> torch.Tensor:
    import torch

    _check_tensor(images)
    batch = images.detach()[None] if images.ndim == 3 else images.detach()
    count, channels, height, width = batch.shape
    colours = 1 if channels == 1 else 3
    size = scaled(height, scale), scaled(width, scale)
    out = torch.empty((count, channels, *size), dtype=images.dtype, device=images.device)
    for source, made in zip(batch, out, strict=True):
        source = source.to("cpu", torch.float32, copy=True).clamp_(0, 1)
        planes = source[:colours]
        if channels == 4:
            alpha = source[3:]
            made[3:] = (
                alpha
                if scale == 1
                else torch.nn.functional.interpolate(
                    alpha[None], size, mode="bicubic", antialias=True
                )[0].clamp_(0, 1)
            )
            if scale > 1:
                planes = _bleed(planes, alpha[0] > 0)
        for row, band in _bands(planes, fn, scale):
            made[:colours, row : row + band.shape[1]] = band
    return out[0] if images.ndim == 3 else out


def _check_tensor(images: torch.Tensor) -> None:
    import torch

    shape, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    what = f"a {kind} tensor of shape {shape}"
    if not images.is_floating_point():
        advice = "divide it by 255" if images.dtype == torch.uint8 else "make it float"
        raise InputError(f"{what} cannot be used; {advice}: tensors are float CHW in [0, 1].")
    if images.is_meta or images.layout != torch.strided:
        raise InputError(f"{what} has no dense values (it is {images.layout} on {images.device}).")
    if images.ndim not in (3, 4):
        raise InputError(f"{what} is not an image; pass (C, H, W) or (N, C, H, W).")
    if 0 in shape:
        raise InputError(f"{what} has no pixels.")
    if shape[-3] not in (1, 3, 4):
        if shape[-1] in (1, 3, 4):
            raise InputError(
                f"{what} looks like HWC; pass CHW: movedim(-1, -3), or a uint8 HWC array."
            )
        raise InputError(f"{what} has {shape[-3]} channels; pass 1, 3 or 4 (C, H, W).")
    finite = torch.isfinite(images)
    if not finite.all():
        first = tuple(int(i) for i in (~finite).nonzero()[0])
        raise InputError(
            f"{what} has {images[first].item()} at {first}; pass finite values in [0, 1]."
        )
    low, high = images.min().item(), images.max().item()
    if low < -_SLACK or high > 1 + _SLACK:
        raise InputError(f"{what} has values from {low:g} to {high:g}; bring them to [0, 1].")


# --- the core -------------------------------------------------------------------------------------


def _bands(source: torch.Tensor, fn: Fn, scale: int | float) -> Iterable[tuple[int, torch.Tensor]]:
    """(first row, band), checked, in order: [0, 1], float32, CPU, with source's channels."""
    import torch

    channels, height, width = source.shape
    height, width = scaled(height, scale), scaled(width, scale)
    made = fn(source.expand(3, -1, -1).contiguous() if channels == 1 else source)
    row = 0
    for band in [made] if isinstance(made, torch.Tensor) or made is None else made:
        shape = tuple(band.shape) if isinstance(band, torch.Tensor) else type(band).__name__
        if not (
            isinstance(shape, tuple) and len(shape) == 3 and shape[::2] == (3, width) and shape[1]
        ):
            raise PluginError(f"the model returned {shape}, expected (3, rows, {width}).")
        if row + band.shape[1] > height:
            raise PluginError(f"the model returned more than {height} rows.")
        band = band.detach().to("cpu", torch.float32)
        if not all(edge.isfinite() for edge in band.aminmax()):  # NaN is both; fast
            raise PluginError("the model returned NaN or infinity. Try dtype='float32'.")
        band = band.mean(0, keepdim=True) if channels == 1 else band
        yield row, band.clamp(0, 1)
        row += band.shape[1]
    if row != height:
        raise PluginError(f"the model returned {row} rows, expected {height}.")


def _bleed(colours: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(C, h, w) with the colours of visible pixels extended 8 pixels into invisible areas."""
    import torch

    weight = visible[None, None].float()
    if bool(visible.all()):
        return colours
    filled = colours[None] * weight
    for _ in range(8):
        near = torch.nn.functional.avg_pool2d(weight, 3, 1, 1)
        mean = torch.nn.functional.avg_pool2d(filled, 3, 1, 1) / near.clamp_min(1e-6)
        filled = torch.where(weight > 0, filled, mean)
        weight = ((weight > 0) | (near > 0)).float()
    return torch.where(weight > 0, filled, colours[None])[0]
