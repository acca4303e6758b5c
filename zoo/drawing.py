"""Detections drawn on an image, by Pillow (supervision would require OpenCV)."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from .interfaces import Detections

GOLDEN = 0.618034  # steps of hue that keep neighbours distinct


def drawn(image: Image.Image, seen: Detections) -> Image.Image:
    """A copy of an RGB image with each box, its label and its score."""
    from PIL import ImageDraw, ImageFont

    image = image.copy()
    draw = ImageDraw.Draw(image)
    unit = max(2, round(max(image.size) / 300))
    font = ImageFont.load_default(size=6 * unit)
    for box, score, label in zip(seen.boxes, seen.scores, seen.labels, strict=True):
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.9, 0.85))
        corners = [float(side) for side in box]
        draw.rectangle(corners, outline=colour, width=unit)
        text = f"{seen.names[label]} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        high, wide = bottom - top + unit, right - left + 2 * unit
        x = max(0.0, min(corners[0], image.width - wide))
        y = corners[1] - high if corners[1] >= high else corners[1]
        draw.rectangle((x, y, x + wide, y + high), fill=colour)
        draw.text((x + unit - left, y - top), text, fill="white", font=font)
    return image
