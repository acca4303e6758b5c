"""The tools that all benchmarks share: cells, claims, cost, charts, models to measure.

A claim compares two methods on the same seeds or test items, and holds where the 95 % confidence
interval (Student's t) of their paired difference, or of the ratio of their costs, lies beyond the
bound that the claim names; where the interval includes the bound, the claim is undecided. Where
only one seed fits, test items take the place of seeds (right and wrong answers then decide by an
exact McNemar test, others by the same interval or by a bootstrap); the rule beside each claim says
what was done.

    book = Book(less_is_better=lambda column: "seconds" in column)
    for seed in seeds:
        book.add("ours", "accuracy", 91.5, seed)
        book.add("theirs", "accuracy", 90.1, seed)
    book.claim("better", "Ours is better.", book.better("ours", "theirs", "accuracy"))
    return book.results(seeds=seeds)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import operator
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

from . import actions, api, plugins
from .charts import Bars as Bars
from .charts import Curves as Curves
from .charts import Line as Line
from .charts import curves as curves
from .charts import draw as draw
from .errors import InputError, MissingDependencyError, OutputError
from .hookspecs import BenchRequest, TrainRequest
from .interfaces import Claim, Data, Metric, Results

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .entry import Entry

DECIDED = " ".join((__doc__ or "\n\n").split("\n\n")[1].split())
"""How claims are decided, in words for a card."""
DIGITS = 6
"""Significant digits of a cell, so that a record holds exactly what its claims were decided on."""
CONFIDENCE = 0.95
SAMPLES = 9999
"""The number of bootstrap samples."""
T = TypeVar("T")


# --- cells ----------------------------------------------------------------------------------------


class Book:
    """Measured numbers by row (a method), column (a metric) and key, and claims about them.

    A key is the number of a seed or a run (int), or the name of a test item such as an image (str).
    Numbers of the same key are paired when rows are compared. The order of insertion is kept.
    ``less_is_better``: is a smaller number better in this column?
    """

    def __init__(self, less_is_better: Callable[[str], bool] = lambda column: False) -> None:
        self._cells: dict[str, dict[str, dict[int | str, float]]] = {}
        self._less_is_better = less_is_better
        self.claims: list[Claim] = []

    @classmethod
    def of(cls, cells: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Book:
        """The book that wrote these cells of a ``results.json``, without its claims."""
        book = cls()
        for row, columns in cells.items():
            for column, values in columns.items():
                for key, value in values.items():
                    book.add(row, column, value, int(key) if _NUMBER.fullmatch(key) else key)
        return book

    def add(
        self, row: str, column: str, value: SupportsFloat, key: SupportsIndex | str = 0
    ) -> None:
        """Enter a number, rounded to six significant digits.

        Raises ValueError for a number that is not finite, a key that already has a number, the name
        of an item that looks like a seed, and a column that would mix seeds and items.
        """
        where = f"{row!r}, {column!r}"
        number = float(value)
        key = key if isinstance(key, str) else operator.index(key)
        if not math.isfinite(number):
            raise ValueError(f"{where}: {number} is not a finite number.")
        if isinstance(key, str) and _NUMBER.fullmatch(key):
            raise ValueError(f"{where}: the item {key!r} looks like a seed; name it 'item {key}'.")
        values = self._cells.get(row, {}).get(column, {})
        if key in values:
            raise ValueError(f"{where}: there is already a number for {key!r}.")
        if values and isinstance(key, str) != isinstance(next(iter(values)), str):
            raise ValueError(f"{where}: {key!r} would mix seeds with items.")
        rounded = float(f"{number:.{DIGITS}g}")
        self._cells.setdefault(row, {}).setdefault(column, {})[key] = rounded

    def columns(self, row: str) -> list[str]:
        """The columns in which a row has numbers."""
        return [*self._cells.get(row, {})]

    def values(self, row: str, column: str) -> dict[int | str, float]:
        """Key -> number."""
        if column not in self._cells.get(row, {}):
            raise ValueError(f"there is no number for the row {row!r} and the column {column!r}.")
        return dict(self._cells[row][column])

    def mean(self, row: str, column: str) -> float:
        """Mean over seeds or items."""
        return statistics.fmean(self.values(row, column).values())

    def table(self) -> dict[str, dict[str, Metric]]:
        """Row -> column -> mean and spread over seeds; for items the mean alone."""
        return {
            row: {
                column: Metric(statistics.fmean(values.values()))
                if _of_items(values)
                else Metric.of([*values.values()])
                for column, values in columns.items()
            }
            for row, columns in self._cells.items()
        }

    def cells(self) -> dict[str, dict[str, dict[str, float]]]:
        """Row -> column -> key -> number, as ``results.json`` holds them."""
        return {
            row: {
                column: {str(key): value for key, value in values.items()}
                for column, values in columns.items()
            }
            for row, columns in self._cells.items()
        }

    def results(
        self,
        *,
        data: Sequence[Data] = (),
        seeds: Sequence[int] = (),
        pictures: Sequence[str] = (),
        part: str = "",
    ) -> Results:
        """What ``zoo_bench`` returns; ``part``: see ``Results``."""
        columns = dict.fromkeys(c for by_column in self._cells.values() for c in by_column)
        return Results(
            self.table(),
            self.claims,
            data,
            seeds,
            {column: not self._less_is_better(column) for column in columns},
            pictures,
            self.cells(),
            part,
        )

    # --- claims ---

    def claim(
        self, identity: str, statement: str, *comparisons: Comparison, note: str = ""
    ) -> Claim:
        """Enter a claim that holds if all of its comparisons hold, and fails if one fails.

        ``note`` follows the words that say how it was decided. Of several comparisons, the claim
        shows the numbers of the first; if others differ from it in rows and columns only, it shows
        the one that is closest to its bound.
        """
        outcomes = [(comparison, self._outcome(comparison)) for comparison in comparisons]
        alike = [[*group] for _, group in itertools.groupby(outcomes, lambda o: o[0].kind())]
        shown = _closest(alike[0])[1]
        found = {outcome.holds for _, outcome in outcomes}
        made = Claim(
            identity,
            statement,
            "; ".join([*map(_words, alike), *([note] if note else [])]),
            shown.value,
            shown.against,
            shown.spread,
            False if False in found else None if None in found else True,
            {"all": [c.plain() for c in comparisons], "note": note},
        )
        self.claims.append(made)
        return made

    def better(
        self,
        row: str,
        than: str | Sequence[str] | float,
        columns: str | Sequence[str],
        *,
        by: float = 0.0,
        than_columns: str | Sequence[str] | None = None,
        test: Test | None = None,
    ) -> Comparison:
        """Is ``row`` better than ``than`` by more than ``by``, in the mean of some columns?

        ``than``: a row, several (the one with the best mean is the rival), or a number.
        ``than_columns``: the rival's columns, if not the same. Columns that share all keys (seeds)
        are averaged; columns that share no key (the images of several sets) are pooled. ``test``:
        ``"t"``; ``"mcnemar"`` (the default for items that are 0 or 1, without a margin),
        ``"bootstrap"``, or ``"counted"`` for numbers without noise, such as bytes.
        """
        mine = _listed(columns)
        directions = {self._less_is_better(column) for column in mine}
        if len(directions) > 1:
            raise ValueError(f"{', '.join(mine)}: more is better in some, less in others.")
        above = not directions.pop()
        made = Comparison(
            row,
            mine,
            float(than) if isinstance(than, int | float) else _listed(than),
            mine if than_columns is None else _listed(than_columns),
            "difference",
            above,
            by if above else -by,
            test or "t",
        )
        if test is None and not by and not isinstance(than, int | float):
            theirs = (self._averaged(r, made.against_columns) for r in _listed(than))
            if all(map(_right_or_wrong, [self._averaged(row, mine), *theirs])):
                return Comparison(**{**vars(made), "test": "mcnemar"})
        return made

    def not_worse(
        self,
        row: str,
        than: str | Sequence[str] | float,
        columns: str | Sequence[str],
        *,
        margin: float,
        than_columns: str | Sequence[str] | None = None,
        test: Test | None = None,
    ) -> Comparison:
        """Is ``row`` at most ``margin`` worse than ``than``? Arguments as for ``better``."""
        return self.better(row, than, columns, by=-margin, than_columns=than_columns, test=test)

    def times(
        self,
        row: str,
        of: str | Sequence[str],
        columns: str | Sequence[str],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        of_columns: str | Sequence[str] | None = None,
        test: Test | None = None,
    ) -> Comparison:
        """Is the ratio of ``row`` to ``of`` at most (or at least) a bound? Decided on logarithms.

        Of several rows, the smallest is the rival for ``at_most`` and the largest for ``at_least``.
        Give one of the two bounds; the other arguments are as for ``better``.
        """
        bounds = [bound for bound in (at_most, at_least) if bound is not None]
        if len(bounds) != 1 or bounds[0] <= 0:
            raise ValueError("give one of at_most and at_least, above 0.")
        mine = _listed(columns)
        return Comparison(
            row,
            mine,
            _listed(of),
            mine if of_columns is None else _listed(of_columns),
            "ratio",
            at_least is not None,
            bounds[0],
            test or "t",
        )

    def _averaged(self, row: str, columns: Sequence[str]) -> dict[int | str, float]:
        """Key -> mean over the columns, or all numbers of columns that share no key."""
        found: dict[int | str, list[float]] = {}
        for column in columns:
            for key, value in self.values(row, column).items():
                found.setdefault(key, []).append(value)
        if len(counts := {len(values) for values in found.values()}) > 1 or max(counts) not in (
            1,
            len(columns),
        ):
            raise ValueError(
                f"{row!r}: the columns {', '.join(columns)} share only some seeds or items."
            )
        return {key: statistics.fmean(values) for key, values in found.items()}

    def _outcome(self, asked: Comparison) -> _Outcome:
        """Compare the numbers of both sides, which must have the same keys."""
        import numpy as np

        mine, rival = self._averaged(asked.row, asked.columns), ""
        if isinstance(asked.against, float):
            theirs = dict.fromkeys(mine, asked.against)
        else:
            rivals = {r: self._averaged(r, asked.against_columns) for r in asked.against}
            pick = max if asked.above else min
            rival = pick(rivals, key=lambda r: statistics.fmean(rivals[r].values()))
            theirs = rivals[rival]
        if mine.keys() != theirs.keys():
            raise ValueError(
                f"{asked.row!r} and {rival!r} cannot be paired: they were measured on different "
                f"seeds or items in {', '.join(asked.columns)}."
            )
        a, b = np.array([*mine.values()]), np.array([theirs[key] for key in mine])
        if asked.scale == "ratio":
            if min(a.min(), b.min()) <= 0:
                raise ValueError(f"{asked.row!r}, {rival!r}: a ratio needs numbers above 0.")
            a, b = np.log(a), np.log(b)
        bound = math.log(asked.bound) if asked.scale == "ratio" else asked.bound
        difference = a - b
        lead = (difference - bound) * (1 if asked.above else -1)  # holds if this is above 0
        error = float(difference.std(ddof=1) / math.sqrt(len(a))) if len(a) > 1 else 0.0
        holds, detail = _TESTS[asked.test](lead, a, b)
        value, against = float(a.mean()), float(b.mean())
        if asked.scale == "ratio":
            value, against = math.exp(value - against), asked.bound
            error *= value
        return _Outcome(
            value,
            against,
            error,
            holds,
            lead=float(lead.mean()),
            count=len(a),
            of_items=_of_items(mine),
            pooled=len(self.values(asked.row, asked.columns[0])) < len(a),
            rival=rival,
            detail=detail,
        )


_NUMBER = re.compile(r"-?\d+")


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _of_items(values: Mapping[int | str, float]) -> bool:
    return isinstance(next(iter(values)), str)


def _right_or_wrong(values: Mapping[int | str, float]) -> bool:
    return _of_items(values) and {*values.values()} <= {0.0, 1.0}


# --- decisions ------------------------------------------------------------------------------------

Test = Literal["t", "mcnemar", "bootstrap", "counted"]


@dataclass(frozen=True)
class Comparison:
    """What a claim compares; made by ``Book.better``, ``not_worse`` and ``times``."""

    row: str
    columns: tuple[str, ...]
    against: tuple[str, ...] | float
    """Rows, the best of which is the rival, or a number."""
    against_columns: tuple[str, ...]
    scale: Literal["difference", "ratio"]
    above: bool
    """Must the difference or ratio of ``row`` and its rival be above the bound, or below?"""
    bound: float
    test: Test

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Comparison:
        """The comparison from the result of ``plain``."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON-like data, for a record."""
        return {k: [*v] if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def kind(self) -> tuple[Any, ...]:
        """A key that is equal for comparisons that differ only in rows and columns."""
        rivals = self.against if isinstance(self.against, float) else len(self.against)
        return self.scale, self.above, self.bound, self.test, rivals, len(self.columns)


@dataclass(frozen=True)
class _Outcome:
    value: float
    against: float
    spread: float
    """Standard error of the difference, or of the ratio."""
    holds: bool | None
    lead: float
    """How far the mean is on the claimed side of the bound."""
    count: int
    of_items: bool
    pooled: bool
    rival: str
    detail: str
    """What the test found, if that is more than an interval."""


def decide_again(found: Mapping[str, Any]) -> list[Claim]:
    """The claims of a record (``zoo.bench.read``), decided again from its cells.

    A claim that was not made by ``Book.claim`` is returned unchanged.
    """
    book = Book.of(found.get("cells", {}))
    for claim in found["claims"]:
        made_of = claim.get("compares")
        if made_of is None:
            book.claims.append(Claim(**claim))
        else:
            comparisons = map(Comparison.of, made_of["all"])
            book.claim(claim["id"], claim["statement"], *comparisons, note=made_of["note"])
    return book.claims


def _beyond(low: float, high: float) -> bool | None:
    return True if low > 0 else False if high < 0 else None


def _by_t(lead: Any, a: Any, b: Any) -> tuple[bool | None, str]:
    if len(lead) < 2:
        return None, ""
    half = _scipy().t.ppf((1 + CONFIDENCE) / 2, len(lead) - 1) * lead.std(ddof=1)
    half /= math.sqrt(len(lead))
    return _beyond(lead.mean() - half, lead.mean() + half), ""


def _by_bootstrap(lead: Any, a: Any, b: Any) -> tuple[bool | None, str]:
    if len(lead) < 2:
        return None, ""
    if lead.min() == lead.max():  # every sample would be the same
        return _beyond(lead.mean(), lead.mean()), ""
    mean = type(lead).mean
    found = _scipy().bootstrap(
        (lead,), mean, confidence_level=CONFIDENCE, n_resamples=SAMPLES, batch=100, rng=0
    )
    return _beyond(found.confidence_interval.low, found.confidence_interval.high), ""


def _by_mcnemar(lead: Any, a: Any, b: Any) -> tuple[bool | None, str]:
    if not {*a, *b} <= {0.0, 1.0}:
        raise ValueError("McNemar's test is for items that are right (1) or wrong (0).")
    mine, theirs = int((a > b).sum()), int((b > a).sum())
    p = _scipy().binomtest(mine, mine + theirs).pvalue if mine + theirs else 1.0
    words = f"{mine} are 1 here alone, {theirs} there alone, p = {p:.2g}"
    return (None if p >= 1 - CONFIDENCE else bool(lead.mean() > 0)), words


def _by_count(lead: Any, a: Any, b: Any) -> tuple[bool | None, str]:
    return bool(lead.mean() >= 0), ""


_TESTS: Mapping[str, Callable[[Any, Any, Any], tuple[bool | None, str]]] = {
    "t": _by_t,
    "mcnemar": _by_mcnemar,
    "bootstrap": _by_bootstrap,
    "counted": _by_count,
}
_INTERVALS = {"t": "Student's t", "bootstrap": f"bootstrap of {SAMPLES:,} samples"}


def _scipy() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "claims are decided by scipy, which is not installed. "
            "Run: pip install 'edgezoo[bench]'",
            name="scipy",
        ) from error
    return stats


