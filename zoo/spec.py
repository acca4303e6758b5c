"""The schema of registry files: parsed from YAML events, checked, all mistakes reported at once.

YAML is read as events into a tree with line numbers, never through a YAML loader: no tags, anchors
or aliases, no duplicate keys, depth and size bounded. A hostile file can therefore neither run code
nor exhaust the stack or the memory. Scalars get their type from this schema (YAML 1.1 reads
``1e-3`` as text and ``no`` as false); inside ``config`` JSON's rules apply.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .entry import (
    API_VERSION,
    BASE_KINDS,
    NEEDS,
    BaseEntry,
    BaseSpec,
    CardSpec,
    CheckSpec,
    CommandSpec,
    Entry,
    FileSpec,
    HubSpec,
    Option,
    TrainingData,
    near,
)
from .errors import OptionError, RegistryError
from .interfaces import INTERFACES, verbs
from .yamltree import MalformedError, Node, tree

SCHEMA = 1
MAX_BYTES = 256 * 1024
MAX_MISTAKES = 50  # enough to fix a file, short enough to read
STATUSES = ("ready", "untrained", "planned")
SIZES = ("tiny", "full")
OPTION_VERBS = ("load", "train", "bench")
FILE_TYPES = (".safetensors", ".json", ".txt", ".png", ".jpg")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64")

# Names that an option may not have: they are already arguments of the same call.
_RESERVED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "load": frozenset({"name", "weights", "base", "device", "dtype"}),
        "train": frozenset(
            "entry out data seed steps stage resume init device progress options".split()
        ),
        "bench": frozenset("entry out data seed quick device progress options".split()),
    }
)


@dataclass(frozen=True)
class RegistryFile:
    """The checked content of one registry file."""

    path: Path
    zoo_api: int
    models: Mapping[str, Entry] = field(default_factory=dict)
    bases: Mapping[str, BaseEntry] = field(default_factory=dict)


def read(path: Path, *, package: str | None = None) -> RegistryFile:
    """Read and check a registry file.

    ``package`` is the plugin the file belongs to; None means the first-party file, whose entries
    name their plugin themselves. Raises RegistryError with every mistake and its line.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RegistryError(
                f"{path}: {size:,} bytes; a registry file has at most {MAX_BYTES:,}."
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: cannot be read: {error}.") from error
    return parse(text, path=path, package=package)


def parse(text: str, *, path: Path, package: str | None = None) -> RegistryFile:
    """As ``read``, from text; ``path`` is only for messages."""
    if len(text) > MAX_BYTES:
        raise RegistryError(f"{path}: longer than {MAX_BYTES:,} characters.")
    checker = _Checker()
    result = None
    try:
        root = tree(text, checker.wrong)
    except MalformedError as error:
        checker.wrong(error.line, error.text)
    else:
        result = checker.registry(root, path, package)
    if checker.mistakes or result is None:
        mistakes = sorted(set(checker.mistakes))
        shown = [f"  line {line}: {text}" for line, text in mistakes[:MAX_MISTAKES]]
        if len(mistakes) > MAX_MISTAKES:
            shown.append(f"  and {len(mistakes) - MAX_MISTAKES} more")
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise RegistryError("\n".join([f"{path}: {count}", *shown]))
    return result


# --- the schema -----------------------------------------------------------------------------------

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OBJECT = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z_]\w*", re.ASCII)

_MODEL_KEYS = (
    "interface plugin status method size domain summary paper license extra params config class "
    "options base bases files hub check card commands"
).split()
_BASE_KEYS = "plugin summary files hub license".split()
_OPTION_KEYS = "type default min max choices help".split()


