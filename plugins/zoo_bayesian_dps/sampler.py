"""The Bayesian model and its sampler (arXiv 2411.03768), eq. 1 to 11 of this plugin's README.md.

    p(theta, w | D_t, D_m)  is proportional to  p(D_m | theta) p(theta | w, D_t) p(w)

    U(theta, w) = sum_j l_j(theta)  [target set]  + sum_i w_i l_i(theta)  [training set, w in [0,1]]
                  + sum_g (sum_{i in g} w_i - beta_g N_g)^2 / (2 sigma_g^2)  [how much is kept]

The derivative by a weight is dU/dw_i = l_i(theta) + lambda_g, lambda_g = kappa (mean of w - beta_g)
with kappa = N_g / sigma_g^2 (eq. 4): a loss that is known already and a threshold. No second
derivative, no extra pass. One prior over all examples is the model's; one for each class or source
is ours (eq. 13).

The energy leaves open whether the prior of theta given w is normalised. ``drop`` takes U as it is:
an example with a high loss loses weight. ``contrast`` keeps the normaliser Z(w), whose derivative
is minus the expected loss under p(theta' | w, D_t): dU/dw_i = l_i(theta) - l_i(theta') + lambda_g,
with theta' a second chain that never sees the target set. An example then gains weight where the
target set lowers its loss, however hard it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from zoo.errors import InputError, OptionError

from .weights import FreeWeights, WeightNetwork, Weights

PARTITIONS = ("drop", "contrast")
WEIGHTINGS = ("logits", "network")
NORMALISE = ("target", "total", "none")


@dataclass(frozen=True)
class Recipe:
    """What is not data. The defaults are what the experiments in ``bench.py`` use."""

    keep: float = 0.7
    """beta: the share of the training set to keep, 0 < beta <= 1."""
    partition: str = "drop"
    weighting: str = "logits"
    normalise: str = "none"
    """What the weighted loss is divided by. Down-weighting also shrinks the gradient of the whole
    training set, so that training drifts to the target set alone. ``none``: as published;
    ``total``: by the mean weight; ``target``: by the mean weight of each group, times the group's
    share in the target set over its share in the training set, so that each group counts as in the
    target set."""
    meta_weight: float = 0.1
    """rho: weight of the target set's mean loss, beside the mean weighted loss of the training set.
    U as written above is rho = N_m / N_t; more tempers the target's likelihood, and a small target
    set is then learned by heart."""
    temperature: float = 0.01
    """Of the network's chain. 1 samples exp(-U); small networks then learn little in few steps (the
    cold-posterior effect); 0 is gradient descent."""
    stiffness: float = 50.0
    """kappa = N / sigma^2. The mean weight is off beta by threshold / kappa. 0 is a flat prior."""
    lr_weights: float = 1.0
    weight_temperature: float = 0.0
    """Of the weights' chain. 1 samples the posterior of w given the losses; 0 is its mode."""
    warm_up: float = 0.3
    """Share of the steps in which the weights do not move yet: the losses of a network that knows
    nothing say what is easy, not what is right."""
    burn_in: float = 0.6
    """Share of the steps after which weights are averaged."""

    def __post_init__(self) -> None:
        for name, known in (
            ("partition", PARTITIONS),
            ("weighting", WEIGHTINGS),
            ("normalise", NORMALISE),
        ):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}."
                )
        if not 0 < self.keep <= 1:
            raise OptionError(f"keep={self.keep!r}: expected a share above 0 and up to 1.")
        for name in ("warm_up", "burn_in"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(
                    f"{name}={getattr(self, name)!r}: expected 0 or more and less than 1."
                )
        for name in "meta_weight temperature stiffness lr_weights weight_temperature".split():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise OptionError(f"{name}={value!r}: expected a number, 0 or more.")


# --- the prior ------------------------------------------------------------------------------------


def budgets(keep: float, sizes: Tensor, shares: Tensor | None) -> Tensor:
    """beta_g (G,) with sum_g N_g beta_g = keep N, as near to the target's shares as that allows.

    ``sizes`` (G,) N_g; ``shares`` (G,) of the groups in the target set, or None: all alike. Groups
    that the target has more of than the training set are kept whole, the others pay for it. Eq. 13.
    """
    if shares is None:
        return torch.full_like(sizes, keep)
    ratio = shares / (sizes / sizes.sum()).clamp_min(1e-12)
    low, high = 0.0, 1e12
    for _ in range(200):  # water-filling: beta_g = min(1, c ratio_g)
        c = (low + high) / 2 if high < 1e12 else max(1.0, 2 * low)
        kept = float((sizes * (c * ratio).clamp_max(1)).sum() / sizes.sum())
        if kept >= keep or c > 1e9:
            high = c
        else:
            low = c
    return (high * ratio).clamp_max(1)


def energy(w: Tensor, losses: Tensor, groups: Tensor, kept: Tensor, stiffness: float) -> Tensor:
    """The part of U that depends on w (N,): sum w l + sum_g kappa/(2 N_g) (sum w - beta_g N_g)^2.

    For tests and for reading; the sampler only uses its derivative.
    """
    sizes = torch.bincount(groups, minlength=len(kept)).to(w)
    sums = torch.zeros(len(kept), dtype=w.dtype).index_add(0, groups, w)
    prior = stiffness / (2 * sizes) * (sums - kept.to(w) * sizes).square()
    return (w * losses).sum() + prior.sum()


# --- the chain of the network ---------------------------------------------------------------------


@torch.no_grad()
def langevin_(
    optimiser: torch.optim.Optimizer, n: int, temperature: float, dice: torch.Generator
) -> None:
    """Add the noise that turns the SGD step just made into a step of Langevin dynamics (eq. 8).

    For a loss that is a *mean* over a posterior of ``n`` points, the step eta = lr/(1 - momentum)
    wants the noise sqrt(2 eta T / n) xi. With Adam's steps it is no sample of that posterior: pass
    temperature 0.
    """
    if temperature == 0:
        return
    for group in optimiser.param_groups:
        eta = group["lr"] / (1 - group.get("momentum", 0.0))
        scale = math.sqrt(2 * eta * temperature / n)
        for p in group["params"]:
            if p.grad is not None:
                noise = torch.randn(p.shape, generator=dice, device=dice.device)
                p.add_(noise.to(p), alpha=scale)


# --- the chain of the weights ---------------------------------------------------------------------


class WeightSampler:
    """Weights of N training examples while a network trains; for anybody's own loop.

        sampler = WeightSampler(len(train), Recipe(keep=0.6), steps=steps)
        for ids, batch in loader:                       # ids: 0 .. N-1, stable over epochs
            losses = loss(net(batch))                   # (B,), not reduced
            total = (sampler.step(ids, losses) * losses).mean() + target_losses.mean()
            total.backward(); optimiser.step(); optimiser.zero_grad()
        sampler.mean                                    # (N,) posterior mean

    Memory: 24 bytes an example, on the CPU. With torch.distributed every process calls ``update``
    as often as the others; losses are gathered, and all make the same step.
    """

    def __init__(
        self,
        n: int,
        recipe: Recipe | None = None,
        *,
        steps: int | None = None,
        groups: Sequence[int] | Tensor | None = None,
        shares: Tensor | None = None,
        features: int = 0,
        seed: int = 0,
    ) -> None:
        """``steps``: updates to come, for the decay of the step size and the burn-in (None: neither
        decays, all count). ``groups`` (N,) numbers of classes or sources that each have a budget,
        ``shares`` (G,) of the groups in the target set. ``features``: width, for a weight network.
        """
        if n < 1:
            raise InputError("there are no training examples.")
        self.n, self.recipe, self.steps = n, recipe or Recipe(), steps
        self.groups = torch.zeros(n, dtype=torch.int32)
        if groups is not None:
            self.groups = torch.as_tensor(groups).to(torch.int32)
            if self.groups.shape != (n,) or int(self.groups.min()) < 0:
                raise InputError(f"groups: expected {n} numbers, one for each example, from 0.")
        count = int(self.groups.max()) + 1
        if shares is not None and len(shares) > count:
            count = len(shares)
        self.sizes = torch.bincount(self.groups, minlength=count).double()
        self.shares = None if shares is None else shares.double() / shares.double().sum()
        self.kept = budgets(self.recipe.keep, self.sizes, self.shares)
        start = self.kept[self.groups].float()
        self.weights: Weights
        self.amortised = self.recipe.weighting == "network"
        if self.amortised:
            if features < 1:
                raise InputError("weighting='network' needs features, the width of its input.")
            self.weights = WeightNetwork(features, self.recipe.keep, seed=seed)
        else:
            self.weights = FreeWeights(start)
        self.w = start.clone() if self.amortised else None  # last seen, of a weight network
        at_first = start if self.amortised else self.weights.now(torch.arange(n), None)
        self.sums = torch.zeros(count, dtype=torch.float64)
        self.sums.index_add_(0, self.groups, at_first.double())
        self.average = torch.zeros(n)  # Welford's, over the steps after burn-in
        self.spread = torch.zeros(n)
        self.averaged = 0
        self.losses = torch.zeros(n)  # running mean of what was seen
        self.visits = torch.zeros(n, dtype=torch.int32)
        self.step_number = 0
        self.dice = torch.Generator().manual_seed(seed)
        self._seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    # what the network's step needs

    def weights_for(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """(B,) weights in (0, 1), detached, on the CPU."""
        return self.weights.now(self._ids(ids), None if features is None else features.cpu())

    @property
    def means(self) -> Tensor:
        """(G,) mean weight of each group."""
        return self.sums / self.sizes.clamp_min(1)

    @property
    def thresholds(self) -> Tensor:
        """lambda_g (G,). In equilibrium, losses below -lambda_g are kept in group g."""
        return self.recipe.stiffness * (self.means - self.kept)

    def coefficients(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """(B,) what each loss counts in the batch's mean: the weight, normalised (eq. 7)."""
        w = self.weights_for(ids, features)
        if self.recipe.normalise == "none":
            return w
        mean = (self.sums.sum() / self.n).clamp_min(1e-3)
        if self.recipe.normalise == "total" or len(self.sizes) == 1:
            return w / mean.float()
        present = self.sizes / self.n
        wanted = present if self.shares is None else self.shares
        factor = wanted / (present * self.means).clamp_min(1e-6)
        return w * factor[self.groups[self._ids(ids)]].float()

    # what the weights' step needs

    def observe(
        self,
        ids: Tensor,
        losses: Tensor,
        prior_losses: Tensor | None = None,
        features: Tensor | None = None,
    ) -> None:
        """Remember the (B,) losses of a (micro-)batch for the next ``update``.

        ``prior_losses``: the same examples under theta', for ``contrast``.
        """
        ids = self._ids(ids)
        if losses.shape != ids.shape:
            raise InputError(
                f"losses have shape {tuple(losses.shape)} for {len(ids)} examples: the loss must "
                "return one value for each example (reduction='none')."
            )
        losses = losses.detach().float().cpu()
        drive = losses
        if self.recipe.partition == "contrast":
            if prior_losses is None:
                raise InputError("partition='contrast' needs prior_losses, of the second chain.")
            drive = losses - prior_losses.detach().float().cpu()
        # Where drive is finite, losses are: infinite ones make it infinite or NaN.
        if not bool(drive.isfinite().all()):
            wrong = ids[~drive.isfinite()][:8].tolist()
            raise InputError(f"the loss of the examples {wrong} is not finite.")
        features = None if features is None else features.detach().float().cpu()
        self._seen.append((ids, torch.stack([drive, losses]), features))

    def update(self) -> None:
        """One step of the weights on all that was observed since the last, in all processes."""
        if not self._seen:
            raise InputError("update() without observe(): there is nothing to learn from.")
        ids = torch.cat([seen[0] for seen in self._seen])
        values = torch.cat([seen[1] for seen in self._seen], 1)
        rows = [seen[2] for seen in self._seen if seen[2] is not None]
        features = torch.cat(rows) if rows else None
        self._seen = []
        if together():
            ids, values, features = _gathered(ids, values, features)
        ids, values, features = _unique(ids, values, features)
        drive, losses = values
        groups = self.groups[ids]
        before = self._current(ids)
        lr = self.recipe.lr_weights * self._decay()
        if lr > 0:
            gradient = drive + self.thresholds[groups].float()
            self.weights.move(
                ids, features, gradient, lr, self.recipe.weight_temperature, self.dice
            )
        after = self.weights.now(ids, features)
        if self.w is not None:
            self.w[ids] = after
        self.sums.index_add_(0, groups, (after.double() - before.double()))
        self.visits[ids] += 1
        self.losses[ids] += (losses - self.losses[ids]) / self.visits[ids]
        self.step_number += 1
        self._average()
        if together() and self.step_number % 1000 == 0:
            self._require_equal()

    def step(
        self,
        ids: Tensor,
        losses: Tensor,
        prior_losses: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """``coefficients`` for this batch on its device, then ``observe`` and ``update``."""
        found = self.coefficients(ids, features).to(losses)
        self.observe(ids, losses, prior_losses, features)
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

    def _current(self, ids: Tensor) -> Tensor:
        """The weights that ``sums`` counts."""
        return self.w[ids] if self.w is not None else self.weights.now(ids, None)

    def _decay(self) -> float:
        """Nothing in the warm-up, then a cosine to 0 over the rest of ``steps`` (eq. 10)."""
        if self.steps is None:
            return 1.0
        first = self.recipe.warm_up * self.steps
        if self.step_number < first:
            return 0.0
        done = (self.step_number - first) / (self.steps - first)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def _average(self) -> None:
        """After the burn-in, every 20th step (of few steps, each) counts (eq. 11)."""
        every = 20 if self.steps is None else max(1, min(20, self.steps // 40))
        first = 0 if self.steps is None else self.recipe.burn_in * self.steps
        if self.step_number < first or self.step_number % every:
            return
        now = self._current(torch.arange(self.n))
        self.averaged += 1
        off = now - self.average
        self.average += off / self.averaged
        self.spread += off * (now - self.average)

    def _require_equal(self) -> None:
        """All processes hold the same weights, else their networks drift apart unseen."""
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        mine = torch.tensor([float(self.sums.sum())], dtype=torch.float64, device=device)
        low, high = mine.clone(), mine.clone()
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise RuntimeError("the processes' weights differ: were some updates left out in one?")

    # the posterior

    @property
    def mean(self) -> Tensor:
        """(N,) float32 in [0, 1]: posterior mean, before the burn-in's end the current weights."""
        if not self.averaged:
            return self._current(torch.arange(self.n)).clone()
        return self.average.clamp(0, 1)

    @property
    def std(self) -> Tensor:
        """(N,) float32: spread of the weight over the averaged steps."""
        return (self.spread / max(1, self.averaged - 1)).clamp_min(0).sqrt()

    # checkpoints

    def state(self) -> dict[str, Tensor]:
        """Everything that an identical continuation needs, as tensors."""
        return {
            **{f"weights.{k}": v for k, v in self.weights.state().items()},
            **({} if self.w is None else {"w": self.w}),
            "sums": self.sums,
            "average": self.average,
            "spread": self.spread,
            "losses": self.losses,
            "visits": self.visits,
            "counts": torch.tensor([self.step_number, self.averaged]),
            "dice": self.dice.get_state(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite; InputError where the number of examples differs."""
        if len(state["average"]) != self.n:
            raise InputError(
                f"the checkpoint is of {len(state['average'])} training examples, there are "
                f"{self.n} now. Start anew, or bring back the data of the first run."
            )
        self.weights.restore(
            {k.removeprefix("weights."): v for k, v in state.items() if k.startswith("weights.")}
        )
        if self.w is not None:
            self.w = state["w"].clone()
        self.sums, self.average = state["sums"].clone(), state["average"].clone()
        self.spread, self.losses = state["spread"].clone(), state["losses"].clone()
        self.visits = state["visits"].clone()
        self.step_number, self.averaged = state["counts"].tolist()
        self.dice.set_state(state["dice"].clone())


def together() -> bool:
    """Are there other processes to learn with?"""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _unique(
    ids: Tensor, values: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the order of ids, those that came twice (a sampler's padding) averaged."""
    found, where = torch.unique(ids, return_inverse=True)
    if len(found) == len(ids):
        order = ids.argsort()
        return ids[order], values[:, order], None if features is None else features[order]
    times = torch.zeros(len(found)).index_add_(0, where, torch.ones(len(ids)))
    summed = torch.zeros(len(values), len(found)).index_add_(1, where, values)
    if features is not None:
        rows = torch.zeros(len(found), features.shape[1]).index_add_(0, where, features)
        features = rows / times[:, None]
    return found, summed / times, features


def _gathered(
    ids: Tensor, values: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same of all processes; numbers of rows may differ."""
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    columns = [values.T] if features is None else [values.T, features]
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
    k = 1 + len(values)
    gathered = None if features is None else whole[:, k:].float()
    return whole[:, 0].long(), whole[:, 1:k].T.float().contiguous(), gathered
