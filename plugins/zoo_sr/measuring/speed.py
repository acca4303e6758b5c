"""The cost of a model next to its peers, 128x128 to 512x512, in one run on one machine.

Parameters (only those that are used) and FLOPs are counted on the meta device. ``zoo.experiment``
measures seconds, with the same number of rounds for each. Fast models take turns; the big peers run
one after the other, to fit into memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.experiment import Book, take_turns
from zoo.progress import track

from ..pixels import bicubic_up
from .cost import count_flops
from .peers import PEERS, Diffusion

if TYPE_CHECKING:
    from zoo.progress import Progress

    from ..upscaler import LatentSR

SIDE = 128
STEPS = 50
"""Steps of a diffusion peer in common use; the table also has one step."""
ROUNDS = 3
BEST_OF = 3
"""Calls per round for models that take a second or less."""
PARAMETERS, GFLOP = "parameters (M)", "GFLOP 128 to 512"
SECONDS = "seconds of one thread, 128 to 512"
Rows = dict[str, dict[str, list[float]]]
"""Row -> column -> a number, or one for each round."""


@torch.inference_mode()
def measure_speed(
    book: Book,
    model: LatentSR,
    quick: bool = False,
    full: Mapping[str, Any] | None = None,
    progress: Progress = False,
) -> None:
    """Enter the table and its claims. Diffusion peers take minutes of CPU time and 4 GB.

    ``full``: the configuration of the method's full size. Claims and ratios are about this network,
    built with random weights; without ``full``, or if the model is that network, about the model.
    ``quick`` counts everything, but times only models that take seconds, once a round.
    """
    name, device = model.entry.name, model.device
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    image = image.to(device).contiguous(memory_format=torch.channels_last)
    ours: dict[str, nn.Module] = {
        name: model.module,
        f"{name}, bfloat16": copy.deepcopy(model.module).bfloat16(),
    }
    about = name
    if full is not None and dict(full) != dict(model.config):
        about = f"{model.entry.method or name}-full, random weights"
        ours[about] = random(lambda: type(model).network(full), None if quick else device)
    rows: Rows = {"bicubic": {}, **{label: cost(net) for label, net in ours.items()}}
    runs = {label: _run(net, image) for label, net in ours.items() if not _is_meta(net)}
    runs["bicubic"] = lambda: bicubic_up(image, 4)
    compact, *large = PEERS
    runs[compact] = _run(random(PEERS[compact], device), image)
    rows[compact] = cost(random(PEERS[compact], None))
    with track(1 + len(large), progress, "speed") as advance:
        best_of = 1 if quick else BEST_OF
        turns = take_turns(runs, rounds=ROUNDS, best_of=best_of, device=device)
        for label, seconds in turns.items():
            rows[label][SECONDS] = seconds
        advance(1)
        for label in large:
            rows |= _peer(label, None if quick else device, image)
            advance(1)
    enter(book, rows, about, about if SECONDS in rows[about] else name)


@torch.inference_mode()
def _peer(label: str, device: torch.device | None, image: Tensor) -> Rows:
    """Rows of one big peer; without a device, counts only."""
    shapes = random(PEERS[label], None)
    if not isinstance(shapes, Diffusion):
        row = cost(shapes)
        if device is not None:
            network = random(PEERS[label], device)
            runs = {label: _run(network, image)}
            row[SECONDS] = take_turns(runs, rounds=ROUNDS, device=device)[label]
        return {label: row}
    once, (twice,) = cost(shapes), cost(shapes, 2)[GFLOP]
    (flops,) = once[GFLOP]
    often = {PARAMETERS: once[PARAMETERS], GFLOP: [flops + (STEPS - 1) * (twice - flops)]}
    if device is not None:
        network = random(PEERS[label], device)
        assert isinstance(network, Diffusion)
        z = network.start(image)
        runs = {"step": lambda: network.step(z, image), "decode": lambda: network.decode(z)}
        # No warm-up round: a single step takes much longer than starting up.
        spent = take_turns(runs, rounds=ROUNDS, warm_up=0, device=device)
        parts = [*zip(spent["step"], spent["decode"], strict=True)]
        once[SECONDS] = [step + decode for step, decode in parts]
        often[SECONDS] = [STEPS * step + decode for step, decode in parts]
    return {f"{label}, 1 step": once, f"{label}, {STEPS} steps (time: 1 measured)": often}


def enter(book: Book, rows: Rows, about: str, yardstick: str) -> None:
    """Enter the rows, their times as ratios to the yardstick's, and the claims about ``about``. The
    rival is the cheapest diffusion peer at a single step, so the claims hold against all.
    """
    for row, cells in rows.items():
        for column, values in cells.items():
            for i, value in enumerate(values):
                book.add(row, column, value, i)
        for i, value in enumerate(cells.get(SECONDS, ())):
            ratio = value / rows[yardstick][SECONDS][i]
            book.add(row, f"time, ratio to {yardstick}", ratio, i)
    peers = [row for row in rows if row.endswith(", 1 step")]
    name = about.partition(",")[0]
    for identity, column, words, test in (
        ("flops-of-diffusion-peers", GFLOP, "FLOPs", "counted"),
        ("time-of-diffusion-peers", SECONDS, "time", "t"),
    ):
        if all(column in rows[row] for row in (about, *peers)):
            book.claim(
                identity,
                f"{name} enlarges 128 to 512 with at most a tenth of the {words} of any diffusion "
                "peer in the table, even if that took a single step.",
                book.times(about, peers, column, at_most=0.1, test=test),  # type: ignore[arg-type]
            )


# --- random weights, and counting -----------------------------------------------------------------


def random(make: Callable[[], nn.Module], device: torch.device | None) -> nn.Module:
    """A network with small random weights on the device; None: shapes only (meta)."""
    with torch.device("meta"):
        network = make().eval().requires_grad_(False)
    if device is not None:
        network.to_empty(device=device)
        generator = torch.Generator(device).manual_seed(0)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(-0.03, 0.03, generator=generator)
        network.to(memory_format=torch.channels_last)
    return network


def _is_meta(network: nn.Module) -> bool:
    return next(network.parameters()).is_meta


def _run(network: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    given = image.to(next(network.parameters()).dtype)
    return lambda: network(given)


def cost(network: nn.Module, *arguments: Any) -> dict[str, list[float]]:
    """Parameters and FLOPs of ``network(image, *arguments)``, without copying or using weights.
    Only parameters of modules that ran are counted.
    """
    used: dict[nn.Module, int] = {}

    def look(module: nn.Module, _: Any) -> None:
        used[module] = sum(p.numel() for p in module.parameters(recurse=False))

    counter = FlopCounterMode(display=False)
    watched = [m.register_forward_pre_hook(look) for m in network.modules()]
    try:
        count_flops(counter, network, (SIDE, SIDE), *arguments)
    finally:
        for hook in watched:
            hook.remove()
    return {
        PARAMETERS: [sum(used.values()) / 1e6],
        GFLOP: [counter.get_total_flops() / 1e9],
    }
