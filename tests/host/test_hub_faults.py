"""Everything that can go wrong between a user and the Hub, with the real huggingface_hub client.

``CASES`` is data: ``rows`` makes the docs' table of faults from it, and each ``sees`` is text that
the message must contain. Cases of one group run in one process, two processes at a time, so that
the whole takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zoo.bench import markdown
from zoo.testing import FAULTS, LoopbackHub, closed_port

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 1200  # 307,200 bytes
CONFIG = b'{"width": 64}'
FILES = {"model.safetensors": DATA, "config.json": CONFIG}
HALF = len(DATA) // 2

# What every process starts with. case(name, call) prints one line: what came of the call.
CHILD = """
import json, os, sys, time, warnings
from pathlib import Path
from zoo import hub
from zoo.errors import ZooError
from zoo.entry import Entry, FileSpec, HubSpec
from huggingface_hub import get_session, get_token, hf_raise_for_status
import huggingface_hub.errors, huggingface_hub.utils
from huggingface_hub.utils import WeakFileLock, build_hf_headers
get_session()  # below, only the call is timed, not the imports

def entry(repo, commit, files):
    return Entry(
        name=repo.split("/")[1], interface="SRModel", plugin="zoo_x", status="ready", summary="",
        files=tuple(FileSpec(*file) for file in files), hub=HubSpec(repo, commit),
        distribution="the-dist",
    )

