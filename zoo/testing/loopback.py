"""A Hub on this machine, for tests: the real huggingface_hub client talks to it over HTTP.

    with LoopbackHub() as hub:
        commit = hub.add("org/tiny", {"model.safetensors": data, "config.json": b"{}"})
        hub.fault("flip", on="*.safetensors")
        done = hub.run("import zoo; zoo.load(...)", home=tmp_path)   # a separate process
        assert hub.requests == []                                    # what the client requested

huggingface_hub reads its environment (HF_ENDPOINT, HF_HOME, ...) when it is imported, so the code
under test runs in a separate process: ``hub.run(code, home=folder)``, or one that you start with
``hub.environment(folder)``. Mocking libraries do not help: they do not intercept the HTTP client of
huggingface_hub 2.

It serves model information with blobs, tree listing, ``resolve`` (HEAD, GET, ranges) of every
commit ever added, private and gated repositories, and uploads (create, preupload, LFS, commit).
``LoopbackHub.fault`` makes it fail on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS: Mapping[str, str] = {
    "hang": "accepts the request and never answers",
    "drip": "answers, one byte every half second",
    "stall": "sends a file up to its middle, then nothing, and keeps the connection open",
    "cut": "sends a file up to its middle, then closes the connection",
    "slow": "waits before it sends a file (seconds=...)",
    "flip": "flips one bit in the middle of a file",
    "long": "sends 7 bytes more than the file has",
    "endless": "sends a file and never stops, without a length",
    "whole": "ignores Range and sends all of the file",
    "status": "answers with this HTTP status (status=..., code=... for X-Error-Code)",
    "html": "answers 200 with a login page, as a captive portal does",
    "redirect": "answers 302 to the same path at another endpoint (to=...)",
}
"""Every fault, and what the server then does."""

# huggingface_hub 2.4's LFS upload uses an argument that its HTTP client has deprecated.
_ITS_OWN_WARNING = "ignore:Use 'content=:DeprecationWarning"
LFS_TYPES = (".safetensors", ".bin", ".pt", ".png")


@dataclass(frozen=True)
class Request:
    """One request that the server received, in order of arrival."""

    method: str
    path: str
    """Without the query."""
    range: str | None = None
    token: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}" + (f" [{self.range}]" if self.range else "")


@dataclass
class _Fault:
    kind: str
    on: str
    times: int | None
    details: Mapping[str, Any]


@dataclass
class _Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class LoopbackHub:
    """A context manager: a Hub at ``hub.endpoint`` until the block ends.

    ``tokens``: the tokens that may read private and gated repositories and may write; others are
    refused as invalid.
    """

    def __init__(self, *, tokens: tuple[str, ...] = ("hf_loopback",)) -> None:
        self.tokens = tokens
        self.requests: list[Request] = []
        """Every request received. ``hub.requests.clear()`` starts counting again."""
        self._repos: dict[str, _Repo] = {}
        self._uploads: dict[str, bytes] = {}
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()  # wakes requests that hang
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # --- repositories -----------------------------------------------------------------------------

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes] | Path,
        *,
        branch: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commit these files (or a folder's) as the new head of a branch; returns the commit.

        The repository is created if needed. Earlier commits remain available by their hash.
        """
        if isinstance(files, Path):
            folder = files
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        with self._lock:
            known = self._repos.setdefault(repo, _Repo())
            known.private, known.gated = private, gated
            return self._commit(known, dict(files), branch)

    def _commit(self, repo: _Repo, files: dict[str, bytes], branch: str) -> str:
        text = f"{len(repo.commits)} {branch} {sorted((n, git_hash(d)) for n, d in files.items())}"
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        repo.commits[commit] = files
        repo.branches[branch] = commit
        return commit

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of the repository at a branch or commit. Raises KeyError if there is none."""
        with self._lock:
            known = self._repos[repo]
            return dict(known.commits[known.branches.get(revision, revision)])

    def head(self, repo: str, branch: str = "main") -> str:
        """The head commit of a branch. Raises KeyError if there is none."""
        with self._lock:
            return self._repos[repo].branches[branch]

    # --- faults -----------------------------------------------------------------------------------

    def fault(self, kind: str, *, on: str = "*", times: int | None = None, **details: Any) -> None:
        """From now on do ``kind`` (see FAULTS) for requests whose path matches the glob ``on``.

        ``times``: only for this many requests. ``on="*/resolve/*"`` matches files, ``"/api/*"`` the
        rest. Faults of file contents do not affect HEAD requests and information.
        """
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}; there are: {', '.join(FAULTS)}")
        with self._lock:
            self._faults.append(_Fault(kind, on, times, details))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def _fault_for(self, path: str, kinds: tuple[str, ...]) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.kind in kinds and fnmatch(path, fault.on) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    # --- clients ----------------------------------------------------------------------------------

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a process that uses this Hub, with its cache below ``home``.

        The caller's own Hub settings and token are removed from it. ``more`` is added.
        """
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGINGFACE_", "ZOO_")) and "proxy" not in name.lower()
        }
        return mine | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # its uploads would bypass this server
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # The process imports what the caller can import, installed or not.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **more,
        }

    def run(
        self, code: str, *, home: Path, timeout: float = 60, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code in a separate process, with warnings as errors; captures output."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-W", _ITS_OWN_WARNING, "-c", code],
            env=self.environment(home, **more),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@contextmanager
