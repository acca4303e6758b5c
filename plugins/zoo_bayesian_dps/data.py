"""Training and target sets in: anything with rows becomes ``Examples``, read row by row.

A row of a file is a mapping with the fields ``image``, ``features``, ``text`` or ``prompt`` and
``response``, and perhaps ``label`` and ``source``; other usual names of columns do too.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import images
from zoo.errors import InputError, MissingDependencyError

FIELDS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "jpeg", "png", "picture"),
    "features": ("features", "embedding", "x"),
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "instruction", "question", "input"),
    "response": ("response", "completion", "output", "answer"),
    "text": ("text", "sentence", "content"),
    "label": ("label", "labels", "class", "y"),
    "source": ("source", "domain", "dataset"),
}
"""Field -> names of columns, the first that is there is taken."""


class Examples:
    """N rows in a fixed order. ``labels`` and ``sources`` are (N,) int64, -1 nowhere, or None."""

    def __init__(
        self,
        rows: Any,
        kind: str,
        labels: Sequence[Any] | None = None,
        sources: Sequence[Any] | None = None,
        what: str = "train",
    ) -> None:
        """``rows[i]``: an example. ``kind``: custom, image, features, text, or language."""
        self.rows, self.kind, self.what = rows, kind, what
        self.label_values = labels
        self.source_values = sources
        if not len(rows):
            raise InputError(f"{what} is empty: there are no examples in it.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]

    def digest(self) -> str:
        """Of the number of rows, all labels and sources, and up to 64 rows: tells another data set
        from the same without reading all of it."""
        found = hashlib.sha256(f"{len(self)} {self.kind}".encode())
        for values in (self.label_values, self.source_values):
            plain = (v.item() if hasattr(v, "item") else v for v in values or ())
            found.update("\0".join(map(str, plain)).encode())
        for i in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int):
            _feed(found, self.rows[int(i)])
        return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            found.update(str(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(found, item)
    elif isinstance(value, Tensor):
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, np.ndarray):
        found.update(value.tobytes())
    elif isinstance(value, bytes):
        found.update(value)
    else:
        found.update(repr(value).encode() if isinstance(value, str | int | float) else b"?")


def examples_of(data: Any, what: str) -> Examples:
    """``Examples`` of a path, a pair of arrays, a list, a torch or a ``datasets`` data set."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, str | Path):
        return read(Path(data), what)
    if hasattr(data, "column_names") and hasattr(data, "features"):  # datasets.Dataset
        columns = list(data.column_names)
        return _table(_Columns(data, columns, len(data)), columns, what)
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(d, "shape") for d in data):
        x, y = (torch.as_tensor(np.asarray(d)) if not isinstance(d, Tensor) else d for d in data)
        if len(x) != len(y):
            raise InputError(f"{what}: {len(x)} inputs and {len(y)} labels.")
        _require_finite(x, what)
        kind = {2: "features", 4: "image"}.get(x.ndim, "custom")
        whole = not y.is_floating_point() and y.ndim == 1
        return Examples(_Pairs(x, y), kind if whole else "custom", y.tolist() if whole else None,
                        None, what)  # fmt: skip
    if hasattr(data, "shape") and getattr(data, "ndim", 0) >= 1:
        if not len(data):
            raise InputError(f"{what} is empty: there are no examples in it.")
        raise InputError(f"{what}: an array without labels. Pass a pair (x, y).")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(
            f"{what}: {type(data).__name__} has no length or no rows by index, which weights for "
            "each example need. Pass a list, a data set with __len__ and __getitem__, or a path."
        )
    if not len(data):
        raise InputError(f"{what} is empty: there are no examples in it.")
    return _sequence(data, what)


