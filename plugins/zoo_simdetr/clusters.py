"""Pseudo-classes: regions of the whole data set that look alike (eq. 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.errors import InputError

from .proposals import Regions

FEWEST, MOST = 8, 2048
"""Pseudo-classes, if there are regions enough."""
EACH = 20
"""Regions for each pseudo-class, at least."""
LARGE = 200_000
"""Regions from which on k-means takes small batches."""
COLLAPSED = 0.8
"""Share of the regions in one cluster above which the features do not tell objects apart."""


@dataclass(frozen=True)
class Clusters:
    """Which pseudo-class each region of each image belongs to."""

    labels: tuple[NDArray[np.int64], ...]
    """For each image, (n,) int64."""
    sizes: tuple[int, ...]
    """Regions of each pseudo-class."""
    inertia: float
    """Mean squared distance of a descriptor to its centre."""

    @property
    def count(self) -> int:
        """Number of pseudo-classes."""
        return len(self.sizes)

    @property
    def collapsed(self) -> bool:
        """Is nearly everything in one cluster?"""
        return self.count > 1 and max(self.sizes) > COLLAPSED * sum(self.sizes)


def how_many(regions: int) -> int:
    """Number of pseudo-classes for so many regions: sqrt(regions)/8, from 8 to 2048."""
    wanted = min(max(round(math.sqrt(regions) / 8), FEWEST), MOST)
    return max(1, min(wanted, regions // EACH))


def cluster(found: Sequence[Regions], count: int | None = None, seed: int = 0) -> Clusters:
    """k-means over the descriptors of all regions; background clusters stay.

    ``count``: of pseudo-classes; None: by ``how_many``. Raises InputError if there are fewer
    regions than pseudo-classes.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = np.concatenate([one.features for one in found]) if found else np.zeros((0, 1))
    if not len(rows):
        raise InputError(why_none(found))
    k = count if count is not None else how_many(len(rows))
    if k > len(rows):
        raise InputError(f"clusters={k}: there are only {len(rows)} regions. Ask for fewer.")
    kind = MiniBatchKMeans if len(rows) > LARGE else KMeans
    with warnings.catch_warnings():  # regions may be fewer kinds than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = kind(k, n_init=3, random_state=seed).fit(rows)
    sizes = np.bincount(means.labels_, minlength=k)
    ends = np.cumsum([len(one) for one in found])[:-1]
    labels = tuple(part.astype(np.int64) for part in np.split(means.labels_, ends))
    return Clusters(labels, tuple(int(n) for n in sizes), float(means.inertia_) / len(rows))


def why_none(found: Sequence[Regions]) -> str:
    """The message for images without a single proposal: which filter left out how many."""
    reasons: dict[str, int] = {}
    for one in found:
        for reason, n in one.dropped.items():
            reasons[reason] = reasons.get(reason, 0) + n
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "no regions"
    return (
        f"nothing in {len(found)} images looks like an object ({told}). Try another scene "
        f"('objects' or 'many-small'), or images with more contrast."
    )
