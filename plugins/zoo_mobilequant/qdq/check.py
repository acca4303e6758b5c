"""An export in onnxruntime beside the simulation that it was made from, on calibration text.

Both round the same values on the same grids, but add floats in another order, so a value that lies
between two codes may fall on either side. A small network forgives that. In a deep one with coarse
grids one code changes the next ones, and in the end everything differs by as much as rounding does:
then the simulation does not even agree with itself where each layer's input changes by ``NOISE``.
So that is measured too, and each layer alone, on the simulation's own input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from zoo import calibration

from ..evaluate import text_windows
from ..simulate import switched
from .session import Session, opened, padded

if TYPE_CHECKING:
    from ..model import MobileQuantized

STEPS = 64
"""Tokens of each window that are decoded one by one."""
NOISE = 1e-6
"""Relative change of what each layer reads: what another order of summation comes to."""
PERPLEXITY, AGREEMENT, LAYER = 0.001, 0.99, 0.01
"""The limits: relative difference of perplexities, share of positions with the same likeliest next
token, relative error of a layer's contribution."""


@dataclass
class Tally:
    """One network beside another, at the same positions."""

    mine: float = 0.0
    """Sum of negative log-likelihoods of the tokens that follow, in nats."""
    theirs: float = 0.0
    followed: int = 0
    same: int = 0
    positions: int = 0
    square: float = 0.0
    """Sum of the squared differences between both likelihoods."""

    def add(self, mine: Tensor, theirs: Tensor, following: Tensor) -> None:
        """Logits (T,V) twice, and the tokens (T or T - 1,) that follow."""
        n = len(following)
        a, b = (
            -logits[:n].float().log_softmax(-1).gather(1, following[:, None])[:, 0].double()
            for logits in (mine, theirs)
        )
        self.mine, self.theirs = self.mine + float(a.sum()), self.theirs + float(b.sum())
        self.followed += n
        self.same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        self.positions += len(mine)
        self.square += float((a - b).square().sum())

    def found(self) -> dict[str, float]:
        n = max(self.followed, 1)
        return {
            "perplexity": math.exp(min(self.mine / n, 700)),
            "simulation": math.exp(min(self.theirs / n, 700)),
            "error": math.sqrt(self.square) / n,  # standard error of the ratio's logarithm
            "agreement": self.same / max(self.positions, 1),
            "positions": self.positions,
        }


