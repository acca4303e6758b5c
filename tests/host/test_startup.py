"""Starting is fast because little is imported; the cost of plugins is linear in their number."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.startup import clean_environment, generate_plugins
from zoo import installed

HEAVY = "torch numpy timm transformers diffusers open_clip huggingface_hub PIL safetensors"
REPORT = "sys.stderr.write('\\n' + ' '.join(sys.modules))"
COUNT = 300
CPU_BOUND = 1.5
"""Seconds for ``zoo list`` with 300 plugins: three times what the benchmark aims at."""


def modules_after(code: str, *args: str) -> set[str]:
    """The modules of a new Python after some code has ended, possibly by SystemExit."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n    {code}\nfinally:\n    {REPORT}", *args],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {*done.stderr.splitlines()[-1].split()}


def test_import_zoo_imports_next_to_nothing() -> None:
    found = modules_after("import zoo")
    late = "click yaml importlib.metadata pluggy dataclasses typing json pathlib"
    assert found & {*HEAVY.split(), *late.split()} == set()
    assert {name for name in found if name.startswith("zoo")} == {"zoo"}


@pytest.mark.parametrize("args", ["--help", "--version", "list", "list --json", "plugins"])
def test_what_only_reads_data_imports_nothing_heavy(args: str) -> None:
    found = modules_after("from zoo.cli import main; main()", *args.split())
    assert found & {*HEAVY.split()} == set()
    late = {"pluggy", "importlib.metadata", "email", "socket", "zoo.api", "zoo.hub", "zoo.weights"}
    assert found & late == set()
    assert not [name for name in found if name.startswith("zoo_")]  # no plugin
    if args in ("--help", "--version"):
        assert found & {"yaml", "zoo.spec", "zoo.registry"} == set()


# --- many plugins ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with as many installed plugins."""
    folders = {}
    for count in (COUNT // 3, COUNT):
        folders[count] = tmp_path_factory.mktemp(f"site-{count}")
        generate_plugins(folders[count], count)
    return folders


def listing(site: Path) -> tuple[float, list[dict[str, str]]]:
    """CPU time and output of ``zoo list`` with the plugins of a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", "from zoo.cli import main; main()", "list", "--json"],
        env=clean_environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, json.loads(done.stdout)


@pytest.mark.slow
def test_three_hundred_plugins_are_listed_soon_and_none_is_imported(many: dict[int, Path]) -> None:
    # a generated plugin that is imported ends the process
    best = {}  # type: ignore[var-annotated]
    for count, site in many.items():
        for _ in range(3):
            seconds, models = listing(site)
            best[count] = min(best.get(count, seconds), seconds)
        mine = [m["name"] for m in models if m["name"].startswith("generated-")]
        assert sorted(mine) == sorted(f"generated-{number}" for number in range(count))
    assert best[COUNT] < 4 * best[COUNT // 3]
    assert best[COUNT] < CPU_BOUND


def test_the_quick_way_finds_what_importlib_metadata_finds(
    many: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (many[COUNT // 3], second, first):
        folder.mkdir(exist_ok=True)
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p).is_file()])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if _standard(f)])
    info = first / "Old.Style_egg-1.2-py3.11.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nname: Old.Style_egg\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "# some\n[console_scripts]\nx = y:z\n\n[zoo.plugins]\n# one\nname = old_style [extra]\n"
    )
    # a second one of the same name, later on the path, is not installed as far as Python goes
    twin = second / "old_style_egg-0.9.dist-info"
    twin.mkdir()
    (twin / "METADATA").write_text("Name: old-style-egg\nVersion: 0.9\n")
    (twin / "entry_points.txt").write_text("[zoo.plugins]\nname = older\n")

    assert installed._plain()
    quick, damaged = installed.entry_points("zoo.plugins")
    assert damaged == []
    slow = [
        installed.Point(p.value, installed.normalised(p.dist.name), p.dist.version)
        for p in importlib.metadata.entry_points(group="zoo.plugins")
        if p.dist is not None
    ]
    order = str
    assert sorted(quick, key=order) == sorted(slow, key=order)
    assert installed.Point("old_style [extra]", "old-style-egg", "1.2") in quick
    monkeypatch.setattr(installed, "_plain", lambda: False)
    assert sorted(installed.entry_points("zoo.plugins")[0], key=order) == sorted(slow, key=order)


def test_an_archive_on_the_path_is_left_to_importlib_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped-1.0.dist-info/METADATA", "Name: zipped\nVersion: 1.0\n")
        file.writestr("zipped-1.0.dist-info/entry_points.txt", "[zoo.plugins]\nz = zipped\n")
    monkeypatch.syspath_prepend(str(archive))
    assert not installed._plain()
    found, _ = installed.entry_points("zoo.plugins")
    assert installed.Point("zipped", "zipped", "1.0") in found


def _standard(finder: object) -> bool:
    return finder is installed.PathFinder or not hasattr(finder, "find_distributions")  # type: ignore[attr-defined]
