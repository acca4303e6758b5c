"""The conformance suites: a model that keeps the contract passes, one that breaks it does not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.host.conformance_mutants import MUTANTS, TOYS, VARIANTS
from zoo import scaffold, testing
from zoo.interfaces import INTERFACES

pytest.importorskip("torch")
pytest.importorskip("transformers")

SUITES = {name: getattr(testing, f"{name}Suite") for name in INTERFACES}


def install(site: Path, project: Path) -> Path:
    """Put a project's package where it is found, with the metadata that pip would write."""
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


def publish_with_wrong_output(package: Path) -> None:
    """Give a model a check input whose expected output is not its own."""
    import torch
    from PIL import Image

    from zoo.weights import save_tensors, sha256

    folder = package / "weights" / "toy-off"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), (90, 90, 90)).save(folder / "check.png")
    save_tensors(folder / "check.safetensors", {"output": torch.full((3, 8, 8), 0.5)})
    files = "".join(
        f"\n      - {{path: {name}, size: {(folder / name).stat().st_size}, "
        f"sha256: {sha256(folder / name)}}}"
        for name in ("check.png", "check.safetensors")
    )
    registry = package / "registry.yaml"
    registry.write_text(
        registry.read_text("utf-8").rstrip()
        + f"\n    files:{files}\n"
        + "    check: {input: check.png, expected: check.safetensors, atol: 0.01}\n",
        "utf-8",
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    """What each test said of each model, from one process that runs them all."""
    from tests.conftest import Site

    made = tmp_path_factory.mktemp("conformance")
    site = made / "site"
    site.mkdir()
    for interface, name in TOYS.items():
        install(site, scaffold.create(name, interface, made / name))
    heavy = install(site, scaffold.create("toy-heavy", "SRModel", made / "toy-heavy"))
    init = heavy / "__init__.py"
    init.write_text(init.read_text("utf-8") + "\nimport torch  # noqa\n", "utf-8")
    publish_with_wrong_output(
        install(site, scaffold.create("toy-off", "SRModel", made / "toy-off"))
    )
    done = Site(site).run(
        str(Path(__file__).with_name("conformance_mutants.py")),
        str(made / "outcomes.json"),
        ZOO_TEST_MUTANTS="1",
        OMP_NUM_THREADS="1",  # for such small tensors threads only cost
    )
    if not (made / "outcomes.json").is_file():
        pytest.fail(f"{sys.executable}: {done.stdout}\n{done.stderr}")
    found = json.loads((made / "outcomes.json").read_text("utf-8"))
    assert found.pop("status") in (0, 1), done.stdout + done.stderr
    return found


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_model_that_keeps_the_contract_passes(
    interface: str, outcomes: Mapping[str, Mapping[str, str]]
) -> None:
    found = outcomes[f"TestGood{interface}"]
    assert [test for test, outcome in found.items() if outcome == "failed"] == []
    assert [test for test, outcome in found.items() if outcome == "skipped"] == ["test_check_input"]
    wanted = {name for name in dir(SUITES[interface]) if name.startswith("test_")}
    assert {test.partition("[")[0] for test in found} == wanted


@pytest.mark.parametrize("name", VARIANTS)
def test_another_way_to_keep_the_contract_passes(
    name: str, outcomes: Mapping[str, Mapping[str, str]]
) -> None:
    found = outcomes[f"TestGood_{name}"]
    assert [test for test, outcome in found.items() if outcome == "failed"] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_model_that_breaks_the_contract_is_caught(
    name: str, outcomes: Mapping[str, Mapping[str, str]]
) -> None:
    found = outcomes[f"Test_{name}"]
    assert "failed" in found.values(), f"{MUTANTS[name].caught_by} says {found}"


def test_every_test_of_a_suite_catches_a_mutant() -> None:
    # a test that nothing can fail is not worth an author's time
    useless = [
        f"{interface}: {name}"
        for interface, suite in SUITES.items()
        for name in vars(suite)
        if name.startswith("test_")
        and (interface, name) not in {(m.interface, m.caught_by) for m in MUTANTS.values()}
    ]
    caught = {m.caught_by for m in MUTANTS.values()}
    common = [name for name in vars(testing.ModelSuite) if name.startswith("test_")]
    assert useless + [name for name in common if name not in caught] == []


def test_the_package_names_every_suite_without_importing_pytest() -> None:
    from subprocess import run

    code = "import sys, zoo.testing; assert 'pytest' not in sys.modules; print(zoo.testing.__all__)"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for interface in INTERFACES:
        assert f"{interface}Suite" in done.stdout
