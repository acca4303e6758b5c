"""Any image in, the same kind out: the one place that knows files, modes, EXIF, alpha and ranges.

============================  ==============================================================
in                            out
============================  ==============================================================
path or PIL image             PIL image: L, LA, RGB, RGBA or I;16 (see ``transform``)
uint8 or uint16 numpy array   the same shape but for the size; (H, W) or (H, W, C), C 1 to 4
float torch tensor            same dtype and device; (C, H, W) or (N, C, H, W), C 1, 3 or 4, [0, 1]
list or tuple of these        a list, in order
============================  ==============================================================

Whatever else comes in is refused with an InputError of one line: what it was, what to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import InputError, OutputError, PluginError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .interfaces import Images

    Fn: TypeAlias = "Callable[[torch.Tensor], torch.Tensor | Iterable[torch.Tensor]]"

# Pillow reads more, but some of it through other programs (EPS) and most of it is not photographs.
_READ = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
_WRITE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
# PNG at level 4 takes half of level 6's time (15 % of a small upscaler's) for files 2 % larger.
_SETTINGS = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "PNG": {"compress_level": 4}}
# What Pillow raises on damaged files depends on the decoder; these are the ones that were seen.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError)
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap sides
_SLACK = 1e-3  # how far rounding may carry a tensor out of [0, 1] before it is called out of range


def transform(images: Images, fn: Fn, *, scale: int | float = 1) -> Any:
    """Apply ``fn`` to each image's colours; same kind out, ``scale`` times as large.

    ``fn`` gets a float32 tensor (3, h, w) in [0, 1] on the CPU, its own copy, and returns a tensor
    (3, h * scale, w * scale) or an iterable of horizontal bands (3, rows, w * scale) from top to
    bottom, on any device; where ``scale`` is no whole number, sides are ``scaled(h, scale)`` and
    ``scaled(w, scale)``. Each band is clamped and stored at once in the type of the result, so a
    large image needs floats for one band only.

    Greyscale goes in as three equal channels and comes out as their mean. Alpha is enlarged
    bicubically beside the colours; for ``scale`` > 1 invisible pixels take the colour of their
    visible neighbours first, so that no dark fringe grows out of them. 16 bits stay 16 bits.

    PIL: EXIF orientation is applied and all EXIF dropped, an ICC profile is kept (but for CMYK).
    1 becomes L, P becomes RGB or RGBA, RGBa RGBA, CMYK and other colour spaces RGB, I (if in the
    range of 16 bits) I;16. Of an animated file the first frame is taken.

    Raises InputError for what is no usable image, PluginError where ``fn`` returns something else
    than it should.
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
    """What ``fn`` says of each image's colours: for models that look at images and make none.

    ``fn`` gets what ``transform`` gives it. One result for one image, a list for a list or an
    (N, C, H, W) tensor. Raises InputError as ``transform`` does.
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


def read(image: str | Path | Image.Image) -> Image.Image:
    """The image of a file (or a PIL image), decoded, upright, with its ICC profile and no EXIF.

    The mode is the file's. Raises InputError for what is missing, empty, cut short, not an image,
    or larger than Pillow's limit on pixels (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    from PIL import Image, ImageOps

    name = "the PIL image" if isinstance(image, Image.Image) else _name(image)
    if not isinstance(image, Image.Image):
        _check_file(Path(image), name)
    with _in_words(name):
        if isinstance(image, Image.Image):
            upright = ImageOps.exif_transpose(image)
        else:
            with _opened(image) as opened:
                upright = ImageOps.exif_transpose(opened)
    if 0 in upright.size:
        raise InputError(f"{name} has no pixels: its size is {upright.width} x {upright.height}.")
    profile = upright.info.get("icc_profile")
    transparency = upright.info.get("transparency")
    kept = {"icc_profile": profile, "transparency": transparency}
    upright.info = {key: value for key, value in kept.items() if value is not None}
    # Pillow keeps the parsed EXIF beside the info and would write it from there.
    upright.getexif().clear()
    return upright


def size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a file's image, upright, by its header alone. InputError as ``read``."""
    name = _name(path)
    _check_file(Path(path), name)
    with _in_words(name), _opened(path) as opened:
        turned = opened.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        width, height = opened.size
    return (height, width) if turned else (width, height)


def _opened(path: str | Path) -> Image.Image:
    from PIL import Image

    Image.init()  # a Pillow without AVIF fails on its name
    return Image.open(path, formats=[name for name in _READ if name in Image.OPEN])


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What Pillow raises on a file, as an InputError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # A warning for us is an error: half of a bomb is one too. Others (odd EXIF) are noise.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels, as decompression bombs do. "
            "If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not an image of a known format ({', '.join(_READ)}). Convert it to PNG."
        ) from None
    except _DAMAGED as error:
        raise InputError(f"{name} is cut short or damaged ({error}). Get it again.") from error


