"""The part "coverage": what a reader learns from pairs that cover more or less.

Two folds: the parser is trained on one half of CookDial's recipes, the other half is parsed, asked
about and learned; the questions are those of CookDial's people and the set U, which is made from
annotated graphs in words that nothing was trained on. Every arm has the same number of pairs and of
steps. A key is seed + 100 * fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Curves, Line, Rows, Values, draw
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from .arms import ARMS, Arm, Source, by_procedure
from .candidates import Candidates, question
from .evaluate import Item, howtos, pairs_as_items, scored
from .model import fit
from .pointer import Example, Pointer, batched, examples, made
from .semantic import (
    Bank,
    Encoder,
    Sentences,
    TfIdf,
    answered,
    distinct_2,
    rank_correlation,
    retrieved,
    said,
    semantic,
)
from .text import read
from .train import TRAINED_WAYS
from .worlds import HALVES, Corpora, Fold, fold

SIZE, STEPS, SEEDS = 12_000, 750, 5
QUICK_SIZE, QUICK_STEPS = 1_000, 300
ONE_WAY = "ALL, one way of asking"
RULE = "most similar sentence (TF-IDF)"
POINTER, BANK = "reader", "bank"
PEOPLE, U, HOWTOS = "people", "U", "how-tos"
MACRO_U, MACRO_U_F1 = f"{U}, macro: EM", f"{U}, macro: F1"
SC, DISTINCT = "semantic coverage (TF-IDF), %", "distinct-2, %"
ENCODED = 60
"""Of people's questions in a fold, whose texts' pairs the sentence encoder reads."""
SC_MINILM = f"semantic coverage (MiniLM, {ENCODED} questions), %"
CORRELATION = "rank correlation over the arms"
AHEAD, AT_LEAST = 10.0, 0.6


def measure(request: BenchRequest, corpora: Corpora, work: Path) -> Results:
    """Every arm, fold and seed; rows that ``work`` has are not measured again."""
    book = Book(less_is_better=lambda column: column == ranked(DISTINCT))
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    run = Run(request, corpora, Rows(work / "coverage"), work)
    for number in range(1 if request.quick else HALVES):
        for seed in seeds:
            for name in (*ARMS, ONE_WAY):
                run.enter(book, f"{POINTER}: {name}", number, seed, _reader(name))
            for name in ARMS:
                run.enter(book, f"{BANK}: {name}", number, seed, _bank(name))
        for name in ARMS:
            run.enter(book, f"pairs: {name}", number, seeds[0], _pairs(name))
        run.enter(book, RULE, number, seeds[0], lambda r, n, s: r.scores(n, r.retrieved(n)))
    if not request.quick and not request.options.get("only_kept"):
        _correlations(book, seeds)
        claim(book)
    questions = [q.kind for q in corpora.questions]
    kinds = {k: questions.count(k) for k in sorted({*questions})}
    size = ", ".join(f"{n} {k}" for k, n in kinds.items())
    data = [
        Data("CookDial: recipes, and questions of people", "MIT", f"260 recipes; {size}"),
        Data("RISeC: links", "MIT", "260 recipes"),
        Data("how-tos of this project", "Apache-2.0", "20 texts, 300 questions"),
    ]
    pictures = [] if request.quick else [_picture(request.out, book)]
    return book.results(data=data, seeds=seeds, pictures=pictures, part="coverage")


Make = Callable[["Run", int, int], Values]


class Run:
    """Folds, arms and encoders, each made when it is first needed."""

    def __init__(self, request: BenchRequest, corpora: Corpora, rows: Rows, work: Path) -> None:
        self.request, self.corpora, self.rows, self.work = request, corpora, rows, work
        self.size = QUICK_SIZE if request.quick else SIZE
        self.steps = QUICK_STEPS if request.quick else STEPS
        self.fold = cache(self._fold)
        self.source = cache(lambda n, ways: Source(self.fold(n).about, ways=ways))
        self.arm = cache(self._arm)
        self.learned = cache(self._learned)
        self.exams = cache(self._exams)
        self.sentences = cache(Sentences)

    def enter(self, book: Book, row: str, number: int, seed: int, make: Make) -> None:
        """Measure a row of a fold and seed, or take what was kept, and enter its numbers."""
        facts = {"fold": number, "seed": seed, "size": self.size, "steps": self.steps}
        if "sentences" in self.request.bases and row.startswith("pairs"):
            facts["sentences"] = 1
        kept = bool(self.request.options.get("only_kept"))
        name = f"{row}, fold {number}, seed {seed}"
        wanted = None if kept else lambda: make(self, number, seed)
        for column, value in self.rows.row(name, facts, wanted).items():
            book.add(row, column, value, seed + 100 * number)

    def _fold(self, number: int) -> Fold:
        return fold(self.corpora, number, self.work, self.request.quick)

    def _arm(self, name: str, number: int, seed: int = 0) -> Arm:
        ways = (0,) if name == ONE_WAY else TRAINED_WAYS
        source = self.source(number, ways)
        return source.arm("ALL" if name == ONE_WAY else name, self.size, seed)

    def _learned(self, name: str, number: int) -> list[Example]:
        about, rng = self.fold(number).about, np.random.default_rng(number)
        rows: list[Example] = []
        for i, pairs in sorted(by_procedure(self.arm(name, number)).items()):
            rows += examples(about[i], pairs, rng)
        return rows

    # --- questions and answers ---

    @cached_property
    def other(self) -> tuple[list[str], list[Item]]:
        return howtos()

    def _exams(self, number: int) -> dict[str, Exam]:
        """The three sets, with the features of their questions."""
        world = self.fold(number)
        texts, items = self.other
        strange = [Candidates(world.parser.graph(read(t))) for t in texts]
        return {
            PEOPLE: Exam(world.about, world.asked),
            U: Exam(world.about, world.unseen),
            HOWTOS: Exam(strange, items),
        }

    def answers(self, pointer: Pointer, number: int) -> dict[str, list[str]]:
        """A reader's answers to the three sets."""
        return {name: exam.answers(pointer) for name, exam in self.exams(number).items()}

    def scores(self, number: int, answers: Mapping[str, Sequence[str]]) -> Values:
        """EM and F1 by set and kind; of U the mean over its types alone."""
        world = self.fold(number)
        sets = {PEOPLE: world.asked, U: world.unseen, HOWTOS: self.other[1]}
        found: Values = {}
        for name, told in answers.items():
            for kind, numbers in scored(sets[name], told).items():
                if name != U or kind == "macro":
                    found |= {f"{name}, {kind}: {m}": v for m, v in numbers.items()}
        return found

    def retrieved(self, number: int) -> dict[str, list[str]]:
        """The rule's answers."""
        world = self.fold(number)
        lines = {
            i: [n.text for n in c.graph.nodes if n.kind in ("step", "material")]
            for i, c in enumerate(world.about)
        }
        return {PEOPLE: retrieved(lines, world.asked), U: retrieved(lines, world.unseen)}


