"""``load``: registry, plugin, hub, weights, interface check; each step fails in its own words."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub, plugins
from .arguments import as_folder, dtype_name, refuse_bare_folder, torch_device
from .errors import NotReadyError, OptionError, PluginError, UsageError
from .interfaces import INTERFACES, Model
from .registry import catalogue

if TYPE_CHECKING:
    import torch

    from .entry import BaseEntry, Entry
    from .plugins import Plugin
    from .weights import Saved


def load(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    base: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Load a model, ready to use.

    ``name``: a model (``zoo list``), ``dist:name``, or a saved folder. A ``Path``, or text that
    starts with ``.``, ``~``, ``/`` or a drive, is a folder.
    ``weights``: a folder, or a Hub ``org/repo`` in zoo's own format (``@branch-or-commit`` may
    follow), in place of the model's own files.
    ``base``: for methods that work on another model: a name under ``bases:``, a Hub id or a folder.
    ``device``: a torch device; "auto" is cuda, then mps, then cpu.
    ``dtype``: of floating-point weights, float32 unless told.
    ``options``: those that the registry declares for the model (``zoo info NAME``).

    Raises UnknownModelError, OptionError, DeviceError, NotReadyError, MissingDependencyError,
    PluginError, or WeightsError with each place that was tried; never returns random weights.
    """
    asked = _Asked(weights, base, device, dtype, options)
    folder = as_folder(name)
    if folder is not None:
        return _load_saved(folder, asked)
    text = str(name)
    if text not in catalogue().models and text not in catalogue().qualified:
        refuse_bare_folder(text, "name")
    return _load_entry(catalogue().entry(text), asked)


