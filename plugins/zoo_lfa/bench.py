"""The claims of LFA in small worlds (``worlds.py``) and, with ``--data``, on CIFAR-10 photographs.

``--data`` is the folder with CIFAR-10 as ``train.parquet`` and ``test.parquet``, or the folder
above one called ``cifar10``. All accuracies are per cent of rows never used to fit or to choose.
Seconds are CPU-seconds of one thread, search included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.experiment import Book, Comparison, Curves, Line, draw, now, one_thread, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from . import reference, worlds
from .baselines import (
    BASELINES,
    RATES,
    Prompts,
    Scores,
    adapter,
    clip_text_step,
    ridge_map,
    searched,
)
from .lfa import Recipe, fit, fit_unsupervised, procrustes, unit
from .worlds import Photographs, Renderings, Shapes, Task

OURS = "lfa"
PLAIN = "lfa, not safe"
INSTANT = "lfa, instant"
SLOW = "straightforward implementation"
WHOLE = "lfa, not safe, batch of the straightforward one"
PROMPTS = "prompt learning"
ADAPTER, RIDGE = "CLIP-Adapter", "ridge to identity"
MILD, MAIN, STRONG = 0.25, 0.5, 0.75
SHOTS = (1, 2, 4, 8, 16)


class Run(NamedTuple):
    """One method on one task."""

    accuracy: float
    seconds: float


def mapped(w: Tensor, y: Tensor) -> Scores:
    """Scores of the map w against texts y."""
    return lambda x: x @ w @ y.T


def ours(recipe: Recipe) -> Callable[[Task], Scores]:
    """LFA with these settings as a method like the others."""
    return lambda task: mapped(fit(task.x, task.y, task.labels, recipe).w, task.y)


VARIANTS: Mapping[str, Recipe] = {
    OURS: Recipe(),
    PLAIN: Recipe(safe=False),
    INSTANT: Recipe(iterations=0),
    "lfa, not safe, from the identity": Recipe(safe=False, beta=1.0),
    "lfa, not safe, contrastive loss": Recipe(safe=False, loss="contrastive"),
}


def accuracy(scores: Scores, task: Task) -> float:
    """Per cent right on the test set."""
    return 100 * float((scores(task.test).argmax(1) == task.test_labels).double().mean())


def tried(method: Callable[[Task], Scores], task: Task) -> Run:
    """Fit and test, with the CPU-seconds of fitting."""
    scores, seconds = timed(lambda: method(task))
    return Run(accuracy(scores, task), seconds)


def cifar(data: Path | None) -> Path | None:
    """The folder with CIFAR-10: ``data``, or ``cifar10`` in it."""
    return data / "cifar10" if data and (data / "cifar10").is_dir() else data


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    quick = request.quick
    seeds = [request.seed + i for i in range(1 if quick else 5)]
    shots = (1, 4) if quick else SHOTS
    book = Book(lambda column: "seconds" in column)
    with one_thread(), track(6 + len(seeds), request.progress, "bench") as advance:
        world = Shapes.made(0, 2500, 6) if quick else Shapes.made(0)
        advance()
        for seed in seeds:
            few_shot(world, book, shots, seed, quick)
            advance()
        races = [race(world, book, shots[-1], seed, quick) for seed in seeds[:3]]
        parts: list[Callable[[], None]] = [
            lambda: faint(book, shots, seeds),
            lambda: held_out(world, cifar(request.data), book, seeds, quick),
            lambda: unsupervised(world, book, seeds),
            lambda: photographs(cifar(request.data), book, shots, seeds, quick),
            lambda: speed(world, book, quick),
        ]
        for part in parts:
            part()
            advance()
    claim(book, shots, bool(request.data))
    picture(request.out / "curve.png", book, shots, races[0])
    data = [
        Data("rendered shapes and a small CLIP of our own", "generated", "64 classes, 2,560 tests"),
        Data("features for which zero-shot is optimal", "generated", "40 classes, 2,000 tests"),
        Data("features of ImageNet's size", "generated", "1000 classes x 16, 512 columns"),
    ]
    if request.data is not None:
        data.append(Data("CIFAR-10", "research use", "2,000 tests"))
    return book.results(data=data, seeds=seeds, pictures=["curve.png"])


# --- shapes ---------------------------------------------------------------------------------------


def column(shots: int, what: str = "") -> str:
    """Name of a column."""
    return f"{what}{', ' if what else ''}{shots} shot{'s' * (shots > 1)}"


def few_shot(world: Shapes, book: Book, shots: Sequence[int], seed: int, quick: bool) -> None:
    """The main table of one seed; base to new classes; a stronger shift."""
    prompts = Prompts(world.net)
    methods: dict[str, Callable[[Task], Scores]] = {
        **BASELINES,
        PROMPTS: lambda task: prompts(task, 60 if quick else 150),
        **{name: ours(replace(r, seed=seed)) for name, r in VARIANTS.items()},
    }
    for n in shots:
        task = world.task(MAIN, n, seed)
        for name, method in methods.items():
            run = tried(method, task)
            book.add(name, column(n), run.accuracy, seed)
            if n == shots[-1]:
                book.add(name, f"CPU-seconds, {column(n)}", run.seconds, seed)
    for n in (shots[0], shots[-1]):
        base_to_new(world, book, n, seed)
    strong = ("zero-shot", "linear probe", "CLIP-Adapter", "Procrustes alone", OURS, PLAIN)
    task = world.task(STRONG, 4, seed)
    for name in strong:
        run = tried(methods[name], task)
        book.add(name, column(4, "stronger shift"), run.accuracy, seed)


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


def base_to_new(world: Shapes, book: Book, shots: int, seed: int) -> None:
    """Fit on 32 random classes; test on them and on the 32 others, among themselves."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    task = world.task(MAIN, shots, seed)
    base, new = half(task, order[:32].sort().values), half(task, order[32:].sort().values)
    eye = torch.eye(task.x.shape[1])
    maps = {
        "zero-shot": eye,
        "Procrustes alone": procrustes(base.x, base.y, base.labels).float(),
        RIDGE: ridge_map(base).float(),
        OURS: fit(base.x, base.y, base.labels, Recipe(seed=seed)).w,
        PLAIN: fit(base.x, base.y, base.labels, Recipe(seed=seed, safe=False)).w,
        INSTANT: fit(base.x, base.y, base.labels, replace(VARIANTS[INSTANT], seed=seed)).w,
    }
    for name, w in maps.items():
        for part, what in ((base, "base"), (new, "new")):
            found = accuracy(mapped(w, part.y), part)
            book.add(name, column(shots, f"{what} classes"), found, seed)
    of = adapter(base)  # the other methods know the classes they were fitted on only
    for part, what in ((base, "base"), (new, "new")):
        found = accuracy(lambda x, y=part.y: of(x) @ y.T, part)  # type: ignore[misc]
        book.add(ADAPTER, column(shots, f"{what} classes"), found, seed)


