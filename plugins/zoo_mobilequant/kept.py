"""What the benchmark keeps on disk beside its rows: what several of them have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.experiment import digest

from .recipe import Recipe
from .work import Work

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Shared(Work):
    """Work on the same windows for many recipes: what does not depend on the recipe is done once.

    ``seconds`` is the CPU time of the stages that were found done: whoever uses them adds it to
    their own, as if they had done them.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.seconds, self._since = recipe, 0.0, 0.0
        start: list[Any] = [recipe.pairs, recipe.alpha, recipe.grid, recipe.prefix_tokens]
        if recipe.pairs and recipe.alpha is None:  # chosen by what the scheme makes of it
            start += [recipe.scheme, recipe.weights]
        self._names = {
            "peaks": f"peaks-{digest([recipe.prefix_tokens])}",
            "strengths": f"strengths-{digest(start)}",
            "ranges": f"ranges-{digest([*start, recipe.activation_bits])}",
        }

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        name = self._names[name]
        known = self._spent(f"{name}.safetensors")
        self.seconds += known or 0.0
        before = time.process_time()
        found = super().stage(name, make)
        if known is None:
            self._spend(f"{name}.safetensors", time.process_time() - before)
        return found

    def part(self, name: str) -> Work:
        """Layer by layer: a layer is learned in seconds, and not kept."""
        return _Nothing(self.folder)

    @property
    def _file(self) -> Path:
        same = replace(self.recipe, fallback=0, budget=0.0)  # what comes after learning
        return self.folder / f"learning-{digest(same.kept())}.safetensors"

    def restore(self, values: Mapping[str, Tensor], adam: Any) -> int:
        self.seconds += self._spent(self._file.name) or 0.0
        self._since = time.process_time() - (self._spent(self._file.name) or 0.0)
        return super().restore(values, adam)

    def step(self, done: int, steps: int, values: Mapping[str, Tensor], adam: Any) -> None:
        before = self._file.stat().st_mtime_ns if self._file.is_file() else 0
        super().step(done, steps, values, adam)
        if self._file.is_file() and self._file.stat().st_mtime_ns != before:
            self._spend(self._file.name, time.process_time() - self._since)

    def _spent(self, name: str) -> float | None:
        file = self.folder / f"{name}.seconds"
        done = file.is_file() and (self.folder / name).is_file()
        return float(file.read_text("utf-8")) if done else None

    def _spend(self, name: str, seconds: float) -> None:
        (self.folder / f"{name}.seconds").write_text(f"{seconds:.3f}", "utf-8")


class _Nothing(Work):
    """Work that keeps nothing."""

    def step(self, done: int, steps: int, values: Mapping[str, Tensor], adam: Any) -> None:
        return

    def restore(self, values: Mapping[str, Tensor], adam: Any) -> int:
        return 0


def forget_peak() -> None:
    """From now on ``peak`` is of what follows (Linux only)."""
    if RESET.exists():
        RESET.write_text("5")


def peak() -> float | None:
    """The most memory, in GB, that this process had since ``forget_peak``; None where that cannot
    be told.
    """
    if not RESET.exists():
        return None
    lines = STATUS.read_text("utf-8").splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9
