"""The part "language": a general language model as the reader, and as the writer of pairs.

As the reader it gets the texts and questions that graph-qa gets, zero-shot and with three examples:
all factoids on the how-tos, against the bundled reader; and people's factoids of one fold of
CookDial, against a pointer whose parser and pairs are of that fold. Questions are answered in
batches by both, so that a text is read once for its batch. As the writer it makes pairs from the
fold's first recipes, on which a pointer is trained beside ALL, SAL and CLOZE with as many pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Rows, Values, draw, load, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from .arms import Source, by_procedure
from .bench_coverage import Exam, Run
from .bench_parser import told
from .candidates import Candidates
from .evaluate import Item, howtos, pairs_as_items, scored
from .model import GraphQA, fit
from .pointer import Example, Pointer, examples
from .questions import Pair
from .rivals import Rival
from .score import exact, f1
from .semantic import Encoder, Sentences, TfIdf, answered, distinct_2, said, semantic
from .text import Procedure
from .train import TRAINED_WAYS
from .worlds import Corpora

FOLD = 1
"""Ways of asking were added after a look at fold 0."""
BATCH = 8
RECIPES, QUICK = 48, 3
"""That it writes pairs about."""
PAIRS = 1_000
STEPS = 300
SEEDS = 5
READER = "graph-qa's reader"
ZERO, THREE = "language model, zero-shot", "language model, three examples"
WRITTEN = "pairs: language model"
EM, F1, SECONDS = "exact match", "F1", "CPU-seconds an answer"
FASTER = 20.0


def measure(request: BenchRequest, corpora: Corpora, work: Path) -> Results:
    """Both experiments; needs ``--base language=FOLDER``."""
    base = request.bases.get("language")
    if base is None or base.folder is None:
        raise InputError(
            "part=language needs --base language=FOLDER, such as SmolLM2-135M-Instruct."
        )
    book = Book(less_is_better=lambda column: column == SECONDS)
    run = Run(request, corpora, Rows(work / "coverage"), work)
    rows = Rows(work / "language")
    rival = cache(lambda: Rival(base.folder))  # type: ignore[arg-type]
    facts = {"base": base.sha256 or base.revision or base.id, "quick": request.quick}
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    count = _readers(request, book, rows, run, rival, facts)
    written = _written(rows, run, rival, facts, request.quick)
    _writers(request, book, run, written, seeds)
    if not request.quick:
        claim(book)
    data = [
        Data("CookDial: people's factoids", "MIT", f"{count['people']} questions"),
        Data("how-tos of this project", "Apache-2.0", f"{count['how-tos']} factoid questions"),
        Data("CookDial: recipes that pairs are written about", "MIT", f"{len(written)} recipes"),
    ]
    pictures = [] if request.quick else [_picture(request.out, book)]
    return book.results(data=data, seeds=seeds, pictures=pictures, part="language")


# --- as the reader --------------------------------------------------------------------------------


def _readers(
    request: BenchRequest, book: Book, rows: Rows, run: Run, rival: Callable[[], Rival],
    facts: Values,
) -> dict[str, int]:  # fmt: skip
    """EM, F1 and seconds of each question; how many questions."""
    world = run.fold(FOLD)
    texts = [r.procedure.text for r in world.recipes]
    pointer = cache(lambda: _pointer(run.learned("ALL", FOLD), run.steps, request.seed))
    strange, items = howtos()
    model: GraphQA = load(request, base=None)

    def of_the_fold(batch: Sequence[Item]) -> list[str]:
        numbers = sorted({i.about for i in batch})  # each text is read again
        about = [Candidates(world.parser.graph(world.recipes[n].procedure)) for n in numbers]
        mine = [replace(i, about=numbers.index(i.about)) for i in batch]
        return Exam(about, mine).answers(pointer())

    def of_the_model(batch: Sequence[Item]) -> list[str]:
        model.forget()
        return told(model, strange, batch)

    people = [i for i in world.asked if i.kind == "factoid"]
    others = [i for i in items if i.kind == "factoid"]
    by_text = [[*group] for _, group in itertools.groupby(others, lambda i: i.about)]
    batches = {
        "people": [people[k : k + BATCH] for k in range(0, len(people), BATCH)],
        "how-tos": by_text,
    }
    if request.quick:
        batches = {name: some[:1] for name, some in batches.items()}
    ours = {"people": of_the_fold, "how-tos": of_the_model}
    pointer(), told(model, strange, others[:1])  # so that no answer's time has it
    for name, some in batches.items():
        own = texts if name == "people" else strange
        for number, batch in enumerate(some):
            for row, shown in ((ZERO, 0), (THREE, 3)):

                def ask(
                    batch: Sequence[Item] = batch, own: Sequence[str] = own, shown: int = shown
                ) -> Values:
                    asked = [(own[i.about], _said(i)) for i in batch]
                    answers, seconds = timed(lambda: rival().answers(asked, shown))
                    return {"answers": answers, "seconds": seconds / len(batch)}

                rival()
                kept = rows.row(f"{row}, {name}, batch {number}", facts, ask)
                _enter(book, row, name, number, batch, kept)
            answers, seconds = timed(lambda n=name, b=batch: ours[n](b))  # type: ignore[misc]
            made = {"answers": answers, "seconds": max(seconds, 1e-6) / len(batch)}
            _enter(book, READER, name, number, batch, made)
    return {name: sum(map(len, some)) for name, some in batches.items()}


def _said(item: Item) -> str:
    """The question, with the step that the person is at."""
    if item.step is None:
        return item.question
    return f"At step {item.step + 1}, {item.question[0].lower()}{item.question[1:]}"


def _enter(
    book: Book, row: str, name: str, number: int, batch: Sequence[Item], made: Values
) -> None:
    """A question is a test item of exact match and F1; a batch is one of the time."""
    for i, (item, answer) in enumerate(zip(batch, made["answers"], strict=True)):
        for column, score in ((EM, exact), (F1, f1)):
            best = max(score(answer, a) for a in item.answers)
            book.add(row, f"{name}: {column}", best, f"{name} {number} {i}")
    book.add(row, SECONDS, made["seconds"], f"{name} {number}")


def _pointer(rows: list[Example], steps: int, seed: int) -> Pointer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pointer = Pointer()
    fit(pointer, rows, steps, seed)
    return pointer


# --- as the writer --------------------------------------------------------------------------------


def _written(
    rows: Rows, run: Run, rival: Callable[[], Rival], facts: Values, quick: bool
) -> dict[int, list[Pair]]:
    """Recipe -> the pairs that the language model wrote about it."""
    about = run.fold(FOLD).about[: QUICK if quick else RECIPES]
    found: dict[int, list[Pair]] = {}
    for i, one in enumerate(about):

        def write(procedure: Procedure = one.graph.procedure) -> Values:
            made = rival().pairs(procedure)
            return {"pairs": [[p.question, p.answer, p.step, p.start, p.end] for p in made]}

        kept = rows.row(f"{WRITTEN}, recipe {i}", facts, write)
        found[i] = [
            Pair(q, a, (), "written", None, step, start, end)
            for q, a, step, start, end in kept["pairs"]
        ]
    return found


def _writers(
    request: BenchRequest, book: Book, run: Run, written: Mapping[int, list[Pair]],
    seeds: Sequence[int],
) -> None:  # fmt: skip
    """Arms of equal size about the same recipes: as many pairs as the language model wrote."""
    world, count = run.fold(FOLD), len(written)
    size = min(PAIRS, sum(map(len, written.values())))
    if not size:
        raise InputError("the language model wrote no pair whose answer is in the text.")
    source = Source(world.about[:count], ways=TRAINED_WAYS)
    arms: dict[str, Mapping[int, list[Pair]]] = {WRITTEN: written}
    for name in ("ALL", "SAL", "CLOZE"):
        arms[f"pairs: {name}"] = by_procedure(source.arm(name, size, 0))
    people = [i for i in world.asked if i.kind == "factoid" and i.about < count]
    unseen = [i for i in world.unseen if i.about < count]
    base = request.bases.get("sentences")
    sentences = Sentences(base.folder) if base and base.folder else None
    for row, pairs in arms.items():
        items = pairs_as_items(pairs)
        words = TfIdf([*map(said, items), *map(said, people)])
        encoders: dict[str, Encoder] = {"TF-IDF": words}
        if sentences is not None:
            encoders["MiniLM"] = sentences
        for name, encode in encoders.items():
            book.add(row, f"semantic coverage ({name}), %", semantic(items, people, encode)[0])
        book.add(row, "answer coverage, %", answered(items, people))
        book.add(row, "distinct-2, %", distinct_2([i.question for i in items]))
        rng = np.random.default_rng(0)
        learned = [e for i, some in pairs.items() for e in examples(world.about[i], some, rng)]
        book.add(row, "pairs", float(len(items)))
        book.add(row, "pairs that a candidate answers", float(len(learned)))
        exams = {"people, factoid": (people, Exam(world.about, people)),
                 "U": (unseen, Exam(world.about, unseen))}  # fmt: skip
        for seed in seeds if learned else ():
            pointer = _pointer(learned, STEPS, seed)
            for name, (asked, exam) in exams.items():
                scores = scored(asked, exam.answers(pointer))["macro"]
                for metric, value in scores.items():
                    book.add(row, f"{name}: {metric}", value, seed)


def claim(book: Book) -> None:
    """The reader is better and quicker; the model's pairs vary more and cover less."""
    rivals = (ZERO, THREE)
    for name in ("people", "how-tos"):
        book.claim(
            f"reader-{name}",
            "graph-qa's reader, some 1/700 of its size, answers factoid questions better "
            f"than the language model, zero-shot and with three examples: {name}.",
            *(book.better(READER, r, f"{name}: {m}") for r in rivals for m in (EM, F1)),
        )
    book.claim(
        "reader-time",
        f"An answer takes 1/{FASTER:g} of the language model's CPU time or less, a text being read "
        "once for the questions that are asked about it together.",
        *(book.times(READER, r, SECONDS, at_most=1 / FASTER) for r in rivals),
    )
    coverage = [c for c in book.columns(WRITTEN) if c.startswith("semantic")]
    book.claim(
        "writer",
        "The language model's pairs have more diverse words than the graph's, and cover less.",
        book.better(WRITTEN, "pairs: ALL", "distinct-2, %", test="counted"),
        *(book.better("pairs: ALL", WRITTEN, c, test="counted") for c in coverage),
    )
    book.claim(
        "writer-reader",
        "A reader learns more from the graph's pairs than from as many of the language model's: "
        "U, and people's factoids.",
        *(book.better("pairs: ALL", WRITTEN, f"{name}: EM") for name in ("U", "people, factoid")),
    )


def _picture(out: Path, book: Book) -> str:
    """Left: exact match of the readers; right: what arms of equal size cover."""
    readers = {
        row: {name: 100 * book.mean(row, f"{name}: {EM}") for name in ("people", "how-tos")}
        for row in (READER, ZERO, THREE)
    }
    columns = ("semantic coverage (TF-IDF), %", "answer coverage, %", "distinct-2, %")
    arms = {
        row: {column.removesuffix(", %"): book.mean(row, column) for column in columns}
        for row in (WRITTEN, "pairs: ALL", "pairs: SAL", "pairs: CLOZE")
    }
    draw(
        out / "language.png",
        Bars(readers, "exact match, %", "factoid questions"),
        Bars(arms, "%", "pairs"),
    )
    return "language.png"
