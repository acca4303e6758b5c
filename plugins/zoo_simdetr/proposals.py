"""Initial proposals: regions that an encoder's features have in common, as boxes (eq. 1).

No labels: each image's cells are clustered by their features, and the connected parts of each
cluster become boxes. ``PRESETS`` has settings for scenes with a few objects and for pictures with
many small ones (microscopes, shelves).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from . import boxes as geometry

Array = NDArray[np.float32]
CLUSTERS = (2, 3, 4)
"""Each image is divided into 2, then 3, then 4 clusters."""
FEWEST = 4
"""Cells of a region."""
SAMPLE = 2000
"""Cells from which the clusters of an image are found."""
SAME = 0.7
"""IoU above which the smaller of two boxes is left out."""
SMALL = 0.01
"""Largest share of the image of a box from the second pass."""
FINE_FEWEST = 6
"""Cells of a region of the second pass."""


class Encoder(Protocol):
    """(N,3,H,W) in [0,1] to the maps of strides 8, 16 and 32."""

    def __call__(self, images: Tensor, /) -> list[Tensor]: ...


@dataclass(frozen=True)
class Preset:
    """How proposals are made from features."""

    levels: tuple[int, ...]
    """Maps that are joined, on the grid of the first but never finer than stride 16."""
    size: int = 640
    """Longest side of the image for the encoder, in pixels."""
    split: bool = False
    """Also divide each region where it is narrow: objects that touch."""
    fill: float = 0.55
    """Least share of its box that a region fills: lower are outlines and background."""
    aspect: float | None = 2.5
    """Largest ratio of a box's sides; None: any."""
    largest: float = 0.35
    """Largest share of the image."""
    most: int = 30
    """Boxes of an image."""
    fine: int = 0
    """Of these, small ones from a second pass over the finest map alone."""


PRESETS = {
    "objects": Preset(levels=(1, 2), fill=0.4, aspect=None, largest=0.6),
    "many-small": Preset(levels=(0, 1), split=True, fine=5),
}
"""Scene -> its settings."""


@dataclass
class Regions:
    """Proposals of one image."""

    boxes: Array
    """(n,4) corners, as fractions of the image."""
    features: Array
    """(n,C) mean features over each region (not its box), unit norm."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Filter -> number of regions that it left out."""

    @classmethod
    def none(cls, channels: int) -> Regions:
        """Of a uniform image."""
        empty = np.zeros((0, 4), np.float32), np.zeros((0, channels), np.float32)
        return cls(*empty, Counter({"uniform images": 1}))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each channel of the three maps over a sample of images."""

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]

    @classmethod
    def of(cls, maps: Sequence[Sequence[Tensor]]) -> Scale:
        """From the maps of several images."""
        means, stds = [], []
        for level in range(len(maps[0])):
            cells = torch.cat([one[level].flatten(2).transpose(1, 2).flatten(0, 1) for one in maps])
            means.append(cells.mean(0)[:, None, None])
            stds.append(cells.std(0).clamp(min=1e-6)[:, None, None])
        return cls(tuple(means), tuple(stds))


def grid_of(maps: Sequence[Tensor], scale: Scale, levels: Sequence[int]) -> Array:
    """(h,w,C) features of each cell: the maps standardised, joined on the first one's grid."""
    made = []
    size = maps[levels[0] if len(levels) == 1 else max(1, levels[0])].shape[2:]
    for level in levels:
        x = normalize((maps[level] - scale.mean[level]) / scale.std[level], dim=1)
        finer = x.shape[2] > size[0]
        x = (
            interpolate(x, size=size, mode="area")
            if finer
            else interpolate(x, size=size, mode="bilinear", align_corners=False)
        )
        made.append(x)
    joined = normalize(torch.cat(made, 1), dim=1)[0]
    found: Array = joined.permute(1, 2, 0).cpu().numpy()
    return found


def propose(
    maps: Sequence[Tensor],
    scale: Scale,
    preset: Preset,
    seed: int = 0,
) -> Regions:
    """The proposals of one image from its maps (1,C,h,w) of strides 8, 16 and 32."""
    dropped: Counter[str] = Counter()
    grid = grid_of(maps, scale, preset.levels)
    found: list[tuple[Array, Array]] = []
    for mask in regions(grid, CLUSTERS, seed, split=preset.split):
        box = _kept(mask, preset, dropped)
        if box is not None:
            found.append((box, pool(grid, mask)))
    found.sort(key=lambda one: -_share(one[0]))
    if preset.fine:
        small = _small(maps, grid, scale, preset, seed, dropped)
        found = _apart(found, dropped)[: preset.most - len(small)] + small
    found = _apart(found, dropped)
    dropped["beyond the most"] += max(0, len(found) - preset.most)
    found = found[: preset.most]
    return Regions(
        np.array([box for box, _ in found], np.float32).reshape(-1, 4),
        np.array([feature for _, feature in found], np.float32).reshape(-1, grid.shape[2]),
        dropped,
    )


def _small(
    maps: Sequence[Tensor],
    grid: Array,
    scale: Scale,
    preset: Preset,
    seed: int,
    dropped: Counter[str],
) -> list[tuple[Array, Array]]:
    """Boxes and descriptors of small regions, those first that differ from what is around them.

    The finest map sees where they are; the descriptor is of the coarser grid, as all others.
    """
    sharp = grid_of(maps, scale, (0,))
    coarse = _nearest(grid, (sharp.shape[0], sharp.shape[1]))
    limits = replace(preset, largest=SMALL)
    found: list[tuple[float, Array, NDArray[np.bool_]]] = []
    for mask in regions(sharp, CLUSTERS, seed, fewest=FINE_FEWEST):
        box = _kept(mask, limits, dropped)
        if box is not None:
            found.append((_contrast(sharp, mask, box) * mask.sum() ** 0.5, box, mask))
    found.sort(key=lambda one: -one[0])
    made = [(box, pool(coarse, mask)) for _, box, mask in found[: 4 * preset.fine]]
    return _apart(made, dropped)[: preset.fine]


