"""Reads files and folders of rows as columns: CSV, JSON(L), numpy, safetensors, parquet,
pictures."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .columns import Column, Columns
from .errors import InputError, MissingDependencyError, WeightsError
from .frames import arrow, records, refuse_twice, table
from .images import hidden, listed

PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
ENDINGS = (
    ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".npy", ".npz", ".safetensors", ".parquet",
    ".arrow",
)  # fmt: skip
"""Endings of files that hold rows."""
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


def opened(path: Path, what: str) -> Any:
    """``Columns``, or an array from a file without column names.

    Raises InputError naming the file, and the line or row if there is one.
    """
    if path.is_dir():
        return _folder(path, what)
    ending = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{what}: there is no file or folder {path}.")
    if ending in (".jsonl", ".ndjson"):
        return records(_jsonl(path, what), what, folder=path.parent)
    if ending == ".json":
        return _json(path, what)
    if ending in (".csv", ".tsv"):
        return _csv(path, what)
    if ending in (".npy", ".npz"):
        return _numpy(path, what)
    if ending == ".safetensors":
        return _safetensors(path, what)
    if ending in (".parquet", ".arrow"):
        return arrow(_arrow([path], what), what, path.parent)
    if ending in PICKLED:
        raise InputError(
            f"{what}: {path} may hold pickled code and is not opened. Save the array with np.save, "
            "or the tensors as safetensors."
        )
    raise InputError(
        f"{what}: {path} is neither a file of type {', '.join(ENDINGS)} nor a folder of images "
        f"by class. "
        "Save it as CSV or parquet."
    )


def lines(path: str | Path, what: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank, split at newlines only."""
    return [line for _, line in _numbered(Path(path), what)]


# --- text -----------------------------------------------------------------------------------------


