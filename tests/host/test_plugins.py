"""Plugins that are broken, hostile or in conflict: one line of output, and no more."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo
from tests.conftest import MINIMAL_INIT, MINIMAL_MODEL, MINIMAL_REGISTRY, Site, forget
from zoo import actions, hookspecs, installed, plugins, registry
from zoo.entry import API_VERSION
from zoo.errors import (
    MissingDependencyError,
    NotReadyError,
    PluginError,
    RegistryError,
    UnknownModelError,
)
from zoo.installed import normalised

TOUCH = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
LOUD_INIT = TOUCH + MINIMAL_INIT
LOUD_MODEL = TOUCH.replace("'imported'", "'model-imported'") + MINIMAL_MODEL
HOOK = "from zoo.hookspecs import hookimpl\n"


def entries(*names: str, package: str, extra: str = "") -> str:
    """A registry file with minimal models of these names."""
    blocks = MINIMAL_REGISTRY.partition("models:\n")[2]
    head = MINIMAL_REGISTRY.partition("models:\n")[0] + "models:\n"
    return head + "".join(blocks.format(name=name, package=package) + extra for name in names)


def by_package() -> dict[str, plugins.Plugin]:
    return {p.package: p for p in registry.catalogue().plugins if not p.first_party}


# --- broken code ----------------------------------------------------------------------------------

CODE: dict[str, tuple[str, str, type[BaseException] | None]] = {
    # package: (its __init__.py, words of the message, the chained cause)
    "raises": (
        "raise ValueError('bad\\nday')",
        "import failed with ValueError: bad day",
        ValueError,
    ),
    "syntax": ("def f(:\n", "import failed with SyntaxError", SyntaxError),
    "exits": ("import sys\nsys.exit('gone')", "import failed with SystemExit: gone", SystemExit),
    "exits_well": ("import sys\nsys.exit(0)", "import failed with SystemExit: 0", SystemExit),
    "base_error": (
        "class Odd(BaseException): pass\nraise Odd('very')",
        "import failed with Odd: very",
        BaseException,
    ),
    "recurses": ("def f(): f()\nf()", "import failed with RecursionError", RecursionError),
    "own_import": ("from . import nothing_here", "import failed with ImportError", ImportError),
    "own_module": ("import own_module.gone", "import failed with ModuleNotFoundError", ImportError),
    "old_zoo": ("import zoo.gone", "import failed with ModuleNotFoundError", ImportError),
    "no_hook": ("x = 1", "has models but no zoo_build hook in its __init__.py", None),
    "unmarked": ("def zoo_build(request): ...", "has models but no zoo_build hook", None),
    "misnamed": (
        MINIMAL_INIT + "\n@hookimpl\ndef zoo_bild(request): ...",
        "registration failed with PluginValidationError: unknown hook 'zoo_bild'",
        Exception,
    ),
    "misargued": (
        HOOK + "@hookimpl\ndef zoo_build(entry): ...",
        "registration failed with PluginValidationError",
        Exception,
    ),
    "bad_dir": (
        MINIMAL_INIT + "\ndef __dir__(): raise OSError('no list')",
        "registration failed with OSError: no list",
        OSError,
    ),
}
BUILD: dict[str, tuple[str, str, type[BaseException] | None]] = {
    # what only shows when a model is built
    "none": ("return None", "zoo_build returned nothing", None),
    "text": ("return 'a model'", "zoo_build returned a str for text, which is not a SRModel", None),
    "fails": (
        "return 1 / 0",
        "zoo_build failed with ZeroDivisionError: division by zero",
        Exception,
    ),
    "quits": ("raise SystemExit(3)", "zoo_build failed with SystemExit: 3", SystemExit),
    "mute": ("raise KeyError", "zoo_build failed with KeyError. Report it to", KeyError),
}
CLASS = {
    # what only shows when an entry's class is imported: --check does
    "class_gone": ("x = 1", "class_gone.model:Model failed with AttributeError"),
    "class_other": ("class Model: ...", "class_other.model:Model is not a SRModel class"),
    "class_raises": ("raise RuntimeError('late')", "failed with RuntimeError: late"),
}


def name_of(package: str) -> str:
    return package.replace("_", "-")


@pytest.fixture
def broken(here: Site) -> Site:
    """A healthy plugin among many whose code is broken."""
    here.plugin("healthy")
    for package, (init, _, _) in CODE.items():
        here.plugin(package, init=init)
    for package, (body, _, _) in BUILD.items():
        here.plugin(package, init=f"{HOOK}@hookimpl\ndef zoo_build(request):\n    {body}\n")
    for package, (model, _) in CLASS.items():
        here.plugin(package, model=model)
    here.plugin("kills", init="import os\nos._exit(0)")
    here.plugin("hangs", init="import time\ntime.sleep(600)")
    return here


@pytest.mark.parametrize("package", [*CODE, *BUILD])
def test_broken_code_shows_when_a_model_is_loaded(here: Site, package: str) -> None:
    """The error is the plugin's, with the cause chained, each time; others still load."""
    if package in CODE:
        init, words, cause = CODE[package]
    else:
        body, words, cause = BUILD[package]
        init = f"{HOOK}@hookimpl\ndef zoo_build(request):\n    {body}\n"
    here.plugin(package, init=init, distribution="Some_Dist")
    here.plugin("healthy")
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            zoo.load(name_of(package))
        message = str(caught.value)
        assert words in message
        assert message.startswith(f"{package}")
        assert "\n" not in message
        if cause is None:
            assert caught.value.__cause__ is None
        else:
            assert isinstance(caught.value.__cause__, cause)
            assert f"ZOO_PLUGINS_DISABLE={package}" in message
            assert "Report it to some-dist" in message
    assert zoo.load("healthy").entry.name == "healthy"


