"""The claims: wrong labels, irrelevant rows and rare classes among features of CIFAR-10 by a real
image network (``--base image=FOLDER``), or, without one, among its pixels; the cost of a step; and,
with ``--base language=FOLDER``, instruction rows for a language model (``language.py``).
``--data``: a folder with ``cifar10/``. Test rows are apart from training and target rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Curves, Line, draw, one_thread, read_cifar, take_turns
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Metric, Results
from zoo.progress import track

from . import instructions, language
from .baselines import (
    Task,
    Unrolled,
    auroc,
    calibration,
    kept_bytes,
    methods,
    start,
)
from .joint import Joint, adam
from .networks import ConvNet
from .real import Encoder, features
from .sampler import Recipe, WeightSampler

OURS, MIXING, TARGET, CLEANLAB = "bayesian-dps", "train + target", "target only", "cleanlab"
SYMMETRIC, PAIRS, CLEAN = "symmetric noise", "pair noise", "no noise"
IRRELEVANT, IMBALANCE = "irrelevant rows", "imbalance"
RAW, STANDARD, PIXELS = "raw features", "standardised features", "pixels"
ALIKE = {0: 8, 8: 0, 1: 9, 9: 1, 2: 6, 6: 2, 3: 5, 5: 3, 4: 7, 7: 4}
"""Classes of CIFAR-10 that are taken for each other: plane and ship, cat and dog, ..."""
VARIANTS = tuple(name for name in methods() if name.startswith(OURS))
ROWS: Mapping[str, Sequence[str]] = {
    SYMMETRIC: (MIXING, TARGET, CLEANLAB, "nearest neighbours agree", "KNN-Shapley",
                "one-step bi-level", *VARIANTS),
    PAIRS: (MIXING, TARGET, CLEANLAB, "nearest neighbours agree", "KNN-Shapley",
            "one-step bi-level", *VARIANTS),
    CLEAN: (MIXING, TARGET, OURS),
    IRRELEVANT: (MIXING, TARGET, "KNN-Shapley", "train against target", OURS),
    IMBALANCE: (MIXING, TARGET, "class weights", "logit adjustment", OURS),
}  # fmt: skip


class Rows:
    """Rows of CIFAR-10 in a random order: pictures, or features as the network gives them."""

    def __init__(self, data: Path, count: int, base: Path | None, kept: Path | None) -> None:
        self.negatives: Tensor | None = None
        if base is None:
            self.x, self.y = read_cifar(data / "cifar10" / "train.parquet", count)
            self.kinds: tuple[str, ...] = (PIXELS,)
            return
        encoder = Encoder(base)
        self.x, self.y = features(data, encoder, count, kept)
        self.negatives, _ = features(data, encoder, count // 6, kept, "inverted")
        self.kinds = (RAW, STANDARD)

    def task(self, setting: str, kind: str, seed: int, quick: bool) -> Task:
        """4,000 training rows, 200 of the target, the rest for the test."""
        n, m, tests = (300, 60, 140) if quick else (4000, 200, 1500)
        dice = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.x), generator=dice)
        if self.negatives is not None and setting == IRRELEVANT:
            order, n = order[order >= len(self.negatives)], n // 2  # no row beside its negative
        rows, target, test = order.split([n, m, len(order) - n - m])[:3]
        test = test[:tests]
        x, y, good = self.x[rows].clone(), self.y[rows].clone(), torch.ones(n, dtype=torch.bool)
        if setting in (SYMMETRIC, PAIRS):
            good = torch.rand(n, generator=dice) >= 0.4
            other = (y + torch.randint(1, 10, (n,), generator=dice)) % 10
            if setting == PAIRS:
                other = torch.tensor([ALIKE[int(c)] for c in y])
            y = torch.where(good, y, other)
        elif setting == IRRELEVANT:
            changed = 1 - self.x[:n] if self.negatives is None else self.negatives
            half = min(n // 2, len(changed))
            x = torch.cat([changed[:half], self.x[rows[: 2 * half]]])
            y = torch.cat([self.y[:half], self.y[rows[: 2 * half]]])
            good = torch.arange(len(x)) >= half
        elif setting == IMBALANCE:
            rare = torch.cat([(y == c).nonzero()[:, 0][: n // 200] for c in range(1, 10, 2)])
            keep = torch.cat([(y % 2 == 0).nonzero()[:, 0], rare])
            x, y = x[keep], y[keep]
            good = y % 2 == 1
        parts = [x, self.x[target], self.x[test]]
        if kind == STANDARD:
            mean, std = x.mean(0), x.std(0) + 1e-6
            parts = [(part - mean) / std for part in parts]
        width = parts[0].shape[1]
        build: Callable[[], nn.Module] = (
            (lambda: ConvNet(10)) if kind == PIXELS else lambda: nn.Linear(width, 10)
        )
        return Task(parts[0], y, parts[1], self.y[target], parts[2], self.y[test], good, build)


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    if request.data is None:
        raise InputError("pass --data PATH: a folder with cifar10/.")
    quick = request.quick
    seeds = [request.seed + i for i in range(1 if quick else 3)]
    book, shown = Book(_smaller), {}
    kept = request.options.get("features") or None
    base = request.bases.get("image")
    language_model = request.bases["language"].folder if "language" in request.bases else None
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        work = Path(request.options.get("work") or scratch)
        texts = {} if language_model is None else language.runs(
            request, language_model, work,
            instructions.QUICK if quick else instructions.Sizes(), seeds[: language.SEEDS],
        )  # fmt: skip
        rows = Rows(
            request.data, 600 if quick else 6000, base.folder if base else None,
            Path(kept) if kept else None,
        )  # fmt: skip
        plan = [(s, k, seed) for seed in seeds for s in ROWS for k in rows.kinds]
        total = sum(len(ROWS[setting]) for setting, _, _ in plan) + 1
        total += sum(len(made.rows_of) for made in texts.values())
        with track(total, request.progress, "bench") as advance:
            for setting, kind, seed in plan:
                task = rows.task(setting, kind, seed, quick)
                for row in ROWS[setting]:
                    run = methods()[row](task, seed)
                    where = f"{setting}, {kind}"
                    measure(book, row, setting, where, task, run, seed)
                    if (setting, row) == (SYMMETRIC, OURS) and run.scores is not None:
                        shown = {"weights": run.scores, "good": task.good}
                    advance()
            cost(book, rows, quick)
            advance()
            language.measure(book, texts, advance)
    claim(book, rows.kinds)
    if texts:
        language.claim(book)
    picture(request.out / "weights.png", book, shown, rows.kinds[0])
    data = [Data("CIFAR-10", "research use", "up to 4,000 training and 1,500 test rows a setting")]
    data += instructions.DATA if texts else []
    return book.results(data=data, seeds=seeds, pictures=["weights.png"])


def measure(
    book: Book, row: str, setting: str, where: str, task: Task, run: Any, seed: int
) -> None:
    """Accuracy, ranking, calibration and time of one run."""
    if run.predicted is not None:
        right = (run.predicted == task.test_y).double()
        book.add(row, f"{where}: accuracy", 100 * float(right.mean()), seed)
        if setting == IMBALANCE:
            rare = right[task.test_y % 2 == 1]
            book.add(row, f"{where}: accuracy on rare classes", 100 * float(rare.mean()), seed)
    if run.scores is not None and not bool(task.good.all()):
        book.add(row, f"{where}: AUROC", auroc(run.scores, task.good), seed)
    if setting in (SYMMETRIC, PAIRS) and row == OURS:
        ratio, error, count = calibration(run.sampler, task.good)
        book.add(row, f"{where}: squared error over the weights' variance", ratio, seed)
        book.add(row, f"{where}: calibration error of issues, per cent", error, seed)
        book.add(row, f"{where}: estimated of the wrong labels, per cent", count, seed)
    book.add(row, f"{where}: CPU-seconds", run.seconds, seed)


def _smaller(column: str) -> bool:
    """Is less better?"""
    return any(w in column for w in ("ratio", "bytes", "seconds", "error", "milli", "likelihood"))


# --- cost -----------------------------------------------------------------------------------------

STEP, MEMORY = "step: CPU-milliseconds", "step: bytes kept for backward"
QUARTER, BILEVEL = f"{OURS}, quarter target batch", "one-step bi-level"


def cost(book: Book, rows: Rows, quick: bool) -> None:
    """Steps in turn on a small convolutional network, and what one keeps for the backward pass."""
    dice = torch.Generator().manual_seed(0)
    x, y = torch.rand(128, 3, 32, 32, generator=dice), torch.arange(128) % 10
    task = Task(x[:64], y[:64], x[64:], y[64:], x, y, torch.ones(64).bool(), lambda: ConvNet(10))
    steps = {
        "uniform": stepper(task, None, 0),
        MIXING: stepper(task, None, 64),
        OURS: stepper(task, Recipe(), 64),
        QUARTER: stepper(task, Recipe(), 16),
        BILEVEL: unrolled_stepper(task),
    }
    spent = take_turns(steps, rounds=2 if quick else 10, best_of=5)
    memory = {row: kept_bytes(step) for row, step in steps.items()}
    for row in steps:
        for run, (seconds, mixing) in enumerate(zip(spent[row], spent[MIXING], strict=True)):
            book.add(row, STEP, 1000 * seconds, run)
            book.add(row, f"step: time ratio to {MIXING}", seconds / mixing, run)
        book.add(row, MEMORY, memory[row])
        book.add(row, f"step: memory ratio to {MIXING}", memory[row] / memory[MIXING])


def stepper(task: Task, recipe: Recipe | None, target: int) -> Callable[[], Any]:
    """One step, again and again: ours, or Adam's (None) on 64 training and ``target`` images."""
    net, ids = start(task, 0), torch.arange(64)
    batch = [torch.cat([task.x[:64], task.target_x[:target]]),
             torch.cat([task.y[:64], task.target_y[:target]])]  # fmt: skip
    if recipe is None:
        optimiser = adam(1e-3)(net.parameters())

        def alone() -> None:
            optimiser.zero_grad(set_to_none=True)
            losses = task.loss(net, batch)
            (losses[:64].mean() + (losses[64:].mean() if target else 0.0)).backward()
            optimiser.step()

        return alone
    sampler = WeightSampler(50_000, recipe, classes=10)
    joint = Joint(net, lambda n, b: (task.loss(n, b), None), sampler, adam(1e-3))
    return lambda: joint.step(ids, batch, target)


