"""Features in: what ``zoo.tables`` reads to checked float32 rows, with errors for people."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import tables
from zoo.errors import InputError
from zoo.images import ENDINGS, listed
from zoo.tables import Table

from .lfa import ENOUGH, Rows, at_once, chunks

POOLS = ("mean", "max", "crops")
SMALL = 2**24
"""Numbers that are kept in memory as float32: 64 MB."""


class Stream:
    """(N,d) float32 rows of an array that is converted where it is read, such as a mapped file."""

    ndim = 2

    def __init__(
        self,
        array: Any,
        pool: str,
        device: str | torch.device,
        steps: tuple[Callable[[Tensor], Tensor], ...] = (),
    ) -> None:
        self.array, self.pool, self.steps = array, pool, steps
        self.device = torch.device(device)
        self.shape = (int(array.shape[0]), int(array.shape[-1]))

    @property
    def is_small(self) -> bool:
        """Does a copy of all rows cost little?"""
        return self.shape[0] * self.shape[1] <= SMALL

    def then(self, step: Callable[[Tensor], Tensor]) -> Stream:
        """The rows after one more step."""
        return Stream(self.array, self.pool, self.device, (*self.steps, step))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any, /) -> Tensor:
        if isinstance(which, Tensor) and not isinstance(self.array, Tensor):
            which = which.cpu().numpy()
        elif isinstance(which, Tensor):
            which = which.to(self.array.device)
        rows = pooled(as_float32(self.array[which], self.device), self.pool)
        for step in self.steps:
            rows = step(rows)
        return rows


def as_float32(part: Any, device: str | torch.device) -> Tensor:
    """A part of an array or tensor, of any stride or byte order."""
    if not isinstance(part, Tensor):
        with np.errstate(over="ignore"):  # named by ``rows_of``, as infinity
            part = torch.from_numpy(np.array(part, dtype=np.float32))
    return part.detach().to(device=device, dtype=torch.float32)


def pooled(rows: Tensor, pool: str) -> Tensor:
    """Frames (n,T,d) to (n,d); crops stay (n,T,d)."""
    if rows.ndim == 2 or pool == "crops":
        return rows
    return rows.amax(1) if pool == "max" else rows.mean(1)


def numbers(value: Any, what: str, columns: Sequence[str] = ()) -> Any:
    """The array or tensor that ``value`` is, names or has in its columns; None for no numbers.

    ``columns``: those of the fit, where they had names: the same are taken, in the same order.
    """
    found = tables.array(value, what)
    if isinstance(value, list | tuple) and found is not None and found.dtype.kind in "iu":
        return found.astype(np.float32)
    if found is None and has_columns(value):
        table = tables.read(value, what=what, features=columns or None)
        return table.array if table.kind == "features" else None
    return found


def has_columns(value: Any) -> bool:
    """A file or folder of rows, a frame, a data set, records: what ``tables.read`` has to read."""
    if isinstance(value, str | Path):
        return Path(value).is_dir() or Path(value).suffix.lower() in tables.ENDINGS
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) or hasattr(value, "column_names") or hasattr(value, "columns")


def table_of(images: Any, features: Any, label: Any) -> Table | None:
    """Rows of images or features with their texts or labels; None where there are no columns."""
    picture = isinstance(images, str | Path) and Path(images).suffix.lower() in ENDINGS
    named = features is not None or label is not None
    if not named and (picture or tables.array(images, "images") is not None):
        return None
    if not (named or isinstance(images, str | Path) or has_columns(images)):
        return None
    table = tables.read(images, what="images", features=features, label=label)
    if table.kind not in ("features", "image"):
        raise InputError(
            f"images: the rows are {table.kind} ({', '.join(table.columns)}); expected features or "
            "images, with text or label."
        )
    return table


def unlabelled(images: Any) -> Any:
    """A folder of photos as a list of them in the order of ``zoo.images.listed``, subfolders
    included; anything else, and a data set (parquet, or images with a metadata file), unchanged."""
    if not isinstance(images, str | Path) or not Path(images).is_dir():
        return images
    inside = [file for file in Path(images).iterdir() if file.suffix.lower() in tables.ENDINGS]
    if any(f.stem == "metadata" or f.suffix.lower() in (".parquet", ".arrow") for f in inside):
        return images
    return listed(images, below=True) or images


def named_by(table: Table, texts: Any) -> tuple[Any, Any]:
    """(texts, labels) of a table's rows: the caller's texts, or those that it holds itself.

    A folder for each class declares classes. Texts with the same names are matched by name, in any
    order; other texts are taken in the order of the folders. Raises InputError for anything between
    the two, which would be matched wrongly, and for another number of texts.
    """
    if texts is None:
        if table.labels is not None:
            return [_spaced(name) for name in table.classes], table.codes
        return distinct(table.texts) if table.texts is not None else (None, None)
    if not table.declared or table.codes is None:
        return texts, table.labels
    names = [_spaced(name) for name in table.classes]
    given = [_spaced(text) for text in texts] if are_strings(texts) else []
    if {*names} <= {*given}:
        return texts, np.asarray([given.index(name) for name in names])[table.codes]
    shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    if not isinstance(texts, str | Path) and len(texts) != len(names):
        raise InputError(
            f"texts: {len(texts)} for the {len(names)} classes {shown}; expected one for each."
        )
    moved = [name for name in {*names} & {*given} if names.index(name) != given.index(name)]
    if moved:
        raise InputError(
            f"texts: {min(moved)!r} is not at the place of its class. Other words than the names "
            f"of the classes are expected in their order: {shown}."
        )
    return texts, table.codes


def _spaced(name: str) -> str:
    """The name of a folder as words."""
    return name.replace("_", " ")


def are_strings(texts: Any) -> bool:
    """Is it a list of at least one string?"""
    return (
        isinstance(texts, list | tuple) and bool(texts) and all(isinstance(t, str) for t in texts)
    )


def distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Classes and labels of one text for each row: equal texts are one class."""
    known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(known), [known[text] for text in texts]


