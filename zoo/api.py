"""``load``: registry, plugin, hub, weights, interface check; each step has its own error."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bases, hub, plugins
from .arguments import as_folder, dtype_name, refuse_bare_folder, torch_device
from .bases import Given
from .errors import NotReadyError, OptionError, PluginError, UnknownModelError, UsageError
from .interfaces import INTERFACES, Model
from .isolation import isolated
from .registry import catalogue

if TYPE_CHECKING:
    import torch

    from .entry import Base, Entry
    from .plugins import Plugin
    from .weights import Saved


@isolated()
def load(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    base: Given = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Load a model, ready to use.

    ``name``: a model (``zoo list``), ``dist:name``, a saved folder, or the Hub id of a published
    model (``org/name``, ``org/name@commit``) that an installed plugin made. A ``Path``, or text
    that starts with ``.``, ``~``, ``/`` or a drive, is a folder.
    ``weights``: a folder, or a Hub ``org/repo`` in zoo's own format (``@branch-or-commit`` may
    follow), in place of the model's own files.
    ``base``: for methods that work on another model: a name under ``bases:``, a Hub id or a folder;
    where a model works on several, a mapping by their names.
    ``device``: a torch device; "auto" is cuda, then mps, then cpu.
    ``dtype``: of floating-point weights, float32 by default.
    ``options``: those that the registry declares for the model (``zoo info NAME``).

    Raises UnknownModelError, OptionError, DeviceError, NotReadyError, MissingDependencyError,
    PluginError, or WeightsError with each place that was tried; never returns random weights.
    """
    asked = _Asked(weights, base, device, dtype, options)
    saved = saved_in(name)
    if saved is not None:
        return _load_saved(saved, asked)
    text = str(name)
    if text not in catalogue().models and text not in catalogue().qualified:
        refuse_bare_folder(text, "name")
    return _load_entry(catalogue().entry(text), asked)


def list_models(pattern: str = "*", *, interface: str | None = None) -> list[str]:
    """Names for ``load``, zoo's own first, that match a glob such as ``"*sd*"``.

    A name that two third-party plugins claim appears as ``dist:name``, once for each.
    """
    if interface is not None and interface not in INTERFACES:
        raise OptionError(f"interface={interface!r}: expected one of {', '.join(INTERFACES)}.")
    names = []
    for name, claims in catalogue().models.items():
        for entry in claims:
            if interface in (None, entry.interface) and fnmatch.fnmatchcase(name, pattern):
                names.append(name if len(claims) == 1 else f"{entry.distribution}:{name}")
    return names


def info(name: str) -> Entry:
    """The registry entry of a model: what it is, its licence, its options, its files."""
    return catalogue().entry(name)


# --- the steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``load`` other than the name."""

    weights: str | Path | None
    base: Given
    device: Any
    dtype: Any
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Checked:
    """The arguments, checked against the entry and this machine."""

    entry: Entry
    plugin: Plugin
    options: Mapping[str, Any]
    device: str
    dtype: str


@dataclass(frozen=True)
class _Weights:
    """Where the weights are, and what ``zoo.json`` says about them."""

    folder: Path | None
    source: str
    saved: Saved | None = None


def _load_entry(entry: Entry, asked: _Asked) -> Model:
    """Load a registry entry with its own files or those that ``weights`` names."""
    checked = _check(entry, asked)
    weights = _find_weights(entry, checked.plugin, asked.weights)
    if weights.saved is not None:
        found = bases.again(entry, asked.base, weights.saved)
    else:
        found = bases.find(entry, asked.base, "build")
    return _build(checked, weights, found)


def _check(entry: Entry, asked: _Asked, saved: Saved | None = None) -> _Checked:
    """Refuse invalid arguments before torch is imported or a file is downloaded.

    ``saved``: the saved model to load; its options apply unless the caller gives others.
    """
    plugin = require_code(entry)
    options = entry.checked_options("load", {**(saved.options if saved else {}), **asked.options})
    bases.asked(entry, asked.base)
    if entry.status == "untrained" and asked.weights is None and saved is None:
        raise NotReadyError(untrained_message(entry, asked.base))
    device = torch_device(asked.device, entry)
    return _Checked(entry, plugin, options, device, dtype_name(asked.dtype))


def saved_in(name: str | Path) -> _Weights | None:
    """The saved model in a folder or under a Hub id; None for the name of a model."""
    from .weights import read_saved

    folder = as_folder(name)
    if folder is not None:
        return _Weights(folder, "folder", read_saved(folder))
    text = str(name)
    if "/" not in text or text in catalogue().models or text in catalogue().qualified:
        return None
    refuse_bare_folder(text, "name")
    located = hub.fetch(*hub.parse_id(text), progress=hub.bar())
    assert located.folder is not None  # fetch gives one or raises
    if not (located.folder / "zoo.json").is_file():
        raise UsageError(
            f"{text} on the Hub is not a zoo model: it has no zoo.json. To use it as the base of "
            f"a method: zoo.load(NAME, base={text!r})."
        )
    return _Weights(located.folder, located.source, read_saved(located.folder, shared=True))


