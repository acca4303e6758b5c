"""The method's own commands, ``zoo run yonos-sr NAME ...``: those of all super-resolution."""

from __future__ import annotations

from zoo_sr.cli import compare, profile, speed

__all__ = ["compare", "profile", "speed"]
