"""What the method is measured against, in one loop with it: same network, batches, steps, target.

Every method except ``uniform`` and ``target only`` trains on the training and on the target batch,
the target's mean loss weighted by the same rho. The bi-level ones are written from their papers'
equations with torch.func, so that any module works.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .joint import Joint
from .sampler import Recipe, WeightSampler


@dataclass
class Task:
    """One experiment: data as tensors, a network, a loss, and how long to train."""

    x: Tensor
    y: Tensor
    target_x: Tensor
    target_y: Tensor
    test_x: Tensor
    test_y: Tensor
    good: Tensor
    """(N,) bool: what a method should find (clean, of a rare class, of the target's domain)."""
    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    """(output, y) -> (B,)."""
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
    augment: Callable[[Tensor, torch.Generator], Tensor] = lambda x, dice: x
    steps: int = 500
    batch: int = 64
    target_batch: int = 16
    rho: float = 0.1
    keep: float = 0.6
    """Share to keep, known to every method that needs it."""
    groups: Tensor | None = None
    """(N,) classes or sources with a budget of their own, for the variants that use it."""
    shares: Tensor | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """What a method leaves."""

    net: nn.Module
    weights: Tensor | None
    """(N,) or None where a method gives none."""
    seconds: float
    """CPU-seconds."""


Method = Callable[[Task, int], Run]
"""(task, seed) -> run."""


def rows_of(n: int, batch: int, steps: int, dice: torch.Generator) -> list[Tensor]:
    """Indices for each step: epochs without the incomplete last batch."""
    batch = min(batch, n)
    found: list[Tensor] = []
    while len(found) < steps:
        found += [r for r in torch.randperm(n, generator=dice).split(batch) if len(r) == batch]
    return found[:steps]


def start(task: Task, seed: int) -> nn.Module:
    """The network with the seed's first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build()


def sampled(
    task: Task,
    seed: int,
    recipe: Recipe,
    *,
    groups: Tensor | None = None,
    shares: Tensor | None = None,
    rows: Tensor | None = None,
    target: bool = True,
    steps: int | None = None,
) -> Run:
    """The method itself; with lr_weights=0 it is plain training. ``rows``: part of the set."""
    net, steps = start(task, seed), steps or task.steps
    dice = torch.Generator().manual_seed(seed)
    n = len(task.x) if rows is None else len(rows)
    sampler = WeightSampler(
        len(task.x), recipe, steps=steps, groups=groups, shares=shares, seed=seed
    )

    def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        return task.loss(net(batch[0]), batch[1]), None

    joint = Joint(net, loss_of, sampler, task.optimiser, seed=seed)
    mine = rows_of(n, task.batch, steps, dice)
    theirs = rows_of(len(task.target_x), task.target_batch, steps, dice)
    began = time.process_time()
    for ids, others in zip(mine, theirs, strict=True):
        ids = ids if rows is None else rows[ids]
        others = others if target else others[:0]
        x = torch.cat([task.x[ids], task.target_x[others]])
        y = torch.cat([task.y[ids], task.target_y[others]])
        joint.step(ids, [task.augment(x, dice), y], len(others))
    weights = sampler.mean if recipe.lr_weights else None
    return Run(net.eval(), weights, time.process_time() - began)


def plain(task: Task) -> Recipe:
    """All weights 1, no noise: SGD on the training and the target batch."""
    return Recipe(keep=1, lr_weights=0, temperature=0, normalise="none", meta_weight=task.rho)


def uniform(task: Task, seed: int) -> Run:
    """Plain training on the training set alone."""
    return sampled(task, seed, plain(task), target=False)


def mixing(task: Task, seed: int) -> Run:
    """Plain training on both sets."""
    return sampled(task, seed, plain(task))


def mixing_longer(task: Task, seed: int) -> Run:
    """The same for twice the steps, as long as selecting and retraining takes."""
    return sampled(task, seed, plain(task), steps=2 * task.steps)


def random_subset(task: Task, seed: int) -> Run:
    """As many examples as are kept, at random, and the target set."""
    dice = torch.Generator().manual_seed(seed + 1)
    rows = torch.randperm(len(task.x), generator=dice)[: round(task.keep * len(task.x))]
    return sampled(task, seed, plain(task), rows=rows)


def oracle(task: Task, seed: int) -> Run:
    """What is to be found, and the target set: how much there is to gain."""
    return sampled(task, seed, plain(task), rows=task.good.nonzero()[:, 0])


def class_weights(task: Task, seed: int) -> Run:
    """Each class counts as in the target set: for imbalance, where one knows it is that."""
    recipe = Recipe(keep=1, lr_weights=0, temperature=0, normalise="target", meta_weight=task.rho)
    return sampled(task, seed, recipe, groups=task.groups, shares=task.shares)


def retrained(recipe: Recipe, share: float, by_group: bool = False) -> Method:
    """The method, then plain training from the start on the heaviest examples and the target."""

    def run(task: Task, seed: int) -> Run:
        groups, shares = (task.groups, task.shares) if by_group else (None, None)
        found = sampled(task, seed, recipe, groups=groups, shares=shares)
        assert found.weights is not None
        order = found.weights.argsort(descending=True, stable=True)
        rows = order[: round(share * len(order))]
        again = sampled(task, seed, plain(task), rows=rows)
        return Run(again.net, found.weights, found.seconds + again.seconds)

    return run


def target_only(task: Task, seed: int) -> Run:
    """Plain training on the target set."""
    return _loop(task, seed, lambda *_: torch.zeros(len(_[1])), rho=1.0)


def small_loss(task: Task, seed: int) -> Run:
    """The share ``keep`` of each batch with the smallest loss, after the same warm-up as ours.

    Its weight of an example: how often it was kept when it was seen.
    """
    seen, kept = torch.zeros(len(task.x)), torch.zeros(len(task.x))
    warm = Recipe().warm_up * task.steps

    def rule(step: int, ids: Tensor, losses: Tensor) -> Tensor:
        if step < warm:
            return torch.ones(len(ids))
        count = max(1, round(task.keep * len(ids)))
        chosen = torch.zeros(len(ids))
        chosen[losses.argsort()[:count]] = len(ids) / count
        seen[ids] += 1
        kept[ids] += chosen.bool().float()
        return chosen

    run = _loop(task, seed, rule)
    return Run(run.net, kept / seen.clamp_min(1), run.seconds)


def _loop(
    task: Task, seed: int, rule: Callable[[int, Tensor, Tensor], Tensor], rho: float | None = None
) -> Run:
    """Training with a rule that says what each loss of the batch counts."""
    net, dice = start(task, seed), torch.Generator().manual_seed(seed)
    optimiser = task.optimiser(list(net.parameters()))
    mine = rows_of(len(task.x), task.batch, task.steps, dice)
    theirs = rows_of(len(task.target_x), task.target_batch, task.steps, dice)
    began = time.process_time()
    for step, (ids, others) in enumerate(zip(mine, theirs, strict=True)):
        ids = ids[:0] if rho is not None else ids
        x = torch.cat([task.x[ids], task.target_x[others]])
        y = torch.cat([task.y[ids], task.target_y[others]])
        losses = task.loss(net(task.augment(x, dice)), y)
        total = (task.rho if rho is None else rho) * losses[len(ids) :].mean()
        if len(ids):
            total = (
                total + (rule(step, ids, losses[: len(ids)].detach()) * losses[: len(ids)]).mean()
            )
        _descend(optimiser, total, step, task.steps)
    return Run(net.eval(), None, time.process_time() - began)


def _descend(optimiser: torch.optim.Optimizer, total: Tensor, step: int, steps: int) -> None:
    """A step with the cosine schedule that all methods have."""
    for group in optimiser.param_groups:
        group.setdefault("first_lr", group["lr"])
        group["lr"] = group["first_lr"] * 0.5 * (1 + math.cos(math.pi * step / steps))
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    optimiser.step()


# --- bi-level -------------------------------------------------------------------------------------


class Unrolled(abc.ABC):
    """One step of training is unrolled, and the target's loss after it is differentiated by the
    weights: theta' = theta - eta grad (1/B) sum w_i l_i, then dL_target(theta')/dw. Second order.
    """

    def __init__(self, task: Task, net: nn.Module) -> None:
        self.task, self.net = task, net
        self.optimiser = task.optimiser(list(net.parameters()))

    @abc.abstractmethod
    def weights(self, losses: Tensor, ids: Tensor) -> Tensor:
        """(B,) with a graph to what is learned."""

    @abc.abstractmethod
    def learn(self, meta: Tensor, ids: Tensor) -> None:
        """Move what the weights come from down the target's loss."""

    def step(self, step: int, ids: Tensor, batch: tuple[Tensor, ...]) -> None:
        """``batch``: x, y of the training rows, x, y of the target rows."""
        x, y, target_x, target_y = batch
        params: dict[str, Tensor] = dict(self.net.named_parameters())
        losses = self.task.loss(functional_call(self.net, params, (x,)), y)
        inner = (self.weights(losses, ids) * losses).mean()
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        eta = self.optimiser.param_groups[0]["lr"]
        moved = {k: p - eta * g for (k, p), g in zip(params.items(), grads, strict=True)}
        meta = self.task.loss(functional_call(self.net, moved, (target_x,)), target_y).mean()
        self.learn(meta, ids)
        losses = self.task.loss(self.net(torch.cat([x, target_x])), torch.cat([y, target_y]))
        b = len(x)
        with torch.no_grad():
            w = self.weights(losses[:b], ids)
        total = (w * losses[:b]).mean() + self.task.rho * losses[b:].mean()
        _descend(self.optimiser, total, step, self.task.steps)

    def run(self, seed: int) -> Run:
        """All steps."""
        task, dice = self.task, torch.Generator().manual_seed(seed)
        mine = rows_of(len(task.x), task.batch, task.steps, dice)
        theirs = rows_of(len(task.target_x), task.target_batch, task.steps, dice)
        began = time.process_time()
        for step, (ids, others) in enumerate(zip(mine, theirs, strict=True)):
            x = task.augment(torch.cat([task.x[ids], task.target_x[others]]), dice)
            b = len(ids)
            self.step(step, ids, (x[:b], task.y[ids], x[b:], task.target_y[others]))
        return Run(self.net.eval(), self.final(), time.process_time() - began)

    @abc.abstractmethod
    def final(self) -> Tensor:
        """(N,) weights at the end."""


