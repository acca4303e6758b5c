"""Built wheels are complete and work where installed: zoo's, third-party and split ones."""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import zoo
from tests import overlay
from tests.overlay import Environment
from zoo import installed, plugins, spec

FIRST = "edge-sd-sr"
"""The model of the README: it must be ready, and work from its bundle."""

OWN = plugins.own_registry()
LISTED = sorted(OWN.models, key=lambda name: spec.STATUSES.index(OWN.models[name].status))
"""zoo's models as ``zoo list`` shows them: ready ones come first."""
PRESENT = {name: entry for name, entry in OWN.models.items() if entry.status != "planned"}
BUNDLED = {n: e for n, e in PRESENT.items() if e.files and not (e.hub and e.hub.revision)} | {
    n: b for n, b in OWN.bases.items() if not (b.hub and b.hub.revision)
}
PACKAGES = sorted({e.plugin for e in PRESENT.values()} | {b.plugin for b in OWN.bases.values()})

OFFLINE = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"went to the network: {event} {args}")
sys.addaudithook(refuse)
"""


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel without its ``dist-info``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        return {name: archive.read(name) for name in names}


def entry_points(wheel: Path) -> dict[str, dict[str, str]]:
    """The wheel's entry points by group."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("dist-info/entry_points.txt"))
        parser = configparser.ConfigParser(delimiters=("=",))
        parser.read_string(archive.read(name).decode())
    return {section: dict(parser[section]) for section in parser.sections()}


def tree(sources: Path) -> dict[str, bytes]:
    """The expected content of the wheel."""
    roots = [sources / "zoo", *(p for p in (sources / "plugins").iterdir() if p.is_dir())]
    found = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for root in roots
        for path in root.rglob("*")
        if path.is_file()
    }
    cards = (sources / "hub_cards").glob("*/README.md")
    found |= {f"zoo/{path.relative_to(sources).as_posix()}": path.read_bytes() for path in cards}
    return {**found, "zoo/registry.yaml": (sources / "registry.yaml").read_bytes()}


# --- built files ----------------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_tree_and_no_other(sources: Path, wheel: Path) -> None:
    # hatchling leaves out, in silence, a package that does not exist and what .gitignore matches
    built, wanted = contents(wheel), tree(sources)
    assert sorted(wanted.keys() - built.keys()) == []
    assert sorted(built.keys() - wanted.keys()) == []
    assert [name for name in wanted if wanted[name] != built[name]] == []


def test_the_wheel_holds_every_plugin_with_its_marker_and_its_bundled_files(wheel: Path) -> None:
    built = contents(wheel)
    packages = {path.parent.name for path in (overlay.ROOT / "plugins").glob("*/__init__.py")}
    assert packages >= {"zoo_sr", *PACKAGES}
    for package in ("zoo", *packages):
        assert f"{package}/__init__.py" in built
        assert f"{package}/py.typed" in built
    assert "zoo/__init__.pyi" in built
    for name, entry in BUNDLED.items():
        for file in entry.files:
            data = built[f"{entry.plugin}/weights/{name}/{file.path}"]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def test_entry_points_are_the_projects_and_name_every_plugin_with_models(wheel: Path) -> None:
    about = overlay.pyproject()["project"]
    built = entry_points(wheel)
    assert built == {"console_scripts": about["scripts"], **about["entry-points"]}
    assert sorted(built[plugins.GROUP].values()) == PACKAGES


def test_every_extra_of_a_model_exists() -> None:
    extras = overlay.pyproject()["project"]["optional-dependencies"]
    for name, entry in PRESENT.items():
        assert entry.extra in extras, name
    everything = set(overlay.extra_needs("all"))
    wanted = {need for entry in PRESENT.values() for need in overlay.extra_needs(entry.extra or "")}
    assert wanted <= everything


def brought(*extras: str) -> set[str]:
    """The names of the distributions in zoo's extras."""
    return {
        canonicalize_name(Requirement(need).name)
        for extra in extras
        for need in overlay.extra_needs(extra)
    }


def test_running_a_small_model_needs_torch_and_little_else() -> None:
    assert brought("sr") == {"torch"}
    for entry in PRESENT.values():
        if entry.status == "ready":
            assert brought(entry.extra or "") <= {
                *("torch", "open-clip-torch", "timm"),  # raw images and texts
                *("transformers", "accelerate"),  # language models
                *("scikit-learn", "scipy"),  # clusters, and boxes matched to objects
            }, entry.name


def test_an_error_names_an_extra_that_brings_what_is_missing() -> None:
    extras = overlay.pyproject()["project"]["optional-dependencies"]
    checked = 0
    for path in sorted(p for f in ("zoo", "plugins") for p in (overlay.ROOT / f).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and "MissingDependency" in ast.unparse(node.func)):
                continue
            words = ast.unparse(node)
            named = re.search(rf"{overlay.PROJECT}\[([\w-]+)\]", words)
            package = re.search(r"name='(\w+)'", words)
            if named and package:
                assert named[1] in extras, words
                wanted = installed.PACKAGES.get(package[1], package[1].replace("_", "-"))
                assert wanted in brought(named[1]), words
                checked += 1
    assert checked >= 10


