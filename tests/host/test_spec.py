"""Registry files: the content of a valid one, and every kind of mistake."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo import entry as entry_
from zoo import plugins, spec
from zoo.entry import BaseSpec, Option
from zoo.errors import OptionError, RegistryError
from zoo.interfaces import INTERFACES

HASH = "0123456789abcdef" * 4
COMMIT = "0123456789abcdef0123" * 2

FULL = f"""\
schema: 1
zoo_api: 1
models:
  nearest:
    interface: SRModel
    status: ready
    method: nearest
    size: tiny
    domain: photos
    summary: repeats pixels
    paper: {{title: "On: pixels", id: "arXiv:1234.56789"}}
    license: {{code: Apache-2.0, weights: CC0-1.0}}
    extra: sr
    params: 12
    config:
      widths: [1, 2.5, 1e-3]
      deep: {{on: true, off: null, quoted: "1", word: no}}
    class: pkg.model:Nearest
    options:
      load:
        gain: {{type: float, default: 1e-3, min: 0, max: 1, help: how much}}
        steps: {{type: int, default: 4, min: 1}}
        soft: {{type: bool, default: false}}
        mode: {{choices: [no, yes], default: no}}
        note: {{type: str}}
      train:
        rate: {{type: float, default: .5}}
    base: {{kind: diffusers, default: null}}
    files:
      - {{path: model.safetensors, size: 12, sha256: "{HASH}", dtype: float16}}
      - {{path: check/in.png, size: 3, sha256: {HASH}}}
      - {{path: check/out.safetensors, size: 4, sha256: {HASH}}}
    hub: {{repo: org/nearest, revision: {COMMIT}}}
    check: {{input: check/in.png, expected: check/out.safetensors, atol: 1e-3}}
    commands:
      compare: {{run: "pkg.cli:compare", help: side by side}}
bases:
  tiny-base:
    summary: small
    files: []
