"""Options that several verbs share, and how their values become keywords."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..entry import NONE, WORDS, Entry, Option, near
from ..errors import OptionError
from ..interfaces import INTERFACES

PATH = click.Path(path_type=Path)

model_argument = click.argument("model")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="A torch device; auto chooses the best."
)
base_option = click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="[NAME=]ID|FOLDER",
    help="The model that the method works on: a Hub id or a folder. May be repeated.",
)
force_option = click.option("--force", is_flag=True, help="Replace what is already there.")


def _also_of_libraries(context: click.Context, parameter: click.Parameter, quiet: bool) -> bool:
    """--quiet is for the bars of transformers and huggingface_hub too, which read this variable
    when they are imported: later than this.
    """
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return quiet


quiet_option = click.option(
    "--quiet", is_flag=True, help="No progress bar.", callback=_also_of_libraries
)


def _settings(what: str) -> Callable[[Any], Any]:
    return click.option(
        "-O",
        "--option",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Set {what} that `zoo info MODEL` lists. May be repeated.",
    )


set_option = _settings("an option or a keyword of the verb")
declared_option = _settings("an option")
"""``-O`` of a verb that has no keywords."""


def echo_json(value: Any) -> None:
    """Print a value as JSON on stdout, in ASCII: no terminal's encoding can change it."""
    click.echo(json.dumps(value, indent=2, default=str))


def parse_bases(given: tuple[str, ...], entry: Entry) -> dict[str, str] | None:
    """``("lvlm=org/x", "./clip")`` by name; a value without a name is for the first base of the
    entry.

    Raises OptionError for a base that the entry does not have, or one given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in entry.bases:
            if equals and not name.startswith((".", "/", "~")) and "/" not in name:
                known = ", ".join(entry.bases) or "none"
                raise OptionError(
                    f"--base {text}: {entry.name} has no base {name!r}. It has: {known}."
                )
            name, value = next(iter(entry.bases), "base"), text
        if name in found:
            raise OptionError(f"--base: {name} is given twice, as {found[name]} and {value}.")
        found[name] = value
    return found or None


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """``("a=1",)`` -> ``{"a": "1"}``. Raises OptionError for text without ``=`` and for a repeated
    key."""
    found: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise OptionError(f"-O {text!r}: expected KEY=VALUE.")
        if key in found:
            raise OptionError(f"-O {key} is given twice.")
        found[key] = value
    return found


def split_settings(
    settings: Mapping[str, str], entry: Entry, verb: Callable[..., Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort settings into declared load options and keywords of the model's verb.

    Load options stay text: the entry's schema reads them. A keyword's value is read by its
    annotation. Raises OptionError for a name that is neither, or a value of another type.
    """
    declared = entry.options.get("load", {})
    interface = INTERFACES[entry.interface]
    promised = inspect.signature(getattr(interface, verb.__name__, verb)).parameters
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(verb).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "progress"  # --quiet's
    }
    load, call = {}, {}
    for key, value in settings.items():
        if key in declared:
            load[key] = value
        elif key in keywords:
            own = keywords[key]  # without an annotation, the interface's counts
            bare = own.annotation is own.empty
            call[key] = read_value(value, promised.get(key, own) if bare else own)
        else:
            known = [*declared, *keywords]
            hint = near(key, known)
            raise OptionError(
                f"{entry.name} has no option {key!r}"
                + (f"; did you mean {hint[0]!r}?" if hint else ".")
                + f" It takes: {', '.join(known) or 'none'}."
            )
    return load, call


def read_value(text: str, parameter: inspect.Parameter) -> Any:
    """The text of ``-O`` as a keyword's value.

    A keyword that is annotated as a number, a bool or a str (or one of these and None) is read like
    a declared option. For others, ``true/false/yes/no/on/off/none/null`` in any case are constants,
    JSON is parsed, and the rest is text.
    """
    annotation = parameter.annotation
    text_of = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    kinds = {kind.strip() for kind in (text_of or str(annotation)).split("|")}
    optional, kinds = "None" in kinds, kinds - {"None"}
    if kinds in ({"bool"}, {"int"}, {"float"}, {"str"}, {"int", "float"}):
        kind = "float" if len(kinds) > 1 else kinds.pop()
        value = Option(parameter.name, kind, None if optional else "").check(text)
        whole = "int" in text_of and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value
    if (word := text.strip().lower()) in (*WORDS, *NONE):
        return WORDS.get(word)
    try:
        return json.loads(text)
    except ValueError:
        return text


def verb_of(entry: Entry, name: str) -> Callable[..., Any]:
    """The method NAME of the model's class: its keywords are what -O may set."""
    from .. import plugins
    from ..registry import catalogue

    assert entry.class_ is not None
    owner = catalogue().owner(entry)
    verb: Callable[..., Any] = getattr(plugins.import_object(owner, entry.class_, entry), name)
    return verb