class Race(NamedTuple):
    """CPU-seconds and accuracy of lfa and of prompt learning at the most shots, one seed."""

    lfa: list[tuple[float, float]]
    prompts: list[tuple[float, float]]
    clip: float
    """CPU-seconds of as many steps of prompt learning through a text tower of CLIP's size."""


RACE = "to prompt learning's accuracy"
REACHED, SMALL_TOWER = f"{RACE}: accuracy", f"{RACE}: CPU-seconds"
CLIP_TOWER = f"{SMALL_TOWER}, CLIP's text tower"


def race(world: Shapes, book: Book, shots: int, seed: int, quick: bool) -> Race:
    """How long prompt learning takes, and the shortest lfa run that is at least as accurate."""
    task = world.task(MAIN, shots, seed)
    lfa = []
    for iterations in (0, 5, 10, 25, 50, 100, 200):
        run = tried(ours(Recipe(safe=False, iterations=iterations, seed=seed)), task)
        lfa.append((run.seconds, run.accuracy))
    prompts, steps = Prompts(world.net), 100 if quick else 400
    points: list[tuple[float, float]] = []
    spent, started = 0.0, 0.0

    def watch(step: int, scores: Scores) -> None:
        nonlocal spent, started
        if step in {10, 25, 50, 100, 200, 300, 400}:
            spent += now() - started
            points.append((spent, accuracy(scores, task)))
            started = now()

    def make(t: Task, lr: float) -> Scores:
        return prompts.train(t, lr, 50)

    lr = searched(task, RATES, 0.02, make, folds=1)
    started = now()  # the search is not counted, in its favour
    prompts.train(task, lr, steps, watch)
    step = clip_text_step(len(task.y))
    step()
    found = Race(lfa, points, steps * timed(step)[1])
    best = max(right for _, right in points)
    mine = next((run for run in lfa if run[1] >= best), lfa[-1])
    for row, right, seconds, clip in (
        (PROMPTS, best, spent, found.clip),
        (PLAIN, mine[1], mine[0], mine[0]),
    ):
        book.add(row, REACHED, right, seed)
        book.add(row, SMALL_TOWER, seconds, seed)
        book.add(row, CLIP_TOWER, clip, seed)
    return found