def _reader(name: str) -> Make:
    """Train the pointer from random weights on an arm."""

    def make(run: Run, number: int, seed: int) -> Values:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pointer = Pointer()
        fit(pointer, run.learned(name, number), run.steps, seed)
        return run.scores(number, run.answers(pointer, number))

    return make


def _bank(name: str) -> Make:
    """Look up the most similar generated question."""

    def make(run: Run, number: int, seed: int) -> Values:
        arm = run.arm(name, number, seed)  # another draw of pairs for each seed
        bank, world = Bank(by_procedure(arm)), run.fold(number)
        return run.scores(number, {PEOPLE: bank(world.asked), U: bank(world.unseen)})

    return make


def _pairs(name: str) -> Make:
    """What an arm's pairs cover of the factoid questions of people."""

    def make(run: Run, number: int, seed: int) -> Values:
        arm, world = run.arm(name, number), run.fold(number)
        wanted = [i for i in world.asked if i.kind == "factoid"]
        items = pairs_as_items(by_procedure(arm))
        questions = [d.pair.question for d in arm.pairs]
        encoders: dict[str, Encoder] = {SC: TfIdf([*map(said, items), *map(said, wanted)])}
        if base := run.request.bases.get("sentences"):
            if base.folder is None:
                raise InputError("--base sentences=FOLDER: the folder is missing.")
            encoders[SC_MINILM] = run.sentences(base.folder)
        found: Values = {
            "answer coverage, %": answered(items, wanted),
            DISTINCT: distinct_2(questions),
            "different questions": float(len({*questions})),
        }
        if arm.facts is not None:
            found["facts asked about"] = float(arm.facts)
        for column, encode in encoders.items():
            some = wanted[:ENCODED] if column == SC_MINILM else wanted
            mean, share = semantic(items, some, encode)
            found |= {column: mean, column.replace(", %", ", % above 0.7"): share}
        return found

    return make


