"""Claims about a number as it is, against a limit that was set in advance."""

from __future__ import annotations

from dataclasses import replace

from zoo.experiment import Comparison


def above(row: str, column: str, bound: float) -> Comparison:
    """Is a number, as it is, above a limit set in advance?"""
    return Comparison(row, (column,), float(bound), (column,), "difference", True, 0.0, "counted")


def below(row: str, column: str, bound: float) -> Comparison:
    """Is it below?"""
    return replace(above(row, column, bound), above=False)
