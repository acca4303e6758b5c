"""What a registry entry says about a model or a base; options check their values."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import OptionError

API_VERSION = 1
"""What a registry file's ``zoo_api`` must be; a plugin made for another version is not loaded."""
BASE_KINDS = ("transformers", "diffusers", "timm", "open_clip")
NEEDS = ("build", "train", "bench", "load")


@dataclass(frozen=True)
class Option:
    """A declared option: its type, its default and the values it takes."""

    name: str
    type: str
    """``float``, ``int``, ``bool``, ``str`` or ``choice``."""
    default: Any = None
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""

    def check(self, value: Any) -> Any:
        """The value in its declared type, with text parsed as on the command line; or OptionError.

        ``WORDS`` are booleans in any case. An option without a default may be None.
        """
        if self.default is None and (value is None or self._is_none(value)):
            return None
        parsed = self._read(value)
        if parsed is None:
            raise OptionError(f"option {self.name}={value!r}: expected {self.expected}.")
        if (self.min is not None and parsed < self.min) or (
            self.max is not None and parsed > self.max
        ):
            raise OptionError(f"option {self.name}={value!r} is out of range: {self.expected}.")
        return parsed

    def _read(self, value: Any) -> Any:
        if self.type == "choice":
            return value if isinstance(value, str) and value in self.choices else None
        if self.type == "str":
            return value if isinstance(value, str) else None
        if self.type == "bool":
            return value if isinstance(value, bool) else WORDS.get(str(value).lower())
        if isinstance(value, bool):
            return None
        try:
            if self.type == "int":
                return int(value) if isinstance(value, str) else operator.index(value)
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def _is_none(self, value: Any) -> bool:
        """Is it text for None, and the option one that does not take text?"""
        number = self.type not in ("str", "choice")
        return number and isinstance(value, str) and value.lower() in NONE

    @property
    def expected(self) -> str:
        """What the option accepts, in words."""
        if self.type == "choice":
            return "one of " + ", ".join(self.choices)
        words = {"float": "a number", "int": "a whole number", "bool": "true or false"}
        text = words.get(self.type, "text")
        if self.min is not None and self.max is not None:
            return f"{text} from {self.min:g} to {self.max:g}"
        if self.min is not None:
            return f"{text}, at least {self.min:g}"
        return f"{text}, at most {self.max:g}" if self.max is not None else text


WORDS: Mapping[str, bool] = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
NONE = ("none", "null")


@dataclass(frozen=True)
class FileSpec:
    """One file of a model: its path, its size and its hash."""

    path: str
    """Relative, with forward slashes: the same in the bundle, the cache and the Hub repository."""
    size: int
    sha256: str
    dtype: str | None = None


@dataclass(frozen=True)
class HubSpec:
    """A Hub repository, pinned to a commit once it is published."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True)
class CheckSpec:
    """A small input and the expected output (``zoo verify``)."""

    input: str
    expected: str
    atol: float


@dataclass(frozen=True)
class BaseSpec:
    """Another model that a method works on."""

    kind: str
    """One of ``BASE_KINDS``: whose classes load it."""
    default: str | None = None
    """A Hub id or a name under ``bases:``."""
    needed: tuple[str, ...] = ()
    """The steps that need it: ``build``, ``train``, ``bench``, or ``load`` (of a saved model);
    empty if it is optional."""


@dataclass(frozen=True)
class Base:
    """A resolved and verified base, as requests carry it."""

    id: str
    """The Hub id, the name under ``bases:``, or the folder."""
    folder: Path | None
    """Complete and verified; None if a saved model no longer needs its base and the base is
    gone."""
    revision: str | None = None
    """The commit of a Hub repository."""
    sha256: str | None = None
    """Hash over the files, for a user's folder."""
    license: str | None = None
    """As its model card or registry entry states it."""

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class CommandSpec:
    """One of a method's own commands: ``run(model, args: list[str]) -> int``."""

    run: str
    help: str


@dataclass(frozen=True)
class TrainingData:
    """A data set that the weights were trained on."""

    name: str
    """A Hub id (``org/name``) if it is on the Hub, so that the card's metadata links to it."""
    license: str


@dataclass(frozen=True)
class CardSpec:
    """The model card's data; its prose is ``about.md`` next to the card."""

    data: tuple[TrainingData, ...] = ()
    training: str = ""
    """The command that trains these weights again."""
    picture: str | None = None
    """The name of an image file next to the card."""


@dataclass(frozen=True)
class Entry:
    """One model of a registry file."""

    name: str
    interface: str
    plugin: str
    """Top-level import package of the plugin that owns it."""
    status: str
    summary: str
    method: str = ""
    size: str | None = None
    domain: str | None = None
    paper: Mapping[str, str] = field(default_factory=dict)
    license: Mapping[str, str] = field(default_factory=dict)
    extra: str | None = None
    params: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    class_: str | None = None
    """``module:Class`` of what ``zoo.load`` returns."""
    options: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)
    """``load``, ``train`` and ``bench`` -> name -> option."""
    bases: Mapping[str, BaseSpec] = field(default_factory=dict)
    """Name -> what the method works on; ``base:`` in the file is one named ``base``."""
    files: tuple[FileSpec, ...] = ()
    hub: HubSpec | None = None
    check: CheckSpec | None = None
    card: CardSpec = CardSpec()
    commands: Mapping[str, CommandSpec] = field(default_factory=dict)
    distribution: str = ""
    """Normalised name of the distribution that provides it; set by the registry."""
    line: int = 0

    def checked_options(self, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every declared option of a verb, with the given values checked and defaults for the rest.

        Raises OptionError for an undeclared name or an invalid value.
        """
        declared = self.options.get(verb, {})
        for name in given:
            if name not in declared:
                known = ", ".join(declared) if declared else "none"
                hint = near(name, declared)
                raise OptionError(
                    f"{self.name} has no option {name!r} for {verb}"
                    + (f"; did you mean {hint[0]!r}?" if hint else ".")
                    + f" It takes: {known}."
                )
        return {
            name: option.check(given[name]) if name in given else option.default
            for name, option in declared.items()
        }


@dataclass(frozen=True)
class BaseEntry:
    """A small base model listed under ``bases:``."""

    name: str
    plugin: str
    summary: str
    files: tuple[FileSpec, ...] = ()
    hub: HubSpec | None = None
    license: Mapping[str, str] = field(default_factory=dict)
    distribution: str = ""


def near(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that look like this one, the nearest first."""
    import difflib

    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
