"""Benchmarks: one schema for ``results.json``, and the common metrics of each interface.

A long benchmark may be measured in parts; each has a record of its own, ``results-PART.json``.
``zoo bench MODEL`` runs the experiment behind a method's claim, in its plugin. ``zoo bench
INTERFACE`` measures every installed model of a kind, including third-party ones, in the same way.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, api, bases, plugins, protocols
from .arguments import torch_device
from .bases import Given
from .errors import InputError, NotReadyError, PluginError, ZooError
from .experiment import Book
from .hookspecs import BenchRequest
from .interfaces import Claim, Data, Metric, Results

if TYPE_CHECKING:
    from .entry import Entry

FILE = "results.json"
KEYS = (
    "model command code date hardware weights seeds data seconds table "
    "higher_is_better claims pictures"
).split()
LATER = {"cells", "compares"}
"""Keys that records and claims written before cells were kept may lack."""
_PART = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def run(
    entry: Entry,
    *,
    command: str,
    out: Path,
    data: Path | None = None,
    seed: int = 0,
    quick: bool = False,
    device: str = "auto",
    progress: bool = False,
    base: Given = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a plugin's experiment; the record in the schema of ``results.json``.

    ``out``: the folder for pictures. Raises PluginError if the plugin's results break the schema.
    """
    started, code = time.perf_counter(), _code_version()  # now: it may change during the run
    plugin = api.require_code(entry)
    request = BenchRequest(
        entry=entry,
        out=out,
        data=existing(data),
        seed=seed,
        quick=quick,
        device=torch_device(device, entry),
        bases=bases.find(entry, base, "bench"),
        progress=progress,
        options=entry.checked_options("bench", options or {}),
    )
    results = plugins.call(plugin, "zoo_bench", request)
    weights = {f.path: f.sha256 for f in entry.files if f.path.endswith(".safetensors")}
    if not isinstance(results, Results):
        raise PluginError(
            f"{entry.plugin}: zoo_bench returned a {type(results).__name__}, which is not Results."
        )
    seconds = time.perf_counter() - started
    try:
        return check(record(entry.name, results, command, seconds, weights, code), entry.name)
    except (InputError, TypeError, AttributeError) as error:
        raise PluginError(
            f"{entry.plugin}: zoo_bench broke the schema of results: {error}"
        ) from error


def record(
    model: str,
    results: Results,
    command: str,
    seconds: float,
    weights: Mapping[str, str] | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Results with what is needed to repeat them: command, commit, date, hardware, weights."""
    found = {
        "model": model,
        "command": command,
        "code": code or _code_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "weights": dict(weights or {}),
        "seeds": list(results.seeds),
        "data": [asdict(item) for item in results.data],
        "seconds": round(seconds, 1),
        "table": {
            row: {metric: asdict(value) for metric, value in cells.items()}
            for row, cells in results.table.items()
        },
        "higher_is_better": dict(results.higher_is_better),
        "claims": [asdict(claim) for claim in results.claims],
        "pictures": list(results.pictures),
    }
    if results.part:
        found["part"] = results.part
    if results.cells:
        found["cells"] = results.cells
    # Numbers and booleans may come from numpy or torch: convert them to plain ones.
    plain: dict[str, Any] = json.loads(json.dumps(found, default=lambda value: value.item()))
    return plain


def check(found: Any, where: str) -> dict[str, Any]:
    """A record read from a file, with its schema checked. Raises InputError with all mistakes."""
    wrong: list[str] = []
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object.")
    wrong += [f"{key} is missing" for key in KEYS if key not in found]
    wrong += [f"unknown key {key!r}" for key in found if key not in [*KEYS, "part", "cells"]]
    wrong += [
        f"{key} cannot be {_short(found[key])}"
        for key, fits in _FITS.items()
        if key in found and not fits(found[key])
    ]
    if not wrong:
        for row, cells in found["table"].items():
            for metric, value in cells.items():
                wrong += _misfit(value, Metric, f"table: {row}: {metric}")
        for i, claim in enumerate(found["claims"]):
            wrong += _misfit(claim, Claim, f"claim {i}")
        for i, item in enumerate(found["data"]):
            wrong += _misfit(item, Data, f"data {i}")
    if wrong:
        raise InputError(f"{where}: " + "; ".join(wrong))
    return found


def _misfit(value: Any, schema: type[Any], what: str) -> list[str]:
    types = {f.name: str(f.type) for f in fields(schema)}
    needed = set(types) - LATER
    if not isinstance(value, dict) or not needed <= set(value) <= set(types):
        return [f"{what}: expected the keys {', '.join(sorted(needed))}"]
    return [
        f"{what}: {name} cannot be {_short(value[name])}"
        for name, kind in types.items()
        if name in value and not _IS[kind](value[name])
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    """One printable line: it is shown in terminals and cards."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_IS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int,
    "float": _number,
    "bool | None": lambda value: value is None or isinstance(value, bool),
    "Mapping[str, Any] | None": lambda value: value is None or isinstance(value, dict),
}
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "model": _text,
    "command": _text,
    "code": _text,
    "date": lambda value: _text(value) and bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value)),
    "hardware": _text,
    "weights": _dict_of(_text),
    "seeds": _list_of(_IS["int"]),
    "data": _list_of(lambda value: isinstance(value, dict)),
    "seconds": _number,
    "table": _dict_of(lambda value: isinstance(value, dict)),
    "higher_is_better": _dict_of(lambda value: isinstance(value, bool)),
    "claims": _list_of(lambda value: isinstance(value, dict)),
    "pictures": _list_of(lambda value: _text(value) and Path(value).name == value),
    "part": lambda value: isinstance(value, str) and bool(_PART.fullmatch(value)),
    "cells": _dict_of(_dict_of(_dict_of(_number))),
}


