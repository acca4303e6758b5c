"""Built projects and views of this environment, made once for all tests that install something."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import overlay
from tests.overlay import Environment

NEAREST = overlay.ROOT / "tests" / "third_party" / "zoo-nearest"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for all of these."""
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def sources(workshop: Path) -> Path:
    """A copy of the project's sources."""
    return overlay.snapshot(workshop / "sources")


@pytest.fixture(scope="session")
def wheel(sources: Path) -> Path:
    """The project's wheel."""
    return overlay.build(sources)


@pytest.fixture(scope="session")
def bare_wheel(workshop: Path, sources: Path) -> Path:
    """The host's wheel with an empty registry and no plugins."""
    return overlay.build(overlay.bare_host(sources, workshop / "bare-host"))


@pytest.fixture(scope="session")
def nearest(workshop: Path) -> Path:
    """A copy of the third-party project."""
    ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    return Path(shutil.copytree(NEAREST, workshop / "zoo-nearest", ignore=ignored))


@pytest.fixture(scope="session")
def nearest_wheel(nearest: Path) -> Path:
    """The third-party project's wheel."""
    return overlay.build(nearest)


@pytest.fixture(scope="session")
def environment(workshop: Path) -> Callable[[str], Environment]:
    """Make an environment that sees the view ``base`` or ``all``."""
    views: dict[str, Path] = {}
    made = iter(range(1000))

    def make(view: str) -> Environment:
        if view not in views:
            views[view] = overlay.make_view(workshop / f"view-{view}", view)
        return Environment(workshop / f"venv-{next(made)}", views[view])

    return make
