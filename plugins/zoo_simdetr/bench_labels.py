"""``zoo bench simdetr -O part=labels`` and ``part=cards``: what pretraining is worth."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from zoo.errors import MissingDependencyError
from zoo.experiment import Book, Curves, draw
from zoo.interfaces import Results
from zoo.weights import load_tensors

from .arms import (
    ARMS,
    DETREG,
    FEW_SIZE,
    FROZEN,
    GENTLE,
    IMAGENET,
    LONG_ARMS,
    NO_ROUND,
    ONE_CLASS,
    OURS,
    RANDOM,
    SCRATCH,
    WARM,
    Arm,
    Lab,
)
from .bench_proposals import FEW, SECONDS, TOP, of_all, proposals, surest
from .bench_rows import Bench, column

SHARES = {"labels": (0.02, 0.1, 1.0), "cards": (0.02, 1.0)}
"""Of the labels."""
TEACHER, STUDENT = "proposals, the first 20", "detector before labels, its surest 20"
SHORT, LONG = 160, 640
"""Steps of fine-tuning."""
SHORT_ONLY = {"labels": (0.02,), "cards": ()}
"""Shares at which the arms beside ImageNet's and ours are compared."""


def measure(here: Bench, part: str) -> Results:
    """Fine-tuning on some of the labels after each way of pretraining."""
    book = Book(lambda name: name == SECONDS)
    if part == "cards":
        proposals(book, here)
    lab = Lab(here.request, here.data, here.images, here.work / part, here.scene)
    for seed in here.seeds:
        for row, value in here.row(
            f"{part}: before labels, {seed}", partial(_before, here, lab, seed)
        ).items():
            book.add(row, TOP, value, seed)
    if book.columns(STUDENT):
        book.claim(
            "teacher",
            "Before it sees a label the detector finds more objects than the proposals it learned "
            "from.",
            book.better(STUDENT, TEACHER, TOP),
        )
    for share in SHARES[part]:
        every = share in SHORT_ONLY[part]
        for steps in (SHORT, LONG):
            arms = ARMS if every and steps == SHORT else LONG_ARMS
            for seed in here.seeds:
                for arm in arms:
                    _arm(book, here, lab, arm, share, steps, seed)
    for share in SHARES[part]:
        _best(book, share)
        _claims(book, share)
    pictures = _curves(book, part, here.request.out)
    return book.results(data=[here.described()], seeds=here.seeds, pictures=pictures, part=part)


def _before(here: Bench, lab: Lab, seed: int) -> dict[str, float]:
    """Recall of what the pretrained detector finds, and of what it was taught."""
    network = lab.pretrained(OURS, seed)
    taught = load_tensors(lab.folder(OURS, seed) / "proposals.safetensors")
    boxes = [one[:FEW].numpy() for one in taught["boxes"].split(taught["count"].tolist())]
    size = 96 if here.request.quick else FEW_SIZE
    return {TEACHER: of_all(here, boxes), STUDENT: surest(here, network, size)}


def _arm(book: Book, here: Bench, lab: Lab, arm: Arm, share: float, steps: int, seed: int) -> None:
    count = 2 if here.request.quick else steps
    make = partial(lab.tuned, arm, share, count, seed)
    try:
        found = here.row(f"{lab.work.name}: {arm.name}, {share}, {steps}, {seed}", make)
    except MissingDependencyError:
        return  # Selective Search; its claim then says that it was not measured
    for output, values in found.items():
        for metric in ("AP", "AP50"):
            book.add(arm.name, column(share, steps, metric, output), values[metric], seed)


def _best(book: Book, share: float) -> None:
    """A column of each arm's AP after its own best schedule, by the mean."""
    for arm in LONG_ARMS:
        columns = [column(share, steps, "AP") for steps in (SHORT, LONG)]
        if all(_seeds(book, arm, name) for name in columns):
            best = max(columns, key=lambda name: book.mean(arm.name, name))
            for seed, value in book.values(arm.name, best).items():
                book.add(arm.name, best_column(share), value, seed)


def best_column(share: float) -> str:
    """The name of a column."""
    return f"AP, {share:.0%} of the labels, own best schedule"


def _claims(book: Book, share: float) -> None:
    """Each claim whose rows are there for the same seeds."""
    short, long = (column(share, n, "AP") for n in (SHORT, LONG))
    at = f"{share:.0%}"
    for name, words, mine, rival, metric in (
        (f"labels-{at}", "SimDETR has a higher AP than ImageNet alone at the same short schedule",
         OURS, IMAGENET, short),
        (f"long-{at}", "it still has one at a schedule four times as long", OURS, IMAGENET, long),
        (f"best-{at}", "it still has one with the better schedule of the two for each",
         OURS, IMAGENET, best_column(share)),
        (f"warm-{at}", "a warm head is better than a fresh one", WARM, OURS, short),
        (f"rates-{at}", "a warm head with the recipe's lower rates is better than a fresh one",
         GENTLE, OURS, short),
        (f"detreg-{at}", "SimDETR is better than pretraining like DETReg's of equal length",
         OURS, DETREG, short),
        (f"classes-{at}", "several pseudo-classes are better than one", OURS, ONE_CLASS, short),
        (f"self-training-{at}", "self-training is better than as many steps on proposals",
         OURS, NO_ROUND, short),
        (f"frozen-{at}", "a backbone that is trained too is better than a frozen one",
         OURS, FROZEN, short),
        (f"scratch-{at}", "with a backbone from scratch pretraining is better than none",
         SCRATCH, RANDOM, short),
    ):  # fmt: skip
        if _seeds(book, mine, metric) and _seeds(book, mine, metric) == _seeds(book, rival, metric):
            book.claim(
                name,
                f"With {at} of the labels {words} (AP).",
                book.better(mine.name, rival.name, metric),
            )


def _seeds(book: Book, arm: Arm, metric: str) -> list[int | str]:
    return [*book.values(arm.name, metric)] if metric in book.columns(arm.name) else []


def _curves(book: Book, part: str, out: Path) -> list[str]:
    """AP over steps of the two main arms, a panel for each share; [] if nothing was measured."""
    panels = []
    for share in SHARES[part]:
        lines = {
            arm.name: [
                (steps, book.mean(arm.name, column(share, steps, "AP")))
                for steps in (SHORT, LONG)
                if _seeds(book, arm, column(share, steps, "AP"))
            ]
            for arm in LONG_ARMS
        }
        if lines := {name: line for name, line in lines.items() if line}:
            title = f"{share:.0%} of the labels"
            panels.append(Curves(lines, "steps of fine-tuning", "AP on the test images", title))
    if not panels:
        return []
    draw(out / f"{part}.png", *panels)
    return [f"{part}.png"]
