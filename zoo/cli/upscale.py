"""``zoo upscale``: images in, larger images out."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .options import (
    PATH,
    base_option,
    device_option,
    echo_json,
    force_option,
    json_option,
    model_argument,
    parse_bases,
    parse_settings,
    quiet_option,
    set_option,
    split_settings,
    verb_of,
)


@click.command()
@model_argument
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, help="File, or folder for several. Default: INPUT-x4.png.")
@click.option("--scale", type=float, help="Magnification; default: the model's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--tile", default="auto", show_default=True, help="Side of a tile, auto or none.")
@base_option
@device_option
@force_option
@quiet_option
@set_option
@json_option
def upscale(
    model: str,
    inputs: tuple[Path, ...],
    out: Path | None,
    scale: float | None,
    seed: int,
    tile: str,
    bases: tuple[str, ...],
    device: str,
    force: bool,
    quiet: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Enlarge the images INPUTS with MODEL.

    Example: zoo upscale edge-sd-sr photo.jpg -o large.png
    """
    from .. import images
    from ..api import entry_of, load, require_code
    from ..errors import NotReadyError, OptionError
    from ..interfaces import SRModel

    entry = entry_of(model)
    if entry.interface != "SRModel":
        raise NotReadyError(f"{entry.name} is a {entry.interface}; it does not upscale.")
    require_code(entry)
    given = parse_settings(settings)
    load_options, call_options = split_settings(given, entry, verb_of(entry, "upscale"))
    tiled: int | str | None = {"auto": "auto", "none": None}.get(tile, tile)
    if isinstance(tiled, str) and tiled != "auto":
        if not tiled.isdecimal():
            raise OptionError(f"--tile {tile!r}: expected a number of pixels, auto or none.")
        tiled = int(tiled)
    call = {
        "scale": int(scale) if scale is not None and scale.is_integer() else scale,
        "seed": seed,
        "tile": tiled,
        "progress": not quiet and not as_json,
        **call_options,
    }
    for path in inputs:
        images.read(path)  # every input is looked at before the first long computation
    loaded: SRModel = load(model, base=parse_bases(bases, entry), device=device, **load_options)
    targets = _targets(inputs, out, call["scale"] or loaded.default_scale)
    for target in targets:
        images.check_output(target, overwrite=force)
    done = []
    for source, target in zip(inputs, targets, strict=True):
        started = time.perf_counter()
        result = loaded.upscale(source, **call)
        images.save(result, target, overwrite=force)
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
        if not as_json:
            wide, high = result.size
            click.echo(f"{target}: {wide} x {high}, {done[-1]['seconds']:.2f} s")
    if as_json:
        echo_json(done)


def _targets(inputs: tuple[Path, ...], out: Path | None, scale: float) -> list[Path]:
    """Where each result goes. Raises OutputError where two results would share a name."""
    from ..errors import OutputError

    if out is None:
        targets = [path.with_name(f"{path.stem}-x{scale:g}.png") for path in inputs]
    elif out.is_dir() or len(inputs) > 1:
        if out.suffix and not out.is_dir():
            raise OutputError(
                f"{out} is one file, but there are {len(inputs)} inputs. Give a folder."
            )
        out.mkdir(parents=True, exist_ok=True)
        targets = [out / f"{path.stem}-x{scale:g}.png" for path in inputs]
    else:
        targets = [out]
    if len(set(targets)) < len(targets):
        twice = next(t for t in targets if targets.count(t) > 1)
        raise OutputError(f"two inputs would both become {twice}. Run them one at a time with -o.")
    return targets
