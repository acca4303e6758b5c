"""Scale distillation in a linear world, where everything can be computed (eq. 9 to 11).

Super-resolution by linear regression on photographs: a student predicts a block of N x N HR pixels
from the surrounding LR pixels x, and a teacher from these and the pixels x' of an LR image with
twice the resolution. The method's argument:

* The optimum does not change: E[E[y|x'] | x] = E[y|x], because x is a function of x' (the tower
  property). Here x' is a window that determines x only nearly, so teachers get (x, x').
* The variance of the labels falls from Var[y|x] to Var[E[y|x']|x], and the student's excess risk on
  n samples by the same ratio. More exactly, each block is weighted by its leverage, because the
  variance is not the same everywhere: n R = sum over i of mean(h e_i^2) with h = x^T M_xx^-1 x and
  e the labels' residual.

A teacher fitted on k n samples adds its own noise: the ratio p becomes p + (1 - p) / k. At k = 1
there is no gain, for any chain of teachers: regressing the predictions from (x, x') on x is
regression on x, in a sample as in the population.

Nearly everything follows from second moments. With a = (x, x', ..., y) as one row for each block
and M = mean of a a^T, a fit needs only M, and a teacher's labels are linear in a: labels a W with a
matrix W (len(a), N*N). Photographs are read in small chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from zoo_sr.pixels import bicubic_down

from zoo import images
from zoo.errors import InputError, OptionError
from zoo.experiment import Book
from zoo.interfaces import Claim, Metric
from zoo.weights import atomic_file

Array = NDArray[np.float64]

COUNTS = (500, 2000, 10_000)
"""Sizes of the students' training sets, in blocks."""
TEACHERS: Mapping[int, tuple[int, ...]] = {4: (2,), 8: (4, 2)}
"""Scale of the student -> scales of its teachers, the next finer one first."""
DIRECT = "truth"
MORE = 4
"""The data of teachers that see somewhat more than their student, as a multiple of n."""
TOLERANCE = 0.15
"""The largest relative deviation of the measured from the predicted ratio."""
RIDGE = (
    1e-9  # relative to the mean square of an input: for the solver only, far below the eigenvalues
)
CHUNK = 4096  # blocks in memory at a time
SIDE = 1280  # larger photographs are shrunk: they are blurred at full size


# --- photographs and blocks -----------------------------------------------------------------------


def photographs(folder: Path | None = None) -> list[NDArray[np.float32]]:
    """Luminance (H,W) in [0,1] of a folder's photographs, or of five from scikit-image."""
    if folder is None:
        from skimage import data

        bundled = (data.astronaut, data.camera, data.chelsea, data.coffee, data.rocket)
        pictures = [Image.fromarray(read()) for read in bundled]
    else:
        paths = images.listed(folder)
        if not paths:
            raise InputError(f"No images in {str(folder)!r}: nothing to fit on.")
        pictures = [images.read(path) for path in paths]
    grey = []
    for picture in pictures:
        light = images.read(picture, "L")
        light.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        grey.append(np.asarray(light, dtype=np.float32) / np.float32(255))
    return grey


