"""What few-shot adaptation is measured against: each method as published, settings chosen fairly.

Every function takes a support set of unit rows (``Task``) and returns ``test (n,d) -> scores
(n,C)``.
Settings come from a search on the support set alone, by the same folds that LFA uses; with
one example of each class nothing can be held out for a classifier, and the published (or middle)
setting is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lfa import procrustes, ridge, split, unit
from .worlds import NAMES, Task, Towers

Scores = Callable[[Tensor], Tensor]
SCALE = 20.0
"""What cosines are multiplied by to be logits: about the learned temperature of these towers."""


def searched(
    task: Task,
    candidates: Sequence[Any],
    default: Any,
    make: Callable[[Task, Any], Scores],
    folds: int = 3,
) -> Any:
    """The candidate of best mean accuracy on held-out rows; the first where several are."""
    kind, parts = split(task.x, task.labels, len(task.y), 0)
    if kind == "classes" or not parts:
        return default
    found = []
    for candidate in candidates:
        right = []
        for held, rest in parts[:folds]:
            scores = make(task._replace(x=task.x[rest], labels=task.labels[rest]), candidate)
            right.append(scores(task.x[held]).argmax(1) == task.labels[held])
        found.append(float(torch.cat(right).float().mean()))
    return candidates[max(range(len(found)), key=lambda i: found[i])]


def zero_shot(task: Task) -> Scores:
    return lambda x: x @ task.y.T


def _one_hot(task: Task) -> Tensor:
    return functional.one_hot(task.labels, len(task.y)).float()


def _means(task: Task) -> Tensor:
    p = _one_hot(task)
    return p.T @ task.x / p.sum(0)[:, None].clamp_min(1)


def class_mean(task: Task) -> Scores:
    """Nearest class mean by cosine."""
    means = unit(_means(task))
    return lambda x: x @ means.T


def _probe(task: Task, decay: float, start: Tensor) -> Scores:
    """Logistic regression (C,d) with a penalty on the distance from ``start``."""
    w, bias = start.clone().requires_grad_(), torch.zeros(len(task.y), requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w, bias], max_iter=30, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(task.x @ w.T + bias, task.labels)
        loss = loss + decay * (w - start).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    w, bias = w.detach(), bias.detach()
    return lambda x: x @ w.T + bias


DECAYS = (1e-3, 1e-4, 1e-5)


def linear_probe(task: Task) -> Scores:
    """Logistic regression on the features, from zero."""
    start = torch.zeros_like(task.y)
    return _probe(task, searched(task, DECAYS, 1e-4, lambda t, d: _probe(t, d, start)), start)


def linear_probe_zero_shot(task: Task) -> Scores:
    """The same from the texts, and pulled towards them."""
    start = SCALE * task.y
    return _probe(task, searched(task, DECAYS, 1e-4, lambda t, d: _probe(t, d, start)), start)


def _cache(task: Task, alpha: float, beta: float, keys: Tensor) -> Scores:
    p = _one_hot(task)
    return lambda x: SCALE * x @ task.y.T + alpha * (beta * (x @ keys.T - 1)).exp() @ p


CACHES = tuple((a, b) for a in (1.0, 5.0, 20.0, 60.0) for b in (2.0, 5.5, 12.0, 30.0))


def tip_adapter(task: Task) -> Scores:
    """Tip-Adapter (Zhang et al., ECCV 2022): support features as a key-value cache; no training."""
    alpha, beta = searched(task, CACHES, (1.0, 5.5), lambda t, ab: _cache(t, ab[0], ab[1], t.x))
    return _cache(task, alpha, beta, task.x)


def tip_adapter_f(task: Task, epochs: int = 20) -> Scores:
    """Tip-Adapter-F: the keys are trained, 20 epochs of AdamW 1e-3, batch 256 as published."""
    alpha, beta = searched(task, CACHES, (1.0, 5.5), lambda t, ab: _cache(t, ab[0], ab[1], t.x))
    keys = task.x.clone().requires_grad_()
    dice = torch.Generator().manual_seed(0)
    batches = math.ceil(len(task.x) / 256)
    optimiser = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    model = _cache(task, alpha, beta, keys)
    for _ in range(epochs):
        for rows in torch.randperm(len(task.x), generator=dice).split(256):
            optimiser.zero_grad()
            functional.cross_entropy(model(task.x[rows]), task.labels[rows]).backward()
            optimiser.step()
            schedule.step()
    return _cache(task, alpha, beta, keys.detach())


class AdapterRecipe(NamedTuple):
    """What CLIP-Adapter lets one choose."""

    ratio: float
    rate: float = 1e-3
    steps: int = 400


def _adapter(task: Task, recipe: AdapterRecipe) -> Callable[[Tensor], Tensor]:
    """The trained map of image features, (n,d) to unit rows (n,d)."""
    ratio, rate, steps = recipe
    d = task.x.shape[1]
    dice = torch.Generator().manual_seed(0)
    down = (torch.randn(d, d // 4, generator=dice) * math.sqrt(2 / d)).requires_grad_()
    up = (torch.randn(d // 4, d, generator=dice) * math.sqrt(8 / d)).requires_grad_()
    optimiser = torch.optim.AdamW([down, up], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def adapted(x: Tensor) -> Tensor:
        return unit(ratio * ((x @ down).relu() @ up).relu() + (1 - ratio) * x)

    for _ in range(steps):
        rows = torch.randperm(len(task.x), generator=dice)[:256]
        optimiser.zero_grad()
        logits = SCALE * adapted(task.x[rows]) @ task.y.T
        functional.cross_entropy(logits, task.labels[rows]).backward()
        optimiser.step()
        schedule.step()
    return torch.no_grad()(adapted)


def adapter(task: Task) -> Callable[[Tensor], Tensor]:
    """CLIP-Adapter's map of image features; ratio, learning rate and steps searched in turn."""

    def make(t: Task, recipe: AdapterRecipe) -> Scores:
        of = _adapter(t, recipe)
        return lambda x: of(x) @ t.y.T

    start = AdapterRecipe(0.6)
    ratios = [start._replace(ratio=r, steps=150) for r in (0.6, 0.2, 0.9)]
    ratio = searched(task, ratios, start, make, folds=1).ratio
    best = start._replace(ratio=ratio)
    other = [best, best._replace(rate=3e-4), best._replace(rate=3e-3), best._replace(steps=150)]
    return _adapter(task, searched(task, other, best, make, folds=1))


