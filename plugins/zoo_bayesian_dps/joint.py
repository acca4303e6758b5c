"""One joint step: the network's chain and the weights' chain, on one forward pass; and its rate.

Eq. 8 to 11 of this plugin's README.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from zoo.errors import InputError

from .sampler import WeightSampler, langevin_, samples, together

LossOf = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
"""(network, batch) -> losses (B,), features of the examples (B,d) for a weight network or None."""
CHANGE = 0.7
"""Nats by which the first step at the chosen rate changes the losses of its batch, on average."""
TRIALS = (1e-5, 1e-8, 1e-11)
"""Rates of the steps that are tried: the first at which losses change little, so in proportion."""


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """The default optimiser: steps of one size whatever the scale of the gradient. It has no weight
    decay: the noise and the few steps keep a network from the labels that it should not learn."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def rate(net: nn.Module, losses_of: Callable[[nn.Module, Any], Tensor], batch: Any) -> float:
    """The learning rate of Adam that suits the rows (eq. 11): its first step changes the losses of
    ``batch`` by 0.7 nats on average. Tried on a copy; the network stays as it is.

    A step of Adam has the size of the rate in each parameter, so what it does to the losses grows
    with the scale and the number of features; this takes that out. From 1e-6 to 0.1.
    """
    if not any(p.requires_grad for p in net.parameters()):
        raise InputError("the network has no parameter to train: all are frozen, or none.")
    for lr in TRIALS:
        trial = deepcopy(net).eval()  # dropout would change the losses too
        optimiser = adam(lr)([p for p in trial.parameters() if p.requires_grad])
        before = losses_of(trial, batch)
        before.mean().backward()
        optimiser.step()
        with torch.no_grad():
            change = float((losses_of(trial, batch) - before).abs().mean())
        if 0 < change < 0.05:
            return min(max(lr * CHANGE / change, 1e-6), 0.1)
    return 1e-3  # nothing changes, or everything at once


