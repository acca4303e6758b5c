"""``zoo doctor``: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ..errors import ZooError
from .options import echo_json, json_option


@dataclass(frozen=True)
class _Finding:
    topic: str
    ok: bool | None
    """None: a note, with nothing to fix."""
    text: str
    advice: str = ""


@click.command()
@click.option("--check", is_flag=True, help="Also import each plugin, in a separate process.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, check: bool, as_json: bool) -> None:
    """Check this installation for faults, and say what to do.

    Exit code 1 means that something is broken. An unreachable Hub is not a fault: bundled and
    cached weights work without it.
    """
    findings = [finding for look in _LOOKS for finding in look(check)]
    if as_json:
        echo_json([asdict(f) for f in findings])
    else:
        marks = {True: "ok", False: "FAULT", None: "note"}
        width = max(len(f.topic) for f in findings)
        for f in findings:
            click.echo(f"{marks[f.ok]:5}  {f.topic:{width}}  {f.text}")
            if f.advice:
                click.echo(f"{'':5}  {'':{width}}  -> {f.advice}")
    if any(f.ok is False for f in findings):
        ctx.exit(1)


def _versions(check: bool) -> Iterator[_Finding]:
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    yield _Finding(
        "zoo", True, f"{__version__}, Python {platform.python_version()}, {sys.platform}"
    )
    for name in ("huggingface_hub", "safetensors", "numpy", "pillow", "pluggy"):
        try:
            yield _Finding(name, True, version(name))
        except PackageNotFoundError:
            yield _Finding(name, False, "not installed", "pip install edgezoo")


def _torch(check: bool) -> Iterator[_Finding]:
    try:
        import torch
    except ModuleNotFoundError:
        yield _Finding("torch", None, "not installed", 'pip install "edgezoo[all]" to run models')
        return
    except (ImportError, OSError) as error:
        yield _Finding("torch", False, f"does not import: {error}", "reinstall torch")
        return
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield _Finding(
        "torch",
        True,
        f"{torch.__version__} ({built}), {torch.get_num_threads()} threads, "
        f"devices: {', '.join(devices)}",
    )


def _cache(check: bool) -> Iterator[_Finding]:
    from .. import hub

    folder = hub.cache_folder()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    yield _Finding(
        "cache", None if free < 2**30 else True, f"{folder}, {free / 2**30:.1f} GiB free"
    )


def _reachable(check: bool) -> Iterator[_Finding]:
    from .. import hub

    trouble = hub.reachable()
    if trouble is None:
        yield _Finding("Hub", True, "answers")
    else:
        yield _Finding("Hub", None, trouble, "bundled and cached weights work without it")


def _plugins(check: bool) -> Iterator[_Finding]:
    from .. import plugins, registry

    for plugin in registry.catalogue().plugins:
        reason = plugins.check(plugin) if check and plugin.state in ("ok", "conflict") else None
        broken = plugin.state == "fault" or reason is not None
        text = (
            reason
            or plugin.reason
            or f"{len(plugin.registry.models) if plugin.registry else 0} models"
        )
        advice = (
            f"update {plugin.distribution}, or set ZOO_PLUGINS_DISABLE={plugin.package}"
            if broken
            else ""
        )
        ok = False if broken else (True if plugin.state == "ok" else None)
        yield _Finding(plugin.package, ok, " ".join(text.split()), advice)


def _weights(check: bool) -> Iterator[_Finding]:
    """Compare bundled weights with their hashes: this finds interrupted installs."""
    from .. import hub, registry

    catalogue = registry.catalogue()
    for entry in catalogue.entries():
        if entry.status != "ready" or not entry.files:
            continue
        try:
            folder = catalogue.owner(entry).bundle(entry.name)
            if folder is None or not Path(folder).is_dir():
                yield _Finding(
                    entry.name, None, "weights are not bundled", f"zoo pull {entry.name}"
                )
                continue
            hub.check_files(folder, entry.files)
            yield _Finding(entry.name, True, "bundled weights match their hashes")
        except ZooError as error:
            yield _Finding(entry.name, False, str(error))


_LOOKS: tuple[Callable[[bool], Iterator[_Finding]], ...] = (
    _versions,
    _torch,
    _cache,
    _reachable,
    _plugins,
    _weights,
)
