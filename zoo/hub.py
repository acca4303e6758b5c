"""Finds the files of a model: bundled, in the Hugging Face cache, or on the Hub.

The only module of the host that uses the network. Every file, wherever it comes from, is compared
with its expected size and hash before it is parsed.

* ``locate``: a registry entry, with the size and sha256 of each file and a pinned commit. Files
  are bundled, else cached (no request at all), else downloaded.
* ``fetch``: any repository. It is resolved to a commit once and checked against the Hub's metadata
  of that commit, and both are recorded in the cache: trusted on first use.

huggingface_hub supplies the session, headers, token, endpoint, lock and the layout of the cache,
and its variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN) work unchanged.
This module downloads the bytes itself because huggingface_hub does not compare the sha256 (a
corrupted file is cached under the name of the right hash), starts again from zero after a kill, and
needs minutes to give up on a server that hangs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HubError, UsageError, WeightsError, WeightsNotFoundError
from .files import FORBIDDEN, MANIFEST
from .progress import track

if TYPE_CHECKING:
    from .entry import BaseEntry, Entry, FileSpec
    from .progress import Progress

# The file types taken from other people's repositories; none runs code when it is opened.
SAFE_TYPES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() '
    "for k, v in torch.load('FILE', weights_only=True).items()}, 'model.safetensors')\""
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"(?=.{1,250}$)\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)
_VARIANT = re.compile(r"\.(fp16|non_ema)(?=\.safetensors$)")
_ATTEMPTS = 3  # in a row without a new byte before a download fails


@dataclass(frozen=True)
class Located:
    """A folder that contains every requested file, verified."""

    folder: Path | None
    """None if the model has no files. May contain other files: open files by name only."""
    source: str
    """``bundled``, ``cache``, ``hub``, ``folder`` or ``none``."""
    repo: str | None = None
    revision: str | None = None
    """The commit, 40 hex digits, if the files came from the Hub (now or earlier)."""


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    digest: str
    """64 hex digits: sha256 of the content. 40: its git sha1, for files outside LFS."""
    blob: str = ""
    """The Hub's name of the content (its ETag): the file's name in ``blobs/`` of the cache."""


class _Failure(Exception):  # noqa: N818 (never leaves this module)
    """One place does not have the files: why, and what the user can do."""

    def __init__(self, kind: type[WeightsError], why: str, advice: str) -> None:
        super().__init__(why)
        self.kind, self.why, self.advice = kind, why, advice

    def told(self, name: str, tried: Sequence[str]) -> WeightsError:
        """The error for the user, with every place that was tried."""
        places = "".join(f"\n  {place}" for place in [*tried, self.why])
        return self.kind(f"{name}: could not get the files. Tried:{places}\n{self.advice}")


# --- the public questions -------------------------------------------------------------------------


def locate(
    entry: Entry | BaseEntry, *, bundled: Path | None, progress: Progress = False
) -> Located:
    """The verified files of a registry entry: bundled, else cached, else from the Hub.

    ``bundled``: the folder for them in the entry's package; it need not exist. Raises WeightsError
    if a file differs from the registry, HubError if the Hub is unreachable or refuses,
    WeightsNotFoundError if no place has the files; each lists the places tried.
    """
    if bundled is not None:
        _warn_of_unlisted(entry, bundled)
    if not entry.files:
        return Located(None, "none")
    tried = []
    if bundled is not None:
        missing = [file.path for file in entry.files if not (bundled / file.path).is_file()]
        if not missing:
            try:
                check_files(bundled, entry.files)
            except WeightsError as error:
                raise WeightsError(
                    f"{entry.name}: a bundled file is damaged: {error} Reinstall its package "
                    f"(pip install --force-reinstall {entry.distribution or entry.plugin})."
                ) from error
            return Located(bundled, "bundled")
        tried.append(f"bundle: {bundled / missing[0]} is not there")
    try:
        if entry.hub is None or entry.hub.revision is None:
            raise _Failure(
                WeightsNotFoundError,
                f"hub: {entry.hub.repo if entry.hub else entry.name} is not published yet",
                "Reinstall the package if it should bundle them, or pass a folder that has them.",
            )
        repo, commit = entry.hub.repo, entry.hub.revision
        snapshot = _storage(repo) / "snapshots" / commit
        files = [_File(spec.path, spec.size, spec.sha256) for spec in entry.files]
        wrong = {file: why for file in files if (why := _fault(snapshot / file.path, file))}
        if not wrong:
            return Located(snapshot, "cache", repo, commit)
        tried.append("cache: " + next(f"{snapshot / f.path} {why}" for f, why in wrong.items()))
        _, listing = _ask(repo, commit)
        _obtain(repo, commit, [_as_pinned(repo, file, listing) for file in wrong], progress)
        return Located(snapshot, "hub", repo, commit)
    except _Failure as failure:
        raise failure.told(entry.name, tried) from failure


def _warn_of_unlisted(entry: Entry | BaseEntry, bundled: Path) -> None:
    """Warn about bundled files that the registry entry does not list: they are never read."""
    listed = {file.path for file in entry.files}
    found = (p.relative_to(bundled).as_posix() for p in bundled.rglob("*") if p.is_file())
    unlisted = sorted(path for path in found if path not in listed and not path.startswith("."))
    if unlisted:
        shown = ", ".join(unlisted[:5]) + (", ..." if len(unlisted) > 5 else "")
        warnings.warn(
            f"{entry.name}: {bundled} also has {shown}, which its registry entry does not list "
            "under files: not used.",
            stacklevel=2,
        )


def fetch(
    repo_id: str,
    revision: str | None = None,
    *,
    patterns: Sequence[str] | None = None,
    progress: Progress = False,
) -> Located:
    """The safetensors, configuration and tokenizer files of any Hub repository, verified.

    Without ``revision`` the first commit seen is kept: later calls make no request. A branch or tag
    is looked up each time; if the Hub is unreachable, its last known commit is used, with a
    warning. A full commit needs no request once cached. ``patterns`` (globs) selects files. Raises
    UsageError for a malformed id, and as ``locate``.
    """
    parse_id(repo_id if revision is None else f"{repo_id}@{revision}")
    storage, ref = _storage(repo_id), revision or "main"
    pinned = _COMMIT.fullmatch(ref) is not None
    known = ref if pinned else _recorded_commit(storage, ref)
    snapshot = storage / "snapshots" / (known or ref)
    files = _select(repo_id, _recorded_files(storage, known), patterns) if known else []
    faults = (f"{snapshot / f.path} {why}" for f in files if (why := _fault(snapshot / f.path, f)))
    wrong = next(faults, None) if files else f"{storage} has no complete copy"
    tried = [f"cache: {wrong}"]
    if not wrong and (pinned or revision is None):
        return Located(snapshot, "cache", repo_id, known)
    try:
        try:
            # A damaged or incomplete pinned copy is repaired, not replaced by a newer commit.
            commit, listing = _ask(repo_id, revision or known)
        except _Failure as failure:
            if wrong:
                raise
            if not _offline():
                text = f"{repo_id}@{revision}: {failure.why}; using {known} from the cache."
                warnings.warn(text, stacklevel=2)
            return Located(snapshot, "cache", repo_id, known)
        files = _select(repo_id, listing, patterns)
        snapshot = storage / "snapshots" / commit
        missing = [file for file in files if _fault(snapshot / file.path, file)]
        large = [file for file in missing if file.path.endswith(".safetensors")]
        _obtain(repo_id, commit, [file for file in missing if file not in large], progress)
        _check_shards(repo_id, snapshot, files)  # before the large files
        _obtain(repo_id, commit, large, progress)
        _record(storage, commit, listing, None if pinned else ref)
    except _Failure as failure:
        raise failure.told(repo_id, tried) from failure
    return Located(snapshot, "hub" if missing else "cache", repo_id, commit)


def parse_id(text: str) -> tuple[str, str | None]:
    """Split ``org/name`` or ``org/name@revision``. Raises UsageError for anything else."""
    repo, at, revision = text.partition("@")
    bad = ".." in text or "--" in repo or repo.endswith((".", "-", ".git"))
    if bad or not _REPO.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{text!r} is not a Hub id: expected org/name or org/name@revision. "
            "A folder starts with ./ or /."
        )
    return repo, revision if at else None


def check_files(folder: Path, files: Iterable[FileSpec]) -> None:
    """Compare size and sha256 of each file. Raises WeightsError for the first that differs."""
    for spec in files:
        path = folder / spec.path
        if why := _fault(path, _File(spec.path, spec.size, spec.sha256)):
            raise WeightsError(f"{path} {why}.")


# --- files, hashes, and which files ---------------------------------------------------------------


def bar() -> bool:
    """Show the progress of downloads? Only on a terminal."""
    return sys.stderr.isatty()


def cache_folder() -> Path:
    """Where fetched files are kept: huggingface_hub's cache (HF_HOME, HF_HUB_CACHE).

    Raises UsageError if a file is in the way.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    for place in (folder, *folder.parents):
        if place.is_file():
            raise UsageError(
                f"fetched files are kept in {folder}, but {place} is a file. "
                "Set HF_HOME (or HF_HUB_CACHE) to a folder."
            )
    return folder


