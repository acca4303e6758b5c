"""The bridge: from the last layer of an image classifier to a sentence encoder's space, and back.

    R (C,d_x)  rows of the classifier's last layer, centred, unit norm (eq. 18)
    Y (C,d_y)  sentences about its classes, centred by their mean, unit norm
    W (d_x,d_y) is made once; Y W^T brings any text among the rows: it is a classifier (eq. 16)

    W^T = (Y^T Y + p I)^-1 Y^T R             ridge from texts to rows                     (eq. 19)
    z_c = norm(y_c W^T)                      the prototype of a text                      (eq. 20)
    B = argmin sum_i -log softmax(s x_i B^T)[l_i] + a s ||B - Z||^2                        (eq. 21)

The encoders have never met; no image is needed for W. The regression is from texts to rows, not
from rows to texts: it shrinks its predictions towards their mean, and it is less harmful if a few
prototypes move closer together than if all images do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .lfa import fold, sinkhorn, unit

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""p of eq. 19 that are tried."""
SCALES = tuple(round(5 * 2 ** (i / 4), 1) for i in range(18))
"""Scales of cosines that are tried, from 5 to 95."""
FOLDS = 5
CLEAR = 2.0
"""Standard errors that a difference has to exceed."""
SHARP = 10.0
"""s of eq. 21: below the calibrated scale, so that the bridge is believed with reserve."""
STRENGTH = 1.0
"""a of eq. 21 for labels that a person gave."""
GUESSED = 10.0
"""a of eq. 21 for labels that were guessed."""
EPSILON = 0.02
"""Of the transport that guesses labels (eq. 14): coarser than for encoders that met."""
WEIGHT = 10
"""The mean of n photos is taken times n / (n + WEIGHT) (eq. 18)."""
MANY = 100
"""With fewer photos a fit may not be more confident than the bundled map."""
STEPS = 60


class Bridge(NamedTuple):
    """What is fitted on a classifier's rows."""

    w: Tensor
    """(d_x,d_y) float32."""
    centre: Tensor
    """(d_y,): the mean of the unit embeddings of the fit's sentences."""


def centred(x: Tensor, mean: Tensor | None = None) -> Tensor:
    """norm(norm(x) - mean) of rows (N,d): the scale of a row changes nothing (eq. 18)."""
    return unit(unit(x) - mean) if mean is not None else unit(x)


def fit(rows: Tensor, texts: Tensor, penalty: float) -> Bridge:
    """Eq. 19 on rows (C,d_x) and their texts (C,d_y)."""
    centre = unit(texts).mean(0)
    r, y = centred(rows, unit(rows).mean(0)).double(), centred(texts, centre).double()
    gram = y.T @ y + penalty * torch.eye(y.shape[1], dtype=y.dtype)
    return Bridge(torch.linalg.solve(gram, y.T @ r).T.float().contiguous(), centre)


def prototypes(texts: Tensor, bridge: Bridge) -> Tensor:
    """Z (M,d_x), unit rows, of text embeddings (M,d_y) (eq. 20)."""
    return unit(fold(centred(texts, bridge.centre), bridge.w))


# --- settings, from classes that are held out -----------------------------------------------------


class Chosen(NamedTuple):
    """What held-out classes say."""

    penalty: float
    scale: float
    accuracy: float
    """Per cent: the row of a class held out finds its text among those of its fold."""


def choose(rows: Tensor, texts: Tensor, seed: int = 0) -> Chosen:
    """The penalty and the scale of the probabilities, by cross-validation in five folds of classes.

    Penalty: by the accuracy of the rows of held-out classes among the texts of these classes.
    Scale: by the likelihood of the same rows among the texts of all classes. Of both the smallest
    value within two standard errors of the best is taken: a smaller penalty keeps finer
    differences between texts, and a smaller scale is less confident, as is right for photographs,
    which are less clean than rows.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    parts = list(order.tensor_split(FOLDS))
    found = {p: sum(_right(rows, texts, held, p) for held in parts) for p in PENALTIES}
    share = max(found.values()) / len(rows)
    bar = share - CLEAR * (share * (1 - share) / len(rows)) ** 0.5
    penalty = next(p for p in PENALTIES if found[p] >= bar * len(rows))
    losses = torch.cat([_losses(rows, texts, held, penalty) for held in parts], 1)
    mean = losses.mean(1)
    best = int(mean.argmin())
    near = mean <= mean[best] + CLEAR * losses[best].std() / len(rows) ** 0.5
    scale = SCALES[int(near.nonzero()[0])]
    return Chosen(penalty, scale, 100 * found[penalty] / len(rows))


def without(rows: Tensor, texts: Tensor, held: Tensor, penalty: float) -> tuple[Tensor, Bridge]:
    """The rows (n,d_x) of held-out classes, centred by the others' mean, and the others' bridge."""
    keep = torch.ones(len(rows), dtype=torch.bool)
    keep[held] = False
    return centred(rows[held], unit(rows[keep]).mean(0)), fit(rows[keep], texts[keep], penalty)


def _right(rows: Tensor, texts: Tensor, held: Tensor, penalty: float) -> int:
    r, bridge = without(rows, texts, held, penalty)
    scores = r @ prototypes(texts[held], bridge).T
    return int((scores.argmax(1) == torch.arange(len(held))).sum())


def _losses(rows: Tensor, texts: Tensor, held: Tensor, penalty: float) -> Tensor:
    """(scales,n): -log of the true class's probability among all."""
    r, bridge = without(rows, texts, held, penalty)
    scores = r @ prototypes(texts, bridge).T
    each = [functional.cross_entropy(s * scores, held, reduction="none") for s in SCALES]
    return torch.stack(each)


