"""The commands of simdetr: ``zoo run simdetr discover``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .model import SimDETR


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
        again with --names: OUT/detector is then a detector of the clusters that you named.
        """
        from zoo.images import listed, save

        from .discover import finds, named, sheet

        wanted = named(names) if names else None
        if not (out / "model").is_dir():
            report = model.pretrain(photos, work=out, progress=not quiet, **options)
            told = report["proposals"]
            click.echo(f"{told['images']} images, {told['boxes_per_image']} boxes in each")
            for path in report["skipped"]:
                click.echo(f"left out, as it cannot be read: {path}")
        found = type(model).from_pretrained(out / "model")
        if wanted is None:
            made = sheet(*finds(found, listed(photos, below=True), not quiet))
            save(made, out / "clusters.png", overwrite=True)
            click.echo(
                f"{out / 'clusters.png'}: {len(found.names)} clusters, a row for each. Name those "
                'that you want: the same command with --names "0=NAME, 3=NAME"'
            )
            return
        found.name_clusters(wanted).save_pretrained(out / "detector", overwrite=True)
        click.echo(
            f"{out / 'detector'}: finds {', '.join(found.names)}. Use it: "
            f"zoo detect ./{out / 'detector'} {photos} -o found"
        )

    return int(command.main(args, prog_name="discover", standalone_mode=False) or 0)
