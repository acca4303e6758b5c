"""``zoo eval``: one model on a user's data, by the common metrics of its interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from . import protocols
from .errors import InputError
from .interfaces import Model
from .progress import Progress, track
from .protocols import Measured


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a data set."""

    data: str
    """What was measured, in words, such as "12 images, 3 classes"."""
    higher_is_better: Mapping[str, bool]
    items: Sequence[Measured]
    failures: Sequence[InputError] = ()
    """One error for each item that could not be read; such items are not measured."""

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean over the items that have it."""
        return _means(self.items)

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """Class -> metric -> mean; empty where the data has no classes."""
        names = sorted({item.group for item in self.items if item.group})
        return {name: _means([i for i in self.items if i.group == name]) for name in names}

    def worst(self, count: int) -> list[Measured]:
        """The worst items, at most ``count``, the worst one first."""
        return sorted(self.items, key=lambda item: item.quality)[:count]


def evaluate(model: Model, data: Path, progress: Progress = False) -> Evaluation:
    """Measure a model on ``data``: see the module of its interface in ``zoo.protocols``.

    Raises NotReadyError if the interface has no common metrics yet, InputError if no
    item can be read.
    """
    protocol = protocols.of(model.interface)
    if not data.exists():
        raise InputError(f"{data}: there is no such file or folder.")
    failures: list[InputError] = []
    items = protocol.items(data, skip=failures.append)
    if failures and not items:
        raise failures[0]
    measured = []
    with track(len(items), progress, "eval") as advance:
        for found in protocol.measure(model, items):
            measured.append(found)
            advance()
    size = protocol.described(data, items).size
    return Evaluation(size, protocol.HIGHER, measured, failures)


def _means(items: Sequence[Measured]) -> dict[str, float]:
    metrics = dict.fromkeys(metric for item in items for metric in item.scores)
    return {m: fmean(i.scores[m] for i in items if m in i.scores) for m in metrics}
