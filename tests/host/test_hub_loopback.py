"""The loopback Hub is a Hub to the real client: reading, ranges, uploads."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from zoo.testing import LoopbackHub, closed_port, git_hash

pytestmark = pytest.mark.slow

PUBLISH = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi
from zoo import hub

api = HfApi()
repo = api.create_repo("org/new", exist_ok=True)
api.create_repo("org/new", exist_ok=True)
weights = bytes(range(256)) * 100
card = b"---\\nlicense: mit\\n---\\n"
files = {"model.safetensors": weights, "config.json": b"{}", "README.md": card}
done = api.create_commit(
    "org/new",
    [CommitOperationAdd(name, data) for name, data in files.items()],
    commit_message="Publish",
)
info = api.model_info("org/new", files_metadata=True)
assert info.sha == done.oid, (info.sha, done.oid)
[lfs] = [s for s in info.siblings if s.lfs]
assert (lfs.rfilename, lfs.size) == ("model.safetensors", len(weights))
tree = {f.path: f for f in api.list_repo_tree("org/new", revision=done.oid)}
assert tree["model.safetensors"].lfs.sha256 == lfs.lfs.sha256
found = hub.fetch("org/new", done.oid)
assert (found.folder / "model.safetensors").read_bytes() == weights
path = api.hf_hub_download("org/new", "README.md", revision=done.oid)
assert open(path, "rb").read() == files["README.md"]
assert api.whoami()["name"] == "user"
print(json.dumps({"commit": done.oid, "url": str(repo)}))
"""


def test_the_real_client_publishes_and_reads(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        done = hub.run(PUBLISH, home=tmp_path, HF_TOKEN="hf_loopback")
        assert done.returncode == 0, done.stderr
        out = json.loads(done.stdout.splitlines()[-1])
        assert out["url"] == f"{hub.endpoint}/org/new"
        assert hub.head("org/new") == out["commit"]
        files = hub.files("org/new", out["commit"])
        assert files["model.safetensors"] == bytes(range(256)) * 100
        assert set(files) == {".gitattributes", "model.safetensors", "config.json", "README.md"}
        commits = [r for r in hub.requests if "/commit/" in r.path]
        assert len(commits) == 1  # all files in one


def test_strangers_cannot_write(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        code = "from huggingface_hub import HfApi; HfApi().create_repo('org/new')"
        assert "401" in hub.run(code, home=tmp_path).stderr
        assert "401" in hub.run(code, home=tmp_path, HF_TOKEN="hf_wrong").stderr
        with pytest.raises(KeyError):
            hub.head("org/new")


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_files_commits_and_ranges(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.json").write_bytes(b"[1]")
    (tmp_path / "m.safetensors").write_bytes(b"0123456789")
    with LoopbackHub() as hub:
        first = hub.add("org/x", tmp_path)
        second = hub.add("org/x", {"m.safetensors": b"new"})
        side = hub.add("org/x", {"m.safetensors": b"side"}, branch="side")
        assert len({first, second, side}) == 3
        assert hub.head("org/x") == second
        at = f"{hub.endpoint}/org/x/resolve"
        assert get(f"{at}/main/m.safetensors")[2] == b"new"
        assert get(f"{at}/side/m.safetensors")[2] == b"side"
        status, headers, data = get(f"{at}/{first}/m.safetensors", Range="bytes=4-")
        assert (status, data, headers["Content-Range"]) == (206, b"456789", "bytes 4-9/10")
        assert headers["X-Linked-ETag"].strip('"') == hashlib.sha256(b"0123456789").hexdigest()
        assert headers["X-Repo-Commit"] == first
        assert get(f"{at}/{first}/sub/a.json")[1]["ETag"].strip('"') == git_hash(b"[1]")
        assert get(f"{at}/{first}/m.safetensors", Range="bytes=10-")[0] == 416
        assert get(f"{at}/{first}/none")[1]["X-Error-Code"] == "EntryNotFound"
        assert get(f"{at}/{'0' * 40}/m.safetensors")[1]["X-Error-Code"] == "RevisionNotFound"
        assert [str(r) for r in hub.requests[:1]] == ["GET /org/x/resolve/main/m.safetensors"]


def test_git_hash_is_gits() -> None:
    assert git_hash(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_faults_are_counted_and_healed() -> None:
    with LoopbackHub() as hub:
        hub.add("org/x", {"a.json": b"abcd"})
        url = f"{hub.endpoint}/org/x/resolve/main/a.json"
        hub.fault("status", on="*/a.json", times=1, status=500)
        hub.fault("flip", on="*/a.json")
        assert get(url)[0] == 500
        assert get(url)[2] == b"abbd"
        hub.heal()
        assert get(url)[2] == b"abcd"
        with pytest.raises(ValueError, match="no fault 'melt'; there are: hang"):
            hub.fault("melt")


def test_a_hanging_request_does_not_outlive_the_hub() -> None:
    with LoopbackHub() as hub:
        hub.fault("hang")
        request = urllib.request.Request(f"{hub.endpoint}/api/models/org/x")
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(request, timeout=0.2)


def test_a_closed_port_refuses() -> None:
    with closed_port() as endpoint, pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(endpoint, timeout=2)


def test_the_callers_settings_do_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "ZOO_PLUGINS", "https_proxy"):
        monkeypatch.setenv(name, "mine")
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path, HF_HUB_OFFLINE="1")
    assert "mine" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
