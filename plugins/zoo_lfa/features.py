"""Features in: arrays, tensors, files and lists to checked float32 rows, with errors for people."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.images import hidden, listed
from zoo.weights import load_tensors

from .lfa import chunks

SUFFIXES = (".npy", ".safetensors")
POOLS = ("mean", "max", "crops")


def as_array(value: Any, what: str) -> Any:
    """The float array or tensor that ``value`` is or names, or None where it is no features.

    A ``.npy`` file is mapped, not read; pickled objects in it are refused. A ``.safetensors`` file
    must hold one tensor, or one called ``features`` (labels: ``labels``).
    """
    if isinstance(value, str | Path) and str(value).endswith(SUFFIXES):
        return read_file(Path(value), what)
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O":
            raise InputError(
                f"{what}: an array of Python objects; expected floats. Use .astype(np.float32)."
            )
        image = value.dtype == np.uint8 and value.ndim != 2
        return None if image or value.dtype.kind in "US" else value
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list | tuple) and value and _numbers(value[0]):
        try:
            if isinstance(value[0], torch.Tensor):
                return torch.stack([torch.as_tensor(row).detach().float().cpu() for row in value])
            return np.stack([np.asarray(row, dtype=np.float32) for row in value])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{what}: a list of rows of numbers, but not all are alike ({error})."
            ) from None
    return None


def _numbers(row: Any) -> bool:
    if isinstance(row, np.ndarray | torch.Tensor):
        kind = str(row.dtype).removeprefix("torch.")
        return row.ndim in (1, 2) and kind.startswith(("float", "bfloat"))
    return isinstance(row, list | tuple) and bool(row) and isinstance(row[0], float | int)


def read_file(path: Path, what: str) -> Any:
    """The array of a .npy file (mapped) or the tensor of a .safetensors file."""
    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}.")
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r")  # pickled arrays are refused by default
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{what}: {path} is no plain .npy array ({error}).") from None
        if not isinstance(array, np.ndarray):  # np.load goes by content, not by name
            array.close()
            raise InputError(f"{what}: {path} is an .npz archive; expected one array (np.save).")
        return array
    tensors = load_tensors(path)
    own = "labels" if what == "labels" else "features"
    if own in tensors:
        return tensors[own]
    if len(tensors) != 1:
        names = ", ".join(list(tensors)[:5]) or "nothing"
        raise InputError(
            f"{what}: {path} holds {names}; expected one tensor, or one called {own!r}."
        )
    return next(iter(tensors.values()))


def rows_of(array: Any, what: str, *, pool: str = "mean", device: str = "cpu") -> Tensor:
    """(N,d) float32 rows, not yet of unit norm; (N,T,d) stays so for ``pool="crops"``.

    (N,T,d) is frames of N videos (or crops of N images), combined by mean or maximum. Converted a
    few thousand rows at a time, so a mapped file costs its float32 copy and no more. Raises
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
            ", or (rows, frames, columns)."
        )
    if 0 in array.shape:
        raise InputError(f"{what}: shape {tuple(array.shape)}: there is nothing in it.")
    keep = array.ndim == 3 and pool == "crops"
    shape = tuple(array.shape) if keep else (array.shape[0], array.shape[-1])
    out = torch.empty(shape, dtype=torch.float32, device=device)
    bad: list[int] = []
    empty: list[int] = []
    for part in chunks(shape[0]):
        piece = array[part]
        if not isinstance(piece, torch.Tensor):
            with np.errstate(over="ignore"):  # named below, as infinity
                piece = torch.from_numpy(np.array(piece, dtype=np.float32))  # any stride or order
        piece = piece.detach().to(device=device, dtype=torch.float32)
        if piece.ndim == 3 and not keep:
            piece = piece.mean(1) if pool != "max" else piece.amax(1)
        flat = piece.flatten(1)
        bad += (part.start + (~flat.norm(dim=1).isfinite()).nonzero()[:, 0]).tolist()
        low = piece.abs().amax(-1)
        empty += (part.start + (low.reshape(len(low), -1) == 0).any(1).nonzero()[:, 0]).tolist()
        out[part] = piece
    for rows, fault in ((bad, "NaN, infinity or numbers beyond float32"), (empty, "only zeros")):
        if rows:
            raise InputError(f"{what}: {fault} in {_listed(rows)}. Leave these rows out.")
    return out


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:10]))
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def ensemble(texts: Any, device: str = "cpu") -> Tensor:
    """(C,d) unit rows of (C,d) or (C,T,d): T templates normalised, averaged, normalised (2.1)."""
    rows = rows_of(texts, "text features", pool="crops", device=device)
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return torch.nn.functional.normalize(rows.mean(1), dim=-1) if rows.ndim == 3 else rows


