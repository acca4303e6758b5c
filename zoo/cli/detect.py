"""``zoo detect``: images in; boxes as a table, a COCO file and images out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .inputs import Failures, numbered, one_picture, pictures
from .options import PATH, echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from ..interfaces import Detections, Detector

FILE = "detections.json"


@verb("Detector", "detect", "detect objects")
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=PATH,
    help=f"Folder for {FILE} (COCO) and pictures with the boxes; or a picture, for one image.",
)
@click.option("--threshold", type=float, help="Lowest score; default: the model's own.")
def detect(call: Call, inputs: tuple[str, ...], out: Path | None, threshold: float | None) -> None:
    """Find objects in INPUTS: images, folders of images, or patterns such as "*.jpg".

    Example: zoo detect simdetr photos/ -o found, or zoo detect simdetr photo.jpg -o boxes.png
    """
    from .. import images
    from ..drawing import drawn
    from ..files import new_folder

    found = pictures(inputs)
    picture_alone = out is not None and one_picture(found, inputs, out)
    folder = None if picture_alone else out
    targets: list[Path | None] = [out] * len(found)
    if folder:
        names = numbered(picture.name.with_suffix(".png") for picture in found)
        targets = [folder / name for name in names]
        call.refuse_taken_files(folder, [folder / FILE, *filter(None, targets)])
    elif out:
        call.refuse_taken_files(out.parent, [out])
    keywords = call.keywords if threshold is None else {"threshold": threshold, **call.keywords}
    loaded: Detector = call.load()
    results, failures = [], Failures(len(found))
    with new_folder(folder) if folder else nullcontext():
        for picture, target in zip(found, targets, strict=True):
            with failures.of(picture.path):
                image = images.read(picture.path, "RGB")
                seen = loaded.detect(image, **keywords)
                if target:
                    with new_folder(target.parent):
                        images.save(drawn(image, seen), target, overwrite=call.force)
                results.append((picture.path, image.size, seen))
                if not call.as_json:
                    click.echo(f"{picture.path}: {_line(seen)}")
        made = coco(results)
        if folder:
            _write(made, folder / FILE)
    if call.as_json:
        echo_json(made)
    elif folder:
        click.echo(f"{folder}: {FILE}, and a picture for each image")
    failures.report()


def _line(seen: Detections) -> str:
    objects = [
        f"{seen.names[label]} {score:.2f} ({', '.join(f'{side:.0f}' for side in box)})"
        for box, score, label in zip(seen.boxes, seen.scores, seen.labels, strict=True)
    ]
    return "; ".join(objects) or "nothing"


def coco(results: list[tuple[Path, tuple[int, int], Detections]]) -> dict[str, Any]:
    """The detections as a COCO data set, with ``score``; categories are numbered from 1."""
    names = list(dict.fromkeys(name for _, _, seen in results for name in seen.names))
    categories = {name: number for number, name in enumerate(names, 1)}
    entries: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (path, (width, height), seen) in enumerate(results, 1):
        entries.append({"id": number, "file_name": str(path), "width": width, "height": height})
        for record in seen.to_coco(number, categories):
            _, _, wide, high = record["bbox"]
            boxes.append({"id": len(boxes) + 1, **record, "area": wide * high, "iscrowd": 0})
    return {
        "images": entries,
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def _write(made: dict[str, Any], path: Path) -> None:
    from ..files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(made, allow_nan=False), "utf-8")