def unrolled_stepper(task: Task) -> Callable[[], Any]:
    """The same for a bi-level method."""
    made = Unrolled(task.loss, start(task, 0), len(task.x))
    both = (task.x[:64], task.y[:64]), (task.target_x[:64], task.target_y[:64])
    return lambda: made.step(torch.arange(64), *both)


# --- claims ---------------------------------------------------------------------------------------


def claim(book: Book, kinds: Sequence[str]) -> None:
    """Every claim, those that do not hold too."""

    def columns(setting: str, what: str) -> list[str]:
        return [f"{setting}, {kind}: {what}" for kind in kinds]

    def add(identity: str, statement: str, wanted: Any) -> None:
        book.claim(identity, statement, wanted)

    for tag, setting in (("symmetric", SYMMETRIC), ("pairs", PAIRS)):
        for who, other in (("cleanlab", CLEANLAB), ("target-only", TARGET)):
            add(
                f"{tag}-{who}",
                f"With 40 % {setting}, the weights rank right labels higher (AUROC) than {other}.",
                book.better(OURS, other, columns(setting, "AUROC")),
            )
        add(
            f"{tag}-no-trusted-set",
            f"With 40 % {setting} and no trusted set, they rank at most a point below cleanlab.",
            book.not_worse(
                f"{OURS}, no trusted set", CLEANLAB, columns(setting, "AUROC"), margin=1
            ),
        )
        add(
            f"{tag}-accuracy",
            f"With 40 % {setting}, the network tests better than training on both sets.",
            book.better(OURS, MIXING, columns(setting, "accuracy")),
        )
        add(
            f"{tag}-cleanlab-accuracy",
            f"With 40 % {setting}, it tests better than training on what cleanlab keeps.",
            book.better(OURS, CLEANLAB, columns(setting, "accuracy")),
        )
        add(
            f"{tag}-exact",
            f"With 40 % {setting}, drawn weights rank better than weights moved by Langevin steps.",
            book.better(OURS, f"{OURS}, Langevin weights", columns(setting, "AUROC")),
        )
        add(
            f"{tag}-noise",
            f"With 40 % {setting}, noise on both chains costs at most half a point of AUROC.",
            book.not_worse(OURS, f"{OURS}, no noise", columns(setting, "AUROC"), margin=0.5),
        )
    add(
        "clean",
        "With right labels, the network tests at most a point below training on both sets.",
        book.not_worse(OURS, MIXING, columns(CLEAN, "accuracy"), margin=1),
    )
    add(
        "irrelevant",
        "The weights find irrelevant rows better than a regression of target against train.",
        book.better(OURS, "train against target", columns(IRRELEVANT, "AUROC")),
    )
    add(
        "imbalance",
        "With rare classes, the network tests better than class weights and logit adjustment.",
        book.better(OURS, ("class weights", "logit adjustment"), columns(IMBALANCE, "accuracy")),
    )
    for identity, statement, row, rival, most in (
        ("time", "A step costs at most 1.25 times one of plain training on both sets.", OURS,
         MIXING, 1.25),
        ("time-bilevel", "A step costs at most half of a one-step bi-level method's.", OURS,
         BILEVEL, 0.5),
    ):  # fmt: skip
        add(identity, statement, book.times(row, rival, STEP, at_most=most))
    add(
        "memory",
        "It keeps at most 1.25 times the memory of plain training on both sets.",
        book.times(OURS, MIXING, MEMORY, at_most=1.25, test="counted"),
    )


# --- picture --------------------------------------------------------------------------------------


def picture(path: Path, book: Book, shown: Mapping[str, Tensor], kind: str) -> None:
    """Left: weights of right and wrong labels. Right: how well each method ranks them."""
    bins = 40
    lines: dict[str, Line] = {}
    for name, mine in (("right label", True), ("wrong label", False)):
        counts = torch.histc(shown["weights"][shown["good"] == mine].float(), bins, 0, 1)
        lines[name] = [((i + 0.5) / bins, count) for i, count in enumerate(counts.tolist())]
    table = book.table()
    bars: dict[str, dict[str, float | Metric]] = {
        row: {
            setting: table[row][f"{setting}, {kind}: AUROC"]
            for setting in (SYMMETRIC, PAIRS)
            if f"{setting}, {kind}: AUROC" in table[row]
        }
        for row in (TARGET, CLEANLAB, "nearest neighbours agree", "KNN-Shapley", BILEVEL, *VARIANTS)
    }
    draw(
        path,
        Curves(lines, "posterior mean weight", "training rows", f"{SYMMETRIC}: what {OURS} gives"),
        Bars(bars, f"AUROC of right labels, {kind}"),
    )
