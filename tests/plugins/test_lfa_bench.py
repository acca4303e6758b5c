"""What ``zoo bench lfa`` rests on: worlds, baselines, and the rules that decide its claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zoo_lfa import baselines, bench, lfa, worlds

from zoo.errors import InputError
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
    assert 0.5e6 < worlds.parameters(net) < 0.8e6
    prompts = baselines.Prompts(net)
    y = lfa.unit(net.encode_texts(worlds.NAMES))
    torch.testing.assert_close(prompts.texts(prompts.start), y)


def test_in_the_faint_world_no_map_beats_zero_shot() -> None:
    """Not even the map fitted on a hundred examples of each class."""
    task = worlds.faint(100, 0, classes=20, d=32, tests=50)
    best = bench.accuracy(baselines.zero_shot(task), task)
    for method in (baselines.ridge_to_identity, baselines.procrustes_alone, baselines.class_mean):
        assert bench.accuracy(method(task), task) <= best + 2


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_learns(name: str) -> None:
    task = worlds.large(classes=10, shots=6, d=32, tests=20, turn=1.0, noise=0.8)
    zero = bench.accuracy(baselines.zero_shot(task), task)
    found = bench.accuracy(baselines.BASELINES[name](task), task)
    assert found == zero if name == "zero-shot" else found > zero


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


@pytest.mark.parametrize(
    ("seconds", "right", "holds"),
    [
        ([1, 1, 1.1], 80, True),
        ([1, 1, 4], 80, None),
        ([4, 4, 4.1], 80, False),
        ([1] * 3, 79, False),
    ],
)
def test_speed_counts_at_equal_accuracy(
    seconds: list[float], right: float, holds: bool | None
) -> None:
    book = Book(lambda column: "seconds" in column)
    for run, value in enumerate(seconds):
        book.add("x", "speed: seconds, s", value, run)
        book.add(bench.SLOW, "speed: seconds, s", 6 + run / 10, run)
        book.add("x", "speed: accuracy, s", right, run)
        book.add(bench.SLOW, "speed: accuracy, s", 80, run)
    assert book.claim("id", "so", *bench.faster(book, "x", "s")).holds is holds


def test_one_harm_decides() -> None:
    """The worst cell counts, not the mean."""

    def harm(worst: float) -> Claim:
        book = Book()
        columns = (("faint, 1 shot", 48.0), ("held out: a", 60.0), ("held out: b", worst))
        for column, found in columns:
            for seed in range(3):
                for name, value in ((bench.OURS, found), (bench.PLAIN, 40.0), ("zero-shot", 48.0)):
                    book.add(name, column, value + (seed / 10 if name == bench.OURS else 0), seed)
        bench.claim_safety(book)
        safe, found_harm = book.claims
        assert safe.holds is True
        return found_harm

    assert harm(47.5).holds is True
    found = harm(44.0)
    assert found.holds is False
    assert found.value - found.against == pytest.approx(-3.9)
    assert "shown is the closest (lfa, held out: b)" in found.rule


def test_the_time_to_prompt_learnings_accuracy_is_the_shortest_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of runs whose accuracy is 10, 30, 50, ..., one that reaches 40 is the third."""
    found = iter(
        [bench.Run(10.0 + 20 * i, 1.0 + i) for i in range(7)]  # lfa's, longer and longer
    )
    monkeypatch.setattr(bench, "tried", lambda method, task: next(found))
    monkeypatch.setattr(bench, "searched", lambda *args, **options: 0.1)
    monkeypatch.setattr(bench, "accuracy", lambda scores, task: scores)
    monkeypatch.setattr(bench, "clip_text_step", lambda classes: lambda: None)

    class Prompts:
        def __init__(self, net: object) -> None: ...

        def train(self, task: object, lr: float, steps: int, watch: Callable[..., None]) -> None:
            for step, right in ((10, 20.0), (25, 40.0), (50, 35.0)):
                watch(step, right)

    class World:
        net = None

        def task(self, strength: float, shots: int, seed: int) -> worlds.Task:
            return worlds.large(classes=2, shots=1, d=4, tests=1)

    monkeypatch.setattr(bench, "Prompts", Prompts)
    book = Book()
    bench.race(World(), book, 1, 7, quick=True)  # type: ignore[arg-type]
    assert book.values(bench.PLAIN, bench.SMALL_TOWER) == {7: 3.0}
    assert book.values(bench.PLAIN, bench.REACHED) == {7: 50.0}
    assert book.values(bench.PROMPTS, bench.REACHED) == {7: 40.0}


def test_renderings_of_a_picture() -> None:
    flat = torch.full((1, 3, 32, 32), 0.25)
    flat[0, 0] = 0.75
    assert torch.equal(worlds.rendered(flat, 0), flat)
    torch.testing.assert_close(worlds.rendered(flat, 1), 1 - flat)
    grey = worlds.rendered(flat, 2)
    torch.testing.assert_close(grey, torch.full_like(flat, 1.25 / 3))
    assert torch.equal(worlds.rendered(flat, 3), torch.ones_like(flat))  # no contour: white
    edge = flat.clone()
    edge[..., 16:] = 0
    assert worlds.rendered(edge, 3)[..., 15].max() < 0.5


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.parquet"):
        worlds.Photographs(tmp_path)


def test_cifar_is_found_where_all_benchmarks_find_their_data(tmp_path: Path) -> None:
    assert bench.cifar(None) is None
    assert bench.cifar(tmp_path) == tmp_path
    (tmp_path / "cifar10").mkdir()
    assert bench.cifar(tmp_path) == tmp_path / "cifar10"
