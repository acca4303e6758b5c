"""``zoo new``: start a plugin of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from ..interfaces import INTERFACES
from .options import PATH


@click.command()
@click.argument("name")
@click.option(
    "--interface",
    required=True,
    type=click.Choice(list(INTERFACES), case_sensitive=False),
    help="What its model does.",
)
@click.option("-o", "--out", type=PATH, help="Folder to make. Default: NAME.")
def new(name: str, interface: str, out: Path | None) -> None:
    """Make a project for a plugin: a model NAME that works, its tests, ready to be changed.

    Example: zoo new my-upscaler --interface SRModel
    """
    from ..scaffold import create

    folder = create(name, interface, out)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(f"  {file}")
    click.echo(
        f"Next: cd {folder} && pip install -e . && pytest    (pip install pytest, if need be)\n"
        f"Then: zoo info {name}, and your own method in place of the one in model.py"
    )