"""


def parse(text: str, package: str | None = "pkg") -> spec.RegistryFile:
    return spec.parse(text, path=Path("registry.yaml"), package=package)


def mistakes(text: str, package: str | None = "pkg") -> list[tuple[int, str]]:
    """The (line, text) of each mistake of a bad file."""
    with pytest.raises(RegistryError) as caught:
        parse(text, package)
    first, *rest = str(caught.value).split("\n")
    assert first.startswith("registry.yaml: ")
    assert first.endswith(f"{len(rest)} mistake{'s' if len(rest) > 1 else ''}")
    found = []
    for line in rest:
        number, _, what = line.removeprefix("  line ").partition(": ")
        found.append((int(number), what))
    return found


def changed(old: str, new: str) -> tuple[str, int]:
    """The good file with one thing changed, and the line it is on."""
    assert FULL.count(old) == 1, old
    return FULL.replace(old, new), FULL[: FULL.index(old)].count("\n") + 1


# --- good files -----------------------------------------------------------------------------------


def test_everything_that_a_file_can_say() -> None:
    read = parse(FULL)
    entry = read.models["nearest"]
    assert (read.zoo_api, entry.plugin, entry.params, entry.line) == (1, "pkg", 12, 4)
    assert entry.class_ == "pkg.model:Nearest"
    assert entry.config == {
        "widths": [1, 2.5, 0.001],
        "deep": {"on": True, "off": None, "quoted": "1", "word": "no"},
    }
    assert entry.paper == {"title": "On: pixels", "id": "arXiv:1234.56789"}
    load = entry.options["load"]
    assert load["gain"] == Option("gain", "float", 0.001, 0.0, 1.0, (), "how much")
    assert (load["soft"].default, load["mode"].default, load["note"].default) == (False, "no", None)
    assert load["mode"].choices == ("no", "yes")
    assert entry.options["train"]["rate"].default == 0.5
    assert entry.files[0] == entry_.FileSpec("model.safetensors", 12, HASH, "float16")
    assert entry.hub == entry_.HubSpec("org/nearest", COMMIT)
    assert entry.check == entry_.CheckSpec("check/in.png", "check/out.safetensors", 0.001)
    assert entry.bases == {"base": BaseSpec("diffusers", None)}
    assert entry.commands["compare"] == entry_.CommandSpec("pkg.cli:compare", "side by side")
    assert read.bases["tiny-base"].plugin == "pkg"


def test_our_own_file_is_good() -> None:
    read = spec.read(plugins.first_party_registry())
    assert read.zoo_api == entry_.API_VERSION
    assert {e.interface for e in read.models.values()} == set(INTERFACES)
    assert len({e.method for e in read.models.values()}) == 10


def test_our_own_file_names_its_plugins() -> None:
    text = (
        "schema: 1\nzoo_api: 1\nmodels:\n  a: {interface: SRModel, status: planned, summary: s}\n"
    )
    assert mistakes(text, package=None) == [(4, "a: plugin is missing")]
    assert (
        parse(text.replace("summary", "plugin: zoo_a, summary"), None).models["a"].plugin == "zoo_a"
    )


def test_windows_files_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert spec.read(path, package="pkg").models["nearest"] == parse(FULL).models["nearest"]


def test_what_is_null_may_be_null() -> None:
    text, _ = changed(f"{{repo: org/nearest, revision: {COMMIT}}}", "null")
    assert parse(text).models["nearest"].hub is None
    text, _ = changed(COMMIT, "null")
    assert parse(text).models["nearest"].hub == entry_.HubSpec("org/nearest", None)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcxyz_0", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(config=st.dictionaries(st.text("abcxyz_", min_size=1, max_size=6), JSON, max_size=4))
def test_a_configuration_comes_back_as_it_went_in(config: dict[str, Any]) -> None:
    """The configuration is written as JSON, which is YAML, and by a YAML writer in block style."""
    content = {
        "schema": 1,
        "zoo_api": 1,
        "models": {
            "m": {
                "interface": "SRModel",
                "status": "ready",
                "summary": "s",
                "class": "pkg:M",
                "config": config,
            }
        },
    }
    assert parse(json.dumps(content, ensure_ascii=False)).models["m"].config == config
    text = yaml.safe_dump(content, allow_unicode=True)
    if not any(mark in text for mark in (" &", " *", "!!", " .inf", " .nan")):
        assert parse(text).models["m"].config.keys() == config.keys()


# --- one mistake in a good file -------------------------------------------------------------------

ONE = [
    # old text, new text, words of the message
    (COMMIT, COMMIT[:39], "hub: revision: '0123456789abcdef012301234"),
    (COMMIT, COMMIT.upper(), "40 lower-case hex digits"),
    (COMMIT, "main", "hub: revision: 'main' must be a commit of 40 lower-case hex digits"),
    (f'"{HASH}"', f'"{HASH.upper()}"', "sha256:"),
    (f'"{HASH}"', f'"{HASH[:-1]}"', "must be 64 lower-case hex digits"),
    ("repo: org/nearest", "repo: nearest", "must be a Hub repository, org/name"),
    ("repo: org/nearest", "repo: оrg/nеarest", "must be a Hub repository, org/name"),
    ("repo: org/nearest", "repo: org/neаrest", "must be a Hub repository, org/name"),
    ("interface: SRModel", "interface: SRModle", "unknown 'SRModle'; did you mean 'SRModel'?"),
    ("interface: SRModel", "interface: Foo", "unknown 'Foo'; known: SRModel, VLAligner"),
    ("interface: SRModel", "interface:", "interface: expected text"),
    ("status: ready", "status: redy", "did you mean 'ready'?"),
    ("size: tiny", "size: huge", "known: tiny, full"),
    ("dtype: float16", "dtype: fp16", "files: dtype: unknown 'fp16'"),
    ("    extra: sr", "    extras: sr", "unknown key 'extras'; did you mean 'extra'?"),
    ("    extra: sr", "    wibble: sr", "unknown key 'wibble'; known: interface, plugin"),
    ("    extra: sr", "    summary: again", "duplicate key 'summary'"),
    ("    extra: sr", "    plugin: zoo_other", "plugin is only for zoo's own registry file"),
    ("    extra: sr", "    extra: [sr]", "extra: expected text"),
    ("params: 12", "params: 12.5", "params: expected a whole number, not '12.5'"),
    ("params: 12", "params: '12'", "params: expected a whole number"),
    ("params: 12", "params: {}", "params: expected a whole number, not a mapping"),
    ("params: 12", f"params: {'1' * 400}", "params: expected a whole number"),
    ("path: model.safetensors", "path: ../model.safetensors", "stay in its folder"),
    ("path: model.safetensors", "path: 'a ](x).safetensors'", "letters, digits"),
    ("path: model.safetensors", "path: /model.safetensors", "must be relative"),
    ("path: model.safetensors", "path: a/./model.safetensors", "stay in its folder"),
    ("path: model.safetensors", "path: a//model.safetensors", "stay in its folder"),
    ("path: model.safetensors", "path: a\\model.safetensors", "with forward slashes"),
    ("path: model.safetensors", "path: C:/model.safetensors", "must be relative"),
    ("path: model.safetensors", "path: model.bin", "not one of the file types .safetensors"),
    ("path: model.safetensors", "path: CHECK/IN.png", None),
    ("size: 12", "size: -1", "files: size -1 is negative"),
    ("size: 12, ", "", "files: size is missing"),
    ("input: check/in.png", "input: other.png", "check: 'other.png' is not among its files"),
    ("atol: 1e-3}", "atol: -1}", "atol -1 is negative"),
    ("atol: 1e-3}", "atol: .nan}", "atol: expected a number"),
    (", atol: 1e-3}", "}", "check: atol is missing"),
    ("class: pkg.model:Nearest", "class: os:system", "is not in the entry's own package pkg"),
    ("class: pkg.model:Nearest", "class: pkgs.model:X", "is not in the entry's own package pkg"),
    ("class: pkg.model:Nearest", "class: pkg.model", "must be module:name"),
    ("class: pkg.model:Nearest", "class: 'pkg.model:N()'", "must be module:name"),
    ('run: "pkg.cli:compare"', 'run: "shutil:rmtree"', "is not in the entry's own package pkg"),
    ('run: "pkg.cli:compare", ', "", "commands: compare: run is missing"),
    ("gain: {type: float", "gain: {type: flaot", "did you mean 'float'?"),
    ("gain: {type: float", "tile: {type: float", "'tile' is already a keyword of the same call"),
    ("gain: {type: float", "weights: {type: float", "'weights' is already a keyword"),
    ("gain: {type: float", "Gain: {type: float", "'Gain' must be a lower-case identifier"),
    ("gain: {type: float", "gain: {typ: float", "unknown key 'typ'; did you mean 'type'?"),
    ("default: 1e-3", "default: 1.5", "default '1.5' is not a number from 0 to 1"),
    ("default: 1e-3", "default: 1e999", "is not a number from 0 to 1"),
    ("default: 1e-3", "default: [1]", "default a list is not a number from 0 to 1"),
    ("default: 4, min: 1", "default: 0, min: 1", "default '0' is not a whole number, at least 1"),
    ("default: 4, min: 1", "default: 4.0", "default '4.0' is not a whole number"),
    ("default: false", "default: no", "default 'no' is not true or false"),
    ("default: false", "default: [1]", "default a list is not true or false"),
    ("default: false", "default: {a: 1}", "default a mapping is not true or false"),
    ("min: 0, max: 1", "min: 2, max: 1", "min 2 is above max 1"),
    ("{type: bool, default: false}", "{type: bool, min: 0}", "min and max are for numbers"),
    ("{type: str}", "{type: str, choices: [a]}", "either type (float, int, bool, str) or choices"),
    ("{type: str}", "{}", "either type (float, int, bool, str) or choices"),
    ("choices: [no, yes]", "choices: [yes]", "default 'no' is not one of yes"),
    ("      train:", "      trian:", "unknown key 'trian'; did you mean 'train'?"),
    ("rate: {", "seed: {", "'seed' is already a keyword of the same call"),
    ("2.5, 1e-3]", "2.5, 1e999]", "config: '1e999' is too large for a number"),
    ("summary: repeats pixels", r'summary: "red \e[31m"', "printable characters"),
    ("summary: repeats pixels", r'summary: "two\nlines"', "one line of at most 500"),
    ("summary: repeats pixels", r'summary: "a‮b"', "printable characters"),
    ("summary: repeats pixels", f"summary: {'x' * 501}", "one line of at most 500"),
    ("quoted: \"1\"", r'quoted: "\e[2J"', "config: '\\x1b[2J' holds a control character"),
    ("  nearest:\n", "  Nearest:\n", "name 'Nearest' must be lower-case"),
    ("  nearest:\n", "  ../etc:\n", "name '../etc' must be lower-case"),
    ("  tiny-base:", "  nearest:", "bases: 'nearest' is also a model's name"),
    ("schema: 1", "schema: 2", "schema: 2 is not known; this zoo reads 1"),
    ("schema: 1", "schema: true", "schema: expected a whole number, not 'true'"),
    ("zoo_api: 1", "zoo_api:", "zoo_api: expected a whole number, not nothing"),
    ("zoo_api: 1", "zoo-api: 1", None),
    ("summary: repeats pixels", "summary: !!str repeats", "tags are not allowed: tag:yaml.org,2"),
    (
        "summary: repeats pixels",
        "summary: !!python/object/apply:os.system [id]",
        "tags are not allowed: tag:yaml.org,2002:python/object/apply:os.system",
    ),
    ("summary: repeats pixels", "summary: !<%1b%5b31m> x", None),
    ("summary: repeats pixels", "summary: &anchor repeats", "anchors and aliases are not allowed"),
    ("summary: repeats pixels", "summary: *anchor", "anchors and aliases are not allowed"),
    ("summary: repeats pixels", "summary: repeats: pixels", "not YAML: mapping values are not"),
    ("summary: repeats pixels", "summary: a\x07b", "not YAML: control characters are not allowed"),
    ("    files: []", "    files: [null]", "files: expected a mapping, not nothing"),
    ("    files: []", "    files: {}", "files: expected a list, not a mapping"),
    ("    files: []", "    files: []\n---\nschema: 1", None),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), ONE, ids=lambda value: str(value)[:30])
def test_one_mistake(old: str, new: str, words: str | None) -> None:
    text, line = changed(old, new)
    found = mistakes(text)
    if words is not None:
        assert any(words in what for _, what in found), found
        assert line in [number for number, _ in found], (line, found)
    assert all(what.isprintable() for _, what in found)


def test_each_kind_of_mistake_gets_its_own_line() -> None:
    """All mistakes in one message, in order, with exact lines; a good line is not blamed."""
    text = "\n".join(
        [
            "schema: 1",
            "zoo_api: 1",
            "models:",
            "  first:",  # 4
            "    interface: SRModle",  # 5
            "    status: ready",
            "    summary: !!str text",  # 7
            "    class: os:system",  # 8
            "    options:",
            "      load:",
            "        gain: {type: float, default: 3, max: 1}",  # 11
            "        dtype: {type: str}",  # 12
            "    files:",
            f"      - {{path: a.safetensors, size: 1, sha256: {HASH.upper()}}}",  # 14
            f"      - {{path: ../b.safetensors, size: 1, sha256: {HASH}}}",  # 15
            f"      - {{path: A.safetensors, size: 1, sha256: {HASH}}}",  # 16
            "    hub:",
            "      repo: org/x",
            f"      revision: {COMMIT[:39]}",  # 19
            "    check: {input: no.png, expected: a.safetensors, atol: 1}",  # 20
            "  second:",  # 21
            "    status: planned",
            "    sumary: &s text",  # 23
            "  first: {}",  # 24
            "  third: *s",  # 25
            "bases:",
            "  second: {summary: s, files: []}",  # 27
        ]
    )
    found = mistakes(text)
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    assert {line for line, _ in found} == {
        5, 7, 8, 11, 12, 14, 15, 16, 19, 20, 21, 23, 24, 25, 27
    }  # fmt: skip
    by_line: dict[int, list[str]] = {}
    for line, what in found:
        by_line.setdefault(line, []).append(what)
    assert by_line[24] == ["duplicate key 'first'"]
    assert by_line[20] == ["first: check: 'no.png' is not among its files"]
    assert "second: interface is missing" in by_line[21]
    assert "second: summary is missing" in by_line[21]


def test_a_flood_of_mistakes_is_cut() -> None:
    text = "schema: 1\nzoo_api: 1\n" + "".join(f"key{i}: 1\n" for i in range(200))
    with pytest.raises(RegistryError, match=r"200 mistakes\n(.*\n){50}  and 150 more$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("~", "registry: expected a mapping, not nothing"),
        ("just text", "registry: expected a mapping, not 'just text'"),
        ("[]", "registry: expected a mapping, not a list"),
        ("{}", "registry: schema is missing"),
        ("? [a]\n: b", "a key must be plain text"),
        ("? {a: b}\n: c", "a key must be plain text"),
        ("\ud800", "not YAML"),
        ("a: b\n\n\x00", "not YAML: control characters are not allowed"),
        ("schema: 1\nzoo_api: 1\n---\nschema: 1", "a second document; a registry file has one"),
        ("schema: 1\nzoo_api: 1\n" + "#" * spec.MAX_BYTES, "longer than 262,144"),
        ("- " * 30_000, "nested deeper than 16 levels"),
        ("{a: " * 30_000, "nested deeper than 16 levels"),
        ("[" * 30_000, "nested deeper than 16 levels"),
        ("schema: 1\nzoo_api: 1\nmodels:\n" + "- " * 30_000 + "x", "nested deeper than 16 levels"),
        ("{" * 30_000, "a key must be plain text"),
        ("? " * 30_000, "a key must be plain text"),
        ("schema: 1\nzoo_api: 1\nmodels:\n  a: &a [*a, *a, *a]", "aliases are not allowed"),
        ("schema: 1\nzoo_api: 1\n? " + "k" * 200_000, "unknown key 'kkkk"),
        (
            "schema: 1\nzoo_api: 1\nmodels:\n" + "".join(f"  k{i}: {{}}\n" for i in range(9000)),
            "more",
        ),
        ("schema: 1\nzoo_api: 1\n" + "".join(f"k{i}: 1\n" for i in range(20_000)), "more"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_hostile_file_is_refused_quickly(text: str, words: str) -> None:
    started = time.process_time()
    with pytest.raises(RegistryError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 20_000
    assert time.process_time() - started < 8  # a second at most on an idle machine


def test_aliases_that_grow_are_not_expanded() -> None:
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    found = mistakes("a0: &a0 lol\n" + laughs)
    assert any("anchors and aliases" in what for _, what in found)


def test_the_place_of_a_forbidden_character() -> None:
    assert mistakes("a: ü\nb: 2\nc: \x07")[0][0] == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    with pytest.raises(RegistryError, match=r"cannot be read: .*No such file"):
        spec.read(path)
    path.write_bytes(b"schema: \xff\xfe")
    with pytest.raises(RegistryError, match=r"cannot be read: .*codec can't decode"):
        spec.read(path)
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(
        RegistryError, match=r"2,000,000 bytes; a registry file has at most 262,144"
    ):
        spec.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RegistryError, match=r"cannot be read"):
        spec.read(path)


def test_a_file_for_another_api_is_not_judged_by_our_rules() -> None:
    read = parse("schema: 1\nzoo_api: 7\nmodels: {a: {hologram: true}}")
    assert (read.zoo_api, read.models) == (7, {})


# --- anything at all ------------------------------------------------------------------------------


def harmless(text: str) -> None:
    started = time.process_time()
    try:
        spec.parse(text, path=Path("registry.yaml"), package="pkg")
    except RegistryError as error:
        lines = str(error).split("\n")
        assert 2 <= len(lines) <= spec.MAX_MISTAKES + 2
        assert all(line.isprintable() for line in lines)
    assert time.process_time() - started < 2


ANYTHING = st.text(max_size=60) | st.text(":-[]{}&*!|>?'\"%@`#, \n\tab01~.\\", max_size=60)
RELAXED = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(text=ANYTHING)
def test_no_text_breaks_the_parser(text: str) -> None:
    harmless(text)
    harmless(f"schema: 1\nzoo_api: 1\nmodels: {text}")


@RELAXED
@given(at=st.integers(0, len(FULL)), gone=st.integers(0, 40), put=ANYTHING)
def test_no_change_to_a_good_file_breaks_the_parser(at: int, gone: int, put: str) -> None:
    harmless(FULL[:at] + put + FULL[at + gone :])


PATHS = [
        ("schema",), ("zoo_api",), ("models",), ("bases",), ("models", "nearest"),
        ("bases", "tiny-base"), ("bases", "tiny-base", "files"),
        *(("models", "nearest", key) for key in spec._MODEL_KEYS),
        *(("models", "nearest", "options", "load", "gain", key) for key in spec._OPTION_KEYS),
        *(("models", "nearest", "hub", key) for key in ("repo", "revision")),
        *(("models", "nearest", "commands", "compare", key) for key in ("run", "help")),
        *(("models", "nearest", "check", key) for key in ("input", "expected", "atol")),
]  # fmt: skip


@RELAXED
@given(path=st.sampled_from(PATHS), value=JSON)
def test_no_value_in_any_place_breaks_the_parser(path: tuple[str, ...], value: Any) -> None:
    content = yaml.safe_load(FULL)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    harmless(json.dumps(content, ensure_ascii=False))


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        (Option("o", "float", 1.0), "1e-3", 0.001),
        (Option("o", "float", 1.0), 2, 2.0),
        (Option("o", "int", 1), "2", 2),
        (Option("o", "int", 1), -2, -2),
        (Option("o", "bool", True), "false", False),
        (Option("o", "bool", True), True, True),
        (Option("o", "str", "x"), "1", "1"),
        (Option("o", "choice", "a", choices=("a", "b")), "b", "b"),
        (Option("o", "float"), None, None),
        (Option("o", "float", 1.0, 0, 2), 0, 0.0),
        (Option("o", "float", 1.0, 0, 2), 2, 2.0),
        (Option("o", "bool", True), "No", False),
        (Option("o", "bool", False), "ON", True),
        (Option("o", "float"), "None", None),
        (Option("o", "int"), "null", None),
        (Option("o", "str"), "none", "none"),
    ],
)
def test_values_that_fit(option: Option, given: Any, expected: Any) -> None:
    found = option.check(given)
    assert found == expected
    assert type(found) is type(expected)


def test_numpy_integers_are_whole_numbers() -> None:
    import numpy as np

    assert Option("o", "int", 1).check(np.int64(3)) == 3


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        (Option("o", "float", 1.0), "x", "option o='x': expected a number"),
        (Option("o", "float", 1.0), None, "expected a number"),
        (Option("o", "float", 1.0), True, "expected a number"),
        (Option("o", "float", 1.0), "nan", "expected a number"),
        (Option("o", "float", 1.0), float("inf"), "expected a number"),
        (Option("o", "float", 1.0), [1], "expected a number"),
        (Option("o", "float", 1.0), 10**400, "expected a number"),
        (Option("o", "int", 1), 1.5, "expected a whole number"),
        (Option("o", "int", 1), "1.0", "expected a whole number"),
        (Option("o", "int", 1), True, "expected a whole number"),
        (Option("o", "bool", True), "y", "expected true or false"),
        (Option("o", "bool", True), "none", "expected true or false"),
        (Option("o", "bool", True), 1, "expected true or false"),
        (Option("o", "bool", True), [], "expected true or false"),
        (Option("o", "str", "x"), 1, "expected text"),
        (Option("o", "choice", "a", choices=("a", "b")), "c", "expected one of a, b"),
        (Option("o", "choice", "a", choices=("a", "b")), ["a"], "expected one of a, b"),
        (Option("o", "float", 1.0, 0, 2), 2.1, "out of range: a number from 0 to 2"),
        (Option("o", "int", 1, 1), 0, "out of range: a whole number, at least 1"),
        (Option("o", "int", 1, None, 3), "4", "out of range: a whole number, at most 3"),
    ],
)
def test_values_that_do_not_fit(option: Option, given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=r"^option o=") as caught:
        option.check(given)
    assert words in str(caught.value)


def test_checked_options_fill_in_the_rest() -> None:
    entry = parse(FULL).models["nearest"]
    checked = entry.checked_options("load", {"gain": "0.5"})
    assert checked == {"gain": 0.5, "steps": 4, "soft": False, "mode": "no", "note": None}
    assert entry.checked_options("bench", {}) == {}
    with pytest.raises(OptionError, match=r"no option 'gian' for load; did you mean 'gain'"):
        entry.checked_options("load", {"gian": 1})
    with pytest.raises(OptionError, match=r"no option 'gain' for bench. It takes: none"):
        entry.checked_options("bench", {"gain": 1})