def reachable() -> str | None:
    """None if the Hub answers within ``ZOO_HUB_TIMEOUT`` seconds, else the reason."""
    if _offline():
        return "not asked, because HF_HUB_OFFLINE is set"
    seconds, endpoint = _patience(), _endpoint()
    answers = _get(f"{endpoint}/api/models", {"limit": "1"}, seconds)
    if not answers or "Timeout" in type(answers[0]).__name__:
        return f"{endpoint} did not answer within {seconds:g} s{_through()}"
    if isinstance(answers[0], Exception):
        why = (str(answers[0]) or type(answers[0]).__name__).splitlines()[0]
        return f"{endpoint} gave no answer: {why}{_through()}"
    return None


def upload(
    repo_id: str, files: Mapping[str, Path | bytes], *, message: str, private: bool = False
) -> str:
    """Create a model repository if needed, and upload files in one commit; returns the commit.

    ``files``: path in the repository -> file or content; nothing else is uploaded. Raises HubError
    with the Hub's reason, UsageError for an invalid repository name.
    """
    repo, revision = parse_id(repo_id)
    if revision is not None:
        raise UsageError(f"--to {repo_id!r}: a commit cannot be chosen; leave @{revision} out.")
    if _offline():
        raise HubError("HF_HUB_OFFLINE is set: nothing was uploaded. Unset it to publish.")
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(path, source if isinstance(source, bytes) else str(source))
        for path, source in files.items()
    ]
    api = HfApi(library_name="zoo")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message=message)
    except Exception as error:
        failure = _refusal(error, repo, None)
        raise HubError(f"{repo} was not published: {failure}. {failure.advice}") from error
    if not _COMMIT.fullmatch(done.oid):
        raise HubError(f"{repo}: the Hub answered with {done.oid!r}, which is not a commit.")
    return done.oid


