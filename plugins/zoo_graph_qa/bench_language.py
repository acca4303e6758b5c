"""The part "language": a general language model as the reader, and as the writer of pairs.

As the reader it gets the same texts and questions as the bundled one (people's factoids of one fold
of CookDial, read by a pointer whose parser and pairs are of that fold; and the how-tos), zero-shot
and with three examples. As the writer it makes pairs from the same recipes, on which a pointer is
trained beside ALL, SAL and CLOZE with as many pairs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from zoo.errors import InputError
from zoo.experiment import Book, Rows, Values, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from .arms import by_procedure
from .bench_coverage import _Run
from .evaluate import Item, howtos, pairs_as_items
from .model import fit
from .pointer import Example, Pointer, examples
from .questions import Pair
from .rivals import Rival
from .score import exact, f1
from .semantic import Encoder, Sentences, TfIdf, answered, distinct_2, said, semantic
from .worlds import Corpora

CHUNK, QUESTIONS, QUICK = 10, 120, 10
"""Questions of a kept row; of each set."""
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
    rows = Rows(work / "language")
    rival = cache(lambda: Rival(base.folder))  # type: ignore[arg-type]
    run = _Run(request, corpora, Rows(work / "coverage"), work)
    count = QUICK if request.quick else QUESTIONS
    facts = {"base": base.sha256 or base.revision or base.id, "quick": request.quick}
    world = run.fold(0)
    asked = [i for i in world.asked if i.kind == "factoid"][:count]
    texts = [r.procedure.text for r in world.recipes]
    strange, items = howtos()
    others = [i for i in items if i.kind == "factoid"][:count]
    pointer = cache(lambda: _pointer(run.learned("ALL", 0), run.steps, request.seed))
    for name, own, questions in (("people", texts, asked), ("how-tos", strange, others)):
        for k in range(0, len(questions), CHUNK):
            part = questions[k : k + CHUNK]
            for row, shown in ((ZERO, 0), (THREE, 3)):

                def ask(
                    part: list[Item] = part, own: list[str] = own, shown: int = shown
                ) -> Values:
                    return _rival(rival(), part, own, shown)

                _enter(book, row, name, k, rows.row(f"{row}, {name}, {k}", facts, ask))

            def read(part: list[Item] = part, name: str = name) -> Values:
                return _ours(run, pointer(), part, name)

            _enter(book, READER, name, k, rows.row(f"{READER}, {name}, {k}", facts, read))
    _writers(request, book, rows, run, rival, facts)
    claim(book, request.quick)
    data = [
        Data("CookDial: people's factoids", "MIT", f"{len(asked)} questions"),
        Data("how-tos of this project", "Apache-2.0", f"{len(others)} questions"),
    ]
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    return book.results(data=data, seeds=seeds, part="language")


def _enter(book: Book, row: str, name: str, first: int, found: Values) -> None:
    """Each question's numbers are those of a test item."""
    for metric, column in (("em", EM), ("f1", F1), ("seconds", SECONDS)):
        for i, value in enumerate(found.get(metric, ())):
            book.add(row, f"{name}: {column}" if metric != "seconds" else SECONDS, value,
                     f"{name} {first + i}")  # fmt: skip


def _scored(item: Item, answer: str, seconds: float) -> tuple[float, float, float]:
    return (
        max(exact(answer, a) for a in item.answers),
        max(f1(answer, a) for a in item.answers),
        max(seconds, 1e-6),
    )


def _listed(numbers: list[tuple[float, float, float]]) -> Values:
    return {key: [n[i] for n in numbers] for i, key in enumerate(("em", "f1", "seconds"))}


def _rival(rival: Rival, items: list[Item], texts: list[str], shown: int) -> Values:
    numbers = []
    for item in items:
        asked = item.question
        if item.step is not None:
            asked = f"At step {item.step + 1}, {asked[0].lower()}{asked[1:]}"
        text = texts[item.about]
        answer, seconds = timed(lambda t=text, q=asked: rival.answer(q, t, shown))  # type: ignore[misc]
        numbers.append(_scored(item, answer, seconds))
    return _listed(numbers)


