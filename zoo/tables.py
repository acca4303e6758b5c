"""Reads training examples from files and containers into a ``Table``.

========================================================  ========================================
in                                                        kind
========================================================  ========================================
a pair (x, y) of arrays, tensors or lists; pairs in a     by x: features (a row of numbers), text,
list or a torch data set                                  image, else custom
CSV, JSON, JSONL, ``.npy``, ``.npz``, safetensors,        by the columns' names and values, or by
parquet and arrow files or folders of them; mappings of   ``features=`` and ``label=``
columns, lists of records, DataFrames, ``datasets``
a folder with one folder of pictures for each class       image
an array, nested lists of numbers                         features without labels
any other rows (token ids, tensors by name)               custom: unchanged
========================================================  ========================================

Anything else raises an InputError that says how to convert it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import frames, rowfiles
from .columns import (
    Column,
    Columns,
    as_numpy,
    is_number,
    is_picture,
    is_tensor,
    is_time,
    kind_of,
    listed,
    names_picture,
    roles,
    stacked,
)
from .errors import InputError, OptionError
from .rowfiles import ENDINGS, lines

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ENDINGS", "Table", "array", "lines", "matched", "plain", "read"]

_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Table:
    """N rows in a fixed order."""

    kind: str
    """``features``: a row of numbers. ``image``: a source for ``zoo.images.read``, or an array or
    tensor. ``text``: a text with a label. ``language``: (prompt, response); a plain text is all
    response. ``custom``: any other rows."""
    what: str
    """The name of the rows in messages: train, target, ..."""
    inputs: Any
    """By index: one array (N, ...) for features, else a sequence of rows."""
    columns: tuple[str, ...] = ()
    """Names of the input columns; () if they have none, as in an array."""
    labels: Sequence[Any] | None = None
    """(N,) given values, or None."""
    codes: np.ndarray | None = None
    """(N,) int64 into ``classes``; None without labels and for fractional numbers, which are not
    classes."""
    values: tuple[Any, ...] = ()
    """The label of each code: sorted, or in the order of the data set's list of classes."""
    sources: Sequence[Any] | None = None
    """(N,) the source of each row, or None."""
    ids: Sequence[Any] | None = None
    """(N,) ids of the rows, from an id column or an index; or None."""
    texts: Sequence[str] | None = None
    """(N,) the caption of each image or row of features, or None."""
    notes: tuple[str, ...] = ()
    """What was left out."""
    origin: Any = dataclasses.field(default=None, repr=False)
    """The user's own rows, by index."""
    declared: bool = False
    """Are ``values`` the data set's list of classes, which may include some without rows?"""

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Any:
        """The input of one row."""
        return self.rows([i])[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by code."""
        return tuple(map(str, self.values))

    @property
    def array(self) -> np.ndarray | None:
        """(N, ...) all features, where they are one array; else None."""
        return self.inputs if hasattr(self.inputs, "dtype") and self.kind == "features" else None

    def rows(self, ids: Sequence[int]) -> Any:
        """The inputs of some rows, in that order: for features an array (B, ...) of float32, or
        int64 for an array of integers; else a list."""
        import numpy as np

        index = np.asarray(ids, dtype=np.int64)
        if self.kind != "features":
            return [self.inputs[int(i)] for i in index]
        if self.array is not None:
            return _native(self.array[index])
        found = [self.inputs[int(i)] for i in index]
        return _native(stacked(found, "features", self.what))

    def raw(self, ids: Sequence[int]) -> list[Any]:
        """Some of the user's own rows, for the user's own functions."""
        rows = self.inputs if self.origin is None else self.origin
        return [rows[int(i)] for i in ids]

    def require_labels(self) -> None:
        """Raise InputError if there are no labels."""
        if self.labels is None:
            where = f" in the columns {', '.join(self.columns)}" if self.columns else ""
            raise InputError(
                f"{self.what} has no label{where}: expected a column such as label, or a pair "
                "(x, y). Pass label= for a column of another name."
            )

    def digest(self) -> str:
        """SHA-256 of the columns, all labels and sources, and up to 64 rows: detects a changed data
        set without reading all of it."""
        import numpy as np

        found = hashlib.sha256(f"{len(self)} {self.kind} {self.columns}".encode())
        for values in (self.labels, self.sources):
            found.update("\0".join(map(str, values or ())).encode("utf-8", "replace"))
        for i in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int):
            _feed(found, self[int(i)])
        return found.hexdigest()


def read(
    source: Any,
    *,
    what: str = "train",
    features: str | Sequence[str] | None = None,
    label: str | None = None,
) -> Table:
    """Read the rows of ``source`` (see the table above); their columns determine their kind.

    ``what``: the name of the rows in messages. ``features``: the input column, or several columns
    of numbers; ``label``: the column of labels. By default usual names are known (image, text,
    prompt and response, label, source, id, ... in any case); without them every column of numbers
    is a feature, except ids and a DataFrame's index. Types of columns are decided from all rows: a
    null or NaN in a used column is refused with its row. Paths of images are relative to the folder
    of their file. Raises InputError, OptionError for column names if there are none,
    MissingDependencyError for parquet without pyarrow.
    """
    if isinstance(source, Table):
        return dataclasses.replace(source, what=what)
    found = _opened(source, what)
    if getattr(getattr(found, "dtype", None), "names", None) or is_time(found):  # of a file
        found = _opened(found, what)
    if getattr(found, "shape", None) == () or not len(found):
        raise InputError(f"{what} is empty: there are no examples in it.")
    if isinstance(found, Columns):
        table = _of_columns(found, what, features, label)
        for note in table.notes:
            warnings.warn(note, stacklevel=2)
        return table
    if features is not None or label is not None:
        name, value = ("features", features) if features is not None else ("label", label)
        raise OptionError(f"{name}={value!r}: {what} has no named columns.")
    return found if isinstance(found, Table) else _unnamed(found, what)


def matched(train: Table, target: Table) -> tuple[Table, Table]:
    """Both tables with the same columns in the same order, and the same classes.

    The target's columns are reordered by name as in the training set. Raises InputError for
    different kinds, columns or widths, and for classes that cannot be matched.
    """
    if train.kind != target.kind:
        hint = ""
        if {train.kind, target.kind} == {"text", "language"}:  # text without labels is language
            hint = f" Has {'train' if train.kind == 'language' else 'target'} lost its labels?"
        raise InputError(
            f"{train.what} holds {train.kind}, but {target.what} holds {target.kind}: they must "
            f"be of the same kind.{hint}"
        )
    if train.kind == "features":
        target = _same_columns(train, target)
    return _same_classes(train, target)


def array(value: Any, what: str) -> Any:
    """``value``, or the file that it names, as a numeric array or tensor; None if not numeric.

    An array or tensor is returned unchanged, a ``.npy`` file memory-mapped, a list of equal rows
    stacked. Images (uint8 arrays of 3 dimensions and more), texts and columns are not numeric.
    Raises InputError for arrays of objects, sparse ones, and rows of different shapes.
    """
    import numpy as np

    if isinstance(value, str | Path):
        path = Path(value)
        if path.suffix.lower() not in ENDINGS or path.is_dir():
            return None
        found = rowfiles.opened(path, what)
        return None if isinstance(found, Columns) else array(found, what)
    frames.refuse_holes(value, what)
    if isinstance(value, np.ndarray):
        if value.dtype.names:
            return None
        if value.dtype.kind == "O":
            raise InputError(
                f"{what}: an array of Python objects; expected numbers. Use .astype(np.float32)."
            )
        picture = value.dtype == np.uint8 and value.ndim > 2
        return None if picture or value.dtype.kind not in "biufc" else value
    if is_tensor(value):
        return value
    if isinstance(value, list | tuple) and value and _is_row(value[0]):
        try:
            return stacked(value, "a row", what)
        except InputError as error:
            raise InputError(f"{error} Rows of numbers must be alike in shape.") from None
    return None


# --- containers -----------------------------------------------------------------------------------


def _opened(source: Any, what: str) -> Any:
    """``Columns``, a ``Table``, an array, or anything with rows by index."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not str(source):
            raise InputError(f"{what}: the path is empty. Pass a file or folder.")
        if not path.exists() and str(source).startswith(("http:", "https:")):
            raise InputError(f"{what}: {source} is an address; download it and pass its path.")
        return rowfiles.opened(path, what)
    frames.refuse_holes(source, what)
    if not hasattr(source, "__len__") or isinstance(source, bytes | type):
        raise InputError(
            f"{what}: {type(source).__name__} has no length or cannot be indexed, which weights "
            f"for each example need. Pass a list, a data set with __len__ and __getitem__, or a "
            f"path."
        )
    if isinstance(source, Mapping) and any(hasattr(v, "column_names") for v in source.values()):
        raise InputError(
            f"{what}: a {type(source).__name__} with the splits {', '.join(map(str, source))}. "
            f"Pass one of them: data[{next(iter(source))!r}]."
        )
    if getattr(source, "shape", None) == () or not len(source):
        raise InputError(f"{what} is empty: there are no examples in it.")
    if hasattr(source, "column_names") and hasattr(source, "with_format"):
        if source.format["type"] == "custom":  # the user's own transform: rows are unchanged
            return source
        return frames.of_datasets(source, what)
    if isinstance(source, Mapping):
        return frames.table(source, what)
    if type(source).__module__.split(".")[0] == "pandas":
        return frames.of_pandas(source, what)
    if hasattr(source, "column_names") and hasattr(source, "to_pylist"):
        return frames.arrow(source, what)
    if hasattr(source, "to_arrow") and hasattr(source, "columns"):  # polars
        return frames.arrow(source.to_arrow(), what)
    if getattr(getattr(source, "dtype", None), "names", None):  # a structured array
        return frames.table({n: source[n] for n in source.dtype.names}, what)
    if is_time(source):
        raise InputError(f"{what}: dates, not numbers ({source.dtype}). Use .astype(np.float64).")
    if (pair := _pair(source)) is not None:
        return _of_pair(*pair, what)
    if not hasattr(source, "__getitem__"):
        raise InputError(
            f"{what}: {type(source).__name__} cannot be indexed. Pass a list, or its .dataset."
        )
    if (
        isinstance(source, list | tuple)
        and isinstance(source[0], Mapping)
        and not _has_tensors(source[0])
    ):
        return frames.records(source, what)
    return source


def _has_tensors(row: Mapping[Any, Any]) -> bool:
    return any(is_tensor(v) and v.ndim for v in row.values())


class _Part:
    """One element of each row of a data set, looked up on access."""

    def __init__(self, rows: Any, key: Any) -> None:
        self.data, self.key = rows, key

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self.data[i][self.key]


class _Zipped:
    """(x[i], y[i])."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.x[i], self.y[i]


# --- tables of columns ----------------------------------------------------------------------------


def _of_columns(found: Columns, what: str, features: Any, label: str | None) -> Table:
    import numpy as np

    made = roles(found, what, features, label)
    columns = found.columns

    def values(name: str | None) -> list[Any] | None:
        if name is None:
            return None
        got = columns[name].values()
        columns[name].require(got, name, what)
        return got

    labels: dict[str, Any] = {}
    if made.label is not None:
        labels = _labels(columns[made.label].values(), columns[made.label].names, what)
    ids = columns[made.id].values() if made.id is not None else found.ids
    ids = None if ids is not None and all(v is None for v in ids) else ids
    inputs: Any
    if made.kind == "custom":
        inputs = _Rows(found)
    elif made.kind == "features" and len(made.inputs) == 1 and not _flat(columns[made.inputs[0]]):
        inputs = columns[made.inputs[0]].vectors(made.inputs[0], what)
        _require_finite(inputs, f"{what}: {made.inputs[0]}")
    elif made.kind == "features":
        inputs = np.empty((found.count, len(made.inputs)), np.float32)
        for i, name in enumerate(made.inputs):
            with np.errstate(over="ignore"):
                inputs[:, i] = columns[name].numbers(name, what)
            if not np.isfinite(inputs[:, i]).all():
                rows = np.flatnonzero(~np.isfinite(inputs[:, i])).tolist()
                raise InputError(f"{what}: {name} is beyond float32 in {listed(rows)}.")
    elif made.kind == "text":
        inputs = columns[made.inputs[0]].texts(made.inputs[0], what)
    elif made.kind == "language":
        inputs = _language(columns, made.inputs, what)
    else:
        inputs = _images(columns[made.inputs[0]], made.inputs[0], found.folder, what)
    flat = (
        made.kind == "features"
        and inputs.ndim == 2
        and (len(made.inputs) > 1 or _flat(columns[made.inputs[0]]))
    )
    return Table(
        made.kind, what, inputs,
        columns=made.inputs if flat or made.kind != "features" else (),
        sources=values(made.source), ids=ids, notes=made.notes, origin=_Rows(found),
        texts=None if made.text is None else columns[made.text].texts(made.text, what),
        **labels,
    )  # fmt: skip


class _Rows:
    """The rows of columns, as the user's own rows."""

    def __init__(self, found: Columns) -> None:
        self.found = found

    def __len__(self) -> int:
        return self.found.count

    def __getitem__(self, i: int) -> Any:
        return self.found.row(i)


def _flat(column: Column) -> bool:
    """Is each value one number?"""
    value = column.first()
    return getattr(column.data, "ndim", 1) == 1 and is_number(value)


def _language(columns: Mapping[str, Column], names: Sequence[str], what: str) -> list[Any]:
    """(prompt, response) of each row."""
    if len(names) == 1:
        if not isinstance(columns[names[0]].first(), str):
            return [_turns(v, names[0], i, what) for i, v in enumerate(columns[names[0]].values())]
        return [("", text) for text in columns[names[0]].texts(names[0], what)]
    asked = [["" if v is None else str(v) for v in columns[n].values()] for n in names[:-1]]
    answers = columns[names[-1]].texts(names[-1], what)
    return [
        ("\n".join(part for part in parts if part) + "\n", answer)
        for *parts, answer in zip(*asked, answers, strict=True)
    ]


def _turns(messages: Any, name: str, row: int, what: str) -> tuple[str, str]:
    """A conversation: all but the last turn is the prompt."""
    try:
        turns = [
            (str(m.get("role", m.get("from", ""))), str(m.get("content", m.get("value", ""))))
            for m in messages
        ]
        (last, answer), before = turns[-1], turns[:-1]
    except (AttributeError, TypeError, IndexError):
        raise InputError(
            f"{what}: {name} in row {row}: expected a list of turns with role and content."
        ) from None
    return "".join(f"{role}: {text}\n" for role, text in before) + f"{last}: ", answer


def _images(column: Column, name: str, folder: Path | None, what: str) -> Any:
    """Sources for ``zoo.images.read``, looked up on access; texts are paths from ``folder``."""
    if hasattr(column.data, "ndim") and column.data.ndim > 1:
        return column.data
    return _Pictures(column, name, folder, what)


class _Pictures:
    def __init__(self, column: Column, name: str, folder: Path | None, what: str) -> None:
        self.column, self.folder = column, folder
        self.name, self.what = name, what
        if not hasattr(column.data, "to_pylist"):
            column.require([0 if v is not None else None for v in column.values()], name, what)
        elif column.data.null_count:
            column.require(column.data.is_valid().to_pylist(), name, what)

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, i: int) -> Any:
        (value,) = self.column.take([i])
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise InputError(f"{self.what}: {self.name} is null in row {i}. Leave the row out.")
        if isinstance(value, str) and self.folder is not None:
            return str(self.folder / value)
        return value


