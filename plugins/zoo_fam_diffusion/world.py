"""One creature: a world in which repetition, broken structure and texture can be counted exactly.

An image has a grey sky over a grey ground, and one creature: a body (disc, square or triangle, in
one of six saturated colours), exactly two white eyes, and two dark cheeks of one of four colours.
The prompt names the body ("a red disc creature"), never the cheeks: only by looking at one cheek
can a network give the other the same colour. Any size can be drawn from the same parameters, so
that true large images exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.15, 0.15),
    "yellow": (0.90, 0.85, 0.15),
    "green": (0.15, 0.80, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.20, 0.30, 0.90),
    "magenta": (0.85, 0.20, 0.85),
}
SHAPES = ("disc", "square", "triangle")
CHEEKS: dict[str, tuple[float, float, float]] = {
    "maroon": (0.45, 0.08, 0.08),
    "forest": (0.08, 0.40, 0.10),
    "navy": (0.08, 0.10, 0.50),
    "black": (0.06, 0.06, 0.06),
}
WHITE = 0.97
WORDS = ("a", *COLOURS, *SHAPES, "creature")
"""All words of the prompts."""
EYE, CHEEK = 0.20, 0.22
"""Radii, as shares of the body's."""
EYES = ((-0.40, -0.30), (0.40, -0.30))
"""(x, y) of the eyes' centres from the body's, in its radii; y points down."""
CHEEK_PLACES = ((-0.42, 0.38), (0.42, 0.38))


# --- drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Creatures:
    """The parameters of N images; lengths are shares of the image's side."""

    colour: Tensor
    """(N,) index in COLOURS"""
    shape: Tensor
    """(N,) index in SHAPES"""
    cheek: Tensor
    """(N,) index in CHEEKS"""
    centre: Tensor
    """(N,2) x, y of the body"""
    radius: Tensor
    """(N,)"""
    horizon: Tensor
    """(N,2) height at the middle, and slope"""
    grey: Tensor
    """(N,2) sky and ground"""

    def prompts(self) -> list[str]:
        """The text of each image."""
        names = tuple(COLOURS)
        pairs = zip(self.colour.tolist(), self.shape.tolist(), strict=True)
        return [f"a {names[c]} {SHAPES[s]} creature" for c, s in pairs]


def creatures(rng: np.random.Generator, count: int) -> Creatures:
    """Random parameters: all uniform."""

    def between(low: float | Sequence[float], high: float | Sequence[float]) -> Tensor:
        shape = (count, *np.shape(low))
        return torch.from_numpy(rng.uniform(low, high, shape)).float()

    def one_of(things: int) -> Tensor:
        return torch.from_numpy(rng.integers(things, size=count))

    return Creatures(
        colour=one_of(len(COLOURS)),
        shape=one_of(len(SHAPES)),
        cheek=one_of(len(CHEEKS)),
        centre=between((0.36, 0.42), (0.64, 0.60)),
        radius=between(0.17, 0.24),
        horizon=between((0.45, -0.2), (0.75, 0.2)),
        grey=between((0.60, 0.40), (0.75, 0.52)),
    )


def draw(these: Creatures, size: int) -> Tensor:
    """Images (N,3,size,size) in [0,1], float32; edges are smooth over one pixel."""
    middles = (torch.arange(size) + 0.5) / size
    y, x = middles[:, None].expand(size, size), middles[None].expand(size, size)

    def column(values: Tensor) -> Tensor:
        return values[:, None, None]  # (N,1,1)

    def covered(distance: Tensor) -> Tensor:
        """How much of a pixel lies inside (0 to 1), from the signed distance (N,H,W)."""
        return (0.5 - distance * size).clamp(0, 1)

    def painted(over: Tensor, colour: Tensor, distance: Tensor) -> Tensor:
        share = covered(distance)[:, None]
        return over * (1 - share) + colour[..., None, None] * share

    level, slope = (column(v) for v in these.horizon.T)
    sky, ground = (v[:, None].expand(-1, 3) for v in these.grey.T)
    images = sky[..., None, None].expand(-1, 3, size, size)
    images = painted(images, ground, level + slope * (x - 0.5) - y)
    radius = column(these.radius)
    dx, dy = x - column(these.centre[:, 0]), y - column(these.centre[:, 1])
    images = painted(images, _table(COLOURS)[these.colour], _body(these.shape, dx, dy, radius))
    white = torch.full((len(these.radius), 3), WHITE)
    for (across, down), share, colour in (
        *((place, EYE, white) for place in EYES),
        *((place, CHEEK, _table(CHEEKS)[these.cheek]) for place in CHEEK_PLACES),
    ):
        off = torch.hypot(dx - across * radius, dy - down * radius)
        images = painted(images, colour, off - share * radius)
    return images


def _table(colours: dict[str, tuple[float, float, float]]) -> Tensor:
    return torch.tensor(list(colours.values()))


def _body(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """The signed distance (N,H,W) to each body, negative inside; exact at its edges."""
    disc = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.86 * radius
    # Upright and equilateral; its inner circle has 0.8 radii.
    triangle = torch.maximum(dy, dx.abs() * 3**0.5 / 2 - dy / 2) - 0.8 * radius
    kinds = torch.stack([disc, square, triangle])  # (3,N,H,W)
    return kinds[shape, torch.arange(len(shape))]


# --- counting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """What is in one image."""

    objects: int
    eyes: int
    cheeks: tuple[str, ...]
    """The nearest colour of each cheek."""
    spread: float
    """Largest distance between the median colours of two cheeks; 0 with fewer than two."""

    @property
    def one(self) -> bool:
        """Exactly one object?"""
        return self.objects == 1

    @property
    def both(self) -> bool:
        """Exactly one object with two eyes?"""
        return self.objects == 1 and self.eyes == 2

    @property
    def agree(self) -> bool:
        """Exactly two cheeks, of the same colour?"""
        return len(self.cheeks) == 2 and len({*self.cheeks}) == 1


def count(image: Tensor, native: int = 64) -> Count:
    """Count in an image (3,H,W) in [0,1] that shows the world at ``native`` pixels, enlarged.

    Objects are connected parts of saturated colour, eyes white and cheeks dark parts inside them,
    each of a least area, which is in shares of the whole image.
    """
    from scipy import ndimage

    pixels = image.permute(1, 2, 0).double().numpy()  # (H,W,3)
    high, low = pixels.max(-1), pixels.min(-1)
    share = pixels.shape[0] * pixels.shape[1] / native**2

    def parts(mask: np.ndarray, least: float) -> list[np.ndarray]:
        labels, found = ndimage.label(mask, np.ones((3, 3)))  # neighbours also at corners
        each = (labels == i + 1 for i in range(found))
        return [part for part in each if part.sum() >= least * share]

    bodies = parts((high - low > 0.35) & (high > 0.6), 48)
    inside = np.zeros(high.shape, bool)
    for body in bodies:
        inside |= ndimage.binary_fill_holes(body)
    eyes = parts(inside & (low > 0.75), 5)
    cheeks = [np.median(pixels[part], axis=0) for part in parts(inside & (high < 0.62), 5)]
    table, names = np.array(list(CHEEKS.values())), tuple(CHEEKS)
    nearest = tuple(names[int(((table - c) ** 2).sum(1).argmin())] for c in cheeks)
    apart = [float(np.linalg.norm(a - b)) for a in cheeks for b in cheeks]
    return Count(len(bodies), len(eyes), nearest, max(apart, default=0.0))
