"""What few-shot adaptation is measured against: each method as published, settings chosen fairly.

Every function takes a support set of unit rows (``Task``) and returns ``test (n,d) -> scores
(n,C)``. Settings come from a search on the support set alone, by the same folds that LFA uses; with
one example of each class nothing can be held out for a classifier, and the published (or middle)
setting is used. Texts that are all zero leave classifiers of images alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import MissingDependencyError

from . import reference
from .lfa import Recipe, ridge, split, unit
from .worlds import Task

Scores = Callable[[Tensor], Tensor]
SCALE = 20.0
"""What cosines are multiplied by to be logits: about the learned temperature of the small CLIP."""


def searched(
    task: Task, candidates: Sequence[Any], default: Any, make: Callable[[Task, Any], Scores]
) -> Any:
    """The candidate of best mean accuracy on held-out rows; the first where several are."""
    kind, folds = split(task.x, task.labels, len(task.y), 0)
    if kind == "classes" or not folds:
        return default
    found = []
    for candidate in candidates:
        right = []
        for held, rest in folds:
            scores = make(task._replace(x=task.x[rest], labels=task.labels[rest]), candidate)
            right.append(scores(task.x[held]).argmax(1) == task.labels[held])
        found.append(float(torch.cat(right).float().mean()))
    return candidates[max(range(len(found)), key=lambda i: found[i])]


def zero_shot(task: Task) -> Scores:
    return lambda x: x @ task.y.T


def _means(task: Task) -> Tensor:
    p = functional.one_hot(task.labels, len(task.y)).float()
    return p.T @ task.x / p.sum(0)[:, None].clamp_min(1)


def class_mean(task: Task) -> Scores:
    """Nearest class mean by cosine."""
    means = unit(_means(task))
    return lambda x: x @ means.T


def _logistic(task: Task, c: float) -> Scores:
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "logistic regression is scikit-learn's. Run: pip install 'edgezoo[bench]'",
            name="sklearn",
        ) from error
    with warnings.catch_warnings():  # one example of each class makes it ask for a regression
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        made = LogisticRegression(C=c, max_iter=500).fit(task.x.numpy(), task.labels.numpy())
    w, b = torch.from_numpy(made.coef_).float(), torch.from_numpy(made.intercept_).float()
    return lambda x: x @ w.T + b


def logistic(task: Task) -> Scores:
    """scikit-learn's logistic regression as it comes, C = 1."""
    return _logistic(task, 1.0)


def logistic_searched(task: Task) -> Scores:
    """The same with C from a search."""
    return _logistic(task, searched(task, (1.0, 10.0, 100.0), 1.0, _logistic))


def _cache(task: Task, setting: tuple[float, float]) -> Scores:
    alpha, beta = setting
    p = functional.one_hot(task.labels, len(task.y)).float()
    return lambda x: SCALE * x @ task.y.T + alpha * (beta * (x @ task.x.T - 1)).exp() @ p


CACHES = tuple((a, b) for a in (1.0, 5.0, 20.0, 60.0) for b in (2.0, 5.5, 12.0, 30.0))


def tip_adapter(task: Task) -> Scores:
    """Tip-Adapter (Zhang et al., ECCV 2022): support features as a key-value cache; no training."""
    return _cache(task, searched(task, CACHES, (1.0, 5.5), _cache))


def _gda(task: Task, alpha: float) -> Scores:
    means = _means(task)
    n, d = task.x.shape
    centred = (task.x - means[task.labels]).double()
    cov = centred.T @ centred / max(1, n - 1)
    trace = cov.trace().clamp_min(1e-6)
    precision = d * torch.linalg.inv((n - 1) * cov + trace * torch.eye(d, dtype=torch.float64))
    w = precision.float() @ means.T  # (d,C)
    bias = -0.5 * (means * w.T).sum(1) - math.log(len(means))
    return lambda x: SCALE * x @ task.y.T + alpha * (x @ w + bias)


def gda(task: Task) -> Scores:
    """Gaussian discriminant analysis with zero-shot scores added (Wang et al., ICLR 2024)."""
    weights = (0.01, 0.1, 1.0, 10.0)
    return _gda(task, searched(task, weights, 1.0, _gda) if task.y.any() else 1.0)


RIDGES = (0.01, 0.1, 1.0, 10.0)


def ridge_to_identity(task: Task) -> Scores:
    """W by least squares with a penalty on its distance from the identity."""

    def make(t: Task, penalty: float) -> Scores:
        w = ridge(t.x, t.y, t.labels, penalty).float()
        return lambda x: x @ w @ t.y.T

    return make(task, searched(task, RIDGES, 0.1, make))


def ridge_classifier(task: Task) -> Scores:
    """Least squares from centred images to one-hot labels, without texts."""
    mean, classes = task.x.mean(0), torch.eye(len(task.y))

    def make(t: Task, penalty: float) -> Scores:
        w = ridge(t.x - mean, classes, t.labels, penalty, met=False).float()
        return lambda x: (x - mean) @ w

    return make(task, searched(task, RIDGES, 1.0, make))


def authors(task: Task, beta: float | None = None, iterations: int = 100) -> Scores:
    """The method of the authors' code (``reference.py``).

    Where the widths differ, it projects the wider side at random.
    """
    x, y, out = task.x, task.y, (lambda rows: rows)
    narrow = min(x.shape[1], y.shape[1])
    dice = torch.Generator().manual_seed(0)
    if x.shape[1] > narrow:
        p = torch.randn(x.shape[1], narrow, generator=dice) / math.sqrt(narrow)
        out = lambda rows: unit(rows @ p)  # noqa: E731
    elif y.shape[1] > narrow:
        y = unit(y @ torch.randn(y.shape[1], narrow, generator=dice) / math.sqrt(narrow))
    w = reference.fit(out(x), y, task.labels, Recipe(beta=beta, iterations=iterations))
    return lambda rows: unit(out(rows) @ w) @ y.T


def prompt_step(classes: int, tokens: int = 12, seed: int = 0) -> Callable[[], None]:
    """One training step of prompt learning (CoOp) through a text tower of CLIP ViT-B's size.

    12 layers, 512 wide, 38 M parameters, random weights: for its cost only. 12 tokens a prompt
    instead of CLIP's 77, in its favour.
    """
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(
        512, 8, 2048, 0.0, activation="gelu", batch_first=True, norm_first=True
    )
    tower = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).requires_grad_(False)
    context = torch.randn(1, 4, 512, requires_grad=True)
    rest = torch.randn(classes, tokens - 4, 512)
    target = unit(torch.randn(classes, 512))

    def step() -> None:
        for part in torch.arange(classes).split(100):  # memory for 100 classes at a time
            prompts = torch.cat([context.expand(len(part), -1, -1), rest[part]], 1)
            (unit(tower(prompts)[:, -1]) * target[part]).sum().backward()
        context.grad = None

    return step
