"""Finds, reads, converts and writes image files and PIL images.

``images`` exports these functions, and supports arrays and tensors as well.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .errors import InputError, OutputError
from .files import atomic_file, check_target

if TYPE_CHECKING:
    from PIL import Image

# Pillow reads more formats, but some through other programs (EPS), and most not for photographs.
_READ = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k",
)  # fmt: skip
"""Endings of image files, in lower case."""
Mode: TypeAlias = Literal["L", "LA", "RGB", "RGBA", "I;16"]
"""Pillow's names of the modes that ``transform`` returns and ``save`` writes."""
_IN_WORDS = {"LA": "transparency", "RGBA": "transparency", "I;16": "16 bits"}


@dataclass(frozen=True)
class _Format:
    """A format that ``save`` writes, and what it can hold."""

    name: str  # Pillow's
    modes: tuple[Mode, ...]
    side: int  # the most pixels in a row or column
    settings: dict[str, Any] = field(default_factory=dict)


_ALL: tuple[Mode, ...] = ("L", "LA", "RGB", "RGBA", "I;16")
# PNG at level 4 takes half of level 6's time (15 % of a small upscaler's) for files 2 % larger.
_PNG = _Format("PNG", _ALL, 2**31 - 1, {"compress_level": 4})
_JPEG = _Format("JPEG", ("L", "RGB"), 65_500, {"quality": 95})
_WEBP = _Format("WEBP", ("L", "LA", "RGB", "RGBA"), 16_383, {"quality": 95})
_TIFF = _Format("TIFF", _ALL, 2**31 - 1)
_BMP = _Format("BMP", ("L", "RGB"), 2**31 - 1)
WRITABLE = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _BMP,
}
_LARGEST = 2**32 - 2**16  # bytes of pixels in a TIFF or BMP file, whose offsets have 32 bits
# Files that systems add to folders of images, besides names that begin with a dot.
_CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
# Pillow's errors for damaged files depend on the decoder; these were observed.
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


def read(
    image: str | Path | bytes | Image.Image, mode: Literal["L", "RGB"] | None = None
) -> Image.Image:
    """The image of a file (its path or bytes) or a PIL image, decoded, upright, without EXIF.

    ``mode``: "L" or "RGB" for 8 bits of grey or colours, whatever the file has: 16 bits are scaled,
    alpha is dropped. None: the mode of the file. An ICC profile is kept if it fits the mode.
    Metadata that cannot be read is ignored. Raises InputError for a file that is missing, empty,
    cut short, not an image, or larger than Pillow's limit on pixels
    (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    upright, _ = opened(image)
    return upright if mode is None else _eight_bits(plain(upright), mode)


def size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a file's image, upright, from its header alone. InputError as ``read``."""
    from PIL import Image

    Image.init()
    known = [name for name in _READ if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=known) as picture:
                # Pillow already gives the upright size of a TIFF
                turn = 1 if picture.format == "TIFF" else picture.getexif().get(0x0112, 1)
                width, height = picture.size
    except Exception:  # rare: reading the whole file names or avoids the fault
        return read(path).size
    return (height, width) if turn in (5, 6, 7, 8) else (width, height)


