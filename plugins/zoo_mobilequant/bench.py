"""The claims of mobilequant, on a real language model.

``zoo bench mobilequant --data PATH --base language=FOLDER -O work=FOLDER``: ``PATH`` has
``wikitext-2`` and ``procedures/cookdial``, the base is SmolLM2-135M-Instruct, to which the limits
of the claims belong. Each row of each seed is kept in the work folder as soon as it is measured, so
an interrupted benchmark goes on where it was; ``-O only_kept=true`` reports what is there.

A seed is a draw of calibration windows from WikiText's validation text, the same for all methods.
What is compared with the original: perplexity of 2,040 tokens of WikiText's test text, the KL
divergence of the next token's distribution in nats, and the share of positions with the same
likeliest token; the same divergence on code and on chats. CPU-seconds are those of one thread that
quantizes, calibration included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Comparison, draw, one_thread, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track
from zoo.weights import load_tensors, save_tensors

from .evaluate import Choice, accuracy
from .families import describe
from .kept import Rows, Shared, Values, digest, forget_peak, peak
from .learn import last_hidden
from .method import Fitted, compare, fit
from .original import opened
from .passages import LENGTH, Words, next_steps, wikitext
from .quantizers import asymmetric
from .recipe import make as recipe_of
from .simulate import Site

CALIBRATION = 104
"""Windows of 256 tokens that a seed draws; of these, 4 are held back, 32 serve the closed forms."""
TESTS = 8
"""Windows of WikiText's test text: 2,040 tokens."""
LONG = (20, 1024)
"""Windows and new tokens of the longer test of the original alone."""
CODE = 4
"""Windows of code."""
ITEMS = 150
"""Questions with four answers, for the rows of the first seed that answer them."""
STEPS, STEPS_4, SHORT = 150, 30, 25
"""Steps of learning: W8A8, W4A8, ablations."""
SEEDS = 3

FLOAT = "float"
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
SHORT_OURS = f"W8A8, {SHORT} steps: mobilequant"
SHORT_OURS_4 = f"W4A8, {SHORT} steps: mobilequant"

PERPLEXITY, RATIO = "perplexity", "perplexity, ratio to float"
KL, AGREEMENT = "KL", "same likeliest token, %"
SECONDS, MEMORY, WIDE = "CPU-seconds", "peak memory, GB", "16-bit activations added"
RIGHT = "choices right"
MEDIAN = ", median of seeds"

After = Callable[[Mapping[str, Site]], None]


def mlp_16(sites: Mapping[str, Site]) -> None:
    """The activations inside the MLP get 16 bits, over the range they have."""
    for name, site in sites.items():
        if name.split(".")[1] in ("gate", "up", "sigmoid", "act", "h"):
            site.set(asymmetric(*site.grid.range, 16))


def clip_first(sites: Mapping[str, Site]) -> None:
    """Positions that stayed in float are quantized too, by ranges that never saw them."""
    for site in sites.values():
        site.positions.prefix = 0


@dataclass(frozen=True)
class Row:
    """A method: a scheme, a recipe, and what is changed of it."""

    name: str
    scheme: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    after: After | None = None
    """What is done to the sites in the end."""
    chooses: bool = False
    """Does it answer the questions, with the first seed?"""
    seeds: int = SEEDS