def marginals_of(values: Sequence[float] | None, classes: int) -> Tensor | None:
    """(C,) float64 shares of the classes; None where the caller gave none."""
    if values is None:
        return None
    try:
        found = torch.as_tensor(np.asarray(values, dtype=np.float64))
    except (ValueError, TypeError):
        found = torch.empty(0)
    if found.shape != (classes,) or not bool((found > 0).all()) or not bool(found.isfinite().all()):
        raise InputError(f"marginals: expected {classes} positive numbers, one for each class.")
    return found


def rows_of(array: Any, what: str, *, pool: str = "mean", device: str = "cpu") -> Any:
    """(N,d) float32 rows, not yet of unit norm; for ``pool="crops"`` (N,T,d) stays so.

    (N,T,d) is frames of N videos (or crops of N images), combined by mean or maximum. A tensor
    where the rows are few, else a ``Stream``, so that a mapped file costs next to no memory. Raises
    InputError for other shapes, whole numbers, NaN, infinity and rows of zeros.
    """
    floating = (
        array.is_floating_point() if isinstance(array, torch.Tensor) else array.dtype.kind == "f"
    )
    if isinstance(array, torch.Tensor) and array.layout != torch.strided:
        raise InputError(f"{what}: a sparse tensor; expected a dense one. Use .to_dense().")
    if array.ndim not in (2, 3) or not floating:
        raise InputError(
            f"{what}: {array.dtype} of shape {tuple(array.shape)}; expected floats (rows, columns)"
            ", or (rows, frames, columns), such as x.astype('float32')."
        )
    if 0 in array.shape:
        raise InputError(f"{what}: shape {tuple(array.shape)}: there is nothing in it.")
    keep = array.ndim == 3 and pool == "crops"
    bad: list[int] = []
    empty: list[int] = []
    for part in chunks(array.shape[0]):
        piece = pooled(as_float32(array[part], device), pool)
        flat = piece.flatten(1)
        bad += (part.start + (~flat.norm(dim=1).isfinite()).nonzero()[:, 0]).tolist()
        low = piece.abs().amax(-1)
        empty += (part.start + (low.reshape(len(low), -1) == 0).any(1).nonzero()[:, 0]).tolist()
    for rows, fault in ((bad, "NaN, infinity or numbers beyond float32"), (empty, "only zeros")):
        if rows:
            raise InputError(f"{what}: {fault} in {_listed(rows)}. Leave these rows out.")
    if keep:
        return as_float32(array, device)
    stream = Stream(array, pool, device)
    return stream[:] if stream.is_small else stream


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:10]))
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def ensemble(texts: Any, device: str = "cpu") -> Tensor:
    """(C,d) unit rows of (C,d) or (C,T,d): T templates normalised, averaged, normalised (eq. 2)."""
    rows: Tensor = rows_of(texts, "text features", pool="crops", device=device)[:]
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return torch.nn.functional.normalize(rows.mean(1), dim=-1) if rows.ndim == 3 else rows