def closed_port() -> Iterator[str]:
    """An endpoint at which every connection is refused while the block lasts."""
    import socket

    with socket.socket() as taken:  # bound but not listening: no other process can get the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def git_hash(data: bytes) -> str:
    """git's name for a file with this content, which is the ETag of files outside LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


# --- the server -----------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    hub: LoopbackHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early, as tests do."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def log_message(self, *args: Any) -> None:
        """The request log is ``LoopbackHub.requests``."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.body = self._read_body()
        with hub._lock:
            hub.requests.append(Request(self.command, path, self.headers.get("Range"), self.token))
        fault = hub._fault_for(path, ("hang", "status", "html", "redirect"))
        if fault is None:
            self._route(path)
        elif fault.kind == "hang":
            hub._closing.wait()
            self.close_connection = True
        elif fault.kind == "status":
            self._error(fault.details["status"], fault.details.get("code"), "as the test requests")
        elif fault.kind == "html":
            self._send(200, b"<html>Welcome! Please log in.</html>", {"Content-Type": "text/html"})
        else:
            self._send(302, b"", {"Location": fault.details["to"] + self.path})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, path: str) -> None:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                answer(self, **match.groupdict())
                return
        self._error(404, None, f"the loopback Hub has no {self.command} {path}")

    # --- reading ----------------------------------------------------------------------------------

    def _list(self) -> None:
        public = [name for name, repo in self.server.hub._repos.items() if not repo.private]
        self._json([{"id": name} for name in public])

    def _repo(self, repo: str, *, content: bool = False) -> _Repo | None:
        """The repository, if this client may read it; else an error has been sent."""
        if self.token is not None and self.token not in self.server.hub.tokens:
            self._error(401, None, "Invalid credentials in Authorization header")
            return None
        known = self.server.hub._repos.get(repo)
        if known is None or (known.private and self.token is None):
            # As the Hub does: without a token, the answer hides whether it exists.
            if self.token is None:
                self._error(401, None, "Invalid username or password.")
            else:
                self._error(404, "RepoNotFound", "Repository not found")
            return None
        if known.gated and content and self.token is None:
            self._error(401, "GatedRepo", f"Access to model {repo} is restricted.")
            return None
        return known

    def _files(
        self, repo: str, revision: str, *, content: bool = False
    ) -> tuple[_Repo, str, dict[str, bytes]] | None:
        known = self._repo(repo, content=content)
        if known is None:
            return None
        commit = known.branches.get(revision, revision)
        if commit not in known.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return known, commit, known.commits[commit]

    def _info(self, repo: str, revision: str = "main") -> None:
        if (found := self._files(repo, revision)) is None:
            return
        known, commit, files = found
        siblings = []
        for name, data in files.items():
            sibling: dict[str, Any] = {"rfilename": name}
            if "blobs" in self.query:
                sibling |= {"size": len(data), "blobId": git_hash(data)}
                if name.endswith(LFS_TYPES):
                    sha256 = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        gated = "manual" if known.gated else False
        info: dict[str, Any] = {
            "_id": commit[:24],
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "tags": [],
        }
        self._json(info | {"private": known.private, "gated": gated, "siblings": siblings})

    def _tree(self, repo: str, revision: str, folder: str = "") -> None:
        if (found := self._files(repo, revision)) is None:
            return
        _, _, files = found
        entries = []
        for name, data in files.items():
            if name.startswith(folder):
                entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
                entry["oid"] = git_hash(data)
                if name.endswith(LFS_TYPES):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
                entries.append(entry)
        self._json(entries)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if (found := self._files(repo, revision, content=True)) is None:
            return
        _, commit, files = found
        data = files.get(name)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        etag = sha256 if name.endswith(LFS_TYPES) else git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LFS_TYPES):
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if self.command == "HEAD":
            self._send(200, data, headers)
        else:
            self._send_content(data, headers)

    def _send_content(self, data: bytes, headers: dict[str, str]) -> None:
        hub = self.server.hub
        kinds = ("slow", "drip", "stall", "cut", "flip", "long", "endless", "whole")
        fault = hub._fault_for(unquote(urlsplit(self.path).path), kinds)
        kind = fault.kind if fault else None
        if kind == "flip":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        elif fault and kind == "slow":
            hub._closing.wait(fault.details["seconds"])
        elif kind == "long":
            data += b"surplus"
        status, start = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and kind != "whole":
            start = int(wanted[1])
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        if kind == "endless":
            self._head(status, None, headers)
            self.wfile.write(rest)
            while not hub._closing.wait(0.01):
                self.wfile.write(bytes(1 << 16))
            self.close_connection = True
            return
        if kind not in ("drip", "stall", "cut"):
            self._send(status, rest, headers)
            return
        self._head(status, len(rest), headers)
        if kind == "drip":
            for i in range(len(rest)):
                self.wfile.write(rest[i : i + 1])
                if hub._closing.wait(0.5):
                    break
        else:
            self.wfile.write(data[start : max(start, len(data) // 2)])
            self.wfile.flush()
            if kind == "stall":
                hub._closing.wait()
        self.close_connection = True

    # --- writing ----------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        if self.token in self.server.hub.tokens:
            return True
        self._error(401, None, "Invalid username or password.")
        return False

    def _on_create(self) -> None:
        if not self._may_write():
            return
        hub, wish = self.server.hub, json.loads(self.body)
        repo = f"{wish.get('organization') or 'user'}/{wish['name']}"
        url = f"{hub.endpoint}/{repo}"
        with hub._lock:
            exists = repo in hub._repos
            if not exists:
                private = wish.get("private") or wish.get("visibility") == "private"
                known = hub._repos[repo] = _Repo(private=bool(private))
                hub._commit(known, {".gitattributes": b""}, "main")
        if exists:
            self._error(409, None, "You already created this model repo", url=url)
        else:
            self._json({"url": url, "name": repo})

    def _on_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _on_preupload(self, repo: str, revision: str) -> None:
        if self._may_write() and (known := self._repo(repo)):
            head = known.commits.get(known.branches.get(revision, ""), {})
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(LFS_TYPES) else "regular",
                            "shouldIgnore": False,
                            "oid": git_hash(head[file["path"]]) if file["path"] in head else None,
                        }
                        for file in json.loads(self.body)["files"]
                    ]
                }
            )

    def _on_batch(self, repo: str) -> None:
        if self._may_write() and self._repo(repo):
            href = f"{self.server.hub.endpoint}/lfs-upload/"
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        item | {"actions": {"upload": {"href": href + item["oid"]}}}
                        for item in json.loads(self.body)["objects"]
                    ],
                }
            )

    def _on_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._error(400, None, "the content does not have this hash")
            return
        with self.server.hub._lock:
            self.server.hub._uploads[oid] = self.body
        self._send(200, b"", {})

    def _on_commit(self, repo: str, revision: str) -> None:
        known = self._repo(repo) if self._may_write() else None
        if known is None:
            return
        hub = self.server.hub
        with hub._lock:
            files = dict(known.commits.get(known.branches.get(revision, ""), {}))
            for line in self.body.splitlines():
                item = json.loads(line)
                kind, value = item["key"], item["value"]
                if kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    files[value["path"]] = hub._uploads[value["oid"]]
                elif kind == "deletedFile":
                    files.pop(value["path"], None)
            commit = hub._commit(known, files, revision)
        url = f"{hub.endpoint}/{repo}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _whoami(self) -> None:
        if self._may_write():
            self._json({"type": "user", "name": "user", "orgs": [{"name": "org"}]})

    # --- answers ----------------------------------------------------------------------------------

    def _error(
        self,
        status: int,
        code: str | None,
        message: str,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        text = json.dumps({"error": message} | more).encode()
        self._send(status, text, {"Content-Type": "application/json", **named, **(headers or {})})

    def _json(self, value: Any) -> None:
        data, headers = json.dumps(value).encode(), {"Content-Type": "application/json"}
        if self.server.hub._fault_for(unquote(urlsplit(self.path).path), ("drip",)):
            self._head(200, len(data), headers)
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                if self.server.hub._closing.wait(0.5):
                    break
            self.close_connection = True
        else:
            self._send(200, data, headers)

    def _head(self, status: int, length: int | None, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)


_NAME = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("GET", r"/api/models", _Handler._list),
    ("GET", rf"/api/models/{_NAME}", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/revision/(?P<revision>.+)", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _Handler._tree),
    ("GET", r"/api/whoami-v2", _Handler._whoami),
    ("POST", r"/api/repos/create", _Handler._on_create),
    ("POST", r"/api/validate-yaml", _Handler._on_yaml),
    ("POST", rf"/api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler._on_preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._on_batch),
    ("PUT", r"/lfs-upload/(?P<oid>[0-9a-f]{64})", _Handler._on_upload),
    ("POST", rf"/api/models/{_NAME}/commit/(?P<revision>.+)", _Handler._on_commit),
    ("GET HEAD", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler._resolve),
)
