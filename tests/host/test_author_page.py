"""The author's page, ``plugins/README.md``, is right: every block of it is executed."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT, Site
from zoo import hookspecs, spec
from zoo.errors import OptionError
from zoo.interfaces import INTERFACES

pytestmark = pytest.mark.slow

PAGE = (ROOT / "plugins" / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@dataclass
class Page:
    """The results of executing the page."""

    site: Site
    output: str
    """What its Python printed."""
    files: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Write the files that the page names, run its other Python blocks in order, in one process."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("author")
    site = Site(folder)
    files, scripts = {}, []
    for language, text in BLOCKS:
        if named := re.match(r"# (\S+/\S+\.(?:py|yaml))\n", text):
            files[named[1]] = text
        elif language == "python":
            scripts.append(text)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (project,) = (tomllib.loads(text) for language, text in BLOCKS if language == "toml")
    points = project["project"]["entry-points"]["zoo.plugins"]
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [*points.values()]
    info = folder / "acme_blur-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-blur\nVersion: 0.1.0\n", "utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[zoo.plugins]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()), "utf-8"
    )
    # the one thing that the page leaves to its reader: to put the printed line under `files:`
    made = run(site, scripts[0])
    registry = folder / "acme_blur" / "registry.yaml"
    text, count = re.subn(r"files: \[\].*", f"files:\n{made.rstrip()}", registry.read_text("utf-8"))
    assert count == 1
    registry.write_text(text, "utf-8")
    output = run(site, "import torch\n" + "\n".join(scripts[1:]))
    return Page(site, made + output, list(files))


def run(site: Site, code: str) -> str:
    """Run code in the folder of the project; returns its output."""
    start = f"import os; os.chdir({str(site.path)!r})\n"
    done = site.run("-W", "error", "-c", start + code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recipe_is_short() -> None:
    (recipe,) = (text for _, text in BLOCKS if "acme_blur/train.py" in text)
    assert len(recipe.splitlines()) <= 40


def test_its_recipe_trains_what_it_says(page: Page) -> None:
    out = page.site.path / "runs" / "blur"
    done = page.site.zoo("train", "acme-blur", "-o", str(out), "--quiet", "--seed", "1")
    assert done.returncode == 0, done.stderr
    made = run(
        page.site,
        f"import torch, zoo\nmodel = zoo.load({str(out / 'model')!r})\n"
        "print(float((model.module.weight.detach() - 1 / 9).abs().max()))",
    )
    assert float(made) < 0.02  # a blur of 3 x 3 is what the data asks for


def test_its_code_runs_in_order(page: Page) -> None:
    assert "path: model.safetensors" in page.output
    assert page.files == [
        "acme_blur/registry.yaml",
        "acme_blur/__init__.py",
        "acme_blur/model.py",
        "acme_blur/train.py",
        "acme_blur/bench.py",
        "tests/test_blur.py",
    ]


def test_its_registry_is_valid_and_its_comments_true(page: Page) -> None:
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    entry = spec.parse(text, path=Path("page"), package="acme_blur").models["acme-blur"]
    with pytest.raises(OptionError, match="out of range"):
        entry.checked_options("load", {"amount": 2})
    assert entry.hub is not None
    assert entry.hub.revision is None
    for word in re.findall(r"\b(\w+): no \w+ yet", text):
        assert word in spec.STATUSES


def test_its_plugin_passes_the_suite_that_it_shows(page: Page) -> None:
    done = page.site.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib",
        "--rootdir", str(page.site.path), str(page.site.path / "tests"),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_its_commands_work(page: Page, tmp_path: Path) -> None:
    commands = [
        line.removeprefix("$ zoo ").split()
        for language, text in BLOCKS
        if language == "console"
        for line in text.splitlines()
    ]
    assert [c[0] for c in commands] == ["new", "bench"]
    commands[0] += ["-o", str(tmp_path / "made")]
    commands += [["plugins", "--check"], ["info", "acme-blur"]]
    said = []
    for command in commands:
        done = page.site.zoo(*command)
        assert done.returncode == 0, (command, done.stderr)
        said.append(done.stdout)
    assert (tmp_path / "made" / "my_upscaler" / "model.py").is_file()
    assert re.search(r"^holds .*nearer to a smooth picture\.", said[1], re.MULTILINE)
    assert re.search(r"^holds .*\n? *.*five times as much with a blur\.", said[1], re.MULTILINE)
    assert re.search(r"acme_blur\W.*\bok\b", said[2])
    assert "amount" in said[3]


def test_it_names_every_interface_hook_request_field_and_state() -> None:
    from dataclasses import fields

    for word in (*INTERFACES, "ok", "fault", "conflict", "blocked"):
        assert f"`{word}`" in PAGE, word
    requests = {
        "zoo_build": "BuildRequest",
        "zoo_train": "TrainRequest",
        "zoo_bench": "BenchRequest",
    }
    for hook, request in requests.items():
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{hook}`"))
        for member in fields(getattr(hookspecs, request)):
            assert f"`{member.name}`" in row, f"{hook}: {member.name}"


def test_what_it_refers_to_exists() -> None:
    for path in re.findall(r"`((?:zoo|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path
    from zoo.cli import VERBS

    for verb in re.findall(r"`zoo (\w+)", PAGE):
        assert verb in VERBS, verb
