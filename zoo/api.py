"""``load``: registry, plugin, hub, weights, interface check; each step fails in its own words."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub, plugins
from .errors import DeviceError, NotReadyError, OptionError, PluginError, UsageError
from .interfaces import INTERFACES, Model, Progress
from .isolation import isolated
from .registry import catalogue

if TYPE_CHECKING:
    import torch

    from .plugins import Plugin
    from .spec import BaseEntry, Entry
    from .weights import Saved


@isolated()
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
    folder = as_folder(name)
    if folder is not None:
        return _load_saved(folder, weights, base, device, dtype, options)
    text = str(name)
    if text not in catalogue().models and text not in catalogue().qualified:
        _refuse_bare_folder(text, "name")
    return _load_entry(catalogue().entry(text), weights, base, device, dtype, options)


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
class _Weights:
    folder: Path | None
    source: str
    saved: Saved | None = None


def _load_entry(
    entry: Entry,
    weights: str | Path | None,
    base: str | Path | None,
    device: Any,
    dtype: Any,
    options: Mapping[str, Any],
) -> Model:
    plugin = require_code(entry)
    checked = entry.checked_options("load", options)
    _check_base(entry, base)
    if entry.status == "untrained" and weights is None:
        raise NotReadyError(untrained_message(entry, base))
    place = torch_device(device, entry)
    kind = _dtype_name(dtype)
    found = _find_weights(entry, plugin, weights)
    return _build(entry, plugin, found, base, place, kind, checked)


def _load_saved(
    folder: Path,
    weights: str | Path | None,
    base: str | Path | None,
    device: Any,
    dtype: Any,
    options: Mapping[str, Any],
) -> Model:
    from .weights import read_saved

    if weights is not None:
        raise UsageError(f"{folder} brings its own weights; leave weights={str(weights)!r} out.")
    saved = read_saved(folder)
    entry = _entry_of(saved)
    checked = entry.checked_options("load", {**saved.options, **options})
    plugin = require_code(entry)
    _check_base(entry, base)
    found = _Weights(folder, "folder", saved)
    return _build(
        entry, plugin, found, base, torch_device(device, entry), _dtype_name(dtype), checked
    )


def _build(
    entry: Entry,
    plugin: Plugin,
    found: _Weights,
    base: str | Path | None,
    device: str,
    dtype: str,
    options: Mapping[str, Any],
) -> Model:
    from .hookspecs import BuildRequest

    base_folder, base_record = _find_base(entry, base, found.saved)
    request = BuildRequest(
        entry=entry,
        folder=found.folder,
        saved=found.saved.manifest if found.saved else None,
        base=base_folder,
        device=device,
        dtype=dtype,
        options=options,
    )
    model = plugins.call(plugin, "zoo_build", request)
    plain = found.saved is not None and found.saved.manifest["interface"] is None
    expected = Model if plain else INTERFACES[entry.interface]
    if not isinstance(model, expected):
        raise PluginError(
            f"{plugin.package}: zoo_build returned a {type(model).__name__} for {entry.name}, "
            f"which is not a {expected.__name__}."
        )
    model.source = found.source
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
        located = hub.locate(entry, bundled=bundled_folder(plugin, entry), progress=_bar())
        return _Weights(located.folder, located.source)
    folder = as_folder(weights)
    source = "folder"
    if folder is None:
        located = hub.fetch(*hub.parse_id(str(weights)), progress=_bar())
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


def _bar() -> bool:
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


def _check_base(entry: Entry, base: str | Path | None) -> None:
    if base is not None and entry.base is None:
        raise OptionError(f"{entry.name} works on no base model; leave base={str(base)!r} out.")


def _find_base(
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
        located = hub.locate(known, bundled=bundled, progress=_bar())
        return located.folder, {"id": known.name, "revision": None}
    _refuse_bare_folder(str(base), "base")
    repo, revision = hub.parse_id(str(base))
    located = hub.fetch(repo, revision, progress=_bar())
    return located.folder, {"id": repo, "revision": located.revision}


def entry_of(name: str | Path) -> Entry:
    """The entry that a MODEL argument means: a name, ``dist:name``, or a saved folder's model."""
    folder = as_folder(name)
    if folder is None:
        return catalogue().entry(str(name))
    from .weights import read_saved

    return _entry_of(read_saved(folder))


# --- what else the command does with a model ------------------------------------------------------


def pull(name: str) -> hub.Located:
    """Bring a model's files to this machine, verified, without importing its plugin."""
    entry = catalogue().entry(name)
    if entry.status == "planned":
        require_code(entry)
    if entry.status == "untrained":
        raise NotReadyError(untrained_message(entry))
    bundled = bundled_folder(catalogue().owner(entry), entry)
    return hub.locate(entry, bundled=bundled, progress=_bar())