class Joint:
    """theta and w beside each other.

    ``optimiser`` makes an optimiser for parameters; its learning rate falls to 0 by a cosine over
    the sampler's ``steps``. The target's examples are part of theta's likelihood: the network
    trains on them at each step. With torch.distributed every process brings its part of the batch;
    gradients are summed over all.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_of: LossOf,
        sampler: WeightSampler,
        optimiser: Callable[[Any], torch.optim.Optimizer],
        *,
        seed: int = 0,
        precision: torch.dtype | None = None,
    ) -> None:
        """``precision``: of autocast, such as bfloat16."""
        if not any(p.requires_grad for p in net.parameters()):
            raise InputError("the network has no parameter to train: all are frozen, or none.")
        self.net, self.loss_of, self.sampler, self.precision = net, loss_of, sampler, precision
        self.device = next(net.parameters()).device
        self.dice = torch.Generator(self.device).manual_seed(seed)  # alike in all processes
        self.optimiser = optimiser([p for p in net.parameters() if p.requires_grad])
        self.temperature = sampler.recipe.temperature if samples(self.optimiser) else 0.0
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.frozen = _digest(net)

    def losses(self, net: nn.Module, batch: Any, count: int) -> tuple[Tensor, Tensor | None]:
        """(count,) float32 losses; InputError where the loss gives anything else."""
        context: AbstractContextManager[Any] = nullcontext()
        if self.precision is not None:
            context = torch.autocast(self.device.type, self.precision)
        with context:
            losses, features = self.loss_of(net, batch)
        return per_example(losses, count), features

    def step(self, ids: Tensor, batch: Any, target_count: int) -> tuple[float, float]:
        """Mean losses on the training and the target rows of a batch, before the step.

        ``batch``: rows of the training set in the order of ``ids`` (B_t,), then ``target_count``
        rows of the target set, collated together: one forward pass for both.
        """
        b, sampler = len(ids), self.sampler
        losses, features = self.losses(self.net, batch, b + target_count)
        self._require_finite(losses, ids)
        features = None if features is None else features[:b].detach()
        coefficients = sampler.coefficients(ids, features).to(losses.device)
        rows, targets = _totals(b, target_count)
        total = (coefficients * losses[:b]).sum() / rows
        if target_count and sampler.recipe.meta_weight:
            total = total + sampler.recipe.meta_weight * losses[b:].sum() / targets
        self._move(total)
        sampler.observe(ids, losses[:b], features)
        sampler.update()
        found = losses.detach()
        return float(found[:b].mean()), float(found[b:].mean()) if target_count else math.nan

    def _move(self, total: Tensor) -> None:
        sampler = self.sampler
        if sampler.steps:
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, sampler.step_number / sampler.steps)))
            for group, first in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = first * decay
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if together():
            for p in self.net.parameters():
                if p.grad is not None:
                    distributed.all_reduce(p.grad)
        self.optimiser.step()
        langevin_(self.optimiser, sampler.n, self.temperature, self.dice)

    def _require_finite(self, losses: Tensor, ids: Tensor) -> None:
        bad = ~losses.detach().isfinite().cpu()
        if not bool(bad.any()):
            return
        wrong = ids.cpu()[bad[: len(ids)]].tolist()
        where = f"of the training examples {wrong[:10]}" if wrong else "on the target set"
        raise InputError(
            f"step {self.sampler.step_number}: the loss {where} is NaN or infinite, so "
            "this batch changed nothing. Check these rows (a row of tokens needs a label that is "
            "not -100), or lower the learning rate (lr=)."
        )

    # checkpoints

    def state(self) -> dict[str, Tensor]:
        """What steps change, as tensors: of the network all but frozen parameters, of which there
        is a digest; optimiser, sampler and noise."""
        kept = {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        kept["dice"] = self.dice.get_state()
        kept["frozen"] = self.frozen
        kept["rates"] = torch.tensor(self.rates, dtype=torch.float64)
        frozen = _frozen(self.net)
        kept |= {f"net.{k}": v for k, v in self.net.state_dict().items() if k not in frozen}
        for row, moments in self.optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                if value is not None:
                    kept[f"optimiser.{row}.{name}"] = torch.as_tensor(value)
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite; InputError for the state of another network."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        if not torch.equal(state["frozen"], self.frozen):
            raise InputError(
                "the checkpoint is from another network: its frozen parameters differ. Use the "
                "network of the first run, or start a new run."
            )
        self.sampler.restore(part("sampler."))
        self.dice.set_state(state["dice"].clone())
        self.rates = state["rates"].tolist()  # chosen for the network's first state
        self.net.load_state_dict({**self.net.state_dict(), **part("net.")})
        rows: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimiser.").items():
            row, _, name = key.partition(".")
            rows.setdefault(int(row), {})[name] = value.clone()
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": rows})


def _frozen(net: nn.Module) -> set[str]:
    """Names of the parameters that no step changes, in the network's state."""
    every = net.named_parameters(remove_duplicate=False)
    return {name for name, p in every if not p.requires_grad}


def _digest(net: nn.Module) -> Tensor:
    """(16,) bytes that tell frozen parameters apart; with none, those of nothing."""
    found = hashlib.blake2b(digest_size=16)
    for p in net.parameters():
        if not p.requires_grad:
            flat = p.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def per_example(losses: Any, count: int) -> Tensor:
    """(count,) float32; InputError where a loss gave anything else."""
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        if not isinstance(losses, Tensor):
            found = f"a {type(losses).__name__}"
        else:
            found = f"the shape {tuple(losses.shape)}" if losses.ndim else "a single number"
        raise InputError(
            f"the loss gave {found} for a batch of {count}: it must return one value for each "
            "example, shape (B,). With torch's losses pass reduction='none'."
        )
    return losses.float()


def _totals(rows: int, targets: int) -> tuple[int, int]:
    """Sizes of the whole batch, over all processes."""
    if not together():
        return rows, max(1, targets)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    both = torch.tensor([rows, targets], device=device)
    distributed.all_reduce(both)
    return int(both[0]), max(1, int(both[1]))
