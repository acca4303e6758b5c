"""The rules that keep the host small and the plugins apart, checked on the source itself."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zoo
from tests.overlay import ROOT, SIBLINGS
from zoo import errors, generate, interfaces, plugins
from zoo.cli import VERBS, command_of
from zoo.errors import InputError

OWN = plugins.own_registry()
PRESENT = {name: entry for name, entry in OWN.models.items() if entry.status != "planned"}
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py"))

LAYERS = [
    {"cli", "generate", "__main__"},
    {"about", "cards", "publish", "scaffold", "testing"},
    {"actions", "bench", "charts", "evaluation", "experiment", "protocols", "training"},
    {"api"},
    {"bases"},
    {"registry", "hub", "weights", "images", "drawing", "pictures", "files", "arguments"}
    | {"annotations", "calibration", "tables", "rowfiles", "frames", "columns"},
    {"plugins"},
    {"spec", "hookspecs"},
    {"entry", "interfaces", "precision"},
    {"errors", "installed", "progress", "metrics", "isolation", "signatures"}
    | {"yamltree", "__init__"},
]
"""From the top: a module imports from its own row or one below. ``__init__`` is zoo's own."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PUBLIC = {"interfaces", "hookspecs", "errors", "weights", "images", "drawing", "bench"}
PUBLIC |= {"annotations", "bases", "calibration", "entry", "metrics", "progress", "testing"}
PUBLIC |= {"experiment", "isolation", "precision", "tables", "training"}
"""What a plugin may import of the host."""
UPWARD = {
    ("interfaces", "save_pretrained", "weights"),
    ("interfaces", "from_pretrained", "api"),
    ("interfaces", "run_check", "images"),
}
"""(module, function, imported): the listed exceptions to the direction."""
AT_ONCE = {("cli", "click"), ("hookspecs", "pluggy"), ("testing", "pytest")}
AT_ONCE |= {("training", "torch"), ("training", "numpy")}  # only recipes import it
"""(module of the host, package) that may be imported as soon as the module is."""
HEAVY = {"torch", "numpy", "timm", "transformers", "diffusers", "open_clip", "huggingface_hub"}
HEAVY |= {"pandas", "pyarrow", "datasets"}
HEAVY |= {"PIL", "safetensors", "skimage", "scipy", "onnx", "onnxruntime", "matplotlib"}

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Import:
    """One imported module."""

    module: str
    """In full: ``zoo.weights``, ``torch``."""
    function: str
    """Where it is imported: "" for the module itself, so as soon as that is imported."""
    line: int


