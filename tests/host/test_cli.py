"""The command ``zoo``: its grammar, its messages and its exit codes."""

from __future__ import annotations

import builtins
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from PIL import Image

import zoo
from tests.conftest import MINIMAL_INIT, MINIMAL_MODEL, MINIMAL_REGISTRY, ROOT, Site
from zoo import cli, errors
from zoo.cli import options
from zoo.errors import OptionError
from zoo.interfaces import INTERFACES

REGISTRY = (
    MINIMAL_REGISTRY.format(name="doubler", package="doubler")
    + """
    options: {load: {gain: {type: float, default: 1.0, min: 0, max: 1}}}
    commands:
      count: {run: "doubler.model:count", help: counts its arguments}
      fails: {run: "doubler.model:fails", help: fails}
  sleeper:
    interface: Detector
    status: untrained
    summary: sleeps
    class: "doubler.model:Model"
"""
)
MODEL = (
    "from importlib import import_module\n"
    + MINIMAL_MODEL
    + """
        import time
        if seed == 77:
            print("begun", flush=True)
            time.sleep(60)
        if seed == 78:
            raise EOFError("an odd end")
        if seed == 79:
            raise ZeroDivisionError("two\\nlines")
        if progress is True and prompt is not None:
            raise ValueError(prompt)
        return big

def count(model, args):
    print(model.entry.name, *args)
    return len(args)

def fails(model, args):
    if args:
        import_module(args[0])
    raise LookupError("no luck")
"""
).replace("return transform", "big = transform")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def run(here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> Command:
    """``zoo *args`` in this process, in an empty folder, with a plugin that doubles images."""
    here.plugin("doubler", init=MINIMAL_INIT, registry=REGISTRY, model=MODEL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 3), (10, 20, 30)).save("in.png")
    Image.new("RGB", (4, 3), (10, 20, 30)).save("in.jpg")
    assert isinstance(capsys, pytest.CaptureFixture)

    def run(*args: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(args)
        assert isinstance(done.value.code, int)
        out, err = capsys.readouterr()
        return Done(done.value.code, out, err)

    return run


def look(path: str) -> tuple[tuple[int, int], str]:
    """Size and mode of a picture."""
    with Image.open(path) as image:
        return image.size, image.mode


def one_line(done: Done, code: int, words: str) -> None:
    """Assert that it failed with one line that starts with zoo:."""
    assert done.code == code, done
    assert done.out == ""
    assert re.fullmatch(r"zoo: .+\n", done.err), done.err
    assert re.search(words, done.err), done.err


def test_a_package_that_is_missing_names_an_extra_of_ours(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = {"not_there": ["bench", "train"]}
    monkeypatch.setattr("zoo.installed.extras_with", lambda dist, name: brought.get(name, []))
    done = run("run", "doubler", "fails", "not_there.part")
    one_line(done, 1, r"No module named 'not_there'\. Run: pip install \"edgezoo\[bench\]\"")
    one_line(run("run", "doubler", "fails", "nor_this"), 1, "unexpected ModuleNotFoundError")


# --- help -----------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_none(run: Command) -> None:
    for word in ("--help", "-h"):
        done = run(word)
        assert done.code == 0
        text = " ".join(done.out.split())
        for verb, (_, line) in cli.VERBS.items():
            assert f" {verb} {line}" in text
    assert run().out + run().err  # alone: the help, too
    assert run("--version").out == f"zoo {zoo.__version__}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(run: Command, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: zoo {verb} ")
    assert done.err == ""
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    assert command.name == verb
    assert command.help
    line = cli.VERBS[verb][1]
    assert line.endswith(".")
    assert len(line) < 80
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"zoo {verb} {parameter.opts[0]} is not explained"
            assert parameter.help.endswith(".")


def test_the_same_word_means_the_same_everywhere() -> None:
    """An option of several verbs has the same type in each."""
    seen: dict[str, tuple[str, bool]] = {}
    for verb in cli.VERBS:
        command = cli.cli.get_command(click.Context(cli.cli), verb)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                kind = (parameter.type.name.replace("choice", "text"), parameter.is_flag)
                for word in parameter.opts:
                    assert seen.setdefault(word, kind) == kind, f"zoo {verb} {word}"


# --- bad usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("upscal", 2, r"no such verb: 'upscal'. Did you mean 'upscale'\?"),
        ("qqq", 2, r"no such verb: 'qqq'. \(`zoo --help` explains\)"),
        ("--nope", 2, "No such option.*--nope"),
        ("list --nope", 2, r"No such option.*--nope.* \(`zoo list --help` explains\)"),
        ("list a b", 2, "unexpected extra argument"),
        ("list --interface SR", 2, "'SR' is not one of SRModel"),
        ("info", 2, "Missing argument 'MODEL'"),
        ("info doublr", 2, "no model is called 'doublr'; did you mean 'doubler'"),
        ("info ./nowhere", 1, "there is no folder nowhere"),
        ("pull doublr", 2, "no model is called 'doublr'"),
        ("upscale doubler", 2, "Missing argument 'INPUTS"),
        ("upscale doublr in.png", 2, "did you mean 'doubler'"),
        ("upscale vladva in.png", 1, "vladva is of kind VLAligner; it does not upscale"),
        ("upscale fam-diffusion in.png", 1, "fam-diffusion is planned"),
        ("upscale doubler none.png", 1, "none.png"),
        ("upscale doubler in.png --scale x", 2, "'x' is not a valid float"),
        ("upscale doubler in.png --tile x", 2, "--tile 'x': expected a number of pixels, auto"),
        ("upscale doubler in.png --device gpu", 2, "device='gpu' is not available"),
        ("upscale doubler in.png -O gain", 2, "-O 'gain': expected KEY=VALUE"),
        ("upscale doubler in.png -O =1", 2, "-O '=1': expected KEY=VALUE"),
        ("upscale doubler in.png -O gain=1 -O gain=1", 2, "-O gain is given twice"),
        ("upscale doubler in.png -O gian=1", 2, "no option 'gian'; did you mean 'gain'"),
        ("upscale doubler in.png -O zzz=1", 2, "It takes: gain, scale, prompt, seed, tile"),
        ("upscale doubler in.png -O gain=2", 2, "gain='2' is out of range"),
        ("upscale doubler in.png -o out.xyz", 1, "'.xyz' is not an image format that zoo writes"),
        ("upscale doubler in.png -o no/where.png", 1, "cannot write no/where.png"),
        ("upscale doubler in.png in.jpg -o one.png", 1, "one.png is one file, but there are 2"),
        ("upscale doubler in.png in.jpg", 1, "two inputs would both become in-x2.png"),
        ("train doubler", 2, "Missing option '-o'"),
        ("train doubler -o out", 1, "doubler has no train"),
        ("train doubler -o out --data nope", 1, "--data nope: there is no such file or folder"),
        ("train doubler -o out -O rate=1", 2, "no option 'rate' for train. It takes: none"),
        ("bench doubler", 1, "doubler has no bench"),
        ("bench doubler --quick --write out", 2, "--quick measures too little to be saved"),
        ("bench fam-diffusion", 1, "is planned"),
        ("bench QAGenerator", 1, "no common metrics"),
        ("bench Detector", 2, "Pass --data"),
        ("run doubler nope", 2, "has no command 'nope'. It has: count, fails"),
        ("run doubler fails", 1, r"unexpected LookupError: no luck \(--debug shows where"),
        ("export doubler -o x.onnx", 1, "doubler cannot be exported to 'onnx'"),
        ("export fam-diffusion -o x.onnx", 1, "is planned"),
        ("verify sleeper", 1, "sleeper has no trained weights"),
        ("pull sleeper", 1, "Train some with `zoo train sleeper"),
        ("uninstall numpy", 2, "has no third-party plugin"),
        ("demo --model vladva", 1, "is planned"),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0] not in "'n-" else "",
)  # fmt: skip
def test_errors_are_one_line_and_an_exit_code(
    run: Command, words: str, code: int, message: str
) -> None:
    one_line(run(*words.split()), code, message)
    assert sorted(p.name for p in Path().iterdir()) == ["in.jpg", "in.png", "site"]


