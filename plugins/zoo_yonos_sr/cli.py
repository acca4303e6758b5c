"""The method's own commands, ``zoo run yonos-sr NAME ...``: those in ``zoo_sr``."""

from __future__ import annotations

from zoo_sr.cli import compare, profile, speed

__all__ = ["compare", "profile", "speed"]
