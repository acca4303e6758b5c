"""Benchmarks: one schema for ``results.json``, and the common metrics of each interface.

``zoo bench MODEL`` runs the experiment behind a method's claim, in its plugin. ``zoo bench
INTERFACE`` measures every installed model of a kind, ours or not, in the same way.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, api, bases, plugins
from .arguments import torch_device
from .bases import Given
from .errors import InputError, NotReadyError, PluginError, UsageError, ZooError
from .hookspecs import BenchRequest
from .interfaces import Claim, Data, Metric, Results

if TYPE_CHECKING:
    from PIL import Image

    from .entry import Entry
    from .interfaces import SRModel

FILE = "results.json"
KEYS = (
    "model command code date hardware weights seeds data seconds table "
    "higher_is_better claims pictures"
).split()


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

    ``out`` takes the pictures. Raises PluginError where the plugin's results break the schema.
    """
    started, code = time.perf_counter(), _code_version()  # now: others may commit meanwhile
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
    """Results with what makes them repeatable: command, commit, date, hardware, weights."""
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
    # Numbers and truth values may come from numpy or torch: to plain ones, as a file has them.
    plain: dict[str, Any] = json.loads(json.dumps(found, default=lambda value: value.item()))
    return plain


def check(found: Any, where: str) -> dict[str, Any]:
    """A record read from a file, with its schema checked. Raises InputError with all mistakes."""
    wrong: list[str] = []
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object.")
    wrong += [f"{key} is missing" for key in KEYS if key not in found]
    wrong += [f"unknown key {key!r}" for key in found if key not in KEYS]
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
    if not isinstance(value, dict) or set(value) != set(types):
        return [f"{what}: expected the keys {', '.join(sorted(types))}"]
    return [
        f"{what}: {name} cannot be {_short(value[name])}"
        for name, kind in types.items()
        if not _IS[kind](value[name])
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
    "pictures": _list_of(_text),
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
    """Write ``results.json`` below a folder, whole or not at all."""
    from .weights import atomic_file

    check(dict(found), found["model"])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folder / FILE


# --- how results look -----------------------------------------------------------------------------


def table_text(found: Mapping[str, Any]) -> str:
    """Tables in Markdown: a row for each method, mean ± spread over several runs.

    One wide table would be mostly empty: a metric joins a table where at least half of its
    methods have it and no others do, else it begins one of its own.
    """
    table, arrows = found["table"], {True: " ↑", False: " ↓"}
    metrics = list(dict.fromkeys(m for cells in table.values() for m in cells))
    measured = {m: [row for row, cells in table.items() if m in cells] for m in metrics}
    parts: dict[str, list[str]] = {}  # the metric that decides the rows -> all of the table's
    for metric in sorted(metrics, key=lambda m: -len(measured[m])):
        own = set(measured[metric])
        homes = (
            m for m in parts if own <= (rows := set(measured[m])) and 2 * len(own) >= len(rows)
        )
        parts.setdefault(next(homes, metric), []).append(metric)
    return "\n\n".join(
        markdown(
            ["", *(m + arrows.get(found["higher_is_better"].get(m), "") for m in part)],
            [
                [row, *(number(table[row][m]) if m in table[row] else "" for m in part)]
                for row in measured[first]
            ],
        )
        for first, part in sorted(parts.items(), key=lambda item: metrics.index(item[0]))
    )


def claims_text(found: Mapping[str, Any]) -> str:
    """The claims in Markdown, each with the numbers that decided it."""
    words = {True: "holds", False: "does not hold", None: "undecided"}
    rows = [
        [
            claim["statement"],
            words[claim["holds"]],
            f"{claim['value']:.4g} against {claim['against']:.4g} (± {claim['spread']:.2g})",
            claim["rule"],
        ]
        for claim in found["claims"]
    ]
    return markdown(["claim", "", "measured", "rule"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well as text."""
    table = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in table
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def number(metric: Mapping[str, Any]) -> str:
    """A metric for people: four significant digits."""
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
    """The commit the code runs at, with ``+`` where the checkout differs; else the version."""
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
    """The data path, if it is there."""
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

    ``say`` gets one line for each model that is left out, with the reason.
    """
    measure = _MEASURES.get(interface)
    if measure is None:
        raise NotReadyError(
            f"no {interface} is ready yet, so there are no common metrics for the kind. "
            f"There are some for: {', '.join(_MEASURES)}."
        )
    started = time.perf_counter()
    names = [n for n in api.list_models(interface=interface) if api.info(n).status == "ready"]
    results = measure(names, existing(data), quick, device, say)
    return record(interface, results, command, time.perf_counter() - started)


def _measure_sr(
    names: Sequence[str],
    data: Path | None,
    quick: bool,
    device: str,
    say: Callable[[str], None],
) -> Results:
    """x4 from antialiased bicubic downscaling: PSNR-Y, SSIM, HaarPSI and time, beside bicubic."""
    from PIL import Image

    from . import metrics
    from .images import to_tensor

    bicubic = Image.Resampling.BICUBIC  # PIL's is antialiased, as published x4 tables want it
    scale = 4
    pairs = [
        (truth, truth.resize((truth.width // scale, truth.height // scale), bicubic))
        for truth in _photographs(data, scale, 2 if quick else None)
    ]
    measures = {"PSNR-Y": metrics.psnr_y, "SSIM": metrics.ssim_y, "HaarPSI": metrics.haarpsi}
    table: dict[str, dict[str, Metric]] = {}

    def row(label: str, enlarge: Callable[[Image.Image], Image.Image]) -> None:
        scores: list[Mapping[str, float]] = []
        enlarge(pairs[0][1])  # warm up, outside the timing
        seconds = 0.0
        for truth, small in pairs:
            started = time.process_time()
            big = enlarge(small)
            seconds += time.process_time() - started
            x, y = to_tensor(big), to_tensor(truth)
            scores.append({name: measure(x, y, scale) for name, measure in measures.items()})
        megapixels = sum(t.width * t.height for t, _ in pairs) / 1e6
        table[label] = {m: Metric(sum(s[m] for s in scores) / len(scores)) for m in scores[0]}
        table[label]["CPU-s/megapixel"] = Metric(seconds / megapixels)

    row("bicubic", lambda s: s.resize((s.width * scale, s.height * scale), bicubic))
    for name in names:
        try:
            model: SRModel = api.load(name, device=device)
            if scale not in model.scales:
                say(f"{name}: left out, it enlarges by {model.scales}, not by {scale}")
                continue
            row(name, lambda s, m=model: m.upscale(s, scale=scale))  # type: ignore[misc]
        except ZooError as error:
            say(f"{name}: left out: {error}")
    source = (
        Data(str(data.name), "as its owner says", f"{len(pairs)} images")
        if data
        else Data("scikit-image photographs", "CC0 / public domain", f"{len(pairs)} images")
    )
    return Results(
        table=table,
        data=[source],
        higher_is_better={"PSNR-Y": True, "SSIM": True, "HaarPSI": True, "CPU-s/megapixel": False},
    )


def _photographs(data: Path | None, scale: int, most: int | None) -> Iterator[Image.Image]:
    """RGB images whose sides are multiples of ``scale``: a folder's, else those of scikit-image."""
    from PIL import Image

    from . import images

    if data is None:
        from skimage import data as samples

        found = [
            Image.fromarray(a) for a in (samples.astronaut(), samples.chelsea(), samples.coffee())
        ]
    else:
        paths = images.listed(data, below=True)
        if not paths:
            raise UsageError(f"--data {data}: there is no picture below it.")
        found = [images.read(path, "RGB") for path in paths[:most]]
    for image in found[:most]:
        yield image.crop((0, 0, image.width // scale * scale, image.height // scale * scale))


_MEASURES: Mapping[str, Callable[..., Results]] = {"SRModel": _measure_sr}
