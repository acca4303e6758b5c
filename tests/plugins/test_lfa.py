"""lfa: the closed forms against known answers, the loss against its definition, bad input."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo_lfa import features, lfa, worlds
from zoo_lfa.model import LFA

import zoo
from zoo.errors import InputError, NotReadyError, OptionError, WeightsError, ZooError
from zoo.testing import VLAlignerSuite

E = torch.eye


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return lfa.unit(torch.randn(n, d, generator=dice))


def rotation(d: int, seed: int = 1) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=dice, dtype=torch.float64)).Q


class TestLFA(VLAlignerSuite):
    name = "lfa"


class TestSquare(VLAlignerSuite):
    """The same, for features of one width, where zero-shot exists."""

    name = "lfa"

    @pytest.fixture
    def pairs(self) -> tuple[Any, Any]:
        y = lfa.unit(rows(4, 24, 5).repeat(15, 1) + 0.7 * rows(60, 24))  # each fourth is alike
        return (y.double() @ rotation(24)).float().numpy(), y.numpy()


# --- closed forms (eq. 3 to 8) --------------------------------------------------------------------


@pytest.mark.parametrize("reflect", [False, True])
def test_a_planted_rotation_is_recovered_exactly(reflect: bool) -> None:
    q = rotation(24)
    if reflect == (float(torch.linalg.det(q)) > 0):
        q[:, 0] = -q[:, 0]  # O(d), not SO(d)
    x = rows(100, 24).double()
    w = lfa.procrustes(x, x @ q, torch.arange(100))
    torch.testing.assert_close(w, q, atol=1e-9, rtol=0)
    w = lfa.procrustes(x.float(), lfa.unit(x @ q).float(), torch.arange(100))
    torch.testing.assert_close(w, q, atol=1e-5, rtol=0)  # float32 features


def test_the_closed_form_is_scipys() -> None:
    from scipy.linalg import orthogonal_procrustes

    x, y, labels = rows(80, 12), rows(20, 12, 1), torch.arange(80) % 20
    expected, _ = orthogonal_procrustes(x.double().numpy(), y[labels].double().numpy())
    np.testing.assert_allclose(lfa.procrustes(x, y, labels), expected, atol=1e-9)


@pytest.mark.parametrize(("classes", "d"), [(5, 32), (20, 32), (40, 32), (2, 3)])
def test_the_closed_form_is_orthogonal_and_optimal(classes: int, d: int) -> None:
    x, y, labels = rows(60, d), rows(classes, d, 1), torch.arange(60) % classes
    w = lfa.procrustes(x, y, labels)
    torch.testing.assert_close(w.T @ w, E(d, dtype=torch.float64), atol=1e-12, rtol=0)

    def error(w: Tensor) -> float:
        return float((x.double() @ w - y[labels].double()).square().sum())

    nuclear = torch.linalg.svdvals(x.double().T @ y[labels].double()).sum()
    assert error(w) == pytest.approx(2 * 60 - 2 * float(nuclear), abs=1e-4)  # unit rows in float32
    assert all(error(w) <= error(rotation(d, seed)) for seed in range(50))


def test_order_and_copies_of_rows_do_not_matter() -> None:
    x, y, labels = rows(30, 16), rows(6, 16, 1), torch.arange(30) % 6
    w, order = lfa.procrustes(x, y, labels), torch.randperm(30)
    torch.testing.assert_close(lfa.procrustes(x[order], y, labels[order]), w, atol=1e-6, rtol=0)
    twice = lfa.procrustes(torch.cat([x, x]), y, torch.cat([labels, labels]))
    torch.testing.assert_close(twice, w, atol=1e-9, rtol=0)


def test_a_rotation_of_the_text_space_turns_the_map_with_it() -> None:
    """With full rank; every score of an aligned image is then the same."""
    x, y, labels, q = rows(60, 12), rows(20, 12, 1), torch.arange(60) % 20, rotation(12)
    w = lfa.procrustes(x, y, labels)
    turned = lfa.procrustes(x, y.double() @ q, labels)
    torch.testing.assert_close(turned, w @ q, atol=1e-9, rtol=0)


def test_what_no_example_speaks_about_is_left_alone() -> None:
    """The map is I orthogonally to images and texts, and of all minimisers the nearest to I."""
    x, y, labels = rows(12, 40), rows(4, 40, 1), torch.arange(12) % 4
    w = lfa.procrustes(x, y, labels)
    basis = torch.linalg.qr(torch.cat([x, y]).double().T).Q
    v = rows(3, 40, 2).double()
    v = v - v @ basis @ basis.T
    torch.testing.assert_close(v @ w, v, atol=1e-9, rtol=0)
    u, _, vh = torch.linalg.svd(lfa.class_sums(x, labels, 4).T @ y.double())
    r, scores = 4, x.double() @ w @ y.double().T
    for seed in range(20):  # other minimisers: the same scores, further from I
        other = u[:, :r] @ vh[:r] + u[:, r:] @ rotation(36, seed) @ vh[r:]
        torch.testing.assert_close(x.double() @ other @ y.double().T, scores, atol=1e-6, rtol=0)
        assert (w - E(40)).norm() <= (other - E(40)).norm() + 1e-9


def test_least_squares_to_the_identity() -> None:
    eye = E(12, dtype=torch.float64)
    x, y, labels = rows(30, 12), rows(6, 12, 1), torch.arange(30) % 6
    direct = torch.linalg.solve(
        x.double().T @ x.double() + 0.3 * eye, x.double().T @ y[labels].double() + 0.3 * eye
    )
    torch.testing.assert_close(lfa.ridge(x, y, labels, 0.3), direct, atol=1e-9, rtol=0)
    few = lfa.ridge(x[:6], y, labels[:6], 0.3)  # the n x n way
    big = x[:6].double()
    right = torch.linalg.solve(big.T @ big + 0.3 * eye, big.T @ y[:6].double() + 0.3 * eye)
    torch.testing.assert_close(few, right, atol=1e-9, rtol=0)
    torch.testing.assert_close(lfa.ridge(x, y, labels, 1e9), eye, atol=1e-6, rtol=0)
    wide, low = rows(8, 20), rows(4, 9, 1)
    found, labels = lfa.ridge(wide, low, torch.arange(8) % 4, 0.1), torch.arange(8) % 4
    big = wide.double()  # encoders that never met: to 0
    gram = big.T @ big + 0.1 * E(20, dtype=torch.float64)
    direct = torch.linalg.solve(gram, big.T @ low[labels].double())
    torch.testing.assert_close(found, direct, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        lfa.ridge(x, y, torch.arange(30) % 6, 1e9, met=False), 0 * eye, atol=1e-6, rtol=0
    )


def test_a_class_left_out_is_left_out_exactly() -> None:
    """By one inverse as by a fit for each class, with one or several rows of a class."""
    x, y, labels = (
        rows(14, 20),
        rows(6, 20, 1),
        torch.tensor([0, 1, 1, 2, 2, 2, 3, 5, 5, 3, 3, 5, 0, 1]),
    )
    found = lfa.without_own_class(x, y, labels, 0.3)
    for c in (0, 1, 2, 3, 5):
        own = labels == c
        w = lfa.ridge(x[~own], y, labels[~own], 0.3)
        torch.testing.assert_close(found[own].double(), x[own].double() @ w, atol=1e-5, rtol=0)


def test_a_judge_knows_right_and_likely() -> None:
    """Two classes by hand; ties are not right; the scale is the best of all."""
    y = E(2)
    u = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = lfa.look(u, None, y, torch.tensor([0, 0, 0]))
    assert found[0].tolist() == [1, 0, 0]
    for row, k in zip(found[1:], lfa.SCALES, strict=True):
        expected = [-math.log1p(math.exp(-k)), -k - math.log1p(math.exp(-k)), -math.log(2)]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)  # float32 of 181
    chosen = lfa.judge([found[:, :2], found[:, 2:]])
    assert torch.equal(chosen.likely, found[1])  # a sure answer is wrong: best is not to be sure
    sure = lfa.judge([found[:, :1]])  # one row, which is right: no reason to be much surer
    assert chosen.scale < lfa.SCALE < sure.scale < 4 * lfa.SCALE
    turned = lfa.look(u @ E(2).flip(0), E(2).flip(0), y, torch.tensor([0, 0, 0]))
    torch.testing.assert_close(turned, found)  # under a map
    none = lfa.judge([found[:, :0]])
    assert none.scale == pytest.approx(lfa.SCALE, rel=0.02)  # the grid is one of square roots of 2


def test_the_scale_is_found_from_many_rows_wherever_it_lies() -> None:
    """Labels drawn with probabilities softmax(40 cosines); the usual scale is 14."""
    y, dice = rows(20, 16, 1), torch.Generator().manual_seed(0)
    u = rows(4000, 16, 2)
    labels = (40 * u @ y.T).softmax(1).multinomial(1, generator=dice)[:, 0]
    assert lfa.judge([lfa.look(u, None, y, labels)]).scale == pytest.approx(40, rel=0.19)
    # the values that are tried lie a factor of 1.41 apart


def test_from_one_example_most_of_the_gain_is_kept() -> None:
    """A spoiled world of many classes: the default finds it out; classes never seen gain too."""
    many = worlds.large(classes=80, shots=1, d=32, tests=10, turn=0.8, noise=0.6)
    seen = many.labels < 40
    made = lfa.fit(many.x[seen], many.y[:40], many.labels[seen], lfa.Recipe())
    assert made.report["kept"] == "ridge"
    new = many.test_labels >= 40

    def right(w: Tensor) -> float:
        scores = many.test[new] @ w @ many.y[40:].T
        return float((scores.argmax(1) == many.test_labels[new] - 40).float().mean())

    assert right(made.w) > right(E(32)) + 0.2


def test_beta_one_is_zero_shot_to_the_bit_and_zero_the_closed_form() -> None:
    x, y = rows(20, 16), rows(5, 16, 1)
    w = lfa.procrustes(x, y, torch.arange(20) % 5).float()
    assert torch.equal(x @ lfa.interpolate(w, 1.0) @ y.T, x @ y.T)
    assert torch.equal(lfa.interpolate(w, 0.0), w)
    torch.testing.assert_close(lfa.interpolate(w, 0.3), 0.7 * w + 0.3 * E(16))


def test_beta_is_chosen_as_by_one_closed_form_for_each_value() -> None:
    x, y, labels = rows(60, 10), rows(5, 10, 1), torch.arange(60) % 5
    x = lfa.unit(x + 1.5 * y[labels])
    _, folds = lfa.split(x, labels, 5, 0)
    closed = [lfa.procrustes(x[fold.rest], y, labels[fold.rest]) for fold in folds]
    found = []
    for beta in torch.linspace(0, 1, lfa.BETAS).tolist():
        right = []
        for (held, _), w in zip(folds, closed, strict=True):
            mixed = (1 - beta) * w + beta * E(10)
            scores = lfa.unit(x[held].double() @ mixed) @ y.double().T
            right.append((scores.argmax(1) == labels[held]).double().mean())
        found.append(sum(right))
    best = lfa.choose_beta(x, y, labels, folds)
    assert found[round(best * (lfa.BETAS - 1))] == max(found)


# --- the loss -------------------------------------------------------------------------------------


def naive(u: Tensor, y: Tensor, labels: Tensor, k: int = 3, s: float = 4.0) -> Tensor:
    """The re-ranking loss as it is written: every distance, sorted, differentiated."""
    z = u / u.norm(dim=1, keepdim=True)
    distance = torch.cdist(z, y, compute_mode="donot_use_mm_for_euclid_dist")  # (n,C)
    nearest = distance.argsort(dim=1)[:, :k]
    margin = (1 - (y @ y.T)[labels[:, None], nearest]) / s
    own = distance.gather(1, labels[:, None])
    return (own - distance.gather(1, nearest) + margin).clamp_min(0).mean()


def test_the_loss_by_hand() -> None:
    """d = 2, texts on the axes, the image on the wrong one, k = 2: (sqrt 2 + 1/4) / 2."""
    y = E(2)
    loss, _ = lfa.rerank(y[1:], lfa.prepare(y), torch.tensor([0]), k=2)
    assert float(loss) == pytest.approx((math.sqrt(2) + 0.25) / 2, abs=1e-5)


@pytest.mark.parametrize("name", lfa.LOSSES)
def test_loss_and_gradient_are_those_of_the_definition(name: str) -> None:
    y, labels = lfa.unit(rows(12, 8, 1).double()), torch.arange(30) % 12
    u = (2 * rows(30, 8).double() + y[labels]).requires_grad_()
    if name == "rerank":
        expected = naive(u, y, labels)
    else:
        expected = torch.nn.functional.cross_entropy(u @ y.T / 0.07, labels)
    (gradient,) = torch.autograd.grad(expected, u)
    loss, found = getattr(lfa, name)(u.detach(), lfa.prepare(y), labels)
    assert float(loss) == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(found, gradient, atol=1e-9, rtol=0)


def test_perfect_alignment_has_no_loss_and_no_nan() -> None:
    y = rows(9, 6)
    loss, gradient = lfa.rerank(y, lfa.prepare(y), torch.arange(9))
    assert float(loss) == 0
    assert torch.equal(gradient, torch.zeros_like(y))


def test_the_loss_does_not_see_scale_rotation_or_the_order_of_classes() -> None:
    y, u, labels, q = (
        rows(10, 6, 1).double(),
        rows(20, 6).double(),
        torch.arange(20) % 10,
        rotation(6),
    )
    loss = lfa.rerank(u, lfa.prepare(y), labels)[0]
    scaled = lfa.rerank(
        u * torch.rand(20, 1, dtype=torch.float64).add(0.1), lfa.prepare(y), labels
    )[0]
    turned = lfa.rerank(u @ q, lfa.prepare(y @ q), labels)[0]
    order = torch.randperm(10)
    mixed = lfa.rerank(u, lfa.prepare(y[order]), order.argsort()[labels])[0]
    for other in (scaled, turned, mixed):
        assert float(other) == pytest.approx(float(loss), abs=1e-12)


def test_large_texts_do_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    y, u, labels = rows(10, 6, 1), rows(20, 6), torch.arange(20) % 10
    expected = lfa.rerank(u, lfa.prepare(y), labels)
    monkeypatch.setattr(lfa, "TABLE", 2)
    for a, b in zip(expected, lfa.rerank(u, lfa.prepare(y), labels), strict=True):
        torch.testing.assert_close(a, b)


def test_refinement_is_adamw_on_the_loss_as_written() -> None:
    """Without noise and dropout, on all rows: learning rates, decay and gradient, step for step."""
    x, y, labels = rows(24, 8).double(), rows(6, 8, 1).double(), torch.arange(24) % 6
    start = lfa.procrustes(x, y, labels)
    recipe = lfa.Recipe(iterations=12, noise=0, dropout=0, batch=999, lr=5e-3, decay=0.1)
    found = lfa.refine(start, x[:, None], y, labels, recipe, 0)  # one crop: every row, each step
    w = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([w], lr=5e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12, 1e-7)
    for _ in range(12):
        optimiser.zero_grad()
        naive(x @ w, y, labels).backward()
        optimiser.step()
        schedule.step()
    assert (w - start).norm() > 0.1
    torch.testing.assert_close(found, w.detach(), atol=1e-6, rtol=0)
    for change in ({"noise": 0.5}, {"dropout": 0.5}):
        other = replace(recipe, **change)  # type: ignore[arg-type]
        assert not torch.allclose(
            lfa.refine(start, x[:, None], y, labels, other, 0), found, atol=1e-3
        )


def test_a_fit_is_the_same_again_and_descends() -> None:
    task = worlds.faint(4, 0, classes=10, d=16)
    a, b = (lfa.fit(task.x, task.y, task.labels, lfa.Recipe(iterations=30)) for _ in range(2))
    assert torch.equal(a.w, b.w)
    texts, start = lfa.prepare(task.y), lfa.procrustes(task.x, task.y, task.labels).float()
    before = lfa.rerank(task.x @ start, texts, task.labels)[0]
    w = lfa.refine(start, task.x, task.y, task.labels, lfa.Recipe(iterations=60), 0)
    assert lfa.rerank(task.x @ w, texts, task.labels)[0] < before


# --- the safe default -----------------------------------------------------------------------------


def test_folds() -> None:
    x, labels = rows(40, 6), torch.arange(40) % 8
    kind, folds = lfa.split(x, labels, 8, 0)
    assert kind == "samples"
    assert sorted(torch.cat([fold.held for fold in folds]).tolist()) == list(range(40))
    for held, rest in folds:  # every class is in training and in test
        assert torch.bincount(labels[held], minlength=8).min() >= 1
        assert torch.bincount(labels[rest], minlength=8).min() >= 3
        assert sorted([*held.tolist(), *rest.tolist()]) == list(range(40))
    kind, folds = lfa.split(x[:8], torch.arange(8), 8, 0)
    assert kind == "classes"
    assert lfa.split(x[:9], torch.zeros(9, dtype=torch.long), 3, 0) == ("classes", [])


@pytest.mark.parametrize("copies", ["the same", "other lengths", "other classes"])
def test_equal_rows_are_in_the_same_fold(copies: str) -> None:
    """At any length, with any label; and copies are no further examples of a class."""
    x, labels = rows(24, 12), torch.arange(24) % 6
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(0.1, 9, 72)[:, None] if copies == "other lengths" else 1
    many = lfa.unit(x.repeat(3, 1) * lengths)[order]
    own = labels.repeat(3)[order]
    if copies == "other classes":
        own = own.roll(1)
    kind, folds = lfa.split(many, own, 6, 0)
    assert kind == "samples"
    number = torch.arange(24).repeat(3)[order]
    for held, rest in folds:
        assert not {*number[held].tolist()} & {*number[rest].tolist()}
    kind, _ = lfa.split(x[:6].repeat(4, 1), torch.arange(24) % 6, 6, 0)
    assert kind == "classes"  # one example of each, four times


def test_copies_of_the_support_set_change_no_choice() -> None:
    """Without groups each copy would be judged by a map fitted on its twin."""
    y = rows(8, 24, 1)
    dice = torch.Generator().manual_seed(3)
    x, labels = lfa.unit(torch.randn(16, 24, generator=dice)), torch.arange(16) % 8  # noise alone
    recipe = lfa.Recipe(iterations=20)
    assert lfa.fit(x, y, labels, recipe).report["kept"] == "zero-shot"
    twice = lfa.fit(x.repeat(4, 1), y, labels.repeat(4), recipe)
    assert twice.report["kept"] == "zero-shot"


@pytest.mark.parametrize("shots", [1, 4])
def test_the_default_does_not_harm_where_nothing_can_be_learned(shots: int) -> None:
    """Zero-shot is the best rule there: the plain fit loses, the default keeps what it has."""
    lost, plain = [], []
    for seed in range(6):
        task = worlds.faint(shots, seed, tests=25)

        def accuracy(w: Tensor, task: worlds.Task = task) -> float:
            return float(((task.test @ w @ task.y.T).argmax(1) == task.test_labels).float().mean())

        best = accuracy(E(128))
        recipe = lfa.Recipe(seed=seed, iterations=50)
        lost.append(best - accuracy(lfa.fit(task.x, task.y, task.labels, recipe).w))
        w = lfa.procrustes(task.x, task.y, task.labels).float()
        plain.append(best - accuracy(w))
    assert np.mean(plain) > 0.2
    assert np.mean(lost) < 0.02  # one standard error of 1000 test rows is 0.016


@pytest.mark.parametrize("met", [True, False])
def test_the_map_is_the_one_that_the_report_names(met: bool) -> None:
    """Kept and blend are what is returned, blends between included."""
    seen = set()
    for seed in range(12 if met else 3):
        task = worlds.large(classes=40, shots=6, d=48, turn=0.6, noise=2.0, seed=seed)
        recipe = lfa.Recipe(seed=seed, iterations=20, met=met)
        made = lfa.fit(task.x, task.y, task.labels, recipe)
        kept, blend = made.report["kept"], made.report["blend"]
        x, labels, y = task[:3]
        if kept == "zero-shot":
            assert torch.equal(made.w, E(48))
            continue
        if kept == "ridge":
            w = lfa.ridge(x, y, labels, made.report["penalty"], met)
        else:
            plain = replace(recipe, safe=False, beta=made.report["beta"])
            plain = replace(
                plain, **({"iterations": 0} if kept == "closed form" else {"loss": kept})
            )
            w = lfa.fit(x, y, labels, plain).w
        w = lfa.interpolate(w, blend) if met else w
        torch.testing.assert_close(made.w, w.float(), atol=1e-6, rtol=0)
        seen.add(blend)
    assert not met or any(0 < blend < 1 for blend in seen)


def test_encoders_that_never_met_get_the_ridge_unless_another_map_is_clearly_better() -> None:
    """Few rows tell nothing apart; many tell that the ridge is too strong."""
    dice = torch.Generator().manual_seed(0)
    mix, y = torch.randn(16, 40, generator=dice), rows(10, 16, 1)
    mix *= torch.logspace(0, -2, 16)[:, None]  # most of what tells classes apart is faint
    kept = {}
    for shots in (1, 2, 400):
        labels = torch.arange(10).repeat(shots)
        x = (y[labels] + 0.2 * torch.randn(len(labels), 16, generator=dice)) @ mix
        x = lfa.unit(lfa.unit(x) - lfa.unit(x).mean(0))
        made = lfa.fit(x, y, labels, lfa.Recipe(met=False, iterations=20))
        kept[shots] = (made.report["kept"], made.report.get("penalty"))
    assert kept[1] == kept[2] == ("ridge", lfa.PENALTY)
    assert kept[400] != ("ridge", lfa.PENALTY)


def test_random_labels_are_seldom_believed() -> None:
    """Two standard errors do not rule out chance, but a tenth of such draws would be too many."""
    y = rows(10, 32, 1)
    dice = torch.Generator().manual_seed(0)
    x = lfa.unit(y[torch.arange(40) % 10] + 0.25 * torch.randn(40, 32, generator=dice))
    replaced = 0
    for seed in range(40):
        labels = torch.randint(10, (40,), generator=torch.Generator().manual_seed(seed))
        made = lfa.fit(x, y, labels, lfa.Recipe(seed=seed, iterations=20))
        replaced += made.report["kept"] != "zero-shot"
    assert replaced <= 4


def test_rows_are_the_same_at_any_length() -> None:
    """All of a thousand, whatever the rounding; rows that differ are told apart."""
    x = rows(1000, 64)
    lengths = 10 ** (6 * torch.rand(1000, 1, generator=torch.Generator().manual_seed(0)) - 3)
    same = lfa.same_rows(torch.cat([x, lfa.unit(x * lengths)]))
    assert torch.equal(same[:1000], same[1000:])
    assert len(same.unique()) == 1000
    assert len(lfa.same_rows(lfa.unit(x[:1] + 0.1 * x)).unique()) == 1000  # much alike


# --- without labels -------------------------------------------------------------------------------


def test_transport_keeps_its_margins() -> None:
    similar = rows(60, 8) @ rows(6, 8, 1).T
    plan = lfa.sinkhorn(similar, epsilon=0.05)
    torch.testing.assert_close(plan.sum(1), torch.ones(60))
    torch.testing.assert_close(plan.sum(0) / 60, torch.full((6,), 1 / 6), atol=1e-3, rtol=0)
    want = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    torch.testing.assert_close(
        lfa.sinkhorn(similar, want, epsilon=0.05).sum(0) / 60, want, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(lfa.sinkhorn(torch.zeros(6, 3)), torch.full((6, 3), 1 / 3))
    order = torch.randperm(6)
    mixed = lfa.sinkhorn(similar[:, order], epsilon=0.05)
    torch.testing.assert_close(mixed, plan[:, order], atol=1e-5, rtol=0)


def test_without_labels_a_small_rotation_is_undone() -> None:
    y = rows(8, 16)
    skew = 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
    x = (y @ torch.matrix_exp(skew - skew.T))[torch.arange(80) % 8]
    model = zoo.load("lfa", device="cpu").align(x, y, unsupervised=True, rounds=2, iterations=20)
    assert (model.similarity(x, y).argmax(1) == np.arange(80) % 8).all()
    assert model.similarity(x, y).diagonal().mean() > (x @ y.T).diagonal().mean()


# --- use ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> worlds.Task:
    """Features that a rotation spoils: easy to mend from four examples a class."""
    return worlds.large(classes=12, shots=4, d=24, tests=5, turn=0.8)


def fresh() -> LFA:
    model: LFA = zoo.load("lfa", device="cpu")
    return model


def accuracy(model: LFA, task: worlds.Task) -> float:
    found = model.similarity(task.test, task.y).argmax(1)
    return float((found == task.test_labels.numpy()).mean())


def test_features_of_every_kind_give_the_same(task: worlds.Task, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    x, y, labels = task.x.numpy(), task.y.numpy(), task.labels.numpy()
    expected = fresh().align(x, y, labels=labels).similarity(task.test, y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.asfortranarray(y))
    np.save(tmp_path / "labels.npy", labels)
    save_file({"features": x}, tmp_path / "x.safetensors")
    save_file({"labels": labels}, tmp_path / "labels.safetensors")
    kinds: list[tuple[Any, Any, Any]] = [
        (tmp_path / "x.npy", str(tmp_path / "y.npy"), tmp_path / "labels.npy"),
        (tmp_path / "x.safetensors", task.y, tmp_path / "labels.safetensors"),
        (x, task.y, task.labels),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), y.tolist(), labels.tolist()),
        (list(task.x), np.repeat(y, 2, axis=0)[::2], labels.astype(np.uint8)),
        (3 * x, 0.2 * y, labels),
        (x.astype(np.float64), y[:, None].repeat(3, 1), labels),
        (x[:, None].repeat(2, 1), y, labels),
    ]
    for images, texts, given in kinds:
        found = fresh().align(images, texts, labels=given).similarity(task.test, y)
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_list_of_tensors(dtype: torch.dtype) -> None:
    listed = [row.to(dtype).requires_grad_() for row in torch.from_numpy(X)]
    found = fresh().similarity(listed, Y)
    expected = fresh().similarity(torch.from_numpy(X).to(dtype), Y)
    np.testing.assert_array_equal(found, expected)


def test_half_precision_gives_the_same_answers(task: worlds.Task) -> None:
    model = fresh().align(task.x.half(), task.y.half(), labels=task.labels)
    full = fresh().align(task.x, task.y, labels=task.labels)
    same = model.similarity(task.test.half(), task.y.half()).argmax(1)
    assert (same == full.similarity(task.test, task.y).argmax(1)).mean() >= 0.95


def test_it_learns_and_says_what(task: worlds.Task) -> None:
    model = fresh()
    before = accuracy(model, task)  # not fitted: zero-shot
    model.align(task.x, task.y, labels=task.labels)
    assert accuracy(model, task) > before + 0.2
    assert model.report["validated"] > model.report["zero_shot"]
    assert model.report["kept"] != "zero-shot"
    assert json.loads(json.dumps(model.report)) == model.report


def test_the_map_serves_classes_it_never_saw(task: worlds.Task) -> None:
    many = worlds.large(classes=60, shots=4, d=24, tests=5, seed=3, turn=0.8)
    seen = many.labels < 48
    model = fresh().align(many.x[seen], many.y[:48], labels=many.labels[seen])
    new = many.test_labels >= 48
    truth = many.test_labels[new].numpy() - 48

    def right(model: LFA) -> float:
        return float((model.similarity(many.test[new], many.y[48:]).argmax(1) == truth).mean())

    assert right(model) > right(fresh()) + 0.2


def test_texts_with_the_map_folded_in_answer_alike(task: worlds.Task, tmp_path: Path) -> None:
    model = fresh().align(task.x, task.y, labels=task.labels)
    folded = model.fold(task.y)
    expected = model.similarity(task.test, task.y)
    assert ((task.test.numpy() @ folded.T).argmax(1) == expected.argmax(1)).all()
    np.testing.assert_array_equal(model.fold(), folded)
    proba = model.predict_proba(task.test)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)
    assert (proba.argmax(1) == expected.argmax(1)).all()
    from zoo.weights import load_tensors

    written = load_tensors(model.export(tmp_path / "texts.safetensors", "safetensors"))
    np.testing.assert_array_equal(written["weight"].numpy(), folded)
    np.testing.assert_array_equal(written["bias"].numpy(), 0)


def calibration_error(proba: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """ECE: |confidence - accuracy| over bins of confidence."""
    sure, right = proba.max(1), proba.argmax(1) == truth
    of = np.minimum((sure * bins).astype(int), bins - 1)
    shares = [(of == b).mean() * abs(sure[of == b].mean() - right[of == b].mean())
              for b in range(bins) if (of == b).any()]  # fmt: skip
    return float(sum(shares))


@pytest.mark.parametrize("met", [True, False])
@pytest.mark.parametrize("shots", [2, 8])
def test_probabilities_are_calibrated_by_the_scale_of_the_fit(met: bool, shots: int) -> None:
    task = worlds.large(classes=20, shots=shots, d=48, tests=60, turn=0.5, noise=2.5)
    model = fresh().align(task.x, task.y, labels=task.labels, met=met)
    proba = model.predict_proba(task.test)
    cosines = model.similarity(task.test, task.y) * model.report["scale"]
    expected = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(proba, expected, atol=1e-5)
    assert model.temperature == pytest.approx(1 / model.report["scale"])
    truth = task.test_labels.numpy()
    assert calibration_error(proba, truth) < 0.1
    fixed = model.predict_proba(task.test, temperature=0.01)
    assert calibration_error(fixed, truth) > calibration_error(proba, truth)


@pytest.mark.parametrize("met", [True, False])
def test_the_length_of_a_row_changes_nothing(met: bool) -> None:
    """At the fit and at the query, of images and of texts, each row by a factor of its own."""
    rng = np.random.default_rng(0)
    y = np.abs(rng.normal(size=(6, 10 if met else 7))).astype("float32")
    labels = np.arange(36) % 6
    x = np.abs(y[labels] @ rng.normal(size=(y.shape[1], 10)) + rng.normal(size=(36, 10)) + 3)
    x = x.astype("float32")

    def length(count: int) -> np.ndarray:
        return (10 ** rng.uniform(-12, 12, (count, 1))).astype("float32")

    plain = fresh().align(x, y, labels=labels, iterations=10)
    other = fresh().align(x * length(36), y * length(6), labels=labels, iterations=10)
    expected = plain.similarity(x, y)
    for images, texts in ((x, y), (x * length(36), y), (x, y * length(6))):
        np.testing.assert_allclose(plain.similarity(images, texts), expected, atol=1e-4)
        np.testing.assert_allclose(other.similarity(images, texts), expected, atol=1e-4)
    assert other.report["kept"] == plain.report["kept"]
    assert ("mean" in plain.state()) is not met


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.safetensors", None), ("x.onnx", "onnx"), ("x.SafeTensors", None), ("x", "safetensors")],
)
def test_the_suffix_decides_the_format(
    task: worlds.Task, tmp_path: Path, name: str, format: str | None
) -> None:
    model = fresh().align(task.x, task.y, labels=task.labels, iterations=0)
    if name == "x.onnx":
        pytest.importorskip("onnx")
    written = model.export(tmp_path / name, format).read_bytes()
    assert (b"weight" in written[:200]) is (name != "x.onnx")


@pytest.mark.parametrize(
    ("name", "format"), [("x.safetensors", "onnx"), ("x.onnx", "safetensors"),
                         ("x.bin", None), ("x", None), ("x.onnx", "tflite")]
)  # fmt: skip
def test_a_suffix_that_contradicts_the_format_is_refused(
    task: worlds.Task, tmp_path: Path, name: str, format: str | None
) -> None:
    model = fresh().align(task.x, task.y, labels=task.labels, iterations=0)
    with pytest.raises(OptionError, match=r"xpected .*\.onnx|expected \.safetensors"):
        model.export(tmp_path / name, format)
    assert not list(tmp_path.iterdir())


def test_the_linear_layer_of_encoders_that_never_met_has_a_bias(
    task: worlds.Task, tmp_path: Path
) -> None:
    from zoo.weights import load_tensors

    model = fresh().align(task.x + 0.3, task.y, labels=task.labels, met=False)
    written = load_tensors(model.export(tmp_path / "x.safetensors"))
    test = lfa.unit(task.test + 0.3)
    found = (test @ written["weight"].T + written["bias"]).argmax(1)
    assert (found.numpy() == model.similarity(task.test + 0.3, task.y).argmax(1)).all()
    assert written["bias"].abs().max() > 0.01


# --- in the words of scikit-learn -----------------------------------------------------------------


def test_fit_predict_score(task: worlds.Task) -> None:
    """The same fit as ``align``; answers in the words that the labels had."""
    labels, y = task.labels.numpy(), task.y.numpy()
    model = fresh().fit(task.x, labels, texts=y)
    expected = fresh().align(task.x, y, labels=labels)
    np.testing.assert_array_equal(model.predict(task.test), expected.predict(task.test))
    np.testing.assert_array_equal(model.classes_, np.arange(12))
    assert model.score(task.test, task.test_labels) == accuracy(expected, task)
    names = [f"thing {i}" for i in range(12)]
    kinds: list[Any] = [names, list(range(100, 112)), np.arange(100, 112)]
    for classes in kinds:
        values = np.asarray(classes)
        named = fresh().fit(task.x, values[labels], texts=y, classes=classes)
        np.testing.assert_array_equal(named.classes_, values)
        np.testing.assert_array_equal(named.predict(task.test), values[model.predict(task.test)])
        assert named.score(task.test, values[task.test_labels]) == accuracy(expected, task)
        assert named.classes == tuple(map(str, classes))
        json.dumps(named.config)  # it can be saved
    with pytest.raises(InputError, match="not among"):
        fresh().fit(task.x, labels, texts=y, classes=list(range(1, 13)))
    with pytest.raises(InputError, match="one for each"):
        fresh().fit(task.x, labels, texts=y, classes=names[:5])
    with pytest.raises(InputError, match="classes="):
        fresh().fit(task.x, np.asarray(names)[labels], texts=y)


def test_a_pipeline_and_cross_validation_of_sklearn(task: worlds.Task) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    names = [f"thing {i}" for i in range(12)]
    x, labels = task.x.numpy(), np.asarray(names)[task.labels]
    estimator = fresh().estimator(task.y.numpy(), classes=names, iterations=0)
    assert is_classifier(estimator)
    assert clone(estimator).get_params()["iterations"] == 0
    line = make_pipeline(Normalizer(), estimator)
    found = cross_val_score(line, x, labels, cv=2)
    assert found.mean() > 0.5
    fitted = line.fit(x, labels)
    truth = np.asarray(names)[task.test_labels]
    assert fitted.score(task.test.numpy(), truth) == pytest.approx(
        fresh().fit(x, labels, texts=task.y, classes=names, iterations=0).score(task.test, truth)
    )
    proba = fitted.predict_proba(task.test.numpy())
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(1)], fitted.predict(task.test))
    search = GridSearchCV(estimator, {"safe": [True, False]}, cv=2).fit(x, labels)
    assert search.best_score_ > 0.5
    backwards = fresh().estimator(
        task.y.numpy()[::-1].copy(), classes=names[::-1], iterations=0
    )  # classes that are not sorted
    for scoring in ("neg_log_loss", "roc_auc_ovr"):
        np.testing.assert_allclose(
            cross_val_score(backwards, x, labels, cv=2, scoring=scoring),
            cross_val_score(estimator, x, labels, cv=2, scoring=scoring),
            atol=0.05,  # folds follow the order of classes; columns mixed up cost more than 1
        )
    assert estimator.model.w is None  # each fit has an aligner of its own
    frame = pytest.importorskip("pandas").DataFrame(x)
    np.testing.assert_array_equal(
        clone(estimator).fit(frame, labels).predict(frame),
        clone(estimator).fit(x, labels).predict(x),
    )


@pytest.mark.parametrize("width", [24, 30])
def test_the_exported_classifier_answers_alike(
    task: worlds.Task, tmp_path: Path, width: int
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    q = rotation(width)[:24].float()  # 24 columns, or the same in 30
    x, test = (task.x @ q, task.test @ q) if width > 24 else (task.x, task.test)
    model = fresh().align(x, task.y, labels=task.labels)
    file = model.export(tmp_path / "classifier.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"features": test.numpy()})
    np.testing.assert_allclose(found, model.similarity(test, task.y), atol=1e-5)


def test_saved_and_loaded_to_the_bit(task: worlds.Task, tmp_path: Path) -> None:
    model = fresh().align(task.x, task.y, labels=task.labels)
    model.save_pretrained(tmp_path / "made")
    again: LFA = zoo.load(tmp_path / "made", device="cpu")
    assert model.w is not None
    np.testing.assert_array_equal(again.w, model.w)
    assert again.report == model.report
    np.testing.assert_array_equal(again.fold(), model.fold())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"v": E(3)}, "unknown"),
        ({"w": torch.zeros(3)}, "wrong"),
        ({"w": E(3), "mean": torch.zeros(4)}, "mean"),
        ({"w": E(3), "text_mean": torch.zeros(4)}, "text_mean"),
        ({"w": E(3), "prototypes": torch.zeros(2, 4)}, "prototypes"),
        ({"w": E(3) * float("nan")}, "wrong"),
    ],
)
def test_a_file_that_is_no_map_is_refused(
    tensors: dict[str, Tensor], words: str, tmp_path: Path
) -> None:
    from zoo.weights import save_tensors

    (tmp_path / "made").mkdir()
    save_tensors(tmp_path / "made" / "model.safetensors", tensors)
    with pytest.raises(WeightsError, match=words):
        zoo.load("lfa", weights=tmp_path / "made", device="cpu")


def test_encoders_of_other_widths(task: worlds.Task) -> None:
    """The rectangular map; also where texts are the wider side."""
    dice = torch.Generator().manual_seed(0)
    more = torch.randn(24, 40, generator=dice)
    for x, y in ((task.x @ more, task.y), (task.x, task.y @ more)):
        model = fresh().align(x, y, labels=task.labels)
        right = model.similarity(x, y).argmax(1) == task.labels.numpy()
        assert right.mean() > 0.8
        assert model.similarity(x, y).dtype == np.float32
        with pytest.raises(InputError, match="not trained"):
            fresh().align(x, y, labels=task.labels, met=True)


def test_frames_are_combined_before_they_are_normalised() -> None:
    frames = np.random.default_rng(0).normal(size=(6, 5, 8)).astype(np.float32)
    y = rows(3, 8)
    for pool, combined in (("mean", frames.mean(1)), ("max", frames.max(1))):
        a = fresh().align(frames, y, labels=[0, 1, 2] * 2, pool=pool, safe=False)
        b = fresh().align(combined, y, labels=[0, 1, 2] * 2, safe=False)
        np.testing.assert_allclose(a.w, b.w, atol=1e-5)  # type: ignore[arg-type]
        same = b.similarity(combined, y)  # the verbs pool as the fit did
        np.testing.assert_allclose(a.similarity(frames, y), same, atol=1e-5)
    crops = fresh().align(frames, y, labels=[0, 1, 2] * 2, pool="crops", iterations=0, safe=False)
    centre = fresh().align(frames[:, -1], y, labels=[0, 1, 2] * 2, iterations=0, safe=False)
    np.testing.assert_array_equal(crops.w, centre.w)
    same = centre.similarity(frames[:, -1], y)
    np.testing.assert_array_equal(crops.similarity(frames, y), same)
    assert fresh().align(frames, y, labels=[0, 1, 2] * 2, pool="crops").w is not None


@pytest.mark.parametrize("beta", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("loss", [None, *lfa.LOSSES])
def test_every_variant_fits(task: worlds.Task, beta: float | None, loss: str | None) -> None:
    model = fresh().align(task.x, task.y, labels=task.labels, beta=beta, loss=loss, safe=False)
    assert accuracy(model, task) > accuracy(fresh(), task)


# --- bad input ------------------------------------------------------------------------------------

LOW: Any = "low"
X, Y, L = rows(20, 8).numpy(), rows(5, 8, 1).numpy(), np.arange(20) % 5


def _with(value: float, row: int) -> np.ndarray:
    bad = X.copy()
    bad[row] = value
    return bad


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: fresh().align(_with(math.nan, 7), Y, labels=L), "NaN.* row 7"),
    "infinity": (lambda: fresh().align(_with(math.inf, 3), Y, labels=L), "row 3"),
    "a row of zeros": (lambda: fresh().align(_with(0, 4), Y, labels=L), "zeros in row 4"),
    "beyond float32": (lambda: fresh().align(_with(1e25, 4), Y, labels=L), "float32 in row 4"),
    "names for features": (lambda: fresh().align(X, Y, labels=["a"] * 20), "texts features"),
    "two widths, no labels": (
        lambda: fresh().align(X[:, :5], Y, unsupervised=True),
        "5 columns.* 8",
    ),
    "an empty list": (lambda: fresh().align([], Y, labels=[]), "nothing in the list"),
    "Python objects": (lambda: fresh().align(X.astype(object), Y, labels=L), "float32"),
    "beyond float32 in float64": (
        lambda: fresh().align(X.astype(np.float64) * 1e200, Y, labels=L),
        "beyond float32",
    ),
    "no columns": (lambda: fresh().align(X[:, :0], Y, labels=L), "nothing in it"),
    "no rows": (lambda: fresh().align(X[:0], Y, labels=[]), "nothing in it"),
    "one dimension": (lambda: fresh().align(X[0], Y, labels=[0]), "shape"),
    "whole numbers": (lambda: fresh().align((9 * X).astype(int), Y, labels=L), "expected floats"),
    "ragged": (lambda: fresh().align([[1.0, 2.0], [3.0]], Y, labels=[0, 1]), "alike"),
    "one class": (lambda: fresh().align(X, Y[:1], labels=L * 0), "nothing to tell apart"),
    "label too large": (lambda: fresh().align(X, Y, labels=L + 1), "labels 5 at rows 4"),
    "negative label": (lambda: fresh().align(X, Y, labels=L - 1), "-1"),
    "half labels": (lambda: fresh().align(X, Y, labels=L + 0.5), "whole numbers"),
    "too few labels": (lambda: fresh().align(X, Y, labels=L[:-1]), "19 labels for 20 images"),
    "endless labels": (
        lambda: fresh().align(X, Y, labels=np.where(L == 1, np.inf, L)),
        "no whole numbers in row",
    ),
    "dates as labels": (lambda: fresh().align(X, Y, labels=L.astype("M8[ns]")), "datetime64"),
    "labels of pairs": (lambda: fresh().align(X, Y, labels=np.eye(20)), "whole numbers"),
    "no texts": (lambda: fresh().align(X), "texts are missing"),
    "unequal pairs": (lambda: fresh().align(X, Y), "20 images and 5 texts"),
    "raw without a base": (lambda: fresh().align(X, ["a", "b"], labels=L % 2), "base="),
    "ragged labels": (lambda: fresh().align(X, Y, labels=[[1], [2, 3]]), "whole numbers"),
    "no label file": (lambda: fresh().align(X, Y, labels="y.csv"), "no file or folder y.csv"),
    "sparse": (
        lambda: fresh().align(torch.from_numpy(X).to_sparse(), Y, labels=L),
        "to_dense",
    ),
    "not fitted, probabilities": (
        lambda: fresh().predict_proba(X, Y[:, :7]),
        "nothing is fitted",
    ),
    "a temperature in words": (
        lambda: fresh().align(X, Y, labels=L, iterations=0).predict_proba(X, temperature=LOW),
        "positive number",
    ),
    "no such file": (lambda: fresh().align("no/x.npy", Y, labels=L), "no file"),
    "few images, no labels": (
        lambda: fresh().align(X[:3], Y, unsupervised=True),
        "at least as many",
    ),
    "wrong marginals": (
        lambda: fresh().align(X, Y, unsupervised=True, marginals=[1, 2]),
        "5 positive",
    ),
    "other width later": (
        lambda: fresh().align(X, Y, labels=L).similarity(X[:, :7], Y),
        "fitted on 8",
    ),
    "texts of another width": (
        lambda: fresh().align(X, Y[:, :6], labels=L, met=True),
        "8 columns, text features 6",
    ),
    "NaN in a text": (lambda: fresh().align(X, _with(math.nan, 2)[:5], labels=L), "text.* row 2"),
    "not fitted": (lambda: fresh().similarity(X, Y[:, :7]), "nothing is fitted"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, words = BAD[case]
    with pytest.raises((InputError, OptionError), match=words):
        call()


@pytest.mark.parametrize(
    "option",
    [
        {"loss": "mse"},
        {"k": 0},
        {"s": 0},
        {"beta": 1.5},
        {"beta": "a"},
        {"s": "a"},
        {"s": math.inf},
        {"rounds": 1.5},
        {"iterations": -1},
        {"seed": -1},
        {"seed": 2**70},
        {"iterations": 1.5},
        {"classes": list("abcde"), "labels": None},
        {"pool": "min"},
        {"rounds": -1},
        {"unsupervised": True},
        {"met": False, "unsupervised": True, "labels": None},
    ],
)
def test_bad_options_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        fresh().align(X, Y, **{"labels": L, **option})


@pytest.mark.parametrize("of", [list, np.array])
def test_names_as_labels(of: Callable[[list[str]], Any]) -> None:
    found = features.labels_of(of(["dog", "cat", "dog"]), 3, ["cat", "dog"], 2)
    assert found.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"'dig' not among.*'dog'"):
        features.labels_of(of(["dig"]), 1, ["cat", "dog"], 2)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(InputError, match="not a plain"):
        fresh().align(tmp_path / "x.npy", Y, labels=[0, 1])


def test_an_archive_named_as_an_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, x=X)
    with pytest.raises(InputError, match="npz"):
        fresh().align(tmp_path / "x.npy", Y, labels=L)


def test_what_is_allowed_and_yet_odd_is_said() -> None:
    with pytest.warns(UserWarning, match="1 of 5 classes have no image: 4"):
        model = fresh().align(X, Y, labels=np.minimum(L, 3))
    assert "no image" in model.report["notes"][0]
    with pytest.warns(UserWarning, match="same text features"):
        fresh().align(X, Y[[0, 0, 2, 3, 4]], labels=L)
    with pytest.warns(UserWarning, match="no image"):
        model = fresh().align(X, Y, labels=L * 0)  # examples of one class only: nothing to validate
    assert model.report["kept"] == "zero-shot"


def test_duplicate_rows_and_low_rank_are_fine() -> None:
    same = np.repeat(X[:5], 4, axis=0)
    thin = X[:, :2] @ np.ones((2, 8), np.float32) + np.outer(np.arange(20) + 1.0, np.ones(8))
    for x, labels in ((same, np.repeat(L[:5], 4)), (thin.astype(np.float32), L)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = fresh().align(x, Y, labels=labels, safe=False)
        assert model.w is not None
        assert np.isfinite(model.w).all()


def test_encoders_of_one_width_that_never_met() -> None:
    """Nothing tells them apart but the user, and zero-shot at chance, which the report notes."""
    task = worlds.large(classes=8, shots=12, d=24, tests=10, turn=0, noise=0.8)
    task = task._replace(y=rows(8, 24, 5))  # texts of another encoder
    taken = fresh().align(task.x, task.y, labels=task.labels)
    assert "met=False" in taken.report["notes"][-1]
    found = fresh().align(task.x, task.y, labels=task.labels, met=False)
    assert found.report["zero_shot"] is None  # there is none to keep
    assert found.report["notes"] == []
    assert accuracy(found, task) > 0.8
    assert "mean" in found.state()
    good = worlds.large(classes=8, shots=6, d=24, turn=0.1, noise=0.5)
    assert fresh().align(good.x, good.y, labels=good.labels).report["notes"] == []


def test_from_one_example_of_each_class_the_classes_are_kept() -> None:
    """As many images as classes: what the labels name are classes, pairs all different are none."""
    model = fresh().align(X[:5], Y, labels=L[:5], safe=False)
    np.testing.assert_array_equal(model.fold(), model.fold(Y))
    assert model.predict_proba(X).shape == (20, 5)
    with pytest.raises(NotReadyError, match="pairs"):
        fresh().align(X[:5], Y, safe=False).fold()


def test_pairs_merge_equal_texts() -> None:
    model = fresh().align(X, Y[L])
    assert model.report["classes"] == 5


def test_before_labels_there_are_no_classes() -> None:
    with pytest.raises(NotReadyError):
        fresh().fold()
    with pytest.raises(ZooError):
        fresh().export("x.onnx")


# --- cost -----------------------------------------------------------------------------------------


def test_memory_is_linear_in_rows_and_never_rows_by_classes_by_columns() -> None:
    """The largest array that a fit makes: rows x columns, a step's rows x classes, or columns²."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.most = max(self.most, tensor.untyped_storage().nbytes())
            return out

    d, classes = 16, 40
    for shots in (10, 20):
        task = worlds.large(classes=classes, shots=shots, d=d, tests=1)
        with Largest() as seen:
            lfa.fit(task.x, task.y, task.labels, lfa.Recipe(iterations=3))
        held = len(task.x) // lfa.FOLDS + classes
        assert seen.most <= 8 * max(
            len(task.x) * d, held * classes, len(task.x) * (1 + len(lfa.SCALES))
        )