def _sequence(data: Any, what: str) -> Examples:
    """A list or a torch data set: rows are pairs, mappings with our fields, or the user's own."""
    first = data[0]
    if isinstance(first, Mapping) and not any(isinstance(v, Tensor) for v in first.values()):
        columns = list(first)
        if any(_field(columns, f) for f in ("image", "features", "text", "prompt", "messages")):
            return _table(_Columns(data, columns, len(data)), columns, what)
    labels: list[Any] | None = None
    sources: list[Any] | None = None
    targets = getattr(data, "targets", None)
    if targets is not None and len(targets) == len(data):
        labels = list(targets.tolist() if hasattr(targets, "tolist") else targets)
    elif isinstance(first, list | tuple) and len(first) >= 2 and _is_whole(first[1]):
        labels = [data[i][1] for i in range(len(data))]
    elif isinstance(first, Mapping):
        if (key := _field(list(first), "label")) and _is_whole(first[key]):
            labels = [data[i][key] for i in range(len(data))]
        if source := _field(list(first), "source"):
            sources = [data[i][source] for i in range(len(data))]
    kind = "custom"
    if labels is not None and isinstance(first, list | tuple) and len(first) == 2:
        shape = tuple(getattr(first[0], "shape", ()))
        kind = {1: "features", 3: "image"}.get(len(shape), "text" if _is_text(first[0]) else kind)
    return Examples(data, kind, labels, sources, what)


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and not np.issubdtype(np.asarray(value).dtype, np.floating)
    return isinstance(value, int | np.integer) or value is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class _Pairs:
    """(x[i], y[i]) of two tensors."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def _require_finite(x: Tensor, what: str) -> None:
    if x.is_floating_point() and not bool(x.isfinite().all()):
        rows = (~x.flatten(1).isfinite().all(1)).nonzero()[:8, 0].tolist()
        raise InputError(f"{what}: NaN or infinity in the rows {rows}.")


# --- files ----------------------------------------------------------------------------------------


def read(path: Path, what: str) -> Examples:
    """JSONL, parquet, a folder of either or of a saved ``datasets`` set, or one folder a class."""
    if not path.exists():
        raise InputError(f"{what}: {path} is not there.")
    if path.is_file() and path.suffix in (".jsonl", ".ndjson"):
        rows = _jsonl(path, what)
        for field in FIELDS["image"]:  # paths are from the file's own folder
            for row in rows:
                if isinstance(row.get(field), str):
                    row[field] = str(path.parent / row[field])
        return _table(_Columns(rows, list(rows[0]), len(rows)), list(rows[0]), what)
    files = [path] if path.is_file() else sorted(path.glob("*.parquet")) or sorted(
        path.glob("*.arrow")
    )  # fmt: skip
    if files and all(f.suffix in (".parquet", ".arrow") for f in files):
        table = _arrow(files, what)
        columns = list(table.column_names)
        return _table(_Arrow(table), columns, what)
    if path.is_dir():
        lines = sorted(path.glob("*.jsonl"))
        if len(lines) == 1:
            return read(lines[0], what)
        classes = sorted(p for p in path.iterdir() if p.is_dir() and not images.hidden(p))
        pictures = [(file, n) for n, folder in enumerate(classes) for file in images.listed(folder)]
        if pictures:
            rows = [{"image": str(file), "label": classes[n].name} for file, n in pictures]
            return _table(_Columns(rows, ["image", "label"], len(rows)), ["image", "label"], what)
    raise InputError(
        f"{what}: {path} is none of .jsonl, .parquet, a folder of these, a saved data set, or a "
        "folder with one folder of pictures for each class."
    )


def _jsonl(path: Path, what: str) -> list[dict[str, Any]]:
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{what}: {path.name}, line {number}: not an object.")
                    rows.append(row)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {path} cannot be read: {error}.") from None
    if not rows:
        raise InputError(f"{what} is empty: {path} has no rows.")
    return rows


def _arrow(files: list[Path], what: str) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "reading parquet needs pyarrow. Run: pip install 'edgezoo[select]'", name="pyarrow"
        ) from error
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(parquet.read_table(file))
            else:
                tables.append(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all())
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{what}: {file} cannot be read: {error}.") from None
    try:
        table = pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise InputError(f"{what}: the files have different columns: {error}.") from None
    if not len(table):
        raise InputError(f"{what} is empty: {files[0]} has no rows.")
    return table


class _Arrow:
    """Rows of an arrow table; bytes stay where they are until a row is asked for."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: self.table.column(name)[i].as_py() for name in self.table.column_names}

    def column(self, name: str) -> list[Any]:
        found: list[Any] = self.table.column(name).to_pylist()
        return found


class _Columns:
    """Rows that are mappings: a list of them, or a ``datasets`` data set."""

    def __init__(self, rows: Any, names: list[str], count: int) -> None:
        self.rows, self.names, self.count = rows, names, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]

    def column(self, name: str) -> list[Any]:
        if hasattr(self.rows, "column_names"):
            return list(self.rows[name])
        return [self.rows[i].get(name) for i in range(self.count)]


def _field(columns: Sequence[str], field: str) -> str | None:
    return next((name for name in FIELDS[field] if name in columns), None)


class _Fields:
    """Rows with our own names of fields."""

    def __init__(self, rows: Any, names: Mapping[str, str], columns: Sequence[str]) -> None:
        self.rows, self.names, self.columns = rows, names, columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        found = {field: row.get(name) for field, name in self.names.items()}
        if self.columns:
            found["features"] = [row[c] for c in self.columns]
        return found