def _hasher(file: _File) -> Any:
    if len(file.digest) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _feed(path: Path, hasher: Any) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)


def _fault(path: Path, file: _File) -> str | None:
    """Why the file at ``path`` is not this one, or None."""
    try:
        if not path.is_file():
            return "is not there"
        if (size := path.stat().st_size) != file.size:
            return f"has {size:,} bytes, expected {file.size:,}"
        hasher = _hasher(file)
        _feed(path, hasher)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return _difference(hasher, file)


def _difference(hasher: Any, file: _File) -> str | None:
    kind = "sha256" if len(file.digest) == 64 else "git hash"
    actual = hasher.hexdigest()
    return None if actual == file.digest else f"has {kind} {actual}, expected {file.digest}"


def _as_pinned(repo: str, file: _File, listing: Mapping[str, _File]) -> _File:
    """The registry's file with the Hub's name for its content, if the Hub's commit has that
    file."""
    remote = listing.get(file.path)
    if remote is None:
        raise _Failure(
            WeightsNotFoundError,
            f"hub: {_where(repo)} has no {file.path} at the pinned commit",
            "Registry and repository do not match: please tell the maintainers.",
        )
    if remote.size != file.size or (len(remote.digest) == 64 and remote.digest != file.digest):
        theirs, ours = (f"{f.size:,} bytes with hash {f.digest}" for f in (remote, file))
        raise _Failure(
            WeightsError,
            f"hub: {_where(repo)}: {file.path} has {theirs}, expected {ours}",
            "Nothing was downloaded. Check HF_ENDPOINT; if it is right, please tell the "
            "maintainers.",
        )
    return replace(file, blob=remote.blob)


