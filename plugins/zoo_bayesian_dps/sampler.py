"""The Bayesian model and its sampler (arXiv 2411.03768), eq. 1 to 12 of this plugin's README.md.

    p(theta, w | D_t, D_m)  is proportional to  p(D_m | theta) p(theta | w, D_t) p(w)

    U(theta, w) = sum_j l_j(theta)  [target set]  + sum_i w_i l_i(theta)  [training set, w in [0,1]]
                  + the prior of w  [how much is kept]

The derivative by a weight is dU/dw_i = l_i(theta) - tau (eq. 4): a loss that is known already, and
a threshold. No second derivative, no extra pass. Without ``keep``, tau is the loss of a guess among
the classes, log K; with it, tau moves so that the mean weight is ``keep``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from zoo.errors import InputError, OptionError

from .weights import (
    ExactWeights,
    LangevinWeights,
    WeightNetwork,
    Weights,
    conditional_mean,
    conditional_variance,
)

WEIGHTINGS = ("exact", "langevin", "network", "none")
UNKNOWN_KEEP = 0.7
"""The share to keep where none is given and the loss is not over classes."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the sampler. The experiments in ``bench.py`` use the defaults."""

    keep: float | None = None
    """beta: the share of the training set to keep, 0 < beta <= 1. None: an example is kept where
    the network explains its label better than a guess among the classes; without classes 0.7."""
    weighting: str = "exact"
    """``exact``: each weight is drawn from its conditional given the network; ``langevin``: its
    logit moves by Langevin dynamics, as published; ``network``: a small network gives it; ``none``:
    all weights stay 1, which is plain training on both sets."""
    meta_weight: float = 0.1
    """rho: weight of the target set's mean loss, beside the mean weighted loss of the training set.
    U as written above has rho = N_m / N_t; more sharpens the target's likelihood, and the network
    then memorises a small target set."""
    temperature: float = 1e-3
    """Of the network's chain. 1 samples exp(-U); small networks then learn little in few steps (the
    cold-posterior effect); 0 is gradient descent."""
    weight_temperature: float = 0.05
    """Of the weights' chain. 1 samples exp(-U): weights are then so soft that the network learns
    wrong labels."""
    stiffness: float = 50.0
    """kappa = N / sigma^2. With ``keep``, the mean weight is off by threshold / kappa."""
    lr_weights: float = 1.0
    """Step size of the weights, for ``langevin`` and ``network``."""
    warm_up: float = 0.3
    """Share of the steps in which the network learns from the target set alone: the weights of the
    training set start from what the target says, not from what is easy to fit."""
    burn_in: float = 0.2
    """Share of the steps after which losses count in an example's mean loss. Less than the warm-up,
    so that the mean includes losses of a network that has not yet learned from any wrong label."""

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise OptionError(
                f"weighting={self.weighting!r}: expected one of {', '.join(WEIGHTINGS)}."
            )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise OptionError(f"keep={self.keep!r}: expected a share above 0 and up to 1.")
        for name in ("warm_up", "burn_in"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise OptionError(f"{name}={value!r}: expected 0 or more and less than 1.")
        for name in "meta_weight temperature stiffness lr_weights weight_temperature".split():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise OptionError(f"{name}={value!r}: expected a number, 0 or more.")


def plain(meta_weight: float = 0.1) -> Recipe:
    """Training on both sets, all weights 1 and no noise."""
    return Recipe(weighting="none", warm_up=0, temperature=0, meta_weight=meta_weight)


def energy(w: Tensor, losses: Tensor, keep: float, stiffness: float) -> Tensor:
    """The part of U that depends on w (N,): sum w l + kappa/(2N) (sum w - beta N)^2 (eq. 3).

    For tests and for reading; the sampler only uses its derivative.
    """
    n = len(w)
    return (w * losses).sum() + stiffness / (2 * n) * (w.sum() - keep * n).square()


# --- the chain of the network ---------------------------------------------------------------------


def samples(optimiser: torch.optim.Optimizer) -> bool:
    """Is a step of this optimiser with noise a Langevin step?"""
    return isinstance(optimiser, torch.optim.SGD) or type(optimiser) is torch.optim.Adam


@torch.no_grad()
def langevin_(
    optimiser: torch.optim.Optimizer, n: int, temperature: float, dice: torch.Generator
) -> None:
    """Add the noise that turns the step just made into a step of Langevin dynamics (eq. 10).

    For a loss that is a *mean* over a posterior of ``n`` points, the step eta G wants the noise
    sqrt(2 eta G T / n) xi. SGD: eta = lr/(1 - momentum), G = 1. Adam: eta = lr, G is what Adam
    divides by, for each parameter (preconditioned Langevin dynamics; the term with the derivative
    of G is left out, as G changes slowly). A parameter that the data hardly say anything of would
    drift without end: its noise is that of a tenth of its tensor's root mean square gradient, and
    one that never had a gradient, such as the embedding of a word that does not occur, has none.
    """
    if temperature == 0:
        return
    for group in optimiser.param_groups:
        adam = "betas" in group
        eta = group["lr"] if adam else group["lr"] / (1 - group.get("momentum", 0.0))
        scale = math.sqrt(2 * eta * temperature / n)
        for p in group["params"]:
            if p.grad is None:
                continue
            noise = torch.randn(p.shape, generator=dice, device=dice.device).to(p)
            if adam:
                moments = optimiser.state[p]
                square = moments["exp_avg_sq"] / (1 - group["betas"][1] ** int(moments["step"]))
                size = square.sqrt()
                least = 0.1 * square.mean().sqrt() + group["eps"]
                noise *= (size > 0) / size.maximum(least).sqrt()
            p.add_(noise, alpha=scale)


# --- the chain of the weights ---------------------------------------------------------------------


class WeightSampler:
    """Weights of N training examples while a network trains; for anybody's own loop.

        sampler = WeightSampler(len(train), Recipe(keep=0.6), steps=steps)
        for ids, batch in loader:                       # ids: 0 .. N-1, stable over epochs
            losses = loss(net(batch))                   # (B,), not reduced
            total = (sampler.step(ids, losses) * losses).mean() + 0.1 * target_losses.mean()
            total.backward(); optimiser.step(); optimiser.zero_grad()
        sampler.mean                                    # (N,) posterior means

    Memory: 32 bytes an example, on the CPU. With torch.distributed every process calls ``update``
    as often as the others; losses are gathered, and all make the same step.
    """

    def __init__(
        self,
        n: int,
        recipe: Recipe | None = None,
        *,
        steps: int | None = None,
        classes: int = 0,
        features: int = 0,
        seed: int = 0,
    ) -> None:
        """``n``: training examples. ``steps``: updates of the whole run, for the warm-up and the
        decay of the step size (None: neither). ``classes``: their number, where the loss is -log p
        of a class; 0 for any other loss. ``features``: d of the (B, d) features, for a weight
        network.
        """
        if n < 1:
            raise InputError("there are no training examples.")
        self.n, self.recipe, self.steps = n, recipe or Recipe(), steps
        self.keep = self.recipe.keep
        if self.keep is None and classes < 2:
            self.keep = UNKNOWN_KEEP
        self.guess = math.log(max(2, classes))
        self.temperature = max(self.recipe.weight_temperature, 1e-3)
        start = 0.5 if self.keep is None else self.keep
        self.weights: Weights
        self.amortised = self.recipe.weighting == "network"
        if self.recipe.weighting == "none":
            self.keep, start = 1.0, 1.0
        if self.amortised:
            if features < 1:
                raise InputError("weighting='network' needs features, the width of its input.")
            self.weights = WeightNetwork(features, start, self.temperature, seed=seed)
        elif self.recipe.weighting == "langevin":
            self.weights = LangevinWeights(n, start, self.recipe.weight_temperature)
        else:
            self.weights = ExactWeights(n, start, self.temperature)
        self.w = torch.full((n,), start)  # as last seen
        self.sum = float(self.w.double().sum())
        self.losses = torch.zeros(n)  # mean over the visits after the burn-in
        self.squares = torch.zeros(n)  # sum of squares around it (Welford)
        self.average = torch.zeros(n)  # of w, the same over visits after the warm-up
        self.averaged = torch.zeros(n, dtype=torch.int32)
        self.visits = torch.zeros(n, dtype=torch.int32)
        self.counted = torch.zeros(n, dtype=torch.int32)  # visits since the burn-in's end
        self.step_number = 0
        self.dice = torch.Generator().manual_seed(seed)
        self._seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    # what the network's step needs

    def weights_for(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """(B,) weights in [0, 1], detached, on the CPU."""
        return self.weights.now(self._ids(ids), None if features is None else features.cpu())

    @property
    def mean_weight(self) -> float:
        """Of all examples, as they are now."""
        return self.sum / self.n

    @property
    def threshold(self) -> float:
        """tau: in equilibrium, examples with a smaller loss are kept (eq. 4)."""
        if self.keep is None:
            return self.guess
        return self.recipe.stiffness * (self.keep - self.mean_weight)

    @property
    def warming(self) -> bool:
        """Does the network learn from the target alone in this step (eq. 9)?"""
        warm = 0.0 if self.steps is None else self.recipe.warm_up * self.steps
        return self.step_number < warm and self.recipe.meta_weight > 0

    def coefficients(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """(B,) what each loss counts in the batch's mean: the weight, in the warm-up nothing."""
        found = self.weights_for(ids, features)
        return torch.zeros_like(found) if self.warming else found

    # what the weights' step needs

    def observe(self, ids: Tensor, losses: Tensor, features: Tensor | None = None) -> None:
        """Remember the (B,) losses of a (micro-)batch for the next ``update``."""
        ids = self._ids(ids)
        if losses.shape != ids.shape:
            raise InputError(
                f"losses have shape {tuple(losses.shape)} for {len(ids)} examples: the loss must "
                "return one value for each example (reduction='none')."
            )
        losses = losses.detach().float().cpu()
        if not bool(losses.isfinite().all()):
            wrong = ids[~losses.isfinite()][:8].tolist()
            raise InputError(f"the loss of the examples {wrong} is not finite.")
        features = None if features is None else features.detach().float().cpu()
        self._seen.append((ids, losses, features))

    def update(self) -> None:
        """One step of the weights on all that was observed since the last, in all processes."""
        if not self._seen:
            raise InputError("update() without observe(): there is nothing to learn from.")
        ids = torch.cat([seen[0] for seen in self._seen])
        losses = torch.cat([seen[1] for seen in self._seen])
        rows = [seen[2] for seen in self._seen if seen[2] is not None]
        features = torch.cat(rows) if rows else None
        self._seen = []
        if together():
            ids, losses, features = _gathered(ids, losses, features)
        ids, losses, features = _unique(ids, losses, features)
        first = 0 if self.steps is None else math.ceil(self.recipe.burn_in * self.steps)
        if self.step_number == first:
            self.counted.zero_()  # the mean starts anew; until its next visit a row keeps the old
            self.squares.zero_()
        self.visits[ids] += 1
        self.counted[ids] += 1
        off = losses - self.losses[ids]
        self.losses[ids] += off / self.counted[ids]
        self.squares[ids] += off * (losses - self.losses[ids])
        step = self.recipe.lr_weights * self._decay()
        if self.recipe.weighting == "exact":
            z = self.losses[ids] - self.threshold  # at the mean loss: eq. 5
            self.weights.move(ids, features, z, step, self.dice)
        elif self.recipe.weighting != "none" and step > 0 and self.step_number >= first:
            self.weights.move(ids, features, losses - self.threshold, step, self.dice)
        after = self.weights.now(ids, features)
        self.sum += float((after.double() - self.w[ids].double()).sum())
        self.w[ids] = after
        if not self.warming:
            self.averaged[ids] += 1
            self.average[ids] += (after - self.average[ids]) / self.averaged[ids]
        self.step_number += 1
        if together() and self.step_number % 1000 == 0:
            self._require_equal()

    def step(self, ids: Tensor, losses: Tensor, features: Tensor | None = None) -> Tensor:
        """``coefficients`` for this batch on its device, then ``observe`` and ``update``."""
        found = self.coefficients(ids, features).to(losses)
        self.observe(ids, losses, features)
        self.update()
        return found

    def _ids(self, ids: Tensor) -> Tensor:
        ids = torch.as_tensor(ids).detach().cpu().long()
        if ids.ndim != 1 or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.n):
            raise InputError(
                f"ids: expected one number for each example of the batch, from 0 to {self.n - 1}, "
                "the same in every epoch."
            )
        return ids

    def _decay(self) -> float:
        """A cosine from 1 to 0 over ``steps``."""
        if self.steps is None:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, self.step_number / self.steps)))

    def _require_equal(self) -> None:
        """All processes hold the same weights, else their networks drift apart unseen."""
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        mine = torch.tensor([self.sum], dtype=torch.float64, device=device)
        low, high = mine.clone(), mine.clone()
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise RuntimeError(
                "the processes' weights differ: every process has to call update() as often as "
                "the others, on losses of the same steps."
            )

    # the posterior

    @property
    def mean(self) -> Tensor:
        """(N,) float32 in [0, 1]: posterior means (eq. 12). Never visited: the current weight.

        ``exact``: the mean of the conditional at the example's mean loss along the chain. Others:
        the mean of the weight over the visits after the warm-up.
        """
        if self.recipe.weighting == "exact":
            found = conditional_mean(self._z())
            return torch.where(self.visits > 0, found, self.w)
        return torch.where(self.averaged > 0, self.average, self.w).clamp(0, 1)

    @property
    def std(self) -> Tensor:
        """(N,) float32: posterior standard deviations (eq. 12), of ``exact`` weights; of others
        that of a weight that is 0 or 1 with this mean, the most that it can be."""
        mean = self.mean
        most = mean * (1 - mean)
        if self.recipe.weighting != "exact":
            return most.sqrt()
        within = conditional_variance(self._z())
        spread = self.squares / (self.counted - 1).clamp_min(1)  # of the loss along the chain
        total = within + (within / self.temperature).square() * spread
        return torch.minimum(total, most).sqrt()

    def _z(self) -> Tensor:
        return (self.losses - self._settled()) / self.temperature

    def _settled(self) -> float:
        """The threshold of what is published: with ``keep`` that at which the mean is just that,
        where the chain's would get with time."""
        if self.keep is None:
            return self.threshold
        low, high = float(self.losses.min()) - 1, float(self.losses.max()) + 1
        for _ in range(40):
            middle = (low + high) / 2
            mean = conditional_mean((self.losses - middle) / self.temperature).mean()
            low, high = (middle, high) if float(mean) < self.keep else (low, middle)
        return (low + high) / 2

    # checkpoints

    def state(self) -> dict[str, Tensor]:
        """All that is needed to continue identically, as tensors."""
        return {
            **{f"weights.{k}": v for k, v in self.weights.state().items()},
            **{name: getattr(self, name) for name in _KEPT},
            "sum": torch.tensor([self.sum], dtype=torch.float64),
            "counts": torch.tensor([self.step_number]),
            "dice": self.dice.get_state(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite; InputError where the number of examples differs."""
        if len(state["losses"]) != self.n:
            raise InputError(
                f"the checkpoint is for {len(state['losses'])} training examples, there are "
                f"{self.n} now. Start a new run, or use the data of the first run."
            )
        self.weights.restore(
            {k.removeprefix("weights."): v for k, v in state.items() if k.startswith("weights.")}
        )
        for name in _KEPT:
            setattr(self, name, state[name].clone())
        self.sum, self.step_number = float(state["sum"]), int(state["counts"])
        self.dice.set_state(state["dice"].clone())


_KEPT = ("w", "losses", "squares", "average", "averaged", "visits", "counted")


def together() -> bool:
    """Are there other processes to learn with?"""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _unique(
    ids: Tensor, losses: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the order of ids, those that came twice (a sampler's padding) averaged."""
    found, where = torch.unique(ids, return_inverse=True)
    if len(found) == len(ids):
        order = ids.argsort()
        return ids[order], losses[order], None if features is None else features[order]
    times = torch.zeros(len(found)).index_add_(0, where, torch.ones(len(ids)))
    summed = torch.zeros(len(found)).index_add_(0, where, losses)
    if features is not None:
        rows = torch.zeros(len(found), features.shape[1]).index_add_(0, where, features)
        features = rows / times[:, None]
    return found, summed / times, features


def _gathered(
    ids: Tensor, losses: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same of all processes; numbers of rows may differ."""
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    columns = [losses[:, None]] if features is None else [losses[:, None], features]
    rows = torch.cat([ids[:, None].double(), *(c.double() for c in columns)], 1).to(device)
    world = distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world)]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=device))
    longest = max(int(c) for c in counts)
    padded = torch.zeros(longest, rows.shape[1], dtype=torch.float64, device=device)
    padded[: len(rows)] = rows
    everyone = [torch.zeros_like(padded) for _ in range(world)]
    distributed.all_gather(everyone, padded)
    whole = torch.cat([p[: int(c)] for p, c in zip(everyone, counts, strict=True)]).cpu()
    gathered = None if features is None else whole[:, 2:].float()
    return whole[:, 0].long(), whole[:, 1].float(), gathered
