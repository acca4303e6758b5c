"""The entry points of one group, read from the installed distributions.

``importlib.metadata`` finds the same, but importing it takes as long as the rest of ``zoo list``
(it imports email, zipfile and socket), and it parses a distribution's whole description to find its
name. This module therefore reads plain folders on ``sys.path`` itself, by the same rules, and uses
``importlib.metadata`` only if the path has anything else: an archive, or a custom finder.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@dataclass(frozen=True)
class Point:
    """An entry point, and the distribution that declares it."""

    value: str
    distribution: str
    """Its normalised name (PEP 503); "unknown" if its metadata has none."""
    version: str


@dataclass(frozen=True)
class Damage:
    """A distribution whose metadata cannot be read."""

    folder: str
    error: str


def entry_points(group: str) -> tuple[list[Point], list[Damage]]:
    """The entry points of a group, in the order of ``sys.path``, found without importing
    anything."""
    found: list[Point] = []
    damaged: list[Damage] = []
    for folder, read in _folders() if _plain() else _distributions():
        try:
            values = list(_values(read("entry_points.txt"), group))
            if values:
                name, version = _about(read("METADATA") or read("PKG-INFO"))
                found += [Point(value, name, version) for value in values]
        except Exception as error:
            damaged.append(Damage(folder, type(error).__name__))
    return found, damaged


def normalised(name: str) -> str:
    """A distribution's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --- where distributions are ----------------------------------------------------------------------


class _Folder:
    """Reads a file of a ``.dist-info`` or ``.egg-info`` folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, name: str) -> str:
        try:
            with open(f"{self.path}/{name}", encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        except _ABSENT:
            return ""


class _Files:
    """Reads a file of a distribution that ``importlib.metadata`` found."""

    def __init__(self, dist: Distribution) -> None:
        self.dist = dist

    def __call__(self, name: str) -> str:
        return self.dist.read_text(name) or ""


def _plain() -> bool:
    """Are all distributions in folders on the path?"""
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    return finders == [PathFinder] and not any(Path(path).is_file() for path in sys.path)


def _folders() -> Iterator[tuple[str, _Folder]]:
    """Each distribution's folder; the first of two with the same name counts."""
    seen: set[str] = set()
    for path in sys.path:
        try:
            names = os.listdir(path or ".")  # noqa: PTH208  (names are all that is needed)
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                project = normalised(name[: name.rindex(".")].partition("-")[0])
                if project not in seen:
                    seen.add(project)
                    yield name, _Folder(f"{path or '.'}/{name}")


def _distributions() -> Iterator[tuple[str, _Files]]:
    from importlib.metadata import distributions

    seen: set[str] = set()
    for dist in distributions():
        folder = Path(str(getattr(dist, "_path", "unknown"))).name
        project = normalised(folder.rpartition(".")[0].partition("-")[0])
        if project not in seen:
            seen.add(project)
            yield folder, _Files(dist)


# --- what their files say -------------------------------------------------------------------------


def _values(text: str, group: str) -> Iterator[str]:
    """The right-hand sides of a group's lines. Raises ValueError for a line without a ``=``."""
    if group not in text:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif line and not line.startswith("#") and section == group:
            _, equals, value = line.partition("=")
            if not equals:
                raise ValueError(line)
            yield value.strip()


PACKAGES = {
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "open_clip": "open-clip-torch",
}
"""Import package -> distribution, for the packages in zoo's extras whose names differ."""


def extras_with(distribution: str, package: str) -> list[str]:
    """The extras that install an import package, by the installed distribution's metadata."""
    from importlib import metadata

    try:
        needs = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    wanted, found = PACKAGES.get(package, normalised(package)), []
    for need in needs:
        name = re.match(r"[\w.-]+", need)
        extra = re.search(r"""\bextra *== *["']([\w.-]+)""", need)
        if name and extra and normalised(name[0]) == wanted:
            found.append(extra[1])
    return found


def _about(text: str) -> tuple[str, str]:
    """Name and version from the head of a metadata file."""
    head: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        head.setdefault(key.lower(), value.strip())
    return normalised(head.get("name") or "unknown"), head.get("version", "")
