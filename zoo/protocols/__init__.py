"""How every model of an interface is measured alike, on any data: a module for each interface.

Each of them has

    HIGHER                   metric -> is more better?
    items(data, most)        what is measured: named items, from a folder or file, or of its own
    described(data, items)   what they are, for a record
    references()             row -> what needs no model, called like one
    measure(model, items)    item by item, its name and a number for each metric

so that a table of models (``zoo bench INTERFACE``) and the report on one model are made of the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from ..errors import NotReadyError
from ..interfaces import Data

MODULES: Mapping[str, str] = {"SRModel": "super_resolution"}


class Item(Protocol):
    """One thing that a model is measured on."""

    @property
    def name(self) -> str:
        """Its own among the items."""


class Measuring(Protocol):
    """What a module here has."""

    HIGHER: Mapping[str, bool]

    def items(self, data: Path | None, most: int | None = None) -> Sequence[Any]:
        """At most so many, of ``data`` or of what there is without a download."""

    def described(self, data: Path | None, items: Sequence[Any]) -> Data:
        """Name, licence and size."""

    def references(self) -> Mapping[str, Any]:
        """Row -> something with the interface's verb, such as interpolation."""

    def measure(
        self, model: Any, items: Sequence[Any]
    ) -> Iterator[tuple[str, Mapping[str, float]]]:
        """Name of the item, metric -> number. Raises a ZooError for a model that cannot do it."""


def of(interface: str) -> Measuring:
    """The module for an interface. Raises NotReadyError where there is none."""
    if interface not in MODULES:
        raise NotReadyError(
            f"no {interface} is ready yet, so there are no common metrics for the kind. "
            f"There are some for: {', '.join(MODULES)}."
        )
    return cast(Measuring, import_module(f".{MODULES[interface]}", __name__))