STREAMED = """
import resource, sys
import numpy as np, torch, zoo

torch.set_num_threads(1)

def align(images, labels):
    model = zoo.load("lfa", device="cpu").align(images, TEXTS, labels=labels, iterations=3)
    return model, model.similarity(images, TEXTS)

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

TEXTS = np.random.default_rng(1).normal(size=(20, 64)).astype("float32")
labels = np.arange(60_000) % 20
array = np.load(sys.argv[1], mmap_mode="r")
align(np.array(array[:200]), labels[:200])
before = peak()
model, found = align(sys.argv[1], labels)
print(peak() - before, found.shape)
"""


@pytest.mark.slow
def test_a_mapped_file_is_read_by_part(tmp_path: Path) -> None:
    """60,000 x 768 float16, 88 MiB: 176 MiB as float32. Of the file itself all may be resident."""
    import subprocess
    import sys

    file, size = tmp_path / "x.npy", (60_000, 768)
    made = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=size)
    rng = np.random.default_rng(0)
    for i in range(0, size[0], 5000):
        made[i : i + 5000] = np.abs(rng.standard_normal((5000, size[1]), dtype=np.float32))
    made.flush()
    del made
    done = subprocess.run(
        [sys.executable, "-c", STREAMED, str(file)], capture_output=True, text=True, check=True
    )
    more, shape = done.stdout.split(" ", 1)
    assert shape.strip() == "(60000, 20)"
    assert int(more) < file.stat().st_size + 100 * 2**20