def _closest(alike: Sequence[tuple[Comparison, _Outcome]]) -> tuple[Comparison, _Outcome]:
    return min(alike, key=lambda found: found[1].lead)


def _words(alike: Sequence[tuple[Comparison, _Outcome]]) -> str:
    """How comparisons that differ only in rows and columns were decided."""
    asked, outcome = _closest(alike)
    ratio = asked.scale == "ratio"
    counts = sorted({found.count for _, found in alike})
    number = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    noun = "item" if outcome.of_items else "run" if ratio else "seed"
    over = f"over {number} {noun}{'s' * (number != '1')}"
    if len(asked.columns) > 1:
        over += f" ({len(asked.columns)} columns {'pooled' if outcome.pooled else 'averaged'})"
    if isinstance(asked.against, float):
        what, shift = "mean", asked.against
    else:
        what, shift = "ratio" if ratio else "paired difference", 0.0
        if len(asked.against) > 1:
            over += f" to {outcome.rival}, the best of {len(asked.against)} there,"
    sides = ("at least", "at most") if ratio else ("above", "below")
    bound = f"{sides[0 if asked.above else 1]} {asked.bound + shift:g}"
    if asked.test == "mcnemar":
        text = f"exact McNemar test {over}, p below {1 - CONFIDENCE:.2g}: {outcome.detail}"
    elif asked.test == "counted":
        text = f"{what} {over}, counted and so without noise, {bound}"
    else:
        how = _INTERVALS[asked.test] + (" of logarithms" if ratio else "")
        text = f"{CONFIDENCE:.0%} interval ({how}) of the {what} {over} {bound}".replace("%", " %")
        if counts[0] < 2:
            text += f", which one {noun} alone cannot tell"
    if len(alike) > 1:
        shown = f"{asked.row}, {asked.columns[0]}"
        text = f"in each of {len(alike)} comparisons, {text}; shown is the closest ({shown})"
    return text


