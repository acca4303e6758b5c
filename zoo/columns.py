"""Named columns of equal length, and the role of each: input, label, source or id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, OptionError
from .images import ENDINGS

if TYPE_CHECKING:
    import numpy as np

FIELDS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "jpeg", "png", "picture", "file_name"),
    "features": ("features", "embedding", "embeddings", "x"),
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "instruction", "question", "input"),
    "response": ("response", "completion", "output", "answer"),
    "text": ("text", "sentence", "content", "review", "caption"),
    "label": ("label", "labels", "class", "target", "sentiment", "y"),
    "source": ("source", "domain", "dataset"),
    "id": (
        "id", "_id", "idx", "index", "uid", "uuid", "row_id", "example_id", "__index_level_0__",
        "unnamed: 0",
    ),
}  # fmt: skip
"""Role -> column names that imply it, in any case; the first that is present is used."""
TENSORS = {"input_ids", "pixel_values", "attention_mask", "token_type_ids", "input_features"}
"""Columns that are ready for a network, by transformers' names."""
_INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.A)
_NUMBER = re.compile(
    r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.I | re.A
)  # 007 is text
_COMMA = re.compile(r"[-+]?\d+,\d+", re.A)
_MISSING = {"na", "n/a", "#n/a", "null", "none"}
"""Spellings of a missing value in a column of numbers."""


class Column:
    """The values of one column: a list, an array, a pyarrow column, or rows looked up on access."""

    def __init__(self, data: Any, names: Sequence[str] = (), *, cells: bool = False) -> None:
        """``names``: of the classes that integers index. ``cells``: the values are texts of a CSV
        file, which may be numbers."""
        self.data, self.names, self.cells = data, tuple(names), cells
        self._numbers: tuple[np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: Iterable[int]) -> list[Any]:
        """The values of some rows, unconverted."""
        return [_plain(self.data[int(i)]) for i in rows]

    def values(self) -> list[Any]:
        """All values: numbers, texts, or None where missing."""
        if hasattr(self.data, "to_pylist"):
            return list(self.data.to_pylist())
        if is_time(self.data):
            # numpy's tolist would turn dates in nanoseconds into integers
            return [None if v != v else v for v in self.data]
        if hasattr(self.data, "dtype") and hasattr(self.data, "tolist") and self.data.ndim == 1:
            return list(self.data.tolist())
        found = (
            [*map(_plain, self.data)]
            if isinstance(self.data, list)
            else self.take(range(len(self.data)))
        )
        return _parsed(found) if self.cells else found

    def texts(self, name: str, what: str) -> list[str]:
        """All values as texts. InputError if one is missing or not text."""
        found = self.take(range(len(self.data))) if self.cells else self.values()
        self.require(found, name, what)
        made = [v if isinstance(v, str) else str(v) for v in found]
        for i, (value, text) in enumerate(zip(found, made, strict=True)):
            if not isinstance(value, str | int | float):
                raise InputError(f"{what}: {name} in row {i} is {_kind(value)}, not text.")
            if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                raise InputError(f"{what}: {name} in row {i} has a surrogate (half a character).")
        return made

    def first(self) -> Any:
        """The first value that is not None, or None."""
        if self.cells:
            return next((v for v in self.values() if v is not None), None)
        rows = range(len(self.data))
        return next((v for i in rows if (v := _plain(self.data[i])) is not None), None)

    def require(self, values: Sequence[Any], name: str, what: str) -> None:
        """Raise InputError naming the rows without a value, if there are any."""
        missing = [i for i, v in enumerate(values) if v is None or v != v]
        if missing:
            raise InputError(f"{what}: {name} is null in {listed(missing)}. {_MEND}")

    def numbers(self, name: str, what: str) -> np.ndarray | None:
        """(N,) numbers, or None for other columns. InputError for missing values and mixtures."""
        if self._numbers is None:  # needed twice: to choose roles and to read
            self._numbers = (self._read_numbers(name, what),)
        return self._numbers[0]

    def _read_numbers(self, name: str, what: str) -> np.ndarray | None:
        import numpy as np

        data = self.data
        if hasattr(data, "to_pylist"):
            data = _of_arrow(data, name, what)
            if data is None:
                return None
        if isinstance(data, np.ndarray) and data.dtype.kind in "biuf" and data.ndim == 1:
            if data.dtype.kind == "f":
                self._require_finite(data, name, what)
            return data
        values = self.values()
        if type(values[0]) in (int, float) and {*map(type, values)} <= {int, float, bool}:
            kinds = [True]
        else:
            kinds = [is_number(v) for v in values]
        if not any(kinds):
            if self.cells:
                self._refuse_commas(values, name, what)
            return None
        if not all(kinds):
            self.require(values, name, what)
            i = kinds.index(False)
            raise InputError(
                f"{what}: {name} is a number in some rows, but {_kind(values[i])} in row {i}. "
                f"{_MEND}"
            )
        try:
            made = np.asarray(values, dtype=np.float64)
        except (OverflowError, ValueError, TypeError) as error:
            raise InputError(f"{what}: {name}: {error}.") from None
        self._require_finite(made, name, what)
        return made

    @staticmethod
    def _refuse_commas(values: Sequence[Any], name: str, what: str) -> None:
        """Raise InputError for a column of numbers with decimal commas."""
        found = [v for v in values if v is not None]
        commas = [v for v in found if _COMMA.fullmatch(v)]
        if commas and all(_COMMA.fullmatch(v) or _NUMBER.fullmatch(v) for v in found):
            raise InputError(
                f"{what}: {name} holds {commas[0]!r}, a number with a comma. Write a decimal "
                f"point and no thousands separators, or pass features= to choose other columns."
            )

    @staticmethod
    def _require_finite(values: np.ndarray, name: str, what: str) -> None:
        import numpy as np

        for fault, rows in (("NaN", np.isnan(values)), ("infinite", np.isinf(values))):
            if rows.any():
                raise InputError(
                    f"{what}: {name} is {fault} in {listed(np.flatnonzero(rows).tolist())}. {_MEND}"
                )

    def vectors(self, name: str, what: str) -> np.ndarray:
        """(N, d) or (N, T, d) numbers of a column of vectors or matrices."""
        import numpy as np

        data = self.data
        if isinstance(data, np.ndarray) and data.ndim > 1:
            return data
        if hasattr(data, "to_pylist") and (bulk := _lists_of_arrow(data)) is not None:
            return bulk
        return stacked(self.values(), name, what)


