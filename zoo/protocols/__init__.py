"""How every model of an interface is measured alike, on any data: a module for each interface.

Each of them has

    HIGHER                   metric -> is more better?
    items(data, most)        what is measured, from a folder or file, or of its own
    described(data, items)   what they are, for a record
    references()             row -> what needs no model, called like one
    measure(model, items)    item by item: a ``Measured`` for each

so that a table of models (``zoo bench INTERFACE``) and the report on one model (``zoo eval``) are
made of the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from ..errors import NotReadyError
from ..interfaces import Data

MODULES: Mapping[str, str] = {"SRModel": "super_resolution", "VLAligner": "alignment"}


@dataclass(frozen=True)
class Measured:
    """What a model made of one item."""

    item: str
    """Its name, its own among the items."""
    scores: Mapping[str, float]
    """Metric -> number; an item may lack some."""
    quality: float
    """Orders the items: the lowest went worst."""
    group: str = ""
    """The class that it belongs to, where the data has classes."""
    note: str = ""
    """What went wrong, for people."""


class Measuring(Protocol):
    """What a module here has."""

    HIGHER: Mapping[str, bool]

    def items(self, data: Path | None, most: int | None = None) -> Sequence[Any]:
        """At most so many, of ``data`` or of what there is without a download."""

    def described(self, data: Path | None, items: Sequence[Any]) -> Data:
        """Name, licence and size."""

    def references(self) -> Mapping[str, Any]:
        """Row -> something with the interface's verb, such as interpolation."""

    def measure(self, model: Any, items: Sequence[Any]) -> Iterator[Measured]:
        """Item by item. Raises a ZooError for a model that cannot do it."""


def of(interface: str | None) -> Measuring:
    """The module for an interface. Raises NotReadyError where there is none."""
    if interface is None or interface not in MODULES:
        what = f"the kind {interface} yet" if interface else "what has none of the six interfaces"
        raise NotReadyError(
            f"zoo has no common metrics for {what}. It has some for: {', '.join(MODULES)}."
        )
    return cast(Measuring, import_module(f".{MODULES[interface]}", __name__))