def kept_mode(image: Image.Image) -> Mode:
    """The mode in which ``transform`` returns an image and ``save`` writes it.

    Raises InputError for floats (mode F), whose range is unknown.
    """
    if image.mode == "F":
        raise InputError(
            "an image of mode F holds floats of unknown range; "
            "convert it to L, or pass a float tensor in [0, 1]."
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        return "I;16"
    alpha = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if alpha else "L"
    return "RGBA" if alpha else "RGB"


def save(image: Image.Image, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a PIL image, whole or not at all, in the format of the suffix. Returns the path.

    Colours, alpha, 16 bits of grey and an ICC profile that fits are kept; JPEG and WebP are written
    at quality 95. Other modes are converted as ``transform`` does. Raises OutputError as
    ``check_output``, InputError for floats (mode F).
    """
    image = plain(image)
    path = check_output(path, mode=kept_mode(image), size=image.size, overwrite=overwrite)
    form = WRITABLE[path.suffix.lower()]
    options: dict[str, Any] = {**form.settings}
    if profile := image.info.get("icc_profile"):
        options["icc_profile"] = profile
    with atomic_file(path, overwrite=overwrite) as temporary:
        try:
            image.save(temporary, format=form.name, **options)
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"cannot write {path}: {error}. Try a .png file.") from error
    return path


def check_output(
    path: str | Path,
    *,
    mode: Mode | None = None,
    size: Sequence[int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Raise OutputError if ``save`` would refuse this path; call it before long work.

    Reasons are an unknown ending, a place that cannot be written, an existing file without
    ``overwrite``, and a format that does not support ``mode`` (see ``kept_mode``) or ``size``
    (width, height), if these are known.
    """
    path = Path(path)
    form = WRITABLE.get(path.suffix.lower())
    if form is None:
        raise OutputError(
            f"cannot write {path}: its ending {path.suffix!r} is not an image format that zoo "
            f"writes. "
            f"Use one of {', '.join(WRITABLE)}."
        )
    if mode is not None and mode not in form.modes:
        raise OutputError(
            f"cannot write {path}: {form.name} has no {_IN_WORDS[mode]}. "
            f"An image of mode {mode} fits in a .png or .tif file."
        )
    if size is not None:
        _check_size(path, form, mode or "RGB", *size)
    check_target(path, overwrite=overwrite)
    return path


def _check_size(path: Path, form: _Format, mode: Mode, width: int, height: int) -> None:
    what = f"cannot write {path}: the image has {width} x {height} pixels"
    if max(width, height) > form.side:
        raise OutputError(
            f"{what}, and {form.name} holds at most {form.side} in a row or column. "
            "Use a .png or .tif file."
        )
    size = width * height * {"I;16": 2}.get(mode, len(mode))
    if form in (_TIFF, _BMP) and size > _LARGEST:
        raise OutputError(f"{what}, too many for a file of 4 GB. Use a .png file.")


# --- folders --------------------------------------------------------------------------------------


def hidden(path: Path) -> bool:
    """Is this a file or folder that systems and editors hide (``._a.png``, ``__MACOSX``)?"""
    return path.name.startswith(".") or path.name.lower() in _CLUTTER


def listed(folder: str | Path, *, below: bool = False) -> list[Path]:
    """The images in a folder, by their endings (``ENDINGS``), in order of their names.

    ``below``: those in its subfolders too. Hidden files and folders are left out; so are other
    files that are not images, with a warning that counts and names them. Raises InputError if the
    folder does not exist or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{name_of(folder)} is not a folder. Pass a folder of images.")

    def fail(error: OSError) -> None:
        raise InputError(f"{name_of(error.filename)} cannot be read: {error.strerror}.") from error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if below and not hidden(Path(name))]
        files += [Path(place, name) for name in names if not hidden(Path(name))]
    pictures = sorted(path for path in files if path.suffix.lower() in ENDINGS)
    if others := sorted(str(p.relative_to(folder)) for p in {*files} - {*pictures}):
        some = ", ".join(map(name_of, others[:5])) + (", ..." if len(others) > 5 else "")
        count = f"{len(others)} of {len(files)} files"
        warnings.warn(
            f"{name_of(folder)}: left out {count}, which are not images: {some}.", stacklevel=2
        )
    return pictures


# --- reading --------------------------------------------------------------------------------------


def opened(image: str | Path | bytes | Image.Image) -> tuple[Image.Image, bool]:
    """The result of ``read`` without a mode, and whether Pillow dropped half of 16 bits."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, Image.Image):
        name = "the PIL image"
    elif isinstance(image, bytes):
        name = f"the image of {len(image)} bytes"
        if not image:
            raise InputError("an image is empty (0 bytes). Get it again.")
    elif isinstance(image, str | Path):
        name = name_of(image)
        _check_file(Path(image), name)
    else:
        raise InputError(f"{type(image).__name__} is not an image; pass a path or a PIL image.")
    try:
        with warnings.catch_warnings():
            # A warning of a decompression bomb is an error here; others (odd EXIF) are noise.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            upright, deep = _decoded(image)
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
    if 0 in upright.size:
        raise InputError(f"{name} has no pixels: its size is {upright.width} x {upright.height}.")
    return upright, deep


def _decoded(image: str | Path | bytes | Image.Image) -> tuple[Image.Image, bool]:
    from PIL import Image

    if isinstance(image, Image.Image):
        return _loaded(image)
    Image.init()  # a Pillow without AVIF raises an error for its name
    known = [name for name in _READ if name in Image.OPEN]

    def decode(file: Path | io.BytesIO) -> tuple[Image.Image, bool]:
        with Image.open(file, formats=known) as picture:
            return _loaded(picture)

    try:
        return decode(io.BytesIO(image) if isinstance(image, bytes) else Path(image))
    except _DAMAGED:
        # Pillow rejects some files because of a comment: try again without metadata.
        bare = _bare(image if isinstance(image, bytes) else Path(image).read_bytes())
        if bare is None:
            raise
        return decode(io.BytesIO(bare))


def _loaded(image: Image.Image) -> tuple[Image.Image, bool]:
    """A decoded, upright copy with only the metadata that its pixels need."""
    from PIL import Image

    deep = _is_deep(image)
    image.load()
    try:
        turn = image.getexif().get(0x0112)
        method = None if turn in (None, 1) else _TURNS.get(turn)
    except Exception:  # Pillow raises any kind of error for damaged EXIF
        method = None
    made = image.copy() if method is None else image.transpose(Image.Transpose[method])
    made.info = _fitting(image, image)
    if (transparency := image.info.get("transparency")) is not None:
        made.info["transparency"] = transparency
    return made, deep


def _is_deep(image: Image.Image) -> bool:
    """Will Pillow decode 16 bits of each channel to 8? Call it before decoding."""
    for codec, _, _, args in getattr(image, "tile", ()):
        raw = str(args[0] if isinstance(args, tuple) and args else args)
        # "RGB;16B" are 16 bits for each channel, "BGR;16" are 16 bits for all three.
        if re.search(r";16[BLN]$", raw) and not image.mode.startswith("I"):
            return True
        if codec.startswith("ppm") and image.mode == "RGB" and args[1] > 255:
            return True
    return False


_TURNS = {  # EXIF orientation -> what undoes it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_PNG_START = b"\x89PNG\r\n\x1a\n"


def _bare(content: bytes) -> bytes | None:
    """A PNG or JPEG without metadata that may be damaged; None for other formats."""
    if content.startswith(_PNG_START):
        return _bare_png(content)
    return _bare_jpeg(content) if content.startswith(b"\xff\xd8\xff") else None


def _bare_jpeg(content: bytes) -> bytes:
    """The JPEG with only its pixels, EXIF and, if complete, Adobe's note on its colour space."""
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        marker, body = content[at + 1], content[at + 4 : end]
        needed = body.startswith(b"Exif\0\0") or (body.startswith(b"Adobe") and len(body) >= 12)
        if needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]])


