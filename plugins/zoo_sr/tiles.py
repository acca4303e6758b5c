"""Tiled inference: overlapping tiles, raised-cosine blending, finished rows yielded at once.

The grid and the weights are YONOS-SR, eq. 13, and Edge-SD-SR, eq. 15.

Memory is bounded by one row of tiles, not by the image: ``stream`` yields horizontal bands of the
result from top to bottom and keeps only the part that the next row of tiles overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int, stride: int = 1) -> list[int]:
    """Starts of the tiles along one axis: evenly spread, with neighbours sharing at least
    ``overlap``.

    All numbers are LR pixels. Every start is a multiple of ``stride``, as the network requires;
    ``length``, ``tile`` and ``overlap`` must be multiples too. (512, 128, 32): 0, 96, ... 384.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    # In units of stride; rounding to even numbers could pull neighbours apart, so round down:
    # the distance between two floors is at most the ceiling of the true distance.
    last, step = (length - tile) // stride, count - 1
    return [stride * (i * last // step) for i in range(count)]


def window(size: int, low: bool, high: bool, halo: int, ramp: int) -> Tensor:
    """A tile's weight along one axis (size,): 1, falling to 0 towards edges inside the image.

    ``low``, ``high``: is there a neighbour on that side? If so, the outermost ``halo`` pixels have
    weight 0 (they depend on padding instead of the neighbour's pixels) and the next ``ramp`` pixels
    rise as a raised cosine.
    """
    distance = torch.arange(size, dtype=torch.float32) + 0.5  # of pixel centres from the edge
    rise = 0.5 - 0.5 * torch.cos(math.pi * ((distance - halo) / max(ramp, 1)).clamp(0, 1))
    weight = torch.ones(size)
    if low:
        weight = weight * rise
    if high:
        weight = weight * rise.flip(0)
    return weight


def windows(
    at: Sequence[int], length: int, tile: int, overlap: int, scale: int
) -> list[tuple[int, Tensor]]:
    """(start, weight) of each tile along one axis in HR pixels; weights sum to 1 at every pixel."""
    size = min(tile, length)
    halo = overlap // 4 * scale
    ramp = overlap * scale - 2 * halo
    raw = [window(size * scale, s > 0, s + size < length, halo, ramp) for s in at]
    total = torch.zeros(length * scale)
    for s, w in zip(at, raw, strict=True):
        total[s * scale : (s + size) * scale] += w
    return [
        (s * scale, w / total[s * scale : (s + size) * scale]) for s, w in zip(at, raw, strict=True)
    ]


def reflect(x: Tensor, multiple: int) -> Tensor:
    """(C,h,w) mirrored at its right and bottom edge up to multiples; any size, even 1x1."""
    for axis in (1, 2):
        n = x.shape[axis]
        index = torch.arange(math.ceil(n / multiple) * multiple, device=x.device)
        period = max(1, 2 * (n - 1))  # 0 1 2 1 | 0 1 2 1: the edge itself is not repeated
        index = index % period
        x = x.index_select(axis, torch.minimum(index, period - index) % n)
    return x


@dataclass(frozen=True)
class Grid:
    """The tiles of one image, all in LR pixels; the image is padded to ``stride`` first."""

    height: int
    width: int
    tile: int | None
    overlap: int
    stride: int
    scale: int

    @property
    def padded(self) -> tuple[int, int]:
        up = lambda n: math.ceil(n / self.stride) * self.stride  # noqa: E731
        return up(self.height), up(self.width)

    @property
    def rows(self) -> list[int]:
        return starts(self.padded[0], self._tile(0), self.overlap, self.stride)

    @property
    def columns(self) -> list[int]:
        return starts(self.padded[1], self._tile(1), self.overlap, self.stride)

    def _tile(self, axis: int) -> int:
        return self.padded[axis] if self.tile is None else self.tile

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of each tile: all are of one size."""
        return min(self._tile(0), self.padded[0]), min(self._tile(1), self.padded[1])

    @property
    def evaluations(self) -> int:
        return len(self.rows) * len(self.columns)


TileFunction = Callable[[Tensor, Sequence[tuple[int, int]]], Tensor]
"""(tiles (B,3,h,w), their (row, column) in the image) -> (B,3,h*scale,w*scale)."""


def stream(
    image: Tensor,
    grid: Grid,
    fn: TileFunction,
    *,
    batch: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[Tensor]:
    """Apply ``fn`` to the tiles of image (3,h,w); yield bands (3,rows,w*scale), top to bottom.

    ``advance(n)`` is called for every n finished tiles.
    """
    padded = reflect(image, grid.stride)  # (3,h',w')
    tile_h, tile_w = grid.shape
    rows = windows(grid.rows, grid.padded[0], grid._tile(0), grid.overlap, grid.scale)
    columns = windows(grid.columns, grid.padded[1], grid._tile(1), grid.overlap, grid.scale)
    scale, wanted = grid.scale, grid.height * grid.scale
    # Rows of the result that earlier tiles have written and the next ones will write too.
    band = torch.zeros(3, tile_h * scale, grid.padded[1] * scale)
    for i, (top, weight_y) in enumerate(rows):
        todo = [(grid.rows[i], x) for x in grid.columns]
        for first in range(0, len(todo), batch):
            places = todo[first : first + batch]
            tiles = torch.stack([padded[:, y : y + tile_h, x : x + tile_w] for y, x in places])
            made = fn(tiles, places).to("cpu", torch.float32)
            for tile, (left, weight_x) in zip(made, columns[first:], strict=False):
                area = band[:, :, left : left + tile_w * scale]
                area += tile * (weight_y[:, None] * weight_x)  # (3,H,W)
            advance(len(places))
        below = rows[i + 1][0] if i + 1 < len(rows) else top + tile_h * scale
        done = min(below, wanted) - top
        yield band[:, :done, : grid.width * scale].clone()
        rest = band[:, below - top :].clone()
        band[:, : rest.shape[1]] = rest
        band[:, rest.shape[1] :] = 0


# --- a field that is addressed by position --------------------------------------------------------
#
# Tiles must see the same noise where they overlap (YONOS-SR, eq. 13). A field for the whole image
# would make memory grow with the image, so each value is a function of (seed, channel, y, x).

_MASK = {k: (1 << (64 - k)) - 1 for k in (27, 30, 31, 40)}


def _shift(x: Tensor, k: int) -> Tensor:
    return (x >> k) & _MASK[k]  # a logical shift: torch's shift keeps the sign


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9 as a signed number
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def noise_field(seed: int, channels: int, y: int, x: int, height: int, width: int) -> Tensor:
    """The part (channels, height, width) at row y, column x of the infinite field of ``seed``.

    Float32, standard normal, on the CPU. Any two parts agree where they overlap, bit for bit.
    """
    rows = torch.arange(y, y + height)[None, :, None]  # (1,h,1)
    columns = torch.arange(x, x + width)[None, None, :]  # (1,1,w)
    planes = torch.arange(channels)[:, None, None]  # (C,1,1)
    key = _mix(torch.tensor(seed & 0x7FFF_FFFF_FFFF_FFFF))
    h = _mix(_mix(_mix(key + planes) + rows) + columns)  # (C,h,w)
    # Box-Muller on two uniforms of 24 bits; the first is never 0, so its logarithm is finite.
    u1 = (_shift(h, 40) + 1).double() / (1 << 24)
    u2 = _shift(_mix(h + 1), 40).double() / (1 << 24)
    return (torch.sqrt(-2 * torch.log(u1)) * torch.cos(2 * math.pi * u2)).float()
