"""``zoo align``: images and texts in, a fitted aligner out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
@click.argument("rows", required=False, type=PATH)
@click.option(
    "--images", "--features", "images", type=PATH, help="Images or features, in place of ROWS."
)
@click.option(
    "--texts", "--prototypes", "texts", type=PATH, help="A text in each line, or features."
)
@click.option("--labels", type=PATH, help="Numbers into the texts: .npy, or one in each line.")
@click.option("-o", "--out", type=PATH, required=True, help="Folder for the fitted model.")
@base_option
@device_option
@force_option
@quiet_option
@set_option
@json_option
def align(
    model: str,
    rows: Path | None,
    images: Path | None,
    texts: Path | None,
    labels: Path | None,
    out: Path,
    bases: tuple[str, ...],
    device: str,
    force: bool,
    quiet: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit MODEL on ROWS: a folder with one folder for each class, or JSONL with image and text.

    Example: zoo align lfa --features X.npy --labels y.npy --prototypes Y.npy -o aligner
    """
    from ..api import entry_of, load, require_code
    from ..errors import NotReadyError, OutputError, UsageError
    from ..interfaces import VLAligner

    entry = entry_of(model)
    if entry.interface != "VLAligner":
        raise NotReadyError(f"{entry.name} is a {entry.interface}; it does not align.")
    require_code(entry)
    if (rows is None) == (images is None):
        raise UsageError("give either ROWS or --images/--features.")
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already exists. Choose another name, or pass --force.")
    load_options, call = split_settings(parse_settings(settings), entry, verb_of(entry, "align"))
    if labels is not None:
        call["labels"] = _labels(labels)
    loaded: VLAligner = load(model, device=device, base=parse_bases(bases, entry), **load_options)
    source = rows if images is None else images
    loaded.align(source, texts, progress=not quiet and not as_json, **call)
    loaded.save_pretrained(out, overwrite=force)
    report = dict(getattr(loaded, "report", {}))
    if as_json:
        return echo_json({"model": entry.name, "out": str(out), "report": report})
    said = ", ".join(
        f"{key} {_short(value)}" for key, value in report.items() if value not in (None, [])
    )
    here = out if out.is_absolute() else f"./{out}"
    click.echo(f'{out}: load it with zoo.load("{here}")' + (f"\n{said}" if said else ""))


def _labels(path: Path) -> list[Any] | Path:
    """Whole numbers, or the texts themselves, from a .npy file or one in each line.

    A safetensors file is the method's to read, as its features are.
    """
    from ..errors import InputError

    if path.suffix == ".safetensors":
        return path
    try:
        if path.suffix == ".npy":
            import numpy as np

            return list(np.load(path).tolist())  # pickled arrays are refused by default
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"--labels {path}: cannot be read: {error}.") from None
    return [int(line) for line in lines] if all(map(_whole, lines)) else list(lines)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
