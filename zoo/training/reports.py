"""The reports of a run: reads ``train.json``, and draws the loss curve."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_file

Curve = list[tuple[str, int, float]]
"""(stage, step, mean loss since the previous point)."""


def history(init: Path | None) -> list[dict[str, Any]]:
    """The reports of the runs that made ``init``, oldest first; [] if none are known."""
    if init is not None:
        for path in (Path(init) / "train.json", Path(init).parent / "train.json"):
            if path.is_file():
                last = json.loads(path.read_text(encoding="utf-8"))
                return [*last.pop("before", []), last]
    return []


def whole_curve(report: Path) -> Curve:
    """The loss curves of all runs that made a model, from its ``train.json``, with repeated stages
    numbered."""
    last = json.loads(report.read_text(encoding="utf-8"))
    found: dict[str, Curve] = {}
    for run in (*last.get("before", []), last):
        curve = run["curve"]
        for stage in dict.fromkeys(name for name, _, _ in curve):
            again = sum(name.split(",")[0] == stage for name in found)
            label = f"{stage}, run {again + 1}" if again else stage
            found[label] = [(label, step, value) for name, step, value in curve if name == stage]
    return [point for points in found.values() for point in points]


def draw_curve(curve: Iterable[Sequence[Any]], path: Path) -> None:
    """The loss of each stage over its steps, on a logarithmic axis; one panel for each stage.

    Drawn with each checkpoint, by Pillow, which is always installed; importing matplotlib takes a
    second.
    """
    from PIL import Image, ImageDraw

    panels: dict[str, list[tuple[int, float]]] = {}
    for stage, step, value in curve:
        panels.setdefault(stage, []).append((step, math.log10(max(value, 1e-12))))
    width, height, margin = 280, 200, 24
    image = Image.new("RGB", (width * max(1, len(panels)), height), "white")
    draw = ImageDraw.Draw(image)
    for i, (stage, points) in enumerate(panels.items()):
        low, high = min(v for _, v in points), max(v for _, v in points)
        last = max(s for s, _ in points)
        left = i * width + margin
        spots = [
            (
                left + s / last * (width - 2 * margin),
                margin + (high - v) / (high - low or 1) * (height - 2 * margin),
            )
            for s, v in points
        ]
        draw.rectangle(
            (left, margin, left + width - 2 * margin, height - margin), outline="#bbbbbb"
        )
        draw.line(spots, fill="#1f5fbf", width=2)
        draw.text((left, 6), f"{stage}: {10**high:.3g} to {10**low:.3g}", fill="black")
        draw.text((left, height - 18), f"{last} steps", fill="black")
    with atomic_file(path) as temporary:
        image.save(temporary, "PNG")