def faint(book: Book, shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Where zero-shot is optimal: what does each method do to it?"""
    methods = {
        name: BASELINES[name]
        for name in ("zero-shot", "linear probe", "CLIP-Adapter", "ridge to identity")
    }
    for n in (shots[0], 4, shots[-1]) if len(shots) > 2 else shots:
        for seed in seeds:
            task = worlds.faint(n, seed)
            for name, method in methods.items():
                book.add(name, column(n, "faint"), accuracy(method(task), task), seed)
            for name in (OURS, PLAIN):
                method = ours(replace(VARIANTS[name], seed=seed))
                book.add(name, column(n, "faint"), accuracy(method(task), task), seed)


def held_out(
    world: Shapes, data: Path | None, book: Book, seeds: Sequence[int], quick: bool
) -> None:
    """Worlds that the default's rule was not made on: does it harm?

    Sizes, seeds and strengths that were never looked at while it was made; the families are not
    new to it.
    """
    tasks: dict[str, Callable[[int, int], Task]] = {
        "shapes, no shift": lambda n, seed: world.task(0.0, n, 50 + seed),
        "faint, 25 classes": lambda n, seed: worlds.faint(n, 50 + seed, 25, 64, 80),
        "faint, 60 classes": lambda n, seed: worlds.faint(n, 50 + seed, 60, 192, 34),
        "small turn": lambda n, seed: worlds.large(30, n, 96, 67, 50 + seed, 0.2, 3.0),
        "large turn": lambda n, seed: worlds.large(16, n, 48, 125, 50 + seed, 0.7, 2.0),
    }
    if data is not None:
        drawn = Renderings(data, *((1500, 600, 100) if quick else ()))
        tasks["renderings, slight shift"] = lambda n, seed: drawn.task(0.1, n, 50 + seed)
        tasks["renderings, more shift"] = lambda n, seed: drawn.task(0.4, n, 50 + seed)
    for what, make in tasks.items():
        for n in (1, 4):
            for seed in seeds:
                task = make(n, seed)
                cell = column(n, f"held out: {what}")
                book.add("zero-shot", cell, accuracy(BASELINES["zero-shot"](task), task), seed)
                for name in (OURS, PLAIN, INSTANT):
                    method = ours(replace(VARIANTS[name], seed=seed))
                    book.add(name, cell, accuracy(method(task), task), seed)


def unsupervised(world: Shapes, book: Book, seeds: Sequence[int]) -> None:
    """512 images without labels, at two shifts."""
    for strength, what in ((MILD, "no labels, mild shift"), (MAIN, "no labels")):
        for seed in seeds:
            task = world.task(strength, 8, seed)
            found = fit_unsupervised(task.x, task.y, Recipe(seed=seed, iterations=50))
            book.add("zero-shot", what, accuracy(BASELINES["zero-shot"](task), task), seed)
            book.add("lfa, no labels", what, accuracy(mapped(found.w, task.y), task), seed)
            closed = fit_unsupervised(task.x, task.y, Recipe(seed=seed, iterations=0))
            book.add(
                "lfa, no labels, closed form", what, accuracy(mapped(closed.w, task.y), task), seed
            )


# --- photographs ----------------------------------------------------------------------------------

ALONE = ("linear probe", "nearest class mean", "Tip-Adapter", "Tip-Adapter-F", "GDA")
"""Baselines that are classifiers of images without any text."""


def photographs(
    data: Path | None, book: Book, shots: Sequence[int], seeds: Sequence[int], quick: bool
) -> None:
    """Two encoders that never met: classifiers of the images alone against the aligned space.

    Without text scores, which mean nothing here, Tip-Adapter(-F) is its cache and GDA its Gaussian
    part. CLIP-Adapter needs one width: images are projected at random. What needs a zero-shot start
    (zero-shot itself, the probe from it, prompt learning) cannot be had.
    """
    if data is None:
        return
    world = Photographs(data, 2500 if quick else 4000, 500 if quick else 2000)
    for n in shots:
        for seed in seeds:
            raw = world.task(n, seed)
            mean = raw.x.mean(0)
            task = raw._replace(x=unit(raw.x - mean), test=unit(raw.test - mean))
            what = column(n, "photographs")
            for name in ALONE:
                side = task._replace(y=torch.zeros(len(task.y), task.x.shape[1]))
                book.add(name, what, accuracy(BASELINES[name](side), task), seed)
            book.add(OURS, what, accuracy(ours(Recipe(seed=seed, met=False))(task), task), seed)
            book.add(
                "Procrustes alone", what, accuracy(BASELINES["Procrustes alone"](task), task), seed
            )


# --- speed ----------------------------------------------------------------------------------------


def speed(world: Shapes, book: Book, quick: bool) -> None:
    """Against the method written straight down, in full, taking turns; at ImageNet's size too.

    As users call it, where a step sees fewer rows, and with as many rows in a step as that one.
    """
    plain = VARIANTS[PLAIN]
    methods: dict[str, Callable[[Task], Tensor]] = {
        PLAIN: lambda t: fit(t.x, t.y, t.labels, plain).w,
        WHOLE: lambda t: fit(t.x, t.y, t.labels, replace(plain, batch=len(t.x))).w,
        SLOW: lambda t: reference.fit(t.x, t.y, t.labels, plain),
    }
    extra = {name: partial_fit(VARIANTS[name]) for name in (OURS, INSTANT)}

    def one(name: str, make: Callable[[Task], Tensor], task: Task, size: str, run: int) -> None:
        made = tried(lambda t: mapped(make(t), t.y), task)
        book.add(name, f"speed: accuracy, {size}", made.accuracy, run)
        book.add(name, f"speed: seconds, {size}", made.seconds, run)

    for i in range(2 if quick else 5):
        task = world.task(MAIN, 4 if quick else 16, i)
        for name, make in methods.items():
            one(name, make, task, "64 classes", i)
    size = (100, 8, 128) if quick else (1000, 16, 512)
    big = worlds.large(*size, turn=0.7, noise=3.5)
    zero = accuracy(BASELINES["zero-shot"](big), big)
    book.add("zero-shot", "speed: accuracy, ImageNet's size", zero)
    for i in range(1 if quick else 3):
        for name, make in {**extra, **methods}.items():
            one(name, make, big, "ImageNet's size", i)


def partial_fit(recipe: Recipe) -> Callable[[Task], Tensor]:
    return lambda task: fit(task.x, task.y, task.labels, recipe).w


# --- claims ---------------------------------------------------------------------------------------


def claim(book: Book, shots: Sequence[int], photos: bool) -> None:
    """Every claim, those that do not hold too."""
    most, few = shots[-1], [column(n) for n in shots]
    first, last = column(shots[0]), column(most)
    new_one, new = (column(n, "new classes") for n in (shots[0], most))
    book.claim(
        "new-classes",
        "A map fitted on 32 classes raises 32 classes that it never saw by 15 points or more.",
        book.better(OURS, "zero-shot", new, by=15),
    )
    book.claim(
        "new-classes-one-shot",
        "From one example of each class, by default, it raises them by 5 points or more.",
        book.better(OURS, "zero-shot", new_one, by=5),
    )
    for rival in (ADAPTER, RIDGE):
        book.claim(
            f"new-classes-beats-{tag(rival)}",
            f"On the classes that it never saw it is better than {rival}, which carries over too.",
            book.better(OURS, rival, new),
        )
    for rival in (*BASELINES, PROMPTS):
        book.claim(
            f"beats-{tag(rival)}",
            f"Over {shots[0]} to {most} shots lfa is better than {rival}.",
            book.better(OURS, rival, few),
        )
    for identity, statement, wanted in (
        (
            "one-shot",
            "One shot is worth 10 points or more.",
            book.better(OURS, "zero-shot", first, by=10),
        ),
        (
            "most-shots",
            f"{most} shots are worth 25 points or more.",
            book.better(OURS, "zero-shot", last, by=25),
        ),
        (
            "rerank-over-contrastive",
            "The re-ranking loss is better than the contrastive one (the paper's ablation).",
            book.better(PLAIN, "lfa, not safe, contrastive loss", few),
        ),
        (
            "closed-form-start",
            "The closed-form start is better than starting from the identity.",
            book.better(PLAIN, "lfa, not safe, from the identity", few),
        ),
        (
            "refinement",
            f"At {most} shots refinement adds 6 points or more to Procrustes alone.",
            book.better(PLAIN, "Procrustes alone", last, by=6),
        ),
    ):
        book.claim(identity, statement, wanted)
    claim_safety(book)
    for what, ending, where in (
        ("no labels", "", " under the shift of the main table"),
        ("no labels, mild shift", "-mild", " under a mild shift"),
    ):
        book.claim(
            f"unsupervised{ending}",
            f"Without labels lfa is better than zero-shot{where}.",
            book.better("lfa, no labels", "zero-shot", what),
        )
    claim_cost(book)
    if photos:
        columns = [column(n, "photographs") for n in shots]
        book.claim(
            "uni-modal",
            "Encoders that never met: aligned by lfa, better than a linear probe on the images "
            f"alone, from 1 to {shots[-2]} shots.",
            book.better(OURS, "linear probe", columns[:-1]),
        )
        book.claim(
            "uni-modal-refinement",
            "There too, lfa is better than Procrustes alone.",
            book.better(OURS, "Procrustes alone", columns),
        )


def tag(row: str) -> str:
    """A row's name in a claim's."""
    return row.lower().replace(", ", "-").replace(" ", "-")


def claim_safety(book: Book) -> None:
    """Where nothing can be learned the default keeps zero-shot, and the plain fit loses."""
    columns = [c for c in book.columns(OURS) if c.startswith("faint")]
    book.claim(
        "safe",
        "Where zero-shot is the best rule there is, the default loses less than a point, and the "
        "plain fit loses more than a point.",
        book.not_worse(OURS, "zero-shot", columns, margin=1),
        book.better("zero-shot", PLAIN, columns, by=1),
    )
    columns = [c for c in book.columns(OURS) if c.startswith(("faint", "held out"))]
    book.claim(
        "no-harm",
        "The default does not harm: in no world of the columns 'faint' and 'held out', which were "
        "not used to make its rule (but for 'faint'), does it lose a point.",
        *(book.not_worse(OURS, "zero-shot", c, margin=1) for c in columns),
    )


def claim_cost(book: Book) -> None:
    """CPU-seconds: against prompt learning and against the straightforward implementation."""
    for identity, seconds, what in (
        (
            "cheaper-than-prompts",
            SMALL_TOWER,
            "the small text tower of this world (0.2 M parameters)",
        ),
        (
            "cheaper-than-prompts-clip",
            CLIP_TOWER,
            "a text tower of CLIP's size (38 M parameters, random weights, the seconds of one step "
            "times all steps)",
        ),
    ):
        book.claim(
            identity,
            f"lfa reaches prompt learning's accuracy in a fifteenth of its time, with {what}.",
            book.times(PROMPTS, PLAIN, seconds, at_least=15),
            book.not_worse(PLAIN, PROMPTS, REACHED, margin=0.5),
            note="lfa's is the shortest run that is at least as accurate",
        )
    for row, size, identity, how in (
        (PLAIN, "64 classes", "quicker-than-straightforward", "as users call it"),
        (WHOLE, "64 classes", "quicker-at-equal-batch", "with as many rows in a step"),
        (PLAIN, "ImageNet's size", "quicker-at-imagenet-size", "as users call it"),
        (WHOLE, "ImageNet's size", "quicker-at-imagenet-size-equal-batch", "with as many rows"),
    ):
        book.claim(
            identity,
            f"At {size} the fit, {how}, is 5 times as quick as the method written straight down, "
            "at equal accuracy.",
            *faster(book, row, size),
            note="both in full, taking turns",
        )
    book.claim(
        "imagenet-size-in-seconds",
        "A fit of ImageNet's size, validation included, takes less than a minute of one core.",
        book.better(OURS, 60, "speed: seconds, ImageNet's size"),
    )


def faster(book: Book, row: str, size: str) -> tuple[Comparison, Comparison]:
    """Five times as quick as the straightforward one, and at most half a point less accurate."""
    return (
        book.times(SLOW, row, f"speed: seconds, {size}", at_least=5),
        book.not_worse(row, SLOW, f"speed: accuracy, {size}", margin=0.5),
    )


# --- picture --------------------------------------------------------------------------------------


def picture(path: Path, book: Book, shots: Sequence[int], race: Race) -> None:
    """Left: accuracy against CPU-seconds of fitting. Right: accuracy against shots."""
    most = column(shots[-1])
    slower = race.clip / race.prompts[-1][0]
    cost: dict[str, Line] = {
        "lfa, not safe: 0 to 200 steps": race.lfa,
        PROMPTS: race.prompts,
        f"{PROMPTS}, cost of CLIP's tower": [(s * slower, right) for s, right in race.prompts],
    }
    zero = book.mean("zero-shot", most)
    cost["zero-shot"] = [(race.lfa[0][0], zero), (race.prompts[-1][0] * slower, zero)]
    for name in BASELINES:
        if name not in ("zero-shot", "Procrustes alone"):
            seconds = max(book.mean(name, f"CPU-seconds, {most}"), 1e-3)
            cost[name] = [(seconds, book.mean(name, most))]
    learned = {
        name: [(n, book.mean(name, column(n))) for n in shots]
        for name in (OURS, *BASELINES, PROMPTS)
        if name != "Procrustes alone"
    }
    draw(
        path,
        Curves(
            cost,
            "CPU-seconds to fit, one thread",
            "accuracy in per cent",
            f"{shots[-1]} examples of each class",
            log="x",
        ),
        Curves(learned, "examples of each class", "accuracy in per cent", log="x"),
    )
