"""One joint step: the network's chain and the weights' chain, on one forward pass.

Eq. 6 to 9 of this plugin's README.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from zoo.errors import InputError

from .sampler import WeightSampler, langevin_, together

LossOf = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
"""(network, batch) -> losses (B,), features of the examples (B,d) for a weight network or None."""


class Joint:
    """theta and w beside each other; with ``contrast`` also theta', which never sees the target.

    ``optimiser`` makes an optimiser for parameters; it is called once for each network, and its
    learning rate falls to 0 by a cosine over the sampler's ``steps``. The target's examples are
    part of theta's likelihood: the network trains on them at each step. With torch.distributed
    every process brings its part of the batch; gradients are summed over all.
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
        recipe = sampler.recipe
        if not any(p.requires_grad for p in net.parameters()):
            raise InputError("the network has no parameter to train: all are frozen, or none.")
        self.loss_of, self.sampler, self.precision = loss_of, sampler, precision
        self.device = next(net.parameters()).device
        self.dice = torch.Generator(self.device).manual_seed(seed)  # alike in all processes
        self.nets = [net, deepcopy(net)] if recipe.partition == "contrast" else [net]
        self.optimisers = [
            optimiser([p for p in member.parameters() if p.requires_grad]) for member in self.nets
        ]
        # A step of Adam with noise is no Langevin step: it would sample nothing.
        plain = all(isinstance(found, torch.optim.SGD) for found in self.optimisers)
        self.temperature = recipe.temperature if plain else 0.0
        self.rates = [[g["lr"] for g in found.param_groups] for found in self.optimisers]

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
        losses, features = self.losses(self.nets[0], batch, b + target_count)
        self._require_finite(losses, ids)
        features = None if features is None else features[:b].detach()
        coefficients = sampler.coefficients(ids, features).to(losses.device)
        rows, targets = _totals(b, target_count)
        total = (coefficients * losses[:b]).sum() / rows
        if target_count and sampler.recipe.meta_weight:
            total = total + sampler.recipe.meta_weight * losses[b:].sum() / targets
        self._move(0, total)
        prior = None
        if len(self.nets) > 1:
            prior, _ = self.losses(self.nets[1], head(batch, b, b + target_count), b)
            self._require_finite(prior, ids)
            self._move(1, (coefficients * prior).sum() / rows)
        sampler.observe(ids, losses[:b], prior, features)
        sampler.update()
        found = losses.detach()
        return float(found[:b].mean()), float(found[b:].mean()) if target_count else math.nan

    def _move(self, which: int, total: Tensor) -> None:
        optimiser, sampler = self.optimisers[which], self.sampler
        if sampler.steps:
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, sampler.step_number / sampler.steps)))
            for group, rate in zip(optimiser.param_groups, self.rates[which], strict=True):
                group["lr"] = rate * decay
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        if together():
            for p in self.nets[which].parameters():
                if p.grad is not None:
                    distributed.all_reduce(p.grad)
        optimiser.step()
        langevin_(optimiser, sampler.n, self.temperature, self.dice)

    def _require_finite(self, losses: Tensor, ids: Tensor) -> None:
        bad = ~losses.detach().isfinite().cpu()
        if not bool(bad.any()):
            return
        wrong = ids.cpu()[bad[: len(ids)]].tolist()
        where = f"of the training examples {wrong[:10]}" if wrong else "on the target set"
        raise InputError(
            f"step {self.sampler.step_number}: the loss {where} is NaN or infinite. The "
            "weights learned nothing of this batch. Look at its examples, or lower the learning "
            "rate."
        )

    # checkpoints

    def state(self) -> dict[str, Tensor]:
        """Networks, optimisers, sampler and noise, as tensors."""
        kept = {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        kept["dice"] = self.dice.get_state()
        for i, (net, optimiser) in enumerate(zip(self.nets, self.optimisers, strict=True)):
            kept |= {f"net{i}.{k}": v for k, v in net.state_dict().items()}
            for row, moments in optimiser.state_dict()["state"].items():
                for name, value in moments.items():
                    if value is not None:
                        kept[f"optimiser{i}.{row}.{name}"] = torch.as_tensor(value)
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.sampler.restore(part("sampler."))
        self.dice.set_state(state["dice"].clone())
        for i, (net, optimiser) in enumerate(zip(self.nets, self.optimisers, strict=True)):
            net.load_state_dict(part(f"net{i}."))
            rows: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"optimiser{i}.").items():
                row, _, name = key.partition(".")
                rows.setdefault(int(row), {})[name] = value.clone()
            optimiser.load_state_dict({**optimiser.state_dict(), "state": rows})


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


def head(batch: Any, b: int, count: int) -> Any:
    """The first ``b`` rows of a collated batch of ``count``."""
    if isinstance(batch, Tensor):
        return batch[:b] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        return {key: head(value, b, count) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        if len(batch) == count and not isinstance(batch[0], Tensor):
            return batch[:b]
        return [head(value, b, count) for value in batch]
    return batch
