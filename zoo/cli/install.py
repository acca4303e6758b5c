"""``zoo install`` and ``zoo uninstall``: pip, in this interpreter, for plugins."""

from __future__ import annotations

import importlib
import shlex
import site
import subprocess
import sys
import sysconfig

import click

from .. import registry
from ..errors import NotReadyError, UsageError
from ..installed import normalised


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("distributions", nargs=-1, required=True, metavar="DIST...")
def install(distributions: tuple[str, ...]) -> None:
    """Install the plugin distributions DIST with pip, into the environment that zoo runs in.

    DIST is what pip takes: a name, a path, a wheel. Everything after `--` is passed to pip.
    """
    before = {(p.distribution, p.package) for p in registry.catalogue().plugins}
    _pip("install", *distributions)
    site.addsitedir(sysconfig.get_path("purelib"))  # an editable install is a new .pth file there
    importlib.invalidate_caches()
    registry.forget()
    new = [p for p in registry.catalogue().plugins if (p.distribution, p.package) not in before]
    for plugin in new:
        models = ", ".join(plugin.registry.models) if plugin.registry else plugin.reason
        click.echo(f"{plugin.package} ({plugin.state}): {models}")
    if not new:
        click.echo(
            "no new plugin: it was already installed, or it has no entry point in zoo.plugins."
        )


@click.command()
@click.argument("distribution", metavar="DIST")
def uninstall(distribution: str) -> None:
    """Remove the plugin distribution DIST with pip; DIST may also be the name of its package."""
    strangers = [p for p in registry.catalogue().plugins if not p.first_party]
    known = {p.distribution for p in strangers}
    name = normalised(distribution)
    if name not in known:  # the name of a package, perhaps
        owners = {p.distribution for p in strangers if normalised(p.package) == name}
        if len(owners) != 1:
            have = ", ".join(sorted(known)) or "none"
            raise UsageError(
                f"{distribution!r} has no third-party plugin (installed are: {have}). Remove "
                f"other packages with pip."
            )
        (name,) = owners
    _pip("uninstall", "--yes", name)


def _pip(*args: str) -> None:
    """Run pip in this interpreter. Raises NotReadyError, with the command to run, if there is no
    pip."""
    from importlib.util import find_spec

    if find_spec("pip") is None:
        command = shlex.join(["pip", "--python", sys.executable, *args])
        raise NotReadyError(f"this environment has no pip. Run a pip from elsewhere: {command}")
    # -P: otherwise a random.py or pip.py in the current folder would run instead
    done = subprocess.run([sys.executable, "-P", "-m", "pip", *args], check=False)
    if done.returncode:
        raise click.exceptions.Exit(1)  # pip has said why
