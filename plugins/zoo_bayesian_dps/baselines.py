"""What the method is measured against: the same network and steps, or what people use instead.

Each method takes a task and a seed and gives scores of the training rows (more is better), right
answers on the test set, or both. Those of libraries see the rows flat and standardised, with the
strength of the penalty chosen by cross-validation on the labels as given.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from .issues import wrong
from .joint import Joint, adam, rate
from .sampler import Recipe, WeightSampler, plain
from .trusted import Learner, agreeing, teaches_less

BATCH, TARGET_BATCH, EPOCHS, STEPS = 64, 16, 10, 300


@dataclass(eq=False)
class Task:
    """One experiment: rows as tensors, and a network."""

    x: Tensor
    y: Tensor
    target_x: Tensor
    target_y: Tensor
    test_x: Tensor
    test_y: Tensor
    good: Tensor
    """(N,) bool: what is to be found (a right label, a rare class, a row of the target's kind)."""
    build: Callable[[], nn.Module]
    classes: int = 10

    def loss(self, net: Callable[..., Any], batch: Any) -> Tensor:
        """(B,) cross-entropy."""
        return functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


@dataclass
class Run:
    """What a method leaves."""

    scores: Tensor | None = None
    """(N,), more is better."""
    predicted: Tensor | None = None
    """(M,) classes of the test rows."""
    seconds: float = 0.0
    """CPU-seconds."""
    sampler: WeightSampler | None = None


Method = Callable[[Task, int], Run]
Loss = Callable[[Callable[..., Any], Any], Tensor]
"""(network, batch) -> losses (B,)."""


def start(task: Task, seed: int) -> nn.Module:
    """The network with the seed's first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build()


def sampled(task: Task, seed: int, recipe: Recipe, factors: Tensor | None = None) -> Run:
    """The method itself as ``fit`` runs it, or plain training (``sampler.plain``).

    ``factors`` (N,): what each row's loss counts, for class weights.
    """
    began = time.process_time()
    net, n = start(task, seed), len(task.x)
    dice = torch.Generator().manual_seed(seed)
    steps = max(EPOCHS * math.ceil(n / BATCH), STEPS)
    sampler = WeightSampler(n, recipe, steps=steps, classes=task.classes, seed=seed)
    scale = torch.ones(n) if factors is None else factors
    now = torch.empty(0, dtype=torch.long)

    def losses(net: nn.Module, batch: Any) -> Tensor:
        return task.loss(net, batch) * torch.cat([scale[now], torch.ones(len(batch[0]) - len(now))])

    joint = None
    while sampler.step_number < steps:
        for now in torch.randperm(n, generator=dice).split(BATCH):
            others = torch.randint(len(task.target_x), (TARGET_BATCH,), generator=dice)
            batch = [torch.cat([task.x[now], task.target_x[others]]),
                     torch.cat([task.y[now], task.target_y[others]])]  # fmt: skip
            if joint is None:
                made = adam(rate(net, losses, batch))
                joint = Joint(net, lambda n, b: (losses(n, b), None), sampler, made, seed=seed)
            joint.step(now, batch, len(others))
    found = None if recipe.weighting == "none" else sampler.mean
    return Run(found, answers(net, task), time.process_time() - began, sampler)


def answers(net: nn.Module, task: Task) -> Tensor:
    """Classes that a network gives the test rows."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in task.test_x.split(500)]).argmax(1)


def learner(task: Task, seed: int) -> Learner:
    """As ``fit`` makes it, of the rows of the training set, then of the target set."""
    x, y = torch.cat([task.x, task.target_x]), torch.cat([task.y, task.target_y])
    net = start(task, seed)
    return Learner(
        net, lambda n, b: (task.loss(n, b), None),
        adam(rate(net, task.loss, [x[:BATCH], y[:BATCH]])),
        lambda ids: [x[ids], y[ids]], lambda n, b: n(b[0]), BATCH, seed,
    )  # fmt: skip


def ours(**changes: Any) -> Method:
    """The method at its defaults, but for these."""

    def run(task: Task, seed: int) -> Run:
        began, n, m = time.process_time(), len(task.x), len(task.target_x)
        recipe = Recipe(**changes)
        if recipe.warm_up and teaches_less(
            learner(task, seed), torch.arange(n), torch.arange(n, n + m), task.target_y
        ):
            recipe = replace(recipe, warm_up=0.0)
        found = sampled(task, seed, recipe)
        return replace(found, seconds=time.process_time() - began)

    return run


def mixing(task: Task, seed: int) -> Run:
    """Plain training on both sets."""
    return sampled(task, seed, plain())


def without_target(task: Task, seed: int) -> Run:
    """The method with no trusted rows: those that agree out of fold take their place."""
    began = time.process_time()
    rows = agreeing(learner(task, seed).out_of_fold(torch.arange(len(task.x))), task.y)
    changed = Task(**{**vars(task), "target_x": task.x[rows], "target_y": task.y[rows]})
    run = sampled(changed, seed, Recipe())
    return Run(run.scores, run.predicted, time.process_time() - began, run.sampler)


def class_weights(task: Task, seed: int) -> Run:
    """Plain training in which each class counts as often as any other."""
    counts = torch.bincount(task.y, minlength=task.classes).float()
    return sampled(task, seed, plain(), (len(task.y) / task.classes / counts.clamp_min(1))[task.y])


def logit_adjustment(task: Task, seed: int) -> Run:
    """Plain training of logits to which the log of each class's share is added (Menon et al.,
    2021)."""
    counts = torch.bincount(task.y, minlength=task.classes).float()
    prior = (counts / counts.sum()).clamp_min(1e-6).log()

    class Adjusted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.build()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x)
            return found + prior if self.training else found

    return sampled(Task(**{**vars(task), "build": Adjusted}), seed, plain())