_MEND = "Fill it in, or leave the rows out."


def stacked(values: Sequence[Any], name: str, what: str) -> np.ndarray:
    """Rows of numbers as one array. InputError, naming rows, if their shapes differ."""
    import numpy as np

    shapes: dict[tuple[int, ...], int] = {}
    rows = []
    for i, value in enumerate(values):
        if value is None:
            raise InputError(f"{what}: {name} is null in row {i}. {_MEND}")
        try:
            row = np.asarray(as_numpy(value))
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{what}: {name} in row {i}: {error}.") from None
        if row.dtype.kind not in "biuf":
            raise InputError(f"{what}: {name} in row {i} holds {_kind(value)}; expected numbers.")
        rows.append(row)
        shapes.setdefault(row.shape, i)
    if len(shapes) > 1:
        (one, a), (other, b) = [*shapes.items()][:2]
        raise InputError(
            f"{what}: rows have different shapes: {name} has {_shape(one)} in row {a}, "
            f"{_shape(other)} in row {b}."
        )
    return np.stack(rows)


def listed(rows: Sequence[int]) -> str:
    """Row numbers for a message, at most ten."""
    shown = ", ".join(map(str, rows[:10]))
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def as_numpy(value: Any) -> Any:
    """A torch tensor as an array (bfloat16 as float32); anything else unchanged."""
    if not is_tensor(value):
        return value
    try:
        value = value.detach().cpu()
        return (value.float() if "bfloat" in str(value.dtype) else value).numpy()
    except (RuntimeError, TypeError) as error:  # meta, quantized, ...
        raise InputError(
            f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device} has no values "
            f"to read ({error})."
        ) from None


