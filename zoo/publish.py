"""Publishing: uploads files to the Hub in one commit, and pins that commit in the registry file.

Only files in the plan are uploaded. Only the changed scalars of the registry file are replaced:
comments and layout are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import actions, api, bench, cards, hub, plugins, spec
from .arguments import as_folder
from .entry import Entry
from .errors import NotReadyError, OutputError, UsageError
from .registry import catalogue


@dataclass(frozen=True)
class Plan:
    """The files to upload, and the registry file to pin (None for a saved folder)."""

    entry: Entry
    files: Mapping[str, Path | bytes]
    """Path in the repository -> file, or its content."""
    registry: Path | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path -> current size and sha256 of the entry's files."""

    def listing(self) -> dict[str, int]:
        """Path in the repository -> size in bytes."""
        return {
            path: len(source) if isinstance(source, bytes) else source.stat().st_size
            for path, source in self.files.items()
        }


def plan(
    model: str,
    cards_folder: Path,
    registry: Path | None = None,
    *,
    repo: str,
    license: str | None = None,
    data: Sequence[str] = (),
) -> Plan:
    """Everything that publishing a model would upload; the network is used only for weights that
    are neither in the project nor cached.

    ``model``: a name, with its files, card, results and picture; or a saved folder, with its listed
    files and a plain card that says how to load it from ``repo``, its ``license`` and its training
    ``data``, if given. Raises InputError if the card is not valid, OutputError if the registry file
    belongs to an installed copy, and WeightsError if a file differs from the registry.
    """
    from .weights import manifest, read_saved

    entry = api.entry_of(model)
    folder = as_folder(model)
    if folder is not None:
        saved = read_saved(folder)
        files: dict[str, Path | bytes] = {name: folder / name for name in saved.manifest["files"]}
        files["zoo.json"] = folder / "zoo.json"
        if license is not None and license not in cards.LICENSES:
            known = ", ".join(sorted(cards.LICENSES))
            raise UsageError(f"--license {license!r}: expected a Hub identifier: {known}.")
        card = cards.render_saved(entry, saved.manifest, repo, license=license, data=data)
        files["README.md"] = card.encode()
        return Plan(entry, files)
    if license is not None or data:
        raise UsageError(
            f"--license and --trained-on are for saved folders; those of {entry.name} are in the "
            f"registry."
        )
    if entry.status != "ready" or not entry.files:
        raise NotReadyError(f"{entry.name} has no weights of its own to publish.")
    registry = registry or _checkout_registry(entry)
    page = cards_folder / entry.name
    weights = _weights(entry)
    files = {file.path: weights / file.path for file in entry.files}
    facts = file_facts(files)
    # The card is checked against the uploaded files: its numbers may be of older weights.
    now = tuple(replace(file, **facts[file.path]) for file in entry.files)
    cards.require_valid(replace(entry, files=now), page)
    files["zoo.json"] = json.dumps(manifest(entry, facts), indent=2).encode()
    records = bench.records(page)
    pictures = [entry.card.picture, *(name for record in records for name in record["pictures"])]
    for name in dict.fromkeys(["README.md", *map(bench.file_of, records), *filter(None, pictures)]):
        if (page / name).is_file():
            if name in files:
                raise UsageError(
                    f"{page / name} would replace a weight file of the same name; rename it."
                )
            files[name] = page / name
    return Plan(entry, files, registry, facts)


def file_facts(files: Mapping[str, Path | bytes]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file on disk."""
    from .weights import sha256

    return {
        path: {"size": source.stat().st_size, "sha256": sha256(source)}
        for path, source in files.items()
        if isinstance(source, Path)
    }


def upload(plan: Plan, repo: str, *, private: bool = False) -> str:
    """Create the repository if needed, upload in one commit, pin it; returns the commit."""
    hub.parse_id(repo)
    text = plan.registry.read_bytes().decode() if plan.registry else ""  # keeps line ends

    def pinned(commit: str) -> str:
        assert plan.registry is not None
        changes: dict[tuple[Any, ...], Any] = {("hub", "repo"): repo, ("hub", "revision"): commit}
        for i, file in enumerate(plan.entry.files):
            for fact, value in plan.facts[file.path].items():
                changes["files", i, fact] = value
        return pin(text, plan.registry, plan.entry, changes)

    if plan.registry:
        pinned("0" * 40)  # fails before the upload if it cannot be pinned
    name = plan.entry.name
    commit = hub.upload(repo, plan.files, message=f"Publish {name}", private=private)
    if plan.registry:
        from .weights import atomic_file

        with atomic_file(plan.registry) as temporary:
            temporary.write_bytes(pinned(commit).encode())
    return commit


def pin(text: str, path: Path, entry: Entry, changes: Mapping[tuple[Any, ...], Any]) -> str:
    """The registry text with scalars of one entry replaced, otherwise unchanged.

    ``changes``: path of keys and indices below the entry -> value. Raises UsageError if a path is
    not in the text, RegistryError if the result is not a valid registry file.
    """
    wanted = {("models", entry.name, *key): value for key, value in changes.items()}
    spots = {key: span for key, span in _scalars(text) if key in wanted}
    missing = [".".join(map(str, key[2:])) for key in wanted if key not in spots]
    if missing:
        raise UsageError(
            f"{path}: {entry.name} has no place for {', '.join(missing)}. Add this to the entry: "
            f"hub: {{repo: org/name, revision: null}}"
        )
    for key, (start, end) in sorted(spots.items(), key=lambda item: -item[1][0]):
        text = f"{text[:start]}{json.dumps(wanted[key])}{text[end:]}"
    spec.parse(text, path=path, package=None if _first_party(entry) else entry.plugin)
    return text


def _scalars(text: str) -> list[tuple[tuple[Any, ...], tuple[int, int]]]:
    """Every scalar value with its path of keys and indices, and its position in the text."""
    import yaml

    found = []
    path: list[Any] = []  # the key or index of each open container's current child
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            path.pop()
        elif isinstance(event, yaml.ScalarEvent) and path and path[-1] is None:
            path[-1] = event.value  # a key: its value comes next
            continue
        elif isinstance(event, yaml.ScalarEvent):
            start, end = event.start_mark, event.end_mark
            assert start is not None  # only hand-made events have no marks
            assert end is not None
            found.append((tuple(path), (start.index, end.index)))
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            path.append(None if isinstance(event, yaml.MappingStartEvent) else 0)
            continue
        else:
            continue
        if path:  # a complete child: move to the next one
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
    return found


def _checkout_registry(entry: Entry) -> Path:
    """The registry file to pin, in a project and not in an installed copy."""
    plugin = catalogue().owner(entry)
    if _first_party(entry):
        path = plugins.first_party_registry()
    else:
        assert plugin.folder is not None
        path = plugin.folder / "registry.yaml"
    if any((parent / "pyproject.toml").is_file() for parent in path.parents):
        return path
    raise OutputError(
        f"{path} belongs to an installed copy. Publish from the project's checkout (pip install "
        "-e .), or name its file with --registry."
    )


def _first_party(entry: Entry) -> bool:
    return entry.distribution == plugins.HOST


def _weights(entry: Entry) -> Path:
    """The folder of the entry's files: the project's if complete, which may be newer than its
    registry."""
    bundle = catalogue().owner(entry).bundle(entry.name)
    if bundle is not None and all((bundle / file.path).is_file() for file in entry.files):
        return bundle
    located = actions.pull(f"{entry.distribution}:{entry.name}").folder
    assert located is not None  # the entry has files
    return located
