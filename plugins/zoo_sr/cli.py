"""The commands that both super-resolution methods have: ``zoo run MODEL``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .upscaler import LatentSR


def compare(model: LatentSR, args: list[str]) -> int:
    """``compare IN -o OUT``: the image enlarged by bicubic (left) and by the model (right)."""

    @click.command(name="compare")
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option(
        "-o", "--out", type=click.Path(path_type=Path), required=True, help="Image to write."
    )
    @click.option("--force", is_flag=True, help="Replace what is already there.")
    def command(source: Path, out: Path, force: bool) -> None:
        """Enlarge SOURCE by bicubic and by the model, side by side in one image."""
        from PIL import Image

        from zoo import images

        images.check_output(out, overwrite=force)
        small = images.read(source, "RGB")
        ours = model.upscale(small)
        sheet = Image.new("RGB", (2 * ours.width + 8, ours.height), "white")
        sheet.paste(small.resize(ours.size, Image.Resampling.BICUBIC), (0, 0))
        sheet.paste(ours, (ours.width + 8, 0))
        images.save(sheet, out, overwrite=force)
        click.echo(f"{out}: bicubic left, {model.entry.name} right")

    return int(command.main(args, prog_name="compare", standalone_mode=False) or 0)


def speed(model: LatentSR, args: list[str], full: Mapping[str, Any] | None = None) -> int:
    """``speed``: parameters, FLOPs and time next to other upscalers, 128 to 512."""

    @click.command(name="speed")
    @click.option("--quick", is_flag=True, help="Time only models that take seconds; count all.")
    @click.option("--no-progress", is_flag=True, help="No progress bar.")
    def command(quick: bool, no_progress: bool) -> None:
        """Measure the model and its peers in one run: on a CPU about five minutes, 4 GB."""
        from zoo.bench import claims_lines, hardware, record, table_text
        from zoo.experiment import Book

        from .measuring.speed import measure_speed
        from .measuring.tables import less_is_better

        book = Book(less_is_better)
        measure_speed(book, model, quick, full, not no_progress)
        found = record(model.entry.name, book.results(), "speed", 0.0)
        wide = shutil.get_terminal_size((100, 24)).columns
        click.echo(table_text(found, wide))
        if book.claims:
            click.echo("\n" + claims_lines(found, wide))
        click.echo(f"\n{model.device.type}, one thread, {hardware()}")

    return int(command.main(args, prog_name="speed", standalone_mode=False) or 0)


def profile(model: LatentSR, args: list[str]) -> int:
    """``profile [IMAGE]``: where the time of one enlargement goes."""

    @click.command(name="profile")
    @click.argument("source", type=click.Path(path_type=Path), required=False)
    @click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
    def command(source: Path | None, rounds: int) -> None:
        """Enlarge SOURCE (default: a photograph of 128x128) and show the time of each part."""
        import tempfile

        from zoo.bench import hardware

        from .measuring.profiler import profile, table

        with tempfile.TemporaryDirectory() as scratch:
            if source is None:
                from zoo import images

                source = Path(scratch) / "astronaut.png"
                images.save(_photograph(), source)
            click.echo(table(profile(model, source, rounds)))
        click.echo(f"\n{model.device.type}, one thread, mean of {rounds}, {hardware()}")

    return int(command.main(args, prog_name="profile", standalone_mode=False) or 0)


def _photograph() -> Any:
    from PIL import Image
    from skimage.data import astronaut

    return Image.fromarray(astronaut()).resize((128, 128), Image.Resampling.BICUBIC)