def tracked() -> list[Path]:
    """The files of the repository; in an unpacked sdist, the files that are here."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    if not names:
        hidden = {".venv", "__pycache__", ".git", "node_modules"}
        names = [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if not hidden & {*path.parts} and not any(p.endswith("_cache") for p in path.parts)
        ]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


TRACKED = tracked()


def sources(*folders: str) -> list[Path]:
    """Python files below these folders of the checkout."""
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def dotted(path: Path) -> str:
    """The name that a file is imported by."""
    base = ROOT if path.is_relative_to(ROOT / "zoo") else ROOT / "plugins"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, for_types: bool = False) -> Iterator[Import]:
    """What a file imports, relative names written out; ``if TYPE_CHECKING:`` where asked for."""
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package.pop()

    def visit(node: ast.AST, function: str) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            function = getattr(node, "name", "lambda")
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, function, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:  # `from . import hub` names a module, `from .hub import x` not
                full = f"{module}.{alias.name}"
                yield Import(full if is_module(full) else module, function, node.lineno)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(ast.parse(path.read_text("utf-8")), "")


def is_module(name: str) -> bool:
    """Is this one of our own modules?"""
    parts = name.split(".")
    for base in (ROOT, ROOT / "plugins"):
        path = base.joinpath(*parts)
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return parts[0] == "zoo" or parts[0] in PLUGINS
    return False


def part(module: str) -> str:
    """``zoo.cli.work`` -> ``cli``; ``zoo`` -> ``__init__``."""
    return [*module.split("."), "__init__"][1]


# --- who imports whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources("zoo"), ids=dotted)
def test_the_host_imports_downwards_and_nothing_heavy_at_once(path: Path) -> None:
    wrong = []
    mine = part(dotted(path))
    assert mine in RANK, f"say in LAYERS where zoo.{mine} belongs"
    for found in imports(path):
        top = found.module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        if top in PLUGINS:
            wrong.append(f"{where}: a plugin")
        elif top == "zoo":
            theirs = part(found.module)
            if theirs not in RANK:
                wrong.append(f"{where}, which has no layer")
            elif RANK[theirs] < RANK[mine] and (mine, found.function, theirs) not in UPWARD:
                wrong.append(f"{where}: upwards")
        elif not (found.function or top in sys.stdlib_module_names or (mine, top) in AT_ONCE):
            wrong.append(f"{where} as soon as it is imported")
    assert wrong == []


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Chains of imports that lead back to where they began."""
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found.append(" -> ".join([*above[above.index(name) :], name]))
        elif name not in done:
            for child in sorted(graph.get(name, ())):
                walk(child, (*above, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())
    return found


def test_the_host_has_no_circle_even_for_types() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources("zoo"):
        mine = part(dotted(path))
        for found in imports(path, for_types=True):
            theirs = part(found.module)
            apart = found.module.startswith("zoo") and theirs not in (mine, "__init__")
            if apart and (mine, found.function, theirs) not in UPWARD:
                graph.setdefault(mine, set()).add(theirs)
    assert circles(graph) == []


@pytest.mark.parametrize("package", PLUGINS)
def test_a_plugin_has_no_circle(package: str) -> None:
    graph = {
        dotted(path): {i.module for i in imports(path) if i.module.split(".")[0] == package}
        for path in sources(f"plugins/{package}")
    }
    assert circles(graph) == []


def test_the_listed_exceptions_are_needed() -> None:
    found = {
        (part(dotted(path)), i.function, part(i.module))
        for path in sources("zoo")
        for i in imports(path)
        if i.module.startswith("zoo")
    }
    assert found >= UPWARD


@pytest.mark.parametrize("path", sources("plugins"), ids=dotted)
def test_a_plugin_imports_only_public_modules_and_its_siblings(path: Path) -> None:
    mine = dotted(path).split(".")[0]
    allowed = {mine, "zoo_worlds", *SIBLINGS.get(mine, ())}
    wrong = []
    for found in imports(path):
        top = found.module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        if top == "zoo" and part(found.module) not in PUBLIC:
            wrong.append(f"{where}, which is not public")
        elif top in PLUGINS and top not in allowed:
            wrong.append(f"{where}: another plugin")
    assert wrong == []


def test_importing_a_plugin_imports_nothing_heavy() -> None:
    code = "import sys, json\nfor name in sys.argv[1:]: __import__(name)\n"
    code += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code, *PLUGINS], capture_output=True, text=True, check=True
    )
    assert HEAVY & {*json.loads(done.stdout)} == set()


# --- what no file may say -------------------------------------------------------------------------