# --- libraries ------------------------------------------------------------------------------------


def _flat(task: Task) -> tuple[np.ndarray, ...]:
    x = task.x.flatten(1)
    mean, std = x.mean(0), x.std(0) + 1e-6
    return tuple(
        ((part.flatten(1) - mean) / std).numpy() for part in (task.x, task.target_x, task.test_x)
    )


def _logistic(x: np.ndarray, y: np.ndarray) -> Any:
    """Logistic regression with the penalty that predicts best out of fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(LogisticRegression(max_iter=100), {"C": [1e-4, 1e-3, 1e-2, 1e-1]}, cv=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: as good as it needs to be
        return search.fit(x, y).best_estimator_


def target_only(task: Task, seed: int) -> Run:
    """Logistic regression on the target rows; its loss on the training rows."""
    began = time.process_time()
    x, target, test = _flat(task)
    model = _logistic(target, task.target_y.numpy())
    logs = np.full((len(x), task.classes), -30.0)
    logs[:, model.classes_] = model.predict_log_proba(x)
    scores = torch.from_numpy(logs)[torch.arange(len(x)), task.y]
    predicted = torch.from_numpy(model.predict(test))
    return Run(scores, predicted, time.process_time() - began)


def cleanlab(task: Task, seed: int) -> Run:
    """cleanlab's label quality from out-of-fold logistic regression; then trained on the rows that
    it does not call issues, and on the target."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    began = time.process_time()
    x, target, test = _flat(task)
    y = task.y.numpy()
    model = _logistic(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        p = cross_val_predict(clone(model), x, y, cv=folds, method="predict_proba")
        kept = ~find_label_issues(y, p)
        model.fit(np.concatenate([x[kept], target]), np.concatenate([y[kept], task.target_y]))
    scores = torch.from_numpy(get_label_quality_scores(y, p))
    return Run(scores, torch.from_numpy(model.predict(test)), time.process_time() - began)


def neighbours(task: Task, seed: int) -> Run:
    """How many of the ten nearest other training rows have the same label."""
    from sklearn.neighbors import NearestNeighbors

    began = time.process_time()
    x, _, _ = _flat(task)
    near = NearestNeighbors(n_neighbors=11).fit(x).kneighbors(x, return_distance=False)[:, 1:]
    same = (task.y[torch.from_numpy(near)] == task.y[:, None]).float().mean(1)
    return Run(same, None, time.process_time() - began)


def knn_shapley(task: Task, seed: int, k: int = 10) -> Run:
    """The Shapley value of each training row for k nearest neighbours on the target rows, in closed
    form (Jia et al., 2019)."""
    began = time.process_time()
    x, target, _ = (torch.from_numpy(part) for part in _flat(task))
    order = torch.cdist(target, x).argsort(1)
    same = (task.y[order] == task.target_y[:, None]).double()
    n = len(x)
    rank = torch.arange(1, n, dtype=torch.float64)
    steps = (same[:, :-1] - same[:, 1:]) / k * rank.clamp_max(k) / rank
    last = same[:, -1:] / n
    values = torch.cat([steps.flip(1).cumsum(1).flip(1) + last, last], 1)
    found = torch.zeros(len(target), n, dtype=torch.float64).scatter_(1, order, values)
    return Run(found.mean(0), None, time.process_time() - began)


def against_target(task: Task, seed: int) -> Run:
    """Logistic regression that tells target rows from training rows: how much like the target."""
    from sklearn.linear_model import LogisticRegression

    began = time.process_time()
    x, target, _ = _flat(task)
    both = np.concatenate([x, target])
    which = np.repeat([0, 1], [len(x), len(target)])
    model = LogisticRegression(C=1e-4, max_iter=200, class_weight="balanced").fit(both, which)
    return Run(torch.from_numpy(model.decision_function(x)), None, time.process_time() - began)


# --- the step of a bi-level method ----------------------------------------------------------------


class Unrolled:
    """One step of training is unrolled, and the target's loss after it is differentiated by a logit
    for each row: theta' = theta - eta grad (1/B) sum w_i l_i, then dL_target(theta')/da."""

    def __init__(
        self, loss: Loss, net: nn.Module, n: int, lr: float = 10.0, eta: float = 0.02
    ) -> None:
        """``n``: training rows."""
        self.loss, self.net, self.lr, self.eta = loss, net, lr, eta
        self.a = torch.zeros(n)
        self.optimiser = torch.optim.SGD(net.parameters(), lr=eta, momentum=0.9)

    def gradient(self, ids: Tensor, batch: Any, target: Any) -> Tensor:
        """dL_target(theta')/da of the rows ``ids``."""
        params: dict[str, Tensor] = {
            k: p for k, p in self.net.named_parameters() if p.requires_grad
        }
        a = self.a[ids].requires_grad_()

        def loss(params: dict[str, Tensor], part: Any) -> Tensor:
            return self.loss(lambda *x, **xs: functional_call(self.net, params, x, xs), part)

        inner = (a.sigmoid() * loss(params, batch)).mean()
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        moved = {k: p - self.eta * g for (k, p), g in zip(params.items(), grads, strict=True)}
        (found,) = torch.autograd.grad(loss(moved, target).mean(), a)
        return found

    def step(self, ids: Tensor, batch: Any, target: Any) -> None:
        """One step of the logits, one of the network on both batches."""
        self.a[ids] -= self.lr * self.gradient(ids, batch, target)
        self.optimiser.zero_grad()
        w = self.a[ids].sigmoid()
        losses = (w * self.loss(self.net, batch)).mean()
        (losses + 0.1 * self.loss(self.net, target).mean()).backward()
        self.optimiser.step()


def bilevel(task: Task, seed: int) -> Run:
    """As many steps of it as the method makes."""
    began = time.process_time()
    made = Unrolled(task.loss, start(task, seed), len(task.x))
    dice = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for ids in torch.randperm(len(task.x), generator=dice).split(BATCH):
            others = torch.randint(len(task.target_x), (TARGET_BATCH,), generator=dice)
            made.step(ids, (task.x[ids], task.y[ids]),
                      (task.target_x[others], task.target_y[others]))  # fmt: skip
    return Run(made.a, answers(made.net, task), time.process_time() - began)


# --- what is measured -----------------------------------------------------------------------------


def auroc(scores: Tensor, good: Tensor) -> float:
    """Per cent of pairs (good, other) in which the good one has more; ties count half."""
    values, where = torch.unique(scores.double(), return_inverse=True)
    counts = torch.bincount(where, minlength=len(values)).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[where]
    a, b = int(good.sum()), int((~good).sum())
    return 100 * float((ranks[good].sum() - a * (a + 1) / 2) / (a * b))


def calibration(sampler: WeightSampler, good: Tensor) -> tuple[float, float, float]:
    """Of the weights as statements on the labels: squared error over stated variance, 1 where the
    spread is honest. Of the probabilities that labels are wrong: their expected calibration error
    in per cent, ten bins; and their sum, in per cent of the rows that are wrong."""
    truth, mean = good.double(), sampler.mean.double()
    ratio = float((mean - truth).square().mean() / sampler.std.double().square().mean())
    p = wrong(sampler.losses, round(math.exp(sampler.guess))).double()
    bins = (p * 10).long().clamp_max(9)
    error = sum(abs(float((p[bins == b] - 1 + truth[bins == b]).sum())) for b in range(10)) / len(p)
    return ratio, 100 * error, 100 * float(p.sum() / (~good).sum().clamp_min(1))


def kept_bytes(step: Callable[[], Any]) -> int:
    """Most bytes kept for backward passes at one moment of a step, parameters included."""
    alive: dict[int, int] = {}
    counts: dict[int, int] = {}
    most = 0

    class Kept:
        """A saved tensor that counts while it lives."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            self.key = tensor.untyped_storage().data_ptr()
            counts[self.key] = counts.get(self.key, 0) + 1
            alive[self.key] = tensor.untyped_storage().nbytes()
            most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            counts[self.key] -= 1
            if not counts[self.key]:
                alive.pop(self.key, None)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


@cache
def methods() -> dict[str, Method]:
    """Rows of the table."""
    return {
        "train + target": mixing,
        "target only": target_only,
        "cleanlab": cleanlab,
        "nearest neighbours agree": neighbours,
        "KNN-Shapley": knn_shapley,
        "train against target": against_target,
        "one-step bi-level": bilevel,
        "class weights": class_weights,
        "logit adjustment": logit_adjustment,
        "bayesian-dps": ours(),
        "bayesian-dps, no noise": ours(temperature=0.0, weight_temperature=0.005),
        "bayesian-dps, Langevin weights": ours(weighting="langevin"),
        "bayesian-dps, no target first": ours(warm_up=0.0),
        "bayesian-dps, no trusted set": without_target,
    }
