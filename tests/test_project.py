"""The files around the code agree with each other: Makefile, workflows, hooks, metadata."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.overlay import ROOT, pyproject
from zoo import plugins

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE))


def commands(found: Any) -> list[str]:
    """Every ``run`` of a workflow."""
    if isinstance(found, dict):
        own = [found["run"]] if isinstance(found.get("run"), str) else []
        return own + [text for value in found.values() for text in commands(value)]
    return [t for v in found for t in commands(v)] if isinstance(found, list) else []


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_runs_what_is_here(path) -> None:
    found = yaml.safe_load(path.read_text("utf-8"))
    assert found["permissions"] == {"contents": "read"}
    runs = commands(found["jobs"])
    assert runs
    for text in runs:
        assert {*re.findall(r"\bmake (\w+)", text)} <= TARGETS
        for name in re.findall(r"\b(?:info|pull) ([\w-]+)", text):
            assert name in plugins.own_registry().models
        for name in re.findall(r"\btests/[\w/.]+", text):
            assert (ROOT / name).exists()
    for job in found["jobs"].values():
        assert job["timeout-minutes"]


def test_every_python_that_is_promised_is_tested() -> None:
    (path,) = (path for path in WORKFLOWS if path.stem == "tests")
    tested = yaml.safe_load(path.read_text("utf-8"))["jobs"]["everything"]["strategy"]["matrix"]
    project = pyproject()["project"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert tested["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"


def test_every_target_is_phony_and_no_file_of_ours_names_models() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    assert {*phony[1].split()} == TARGETS
    for name in ("Makefile", ".ci/run"):
        text = (ROOT / name).read_text("utf-8")
        named = [n for n in plugins.own_registry().models if re.search(rf"\b{n}\b", text)]
        assert named == [], name


def test_hooks_are_local_and_run_what_make_check_runs() -> None:
    found = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (repo,) = found["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        command = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert f"$(BIN)/{command}" in MAKEFILE


def test_the_documented_targets_exist() -> None:
    for name in ("CONTRIBUTING.md", "README.md"):
        text = (ROOT / name).read_text("utf-8")
        assert {*re.findall(r"(?:`|\$ |&& )make (\w+)", text)} <= TARGETS