GRID = "smoothquant-all-grid"
BASELINES = (
    Row(RTN, "w8a8", "rtn", chooses=True),
    Row(RTN_GRID, "w8a8", "rtn-grid"),
    Row(SQ, "w8a8", "smoothquant"),
    Row(SQ_ALL, "w8a8", "smoothquant-all"),
    Row(SQ_GRID, "w8a8", GRID, chooses=True),
    Row(MLP_16, "w8a8", "smoothquant-all", after=mlp_16),
)
METHOD = (Row(OURS, "w8a8", "mobilequant", {"steps": STEPS}, chooses=True),)
FOUR_BITS = (
    Row(RTN_4, "w4a8", "rtn", chooses=True),
    Row(SQ_ALL_4, "w4a8", "smoothquant-all"),
    Row(OURS_4, "w4a8", "mobilequant", {"steps": STEPS_4}, chooses=True),
    Row(WEIGHTS_4, "w4a16", "rtn", seeds=1),
)
FURTHER = (
    Row(CLIPPED, "w8a8", "smoothquant-all", {"prefix_tokens": 2}, after=clip_first),
    Row(FALLBACK, "w8a8", "mobilequant", {"steps": STEPS, "fallback": 8, "budget": 0.05}),
    Row(PREFIX, "w8a8", "smoothquant-all", {"prefix_tokens": 2}, seeds=1),
    Row(WIDE_ACTIVATIONS, "w8a16", "rtn", seeds=1),
)
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
        ("w4a8", "mobilequant", "mobilequant", {}),
        ("w4a8", "without clipping", "mobilequant", {"learn": ("transformation", "ranges")}),
    )
)  # fmt: skip


def planned(quick: bool) -> Iterator[tuple[Row, int]]:
    """Rows and numbers of seeds, the most important first."""
    if quick:
        yield from ((row, 0) for row in BASELINES)
        yield Row(OURS, "w8a8", "mobilequant", {"steps": 20}), 0
        return
    for group in (BASELINES, METHOD, FOUR_BITS, FURTHER, ABLATIONS):
        for i in range(SEEDS):
            yield from ((row, i) for row in group if i < row.seeds)


# --- measuring ------------------------------------------------------------------------------------