def clip_adapter(task: Task) -> Scores:
    """CLIP-Adapter (Gao et al., IJCV 2024): a residual bottleneck MLP on the image features."""
    of = adapter(task)
    return lambda x: of(x) @ task.y.T


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
    return _gda(task, searched(task, (0.01, 0.1, 1.0, 10.0), 1.0, _gda))


def _mapped(task: Task, w: Tensor) -> Scores:
    y = task.y @ w.float().T
    return lambda x: x @ y.T


def ridge_map(task: Task) -> Tensor:
    """W (d,d) by least squares with a penalty on its distance from the identity; one solve."""

    def make(t: Task, penalty: float) -> Scores:
        return _mapped(t, ridge(t.x, t.y, t.labels, penalty))

    penalty = searched(task, (0.01, 0.1, 1.0, 10.0), 0.1, make)
    return ridge(task.x, task.y, task.labels, penalty)


def ridge_to_identity(task: Task) -> Scores:
    """The features mapped by ``ridge_map``."""
    return _mapped(task, ridge_map(task))


def procrustes_alone(task: Task) -> Scores:
    return _mapped(task, procrustes(task.x, task.y, task.labels))


# --- prompt learning ------------------------------------------------------------------------------


RATES = (0.002, 0.005, 0.02, 0.08, 0.3)
"""Learning rates that are tried."""


class Prompts:
    """CoOp (Zhou et al., IJCV 2022): the four words before the class name become free vectors.

    On features of the images made once, which favours it: published prompt learning encodes
    augmented images anew in each epoch.
    """

    def __init__(self, net: Towers) -> None:
        self.net = net
        tokens = net.tokens(NAMES)
        self.start = net.words(tokens[:1, :4]).detach()  # "a photo of a"
        self.rest = net.words(tokens[:, 4:]).detach()

    def texts(self, context: Tensor) -> Tensor:
        return unit(
            self.net.encode_words(torch.cat([context.expand(len(NAMES), -1, -1), self.rest], 1))
        )

    def train(
        self, task: Task, lr: float, steps: int, each: Callable[[int, Scores], None] | None = None
    ) -> Scores:
        """Adam on the context, cosine schedule; ``each(step, scores)`` watches."""
        context = self.start.clone().requires_grad_()
        optimiser = torch.optim.Adam([context], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(steps):
            optimiser.zero_grad()
            logits = SCALE * task.x @ self.texts(context).T
            functional.cross_entropy(logits, task.labels).backward()
            optimiser.step()
            schedule.step()
            if each is not None:
                each(step + 1, self._scores(context))
        return self._scores(context)

    def _scores(self, context: Tensor) -> Scores:
        with torch.no_grad():
            y = self.texts(context)
        return lambda x: x @ y.T

    def __call__(self, task: Task, steps: int = 150) -> Scores:
        def make(t: Task, lr: float) -> Scores:
            return self.train(t, lr, steps // 3)

        lr = searched(task, RATES, 0.02, make, folds=1)
        return self.train(task, lr, steps)


def clip_text_step(classes: int, tokens: int = 12, seed: int = 0) -> Callable[[], None]:
    """One training step of prompt learning through a text tower of CLIP ViT-B's size.

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
        y = unit(tower(torch.cat([context.expand(classes, -1, -1), rest], 1))[:, -1])
        (y * target).sum().backward()
        context.grad = None

    return step


BASELINES: Mapping[str, Callable[[Task], Scores]] = {
    "zero-shot": zero_shot,
    "nearest class mean": class_mean,
    "linear probe": linear_probe,
    "linear probe, zero-shot start": linear_probe_zero_shot,
    "Tip-Adapter": tip_adapter,
    "Tip-Adapter-F": tip_adapter_f,
    "CLIP-Adapter": clip_adapter,
    "GDA": gda,
    "ridge to identity": ridge_to_identity,
    "Procrustes alone": procrustes_alone,
}