def list_models(pattern: str = "*", *, interface: str | None = None) -> list[str]:
    """Names that ``load`` takes, ours first: those matching a glob such as ``"*sd*"``.

    A name that two strangers claim appears as ``dist:name``, once for each.
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
    """What the caller of ``load`` asked for, beside the name."""

    weights: str | Path | None
    base: str | Path | None
    device: Any
    dtype: Any
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Weights:
    """Where the weights are, and what ``zoo.json`` says of them."""

    folder: Path | None
    source: str
    saved: Saved | None = None


def _load_entry(entry: Entry, asked: _Asked) -> Model:
    """A registry entry, with its own files or those that ``weights`` names."""
    plugin = require_code(entry)
    options = entry.checked_options("load", asked.options)
    check_base(entry, asked.base)
    if entry.status == "untrained" and asked.weights is None:
        raise NotReadyError(untrained_message(entry, asked.base))
    device = torch_device(asked.device, entry)  # refused before a file is fetched for nothing
    dtype = dtype_name(asked.dtype)
    weights = _find_weights(entry, plugin, asked.weights)
    return _build(entry, plugin, weights, asked.base, device, dtype, options)


def _load_saved(folder: Path, asked: _Asked) -> Model:
    """A saved folder: its entry, its options (the caller's win), its base."""
    from .weights import read_saved

    if asked.weights is not None:
        raise UsageError(
            f"{folder} brings its own weights; leave weights={str(asked.weights)!r} out."
        )
    saved = read_saved(folder)
    entry = _entry_of(saved)
    options = entry.checked_options("load", {**saved.options, **asked.options})
    plugin = require_code(entry)
    check_base(entry, asked.base)
    weights = _Weights(folder, "folder", saved)
    device, dtype = torch_device(asked.device, entry), dtype_name(asked.dtype)
    return _build(entry, plugin, weights, asked.base, device, dtype, options)


def _build(
    entry: Entry,
    plugin: Plugin,
    weights: _Weights,
    base: str | Path | None,
    device: str,
    dtype: str,
    options: Mapping[str, Any],
) -> Model:
    """Find the base, ask the plugin, and see that it made what the interface promises."""
    from .hookspecs import BuildRequest

    saved = weights.saved.manifest if weights.saved else None
    base_folder, base_record = find_base(entry, base, weights.saved)
    request = BuildRequest(
        entry=entry,
        folder=weights.folder,
        saved=saved,
        base=base_folder,
        device=device,
        dtype=dtype,
        options=options,
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
    model.base = base_record
    return model


def require_code(entry: Entry) -> Plugin:
    """The plugin of an entry, not imported.

    Raises NotReadyError where it is only planned, PluginError where it is blocked or broken: said
    here, before torch is imported or a file is fetched for nothing.
    """
    if entry.status == "planned":
        ready = [e.name for e in catalogue().entries() if e.status == "ready"]
        raise NotReadyError(
            f"{entry.name} is planned: it is in the catalogue, its code is not there yet. "
            f"Ready now: {', '.join(ready) or 'none'}."
        )
    plugin = catalogue().owner(entry)
    plugins.require_usable(plugin, entry)
    return plugin


def untrained_message(entry: Entry, base: str | Path | None = None) -> str:
    """Why an untrained model does not load, and how to get weights for it."""
    on = f" for the base {str(base)!r}" if base else ""
    return (
        f"{entry.name} has no trained weights{on}. Train some with "
        f'`{train_command(entry, base)}`, then zoo.load("./runs/{entry.name}/model").'
    )


def train_command(entry: Entry, base: str | Path | None = None) -> str:
    """What to type to train a model; PATH and ORG/REPO stand for what the user has to choose."""
    asks = entry.base is not None and entry.base.default is None
    start = f" --base {base or 'ORG/REPO'}" if base or asks else ""
    return f"zoo train {entry.name}{start} --data PATH -o runs/{entry.name}"


def _find_weights(entry: Entry, plugin: Plugin, weights: str | Path | None) -> _Weights:
    from .weights import check_plain_folder, read_saved

    if weights is None:
        located = hub.locate(entry, bundled=bundled_folder(plugin, entry), progress=download_bar())
        return _Weights(located.folder, located.source)
    folder = as_folder(weights)
    source = "folder"
    if folder is None:
        located = hub.fetch(*hub.parse_id(str(weights)), progress=download_bar())
        folder, source = located.folder, located.source
    assert folder is not None
    fetched = source != "folder"
    if not (folder / "zoo.json").is_file():
        if not fetched:  # fetch has checked that there are safetensors, and each of them
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


def download_bar() -> bool:
    """Does a download show its progress? Where a person looks at it."""
    return sys.stderr.isatty()


def bundled_folder(plugin: Plugin, entry: Entry | BaseEntry) -> Path | None:
    """Where a plugin bundles the files of a model; it may not exist."""
    return plugin.folder / "weights" / entry.name if plugin.folder else None


def _entry_of(saved: Saved) -> Entry:
    manifest = saved.manifest
    known = catalogue().qualified.get(f"{manifest['distribution']}:{manifest['model']}")
    if known is None or known.plugin != manifest["plugin"]:
        raise UsageError(
            f"{saved.folder} was made by {manifest['model']!r} of {manifest['distribution']!r}, "
            f"which is not installed. Run: zoo install {manifest['distribution']}"
        )
    return known


def check_base(entry: Entry, base: str | Path | None) -> None:
    if base is not None and entry.base is None:
        raise OptionError(f"{entry.name} works on no base model; leave base={str(base)!r} out.")


def find_base(
    entry: Entry, base: str | Path | None, saved: Saved | None
) -> tuple[Path | None, dict[str, Any] | None]:
    """The base model's folder and what to remember of it."""
    from .weights import refuse_pickles

    if entry.base is None:
        return None, None
    if base is None and saved is not None and saved.manifest["base"]:
        kept = saved.manifest["base"]
        base = f"{kept['id']}@{kept['revision']}" if kept.get("revision") else kept["id"]
    base = base or entry.base.default
    if base is None:
        return None, None
    folder = as_folder(base)
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"base={str(base)!r}: there is no such folder.")
        refuse_pickles(folder)
        return folder, {"id": str(folder), "revision": None}
    known = catalogue().base(str(base))
    if known is not None:
        bundled = bundled_folder(catalogue().owner(known), known)
        located = hub.locate(known, bundled=bundled, progress=download_bar())
        return located.folder, {"id": known.name, "revision": None}
    refuse_bare_folder(str(base), "base")
    repo, revision = hub.parse_id(str(base))
    located = hub.fetch(repo, revision, progress=download_bar())
    return located.folder, {"id": repo, "revision": located.revision}


def entry_of(name: str | Path) -> Entry:
    """The entry that a MODEL argument means: a name, ``dist:name``, or a saved folder's model."""
    folder = as_folder(name)
    if folder is None:
        return catalogue().entry(str(name))
    from .weights import read_saved

    return _entry_of(read_saved(folder))
