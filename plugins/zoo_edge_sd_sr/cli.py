"""The method's own commands: ``zoo run edge-sd-sr NAME ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from zoo_yonos_sr import cli as shared

if TYPE_CHECKING:
    from .model import EdgeSDSR


def compare(model: EdgeSDSR, args: list[str]) -> int:
    """``compare IN -o OUT``: the picture enlarged by bicubic (left) and by the model (right)."""

    @click.command(name="compare")
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Picture.")
    @click.option("--force", is_flag=True, help="Replace what is already there.")
    def command(source: Path, out: Path, force: bool) -> None:
        """Enlarge SOURCE by bicubic and by the model, side by side in one picture."""
        from PIL import Image

        from zoo import images

        images.check_output(out, overwrite=force)
        small = images.read(source).convert("RGB")
        ours = model.upscale(small)
        sheet = Image.new("RGB", (2 * ours.width + 8, ours.height), "white")
        sheet.paste(small.resize(ours.size, Image.Resampling.BICUBIC), (0, 0))
        sheet.paste(ours, (ours.width + 8, 0))
        images.save(sheet, out, overwrite=force)
        click.echo(f"{out}: bicubic left, {model.entry.name} right")

    return int(command.main(args, prog_name="compare", standalone_mode=False) or 0)


def speed(model: EdgeSDSR, args: list[str]) -> int:
    """``speed``: parameters, FLOPs and time beside other upscalers, the paper's size included."""
    from .full import CONFIG

    return shared.speed(model, args, CONFIG)


profile = shared.profile