def case(name, call):
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = call()
            out = {"source": found.source, "folder": str(found.folder), "commit": found.revision}
        except ZooError as error:
            out = {"error": type(error).__name__, "message": str(error)}
    seconds = time.monotonic() - start
    out |= {"name": name, "seconds": seconds, "warnings": [str(w.message) for w in heard]}
    print(json.dumps(out), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call, as its process printed it."""

    name: str
    seconds: float
    warnings: list[str]
    source: str = ""
    folder: str = ""
    commit: str | None = None
    error: str = ""
    message: str = ""


@dataclass
class World:
    """The loopback Hub and the folder of the group that a case belongs to."""

    hub: LoopbackHub
    home: Path

    def add(self, name: str, files: dict[str, bytes] | None = None, **how: Any) -> str:
        return self.hub.add(f"org/{name}", FILES if files is None else files, **how)

    def fault(self, kind: str, name: str, **how: Any) -> None:
        self.hub.fault(kind, on=f"/org/{name}/resolve/*/model.safetensors", **how)

    def storage(self, name: str) -> Path:
        return self.home / "hub" / f"models--org--{name}"

    def requests(self, name: str) -> list[str]:
        return [str(r) for r in self.hub.requests if f"org/{name}/" in f"{r.path}/"]

    def put(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        """Files in the cache as if they had been downloaded."""
        for path, data in files.items():
            target = self.storage(name) / "snapshots" / commit / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def locate(name: str, commit: str | None, files: dict[str, bytes] = FILES, **how: Any) -> str:
    """Source text of ``hub.locate`` for an entry with these files."""
    specs = [(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()]
    bundled = f"Path({str(how['bundled'])!r})" if how.get("bundled") else "None"
    return f"hub.locate(entry('org/{name}', {commit!r}, {specs!r}), bundled={bundled})"


Call = Callable[[World, str], str]
"""Sets a situation up, given the case's name; returns the source text of the call."""


def published(fault: str | None = None, **how: Any) -> Call:
    """A published repository with at most one fault in its weights."""

    def call(world: World, name: str) -> str:
        commit = world.add(name)
        if fault:
            world.fault(fault, name, **how)
        return locate(name, commit)

    return call


USUAL = published()


@dataclass(frozen=True)
class Case:
    """One situation and the text that the user then sees."""

    name: str
    situation: str
    sees: tuple[str, ...] = ()
    """Parts of the message; empty where it simply works."""
    error: str = ""
    source: str = ""
    """Where the files came from, where it works."""
    call: Call = USUAL
    seconds: float = 20.0
    """The answer must be there within."""
    group: str = "plain"
    check: Callable[[World, Outcome], None] | None = field(default=None, repr=False)


# --- how single cases are set up and checked ------------------------------------------------------


def nothing_kept(world: World, out: Outcome) -> None:
    storage = world.storage(out.name)
    kept = [p for p in storage.rglob("*") if p.is_file() and p.read_bytes() != CONFIG]
    assert [p.name for p in kept if p.suffix != ".lock"] == []


def no_config_kept(world: World, out: Outcome) -> None:
    kept = {p.name for p in world.storage(out.name).glob("snapshots/*/*")}
    assert kept == {"model.safetensors"}
    assert CONFIG not in [p.read_bytes() for p in world.storage(out.name).glob("blobs/*")]


def no_content_asked(world: World, out: Outcome) -> None:
    assert [r for r in world.requests(out.name) if "/resolve/" in r] == []


def whole(world: World, out: Outcome) -> None:
    assert {p: (Path(out.folder) / p).read_bytes() for p in FILES} == FILES
    assert list(world.storage(out.name).rglob("*.incomplete")) == []


def resumed(world: World, out: Outcome) -> None:
    whole(world, out)
    asked = [r for r in world.requests(out.name) if "model.safetensors" in r]
    assert asked[-1].endswith(f" [bytes={HALF}-]")
    assert len(asked) <= 2


def in_one_go(world: World, out: Outcome) -> None:
    whole(world, out)
    assert len([r for r in world.requests(out.name) if "model.safetensors" in r]) == 1


def part_kept(world: World, out: Outcome) -> None:
    [part] = world.storage(out.name).rglob("*.incomplete")
    assert part.read_bytes() == DATA[:HALF]
    assert not list(world.storage(out.name).glob("snapshots/*/model.safetensors"))


def left_over(content: bytes, fault: str | None = None) -> Call:
    """A partial file in the cache, left by a download that was killed."""

    def call(world: World, name: str) -> str:
        blobs = world.storage(name) / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{hashlib.sha256(DATA).hexdigest()}.incomplete").write_bytes(content)
        return published(fault)(world, name)

    return call


def registry_says(changed: dict[str, bytes]) -> Call:
    """The registry was made from different files than the Hub has."""
    return lambda world, name: locate(name, world.add(name), {**FILES, **changed})


def missing_file(world: World, name: str) -> str:
    return locate(name, world.add(name, {"config.json": CONFIG}))


def moved_branch(world: World, name: str) -> str:
    commit = world.add(name)
    world.add(name, {"model.safetensors": b"another"})
    return locate(name, commit)


def answering(kind: str, **how: Any) -> Call:
    """The fault is in the first answer."""

    def call(world: World, name: str) -> str:
        commit = world.add(name)
        world.hub.fault(kind, on=f"/api/models/org/{name}/*", **how)
        return locate(name, commit)

    return call


def hidden(**how: Any) -> Call:
    return lambda world, name: locate(name, world.add(name, **how))


def cached(changed: dict[str, bytes] | None = None) -> Call:
    """The files are in the cache, some of them damaged."""

    def call(world: World, name: str) -> str:
        commit = world.add(name)
        world.put(name, commit, {**FILES, **(changed or {})})
        return locate(name, commit)

    return call


def no_request(world: World, out: Outcome) -> None:
    assert world.requests(out.name) == []


def mended(world: World, out: Outcome) -> None:
    whole(world, out)
    assert [r for r in world.requests(out.name) if "config.json" in r] == []


def bundle(files: dict[str, bytes]) -> Call:
    def call(world: World, name: str) -> str:
        folder = world.home / "bundles" / name
        folder.mkdir(parents=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        return locate(name, world.add(name), bundled=folder)

    return call


def foreign(files: dict[str, bytes], revision: str | None = None, fault: str | None = None) -> Call:
    """A repository that is not in the registry, with ``fetch``."""

    def call(world: World, name: str) -> str:
        world.add(name, files)
        if fault:
            world.fault(fault, name)
        return f"hub.fetch('org/{name}', {revision!r})"

    return call


def only_safe(world: World, out: Outcome) -> None:
    have = {p.name for p in Path(out.folder).iterdir()}
    assert have == {"model.safetensors", "config.json"}
    assert not any("bin" in r or ".py" in r for r in world.requests(out.name))


def no_tensors(world: World, out: Outcome) -> None:
    assert not any(r.endswith(".safetensors") for r in world.requests(out.name))


def index_of(*shards: str) -> bytes:
    return json.dumps({"weight_map": {str(i): name for i, name in enumerate(shards)}}).encode()


SHARDS = {
    "model.safetensors.index.json": index_of("m-1.safetensors", "m-2.safetensors"),
    "m-1.safetensors": DATA,
    "m-2.safetensors": DATA[:5000],
}


def shards_there(world: World, out: Outcome) -> None:
    assert {p: (Path(out.folder) / p).read_bytes() for p in SHARDS} == SHARDS


def nothing_outside(world: World, out: Outcome) -> None:
    assert not (world.home.parent / "evil.safetensors").exists()
    assert not list(world.home.rglob("evil*"))
    no_content_asked(world, out)


# --- the cases ------------------------------------------------------------------------------------

CASES = [
    Case("cold", "the cache is empty", source="hub", check=whole),
    Case("warm", "the files are cached", source="cache", call=cached(), check=no_request),
    Case(
        "flipped-byte",
        "one bit of a file is wrong",
        ("model.safetensors has sha256", "Nothing was kept; try again."),
        "WeightsError",
        call=published("flip"),
        check=nothing_kept,
    ),
    Case(
        "too-long",
        "the server sends more than the file has",
        ("model.safetensors has more than 307,200 bytes",),
        "WeightsError",
        call=published("long"),
        check=nothing_kept,
    ),
    Case(
        "endless",
        "the server never stops sending",
        ("model.safetensors has more than 307,200 bytes",),
        "WeightsError",
        call=published("endless"),
        check=nothing_kept,
    ),
    Case(
        "cut-once",
        "the connection breaks half way, once",
        source="hub",
        call=published("cut", times=1),
        check=resumed,
    ),
    Case(
        "cut-always",
        "the connection breaks half way each time",
        ("broke off after 153,600 of 307,200 bytes", "the next attempt continues from there"),
        "HubError",
        call=published("cut"),
        check=part_kept,
    ),
    Case(
        "stalled",
        "the server stops in the middle and keeps the line open",
        ("broke off after 153,600 of 307,200 bytes", "the next attempt continues from there"),
        "HubError",
        call=published("stall"),
        check=part_kept,
        group="stall",
    ),
    Case(
        "resumed",
        "an earlier download was killed half way",
        source="hub",
        call=left_over(DATA[:HALF]),
        check=resumed,
    ),
    Case(
        "resumed-range-ignored",
        "an earlier download was killed, and the server only sends whole files",
        source="hub",
        call=left_over(DATA[:HALF], "whole"),
        check=in_one_go,
    ),
    Case(
        "resumed-damaged",
        "what a killed download left is damaged",
        source="hub",
        call=left_over(b"?" * HALF),
        check=whole,
    ),
    Case(
        "resumed-too-long",
        "what a killed download left is longer than the file",
        source="hub",
        call=left_over(DATA + b"?"),
        check=whole,
    ),
    Case(
        "hanging",
        "the server takes the request and never answers",
        ("did not answer within 2 s", "ZOO_HUB_TIMEOUT"),
        "HubError",
        call=answering("hang"),
        seconds=3,
        group="hang",
    ),
    Case(
        "dripping",
        "the server answers a byte now and then",
        ("did not answer within 2 s", "ZOO_HUB_TIMEOUT"),
        "HubError",
        call=answering("drip"),
        seconds=3,
        group="hang",
    ),
    Case(
        "refused",
        "nobody listens at the Hub's address",
        ("could not be reached", "Connection refused", "Check the network and HF_ENDPOINT"),
        "HubError",
        seconds=1,
        group="refused",
    ),
    Case(
        "refused-cached",
        "nobody listens, but the files are cached",
        source="cache",
        call=cached(),
        seconds=1,
        group="refused",
    ),
    Case(
        "login-page",
        "a captive portal answers instead of the Hub",
        ("gave an answer that is not from a Hub", "login page"),
        "HubError",
        call=answering("html"),
    ),
    Case(
        "server-error",
        "the Hub is in trouble",
        ("answered 503", "try again"),
        "HubError",
        call=answering("status", status=503),
        seconds=1,
    ),
    Case(
        "bad-request",
        "the Hub does not understand the request",
        ("answered 400", "try again"),
        "HubError",
        call=answering("status", status=400),
        seconds=1,
    ),
    Case(
        "rate-limit",
        "the Hub had too many requests",
        ("answered 429", "try again"),
        "HubError",
        call=answering("status", status=429),
        seconds=1,
    ),
    Case(
        "wrong-size",
        "the Hub's file has another size than the registry says",
        ("307,200 bytes with hash", "expected 307,204 bytes", "Nothing was downloaded"),
        "WeightsError",
        call=registry_says({"model.safetensors": DATA + b"more"}),
        check=no_content_asked,
    ),
    Case(
        "wrong-hash",
        "the Hub's file has another hash than the registry says",
        ("model.safetensors has", "Nothing was downloaded"),
        "WeightsError",
        call=registry_says({"model.safetensors": DATA[::-1]}),
        check=no_content_asked,
    ),
    Case(
        "wrong-small",
        "a small file of the Hub is not the registry's",
        ("config.json has sha256", "Nothing was kept"),
        "WeightsError",
        call=registry_says({"config.json": CONFIG[::-1]}),
        check=no_config_kept,
    ),
    Case(
        "missing-file",
        "the pinned commit lacks a file",
        ("has no model.safetensors at the pinned commit",),
        "WeightsNotFoundError",
        call=missing_file,
        check=no_content_asked,
    ),
    Case(
        "vanished-file",
        "the Hub lists a file and then does not have it",
        ("lists a file that it does not have", "mirror"),
        "WeightsNotFoundError",
        call=published("status", status=404, code="EntryNotFound"),
    ),
    Case(
        "moved-branch",
        "the branch has moved on since the registry was written",
        source="hub",
        call=moved_branch,
        check=whole,
    ),
    Case(
        "gone-commit",
        "the pinned commit does not exist",
        ("has no revision '0000000000000000000000000000000000000000'",),
        "HubError",
        call=lambda w, n: w.add(n) and locate(n, "0" * 40),
    ),
    Case(
        "gated",
        "the repository is gated",
        ("is gated", "Accept them on that page", "hf auth login"),
        "HubError",
        call=hidden(gated=True),
        check=nothing_kept,
    ),
    Case(
        "private",
        "the repository is private and there is no token",
        ("is private or does not exist", "HF_TOKEN"),
        "HubError",
        call=hidden(private=True),
    ),
    Case(
        "unknown",
        "the repository does not exist and there is no token",
        ("is private or does not exist", "Check the spelling"),
        "HubError",
        call=lambda w, n: locate(n, "1" * 40),
    ),
    Case(
        "private-with-token",
        "the repository is private and HF_TOKEN may read it",
        source="hub",
        call=hidden(private=True),
        group="token",
        check=whole,
    ),
    Case(
        "unknown-with-token",
        "the repository does not exist and there is a token",
        ("does not exist, or your token may not see it", "Check the spelling"),
        "HubError",
        call=lambda w, n: locate(n, "1" * 40),
        group="token",
    ),
    Case(
        "forbidden",
        "the token may not read the repository",
        ("denies access", "Use a token that may read it"),
        "HubError",
        call=answering("status", status=403),
        group="token",
    ),
    Case(
        "bad-token",
        "HF_TOKEN is not valid",
        ("refused your token", "Renew it"),
        "HubError",
        group="bad-token",
    ),
    Case("mirror", "HF_ENDPOINT names a mirror that redirects", source="hub", group="mirror"),
    Case(
        "offline",
        "HF_HUB_OFFLINE is set and nothing is cached",
        ("cache: ", "not asked, because HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE"),
        "WeightsNotFoundError",
        group="offline",
        seconds=1,
        check=no_request,
    ),
    Case(
        "offline-cached",
        "HF_HUB_OFFLINE is set and the files are cached",
        source="cache",
        call=cached(),
        group="offline",
        check=no_request,
    ),
    Case(
        "damaged-cache",
        "a cached file is damaged",
        source="hub",
        call=cached({"model.safetensors": DATA[:-1] + b"?"}),
        check=mended,
    ),
    Case(
        "damaged-cache-offline",
        "a cached file is damaged and HF_HUB_OFFLINE is set",
        ("model.safetensors has sha256", "HF_HUB_OFFLINE is set"),
        "WeightsNotFoundError",
        call=cached({"model.safetensors": DATA[:-1] + b"?"}),
        group="offline",
    ),
    Case(
        "read-only-cached",
        "the cache is read-only and has the files",
        source="cache",
        call=cached(),
        group="read-only",
        check=no_request,
    ),
    Case(
        "read-only",
        "the cache is read-only and lacks the files",
        ("cannot be written: Permission denied", "set HF_HOME to another one"),
        "WeightsNotFoundError",
        group="read-only",
    ),
    Case(
        "full-disk",
        "the disk has too little space for the files",
        ("cannot be written: it needs 307,213 bytes, and 1,000 are free", "Free space"),
        "WeightsNotFoundError",
        group="full-disk",
        check=no_content_asked,
    ),
    Case(
        "disk-fills-up",
        "the disk is full before the download ends",
        ("cannot be written: File too large", "Free space"),
        "WeightsNotFoundError",
        group="disk-fills-up",
    ),
    Case(
        "unpublished",
        "the model is not on the Hub yet",
        ("org/unpublished is not published yet", "pass a folder"),
        "WeightsNotFoundError",
        call=lambda w, n: locate(n, None),
        seconds=1,
    ),
    Case(
        "bundled",
        "the files are in the package",
        source="bundled",
        call=bundle(FILES),
        check=no_request,
    ),
    Case(
        "bundle-damaged",
        "a file in the package is damaged",
        ("a bundled file is damaged", "--force-reinstall the-dist"),
        "WeightsError",
        call=bundle({**FILES, "config.json": b"{}"}),
        check=no_request,
    ),
    Case(
        "bundle-incomplete",
        "the package has only some of the files",
        source="hub",
        call=bundle({"config.json": CONFIG}),
        check=whole,
    ),
    # third-party repositories: base="org/x", weights="org/x"
    Case(
        "foreign",
        "a repository that no registry knows",
        source="hub",
        call=foreign({**FILES, "pytorch_model.bin": b"x", "modeling.py": b"x"}),
        check=only_safe,
    ),
    Case(
        "foreign-flipped",
        "a foreign file differs from what the Hub says of it",
        ("model.safetensors has sha256", "Nothing was kept"),
        "WeightsError",
        call=foreign(FILES, fault="flip"),
        check=nothing_kept,
    ),
    Case(
        "pickle-only",
        "a repository whose weights are only a pickle",
        ("only as pytorch_model.bin: a pickle", "torch.load('pytorch_model.bin', weights_only"),
        "WeightsError",
        call=foreign({"pytorch_model.bin": b"x", "config.json": CONFIG}),
        check=no_content_asked,
    ),
    Case(
        "no-weights",
        "a repository without any model files",
        ("org/no-weights has no file like",),
        "WeightsError",
        call=foreign({"README.md": b"hello"}),
    ),
    Case(
        "no-revision",
        "a branch that does not exist",
        ("has no revision 'v9'", "org/name@revision"),
        "HubError",
        call=foreign(FILES, "v9"),
    ),
    Case(
        "sharded",
        "weights in several files",
        source="hub",
        call=foreign(SHARDS),
        check=shards_there,
    ),
    Case(
        "shard-missing",
        "the index names a file that is not there",
        ("names 'm-2.safetensors', which the repository lacks",),
        "WeightsError",
        call=foreign({k: v for k, v in SHARDS.items() if "2" not in k}),
        check=no_tensors,
    ),
    Case(
        "shard-outside",
        "the index names a file outside the repository",
        ("evil.safetensors', which the repository lacks",),
        "WeightsError",
        call=foreign(
            {**SHARDS, "model.safetensors.index.json": index_of("../../../../evil.safetensors")}
        ),
        check=no_tensors,
    ),
    Case(
        "name-outside",
        "a file name that leads out of its folder",
        ("gave an answer that is not from a Hub", "could leave its folder"),
        "HubError",
        call=foreign({**FILES, "../../../../evil.safetensors": DATA}),
        check=nothing_outside,
    ),
]


# Cases that need several calls have separate tests below.
FURTHER = [
    ("two processes want the same files at once", "works, from the hub", "downloaded once"),
    ("a download is killed", "works, from the hub", "the next attempt continues from there"),
    ("HF_HOME or HF_HUB_CACHE names another place", "works, from the hub", "kept there"),
    ("a redirect leads to another host", "works, from the hub", "your token is not sent there"),
    ("a branch that was used before, and the Hub is dead", "works, from the cache", "a warning"),
    ("a branch that was used before has moved", "works, from the hub", "the new commit"),
    ("org/name without a branch, and its main has moved", "works, from the cache", "no request"),
    ("a cached file of a foreign repository is damaged", "works, from the hub", "at its commit"),
]


def rows() -> list[tuple[str, str, str]]:
    """The docs' table: the situation, the error (or where the files come from), the message."""
    works = "works, from the {}".format
    cases = [
        (case.situation, case.error or works(case.source), " … ".join(case.sees)) for case in CASES
    ]
    return cases + FURTHER


# --- running them ---------------------------------------------------------------------------------

# The environment of each group's processes, and code that runs before its cases.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "stall": {"HF_HUB_DOWNLOAD_TIMEOUT": "1"},
    "token": {"HF_TOKEN": "hf_loopback"},
    "bad-token": {"HF_TOKEN": "hf_wrong"},
    "offline": {"HF_HUB_OFFLINE": "1"},
}
PREPARE = {
    # Import lazy modules, lock the folders, and drop root's permission to write anyway.
    "read-only": "hub.fetch('org/warm-up')\n"
    "for f, *_ in os.walk(os.environ['HF_HOME']): os.chmod(f, 0o555)\n"
    "os.geteuid() == 0 and os.seteuid(65534)",
    "full-disk": "import shutil\n"
    "shutil.disk_usage = lambda p: shutil._ntuple_diskusage(9e9, 9e9, 1000)",
    "disk-fills-up": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)",
}


