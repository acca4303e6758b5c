"""Nearest-neighbour enlargement followed by a small filter. Light: torch comes with ``model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BuildRequest, hookimpl

if TYPE_CHECKING:
    from .model import Nearest


@hookimpl
def zoo_build(request: BuildRequest) -> Nearest:
    from .model import Nearest

    return Nearest(request)
