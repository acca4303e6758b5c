"""``zoo new``: six projects that build, install, pass their own tests, load, and can be
uninstalled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests import overlay
from tests.overlay import Environment
from zoo import registry, scaffold, spec
from zoo.entry import API_VERSION
from zoo.errors import OutputError, UsageError
from zoo.interfaces import INTERFACES

NAMES = {interface: f"a-{interface.lower()}" for interface in INTERFACES}
PACKAGES = {interface: name.replace("-", "_") for interface, name in NAMES.items()}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A project for each interface."""
    made = tmp_path_factory.mktemp("projects")
    return {
        interface: scaffold.create(name, interface, made / name)
        for interface, name in NAMES.items()
    }


# --- written files --------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_project_is_complete_and_its_registry_valid(
    interface: str, projects: Mapping[str, Path]
) -> None:
    folder, package = projects[interface], PACKAGES[interface]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "tests/test_conformance.py",
        *(f"{package}/{name}" for name in ("__init__.py", "model.py", "py.typed", "registry.yaml")),
    }
    assert not [path for path in folder.rglob("*.*") if "$name" in path.read_text("utf-8")]
    found = spec.read(folder / package / "registry.yaml", package=package)
    (entry,) = found.models.values()
    assert (entry.name, entry.interface, entry.status) == (NAMES[interface], interface, "ready")
    assert found.zoo_api == API_VERSION


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_author_writes_at_most_thirty_lines_besides_the_model(
    interface: str, projects: Mapping[str, Path]
) -> None:
    folder = projects[interface]
    besides = [folder / "pyproject.toml"]
    besides += [folder / PACKAGES[interface] / name for name in ("__init__.py", "registry.yaml")]
    lines = [line for path in besides for line in path.read_text("utf-8").splitlines() if line]
    assert len(lines) <= 30


def test_projects_keep_to_the_style_that_we_keep_to(projects: Mapping[str, Path]) -> None:
    for command in (("check", "--select", "E,F,W,I,UP,B,C4,SIM,PT"), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100", "."],
            cwd=projects["SRModel"].parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_template_ends_so_that_no_tool_reads_it() -> None:
    files = [p for p in scaffold._TEMPLATES.rglob("*") if p.is_file()]
    assert {p.relative_to(scaffold._TEMPLATES).parts[0] for p in files} == {"common", *INTERFACES}
    assert {p.suffix for p in files} == {".in"}


# --- names and places -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("My-Model", "lower-case"),
        ("my model", "lower-case"),
        ("../elsewhere", "lower-case"),
        ("9lives", "lower-case"),
        ("-model", "lower-case"),
        ("model-", "lower-case"),
        ("a--b", "lower-case"),
        ("größe", "lower-case"),
        ("", "lower-case"),
        ("a" * 65, "64 characters"),
        ("lambda", "Python keyword"),
        ("match", "Python keyword"),
        ("json", "is already a Python package"),
        ("numpy", "is already a Python package"),
        ("zoo", "is already a Python package"),
        ("edge-sd-sr", "taken"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_and_nothing_written(
    name: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=why):
        scaffold.create(name, "SRModel", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of SRModel"):
        scaffold.create("my-model", "Upscaler", tmp_path / "made")


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    made = scaffold.create("my-model", "SRModel", tmp_path / "made")
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    with pytest.raises(OutputError, match="already exists"):
        scaffold.create("my-other", "Detector", tmp_path / "made")
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(OutputError, match="not a folder"):
        scaffold.create("my-model", "SRModel", tmp_path / "no" / "where")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaffold._files.__globals__, "Template", None)
    with pytest.raises(TypeError):
        scaffold.create("my-model", "SRModel", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        ("detector", "Detector"),
        ("quantizer", "Quantizer"),
        ("rounded", "Quantizer"),
        ("reader", "QAGenerator"),
    ],
)
def test_a_model_called_like_what_its_module_uses_does_not_hide_it(
    name: str, interface: str, tmp_path: Path
) -> None:
    made = scaffold.create(name, interface, tmp_path / name)
    text = (made / name / "model.py").read_text("utf-8")
    assert f"class {name.capitalize()}Model({interface}):" in text


def test_the_command(zoo_command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = zoo_command("new", "my-model", "--interface", "srmodel")
    assert done.returncode == 0, done.stderr
    assert "my-model/my_model/model.py" in done.stdout.replace(os.sep, "/")
    assert "pip install -e ." in done.stdout
    done = zoo_command("new", "my-model", "--interface", "SRModel")
    assert (done.returncode, done.stdout) == (1, "")
    assert "already exists" in done.stderr
    assert zoo_command("new", "My", "--interface", "SRModel").returncode == 2
    assert zoo_command("new", "my-other", "--interface", "Upscaler").returncode == 2
    assert zoo_command("new", "my-other").returncode == 2


# --- installed with the host's wheel --------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(
    environment: Callable[[str], Environment], bare_wheel: Path, projects: Mapping[str, Path]
) -> Environment:
    """A fresh environment with the host's wheel and the six projects' wheels."""
    env = environment("all")
    env.install(bare_wheel, *(overlay.build(project) for project in projects.values()))
    return env


def test_all_six_are_found(installed: Environment) -> None:
    listed = json.loads(installed.zoo("list", "--json").stdout)
    assert {m["name"]: m["interface"] for m in listed} == {n: i for i, n in NAMES.items()}
    found = json.loads(installed.zoo("plugins", "--json").stdout)
    assert {p["package"]: p["state"] for p in found} == dict.fromkeys(PACKAGES.values(), "ok")


def test_each_passes_its_own_tests_where_it_is_installed(
    installed: Environment, projects: Mapping[str, Path]
) -> None:
    # one process for all six saves five starts of torch; so each file needs a unique name
    tests = installed.home / "tests"
    tests.mkdir()
    for interface, project in projects.items():
        text = (project / "tests" / "test_conformance.py").read_text("utf-8")
        (tests / f"test_{PACKAGES[interface]}.py").write_text(text, "utf-8")
    done = installed.run(
        installed.python, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", tests,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert " passed" in done.stdout
    assert done.stdout.count("test_") == 0, done.stdout  # no line about a failure or a warning


def test_only_what_is_allowed_loads(installed: Environment) -> None:
    code = (
        "import sys, zoo\n"
        f"for name in {list(NAMES.values())!r}:\n"
        "    try:\n"
        "        model = zoo.load(name)\n"
        "        print(model.interface, model.entry.distribution)\n"
        "    except zoo.ZooError as error:\n"
        "        assert 'ZOO_PLUGINS' in str(error), error\n"
        "        print('blocked', name.replace('-', '_') in sys.modules)\n"
    )
    allowed = {"SRModel", "Detector"}
    found = installed.code(code, ZOO_PLUGINS=",".join(PACKAGES[i] for i in allowed)).splitlines()
    assert found == [f"{i} {n}" if i in allowed else "blocked False" for i, n in NAMES.items()]


def test_one_is_uninstalled_and_the_others_stay(installed: Environment) -> None:
    installed.uninstall(NAMES["Detector"])
    left = [model["name"] for model in json.loads(installed.zoo("list", "--json").stdout)]
    assert sorted(left) == sorted(name for i, name in NAMES.items() if i != "Detector")
    gone = installed.zoo("info", NAMES["Detector"], ok=False)
    assert gone.returncode == 2
    assert "no model is called" in gone.stderr


def test_names_are_checked_against_what_is_installed() -> None:
    registry.forget()
    with pytest.raises(UsageError, match="taken"):
        scaffold.check_name(next(iter(registry.catalogue().models)))