def labels_of(labels: Any, rows: int, names: Sequence[Any], classes: int) -> Tensor:
    """(N,) int64 labels in 0..C-1, from whole numbers or from names among ``names``, which may be
    numbers themselves."""
    if isinstance(labels, str | Path):
        if Path(labels).suffix.lower() not in tables.ENDINGS:
            raise InputError(f"labels: {str(labels)!r}; expected {rows} labels, or a .npy file.")
        found = tables.array(labels, "labels")
        labels = tables.read(labels, what="labels").labels if found is None else found
        labels = labels.reshape(-1) if getattr(labels, "shape", ())[1:] == (1,) else labels
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if hasattr(labels, "tolist") and getattr(labels.dtype, "kind", "O") not in "iufmM":
        labels = labels.tolist()  # not dates, which would become whole numbers
    if isinstance(labels, list | tuple) and any(isinstance(label, str) for label in labels):
        if not names:
            raise InputError(
                "labels are strings and the texts features: expected whole numbers, or classes= "
                "with the name of each text."
            )
        known = {name: i for i, name in enumerate(names)}
        unknown = sorted({str(label) for label in labels if label not in known})
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"labels: {', '.join(map(repr, unknown[:5]))} not among the {len(known)} classes."
                + hint
            )
        labels = [known[label] for label in labels]
    try:
        found = np.asarray(labels)
    except ValueError as error:
        raise InputError(f"labels: expected ({rows},) whole numbers ({error}).") from None
    if found.size and found.dtype.kind == "f":
        whole = np.isfinite(found) & (found == np.round(found))
        if not whole.all():
            rows_of_it = np.flatnonzero(~whole.reshape(len(found), -1).all(1)).tolist()
            raise InputError(f"labels: no whole numbers in {_listed(rows_of_it)}; expected {rows}.")
        found = found.astype(np.int64)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iub"):
        raise InputError(
            f"labels: {found.dtype} of shape {found.shape}; expected ({rows},) whole numbers."
        )
    if len(found) != rows:
        raise InputError(f"{len(found)} labels for {rows} images; expected one for each.")
    if names and not isinstance(names[0], str):
        number = {int(name): i for i, name in enumerate(names)}
        unknown = sorted({*found.tolist()} - {*number})
        if unknown:
            raise InputError(f"labels: {unknown[:5]} are not among the {classes} classes.")
        found = np.asarray([number[value] for value in found.tolist()])
    out = np.flatnonzero((found < 0) | (found >= classes))
    if len(out):
        values = ", ".join(map(str, sorted({int(found[i]) for i in out})[:5]))
        raise InputError(
            f"labels {values} at {_listed(out.tolist())}: expected 0 to {classes - 1}, numbers of "
            f"the {classes} texts."
        )
    return torch.from_numpy(found.astype(np.int64))


def warn_of(y: Tensor, labels: Tensor, names: Sequence[Any]) -> list[str]:
    """Say (as warnings, and for the report) what is allowed and yet probably not meant."""

    def name(i: int) -> str:
        return repr(names[i]) if i < len(names) else str(i)

    notes = []
    missing = (torch.bincount(labels.cpu(), minlength=len(y)) == 0).nonzero()[:, 0].tolist()
    if missing:
        shown = ", ".join(map(name, missing[:5])) + (" ..." if len(missing) > 5 else "")
        notes.append(
            f"{len(missing)} of {len(y)} classes have no image: {shown}. The map serves them too."
        )
    if len(y) <= 4096:
        same = torch.triu(y @ y.T > 1 - 1e-6, diagonal=1).nonzero()
        if len(same):
            a, b = (int(i) for i in same[0])
            notes.append(f"classes {name(a)} and {name(b)} have the same text features.")
    for note in notes:
        warnings.warn(note, stacklevel=4)  # warn_of, align, its decorator
    return notes


def by_chance(x: Rows, y: Tensor, labels: Tensor) -> bool:
    """Is zero-shot within two standard errors of guessing, on rows x (N,d) or (N,T,d)?"""
    centre = x[:, -1] if x.ndim == 3 else x
    some = torch.arange(0, len(x), -(-len(x) // ENOUGH), device=x.device)
    right = sum(
        int(((centre[rows] @ y.T).argmax(1) == labels[rows]).sum())
        for rows in some.split(at_once(y))
    )
    chance = 1 / len(y)
    bar = chance + 2 * (chance * (1 - chance) / len(some)) ** 0.5
    return bar < 1 and right / len(some) <= bar