def labels_of(labels: Any, rows: int, names: Sequence[str], classes: int) -> Tensor:
    """(N,) int64 labels in 0..C-1, from whole numbers or from names among ``names``."""
    if isinstance(labels, str | Path):
        if not str(labels).endswith(SUFFIXES):
            raise InputError(f"labels: {str(labels)!r}; expected {rows} labels, or a .npy file.")
        labels = read_file(Path(labels), "labels")
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U":
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(label, str) for label in labels):
        if not names:
            raise InputError("labels are strings and the texts features: expected whole numbers.")
        known = {name: i for i, name in enumerate(names)}
        unknown = sorted({str(label) for label in labels if label not in known})
        if unknown:
            import difflib

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
    if found.size and (found.dtype.kind == "f" and (found == np.round(found)).all()):
        raise InputError(
            f"labels are {found.dtype}; expected whole numbers. Use labels.astype(int)."
        )
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise InputError(
            f"labels: {found.dtype} of shape {found.shape}; expected ({rows},) whole numbers."
        )
    if len(found) != rows:
        raise InputError(f"{len(found)} labels for {rows} images; expected one for each.")
    out = np.flatnonzero((found < 0) | (found >= classes))
    if len(out):
        values = ", ".join(map(str, sorted({int(found[i]) for i in out})[:5]))
        raise InputError(
            f"labels {values} at {_listed(out.tolist())}: expected 0 to {classes - 1}, numbers of "
            f"the {classes} texts."
        )
    return torch.from_numpy(found.astype(np.int64))


def warn_of(y: Tensor, labels: Tensor, names: Sequence[str]) -> list[str]:
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
        warnings.warn(note, stacklevel=4)
    return notes


def by_chance(x: Tensor, y: Tensor, labels: Tensor) -> bool:
    """Is zero-shot within two standard errors of guessing, on rows x (N,d) or (N,T,d)?"""
    centre = x[:, -1] if x.ndim == 3 else x
    right = sum(
        int(((centre[part] @ y.T).argmax(1) == labels[part]).sum()) for part in chunks(len(x))
    )
    chance = 1 / len(y)
    bar = chance + 2 * (chance * (1 - chance) / len(x)) ** 0.5
    return bar < 1 and right / len(x) <= bar


# --- raw rows -------------------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[list[Any], list[str], list[int]]:
    """(images, texts, labels) of a folder with one folder for each class, or of a JSONL file.

    A JSONL row has ``image`` (a path, relative to the file) and ``text``. Folder names become
    texts with underscores as spaces.
    """
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_dir() and not hidden(p))
        images: list[Any] = []
        labels: list[int] = []
        for i, name in enumerate(names):
            found = listed(path / name, below=True)
            images += found
            labels += [i] * len(found)
        if not images:
            raise InputError(f"{path}: expected a folder for each class, with images in it.")
        return images, [name.replace("_", " ") for name in names], labels
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}.")
    images, texts = [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            images.append(path.parent / row["image"])
            texts.append(str(row["text"]))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number}: expected an object with image and text ({error!r})."
            ) from None
    known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return images, list(known), [known[text] for text in texts]
