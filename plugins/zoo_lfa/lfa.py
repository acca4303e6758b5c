"""The method: linear feature alignment of image features to text features, in the paper's order.

Y. Ouali, A. Bulat, B. Martinez, G. Tzimiropoulos: "Black Box Few-Shot Adaptation for
Vision-Language models", ICCV 2023, arXiv 2304.01752. Equations are numbered as in this plugin's
README.md, which says what is the paper's, what the authors' code does and what is our choice.

    X (N,d)   image features, rows of unit norm           Y (C,d)  text features, one for each class
    l (N,)    labels in 0..C-1; P (N,C) is their one-hot matrix, so PY = Y[l]
    W (d,d)   the map: x' = xW on rows; the text stays. Zero-shot is W = I: argmax X Y^T

    W*  = argmin ||XW - PY||_F with W^T W = I             closed form                        (eq. 3)
    W_b = (1-b) W* + b I                                  b by cross-validation              (eq. 5)
    W   = W_b refined by AdamW on the re-ranking loss     a few hundred cheap steps         (eq. 12)
    W   chosen among these and ridges                     by cross-validation               (eq. 13)

Encoders that were not trained together have no zero-shot: both sides are centred, W is (d_x, d_y),
and 0 takes the place of I (eq. 17).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

BETAS = 25
"""Values of b that are tried, from 0 to 1 (eq. 6)."""
BLENDS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares m of I that ``safe`` tries (eq. 13)."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridges that ``safe`` tries (eq. 7)."""
PENALTY = 1.0
"""Penalty of the ridge to 0, the incumbent of encoders that have never met (eq. 13)."""
CLEAR = 2.0
"""Standard errors by which a map has to be better than the incumbent to replace it."""
SCALES = (0.0, *(2**i for i in range(8)), *(2 ** (i + 0.5) for i in range(8)))
"""Factors that make logits of cosines, 0 to 181 (eq. 13). With 0 among them, a map gains nothing by
merely being less sure of wrong answers."""
SCALE, SCALE_UNMET = 1 / 0.07, 3.0
"""Scales where nothing can be validated: the authors', and one for encoders that have never met."""
SPREAD = 0.5
"""Standard deviation of the scale's logarithm about these before any row is seen (eq. 13)."""
FOLDS = 3
ENOUGH = 4096
"""With more rows than this, one fold is enough, and at most so many of its rows are judged."""
JUDGED = 2**24
"""Scores (rows x classes) of a fold that are judged, but at least those of 1,024 rows."""
ROWS = 512
"""Rows that are worked on at once, so that memory beyond the features is bounded."""
SCORES = 2**23
"""Scores (rows x classes) that are held at once: 32 MB."""
TABLE = 4096
"""Up to this many classes the cosines between texts are kept as a table."""


@dataclass(frozen=True)
class Recipe:
    """Every setting of a fit; the defaults are the reference's where it has one."""

    beta: float | None = None
    """b of eq. 5; None is cross-validation."""
    iterations: int = 100
    """Steps of a refinement; 0 leaves the closed forms."""
    loss: str | None = None
    """rerank or contrastive; None tries both where ``safe`` can choose, else it is rerank."""
    k: int = 3
    """Nearest classes in the re-ranking loss, the true one allowed among them."""
    s: float = 4.0
    """Margins are (1 - cos(y_c, y_l)) / s."""
    lr: float = 5e-4
    decay: float = 5e-4
    batch: int = 256
    """Rows in a step, at most 75 % of the support set. The reference always takes 75 %."""
    noise: float = 0.035
    """Standard deviation of the feature noise, added in every other step (at random)."""
    dropout: float = 0.05
    safe: bool = True
    """Choose between the incumbent, the closed forms and the refined maps by cross-validation (eq.
    13)."""
    met: bool = True
    """Were the two encoders trained together, so that I is a map worth keeping? (eq. 17)"""
    seed: int = 0


class Fit(NamedTuple):
    """What a fit gives."""

    w: Tensor
    """(d_x, d_y) float32."""
    scale: float
    """What cosines are multiplied by to be logits (eq. 13)."""
    report: dict[str, Any]


