"""``zoo train``, ``export``, ``pull``, ``verify``, ``run``: work on one model."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .. import actions, api, hub
from .options import (
    PATH,
    base_option,
    declared_option,
    device_option,
    echo_json,
    force_option,
    json_option,
    model_argument,
    parse_bases,
    parse_settings,
    quiet_option,
    set_option,
)


@click.command()
@model_argument
@click.option("--data", type=PATH, help="Training data: a folder or a file.")
@click.option("-o", "--out", type=PATH, required=True, help="Output folder, also for checkpoints.")
@click.option("--stage", help="One stage of the recipe, by name; default: all.")
@click.option("--steps", type=int, help="Steps of each stage; default: the recipe's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same weights.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --out.")
@click.option("--init", help="Start from a saved folder, or from a model's weights by its name.")
@base_option
@device_option
@quiet_option
@declared_option
def train(
    model: str,
    data: Path | None,
    out: Path,
    stage: str | None,
    steps: int | None,
    seed: int,
    resume: bool,
    init: str | None,
    bases: tuple[str, ...],
    device: str,
    quiet: bool,
    settings: tuple[str, ...],
) -> None:
    """Train MODEL with its method's recipe. Ctrl-C is safe: continue with --resume."""
    entry = api.entry_of(model)
    folder = actions.train(
        entry,
        out,
        data=data,
        seed=seed,
        steps=steps,
        stage=stage,
        resume=resume,
        init=init,
        base=parse_bases(bases, entry),
        device=device,
        progress=not quiet,
        options=parse_settings(settings),
    )
    here = folder if folder.is_absolute() else f"./{folder}"
    click.echo(f'{folder}: load it with zoo.load("{here}")')


@click.command()
@model_argument
@click.option(
    "-o", "--out", type=PATH,
    help="File to write, or folder, by the format; default: MODEL.FORMAT here.",
)  # fmt: skip
@click.option("--format", "kind", help="Format to write; default: the suffix of OUT, or onnx.")
@base_option
@force_option
@set_option
def export(
    model: str,
    out: Path | None,
    kind: str | None,
    bases: tuple[str, ...],
    force: bool,
    settings: tuple[str, ...],
) -> None:
    """Write MODEL in a format for other runtimes."""
    from ..files import check_folder, check_target
    from .options import split_settings

    entry = api.entry_of(model)
    kind = kind or (out.suffix.lower().removeprefix(".") if out else "") or "onnx"
    out = out or Path(f"{entry.name}.{kind}")
    (check_folder if out.is_dir() else check_target)(out, overwrite=force)
    given = parse_settings(settings)
    loaded = api.load(
        model,
        base=parse_bases(bases, entry),
        **{k: v for k, v in given.items() if k in entry.options.get("load", {})},
    )
    _, keywords = split_settings(given, entry, loaded.export)
    written = loaded.export(out, kind, **keywords)
    click.echo("\n".join([str(written), *loaded.export_report(written)]))


@click.command()
@model_argument
@json_option
def pull(model: str, as_json: bool) -> None:
    """Download MODEL's weights and check each file against its hash."""
    saved = api.saved_in(model)  # this downloads a published model
    found = hub.Located(saved.folder, saved.source) if saved else actions.pull(model)
    if as_json:
        return echo_json(
            {"folder": found.folder, "source": found.source, "revision": found.revision}
        )
    if found.folder is None:
        return click.echo(f"{model} has no files of its own; nothing to pull.")
    if found.source == "folder":
        return click.echo(f"{found.folder} is on this machine already.")
    click.echo(f"{found.folder} ({found.source}, verified)")


@click.command()
@model_argument
@base_option
@device_option
@json_option
def verify(model: str, bases: tuple[str, ...], device: str, as_json: bool) -> None:
    """Check MODEL's hashes, and its output on a known input."""
    started = time.perf_counter()
    loaded = api.load(model, base=parse_bases(bases, api.entry_of(model)), device=device)
    off = actions.verify(loaded)
    seconds = time.perf_counter() - started
    check = loaded.entry.check
    atol = check.atol if check else None
    if as_json:
        return echo_json({"model": model, "deviation": off, "atol": atol, "seconds": seconds})
    if off is None:
        if loaded.source == "none":
            return click.echo(f"{model} has no files of its own; nothing to verify.")
        return click.echo(f"{model}: files match their hashes; it has no check input.")
    click.echo(
        f"{model}: files match their hashes; output within {off:.2g} of the expected one "
        f"(allowed {atol:g}); weights from: {loaded.source}; {seconds:.1f} s"
    )


HELP = ("-h", "--help")


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@base_option
@model_argument
@click.argument("name", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context, bases: tuple[str, ...], model: str, name: str | None, args: tuple[str, ...]
) -> None:
    """Run NAME, one of MODEL's own commands, with ARGS.

    `zoo run MODEL` lists them; `zoo run MODEL NAME --help` explains one.
    """
    from .. import plugins
    from ..errors import OptionError
    from ..registry import catalogue

    if model in HELP:  # click's own --help would swallow that of the model's command
        return click.echo(ctx.get_help())
    entry = api.entry_of(model)
    if (known := entry.commands) and (name is None or name in HELP):
        return click.echo("\n".join(f"zoo run {model} {k}: {v.help}" for k, v in known.items()))
    if name is None or name not in known:
        raise OptionError(f"{model} has no command {name!r}. It has: {', '.join(known) or 'none'}.")
    if args[:1] == ("--",):  # everything after it belongs to the command
        args = args[1:]
    loaded = api.load(model, base=parse_bases(bases, entry))
    command = plugins.import_object(catalogue().owner(entry), known[name].run, entry)
    ctx.exit(int(command(loaded, [*args]) or 0))