def _bare_png(content: bytes) -> bytes:
    """The PNG with only its pixels, transparency and, if its checksum is right, EXIF."""
    kept, at = [_PNG_START], len(_PNG_START)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 4 : end - 4]
        sound = zlib.crc32(body).to_bytes(4, "big") == content[end - 4 : end]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (kind == b"eXIf" and sound):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _profile(image: Image.Image) -> bytes | None:
    """The ICC profile, if it is valid and made for the colour space of the image."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[36:40] != b"acsp":
        return None
    return profile if profile[16:20] == _space(image.mode) else None


def _fitting(source: Image.Image, made: Image.Image) -> dict[str | tuple[int, int], Any]:
    """The metadata of ``source`` that ``made`` may keep: a profile that fits both."""
    profile = _profile(source)
    same = _space(source.mode) == _space(made.mode)
    return {"icc_profile": profile} if profile is not None and same else {}


def _space(mode: str) -> bytes:
    """An image's colour space, as in the header of an ICC profile."""
    if mode.startswith(("1", "L", "I")) and mode != "LAB":
        return b"GRAY"
    return {"CMYK": b"CMYK", "LAB": b"Lab "}.get(mode, b"RGB ")


def plain(image: Image.Image) -> Image.Image:
    """The image in its ``kept_mode``, with a profile that fits and nothing else in ``info``."""
    import numpy as np
    from PIL import Image

    target = kept_mode(image)
    if target == image.mode and image.info == _fitting(image, image):
        return image
    if target == "I;16":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"an image of mode I with values from {values.min()} to {values.max()} does not "
                "fit 16 bits; bring it to 0 ... 65535."
            )
        if "transparency" in image.info:
            warnings.warn(
                "the transparent grey of a 16-bit image is dropped: Pillow has no mode for both. "
                "Convert the image to 8 bits to keep it.",
                stacklevel=4,
            )
        made = Image.fromarray(values.astype(np.uint16))
    else:
        made = _through_profile(image) or image.convert(target)  # always a copy
    made.info = _fitting(image, made)
    return made


def _through_profile(image: Image.Image) -> Image.Image | None:
    """CMYK as sRGB by its own profile; None without a working profile."""
    profile = _profile(image)
    if image.mode != "CMYK" or profile is None:
        return None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError):  # also a Pillow without Little CMS
        return None
    return made


def _eight_bits(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """An image in its ``kept_mode`` as L or RGB; alpha is dropped."""
    import numpy as np
    from PIL import Image

    made = image
    if image.mode == "I;16":  # Pillow's convert makes all values above 255 white
        values = np.asarray(image).astype(np.uint32)
        made = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    made = made.convert(mode)
    made.info = _fitting(image, made)
    return made


def _check_file(path: Path, name: str) -> None:
    """Raise InputError for what would otherwise be an error of the operating system."""
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


def name_of(path: str | Path) -> str:
    """The path as printable text on one line, for messages."""
    text = ascii(str(path))[1:-1] if not str(path).isprintable() else str(path)
    return text if len(text) <= 200 else text[:197] + "..."