# --- tables without names -------------------------------------------------------------------------


def _pair(source: Any) -> tuple[Any, Any] | None:
    """(x, y) if the source is a pair of inputs and labels."""
    if hasattr(source, "tensors") and len(source.tensors) == 2:  # torch's TensorDataset
        return tuple(source.tensors)
    if not isinstance(source, list | tuple) or len(source) != 2:
        return None
    x, y = source
    columns = all(hasattr(part, "shape") or hasattr(part, "tolist") for part in source)
    if isinstance(source, list):
        return (x, y) if columns and x.ndim >= 2 and y.ndim == 1 and len(x) == len(y) else None
    columns = columns or all(
        isinstance(p, list) or hasattr(p, "tolist") or hasattr(p, "iloc") for p in source
    )
    scalar = any(getattr(part, "ndim", 1) == 0 for part in source)
    return (x, y) if columns and not scalar else None


def _of_pair(x: Any, y: Any, what: str) -> Table:
    for part in (x, y):
        frames.refuse_holes(part, what)
    if len(x) != len(y):
        raise InputError(f"{what}: {len(x)} inputs and {len(y)} labels.")
    if not len(x):
        raise InputError(f"{what} is empty: there are no examples in it.")
    if hasattr(x, "iloc") and not hasattr(x, "columns"):  # a Series
        x = x.tolist()
    if hasattr(x, "iloc"):
        columns = frames.of_pandas(x, what)
        return dataclasses.replace(
            _of_columns(columns, what, list(columns.columns), None), **_labels_of(y, what)
        )
    labels = _labels_of(y, what)
    rows = _Zipped(x, y)
    if not labels:  # several numbers for each row
        return Table("custom", what, rows, origin=rows)
    return _of_inputs(x, what, origin=rows, **labels)