# --- cost -----------------------------------------------------------------------------------------


def one_thread() -> AbstractContextManager[None]:
    """One thread for torch: CPU-seconds are comparable only at equal numbers of threads."""
    return on_threads(1)


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """So many threads for torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def now(device: str | torch.device = "cpu") -> float:
    """CPU-seconds of this process; on a GPU, the time after all queued work is done.

    Other processes do not count: the CPU time of one thread is that on an idle core, within a few
    per cent.
    """
    import torch

    place = torch.device(device)
    if place.type == "cpu":
        return time.process_time()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter()


def timed(run: Callable[[], T], device: str | torch.device = "cpu") -> tuple[T, float]:
    """The result of a call, and its seconds."""
    before = now(device)
    made = run()
    return made, now(device) - before


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    best_of: int = 1,
    warm_up: int = 1,
    device: str | torch.device = "cpu",
    patience: float = math.inf,
    threads: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, in turns, so that a busy machine affects all alike.

    ``best_of``: calls in a round, of which the fastest counts; for calls that take milliseconds. No
    new round begins once the sum of all seconds exceeds ``patience``. ``threads``: of torch; the
    CPU-seconds of all of them count.
    """
    spent: dict[str, list[float]] = {label: [] for label in runs}
    with on_threads(threads):
        for i in range(warm_up + rounds):
            if i > warm_up and sum(map(sum, spent.values())) > patience:
                break
            for label, run in runs.items():
                seconds = min(timed(run, device)[1] for _ in range(best_of))
                if i >= warm_up:
                    spent[label].append(seconds)
    return spent