def test_debug_shows_a_traceback_wherever_it_stands(run: Command) -> None:
    """Tracebacks appear only with --debug, which changes no exit code."""
    words = ["upscale", "doublr", "in.png", "-o", "x.png"]
    assert "Traceback" not in run(*words).err
    for at in range(len(words) + 1):
        done = run(*words[:at], "--debug", *words[at:])
        assert done.code == 2
        assert done.err.startswith("Traceback")
        assert "UnknownModelError: no model is called 'doublr'" in done.err
    assert run("--debug", "list", "--debug").code == 0
    assert "ZeroDivisionError" in run("upscale", "doubler", "in.png", "--seed", "79", "--debug").err
    assert run("run", "doubler", "count", "--", "--debug").out == "doubler --debug\n"


def test_what_was_not_foreseen_is_one_line_too(run: Command) -> None:
    one_line(run("upscale", "doubler", "in.png", "--seed", "79"), 1, "unexpected .*: two lines ")
    one_line(run("upscale", "doubler", "in.png", "--seed", "78"), 1, "unexpected EOFError: an odd")
    assert not Path("in-x2.png").exists()


# --- verbs that work ------------------------------------------------------------------------------


def test_upscale(run: Command) -> None:
    done = run("upscale", "doubler", "in.png")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"in-x2.png: 8 x 6, \d+\.\d\d s\n", done.out)
    assert look("in-x2.png")[0] == (8, 6)

    before = Path("in-x2.png").stat()
    one_line(run("upscale", "doubler", "in.png"), 1, "in-x2.png")
    assert Path("in-x2.png").stat() == before
    Path("in-x2.png").write_text("mine")
    one_line(run("upscale", "doubler", "in.png", "--seed", "1"), 1, "--force")
    assert Path("in-x2.png").read_text() == "mine"
    assert run("upscale", "doubler", "in.png", "--force").code == 0
    assert look("in-x2.png")[0] == (8, 6)

    Image.new("L", (2, 2)).save("grey.png")
    done = run("upscale", "doubler-x:doubler", "in.png")
    assert done.code == 2
    Path("many").mkdir()
    done = run("upscale", "doubler:doubler", "in.png", "grey.png", "-o", "many", "--json")
    records = json.loads(done.out)
    assert [(r["output"], r["size"], r["model"]) for r in records] == [
        (str(Path("many/in-x2.png")), [8, 6], "doubler"),
        (str(Path("many/grey-x2.png")), [4, 4], "doubler"),
    ]
    assert look("many/grey-x2.png") == ((4, 4), "L")