def test_ctrl_c_in_a_plugin_is_ctrl_c(here: Site) -> None:
    here.plugin("waits", init="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        zoo.load("waits")


def test_errors_that_zoo_knows_pass_unchanged(here: Site) -> None:
    body = "from zoo.errors import InputError\n    raise InputError('as I said')"
    here.plugin("speaks", init=f"{HOOK}@hookimpl\ndef zoo_build(request):\n    {body}\n")
    with pytest.raises(zoo.ZooError, match=r"^as I said$"):
        zoo.load("speaks")


@pytest.mark.slow
def test_broken_plugins_leave_the_rest_alone(broken: Site) -> None:
    """`zoo list` shows all, because their data is valid; --check finds each, and ends in time."""
    listed = broken.zoo("list", "--json")
    assert listed.returncode == 0
    names = {entry["name"] for entry in json.loads(listed.stdout)}
    assert names >= {name_of(p) for p in [*CODE, *BUILD, *CLASS, "healthy", "kills", "hangs"]}
    assert all(p.state == "ok" for p in by_package().values())

    found = by_package()
    looked_at = ["raises", "exits", "syntax", "no_hook", "misnamed", "misargued", *CLASS]
    looked_at += ["kills", "healthy", "fails"]
    with ThreadPoolExecutor(2) as pool:
        reasons = dict(
            zip(looked_at, pool.map(lambda p: plugins.check(found[p]), looked_at), strict=True)
        )
    expected = {
        **{p: words for p, (_, words, _) in CODE.items()},
        **{p: w for p, (_, w) in CLASS.items()},
    }
    for package in looked_at[:-3]:
        assert expected[package] in str(reasons[package]), package
    assert reasons["kills"] == "the process ended early, with exit code 0"
    assert reasons["healthy"] is None
    assert reasons["fails"] is None  # nothing is built, only imported
    assert plugins.check(found["hangs"], timeout=1) == "did not finish within 1 s"


def test_a_check_does_not_wait_for_what_a_plugin_leaves_behind(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also accepts plugins that print, and imports nothing from the current folder."""
    start = "import subprocess, sys, atexit\nsubprocess.Popen(['sleep', '9'])\n"
    noise = "atexit.register(print, 'bye')\nprint('x', end='')\nsys.stdout = sys.stderr\n"
    here.plugin("leaves", init=start + noise + MINIMAL_INIT)
    (tmp_path / "pluggy.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert plugins.check(by_package()["leaves"], timeout=8) is None


@pytest.mark.slow
def test_zoo_plugins_check_says_it_all(here: Site) -> None:
    here.plugin("healthy")
    here.plugin("raises", init="raise ValueError('no \\x1b[31m red')")
    done = here.zoo("plugins", "--check", ZOO_PLUGINS_DISABLE="zoo_edge_sd_sr,zoo_yonos_sr")
    assert done.returncode == 1
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["healthy"].split()[-1] == "ok"
    assert "fault" in lines["raises"]
    assert "import failed with ValueError: no" in lines["raises"]
    assert "\x1b" not in done.stdout
    assert "blocked" in lines["zoo_edge_sd_sr"]
    assert done.stderr == ""


# --- broken data ----------------------------------------------------------------------------------

DATA: dict[str, tuple[dict[str, Any], str]] = {
    "no_registry": (
        {"registry": None},
        "no registry.yaml next to no_registry/__init__.py. If the project has one, the build "
        "leaves it out: setuptools ships it only with [tool.setuptools.package-data] no_registry = "
        '["registry.yaml"]',
    ),
    "newer": (
        {"registry": "schema: 1\nzoo_api: 2\nmodels: {a: {new: 1}}"},
        "2, this zoo has 1; update zoo",
    ),
    "older": (
        {"registry": "schema: 1\nzoo_api: 0"},
        "made for zoo_api 0, this zoo has 1; update older",
    ),
    "empty": ({"registry": "\n"}, "the file is empty"),
    "wrong": (
        {"registry": "schema: 1\nzoo_api: 1\nmodel: {}"},
        "line 3: registry: unknown key 'model'",
    ),
    "hostile": (
        {"registry": "schema: 1\nzoo_api: 1\nmodels: !!python/object/apply:os.system [id]"},
        "line 3: tags are not allowed",
    ),
    "deep": ({"registry": "- " * 30_000}, "nested deeper than 16 levels"),
    "huge": ({"registry": "#" * 2_000_000}, "2,000,000 bytes"),
    "reaching": (
        {"registry": entries("reaching", package="os")},
        "'os.model:Model' is not in the entry's own package reaching",
    ),
    "dotted": ({"entry_point": "dotted.inner"}, "must name a top-level package alone"),
    "object_": ({"entry_point": "object_:plugin"}, "must name a top-level package alone"),
    "absent": ({"entry_point": "not_installed_at_all"}, "cannot be found, or is a single module"),
    "single": ({"entry_point": "single_module"}, "cannot be found, or is a single module"),
    "ours": ({"entry_point": "zoo_yonos_sr"}, "taken name: the package zoo_yonos_sr is zoo's own"),
    "host": ({"entry_point": "zoo"}, "taken name: the package zoo is zoo's own"),
    "bytes": ({"registry": "schema: 1"}, "cannot be read"),
}


def test_broken_data_shows_without_importing_anything(
    here: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (here.path / "single_module.py").write_text(TOUCH + MINIMAL_INIT)
    here.plugin("healthy", init=LOUD_INIT, model=LOUD_MODEL)
    for package, (arguments, _) in DATA.items():
        folder = here.plugin(package, init=LOUD_INIT, model=LOUD_MODEL, **arguments)
        (folder / "inner.py").touch()
    (here.path / "bytes" / "registry.yaml").write_bytes(b"\xff\xfe")
    forget()

    code = run("plugins", "--json")
    found = {p["distribution"]: p for p in json.loads(capsys.readouterr().out)}
    assert code == 0
    for package, (_, words) in DATA.items():
        fault = found[normalised(package)]
        assert fault["state"] == "fault", package
        assert words in fault["reason"], package
        assert fault["models"] == []
    assert found["healthy"]["state"] == "ok"

    assert run("plugins") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(registry.catalogue().plugins)  # one line each
    assert run("list") == 0
    out, err = capsys.readouterr()
    assert "healthy" in out
    assert err == f"{len(DATA)} plugins have a fault; see `zoo plugins`.\n"
    assert run("info", "healthy") == 0
    assert not [*here.path.rglob("*imported")]
    assert "healthy" not in sys.modules

    zoo.load("healthy")
    assert (here.path / "healthy" / "imported").exists()
    assert [p.parent.name for p in here.path.rglob("imported")] == ["healthy"]
    with pytest.raises(
        UnknownModelError, match=r"Not readable: .*no_registry.* \(see `zoo plugins`\)"
    ):
        zoo.load("no-registry")


def run(*args: str) -> int:
    from zoo.cli import main

    with pytest.raises(SystemExit) as done:
        main(args)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_damaged_metadata_of_one_distribution(here: Site) -> None:
    """Broken metadata of other projects is ignored; that of a plugin is one line."""
    here.plugin("healthy")
    here.plugin("nameless")
    (here.path / "nameless-1.0.dist-info" / "METADATA").unlink()
    assert {p.package: p.state for p in plugins.discover() if not p.first_party} == {
        "healthy": "ok",
        "nameless": "ok",
    }
    here.plugin("garbled")
    (here.path / "garbled-1.0.dist-info" / "entry_points.txt").write_bytes(
        b"[zoo.plugins]\n\xff=\xfe"
    )
    forget()
    found = by_package()
    assert found["healthy"].state == "ok"
    assert (
        "its metadata cannot be read (UnicodeDecodeError)" in found["garbled-1.0.dist-info"].reason
    )
    assert any(p.first_party for p in plugins.discover())
    assert zoo.load("healthy").entry.distribution == "healthy"


# --- who answers for whom -------------------------------------------------------------------------


def test_a_stranger_cannot_answer_for_another(here: Site) -> None:
    """Every plugin implements zoo_build; only the owner's is called, in whatever order."""
    for package in ("aaa", "mmm", "zzz"):
        first = MINIMAL_INIT.replace("@hookimpl", "@hookimpl(tryfirst=True)")
        noted = TOUCH.replace("'imported'", "'asked'").replace("\n", "; ").strip("; ")
        here.plugin(package, init=first.replace("    from", f"    {noted}\n    from"))
    for package in ("zzz", "aaa"):
        assert type(zoo.load(package)).__module__ == f"{package}.model"
    assert sorted(p.parent.name for p in here.path.rglob("asked")) == ["aaa", "zzz"]


def test_a_stranger_cannot_take_a_name_of_ours(here: Site) -> None:
    """It is a visible fault, zoo keeps the name, and the third-party model is dist:name."""
    ours = next(iter(plugins.own_registry().models))
    here.plugin(
        "thief", distribution="Thief.Dist", registry=entries(ours, "own-one", package="thief")
    )
    entry = zoo.info(ours)
    assert (entry.distribution, entry.plugin) == (
        "edgezoo",
        plugins.own_registry().models[ours].plugin,
    )
    found = by_package()["thief"]
    assert found.state == "conflict"
    assert found.reason == f"taken name: {ours} is zoo's own; reachable as thief-dist:{ours}"
    own = next(p for p in registry.catalogue().plugins if p.package == entry.plugin)
    assert (own.state, own.reason) == (
        "ok",
        f"{ours} is also claimed by thief-dist; this one is {ours}",
    )
    assert zoo.load(f"thief-dist:{ours}").entry.distribution == "thief-dist"
    assert zoo.load(f"Thief_Dist:{ours}").entry.distribution == "thief-dist"
    assert zoo.load("own-one").entry.plugin == "thief"
    assert zoo.info(f"edgezoo:{ours}") == entry
    assert zoo.list_models(ours) == [ours]


def test_two_strangers_with_one_name(here: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("left", "right"):
        here.plugin(package, registry=entries("same", f"{package}-only", package=package))
    assert zoo.list_models("same") == ["left:same", "right:same"]
    assert run("list", "same") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "left:same",
        "right:same",
    ]
    words = r"'same' is claimed by two plugins. Write 'left:same' or 'right:same'"
    for ask in (zoo.load, zoo.info):
        with pytest.raises(UnknownModelError, match=words):
            ask("same")
    found = by_package()
    for package, other in (("left", "right"), ("right", "left")):
        assert found[package].state == "conflict"
        words = f"same is also claimed by {other}; this one is {package}:same"
        assert found[package].reason == words
    assert zoo.load("right:same").entry.plugin == "right"
    assert zoo.load("left:same").entry.plugin == "left"
    assert zoo.load("left-only").entry.plugin == "left"
    with pytest.raises(UnknownModelError, match=r"did you mean 'left:same'"):
        zoo.load("left:sama")


def test_a_rival_that_is_switched_off_does_not_compete(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("left", "right"):
        here.plugin(package, registry=entries("same", package=package))
    monkeypatch.setenv("ZOO_PLUGINS_DISABLE", "left")
    forget()
    assert zoo.load("same").entry.plugin == "right"
    assert by_package()["right"].state == "ok"


def test_one_distribution_claims_a_name_twice(here: Site) -> None:
    for package in ("one", "two"):
        here.plugin(package, distribution="both", registry=entries("same", package=package))
    found = by_package()
    assert (found["one"].state, found["two"].state) == ("ok", "fault")
    assert found["two"].reason == "same is claimed twice by both"
    assert zoo.load("same").entry.plugin == "one"


def test_one_package_from_two_distributions(here: Site) -> None:
    """Which code would run is undefined, so neither runs."""
    here.plugin("shared", distribution="first")
    info = here.path / "second-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoo.plugins]\nshared = shared\n")
    forget()
    states = [(p.distribution, p.state) for p in plugins.discover() if p.package == "shared"]
    assert states == [("first", "fault"), ("second", "fault")]
    assert "claimed by first and second; uninstall one" in by_package()["shared"].reason
    with pytest.raises(UnknownModelError, match=r"Not readable: shared"):
        zoo.load("shared")


# --- the allow-list and the deny-list -------------------------------------------------------------


def test_a_blocked_plugin_is_never_imported(
    here: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("wanted", "other", "denied"):
        here.plugin(package, init=LOUD_INIT, model=LOUD_MODEL)
    monkeypatch.setenv("ZOO_PLUGINS", "wanted, denied ,")
    monkeypatch.setenv("ZOO_PLUGINS_DISABLE", " denied,unknown")
    forget()
    with pytest.warns(UserWarning, match=r"ZOO_PLUGINS_DISABLE names unknown, but no installed"):
        found = by_package()
    assert {p: found[p].state for p in found} == {
        "wanted": "ok",
        "other": "blocked",
        "denied": "blocked",
    }
    assert found["other"].reason == "not named in ZOO_PLUGINS"
    assert found["denied"].reason == "named in ZOO_PLUGINS_DISABLE"
    for package in ("other", "denied"):
        with pytest.raises(
            PluginError, match=f"its plugin {package} is blocked: (not )?named in ZOO_"
        ):
            zoo.load(package)
        assert "blocked" in str(plugins.check(found[package]))
    assert plugins.check(found["wanted"]) is None
    assert run("list") == 0
    assert zoo.load("wanted")
    assert {p.parent.name for p in here.path.rglob("*imported")} == {"wanted"}
    assert [p.state for p in registry.catalogue().plugins if p.first_party].count("blocked") == 0
    capsys.readouterr()


@pytest.mark.parametrize("name", ["the_package", "The-Package", "Some.Dist", "some-dist"])
def test_plugins_are_named_by_package_or_distribution(
    name: str, here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.plugin("the_package", distribution="some_dist")
    monkeypatch.setenv("ZOO_PLUGINS_DISABLE", name)
    forget()
    assert by_package()["the_package"].state == "blocked"
    monkeypatch.delenv("ZOO_PLUGINS_DISABLE")
    monkeypatch.setenv("ZOO_PLUGINS", name)
    forget()
    assert by_package()["the_package"].state == "ok"


def test_an_empty_allow_list_allows_no_stranger(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.plugin("other")
    monkeypatch.setenv("ZOO_PLUGINS", "")
    forget()
    assert by_package()["other"].state == "blocked"
    assert all(p.state == "ok" for p in plugins.discover() if p.first_party)


def test_ours_are_blocked_by_the_deny_list(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = next(p.package for p in plugins.discover() if p.first_party)
    monkeypatch.setenv("ZOO_PLUGINS_DISABLE", ours)
    forget()
    found = next(p for p in plugins.discover() if p.package == ours)
    assert (found.state, found.reason) == ("blocked", "named in ZOO_PLUGINS_DISABLE")


# --- missing packages and hooks -------------------------------------------------------------------


def test_a_missing_package_names_the_extra(here: Site) -> None:
    lacks = f"{HOOK}@hookimpl\ndef zoo_build(request):\n    import not_there.at_all\n"
    with_extra = MINIMAL_REGISTRY.format(name="lacks", package="lacks") + "    extra: heavy\n"
    here.plugin("lacks", distribution="lacks-dist", init=lacks, registry=with_extra)
    here.plugin("bare", init="import not_there")
    with pytest.raises(MissingDependencyError) as caught:
        zoo.load("lacks")
    assert str(caught.value) == (
        'lacks needs not_there, which is not installed. Run: pip install "lacks-dist[heavy]"'
    )
    assert caught.value.name == "not_there"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(
        MissingDependencyError, match=r"bare needs not_there, .* Run: install not_there"
    ):
        zoo.load("bare")


def test_a_missing_package_names_the_extra_that_brings_it(here: Site) -> None:
    lacks = (
        f"{HOOK}@hookimpl\ndef zoo_build(request): ...\n"
        "@hookimpl\ndef zoo_train(request):\n    import not_there.at_all\n"
    )
    registry = MINIMAL_REGISTRY.format(name="lacks", package="lacks") + "    extra: heavy\n"
    here.plugin("lacks", init=lacks, registry=registry)
    (about,) = here.path.glob("lacks-*.dist-info/METADATA")
    about.write_text(
        about.read_text("utf-8")
        + 'Requires-Dist: torch>=2; extra == "heavy"\n'
        + "Requires-Dist: Not.There>=1; extra == 'bench'\n"
        + 'Requires-Dist: not-there[x]>=1 ; python_version > "3" and extra == "train"\n',
        "utf-8",
    )
    assert installed.extras_with("lacks", "not_there") == ["bench", "train"]
    assert installed.extras_with("lacks", "nothing") == []
    assert installed.extras_with("no-such-thing", "torch") == []
    with pytest.raises(MissingDependencyError, match=r'pip install "lacks\[train\]"'):
        actions.train(zoo.info("lacks"), here.path / "out", device="cpu")


def test_without_torch_a_model_names_its_extra(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here.plugin(
        "model", registry=MINIMAL_REGISTRY.format(name="model", package="model") + "    extra: sr\n"
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependencyError, match=r'model needs torch, .* pip install "model\[sr\]"'
    ):
        zoo.load("model")


def test_an_optional_hook_that_is_not_there(here: Site) -> None:
    here.plugin("healthy")
    entry = zoo.info("healthy")
    with pytest.raises(NotReadyError, match=r"healthy has no train: healthy does not offer it"):
        actions.train(entry, here.path / "out", device="cpu")


def test_an_uninstalled_plugin(here: Site) -> None:
    """A first-party model whose package this installation does not have."""
    ours = next(e for e in registry.catalogue().entries() if e.distribution == "edgezoo")
    with pytest.raises(PluginError, match=r"is not installed. Reinstall edgezoo with pip"):
        registry.catalogue().owner(replace(ours, plugin="zoo_absent"))


def test_a_plugin_may_have_no_models(here: Site) -> None:
    here.plugin("quiet", registry="schema: 1\nzoo_api: 1\n", init="")
    assert by_package()["quiet"].state == "ok"
    assert plugins.check(by_package()["quiet"]) is None


# --- the hooks themselves -------------------------------------------------------------------------


def test_every_hook_is_described_and_asked(here: Site) -> None:
    """Each declared hook has a docstring, takes one request, and reaches its plugin."""
    hooks = [name for name in vars(hookspecs) if name.startswith("zoo_")]
    assert hooks == ["zoo_build", "zoo_train", "zoo_bench"]
    bodies = "".join(
        f"@hookimpl\ndef {hook}(request):\n    return {hook!r}, type(request).__name__\n"
        for hook in hooks
    )
    here.plugin("all_hooks", init=HOOK + bodies)
    entry = zoo.info("all-hooks")
    plugin = by_package()["all_hooks"]
    requests: dict[str, Any] = {
        "zoo_build": hookspecs.BuildRequest(entry, None),
        "zoo_train": hookspecs.TrainRequest(entry, here.path),
        "zoo_bench": hookspecs.BenchRequest(entry, here.path),
    }
    for hook in hooks:
        assert len(getattr(hookspecs, hook).__doc__) > 60
        answer = plugins.call(plugin, hook, requests[hook])
        assert answer == (hook, type(requests[hook]).__name__)
        with pytest.raises(AssertionError, match="never called"):
            getattr(hookspecs, hook)(None)
    assert hookspecs.API_VERSION == API_VERSION


def test_our_own_registry_is_found_in_a_wheel_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "zoo"
    package.mkdir()
    monkeypatch.setattr(plugins, "__file__", str(package / "plugins.py"))
    with pytest.raises(RegistryError, match=r"registry.yaml is missing next to .*; reinstall zoo"):
        plugins.first_party_registry()
    (tmp_path / "registry.yaml").touch()
    assert plugins.first_party_registry() == tmp_path / "registry.yaml"
    (package / "registry.yaml").touch()
    assert plugins.first_party_registry() == package / "registry.yaml"


def test_forgetting_finds_what_was_installed_since(here: Site) -> None:
    assert "late" not in zoo.list_models()
    here.plugin("late")
    assert "late" in zoo.list_models()


def test_bases_of_two_strangers_are_told_apart(here: Site) -> None:
    """Bases have no silent winner either; zoo's own take precedence, as for models."""
    for package, dist in (("zoo_one", "one"), ("zoo_two", "two")):
        here.plugin(
            package,
            distribution=dist,
            registry="schema: 1\nzoo_api: 1\nbases:\n"
            f"  shared: {{summary: from {dist}, files: []}}\n"
            f"  only-{dist}: {{summary: x, files: []}}\n",
        )
    from zoo.registry import catalogue

    with pytest.raises(UnknownModelError, match="'one:shared' or 'two:shared'"):
        catalogue().base("shared")
    found = catalogue().base("two:shared")
    assert found is not None
    assert found.summary == "from two"
    only = catalogue().base("only-one")
    assert only is not None
    assert only.distribution == "one"
    assert catalogue().base("nothing") is None
    assert catalogue().base("three:shared") is None


def test_a_blocked_model_is_listed_as_blocked(site: Site) -> None:
    site.plugin("zoo_shy")
    line = next(
        text
        for text in site.zoo("list", ZOO_PLUGINS_DISABLE="zoo_shy").stdout.splitlines()
        if text.startswith("zoo-shy")
    )
    assert "blocked" in line


def test_packages_without_metadata_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after PyInstaller or vendoring: packages without metadata that declares them."""
    monkeypatch.setattr(plugins, "entry_points", lambda group: ([], []))
    forget()
    try:
        found = {p.package: p for p in registry.catalogue().plugins}
        assert set(found) >= {"zoo_lfa", "zoo_edge_sd_sr"}
        assert {p.state for p in found.values()} == {"fault"}
        assert "zoo" not in found
        with pytest.raises(PluginError, match=r"--copy-metadata edgezoo"):
            zoo.load("lfa")
    finally:
        monkeypatch.undo()
        forget()
    assert zoo.load("lfa").entry.name == "lfa"
