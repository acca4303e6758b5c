"""Base models: from a Hub id, folder or name to a verified folder.

A base is a Hub id (``org/name``, ``org/name@commit``), a folder, or a name under ``bases:`` of a
registry file. ``resolve`` is public: a plugin's verb that takes a model (``quantize("org/llm")``)
calls it, so that no plugin opens a connection.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from . import hub
from .arguments import as_folder, refuse_bare_folder
from .entry import Base, Entry
from .errors import NotReadyError, OptionError, UsageError, WeightsError, ZooError
from .registry import catalogue
from .weights import refuse_pickles

if TYPE_CHECKING:
    from .weights import Saved

Named: TypeAlias = "str | Path | Base"
"""One base, as ``resolve`` accepts it."""
Given: TypeAlias = "Named | Mapping[str, Named] | None"
"""``base=``: the first base, or a mapping from the names of bases."""

HASHED = (".safetensors", ".json", ".txt", ".model")
"""Endings of the files that the hash of a base folder covers."""
MARKS = {
    "transformers": ("config.json",),
    "diffusers": ("model_index.json", "config.json"),
    "open_clip": ("open_clip_config.json",),
}
"""Kind of base -> files of which it has one; timm's weights may come alone."""
MODEL = (".safetensors", ".json")
"""Endings of model files: a folder without any of them contains no model."""


def resolve(model: Named, *, what: str = "model", relative_to: Path | None = None) -> Base:
    """The verified folder that a Hub id, a folder or a name under ``bases:`` stands for.

    A base that is already resolved (from a request) is returned unchanged.

    ``what``: the argument's name, for messages. ``relative_to``: the start of relative paths.
    Raises UsageError for anything else and for a folder without a model, WeightsError for pickles
    and for files that differ from the Hub's metadata, HubError if the Hub cannot be reached.
    """
    if isinstance(model, Base):
        return model
    folder = as_folder(model)
    if folder is not None:
        if relative_to is not None and not folder.is_absolute():
            folder = relative_to / folder
        if not folder.is_dir():
            raise UsageError(f"{what}={str(model)!r}: there is no such folder.")
        refuse_pickles(folder)
        if not any(file.suffix in MODEL for file in folder.rglob("*")):
            raise UsageError(
                f"{what}={str(model)!r}: there is no model in this folder: no safetensors, no JSON."
            )
        return Base(str(folder), folder, None, _digest(folder), _license(folder))
    known = catalogue().base(str(model))
    if known is not None:
        bundled = catalogue().owner(known).bundle(known.name)
        located = hub.locate(known, bundled=bundled, progress=hub.bar())
        own = known.license.get("weights")
        return Base(known.name, located.folder, located.revision, None, own)
    refuse_bare_folder(str(model), what)
    repo, revision = hub.parse_id(str(model))
    located = hub.fetch(repo, revision, progress=hub.bar())
    assert located.folder is not None  # fetch gives one or raises
    return Base(repo, located.folder, located.revision, None, _license(located.folder))


def asked(entry: Entry, given: Given) -> dict[str, Named]:
    """``base=`` by name. Raises OptionError for a base that the entry does not have."""
    if given is None:
        return {}
    if not entry.bases:
        named = given.values() if isinstance(given, Mapping) else [given]
        shown = ", ".join(map(str, named))
        raise OptionError(f"{entry.name} uses no base model; leave out base={shown!r}.")
    if not isinstance(given, Mapping):
        return {next(iter(entry.bases)): given}
    for name in given:
        if name not in entry.bases:
            known = ", ".join(entry.bases)
            raise OptionError(f"{entry.name} has no base {name!r}. It has: {known}.")
    return dict(given)


def find(entry: Entry, given: Given, step: str) -> dict[str, Base]:
    """The bases for ``build``, ``train`` or ``bench``: the given ones, else the entry's defaults.

    Raises NotReadyError if a base that the step needs is missing, and as ``resolve``.
    """
    chosen = asked(entry, given)
    found = {}
    for name, spec in entry.bases.items():
        wanted = chosen.get(name) or spec.default
        if wanted is not None:
            found[name] = _chosen(wanted, spec.kind)
        elif step in spec.needed:
            also = " Or start from an earlier result: --init FOLDER." if step == "train" else ""
            raise NotReadyError(missing(entry, name) + also)
    return found


def _chosen(given: Named, kind: str) -> Base:
    """The named base; UsageError if its folder contains a model of another kind."""
    base = resolve(given, what="base")
    marks = () if isinstance(given, Base) else MARKS.get(kind, ())
    folder = base.folder
    if marks and folder and not any((folder / mark).is_file() for mark in marks):
        raise UsageError(
            f"base={base.id!r} is not a model of kind {kind}: it has no {' or '.join(marks)}."
        )
    return base


def missing(entry: Entry, name: str) -> str:
    """The message for a required base that was not given."""
    spec = entry.bases[name]
    several = len(entry.bases) > 1
    called = f"the base {name!r}" if several else "a base"
    python = f"base={{{name!r}: 'org/name'}}" if several else "base='org/name'"
    command = f"--base {name}=ORG/NAME" if several else "--base ORG/NAME"
    return (
        f"{entry.name} works on {called} of kind {spec.kind}: give {python} (a Hub id or a folder; "
        f"on the command line {command})."
    )


def again(entry: Entry, given: Given, saved: Saved) -> dict[str, Base]:
    """The bases that a saved model was made with, unless ``given`` names others.

    A base that loading needs must exist unchanged; any other has no folder if it is gone. Raises
    NotReadyError, or WeightsError if the base has changed.
    """
    chosen, found = asked(entry, given), {}
    records: Mapping[str, Any] = saved.manifest["bases"]
    for name, spec in entry.bases.items():
        if name in chosen:
            found[name] = _chosen(chosen[name], spec.kind)
            continue
        record = records.get(name)
        if record is None:
            if "load" in spec.needed and spec.default is not None:
                found[name] = resolve(spec.default, what="base")
            continue
        kept = Base(record["id"], None, record["revision"], record["sha256"], record["license"])
        try:
            found[name] = _as_it_was(kept, saved.folder)
        except ZooError as error:
            if "load" in spec.needed:
                raise type(error)(
                    f"{saved.folder} needs the {spec.kind} model that it was made on: {error} "
                    "Pass base= with its folder or Hub id."
                ) from error
            found[name] = kept
    return found


def _as_it_was(kept: Base, folder: Path) -> Base:
    """Resolve a recorded base; WeightsError if its files have changed."""
    wanted = f"{kept.id}@{kept.revision}" if kept.revision and "/" in kept.id else kept.id
    base = resolve(wanted, what="base", relative_to=folder)
    if kept.sha256 is not None and base.sha256 != kept.sha256:
        raise WeightsError(f"the files in {base.folder} have changed since.")
    return base


def _digest(folder: Path) -> str:
    """One hash over the model files of a folder."""
    from .files import sha256

    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in HASHED and file.is_file():
            total.update(f"{file.relative_to(folder).as_posix()}\0{sha256(file)}\n".encode())
    return total.hexdigest()


def _license(folder: Path) -> str | None:
    """The licence in the model card next to the files, by its Hub identifier."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_text("utf-8", errors="replace")[:8192]
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    stated = (
        re.search(r"^license:[ ]*[\"']?([\w.+-]{1,60})[\"']?[ ]*$", front[1], re.M)
        if front
        else None
    )
    return stated[1] if stated else None