ATTRIBUTES = {
    "pickle": {"load", "loads", "Unpickler"},
    "torch": {"load", "save"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load", "safe_load", "compose", "compose_all"},
    "os": {"system", "popen"},
    "marshal": {"load", "loads"},
}
KEYWORDS = {"shell", "trust_remote_code", "allow_pickle", "weights_only"}
IN_TESTS = {"yaml.safe_load", "pickle.loads"}
"""Allowed only in tests, which write bad pickles and copy exceptions."""
SHIPPED_NEVER = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


@pytest.mark.parametrize(
    "path", [p for p in TRACKED if p.suffix == ".py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_runs_what_it_reads(path: Path) -> None:
    wrong = []
    shipped = path.is_relative_to(ROOT / "zoo") or path.is_relative_to(ROOT / "plugins")
    names_never = {"eval", "exec"} | ({"__import__"} if shipped else set())
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and node.id in names_never:
            wrong.append(f"{line}: {node.id}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            call = f"{node.value.id}.{node.attr}"
            if node.attr in ATTRIBUTES.get(node.value.id, ()) and (shipped or call not in IN_TESTS):
                wrong.append(f"{line}: {call}")
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            wrong.append(f"{line}: {node.arg}=")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = {a.name for a in node.names}
            never = SHIPPED_NEVER if shipped else set()
            if never & {module, *names} or names & ATTRIBUTES.get(module, set()):
                wrong.append(f"{line}: {ast.unparse(node)}")
    assert wrong == []


READERS = {
    "zoo/pictures.py",  # the one that all others use
    "zoo/testing",  # makes pictures of every mode, and opens none
    "plugins/zoo_edge_sd_sr/examples/onnx_upscale.py",  # runs without zoo
    "plugins/zoo_lfa/examples/onnx_classify.py",  # so does this
    "plugins/zoo_simdetr/examples/onnx_detect.py",  # and this
}
"""Where Pillow may be asked to open or convert a picture."""


def test_every_picture_is_opened_by_zoo() -> None:
    """Pillow's own ``open`` and ``convert`` turn 16 bits white and photographs on their side."""
    found = set()
    for path in sources("zoo", "plugins"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call.endswith(("Image.open", ".convert", "imread")):
                found.add(path.relative_to(ROOT).as_posix())
    apart = {name for name in found for listed in READERS if name.startswith(listed)}
    assert found - apart == set()
    assert {listed for listed in READERS for name in found if name.startswith(listed)} == READERS


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert [p for p in sources("zoo", "plugins") if {p.stem, *p.parts} & drawers] == []


@pytest.mark.parametrize("path", TRACKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_names_this_machine_or_a_package_index(path: Path) -> None:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return  # weights and pictures
    index = r"\bpypi\.|pythonhosted|--(?:extra-)?index-url|--find-links|\.whl\b.*https?:"
    machine = rf"(?<![\w.~-])/(?:work|root|home|Users|mnt)/\w|{re.escape(str(ROOT))}\b"
    found = [m[0] for m in re.finditer(f"{index}|{machine}", text)]
    assert [f for f in found if path != Path(__file__)] == []


def test_no_tracked_file_is_large() -> None:
    assert [p for p in TRACKED if p.stat().st_size >= 8 * MEGABYTE] == []
    for folder in (ROOT / "plugins").glob("*/weights/*"):  # one for each model
        files = [p for p in TRACKED if p.is_relative_to(folder)]
        assert sum(p.stat().st_size for p in files) < 8 * MEGABYTE, folder


def test_a_plugin_holds_code_weights_and_its_page() -> None:
    """And where a method is about texts: the how-tos, recipes and words that it brings."""
    inside = r"[\w/]+\.py|py\.typed|README\.md|weights/[\w.-]+/[\w.-]+"
    inside += r"|(?:howtos|recipes|lexicon)/[\w.-]+"
    allowed = re.compile(rf"\w+/(?:{inside})|README\.md")  # the last one is the authors' page
    stray = [
        path.relative_to(ROOT)
        for path in TRACKED
        if path.is_relative_to(ROOT / "plugins")
        and not allowed.fullmatch(path.relative_to(ROOT / "plugins").as_posix())
    ]
    assert stray == []


# --- a plugin's page is the method's --------------------------------------------------------------

PAGES = {"YONOS-SR": "zoo_yonos_sr", "Edge-SD-SR": "zoo_edge_sd_sr"}
"""How a package of shared ground names the page of a method that is built on it."""
METHODS = sorted({entry.plugin for entry in PRESENT.values() if entry.plugin})


def page(package: str) -> str:
    """The README of a plugin."""
    return (ROOT / "plugins" / package / "README.md").read_text("utf-8")


def equations(package: str) -> list[int]:
    """The numbers of a page's equations, each of which starts a paragraph: **(1)**."""
    return [int(n) for n in re.findall(r"^\*\*\((\d+)\)\*\*", page(package), re.MULTILINE)]


def cited(text: str) -> Iterator[tuple[str, list[int]]]:
    """The method named before ("" for none) and the numbers of "eq. 2, 3 and 7"."""
    names = "|".join(PAGES)
    pattern = rf"(?:({names}), )?\b[Ee]q\.\s+(\d+(?:(?:, | and | to )\d+)*)"
    for found in re.finditer(pattern, text):
        yield found[1] or "", [int(n) for n in re.findall(r"\d+", found[2])]


def defined(path: Path) -> set[str]:
    """Functions, classes and constants of a module, methods as Class.method."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    visit(ast.parse(path.read_text("utf-8")).body, "")
    return names


@pytest.mark.parametrize("package", METHODS)
def test_a_page_numbers_its_equations_and_says_where_each_is(package: str) -> None:
    numbers = equations(package)
    assert numbers, f"plugins/{package}/README.md has no equation **(1)**"
    assert numbers == [*range(1, len(numbers) + 1)]
    folder, located, missing = ROOT / "plugins" / package, set(), []
    for row in re.findall(r"^\| (\d[\d, to]*) \| (.*) \|$", page(package), re.MULTILINE):
        references = re.findall(r"`([\w/]+\.py):([\w.]+)`", row[1])
        for file, name in references:
            path = folder / file if (folder / file).is_file() else folder.parent / file
            if not path.is_file() or name not in defined(path):
                missing.append(f"{file}:{name}")
        if references:
            first_last = re.findall(r"(\d+) to (\d+)", row[0])
            located |= {int(n) for n in re.findall(r"\d+", row[0])}
            located |= {n for a, b in first_last for n in range(int(a), int(b) + 1)}
    assert missing == []
    assert located == set(numbers)


@pytest.mark.parametrize("package", PLUGINS)
def test_every_equation_that_is_cited_is_on_the_page(package: str) -> None:
    wrong = []
    for path in [*sources(f"plugins/{package}"), ROOT / "plugins" / package / "README.md"]:
        for method, numbers in cited(path.read_text("utf-8")):
            owner = PAGES.get(method, package)
            allowed = owner == package or package in SIBLINGS.get(owner, ())
            if not allowed or not {*numbers} <= {*equations(owner)}:
                wrong.append(f"{path.relative_to(ROOT)}: {method} eq. {numbers}")
    assert wrong == []


def test_no_comment_cites_what_is_not_here() -> None:
    """For example a section of private notes."""
    elsewhere = re.compile(r"\b[Bb][r]iefs?\b|\b[Ss]ections? \d|(?<![\w.])\(\d\.\d(?:, \d\.\d)*\)")
    wrong = []
    for path in sources("zoo", "plugins", "tests"):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in (tokenize.COMMENT, tokenize.STRING):
                    where = f"{path.relative_to(ROOT)}:{token.start[0]}"
                    wrong += [f"{where}: {found}" for found in elsewhere.findall(token.string)]
    assert wrong == []


# --- everything named exists ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESENT)
def test_the_class_of_an_entry_is_of_its_interface(name: str) -> None:
    entry = PRESENT[name]
    module, _, attribute = (entry.class_ or "").partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, interfaces.INTERFACES[entry.interface])
    assert not getattr(found, "__abstractmethods__", None)
    assert found.interface == entry.interface


@pytest.mark.parametrize("name", PRESENT)
def test_every_model_is_tested_by_name(name: str) -> None:
    mentions = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    files = [p for p in sources("tests/plugins") if p.name.startswith("test_")]
    assert [p for p in files if mentions.search(p.read_text("utf-8"))] != []


def test_every_package_is_marked_as_typed() -> None:
    """That all of them are shipped is in tests/host/test_install.py, which looks into the wheel."""
    folders = {p for p in (ROOT / "plugins").iterdir() if p.is_dir() and p.name[0] not in "._"}
    assert sorted(p.name for p in folders) == PLUGINS
    for folder in (ROOT / "zoo", *folders):
        assert (folder / "py.typed").is_file(), folder


def test_the_lines_of_the_registry_are_short() -> None:
    lines = plugins.first_party_registry().read_text("utf-8").splitlines()
    assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == []


def test_every_verb_has_a_command_and_one_line_of_help() -> None:
    for verb, (module, line) in VERBS.items():
        command = command_of(verb)
        assert (command.callback or print).__module__ == f"zoo.cli.{module}"
        assert command.name == verb
        assert command.help
        assert line.endswith(".")


def test_every_error_is_in_the_tree_at_the_top_of_its_file() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", (errors.__doc__ or "")))
    made = {
        n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == "zoo.errors"
    }
    assert made <= drawn
    for name in made - {"ZooError"}:
        (line,) = [text for text in (errors.__doc__ or "").splitlines() if f"─ {name} " in text]
        bases = [base.__name__ for base in getattr(errors, name).__mro__]
        also = re.search(r"also (\w+)", line)
        assert also is None or also[1] in bases, name


def test_every_environment_variable_is_in_the_readme() -> None:
    used = {
        name
        for path in sources("zoo", "plugins")
        for name in re.findall(r"\bZOO_[A-Z_]+[A-Z]\b", path.read_text("utf-8"))
    }
    readme = (ROOT / "README.md").read_text("utf-8")
    assert {name for name in used if f"`{name}`" not in readme} == set()


# --- generated text -------------------------------------------------------------------------------


def test_generated_text_is_fresh() -> None:
    text = generate.README.read_text("utf-8")
    assert generate.STUB.read_text("utf-8") == generate.stub(), "run: python -m zoo.generate"
    assert text == generate.readme(text), "run: python -m zoo.generate"
    claims = generate.CLAIMS.read_text("utf-8")
    assert claims == generate.claims_page(), "run: python -m zoo.generate"


def test_a_missing_number_of_the_readme_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ready model has its quality in the README, and every number a source."""
    ready = {n for n, e in plugins.own_registry().models.items() if e.status == "ready"}
    assert ready == set(generate.HEADLINES)
    assert set(generate.COSTS) <= ready
    monkeypatch.setitem(generate.HEADLINES, "lfa", "{{lfa | 5 shots}}")
    with pytest.raises(InputError, match="no metric '5 shots'"):
        generate.ready_table()


def test_the_stub_names_what_the_module_has() -> None:
    named = set()
    for node in ast.parse(generate.STUB.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            named.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            named.add(ast.unparse(node.target))
        elif isinstance(node, ast.ImportFrom):  # `import x as x` is how a stub says public
            named |= {a.name for a in node.names if a.asname == a.name}
    assert named - {"__all__"} == {*zoo.__all__}
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