def script_of(calls: dict[str, str], prepare: str = "") -> str:
    lines = [f"case({name!r}, lambda: {call})" for name, call in calls.items()]
    return "\n".join([CHILD, prepare, *lines])


def start(world: World, script: str, **more: str) -> subprocess.Popen[str]:
    elsewhere = world.home.parent / f"{world.home.name}-elsewhere"
    elsewhere.mkdir(exist_ok=True)
    outside = {"HOME": str(elsewhere), "TMPDIR": str(elsewhere), "XDG_CACHE_HOME": str(elsewhere)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-B", "-c", script],
        env=world.hub.environment(world.home, **outside | more),
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Outcome]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""  # no stray logging of the client, no warning
    outcomes = (Outcome(**json.loads(line)) for line in out.splitlines())
    return {outcome.name: outcome for outcome in outcomes}


def call(world: World, name: str, source: str, **more: str) -> Outcome:
    """One call in a separate process."""
    return finish(start(world, script_of({name: source}), **more))[name]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Like tmp_path, but another user may look into it (the read-only case)."""
    path = Path(tempfile.mkdtemp(prefix="zoo-hub-"))
    path.chmod(0o755)
    yield path
    for entry in path.rglob("*"):
        if entry.is_dir() and not entry.is_symlink():
            entry.chmod(0o755)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add("org/warm-up", FILES)
        yield hub


@pytest.fixture(scope="module")
def results(hub: LoopbackHub, folder: Path) -> Iterator[dict[str, tuple[World, Outcome]]]:
    """Every case's outcome."""
    with LoopbackHub() as mirror, closed_port() as closed:
        mirror.fault("redirect", to=hub.endpoint)
        endpoints = {"refused": closed, "mirror": mirror.endpoint}

        def run(group: str) -> dict[str, tuple[World, Outcome]]:
            world = World(hub, folder / group)
            calls = {c.name: c.call(world, c.name) for c in CASES if c.group == group}
            more = dict(ENVIRONMENTS.get(group, {}))
            if group in endpoints:
                more["HF_ENDPOINT"] = endpoints[group]
            outcomes = finish(start(world, script_of(calls, PREPARE.get(group, "")), **more))
            return {name: (world, outcome) for name, outcome in outcomes.items()}

        # Two at a time: those that wait for a timeout leave the processor to the others.
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(run, sorted({c.group for c in CASES}, key=["hang", "stall"].count))
            yield {name: pair for group in found for name, pair in group.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, results: dict[str, tuple[World, Outcome]]) -> None:
    world, outcome = results[case.name]
    for part in case.sees:
        assert part in outcome.message
    assert (outcome.error, outcome.source) == (case.error, case.source), outcome.message
    assert outcome.seconds < case.seconds
    assert outcome.warnings == []
    if case.error:
        assert case.sees, "an error without a promise of what it says"
    if case.check:
        case.check(world, outcome)


