"""``zoo doctor``, ``zoo cache``, ``zoo install`` and ``zoo uninstall``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Site
from zoo.testing import LoopbackHub, closed_port

pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def zoo(env: dict[str, str], *args: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from zoo.cli import main; main()", *args],
        input=answer,
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )


# --- doctor ---------------------------------------------------------------------------------------


def findings(text: str) -> dict[str, dict[str, object]]:
    return {f["topic"]: f for f in json.loads(text)}


def test_doctor_says_what_works(hub: LoopbackHub, tmp_path: Path) -> None:
    done = zoo(hub.environment(tmp_path), "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done.stdout)
    assert found["Hub"]["text"] == "answers"
    assert str(tmp_path) in str(found["cache"]["text"])
    assert found["torch"]["ok"] is True
    assert found["edge-sd-sr"]["text"] == "bundled weights match their hashes"
    assert found["zoo_edge_sd_sr"]["ok"] is True


def test_doctor_names_each_fault_and_what_to_do(
    hub: LoopbackHub, site: Site, tmp_path: Path
) -> None:
    site.plugin("zoo_unread", registry=None)
    site.plugin("zoo_bad_code", init="import nothing_of_this_name_")
    with closed_port() as endpoint:
        env = hub.environment(tmp_path, HF_ENDPOINT=endpoint, PYTHONPATH=str(site.path))
        done = zoo(env, "doctor", "--check", "--json")
        plain = zoo(env, "doctor")
    assert done.returncode == 1
    found = findings(done.stdout)
    assert found["Hub"]["ok"] is None  # worth knowing, nothing is broken
    assert found["zoo_unread"]["ok"] is False
    assert "no registry.yaml" in str(found["zoo_unread"]["text"])
    assert found["zoo_bad_code"]["ok"] is False
    assert "nothing_of_this_name_" in str(found["zoo_bad_code"]["text"])
    assert "ZOO_PLUGINS_DISABLE=zoo_bad_code" in str(found["zoo_bad_code"]["advice"])
    assert plain.returncode == 1
    assert "FAULT  zoo_unread" in " ".join(plain.stdout.split(" ")).replace("   ", "  ")


# --- cache ----------------------------------------------------------------------------------------


def test_cache_shows_and_frees(hub: LoopbackHub, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    assert "is empty" in zoo(env, "cache").stdout
    hub.add("org/one", {"config.json": b"{}", "model.safetensors": b"x" * 5000})
    hub.add("org/two", {"config.json": b"{}", "model.safetensors": b"y" * 300})
    fetch = "from zoo import hub\nfor r in ('org/one', 'org/two'): hub.fetch(r)"
    assert hub.run(fetch, home=tmp_path).returncode == 0
    shown = {r["repo"]: r["size"] for r in json.loads(zoo(env, "cache", "--json").stdout)}
    assert shown["org/one"] >= 5000
    assert set(shown) == {"org/one", "org/two"}

    assert zoo(env, "cache", "--free").returncode == 2  # never everything by accident
    assert zoo(env, "cache", "--free", "org/on").returncode == 2
    kept = zoo(env, "cache", "--free", "org/one", answer="n\n")
    assert kept.returncode != 0
    assert len(json.loads(zoo(env, "cache", "--json").stdout)) == 2
    freed = zoo(env, "cache", "--free", "org/one", "--yes", "--json")
    assert json.loads(freed.stdout)["freed"] == shown["org/one"]
    assert [r["repo"] for r in json.loads(zoo(env, "cache", "--json").stdout)] == ["org/two"]

    hub.add("org/cut", {"model.safetensors": b"z" * 4000})
    hub.fault("cut", on="/org/cut/resolve/*")
    assert hub.run("from zoo import hub; hub.fetch('org/cut')", home=tmp_path).returncode == 1
    shown = {r["repo"]: r["size"] for r in json.loads(zoo(env, "cache", "--json").stdout)}
    assert shown["org/cut"] == 2000  # partial downloads take space too
    assert "freed 2,000 bytes" in zoo(env, "cache", "--free", "org/cut", "--yes").stdout


# --- install and uninstall ------------------------------------------------------------------------


def test_uninstall_touches_plugins_only(site: Site) -> None:
    for name in ("torch", "edgezoo", "no-such-thing"):
        done = site.zoo("uninstall", name)
        assert done.returncode == 2
        assert "brings no third-party plugin" in done.stderr


def test_without_pip_the_command_to_type_is_shown(site: Site) -> None:
    """Many environments have no pip (uv's, this one made by venv --without-pip)."""
    hide = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'pip' else real(name, *a)\n"
        "from zoo.cli import main; main(['install', 'zoo-thing'])"
    )
    done = site.run("-c", hide)
    assert done.returncode == 1
    assert f"pip --python {sys.executable} install zoo-thing" in done.stderr


def test_a_failing_pip_fails(site: Site, tmp_path: Path) -> None:
    done = site.zoo("install", str(tmp_path / "nothing-here"))
    assert done.returncode == 1
    assert "nothing-here" in done.stdout + done.stderr
    assert shutil.which("pip") is None or "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["pip", "random", "typing"])
def test_a_module_of_the_current_folder_is_not_run(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("print('IT RAN')\nraise SystemExit(0)", "utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from zoo.cli import main; main(['install', './nothing'])"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "IT RAN" not in done.stdout + done.stderr