def save(image: Image.Image, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a PIL image, whole or not at all; the format is that of the suffix. Returns the path.

    Keeps an ICC profile. JPEG and WebP are written at quality 95. Raises OutputError for an unknown
    suffix, a mode that the format cannot hold, a place that cannot be written, or an existing file
    without ``overwrite``.
    """
    from .weights import atomic_file

    path = check_output(path, overwrite=overwrite)
    options: dict[str, Any] = {**_SETTINGS.get(_format(path) or "", {})}
    if profile := image.info.get("icc_profile"):
        options["icc_profile"] = profile
    with atomic_file(path, overwrite=overwrite) as temporary:
        try:
            image.save(temporary, format=_format(path), **options)
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"cannot write {path}: {error}. An image of mode {image.mode} and size "
                f"{image.width} x {image.height} fits in a .png file."
            ) from error
    return path


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """OutputError where ``save`` would refuse this path; call it before long work."""
    from .weights import check_target

    path = Path(path)
    if _format(path) is None:
        raise OutputError(
            f"cannot write {path}: its ending {path.suffix!r} is no image format that zoo writes. "
            f"Use one of {', '.join(_WRITE)}."
        )
    check_target(path, overwrite=overwrite)
    return path


def _format(path: Path) -> str | None:
    return _WRITE.get(path.suffix.lower())


# --- one image ------------------------------------------------------------------------------------


def _one(image: Any, fn: Fn, scale: int | float) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(image, str | Path | Image.Image):
        return _pil(read(image), fn, scale)
    if isinstance(image, torch.Tensor):
        return _tensor(image, fn, scale)
    if isinstance(image, np.ndarray):
        return _array(_checked_array(image), fn, scale)
    if isinstance(image, bytes):
        raise InputError("bytes are no image; pass a path, or PIL.Image.open(io.BytesIO(data)).")
    raise InputError(
        f"{type(image).__name__} is no image; pass a path, a PIL image, a uint8 HWC array, "
        "a float CHW tensor in [0, 1], or a list of them."
    )


def _pil(image: Image.Image, fn: Fn, scale: int | float) -> Image.Image:
    import numpy as np
    from PIL import Image

    mode = image.mode
    if mode == "F":
        raise InputError(
            "an image of mode F holds floats of unknown range; "
            "convert it to L, or pass a float tensor in [0, 1]."
        )
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"an image of mode I with values from {values.min()} to {values.max()} does not "
                "fit 16 bits; bring it to 0 ... 65535."
            )
        array = values.astype(np.uint16)
    else:
        grey = mode in ("1", "L", "LA", "La")
        alpha = image.has_transparency_data
        target = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
        array = np.asarray(image if mode == target else image.convert(target))
    made = Image.fromarray(_array(array, fn, scale))
    if (profile := image.info.get("icc_profile")) and mode != "CMYK":
        made.info["icc_profile"] = profile
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
    raise InputError(f"{what} is no image; pass (H, W) or (H, W, C) with 1 to 4 channels.")


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
        raise InputError(f"{what} is no image; pass (C, H, W) or (N, C, H, W).")
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
            raise PluginError(f"the model returned {shape} where (3, rows, {width}) was due.")
        if row + band.shape[1] > height:
            raise PluginError(f"the model returned more than {height} rows.")
        band = band.detach().to("cpu", torch.float32)
        if not all(edge.isfinite() for edge in band.aminmax()):  # NaN is both; quicker than each
            raise PluginError("the model returned NaN or infinity. Try dtype='float32'.")
        band = band.mean(0, keepdim=True) if channels == 1 else band
        yield row, band.clamp(0, 1)
        row += band.shape[1]
    if row != height:
        raise PluginError(f"the model returned {row} rows where {height} were due.")


def _bleed(colours: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(C, h, w) with the colours of visible pixels carried 8 pixels into what is not visible."""
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


def _check_file(path: Path, name: str) -> None:
    """Say in words what would otherwise be an error of the operating system."""
    if str(path).startswith(("http:/", "https:/")):
        raise InputError(f"{name} is an address; download the image and pass its path.")
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # missing, or text that cannot be a path
        raise InputError(f"there is no file {name}. Pass the path of an image.") from None
    if path.is_dir():
        raise InputError(f"{name} is a folder; pass its files: FOLDER/*.png, path.glob('*.png').")
    if size == 0:
        raise InputError(f"{name} is empty (0 bytes). Get it again.")


def _name(path: str | Path) -> str:
    """The path for a message of one line, whatever was handed in as a path."""
    text = ascii(str(path))[1:-1] if not str(path).isprintable() else str(path)
    return text if len(text) <= 200 else text[:197] + "..."


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A PIL image as a float32 tensor (3, H, W) in [0, 1], colours only."""
    import numpy as np
    import torch

    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