class Blocks:
    """All blocks of some photographs at one scale, read by index."""

    def __init__(self, photos: Sequence[NDArray[np.float32]], scale: int) -> None:
        self.scale = scale
        self.sources = (scale, *TEACHERS[scale])
        self.views: dict[int, slice] = {}  # scale of an LR image -> columns of its own pixels
        self.inputs: dict[int, slice] = {}  # and of all inputs of a model of that scale
        at = 0
        for source in self.sources:
            end = at + _window(scale // source) ** 2
            self.views[source], self.inputs[source] = slice(at, end), slice(0, end)
            at = end
        self.truth = slice(at, at + scale**2)
        self.width = at + scale**2
        self._photos: list[dict[int, NDArray[np.float32]]] = []  # scale -> its LR image; 1 is HR
        ends = [0]
        for photo in photos:
            height, width = (n // scale for n in photo.shape)
            if min(height, width) < 7:
                continue
            hr = torch.from_numpy(photo[: height * scale, : width * scale])[None, None]
            small = {s: bicubic_down(hr, s)[0, 0].numpy() for s in self.sources}
            self._photos.append({1: hr[0, 0].numpy(), **small})
            ends.append(ends[-1] + (height - 6) * (width - 6))  # three pixels off the border
        if not self._photos:
            raise InputError(
                f"No photograph is at least {7 * scale} pixels wide and high, the minimum for "
                f"x{scale}. Give larger ones."
            )
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, numbers: NDArray[np.int64]) -> Iterator[Array]:
        """Rows (x, x', ..., y) of these blocks (sorted), in parts (<= CHUNK, width).

        All values are relative to the LR pixel at the block, so brightness is removed.
        """
        for photo, low, high in zip(self._photos, self._ends[:-1], self._ends[1:], strict=True):
            own = numbers[np.searchsorted(numbers, low) : np.searchsorted(numbers, high)] - low
            columns = photo[self.scale].shape[1] - 6
            for start in range(0, len(own), CHUNK):
                part = own[start : start + CHUNK]
                yield self._rows(photo, part // columns + 3, part % columns + 3)

    def _rows(
        self, photo: Mapping[int, NDArray[np.float32]], i: NDArray[np.int64], j: NDArray[np.int64]
    ) -> Array:
        rows = np.empty((len(i), self.width))
        for source, columns in [*self.views.items(), (1, self.truth)]:
            side = self.scale // source  # of the block on this grid
            window = side if source == 1 else _window(side)
            off = (window - side) // 2
            at = np.lib.stride_tricks.sliding_window_view(photo[source], (window, window))
            rows[:, columns] = at[side * i - off, side * j - off].reshape(len(i), -1)
        return rows - photo[self.scale][i, j][:, None]

    def moments(self, numbers: NDArray[np.int64]) -> Array:
        """Mean of a a' over these blocks: (width, width)."""
        total = np.zeros((self.width, self.width))
        for rows in self.read(np.sort(numbers)):
            total += rows.T @ rows
        return total / len(numbers)


def _window(side: int) -> int:
    """Side of a model's window in an LR image on which the block has this side: 7, 10, 12
    pixels."""
    return side + (6 if side == 1 else 8)


# --- fits, labels and risks: all from second moments ----------------------------------------------


def fit(moments: Array, inputs: slice, labels: Array) -> Array:
    """Least squares from these columns to the labels a W: the predictions, also as a W."""
    answers = np.zeros_like(labels)
    answers[inputs] = np.linalg.solve(_square(moments, inputs), moments[inputs] @ labels)
    return answers


def _square(moments: Array, inputs: slice) -> Array:
    """M of these columns, made invertible: the centre of x is always 0."""
    square = moments[inputs, inputs]
    return square + RIDGE * np.trace(square) / len(square) * np.eye(len(square))


def mean_square(moments: Array, difference: Array) -> float:
    """Mean over blocks and pixels of the square of a W."""
    return float(np.einsum("ij,ij->", difference, moments @ difference) / difference.shape[1])


def teachers(moments: Array, blocks: Blocks, truth: Array) -> dict[str, Array]:
    """Labels of each teacher fitted on the truth: name -> W."""
    return {f"x{s} teacher": fit(moments, blocks.inputs[s], truth) for s in TEACHERS[blocks.scale]}


def weighted_variance(
    blocks: Blocks, moments: Array, residuals: Mapping[str, Array]
) -> dict[str, float]:
    """mean(h e^2), see the module's docstring; e = a W for each W of ``residuals``."""
    own = blocks.inputs[blocks.scale]
    inverse = np.linalg.inv(_square(moments, own))
    total = dict.fromkeys(residuals, 0.0)
    for rows in blocks.read(np.arange(len(blocks))):
        x = rows[:, own]
        leverage = np.einsum("ij,ij->i", x @ inverse, x)
        for name, w in residuals.items():
            total[name] += float(leverage @ np.square(rows @ w).sum(1))
    return {name: value / len(blocks) / blocks.scale**2 for name, value in total.items()}


@dataclass(frozen=True)
class Students:
    """Students of one scale, by the labels that they were fitted on; ``truth`` is direct."""

    blocks: int
    """The number of blocks to draw from."""
    error: float
    """Mean squared error of the best linear model, in [0, 1] image units."""
    tower: float
    """The excess error of the best student of the next teacher's labels, relative to ``error``."""
    variance: Mapping[str, float]
    """Labels -> their variance given the student's input, relative to the truth's."""
    predicted: Mapping[str, float]
    """Labels -> predicted ratio of excess risks for large n."""
    excess: Mapping[str, tuple[tuple[float, ...], ...]]
    """Labels -> count -> run: mean squared distance to the best linear model, over all blocks."""

    def ratios(self, labels: str, count: int) -> list[float]:
        """Excess risk relative to the direct student's on the same blocks, for each run."""
        pairs = zip(self.excess[labels][count], self.excess[DIRECT][count], strict=True)
        return [own / direct for own, direct in pairs]


@dataclass(frozen=True)
class LinearWorld:
    """What ``run`` measured."""

    seed: int
    counts: tuple[int, ...]
    students: Mapping[int, Students]
    """Scale -> its students."""


def run(
    photos: Sequence[NDArray[np.float32]],
    seed: int = 0,
    counts: Sequence[int] = COUNTS,
    runs: int = 10,
    scales: Sequence[int] = (4, 8),
) -> LinearWorld:
    """Measure the students on photographs, luminance (H,W) in [0,1].

    For each scale and each count, ``runs`` times: draw this many blocks with replacement, and fit a
    student on the truth and on each teacher's labels. "x2 teacher" is fitted on all blocks, "x2
    teacher, same n" only on the student's, and "x2 teacher, 4 n" on these and three times as many
    others. The x4 teacher of x8 is that of a chain x2 -> x4 -> x8; the x2 teacher skips a link.

    Raises OptionError for counts below 400: an x2 teacher of x8 has 293 weights for each pixel.
    """
    if unknown := set(scales) - set(TEACHERS):
        raise OptionError(f"No linear world of scale {min(unknown)}: choose from {[*TEACHERS]}.")
    if min(counts) < 400:
        raise OptionError(f"{min(counts)} blocks are too few to fit a teacher: give at least 400.")
    students = {
        scale: _measure(Blocks(photos, scale), np.random.default_rng([seed, scale]), counts, runs)
        for scale in scales
    }
    return LinearWorld(seed, tuple(counts), students)


def _measure(
    blocks: Blocks, rng: np.random.Generator, counts: Sequence[int], runs: int
) -> Students:
    truth = np.zeros((blocks.width, blocks.scale**2))
    truth[blocks.truth] = np.eye(blocks.scale**2)
    own = blocks.inputs[blocks.scale]
    everything = blocks.moments(np.arange(len(blocks)))
    if everything.diagonal().max() < 1e-10:  # float32 resizing alone gives about 1e-15
        raise InputError(
            "Each photograph has a single grey level: nothing to predict. Give others."
        )
    expert = {DIRECT: truth, **teachers(everything, blocks, truth)}
    limits = {name: fit(everything, own, labels) for name, labels in expert.items()}
    best = limits[DIRECT]
    residuals = {name: labels - limits[name] for name, labels in expert.items()}
    error = mean_square(everything, residuals[DIRECT])
    weighted = weighted_variance(blocks, everything, residuals)
    excess: dict[str, list[list[float]]] = {}
    for k, count in enumerate(counts):
        for _ in range(runs):
            drawn = rng.integers(len(blocks), size=MORE * count)
            sample, larger = blocks.moments(drawn[:count]), blocks.moments(drawn)
            same, more = (teachers(m, blocks, truth) for m in (sample, larger))
            labelled = dict(expert)
            for name in same:
                labelled[f"{name}, same n"] = same[name]
                labelled[f"{name}, {MORE} n"] = more[name]
            for name, labels in labelled.items():
                distance = mean_square(everything, fit(sample, own, labels) - best)
                excess.setdefault(name, [[] for _ in counts])[k].append(distance)
    taught = [name for name in expert if name != DIRECT]
    ratio = {name: weighted[name] / weighted[DIRECT] for name in taught}
    return Students(
        blocks=len(blocks),
        error=error,
        tower=mean_square(everything, truth - limits[taught[0]]) / error - 1,
        variance={k: mean_square(everything, residuals[k]) / error for k in taught},
        predicted=ratio
        | {f"{name}, {MORE} n": p + (1 - p) / MORE for name, p in ratio.items()}
        | {f"{name}, same n": 1.0 for name in taught},
        excess={name: tuple(map(tuple, values)) for name, values in excess.items()},
    )


# --- results --------------------------------------------------------------------------------------


def enter(book: Book, world: LinearWorld) -> None:
    """Enter rows (labels) of excess risks relative to the direct student's, and the claims."""
    claims = book.claims
    for scale, students in world.students.items():
        for name, predicted in students.predicted.items():
            row = f"linear x{scale}, {name}"
            if name in students.variance:
                book.add(row, "label variance", students.variance[name])
            book.add(row, "risk, predicted", predicted)
            for k, count in enumerate(world.counts):
                for i, ratio in enumerate(students.ratios(name, k)):
                    book.add(row, f"risk, n={count}", ratio, i)
        claims.append(_as_predicted(scale, students))
    every = world.students.values()
    gap = max(abs(students.tower) for students in every)
    claims.append(
        Claim(
            "linear-same-optimum",
            "In the linear world scale distillation does not move the optimum.",
            "the best student of the teacher's labels has the error of the best student of the "
            "truth, to a millionth of it",
            gap,
            1e-6,
            0.0,
            gap < 1e-6,
        )
    )
    own = [
        np.mean(s.ratios(name, k))
        for s in every
        for name in s.predicted
        if name.endswith("same n")
        for k in range(len(world.counts))
    ]
    farthest = float(max(own, key=lambda ratio: abs(ratio - 1)))
    claims.append(
        Claim(
            "linear-same-data-gains-nothing",
            "In the linear world a teacher fitted on the student's own data gains nothing.",
            "mean ratio of excess risks within 0.001 of 1 for every teacher and n",
            farthest,
            1.0,
            0.0,
            abs(farthest - 1) < 1e-3,
        )
    )
    for scale, students in world.students.items():
        if len(students.variance) > 1:
            near, far = list(students.variance)[:2]
            book.claim(
                f"linear-x{scale}-chain-beats-skipping",
                f"In the linear world a x{scale} student gains more from the {near}, the last of a "
                f"progressive chain, than from the {far}, which skips a link.",
                *(
                    book.better(
                        f"linear x{scale}, {near}", f"linear x{scale}, {far}", f"risk, n={count}"
                    )
                    for count in world.counts
                ),
            )


def _as_predicted(scale: int, students: Students) -> Claim:
    nearest = next(iter(students.variance))
    counts = len(students.excess[DIRECT])
    errors = [
        np.mean(students.ratios(name, k)) / predicted - 1
        for name, predicted in students.predicted.items()
        for k in range(counts)
    ]
    last = Metric.of(students.ratios(nearest, counts - 1))
    return Claim(
        f"linear-x{scale}-risk-as-predicted",
        f"In the linear world a x{scale} student's excess risk falls by the ratio of its labels' "
        "variance.",
        f"mean ratio within {TOLERANCE:.0%} of the predicted one for every teacher and n; shown: "
        f"the {nearest}, largest n",
        last.mean,
        students.predicted[nearest],
        last.std / last.n**0.5,
        bool(np.abs(errors).max() < TOLERANCE),
    )


def draw(world: LinearWorld, path: Path) -> None:
    """Draw excess risk over n as a PNG: direct, distilled, and the prediction for distilled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(world.students), 3.8), layout="constrained")
    axes = figure.subplots(1, len(world.students), squeeze=False)[0]
    for axis, (scale, students) in zip(axes, world.students.items(), strict=True):
        means = {k: [np.mean(runs) for runs in v] for k, v in students.excess.items()}
        axis.loglog(world.counts, means[DIRECT], "o-", color="black", label="direct: the truth")
        for color, name in enumerate(students.predicted):
            if name.endswith("same n"):
                continue  # it coincides with the direct one
            line = f"C{color}"
            axis.loglog(world.counts, means[name], "o", color=line, label=name)
            theory = np.multiply(means[DIRECT], students.predicted[name])
            axis.loglog(world.counts, theory, "--", color=line, linewidth=1)
        axis.set_title(f"x{scale}")
        axis.set_xlabel("blocks the student is fitted on")
        axis.grid(which="both", alpha=0.2)
        axis.legend(fontsize=8, title="labels (dashed: predicted)", title_fontsize=8)
    axes[0].set_ylabel("excess risk")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
