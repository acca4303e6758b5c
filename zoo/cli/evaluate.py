"""``zoo eval``: any model on the user's own data, by the common metrics of its interface."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .inputs import Failures
from .options import (
    PATH,
    base_option,
    declared_option,
    device_option,
    echo_json,
    json_option,
    model_argument,
    parse_bases,
    parse_settings,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..evaluation import Evaluation


@click.command(name="eval")
@model_argument
@click.argument("data", type=PATH)
@click.option("--worst", type=click.IntRange(0), default=10, show_default=True, help="Items shown.")
@base_option
@device_option
@quiet_option
@declared_option
@json_option
def eval_(
    model: str,
    data: Path,
    worst: int,
    bases: tuple[str, ...],
    device: str,
    quiet: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure MODEL on DATA, and show the worst items.

    \b
    SRModel    a folder of large images: PSNR-Y, SSIM, HaarPSI
    VLAligner  a folder with one folder for each class: accuracy;
               .jsonl with image and text, or .npz of features: accuracy or recall
    Detector   images with boxes (COCO, Pascal VOC, YOLO): average precision

    An image that cannot be read does not stop the others; it is reported at the end.
    Other interfaces have no metrics yet. Example: zoo eval edge-sd-sr photos/
    """
    from .. import protocols
    from ..api import entry_and_kind, load, require_code
    from ..errors import InputError
    from ..evaluation import evaluate

    entry, kind = entry_and_kind(model)
    protocols.of(kind)  # before the model is loaded
    require_code(entry)
    if not data.exists():
        raise InputError(f"{data}: there is no such file or folder.")
    loaded = load(model, base=parse_bases(bases, entry), device=device, **parse_settings(settings))
    found = evaluate(loaded, data, progress=not quiet and not as_json)
    failures = Failures(len(found.failures) + len({item.item for item in found.items}))
    for error in found.failures:
        failures.keep(error)
    if as_json:
        echo_json(
            {
                "model": entry.name,
                "weights": loaded.source,
                "data": str(data),
                "size": found.data,
                "higher_is_better": {m: found.higher_is_better[m] for m in found.means},
                "means": found.means,
                "classes": found.groups,
                "items": [asdict(item) for item in found.items],
                "failures": [str(error) for error in found.failures],
            }
        )
        return failures.report()
    click.echo(f"{model} on {data}: {found.data}\n")
    click.echo(_table("mean", {"all": found.means, **found.groups}, found, {}))
    if worst and (items := found.worst(worst)):
        rows = {item.item: item.scores for item in items}
        notes = {item.item: item.note for item in items}
        click.echo(f"\nThe worst {len(items)} of {len(found.items)}:\n")
        click.echo(_table("item", rows, found, notes))
    failures.report()


def _table(
    head: str,
    rows: Mapping[str, Mapping[str, float]],
    found: Evaluation,
    notes: Mapping[str, str],
) -> str:
    """Rows of numbers in Markdown, with an arrow to the better side of each metric."""
    from ..bench import markdown

    metrics = [m for m in found.higher_is_better if any(m in cells for cells in rows.values())]
    arrows = {True: "↑", False: "↓"}
    title = [head, *(f"{m} {arrows[found.higher_is_better[m]]}" for m in metrics)]
    noted = any(notes.values())
    body = [
        [
            name,
            *(f"{cells[m]:.4g}" if m in cells else "" for m in metrics),
            *([notes[name]] if noted else []),
        ]
        for name, cells in rows.items()
    ]
    return markdown(title + ["note"] * noted, body)