def _load_saved(weights: _Weights, asked: _Asked) -> Model:
    """Load a saved or published model with its options (the caller's take precedence) and bases."""
    saved = weights.saved
    assert saved is not None
    if asked.weights is not None:
        raise UsageError(
            f"{saved.folder} has its own weights; leave out weights={str(asked.weights)!r}."
        )
    checked = _check(_entry_of(saved), asked, saved)
    return _build(checked, weights, bases.again(checked.entry, asked.base, saved))


def _build(checked: _Checked, weights: _Weights, found: dict[str, Base]) -> Model:
    """Let the plugin build the model, and check that it implements the interface."""
    from .hookspecs import BuildRequest

    entry, plugin = checked.entry, checked.plugin
    saved = weights.saved.manifest if weights.saved else None
    request = BuildRequest(
        entry=entry,
        folder=weights.folder,
        saved=saved,
        bases={name: base for name, base in found.items() if base.folder is not None},
        device=checked.device,
        dtype=checked.dtype,
        options=checked.options,
    )
    model = plugins.call(plugin, "zoo_build", request)
    plain = saved is not None and saved["interface"] is None
    expected = Model if plain else INTERFACES[entry.interface]
    if not isinstance(model, expected):
        raise PluginError(
            f"{plugin.package}: zoo_build returned a {type(model).__name__} for {entry.name}, "
            f"which is not a {expected.__name__}."
        )
    model.source = weights.source
    model.bases = found
    return model


def require_code(entry: Entry) -> Plugin:
    """The plugin of an entry, without importing it.

    Raises NotReadyError if the entry is only planned, and PluginError if the plugin is blocked or
    broken, before torch is imported or a file is downloaded.
    """
    if entry.status == "planned":
        ready = [e.name for e in catalogue().entries() if e.status == "ready"]
        raise NotReadyError(
            f"{entry.name} is planned: it is in the catalogue but has no code yet. "
            f"Ready now: {', '.join(ready) or 'none'}."
        )
    plugin = catalogue().owner(entry)
    plugins.require_usable(plugin, entry)
    return plugin


def untrained_message(entry: Entry, base: Given = None) -> str:
    """Why an untrained model does not load, and how to get weights for it."""
    chosen = ", ".join(str(named) for named in bases.asked(entry, base).values())
    on = f" for the base {chosen!r}" if chosen else ""
    return (
        f"{entry.name} has no trained weights{on}. Train some with "
        f'`{train_command(entry, base)}`, then zoo.load("./runs/{entry.name}/model").'
    )


def train_command(entry: Entry, base: Given = None) -> str:
    """The command that trains a model; PATH and ORG/REPO are for the user to fill in."""
    chosen, several = bases.asked(entry, base), len(entry.bases) > 1
    start = "".join(
        f" --base {f'{name}=' if several else ''}{chosen.get(name, 'ORG/REPO')}"
        for name, spec in entry.bases.items()
        if name in chosen or spec.default is None
    )
    return f"zoo train {entry.name}{start} --data PATH -o runs/{entry.name}"


def _find_weights(entry: Entry, plugin: Plugin, weights: str | Path | None) -> _Weights:
    from .weights import check_plain_folder, read_saved

    if weights is None:
        located = hub.locate(entry, bundled=plugin.bundle(entry.name), progress=hub.bar())
        return _Weights(located.folder, located.source)
    folder = as_folder(weights)
    source = "folder"
    if folder is None:
        located = hub.fetch(*hub.parse_id(str(weights)), progress=hub.bar())
        folder, source = located.folder, located.source
    assert folder is not None
    fetched = source != "folder"
    if not (folder / "zoo.json").is_file():
        if not fetched:  # fetch has already checked the safetensors
            check_plain_folder(folder)
        return _Weights(folder, source)
    saved = read_saved(folder, shared=fetched)
    mine = _entry_of(saved)
    if (mine.plugin, mine.method or mine.name) != (entry.plugin, entry.method or entry.name):
        raise UsageError(
            f"weights={str(weights)!r} were made by {mine.name}, not by {entry.name}. "
            f"Load them with zoo.load({str(folder)!r})."
        )
    return _Weights(folder, source, saved)


def _entry_of(saved: Saved) -> Entry:
    manifest = saved.manifest
    known = catalogue().qualified.get(f"{manifest['distribution']}:{manifest['model']}")
    if known is None or known.plugin != manifest["plugin"]:
        raise UsageError(
            f"{saved.folder} was made by {manifest['model']!r} of {manifest['distribution']!r}, "
            f"which is not installed. Run: zoo install {manifest['distribution']}"
        )
    return known


def entry_of(name: str | Path) -> Entry:
    """The entry of a MODEL argument: a name, ``dist:name``, or the folder or Hub id of a saved
    model.
    """
    return entry_and_kind(name)[0]


def entry_and_kind(name: str | Path) -> tuple[Entry, str]:
    """``entry_of``, and the model's interface, or its kind (such as ``reader``) if it has none."""
    found = saved_in(name)
    if found is None:
        try:
            entry = catalogue().entry(str(name))
        except UnknownModelError:
            refuse_bare_folder(str(name), "MODEL")
            raise
        return entry, entry.interface
    assert found.saved is not None
    manifest = found.saved.manifest
    return _entry_of(found.saved), manifest["interface"] or manifest["kind"]