# --- rows of unit norm (eq. 1) --------------------------------------------------------------------


class Rows(Protocol):
    """(N,d) rows that are read where they are needed: a tensor, or what reads like one."""

    @property
    def shape(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def device(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Any, /) -> Tensor: ...


class Some:
    """Some of the rows, without a copy of them."""

    def __init__(self, rows: Rows, index: Tensor) -> None:
        self.rows, self.index = rows, index
        self.shape = (len(index), *rows.shape[1:])
        self.ndim, self.device = rows.ndim, rows.device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Any, /) -> Tensor:
        return self.rows[self.index[which]]


def unit(x: Tensor) -> Tensor:
    """Rows divided by their L2 norm."""
    return functional.normalize(x, dim=-1)


def chunks(rows: int, at_once: int = ROWS) -> Iterator[slice]:
    """Slices of at most ``at_once`` rows."""
    for i in range(0, rows, at_once):
        yield slice(i, i + at_once)


def at_once(y: Tensor) -> int:
    """So many rows that their scores against all classes are ``SCORES`` at most."""
    return max(1, min(ROWS, SCORES // len(y)))


def origin(x_width: int, y_width: int, met: bool, like: Tensor) -> Tensor:
    """W_0 (d_x,d_y): I, which is zero-shot; 0 for encoders that never met (eq. 17)."""
    if met:
        return torch.eye(x_width, dtype=like.dtype, device=like.device)
    return torch.zeros(x_width, y_width, dtype=like.dtype, device=like.device)


# --- closed forms (eq. 3, 4, 7 and 8) -------------------------------------------------------------


def class_sums(x: Rows, labels: Tensor, classes: int) -> Tensor:
    """P^T X (C,d) in float64: all that the closed form needs of the support set."""
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    for part in chunks(len(x)):
        sums.index_add_(0, labels[part], x[part].double())
    return sums


def procrustes(x: Rows, y: Tensor, labels: Tensor, met: bool | None = None) -> Tensor:
    """W* = U V^T with U S V^T = svd(X^T P Y): the orthogonal map nearest to PY, in O(d).

    x (N,d_x), y (C,d_y), labels (N,); returns (d_x,d_y) float64. X^T P Y = (P^T X)^T Y has rank at
    most C, so where C < d the minimiser is not unique. Of all minimisers this is the one nearest to
    I (eq. 4), so that it is the same on every machine and leaves alone what no example speaks
    about. No sign is corrected: reflections are allowed.

    All that differs from I happens in the span of the class sums and the texts: with an
    orthonormal basis B (d,m) of it, m <= 2C, W* = I + B (W' - I) B^T, so that only W' (m,m) has to
    be found.

    Where the encoders never met (``met``; by default those of two widths): U_r V_r^T, of rank r,
    the largest trace of W^T X^T P Y for a partial isometry.
    """
    sums, y = class_sums(x, labels, len(y)), y.double()
    if not (sums.shape[1] == y.shape[1] if met is None else met):
        basis_x, basis_y = torch.linalg.qr(sums.T).Q, torch.linalg.qr(y.T).Q
        u, s, vh = torch.linalg.svd((sums @ basis_x).T @ (y @ basis_y), full_matrices=False)
        r = _rank(s)
        return basis_x @ u[:, :r] @ vh[:r] @ basis_y.T
    d = y.shape[1]
    eye = torch.eye(d, dtype=y.dtype, device=y.device)
    basis = torch.linalg.qr(torch.cat([sums, y]).T).Q if 2 * len(y) < d else eye
    u, s, vh = torch.linalg.svd((sums @ basis).T @ (y @ basis))  # (m,m)
    r = _rank(s)
    small = u[:, :r] @ vh[:r]
    if r < len(s):  # the rest is free: Z = polar(U_0^T V_0) makes trace(W') largest
        p, _, qh = torch.linalg.svd(u[:, r:].T @ vh[r:].T)
        small = small + u[:, r:] @ (p @ qh) @ vh[r:]
    m = len(small)
    return eye + basis @ (small - eye[:m, :m]) @ basis.T


def _rank(s: Tensor) -> int:
    """Singular values above rounding, given in falling order."""
    return int((s > s[0] * len(s) * 1e-12).sum()) if len(s) and s[0] > 0 else 0


def ridge(x: Rows, y: Tensor, labels: Tensor, penalty: float, met: bool | None = None) -> Tensor:
    """argmin ||XW - PY||^2 + p ||W - W_0||^2 = W_0 + (X^T X + p I)^-1 X^T (PY - X W_0) (eq. 7).

    x (N,d_x), y (C,d_y), labels (N,), ``penalty`` p > 0; W_0 is I, or 0 where the encoders never
    met (``met``; by default those of two widths). Returns (d_x,d_y) float64. No null space: unique,
    in milliseconds.
    """
    return next(ridges(x, y, labels, [penalty], met))


def ridges(
    x: Rows, y: Tensor, labels: Tensor, penalties: Sequence[float], met: bool | None = None
) -> Iterator[Tensor]:
    """``ridge`` for each penalty, one after another, by one product X^T X."""
    (n, d), y = x.shape, y.double()
    start = origin(d, y.shape[1], d == y.shape[1] if met is None else met, y)
    if n < d:  # the same by the n x n matrix
        rows = x[:].double()
        rest, gram = y[labels] - rows @ start, rows @ rows.T
        for p in penalties:
            yield start + rows.T @ torch.linalg.solve(_plus(gram, p), rest)
        return
    gram = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for part in chunks(n):
        rows = x[part].double()
        gram += rows.T @ rows
    right = class_sums(x, labels, len(y)).T @ y - gram @ start
    for p in penalties:
        yield start + torch.linalg.solve(_plus(gram, p), right)


def _plus(gram: Tensor, penalty: float) -> Tensor:
    """gram + p I."""
    return gram + torch.diag(torch.full_like(gram.diagonal(), penalty))


def without_own_class(x: Tensor, y: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """(N,d): each row mapped by the ridge to I of all rows but those of its class (eq. 8).

    With A = X^T X + p I, B the rows of a class and R = PY - XW its residuals, leaving B out turns
    R_B into (I - X_B A^-1 X_B^T)^-1 R_B, as in leave-one-out of any linear smoother.
    """
    x, y = x.double(), y.double()
    inverse = torch.linalg.inv(_plus(x.T @ x, penalty))
    target = y[labels]
    w = inverse @ (x.T @ (target - x))  # less I
    out = torch.empty_like(target)
    for own in labels.argsort(stable=True).split(torch.bincount(labels).tolist()):
        part = x[own]
        hat = part @ inverse @ part.T
        eye = torch.eye(len(own), dtype=hat.dtype, device=hat.device)
        left = torch.linalg.solve(eye - hat, target[own] - part - part @ w)
        out[own] = target[own] - left
    return out.float()


# --- between the closed form and the identity (eq. 5 and 6) ---------------------------------------


def interpolate(w: Tensor, beta: float) -> Tensor:
    """W_b = W - b (W - I), w (d,d): b = 0 is W, b = 1 is zero-shot, exactly."""
    if beta == 0:
        return w
    eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
    return eye if beta == 1 else w - beta * (w - eye)


def choose_beta(x: Rows, y: Tensor, labels: Tensor, folds: Sequence[Fold]) -> float:
    """b of the best mean accuracy on the held-out rows; the smallest where several are best.

    One SVD for each split, not one for each b: X W_b Y^T = (1-b) X W* Y^T + b X Y^T.
    """
    betas = torch.linspace(0, 1, BETAS, dtype=torch.float64).tolist()
    found = torch.zeros(BETAS, dtype=torch.float64)
    for fold in folds:
        w = procrustes(Some(x, fold.rest), y, labels[fold.rest]).float()
        for rows in fold.held.split(at_once(y)):
            some = x[rows]
            mapped, plain = some @ w @ y.T, some @ y.T
            for i, beta in enumerate(betas):
                right = torch.lerp(mapped, plain, beta).argmax(1) == labels[rows]
                found[i] += int(right.sum()) / len(fold.held)
    return float(betas[int(found.argmax())])


# --- refinement (eq. 9 to 12) ---------------------------------------------------------------------


class Texts(NamedTuple):
    """Y and what of it every step needs."""

    y: Tensor
    cosines: Tensor | None
    """Y Y^T, or None where that would be large."""

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """cos(y_a, y_b) for labels a (n,1) and b (n,k): (n,k)."""
        if self.cosines is not None:
            return self.cosines.take(a * len(self.y) + b)
        return (self.y[a] * self.y[b]).sum(-1)


def prepare(y: Tensor) -> Texts:
    """Y (C,d) of unit rows, with its table of cosines."""
    return Texts(y, y @ y.T if len(y) <= TABLE else None)


def rerank(
    u: Tensor, texts: Texts, labels: Tensor, k: int = 3, s: float = 4.0
) -> tuple[Tensor, Tensor]:
    """The adaptive re-ranking loss of U = XW (n,d), and its gradient by U (eq. 9 and 10).

    With z_i = norm(u_i), D_ic = ||z_i - y_c||, K_i the k classes of smallest D_ic:

        L = 1/(nk) sum_i sum_{c in K_i} max(0, D_il - D_ic + m_cl),   m_cl = (1 - y_c^T y_l) / s

    A term with c = l is 0 and still counts in nk. K_i and m are constants of the gradient. On the
    unit sphere D = sqrt(2 - 2 z^T y) and dD/dz = -y / D up to a radial part, which the
    normalisation removes; so the gradient is a sum of at most k + 1 texts for each row, and no
    N x C matrix is ever differentiated.
    """
    norm = u.norm(dim=1, keepdim=True).clamp_min(1e-12)
    z = u / norm
    similar = z @ texts.y.T  # (n,C)
    nearest = similar.topk(min(k, len(texts.y)), dim=1).indices  # K_i
    margin = (1 - texts.between(labels[:, None], nearest)) / s
    index = torch.cat([nearest, labels[:, None]], 1)
    cosines = similar.gather(1, index)
    distances = (2 - 2 * cosines).clamp_min_(1e-12).sqrt_()  # (n,k+1): D_ic, and D_il last
    gap = distances[:, -1:] - distances[:, :-1] + margin
    active = ((gap > 0) & (nearest != labels[:, None])).to(z.dtype)
    count = gap.numel()
    loss = (gap * active).sum() / count
    weight = torch.cat([active, -active.sum(1, keepdim=True)], 1).div_(distances.mul_(count))
    g = functional.embedding_bag(index, texts.y, per_sample_weights=weight, mode="sum")  # dL/dz
    radial = (weight * cosines).sum(1, keepdim=True)  # g z^T, as g is a sum of weighted texts
    return loss, g.addcmul_(radial, z, value=-1).div_(norm)


def contrastive(
    u: Tensor, texts: Texts, labels: Tensor, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of U Y^T / temperature, U not normalised as in the reference (eq. 11)."""
    logits = u @ texts.y.T / temperature
    loss = functional.cross_entropy(logits, labels)
    p = logits.softmax(1)
    p[torch.arange(len(p), device=p.device), labels] -= 1
    return loss, p @ texts.y / (temperature * len(p))


LOSSES = ("rerank", "contrastive")


def refine(
    w: Tensor,
    x: Rows,
    y: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    step: Callable[[], Any] = lambda: None,
) -> Tensor:
    """``recipe.iterations`` steps of AdamW on ``recipe.loss`` from w (d_x,d_y) (eq. 12).

    x (N,d_x), or (N,T,d_x) with T crops of each image: then each step takes one crop, the same for
    all images. Cosine schedule to 1e-7. A step sees a random part of the rows (``recipe.batch``);
    at random noise and dropout on the features, which are not normalised again.
    """
    dice = torch.Generator().manual_seed(seed)  # on the CPU whatever the device
    w, texts = w.to(y.dtype).clone(), prepare(y)
    n, t_end = len(x), recipe.iterations
    most = n if x.ndim == 3 else max(1, round(0.75 * n))
    optimiser = torch.optim.AdamW([w], lr=recipe.lr, weight_decay=recipe.decay, fused=True)
    for t in range(t_end):
        chosen = torch.randperm(n, generator=dice)[: min(recipe.batch, most)].to(x.device)
        crop, noisy, drop = (float(v) for v in torch.rand(3, generator=dice))
        batch = x[chosen]
        if batch.ndim == 3:
            batch = batch[:, int(crop * batch.shape[1])]
        if noisy < 0.5 and recipe.noise:
            noise = torch.randn(batch.shape, generator=dice, dtype=batch.dtype)
            batch = batch + recipe.noise * noise.to(x.device)
        if drop < 0.5 and recipe.dropout:
            keep = torch.rand(batch.shape, generator=dice) >= recipe.dropout
            batch = batch * keep.to(x.device) / (1 - recipe.dropout)
        u, own = batch @ w, labels[chosen]
        if recipe.loss == "contrastive":
            _, gradient = contrastive(u, texts, own)
        else:
            _, gradient = rerank(u, texts, own, recipe.k, recipe.s)
        w.grad = batch.T @ gradient
        for group in optimiser.param_groups:
            group["lr"] = 1e-7 + (recipe.lr - 1e-7) * (1 + math.cos(math.pi * t / t_end)) / 2
        optimiser.step()
        step()
    w.grad = None
    return w


# --- held-out rows --------------------------------------------------------------------------------


class Fold(NamedTuple):
    """Row numbers of one part of a cross-validation."""

    held: Tensor
    """To judge on: a sample where there are many."""
    rest: Tensor
    """To fit on."""


def same_rows(x: Rows) -> Tensor:
    """(N,) int64, equal for rows that are equal up to rounding.

    By their products with six random directions, rounded to .01: a row that is there twice, or
    again at another length, must not be fitted on in one fold and judged in another. So coarse that
    a copy seldom lies on the other side of a limit (float32: 1 of 10,000); rows that differ hardly
    ever agree in all six.
    """
    dice = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[-1], 6, generator=dice, dtype=torch.float64).to(x.device)
    cells = torch.empty(len(x), 6, dtype=torch.long, device=x.device)
    for part in chunks(len(x)):
        cells[part] = (x[part].double() @ directions * 100).round().long()
    return cells.unique(dim=0, return_inverse=True)[1]


def split(x: Rows, labels: Tensor, classes: int, seed: int) -> tuple[str, list[Fold]]:
    """("samples" or "classes", three folds). Equal rows are in the same fold.

    With two or more different examples of most classes: each class is spread over the folds. With
    one: whole classes are held out, since W does not know the classes; sample folds would then test
    classes that were never seen and call that overfitting. No folds for fewer than two classes.
    """
    dice = torch.Generator().manual_seed(seed)
    same, labels = same_rows(x).cpu(), labels.cpu()
    first = torch.full((int(same.max()) + 1,), len(same)).scatter_reduce(
        0, same, torch.arange(len(same)), "amin"
    )  # the first of equal rows stands for all
    own = labels[first]
    counts = torch.bincount(own, minlength=classes)
    seen = counts.nonzero()[:, 0]
    if len(seen) < 2:
        return "classes", []
    if int(counts[seen].median()) >= 2:
        order = torch.randperm(len(own), generator=dice)
        order = order[own[order].argsort(stable=True)]
        start = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)[:-1]])
        rank = torch.arange(len(own)) - start[own[order]]
        shift = torch.randint(FOLDS, (classes,), generator=dice)
        fold = torch.empty_like(own)
        fold[order] = (rank + shift[own[order]]) % FOLDS
        kind = "samples"
    else:
        place = torch.zeros(classes, dtype=torch.long)
        place[seen[torch.randperm(len(seen), generator=dice)]] = torch.arange(len(seen)) % FOLDS
        fold, kind = place[own], "classes"
    fold = fold[same]
    found = []
    for i in range(FOLDS if len(labels) <= ENOUGH else 1):
        held = (fold == i).nonzero()[:, 0]
        rest = (fold != i).nonzero()[:, 0]
        most = min(ENOUGH, max(1024, JUDGED // classes))
        if len(held) > most:
            held = held[torch.randperm(len(held), generator=dice)[:most]]
        if len(held) and len(rest):
            found.append(Fold(held.to(x.device), rest.to(x.device)))
    return kind, found


# --- the choice of the map (eq. 13) ---------------------------------------------------------------


class Map(NamedTuple):
    """Which map: what kind, and its penalty (ridge) or its share of I."""

    kind: str
    """zero-shot, ridge, closed form, rerank or contrastive."""
    amount: float = 0.0


class Judged(NamedTuple):
    """A map on rows that it was not fitted on."""

    right: Tensor
    """(n,) 1 where the true class is the most similar, alone."""
    likely: Tensor
    """(n,) log-likelihood of the true class at the scale that is best for it."""
    scale: float
    """Of the probabilities."""


def look(x: Rows, w: Tensor | None, y: Tensor, labels: Tensor) -> Tensor:
    """(1 + SCALES, n) float64 of rows x (n,d_x) under the map w: is the answer right, and the
    log-likelihood of the true class at each scale.

    exp(2k) is the square of exp(k), so that two exponentials serve all scales.
    """
    made = []
    for part in chunks(len(x), at_once(y)):
        u = x[part] if w is None else x[part] @ w
        scores = unit(u) @ y.T
        own = scores.gather(1, labels[part][:, None])
        right = ((scores >= own).sum(1) == 1).double()
        top = scores.amax(1, keepdim=True)
        shifted, gap = scores.sub_(top), (own - top)[:, 0].double()
        rows = [right, torch.full_like(gap, -math.log(len(y)))]
        for base in (1.0, 2**0.5):
            raised, k = (base * shifted).exp_(), base
            for _ in range(len(SCALES) // 2):
                rows.append(k * gap - raised.sum(1).double().log())
                raised, k = raised.square_(), 2 * k
        made.append(torch.stack(rows).cpu())
    return torch.cat(made, 1)


def judge(parts: Sequence[Tensor], usual: float = SCALE) -> Judged:
    """What ``look`` saw in each fold, at the scale that is best over all of them: a map is not to
    lose because its cosines are close together.

    ``usual``: the middle of the prior of the scale. The scale of the probabilities is the posterior
    mean (of its logarithm), since with few rows the likeliest one may be far off.
    """
    joined = torch.cat(list(parts), 1)
    likely = joined[1:].sum(1)
    logs = torch.tensor(SCALES[1:], dtype=torch.float64).log()
    given = likely[1:] - ((logs - math.log(usual)) / SPREAD).square() / 2
    scale = float((given.softmax(0) * logs).sum().exp())
    return Judged(joined[0], joined[1 + int(likely.argmax())], scale)


def steps_of(recipe: Recipe, folds: int = FOLDS) -> int:
    """How many steps ``fit`` reports."""
    return max(1, recipe.iterations * (1 + (folds * len(_losses(recipe)) if recipe.safe else 0)))


def _losses(recipe: Recipe) -> tuple[str, ...]:
    """The refinements to try, the one without a choice first."""
    return () if not recipe.iterations else (recipe.loss,) if recipe.loss else LOSSES


def fit(
    x: Rows, y: Tensor, labels: Tensor, recipe: Recipe, step: Callable[[], Any] = lambda: None
) -> Fit:
    """W for images x (N,d_x) or (N,crops,d_x) with labels (N,) into texts y (C,d_y); unit rows.

    ``step`` is called ``steps_of(recipe)`` times.
    """
    started, left = time.perf_counter(), steps_of(recipe)

    def advance() -> None:
        nonlocal left
        left -= 1
        step()

    centre = x[:, -1] if x.ndim == 3 else x  # the centre crop is the last
    kind, folds = split(centre, labels, len(y), recipe.seed)
    beta = recipe.beta
    if beta is None:
        beta = choose_beta(centre, y, labels, folds) if recipe.met and folds else 0.0
    report: dict[str, Any] = {"rows": len(x), "classes": len(y), "beta": beta}
    report["folds"] = kind if folds else "none"
    if recipe.safe:
        chosen, scale = _choose(x, centre, y, labels, recipe, beta, kind, folds, report, advance)
    else:
        chosen = Map((*_losses(recipe), "closed form")[0])
        scale = SCALE if recipe.met else SCALE_UNMET
    candidates = maps(x, centre, y, labels, recipe, beta, recipe.seed, advance, {chosen.kind})
    w = next(w for candidate, w in candidates if candidate == chosen)
    for _ in range(left):
        step()
    report |= {"kept": chosen.kind, "blend": chosen.amount, "scale": scale}
    if chosen.kind == "ridge":
        report |= {"blend": 0.0, "penalty": chosen.amount}
    report["seconds"] = round(time.perf_counter() - started, 4)
    return Fit(w.float(), scale, report)


def maps(
    x: Rows,
    centre: Rows,
    y: Tensor,
    labels: Tensor,
    recipe: Recipe,
    beta: float,
    seed: int,
    step: Callable[[], Any],
    kinds: Collection[str] = ("zero-shot", "ridge", "closed form", *LOSSES),
) -> Iterator[tuple[Map, Tensor]]:
    """The candidates of these kinds, fitted on these rows, one after another: (d_x,d_y) each."""
    if "zero-shot" in kinds and recipe.met:
        yield Map("zero-shot", 1.0), origin(centre.shape[1], y.shape[1], True, y)
    if "ridge" in kinds:
        for p, w in zip(PENALTIES, ridges(centre, y, labels, PENALTIES, recipe.met), strict=True):
            yield Map("ridge", p), w
    losses = [loss for loss in _losses(recipe) if loss in kinds]
    if not losses and "closed form" not in kinds:
        return
    closed = procrustes(centre, y, labels, recipe.met)
    start = interpolate(closed, beta) if recipe.met else closed
    for kind in (*(["closed form"] if "closed form" in kinds else []), *losses):
        w = start
        if kind in LOSSES:
            w = refine(start, x, y, labels, replace(recipe, loss=kind), seed, step)
        for m in BLENDS if recipe.met else BLENDS[:1]:
            yield Map(kind, m), interpolate(w, m)


def _choose(
    x: Rows,
    centre: Rows,
    y: Tensor,
    labels: Tensor,
    recipe: Recipe,
    beta: float,
    kind: str,
    folds: Sequence[Fold],
    report: dict[str, Any],
    step: Callable[[], Any],
) -> tuple[Map, float]:
    """The map to keep and its scale: the incumbent, unless another is clearly better.

    The incumbent is zero-shot, or for encoders that never met the ridge to 0. Candidates are judged
    by the log-likelihood of the true class, which tells more from few rows than right and wrong do.
    "Clearly": by more than two standard errors (``CLEAR``) of the paired difference, and at least
    as often right; of the maps that are, the best is taken.

    With one example of each class only ridges to I are candidates, each judged by leaving out every
    class in turn, exactly and at once (``without_own_class``). The b of eq. 5 was chosen on the
    same folds: one number from all rows, a leak that is small beside two standard errors.
    """
    incumbent = Map("zero-shot", 1.0) if recipe.met else Map("ridge", PENALTY)
    parts: dict[Map, list[Tensor]] = {}
    if kind == "samples":
        for i, fold in enumerate(folds):
            fitted = maps(
                Some(x, fold.rest), Some(centre, fold.rest), y, labels[fold.rest],
                recipe, beta, recipe.seed + 1 + i, step,
            )  # fmt: skip
            held, own = Some(centre, fold.held), labels[fold.held]
            for candidate, w in fitted:
                parts.setdefault(candidate, []).append(look(held, w.float(), y, own))
    elif not recipe.met:
        report["why"] = "one example of each class, and no zero-shot: nothing to validate"
        return incumbent, SCALE_UNMET
    else:  # zero-shot is fitted on nothing: any rows judge it
        some = torch.randperm(len(centre), generator=torch.Generator().manual_seed(recipe.seed))
        some = some[:ENOUGH].sort().values.to(centre.device)
        shown, own = centre[some], labels[some]
        parts[incumbent] = [look(shown, None, y, own)]
        for p in PENALTIES if folds else ():
            u = without_own_class(shown, y, own, p)
            parts[Map("ridge", p)] = [look(u, None, y, own)]
        if not folds:
            report["why"] = "too few classes to validate"
    usual = SCALE if recipe.met else SCALE_UNMET
    found = {candidate: judge(seen, usual) for candidate, seen in parts.items()}
    plain = found[incumbent]
    gains = {candidate: float(_gain(judged, plain)) for candidate, judged in found.items()}
    best = max(gains, key=lambda candidate: gains[candidate])
    chosen = best if gains[best] > 0 else incumbent
    report["zero_shot"] = float(plain.right.mean()) if recipe.met else None
    report["validated"] = float(found[chosen].right.mean())
    return chosen, found[chosen].scale


def _gain(judged: Judged, plain: Judged) -> float:
    """Mean gain in log-likelihood over the incumbent; 0 where it is not clear."""
    gain = judged.likely - plain.likely
    bar = CLEAR * float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    clear = float(gain.mean()) > bar and judged.right.mean() >= plain.right.mean()
    return float(gain.mean()) if clear else 0.0


# --- without labels (eq. 14 and 15) ---------------------------------------------------------------


def sinkhorn(
    similar: Tensor, marginals: Tensor | None = None, epsilon: float = 0.0025, sweeps: int = 100
) -> Tensor:
    """Soft assignment (N,C), rows summing to 1, of the entropic transport with cost 1 - similar.

    ``similar`` (N,C): cosines, so the cost is half the squared distance. Weights 1/N for images and
    ``marginals`` (C,) for classes, 1/C each by default: balanced classes are assumed. In the log
    domain, with epsilon falling from 1, since exp(-1/0.0025) is nothing in float32.
    """
    n, c = similar.shape
    cost = (1 - similar).double()
    log_a = torch.full((n,), -math.log(n), dtype=torch.float64, device=similar.device)
    b = torch.full((c,), 1 / c) if marginals is None else marginals / marginals.sum()
    log_b = b.to(cost).log()
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for i in range(sweeps):
        e = max(epsilon, 0.9**i)
        f = -e * ((g - cost) / e + log_b).logsumexp(1)
        g = -e * ((f[:, None] - cost) / e + log_a[:, None]).logsumexp(0)
    return ((f[:, None] + g - cost) / epsilon + log_b).softmax(1).float()


def fit_unsupervised(
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    rounds: int = 5,
    marginals: Tensor | None = None,
    step: Callable[[], Any] = lambda: None,
) -> Fit:
    """U-LFA: labels by transport, closed form on them, then ``rounds`` of labels and refinement.

    x (N,d), y (C,d), unit rows. ``step`` is called max(1, rounds * recipe.iterations) times. It
    needs a usable zero-shot start: transport cannot tell classes that zero-shot confuses.
    """
    started = time.perf_counter()
    centre = x[:, -1] if x.ndim == 3 else x

    def guess(w: Tensor) -> Tensor:
        return sinkhorn(unit(centre @ w) @ y.T, marginals).argmax(1)

    eye = origin(x.shape[-1], y.shape[1], True, y)
    labels = guess(eye)
    beta = recipe.beta
    if beta is None:
        _, folds = split(centre, labels, len(y), recipe.seed)
        beta = choose_beta(centre, y, labels, folds) if folds else 1.0
    w = interpolate(procrustes(centre, y, labels), beta).float()
    for i in range(rounds if recipe.iterations else 0):
        labels = guess(w)
        w = refine(w, x, y, labels, recipe, recipe.seed + i, step)
    if not (rounds and recipe.iterations):
        step()
    report = {
        "rows": len(x),
        "classes": len(y),
        "beta": beta,
        "kept": "unsupervised",
        "blend": 0.0,
        "changed": float((guess(w) != (centre @ y.T).argmax(1)).double().mean()),
        "scale": SCALE,
        "seconds": round(time.perf_counter() - started, 4),
    }
    return Fit(w, SCALE, report)


# --- use (eq. 16) ---------------------------------------------------------------------------------


def fold(y: Tensor, w: Tensor) -> Tensor:
    """Y' = Y W^T (C,d_x): (xW) y^T = x (y W^T)^T, so servers of X Y'^T need no change.

    The rows are not normalised; argmax x Y'^T = argmax norm(xW) Y^T.
    """
    return y @ w.T
