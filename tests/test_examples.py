"""The scripts in ``examples/`` run unchanged, and show an improvement."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.overlay import ROOT
from zoo import plugins

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
READY = {n: e for n, e in plugins.own_registry().models.items() if e.status == "ready"}


def test_each_interface_with_a_ready_model_has_one() -> None:
    loaded = [
        name
        for path in SCRIPTS
        for name in re.findall(r'zoo\.load\("([\w-]+)"', path.read_text("utf-8"))
    ]
    assert {READY[name].interface for name in loaded} == {e.interface for e in READY.values()}
    page = (ROOT / "examples" / "README.md").read_text("utf-8")
    for path in SCRIPTS:
        assert f"`{path.name}`" in page


PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"
"""What peft asks of transformers under an old name."""


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_the_model_does_better(path, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", PEFT, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:%|dB)", done.stdout))
    assert after > before
