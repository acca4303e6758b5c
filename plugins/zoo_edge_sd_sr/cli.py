"""The method's own commands: ``zoo run edge-sd-sr NAME ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo_sr import cli as shared

if TYPE_CHECKING:
    from .model import EdgeSDSR


def speed(model: EdgeSDSR, args: list[str]) -> int:
    """``speed``: parameters, FLOPs and time next to other upscalers, including the paper's size."""
    from .full import CONFIG

    return shared.speed(model, args, CONFIG)


compare = shared.compare
profile = shared.profile