def _labels_of(y: Any, what: str) -> dict[str, Any]:
    if hasattr(y, "iloc"):
        if hasattr(y, "columns"):
            if len(y.columns) != 1:
                raise InputError(
                    f"{what}: the labels are a DataFrame of {len(y.columns)} columns; expected "
                    "one. Pass one column: y['name']."
                )
            y = y.iloc[:, 0]
        y = frames.plain_series(y)
    values = as_numpy(y)
    if getattr(values, "ndim", 1) > 1:
        return {}
    return _labels(Column(values).values(), (), what)


def _of_inputs(x: Any, what: str, **known: Any) -> Table:
    """A table of inputs whose kind is that of the first one."""
    import numpy as np

    if hasattr(x, "shape"):
        found = as_numpy(x)
        if found.dtype.kind in "OUS" and found.ndim == 1:
            return _of_inputs(found.tolist(), what, **known)
        found = array(found, what) if found.dtype != np.uint8 else found
        if found is None or found.dtype.kind == "c":
            raise InputError(f"{what}: {x.dtype} of shape {tuple(x.shape)}; expected numbers.")
        if found.ndim == 4 or (found.ndim == 3 and found.dtype == np.uint8):
            _require_finite(found, what)
            return Table("image", what, x if is_tensor(x) else found, **known)
        if found.ndim == 2:
            _require_finite(found, what)
            return Table("features", what, found, **known)
        return Table("custom", what, x, **known)
    first = x[0]
    kind = kind_of(first)
    if names_picture(first):
        kind = "image"
    if kind == "text":
        return Table("text", what, Column(x).texts("the text", what), **known)
    if kind == "features" and isinstance(x, list) and not isinstance(first, int | float):
        found = stacked(x, "a row", what)
        _require_finite(found, what)
        return Table("features" if found.ndim == 2 else "custom", what,
                     found if found.ndim == 2 else x, **known)  # fmt: skip
    if isinstance(first, int | float) or getattr(first, "ndim", 1) == 0:
        kind = "custom"
    return Table(kind, what, x, **known)


