"""Model files without a network: ids, hashes, bundles, names, and what an import costs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import close_session
from hypothesis import example, given
from hypothesis import strategies as st

from zoo import hub
from zoo.entry import BaseEntry, Entry, FileSpec, HubSpec
from zoo.errors import HubError, UsageError, WeightsError, WeightsNotFoundError
from zoo.files import FORBIDDEN
from zoo.testing import closed_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec(path: str, data: bytes) -> FileSpec:
    return FileSpec(path, len(data), hashlib.sha256(data).hexdigest())


def entry(*files: FileSpec, revision: str | None = None, repo: str | None = None) -> Entry:
    return Entry(
        name="tiny",
        interface="SRModel",
        plugin="zoo_tiny",
        status="ready",
        summary="",
        files=files,
        hub=HubSpec(repo, revision) if repo else None,
    )


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/x", ("org/x", None)),
        ("org/x@main", ("org/x", "main")),
        (f"Org_1/x.y-z@{COMMIT}", ("Org_1/x.y-z", COMMIT)),
        ("org/x@refs/pr/1", ("org/x", "refs/pr/1")),
    ],
)
def test_parse_id(text: str, expected: tuple[str, str | None]) -> None:
    assert hub.parse_id(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "org/", "/x", "org/x/y", "org/../x", "../x", "./x", "C:/x", "org\\x", "org/x y"),
        *("org/x\n", "org/x--y", "org/.x", "-org/x", "org/x.git", "org/ü", "org/x?a", "~/x"),
        *("org/x@", "org/x@../../etc", "org/x@/etc", "org/x@a?b", "org/x@-b", "org/x@a//b"),
        *("org/x@a/", "org/x@a/./b", "org/x@" + "a" * 300),
    ],
)
def test_parse_id_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not a Hub id"):
        hub.parse_id(text)


@given(st.text(max_size=40))
@example("a/b@..")
@example("a/b@c/../d")
def test_whatever_parses_stays_in_the_cache(text: str) -> None:
    try:
        repo, revision = hub.parse_id(text)
    except UsageError:
        return
    assert f"{repo}@{revision}" == text or repo == text
    storage = Path("/cache") / ("models--" + repo.replace("/", "--"))
    for path in (storage, storage / "refs" / (revision or "main")):
        inside = os.path.normpath(path)
        assert inside == str(path)
        assert inside.startswith("/cache/models--")


HOSTILE = ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a/./x", "..", "", "a/", "C:x", "a\\x"]


@given(st.sampled_from(HOSTILE) | st.text(max_size=20))
def test_a_listed_name_stays_in_its_folder(path: str) -> None:
    try:
        file = hub._listed(path, 1, "0" * 40, None)
    except ValueError:
        return
    assert path not in HOSTILE
    assert os.path.normpath(f"/snapshot/{file.path}") == f"/snapshot/{path}"
    assert "\\" not in path
    assert ":" not in path


@pytest.mark.parametrize(
    ("size", "blob", "sha256"),
    [(1, "../../x", None), (1, "0" * 39, None), (1, "0" * 40, "../x"), (-1, "0" * 40, None)],
)
def test_a_listed_hash_is_a_hash(size: int, blob: str, sha256: str | None) -> None:
    with pytest.raises(ValueError, match="it gives 'x' the"):
        hub._listed("x", size, blob, sha256)


# --- files ----------------------------------------------------------------------------------------


def test_check_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.json").write_bytes(b"abc")
    hub.check_files(tmp_path, [spec("sub/a.json", b"abc")])
    path = tmp_path / "sub" / "a.json"
    with pytest.raises(WeightsError, match="has 3 bytes, expected 4") as size:
        hub.check_files(tmp_path, [spec("sub/a.json", b"abcd")])
    assert str(path) in str(size.value)
    with pytest.raises(WeightsError) as content:
        hub.check_files(tmp_path, [spec("sub/a.json", b"abd")])
    for data in (b"abc", b"abd"):  # actual and expected
        assert hashlib.sha256(data).hexdigest() in str(content.value)
    with pytest.raises(WeightsError, match=r"b\.json is not there"):
        hub.check_files(tmp_path, [spec("b.json", b"abc")])
    with pytest.raises(WeightsError, match="is not there"):  # a folder is not a file
        hub.check_files(tmp_path, [spec("sub", b"abc")])


def test_a_file_larger_than_one_read(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "big.safetensors").write_bytes(data)
    hub.check_files(tmp_path, [spec("big.safetensors", data)])
    with pytest.raises(WeightsError, match="has sha256"):
        hub.check_files(tmp_path, [spec("big.safetensors", data[:-1] + b"?" * 1)])


def test_a_model_without_files_needs_no_place() -> None:
    assert hub.locate(entry(), bundled=None) == hub.Located(None, "none")


def test_bundled_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    wanted = entry(spec("model.safetensors", b"abc"))
    assert hub.locate(wanted, bundled=tmp_path) == hub.Located(tmp_path, "bundled")
    base = BaseEntry("tiny-base", "zoo_tiny", "", files=wanted.files)
    assert hub.locate(base, bundled=tmp_path).source == "bundled"
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    with pytest.raises(WeightsError, match=r"(?s)tiny: a bundled file is damaged.*reinstall zoo_"):
        hub.locate(wanted, bundled=tmp_path)


def test_files_that_no_entry_lists_are_named(tmp_path: Path) -> None:
    """An author added a file but not to the registry."""
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "more.safetensors").write_bytes(b"abc")
    with pytest.warns(UserWarning, match=r"also has extra/more\.safetensors, which its registry"):
        hub.locate(entry(spec("model.safetensors", b"abc")), bundled=tmp_path)
    with pytest.warns(UserWarning, match=r"extra/more\.safetensors, model\.safetensors, which"):
        assert hub.locate(entry(), bundled=tmp_path).source == "none"


@pytest.mark.parametrize("repo", [None, "org/tiny"])
def test_files_that_are_nowhere(tmp_path: Path, repo: str | None) -> None:
    wanted = entry(spec("model.safetensors", b"abc"), repo=repo)
    with pytest.raises(WeightsNotFoundError) as error:
        hub.locate(wanted, bundled=tmp_path / "absent")
    text = str(error.value)
    assert f"bundle: {tmp_path / 'absent' / 'model.safetensors'} is not there" in text
    assert f"hub: {repo or 'tiny'} is not published yet" in text
    assert isinstance(error.value, FileNotFoundError)


# --- which files of a third-party repository ------------------------------------------------------


def chosen(*names: str, patterns: list[str] | None = None) -> list[str]:
    listing = {name: hub._listed(name, 1, "0" * 40, None) for name in names}
    return [file.path for file in hub._select("org/x", listing, patterns)]


def test_only_safe_types_are_taken() -> None:
    names = ["model.safetensors", "config.json", "vocab.txt", "tokenizer.model", "chat.jinja"]
    bad = ["pytorch_model.bin", "a.pt", "a.pkl", "a.ckpt", "modeling.py", "a.h5", "x"]
    assert chosen(*names, *bad) == names
    assert chosen(*names, "README.md", "docs/README.md") == [*names, "README.md"]  # the licence
    # patterns narrow, they never widen
    assert chosen(*names, *bad, patterns=["*"]) == names
    assert chosen(*names, *bad, patterns=["*.json", "*.bin", "model*"]) == [
        "model.safetensors",
        "config.json",
    ]


def test_the_same_weights_are_taken_once() -> None:
    unet = "unet/diffusion_pytorch_model"
    assert chosen(
        "model_index.json",
        "v1-5-pruned.safetensors",
        f"{unet}.safetensors",
        f"{unet}.fp16.safetensors",
        f"{unet}.non_ema.safetensors",
    ) == ["model_index.json", f"{unet}.safetensors"]
    # where there is only the one, it is taken
    assert chosen("model.fp16.safetensors") == ["model.fp16.safetensors"]


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_pickles_are_refused_by_name(kind: str) -> None:
    with pytest.raises(WeightsError, match=f"only as weights{kind}: a pickle"):
        chosen(f"weights{kind}", "config.json")


@pytest.mark.slow
def test_the_command_that_converts_a_pickle_works(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    with pytest.raises(WeightsError) as error:
        chosen("sub/pytorch_model.bin")
    command = str(error.value).splitlines()[-1].strip()
    assert command.startswith('python -c "')
    # In a separate process: importing torch here would slow down every later test.
    code = (
        "import os, torch; from safetensors.torch import load_file; os.mkdir('sub')\n"
        "tied = torch.arange(6.0).reshape(2, 3)\n"
        "state = {'a': tied, 'b': tied, 'c': tied.t()}\n"
        "torch.save(state, 'sub/pytorch_model.bin')\n"
        + command.removeprefix("python -c ").strip('"')
        + "\nfound = load_file('model.safetensors')\n"
        "assert found.keys() == state.keys()\n"
        "assert all(torch.equal(found[k], state[k]) for k in state)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the process ----------------------------------------------------------------------------------


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, zoo.hub; print([m for m in ('huggingface_hub', 'torch', 'numpy', 'httpx2', "
        "'click', 'PIL', 'importlib.metadata') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", text)
    with pytest.raises(UsageError, match="ZOO_HUB_TIMEOUT="):
        hub._patience()


def test_the_timeout_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_HUB_TIMEOUT", raising=False)
    assert hub._patience() == 2
    monkeypatch.setenv("ZOO_HUB_TIMEOUT", "0.5")
    assert hub._patience() == 0.5


# --- what surrounds it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", " ", "hub.example", "https://hub.example ", "https:// hub.example", "https://", "ftp://a",
     "https://hub.example:port", "https://hub.example\n"],
)  # fmt: skip
def test_an_endpoint_that_is_no_address(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", text)
    with pytest.raises(UsageError, match=re.escape(f"HF_ENDPOINT={text!r} is not an address")):
        hub._endpoint()


@pytest.mark.parametrize("text", ["https://hub.example", "http://127.0.0.1:8080/mirror"])
def test_an_endpoint(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", text)
    assert hub._where("org/x") == f"{text}/org/x"


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the proxy, not the Hub. Hosts in NO_PROXY are requested directly."""
    proxy = f"http://127.0.0.1:{closed_port()}"
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    close_session()  # the next one reads the variables
    try:
        with pytest.raises(HubError, match=rf"through the proxy {proxy} .*") as caught:
            hub.fetch("org/x")
        assert "Check the proxy; NO_PROXY" in str(caught.value)
        assert proxy in str(hub.reachable())
        monkeypatch.setenv("no_proxy", "hub.invalid")
        assert hub._through() == ""
    finally:
        close_session()


def test_a_file_where_the_cache_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    for ask in (hub.cache_folder, lambda: hub.fetch("org/x")):
        with pytest.raises(UsageError, match=r"home is a file. Set HF_HOME"):
            ask()
