"""``zoo select``: a training and a small target set in; weights, a selection, a report out."""

from __future__ import annotations

import json
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
@click.option("--train", type=PATH, required=True, help="Data to choose from.")
@click.option("--target", type=PATH, required=True, help="A few trusted examples of the target.")
@click.option("-o", "--out", type=PATH, required=True, help="Folder for everything that is made.")
@click.option("--model", "base", help="What to train: a Hub id or a folder. Same as --base.")
@base_option
@click.option("--fraction", type=float, help="Share to select; default: 0.5.")
@click.option("--k", type=int, help="Number of examples to select, in place of a share.")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all chance.")
@device_option
@force_option
@quiet_option
@set_option
@json_option
def select(
    model: str,
    train: Path,
    target: Path,
    out: Path,
    base: str | None,
    bases: tuple[str, ...],
    fraction: float | None,
    k: int | None,
    epochs: int | None,
    seed: int,
    device: str,
    force: bool,
    quiet: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Let MODEL learn weights for the rows of --train that serve --target, and select the best.

    OUT is a saved folder (`zoo.load` takes it) with weights.jsonl and selection.jsonl beside it.
    Example: zoo select bayesian-dps --train train.jsonl --target dev.jsonl -o chosen
    """
    from ..api import entry_of, load, require_code
    from ..errors import NotReadyError, OutputError, UsageError
    from ..interfaces import DataSelector

    entry = entry_of(model)
    if entry.interface != "DataSelector":
        raise NotReadyError(f"{entry.name} is a {entry.interface}; it does not select data.")
    require_code(entry)
    if fraction is not None and k is not None:
        raise UsageError("give either --fraction or --k.")
    if fraction is not None and not 0 <= fraction <= 1:
        raise UsageError(f"--fraction {fraction}: expected 0 to 1.")
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already exists. Choose another name, or pass --force.")
    options, call = split_settings(parse_settings(settings), entry, verb_of(entry, "fit"))
    wanted = parse_bases((*bases, *([base] if base else [])), entry)
    loaded: DataSelector = load(
        model,
        device=device,
        base=wanted,
        **options,
    )
    bar = not quiet and not as_json
    call = {"epochs": epochs, "seed": seed, **call, "progress": bar}
    loaded.fit(str(train), str(target), **call)
    share = 0.5 if fraction is None else fraction
    loaded.save_pretrained(out, overwrite=force)  # first: what was learned is not lost to a wrong k
    chosen = loaded.select(k=k) if k is not None else loaded.select(fraction=share)
    weights = loaded.weights.tolist()
    picked = chosen.tolist()
    _lines(out / "weights.jsonl", [{"index": i, "weight": w} for i, w in enumerate(weights)])
    _lines(out / "selection.jsonl", [{"index": i, "weight": weights[i]} for i in picked])
    report = getattr(loaded, "report", None)
    summary = dict(report(out, chosen)) if callable(report) else {}
    if as_json:
        return echo_json({"model": entry.name, "out": str(out), "n": len(weights),
                          "selected": len(picked), "report": summary})  # fmt: skip
    mean = sum(weights) / len(weights)
    click.echo(f"{out}: {len(picked)} of {len(weights)} examples selected, mean weight {mean:.3f}")
    for note in summary.get("notes", []):
        click.echo(f"note: {note}")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    from ..files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
