"""Bases: several by name, recorded in saved folders, needed or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo
from tests.conftest import Site, forget
from zoo import bases
from zoo.cli.options import parse_bases
from zoo.entry import Base, Entry
from zoo.errors import NotReadyError, OptionError, UsageError, WeightsError, WeightsNotFoundError

REGISTRY = """
schema: 1
zoo_api: 1
models:
  two:
    interface: SRModel
    status: ready
    summary: works on two
    class: "works_on_two.model:Model"
    bases:
      lvlm: {kind: transformers, needed: [build, load]}
      ranker: {kind: open_clip}
"""
MODEL = """
from zoo.images import transform
from zoo.interfaces import SRModel

class Model(SRModel):
    scales = (2,)

    def __init__(self, request):
        super().__init__(request)
        self.request = request

    def upscale(self, images, *, scale=None, prompt=None, seed=0, tile="auto", progress=False):
        def twice(x):
            return x.repeat_interleave(2, 1).repeat_interleave(2, 2)

        return transform(images, twice, scale=2)
"""


@pytest.fixture
def two(here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entry]:
    here.plugin("works_on_two", registry=REGISTRY, model=MODEL)
    monkeypatch.chdir(tmp_path)
    for name, file in (("llm", "config.json"), ("clip", "open_clip_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"name": name}))
    (tmp_path / "llm" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# llm\n")
    yield zoo.info("two")
    forget()


def test_a_base_of_another_kind_is_refused(two: Entry) -> None:
    """The host refuses it with an error that does not blame the plugin."""
    words = r"base='clip' is not a model of kind transformers: it has no config\.json"
    with pytest.raises(UsageError, match=words):
        zoo.load("two", base="./clip")
    with pytest.raises(UsageError, match=r"'llm' is not a model of kind open_clip"):
        zoo.load("two", base={"lvlm": "./llm", "ranker": "./llm"})


def test_several_by_name_and_the_first_without_one(two: Entry, tmp_path: Path) -> None:
    model = zoo.load("two", base={"lvlm": "./llm", "ranker": "./clip"})
    found = model.request.bases
    assert [*found] == ["lvlm", "ranker"]
    assert (found["lvlm"].folder, found["lvlm"].license) == (Path("llm"), "apache-2.0")
    assert (found["ranker"].license, found["ranker"].revision) == (None, None)
    only = zoo.load("two", base="./llm")
    assert [*only.request.bases] == ["lvlm"]
    assert only.request.base == only.request.bases["lvlm"] == only.base
    with pytest.raises(OptionError, match=r"no base 'clip'\. It has: lvlm, ranker"):
        zoo.load("two", base={"clip": "./clip"})


def test_a_missing_base_is_refused_by_the_host(two: Entry) -> None:
    with pytest.raises(NotReadyError, match=r"base 'lvlm' of kind transformers: .* --base lvlm="):
        zoo.load("two", base={"ranker": "./clip"})
    with pytest.raises(UsageError, match="there is no such folder"):
        zoo.load("two", base="./none")
    Path("photos").mkdir()
    Path("photos/notes.txt").touch()
    with pytest.raises(UsageError, match="there is no model in this folder"):
        zoo.load("two", base="./photos")


def test_training_without_a_base_names_both_ways_to_start(two: Entry) -> None:
    spec = replace(two.bases["lvlm"], needed=("train",))
    entry = replace(two, bases={"lvlm": spec})
    with pytest.raises(NotReadyError, match=r"--base ORG/NAME\). Or start .* --init FOLDER"):
        bases.find(entry, None, "train")
    assert bases.find(entry, None, "build") == {}


@pytest.mark.parametrize("given", ["org/x", {"base": "org/x"}])
def test_a_base_for_a_model_without_one_is_named_as_it_was_given(given: Any) -> None:
    with pytest.raises(OptionError, match="uses no base model; leave out base='org/x'"):
        bases.asked(zoo.info("edge-sd-sr"), given)


def test_both_can_be_moved_together(two: Entry, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.move("llm", here / "llm")
    zoo.load("two", base=here / "llm").save_pretrained(here / "mine")
    kept = json.loads((here / "mine" / "zoo.json").read_text())["bases"]["lvlm"]
    assert kept["id"] == "../llm"
    moved = here.rename(tmp_path / "there")
    again = zoo.load(moved / "mine")
    assert again.base.folder.resolve() == moved / "llm"
    again.save_pretrained(moved / "copy")
    assert zoo.load(moved / "copy").base.sha256 == kept["sha256"]


def test_one_that_lies_elsewhere_is_kept_by_its_full_path(two: Entry, tmp_path: Path) -> None:
    saved = tmp_path / "a" / "b" / "mine"
    saved.parent.mkdir(parents=True)
    zoo.load("two", base="./llm").save_pretrained(saved)
    kept = json.loads((saved / "zoo.json").read_text())["bases"]["lvlm"]
    assert kept["id"] == (tmp_path / "llm").resolve().as_posix()
    assert zoo.load(saved).base.license == "apache-2.0"


def test_a_base_that_changed_is_not_the_one_that_was_used(two: Entry, tmp_path: Path) -> None:
    saved = zoo.load("two", base="./llm").save_pretrained(tmp_path / "mine")
    (tmp_path / "llm" / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"files in .*llm have changed since.*Pass base="):
        zoo.load(saved)
    assert zoo.load(saved, base="./llm").base.folder == Path("llm")  # the caller's word counts


def test_what_is_needed_to_load_must_be_there_and_what_is_not_may_be_gone(
    two: Entry, tmp_path: Path
) -> None:
    saved = zoo.load("two", base={"lvlm": "./llm", "ranker": "./clip"}).save_pretrained("mine")
    shutil.rmtree("clip")
    model = zoo.load(saved.resolve())
    assert [*model.request.bases] == ["lvlm"]
    assert model.bases["ranker"].folder is None  # its record is kept
    assert model.bases["ranker"].sha256 is not None
    model.save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "zoo.json").read_text())["bases"]
    assert [*kept] == ["lvlm", "ranker"]
    shutil.rmtree("llm")
    with pytest.raises(UsageError, match=r"needs the transformers model .* no such folder"):
        zoo.load(saved.resolve())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), None),
        (("org/x",), {"lvlm": "org/x"}),
        (("./a=b",), {"lvlm": "./a=b"}),
        (("org/x@main", "ranker=./clip"), {"lvlm": "org/x@main", "ranker": "./clip"}),
    ],
)
def test_bases_on_the_command_line(two: Entry, given: tuple[str, ...], expected: Any) -> None:
    assert parse_bases(given, two) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("ranger=./clip",), "has no base 'ranger'. It has: lvlm, ranker"),
        (("org/x", "lvlm=org/y"), "lvlm is given twice, as org/x and org/y"),
    ],
)
def test_bases_that_are_refused(two: Entry, given: tuple[str, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        parse_bases(given, two)


def test_the_resolver_is_for_verbs_that_take_a_model(two: Entry, tmp_path: Path) -> None:
    found = bases.resolve("./llm")
    assert isinstance(found, Base)
    assert (found.folder, found.license) == (Path("llm"), "apache-2.0")
    with pytest.raises(UsageError, match=r"model='llm': .* Write './llm'"):
        bases.resolve("llm")
    with pytest.raises(UsageError, match="is not a Hub id"):
        bases.resolve("neither a name nor an id")
    with pytest.raises(WeightsNotFoundError, match="HF_HUB_OFFLINE"):
        bases.resolve("org/nowhere")