def _unnamed(source: Any, what: str) -> Table:
    """A table from an array, or from rows without columns."""
    numbers = array(source, what) if not _is_rows_of_pairs(source) else None
    if numbers is not None:
        return _of_inputs(numbers, what)
    if getattr(getattr(source, "dtype", None), "kind", None) in ("U", "T") and source.ndim == 1:
        source = source.tolist()
    first = source[0]
    if isinstance(source, list | tuple):
        source = [*source]
        if isinstance(first, str):
            if names_picture(first):
                return Table("image", what, source)
            texts = Column(source).texts("the text", what)
            return Table("language", what, [("", text) for text in texts], origin=source)
        if is_picture(first):
            return Table("image", what, source)
    if hasattr(first, "ndim") and first.ndim == 3:
        return Table("image", what, source)
    if isinstance(first, Mapping):
        return _of_mappings(source, first, what)
    labels = getattr(source, "targets", None)
    if isinstance(first, list | tuple) and len(first) >= 2:
        if labels is None or not _agree(source, labels):
            labels = _seconds(source, what)
        known = _labels(labels, (), what) if _are_labels(labels) else {}
        if len(first) > 2 or not known:
            return Table("custom", what, source, origin=source, **known)
        x = [row[0] for row in source] if isinstance(source, list) else _Part(source, 0)
        return _of_inputs(x, what, origin=source, **known)
    return Table("custom", what, source, origin=source)


