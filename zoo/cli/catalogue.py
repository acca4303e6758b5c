"""``zoo list``, ``zoo info``, ``zoo plugins``: read registry data without importing plugins."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .. import plugins as finder
from .. import registry
from .options import echo_json, json_option, model_argument

if TYPE_CHECKING:
    from ..entry import Entry
    from ..plugins import Plugin

STATES = ("ready", "untrained", "planned", "blocked")
"""The states of models, in the order of ``zoo list``."""


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--interface", help="Only models of one kind, such as SRModel.")
@click.option("--bases", is_flag=True, help="Show the bundled base models instead.")
@json_option
def list_(pattern: str, interface: str | None, bases: bool, as_json: bool) -> None:
    """List the known models; PATTERN is a part of the name, or a glob such as '*-sr'.

    ready: can be loaded. untrained: has code but no weights; train them. planned: has no code yet.
    """
    from fnmatch import fnmatchcase

    from ..interfaces import INTERFACES

    wanted = pattern
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"

    if interface is not None and interface not in INTERFACES:
        raise click.BadParameter(f"{interface!r} is not one of {', '.join(INTERFACES)}")
    catalogue = registry.catalogue()
    if bases:
        found = [b for claims in catalogue.bases.values() for b in claims]
        found = [b for b in found if fnmatchcase(b.name, pattern)]
        if as_json:
            return echo_json([{"name": b.name, "summary": b.summary} for b in found])
        return _columns([(b.name, b.summary) for b in found] or [("no bases", "")])

    def state(entry: Entry) -> str:
        return "blocked" if catalogue.blocked(entry) else entry.status

    entries = [
        entry
        for entry in catalogue.entries()
        if interface in (None, entry.interface) and fnmatchcase(entry.name, pattern)
    ]
    entries.sort(key=lambda entry: STATES.index(state(entry)))
    if as_json:
        return echo_json([_public(entry) for entry in entries])
    if not entries:
        of = f" {interface}" if interface else ""
        click.echo(f"no{of} model matches {wanted!r}; `zoo list` shows all.", err=True)
    _columns([(_name(e, catalogue), e.interface, state(e), e.summary) for e in entries])
    faults = [p for p in catalogue.plugins if p.state in ("fault", "conflict")]
    if faults:
        count = "1 plugin has" if len(faults) == 1 else f"{len(faults)} plugins have"
        click.echo(f"{count} a fault; see `zoo plugins`.", err=True)


@click.command()
@model_argument
@json_option
def info(model: str, as_json: bool) -> None:
    """Show MODEL's description, licence, options and files."""
    from .. import about, api
    from ..errors import PluginError

    found = api.saved_in(model)
    if found is not None and found.saved is not None:
        manifest = dict(found.saved.manifest)
        return echo_json(manifest) if as_json else _facts(manifest)
    catalogue = registry.catalogue()
    entry = api.entry_of(model)
    facts = _public(entry)
    try:
        plugin = catalogue.owner(entry)
        facts["code"] = str(plugin.folder)
        bundle = plugin.bundle(entry.name)
        there = bundle is not None and all((bundle / f.path).is_file() for f in entry.files)
        facts["bundled"] = bool(entry.files) and there
        facts["keywords"] = _keywords(entry, plugin)
        card = plugin.card(entry.name)
        facts["limits"] = about.limits(card.read_text("utf-8")) if card and card.is_file() else ()
    except PluginError:
        pass  # planned: there is no plugin yet
    if as_json:
        return echo_json(facts)
    _facts(facts)


@click.command()
@click.option("--check", is_flag=True, help="Also import each plugin, in a separate process.")
@json_option
@click.pass_context
def plugins(ctx: click.Context, check: bool, as_json: bool) -> None:
    """List the installed plugins and their faults.

    Without --check nothing is imported, so only faults of data are found. With it, exit code 1
    means that at least one plugin is broken.
    """
    found = [_checked(p) if check else (p, p.state, p.reason) for p in registry.catalogue().plugins]
    if as_json:
        echo_json(
            [
                {
                    "package": p.package,
                    "distribution": p.distribution,
                    "version": p.version,
                    "state": state,
                    "reason": reason,
                    "models": [*p.registry.models] if p.registry else [],
                }
                for p, state, reason in found
            ]
        )
    else:
        _columns([(p.package, f"{p.distribution} {p.version}", s, r) for p, s, r in found])
    if check and any(state == "fault" for _, state, _ in found):
        ctx.exit(1)