# --- from photographs (eq. 21) --------------------------------------------------------------------


def mean_of(x: Tensor, labels: Tensor | None = None) -> Tensor:
    """(d_x,): the mean of unit rows, each class counting the same, shrunk towards 0 where there are
    few rows: one photograph is no mean."""
    rows = unit(x)
    if labels is not None:
        own = [rows[labels == c].mean(0) for c in labels.unique().tolist()]
        mean = torch.stack(own).mean(0)
    else:
        mean = rows.mean(0)
    return mean * len(x) / (len(x) + WEIGHT)


def informed(x: Tensor, z: Tensor, labels: Tensor) -> bool:
    """Do the prototypes say more of these labels than chance does? x (N,d_x) centred."""
    classes = torch.tensor(float(len(z)), device=x.device)
    return bool(functional.cross_entropy(SHARP * x @ z.T, labels) < classes.log())


def learn(
    x: Tensor,
    z: Tensor,
    labels: Tensor,
    strength: float = STRENGTH,
    step: Callable[[], Any] = lambda: None,
) -> Tensor:
    """B (M,d_x) of eq. 21, unit rows: logistic regression that is drawn to z instead of to 0.

    Convex, by L-BFGS from z. x (N,d_x) centred, z (M,d_x), labels (N,).
    """
    moved = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [moved], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-5
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        wrong = functional.cross_entropy(SHARP * x @ (z + moved).T, labels, reduction="sum")
        total = wrong + strength * SHARP * moved.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    step()
    return unit((z + moved).detach())


def calibrated(x: Tensor, z: Tensor, labels: Tensor, usual: float) -> float:
    """The scale that is likeliest on rows held out in three folds; ``usual`` where a class has one
    row. With fewer than 100 rows it is at most ``usual``: a few may all be right by chance."""
    if int(torch.bincount(labels)[labels.unique()].min()) < 2:
        return usual
    rank = torch.zeros_like(labels)
    for c in labels.unique().tolist():
        own = (labels == c).nonzero()[:, 0]
        rank[own] = torch.arange(len(own), device=x.device)
    total = torch.zeros(len(SCALES))
    for i in range(3):
        held = rank % 3 == i
        if not held.any():
            continue
        scores = x[held] @ learn(x[~held], z, labels[~held]).T
        each = [functional.cross_entropy(s * scores, labels[held], reduction="sum") for s in SCALES]
        total += torch.stack(each).cpu()
    found = SCALES[int(total.argmin())]
    return found if len(x) >= MANY else min(found, usual)


def as_sure(x: Tensor, b: Tensor, before: Tensor, scale: float) -> float:
    """The scale at which b (M,d_x) has the mean confidence on rows x of ``before`` at ``scale``.

    Otherwise prototypes that learned from guesses would be more confident about the same guesses.
    """
    wanted = (scale * x @ before.T).softmax(1).amax(1).mean()
    found = [abs(float((s * x @ b.T).softmax(1).amax(1).mean() - wanted)) for s in SCALES]
    return SCALES[found.index(min(found))]


def refine(
    x: Tensor,
    z: Tensor,
    rounds: int,
    marginals: Tensor | None = None,
    step: Callable[[], Any] = lambda: None,
) -> Tensor:
    """B without labels: guessed by transport (eq. 14), learned, guessed again, ``rounds`` times.

    Every round is drawn to z, the bridge's prototypes, not to the round before. It assumes classes
    of one size, or of the shares ``marginals`` (M,).
    """
    b = z
    for _ in range(rounds):
        labels = sinkhorn(x @ b.T, marginals, EPSILON).argmax(1)
        b = learn(x, z, labels, GUESSED, step)
    return b
