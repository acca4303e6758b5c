"""``zoo upscale``: images in, larger images out."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from ..images import Mode
    from ..interfaces import SRModel


@verb("SRModel", "upscale", "upscale")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "--out", type=click.Path(), help="File or folder, made if missing. Default: INPUT-x4.png."
)
@click.option("--scale", type=float, help="Magnification; default: the model's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--tile", default="auto", show_default=True, help="Side of a tile, auto or none.")
def upscale(
    call: Call,
    inputs: tuple[Path, ...],
    out: str | None,
    scale: float | None,
    seed: int,
    tile: str,
) -> None:
    """Enlarge the images INPUTS with MODEL.

    Example: zoo upscale edge-sd-sr photo.jpg -o large.png
    """
    from .. import images
    from ..errors import OptionError
    from ..files import new_folder

    tiled: int | str | None = {"auto": "auto", "none": None}.get(tile, tile)
    if isinstance(tiled, str) and tiled != "auto":
        if not tiled.isdecimal():
            raise OptionError(f"--tile {tile!r}: expected a number of pixels, auto or none.")
        tiled = int(tiled)
    keywords = {
        "scale": int(scale) if scale is not None and scale.is_integer() else scale,
        "seed": seed,
        "tile": tiled,
        "progress": call.progress,
        **call.keywords,
    }
    # Every input is looked at before the first long computation, and so is every place.
    looks = [_look(path) for path in inputs]
    folder = _folder(inputs, out)

    def places(scale: float) -> list[Path]:
        targets = _targets(inputs, out, folder, scale)
        for target, (mode, (width, height)) in zip(targets, looks, strict=True):
            size = (images.scaled(width, scale), images.scaled(height, scale))
            images.check_output(target, mode=mode, size=size, overwrite=call.force)
        return targets

    done = []
    with new_folder(folder) if folder else nullcontext():
        if scale or (out and not folder):  # before the model is loaded, where names are known
            places(scale or 1)
        loaded: SRModel = call.load()
        targets = places(scale or loaded.default_scale)
        for source, target in zip(inputs, targets, strict=True):
            started = time.perf_counter()
            result = loaded.upscale(source, **keywords)
            images.save(result, target, overwrite=call.force)
            done.append(
                {
                    "input": str(source),
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


def _look(path: Path) -> tuple[Mode, tuple[int, int]]:
    """Mode that the result will have, and size (width, height) of the input, which is not kept."""
    from .. import images

    picture = images.read(path)
    return images.kept_mode(picture), picture.size


def _folder(inputs: tuple[Path, ...], out: str | None) -> Path | None:
    """The folder that ``-o`` names: one that is there, ``results/``, or any name without ending."""
    from ..errors import OutputError
    from ..pictures import WRITABLE

    if out is None:
        return None
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
        return path
    if len(inputs) == 1:
        return None
    if path.suffix.lower() in WRITABLE:
        raise OutputError(f"{out} is one file, but there are {len(inputs)} inputs. Give a folder.")
    return path


def _targets(
    inputs: tuple[Path, ...], out: str | None, folder: Path | None, scale: float
) -> list[Path]:
    """Where each result goes. Raises OutputError where two results would share a name."""
    from ..errors import OutputError

    if folder:
        targets = [folder / f"{path.stem}-x{scale:g}.png" for path in inputs]
    elif out:
        targets = [Path(out)]
    else:
        targets = [path.with_name(f"{path.stem}-x{scale:g}.png") for path in inputs]
    if len(set(targets)) < len(targets):
        twice = next(t for t in targets if targets.count(t) > 1)
        raise OutputError(f"two inputs would both become {twice}. Run them one at a time with -o.")
    return targets