def _seconds(source: Any, what: str) -> list[Any]:
    """The second element of each row."""
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i][1])
        except (IndexError, TypeError, KeyError):
            raise InputError(
                f"{what}: row {i} has no label, but the first row has one: expected (x, y) in "
                f"each row."
            ) from None
    return found


def _is_rows_of_pairs(source: Any) -> bool:
    """Are these pairs such as (x, y) and [x, y], not rows of numbers?"""
    if not isinstance(source, list | tuple):
        return False
    first = source[0]
    if isinstance(first, tuple):
        return True
    return isinstance(first, list) and bool(first) and not isinstance(first[0], int | float)


def _is_row(row: Any) -> bool:
    """Is it a vector or matrix of numbers? A matrix of integers is an image."""
    row = as_numpy(row)
    if hasattr(row, "dtype"):
        return row.ndim in (1, 2) and row.dtype.kind in ("f" if row.ndim == 2 else "iuf")
    if not isinstance(row, list | tuple) or not row:
        return False
    return isinstance(row[0], int | float) or _is_row(row[0])


def _of_mappings(source: Any, first: Mapping[Any, Any], what: str) -> Table:
    """A table from mappings: of columns by their names, or of custom rows if they hold tensors."""
    if not _has_tensors(first):
        names = {str(key): key for key in first}
        columns = {n: Column(_Part(source, key)) for n, key in names.items()}
        return _of_columns(Columns(columns, len(source), rows=source), what, None, None)
    lower = {str(key).lower(): key for key in first}
    known: dict[str, Any] = {}
    for name in ("label", "labels", "y"):
        if name in lower:
            values = [source[i][lower[name]] for i in range(len(source))]
            known = _labels(values, (), what) if _are_labels(values) else {}
            break
    for name in ("source", "domain", "dataset"):
        if name in lower:
            known["sources"] = [source[i][lower[name]] for i in range(len(source))]
            break
    return Table("custom", what, source, origin=source, **known)