def is_tensor(value: Any) -> bool:
    """Is it a torch tensor? Does not import torch."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def _plain(value: Any) -> Any:
    """A scalar of numpy, torch or pyarrow as a Python scalar; anything else unchanged."""
    if isinstance(value, str | int | float | list):
        return value
    if hasattr(value, "as_py"):
        return value.as_py()
    if is_time(value):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def is_time(value: Any) -> bool:
    """Are these numpy dates or time spans?"""
    return getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M")


def is_number(value: Any) -> bool:
    """Is it a Python number, or a Decimal?"""
    return isinstance(value, int | float) or type(value).__name__ == "Decimal"


def _kind(value: Any) -> str:
    """Describe a value in a message."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "null" if value is None else f"a {type(value).__name__}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} numbers" if len(shape) == 1 else str(shape)


def _parsed(cells: Sequence[str | None]) -> list[Any]:
    """Parse a CSV column: integers or floats if all cells are, else texts. ``NA`` and similar cells
    among numbers become None."""
    texts = [*cells]
    cells = [None if c is None or c.strip().lower() in _MISSING else c for c in cells]
    found = [c.strip() for c in cells if c is not None]
    if found and all(_INTEGER.fullmatch(c) for c in found):
        return [None if c is None else int(c) for c in cells]
    if found and all(_NUMBER.fullmatch(c) for c in found):
        return [None if c is None else float(c) for c in cells]
    return texts


def _of_arrow(data: Any, name: str, what: str) -> Any:
    """The numbers of an arrow column as an array; None if its type is not numeric."""
    import pyarrow

    types = pyarrow.types
    kind = data.type
    if types.is_decimal(kind):
        data = data.cast(pyarrow.float64())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return None
    if data.null_count:
        missing = [i for i, v in enumerate(data.is_null().to_pylist()) if v]
        raise InputError(f"{what}: {name} is null in {listed(missing)}. {_MEND}")
    return data.to_numpy()


def _lists_of_arrow(data: Any) -> np.ndarray | None:
    """(N, d) from lists of equal length without nulls, read in bulk; None for anything else."""
    import pyarrow
    from pyarrow import compute

    kind = data.type
    lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not (lists or pyarrow.types.is_fixed_size_list(kind)) or data.null_count:
        return None
    value = kind.value_type
    if not (pyarrow.types.is_floating(value) or pyarrow.types.is_integer(value)):
        return None
    lengths = compute.list_value_length(data).unique().to_pylist()
    flat = compute.list_flatten(data)
    if len(lengths) != 1 or flat.null_count:
        return None
    made: np.ndarray = flat.to_numpy().reshape(len(data), lengths[0])
    return made


# --- a table of columns ---------------------------------------------------------------------------


