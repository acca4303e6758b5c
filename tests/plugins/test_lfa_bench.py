"""What ``zoo bench lfa`` rests on: worlds, baselines, and the rules that decide its claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from zoo_lfa import baselines, bench, lfa, photographs, real, towers, worlds

from zoo.experiment import Book
from zoo.interfaces import Claim


def test_pictures_show_their_class_and_are_the_same_again() -> None:
    labels = torch.arange(64)
    pictures = worlds.render(labels, torch.Generator().manual_seed(0))
    assert pictures.shape == (64, 3, 32, 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(pictures, worlds.render(labels, torch.Generator().manual_seed(0)))
    dice = torch.Generator().manual_seed(1)
    assert torch.equal(worlds.shifted(pictures, 0, dice), pictures)
    moved = [(worlds.shifted(pictures, a, dice) - pictures).abs().mean() for a in (0.25, 0.5, 0.75)]
    assert moved == sorted(moved)


def test_towers_read_every_name_as_six_words() -> None:
    net = worlds.Towers()
    tokens = net.tokens(worlds.NAMES)
    assert tokens.shape == (64, 6)
    assert len({tuple(row) for row in tokens.tolist()}) == 64
    assert 0.5e6 < sum(p.numel() for p in net.parameters()) < 0.8e6


def right(method: Callable[[worlds.Task], baselines.Scores], task: worlds.Task) -> float:
    return bench.tried(bench.plain(method), task).accuracy


def test_in_the_faint_world_no_map_beats_zero_shot() -> None:
    """Not even the map fitted on a hundred examples of each class."""
    task = worlds.faint(100, 0, classes=20, d=32, tests=50)
    best = right(baselines.zero_shot, task)
    for method in (baselines.ridge_to_identity, baselines.class_mean):
        assert right(method, task) <= best + 2


@pytest.mark.parametrize(
    "method",
    [
        baselines.class_mean,
        baselines.logistic,
        baselines.logistic_searched,
        baselines.tip_adapter,
        baselines.gda,
        baselines.ridge_to_identity,
        baselines.ridge_classifier,
        baselines.authors,
    ],
)
def test_every_baseline_learns(method: Callable[[worlds.Task], baselines.Scores]) -> None:
    task = worlds.large(classes=10, shots=6, d=32, tests=20, turn=1.0, noise=0.8)
    assert right(method, task) > right(baselines.zero_shot, task)


def test_a_search_sees_the_support_set_alone_and_takes_the_best() -> None:
    task = worlds.large(classes=6, shots=6, d=16)
    asked: list[int] = []

    def make(part: worlds.Task, candidate: int) -> baselines.Scores:
        asked.append(len(part.x))
        return lambda x: (x if candidate == 2 else -x) @ part.y.T

    assert baselines.searched(task, (1, 2, 3), 1, make) == 2
    assert max(asked) < len(task.x)
    one = worlds.large(classes=6, shots=1, d=16)  # nothing can be held out: the default
    assert baselines.searched(one, (1, 2, 3), 3, make) == 3


def test_half_of_the_classes() -> None:
    task = worlds.large(classes=6, shots=2, d=16, tests=3)
    part = bench.half(task, torch.tensor([1, 4]))
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(part.x, task.x[[2, 3, 8, 9]])
    assert torch.equal(part.test, task.test[[3, 4, 5, 12, 13, 14]])


def test_the_calibration_error_of_known_probabilities() -> None:
    """Three answers at confidence .9, two of them right: |.9 - 2/3|; a fourth at .6, right: .4."""
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    labels = torch.tensor([0, 0, 0, 1])
    wanted = 3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.4
    assert math.isclose(real.calibration_error(sure, labels), wanted, rel_tol=1e-6)
    assert real.calibration_error(torch.eye(3), torch.arange(3)) == 0


def test_methods_see_unit_rows_and_textless_ones_no_texts() -> None:
    task = worlds.large(classes=3, shots=2, d=8)
    task = task._replace(x=5 * task.x)
    assert bench.given(task, bench.OURS) is task
    seen = bench.given(task, bench.LOGISTIC)
    assert not seen.y.any()
    torch.testing.assert_close(seen.x, lfa.unit(task.x))
    assert torch.equal(bench.given(task, bench.AUTHORS).y, task.y)


def test_one_harm_decides() -> None:
    """The worst cell counts, not the mean."""
    columns = [bench.column(n, f"harm: {what}") for what in bench.HARM for n in (1, 4)]

    def harm(worst: float) -> Claim:
        book = Book()
        for column in columns:
            found = worst if column == columns[-1] else 60.0
            for seed in range(3):
                book.add(bench.OURS, column, found + seed / 10, seed)
                book.add("zero-shot", column, 48.0, seed)
        return book.claim(
            "harm", "so", *(book.not_worse(bench.OURS, "zero-shot", c, margin=1) for c in columns)
        )

    assert harm(47.5).holds is True
    found = harm(44.0)
    assert found.holds is False
    assert f"shown is the closest (lfa, {columns[-1]})" in found.rule


def test_a_support_set_has_as_many_of_each_class() -> None:
    labels = torch.arange(100) % 10
    x = torch.arange(100.0)[:, None]
    photos = photographs.Photographs(x, labels, x, labels, torch.eye(10))
    task = photos.task(3, seed=1)
    assert torch.bincount(task.labels).tolist() == [3] * 10
    assert torch.equal(labels[task.x[:, 0].long()], task.labels)
    assert torch.equal(task.x, photos.task(3, seed=1).x)
    assert not torch.equal(task.x, photos.task(3, seed=2).x)


def test_a_photograph_moves_in_a_straight_line() -> None:
    """Where each frame shows it, it is the photograph; first and last frame differ in place."""
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = photographs.frames(pictures, seed=3)
    assert made.shape == (2, photographs.FRAMES, 3, photographs.CANVAS, photographs.CANVAS)
    room = photographs.CANVAS - 32

    def place(frame: torch.Tensor, picture: torch.Tensor) -> tuple[int, int]:
        return next(
            (top, left)
            for top in range(room + 1)
            for left in range(room + 1)
            if torch.equal(frame[:, top : top + 32, left : left + 32], picture)
        )

    places = [place(frame, pictures[0]) for frame in made[0]]
    steps = torch.tensor(places, dtype=torch.float32)
    line = torch.lerp(steps[0], steps[-1], torch.linspace(0, 1, photographs.FRAMES)[:, None])
    assert (steps - line).abs().max() <= 1  # whole pixels
    assert places[0] != places[-1]


def test_the_texts_of_imagenet_are_names_with_definitions() -> None:
    texts = towers.imagenet()
    assert len(texts) == 1000
    assert texts[0].startswith("tench")
    assert len(texts[0]) > len("tench, ")


def test_cifar_is_found_where_all_benchmarks_find_their_data(tmp_path: Path) -> None:
    assert real.cifar(None) is None
    assert real.cifar(tmp_path) == tmp_path
    (tmp_path / "cifar10").mkdir()
    assert real.cifar(tmp_path) == tmp_path / "cifar10"


def test_new_classes_are_measured_at_the_most_examples_as_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim names the last count of examples; the map has to be fitted on as many."""
    fitted: list[int] = []

    class Small:
        """64 classes of generated features, in place of rendered shapes."""

        def task(self, strength: float, shots: int, seed: int) -> worlds.Task:
            return worlds.large(64, shots, 16, tests=1, seed=seed)

    class Aligner:
        temperature = 1.0

        def align(self, x: torch.Tensor, y: torch.Tensor, **options: object) -> None:
            if len(y) == 32:
                fitted.append(len(x) // len(y))

        def similarity(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
            return (x @ y.T).numpy()

    monkeypatch.setattr(bench, "load", lambda *_, **__: Aligner())
    monkeypatch.setattr(
        bench, "baselines", SimpleNamespace(**dict.fromkeys(dir(baselines), baselines.zero_shot))
    )
    book, shots = Book(), (1, 2, 4, 8, 16)
    bench.joint(Small(), book, shots, 0, None)  # type: ignore[arg-type]
    assert fitted == [16, 16]
    columns = [c for c in book.columns("zero-shot") if c.endswith("shots") or c.endswith("shot")]
    assert columns == ["met, 1 shot", "met, 4 shots", "met, 16 shots"]
