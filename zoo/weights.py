"""Weights on disk: safetensors in and out, checked before use; atomic writes; saved folders.

Loading never runs code from a file and never leaves half a model: the header is checked against the
network before a tensor is read, the network is built without memory (meta device), and tensors are
assigned, not copied. Tensors are read into memory, not memory-mapped, so a model in use does not
change or crash when its file is replaced.

Writing is all or nothing: a temporary sibling is renamed on success and removed on any error,
Ctrl-C included. This module imports torch only inside the functions that need it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import (
    DeviceError,
    OutputError,
    PluginError,
    WeightsError,
    WeightsNotFoundError,
)
from .files import FORBIDDEN, MANIFEST, opened
from .files import atomic_file as atomic_file
from .files import atomic_folder as atomic_folder
from .files import check_target as check_target
from .files import sha256 as sha256
from .files import verify as verify

if TYPE_CHECKING:
    import torch

    from .entry import Base, Entry
    from .interfaces import Model

FORMAT = 1
"""Version of ``zoo.json`` that this zoo writes and reads."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 32 * 1024 * 1024  # a model of 100,000 tensors has a header of about 10 MB
MAX_JSON = 1024 * 1024

# safetensors' name of a dtype -> torch's name, bytes for one element
_DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
_MANIFEST: Mapping[str, Any] = {
    **dict.fromkeys(("zoo", "plugin", "distribution", "model", "kind", "class"), str),
    **dict.fromkeys(("config", "options", "files"), dict),
    "interface": str | None,
    "bases": dict,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


# --- reading files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """The position of a tensor in its file, in bytes from the start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (torch dtype name, shape) of every tensor in a safetensors file.

    Reads only the header, and checks it completely. Raises WeightsError for a file that is cut
    short, damaged, or not safetensors.
    """
    return {name: (slot.dtype, slot.shape) for name, slot in _slots(Path(path)).items()}


def _slots(path: Path) -> dict[str, _Slot]:
    """The checked header, in the order of the tensors in the file."""

    def bad(why: str) -> WeightsError:
        return WeightsError(f"{path} {why} Get it again.")

    with opened(path) as file:
        total = os.fstat(file.fileno()).st_size
        start = file.read(9)
        if total < 9:
            raise bad(f"is not a safetensors file: it has only {total} bytes.")
        at = 8 + struct.unpack("<Q", start[:8])[0]
        # A length may begin with any byte; if it is implausible, say what the file may be.
        if start[8:] != b"{" or at > MAX_HEADER:
            raise WeightsError(f"{path} {_what_else(start)}")
        if at > total:
            raise bad(f"is cut short: its header alone has {at - 8} bytes.")
        text = b"{" + file.read(at - 9)
    try:
        raw = _json(text)
        raw.pop("__metadata__", None)
        slots = {name: _slot(name, value, at) for name, value in raw.items()}
    except ValueError as error:
        raise bad(f"has a damaged header: {error}.") from None
    slots = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].end)))
    for name, slot in slots.items():
        if slot.start != at:
            raise bad(f"has a damaged header: {name!r} leaves a gap or overlaps.")
        at = slot.end
    if at > total:
        raise bad(f"is cut short: it has {total} bytes, but its header promises {at}.")
    if at < total:
        raise bad(f"has {total - at} bytes after its last tensor.")
    return slots


def _what_else(start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return (
            "is a pickle or zip checkpoint under another name, which can run code. "
            "Convert it to safetensors where it came from."
        )
    if start.startswith(b"version "):
        return "is a git-lfs pointer, not the file itself. Run: git lfs pull"
    return "is not a safetensors file: it does not start with a header. Get it again."


def _slot(name: str, value: Any, offset: int) -> _Slot:
    try:
        shape, (start, end) = value["shape"], value["data_offsets"]
        dtype, size = _DTYPES[value["dtype"]]
        fits = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in [*shape, start])
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits or type(end) is not int or end - start != math.prod(shape) * size:
        raise ValueError(f"{name!r} is {value!r:.100}")
    return _Slot(dtype, tuple(shape), offset + start, offset + end)


def _tensors(
    path: Path, slots: Mapping[str, _Slot], skip: Set[str] = frozenset()
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in file order, each in separate memory."""
    import torch

    with opened(path) as file:
        for name, slot in slots.items():
            if name in skip:
                continue
            tensor = torch.empty(slot.shape, dtype=getattr(torch, slot.dtype))
            file.seek(slot.start)
            if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy()) != slot.end - slot.start:
                raise WeightsError(f"{path} changed while it was read. Try again.")
            yield name, tensor


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU, by name."""
    return dict(_tensors(Path(path), _slots(Path(path))))


def load_module(
    build: Callable[[], torch.nn.Module],
    file: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> torch.nn.Module:
    """Build a network and give it the weights in ``file``; returns it in eval mode.

    ``file``: a safetensors file, or a folder with ``model.safetensors`` or (in parts)
    ``model.safetensors.index.json``. ``build`` runs on the meta device, so it needs no memory and
    must not read values. Names, shapes and dtype kinds are compared before a tensor is read; tied
    parameters may be stored once. Floating-point weights get ``dtype``, others keep theirs. Buffers
    that are not in the file come from the module's own ``recompute_buffers(device)``, which is
    called on each submodule that has one, and keep the dtype that it gives them.

    Raises WeightsError if file and network differ (the first ten names of each kind are listed) and
    PluginError if a parameter or buffer would be left without a value.
    """
    import torch

    target = getattr(torch, dtype, None)
    if not isinstance(target, torch.dtype) or not target.is_floating_point:
        raise DeviceError(f"dtype={dtype!r} is not a floating-point dtype. Try 'float32'.")
    parts = {part: _slots(part) for part in _parts(Path(file))}
    with torch.device("meta"), _no_normal():
        module = build()
    expected = {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, torch.Tensor)
    }
    first: dict[int, str] = {}
    tied = {name: first.setdefault(id(tensor), name) for name, tensor in expected.items()}
    stored = {name: slot for slots in parts.values() for name, slot in slots.items()}
    _compare(Path(file), type(module).__name__, expected, stored, tied)

    values: dict[str, torch.Tensor] = {}  # by the first name of each tensor
    for part, slots in parts.items():
        twice = {name for name in slots if tied[name] != name and tied[name] in stored}
        for name, tensor in _tensors(part, slots, skip=twice):
            value = tensor.to(device, target if tensor.dtype.is_floating_point else None)
            if isinstance(old := expected[name], torch.nn.Parameter):
                # A tied Parameter stays one object under all its names.
                value = torch.nn.Parameter(value, requires_grad=old.requires_grad)
            values[tied[name]] = value
    tensors = {name: values[kept] for name, kept in tied.items()}
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{file} does not fit {type(module).__name__}: {error}") from error
    for part_of in module.modules():
        if callable(recompute := getattr(part_of, "recompute_buffers", None)):
            recompute(device)
    left = [
        name
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named()
        if tensor.is_meta and torch.device(device).type != "meta"
    ]
    if left:
        raise PluginError(
            f"{type(module).__name__}: {_some(left)} got no value: not in the state_dict, and "
            f"not set by recompute_buffers(device). Add that method, or make the buffer persistent."
        )
    return module.to(device).eval()


def _no_normal() -> AbstractContextManager[Any]:
    """Skip drawing normal numbers: on meta it does nothing but import sympy, for 1.5 s."""
    from torch.overrides import TorchFunctionMode

    class NoNormal(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__name__", "") == "normal_":  # of Tensor and of torch.nn.init
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    return NoNormal()


def _parts(file: Path) -> list[Path]:
    if not file.is_dir():
        return [file]
    if (file / WEIGHTS).is_file():
        return [file / WEIGHTS]
    index = file / INDEX
    if not index.is_file():
        raise WeightsNotFoundError(f"{file} has neither {WEIGHTS} nor {INDEX}.")
    try:
        names = sorted(set(_json(_small(index))["weight_map"].values()))
        if not all(_inside(name) and name.endswith(".safetensors") for name in names):
            raise ValueError("a part is not a safetensors file in this folder")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{index} is not an index of parts ({error}).") from None
    return [file / name for name in names]


def _compare(
    file: Path,
    network: str,
    expected: Mapping[str, torch.Tensor],
    stored: Mapping[str, _Slot],
    tied: Mapping[str, str],
) -> None:
    have = {tied[name] for name in stored if name in tied}
    missing = [name for name in expected if tied[name] not in have]
    extra = [name for name in stored if name not in expected]
    shapes, kinds = [], []
    for name, slot in stored.items():
        if name not in expected:
            continue
        shape, dtype = tuple(expected[name].shape), str(expected[name].dtype).removeprefix("torch.")
        if slot.shape != shape:
            shapes.append(f"{name} {slot.shape} for {shape}")
        if slot.dtype != dtype and not ("float" in slot.dtype and "float" in dtype):
            kinds.append(f"{name} {slot.dtype} for {dtype}")
    faults = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("not in the network", extra),
            ("of another shape", shapes),
            ("of another dtype", kinds),
        )
        if names
    ]
    if faults:
        raise WeightsError(
            f"{file} does not fit {network}: {'; '.join(faults)}. "
            "The weights belong to another model or configuration."
        )


# --- writing --------------------------------------------------------------------------------------


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = True,
) -> Path:
    """Write tensors to a safetensors file, whole or not at all; returns the path.

    Any device and stride; tensors that share memory are each stored in full. Raises WeightsError
    for anything but dense tensors with values, OutputError if the file cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    known = {name for name, _ in _DTYPES.values()}
    ready: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"cannot save {name!r}: {type(tensor).__name__} is not a torch tensor."
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta or tensor.layout != torch.strided or dtype not in known:
            what = "on the meta device" if tensor.is_meta else f"{tensor.layout} {dtype}"
            raise WeightsError(f"cannot save {name!r}: it is {what}, not a dense tensor of values.")
        if name == "__metadata__":
            raise WeightsError("cannot save '__metadata__': safetensors reserves this name.")
        cpu = tensor.detach().cpu().contiguous()
        # safetensors refuses two tensors in one storage, so the second one is copied.
        storage = cpu.untyped_storage().data_ptr()
        ready[name] = cpu.clone() if storage in storages else cpu
        storages.add(storage)
    path = Path(path)
    with atomic_file(path, overwrite=overwrite) as temporary:
        try:
            save_file(ready, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise OutputError(f"cannot write {path}: {error}.") from error
    return path


# --- saved folders --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """A saved folder whose ``zoo.json`` is well formed and whose files match it."""

    folder: Path
    manifest: Mapping[str, Any]
    """The parsed ``zoo.json``: what ``BuildRequest.saved`` is."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The load options in force when it was saved."""
        options: Mapping[str, Any] = self.manifest["options"]
        return options


def save_model(model: Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model as a saved folder, whole or not at all; returns the path.

    ``model.state()`` goes to ``model.safetensors`` (left out if empty), next to the files that
    ``model.save_files(folder)`` writes.
    """
    path = Path(path)
    entry, kind = model.entry, type(model)
    with atomic_folder(path, overwrite=overwrite) as folder:
        if state := model.state():
            save_tensors(folder / WEIGHTS, state)
        model.save_files(folder)
        refuse_pickles(folder)
        files = {
            file.relative_to(folder).as_posix(): {
                "size": file.stat().st_size,
                "sha256": sha256(file),
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        facts = manifest(
            entry,
            files,
            kind=model.kind,
            interface=model.interface,
            class_=f"{kind.__module__}:{kind.__qualname__}",
            config=model.config,
            options=model.options,
            bases={name: _base_record(base, path) for name, base in model.bases.items()},
        )
        try:
            text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{entry.name} cannot be saved: its config, options or base is not JSON ({error})."
            ) from error
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return path


def _base_record(base: Base, folder: Path) -> dict[str, Any]:
    """The record of a base in ``zoo.json``. ``folder``: the saved folder.

    The path of a base folder inside or next to the saved one is relative to it, so that both can be
    moved; any other path is absolute.
    """
    kept = replace(base, folder=None)
    if base.folder is not None and base.sha256 is not None:  # a folder of the user's
        own, saved = base.folder.resolve(), folder.resolve()
        near = own.is_relative_to(saved.parent) and own != saved
        path = os.path.relpath(own, saved).replace(os.sep, "/") if near else own.as_posix()
        kept = replace(kept, id=path if path.startswith((".", "/")) or not near else f"./{path}")
    return {name: getattr(kept, name) for name in ("id", "revision", "sha256", "license")}


def manifest(
    entry: Entry,
    files: Mapping[str, Mapping[str, Any]],
    *,
    kind: str = "model",
    interface: str | None = "",
    class_: str | None = None,
    config: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    bases: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``zoo.json``; values that are not given come from the registry entry."""
    return {
        "format": FORMAT,
        "zoo": __version__,
        "plugin": entry.plugin,
        "distribution": entry.distribution,
        "model": entry.name,
        "kind": kind,
        "interface": entry.interface if interface == "" else interface,
        "class": class_ or entry.class_,
        "config": dict(entry.config if config is None else config),
        "options": dict(options or {}),
        "bases": dict(bases or {}),
        "files": dict(files),
    }


def read_saved(folder: str | Path, *, shared: bool = False) -> Saved:
    """Read a saved folder: ``zoo.json`` checked, then size and SHA-256 of every file it lists.

    ``shared``: a folder of the Hub's cache, in which other programs may keep pickles. Raises
    WeightsNotFoundError if the folder, ``zoo.json`` or a listed file is missing, WeightsError for
    any other fault, including a pickle.
    """
    folder = Path(folder)
    _require_folder(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise WeightsNotFoundError(f"{folder} is not a saved model: it has no {MANIFEST}.")
    try:
        manifest = _json(_small(path))
    except ValueError as error:
        raise WeightsError(f"{path} is damaged ({error}). Save the model again.") from None
    if type(manifest.get("format")) is int and manifest["format"] > FORMAT:
        raise WeightsError(
            f"{path} has format {manifest['format']}; this zoo reads up to {FORMAT}. "
            "Upgrade: pip install -U edgezoo"
        )
    _as_now(manifest)
    if mistakes := _mistakes(manifest):
        raise WeightsError(f"{path} is not valid: {'; '.join(mistakes)}. Save the model again.")
    if not shared:
        refuse_pickles(folder)
    for name, file in manifest["files"].items():
        verify(folder / name, file["size"], file["sha256"])
    return Saved(folder, manifest)


def _as_now(manifest: dict[str, Any]) -> None:
    """Convert a zoo.json with a single base to the current form."""
    if "base" in manifest and "bases" not in manifest:
        base = manifest.pop("base")
        manifest["bases"] = {} if base is None else {"base": base}
    kept = manifest.get("bases")
    for base in kept.values() if isinstance(kept, dict) else ():
        if isinstance(base, dict):
            for key in ("revision", "sha256", "license"):
                base.setdefault(key, None)


def check_plain_folder(folder: str | Path) -> Path:
    """Check a folder of weights without ``zoo.json``: safetensors and no pickles; returns it."""
    folder = Path(folder)
    _require_folder(folder)
    refuse_pickles(folder)
    if not any(folder.glob("*.safetensors")):
        raise WeightsNotFoundError(
            f"{folder} holds no weights: expected {WEIGHTS}. Pass the folder that has it."
        )
    return folder


def refuse_pickles(folder: str | Path) -> None:
    """Raise WeightsError naming the files in a folder that can hold pickled code, if any."""
    folder = Path(folder)
    found = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in FORBIDDEN
    )
    if found:
        raise WeightsError(
            f"{folder} holds {_some(found)}: such files can run code when opened and are not "
            "loaded. Convert to safetensors, and move them out of the folder."
        )


def _mistakes(manifest: Mapping[str, Any]) -> list[str]:
    """All mistakes in a zoo.json."""
    wrong = []
    if type(manifest.get("format")) is not int or manifest["format"] != FORMAT:
        wrong.append(f"format must be {FORMAT}, not {manifest.get('format')!r}")
    for key, kind in _MANIFEST.items():
        if key not in manifest:
            wrong.append(f"{key} is missing")
        elif not isinstance(manifest[key], kind):
            wrong.append(f"{key} cannot be {manifest[key]!r:.60}")
    kept = manifest.get("bases")
    for name, base in kept.items() if isinstance(kept, dict) else ():
        if not (
            isinstance(base, dict)
            and isinstance(base.get("id"), str)
            and all(isinstance(base.get(k), str | None) for k in ("revision", "sha256", "license"))
        ):
            wrong.append(f"bases: {name} must be {{id, revision, sha256, license}}")
    files = manifest.get("files")
    for name, file in files.items() if isinstance(files, dict) else ():
        if not _inside(name) or name == MANIFEST:
            wrong.append(f"files: {name!r} is not a path inside the folder")
        if not (
            isinstance(file, dict)
            and type(file.get("size")) is int
            and isinstance(file.get("sha256"), str)
            and _SHA256.fullmatch(file["sha256"])
        ):
            wrong.append(f"files: {name!r} needs a size and a sha256 of 64 lower-case hex digits")
    return wrong


# --- small helpers --------------------------------------------------------------------------------


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise WeightsNotFoundError(f"there is no folder {folder}.")


def _small(path: Path) -> bytes:
    with opened(path) as file:
        text: bytes = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise ValueError(f"it is larger than {MAX_JSON} bytes")
    return text


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else, for a duplicate key, NaN, or deep nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key appears twice")
        return made

    def no_constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _inside(name: Any) -> bool:
    """A relative path with forward slashes that cannot leave its folder."""
    return (
        isinstance(name, str)
        and not set(name) & set("\\:\0")
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
