"""``zoo bench``: run an experiment, print its table, keep its results."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from .options import (
    PATH,
    base_option,
    declared_option,
    device_option,
    echo_json,
    json_option,
    parse_bases,
    parse_settings,
    quiet_option,
)


@click.command()
@click.argument("subject", metavar="MODEL|INTERFACE")
@click.option("--data", type=PATH, help="Benchmark data; default: the method's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="First seed.")
@click.option(
    "--quick", is_flag=True, help="Less data and one seed, for minutes; not with --write."
)
@click.option("--write", type=PATH, help="Save results.json and pictures in this folder, by model.")
@base_option
@device_option
@quiet_option
@declared_option
@json_option
def bench(
    subject: str,
    data: Path | None,
    seed: int,
    quick: bool,
    write: Path | None,
    bases: tuple[str, ...],
    device: str,
    quiet: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the experiment behind MODEL's claim, or compare all models of an INTERFACE."""
    from .. import api
    from .. import bench as benchmarks
    from ..errors import UsageError
    from ..interfaces import INTERFACES

    if quick and write:
        raise click.UsageError("--quick measures too little to be saved; leave out --write.")
    # The record is for all machines: the command leaves out where the data is on this one.
    words = [_for_others(word, data) for word in sys.argv[1:]]
    command = shlex.join(["zoo", *words])
    if subject in INTERFACES:
        if bases:
            raise click.UsageError("--base is for the benchmark of one model, not of an interface.")
        found = benchmarks.run_interface(
            subject,
            command=command,
            data=data,
            quick=quick,
            device=device,
            say=lambda text: click.echo(text, err=True),
        )
        kept = benchmarks.write(found, write / subject) if write else None
    else:
        entry = api.entry_of(subject)
        if api.saved_in(subject) is not None:
            raise UsageError(
                f"zoo bench measures a method with its own weights, and {subject} is a saved model "
                f"of {entry.name}. Measure it on data: zoo eval {subject} DATA."
            )
        with tempfile.TemporaryDirectory() as scratch:
            out = write / entry.name if write else Path(scratch)
            out.mkdir(parents=True, exist_ok=True)
            found = benchmarks.run(
                entry,
                command=command,
                out=out,
                data=data,
                seed=seed,
                quick=quick,
                device=device,
                progress=not quiet,
                base=parse_bases(bases, entry),
                options=parse_settings(settings),
            )
            kept = benchmarks.write(found, out) if write else None
    if as_json:
        return echo_json(found)
    wide = shutil.get_terminal_size((100, 24)).columns
    click.echo(benchmarks.table_text(found, wide))
    if found["claims"]:
        click.echo("\n" + benchmarks.claims_lines(found, wide))
    if quick:
        click.echo("\n--quick only shows that the experiment runs: it measures on too little data.")
    click.echo(f"\n{found['seconds']:.0f} s on {found['hardware']}")
    if kept:
        click.echo(str(kept))


def _for_others(word: str, data: Path | None) -> str:
    """A word of the command as the record keeps it: without a folder's place on this machine.

    ``--base image=/long/way/to/lite0`` becomes ``image=PATH/lite0``.
    """
    name, equals, value = word.rpartition("=")
    if (data and value == str(data)) or Path(value).is_absolute():
        return f"{name}{equals}PATH/{Path(value).name}"
    return word