def test_a_stream_answers_as_a_tensor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    task = worlds.large(classes=8, shots=30, d=24, tests=5, turn=0.8)
    x = task.x.numpy().astype(np.float16)
    for met in (True, False):
        whole = fresh().align(x, task.y, labels=task.labels, iterations=10, met=met)
        monkeypatch.setattr(features, "SMALL", 0)
        monkeypatch.setattr(lfa, "ROWS", 50)
        parts = fresh().align(x, task.y, labels=task.labels, iterations=10, met=met)
        found = parts.similarity(x, task.y)
        monkeypatch.undo()
        assert parts.report["kept"] == whole.report["kept"]
        np.testing.assert_allclose(found, whole.similarity(x, task.y), atol=1e-4)


def test_the_rows_of_a_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many classes there are."""
    y, labels = rows(300, 8), torch.arange(900) % 300
    seen: list[int] = []

    def watched(u: torch.Tensor, *_: Any) -> tuple[float, torch.Tensor]:
        seen.append(len(u))
        return 0.0, 0 * u

    monkeypatch.setattr(lfa, "rerank", watched)
    lfa.refine(E(8), y[labels], y, labels, lfa.Recipe(iterations=2), 0)
    assert seen == [lfa.Recipe().batch] * 2


def test_quicker_than_the_method_written_straight_down() -> None:
    """Equal accuracy, and (loosely: the benchmark measures it) in less time."""
    import time

    from zoo_lfa import reference

    task = worlds.large(classes=40, shots=12, d=96, tests=10, turn=0.8, noise=3.0)
    recipe = lfa.Recipe(safe=False, iterations=40)

    def run(fit: Callable[..., Any]) -> tuple[float, float]:
        started = time.process_time()
        w = fit(task.x, task.y, task.labels, recipe)
        spent = time.process_time() - started
        w = w if isinstance(w, Tensor) else w.w
        return spent, float(
            ((task.test @ w @ task.y.T).argmax(1) == task.test_labels).float().mean()
        )

    run(lfa.fit)  # warm
    quick, right = run(lfa.fit)
    slow, expected = run(reference.fit)
    assert right == pytest.approx(expected, abs=0.05)
    assert quick < slow / 1.5


# --- files and frames -----------------------------------------------------------------------------


def test_features_of_every_container(tmp_path: Path) -> None:
    """The same fit from arrays, files of each kind, and columns with their labels beside them."""
    np.savez(tmp_path / "x.npz", x=X)
    np.savetxt(tmp_path / "x.csv", X, delimiter=",")
    np.save(tmp_path / "X.npy", X)
    (tmp_path / "X.npy").rename(tmp_path / "X.NPY")
    names = [f"c{i}" for i in range(8)]
    records = [
        {**dict(zip(names, map(float, x), strict=True)), "label": int(n)}
        for x, n in zip(X, L, strict=True)
    ]
    expected = fresh().align(X, Y, labels=L, iterations=1).similarity(X, Y)
    for images in (tmp_path / "x.npz", tmp_path / "x.csv", str(tmp_path / "X.NPY"), X.tolist()):
        found = fresh().align(images, Y, labels=L, iterations=1)
        np.testing.assert_allclose(found.similarity(images, Y), expected, atol=1e-5)
    for made in (
        fresh().align(records, Y, iterations=1),
        fresh().align({"x": X, "y": L}, Y, iterations=1),
        fresh().align(records, Y, features=names, label="label", iterations=1),
        fresh().align(X, Y, labels=L.astype(float), iterations=1),
    ):
        np.testing.assert_allclose(made.similarity(X, Y), expected, atol=1e-5)
    turned = [dict(reversed(row.items())) for row in records]  # columns are matched by name
    by_name = fresh().align(records, Y, iterations=1)
    np.testing.assert_allclose(by_name.similarity(turned, Y), expected, atol=1e-5)
    with pytest.raises(InputError, match="features='c7': images has the columns"):
        by_name.similarity([{k: v for k, v in row.items() if k != "c7"} for row in records], Y)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X)
    found = fresh().align(frame, Y, labels=pandas.Series(L), iterations=1)
    np.testing.assert_allclose(found.similarity(frame, Y), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.pt", b"x", "pickled"),
        ("x.jsonl", b'{"image": "a.png", "text": "caf\xe9"}', "x.jsonl cannot be read as UTF-8"),
        ("x.jsonl", b'{"text": "a"}', "rows are language"),
        ("x.xlsx", b"x", "Save it as CSV"),
    ],
)
def test_files_that_are_no_features(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        fresh().align(tmp_path / name, Y, labels=L)


def test_texts_are_split_at_newlines_only(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("one\u2028more\r\nthe other\n".encode("utf-8-sig"))
    with pytest.raises(InputError, match="no encoder is loaded"):  # two texts, so far so good
        fresh().align(X, str(tmp_path / "texts.txt"), labels=L % 2)
    (tmp_path / "texts.txt").write_bytes("żó".encode("utf-16"))
    with pytest.raises(InputError, match=r"texts.txt cannot be read as UTF-8 \(it is UTF-16\)"):
        fresh().align(X, str(tmp_path / "texts.txt"), labels=L % 2)
