"""The claims of LFA on real encoders that never met, and in small generated worlds.

The real part needs ``--data`` (the folder with CIFAR-10 as ``train.parquet`` and ``test.parquet``,
or the folder above one called ``cifar10``) and the bases ``image`` (timm) and ``text``
(transformers); see ``photographs.py``. The generated worlds (``worlds.py``) need no download. All
accuracies are per cent of rows never used to fit or to choose. Seconds are CPU-seconds of one
thread, search included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.experiment import Book, Curves, Line, draw, load, one_thread, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from . import baselines, photographs, worlds
from .baselines import Scores
from .lfa import unit
from .photographs import Photographs, World
from .real import accuracy, calibration_error, cifar
from .worlds import Shapes, Task

OURS, CLOSED, AUTHORS = "lfa", "closed form", "method of the authors' code"
LOGISTIC, SEARCHED = "logistic regression", "logistic regression, C searched"
RIDGE_TO_I = "ridge to the identity"
PROMPTS = "prompt learning, 50 steps"
SHOTS = (1, 2, 4, 8, 16)
MAIN, MILD = 0.5, 0.25
SEEN = (5, 10, 50, 100, 500)
"""Classes of ImageNet that a map is fitted on."""
UNSEEN = 500
"""Classes of ImageNet that it is tested on, among themselves."""
ENOUGH_SEEN = 50
"""Of these, so many are said to be enough."""
SIZES = (10, 100, 1000)
"""Classes that the cost is measured at."""
REPEATS = 3
"""Runs that the cost is measured in."""


class Fitted(NamedTuple):
    """A classifier of rows."""

    scores: Scores
    scale: float | None = None
    """What makes logits of the scores; None where no probabilities are published."""


Method = Callable[[Task], Fitted]


def ours(request: BenchRequest, **options: Any) -> Method:
    """``zoo.load("lfa").align(...)`` as a method like the others."""

    def fit(task: Task) -> Fitted:
        model = load(request, base=None)
        model.align(task.x, task.y, labels=task.labels, **options)
        return Fitted(
            lambda x: torch.from_numpy(model.similarity(x, task.y)), 1 / model.temperature
        )

    return fit


def plain(method: Callable[[Task], Scores], scale: float | None = None) -> Method:
    """A baseline, whose scores times ``scale`` are logits."""
    return lambda task: Fitted(method(task), scale)


class Run(NamedTuple):
    """One method on one task."""

    accuracy: float
    seconds: float
    ece: float | None


def tried(method: Method, task: Task) -> Run:
    """Fit and test, with the CPU-seconds of fitting."""
    made, seconds = timed(lambda: method(task))
    scores = made.scores(task.test)
    ece = None
    if made.scale is not None:
        ece = calibration_error((made.scale * scores).softmax(1), task.test_labels)
    return Run(accuracy(scores, task.test_labels), seconds, ece)


def column(shots: int, what: str = "") -> str:
    """Name of a column."""
    return f"{what}{', ' if what else ''}{shots} shot{'s' * (shots > 1)}"


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    quick, data = request.quick, cifar(request.data)
    seeds = [request.seed + i for i in range(1 if quick else 5)]
    shots = (1, 4) if quick else SHOTS
    book = Book(lambda name: "CPU-seconds" in name or name.startswith("ECE"))
    real = data is not None and {"image", "text"} <= {*request.bases}
    with (
        one_thread(),
        track(2 + real + len(seeds) * real + len(seeds[:3]), request.progress, "bench") as advance,
    ):
        if real:
            assert data is not None
            world = photographs.made(request, data)
            advance()
            for seed in seeds:
                few_shot(world.photos, book, shots, seed, request)
                video(world.videos, book, 4 if quick else 16, seed, request)
                unseen(world, book, seed, request)
                advance()
        shapes = Shapes.made(0, 2500, 6) if quick else Shapes.made(0)
        advance()
        for seed in seeds[:3]:
            joint(shapes, book, shots, seed, request)
            harmless(shapes, book, seed, request)
            advance()
        cost(book, (10, 50) if quick else SIZES, request)
        advance()
    if real:
        claim_real(book, shots)
    claim_joint(book, shots)
    claim_cost(book, quick)
    picture(request.out / "curve.png", book, shots, real)
    used = [
        Data("rendered shapes and a small CLIP of our own", "generated", "64 classes, 2,560 tests"),
        Data("features for which zero-shot is optimal", "generated", "40 classes, 2,000 tests"),
    ]
    if real:
        used.insert(0, Data("CIFAR-10", "research use", f"{len(world.photos.test):,} tests"))
    return book.results(data=used, seeds=seeds, pictures=["curve.png"])


# --- two real encoders that never met -------------------------------------------------------------


def real_methods(request: BenchRequest, seed: int) -> Mapping[str, Method]:
    """What learns from images, with and without the texts."""
    return {
        LOGISTIC: plain(baselines.logistic, 1.0),
        SEARCHED: plain(baselines.logistic_searched, 1.0),
        "GDA": plain(baselines.gda),
        "ridge": plain(baselines.ridge_classifier),
        "class mean": plain(baselines.class_mean),
        "Tip-Adapter": plain(baselines.tip_adapter),
        AUTHORS: plain(lambda task: baselines.authors(task, 0.1, 800), 1 / 0.07),
        CLOSED: ours(request, iterations=0, safe=False),
        OURS: ours(request, seed=seed),
    }


TEXTLESS = (LOGISTIC, SEARCHED, "GDA", "ridge", "class mean", "Tip-Adapter")


def given(task: Task, name: str) -> Task:
    """The task as a method takes it: for baselines unit rows, and no texts where it has no use for
    them."""
    if name in (OURS, CLOSED):
        return task
    y = torch.zeros(len(task.y), task.x.shape[1]) if name in TEXTLESS else task.y
    return task._replace(x=unit(task.x), test=unit(task.test), y=y)


def few_shot(
    world: Photographs, book: Book, shots: Sequence[int], seed: int, request: BenchRequest
) -> None:
    """The main table."""
    for n in shots:
        task = world.task(n, seed)
        for name, method in real_methods(request, seed).items():
            run = tried(method, given(task, name))
            book.add(name, column(n), run.accuracy, seed)
            if run.ece is not None:
                book.add(name, column(n, "ECE"), run.ece, seed)
            if n == shots[-1]:
                book.add(name, f"CPU-seconds, {column(n)}", run.seconds, seed)


def video(world: Photographs, book: Book, shots: int, seed: int, request: BenchRequest) -> None:
    """Eight frames pooled, beside the frame in the middle alone."""
    task = world.task(min(shots, 16), seed)
    middle = task.x.shape[1] // 2
    pooled = task._replace(x=task.x.mean(1), test=task.test.mean(1))
    single = task._replace(x=task.x[:, middle], test=task.test[:, middle])
    for what, part in (("frames pooled", pooled), ("one frame", single)):
        for name in (LOGISTIC, CLOSED, OURS):
            run = tried(real_methods(request, seed)[name], given(part, name))
            book.add(name, f"video, {what}", run.accuracy, seed)


def unseen(world: World, book: Book, seed: int, request: BenchRequest) -> None:
    """From how many classes does a map carry over to classes that it never saw?

    ImageNet: a row of the network's classifier stands for the images of a class; CIFAR-10: five
    classes, photographs of the five others, all ten texts competing.
    """
    dice = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(world.rows), generator=dice)
    test = order[-UNSEEN:]
    for count in SEEN:
        some = order[:count]
        task = Task(
            world.rows[some], torch.arange(count), world.names[some], world.rows[test],
            torch.arange(UNSEEN),
        )  # fmt: skip
        for name, options in ((OURS, {}), (CLOSED, {"iterations": 0, "safe": False})):
            model = load(request, base=None)
            model.align(task.x, task.y, labels=task.labels, **options)
            scores = torch.from_numpy(model.similarity(task.test, world.names[test]))
            book.add(name, f"unseen, {count} seen", accuracy(scores, task.test_labels), seed)
    photos = world.photos.task(16, seed)
    known = torch.randperm(len(photos.y), generator=dice)[:5]
    mine, tests = torch.isin(photos.labels, known), ~torch.isin(photos.test_labels, known)
    number = torch.full((len(photos.y),), -1)
    number[known] = torch.arange(5)
    model = load(request, base=None)
    model.align(photos.x[mine], photos.y[known], labels=number[photos.labels[mine]], seed=seed)
    scores = torch.from_numpy(model.similarity(photos.test[tests], photos.y))
    found = accuracy(scores, photos.test_labels[tests])
    book.add(OURS, "unseen, 5 classes of photographs", found, seed)


def claim_real(book: Book, shots: Sequence[int]) -> None:
    """On encoders that never met; every count is a comparison of its own."""
    few = [column(n) for n in shots]
    for rival in (CLOSED, LOGISTIC, SEARCHED):
        book.claim(
            f"at-least-{tag(rival)}",
            f"Encoders that never met: at every count the default is at least {rival}, to within "
            "half a point.",
            *(book.not_worse(OURS, rival, c, margin=0.5) for c in few),
        )
    for rival in (AUTHORS, "GDA", "ridge", "class mean", "Tip-Adapter"):
        book.claim(
            f"unmet-beats-{tag(rival)}",
            f"Encoders that never met: over {shots[0]} to {shots[-1]} shots better than {rival}.",
            book.better(OURS, rival, few),
        )
    book.claim(
        "unmet-calibrated",
        "Encoders that never met: the calibration error is at most .08 at every count.",
        *(book.better(OURS, 0.08, column(n, "ECE")) for n in shots),
    )
    book.claim(
        "unseen",
        f"Encoders that never met: from {ENOUGH_SEEN} classes a map carries over to {UNSEEN} that "
        f"it never saw, at 20 times chance ({100 / UNSEEN:g} %) or more.",
        book.better(OURS, 2000 / UNSEEN, f"unseen, {ENOUGH_SEEN} seen"),
    )
    book.claim(
        "unseen-five",
        "Encoders that never met: from five classes of photographs it carries over to five others, "
        "above chance (10 %).",
        book.better(OURS, 10, "unseen, 5 classes of photographs"),
    )
    book.claim(
        "video",
        "Pooled frames of a moving photograph are better than one frame.",
        book.better(OURS, OURS, "video, frames pooled", than_columns="video, one frame"),
    )


# --- encoders that have met: generated ------------------------------------------------------------


def of_joint(shots: Sequence[int]) -> list[int]:
    """The numbers of examples that are tried there: fewest, 4 and most."""
    return sorted({shots[0], 4, shots[-1]})


def joint(
    world: Shapes, book: Book, shots: Sequence[int], seed: int, request: BenchRequest
) -> None:
    """A small CLIP under a shift: few-shot, classes that the fit never saw, no labels."""
    methods: dict[str, Method] = {
        "zero-shot": plain(baselines.zero_shot),
        LOGISTIC: plain(baselines.logistic, 1.0),
        "GDA": plain(baselines.gda),
        RIDGE_TO_I: plain(baselines.ridge_to_identity),
        "class mean": plain(baselines.class_mean),
        "Tip-Adapter": plain(baselines.tip_adapter),
        AUTHORS: plain(baselines.authors, 1 / 0.07),
        CLOSED: ours(request, iterations=0, safe=False),
        OURS: ours(request, seed=seed),
    }
    for n in of_joint(shots):
        task = world.task(MAIN, n, seed)
        for name, method in methods.items():
            run = tried(method, task)
            book.add(name, column(n, "met"), run.accuracy, seed)
            if run.ece is not None and name == OURS:
                book.add(name, column(n, "ECE, met"), run.ece, seed)
    task = world.task(MAIN, shots[-1], seed)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    base, new = half(task, order[:32].sort().values), half(task, order[32:].sort().values)
    for name, options in ((CLOSED, {"iterations": 0, "safe": False}), (OURS, {"seed": seed})):
        model = load(request, base=None)
        model.align(base.x, base.y, labels=base.labels, **options)
        scores = torch.from_numpy(model.similarity(new.test, new.y))
        book.add(name, "met, new classes", accuracy(scores, new.test_labels), seed)
    scores = new.test @ new.y.T
    book.add("zero-shot", "met, new classes", accuracy(scores, new.test_labels), seed)
    for strength, what in ((MILD, "met, no labels, mild shift"), (MAIN, "met, no labels")):
        task = world.task(strength, 8, seed)
        model = load(request, base=None)
        model.align(task.x, task.y, unsupervised=True, iterations=50, seed=seed)
        found = torch.from_numpy(model.similarity(task.test, task.y))
        book.add(OURS, what, accuracy(found, task.test_labels), seed)
        book.add("zero-shot", what, accuracy(task.test @ task.y.T, task.test_labels), seed)


def half(task: Task, classes: Tensor) -> Task:
    """The task of some of the classes, renumbered."""
    number = torch.full((len(task.y),), -1)
    number[classes] = torch.arange(len(classes))
    mine, tests = number[task.labels] >= 0, number[task.test_labels] >= 0
    return Task(
        task.x[mine],
        number[task.labels[mine]],
        task.y[classes],
        task.test[tests],
        number[task.test_labels[tests]],
    )


HARM = ("nothing to learn", "no shift", "small turn")


def harmless(world: Shapes, book: Book, seed: int, request: BenchRequest) -> None:
    """Worlds in which zero-shot is hard to beat, or the best rule there is."""
    tasks: dict[str, Callable[[int], Task]] = {
        "nothing to learn": lambda n: worlds.faint(n, seed),
        "no shift": lambda n: world.task(0.0, n, 50 + seed),
        "small turn": lambda n: worlds.large(30, n, 96, 67, 50 + seed, 0.2, 3.0),
    }
    for what, make in tasks.items():
        for n in (1, 4):
            task, cell = make(n), column(n, f"harm: {what}")
            methods: dict[str, Method] = {
                "zero-shot": plain(baselines.zero_shot),
                CLOSED: ours(request, iterations=0, safe=False),
                OURS: ours(request, seed=seed),
            }
            for name, method in methods.items():
                book.add(name, cell, tried(method, task).accuracy, seed)


def claim_joint(book: Book, shots: Sequence[int]) -> None:
    """On encoders that have met."""
    few = [column(n, "met") for n in of_joint(shots)]
    for rival in (LOGISTIC, "GDA", RIDGE_TO_I, "class mean", "Tip-Adapter", AUTHORS, CLOSED):
        book.claim(
            f"met-beats-{tag(rival)}",
            f"Encoders that have met: over {shots[0]}, 4 and {shots[-1]} shots better than "
            f"{rival}.",
            book.better(OURS, rival, few),
        )
    book.claim(
        "met-calibrated",
        "Encoders that have met: the calibration error is at most .08 at every count.",
        *(book.better(OURS, 0.08, f"ECE, {c}") for c in few),
    )
    book.claim(
        "new-classes",
        f"Encoders that have met: a map fitted on 32 classes at {shots[-1]} shots raises 32 "
        "classes that it never saw by 15 points or more.",
        book.better(OURS, "zero-shot", "met, new classes", by=15),
    )
    for what, identity in (("met, no labels", ""), ("met, no labels, mild shift", "-mild")):
        book.claim(
            f"unsupervised{identity}",
            f"Without labels better than zero-shot ({what}).",
            book.better(OURS, "zero-shot", what),
        )
    columns = [column(n, f"harm: {what}") for what in HARM for n in (1, 4)]
    book.claim(
        "no-harm",
        "Encoders that have met: in none of the columns 'harm' does the default lose a point "
        "against zero-shot.",
        *(book.not_worse(OURS, "zero-shot", c, margin=1) for c in columns),
    )
    book.claim(
        "safe",
        "Where there is nothing to learn the closed form loses more than a point.",
        book.better("zero-shot", CLOSED, columns[:2], by=1),
    )


# --- cost -----------------------------------------------------------------------------------------


def cost(book: Book, sizes: Sequence[int], request: BenchRequest) -> None:
    """CPU-seconds by number of classes, 16 images of each and 512 columns."""
    methods = {OURS: ours(request), CLOSED: ours(request, iterations=0, safe=False)}
    for method in methods.values():
        method(worlds.large(4, 4, 16))  # the first call of a process pays for loading
    baselines.prompt_step(4)()
    for classes in (*sizes, *(() if request.quick else (10_000,))):
        task = worlds.large(classes, 16, 512, tests=1)
        what = f"CPU-seconds, {classes:,} classes"
        for name, method in methods.items():
            for i in range(REPEATS):
                book.add(name, what, timed(lambda m=method, t=task: m(t))[1], i)  # type: ignore[misc]
        if classes in sizes:
            step = baselines.prompt_step(classes)
            for i in range(REPEATS):
                book.add(PROMPTS, what, 50 * timed(step)[1], i)


def claim_cost(book: Book, quick: bool) -> None:
    """Ratios by number of classes, and the largest fit."""
    for classes in SIZES[:1] if quick else SIZES:
        what = f"CPU-seconds, {classes:,} classes"
        for row, share, times in ((OURS, "tenth", 10), (CLOSED, "hundredth", 100)):
            book.claim(
                f"cheaper-than-prompts-{classes}-{tag(row)}",
                f"{classes:,} classes: {row} fits in a {share} of the time of 50 steps of prompt "
                "learning through a text tower of CLIP's size.",
                book.times(PROMPTS, row, what, at_least=times),
                note="the seconds of one step times 50",
            )
    if not quick:
        what = "CPU-seconds, 10,000 classes"
        book.claim(
            "ten-thousand-classes",
            "10,000 classes with 16 images of each are fitted in under a minute of one core.",
            book.better(OURS, 60, what),
        )


def tag(row: str) -> str:
    """A row's name in a claim's."""
    return row.lower().replace(", ", "-").replace(" ", "-").replace("'", "")


# --- picture --------------------------------------------------------------------------------------


def picture(path: Path, book: Book, shots: Sequence[int], real: bool) -> None:
    """Left: accuracy against shots on real encoders. Right: cost against the number of classes."""
    rows = (OURS, LOGISTIC, "class mean", "Tip-Adapter", AUTHORS, CLOSED)
    few = shots if real else of_joint(shots)
    learned: dict[str, Line] = {
        name: [(n, book.mean(name, column(n, "" if real else "met"))) for n in few] for name in rows
    }
    seconds: dict[str, Line] = {}
    for name in (OURS, CLOSED, PROMPTS):
        found = [c for c in book.columns(name) if c.endswith(" classes") and "CPU" in c]
        seconds[name] = [(_number(c), book.mean(name, c)) for c in found]
    draw(
        path,
        Curves(
            learned,
            "examples of each class",
            "accuracy in per cent",
            "encoders that never met, CIFAR-10" if real else "a small CLIP under a shift",
            log="x",
        ),
        Curves(seconds, "classes, 16 images each", "CPU-seconds to fit", "", log="xy"),
    )


def _number(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()))