class Exam:
    """Questions with their candidates and features, to be answered by any number of readers."""

    def __init__(self, about: Sequence[Candidates], items: Sequence[Item]) -> None:
        self._order: list[int] = []
        self._rows: list[Example] = []
        for number, candidates in enumerate(about):
            mine = [i for i, item in enumerate(items) if item.about == number]
            nothing = np.zeros(len(candidates.items), bool)
            asked = [(question(items[i].question, items[i].step), nothing) for i in mine]
            self._order += mine
            self._rows += made(candidates, asked)

    @torch.inference_mode()
    def answers(self, pointer: Pointer) -> list[str]:
        """The most probable candidate of each question, in the order of the items."""
        found = [""] * len(self._order)
        for k in range(0, len(self._order), 64):
            rows = self._rows[k : k + 64]
            best = pointer(batched(rows)).argmax(1).tolist()
            for i, row, choice in zip(self._order[k : k + 64], rows, best, strict=True):
                found[i] = row.about.items[choice].text
        return found


def _correlations(book: Book, seeds: Sequence[int]) -> None:
    """For each fold and seed: Spearman's correlation over the arms with the reader's F1 on U."""
    for number in range(HALVES):
        for column in (SC, SC_MINILM, DISTINCT):
            pairs = [f"pairs: {name}" for name in ARMS]
            if not all(column in book.columns(row) for row in pairs):
                continue
            cover = [book.values(row, column)[seeds[0] + 100 * number] for row in pairs]
            for seed in seeds:
                key = seed + 100 * number
                scores = [book.values(f"{POINTER}: {n}", MACRO_U_F1)[key] for n in ARMS]
                book.add(CORRELATION, ranked(column), rank_correlation(cover, scores), key)


def ranked(column: str) -> str:
    """The column of a correlation with F1."""
    return f"{column.removesuffix(', %')} and F1 on {U}"


def claim(book: Book) -> None:
    """The four conditions, each on its own."""
    readers = {name: f"{POINTER}: {name}" for name in (*ARMS, ONE_WAY)}
    banks = {name: f"{BANK}: {name}" for name in ARMS}
    narrow = [readers[n] for n in ("CLOZE", "SAL", "ROLE")]
    for identity, where, column in (
        ("types", "the set U", MACRO_U),
        ("types-how-tos", "the how-tos, another domain", f"{HOWTOS}, macro: EM"),
    ):
        book.claim(
            identity,
            f"A reader that learned all types of questions is {AHEAD:g} points better in exact "
            f"match, averaged over types, than after salient types, roles alone or cloze: {where}.",
            book.better(readers["ALL"], narrow, column, by=AHEAD),
        )
    book.claim(
        "semantic-coverage",
        f"Over the arms, semantic coverage ranks the reader's F1 on U (Spearman {AT_LEAST:g} or "
        "more), and diversity of wording does not (0 or less).",
        book.better(CORRELATION, AT_LEAST, ranked(SC)),
        book.better(CORRELATION, 0.0, ranked(DISTINCT)),
    )
    for identity, what, rows in (
        ("nodes-reader", "the reader, which learns", readers),
        ("nodes-bank", "the bank, which looks up", banks),
    ):
        book.claim(
            identity,
            f"Within the same types, more of the facts make {what}, better on people's factoids: "
            "a tenth, a quarter, all.",
            book.better(rows["P25"], rows["P10"], f"{PEOPLE}, factoid: EM", test="t"),
            book.better(rows["ALL"], rows["P25"], f"{PEOPLE}, factoid: EM", test="t"),
        )
    book.claim(
        "paraphrases",
        "Several ways of asking are no worse than one, on U.",
        book.not_worse(readers["ALL"], readers[ONE_WAY], MACRO_U, margin=1.0),
    )


def _picture(out: Path, book: Book) -> str:
    """Left: semantic coverage against F1; middle: wording against F1; right: EM by set."""
    panels: list[Curves | Bars] = []
    for column, title in ((SC, "coverage"), (DISTINCT, "diversity of wording")):
        points: dict[str, Line] = {
            name: [
                (book.mean(f"pairs: {name}", column), book.mean(f"{POINTER}: {name}", MACRO_U_F1))
            ]
            for name in ARMS
        }
        panels.append(Curves(points, column, "F1 on U, %", title))
    rows = {
        name: {
            where: book.mean(f"{POINTER}: {name}", f"{where}, macro: EM")
            for where in (PEOPLE, U, HOWTOS)
        }
        for name in ARMS
    }
    panels.append(Bars(rows, "exact match, mean of types, %", "reader"))
    draw(out / "coverage.png", *panels)
    return "coverage.png"
