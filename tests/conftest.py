"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell starts background jobs, and some CI runners all jobs, with SIGINT ignored, which children
# inherit; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side, and their tensors are small: a second thread would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may reach the real Hub: tests of the network use a loopback Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("ZOO_PLUGINS", "ZOO_PLUGINS_DISABLE", "ZOO_HUB_TIMEOUT"):
    os.environ.pop(variable, None)

ENVIRONMENTS = {"environment", "sources", "wheel", "bare_wheel", "nearest_wheel"}
"""The fixtures of tests/host/conftest.py that build or install something."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need an environment by their fixtures, so that no mark is forgotten."""
    for item in items:
        if ENVIRONMENTS & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.environment)


MINIMAL_REGISTRY = """
schema: 1
zoo_api: 1
models:
  {name}:
    interface: SRModel
    status: ready
    summary: a third-party model
    class: "{package}.model:Model"
"""
MINIMAL_INIT = """
from zoo.hookspecs import hookimpl

@hookimpl
def zoo_build(request):
    from .model import Model
    return Model(request)
"""
MINIMAL_MODEL = """
from zoo.interfaces import SRModel
from zoo.images import transform

class Model(SRModel):
    scales = (2,)

    def upscale(self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False):
        def double(rgb):
            return rgb.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return transform(images, double, scale=2)
"""


def forget() -> None:
    """Make this process search for plugins again."""
    from zoo import plugins, registry

    plugins._managers.clear()
    registry.forget()


def install(site: Path, project: Path) -> Path:
    """Copy a project's package to a site folder, with the metadata that pip would write."""
    (package,) = (path.parent for path in project.glob("*/registry.yaml"))
    shutil.copytree(package, site / package.name)
    info = site / f"{package.name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project.name}\nVersion: 0.1.0\n", "utf-8"
    )
    (info / "entry_points.txt").write_text(
        f"[zoo.plugins]\n{package.name} = {package.name}\n", "utf-8"
    )
    return site / package.name


class Site:
    """A folder on sys.path, like site-packages, in which a test installs made-up plugins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plugin(
        self,
        package: str,
        *,
        distribution: str | None = None,
        version: str = "1.0",
        registry: str | None = "",
        init: str = MINIMAL_INIT,
        model: str | None = MINIMAL_MODEL,
        entry_point: str | None = None,
    ) -> Path:
        """Install one. ``registry``: its text, "" for a minimal one, None for no file."""
        folder = self.path / package
        folder.mkdir()
        (folder / "__init__.py").write_text(init, "utf-8")
        if model is not None:
            (folder / "model.py").write_text(model, "utf-8")
        if registry is not None:
            name = package.replace("_", "-")
            text = registry or MINIMAL_REGISTRY.format(name=name, package=package)
            (folder / "registry.yaml").write_text(text, "utf-8")
        name = distribution or package
        info = self.path / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8"
        )
        points = info / "entry_points.txt"
        old = points.read_text("utf-8") if points.exists() else "[zoo.plugins]\n"
        points.write_text(f"{old}{package} = {entry_point or package}\n", "utf-8")
        forget()
        return folder

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``python *args`` in a separate process that sees the plugins."""
        before = [str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, *args],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(before), **env},
            timeout=300,
        )

    def zoo(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``zoo *args`` in a separate process that sees the plugins."""
        return self.run("-c", "from zoo.cli import main; main()", *args, **env)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty place for made-up plugins, seen by subprocesses only."""
    path = tmp_path / "site"
    path.mkdir()
    return Site(path)


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The same, also visible to this process; its imports are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(site.path))
    monkeypatch.setenv("PYTHONPATH", str(site.path))  # for the processes that it starts
    before = set(sys.modules)
    forget()
    yield site
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(site.path)):
            del sys.modules[name]
    monkeypatch.undo()
    forget()


@pytest.fixture
def zoo_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``zoo *args`` in a separate process, in an empty folder."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from zoo.cli import main; main()", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
            timeout=300,
        )

    return run
