"""``zoo select``: a training and a small target set in; weights, a selection, a report out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from ..interfaces import DataSelector


@verb("DataSelector", "fit", "select data")
@click.option("--train", type=PATH, required=True, help="Data to choose from.")
@click.option("--target", type=PATH, help="A few trusted examples; some models can do without.")
@click.option("-o", "--out", type=PATH, required=True, help="Folder for all results.")
@click.option("--model", "base", help="What to train: a Hub id or a folder. Same as --base.")
@click.option(
    "--fraction", type=float, help="Share to select; default: the model's estimate, or half."
)
@click.option("--k", type=int, help="Number of examples to select, instead of a share.")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same weights.")
def select(
    call: Call,
    train: Path,
    target: Path | None,
    out: Path,
    base: str | None,
    fraction: float | None,
    k: int | None,
    epochs: int | None,
    seed: int,
) -> None:
    """Learn which rows of --train deserve weight for --target, and select the heaviest.

    OUT is a saved folder for `zoo.load`, with weights.jsonl and selection.jsonl in it.
    Example: zoo select bayesian-dps --train train.jsonl --target dev.jsonl -o chosen
    """
    from ..errors import UsageError

    if fraction is not None and k is not None:
        raise UsageError("give either --fraction or --k.")
    if fraction is not None and not 0 <= fraction <= 1:
        raise UsageError(f"--fraction {fraction}: expected 0 to 1.")
    call.refuse_taken(out)
    if k is not None:
        _check_count(k, train, call.keywords)
    call = replace(call, bases=(*call.bases, base) if base else call.bases)
    loaded: DataSelector = call.load()
    keywords = {"epochs": epochs, "seed": seed, **call.keywords, "progress": call.progress}
    loaded.fit(str(train), None if target is None else str(target), **keywords)
    loaded.save_pretrained(
        out, overwrite=call.force
    )  # first: a failed selection does not lose the fit
    chosen = _chosen(loaded, fraction, k)
    weights = loaded.weights.tolist()
    picked = chosen.tolist()
    ids, row = loaded.ids, getattr(loaded, "row", None)
    rows = [{"index": i, **({} if ids is None else {"id": ids[i]}), "weight": w}
            for i, w in enumerate(weights)]  # fmt: skip
    _lines(out / "weights.jsonl", rows)
    told = [{**rows[i], **(row(i) if callable(row) else {})} for i in picked]
    _lines(out / "selection.jsonl", told)
    report = getattr(loaded, "report", None)
    summary = dict(report(out, chosen)) if callable(report) else {}
    if call.as_json:
        return echo_json({"model": call.entry.name, "out": str(out), "n": len(weights),
                          "selected": len(picked), "report": summary})  # fmt: skip
    mean = sum(weights) / len(weights)
    click.echo(f"{out}: {len(picked)} of {len(weights)} examples selected, mean weight {mean:.3f}")
    for note in summary.get("notes", []):
        click.echo(f"note: {note}")


def _chosen(loaded: DataSelector, fraction: float | None, k: int | None) -> Any:
    """What was asked for; else what the model says, where it can; else half."""
    from ..errors import OptionError

    if k is not None:
        return loaded.select(k=k)
    if fraction is not None:
        return loaded.select(fraction=fraction)
    try:
        return loaded.select()
    except OptionError:
        return loaded.select(fraction=0.5)


def _check_count(k: int, train: Path, keywords: Mapping[str, Any]) -> None:
    """Raise UsageError if ``train`` has fewer than ``k`` rows, before the fit."""
    from .. import tables
    from ..errors import UsageError

    columns = {name: keywords[name] for name in ("features", "label") if name in keywords}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit reads the rows again, and warns
        count = len(tables.read(train, what="train", **columns))
    if not 0 <= k <= count:
        raise UsageError(f"--k {k}: expected 0 to {count}, the number of rows in {train}.")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    from ..files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), "utf-8")
