"""The conformance suites: a model that keeps the contract passes, one that breaks it does not."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import install
from tests.host.conformance_mutants import MUTANTS, PROMISES, TOYS, VARIANTS
from zoo import entry, hookspecs, interfaces, scaffold, testing
from zoo.interfaces import INTERFACES

pytestmark = pytest.mark.slow

pytest.importorskip("torch")
pytest.importorskip("transformers")

SUITES = {name: getattr(testing, f"{name}Suite") for name in INTERFACES}


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
    """The outcome of each test for each model, from one process that runs them all."""
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
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
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


# --- the promises ---------------------------------------------------------------------------------


def documented(module: ModuleType) -> dict[str, str]:
    """The docstrings of a module, its classes, and their methods and fields."""
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    found = {module.__name__.removeprefix("zoo."): ast.get_docstring(tree) or ""}
    for cls in tree.body:
        if not isinstance(cls, ast.ClassDef):
            continue
        found[cls.name] = ast.get_docstring(cls) or ""
        for node, following in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef):
                found[f"{cls.name}.{node.name}"] = ast.get_docstring(node) or ""
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = getattr(getattr(following, "value", None), "value", None)
                found[f"{cls.name}.{node.target.id}"] = text if isinstance(text, str) else ""
    return {name: " ".join(text.split()) for name, text in found.items()}


DOCUMENTED = {**documented(entry), **documented(hookspecs), **documented(interfaces)}
KEPT_BY_THE_HOST = {
    *(
        f"Model.{name}"
        for name in ("entry", "source", "base", "bases", "module", "device", "save_files")
    ),
    *("Model.export_report", "Detections.to_supervision", "Detections.to_coco", "QASet.to_squad"),
}
"""Members that a plugin inherits unchanged: the host's own tests cover them."""
UNSAID = {
    *("ScaleRange.min", "ScaleRange.max", "ScaleRange.default", "Detections.names"),
    "VLAligner.temperature",
    *("QAPair.question", "QAPair.answer", "QAPair.start", "QASet.pairs"),
    *(f"Estimate.{name}" for name in ("evaluations", "flops", "memory", "seconds")),
}
"""Fields that the docstring of another field or of the class describes."""


def test_each_promise_is_in_the_text_and_has_a_model_that_breaks_it() -> None:
    for where, promises in PROMISES.items():
        for quote, names in promises.items():
            assert quote in DOCUMENTED[where], f"{where} no longer says {quote!r}"
            assert names.split()
            assert set(names.split()) <= {*MUTANTS}, f"{where}: {quote}"


def test_each_mutant_breaks_a_promise() -> None:
    named = {n for quotes in PROMISES.values() for names in quotes.values() for n in names.split()}
    assert {*MUTANTS} - named == set()


def test_all_that_an_interface_has_is_promised() -> None:
    classes = {*INTERFACES, "Model", "QuantizedModel", "ScaleRange", "Detections", "QAPair"}
    classes |= {"QASet", "Estimate"}
    members = {name for name in documented(interfaces) if name.partition(".")[0] in classes}
    members = {name for name in members if "." in name and not name.split(".")[1].startswith("__")}
    members.add("QuantizedModel.__call__")
    assert members - {*PROMISES} == KEPT_BY_THE_HOST | UNSAID


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
