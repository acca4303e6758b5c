"""The keywords of verbs, read from source that is never run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import zoo
from zoo import plugins
from zoo.interfaces import verbs
from zoo.registry import catalogue
from zoo.signatures import keywords


@pytest.mark.parametrize("name", ["edge-sd-sr", "yonos-sr", "yonos-sr-full", "lfa", "bayesian-dps"])
def test_it_is_what_the_class_has(name: str) -> None:
    entry = zoo.info(name)
    plugin = catalogue().owner(entry)
    assert plugin.folder is not None
    assert entry.class_ is not None
    cls = plugins.import_object(plugin, entry.class_, entry)
    for verb in (*verbs(entry.interface), "export"):
        method = getattr(cls, verb, None)
        if method is None or method.__module__.startswith("zoo."):
            continue  # the interface's own
        parameters = inspect.signature(method).parameters.values()
        wanted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "progress"]
        assert [k.name for k in keywords(plugin.folder, entry.class_, verb)] == wanted, verb


def package(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in {"__init__": "", **files}.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    return folder


def test_classes_of_other_modules_and_packages(tmp_path: Path) -> None:
    package(tmp_path / "ground", up="class Up:\n  def up(self, x, *, a=1, progress=False): ...")
    middle = "from ground.up import Up as Base\nclass Mid(Base):\n  def other(self, *, b): ..."
    own = "from .mid import Mid\nclass Own(Mid): pass\nraise SystemExit('run')"
    folder = package(tmp_path / "mine", mid=middle, own=own)
    assert [str(k) for k in keywords(folder, "mine.own:Own", "up")] == ["a = 1"]
    assert [str(k) for k in keywords(folder, "mine.own:Own", "other")] == ["b"]
    assert keywords(folder, "mine.own:Own", "none") == []


@pytest.mark.parametrize(
    "text",
    ["", "class Own(", "class Own(Own): ...", "class Own(a.B): ...", "Own = type('Own', (), {})",
     "from . import Own", "from gone import Own", "\x00"],
)  # fmt: skip
def test_what_cannot_be_read_has_none(text: str, tmp_path: Path) -> None:
    assert keywords(package(tmp_path / "mine", own=text), "mine.own:Own", "up") == []