def verify(model: Model) -> float:
    """Run the model on its check input; the largest deviation from the expected output.

    Raises NotReadyError where the entry has no check, and WeightsError where the deviation is
    above the entry's tolerance.
    """
    from .errors import WeightsError
    from .weights import load_tensors

    entry = model.entry
    if entry.check is None:
        raise NotReadyError(f"{entry.name} has no check input, so there is nothing to verify.")
    if model.source not in ("bundled", "cache", "hub"):
        raise NotReadyError(
            f"{entry.name}'s expected output is for its own weights, and these are from a folder. "
            "Their hashes were checked when they were loaded."
        )
    folder = pull(f"{entry.distribution}:{entry.name}").folder
    assert folder is not None  # spec.py: a check's files are among the entry's files
    expected = load_tensors(folder / entry.check.expected)
    found = model.run_check(folder / entry.check.input)
    worst = 0.0
    for key, tensor in expected.items():
        if key not in found or found[key].shape != tensor.shape:
            shape = tuple(found[key].shape) if key in found else "nothing"
            raise WeightsError(f"{entry.name}: {key} is {shape}, expected {tuple(tensor.shape)}.")
        off = float((found[key].cpu().double() - tensor.double()).abs().max())
        worst = max(worst, off if off == off else float("inf"))
    if worst > entry.check.atol:
        raise WeightsError(
            f"{entry.name}: the output is off by {worst:.3g}, more than {entry.check.atol:g}. "
            "The weights match their hashes, so suspect the device, the dtype or the torch build."
        )
    return worst


def train(
    entry: Entry,
    out: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    stage: str | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    base: str | Path | None = None,
    device: Any = "auto",
    progress: Progress = False,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Run a method's training recipe; the saved folder, loadable by ``load``.

    ``init``: a saved folder, or the name of a model whose weights to start from. ``base``: as for
    ``load``, where the method starts from another model. Raises InputError
    where ``data`` is not there, OutputError where ``out`` holds something and ``resume`` is off.
    """
    from .errors import InputError, OutputError
    from .hookspecs import TrainRequest

    checked = entry.checked_options("train", options or {})
    _check_base(entry, base)
    plugin = require_code(entry)
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: there is no such file or folder.")
    if steps is not None and steps < 1:
        raise OptionError(f"steps={steps}: expected at least 1.")
    if out.exists() and not resume and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already holds something. Go on with --resume, or choose another.")
    start = None
    if init is not None:
        start = as_folder(init) or pull(str(init)).folder
        if start is None or not start.is_dir():
            raise InputError(f"--init {init}: there is no such folder.")
    base_folder, base_record = _find_base(entry, base, None)
    request = TrainRequest(
        entry=entry,
        out=out,
        data=data,
        seed=seed,
        steps=steps,
        stage=stage,
        resume=resume,
        init=start,
        base=base_folder,
        base_record=base_record,
        device=torch_device(device, entry),
        progress=bool(progress),
        options=checked,
    )
    return Path(plugins.call(plugin, "zoo_train", request))


# --- names and folders ----------------------------------------------------------------------------

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def as_folder(text: str | Path) -> Path | None:
    """The folder that an argument means, or None where it is a name or a Hub id."""
    if isinstance(text, os.PathLike):
        return Path(text)
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is neither a name nor a folder.")
    if text.startswith((".", "~", "/", "\\")) or _DRIVE.match(text):
        return Path(text).expanduser()
    return None


def _refuse_bare_folder(text: str, what: str) -> None:
    """An unknown name that also is a folder here: say how to mean the folder, do not guess."""
    try:
        there = bool(text) and Path(text).is_dir()
    except OSError:  # too long for a path
        there = False
    if there:
        raise UsageError(
            f"{what}={text!r}: no such name is known, but there is a folder {text!r}. "
            f"Write './{text}' if you mean the folder."
        )


# --- device and dtype -----------------------------------------------------------------------------


def torch_device(device: Any, entry: Entry) -> str:
    """A device that this machine has, by name. Raises DeviceError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        from .errors import MissingDependencyError

        extra = f"[{entry.extra}]" if entry.extra else ""
        raise MissingDependencyError(
            f"{entry.name} needs torch, which is not installed. Run: "
            f'pip install "{entry.distribution}{extra}"',
            name="torch",
        ) from error
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        wanted = torch.device(device)
        if wanted.type == "meta":
            raise RuntimeError("meta holds no data")
    except Exception as error:  # torch has a different one for each kind of device it lacks
        have = ["cpu"]
        have += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        have += ["mps"] if torch.backends.mps.is_available() else []
        raise DeviceError(
            f"device={str(device)!r} is not there. This machine has {', '.join(have)}; "
            '"auto" takes the best.'
        ) from error
    return str(wanted)


def _dtype_name(dtype: Any) -> str:
    """The name of a floating-point torch dtype. Raises DeviceError."""
    if dtype is None:
        return "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16"):
        raise DeviceError(f"dtype={str(dtype)!r}: expected float32, float16 or bfloat16.")
    return name
