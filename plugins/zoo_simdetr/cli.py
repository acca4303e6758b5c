"""The commands of simdetr: ``zoo run simdetr discover``."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .model import SimDETR


ASKED = "asked.json"
"""What a folder of ``discover`` was made from."""


def fingerprint(files: Sequence[Path]) -> str:
    """A hash of files' names and sizes."""
    told = sorted((file.name, file.stat().st_size) for file in files)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _was_given(option: str) -> bool:
    """Is it the photos, or an option on the command line?"""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def discover(model: SimDETR, args: list[str]) -> int:
    """``discover PHOTOS -o OUT``: clusters of what is in them; then name them."""

    @click.command(name="discover")
    @click.argument("photos", type=click.Path(path_type=Path))
    @click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder.")
    @click.option(
        "--scene",
        type=click.Choice(["objects", "many-small"]),
        default="objects",
        show_default=True,
        help="A few objects, or many small ones that may touch.",
    )
    @click.option("--upside-down", is_flag=True, help="Pictures have no upper side.")
    @click.option("--clusters", type=int, help="How many; else by the number of regions.")
    @click.option("--steps", type=int, help="Of each stage; else about 300.")
    @click.option("--names", help='What clusters are, such as "2=white cell, 5=red cell".')
    @click.option("--quiet", is_flag=True, help="No progress bars.")
    def command(photos: Path, out: Path, names: str | None, quiet: bool, **options: Any) -> None:
        """Find kinds of things in PHOTOS, a folder, without labels.

        Writes OUT/clusters.png, a row of pictures for each cluster. Look at it and run the command
        again with --names: OUT/detector is then a detector of the clusters that you named. An
        interrupted command goes on when it is run again.

        Give `zoo run --base` an EfficientNet-Lite0 in timm's format for anything but blood cells:
        without it, regions are those that the bundled blood-cell detector tells apart.
        """
        from zoo.errors import UsageError
        from zoo.images import listed, save

        from .discover import finds, named, sheet

        wanted = named(names) if names else None
        files = listed(photos, below=True)
        asked, file = {"photos": fingerprint(files), **options}, out / ASKED
        if file.is_file():
            before = json.loads(file.read_text("utf-8"))
            given = [k for k, v in asked.items() if before.get(k) != v and _was_given(k)]
            if given:
                raise UsageError(
                    f"{out} is of other {' and '.join(given)}: give another folder with -o."
                )
        if not (out / "model").is_dir():
            if model.source == "bundled" and model.start is None:
                click.echo(
                    "Regions are those of the bundled blood-cell detector. For other things: "
                    "zoo run --base timm/tf_efficientnet_lite0.in1k ..."
                )
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asked) + "\n", "utf-8")
            try:
                report = model.pretrain(photos, work=out, progress=not quiet, **options)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("The same command goes on from here.") from None
            told = report["proposals"]
            click.echo(f"{told['images']} images, {told['boxes_per_image']} boxes in each")
            for path in report["skipped"]:
                click.echo(f"left out, as it cannot be read: {path}")
        found = type(model).from_pretrained(out / "model")
        if wanted is None:
            rows, counts = finds(found, files, not quiet)
            save(sheet(rows, counts), out / "clusters.png", overwrite=True)
            if not any(counts):
                click.echo("nothing was found: learn for longer, with more --steps and another -o")
                return
            click.echo(
                f"{out / 'clusters.png'}: {len(found.names)} clusters, a row for each. Name those "
                'that you want: the same command with --names "0=NAME, 3=NAME"'
            )
            return
        found.name_clusters(wanted).save_pretrained(out / "detector", overwrite=True)
        made = str(out / "detector") if out.is_absolute() else f"./{out / 'detector'}"
        again = shlex.join(["zoo", "detect", made, str(photos), "-o", "found"])
        click.echo(f"{out / 'detector'}: finds {', '.join(found.names)}. Use it: {again}")

    return int(command.main(args, prog_name="discover", standalone_mode=False) or 0)
