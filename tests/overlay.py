"""Fresh environments without fresh downloads, and projects to install in them.

A *view* is a folder of links to what this interpreter's site-packages holds, never to the project
itself (its entry points would leak). ``all`` has everything, ``base`` only what a plain
``pip install edgezoo`` brings, and what builds wheels. An ``Environment`` is a new venv without pip
that sees one view through a ``.pth`` file; pip comes from the view, finds there what a
wheel depends on, and is kept from every index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import zoo

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "edgezoo"
GROUP = "zoo.plugins"
BUILDERS = ("pip", "hatchling", "editables")
SIBLINGS = dict.fromkeys(("zoo_edge_sd_sr", "zoo_yonos_sr", "zoo_fam_diffusion"), ("zoo_sr",))
"""The packages of shared code that a plugin imports, besides the host."""

_SOURCES = ["zoo", "plugins", "tests", "hub_cards", "registry.yaml", "pyproject.toml"]
_SOURCES += ["constraints.txt", "Makefile", "README.md", "CHANGELOG.md", "SECURITY.md"]
_SOURCES += ["CONTRIBUTING.md", "LICENSE", ".gitignore", "examples", ".github", ".ci"]


# --- views ----------------------------------------------------------------------------------------


def make_view(folder: Path, kind: str) -> Path:
    """Fill ``folder`` with links: ``all`` or ``base``."""
    site = Path(sysconfig.get_path("purelib"))
    folder.mkdir(parents=True)
    if kind == "base":
        wanted = _top_names(closure([*pyproject()["project"]["dependencies"], *BUILDERS]))
    else:
        hidden = _top_names(d for d in metadata.distributions(path=[str(site)]) if _ours(d))
        wanted = {p.name for p in site.iterdir()} - hidden
    for name in wanted:
        if not name.endswith(".pth") and name != "__pycache__" and (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def closure(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The installed distributions of these requirements, including their own requirements."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        need = waiting.pop()
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        dist = metadata.distribution(need.name)
        found[key[0]] = dist
        for text in dist.requires or ():
            child = Requirement(text)
            extras = need.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(child)
    return list(found.values())


def _ours(dist: metadata.Distribution) -> bool:
    name = canonicalize_name(dist.metadata["Name"])
    return name == PROJECT or any(p.group == GROUP for p in dist.entry_points)


def _top_names(dists: Iterable[metadata.Distribution]) -> set[str]:
    return {file.parts[0] for dist in dists for file in dist.files or ()} - {".."}


def pyproject() -> dict[str, Any]:
    """The project's pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


# --- environments ---------------------------------------------------------------------------------


class Environment:
    """A new venv that sees a view; commands run in it from an empty folder, with no way out."""

    def __init__(self, path: Path, view: Path) -> None:
        venv.EnvBuilder(with_pip=False, symlinks=True).create(path)
        self.path = path
        self.site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(path)}))
        self.bin = Path(sysconfig.get_path("scripts", "venv", vars={"base": str(path)}))
        self.python = self.bin / "python"
        (self.site / "view.pth").write_text(f"{view}\n", "utf-8")
        self.home = path / "home"
        self.home.mkdir()

    def run(
        self, *command: str | Path, ok: bool = True, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; if ``ok``, a non-zero exit code is an error that shows its output."""
        leaks = re.compile("PYTHON|PIP_|HF_|ZOO_|VIRTUAL")
        kept = {name: value for name, value in os.environ.items() if not leaks.match(name)}
        kept |= {
            "HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{self.bin}{os.pathsep}{kept.get('PATH', '')}",
            **env,
        }
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.home,
            env=kept,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if ok and done.returncode:
            raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def code(self, text: str, **options: Any) -> str:
        """Run Python code; returns its output."""
        return self.run(self.python, "-W", "error", "-c", text, **options).stdout

    def zoo(self, *args: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command ``zoo``."""
        return self.run(self.bin / "zoo", *args, ok=ok, **env)  # type: ignore[arg-type]

    def install(self, *what: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """``pip install`` without any index, dependencies checked against the view."""
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "install")
        quick = ("--no-index", "--no-build-isolation", "--no-compile", "--quiet")
        return self.run(*pip, *quick, *what, ok=ok)

    def uninstall(self, name: str) -> None:
        """``pip uninstall``."""
        self.run(self.python, "-m", "pip", "--disable-pip-version-check", "uninstall", "-y", name)


# --- projects -------------------------------------------------------------------------------------


def snapshot(target: Path) -> Path:
    """A copy of the sources, so that building does not write to the checkout."""
    target.mkdir(parents=True)
    for name in _SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, target / name)
    return target


