"""Where the time of one enlargement goes: reading, tiles, each part of the network, writing.

Forward hooks charge the time between two of their calls to the part that is running, so the parts
add up to the total. A run on the meta device counts FLOPs with the same hooks.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.bench import markdown
from zoo.experiment import now, one_thread

from .cost import count_flops

if TYPE_CHECKING:
    from ..upscaler import LatentSR

READ, WRITE = "read the file", "write the PNG"
TILES = "pixels, tiles, blending"
BETWEEN = "network, between parts"


class Meter:
    """The increase of a counter (seconds, FLOPs) while each part was on top of the stack."""

    def __init__(self, reading: Callable[[], float]) -> None:
        self.reading = reading
        self.gained: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._last = 0.0

    def _charge(self) -> None:
        value = self.reading()
        if self._stack:
            self.gained[self._stack[-1]] += value - self._last
        self._last = value

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the body to ``name``, except parts within it."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Every module of the network is a part, with its name from ``part_of``."""

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any) -> None:
                self._charge()
                self._stack.append(name)

            return hook

        def leave(*_: Any) -> None:
            self._charge()
            self._stack.pop()

        hooks = []
        for name, module in network.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(part_of(name))))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def part_of(name: str) -> str:
    """The part of a module: ``unet.down.0`` for ``unet.down.0.1.conv1``, cut after the first
    number."""
    words = name.split(".")
    for i, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[: i + 1])
    return name or BETWEEN


def profile(model: LatentSR, source: Path, rounds: int = 3) -> list[tuple[str, float, float]]:
    """(part, seconds, FLOPs) of enlarging an image file to a PNG, in the order of execution.

    The mean of several rounds, on one thread; CPU-seconds on a CPU.
    """
    from zoo import images

    meter = Meter(lambda: now(model.device))
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        small = images.read(source)
        model.upscale(small)  # warm-up
        for _ in range(rounds):
            with meter.part(READ):
                small = images.read(source)
            with meter.part(TILES), meter.watching(model.module):
                large = model.upscale(small)
            with meter.part(WRITE):
                images.save(large, Path(scratch) / "out.png", overwrite=True)
    flops = _flops(model, small.height, small.width)
    return [(part, gained / rounds, flops[part]) for part, gained in meter.gained.items()]


def _flops(model: LatentSR, height: int, width: int) -> dict[str, float]:
    """FLOPs of each part of the network for all tiles of an image of this size."""
    network, grid = model.module, model._grid(height, width, *model._tiling("auto", None))
    counter = FlopCounterMode(display=False)
    meter = Meter(counter.get_total_flops)
    with meter.watching(network):
        count_flops(counter, network, grid.shape)
    return defaultdict(float, {k: grid.evaluations * v for k, v in meter.gained.items()})


def table(found: list[tuple[str, float, float]], least: float = 0.005) -> str:
    """The profile as a table, longest first, with shares below ``least`` in one row."""
    whole = sum(seconds for _, seconds, _ in found)
    large = sorted((row for row in found if row[1] >= least * whole), key=lambda row: -row[1])
    small = [row for row in found if row[1] < least * whole]

    def total(name: str, rows: list[tuple[str, float, float]]) -> tuple[str, float, float]:
        return name, sum(row[1] for row in rows), sum(row[2] for row in rows)

    if small:
        large.append(total(f"{len(small)} more, each below {100 * least:g} %", small))
    lines = []
    for part, seconds, flops in [*large, total("all", found)]:
        work = [f"{flops / 1e9:.2f}", f"{flops / seconds / 1e9:.0f}"] if flops else ["", ""]
        lines.append([part, f"{1000 * seconds:.1f}", f"{100 * seconds / whole:.1f} %", *work])
    return markdown(["part", "ms", "share", "GFLOP", "GFLOP/s"], lines)
