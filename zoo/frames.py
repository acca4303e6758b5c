"""Turns containers in memory into columns: records, mappings, DataFrames, ``datasets``, arrow.

No package is imported for this: that of the container already is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .columns import Column, Columns, is_tensor
from .errors import InputError


def records(rows: Sequence[Any], what: str, *, folder: Path | None = None) -> Columns:
    """Columns of mappings; a row that lacks a column has None there."""
    names: dict[str, None] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"{what}: row {i} is a {type(row).__name__}; expected a mapping of columns."
            )
        names.update(dict.fromkeys(row))
    if not names:
        raise InputError(f"{what}: the rows have no columns.")
    columns = {str(n): Column([row.get(n) for row in rows]) for n in names}
    return Columns(columns, len(rows), folder, rows=rows if folder is None else None)


def table(found: Mapping[Any, Any], what: str, *, folder: Path | None = None) -> Columns:
    """Columns from a mapping; InputError if their lengths differ."""
    for name, values in found.items():
        refuse_holes(values, f"{what}: {name}")
        no_rows = not (hasattr(values, "__len__") and hasattr(values, "__getitem__"))
        if no_rows or isinstance(values, str | bytes | Mapping) or _is_scalar(values):
            raise InputError(
                f"{what}: {name} is a {type(values).__name__}; expected a mapping of columns, "
                "such as {'x': x, 'y': y}."
            )
    lengths = {str(name): len(values) for name, values in found.items()}
    if len({*lengths.values()}) > 1:
        said = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise InputError(f"{what}: columns of different lengths: {said}.")
    count = next(iter(lengths.values()), 0)
    return Columns({str(n): Column(_listed(v)) for n, v in found.items()}, count, folder)


def _is_scalar(values: Any) -> bool:
    return getattr(values, "shape", None) == ()


def _listed(values: Any) -> Any:
    """The values of a Series, whatever its index; anything else unchanged."""
    return plain_series(values) if hasattr(values, "iloc") else values


def refuse_holes(value: Any, what: str) -> None:
    """Raise InputError for sparse, nested and masked arrays and tensors."""
    layout = str(getattr(value, "layout", "torch.strided"))
    nested = is_tensor(value) and getattr(value, "is_nested", False)
    if nested or (is_tensor(value) and layout != "torch.strided"):
        advice = "Pass its .unbind() as a list." if nested else "Use .to_dense()."
        kind = "nested" if nested else "sparse"
        raise InputError(f"{what}: a {kind} tensor; expected a dense one. {advice}")
    if hasattr(value, "filled") and hasattr(value, "mask"):
        raise InputError(f"{what}: an array with masked values. Use .filled(), or leave them out.")
    if type(value).__module__.startswith("scipy.sparse"):
        raise InputError(f"{what}: a sparse matrix; expected a dense array. Use .toarray().")


def plain_series(series: Any) -> Any:
    """The values of a Series: an array of numbers, or a list with None for missing values."""
    if getattr(series.dtype, "kind", "O") in "biuf" and hasattr(series.dtype, "newbyteorder"):
        return series.to_numpy()
    # texts, objects, categories, and pandas' nullable numbers
    missing = series.isna().tolist()
    values = series.astype(object).tolist()
    return [None if m else v for v, m in zip(values, missing, strict=True)]


def of_pandas(source: Any, what: str) -> Columns:
    """Columns of a DataFrame; an index that is not a plain range becomes the rows' ids."""
    if not hasattr(source, "columns"):
        raise InputError(f"{what}: a pandas {type(source).__name__}; expected a DataFrame.")
    names = [str(n) for n in source.columns]
    refuse_twice(names, what)
    columns = {n: Column(plain_series(source.iloc[:, i])) for i, n in enumerate(names)}
    index = source.index
    counted = type(index).__name__ == "RangeIndex" and index.start == 0
    return Columns(columns, len(source), ids=None if counted else index.tolist())


def refuse_twice(names: Sequence[str], what: str) -> None:
    """Raise InputError if two columns have the same name."""
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(
            f"{what}: the column {twice[0]!r} occurs twice. Give each column its own name."
        )


def arrow(found: Any, what: str, folder: Path | None = None) -> Columns:
    """Columns of a pyarrow table; bytes are read when a row is accessed."""
    refuse_twice(found.column_names, what)
    metadata = found.schema.metadata or {}
    index = _metadata(metadata, b"pandas").get("index_columns", [])
    classes = _metadata(metadata, b"huggingface").get("info", {}).get("features", {})

    def names(column: str) -> Sequence[str]:
        about = classes.get(column)
        is_class = isinstance(about, dict) and about.get("_type") == "ClassLabel"
        return about.get("names", ()) if is_class else ()

    columns = {n: Column(found.column(n), names(n)) for n in found.column_names}
    ids = None
    for part in index:  # pandas stores a range as start, stop and step
        if isinstance(part, dict) and part.get("kind") == "range" and part.get("start"):
            ids = [*range(part["start"], part["stop"], part["step"])]
    ids = ids if ids is not None and len(ids) == len(found) else None
    named = tuple(n for n in index if isinstance(n, str))
    return Columns(columns, len(found), folder, ids, named)


def _metadata(found: Mapping[bytes, bytes], key: bytes) -> dict[str, Any]:
    try:
        made = json.loads(found.get(key, b"{}"))
    except ValueError:
        return {}
    return made if isinstance(made, dict) else {}


def of_datasets(source: Any, what: str) -> Columns:
    """Columns of a ``datasets`` set in any format; columns that a format selects are the only
    inputs."""
    chosen = source.format
    plain, about = source.with_format("arrow"), source.features
    whole = plain.data.table
    heavy: list[str] = []
    if source._indices is not None:  # selected or shuffled: copied, except for images
        heavy = [n for n in source.column_names if type(about[n]).__name__ in ("Image", "Value")
                 and "binary" in str(whole.schema.field(n).type)]  # fmt: skip
        whole = plain.select_columns([n for n in source.column_names if n not in heavy])[:]
    found = arrow(whole, what)
    for name in heavy:
        found.columns[name] = Column(_Cells(plain, name))
    found.columns = {
        name: Column(
            found.columns[name].data,
            about[name].names if type(about[name]).__name__ == "ClassLabel" else (),
        )
        for name in source.column_names
    }
    if chosen["columns"] and len(chosen["columns"]) < len(source.column_names):
        found.only = tuple(chosen["columns"])
    found.rows = source
    return found


class _Cells:
    """One column of a ``datasets`` set in arrow format, read cell by cell."""

    def __init__(self, rows: Any, name: str) -> None:
        self.data, self.name = rows, name

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self.data[i].column(self.name)[0]