def build(project: Path, target: str = "wheel") -> Path:
    """Build a project's ``wheel`` or ``sdist`` with hatchling, into a folder next to it."""
    out = project.parent / f"{project.name}-{target}"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=project,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return max(out.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def bare_host(sources: Path, target: Path) -> Path:
    """The host alone: ``zoo`` with an empty registry and no entry points."""
    about = pyproject()["project"]
    shutil.copytree(sources / "zoo", target / "zoo")
    (target / "registry.yaml").write_text("schema: 1\nzoo_api: 1\nmodels: {}\n", "utf-8")
    (target / "pyproject.toml").write_text(
        _project_text(PROJECT, zoo.__version__, about["dependencies"], ["zoo"])
        + 'force-include = {"registry.yaml" = "zoo/registry.yaml"}\n'
        + f'[project.scripts]\nzoo = "{about["scripts"]["zoo"]}"\n',
        "utf-8",
    )
    return target


def split_plugin(sources: Path, package: str, target: Path, extras: Iterable[str]) -> Path:
    """One first-party plugin as a third-party project: its slice of the registry, its siblings."""
    siblings = SIBLINGS.get(package, ())
    for name in (package, *siblings):
        shutil.copytree(sources / "plugins" / name, target / name)
    text = (sources / "registry.yaml").read_text("utf-8")
    (target / package / "registry.yaml").write_text(slice_registry(text, package), "utf-8")
    needs = [PROJECT, *(need for extra in sorted(extras) for need in extra_needs(extra))]
    (target / "pyproject.toml").write_text(
        _project_text(f"split-{package}".replace("_", "-"), "1.0", needs, [package, *siblings])
        + f'[project.entry-points."{GROUP}"]\nsplit = "{package}"\n',
        "utf-8",
    )
    return target


def extra_needs(extra: str) -> list[str]:
    """The requirements of one of zoo's extras, with nested extras expanded."""
    found: list[str] = []
    for text in pyproject()["project"]["optional-dependencies"][extra]:
        need = Requirement(text)
        if canonicalize_name(need.name) == PROJECT:
            found += [child for name in sorted(need.extras) for child in extra_needs(name)]
        else:
            found.append(text)
    return found


def _project_text(name: str, version: str, needs: Iterable[str], packages: Iterable[str]) -> str:
    needs, packages = list(needs), list(packages)
    return (
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\nrequires-python = ">=3.11"\n'
        f"dependencies = {needs!r}\n"
        f"[tool.hatch.build.targets.wheel]\npackages = {packages!r}\n"
    )


def slice_registry(text: str, package: str) -> str:
    """One plugin's part of zoo's registry file, as a third-party author would write it.

    Works on lines, so that entries are copied unchanged; ``plugin`` is left out, because
    third-party entries belong to their own package.
    """
    kept = ["schema: 1", "zoo_api: 1"]
    section, block = "", list[str]()

    def close() -> None:
        nonlocal section
        owner = re.search(r"\bplugin: *(\w+)", "\n".join(block))
        if owner and owner[1] == package:
            if section:
                kept.append(section)
                section = ""
            kept.extend(
                re.sub(rf"\bplugin: *{package}(, *)?", "", line)
                for line in block
                if line.strip() != f"plugin: {package}"
            )
        block.clear()

    for line in text.splitlines():
        if re.match(r"(models|bases):", line):
            close()
            section = line
        elif re.match(r"  \S", line) and not line.lstrip().startswith("#"):
            close()
            block.append(line)
        elif block and not re.match(r" {0,3}#", line):
            block.append(line)
    close()
    return "\n".join(kept) + "\n"