@dataclass(eq=False)
class Columns:
    """Named columns in order, and what is known about them besides their values."""

    columns: dict[str, Column]
    count: int
    folder: Path | None = None
    """The folder that image paths are relative to; None: the current folder."""
    ids: list[Any] | None = None
    """The rows' ids, if they are not in a column."""
    index: tuple[str, ...] = ()
    """Columns that are a DataFrame's index."""
    only: tuple[str, ...] | None = None
    """Columns that may be inputs, if the data set selects some."""
    rows: Any = field(default=None, repr=False)
    """The user's own rows by index; None: rows are mappings of the columns."""

    def __len__(self) -> int:
        return self.count

    def row(self, i: int) -> Any:
        """One of the user's own rows."""
        if self.rows is not None:
            return self.rows[i]
        return {name: column.take([i])[0] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Roles:
    """The role of each column."""

    kind: str
    """features, image, text, language or custom."""
    inputs: tuple[str, ...]
    """One column, or several of numbers; for language the prompt's, then the response's."""
    label: str | None = None
    source: str | None = None
    id: str | None = None
    text: str | None = None
    """For images and features: the column of captions."""
    notes: tuple[str, ...] = ()


def roles(
    table: Columns,
    what: str,
    features: str | Sequence[str] | None = None,
    label: str | None = None,
) -> Roles:
    """The role of each column; the InputError lists the columns and says what to do."""
    return _Decision(table, what, features, label).made()


class _Decision:
    def __init__(self, table: Columns, what: str, features: Any, label: str | None) -> None:
        self.table, self.what = table, what
        self.names = list(table.columns)
        self.chosen = None if features is None else self._chosen(features)
        if label is not None:
            self._known("label", label)
        self.label = label if label is not None else self._label()
        self.source = self._named("source", self.names)
        self.id = next((n for n in table.index if n in table.columns), None) or self._named(
            "id", self.names
        )
        apart = {*table.index, self.label, self.source, self.id}
        self.free = [
            n for n in self.names if n not in apart and (table.only is None or n in table.only)
        ]

    def made(self) -> Roles:
        if self.chosen is not None:
            return self._of_chosen(self.chosen)
        named = {f: self._named(f, self.free) for f in ("image", "features", "messages", "text")}
        caption = named["text"]
        if (name := named["image"]) is not None:
            return self._roles("image", name, text=caption)
        if (name := named["features"]) is not None and self._is_vector(name):
            return self._roles("features", name, text=caption)
        prompts = [n for f in FIELDS["prompt"] if (n := self._same(f, self.free)) is not None]
        response = self._named("response", self.free)
        if named["messages"] is not None or (prompts and response is not None):
            return self._language(named["messages"], prompts, response)
        name = caption or (prompts[0] if prompts else None)
        if name is not None:
            column = self.table.columns[name]
            if (column.cells and name == caption) or not is_number(column.first()):
                return self._text(name)
        if any(n.lower() in TENSORS for n in self.names):
            return Roles("custom", ())
        return self._flat()

    def _roles(self, kind: str, *inputs: str, text: str | None = None, notes: Any = ()) -> Roles:
        return Roles(kind, inputs, self.label, self.source, self.id, text, tuple(notes))

    def _language(self, messages: str | None, prompts: list[str], response: str | None) -> Roles:
        notes = []
        if self.label is not None:
            notes.append(
                f"{self.what}: the column {self.label} is not used: rows of prompt and response "
                "are language. Pass features= and label= to learn classes."
            )
        self.label = None
        if messages is not None:
            return self._roles("language", messages, notes=notes)
        assert response is not None
        both = [n for n in prompts if n.lower() in ("instruction", "input")]  # the instruction
        asked = both if len(both) == 2 else prompts[:1]  # applies to the input
        return self._roles("language", *asked, response, notes=notes)

    def _text(self, name: str) -> Roles:
        if self.label is not None:
            return self._roles("text", name)
        others = [n for n in self.free if n != name]
        if others:
            raise InputError(
                f"{self.what} has the columns {_join(self.names)}, and none of them is named like "
                f"a label. Pass label={others[0]!r} if that is the label; for a language model "
                f"on {name} alone pass features={name!r}."
            )
        return self._roles("language", name)

    def _flat(self) -> Roles:
        """Columns of numbers, else the single text column next to a label."""
        columns = self.table.columns
        numeric = [n for n in self.free if columns[n].numbers(n, self.what) is not None]
        others = [n for n in self.free if n not in numeric]
        if numeric:
            if rows := [n for n in others if self._is_vector(n)]:
                raise InputError(
                    f"{self.what}: {rows[0]} holds vectors, but {_join(numeric)} one number in "
                    f"each row. Pass features= to choose one kind, and label=."
                )
            notes = []
            if others:
                notes.append(
                    f"{self.what}: left out {_some(others, 'column')} without numbers: "
                    f"{_join(others)}. Pass features= to choose."
                )
            return self._roles("features", *numeric, notes=notes)
        if len(others) == 1 and self.label is not None:
            kind = kind_of(columns[others[0]].first())
            if kind != "custom":
                return self._roles(kind, others[0])
        raise InputError(
            f"{self.what} has the columns {_join(self.names)}: expected image, features, text, "
            "prompt and response, or columns of numbers, and a label for classes. Pass column "
            "names as features= and label=."
        )

    def _of_chosen(self, chosen: list[str]) -> Roles:
        columns = self.table.columns
        if self.label in chosen:
            self.label = None
        if len(chosen) > 1:
            for name in chosen:
                if columns[name].numbers(name, self.what) is None:
                    raise InputError(
                        f"{self.what}: features={_join(chosen)}: {name} has no numbers. Several "
                        f"columns must all be numeric; of texts or images give one."
                    )
            return self._roles("features", *chosen)
        name = chosen[0]
        kind = kind_of(columns[name].first())
        if kind == "text" and (name.lower() in FIELDS["image"] or _all_pictures(columns[name])):
            kind = "image"
        if kind == "custom":
            raise InputError(
                f"{self.what}: features={name!r} holds {_kind(columns[name].first())}; expected "
                "numbers, rows of numbers, texts or images."
            )
        if kind == "text" and self.label is None:
            kind = "language"
        return self._roles(kind, name)

    def _chosen(self, features: Any) -> list[str]:
        if isinstance(features, str):
            whole = features in self.names
            features = [features] if whole else [n.strip() for n in features.split(",")]
        if not (isinstance(features, Sequence) and features) or not all(
            isinstance(n, str) for n in features
        ):
            raise OptionError(f"features={features!r:.60}: expected column names.")
        for name in features:
            self._known("features", name)
        return list(dict.fromkeys(features))

    def _known(self, option: str, name: Any) -> None:
        if name not in self.names:
            near = difflib.get_close_matches(str(name), self.names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{option}={name!r}: {self.what} has the columns {_join(self.names)}.{hint}"
            )

    def _label(self) -> str | None:
        found = [n for f in FIELDS["label"] for n in self.names if n.lower() == f]
        found = [n for n in found if n not in (self.chosen or ())]
        strong = [n for n in found if n.lower() != "y"]  # next to another label, y is a coordinate
        if len(strong) > 1:
            raise InputError(
                f"{self.what}: each of the columns {_join(strong)} is named like a label. "
                f"Pass label={strong[0]!r} or another."
            )
        return next(iter(strong or found), None)

    def _is_vector(self, name: str) -> bool:
        return kind_of(self.table.columns[name].first()) == "features" and not is_number(
            self.table.columns[name].first()
        )

    def _named(self, role: str, among: Sequence[str]) -> str | None:
        return next((n for f in FIELDS[role] if (n := self._same(f, among)) is not None), None)

    @staticmethod
    def _same(name: str, among: Sequence[str]) -> str | None:
        return next((n for n in among if n.lower() == name), None)


def kind_of(value: Any) -> str:
    """The kind of one value: features, image, text or custom."""
    if isinstance(value, str):
        return "text"
    if is_picture(value):
        return "image"
    if is_number(value):
        return "features"
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        return {1: "features", 2: "features", 3: "image"}.get(value.ndim, "custom")
    if isinstance(value, list | tuple) and value:
        inner = value[0]
        return "features" if kind_of(inner) == "features" else "custom"
    return "custom"


def is_picture(value: Any) -> bool:
    """Is it an image: bytes, the mapping of ``datasets``, a path, or a PIL image?"""
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & {*value})
    if isinstance(value, Path):
        return value.suffix.lower() in ENDINGS
    return isinstance(value, bytes) or (hasattr(value, "getexif") and hasattr(value, "mode"))


def names_picture(value: Any) -> bool:
    """Is it text that ends like the path of an image?"""
    return isinstance(value, str) and len(value) < 4096 and value.lower().endswith(ENDINGS)


def _all_pictures(column: Column) -> bool:
    return all(names_picture(v) for v in column.values())


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _some(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) > 1)}"