# --- kept rows ------------------------------------------------------------------------------------

Values: TypeAlias = "dict[str, Any]"
"""What a row of a long benchmark measured: JSON-like."""


class Rows:
    """A folder of finished rows, each a JSON file: ``facts`` it was made from, and ``values``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, name: str, facts: Mapping[str, Any], make: Callable[[], Values] | None) -> Values:
        """The values of a row: those of the last time, else made and kept; {} where it is not there
        and ``make`` is None. Raises InputError for a row that was made from other facts.
        """
        from .files import atomic_file

        file = self.folder / f"{digest([name])}.json"
        wanted = json.loads(json.dumps({"name": name, **facts}))
        if not file.is_file():
            if make is None:
                return {}
            made = {"facts": wanted, "values": make()}
            with atomic_file(file) as part:
                part.write_text(json.dumps(made, indent=1), "utf-8")
        found = json.loads(file.read_text("utf-8"))
        if found["facts"] != wanted:
            other = [key for key in wanted if found["facts"].get(key) != wanted[key]]
            raise InputError(
                f"{file} holds the row {name!r} with another {', '.join(other)}. Delete it to "
                "measure the row again, or name another folder: -O work=FOLDER."
            )
        values: Values = found["values"]
        return values


def digest(facts: Any) -> str:
    """A short name for JSON-like facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