def read(path: Path) -> dict[str, Any]:
    """Read and check a ``results.json``."""
    try:
        return check(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ZooError):
            raise
        raise InputError(f"{path}: not JSON: {error}.") from error


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write ``results.json``, or the file of the record's part, whole or not at all."""
    from .weights import atomic_file

    check(dict(found), found["model"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_of(found)
    with atomic_file(path) as temporary:
        temporary.write_text(_json(found), "utf-8")
    return path


def file_of(found: Mapping[str, Any]) -> str:
    """The name of a record's file."""
    return f"results-{found['part']}.json" if "part" in found else FILE


def records(folder: Path) -> list[dict[str, Any]]:
    """The records in a card's folder: ``results.json`` first, then its parts by name; none if
    nothing was measured. Raises InputError for one that cannot be read, or whose file has another
    part's name.
    """
    found = []
    for path in [folder / FILE, *sorted(folder.glob("results-*.json"))]:
        if path.is_file():
            found.append(read(path))
            if file_of(found[-1]) != path.name:
                raise InputError(f"{path}: holds the record of {file_of(found[-1])}. Rename it.")
    return found


def _json(found: Mapping[str, Any]) -> str:
    """Indented, but with the numbers of a cell on one line: there are thousands."""
    plain = {key: value for key, value in found.items() if key != "cells"}
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    if "cells" not in found:
        return text + "\n"

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    rows = [
        f"  {line(row)}: {{\n"
        + ",\n".join(f"   {line(column)}: {line(values)}" for column, values in columns.items())
        + "\n  }"
        for row, columns in found["cells"].items()
    ]
    return text.removesuffix("\n}") + ',\n "cells": {\n' + ",\n".join(rows) + "\n }\n}\n"


# --- how results look -----------------------------------------------------------------------------


def table_text(found: Mapping[str, Any], width: int | None = None) -> str:
    """Tables in Markdown: a row for each method, mean ± spread over several runs.

    One wide table would be mostly empty: a metric joins a table if at least half of the table's
    methods and no others have it, else it starts a new table. ``width``: columns of a terminal; a
    table that is wider is split by its metrics.
    """
    table, arrows = found["table"], {True: " ↑", False: " ↓"}
    metrics = list(dict.fromkeys(m for cells in table.values() for m in cells))
    measured = {m: [row for row, cells in table.items() if m in cells] for m in metrics}
    parts: dict[str, list[str]] = {}  # the metric that defines the rows -> all metrics of the table
    for metric in sorted(metrics, key=lambda m: -len(measured[m])):
        own = set(measured[metric])
        homes = (
            m for m in parts if own <= (rows := set(measured[m])) and 2 * len(own) >= len(rows)
        )
        parts.setdefault(next(homes, metric), []).append(metric)
    texts = []
    for first, part in sorted(parts.items(), key=lambda item: metrics.index(item[0])):
        head = ["", *(m + arrows.get(found["higher_is_better"].get(m), "") for m in part)]
        body = [
            [row, *(number(table[row][m]) if m in table[row] else "" for m in part)]
            for row in measured[first]
        ]
        texts += [markdown(*some) for some in _narrow(head, body, width)]
    return "\n\n".join(texts)


def _narrow(
    head: list[str], rows: list[list[str]], width: int | None
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The table split into parts that fit, each with the first column."""
    widths = [max(len(row[i]) for row in [head, *rows]) + 3 for i in range(len(head))]
    start = 1
    while start < len(head):
        end = start + 1
        while end < len(head) and (
            width is None or sum(widths[start : end + 1]) + widths[0] < width
        ):
            end += 1
        yield [head[0], *head[start:end]], [[row[0], *row[start:end]] for row in rows]
        start = end


def claims_lines(found: Mapping[str, Any], width: int) -> str:
    """The claims for a terminal: each outcome with the statement, its numbers and its rule."""
    lines = []
    for claim in found["claims"]:
        said = f"{claim['statement']} {measured(claim)}. {claim['rule']}"
        word = f"{WORDS[claim['holds']]:15}"
        lines.append(textwrap.fill(said, width, initial_indent=word, subsequent_indent=" " * 15))
    return "\n".join(lines)


WORDS = {True: "holds", False: "does not hold", None: "undecided"}


def claims_text(found: Mapping[str, Any]) -> str:
    """The claims in Markdown, each with the numbers that decided it."""
    rows = [
        [
            claim["statement"],
            WORDS[claim["holds"]],
            measured(claim),
            claim["rule"],
        ]
        for claim in found["claims"]
    ]
    return markdown(["claim", "", "measured (± standard error)", "rule"], rows)


def measured(claim: Mapping[str, Any]) -> str:
    """The numbers that decided a claim; a single run and counted numbers have no spread."""
    text = f"{claim['value']:.4g} against {claim['against']:.4g}"
    return f"{text} (± {claim['spread']:.2g})" if claim["spread"] else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well as text."""
    table = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in table
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def number(metric: Mapping[str, Any]) -> str:
    """A metric with four significant digits."""
    mean = f"{metric['mean']:.4g}"
    return f"{mean} ± {metric['std']:.2g}" if metric["n"] > 1 else mean


def hardware() -> str:
    """The machine in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(usable(0)) if usable else os.cpu_count() or 1
    return f"{model}, {count} core{'s' * (count > 1)}"


def _code_version() -> str:
    """The commit of the code, with ``+`` if the checkout differs; without a checkout the
    version."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "zoo", "plugins")
        return git("rev-parse", "HEAD") + ("+" if changed else "") or __version__
    except OSError:
        return __version__


def existing(data: Path | None) -> Path | None:
    """The data path. Raises InputError if it does not exist."""
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: there is no such file or folder.")
    return data


# --- the common metrics of each interface ---------------------------------------------------------


def run_interface(
    interface: str,
    *,
    command: str,
    data: Path | None = None,
    quick: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every installed, ready model of an interface on the same data.

    ``say`` is called with one line for each model that is left out, with the reason. Raises
    NotReadyError if nothing could be measured.
    """
    protocol = protocols.of(interface)
    started = time.perf_counter()
    items = protocol.items(existing(data), 2 if quick else None)
    book = Book(lambda metric: not protocol.HIGHER[metric])

    def measure(row: str, model: Any) -> None:
        for measured in [*protocol.measure(model, items)]:
            for metric, value in measured.scores.items():
                book.add(row, metric, value, measured.item)

    for row, reference in protocol.references().items():
        measure(row, reference)
    for name in api.list_models(interface=interface):
        if api.info(name).status == "ready":
            try:
                measure(name, api.load(name, device=device))
            except ZooError as error:
                say(f"{name}: left out: {error}")
            except Exception as error:  # one model's fault does not stop the others
                say(f"{name}: left out: unexpected {type(error).__name__}: {error}")
    results = book.results(data=[protocol.described(data, items)])
    if not results.table:
        raise NotReadyError(f"none of the installed models of {interface} could be measured.")
    return record(interface, results, command, time.perf_counter() - started)