def test_constraints_pin_all_that_is_asked_for() -> None:
    lines = (overlay.ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {
        canonicalize_name(pin.name): pin.specifier
        for pin in map(Requirement, (line for line in lines if not line.startswith("#")))
    }
    asked = [*overlay.pyproject()["project"]["dependencies"], *overlay.extra_needs("dev")]
    for need in map(Requirement, asked):
        (version,) = (spec.version for spec in pins[canonicalize_name(need.name)])
        assert need.specifier.contains(version), need


def test_the_version_has_one_source(wheel: Path) -> None:
    assert "version" not in overlay.pyproject()["project"]
    assert wheel.name.startswith(f"{overlay.PROJECT}-{zoo.__version__}-")


def test_the_wheel_built_from_the_sdist_is_the_same(
    sources: Path, wheel: Path, workshop: Path
) -> None:
    sdist = overlay.build(sources, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(workshop / "unpacked", filter="data")
    (folder,) = (workshop / "unpacked").iterdir()
    assert contents(overlay.build(folder)) == contents(wheel)
    assert {"LICENSE", "README.md", "constraints.txt", "Makefile", "tests"} <= {
        path.name for path in folder.iterdir()
    }


# --- the bare host --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(environment: Callable[[str], Environment], wheel: Path) -> Environment:
    """The environment after ``pip install edgezoo``: no torch."""
    made = environment("base")
    made.install(wheel)
    return made


def test_the_bare_host_lists_and_informs(bare: Environment) -> None:
    assert bare.code("import zoo; print(zoo.__version__)").strip()
    assert bare.code("import zoo; print(zoo.list_models())").strip() == str([*OWN.models])
    listed = json.loads(bare.zoo("list", "--json").stdout)
    assert [model["name"] for model in listed] == LISTED
    found = json.loads(bare.zoo("plugins", "--json").stdout)
    assert [(p["package"], p["state"]) for p in found] == [(p, "ok") for p in PACKAGES]
    facts = json.loads(bare.zoo("info", FIRST, "--json").stdout)
    assert facts["bundled"] is True
    assert len(facts["limits"]) > 1  # from the card in the wheel
    # the package that runs is the installed one, with its registry inside
    where = bare.code("from zoo import plugins; print(plugins.first_party_registry())").strip()
    assert Path(where) == bare.site / "zoo" / "registry.yaml"


def test_the_bare_host_checks_weights_without_torch(bare: Environment) -> None:
    bare.zoo("pull", FIRST)


def test_the_bare_host_says_which_extra_is_missing(bare: Environment) -> None:
    advice = f'pip install "edgezoo[{PRESENT[FIRST].extra}]"'
    text = bare.code(
        f"import zoo\ntry:\n    zoo.load({FIRST!r})\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    assert text.startswith("MissingDependencyError")
    assert "torch" in text
    assert advice in text
    Image.new("RGB", (8, 8)).save(bare.home / "small.png")
    failed = bare.zoo("upscale", FIRST, "small.png", ok=False)
    assert failed.returncode == 1
    assert advice in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


# --- with everything ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(environment: Callable[[str], Environment], wheel: Path) -> Environment:
    """The environment after ``pip install edgezoo[all]``."""
    made = environment("all")
    made.install(f"{wheel}[all]")
    return made


def test_the_first_model_works_from_its_bundle_without_network(full: Environment) -> None:
    assert OWN.models[FIRST].status == "ready"
    Image.linear_gradient("L").resize((24, 17)).convert("RGB").save(full.home / "small.png")
    text = full.code(
        OFFLINE
        + "import zoo\n"
        + f"model = zoo.load({FIRST!r})\n"
        + "large = model.upscale('small.png')\n"
        + "print(model.source, *large.size, model.scales[0], zoo.__file__)"
    )
    source, width, height, scale, file = text.split()
    assert source == "bundled"
    assert (int(width), int(height)) == (24 * int(scale), 17 * int(scale))
    assert Path(file).is_relative_to(full.site)


# --- a third-party plugin -------------------------------------------------------------------------


def names(env: Environment, **variables: str) -> list[str]:
    """The names that ``zoo list`` shows."""
    return [m["name"] for m in json.loads(env.zoo("list", "--json", **variables).stdout)]  # type: ignore[arg-type]


def states(env: Environment, *args: str, **variables: str) -> dict[str, str]:
    """The third-party plugins that ``zoo plugins`` shows."""
    found = json.loads(env.zoo("plugins", "--json", *args, **variables).stdout)  # type: ignore[arg-type]
    return {p["package"]: p["state"] for p in found if p["distribution"] != "edgezoo"}


def test_a_strangers_wheel_is_found_loaded_blocked_and_gone(
    full: Environment, nearest: Path, nearest_wheel: Path
) -> None:
    bundled = {name.split("/")[-1] for name in contents(nearest_wheel) if "/weights/" in name}
    assert bundled == {"model.safetensors", "check.png", "check.safetensors"}

    full.install(nearest_wheel)
    assert sorted(names(full)) == sorted([*OWN.models, "nearest-x2"])
    assert states(full) == {"zoo_nearest": "ok"}
    assert states(full, "--check") == {"zoo_nearest": "ok"}
    # its own tests, which verify its check too, pass where it is installed
    shutil.copytree(nearest / "tests", full.home / "its-tests")
    pytest_ = (full.python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    full.run(*pytest_, full.home / "its-tests", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

    loaded = (
        "import sys, zoo\ntry:\n    print(zoo.load('nearest-x2').source)\n"
        "except zoo.ZooError as error:\n    print(error, {'zoo_nearest', 'torch'} & {*sys.modules})"
    )
    assert full.code(OFFLINE + loaded, ZOO_PLUGINS="zoo_nearest") == "bundled\n"
    for variables in ({"ZOO_PLUGINS": ""}, {"ZOO_PLUGINS_DISABLE": "zoo_nearest"}):
        text = full.code(loaded, **variables)
        assert "blocked" in text
        assert next(iter(variables)) in text
        assert text.endswith("set()\n")  # its code never ran
        assert states(full, **variables) == {"zoo_nearest": "blocked"}

    full.uninstall("zoo-nearest")
    assert names(full) == LISTED
    assert states(full) == {}
    assert "no model is called 'nearest-x2'" in full.code(loaded)


def test_a_strangers_editable_install_is_found(bare: Environment, nearest: Path) -> None:
    # the bare host lacks torch, which the plugin asks for: pip must refuse
    refused = bare.install("--editable", nearest, ok=False)
    assert refused.returncode == 1
    assert "zoo-nearest" in refused.stderr
    # `zoo install` passes on what follows --, and sees at once what pip has installed
    offline = ("--no-index", "--no-build-isolation", "--no-deps")
    done = bare.zoo("install", "--", *offline, "--editable", str(nearest))
    assert "zoo_nearest (ok): nearest-x2" in done.stdout
    assert sorted(names(bare)) == sorted([*OWN.models, "nearest-x2"])
    assert states(bare) == {"zoo_nearest": "ok"}
    bare.zoo("pull", "nearest-x2")  # its bundle is found in the project's folder
    bare.zoo("uninstall", "Zoo_Nearest")
    assert states(bare) == {}


# --- zoo's plugins as third-party ones ------------------------------------------------------------


def test_there_is_something_to_split() -> None:
    assert "zoo_edge_sd_sr" in PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_plugin_of_ours_works_from_a_project_of_its_own(
    package: str,
    environment: Callable[[str], Environment],
    sources: Path,
    bare_wheel: Path,
    workshop: Path,
) -> None:
    mine = {n: e for n, e in PRESENT.items() if e.plugin == package}
    extras = {entry.extra for entry in mine.values() if entry.extra}
    project = overlay.split_plugin(sources, package, workshop / f"split-{package}", extras)
    sliced = spec.read(project / package / "registry.yaml", package=package)
    assert [*sliced.models] == [n for n, e in OWN.models.items() if e.plugin == package]
    assert [*sliced.bases] == [n for n, b in OWN.bases.items() if b.plugin == package]

    env = environment("all")
    env.install(bare_wheel, overlay.build(project))
    assert sorted(names(env)) == sorted(sliced.models)
    assert states(env, "--check") == {package: "ok"}
    offline = [  # a model on bases from the Hub is loaded by the tests of its plugin
        n
        for n, e in mine.items()
        if e.status == "ready"
        and not any("load" in b.needed and b.default for b in e.bases.values())
    ]
    text = env.code(
        OFFLINE
        + "import zoo\nfrom zoo import actions\n"
        + f"for name in {offline!r}:\n"
        + "    model = zoo.load(name)\n"
        + "    print(type(model).__module__, model.entry.distribution)\n"
        + "    if model.entry.check: actions.verify(model)\n"
    )
    dist = f"split-{package}".replace("_", "-")
    assert text.split() == [w for n in offline for w in (mine[n].class_.split(":")[0], dist)]  # type: ignore[union-attr]
    suites = workshop / f"contract-{package}" / "test_contract.py"
    suites.parent.mkdir()
    suites.write_text(
        "import zoo.testing\n"
        + "".join(
            f"class Test{i}(zoo.testing.{mine[n].interface}Suite):\n    name = {n!r}\n"
            for i, n in enumerate(offline)
        ),
        "utf-8",
    )
    # those that depend on where the plugin is; the plugin's own tests run the whole suite
    here = "class_of_the_entry or import_is_light or check_input or saved_and_loaded"
    pytest_ = (env.python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
    assert " passed" in env.run(*pytest_, "-k", here, suites).stdout
    for name, entry in mine.items():
        if entry.status == "untrained":
            failed = env.zoo("pull", name, ok=False)
            assert "no trained weights" in failed.stderr
            assert failed.returncode == 1