def test_the_cases_cover_every_fault_of_the_loopback_hub() -> None:
    """The docs' table is complete: each fault that the server can do is in some case."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in FAULTS if f'"{kind}"' not in source] == []
    assert len({case.name for case in CASES}) == len(CASES)


def test_nothing_is_written_outside_the_cache(
    results: dict[str, tuple[World, Outcome]], folder: Path
) -> None:
    homes = {world.home for world, _ in results.values()}
    for home in homes:
        assert {p.name for p in home.glob("*")} <= {"hub", "bundles"}
        assert list((folder / f"{home.name}-elsewhere").iterdir()) == []


# --- more than one call ---------------------------------------------------------------------------


def test_a_download_that_was_cut_or_flipped_is_clean_the_next_time(
    hub: LoopbackHub, folder: Path
) -> None:
    world = World(hub, folder / "again")
    flipped, cut = published("flip", times=1), published("cut", times=4)
    calls = {"flip-then": flipped(world, "flip-then"), "cut-then": cut(world, "cut-then")}
    script = script_of(calls) + script_of(calls).removeprefix(CHILD)
    process = start(world, script)
    out, err = process.communicate(timeout=60)
    assert err == ""
    first, second = [], []  # type: ignore[var-annotated]
    for line in out.splitlines():
        (first if len(first) < 2 else second).append(Outcome(**json.loads(line)))
    assert [o.error for o in first] == ["WeightsError", "HubError"]
    assert [o.source for o in second] == ["hub", "hub"]
    whole(world, second[0])
    resumed_at = [r for r in world.requests("cut-then") if r.endswith(f"[bytes={HALF}-]")]
    assert resumed_at
    whole(world, second[1])


def test_a_killed_download_goes_on_where_it_was(hub: LoopbackHub, folder: Path) -> None:
    world = World(hub, folder / "killed")
    source = published("stall", times=1)(world, "killed")
    process = start(world, script_of({"killed": source}))
    blobs, deadline = world.storage("killed") / "blobs", time.monotonic() + 20
    while not any(p.stat().st_size == HALF for p in blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not list(world.storage("killed").glob("snapshots/*/model.safetensors"))
    out = call(world, "killed", source)
    assert out.source == "hub", out.message
    resumed(world, out)


def test_huggingface_hubs_variables_say_where_the_cache_is(hub: LoopbackHub, folder: Path) -> None:
    world = World(hub, folder / "variable")
    source = published()(world, "variable")
    out = call(world, "variable", source, HF_HUB_CACHE=str(folder / "mine"))
    assert Path(out.folder).is_relative_to(folder / "mine" / "models--org--variable")
    whole(world, out)
    assert not world.home.exists()


def test_two_processes_at_once_download_once(hub: LoopbackHub, folder: Path) -> None:
    world = World(hub, folder / "two")
    source = published("slow", seconds=1.5)(world, "two")
    two = [start(world, script_of({"two": source})) for _ in range(2)]
    for out in [finish(process)["two"] for process in two]:
        assert out.error == "", out.message
        whole(world, out)
    asked = [r for r in world.requests("two") if r.endswith("model.safetensors")]
    assert len(asked) == 1


def test_a_token_stays_with_the_hub_that_it_is_for(hub: LoopbackHub, folder: Path) -> None:
    world = World(hub, folder / "token-kept")
    with LoopbackHub() as other:
        other.add("org/token-kept", FILES)
        commit = world.add("token-kept")
        elsewhere = other.endpoint.replace("127.0.0.1", "localhost")
        hub.fault("redirect", on="/org/token-kept/resolve/*", to=elsewhere)
        source = locate("token-kept", commit)
        out = call(world, "token-kept", source, HF_TOKEN="hf_loopback")
        assert out.source == "hub", out.message
        assert {r.token for r in hub.requests if "token-kept" in r.path} == {"hf_loopback"}
        assert {r.token for r in other.requests} == {None}


def test_a_repository_keeps_its_first_commit_until_asked_for_another(
    hub: LoopbackHub, folder: Path
) -> None:
    world = World(hub, folder / "pinned")
    first = world.add("pinned")
    known = call(world, "pinned", "hub.fetch('org/pinned')")
    assert (known.source, known.commit) == ("hub", first)
    second = world.add("pinned", {**FILES, "config.json": b"{}"})
    hub.requests.clear()
    calls = {
        "bare": "hub.fetch('org/pinned')",
        "commit": f"hub.fetch('org/pinned', {first!r})",
        "narrow": "hub.fetch('org/pinned', patterns=['config.json'])",
    }
    for out in finish(start(world, script_of(calls))).values():
        assert (out.source, out.commit) == ("cache", first), out.message
        whole(world, out)
    assert hub.requests == []
    out = call(world, "branch", "hub.fetch('org/pinned', 'main')")
    assert (out.source, out.commit) == ("hub", second)
    assert (Path(out.folder) / "config.json").read_bytes() == b"{}"
    # only the file that differs was fetched: the other is the same blob
    assert [str(r) for r in hub.requests if "model.safetensors" in r.path] == []
    # a branch without a Hub: the last known commit, with a warning
    with closed_port() as closed:
        gone = call(world, "gone", "hub.fetch('org/pinned', 'main')", HF_ENDPOINT=closed)
        offline = call(world, "off", "hub.fetch('org/pinned', 'main')", HF_HUB_OFFLINE="1")
    assert (gone.source, gone.commit) == (offline.source, offline.commit) == ("cache", second)
    assert "using" in gone.warnings[0]
    assert second in gone.warnings[0]
    assert offline.warnings == []


def test_a_damaged_copy_of_a_foreign_repository_is_mended_at_its_commit(
    hub: LoopbackHub, folder: Path
) -> None:
    world = World(hub, folder / "mended")
    first = world.add("mended")
    out = call(world, "mended", "hub.fetch('org/mended')")
    world.add("mended", {"model.safetensors": b"newer"})
    blob = (Path(out.folder) / "model.safetensors").resolve()
    blob.write_bytes(DATA[:-1] + b"?")
    out = call(world, "mended", "hub.fetch('org/mended')")
    assert (out.source, out.commit) == ("hub", first)
    whole(world, out)


def test_huggingface_hub_understands_the_cache(hub: LoopbackHub, folder: Path) -> None:
    world = World(hub, folder / "same-cache")
    commit = world.add("same-cache")
    call(world, "same-cache", "hub.fetch('org/same-cache')")
    hub.requests.clear()
    code = f"""
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
cache = scan_cache_dir()
assert not cache.warnings, cache.warnings
[repo] = cache.repos
assert repo.refs["main"].commit_hash == {commit!r}
assert {{f.file_name for f in repo.refs["main"].files}} == {{"model.safetensors", "config.json"}}
snapshot_download("org/same-cache", local_files_only=True)
hf_hub_download("org/same-cache", "config.json", revision={commit!r})
"""
    done = hub.run(code, home=world.home)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []


def test_a_file_that_huggingface_hub_cached_is_not_fetched_again(
    hub: LoopbackHub, folder: Path
) -> None:
    world = World(hub, folder / "theirs")
    source = published()(world, "theirs")
    code = "from huggingface_hub import *; hf_hub_download('org/theirs', 'model.safetensors')"
    done = hub.run(code, home=world.home)
    assert done.returncode == 0, done.stderr
    hub.requests.clear()
    out = call(world, "theirs", source)
    assert out.source == "hub", out.message
    whole(world, out)
    assert [r for r in hub.requests if "model.safetensors" in r.path] == []


# --- the docs' table ------------------------------------------------------------------------------

PAGE = Path(__file__).with_name("hub-faults.md")


def page() -> str:
    """``hub-faults.md``, from the cases above, which the tests check."""
    head = (
        "# When the Hub fails\n\n"
        "What a user sees, case by case. Generated from the tests that hold it: "
        "`python -m tests.host.test_hub_faults`.\n\n"
        "Whether the Hub answers at all is known within `ZOO_HUB_TIMEOUT` seconds (2). A server "
        "that answers and then stops in the middle of a file is given up after three reads of "
        "`HF_HUB_DOWNLOAD_TIMEOUT` seconds (10) without a new byte; what came is kept.\n\n"
    )
    table = [(situation, f"`{kind}`", said) for situation, kind, said in rows()]
    return f"{head}{markdown(['what happens', 'result', 'the message says'], table)}\n"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.host.test_hub_faults"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