def _agree(source: Any, targets: Any) -> bool:
    """Are a data set's ``targets`` the labels in its rows, unchanged?"""
    if len(targets) != len(source):
        return False
    count = len(source)
    some = {0, count - 1, *range(0, count, max(1, count // 8))}
    return all(_scalar(source[i][1]) == _scalar(targets[i]) for i in some)


# --- labels ---------------------------------------------------------------------------------------


def _scalar(value: Any) -> Any:
    if is_time(value):
        return value
    if getattr(value, "ndim", None) == 0 or (hasattr(value, "item") and not hasattr(value, "ndim")):
        return value.item()
    return value


def _are_labels(values: Iterable[Any]) -> bool:
    return all(v is None or isinstance(_scalar(v), str | int | float) for v in values)


def plain(given: Sequence[Any], what: str, noun: str) -> list[Any]:
    """(N,) values as Python texts and numbers.

    ``noun``: what they are, such as label or source. Raises InputError with the row that has none,
    or another type.
    """
    values = [_scalar(v) for v in given]
    missing = [i for i, v in enumerate(values) if v is None or v != v]
    if missing:
        raise InputError(
            f"{what}: {len(missing)} of {len(values)} rows have no {noun}: {listed(missing)}. "
            "Fill them in or leave these rows out."
        )
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise InputError(
                f"{what}: the {noun} in row {i} is a {type(value).__name__}; expected one text or "
                "number for each row."
            )
    return values


def _labels(given: Sequence[Any], names: Sequence[str], what: str) -> dict[str, Any]:
    """``labels``, ``codes``, ``values`` and ``declared`` of a Table.

    Integers written as floats are the same classes as integers; with ``names``, numbers are indices
    into these.
    """
    import numpy as np

    labels = plain(given, what, "label")
    if names:
        outside = [i for i, v in enumerate(labels) if not 0 <= v < len(names)]
        if outside:
            raise InputError(
                f"{what}: the label is not one of the {len(names)} classes in {listed(outside)}. "
                "Leave these rows out."
            )
        codes = np.asarray(labels, dtype=np.int64)
        return {"labels": [names[c] for c in labels], "codes": codes, "values": tuple(names),
                "declared": True}  # fmt: skip
    if len({isinstance(v, str) for v in labels}) > 1:
        raise InputError(f"{what}: some labels are texts, some are numbers. Use one type.")
    if any(isinstance(v, float) for v in labels):
        if endless := [i for i, v in enumerate(labels) if v in (math.inf, -math.inf)]:
            raise InputError(
                f"{what}: the label is infinite in {listed(endless)}. Leave these rows out."
            )
        if not all(float(v).is_integer() for v in labels):
            return {"labels": labels}
    classes = [int(v) if isinstance(v, float) else v for v in labels]
    known = _sorted({*classes})
    number = {value: i for i, value in enumerate(known)}
    return {"labels": labels, "codes": np.array([number[v] for v in classes], np.int64),
            "values": tuple(known)}  # fmt: skip


def _sorted(values: Iterable[Any]) -> list[Any]:
    found = [*values]
    return sorted(found, key=None if all(isinstance(v, int) for v in found) else str)


def _same_classes(train: Table, target: Table) -> tuple[Table, Table]:
    if train.labels is None or target.labels is None:
        return train, target
    if train.codes is None or target.codes is None:  # numbers, some of them with fractions
        for table in (train, target):
            if any(isinstance(v, str) for v in table.labels or ()):
                raise InputError(_different(train, target, "texts and numbers are mixed"))
        bare: dict[str, Any] = {"codes": None, "values": ()}
        return dataclasses.replace(train, **bare), dataclasses.replace(target, **bare)
    import numpy as np

    mine, theirs = (
        [t.values[c] for c in sorted({*codes.tolist()})]
        for t, codes in ((train, train.codes), (target, target.codes))
    )
    more = [value for value in theirs if value not in {*train.values}]
    fewer = [value for value in mine if value not in {*target.values}]
    if not {*mine} & {*theirs}:
        raise InputError(_different(train, target, "they share no class"))
    if more and fewer:
        said = f"only {train.what} has {_names(fewer)}, only {target.what} {_names(more)}"
        raise InputError(_different(train, target, said))
    every = [*train.values, *more] if train.declared else _sorted({*train.values, *more})
    number = {value: i for i, value in enumerate(every)}
    made = []
    for table in (train, target):
        codes = np.array([number.get(value, -1) for value in table.values])
        made.append(dataclasses.replace(table, codes=codes[table.codes], values=tuple(every)))
    return made[0], made[1]


def _different(train: Table, target: Table, why: str) -> str:
    def shown(table: Table) -> str:
        return _names(table.values or _sorted({*(table.labels or ())}))

    return (
        f"the labels of {train.what} are {shown(train)}, those of {target.what} {shown(target)}; "
        f"{why}. Use the same labels in both."
    )


def _names(values: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, values[:10]))
    return shown + (f" and {len(values) - 10} more" if len(values) > 10 else "")


# --- features -------------------------------------------------------------------------------------


def _same_columns(train: Table, target: Table) -> Table:
    if {*train.columns} != {*target.columns}:
        if not (train.columns and target.columns):
            named, other = (train, target) if train.columns else (target, train)
            raise InputError(
                f"{named.what} has the columns {_some(named.columns)}, but {other.what} has no "
                f"column names, so they cannot be matched. Give both with names, or both as arrays."
            )
        lacks = [n for n in train.columns if n not in target.columns]
        more = [n for n in target.columns if n not in train.columns]
        said = [f"{target.what} lacks {_some(lacks)}"] * bool(lacks)
        said += [f"{train.what} lacks {_some(more)}"] * bool(more)
        raise InputError(
            f"the columns differ: {' and '.join(said)}. Columns are matched by their names; pass "
            "features= to choose those that both have."
        )
    if train.columns != target.columns:
        order = [target.columns.index(n) for n in train.columns]
        target = dataclasses.replace(target, inputs=target.inputs[:, order], columns=train.columns)
    a, b = train.array, target.array
    if a is not None and b is not None and a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"{train.what} has {a.shape[1]} numbers in each row, but {target.what} has "
            f"{b.shape[1]}: they must have the same columns."
        )
    return target


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _native(found: np.ndarray) -> np.ndarray:
    """Contiguous and in native byte order: float32, or int64 for integers."""
    import numpy as np

    kind = np.float32 if found.dtype.kind in "fb" else np.int64
    return np.ascontiguousarray(found, dtype=kind)


def _require_finite(found: np.ndarray, what: str) -> None:
    """Raise InputError for rows with NaN, infinity or numbers that ``_native`` cannot hold."""
    import numpy as np

    if found.dtype == np.uint64 and found.size and found.max() > np.iinfo(np.int64).max:
        raise InputError(f"{what}: {found.max()} is beyond int64. Use .astype(np.float32).")
    if found.dtype.kind != "f":
        return
    wrong: list[int] = []
    for start in range(0, len(found), _CHUNK):
        with np.errstate(over="ignore"):
            part = found[start : start + _CHUNK].astype(np.float32)
        bad = ~np.isfinite(part.reshape(len(part), -1)).all(1)
        wrong += (start + np.flatnonzero(bad)).tolist()
    if wrong:
        raise InputError(
            f"{what}: NaN, infinity or numbers beyond float32 in {listed(wrong)}. "
            "Leave these rows out."
        )


def _feed(found: Any, value: Any) -> None:
    """Add a value of any type to a hash."""
    value = as_numpy(value)
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            found.update(str(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(found, item)
    elif hasattr(value, "tobytes"):  # arrays and pictures
        found.update(value.tobytes())
    elif isinstance(value, bytes):
        found.update(value)
    else:
        known = isinstance(value, str | int | float | Path)
        found.update(repr(value).encode() if known else b"?")
