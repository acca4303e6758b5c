"""Models from elsewhere: from what a caller names to a verified folder.

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
"""One base: as ``resolve`` takes it."""
Given: TypeAlias = "Named | Mapping[str, Named] | None"
"""``base=``: what stands for the first base, or for each by its name."""

HASHED = (".safetensors", ".json", ".txt", ".model")
"""Files of a base that is a folder whose content counts as the base's."""
MARKS = {
    "transformers": ("config.json",),
    "diffusers": ("model_index.json", "config.json"),
    "open_clip": ("open_clip_config.json",),
}
"""Kind of base -> a file that each of them has; timm's weights also come alone."""
MODEL = (".safetensors", ".json")
"""A folder without any of them holds no model, of whatever kind."""


def resolve(model: Named, *, what: str = "model", relative_to: Path | None = None) -> Base:
    """The verified folder that a Hub id, a folder or a name under ``bases:`` stands for.

    A base that was found already (that of a request) comes back as it is.

    ``what``: the argument's name, for messages. ``relative_to``: where a relative folder begins.
    Raises UsageError for what is none of them and for a folder without a model, WeightsError for
    pickles and for files that are not what the Hub says, HubError where the Hub cannot be asked.
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
        raise OptionError(f"{entry.name} works on no base model; leave base={shown!r} out.")
    if not isinstance(given, Mapping):
        return {next(iter(entry.bases)): given}
    for name in given:
        if name not in entry.bases:
            known = ", ".join(entry.bases)
            raise OptionError(f"{entry.name} has no base {name!r}. It has: {known}.")
    return dict(given)


def find(entry: Entry, given: Given, step: str) -> dict[str, Base]:
    """The bases for ``build``, ``train`` or ``bench``: as given, else the entry's default.

    Raises NotReadyError where one is missing that the step needs, else as ``resolve``.
    """
    chosen = asked(entry, given)
    found = {}
    for name, spec in entry.bases.items():
        wanted = chosen.get(name) or spec.default
        if wanted is not None:
            found[name] = _chosen(wanted, spec.kind)
        elif step in spec.needed:
            also = " Or go on from an earlier result: --init FOLDER." if step == "train" else ""
            raise NotReadyError(missing(entry, name) + also)
    return found


def _chosen(given: Named, kind: str) -> Base:
    """The base that was named; UsageError where its folder holds a model of another kind."""
    base = resolve(given, what="base")
    marks = () if isinstance(given, Base) else MARKS.get(kind, ())
    folder = base.folder
    if marks and folder and not any((folder / mark).is_file() for mark in marks):
        raise UsageError(f"base={base.id!r} is no {kind} model: it has no {' or '.join(marks)}.")
    return base


def missing(entry: Entry, name: str) -> str:
    """What to say where a base is needed and nobody has named one."""
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
    """The bases that a saved folder was made with, unless ``given`` names others.

    One that is needed to load must be there as it was; another is left without its folder where it
    is gone. Raises NotReadyError, or WeightsError where the base is not the one that was used.
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
    """A recorded base, found again; WeightsError where its files are others now."""
    wanted = f"{kept.id}@{kept.revision}" if kept.revision and "/" in kept.id else kept.id
    base = resolve(wanted, what="base", relative_to=folder)
    if kept.sha256 is not None and base.sha256 != kept.sha256:
        raise WeightsError(f"the files in {base.folder} have changed since.")
    return base


def _digest(folder: Path) -> str:
    """One hash for the files of a folder that make a model."""
    from .files import sha256

    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in HASHED and file.is_file():
            total.update(f"{file.relative_to(folder).as_posix()}\0{sha256(file)}\n".encode())
    return total.hexdigest()


def _license(folder: Path) -> str | None:
    """The licence that a model card beside the files states, by its Hub name."""
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
