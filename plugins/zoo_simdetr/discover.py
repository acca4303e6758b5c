"""What is in a pile of pictures: clusters found without labels, and a sheet to name them by."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import InputError, OptionError
from zoo.images import read
from zoo.progress import Progress, track

if TYPE_CHECKING:
    from PIL import Image

    from .model import SimDETR

EACH = 8
"""Crops of a cluster on the sheet."""
SIDE = 96
"""Pixels of a crop."""
MARGIN = 0.15
"""Surroundings of a box that a crop shows, as a share of its sides."""
WEAK = 0.05
"""Score below which a box is not shown."""


@dataclass(frozen=True, order=True)
class Find:
    """One object of a cluster."""

    score: float
    path: Path
    box: tuple[float, float, float, float]
    """Corners in pixels."""


def finds(
    model: SimDETR, files: Sequence[Path], progress: Progress = False
) -> tuple[list[list[Find]], list[int]]:
    """The surest finds of each cluster, at most one of an image while there are others; and how
    many finds each cluster has. Files that cannot be read are left out."""
    best: list[list[Find]] = [[] for _ in model.names]
    second: list[list[Find]] = [[] for _ in model.names]
    counts = [0] * len(model.names)
    with track(len(files), progress, "sheet") as advance:
        for path in files:
            try:
                seen = model.detect(path, threshold=WEAK)
            except InputError:
                seen = None
            taken: set[int] = set()
            for i in range(0 if seen is None else len(seen)):
                label, box = int(seen.labels[i]), tuple(float(x) for x in seen.boxes[i])
                find = Find(float(seen.scores[i]), path, (box[0], box[1], box[2], box[3]))
                counts[label] += 1
                _keep(second[label] if label in taken else best[label], find)
                taken.add(label)
            advance()
    made = []
    for first, more in zip(best, second, strict=True):
        ranked = sorted(first, reverse=True)
        made.append((ranked + sorted(more, reverse=True))[:EACH])
    return made, counts


def _keep(heap: list[Find], find: Find) -> None:
    if len(heap) < EACH:
        heapq.heappush(heap, find)
    else:
        heapq.heappushpop(heap, find)


def sheet(found: Sequence[Sequence[Find]], counts: Sequence[int]) -> Image.Image:
    """One row for each cluster: its number, how often it was found, and its surest finds."""
    from PIL import Image, ImageDraw, ImageFont

    gap, left = 6, 110
    size = (left + EACH * (SIDE + gap), max(1, len(found)) * (SIDE + gap) + gap)
    made = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(size=28)
    small = ImageFont.load_default(size=13)
    for row, finds_ in enumerate(found):
        top = gap + row * (SIDE + gap)
        draw.text((12, top + 18), str(row), fill="black", font=font)
        draw.text((12, top + 56), f"{counts[row]} found", fill="#555555", font=small)
        for column, find in enumerate(finds_):
            made.paste(crop(find), (left + column * (SIDE + gap), top))
    return made


def crop(find: Find) -> Image.Image:
    """The object in a little of its surroundings, scaled to the side of a crop.

    At the image's edge it shows more of the image, not what is outside.
    """
    from PIL import Image

    image = read(find.path, "RGB")
    x1, y1, x2, y2 = find.box
    side = (1 + 2 * MARGIN) * max(x2 - x1, y2 - y1)
    left = _inside((x1 + x2 - side) / 2, side, image.width)
    top = _inside((y1 + y2 - side) / 2, side, image.height)
    square = (round(left), round(top), round(left + side), round(top + side))
    return image.crop(square).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _inside(start: float, side: float, length: int) -> float:
    """Where a window begins that lies inside ``length``, or around it if it is larger."""
    if side >= length:
        return (length - side) / 2
    return min(max(0.0, start), length - side)


def named(text: str) -> dict[int, str]:
    """``"2=white cell, 5=red cell"`` as a mapping. Raises OptionError."""
    made = {}
    for part in text.split(","):
        number, equals, name = part.partition("=")
        if not equals or not number.strip().isdecimal() or not name.strip():
            raise OptionError(
                f"--names {part.strip()!r}: expected NUMBER=NAME, as in 2=white cell."
            )
        made[int(number)] = name.strip()
    return made
