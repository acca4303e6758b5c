"""The claims of mobilequant, on a real language model.

``zoo bench mobilequant --data PATH --base language=FOLDER -O work=FOLDER``: ``PATH`` has
``wikitext-2`` and ``procedures/cookdial``, the base is SmolLM2-135M-Instruct, to which the limits
of the claims belong. Each row of each seed is kept in the work folder as soon as it is measured, so
an interrupted benchmark goes on where it was; ``-O only_kept=true`` reports what is there. Without
the base, a small part is measured on tiny-lm. ``-O part=speed``: see ``bench_speed.py``;
``-O part=integers``: see ``bench_integers.py``.

A seed is a draw of calibration windows from WikiText's validation text, the same for all methods.
What is compared with the original: perplexity of 2,040 tokens of WikiText's test text, the KL
divergence of the next token's distribution in nats, and the share of positions with the same
likeliest token; the same divergence on code and on chats. CPU-seconds are those of one thread that
quantizes, calibration included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Comparison, Values, draw, one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from . import bench_integers, bench_speed
from .limits import above, below
from .measured import (
    FLOAT,
    IN_CHAT,
    IN_CODE,
    ITEMS,
    SEEDS,
    TESTS,
    TEXT,
    Measured,
    Row,
    clip_first,
    mlp_16,
)
from .passages import LENGTH, QUESTIONS
from .recipe import make
from .worlds import World, channels, first_position

STEPS, STEPS_4, SHORT = 150, 20, 20
"""Steps of learning: W8A8, W4A8, ablations."""

WIDE_ACTIVATIONS = "W8A16: round to nearest"
RTN, RTN_GRID = "W8A8: round to nearest", "W8A8: round to nearest, searched ranges"
SQ, SQ_ALL = "W8A8: SmoothQuant", "W8A8: SmoothQuant, all pairs"
SQ_GRID = "W8A8: SmoothQuant, all pairs, searched ranges"
OURS = "W8A8: mobilequant"
FALLBACK = "W8A8: mobilequant, 16 bits for up to 8 activations"
MLP_16 = "W8A8: SmoothQuant, all pairs, MLP activations at 16 bits"
CLIPPED = "W8A8: SmoothQuant, all pairs, first positions clipped"
PREFIX = "W8A8: SmoothQuant, all pairs, first positions in float"
WEIGHTS_4 = "W4A16: round to nearest"
RTN_4, SQ_ALL_4 = "W4A8: round to nearest", "W4A8: SmoothQuant, all pairs"
OURS_4 = "W4A8: mobilequant"

PERPLEXITY, RATIO = "perplexity", "perplexity, ratio to float"
PERPLEXITY_LONG = "perplexity, 20,460 tokens"
KL, AGREEMENT = TEXT, "same likeliest token, %"
SECONDS, MEMORY, WIDE = "CPU-seconds", "peak memory, GB", "16-bit activations added"
RIGHT = "choices right"
MEDIAN = ", median of seeds"

GRID = "smoothquant-all-grid"
MAIN = (
    Row(SQ_GRID, "w8a8", GRID, chooses=True),
    Row(OURS, "w8a8", "mobilequant", {"steps": STEPS}, chooses=True),
)
BASELINES = (
    Row(RTN, "w8a8", "rtn"),
    Row(SQ, "w8a8", "smoothquant"),
    Row(SQ_ALL, "w8a8", "smoothquant-all"),
    Row(MLP_16, "w8a8", "smoothquant-all", after=mlp_16),
)
FOUR_BITS = (
    Row(RTN_4, "w4a8", "rtn"),
    Row(SQ_ALL_4, "w4a8", "smoothquant-all"),
    Row(OURS_4, "w4a8", "mobilequant", {"steps": STEPS_4}, chooses=True),
    Row(WEIGHTS_4, "w4a16", "rtn", seeds=1),
)
FURTHER = (
    Row(CLIPPED, "w8a8", "smoothquant-all", {"prefix_tokens": 2}, after=clip_first),
    Row(FALLBACK, "w8a8", "mobilequant", {"steps": STEPS, "fallback": 8, "budget": 0.05}, seeds=1),
    Row(PREFIX, "w8a8", "smoothquant-all", {"prefix_tokens": 2}, seeds=1),
    Row(RTN_GRID, "w8a8", "rtn-grid", seeds=1),
    Row(WIDE_ACTIVATIONS, "w8a16", "rtn", seeds=1),
)
QUICK = {"steps": 20}
ABLATIONS = tuple(
    Row(f"{scheme.upper()}, {SHORT} steps: {name}", scheme, recipe, {"steps": SHORT, **changes},
        seeds=1)
    for scheme, name, recipe, changes in (
        ("w8a8", "mobilequant", "mobilequant", {}),
        ("w8a8", "ranges alone", "mobilequant", {"learn": ("ranges",)}),
        ("w8a8", "transformation alone", "mobilequant", {"learn": ("transformation",)}),
        ("w8a8", "squared error (the paper's loss)", "mobilequant", {"loss": "mse"}),
        ("w8a8", "layer by layer", "layerwise", {}),
        ("w8a8", "pairs n1 and n2", "mobilequant", {"pairs": ("n1", "n2")}),
        ("w8a8", "without the pair ud", "mobilequant", {"pairs": ("n1", "n2", "vo", "qk")}),
        ("w4a8", "without clipping", "mobilequant", {"learn": ("transformation", "ranges")}),
    )
)  # fmt: skip

CHANNELS, FIRST = "outliers in channels", "massive first position"
WORLDS = {CHANNELS: channels, FIRST: first_position}
PLANTED = (*BASELINES[:3], replace(MAIN[1], changes=QUICK))
"""On tiny-lm with planted outliers."""


def planned(quick: bool) -> Iterator[tuple[Row, int]]:
    """Rows and numbers of seeds, the most important first."""
    if quick:
        yield from ((row, 0) for row in (*BASELINES, MAIN[0], replace(MAIN[1], changes=QUICK)))
        return
    for group in (MAIN, BASELINES, FOUR_BITS, FURTHER, ABLATIONS):
        for i in range(SEEDS):
            yield from ((row, i) for row in group if i < row.seeds)


# --- the benchmark --------------------------------------------------------------------------------


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    base, part = request.bases.get("language"), request.options.get("part")
    if part == "speed":
        return bench_speed.bench(request)
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    book = Book(less_is_better)
    with one_thread():
        if base is None:
            if part == "integers":
                raise InputError(
                    f"part={part} is measured on a language model: pass --base language=FOLDER."
                )
            return book.results(data=planted_rows(book, seeds[0]), seeds=seeds[:1])
        if request.data is None or base.folder is None:
            raise InputError(
                "--base language=FOLDER is measured on WikiText-2 and CookDial: pass --data PATH."
            )
        if part == "integers":
            return bench_integers.bench(request, base.folder, request.data)
        real_rows(request, base.folder, request.data, book, seeds)
    if not request.quick:
        claim(book)
    return book.results(data=used(request.quick), seeds=seeds, pictures=picture(request.out, book))


def real_rows(
    request: BenchRequest, folder: Path, data: Path, book: Book, seeds: Sequence[int]
) -> None:
    """Every row of every seed on a real language model."""
    only_kept = bool(request.options.get("only_kept"))
    plan = [*planned(request.quick)]
    with (
        track(len(plan) + 1, request.progress, "bench") as advance,
        TemporaryDirectory() as scratch,  # where nothing is to be kept
    ):
        work = Path(request.options.get("work") or scratch)
        measured = Measured(folder, data, work, request.quick)
        enter(book, FLOAT, measured.original(only_kept), seeds[0])
        advance()
        for row, i in plan:
            found = measured.row(row, seeds[i], i == 0, only_kept)
            if found:
                enter(book, row.name, found, seeds[i])
            advance()


def planted_rows(book: Book, seed: int) -> list[Data]:
    """What can be measured without a download: tiny-lm with outliers planted in it."""
    for name, plant in WORLDS.items():
        world = World.made(plant)
        for row in PLANTED:
            network = world.network()
            world.fitted(
                network, make(row.recipe, row.scheme, {"table": False, **row.changes}), seed
            )
            found = world.compared(network)
            ratio = found["perplexity"] / found["perplexity_original"]
            book.add(row.name, f"{name}: {RATIO}", ratio, seed)
            book.add(row.name, f"{name}: {KL}", found["kl"], seed)
    lost, divergence = f"{CHANNELS}: {RATIO}", f"{FIRST}: {KL}"
    book.claim(
        "planted-channels",
        "Outliers planted in tiny-lm's channels cost rounding to nearest and SmoothQuant more than "
        "a tenth of the perplexity; with all pairs, learned or not, they cost a hundredth at most.",
        *(above(row, lost, 1.1) for row in (RTN, SQ)),
        *(below(row, lost, 1.01) for row in (SQ_ALL, OURS)),
    )
    book.claim(
        "massive-first-position",
        "Where the first position is massive, in tiny-lm with such a neuron, learning removes four "
        "fifths of what all pairs lose.",
        book.times(OURS, SQ_ALL, divergence, at_most=0.2, test="counted"),
    )
    return [
        Data("recipes that tiny-lm did not learn", "Unlicense", f"{world.tests.numel():,} tokens")
    ]


def less_is_better(column: str) -> bool:
    """Of perplexities, divergences and costs."""
    return not column.startswith((AGREEMENT, RIGHT))


def enter(book: Book, row: str, found: Values, seed: int) -> None:
    """The numbers of one row and seed."""
    compared = found["compared"]
    main = compared[KL]
    book.add(row, PERPLEXITY, main["perplexity"], seed)
    book.add(row, RATIO, main["perplexity"] / main["perplexity_original"], seed)
    for name, values in compared.items():
        book.add(row, name, values["kl"], seed)
        if name == KL:
            book.add(row, AGREEMENT, 100 * values["agreement"], seed)
    if "long" in found:
        book.add(row, PERPLEXITY_LONG, found["long"], seed)
    if "seconds" in found:
        book.add(row, SECONDS, found["seconds"], seed)
    if found.get("memory"):
        book.add(row, MEMORY, found["memory"], seed)
    if found.get("wide"):
        book.add(row, WIDE, len(found["wide"]), seed)
    for i, right in enumerate(found.get("choices", ())):
        book.add(row, RIGHT, float(right), f"item {i}")


RULE = f"the number is the median of {SEEDS} seeds, the limit was set in advance"
CLAIMED = (RATIO, KL, AGREEMENT, IN_CODE, IN_CHAT)


def medians(book: Book, rows: Sequence[str]) -> bool:
    """Enter the medians over the seeds of what claims are about; False where seeds are missing."""
    for row in rows:
        if row not in book.table() or len(book.values(row, KL)) < SEEDS:
            return False
    for row in rows:
        for column in CLAIMED:
            if column in book.columns(row) and column + MEDIAN not in book.columns(row):
                values = book.values(row, column).values()
                book.add(row, column + MEDIAN, statistics.median(values))
    return True


def claim(book: Book) -> None:
    """The limits that were set in advance for SmolLM2-135M-Instruct, on medians of the seeds.

    A claim whose rows are not all there is left out.
    """

    def limits(identity: str, statement: str, rows: Sequence[str], *made: Comparison) -> None:
        if medians(book, rows):
            book.claim(identity, statement, *made, note=RULE)

    def under(row: str, column: str, bound: float) -> Comparison:
        return below(row, column + MEDIAN, bound)

    def over(row: str, column: str, bound: float) -> Comparison:
        return above(row, column + MEDIAN, bound)

    def share(row: str, of: str, bound: float, column: str = KL) -> Comparison:
        return book.times(row, of, column + MEDIAN, at_most=bound, test="counted")

    if PERPLEXITY_LONG in book.columns(FLOAT):
        limits(
            "float-perplexity",
            "The original has the perplexity that it is known to have on WikiText-2's test text: "
            "19.43 on 20,460 tokens and 29.19 on 2,040, to within .1.",
            (),
            above(FLOAT, PERPLEXITY_LONG, 19.33), below(FLOAT, PERPLEXITY_LONG, 19.53),
            above(FLOAT, PERPLEXITY, 29.09), below(FLOAT, PERPLEXITY, 29.29),
        )  # fmt: skip
    limits(
        "rtn-loses",
        "W8A8 by rounding to nearest costs 1.3 to 1.8 times the perplexity and a KL divergence of "
        ".4 to .8.",
        (RTN,),
        over(RTN, RATIO, 1.3), under(RTN, RATIO, 1.8), over(RTN, KL, 0.4), under(RTN, KL, 0.8),
    )  # fmt: skip
    limits(
        "all-pairs",
        "All pairs: at most .6 times the KL divergence of SmoothQuant's own pairs.",
        (SQ, SQ_ALL),
        share(SQ_ALL, SQ, 0.6),
    )
    limits(
        "searched-ranges",
        "All pairs with searched ranges: a KL divergence of at most .5.",
        (SQ_GRID,),
        under(SQ_GRID, KL, 0.5),
    )
    limits(
        "w8a8",
        f"mobilequant, W8A8, {STEPS} steps: a KL divergence of at most .11.",
        (OURS,),
        under(OURS, KL, 0.11),
    )
    limits(
        "w8a8-perplexity",
        f"mobilequant, W8A8, {STEPS} steps: at most 1.07 times the perplexity.",
        (OURS,),
        under(OURS, RATIO, 1.07),
    )
    limits(
        "w8a8-agreement",
        f"mobilequant, W8A8, {STEPS} steps: the same likeliest token at 84 % of the positions.",
        (OURS,),
        over(OURS, AGREEMENT, 84),
    )
    limits(
        "learning",
        "mobilequant, W8A8: at most half the KL divergence of what it starts from, all pairs with "
        "searched ranges.",
        (OURS, SQ_GRID),
        share(OURS, SQ_GRID, 0.5),
    )
    for text in ("code", "chat"):
        limits(
            f"learning-{text}",
            f"It learns from encyclopedia text; on {text} too its KL divergence is at most .8 "
            "times that of all pairs with searched ranges.",
            (OURS, SQ_GRID),
            share(OURS, SQ_GRID, 0.8, f"{KL}, {text}"),
        )
    limits(
        "no-clipping",
        "Ranges that clip the massive first positions at least double the perplexity.",
        (CLIPPED,),
        over(CLIPPED, RATIO, 2),
    )
    limits(
        "mlp-16",
        "All pairs, with the activations inside the MLP at 16 bits: at most 1.06 times the "
        "perplexity and a KL divergence of .06, so these are what 8 bits cannot hold.",
        (MLP_16,),
        under(MLP_16, RATIO, 1.06), under(MLP_16, KL, 0.06),
    )  # fmt: skip
    for rival in (RTN_4, SQ_ALL_4):
        limits(
            f"w4a8-{'rtn' if rival == RTN_4 else 'smoothquant'}",
            f"mobilequant, W4A8, {STEPS_4} steps: a smaller KL divergence than {rival[6:]}.",
            (OURS_4, rival),
            share(OURS_4, rival, 1.0),
        )


def picture(out: Path, book: Book) -> list[str]:
    """The KL divergence of each method on each text, W8A8 and W4A8."""
    panels = []
    for scheme in ("W8A8", "W4A8"):
        rows: dict[str, dict[str, float]] = {}
        for name in (RTN, SQ, SQ_ALL, SQ_GRID, OURS, RTN_4, SQ_ALL_4, OURS_4):
            if name.startswith(scheme) and name in book.table():
                texts = {"encyclopedia": KL, "code": IN_CODE, "chat": IN_CHAT}
                rows[name.removeprefix(f"{scheme}: ")] = {
                    text: book.mean(name, column)
                    for text, column in texts.items()
                    if column in book.columns(name)
                }
        if rows:
            panels.append(Bars(rows, "KL divergence in nats", scheme))
    draw(out / "divergence.png", *panels)
    return ["divergence.png"]


def used(quick: bool) -> list[Data]:
    """The texts, and the model."""
    found = [
        Data("WikiText-2", "CC BY-SA 3.0", f"{(2 if quick else TESTS) * (LENGTH - 1):,} tokens")
    ]
    if not quick:
        found += [
            Data("textwrap of Python's standard library", "PSF-2.0", "1,020 tokens"),
            Data("answers of the measured model itself", "generated", f"{len(QUESTIONS)} chats"),
            Data("CookDial", "MIT", f"{ITEMS} questions which step comes next"),
        ]
    return found
