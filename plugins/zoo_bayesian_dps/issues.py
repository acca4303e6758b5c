"""How probably a label is wrong, and which label is likelier. Eq. 13 of this plugin's README.md."""

from __future__ import annotations

import torch
from torch import Tensor


def wrong(losses: Tensor, classes: int) -> Tensor:
    """(N,) probability that a row's label is wrong, from its mean loss -log p(y|x), eq. 13.

    A label is right with probability pi, and then has probability p = exp(-loss); or it is any of
    the other classes, each as probable: (1 - p) / (K - 1). pi is the mean of what comes out.
    """
    p = (-losses.double()).exp().clamp(1e-12, 1 - 1e-12)
    other = (1 - p) / max(1, classes - 1)
    share = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(200):
        right = share * p / (share * p + (1 - share) * other)
        share = right.mean().clamp(1e-6, 1 - 1e-6)
    return (1 - right).float()


def suggested(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) the likeliest class that is not the row's own."""
    others = logits.clone()
    others[torch.arange(len(labels)), labels] = -torch.inf
    return others.argmax(1)