def _text(path: Path, what: str) -> str:
    """A UTF-8 file, with or without a byte-order mark; line ends are kept."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read: {error.strerror}.") from None
    marks = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        other = marks.get(content[:2])
        line = content.count(b"\n", 0, error.start) + 1
        why = f"it is {other}" if other else f"byte {content[error.start]:#04x} in line {line}"
        raise InputError(
            f"{what}: {path} cannot be read as UTF-8 ({why}). Save it as UTF-8."
        ) from None


def _numbered(path: Path, what: str) -> list[tuple[int, str]]:
    found = enumerate(_text(path, what).split("\n"), 1)
    return [(number, line.removesuffix("\r")) for number, line in found if line.strip()]


def _jsonl(path: Path, what: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in _numbered(path, what):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{what}: {path}, line {number} cannot be read as JSON: {error}."
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{what}: {path}, line {number}: expected an object such as "
                f'{{"text": "...", "label": 0}}, found a {type(row).__name__}.'
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{what} is empty: {path} has no rows.")
    return rows


def _json(path: Path, what: str) -> Any:
    try:
        found = json.loads(_text(path, what))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {path} cannot be read as JSON: {error}.") from None
    if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
        return records(found, what, folder=path.parent)
    if isinstance(found, dict) and found and all(isinstance(v, list) for v in found.values()):
        return table(found, what, folder=path.parent)
    if isinstance(found, list) and found and all(isinstance(row, list) for row in found):
        return found
    raise InputError(
        f"{what}: {path}: expected a list of objects, one for each row, or an object of columns. "
        "In pandas: df.to_json(path, orient='records')."
    )


def _csv(path: Path, what: str) -> Any:
    text = _text(path, what)
    head = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").split("\n", 1)[0])
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    spaced = len(names := head.split(delimiter)) > 1 and all(n.startswith(" ") for n in names[1:])
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # texts may be long
    try:
        reader = csv.reader(
            io.StringIO(text, newline="\n"),
            delimiter=delimiter,
            skipinitialspace=spaced,  # if the header has a space after each delimiter
            strict=True,
        )
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{what}: {path}, line {reader.line_num}: {error}.") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise InputError(f"{what} is empty: {path} has no rows.")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise InputError(
                f"{what}: {path}, line {number}: {len(row)} cells, but the first line has {width}."
            )
    numbers = [cell.strip() for cell in rows[0][1] if _number(cell)]
    if len(numbers) == width:  # an array, as np.savetxt writes it
        if width > 1 and numbers == [*map(str, range(width))]:
            start = ",".join(numbers[:3]) + ", ..." * (width > 3)
            raise InputError(
                f"{what}: {path} starts with {start}: this may be a header from pandas or a row. "
                f"Name the columns (a,b,...), or use np.save."
            )
        return _matrix(path, rows, what)
    if parts := [n for n in numbers if not n.isdecimal()]:
        raise InputError(
            f"{what}: {path} has {parts[0]} in its first line: is the header missing? Write the "
            f"names of the columns in the first line."
        )
    names = [name.strip() for name in rows[0][1]]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{what}: {path} has the column {twice[0]!r} twice.")
    if len(rows) == 1:
        raise InputError(f"{what} is empty: {path} has a header but no rows.")
    columns = {
        name or "unnamed: 0": Column([row[i] or None for _, row in rows[1:]], cells=True)
        for i, name in enumerate(names)
    }
    return Columns(columns, len(rows) - 1, path.parent)


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _matrix(path: Path, rows: Sequence[tuple[int, list[str]]], what: str) -> Any:
    import numpy as np

    for number, row in rows:
        for cell in row:
            if not _number(cell):
                raise InputError(
                    f"{what}: {path}, line {number}: {cell[:40]!r} is not a number. A file of "
                    f"columns starts with their names."
                )
    return np.array([[float(cell) for cell in row] for _, row in rows])


# --- arrays ---------------------------------------------------------------------------------------


def _numpy(path: Path, what: str) -> Any:
    import numpy as np

    try:
        # np.load goes by content, not by name, and does not close a broken archive
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
            file.seek(0)
            if archive and path.suffix.lower() == ".npz":
                with np.load(file) as found:  # pickled arrays are refused
                    arrays = {name: found[name] for name in found.files}
        if not archive:
            return np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
    except Exception as error:  # zip, header or pickle: numpy raises many kinds
        # numpy's message says how to read Python objects unsafely
        why = "it holds Python objects" if "pickle" in str(error) else error
        raise InputError(f"{what}: {path} is not a plain {path.suffix} array ({why}).") from None
    if path.suffix.lower() != ".npz":
        raise InputError(
            f"{what}: {path} is an .npz archive; expected one array (np.save), or the ending .npz."
        )
    return _one_or_table(arrays, path, what)


def _safetensors(path: Path, what: str) -> Any:
    from .weights import load_tensors

    try:
        return _one_or_table(load_tensors(path), path, what)
    except WeightsError as error:
        raise InputError(f"{what}: {error}") from None


def _one_or_table(arrays: Mapping[str, Any], path: Path, what: str) -> Any:
    if not arrays:
        raise InputError(f"{what}: {path} holds nothing.")
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    return table(arrays, what, folder=path.parent)


# --- arrow ----------------------------------------------------------------------------------------


def _arrow(files: Sequence[Path], what: str) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what}: reading {files[0].suffix} needs pyarrow. "
            "Run: pip install 'edgezoo[data]'", name="pyarrow",
        ) from error  # fmt: skip
    tables = []
    for file in files:
        try:
            if file.suffix.lower() == ".parquet":
                with file.open("rb") as opened_file:
                    refuse_twice(parquet.read_schema(opened_file).names, f"{what}: {file}")
                tables.append(parquet.read_table(file))
            else:
                tables.append(_ipc(pyarrow, file))
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{what}: {file} cannot be read: {error}.") from None
    try:
        found = pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise InputError(f"{what}: the files have different columns: {error}.") from None
    if not len(found):
        raise InputError(f"{what} is empty: {files[0]} has no rows.")
    return found


def _ipc(pyarrow: Any, file: Path) -> Any:
    """An arrow stream, as ``datasets`` writes it, or a Feather V2 file."""
    source = pyarrow.memory_map(str(file))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


# --- folders --------------------------------------------------------------------------------------


def _folder(path: Path, what: str) -> Any:
    files = sorted(p for p in path.iterdir() if not hidden(p))
    if any(p.name == "dataset_dict.json" for p in files):
        splits = ", ".join(p.name for p in files if p.is_dir())
        raise InputError(f"{what}: {path} holds several sets: {splits}. Pass one of these folders.")
    for ending in (".parquet", ".arrow"):
        if found := [p for p in files if p.is_file() and p.suffix.lower() == ending]:
            return arrow(_arrow(found, what), what, path)
    rows = [p for p in files if p.is_file() and p.suffix.lower() in (".jsonl", ".ndjson", ".csv")]
    about = [p for p in rows if p.stem == "metadata"]  # as ``datasets`` names it next to images
    if len(about) == 1:
        return opened(about[0], what)
    classes = [p for p in files if p.is_dir()]
    sets = [p.name for p in classes if p.name.lower() in _SPLITS]
    if len(sets) > 1 and len(sets) == len(classes):
        raise InputError(
            f"{what}: {path} holds several sets: {', '.join(sets)}. Pass one of these folders."
        )
    pictures = [(p, listed(p, below=True)) for p in classes]
    filled = [(p, found) for p, found in pictures if found]
    if not filled and len(rows) == 1:
        return opened(rows[0], what)
    if not filled:
        raise InputError(
            f"{what}: {path} has no rows: expected a folder of images for each class, one .jsonl "
            f"or .csv file, or parquet files."
        )
    beside = [p.name for p in files if p.is_file()] + [p.name for p, f in pictures if not f]
    if beside:
        some = ", ".join(beside[:5]) + (", ..." if len(beside) > 5 else "")
        warnings.warn(
            f"{what}: left out {len(beside)} in {path} that are not folders of images: {some}.",
            stacklevel=2,
        )
    images = [file for _, found in filled for file in found]
    labels = [n for n, (_, found) in enumerate(filled) for _ in found]
    names = [p.name for p, _ in filled]
    return Columns({"image": Column(images), "label": Column(labels, names)}, len(images))
