"""``zoo upscale``: images in, larger images out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .inputs import Failures, Picture, one_picture, pictures, several
from .options import echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from ..images import Mode
    from ..interfaces import SRModel


@verb("SRModel", "upscale", "upscale")
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(),
    help="File or folder, created if missing. Default: INPUT-x4.png.",
)
@click.option("--scale", type=float, help="Magnification; default: the model's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--tile", default="auto", show_default=True, help="Side of a tile, auto or none.")
@click.option("--skip-existing", is_flag=True, help="Skip inputs whose output exists.")
def upscale(
    call: Call,
    inputs: tuple[str, ...],
    out: str | None,
    scale: float | None,
    seed: int,
    tile: str,
    skip_existing: bool,
) -> None:
    """Enlarge INPUTS with MODEL: images, folders of images (with -o), or patterns like "*.jpg".

    An image that cannot be read does not stop the others; it is reported at the end.
    Example: zoo upscale edge-sd-sr photo.jpg -o large.png
    """
    from .. import images
    from ..errors import OptionError, UsageError
    from ..files import new_folder

    if skip_existing and call.force:
        raise UsageError("give either --skip-existing or --force.")
    tiled: int | str | None = {"auto": "auto", "none": None}.get(tile, tile)
    if isinstance(tiled, str) and tiled != "auto":
        if not tiled.isdecimal():
            raise OptionError(f"--tile {tile!r}: expected a number of pixels, auto or none.")
        tiled = int(tiled)
    scale = call.keywords.get("scale", scale)  # -O scale: names and sizes of results depend on it
    number = isinstance(scale, int | float) and math.isfinite(scale)
    if scale is not None and not (number and scale > 0):
        raise OptionError(f"--scale {scale!r}: expected a number above 0.")
    keywords = {
        "scale": int(scale) if isinstance(scale, float) and scale.is_integer() else scale,
        "seed": seed,
        "tile": tiled,
        "progress": call.progress,
        **{name: value for name, value in call.keywords.items() if name != "scale"},
    }
    # Every input and every output path is checked before the first long computation.
    found = pictures(inputs)
    folder = _folder(found, inputs, out)
    failures = Failures(len(found))
    looks = {}
    for picture in found:
        with failures.of(picture.path):
            looks[picture] = _look(picture.path)

    def places(scale: float) -> dict[Picture, Path]:
        targets = _targets(list(looks), out, folder, scale)
        if skip_existing:
            targets = {picture: t for picture, t in targets.items() if not t.exists()}
        for picture, target in targets.items():
            mode, (width, height) = looks[picture]
            size = (images.scaled(width, scale), images.scaled(height, scale))
            images.check_output(target, mode=mode, size=size, overwrite=call.force)
        return targets

    done = []
    with ExitStack() as made:
        for place in {folder / picture.name.parent for picture in looks} if folder else ():
            made.enter_context(new_folder(place))
        if scale or (out and not folder):  # before the model is loaded, if names are known
            places(scale or 1)
        loaded: SRModel = call.load()
        for picture, target in places(scale or loaded.default_scale).items():
            with failures.of(picture.path):
                started = time.perf_counter()
                result = loaded.upscale(picture.path, **keywords)
                images.save(result, target, overwrite=call.force)
                done.append(
                    {
                        "input": str(picture.path),
                        "output": str(target),
                        "size": list(result.size),
                        "seconds": round(time.perf_counter() - started, 3),
                        "model": loaded.entry.name,
                        "weights": loaded.source,
                    }
                )
                if not call.as_json:
                    wide, high = result.size
                    click.echo(f"{target}: {wide} x {high}, {done[-1]['seconds']:.2f} s")
    if call.as_json:
        echo_json(done)
    failures.report()


def _look(path: Path) -> tuple[Mode, tuple[int, int]]:
    """Mode of the result and size (width, height) of the input; the image itself is not kept."""
    from .. import images

    picture = images.read(path)
    return images.kept_mode(picture), picture.size


def _folder(found: Sequence[Picture], inputs: Sequence[str], out: str | None) -> Path | None:
    """The folder that ``-o`` names: an existing one, ``results/``, or a name without an ending."""
    from ..errors import UsageError

    if out is None:
        if folders := [text for text in inputs if Path(text).is_dir()]:
            raise UsageError(f"{folders[0]} is a folder. Give one for the results: -o FOLDER.")
        return None
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
        return path
    if one_picture(found, inputs, path) or not several(found, inputs):
        return None
    return path


def _targets(
    found: Sequence[Picture], out: str | None, folder: Path | None, scale: float
) -> dict[Picture, Path]:
    """The path of each result. Raises OutputError if two results would have the same path."""
    from ..errors import OutputError

    def name(picture: Picture) -> str:
        return f"{picture.path.stem}-x{scale:g}.png"

    if folder:
        targets = {p: folder / p.name.with_name(name(p)) for p in found}
    elif out:
        targets = {p: Path(out) for p in found}
    else:
        targets = {p: p.path.with_name(name(p)) for p in found}
    places = list(targets.values())
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise OutputError(f"two inputs would both become {twice}. Run them one at a time with -o.")
    return targets
