"""``zoo quantize``: a language model in, a quantized one out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, echo_json
from .verbs import Call, saved, verb

if TYPE_CHECKING:
    from ..interfaces import Estimate, QuantizedModel, Quantizer


@verb("Quantizer", "quantize", "quantize")
@click.argument("llm")
@click.option("-o", "--out", type=PATH, required=True, help="Folder for the quantized model.")
@click.option(
    "--scheme", help="Bits of weights and activations, such as w4a16; default: the method's."
)
@click.option(
    "--calibration",
    type=PATH,
    help="Texts, separated by empty lines, or token ids (.npy); default: zoo's own short texts.",
)
@click.option("--dry-run", is_flag=True, help="Print the estimated cost and do nothing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same result.")
def quantize(
    call: Call,
    llm: str,
    out: Path,
    scheme: str | None,
    calibration: Path | None,
    dry_run: bool,
    seed: int,
) -> None:
    """Quantize LLM, a Hub id or a folder (./name), with MODEL.

    OUT gets the weights and the tokenizer, and is a folder for zoo.load.
    Example: zoo quantize mobilequant ./my-llm --calibration texts.txt -o small
    """
    from .. import calibration as calibrations

    call.refuse_taken(out)
    texts = calibrations.read(calibration) if calibration is not None else None
    keywords: dict[str, Any] = {"seed": seed, "progress": call.progress, **call.keywords}
    if scheme is not None:
        keywords["scheme"] = scheme
    loaded: Quantizer = call.load()
    if dry_run:
        cost = loaded.estimate(llm, texts, **{**keywords, "progress": False})
        return echo_json(asdict(cost)) if call.as_json else click.echo(_cost(cost))
    made: QuantizedModel = loaded.quantize(llm, texts, **keywords)
    made.save_pretrained(out, overwrite=call.force)
    report = dict(made.report())
    if call.as_json:
        source = dict(made.source_model)
        return echo_json(
            {"model": call.entry.name, "out": str(out), "source": source, "report": report}
        )
    before, after = (report[f"bytes_{when}"] / 1e6 for when in ("before", "after"))
    click.echo(saved(out))
    click.echo(
        f"{before:.1f} MB -> {after:.1f} MB ({after / before:.2f}x), "
        f"{len(report['layers'])} layers quantized"
    )
    for line in report.get("summary", ()):
        click.echo(line)
    for note in report.get("notes", ()):
        click.echo(f"note: {note}")


def _cost(cost: Estimate) -> str:
    """The estimated cost, for people."""
    gigabytes, seconds = cost.memory / 1e9, cost.seconds
    size = f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1e3:.1f} MB"
    time = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    return "\n".join(
        [*cost.notes, f"about {size} of memory beyond the weights, and {time} on this machine"]
    )
