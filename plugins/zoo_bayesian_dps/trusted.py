"""Without a target set: rows whose label agrees with out-of-fold predictions take its place.

Eq. 14 of this plugin's README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .joint import Joint, LossOf
from .sampler import WeightSampler, plain

FOLDS = 4
EPOCHS = 5
"""Over the other folds: few, as a network that has learned wrong labels by heart agrees less."""
SHARE = 0.5
"""Of the rows that agree, those kept: the surer half of each class."""


def out_of_fold(
    net: nn.Module,
    loss_of: LossOf,
    optimiser: Callable[[Any], torch.optim.Optimizer],
    batch_of: Callable[[Tensor], Any],
    logits_of: Callable[[nn.Module, Any], Tensor],
    n: int,
    batch: int,
    seed: int,
) -> Tensor:
    """(N,K) class probabilities of each row by a copy of ``net`` that trained on the other folds.

    ``batch_of``: row numbers (B,) -> batch; ``logits_of``: (network, batch) -> (B,K).
    """
    dice = torch.Generator().manual_seed(seed)
    fold = torch.arange(n)[torch.randperm(n, generator=dice)] % FOLDS
    parts: list[tuple[Tensor, Tensor]] = []
    for k in range(FOLDS):
        others, mine = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
        learner = deepcopy(net).train()
        epochs = [others[torch.randperm(len(others), generator=dice)] for _ in range(EPOCHS)]
        steps: Sequence[Tensor] = [ids for order in epochs for ids in order.split(batch)]
        joint = Joint(
            learner, loss_of, WeightSampler(n, plain(), steps=len(steps)), optimiser, seed=seed
        )
        for ids in steps:
            joint.step(ids, batch_of(ids), 0)
        learner.eval()
        with torch.no_grad():
            found = [logits_of(learner, batch_of(ids)).float().cpu() for ids in mine.split(256)]
        parts.append((mine, torch.cat(found).softmax(1)))
    made = torch.empty(n, parts[0][1].shape[1])
    for mine, probabilities in parts:
        made[mine] = probabilities
    return made


def agreeing(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Numbers of the rows whose label is the class that is likeliest out of fold, of each class the
    surer half; none of a class with which no row agrees."""
    likely = probabilities.argmax(1) == labels
    sure = probabilities[torch.arange(len(labels)), labels]
    kept = []
    for k in range(probabilities.shape[1]):
        rows = (likely & (labels == k)).nonzero()[:, 0]
        best = sure[rows].argsort(descending=True, stable=True)
        kept.append(rows[best[: max(1, round(SHARE * len(rows)))]])
    return torch.cat(kept).sort().values
