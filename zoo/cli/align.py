"""``zoo align``: images and texts in, a fitted aligner out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, echo_json
from .verbs import Call, saved, short, verb

if TYPE_CHECKING:
    from ..interfaces import VLAligner


@verb("VLAligner", "align", "align")
@click.argument("rows", required=False, type=PATH)
@click.option(
    "--images", "--features", "images", type=PATH, help="Images or features, in place of ROWS."
)
@click.option("--texts", "--prototypes", "texts", type=PATH, help="One text per line, or features.")
@click.option("--labels", help="File of indices into the texts: .npy, or one per line.")
@click.option("-o", "--out", type=PATH, required=True, help="Folder for the fitted model.")
def align(
    call: Call,
    rows: Path | None,
    images: Path | None,
    texts: Path | None,
    labels: str | None,
    out: Path,
) -> None:
    """Fit MODEL on ROWS: a folder with one folder for each class, or JSONL with image and text.

    Example: zoo align lfa --features X.npy --labels y.npy --prototypes Y.npy -o aligner
    """
    from ..errors import UsageError

    if (rows is None) == (images is None):
        raise UsageError("give either ROWS or --images/--features.")
    call.refuse_taken(out)
    keywords = dict(call.keywords)
    if labels is not None:
        keywords["labels"] = _labels(Path(labels))
    loaded: VLAligner = call.load()
    source = rows if images is None else images
    loaded.align(source, texts, progress=call.progress, **keywords)
    loaded.save_pretrained(out, overwrite=call.force)
    report = dict(getattr(loaded, "report", {}))
    if call.as_json:
        return echo_json({"model": call.entry.name, "out": str(out), "report": report})
    said = ", ".join(
        f"{key} {short(value)}" for key, value in report.items() if value not in (None, [])
    )
    click.echo(saved(out) + (f"\n{said}" if said else ""))


def _labels(path: Path) -> list[Any] | Path:
    """Indices, or the texts themselves, from a .npy file or one per line.

    A safetensors file is returned unread: the method reads it, like its features.
    """
    from .. import tables
    from ..errors import InputError

    if path.suffix == ".safetensors":
        return path
    try:
        if path.suffix == ".npy":
            import numpy as np

            return list(np.load(path).tolist())  # pickled arrays are refused by default
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"--labels {path}: cannot be read: {error}.") from None
    lines = [line.strip() for line in tables.lines(path, "--labels")]
    return [int(line) for line in lines] if all(map(_whole, lines)) else list(lines)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