# --- models ---------------------------------------------------------------------------------------


def load(request: BenchRequest, name: str | Path | None = None, **options: Any) -> Any:
    """Load the model to measure on the request's device: the request's own, on its bases, or
    another.

    Takes the other arguments of ``zoo.load``, and raises its errors.
    """
    if name is None:
        name = f"{request.entry.distribution}:{request.entry.name}"
        options.setdefault("base", request.bases or None)
    return api.load(name, device=request.device, **options)


def files(request: BenchRequest) -> Path:
    """The verified folder of the files of the request's entry, such as its ``train.json``."""
    folder = actions.pull(f"{request.entry.distribution}:{request.entry.name}").folder
    if folder is None:
        raise InputError(f"{request.entry.name} has no files of its own.")
    return folder


def training(
    request: BenchRequest,
    out: Path,
    *,
    entry: Entry | None = None,
    data: Path | None = None,
    seed: int | None = None,
    steps: int | None = None,
    **options: Any,
) -> TrainRequest:
    """The request that ``zoo train`` would pass to the recipe: the entry's options, checked and
    complete, and the bases of this request.

    ``entry``: instead of the request's, such as one with a changed ``config``. ``seed``: None: the
    request's.
    """
    entry = entry or request.entry
    return TrainRequest(
        entry=entry,
        out=out,
        data=data,
        seed=request.seed if seed is None else seed,
        steps=steps,
        bases=request.bases,
        device=request.device,
        options=entry.checked_options("train", options),
    )