@torch.no_grad()
def checked(model: MobileQuantized, folder: Path, windows: int) -> dict[str, Any]:
    """Measure an export on so many windows of zoo's calibration text.

    ``prompt``: the prefill graph at all positions; ``token``: the decode graph after it; ``noise``:
    the simulation with noise beside itself; ``layers``: the largest relative error of a layer's
    contribution to the residual, on the simulation's input. The simulation leaves activations of 16
    bits in floats where the export does.
    """
    session = Session(folder)
    length, cache = session.told["length"], session.told["cache"]
    text = "\n\n".join(calibration.texts())
    size = min(cache, length + STEPS // 2)
    rows = text_windows(model.tokenizer, text, size - 1)[:windows]
    wide = [s for s in model.sites.values() if session.told["target"] == "cpu" and s.bits > 8]
    prompt, token, noise, errors = Tally(), Tally(), Tally(), Errors()
    with switched(wide, False), widened(folder, model, length) as whole:
        for row in rows:
            ids, following = row.tolist(), row[1:]
            with watched(model) as states:
                wanted = model.module(row[None].to(model.device)).logits[0].cpu()
            n = min(len(ids), length)
            made = whole(ids[:n], states)
            prompt.add(made["logits"], wanted[:n], following[:n])
            errors.add(made, states)
            begin = max(1, n - STEPS // 2)
            logits = [session.prefill(ids[:begin])]
            logits += [session.decode(i) for i in ids[begin : begin + STEPS]]
            part = slice(begin - 1, begin - 1 + len(logits))
            token.add(torch.from_numpy(np.stack(logits)), wanted[part], following[part])
            noise.add(_noisy(model, row), wanted, following)
    return {
        "windows": len(rows),
        "prompt": prompt.found(),
        "token": token.found(),
        "noise": noise.found(),
        "layers": errors.worst(),
    }


class Errors:
    """How far layers are off, each on the simulation's input."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {}

    def add(self, made: Mapping[str, Tensor], states: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """``made``: ``I.end`` (T,H), what the export's layer I gives; ``states``: layer -> what it
        reads and gives in the simulation.
        """
        for i, (before, after) in states.items():
            mine = made[f"{i}.end"]
            contributed = (after - before)[: len(mine)].norm(dim=1).clamp_min(1e-30)
            off = (mine - after[: len(mine)]).norm(dim=1) / contributed
            self.found.setdefault(i, []).append(float(off.mean()))

    def worst(self) -> dict[str, float]:
        means = {i: sum(values) / len(values) for i, values in self.found.items()}
        layer = max(means, key=lambda i: means[i])
        return {"layer": layer, "error": means[layer]}


@contextmanager
def watched(model: MobileQuantized) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Layer -> its input and output (T,H) in what runs meanwhile."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            found[layer] = before[0].cpu(), after[0].cpu()

        return hook

    hooks = [
        layer.module.register_forward_hook(keep(layer.index), with_kwargs=True)
        for layer in model.layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


Whole = Callable[[Sequence[int], Mapping[int, tuple[Tensor, Tensor]]], dict[str, Tensor]]


@contextmanager
def widened(folder: Path, model: MobileQuantized, length: int) -> Iterator[Whole]:
    """Two forms of the prefill graph: with logits at all positions, and with layers that each begin
    from a given state. Both are the exported nodes and weights; only inputs and outputs differ.
    """
    made = onnx.load(folder / "prefill.onnx", load_external_data=False)
    for value in (made.graph.input[1], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = length
    parts = onnx.load(folder / "prefill.onnx", load_external_data=False)
    del parts.graph.output[:]
    width = model.module.config.hidden_size
    float_ = TensorProto.FLOAT
    for layer in model.layers:
        end, given = f"{layer.index}.end", f"{layer.index + 1}.begin"
        parts.graph.output.append(helper.make_tensor_value_info(end, float_, [length, width]))
        if layer is model.layers[-1]:
            break
        parts.graph.input.append(helper.make_tensor_value_info(given, float_, [length, width]))
        for node in parts.graph.node:
            node.input[:] = [given if name == end else name for name in node.input]
    files = [folder / "every-position.onnx", folder / "every-layer.onnx"]
    try:
        for file, graph in zip(files, (made, parts), strict=True):
            onnx.save_model(graph, str(file))
        positions, layers = map(opened, files)

        def run(
            ids: Sequence[int], states: Mapping[int, tuple[Tensor, Tensor]]
        ) -> dict[str, Tensor]:
            fed = {"input_ids": padded(ids, length), "last": np.arange(length, dtype=np.int32)}
            logits = positions.run(["logits"], fed)
            for i, (before, _) in states.items():
                if i:
                    rows = np.zeros((length, width), np.float32)
                    rows[: len(ids)] = before[: len(ids)]
                    fed[f"{i}.begin"] = rows
            fed["last"] = fed["last"][:1]
            names = [output.name for output in layers.get_outputs()]
            found = dict(zip(["logits", *names], logits + layers.run(names, fed), strict=True))
            return {name: torch.from_numpy(rows[: len(ids)]) for name, rows in found.items()}

        yield run
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _noisy(model: MobileQuantized, row: Tensor) -> Tensor:
    """The simulation's logits (T,V) where what each layer reads changes by ``NOISE``."""
    chance = torch.Generator().manual_seed(0)

    def shake(module: Any, args: Any) -> Any:
        factor = 1 + NOISE * torch.randn(args[0].shape, generator=chance)
        return (args[0] * factor.to(args[0].device), *args[1:])

    hooks = [layer.module.register_forward_pre_hook(shake) for layer in model.layers]
    try:
        logits: Tensor = model.module(row[None].to(model.device)).logits[0].cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return logits


# --- for people -----------------------------------------------------------------------------------


def lines(check: Mapping[str, Any]) -> list[str]:
    """What ``checked`` found, and what it means."""
    found = [
        f"{name}: perplexity {part['perplexity']:.3f}, simulation {part['simulation']:.3f} "
        f"({_off(part):+.2%} +- {part['error']:.2%}); the same likeliest next token at "
        f"{part['agreement']:.1%} of {part['positions']:,} positions"
        for name, part in (("prompt", check["prompt"]), ("token by token", check["token"]))
    ]
    noise, layers = check["noise"], check["layers"]
    found.append(
        f"the simulation beside itself, what its layers read changed by {NOISE:g}: "
        f"{_off(noise):+.2%} +- {noise['error']:.2%}; {noise['agreement']:.1%}"
    )
    found.append(
        f"each layer on the simulation's input: off by at most {layers['error']:.3%} of what it "
        f"adds (layer {layers['layer']})"
    )
    return [*found, verdict(check)]


def verdict(check: Mapping[str, Any]) -> str:
    """Whether the export is within the limits, or as near as the simulation is to itself."""
    parts, noise = (check["prompt"], check["token"]), check["noise"]
    limits = f"{PERPLEXITY:.1%} of perplexity and {AGREEMENT:.0%} of next tokens"
    if check["layers"]["error"] > LAYER:
        return (
            f"WARNING: a layer is off by more than {LAYER:.0%}. Do not use this export; report it."
        )
    if all(abs(_off(p)) <= PERPLEXITY and p["agreement"] >= AGREEMENT for p in parts):
        return f"The export equals the simulation within {limits}."
    near = all(
        p["agreement"] >= noise["agreement"] - 4 * _spread(p["agreement"], p["positions"])
        and abs(_off(p)) <= PERPLEXITY + 3 * p["error"]
        for p in parts
    )
    if near:
        return (
            f"The export is not within {limits} of the simulation, but as near as the simulation "
            "is to itself: this network enlarges what falls between two codes."
        )
    return (
        f"WARNING: the export is not within {limits} of the simulation, nor as near as that is to "
        "itself, though every layer is right. Check on more windows: -O windows=16."
    )


def _off(part: Mapping[str, float]) -> float:
    return part["perplexity"] / part["simulation"] - 1


def _spread(share: float, count: float) -> float:
    """Standard error of a share."""
    return math.sqrt(max(share * (1 - share), 1e-9) / max(count, 1))
