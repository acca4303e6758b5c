"""Files on disk: hashed before they are trusted, written whole or not at all.

A temporary sibling is written and renamed on success; on any error, Ctrl-C included, it is removed
and the previous content stays intact.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError, OutputError, WeightsError, WeightsNotFoundError, ZooError

MANIFEST = "zoo.json"
"""The file that marks a saved model; only a folder with it is ever replaced."""
FORBIDDEN = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
"""Endings of files that can hold pickled code; a folder with one of them is not loaded."""
# Errors of the disk in a body that writes; its other errors are passed on.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: str | Path) -> str:
    """Lower-case hex SHA-256 of a file."""
    with opened(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path, size: int, digest: str) -> None:
    """Compare a file's size, then its SHA-256, with the expected ones. Raises WeightsError."""
    path = Path(path)
    with opened(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise WeightsError(
                f"{path} has {found} bytes, expected {size}: it is cut short or a different file. "
                "Delete it and get it again."
            )
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise WeightsError(
                f"{path} has the right size, but its SHA-256 is not {digest[:12]}...: it is "
                f"damaged or was changed. Delete it and get it again."
            )


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The real path of a file to write; OutputError if writing would fail or replace something.

    Cheap: call it before long work.
    """
    path = Path(path)
    real = _real(path)
    with _in_words(path):
        try:
            mode = real.stat().st_mode
        except FileNotFoundError:
            return real
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder. Give the name of a file in it.")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path} is not a regular file and is not replaced. Choose another.")
    if not overwrite:
        raise _exists(path)
    return real


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path next to ``path`` (same ending) that takes its place on success.

    On any exception the temporary file is removed and the previous content stays intact. Symbolic
    links are followed. Raises OutputError if the folder is missing or cannot be written, or if the
    file exists and ``overwrite`` is False.
    """
    path = Path(path)
    real = check_target(path, overwrite=overwrite)
    temporary = real.with_name(f".zoo-{uuid.uuid4().hex[:12]}{real.suffix}")
    try:
        with _in_words(path):
            temporary.touch(exist_ok=False)
            mode = stat.S_IMODE(temporary.stat().st_mode)
        with _in_words(path, _FULL):
            yield temporary
            temporary.chmod(mode)  # safetensors replaces it by a file that only the owner can read
            _sync(temporary)
        check_target(path, overwrite=overwrite)
        with _in_words(path):
            temporary.replace(real)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise OutputError if ``atomic_folder`` would refuse this path; call it before long work."""
    path = Path(path)
    _check_folder(path, _real(path), overwrite)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder next to ``path`` that takes its place on success.

    An empty folder counts as absent. ``overwrite`` replaces a saved folder (one with ``zoo.json``),
    never any other. On any exception the temporary folder is removed and the previous content stays
    intact. Raises OutputError as ``atomic_file`` does.
    """
    path = Path(path)
    real = _real(path)
    _check_folder(path, real, overwrite)
    temporary = real.with_name(f".zoo-{uuid.uuid4().hex[:12]}")
    aside = real.with_name(temporary.name + "-old")
    try:
        with _in_words(path):
            temporary.mkdir()
        with _in_words(path, _FULL):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
        _check_folder(path, real, overwrite)
        with _in_words(path):
            if real.exists():
                real.rename(aside)
            temporary.rename(real)
    finally:
        if aside.exists() and not real.exists():
            aside.rename(real)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder and its missing parents for a command's output files.

    On any exception the created folders that are still empty are removed. Raises OutputError if the
    path is a file or the folder cannot be created.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        with _in_words(path):
            if path.exists() and not path.is_dir():
                raise OutputError(f"{path} is a file, not a folder. Choose another name.")
            path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it is not empty, or was never created
                folder.rmdir()
        raise


def _check_folder(path: Path, real: Path, overwrite: bool) -> None:
    if not os.path.lexists(real):
        return
    if not real.is_dir():
        raise OutputError(f"{path} is a file, not a folder. Choose another name.")
    if real == Path.cwd():
        raise OutputError(f"{path} is the current folder. Give the name of a new folder in it.")
    with _in_words(path):
        empty = not any(real.iterdir())
    if empty:
        return
    if not overwrite:
        raise _exists(path)
    if not (real / MANIFEST).is_file():
        raise OutputError(
            f"{path} is not a saved model (no {MANIFEST}), so it is not replaced. "
            "Choose another name, or delete it yourself."
        )


def _exists(path: Path) -> OutputError:
    return OutputError(
        f"{path} already exists. Choose another name, or pass overwrite=True / --force."
    )


def _real(path: Path) -> Path:
    """The path without links, so that a link's target is replaced and not the link."""
    with _in_words(path):
        real = Path(os.path.realpath(path))
        if not real.parent.is_dir():
            raise OutputError(
                f"cannot write {path}: {path.parent} is not a folder. Create it first."
            )
        return real


@contextmanager
def _in_words(path: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Turn the system's errors into OutputError; with ``only``, just these error numbers."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ZooError) or (only and getattr(error, "errno", None) not in only):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {path}: {reason}. Choose another place.") from error


def _sync(path: Path) -> None:
    # "r+b": Windows syncs only files that are open for writing.
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark. Raises InputError.

    Lines end at newlines alone: split it by ``"\\n"``, as ``splitlines`` also does at characters
    that a text may contain.
    """
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {path}: {reason}.") from error


def opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise WeightsNotFoundError(f"{path} is missing. Get it again.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {getattr(error, 'strerror', error)}.") from error