def _select(repo: str, listing: Mapping[str, _File], patterns: Sequence[str] | None) -> list[_File]:
    """The files to download: safe types only, and no second copy of the same weights."""
    # A zoo model has an image for its check.
    types = (*SAFE_TYPES, ".png", ".jpg") if MANIFEST in listing else SAFE_TYPES
    wanted = patterns or [f"*{kind}" for kind in types]
    chosen = [
        file
        for path, file in listing.items()
        if path.endswith(types) and any(fnmatch(path, pattern) for pattern in wanted)
    ]
    if patterns is None:
        names = {file.path for file in chosen}
        # fp16 next to fp32; in diffusers repositories the single file next to its parts
        chosen = [f for f in chosen if _VARIANT.sub("", f.path) not in names - {f.path}]
        if "model_index.json" in names:
            chosen = [f for f in chosen if "/" in f.path or not f.path.endswith(".safetensors")]
    pickles = [path for path in listing if path.endswith(FORBIDDEN)]
    if pickles and not any(file.path.endswith(".safetensors") for file in chosen):
        raise WeightsError(
            f"{repo} has its weights only as {pickles[0]}: a pickle, which can run code when it is "
            "opened, so zoo neither opens nor downloads it. Convert it where you trust it, next "
            f"to its other files, and load that folder:\n  {CONVERT.replace('FILE', pickles[0])}"
        )
    if listing and not chosen:
        raise WeightsError(f"{repo} has no file like {', '.join(wanted)}.")
    card = listing.get("README.md")  # states the licence
    return [*chosen, card] if patterns is None and card is not None else chosen