def _ours(run: _Run, pointer: Pointer, items: list[Item], name: str) -> Values:
    """Reading the text is part of an answer: it is done again for each question."""
    from .bench_coverage import _told
    from .candidates import Candidates
    from .text import read

    world = run.fold(0)
    numbers = []
    for item in items:

        def answer(item: Item = item) -> list[str]:
            if name == "people":
                procedure = world.recipes[item.about].procedure
            else:
                procedure = read(howtos()[0][item.about])
            about = Candidates(world.parser.graph(procedure))
            alone = Item(0, item.kind, item.question, item.step, item.answers)
            return _told(pointer, [about], [alone])

        (told,), seconds = timed(answer)
        numbers.append(_scored(item, told, seconds))
    return _listed(numbers)


def _pointer(rows: list[Example], steps: int, seed: int) -> Pointer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pointer = Pointer()
    fit(pointer, rows, steps, seed)
    return pointer


def _writers(
    request: BenchRequest, book: Book, rows: Rows, run: _Run, rival: object, facts: Values
) -> None:
    """The arms of equal size: as many pairs as the language model wrote, at most ``PAIRS``."""
    world = run.fold(0)
    written: dict[int, list[Pair]] = {}
    recipes = 3 if request.quick else len(world.about)
    for i in range(recipes):

        def write(i: int = i) -> Values:
            made = rival().pairs(world.about[i])  # type: ignore[operator]
            return {"pairs": [[p.question, p.answer, p.start, p.end] for p in made]}

        kept = rows.row(f"{WRITTEN}, recipe {i}", facts, write)
        written[i] = [
            Pair(q, a, (), "written", None, None, start, end) for q, a, start, end in kept["pairs"]
        ]
        if sum(map(len, written.values())) >= PAIRS:
            break
    size = min(PAIRS, sum(map(len, written.values())))
    if not size:
        return
    wanted = [i for i in world.asked if i.kind == "factoid"]
    arms = {WRITTEN: written}
    for name in ("ALL", "SAL", "CLOZE"):
        arms[f"pairs: {name}"] = dict(by_procedure(run.source(0, (0, 1, 2, 3)).arm(name, size, 0)))
    encode: Encoder
    for row, pairs in arms.items():
        items = pairs_as_items(pairs)
        if (base := request.bases.get("sentences")) and base.folder is not None:
            encode, named = Sentences(base.folder), "MiniLM"
        else:
            encode, named = TfIdf([*map(said, items), *map(said, wanted)]), "TF-IDF"
        mean, _ = semantic(items, wanted, encode)
        book.add(row, f"semantic coverage ({named}), %", mean)
        book.add(row, "answer coverage, %", answered(items, wanted))
        book.add(row, "distinct-2, %", distinct_2([i.question for i in items]))
        rng = np.random.default_rng(0)
        learned = [e for i, rows_ in pairs.items() for e in examples(world.about[i], rows_, rng)]
        book.add(row, "pairs", float(len(items)))
        book.add(row, "pairs that a candidate answers", float(len(learned)))
        if not learned:
            continue
        for seed in range(1 if request.quick else SEEDS):
            pointer = _pointer(learned, STEPS, request.seed + seed)
            scores = run.scores(0, run.answers(pointer, 0))
            for column in ("people, factoid: EM", "people, factoid: F1", "U, macro: EM"):
                book.add(row, column, scores[column], request.seed + seed)


def claim(book: Book, quick: bool) -> None:
    """The reader is better and quicker; the model's pairs vary more and cover less."""
    if quick:
        return
    rivals = (ZERO, THREE)
    for name in ("people", "how-tos"):
        book.claim(
            f"reader-{name}",
            "The bundled kind of reader, some 1/700 of its size, answers factoid questions better "
            f"than the language model, zero-shot and with three examples: {name}.",
            *(book.better(READER, r, f"{name}: {m}") for r in rivals for m in (EM, F1)),
        )
    book.claim(
        "reader-time",
        f"An answer takes 1/{FASTER:g} of the language model's CPU time or less. Its text is "
        "read anew.",
        *(book.times(READER, r, SECONDS, at_most=1 / FASTER) for r in rivals),
    )
    if len(book.columns(WRITTEN)) > 4:
        coverage = next(c for c in book.columns(WRITTEN) if c.startswith("semantic"))
        book.claim(
            "writer",
            "The language model's pairs have more diverse words than the graph's, and cover less.",
            book.better(WRITTEN, "pairs: ALL", "distinct-2, %", test="counted"),
            book.better("pairs: ALL", WRITTEN, coverage, test="counted"),
        )
