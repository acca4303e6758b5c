"""Rows of ``zoo.tables`` as this method needs them: pixels, batches, groups, a line of a report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import images
from zoo.errors import InputError
from zoo.tables import Table, plain

# --- labels and groups ----------------------------------------------------------------------------


def numbered(
    train: Sequence[Any] | None, target: Sequence[Any] | None, noun: str
) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Values of both sets as numbers (N,), (M,) into their names; None where a set has none."""
    if train is None:
        return None, None, []
    columns = [plain(train, "train", noun)]
    if target is not None:
        columns.append(plain(target, "target", noun))
    every = {value for column in columns for value in column}
    if all(isinstance(v, int) for v in every):
        names: list[Any] = sorted(every)
    else:
        names = sorted(every, key=str)
    number = {value: i for i, value in enumerate(names)}
    found = [torch.tensor([number[v] for v in column]) for column in columns]
    return found[0], found[1] if len(found) > 1 else None, [str(n) for n in names]


def require_two_classes(train: Table, target: Table) -> None:
    """InputError where all labels of both sets are the same."""
    if train.codes is None or target.codes is None:
        return
    found = {*train.codes.tolist(), *target.codes.tolist()}
    if len(found) == 1:
        raise InputError(
            f"all rows have the label {train.classes[found.pop()]!r}: with one class no label can "
            "look wrong. Add rows of other classes, or name the column of the labels by label=."
        )


def missing(train: Table, target: Table) -> list[str]:
    """Names of the classes that the training set has and the target set lacks."""
    if train.codes is None or target.codes is None:
        return []
    lost = {*train.codes.tolist()} - {*target.codes.tolist()}
    return [str(train.classes[i]) for i in sorted(lost)]


def check_classes(train: Table, target: Table) -> None:
    """InputError for a target set of one class where there are more; a warning for missing ones."""
    if train.codes is None or target.codes is None:
        return
    have, classes = {*target.codes.tolist()}, {*train.codes.tolist()}
    if len(have) == 1 and len(classes) > 1:
        raise InputError(
            f"the target set has one class only ({train.classes[next(iter(have))]!r}), the "
            f"training set {len(classes)}: the network would learn to predict that class for every "
            "row. Add examples of the other classes."
        )
    if lost := missing(train, target):
        some = ", ".join(lost[:10])
        warnings.warn(
            f"the target set has no example of: {some}. A network that starts from the target does "
            "not know these classes: their rows start with a high loss, and if other labels are "
            "wrong, even right rows of these classes can lose nearly all their weight. Add a few "
            "trusted rows of each.",
            stacklevel=3,
        )


# --- one row --------------------------------------------------------------------------------------


def pixels_of(value: Any, side: tuple[int, int] | None = None) -> Tensor:
    """(3,H,W) float in [0,1] of a picture, a tensor (C,H,W) as it is; of uint8 as in a picture.

    ``side`` (width, height) to resize a picture to.
    """
    if isinstance(value, Tensor):
        return value.float() / 255 if value.dtype == torch.uint8 else value.float()
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8 and (value.ndim == 2 or value.shape[-1] in (1, 3, 4)):
            found: Tensor = images.each(value, lambda colours: colours)
            return found
        return pixels_of(torch.from_numpy(np.array(value, value.dtype.newbyteorder("="))))
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    image = images.read(value, "RGB")
    if side is not None and image.size != side:
        image = image.resize(side)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def short(row: Any, length: int = 160) -> str:
    """A row for a report, in one line: a text, or a prompt and its response."""
    parts = row if isinstance(row, tuple) else (row,)
    text = " ".join(" ".join(p for p in parts if isinstance(p, str)).split())
    return text if len(text) <= length else text[: length - 1] + "…"


NAMED_APART = ("id", "label", "labels", "y", "source")
"""Columns that a report shows beside the text of a row."""


def _words(value: Any) -> bool:
    """Is it a text, and no number that was read as one from a file?"""
    try:
        float(value)
    except (TypeError, ValueError):
        return isinstance(value, str)
    return False


def called(row: Any) -> dict[str, str]:
    """What identifies a row for a person: its file, or its text in one line; {} for numbers."""
    if isinstance(row, Mapping):
        for key in ("file_name", "path", "image", "img"):
            value = row.get(key)
            value = value.get("path") if isinstance(value, Mapping) else value
            if isinstance(value, str | Path):
                return {"file": str(value)}
        row = tuple(v for k, v in row.items() if k not in NAMED_APART and _words(v))
    if isinstance(row, tuple) and row and isinstance(row[0], Path):
        row = row[0]
    if isinstance(row, Path):
        return {"file": str(row)}
    parts = row if isinstance(row, tuple) else (row,)
    return {"text": text} if (text := short(tuple(parts))) else {}


def some_of(table: Table, ids: Sequence[int], what: str) -> Table:
    """Some rows of a table as one of their own."""
    index = np.asarray(ids, dtype=np.int64)

    def part(values: Any) -> Any:
        if values is None or hasattr(values, "dtype"):
            return None if values is None else values[index]
        return [values[int(i)] for i in index]

    lists = {name: part(getattr(table, name)) for name in ("labels", "codes", "sources", "ids")}
    inputs, origin = part(table.inputs), part(table.origin)
    if table.inputs is table.origin:
        origin = inputs
    return replace(table, what=what, inputs=inputs, origin=origin, texts=part(table.texts), **lists)


def collated(rows: Sequence[Any]) -> Any:
    """torch's default collation, of the fields that all rows have."""
    from torch.utils.data import default_collate

    if isinstance(rows[0], Mapping):
        shared = set.intersection(*(set(r) for r in rows))
        rows = [
            {k: _ready(r[k]) for k in rows[0] if k in shared and r[k] is not None} for r in rows
        ]
    try:
        return default_collate(list(rows))
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"rows cannot be stacked into a batch: {error}. Training and target rows must be "
            "alike; pass collate=, a function from a list of rows to a batch."
        ) from None


def _ready(value: Any) -> Any:
    """Numbers in a list, such as token ids, as a tensor: a list would be cut across."""
    numbers = isinstance(value, list) and value and isinstance(value[0], int | float)
    return torch.tensor(value) if numbers else value


def per_cent(value: float) -> str:
    """For people."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "?"