class FreeLogits(Unrolled):
    """One logit for each example, as ours."""

    def __init__(self, task: Task, net: nn.Module, lr: float = 10.0) -> None:
        super().__init__(task, net)
        self.lr = lr
        self.a = torch.full((len(task.x),), math.log(task.keep / (1 - task.keep)))
        self.now = self.a[:0]

    def weights(self, losses: Tensor, ids: Tensor) -> Tensor:
        self.now = self.a[ids].requires_grad_(torch.is_grad_enabled())
        return self.now.sigmoid()

    def learn(self, meta: Tensor, ids: Tensor) -> None:
        (gradient,) = torch.autograd.grad(meta, self.now)
        self.a[ids] = (self.a[ids] - self.lr * gradient).clamp(-6, 6)

    def final(self) -> Tensor:
        return self.a.sigmoid()


class MetaWeightNet(Unrolled):
    """Shu et al., NeurIPS 2019: an MLP from loss to weight, normalised over the batch."""

    def __init__(self, task: Task, net: nn.Module) -> None:
        super().__init__(task, net)
        self.mlp = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
        self.adam = torch.optim.Adam(self.mlp.parameters(), lr=1e-3, weight_decay=1e-4)
        self.last = torch.zeros(len(task.x))

    def weights(self, losses: Tensor, ids: Tensor) -> Tensor:
        w: Tensor = self.mlp(losses.detach()[:, None])[:, 0]
        if not torch.is_grad_enabled():
            self.last[ids] = w
        return w * len(w) / w.sum().clamp_min(1e-6)

    def learn(self, meta: Tensor, ids: Tensor) -> None:
        self.adam.zero_grad()
        parameters = list(self.mlp.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(meta, parameters), strict=True):
            p.grad = gradient
        self.adam.step()

    def final(self) -> Tensor:
        return self.last


def bilevel(task: Task, seed: int) -> Run:
    """One-step unrolled, a logit for each example."""
    return FreeLogits(task, start(task, seed)).run(seed)


def meta_weight_net(task: Task, seed: int) -> Run:
    """One-step unrolled, a network from loss to weight."""
    net = start(task, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MetaWeightNet(task, net)
    return made.run(seed)