class _Checker:
    """Turns the tree into dataclasses and collects mistakes.

    A method that finds a mistake records it and returns a harmless value; no value is used once
    there is a mistake.
    """

    def __init__(self) -> None:
        self.mistakes: list[tuple[int, str]] = []

    def wrong(self, line: int, text: str) -> None:
        """Record a mistake; quotes from the file can neither flood nor control a terminal."""
        text = text if len(text) <= 400 else text[:397] + "..."
        self.mistakes.append((line, "".join(c if c.isprintable() else "\ufffd" for c in text)))

    def unknown(self, line: int, text: str, word: str, known: Sequence[str]) -> None:
        """Record an unknown word, with the most similar known one."""
        hint = near(word, known) if len(self.mistakes) <= MAX_MISTAKES and len(word) <= 64 else []
        also = f"; did you mean {hint[0]!r}?" if hint else f"; known: {', '.join(known)}"
        self.wrong(line, f"{text} {_shortened(word)}{also}")

    # scalars

    def text(self, node: Node | None, what: str, pattern: re.Pattern[str] | None = None) -> str:
        if node is None:
            return ""
        if not isinstance(node.value, str) or node.null:
            self.wrong(node.line, f"{what}: expected text")
            return ""
        if not node.value.isprintable() or len(node.value) > 500:
            self.wrong(node.line, f"{what}: expected one line of at most 500 printable characters")
        elif pattern is not None and not pattern.fullmatch(node.value):
            self.wrong(node.line, f"{what}: {node.value!r} {_MEANING[pattern]}")
        return node.value

    def number(self, node: Node | None, what: str, kind: type[int] | type[float]) -> Any:
        if node is None:
            return None
        try:
            if not (isinstance(node.value, str) and node.plain):
                raise ValueError
            number = kind(node.value)
            if not math.isfinite(number):
                raise ValueError
            return number
        except (ValueError, OverflowError):
            word = "a whole number" if kind is int else "a number"
            self.wrong(node.line, f"{what}: expected {word}, not {_shown(node)}")
            return None

    def choice(self, node: Node | None, what: str, known: Iterable[str]) -> str:
        value = self.text(node, what)
        known = list(known)
        if node is not None and value and value not in known:
            self.unknown(node.line, f"{what}: unknown", value, known)
        return value

    # containers

    def mapping(
        self, node: Node | None, what: str, known: Iterable[str] | None, required: str = ""
    ) -> dict[str, Node]:
        """The children by key; unknown and missing keys are mistakes. ``known`` None: any key."""
        if node is None or (node.null and not required):
            return {}
        if not isinstance(node.value, dict):
            self.wrong(node.line, f"{what}: expected a mapping, not {_shown(node)}")
            return {}
        if known is not None:
            known = list(known)
            for key, child in node.value.items():
                if key not in known:
                    self.unknown(child.line, f"{what}: unknown key", key, known)
        for key in required.split():
            if key not in node.value:
                self.wrong(node.line, f"{what}: {key} is missing")
        return node.value

    def sequence(self, node: Node | None, what: str) -> list[Node]:
        if node is None or node.null:
            return []
        if not isinstance(node.value, list):
            self.wrong(node.line, f"{what}: expected a list, not {_shown(node)}")
            return []
        return node.value

    def json(self, node: Node, what: str) -> Any:
        """A value by JSON's rules: an unquoted scalar is a number or a constant if JSON says so."""
        if isinstance(node.value, dict):
            return {key: self.json(child, what) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.json(child, what) for child in node.value]
        if node.null:
            return None
        value: Any = node.value
        if node.plain:
            with contextlib.suppress(ValueError):
                value = json.loads(node.value, parse_constant=_no_constant)
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(node.line, f"{what}: {_shown(node)} is too large for a number")
        if isinstance(value, str) and not re.sub(r"[\n\t]", "", value).isprintable():
            self.wrong(node.line, f"{what}: {_shown(node)} holds a control character")
        return value

    # the file

    def registry(self, root: Node, path: Path, package: str | None) -> RegistryFile:
        top = self.mapping(
            root, "registry", ("schema", "zoo_api", "models", "bases"), "schema zoo_api"
        )
        schema = self.number(top.get("schema"), "schema", int)
        if schema is not None and schema != SCHEMA:
            self.wrong(
                top["schema"].line, f"schema: {schema} is not known; this zoo reads {SCHEMA}"
            )
        api = self.number(top.get("zoo_api"), "zoo_api", int)
        if not self.mistakes and api != API_VERSION:  # the rules of this version do not apply
            return RegistryFile(path, api)
        models = self.mapping(top.get("models"), "models", None)
        bases = self.mapping(top.get("bases"), "bases", None)
        for name in models.keys() & bases.keys():
            self.wrong(bases[name].line, f"bases: {name!r} is also a model's name")
        return RegistryFile(
            path,
            api or 0,
            {name: self.model(name, node, package) for name, node in models.items()},
            {name: self.base_entry(name, node, package) for name, node in bases.items()},
        )

    def owner(self, name: str, node: Node | None, line: int, package: str | None) -> str:
        if package is not None:
            if node is not None:
                self.wrong(
                    node.line, f"{name}: plugin is only for zoo's own registry file; leave it out"
                )
            return package
        if node is None:
            self.wrong(line, f"{name}: plugin is missing")
        return self.text(node, f"{name}: plugin", _PACKAGE)

    def name(self, name: str, node: Node) -> str:
        if not _NAME.fullmatch(name):
            self.wrong(node.line, f"name {name!r} {_MEANING[_NAME]}")
        return name

    def model(self, name: str, node: Node, package: str | None) -> Entry:
        keys = self.mapping(node, name, _MODEL_KEYS, "interface status summary")
        get = keys.get
        interface = self.choice(get("interface"), f"{name}: interface", INTERFACES)
        status = self.choice(get("status"), f"{name}: status", STATUSES)
        owner = self.owner(name, get("plugin"), node.line, package)
        if status != "planned" and "class" not in keys:
            self.wrong(node.line, f"{name}: class is missing; only a planned model has none")
        hub = self.hub(get("hub"), name)
        files = self.files(get("files"), name)
        if status == "untrained" and files:
            self.wrong(node.line, f"{name}: status is untrained, but it lists files")
        check = self.check(get("check"), name)
        for path in (check.input, check.expected) if check else ():
            if path not in {f.path for f in files}:
                line = keys["check"].line
                self.wrong(line, f"{name}: check: {path!r} is not among its files")
        return Entry(
            name=self.name(name, node),
            interface=interface,
            plugin=owner,
            status=status,
            summary=self.text(get("summary"), f"{name}: summary"),
            method=self.text(get("method"), f"{name}: method", _NAME),
            size=self.choice(get("size"), f"{name}: size", SIZES) or None,
            domain=self.text(get("domain"), f"{name}: domain", _NAME) or None,
            paper=self.texts(get("paper"), f"{name}: paper", ("title", "id")),
            license=self.texts(get("license"), f"{name}: license", ("code", "weights")),
            extra=self.text(get("extra"), f"{name}: extra", _NAME) or None,
            params=self.number(get("params"), f"{name}: params", int),
            config={
                key: self.json(child, f"{name}: config")
                for key, child in self.mapping(get("config"), f"{name}: config", None).items()
            },
            class_=self.object(get("class"), f"{name}: class", owner),
            options=self.options(get("options"), name, interface),
            bases=self.bases(get("base"), get("bases"), name),
            files=files,
            hub=hub,
            check=check,
            card=self.card(get("card"), f"{name}: card"),
            commands=self.commands(get("commands"), name, owner),
            line=node.line,
        )

    def base_entry(self, name: str, node: Node, package: str | None) -> BaseEntry:
        keys = self.mapping(node, name, _BASE_KEYS, "summary files")
        return BaseEntry(
            self.name(name, node),
            self.owner(name, keys.get("plugin"), node.line, package),
            self.text(keys.get("summary"), f"{name}: summary"),
            self.files(keys.get("files"), name),
            self.hub(keys.get("hub"), name),
            self.texts(keys.get("license"), f"{name}: license", ("code", "weights")),
        )

    def texts(self, node: Node | None, what: str, known: tuple[str, ...]) -> dict[str, str]:
        return {
            key: self.text(child, f"{what}: {key}")
            for key, child in self.mapping(node, what, known).items()
        }

    def object(self, node: Node | None, what: str, owner: str) -> str | None:
        value = self.text(node, what, _OBJECT)
        if node is not None and value and owner and value.split(":")[0].split(".")[0] != owner:
            self.wrong(node.line, f"{what}: {value!r} is not in the entry's own package {owner}")
        return value or None

    def relative(self, node: Node | None, what: str) -> str:
        path = self.text(node, what)
        if node is None or not path:
            return path
        if any(p in ("", ".", "..") for p in path.split("/")) or "\\" in path or ":" in path:
            self.wrong(
                node.line,
                f"{what}: {path!r} must be relative, with forward slashes, and stay in its folder",
            )
        elif not re.fullmatch(r"[\w./-]+", path, re.ASCII):
            self.wrong(
                node.line, f"{what}: {path!r} may only have letters, digits, '.', '_' and '-'"
            )
        elif not path.endswith(FILE_TYPES):
            self.wrong(
                node.line, f"{what}: {path!r} is not one of the file types {', '.join(FILE_TYPES)}"
            )
        return path

    def files(self, node: Node | None, name: str) -> tuple[FileSpec, ...]:
        files: list[FileSpec] = []
        seen: set[str] = set()
        for child in self.sequence(node, f"{name}: files"):
            keys = self.mapping(
                child, f"{name}: files", ("path", "size", "sha256", "dtype"), "path size sha256"
            )
            path = self.relative(keys.get("path"), f"{name}: files: path")
            if path and path.casefold() in seen:
                self.wrong(child.line, f"{name}: files: {path!r} is listed twice")
            seen.add(path.casefold())
            size = self.number(keys.get("size"), f"{name}: files: size", int) or 0
            if size < 0:
                self.wrong(keys["size"].line, f"{name}: files: size {size} is negative")
            files.append(
                FileSpec(
                    path,
                    size,
                    self.text(keys.get("sha256"), f"{name}: files: sha256", _SHA256),
                    self.choice(keys.get("dtype"), f"{name}: files: dtype", DTYPES) or None,
                )
            )
        return tuple(files)

    def hub(self, node: Node | None, name: str) -> HubSpec | None:
        if node is None or node.null:
            return None
        keys = self.mapping(node, f"{name}: hub", ("repo", "revision"), "repo")
        revision = keys.get("revision")
        return HubSpec(
            self.text(keys.get("repo"), f"{name}: hub: repo", _REPO),
            None
            if revision is None or revision.null
            else self.text(revision, f"{name}: hub: revision", _COMMIT),
        )

    def check(self, node: Node | None, name: str) -> CheckSpec | None:
        if node is None or node.null:
            return None
        what = f"{name}: check"
        keys = self.mapping(node, what, ("input", "expected", "atol"), "input expected atol")
        atol = self.number(keys.get("atol"), f"{what}: atol", float) or 0.0
        if atol < 0:
            self.wrong(keys["atol"].line, f"{what}: atol {atol:g} is negative")
        return CheckSpec(
            self.relative(keys.get("input"), f"{what}: input"),
            self.relative(keys.get("expected"), f"{what}: expected"),
            atol,
        )

    def card(self, node: Node | None, what: str) -> CardSpec:
        known, prose = ("data", "training", "picture"), ("about", "limits", "caption")
        keys = self.mapping(node, what, (*known, *prose))
        for key in prose:
            if key in keys:
                self.wrong(
                    keys[key].line,
                    f"{what}: {key} is prose: write it to about.md next to the model's card "
                    "(hub_cards/MODEL/about.md)",
                )
        data = []
        for child in self.sequence(keys.get("data"), f"{what}: data"):
            item = self.mapping(child, f"{what}: data", ("name", "license"), "name license")
            data.append(
                TrainingData(
                    self.text(item.get("name"), f"{what}: data: name"),
                    self.text(item.get("license"), f"{what}: data: license"),
                )
            )
        return CardSpec(
            data=tuple(data),
            training=self.text(keys.get("training"), f"{what}: training"),
            picture=self.relative(keys.get("picture"), f"{what}: picture") or None,
        )

    def bases(self, one: Node | None, several: Node | None, name: str) -> dict[str, BaseSpec]:
        """``base:`` is the short form of ``bases: {base: ...}``."""
        if one is not None and several is not None:
            self.wrong(several.line, f"{name}: give either base or bases")
        if one is not None:
            return {} if one.null else {"base": self.base(one, f"{name}: base")}
        found = {}
        for word, child in self.mapping(several, f"{name}: bases", None).items():
            what = f"{name}: bases: {word}"
            if not _WORD.fullmatch(word):
                self.wrong(child.line, f"{what}: {word!r} {_MEANING[_WORD]}")
            found[word] = self.base(child, what)
        return found

    def base(self, node: Node, what: str) -> BaseSpec:
        keys = self.mapping(node, what, ("kind", "default", "needed"), "kind")
        default, needed = keys.get("default"), keys.get("needed")
        steps = [needed] if needed is not None and isinstance(needed.value, str) else None
        return BaseSpec(
            self.choice(keys.get("kind"), f"{what}: kind", BASE_KINDS),
            None if default is None or default.null else self.text(default, f"{what}: default"),
            tuple(
                self.choice(step, f"{what}: needed", NEEDS)
                for step in steps or self.sequence(needed, f"{what}: needed")
                if not step.null
            ),
        )

    def commands(self, node: Node | None, name: str, owner: str) -> dict[str, CommandSpec]:
        commands = {}
        for word, child in self.mapping(node, f"{name}: commands", None).items():
            what = f"{name}: commands: {word}"
            if not _NAME.fullmatch(word):
                self.wrong(child.line, f"{what}: {word!r} {_MEANING[_NAME]}")
            keys = self.mapping(child, what, ("run", "help"), "run help")
            commands[word] = CommandSpec(
                self.object(keys.get("run"), f"{what}: run", owner) or "",
                self.text(keys.get("help"), f"{what}: help"),
            )
        return commands

    # options

    def options(self, node: Node | None, name: str, interface: str) -> dict[str, dict[str, Option]]:
        found = {}
        for verb, child in self.mapping(node, f"{name}: options", OPTION_VERBS).items():
            options = {}
            taken = _RESERVED.get(verb, frozenset())
            if verb == "load":
                taken |= _verb_keywords(interface)
            for word, body in self.mapping(child, f"{name}: options: {verb}", None).items():
                what = f"{name}: options: {verb}: {word}"
                if not _WORD.fullmatch(word):
                    self.wrong(body.line, f"{what}: {word!r} {_MEANING[_WORD]}")
                elif word in taken:
                    self.wrong(body.line, f"{what}: {word!r} is already a keyword of the same call")
                options[word] = self.option(word, body, what)
            found[verb] = options
        return found

    def option(self, word: str, node: Node, what: str) -> Option:
        keys = self.mapping(node, what, _OPTION_KEYS)
        choices = tuple(
            self.text(c, f"{what}: choices")
            for c in self.sequence(keys.get("choices"), f"{what}: choices")
        )
        if ("type" in keys) == bool(choices):
            self.wrong(node.line, f"{what}: give either type (float, int, bool, str) or choices")
        kind = (
            "choice"
            if choices
            else self.choice(keys.get("type"), f"{what}: type", ("float", "int", "bool", "str"))
        )
        low = self.number(keys.get("min"), f"{what}: min", float)
        high = self.number(keys.get("max"), f"{what}: max", float)
        if (low is not None or high is not None) and kind not in ("float", "int"):
            self.wrong(node.line, f"{what}: min and max are for numbers")
        elif low is not None and high is not None and low > high:
            self.wrong(node.line, f"{what}: min {low:g} is above max {high:g}")
        option = Option(
            word,
            kind,
            None,
            low,
            high,
            choices,
            self.text(keys.get("help"), f"{what}: help"),
        )
        default = keys.get("default")
        if default is None or default.null:
            return option
        value = self.json(default, what) if kind not in ("str", "choice") else default.value
        try:
            if kind == "bool" and default.value not in ("true", "false"):  # files have one spelling
                raise OptionError
            value = option.check(value)
        except OptionError:
            self.wrong(default.line, f"{what}: default {_shown(default)} is not {option.expected}")
        return Option(word, kind, value, low, high, choices, option.help)


@cache
def _verb_keywords(interface: str) -> frozenset[str]:
    """Every parameter of the interface's verbs: ``-O`` could not distinguish such an option."""
    import inspect

    cls = INTERFACES.get(interface)
    if cls is None:
        return frozenset()
    return frozenset(
        word
        for verb in verbs(interface)
        for word in inspect.signature(getattr(cls, verb)).parameters
    )


def _no_constant(text: str) -> Callable[[], None]:
    raise ValueError(text)  # NaN and Infinity are not JSON


def _shown(node: Node) -> str:
    if isinstance(node.value, str):
        return "nothing" if node.null else _shortened(node.value)
    return "a mapping" if isinstance(node.value, dict) else "a list"


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:57] + "...")


_MEANING: Mapping[re.Pattern[str], str] = {
    _NAME: "must be lower-case letters, digits, '.', '_' and '-', at most 64",
    _WORD: "must be a lower-case identifier",
    _REPO: "must be a Hub repository, org/name",
    _COMMIT: "must be a commit of 40 lower-case hex digits",
    _SHA256: "must be 64 lower-case hex digits",
    _OBJECT: "must be module:name",
    _PACKAGE: "must be a top-level package name",
}
