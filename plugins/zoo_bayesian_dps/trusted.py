"""Is the target set large enough to start from, and which rows replace it where there is none?

Eq. 9 and 14 of this plugin's README.md. Both use predictions of rows that the network was not
trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .joint import Joint, LossOf
from .sampler import WeightSampler, plain

FOLDS = 4
EPOCHS, STEPS = 5, 100
"""Of training, the larger of the two. Few: the predictions of a network that has memorised wrong
labels agree less with the right ones."""
SHARE = 0.5
"""Share of the agreeing rows that is kept: the half of each class with the highest probability."""


@dataclass(frozen=True)
class Learner:
    """How to train a copy of a network on some rows and predict others with it."""

    net: nn.Module
    loss_of: LossOf
    optimiser: Callable[[Any], torch.optim.Optimizer]
    batch_of: Callable[[Tensor], Any]
    """Row numbers (B,) -> batch."""
    logits_of: Callable[[nn.Module, Any], Tensor]
    """(network, batch) -> (B,K)."""
    batch: int
    seed: int

    def probabilities(self, learned: Tensor, asked: Tensor) -> Tensor:
        """(len(asked),K) of a copy after plain training on the rows ``learned``."""
        dice = torch.Generator().manual_seed(self.seed)
        steps: list[Tensor] = []
        while len(steps) < max(STEPS, EPOCHS * len(learned) // self.batch):
            order = learned[torch.randperm(len(learned), generator=dice)]
            steps += order.split(self.batch)
        net = deepcopy(self.net).train()
        sampler = WeightSampler(1 + int(learned.max()), plain(), steps=len(steps))
        joint = Joint(net, self.loss_of, sampler, self.optimiser, seed=self.seed)
        for ids in steps:
            joint.step(ids, self.batch_of(ids), 0)
        net.eval()
        with torch.no_grad():
            found = [
                self.logits_of(net, self.batch_of(ids)).float().cpu() for ids in asked.split(256)
            ]
        return torch.cat(found).softmax(1)

    def out_of_fold(self, rows: Tensor) -> Tensor:
        """(len(rows),K): each row is predicted by a copy that was trained on the other folds."""
        dice = torch.Generator().manual_seed(self.seed)
        fold = (torch.arange(len(rows)) % FOLDS)[torch.randperm(len(rows), generator=dice)]
        parts = [self.probabilities(rows[fold != k], rows[fold == k]) for k in range(FOLDS)]
        made = torch.empty(len(rows), parts[0].shape[1])
        for k, part in enumerate(parts):
            made[fold == k] = part
        return made


def teaches_less(learner: Learner, train: Tensor, target: Tensor, labels: Tensor) -> bool:
    """Is the target set a worse start than the training set as it is?

    True where a copy trained on the training set alone predicts the target's ``labels`` better than
    copies trained on the other folds of the target, by more than two standard errors of the paired
    difference. In doubt the target is the start: starting from systematically wrong labels is the
    worse mistake.
    """
    by_train = learner.probabilities(train, target).argmax(1) == labels
    by_target = learner.out_of_fold(target).argmax(1) == labels
    lead = by_train.double() - by_target.double()
    return float(lead.mean()) > 2 * float(lead.std()) / len(lead) ** 0.5


def agreeing(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Numbers of the rows whose label is the likeliest class out of fold: of each class the half
    with the highest probability, and at least one; none of a class with no such row."""
    likely = probabilities.argmax(1) == labels
    sure = probabilities[torch.arange(len(labels)), labels]
    kept = []
    for k in range(probabilities.shape[1]):
        rows = (likely & (labels == k)).nonzero()[:, 0]
        best = sure[rows].argsort(descending=True, stable=True)
        kept.append(rows[best[: max(1, round(SHARE * len(rows)))]])
    return torch.cat(kept).sort().values