def _checked(plugin: Plugin) -> tuple[Plugin, str, str]:
    if plugin.state in ("blocked", "fault"):
        return plugin, plugin.state, plugin.reason
    reason = finder.check(plugin)
    return (plugin, "fault", reason) if reason else (plugin, plugin.state, plugin.reason)


def _name(entry: Entry, catalogue: registry.Catalogue) -> str:
    alone = len(catalogue.models[entry.name]) == 1
    return entry.name if alone else f"{entry.distribution}:{entry.name}"


def _public(entry: Entry) -> dict[str, Any]:
    facts = asdict(entry)
    facts["class"] = facts.pop("class_")
    del facts["line"]
    return facts


def _keywords(entry: Entry, plugin: Plugin) -> dict[str, list[str]]:
    """Verb -> keywords that -O may set besides declared options, from the source of the class."""
    from ..interfaces import verbs
    from ..signatures import keywords

    if plugin.folder is None or entry.class_ is None:
        return {}
    found = {
        verb: [str(k) for k in keywords(plugin.folder, entry.class_, verb)]
        for verb in (*verbs(entry.interface), "export")
    }
    return {verb: names for verb, names in found.items() if names}


def _facts(facts: dict[str, Any]) -> None:
    width = max(map(len, [*facts, *facts.get("keywords", ()), "train option"]))
    for key, value in facts.items():
        if value in (None, "", [], {}, ()):
            continue
        if key == "options":
            for verb, options in value.items():
                if not isinstance(options, dict):  # a saved folder has values
                    click.echo(f"{'option':{width}}  {verb}: {options}")
                    continue
                for name, option in options.items():
                    click.echo(f"{verb + ' option':{width}}  {name}: {_option(option)}")
        elif key == "files":
            files = value.items() if isinstance(value, dict) else ((f["path"], f) for f in value)
            for path, file in files:
                text = f"{path}, {file['size']:,} bytes, sha256 {file['sha256'][:12]}…"
                click.echo(f"{'file':{width}}  {text}")
        elif key == "bases":
            for name, base in value.items():
                said = ", ".join(f"{k} {v}" for k, v in base.items() if v)
                click.echo(f"{'base':{width}}  {name}: {said}")
        elif key == "limits":
            for limit in value:
                click.echo(f"{'limit':{width}}  {_tame(limit)}")
        elif key == "card":
            continue  # it is for the card
        elif key == "keywords":
            for verb, names in value.items():
                for name in names:
                    click.echo(f"{verb:{width}}  {name}")
        elif key == "commands":
            for name, command in value.items():
                click.echo(f"{'command':{width}}  {name}: {command['help']}")
        elif isinstance(value, dict):
            text = ", ".join(f"{k} {_brief(v)}" for k, v in value.items() if v is not None)
            click.echo(f"{key:{width}}  {text}")
        else:
            click.echo(f"{key:{width}}  {' '.join(str(value).split())}")


def _brief(value: Any) -> str:
    """A value of a config, shortened; ``--json`` has all of it."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _option(option: Any) -> str:
    if not isinstance(option, dict):
        return str(option)
    from ..entry import Option

    declared = Option(**option)
    return f"{declared.expected}, default {declared.default}. {declared.help}"


def _tame(text: str) -> str:
    """Text of a plugin, without characters that control the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _columns(rows: Any) -> None:
    """Print rows in aligned columns; a terminal wraps the last column, other outputs have one line
    per row."""
    rows = [[_tame(" ".join(str(cell).split())) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        line = "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        indent = sum(widths[:-1]) + 2 * len(widths[:-1])
        wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(line)
        if len(line) > wide and indent < wide // 2 + wide // 4:
            parts = textwrap.wrap(row[-1], wide - indent)
            line = f"\n{' ' * indent}".join([line[:indent] + parts[0], *parts[1:]])
        click.echo(line)
