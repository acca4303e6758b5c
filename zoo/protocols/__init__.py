"""How all models of an interface are measured, on any data: a module for each interface.

Each module has

    HIGHER                   metric -> is higher better?
    items(data, most, skip)  what to measure, from a folder or file, or built in
    described(data, items)   their description, for a record
    references()             row -> a baseline without a model, called like one
    measure(model, items)    a ``Measured`` for each item, one by one

so that a table of models (``zoo bench INTERFACE``) and the report on one model (``zoo eval``) have
the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from ..errors import InputError, NotReadyError
from ..interfaces import Data

Skip: TypeAlias = Callable[[InputError], None]
MODULES: Mapping[str, str] = {
    "SRModel": "super_resolution",
    "VLAligner": "alignment",
    "Detector": "detection",
}


@dataclass(frozen=True)
class Measured:
    """The result of a model on one item."""

    item: str
    """Its name, unique among the items."""
    scores: Mapping[str, float]
    """Metric -> number; an item may lack some."""
    quality: float
    """Sorts the items: the lowest is the worst."""
    group: str = ""
    """The class that it belongs to, if the data has classes."""
    note: str = ""
    """What went wrong, in words."""


class Measuring(Protocol):
    """The contents of a module of this package."""

    HIGHER: Mapping[str, bool]

    def items(
        self, data: Path | None, most: int | None = None, skip: Skip | None = None
    ) -> Sequence[Any]:
        """At most ``most`` items, from ``data`` or built in.

        ``skip``: called with the InputError of an item that cannot be read; None: it is raised.
        """

    def described(self, data: Path | None, items: Sequence[Any]) -> Data:
        """Name, licence and size."""

    def references(self) -> Mapping[str, Any]:
        """Row -> something with the interface's verb, such as interpolation."""

    def measure(self, model: Any, items: Sequence[Any]) -> Iterator[Measured]:
        """Measure item by item. Raises a ZooError for a model that cannot be measured."""


def of(interface: str | None) -> Measuring:
    """The module for an interface. Raises NotReadyError if there is none."""
    if interface is None or interface not in MODULES:
        what = f"the kind {interface} yet" if interface else "a model without an interface"
        raise NotReadyError(
            f"zoo has no common metrics for {what}. It has metrics for: {', '.join(MODULES)}."
        )
    return cast(Measuring, import_module(f".{MODULES[interface]}", __name__))