def train(request: BenchRequest, out: Path, **asked: Any) -> Path:
    """Run the plugin's recipe; returns the saved folder, for ``load``. Arguments as ``training``.

    Raises OutputError if ``out`` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty: give another folder.")
    wanted = training(request, out, **asked)
    plugin = api.require_code(wanted.entry)
    return Path(plugins.call(plugin, "zoo_train", wanted))


# --- data that several benchmarks share -----------------------------------------------------------


def read_cifar(path: Path, most: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``most`` random photographs of a CIFAR-10 file (parquet: ``jpeg`` bytes and ``label``).

    (N,3,32,32) in [0,1] and their labels (N,). Raises InputError if the file does not exist.
    """
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "reading CIFAR-10 needs pyarrow, which is not installed. "
            "Run: pip install 'edgezoo[bench]'",
            name="pyarrow",
        ) from error
    import numpy as np
    import torch

    from . import images

    if not path.is_file():
        raise InputError(f"--data: expected the CIFAR-10 file {path.name} in {path.parent.name}/.")
    table = parquet.read_table(path, columns=["jpeg", "label"])
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:most]
    chosen = table.take(rows.numpy()).to_pydict()
    pictures = [np.asarray(images.read(data, "RGB")) for data in chosen["jpeg"]]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return x, torch.tensor(chosen["label"])


def kept(file: Path | None, rows: int, make: Callable[[], Tensor]) -> Tensor:
    """The first ``rows`` of the features (N,...) that an earlier benchmark kept in ``file``.

    If there is no such file or it has fewer rows, ``make`` is called and its result kept there. The
    file is safetensors; its name has to tell apart whatever changes the features. None: nothing is
    kept.
    """
    from .weights import load_tensors, save_tensors

    if file is not None and file.is_file():
        found = load_tensors(file)["features"]
        if len(found) >= rows:
            return found[:rows]
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, {"features": made})
    return made
