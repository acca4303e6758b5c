"""MobileQuant: language models whose weights and activations are integers (EMNLP 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hookspecs import BuildRequest, hookimpl

if TYPE_CHECKING:
    from .model import MobileQuant, MobileQuantized


@hookimpl
def zoo_build(request: BuildRequest) -> MobileQuant | MobileQuantized:
    from .model import build

    return build(request)