class Measured:
    """A language model, what is measured on it, and the rows that have been."""

    def __init__(self, folder: Path, data: Path, work: Path, quick: bool = False) -> None:
        self.folder, self.work, self.quick = folder, work, quick
        self.windows = 12 if quick else CALIBRATION
        original = opened(folder)
        self.words, self.source = Words(original.tokenizer), original.source
        self.lessons = self.words.ids(wikitext(data, "valid"))
        self.items: list[Choice] = [] if quick else next_steps(data, ITEMS)
        self.rows = Rows(work / "rows")
        self.texts = {KL: self.words.windows(wikitext(data, "test"), 2 if quick else TESTS)}
        if not quick:
            self.texts[f"{KL}, code"] = self.words.code(CODE)
            self.texts[f"{KL}, chat"] = self._chats(original.network)
        self.wanted = {name: self._states(original.network, t) for name, t in self.texts.items()}
        self.long = self.words.windows(wikitext(data, "test"), LONG[0], LONG[1] + 1)

    def _chats(self, network: Any) -> Tensor:
        file = self.work / "chats.safetensors"
        if not file.is_file():
            save_tensors(file, {"ids": self.words.chats(network)})
        return load_tensors(file)["ids"]

    def _states(self, network: Any, rows: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [last_hidden(network, row)[1] for row in rows]

    def original(self) -> Values:
        """The float row."""
        facts = {**self._facts(), "items": len(self.items)}
        return self.rows.row(FLOAT, facts, self._original)

    def _original(self) -> Values:
        network = opened(self.folder).network
        found = self._compared(network)
        if not self.quick:
            found["choices"] = self._choices(network)
            wanted = self._states(network, self.long)
            found["long"] = compare(network, self.long, wanted)["perplexity"]
        return found

    def row(self, row: Row, seed: int, first: bool, kept: bool = False) -> Values:
        """A row of a seed; ``first``: of the seed that answers questions. ``kept``: {} where it has
        not been measured yet.
        """
        facts = {**self._facts(), "scheme": row.scheme, "recipe": row.recipe}
        facts |= {"changes": dict(row.changes), "windows": self.windows}
        choices = first and row.chooses
        if choices:
            facts |= {"items": len(self.items)}
        make = None if kept else lambda: self._row(row, seed, choices)
        return self.rows.row(f"{row.name}, seed {seed}", facts, make)

    def _facts(self) -> Values:
        texts = {name: digest(rows.tolist()) for name, rows in self.texts.items()}
        return {"base": self.source["sha256"], "texts": texts}

    def _row(self, row: Row, seed: int, choices: bool) -> Values:
        recipe = recipe_of(row.recipe, row.scheme, row.changes)
        rows = self.words.drawn(self.lessons, self.windows, seed)
        network = opened(self.folder).network
        work = Shared(self.work / f"seed-{seed}", recipe)
        forget_peak()
        fitted: Fitted
        fitted, seconds = timed(
            lambda: fit(network, describe(network), rows, recipe, seed=seed, work=work)
        )
        memory = peak()
        if row.after:
            row.after(fitted.sites)
        found = self._compared(network)
        found |= {"seconds": seconds + work.seconds, "memory": memory}
        found |= {"wide": fitted.report["wide"], "notes": fitted.report["notes"]}
        if choices and self.items:
            found["choices"] = self._choices(network)
        return found

    @torch.no_grad()
    def _compared(self, network: Any) -> Values:
        found = {name: compare(network, t, self.wanted[name]) for name, t in self.texts.items()}
        return {"compared": found}

    @torch.no_grad()
    def _choices(self, network: Any) -> list[bool]:
        return accuracy(Remembering(network), self.words.tokenizer, self.items)


class Remembering:
    """A language model that keeps its cache: what a sequence has in common with the one before it
    is not computed again. One sequence at a time.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.ids = torch.empty(0, dtype=torch.long)
        self.logits = torch.empty(0)
        self.cache: Any = None

    def __call__(self, ids: Tensor) -> Any:
        """(1,T) -> something with ``logits`` (1,T,vocabulary)."""
        row = ids[0]
        most = min(len(row) - 1, len(self.ids))
        differs = (row[:most] != self.ids[:most]).nonzero()
        same = int(differs[0]) if len(differs) else most
        if same:
            if same < len(self.ids):
                self.cache.crop(same - len(self.ids))
            found = self.network(ids[:, same:], past_key_values=self.cache, use_cache=True)
            found.logits = torch.cat([self.logits[:same], found.logits[0]])[None]
        else:
            found = self.network(ids, use_cache=True)
            self.cache = found.past_key_values
        self.ids, self.logits = row, found.logits[0]
        return found


# --- the benchmark --------------------------------------------------------------------------------


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    base = request.bases.get("language")
    if request.data is None or base is None or base.folder is None:
        raise InputError(
            "pass --data PATH and --base language=FOLDER; how to get SmolLM2-135M-Instruct as a "
            "folder is on the plugin's page (python -m zoo_mobilequant.gguf)."
        )
    work = request.options.get("work")
    work = Path(work) if work else request.out / "work"
    kept = bool(request.options.get("only_kept"))
    plan = [*planned(request.quick)]
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    book = Book(less_is_better)
    with one_thread(), track(len(plan) + 1, request.progress, "bench") as advance:
        measured = Measured(base.folder, request.data, work, request.quick)
        original = measured.original()
        enter(book, FLOAT, original, request.seed)
        advance()
        for row, i in plan:
            found = measured.row(row, request.seed + i, i == 0, kept)
            if found:
                enter(book, row.name, found, request.seed + i)
            advance()
    if not request.quick:
        medians(book)
        claim(book)
    pictures = picture(request.out, book)
    return book.results(data=used(request.quick), seeds=seeds, pictures=pictures)


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
        book.add(row, f"{PERPLEXITY}, 20,460 tokens", found["long"], seed)
    if "seconds" in found:
        book.add(row, SECONDS, found["seconds"], seed)
    if found.get("memory"):
        book.add(row, MEMORY, found["memory"], seed)
    if found.get("wide"):
        book.add(row, WIDE, len(found["wide"]), seed)
    for i, right in enumerate(found.get("choices", ())):
        book.add(row, RIGHT, float(right), f"item {i}")


def medians(book: Book) -> None:
    pass


def claim(book: Book) -> None:
    pass


def picture(out: Path, book: Book) -> list[str]:
    return []


def used(quick: bool) -> list[Data]:
    return []
