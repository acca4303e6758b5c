"""The method: linear feature alignment of image features to text features, in the paper's order.

Y. Ouali, A. Bulat, B. Martinez, G. Tzimiropoulos: "Black Box Few-Shot Adaptation for
Vision-Language models", ICCV 2023, arXiv 2304.01752. Equations are numbered as in this plugin's
README.md, which says what is the paper's, what the authors' code does and what is our choice.

    X (N,d)   image features, rows of unit norm           Y (C,d)  text features, one for each class
    l (N,)    labels in 0..C-1; P (N,C) is their one-hot matrix, so PY = Y[l]
    W (d,d)   the map: x' = xW on rows; the text stays. Zero-shot is W = I: argmax X Y^T

    W*  = argmin ||XW - PY||_F with W^T W = I             closed form                        (eq. 3)
    W_b = (1-b) W* + b I                                  b by cross-validation              (eq. 5)
    W   = W_b refined by AdamW on the re-ranking loss     a few hundred cheap steps         (eq. 11)
    W   <- (1-m) W + m I                                  m by cross-validation: never harm (eq. 13)

Where image and text features differ in width, W is (d_x, d_y) and I is the rectangular identity E.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BETAS = 25
"""Values of b that are tried, from 0 to 1 (eq. 6)."""
BLENDS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Values of m that ``safe`` tries."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridges that ``safe`` tries: the larger, the nearer to I."""
CLEAR = 2.0
"""Standard errors by which a map has to be better than I to be taken."""
SCALES = (0.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
"""What cosines are multiplied by to be logits; the best one is taken for each candidate. With 0
among them, to be less sure of wrong answers is no gain."""
FOLDS = 3
ENOUGH = 4096
"""With more rows than this, one fold tells enough."""
ROWS = 8192
"""Rows that are worked on at once, so that memory beyond the features is bounded."""
TABLE = 4096
"""Up to this many classes the cosines between texts are kept as a table."""


@dataclass(frozen=True)
class Recipe:
    """Every setting of a fit; the defaults are the reference's where it has one."""

    init: str = "beta"
    """beta, procrustes, ridge, identity or random: where the refinement starts."""
    beta: float | None = None
    """b of eq. 5; None is cross-validation."""
    ridge: float = 0.1
    """Penalty of the ridge to the identity (eq. 7)."""
    iterations: int = 100
    """Steps of the refinement; 0 is the closed form alone."""
    loss: str = "rerank"
    """rerank, contrastive or triplet."""
    k: int = 3
    """Nearest classes in the loss, the true one allowed among them."""
    s: float = 4.0
    """Margins are (1 - cos(y_c, y_l)) / s."""
    lr: float = 5e-4
    decay: float = 5e-4
    batch: int = 256
    """Rows in a step, at least two for each class and at most 75 % of the support set, our choice:
    the reference always takes 75 %, which costs more and is no more accurate."""
    noise: float = 0.035
    """Standard deviation of the feature noise, added in every other step (at random)."""
    dropout: float = 0.05
    safe: bool = True
    """Cross-validate {I, closed forms, refined} x blends with I, and keep the best (eq. 13)."""
    met: bool = True
    """Were the two encoders trained together, so that I is a map worth keeping? (eq. 17)"""
    seed: int = 0


class Fit(NamedTuple):
    """What a fit gives."""

    w: Tensor
    """(d_x, d_y) float32."""
    average: Tensor
    """The moving average of W over the refinement: starts at I and stays nearer to it (eq. 12)."""
    report: dict[str, Any]


# --- rows of unit norm (eq. 1) --------------------------------------------------------------------


def unit(x: Tensor) -> Tensor:
    """Rows divided by their L2 norm."""
    return functional.normalize(x, dim=-1)


def identity(x_width: int, y_width: int, like: Tensor) -> Tensor:
    """E (d_x,d_y): ones on the diagonal."""
    return torch.eye(x_width, y_width, dtype=like.dtype, device=like.device)


def like_identity(w: Tensor) -> Tensor:
    """E of the shape of w."""
    return identity(w.shape[0], w.shape[1], w)


# --- closed forms (eq. 3, 4, 7 and 8) -------------------------------------------------------------


def class_sums(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """P^T X (C,d) in float64: all that the closed form needs of the support set."""
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    for i in range(0, len(x), ROWS):
        sums.index_add_(0, labels[i : i + ROWS], x[i : i + ROWS].double())
    return sums


def procrustes(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """W* = U V^T with U S V^T = svd(X^T P Y): the orthogonal map nearest to PY, in O(d).

    x (N,d), y (C,d), labels (N,); returns (d,d) float64. X^T P Y = (P^T X)^T Y has rank at most
    C, so where C < d the minimiser is not unique. Of all minimisers this is the one nearest to I
    (eq. 4), so that it is the same on every machine and leaves alone what no example speaks about.
    No sign is corrected: reflections are allowed.

    All that differs from I happens in the span of the class sums and the texts: with an
    orthonormal basis B (d,m) of it, m <= 2C, W* = I + B (W' - I) B^T and W' (m,m) is small.

    For d_x != d_y: U_r V_r^T, of rank r, the largest trace of W^T X^T P Y for a partial isometry.
    """
    sums, y = class_sums(x, labels, len(y)), y.double()
    if sums.shape[1] != y.shape[1]:
        basis_x, basis_y = torch.linalg.qr(sums.T).Q, torch.linalg.qr(y.T).Q
        u, s, vh = torch.linalg.svd((sums @ basis_x).T @ (y @ basis_y), full_matrices=False)
        r = _rank(s)
        return basis_x @ u[:, :r] @ vh[:r] @ basis_y.T
    d = y.shape[1]
    basis = torch.linalg.qr(torch.cat([sums, y]).T).Q if 2 * len(y) < d else identity(d, d, y)
    u, s, vh = torch.linalg.svd((sums @ basis).T @ (y @ basis))  # (m,m)
    r = _rank(s)
    small = u[:, :r] @ vh[:r]
    if r < len(s):  # the rest is free: Z = polar(U_0^T V_0) makes trace(W') largest
        p, _, qh = torch.linalg.svd(u[:, r:].T @ vh[r:].T)
        small = small + u[:, r:] @ (p @ qh) @ vh[r:]
    if basis.shape[1] == d:
        return basis @ small @ basis.T
    return identity(d, d, y) + basis @ (small - like_identity(small)) @ basis.T


def _rank(s: Tensor) -> int:
    """Singular values above rounding, given in falling order."""
    return int((s > s[0] * len(s) * 1e-12).sum()) if len(s) and s[0] > 0 else 0


def ridge(x: Tensor, y: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """argmin ||XW - PY||^2 + p ||W - E||^2 = E + (X^T X + p I)^-1 X^T (PY - XE) (eq. 7).

    p is ``penalty`` > 0. Returns (d_x,d_y) float64. No null space: unique, in
    milliseconds.
    """
    return ridges(x, y, labels, [penalty])[0]


def ridges(x: Tensor, y: Tensor, labels: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """``ridge`` for each penalty, by one product X^T X."""
    (n, d), eye = x.shape, identity(x.shape[1], y.shape[1], y.double())
    y = y.double()
    if n < d:  # the same by the n x n matrix
        x = x.double()
        rest, gram = y[labels] - x @ eye, x @ x.T
        return [eye + x.T @ torch.linalg.solve(_plus(gram, p), rest) for p in penalties]
    gram = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for i in range(0, n, ROWS):
        part = x[i : i + ROWS].double()
        gram += part.T @ part
    right = class_sums(x, labels, len(y)).T @ y - gram @ eye
    return [eye + torch.linalg.solve(_plus(gram, p), right) for p in penalties]


def _plus(gram: Tensor, penalty: float) -> Tensor:
    """gram + p I."""
    return gram + torch.diag(torch.full_like(gram.diagonal(), penalty))


def without_own_class(x: Tensor, y: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """(N,d_y): each row mapped by the ridge of all rows but those of its class, by one inverse.

    With A = X^T X + p I, B the rows of a class and R = PY - XW its residuals, leaving B out turns
    R_B into (I - X_B A^-1 X_B^T)^-1 R_B, as in leave-one-out of any linear smoother.
    """
    x, y = x.double(), y.double()
    inverse = torch.linalg.inv(_plus(x.T @ x, penalty))
    eye = identity(x.shape[1], y.shape[1], y)
    target = y[labels]
    w = eye + inverse @ (x.T @ (target - x @ eye))
    out = torch.empty_like(target)
    for own in labels.argsort(stable=True).split(torch.bincount(labels).tolist()):
        part = x[own]
        hat = part @ inverse @ part.T
        left = torch.linalg.solve(like_identity(hat) - hat, target[own] - part @ w)
        out[own] = target[own] - left
    return out.float()


# --- between the closed form and the identity (eq. 5 and 6) ---------------------------------------


def interpolate(w: Tensor, beta: float) -> Tensor:
    """W_b = W - b (W - E): b = 0 is W, b = 1 is zero-shot, exactly."""
    eye = like_identity(w)
    return eye if beta == 1 else w if beta == 0 else w - beta * (w - eye)


def choose_beta(
    x: Tensor, y: Tensor, labels: Tensor, folds: Sequence[Tensor], closed: Sequence[Tensor]
) -> float:
    """b of the best mean accuracy on the held-out rows; the smallest where several are best.

    ``folds``: for each split the indices that were held out; ``closed``: W* of the others. One
    SVD for each split, not one for each b: X W_b Y^T = (1-b) X W* Y^T + b X Y^T.
    """
    betas = torch.linspace(0, 1, BETAS, dtype=torch.float64).tolist()
    found = torch.zeros(BETAS, dtype=torch.float64)
    for held, w in zip(folds, closed, strict=True):
        found += hits(x[held], y, labels[held], w.float(), betas) / len(held)
    return float(betas[int(found.argmax())])


def hits(x: Tensor, y: Tensor, labels: Tensor, w: Tensor, betas: Sequence[float]) -> Tensor:
    """How many rows each W_b gets right, (betas,) float64."""
    found = torch.zeros(len(betas), dtype=torch.float64)
    eye = like_identity(w)
    for rows in torch.arange(len(x)).split(rows_at_once(y)):
        mapped, plain = x[rows] @ w @ y.T, x[rows] @ eye @ y.T
        for i, beta in enumerate(betas):
            found[i] += int((torch.lerp(mapped, plain, beta).argmax(1) == labels[rows]).sum())
    return found


def rows_at_once(y: Tensor) -> int:
    """So many rows that their scores against all classes take 256 MB at most."""
    return max(1, min(ROWS, 2**26 // len(y)))


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
    """The adaptive re-ranking loss of U = XW (n,d), and its gradient by U.

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
    nearest = similar.topk(min(k, len(texts.y)), dim=1)  # K_i
    margin = (1 - texts.between(labels[:, None], nearest.indices)) / s
    return _hinge(z, norm, texts.y, labels, similar, nearest.indices, margin)


def triplet(u: Tensor, texts: Texts, labels: Tensor, margin: float = 0.1) -> tuple[Tensor, Tensor]:
    """The usual loss with the hardest wrong class and one margin, for comparison."""
    norm = u.norm(dim=1, keepdim=True).clamp_min(1e-12)
    z = u / norm
    similar = z @ texts.y.T
    wrong = similar.scatter(1, labels[:, None], -math.inf).argmax(1, keepdim=True)
    return _hinge(z, norm, texts.y, labels, similar, wrong, torch.full_like(norm, margin))


def _hinge(
    z: Tensor,
    norm: Tensor,
    y: Tensor,
    labels: Tensor,
    similar: Tensor,
    rivals: Tensor,
    margin: Tensor,
) -> tuple[Tensor, Tensor]:
    """mean over (n,k) of max(0, D_il - D_ic + margin), and the gradient by u = norm * z."""
    index = torch.cat([rivals, labels[:, None]], 1)
    cosines = similar.gather(1, index)
    distances = (2 - 2 * cosines).clamp_min_(1e-12).sqrt_()  # (n,k+1): D_ic, and D_il last
    gap = distances[:, -1:] - distances[:, :-1] + margin
    active = ((gap > 0) & (rivals != labels[:, None])).to(z.dtype)
    count = gap.numel()
    loss = (gap * active).sum() / count
    weight = torch.cat([active, -active.sum(1, keepdim=True)], 1).div_(distances.mul_(count))
    g = functional.embedding_bag(index, y, per_sample_weights=weight, mode="sum")  # dL/dz
    radial = (weight * cosines).sum(1, keepdim=True)  # g z^T, as g is a sum of weighted texts
    return loss, g.addcmul_(radial, z, value=-1).div_(norm)


def contrastive(
    u: Tensor, texts: Texts, labels: Tensor, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of U Y^T / temperature, U not normalised, as in the reference's ablation."""
    logits = u @ texts.y.T / temperature
    loss = functional.cross_entropy(logits, labels)
    p = logits.softmax(1)
    p[torch.arange(len(p), device=p.device), labels] -= 1
    return loss, p @ texts.y / (temperature * len(p))


def refine(
    w: Tensor,
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    step: Callable[[], Any] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """``recipe.iterations`` steps of AdamW from w (d_x,d_y): the last W and the moving average.

    x (N,d_x), or (N,T,d_x) with T crops of each image: then each step takes one crop, the same for
    all images. Cosine schedule to 1e-7. A step sees a random part of the rows
    (``recipe.batch``); at random noise and dropout on the features, which are not normalised again.
    """
    dice = torch.Generator().manual_seed(seed)  # on the CPU whatever the device
    w, texts = w.to(x.dtype).clone(), prepare(y)
    average, n = like_identity(w), len(x)
    most = n if x.ndim == 3 else max(1, round(0.75 * n))
    rows = min(max(recipe.batch, 2 * len(y)), most)
    size = rows * x.shape[-1]
    noise, mask = _pools(2 * size, recipe, seed, x)
    optimiser = torch.optim.AdamW([w], lr=recipe.lr, weight_decay=recipe.decay, fused=True)
    t_end, half = recipe.iterations, max(1, recipe.iterations // 2)
    for t in range(t_end):
        chosen = torch.randperm(n, generator=dice)[:rows].to(x.device)
        crop, noisy, drop, *place = (float(v) for v in torch.rand(5, generator=dice))
        batch = x[chosen, int(crop * x.shape[1])] if x.ndim == 3 else x[chosen]
        start = [int(p * size) for p in place]
        if noisy < 0.5 and recipe.noise:
            batch += noise[start[0] : start[0] + size].view_as(batch)
        if drop < 0.5 and recipe.dropout:
            batch *= mask[start[1] : start[1] + size].view_as(batch)
        u, own = batch @ w, labels[chosen]
        if recipe.loss == "rerank":
            _, gradient = rerank(u, texts, own, recipe.k, recipe.s)
        elif recipe.loss == "triplet":
            _, gradient = triplet(u, texts, own)
        else:
            _, gradient = contrastive(u, texts, own)
        w.grad = batch.T @ gradient
        for group in optimiser.param_groups:
            group["lr"] = 1e-7 + (recipe.lr - 1e-7) * (1 + math.cos(math.pi * t / t_end)) / 2
        optimiser.step()
        momentum = 0.9 + 0.1 * (1 - math.exp(-5 * min(t, half) / half))
        average.lerp_(w, 1 - momentum)
        step()
    w.grad = None
    return w, average


def _pools(size: int, recipe: Recipe, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and dropout factors (size,) for all steps: each reads them from a random place, since
    to draw them afresh took longer than the matrix products."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    drawn = torch.rand(size, generator=generator, device=like.device)
    mask = (drawn >= recipe.dropout).to(like.dtype) / max(1e-9, 1 - recipe.dropout)
    noise = torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)
    return noise.mul_(recipe.noise), mask


# --- the whole fit, which by default cannot harm (eq. 13) -----------------------------------------


def split(labels: Tensor, classes: int, seed: int) -> tuple[str, list[Tensor]]:
    """("samples" or "classes", the indices held out in each of three folds).

    With two or more examples of most classes: each class is spread over the folds. With one: whole
    classes are held out, since W does not know the classes; sample folds would then test
    classes that were never seen and call that overfitting. No folds for fewer than two classes.
    """
    dice = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=classes)
    seen = counts.nonzero()[:, 0]
    if len(seen) < 2:
        return "classes", []
    if int(counts[seen].median()) >= 2:
        order = torch.randperm(len(labels), generator=dice)
        order = order[labels[order].argsort(stable=True)]
        start = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)[:-1]])
        rank = torch.arange(len(labels)) - start[labels[order]]
        shift = torch.randint(FOLDS, (classes,), generator=dice)
        fold = torch.empty_like(labels)
        fold[order] = (rank + shift[labels[order]]) % FOLDS
        kind = "samples"
    else:
        place = torch.zeros(classes, dtype=torch.long)
        place[seen[torch.randperm(len(seen), generator=dice)]] = torch.arange(len(seen)) % FOLDS
        fold, kind = place[labels], "classes"
    held = [(fold == i).nonzero()[:, 0] for i in range(FOLDS)]
    return kind, [h for h in held if 0 < len(h) < len(labels)]


def steps_of(recipe: Recipe, labels: Tensor, classes: int) -> int:
    """How many steps ``fit`` will report."""
    runs = 1 + (_validations(labels, classes, recipe) if recipe.safe else 0)
    return max(1, runs * recipe.iterations)


def _validations(labels: Tensor, classes: int, recipe: Recipe) -> int:
    """Folds in which the refinement is tried."""
    kind, folds = split(labels, classes, recipe.seed)
    return 0 if kind == "classes" else min(len(folds), 1) if len(labels) > ENOUGH else len(folds)


def fit(
    x: Tensor, y: Tensor, labels: Tensor, recipe: Recipe, step: Callable[[], Any] = lambda: None
) -> Fit:
    """W for images x (N,d_x) or (N,crops,d_x) with labels (N,) into texts y (C,d_y); unit rows.

    ``step`` is called ``steps_of(...)`` times.
    """
    started = time.perf_counter()
    centre = x[:, -1] if x.ndim == 3 else x  # the centre crop is the last
    kind, folds = split(labels, len(y), recipe.seed)
    folds = [fold.to(x.device) for fold in folds]
    rest = [_others(fold, len(x)) for fold in folds]
    square = x.shape[-1] == y.shape[1] and recipe.met
    report: dict[str, Any] = {"rows": len(x), "classes": len(y), "folds": kind if folds else "none"}

    beta = 1.0 if recipe.init == "identity" else 0.0 if recipe.beta is None else recipe.beta
    if recipe.init == "beta" and recipe.beta is None and square and folds:
        few = folds[: 1 if len(x) > ENOUGH else FOLDS]
        closed = [procrustes(centre[r], y, labels[r]) for r in rest[: len(few)]]
        beta = choose_beta(centre, y, labels, few, closed)
    report["beta"] = beta

    start = start_of(centre, y, labels, recipe, beta)
    if recipe.iterations:
        w, average = refine(start, x, y, labels, recipe, recipe.seed, step)
    else:
        w, average = start.float(), start.float()
        step()
    report |= {"kept": "refined" if recipe.iterations else recipe.init, "blend": 0.0}
    if recipe.safe:
        w = _safe(x, y, labels, recipe, beta, w, folds, rest, kind, report, step)
        if report["kept"] == "zero-shot":
            average = w
    report["seconds"] = round(time.perf_counter() - started, 4)
    return Fit(w.float(), average.float(), report)


def start_of(x: Tensor, y: Tensor, labels: Tensor, recipe: Recipe, beta: float) -> Tensor:
    """Where the refinement starts, (d_x,d_y) float64."""
    if recipe.init == "ridge":
        return ridge(x, y, labels, recipe.ridge)
    if recipe.init == "identity" or (beta == 1 and x.shape[1] == y.shape[1]):
        return identity(x.shape[1], y.shape[1], y.double())
    if recipe.init == "random":
        dice = torch.Generator().manual_seed(recipe.seed)
        wide, thin = max(x.shape[1], y.shape[1]), min(x.shape[1], y.shape[1])
        q = torch.linalg.qr(torch.randn(wide, thin, generator=dice, dtype=torch.float64)).Q
        return (q if x.shape[1] == wide else q.T).to(x.device)
    return interpolate(procrustes(x, y, labels), beta)


def _others(held: Tensor, n: int) -> Tensor:
    keep = torch.ones(n, dtype=torch.bool, device=held.device)
    keep[held] = False
    return keep.nonzero()[:, 0]


def _safe(
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    recipe: Recipe,
    beta: float,
    refined: Tensor,
    folds: Sequence[Tensor],
    rest: Sequence[Tensor],
    kind: str,
    report: dict[str, Any],
    step: Callable[[], Any],
) -> Tensor:
    """Choose by cross-validation on the support set; I where nothing is clearly better than I.

    Judged by the log-likelihood of the true class (``judge``), which tells more from few rows than
    right and wrong do. "Clearly": by more than two standard errors (``CLEAR``) of the paired
    difference, and at least as often right; of the maps that are, the best is taken.

    With one example of each class only ridges are candidates, each judged by leaving out every
    class in turn, exactly and at once (``without_own_class``): what W says of a class that it has
    not seen is the least that it can do. (The b of eq. 5 was chosen on the same folds: one number
    from all rows, a leak too small to matter against two standard errors.)
    """
    centre = x[:, -1] if x.ndim == 3 else x
    square = x.shape[-1] == y.shape[1] and recipe.met
    eye = identity(x.shape[-1], y.shape[1], y)
    if not square and (kind == "classes" or not folds):
        report["why"] = "one example of each class, and no zero-shot map: nothing to validate"
        return refined
    if not folds:
        report |= {"kept": "zero-shot", "blend": 1.0, "why": "too few classes to validate"}
        return eye
    parts: dict[tuple[str, float], list[Tensor]] = {}
    if kind == "classes":
        held = [torch.arange(len(x), device=x.device)]
        for p in PENALTIES:
            u = without_own_class(centre, y, labels, p)
            parts["ridge", p] = [judge(u, y, labels)]
    else:
        held = list(folds[: _validations(labels, len(y), recipe)])
        for i, (own, others) in enumerate(zip(held, rest, strict=False)):
            some = centre[others], y, labels[others]
            start = start_of(*some, recipe, beta)
            maps = {
                ("ridge", p): w for p, w in zip(PENALTIES, ridges(*some, PENALTIES), strict=True)
            }
            fitted = {"closed form": start.float()}
            if recipe.iterations:
                seed = recipe.seed + 1 + i
                made, _ = refine(start, x[others], y, labels[others], recipe, seed, step)
                fitted["refined"] = made
            for name, w in fitted.items():
                for m in BLENDS if square else BLENDS[:1]:
                    maps[name, m] = interpolate(w, m)
            for key, w in maps.items():
                parts.setdefault(key, []).append(judge(centre[own] @ w.float(), y, labels[own]))
    found = {key: at_best_scale(of) for key, of in parts.items()}
    plain = at_best_scale([judge(centre[own] @ eye, y, labels[own]) for own in held])
    gains = {key: best[1] - plain[1] for key, best in found.items()}
    clear = [
        key
        for key, gain in gains.items()
        if not square
        or (float(gain.mean()) > _bar(gain) and found[key][0].mean() >= plain[0].mean())
    ]
    report["zero_shot"] = float(plain[0].mean()) if square else None
    if not clear:
        report |= {"kept": "zero-shot", "blend": 1.0, "validated": report["zero_shot"]}
        return eye
    name, how = max(clear, key=lambda key: float(gains[key].mean()))
    report |= {
        "validated": float(found[name, how][0].mean()),
        "kept": name,
        "blend": how if name != "ridge" else 0.0,
    }
    if name == "ridge":
        report["penalty"] = how
        return ridge(centre, y, labels, how).float()
    made = refined if name == "refined" else start_of(centre, y, labels, recipe, beta).float()
    return interpolate(made, how)


def judge(u: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """(1 + SCALES, n) of mapped rows u (n,d_y): is the answer right, and its log-likelihood by
    softmax(scale * cosine) for each scale."""
    made = []
    for rows in torch.arange(len(u), device=u.device).split(rows_at_once(y)):
        scores = unit(u[rows]) @ y.T
        own = scores.gather(1, labels[rows][:, None])
        right = ((scores >= own).sum(1) == 1).float()
        likely = [(k * own)[:, 0] - (k * scores).logsumexp(1) for k in SCALES]
        made.append(torch.stack([right, *likely]))
    return torch.cat(made, 1).double().cpu()


def at_best_scale(parts: Sequence[Tensor]) -> Tensor:
    """(2,n): right, and log-likelihood at the scale that is best on average over all parts.

    So a map is not judged by how crowded its rows are.
    """
    joined = torch.cat(list(parts), 1)
    return torch.stack([joined[0], joined[1:][joined[1:].mean(1).argmax()]])


def _bar(gain: Tensor) -> float:
    """What the mean gain has to exceed."""
    return CLEAR * float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf


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

    eye = identity(x.shape[-1], y.shape[1], y)
    labels = guess(eye)
    _, folds = split(labels, len(y), recipe.seed)
    folds = [fold.to(x.device) for fold in folds]
    closed = [procrustes(centre[r], y, labels[r]) for r in (_others(h, len(x)) for h in folds)]
    beta = recipe.beta
    if beta is None:
        beta = choose_beta(centre, y, labels, folds, closed) if folds else 1.0
    w = interpolate(procrustes(centre, y, labels), beta).float()
    average = eye
    for i in range(rounds if recipe.iterations else 0):
        labels = guess(w)
        w, average = refine(w, x, y, labels, recipe, recipe.seed + i, step)
    if not (rounds and recipe.iterations):
        step()
    report = {
        "rows": len(x),
        "classes": len(y),
        "beta": beta,
        "kept": "unsupervised",
        "blend": 0.0,
        "changed": float((guess(w) != (centre @ eye @ y.T).argmax(1)).double().mean()),
        "seconds": round(time.perf_counter() - started, 4),
    }
    return Fit(w, average, report)


# --- use (eq. 16) ---------------------------------------------------------------------------------


def fold(y: Tensor, w: Tensor) -> Tensor:
    """Y' = Y W^T (C,d_x): (xW) y^T = x (y W^T)^T, so servers of X Y'^T need no change.

    The rows are not normalised; argmax x Y'^T = argmax norm(xW) Y^T.
    """
    return y @ w.T


# --- encoders of different widths (eq. 17) --------------------------------------------------------


def projection(x: Tensor, width: int, kind: str, seed: int = 0) -> Tensor:
    """(d,width) from d to width columns: ``random`` Gaussian (the reference's), or ``pca`` of x."""
    d = x.shape[1]
    if kind == "random":
        dice = torch.Generator().manual_seed(seed)
        return (torch.randn(d, width, generator=dice) / math.sqrt(width)).to(x.device)
    centred = x.double() - x.double().mean(0)
    vh = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    made = torch.zeros(d, width, dtype=torch.float64, device=x.device)
    made[:, : len(vh)] = vh.T  # fewer rows than columns: the rest stays empty
    return made.float()


def chunks(rows: int) -> Iterator[slice]:
    """Slices of at most ``ROWS`` rows."""
    for i in range(0, rows, ROWS):
        yield slice(i, i + ROWS)


LOSSES: Mapping[str, Any] = {"rerank": rerank, "triplet": triplet, "contrastive": contrastive}
INITS = ("beta", "procrustes", "ridge", "identity", "random")