def _table(rows: Any, columns: list[str], what: str) -> Examples:
    """Which columns are what; InputError that says what was there."""
    names = {field: found for field in FIELDS if (found := _field(columns, field))}
    kind, numeric = "", []
    if "image" in names:
        kind = "image"
    elif "features" in names:
        kind = "features"
    elif "messages" in names or ("prompt" in names and "response" in names):
        kind = "language"
    elif "text" in names or "prompt" in names:
        names.setdefault("text", names.get("prompt", ""))
        kind = "text" if "label" in names else "language"
    else:
        first = rows[0]
        taken = set(names.values())
        numeric = [c for c in columns if c not in taken and isinstance(first[c], int | float)]
        kind = "features" if numeric else ""
    if not kind:
        raise InputError(
            f"{what} has the columns {', '.join(columns)}: expected image, features, text, or "
            "prompt and response, and label where there are classes."
        )
    wanted = {
        "image": ("image", "label", "source"),
        "features": ("features", "label", "source"),
        "text": ("text", "label", "source"),
        "language": ("messages", "prompt", "response", "text", "source"),
    }[kind]
    names = {f: n for f, n in names.items() if f in wanted}
    if kind != "language" and "label" not in names:
        raise InputError(
            f"{what} has the columns {', '.join(columns)} and no label: expected one of "
            f"{', '.join(FIELDS['label'])}."
        )
    labels = rows.column(names["label"]) if "label" in names else None
    sources = rows.column(names["source"]) if "source" in names else None
    return Examples(_Fields(rows, names, numeric), kind, labels, sources, what)


# --- labels and groups ----------------------------------------------------------------------------


def numbered(
    train: Sequence[Any] | None, target: Sequence[Any] | None, noun: str
) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Values of both sets as numbers (N,), (M,) into their names; None where a set has none."""
    if train is None:
        return None, None, []
    columns = [_plain(train, "train", noun)]
    if target is not None:
        columns.append(_plain(target, "target", noun))
    every = {value for column in columns for value in column}
    if all(isinstance(v, int) for v in every):
        names: list[Any] = sorted(every)
    else:
        names = sorted(every, key=str)
    number = {value: i for i, value in enumerate(names)}
    found = [torch.tensor([number[v] for v in column]) for column in columns]
    return found[0], found[1] if len(found) > 1 else None, [str(n) for n in names]


def _plain(values: Sequence[Any], what: str, noun: str) -> list[Any]:
    plain = [v.item() if hasattr(v, "item") else v for v in values]
    missing = [i for i, v in enumerate(plain) if v is None or (isinstance(v, float) and v != v)]
    if missing:
        raise InputError(
            f"{what}: {len(missing)} rows have no {noun}, the first are {missing[:8]}. "
            "Fill them in or leave these rows out."
        )
    return plain


def check_classes(labels: Tensor | None, target: Tensor | None, names: Sequence[str]) -> None:
    """InputError for a target set of one class where there are more; a warning for missing ones."""
    if labels is None or target is None:
        return
    have = set(target.tolist())
    classes = set(labels.tolist())
    if len(have) == 1 and len(classes) > 1:
        raise InputError(
            f"the target set has one class only ({names[next(iter(have))]!r}), the training set "
            f"{len(classes)}: it would teach to answer nothing else. Add examples of the others."
        )
    if lost := sorted(classes - have):
        some = ", ".join(names[i] for i in lost[:10])
        warnings.warn(
            f"the target set has no example of: {some}. Training examples of these classes will "
            "mostly lose their weight.",
            stacklevel=3,
        )


# --- one row --------------------------------------------------------------------------------------


def picture_of(value: Any) -> Any:
    """A PIL image, RGB and upright, of bytes, a path, {"bytes": ...} or an image."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return images.read(value, "RGB")


def pixels_of(value: Any, side: tuple[int, int] | None = None) -> Tensor:
    """(3,H,W) float in [0,1]; ``side`` (width, height) to resize a picture to."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).float()
    image = picture_of(value)
    if side is not None and image.size != side:
        image = image.resize(side)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def prompt_and_answer(row: Any) -> tuple[str, str]:
    """What is given and what is learned, as text. A plain text is all answer."""
    if isinstance(row, str):
        return "", row
    if row.get("messages"):
        turns = [(str(m.get("role", m.get("from", ""))), str(m.get("content", m.get("value", ""))))
                 for m in row["messages"]]  # fmt: skip
        before = "\n".join(f"{role}: {text}" for role, text in turns[:-1])
        return f"{before}\n{turns[-1][0]}: ", turns[-1][1]
    if row.get("response") is not None:
        return f"{row.get('prompt') or ''}\n", str(row["response"])
    return "", str(row.get("text") or row.get("prompt") or "")


def short(row: Any, length: int = 160) -> str:
    """A row for a report, in one line."""
    if isinstance(row, Mapping) and ("text" in row or "prompt" in row or "messages" in row):
        text = " ".join(filter(None, prompt_and_answer(row)))
    elif isinstance(row, list | tuple) and row and isinstance(row[0], str):
        text = row[0]
    else:
        text = ""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def collated(rows: Sequence[Any]) -> Any:
    """torch's default collation, of the fields that all rows have."""
    from torch.utils.data import default_collate

    if isinstance(rows[0], Mapping):
        shared = set.intersection(*(set(r) for r in rows))
        rows = [{k: r[k] for k in rows[0] if k in shared and r[k] is not None} for r in rows]
    try:
        return default_collate(list(rows))
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"rows cannot be stacked into a batch: {error}. Training and target rows must be "
            "alike; pass collate=, a function from a list of rows to a batch."
        ) from None


Collate = Callable[[Sequence[Any]], Any]


def per_cent(value: float) -> str:
    """For people."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "?"
