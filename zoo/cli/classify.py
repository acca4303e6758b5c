"""``zoo classify``: photos in; a table, a contact sheet and, on request, copies by label out."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import click

from .inputs import Failures, Picture, numbered, pictures
from .options import PATH, echo_json
from .verbs import Call, verb

if TYPE_CHECKING:
    from PIL import Image

    from ..interfaces import VLAligner

TABLE, SHEET, COPIES = "labels.csv", "sheet.png", "by_label"
PART = 64  # photos for each call of the model
COLUMNS, ROWS = 8, 3  # of the contact sheet, for each label
SIDE, GAP, LINE = 128, 6, 18  # pixels


@dataclass(frozen=True)
class Labelled:
    """A photo with its most probable label."""

    picture: Picture
    label: str
    probability: float


@verb("VLAligner", "predict_proba", "classify")
@click.argument("photos", nargs=-1, required=True)
@click.option(
    "--labels",
    help='Texts such as "beach, dog", or a file with one per line; default: the fitted classes.',
)
@click.option("-o", "--out", type=PATH, required=True, help=f"Folder for {TABLE} and {SHEET}.")
@click.option("--copy", is_flag=True, help=f"Copy the photos to OUT/{COPIES}/LABEL.")
def classify(
    call: Call, photos: tuple[str, ...], labels: str | None, out: Path, copy: bool
) -> None:
    """Label each of PHOTOS: images, folders of images, or patterns like "*.jpg".

    A table (file, label, probability) and a contact sheet are written to OUT. Photos are never
    moved. Example: zoo classify ./my-aligner photos/ -o sorted
    """
    from .. import images
    from ..errors import UsageError
    from ..files import new_folder

    given = _labels(labels)
    found = pictures(photos)
    call.refuse_taken_files(out, (out / TABLE, out / SHEET))
    loaded: VLAligner = call.load()
    texts = given or list(loaded.classes)
    if not texts:
        raise UsageError(f'{call.model} has no labels. Pass them: --labels "beach, dog, receipt".')
    targets = _targets(found, texts, out / COPIES) if copy else {}
    call.refuse_taken_files(out, targets.values())
    with new_folder(out):
        made, failures = _classified(loaded, found, texts, call)
        _write(made, out / TABLE)
        images.save(sheet(made, texts), out / SHEET, overwrite=call.force)
        for one in made if copy else []:
            _copied(one.picture.path, targets[one.picture.path, one.label])
    if call.as_json:
        echo_json(
            {
                "model": call.entry.name,
                "out": str(out),
                "photos": [
                    {"file": str(m.picture.path), "label": m.label, "probability": m.probability}
                    for m in made
                ],
            }
        )
    else:
        for text in texts:
            click.echo(f"{sum(m.label == text for m in made):6d}  {text}")
        click.echo(f"{out}: {TABLE}, {SHEET}" + (f", {COPIES}/" if copy else ""))
    failures.report()


def _labels(given: str | None) -> list[str]:
    """The texts that the user gave, or none."""
    from .. import tables
    from ..errors import OptionError

    if given is None:
        return []
    if os.path.isfile(given):  # noqa: PTH113 - Path's raises for a long list of labels
        texts = [line.strip() for line in tables.lines(given, "--labels")]
    else:
        texts = [text.strip() for text in given.split(",")]
    if len(texts) < 2 or not all(texts) or len({*texts}) < len(texts):
        raise OptionError(
            f"--labels {given!r}: expected at least two different labels, separated by commas, "
            f"or a file with one per line."
        )
    return texts


def _classified(
    model: VLAligner, found: Sequence[Picture], texts: list[str], call: Call
) -> tuple[list[Labelled], Failures]:
    """The most probable label of each photo that can be read."""
    from .. import images
    from ..progress import track

    made: list[Labelled] = []
    failures = Failures(len(found))
    with track(len(found), call.progress, "classify") as advance:
        for start in range(0, len(found), PART):
            part, opened = [], []
            for picture in found[start : start + PART]:
                with failures.of(picture.path):
                    opened.append(images.read(picture.path, "RGB"))
                    part.append(picture)
            if part:
                scores = model.predict_proba(opened, texts, **call.keywords)
                best = scores.argmax(1).tolist()
                made += [
                    Labelled(picture, texts[at], float(row[at]))
                    for picture, at, row in zip(part, best, scores, strict=True)
                ]
            advance(len(found[start : start + PART]))
    return made, failures


def _write(made: Sequence[Labelled], path: Path) -> None:
    from ..files import atomic_file

    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["file", "label", "probability"])
        rows.writerows([str(m.picture.path), m.label, f"{m.probability:.4f}"] for m in made)


# --- copies ---------------------------------------------------------------------------------------


def _targets(
    found: Sequence[Picture], texts: Sequence[str], folder: Path
) -> Mapping[tuple[Path, str], Path]:
    """(photo, label) -> the path of its copy; photos of the same name are numbered."""
    names = numbered(PurePath(picture.path.name) for picture in found)
    return {
        (picture.path, text): folder / _safe(text) / name
        for picture, name in zip(found, names, strict=True)
        for text in texts
    }


def _safe(text: str) -> str:
    """A label as the name of a folder: inside its parent, and short enough for all file systems."""
    return re.sub(r"[^\w -]+", "_", text)[:60].strip(" _.") or "_"


def _copied(source: Path, target: Path) -> None:
    from ..files import atomic_file, new_folder

    with new_folder(target.parent), atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


# --- the contact sheet ----------------------------------------------------------------------------


def sheet(made: Sequence[Labelled], texts: Sequence[str]) -> Image.Image:
    """Each label with its photos, the most probable first; if there are too many, the most probable
    ones, and in the last line the least probable.
    """
    from PIL import Image, ImageDraw, ImageFont

    most = COLUMNS * ROWS
    groups = []
    for text in texts:
        own = sorted((m for m in made if m.label == text), key=lambda m: -m.probability)
        shown = own if len(own) <= most else [*own[: most - COLUMNS], *own[-COLUMNS:]]
        groups.append((text, len(own), shown))
    cell = SIDE + LINE + GAP
    lines = sum(-(-len(shown) // COLUMNS) for _, _, shown in groups)
    canvas = Image.new(
        "RGB", (COLUMNS * (SIDE + GAP) + GAP, len(groups) * 2 * LINE + lines * cell + GAP), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    y = GAP
    for text, count, shown in groups:
        more = f", {len(shown)} of them shown" if len(shown) < count else ""
        draw.text((GAP, y), f"{text}: {count}{more}", fill="black", font=font)
        y += LINE + LINE // 2
        for start in range(0, len(shown), COLUMNS):
            for column, one in enumerate(shown[start : start + COLUMNS]):
                x = GAP + column * (SIDE + GAP)
                canvas.paste(_thumbnail(one.picture.path), (x, y))
                draw.text((x, y + SIDE), f"{one.probability:.2f}", fill="black", font=font)
            y += cell
        y += LINE // 2
    return canvas


def _thumbnail(path: Path) -> Image.Image:
    """The photo inside a square of ``SIDE`` pixels, on grey."""
    from PIL import Image

    from .. import images

    photo = images.read(path, "RGB")
    photo.thumbnail((SIDE, SIDE))
    square = Image.new("RGB", (SIDE, SIDE), (225, 225, 225))
    square.paste(photo, ((SIDE - photo.width) // 2, (SIDE - photo.height) // 2))
    return square