def test_an_unreadable_input_does_not_stop_the_others(run: Command) -> None:
    """A single one is refused before anything is made; among others it is reported at the end."""
    Path("bad.png").write_bytes(b"no picture")
    one_line(run("upscale", "doubler", "bad.png", "-o", "many/"), 1, "bad.png")
    assert not Path("many").exists()
    done = run("upscale", "doubler", "bad.png", "in.png", "-o", "many")
    assert (done.code, done.out.startswith(str(Path("many/in-x2.png")))) == (1, True)
    assert re.search(r"^zoo: 1 of 2 images could not be used: .*bad\.png", done.err, re.MULTILINE)
    done = run("upscale", "doubler", "bad.png", "in.png", "-o", "other", "--json")
    assert (done.code, len(json.loads(done.out))) == (1, 1)


def test_a_warning_is_a_line(run: Command) -> None:
    """A warning has no file and line of zoo's code."""
    Path("all").mkdir()
    Image.new("RGB", (2, 2)).save("all/a.png")
    Path("all/notes.txt").write_text("no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = run("upscale", "doubler", "all", "-o", "out")
    assert done.code == 0
    assert done.err.startswith("zoo: warning: all: left out 1 of 2 files")
    assert len(done.err.splitlines()) == 1


def test_folders_and_patterns_are_inputs(run: Command) -> None:
    """Subfolders are kept; hidden files and files that are not images are left out."""
    for name in ("all/a.png", "all/deep/a.png", "all/.hidden.png", "all/deep/b [1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(name)
    assert run("upscale", "doubler", "all", "-o", "out").code == 0
    made = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.png"))
    assert made == ["a-x2.png", "deep/a-x2.png", "deep/b [1]-x2.png"]
    one_line(run("upscale", "doubler", "all"), 2, "-o FOLDER")
    assert run("upscale", "doubler", "all/**/b*.png", "all/deep/b [1].png").code == 0  # once
    assert Path("all/deep/b [1]-x2.png").is_file()
    one_line(run("upscale", "doubler", "all/*.gif"), 1, "no file matches")
    Path("empty").mkdir()
    one_line(run("upscale", "doubler", "empty", "-o", "out"), 1, "no images in this folder")


def test_what_is_there_is_skipped(run: Command) -> None:
    Image.new("RGB", (2, 2)).save("b.png")
    Path("in-x2.png").write_text("mine")
    done = run("upscale", "doubler", "in.png", "b.png", "--skip-existing")
    assert (done.code, done.out.partition(":")[0]) == (0, "b-x2.png")
    assert Path("in-x2.png").read_text() == "mine"
    assert run("upscale", "doubler", "in.png", "b.png", "--skip-existing") == (0, "", "")
    one_line(run("upscale", "doubler", "in.png", "--skip-existing", "--force"), 2, "either")


def test_a_missing_input_is_refused_before_the_model_is_imported(run: Command, here: Site) -> None:
    """Importing torch takes seconds, so checks without it come first."""
    (here.path / "doubler" / "model.py").write_text("raise ValueError('imported')", "utf-8")
    one_line(run("upscale", "doubler", "gone.png"), 1, "gone.png: there is no such file")
    Path("out.png").write_text("mine")
    one_line(run("upscale", "doubler", "in.png", "-o", "out.png"), 1, "out.png already exists")


def test_settings_reach_the_load_or_the_verb(run: Command) -> None:
    """-O sets a declared option of load, else a keyword of the verb, its flag's name included."""
    assert run("upscale", "doubler", "in.png", "-O", "gain=0.5", "-O", "scale=2").code == 0
    done = run("upscale", "doubler", "in.png", "--force", "-O", "prompt=a=b")
    one_line(done, 1, "unexpected ValueError: a=b")
    one_line(run("upscale", "doubler", "in.png", "--force", "-O", "seed=79"), 1, "ZeroDivision")


def test_settings_are_read_as_typed() -> None:
    assert options.parse_settings(("a-b = x=y ", "c=")) == {"a_b": " x=y ", "c": ""}
    for text in ("a", "=b", " =b"):
        with pytest.raises(OptionError, match="expected KEY=VALUE"):
            options.parse_settings((text,))


WORDS = {"true": True, "Yes": True, "ON": True, "false": False, "no": False, "Off": False}


@pytest.mark.parametrize(
    ("annotation", "read", "refused"),
    [
        ("bool", WORDS, ["1", "maybe", "", "none", "[]"]),
        ("bool | None", {**WORDS, "None": None, "null": None}, ["1", "maybe"]),
        (int, {"2": 2, "-3": -3}, ["2.5", "two", "true", "none", "[1]"]),
        ("float", {"2": 2.0, "1e-3": 0.001}, ["nan", "inf", "x", "off"]),
        ("int | float | None", {"2": 2, "2.5": 2.5, "none": None}, ["x"]),
        (int | None, {"2": 2, "NULL": None}, ["x"]),
        ("str", {"no": "no", "2": "2", "": "", "none": "none"}, []),
        ("str | None", {"no": "no", "a=b": "a=b"}, []),
        (
            'int | Literal["auto"] | None',
            {"2": 2, "auto": "auto", "none": None, "[1]": [1], '{"a": 1}': {"a": 1}, **WORDS},
            [],
        ),
    ],
)
def test_keywords_are_read_by_their_type(
    annotation: Any, read: dict[str, Any], refused: list[str]
) -> None:
    keyword = inspect.Parameter("gain", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    found = {text: options.read_value(text, keyword) for text in read}
    assert found == read
    assert [type(value) for value in found.values()] == [type(value) for value in read.values()]
    for text in refused:
        with pytest.raises(OptionError, match=re.escape(f"gain={text!r}: expected")):
            options.read_value(text, keyword)


@pytest.mark.parametrize("verb", ["upscale", "align", "fit", "quantize", "detect", "generate"])
def test_progress_is_no_setting(verb: str) -> None:
    """Only --quiet sets it, not -O."""
    owner = next(cls for cls in INTERFACES.values() if hasattr(cls, verb))
    with pytest.raises(OptionError, match="no option 'progress'"):
        options.split_settings({"progress": "true"}, zoo.info("edge-sd-sr"), getattr(owner, verb))


def test_bench_does_not_take_a_saved_folder_for_its_method(run: Command) -> None:
    zoo.load("doubler").save_pretrained("mine")
    one_line(run("bench", "./mine"), 2, "own weights, and ./mine is a saved model.*zoo eval ./mine")


def test_what_ctrl_c_left_is_told(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt("Step 3 of 4 is kept in 'out': --resume goes on from it.")

    monkeypatch.setattr("zoo.actions.train", stop)
    one_line(run("train", "doubler", "-o", "out"), 130, "interrupted. Step 3 of 4 .* --resume")


def test_run_passes_its_arguments_and_its_exit_code(run: Command) -> None:
    assert run("run", "doubler", "count") == (0, "doubler\n", "")
    assert run("run", "doubler", "count", "a", "--flag", "-x") == (3, "doubler a --flag -x\n", "")


@pytest.mark.parametrize(
    "words",
    ["list", "list doub*", "list --bases", "list --interface SRModel", "info doubler", "plugins",
     "pull doubler", "list nothing*"],
)  # fmt: skip
def test_json_is_json(run: Command, words: str) -> None:
    done = run(*words.split(), "--json")
    assert done.code == 0
    json.loads(done.out)
    assert run(*words.split()).code == 0


def test_json_is_ascii(run: Command) -> None:
    """JSON is unchanged for any encoding of the terminal."""
    Image.new("RGB", (2, 2)).save("größe 漢.png")
    done = run("upscale", "doubler", "größe 漢.png", "--json")
    assert done.out.isascii()
    assert json.loads(done.out)[0]["output"] == "größe 漢-x2.png"


def test_list_and_info(run: Command) -> None:
    entries = {e["name"]: e for e in json.loads(run("list", "--json").out)}
    assert entries["doubler"]["interface"] == "SRModel"
    assert entries["doubler"]["class"] == "doubler.model:Model"
    lines = run("list").out.splitlines()
    assert len(lines) == len(entries)
    assert {line.split()[0] for line in lines} == set(entries)
    assert run("list", "doub*").out.split()[:3] == ["doubler", "SRModel", "ready"]
    assert run("list", "--interface", "Quantizer").out.split()[0] == "mobilequant"
    facts = run("info", "doubler").out
    assert "load option" in facts
    assert "gain: a number from 0 to 1, default 1.0." in facts
    assert "count: counts its arguments" in facts
    assert json.loads(run("info", "doubler:doubler", "--json").out)["distribution"] == "doubler"
    assert run("info", "vladva").code == 0  # planned: no plugin, and no fault


def test_a_folder_that_is_meant_is_named(run: Command) -> None:
    """Text without ./ is a model's name; the error says how to write the folder."""
    zoo.load("doubler").save_pretrained("mine")
    for words in ("upscale mine in.png", "info mine", "verify mine", "export mine -o x.onnx"):
        one_line(run(*words.split()), 2, r"there is a folder 'mine'\. Write './mine'")
    assert run("info", "./mine").code == 0


def test_pull_and_verify_agree_on_what_has_no_files(run: Command) -> None:
    assert run("pull", "doubler") == (0, "doubler has no files of its own; nothing to pull.\n", "")
    assert run("verify", "doubler").out == "doubler has no files of its own; nothing to verify.\n"
    assert json.loads(run("verify", "doubler", "--json").out)["deviation"] is None
    zoo.load("doubler").save_pretrained("mine")
    assert run("pull", "./mine").out == "mine is on this machine already.\n"


def test_list_finds_parts_of_names_and_shows_what_is_ready_first(run: Command) -> None:
    found = [line.split()[:3] for line in run("list").out.splitlines()]
    states = [state for _, _, state in found]
    assert states == sorted(states, key=["ready", "untrained", "planned"].index)
    assert {line.split()[0] for line in run("list", "oubl").out.splitlines()} == {"doubler"}
    assert run("list", "no-such") == (0, "", "no model matches 'no-such'; `zoo list` shows all.\n")
    done = run("list", "oubl", "--interface", "Detector")
    assert done.err == "no Detector model matches 'oubl'; `zoo list` shows all.\n"


def test_a_terminal_of_80_columns_is_wide_enough(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of a terminal each model is one line, for grep."""
    assert max(map(len, run("list").out.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = run("list").out
    assert max(map(len, shown.splitlines())) <= 80
    whole = " ".join(shown.split())
    assert "SRModel ready one-step diffusion super-" in whole


def test_info_lists_what_the_verbs_take(run: Command) -> None:
    """The verbs' keywords are read from the source; the plugin is not imported."""
    assert "upscale       tile: int | Literal['auto'] | None = 'auto'" not in run("info", "lfa").out
    facts = json.loads(run("info", "edge-sd-sr", "--json").out)["keywords"]
    assert "consistency: int = 0" in facts["upscale"]  # of a base class, in another package
    assert "int8: bool = False" in facts["export"]
    assert not any("progress" in keyword for keyword in facts["upscale"])
    assert re.search(r"^align +safe: bool = True$", run("info", "lfa").out, re.MULTILINE)


def test_info_of_a_saved_folder(run: Command) -> None:
    zoo.load("doubler").save_pretrained("mine")
    assert json.loads(run("info", "./mine", "--json").out)["model"] == "doubler"
    shown = run("info", "./mine")
    assert (shown.code, shown.err) == (0, "")
    assert "doubler" in shown.out
    assert "option        gain: 1.0" in shown.out
    assert run("upscale", "./mine", "in.png").code == 0


def test_doctor_json(run: Command) -> None:
    done = run("doctor", "--json")
    found = {f["topic"]: f for f in json.loads(done.out)}
    assert found["doubler"]["ok"] is True
    assert found["zoo"]["text"].startswith(zoo.__version__)
    broken = [f for f in found.values() if f["ok"] is False]
    assert done.code == (1 if broken else 0)
    text = run("doctor").out
    assert all(topic in text for topic in found)


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(run: Command, here: Site) -> None:
    """In the middle of the second image: exit code 130, one line, no partial file."""
    command = [sys.executable, "-c", "from zoo.cli import main; main()"]
    with subprocess.Popen(
        [*command, "upscale", "doubler", "in.png", "-o", "big.png", "--seed", "77", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "zoo: interrupted; no partial file is left."
    assert sorted(p.name for p in Path().iterdir()) == ["in.jpg", "in.png", "site"]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_closed_pipe_is_no_error() -> None:
    zoo_ = f"{sys.executable} -c 'from zoo.cli import main; main()'"
    script = f'{zoo_} list --json | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[\n0\n"
    assert done.stderr == ""


def test_a_terminal_without_the_characters(zoo_command: Callable[..., object]) -> None:
    done = zoo_command("info", "edge-sd-sr", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stderr) == (0, "")


# --- documented promises --------------------------------------------------------------------------

ERRORS = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)
]  # fmt: skip


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    """Each class, under its parent, with its built-in exception and its exit code."""
    drawn: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+Error)\b(?: +also (\w+))?", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            drawn[found[2]] = (above[depth - 1] if depth else None, found[3])
    assert set(drawn) == {cls.__name__ for cls in ERRORS}
    for cls in ERRORS:
        assert cls.__doc__
        parent, also = drawn[cls.__name__]
        assert cls.__module__ == "zoo.errors"
        if parent:
            assert issubclass(cls, getattr(errors, parent))
        if also:
            assert issubclass(cls, getattr(builtins, also))
        assert cls.exit_code == (2 if issubclass(cls, errors.UsageError) else 1)  # type: ignore[attr-defined]


def test_every_error_can_be_raised_caught_and_copied() -> None:
    import pickle

    for cls in ERRORS:
        error = cls("what is wrong")
        assert str(error) == "what is wrong"
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
        assert (type(again), str(again)) == (cls, "what is wrong")


def test_every_environment_variable_is_in_the_readme() -> None:
    used = set()
    for path in (ROOT / "zoo").rglob("*.py"):
        if "_template" not in path.parts:
            used |= set(re.findall(r"\bZOO_[A-Z_]+[A-Z]\b", path.read_text("utf-8")))
    table = (
        (ROOT / "README.md").read_text("utf-8").partition("| variable |")[2].partition("\n\n")[0]
    )
    assert used == set(re.findall(r"`(ZOO_\w+)`", table))


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    part = text.partition("<!-- VERBS -->")[2].partition("<!-- /VERBS -->")[0]
    assert re.findall(r"`zoo (\w+)`", part) == [*cli.VERBS]
