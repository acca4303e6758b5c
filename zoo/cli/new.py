"""``zoo new``: create a plugin project."""

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
    help="Interface of its model.",
)
@click.option("-o", "--out", type=PATH, help="Folder to create. Default: NAME.")
def new(name: str, interface: str, out: Path | None) -> None:
    """Create a plugin project: a working model NAME and its tests, ready to be changed.

    Example: zoo new my-upscaler --interface SRModel
    """
    from ..scaffold import create

    folder = create(name, interface, out)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(f"  {file}")
    click.echo(
        f"Next: cd {folder} && pip install -e . && pytest    (pip install pytest, if needed)\n"
        f"Then: zoo info {name}, and replace the method in model.py by your own"
    )
