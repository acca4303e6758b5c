"""The start of every verb of an interface: its options, and checks before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..entry import Entry
from .options import (
    base_option,
    device_option,
    force_option,
    json_option,
    model_argument,
    parse_bases,
    parse_settings,
    quiet_option,
    set_option,
    split_settings,
    verb_of,
)

COMMON = (base_option, device_option, force_option, quiet_option, set_option, json_option)


@dataclass(frozen=True)
class Call:
    """The arguments of a verb whose model is not loaded yet."""

    model: str
    """As the user wrote it."""
    entry: Entry
    bases: tuple[str, ...]
    device: str
    force: bool
    """May existing outputs be replaced?"""
    quiet: bool
    as_json: bool
    options: Mapping[str, str]
    """The load options in ``-O``."""
    keywords: Mapping[str, Any]
    """The keywords of the verb in ``-O``."""

    @property
    def progress(self) -> bool:
        """Show a progress bar?"""
        return not (self.quiet or self.as_json)

    def load(self) -> Any:
        """The model, ready to use."""
        from ..api import load

        base = parse_bases(self.bases, self.entry)
        return load(self.model, base=base, device=self.device, **self.options)

    def refuse_taken(self, folder: Path) -> None:
        """Raise OutputError if a folder cannot be created or may not be replaced."""
        from ..files import check_folder

        check_folder(folder, overwrite=self.force)

    def refuse_taken_files(self, folder: Path, files: Iterable[Path]) -> None:
        """Raise OutputError if files cannot be written in or below a folder, new or not."""
        from ..errors import OutputError
        from ..files import check_target

        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, not a folder. Choose another name.")
        for file in files:
            if file.parent.is_dir():  # else it is created
                check_target(file, overwrite=self.force)


def verb(interface: str, method: str, does: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command on MODEL of an interface; its body gets a ``Call``, then its own arguments.

    ``method``: whose keywords ``-O`` may set. ``does``: completes "it does not ..." for other
    kinds.
    """

    def decorate(body: Callable[..., None]) -> click.Command:
        @wraps(body)
        def run(
            model: str,
            bases: tuple[str, ...],
            device: str,
            force: bool,
            quiet: bool,
            settings: tuple[str, ...],
            as_json: bool,
            **own: Any,
        ) -> None:
            from ..api import entry_and_kind, require_code
            from ..errors import NotReadyError

            entry, kind = entry_and_kind(model)
            if kind != interface:
                raise NotReadyError(f"{model} is of kind {kind}; it does not {does}.")
            require_code(entry)
            found: tuple[Mapping[str, str], Mapping[str, Any]] = {}, {}
            if settings:  # else the model's code is imported after the inputs are checked
                found = split_settings(parse_settings(settings), entry, verb_of(entry, method))
                _refuse_twice(found[1])
            body(Call(model, entry, bases, device, force, quiet, as_json, *found), **own)

        # click lists parameters from the last to the first that was attached: MODEL, the verb's
        # own, the common ones
        own_parameters = getattr(body, "__click_params__", [])
        run.__click_params__ = []  # type: ignore[attr-defined]
        for option in reversed(COMMON):
            option(run)
        run.__click_params__ += own_parameters  # type: ignore[attr-defined]
        return click.command()(model_argument(run))

    return decorate


def _refuse_twice(keywords: Mapping[str, Any]) -> None:
    """Raise UsageError for a keyword in ``-O`` that the command line also gives as an option."""
    from click.core import ParameterSource

    from ..errors import UsageError

    context = click.get_current_context()
    for name in keywords:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{name}: given twice, by --{name} and by -O {name}.")


def saved(path: Path) -> str:
    """A message that says how to load a folder that a command wrote."""
    here = path if path.is_absolute() else f"./{path}"
    return f'{path}: load it with zoo.load("{here}")'


def short(value: Any) -> str:
    """A value of a report on one line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