def _check_shards(repo: str, snapshot: Path, files: Sequence[_File]) -> None:
    """Raise WeightsError if an index names a shard that is not among the files."""
    names = {file.path for file in files}
    for path in (name for name in names if name.endswith(".safetensors.index.json")):
        try:
            index = json.loads((snapshot / path).read_text(encoding="utf-8"))
            shards = {str(shard) for shard in index["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{repo}: {path} is not an index of shards: {error!r}.") from error
        folder = path.rpartition("/")[0]
        for shard in sorted(shards):
            if (f"{folder}/{shard}" if folder else shard) not in names:
                raise WeightsError(f"{repo}: {path} names {shard!r}, which the repository lacks.")


# --- the cache, in huggingface_hub's layout -------------------------------------------------------


def _storage(repo: str) -> Path:
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def _recorded_commit(storage: Path, ref: str) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        text = (storage / "refs" / ref).read_text(encoding="utf-8").strip()
        return text if _COMMIT.fullmatch(text) else None
    return None


def _recorded_files(storage: Path, commit: str) -> dict[str, _File]:
    """The Hub's listing of this commit when it was downloaded; empty if none is recorded."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        record = json.loads((storage / "trees" / f"{commit}.json").read_text(encoding="utf-8"))
        if record["format_version"] == 1:
            return {
                path: _listed(path, file["size"], file["blob_id"], file.get("lfs_sha256"))
                for path, file in record["files"].items()
            }
    return {}


def _record(storage: Path, commit: str, listing: Mapping[str, _File], ref: str | None) -> None:
    """Record listing and ref where huggingface_hub keeps them; called when all files are
    complete."""
    files = {
        f.path: {"size": f.size, "blob_id": f.digest}
        | ({"lfs_sha256": f.digest, "lfs_size": f.size} if len(f.digest) == 64 else {})
        for f in listing.values()
    }
    record = json.dumps({"format_version": 1, "files": files})
    texts = {storage / "trees" / f"{commit}.json": record}
    if ref is not None:
        texts[storage / "refs" / ref] = commit
    for path, text in texts.items():
        with suppress(OSError):  # a read-only cache with the right files works without
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            part.write_text(text, encoding="utf-8")
            part.replace(path)


def _obtain(repo: str, commit: str, files: Sequence[_File], progress: Progress) -> None:
    """Download files into the cache, each whole and checked or not at all."""
    import errno
    import shutil

    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    if not files:
        return
    storage, total = _storage(repo), sum(file.size for file in files)
    try:
        free = shutil.disk_usage(next(f for f in (storage, *storage.parents) if f.exists())).free
        if free < total:
            raise OSError(errno.ENOSPC, f"it needs {total:,} bytes, and {free:,} are free")
        with track(total, progress, f"download {repo}") as advance:
            for file in files:
                blob = storage / "blobs" / file.blob
                pointer = storage / "snapshots" / commit / file.path
                lock = storage.parent / ".locks" / storage.name / f"{file.blob}.lock"
                for path in (blob, pointer, lock):
                    path.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(lock):  # waits for other processes
                    if _fault(blob, file):
                        part = blob.with_name(f"{blob.name}.incomplete")
                        _download(repo, commit, file, part, advance)
                        part.replace(blob)
                    _point(pointer, blob)
    except OSError as error:
        raise _Failure(
            WeightsNotFoundError,
            f"cache: {storage} cannot be written: {error.strerror or error}",
            "Free space (zoo cache), make the folder writable, or set HF_HOME to another one.",
        ) from error


def _point(pointer: Path, blob: Path) -> None:
    part = pointer.with_name(f"{pointer.name}.{os.getpid()}.tmp")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # no symlinks here (Windows): the file itself, as huggingface_hub does
        blob.replace(pointer)
    else:
        part.replace(pointer)


# --- the network ----------------------------------------------------------------------------------


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    """The Hub's address. Raises UsageError if HF_ENDPOINT is not an address."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    text = constants.ENDPOINT
    with suppress(ValueError):  # from a port that is not a number
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and not re.search(r"\s", text):
            _ = parts.port
            return text
    raise UsageError(
        f"HF_ENDPOINT={text!r} is not an address: expected https://host, without spaces. "
        "Unset it for the public Hub."
    )


def _through() -> str:
    """ " through the proxy ..." if one is set for the Hub, else an empty text."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(_endpoint())
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return ""
    return f" through the proxy {proxy} ({parts.scheme.upper()}_PROXY or ALL_PROXY)"


def _where(repo: str) -> str:
    return f"{_endpoint()}/{repo}"


def _patience() -> float:
    text = os.environ.get("ZOO_HUB_TIMEOUT") or "2"
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise UsageError(f"ZOO_HUB_TIMEOUT={text!r}: expected seconds, such as 2.")


def _ask(repo: str, revision: str | None) -> tuple[str, dict[str, _File]]:
    """Ask the Hub for the commit of a revision and its files. Raises _Failure."""
    if _offline():
        raise _Failure(
            WeightsNotFoundError,
            "hub: not asked, because HF_HUB_OFFLINE is set",
            "Unset HF_HUB_OFFLINE, or pass a folder that has the files (./folder).",
        )
    from urllib.parse import quote

    seconds = _patience()
    url = f"{_endpoint()}/api/models/{repo}"
    url += f"/revision/{quote(revision, safe='')}" if revision else ""
    answers = _get(url, {"blobs": "true"}, seconds)
    if not answers or "Timeout" in type(answers[0]).__name__:
        raise _Failure(
            HubError,
            f"hub: {_where(repo)} did not answer within {seconds:g} s{_through()}",
            "Check the network and HF_ENDPOINT, or give it more seconds with ZOO_HUB_TIMEOUT.",
        )
    if isinstance(answers[0], Exception):
        raise _refusal(answers[0], repo, revision) from answers[0]
    try:
        commit, siblings = answers[0]["sha"], answers[0]["siblings"]
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit!r} is not a commit")
        files = [
            _listed(f["rfilename"], f["size"], f["blobId"], (f.get("lfs") or {}).get("sha256"))
            for f in siblings
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refusal(error, repo, revision) from error
    if revision and _COMMIT.fullmatch(revision) and commit != revision:
        raise _Failure(
            HubError,
            f"hub: {_where(repo)} answered with commit {commit} when asked for {revision}",
            "Check HF_ENDPOINT: this server does not behave like a Hub.",
        )
    return commit, {file.path: file for file in files}


def _get(url: str, query: Mapping[str, str], seconds: float) -> list[Any]:
    """The JSON answer, or the error, as the only item; empty after a timeout.

    The request runs in a separate thread, so that a dead name server and a very slow answer time
    out too.
    """
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    answers: list[Any] = []

    def request() -> None:
        try:
            headers = build_hf_headers(library_name="zoo")
            response = get_session().get(url, headers=headers, params=query, timeout=seconds)
            hf_raise_for_status(response)
            answers.append(response.json())
        except Exception as error:  # handed over to the caller's thread
            answers.append(error)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers


def _listed(path: str, size: int, blob_id: str, sha256: str | None) -> _File:
    """A file as the Hub lists it. Raises ValueError for an invalid name, hash or size."""
    digest = sha256 or blob_id
    parts = path.split("/")
    if any(p in ("", ".", "..") for p in parts) or re.search(r'[\\:*?"<>|\x00-\x1f]', path):
        raise ValueError(f"it lists {path!r}, a name that could leave its folder")
    if not (_SHA256 if sha256 else _COMMIT).fullmatch(digest):
        raise ValueError(f"it gives {path!r} the hash {digest!r}")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"it gives {path!r} the size {size!r}")
    return _File(path, size, digest, digest)


def _refusal(error: Exception, repo: str, revision: str | None) -> _Failure:
    """The failure for an error of the Hub or the network."""
    from huggingface_hub import get_token

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    headers = getattr(response, "headers", {})
    code, said = headers.get("X-Error-Code"), headers.get("X-Error-Message") or "no reason given"
    where, log_in = f"hub: {_where(repo)}", "log in (hf auth login) or set HF_TOKEN"
    kind: type[WeightsError] = HubError
    if response is None and isinstance(error, ValueError | KeyError | TypeError | AttributeError):
        why = f"gave an answer that is not from a Hub: {error}"
        advice = "Check HF_ENDPOINT, and whether a login page of the network intercepts requests."
    elif status is None:
        proxy = _through()
        why = f"could not be reached{proxy}: {error}"
        advice = "Check the network and HF_ENDPOINT."
        if proxy:
            advice = "Check the proxy; NO_PROXY names the hosts that need none."
    elif code == "GatedRepo":
        why = "is gated: you must accept its owner's conditions"
        advice = f"Accept them on that page, then {log_in}."
    elif code == "RevisionNotFound":
        why = f"has no revision {revision!r}"
        advice = "Name a branch, tag or commit that exists: org/name@revision."
    elif code == "EntryNotFound":
        kind = WeightsNotFoundError
        why = "lists a file that it does not have"
        advice = "Check HF_ENDPOINT: a mirror may be incomplete."
    elif said.startswith("Invalid credentials"):
        why = "refused your token"
        advice = "Renew it (hf auth login, or HF_TOKEN), or unset it for public repositories."
    elif status == 401 or (status == 404 and get_token() is None):
        why = "is private or does not exist (the Hub says which only after login)"
        advice = f"Check the spelling; if it is private, {log_in}."
    elif status == 404:
        why = "does not exist, or your token may not see it"
        advice = "Check the spelling, and the permissions of your token."
    elif status == 403:
        why = f"denies access: {said}"
        advice = "Use a token that may read it (HF_TOKEN)."
    else:
        why = f"answered {status}: {said}"
        advice = "Wait a little and try again."
    return _Failure(kind, f"{where} {why}", advice)


def _download(
    repo: str, commit: str, file: _File, part: Path, advance: Callable[[int], None]
) -> None:
    """Download a file into ``part`` and check it, resuming what an earlier attempt left there.

    Raises _Failure if the server fails (received bytes are kept) or the content is wrong (nothing
    is kept), and OSError if the disk fails.
    """
    import time
    from urllib.parse import quote

    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = f"{_where(repo)}/resolve/{commit}/{quote(file.path)}"
    best = in_vain = 0
    again = False
    while True:
        cause: Exception | None = None
        with part.open("ab") as out:
            if out.tell() > file.size:
                out.truncate(0)
            kept = have = part.stat().st_size
            hasher = _hasher(file)
            _feed(part, hasher)
            # identity: a range of compressed bytes would be a range of other bytes
            headers = build_hf_headers(library_name="zoo") | {"Accept-Encoding": "identity"}
            if kept:
                headers["Range"] = f"bytes={kept}-"
            try:
                # The timeout is for each read, so it ends a stall and not a long download.
                wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
                if have < file.size:
                    with get_session().stream(
                        "GET", url, headers=headers, timeout=wait
                    ) as response:
                        hf_raise_for_status(response)
                        if kept and response.status_code != 206:  # the whole file is sent again
                            out.truncate(0)
                            kept, have, hasher = 0, 0, _hasher(file)
                        for chunk in response.iter_bytes():  # written as they arrive
                            have += len(chunk)
                            if have > file.size:
                                break
                            out.write(chunk)
                            hasher.update(chunk)
                            advance(len(chunk))
            except HTTPError as error:
                cause = error
        if have < file.size:
            if have == 0:
                part.unlink()
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            if cause and 400 <= status < 500 and status not in (408, 416, 429):
                raise _refusal(cause, repo, commit) from cause
            in_vain = 0 if have > max(best, kept) else in_vain + 1
            best = max(best, have)
            if in_vain == _ATTEMPTS:
                reason = f"answer {status}" if status else str(cause or "connection closed")
                raise _Failure(
                    HubError,
                    f"hub: {url} broke off after {have:,} of {file.size:,} bytes: {reason}",
                    "The received bytes are kept: the next attempt continues from there.",
                ) from cause
            time.sleep(0.3 * in_vain)
        elif have == file.size and not _difference(hasher, file):
            return
        else:
            part.unlink()
            if kept and not again:  # the resumed part may be corrupt: once more from the start
                again = True
                continue
            more = f"has more than {file.size:,} bytes" if have > file.size else None
            raise _Failure(
                WeightsError,
                f"hub: {url} {more or _difference(hasher, file)}",
                "It was damaged in transit, or the server has a different file. Nothing was "
                "kept; try again.",
            )
