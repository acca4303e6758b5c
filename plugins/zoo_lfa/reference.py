"""The method of the authors' code in a plain, slow form, as a baseline.

Each b has its own SVD (eq. 6), the loss sorts and differentiates every distance (eq. 9), a step
sees 75 % of the rows, as in the authors' code (ours: ``Recipe.batch``), and nothing is reused. Part
of our lead in time is thus a smaller batch, which may change the accuracy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .lfa import BETAS, Recipe, interpolate, split


def procrustes(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """U V^T of the d x d matrix X^T Y[l]."""
    u, _, vh = torch.linalg.svd(x.T @ y[labels])
    return u @ vh


def rerank_loss(u: Tensor, y: Tensor, labels: Tensor, k: int = 3, s: float = 4.0) -> Tensor:
    """mean over (n,k) of max(0, D_il - D_ic + (1 - y_c^T y_l) / s)."""
    z = u / u.norm(dim=1, keepdim=True)
    distance = torch.cdist(z, y)  # (n,C)
    values, nearest = distance.sort(dim=1)
    own = distance.gather(1, labels[:, None])
    margin = (1 - (y[nearest[:, :k]] * y[labels][:, None]).sum(-1)) / s
    return (own - values[:, :k] + margin).clamp_min(0).mean()


def choose_beta(x: Tensor, y: Tensor, labels: Tensor, seed: int) -> float:
    """b of the best mean accuracy over three splits, by a closed form for each b and split."""
    _, folds = split(x, labels, len(y), seed)
    best, chosen = -1.0, 0.0
    for beta in torch.linspace(0, 1, BETAS).tolist():
        right = []
        for held, rest in folds:
            w = interpolate(procrustes(x[rest], y, labels[rest]), beta)
            z = x[held] @ w
            found = ((z / z.norm(dim=1, keepdim=True)) @ y.T).argmax(1)
            right.append(float((found == labels[held]).float().mean()))
        if sum(right) > best:
            best, chosen = sum(right), beta
    return chosen


def steps(w: Tensor, x: Tensor, y: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """AdamW on the loss over a random 75 % of the rows."""
    w = w.clone().requires_grad_()
    dice = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW([w], lr=recipe.lr, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.iterations, 1e-7)
    for _ in range(recipe.iterations):
        rows = torch.randperm(len(x), generator=dice)[: math.ceil(0.75 * len(x))]
        batch = x[rows]
        if torch.rand((), generator=dice) < 0.5:
            batch = batch + recipe.noise * torch.randn(batch.shape, generator=dice)
        if torch.rand((), generator=dice) < 0.5:
            keep = torch.rand(batch.shape, generator=dice) >= recipe.dropout
            batch = batch * keep / (1 - recipe.dropout)
        optimiser.zero_grad()
        rerank_loss(batch @ w, y, labels[rows], recipe.k, recipe.s).backward()
        optimiser.step()
        schedule.step()
    return w.detach()


def fit(x: Tensor, y: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """W (d,d): b by cross-validation, closed form, refinement."""
    beta = choose_beta(x, y, labels, recipe.seed) if recipe.beta is None else recipe.beta
    return steps(interpolate(procrustes(x, y, labels), beta), x, y, labels, recipe)