RING = 3
"""Cells around a region that it is compared with; the one next to it is left out."""


def _contrast(grid: Array, mask: NDArray[np.bool_], box: Array) -> float:
    """1 - cosine between the features of a region and of the ring around it."""
    from scipy import ndimage

    h, w = mask.shape
    left, top, right, bottom = np.rint(box * np.array([w, h, w, h])).astype(int).tolist()
    rows, columns = (
        slice(max(0, low - RING), high + RING) for low, high in ((top, bottom), (left, right))
    )
    inner = mask[rows, columns]
    ring = ndimage.binary_dilation(inner, iterations=RING) & ~ndimage.binary_dilation(inner)
    if not ring.any():
        return 0.0
    part = grid[rows, columns]
    return 1 - float(pool(part, inner) @ pool(part, ring))


def _share(box: Array) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _apart(found: list[tuple[Array, Array]], dropped: Counter[str]) -> list[tuple[Array, Array]]:
    """Without boxes that are nearly the same as one before."""
    if not found:
        return found
    apart = geometry.distinct(torch.from_numpy(np.stack([box for box, _ in found])), SAME)
    dropped["same as another"] += int((~apart).sum())
    return [one for one, stays in zip(found, apart.tolist(), strict=True) if stays]


def regions(
    grid: Array,
    clusters: Sequence[int] = CLUSTERS,
    seed: int = 0,
    *,
    split: bool = False,
    fewest: int = FEWEST,
) -> list[NDArray[np.bool_]]:
    """Masks (h,w): connected parts (4 neighbours) of k-means clusters of the cells, for each k.

    ``split``: and the ``pieces`` of each. Parts of fewer cells than ``fewest`` are left out.
    """
    from scipy import ndimage
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    h, w, c = grid.shape
    cells = grid.reshape(h * w, c)
    made: list[NDArray[np.bool_]] = []
    if np.ptp(cells, axis=0).max(initial=0) < 1e-6:
        return made  # a uniform image
    sample = cells[:: 1 + len(cells) // SAMPLE]
    for k in clusters:
        if k > len(cells):
            break
        with warnings.catch_warnings():  # drawings may have fewer colours than clusters
            warnings.simplefilter("ignore", ConvergenceWarning)
            means = KMeans(k, n_init=1, max_iter=30, random_state=seed).fit(sample)
        labels = means.predict(cells).reshape(h, w)
        for cluster in range(k):
            parts, count = ndimage.label(labels == cluster)
            for i, place in enumerate(ndimage.find_objects(parts, count), 1):
                if place is None or (parts[place] == i).sum() < fewest:
                    continue
                mask = parts == i
                made.append(mask)
                if split:
                    made += pieces(mask)
    return made


def pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """A region divided among the peaks of the distance to its border; [] if it has one peak."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    top = ndimage.maximum_filter(depth, size=5)
    peaks, count = ndimage.label((depth == top) & (depth >= 1.5), np.ones((3, 3)))
    if count < 2:
        return []
    centres = np.array(ndimage.center_of_mass(peaks > 0, peaks, range(1, count + 1)))
    cells = np.argwhere(mask)
    owner = np.linalg.norm(cells[:, None] - centres[None], axis=2).argmin(1)
    made = []
    for i in range(count):
        piece = np.zeros_like(mask)
        mine = cells[owner == i]
        piece[mine[:, 0], mine[:, 1]] = True
        if len(mine) >= FEWEST:
            made.append(piece)
    return made


def box_of(mask: NDArray[np.bool_]) -> Array:
    """(4,) the tight box of a mask: corners, as fractions; cells are half-open."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    h, w = mask.shape
    return np.array(
        [columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h], np.float32
    )


def pool(grid: Array, mask: NDArray[np.bool_]) -> Array:
    """(C,) mean feature over the region, not its box, of unit norm."""
    mean = grid[mask].mean(0)
    made: Array = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
    return made


def _kept(mask: NDArray[np.bool_], preset: Preset, dropped: Counter[str]) -> Array | None:
    """The box of a region that may be an object; else None, and the reason is counted."""
    h, w = mask.shape
    box = box_of(mask)
    width, height = box[2] - box[0], box[3] - box[1]
    sides = int(box[0] <= 0) + int(box[1] <= 0) + int(box[2] >= 1) + int(box[3] >= 1)
    aspect = (width * w) / (height * h)
    if width * height > preset.largest:
        reason = "too large"
    elif sides >= 2 and max(width, height) > 0.5:
        reason = "background"
    elif mask.sum() / (width * w * height * h) < preset.fill:
        reason = "sparse"
    elif preset.aspect is not None and not 1 / preset.aspect <= aspect <= preset.aspect:
        reason = "long"
    else:
        return box
    dropped[reason] += 1
    return None


def _nearest(grid: Array, size: tuple[int, int]) -> Array:
    """The grid on more cells, each with the features of the cell that it lies in."""
    rows = np.arange(size[0]) * grid.shape[0] // size[0]
    columns = np.arange(size[1]) * grid.shape[1] // size[1]
    return grid[rows][:, columns]
