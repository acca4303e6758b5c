"""Input images: files, folders and patterns; one that cannot be used does not stop the rest."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import InputError

SHOWN = 5


@dataclass(frozen=True)
class Picture:
    """One of the inputs."""

    path: Path
    name: PurePath
    """The name for its result: the file's name, or its path relative to an input folder."""


def pictures(inputs: Sequence[str]) -> list[Picture]:
    """The images that a command line names, each once.

    A folder stands for the images in it and its subfolders. ``*``, ``?`` and ``[...]`` are expanded
    unless a file has exactly that name, because shells on Windows and quotes leave them unexpanded.
    Raises InputError for missing files.
    """
    from .. import images

    found: dict[Path, Picture] = {}
    for text in inputs:
        for path in _expanded(text):
            if path.is_dir():
                inside = images.listed(path, below=True)
                if not inside:
                    raise InputError(f"{path}: there are no images in this folder.")
                for file in inside:
                    found.setdefault(file, Picture(file, file.relative_to(path)))
            elif path.exists():
                found.setdefault(path, Picture(path, PurePath(path.name)))
            else:
                raise InputError(f"{path}: there is no such file or folder.")
    return list(found.values())


def numbered(names: Iterable[PurePath]) -> list[PurePath]:
    """The names in order, with a number for repeated ones: ``a.png``, ``a-2.png``.

    Case is ignored, as in some file systems.
    """
    names = list(names)
    taken = {str(name).casefold() for name in names}
    used: dict[str, int] = {}  # name -> the last number
    made = []
    for name in names:
        key, unique = str(name).casefold(), name
        number = used.get(key, 0) + 1
        while number > 1:
            unique = name.with_stem(f"{name.stem}-{number}")
            if str(unique).casefold() not in taken:
                break
            number += 1
        used[key] = number
        taken.add(str(unique).casefold())
        made.append(unique)
    return made


def _expanded(text: str) -> list[Path]:
    if not text:  # an unset variable; as a path it would be the current folder
        raise InputError("an input is empty. Name a file or folder; . is the current one.")
    if Path(text).exists() or not glob.has_magic(text):
        return [Path(text)]
    # Path.glob accepts no absolute pattern
    found = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207
    if not found:
        raise InputError(f"{text}: no file matches.")
    return found


class Failures:
    """Collects inputs that failed, to report them at the end."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: list[InputError] = []

    @contextmanager
    def of(self, path: Path) -> Iterator[None]:
        """Keep an InputError of the body for ``report``; with one input it is raised at once."""
        try:
            yield
        except InputError as error:
            if self._count == 1:
                raise
            self.keep(error)

    def keep(self, error: InputError) -> None:
        """Keep an error for ``report``."""
        self._found.append(error)

    def report(self) -> None:
        """Raise an InputError that names the first few, if there are any."""
        if self._found:
            shown = " ".join(str(error) for error in self._found[:SHOWN])
            more = len(self._found) - SHOWN
            raise InputError(
                f"{len(self._found)} of {self._count} images could not be used: {shown}"
                + (f" And {more} more." if more > 0 else "")
            )


def several(found: Sequence[Picture], inputs: Sequence[str]) -> bool:
    """Whether results need a folder: for several pictures, and for a folder however many it has."""
    return len(found) > 1 or Path(inputs[0]).is_dir()


def one_picture(found: Sequence[Picture], inputs: Sequence[str], out: Path) -> bool:
    """Whether ``-o`` names a picture, not a folder. Raises OutputError if there are several."""
    from ..errors import OutputError
    from ..pictures import WRITABLE

    if out.is_dir() or out.suffix.lower() not in WRITABLE:
        return False
    if several(found, inputs):
        raise OutputError(f"{out} is one file, but there are {len(found)} inputs. Give a folder.")
    return True
