"""results.json: written records can be read again, and nothing else can."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from tests.conftest import MINIMAL_INIT, MINIMAL_REGISTRY, ROOT, Site
from zoo import bench, experiment, protocols
from zoo.errors import InputError, NotReadyError, OutputError, PluginError, UsageError, ZooError
from zoo.interfaces import Claim, Data, Metric, Results

RESULTS = Results(
    table={
        "bicubic": {"PSNR": Metric(24.123456), "LPIPS": Metric(0.4)},
        "ours": {"PSNR": Metric.of([25.0, 26.0]), "LPIPS": Metric(np.float32(0.25), 0.0, 1)},  # type: ignore[arg-type]
    },
    claims=[
        Claim("better", "more | better", "mean\nabove", 25.5, 24.1, 0.7, np.bool_(True)),  # type: ignore[arg-type]
        Claim("faster", "faster than light", "below c", 1.0, 2.0, 0.1, False),
        Claim("equal", "as good", "within the noise", 1.0, 1.0, 0.5, None),
    ],
    data=[Data("set", "CC0", "2 images")],
    seeds=[0, 1],
    higher_is_better={"PSNR": True, "LPIPS": False},
    pictures=["side.png"],
)


@pytest.fixture
def found() -> dict[str, Any]:
    return bench.record("m", RESULTS, "zoo bench m", 1.26, {"model.safetensors": "ab" * 32})


def test_a_record_says_what_makes_it_repeatable(found: dict[str, Any]) -> None:
    assert list(found) == bench.KEYS
    assert found["command"] == "zoo bench m"
    assert found["seconds"] == 1.3
    assert found["seeds"] == [0, 1]
    assert found["weights"] == {"model.safetensors": "ab" * 32}
    assert re.search(r", \d+ cores?$", found["hardware"])
    assert "\n" not in found["hardware"]
    assert len(found["code"].removesuffix("+")) in (40, len(zoo.__version__))


def test_numbers_of_any_library_become_plain_ones(found: dict[str, Any]) -> None:
    assert found["claims"][0]["holds"] is True
    assert found["table"]["ours"]["LPIPS"] == {"mean": 0.25, "std": 0.0, "n": 1}
    assert type(found["table"]["ours"]["LPIPS"]["mean"]) is float
    assert [claim["holds"] for claim in found["claims"]] == [True, False, None]


def test_what_is_written_is_read_again(found: dict[str, Any], tmp_path: Path) -> None:
    path = bench.write(found, tmp_path / "new" / "m")
    assert path == tmp_path / "new" / "m" / "results.json"
    assert bench.read(path) == found == json.loads(path.read_text("utf-8"))
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    assert bench.write({**found, "seconds": 2.0}, path.parent) == path  # a later run replaces it
    assert bench.read(path)["seconds"] == 2.0


def test_metric_of_runs() -> None:
    assert Metric.of([1, 2, 3]) == Metric(2.0, 1.0, 3)
    assert Metric.of([5]) == Metric(5.0, 0.0, 1)


BREAK = [
    # path, new value, words of the message
    (("model",), "", "model cannot be ''"),
    (("model",), 3, "model cannot be 3"),
    (("date",), "today", "date cannot be 'today'"),
    (("seconds",), "1", "seconds cannot be '1'"),
    (("seconds",), math.nan, "seconds cannot be nan"),
    (("seeds",), [0.5], r"seeds cannot be \[0.5\]"),
    (("seeds",), [True], r"seeds cannot be \[True\]"),
    (("seeds",), 1, "seeds cannot be 1"),
    (("weights",), [], "weights cannot be"),
    (("data",), ["set"], "data cannot be"),
    (("data", 0), {"name": "set"}, "data 0: expected the keys license, name, size"),
    (("data", 0, "license"), None, "data 0: license cannot be None"),
    (("table",), [], "table cannot be"),
    (("table", "ours"), [], "table cannot be"),
    (("table", "ours", "PSNR"), 25.0, "table: ours: PSNR: expected the keys mean, n, std"),
    (("table", "ours", "PSNR", "mean"), "25", "table: ours: PSNR: mean cannot be '25'"),
    (("table", "ours", "PSNR", "mean"), None, "mean cannot be None"),
    (("table", "ours", "PSNR", "mean"), math.inf, "mean cannot be inf"),
    (("table", "ours", "PSNR", "n"), 2.0, "n cannot be 2.0"),
    (("table", "ours", "PSNR", "p"), 0.05, "expected the keys mean, n, std"),
    (("higher_is_better", "PSNR"), "yes", "higher_is_better cannot be"),
    (("claims",), {}, "claims cannot be"),
    (("claims", 0), "better", "claims cannot be"),
    (("claims", 0, "holds"), "true", "claim 0: holds cannot be 'true'"),
    (("claims", 0, "holds"), 1, "claim 0: holds cannot be 1"),
    (("claims", 1, "value"), math.nan, "claim 1: value cannot be nan"),
    (("claims", 1, "note"), "x", "claim 1: expected the keys"),
    (("pictures",), [None], "pictures cannot be"),
    (("extra",), 1, "unknown key 'extra'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "put", "words"), BREAK, ids=lambda v: repr(v)[:40] if isinstance(v, tuple) else ""
)
def test_what_breaks_the_schema_is_refused(
    found: dict[str, Any], tmp_path: Path, where: tuple[Any, ...], put: Any, words: str
) -> None:
    place = found
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = put
    with pytest.raises(InputError, match=words) as caught:
        bench.write(found, tmp_path)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=words):
        bench.read(tmp_path / "results.json")


@pytest.mark.parametrize("key", bench.KEYS)
def test_nothing_may_be_missing(found: dict[str, Any], key: str) -> None:
    del found[key]
    with pytest.raises(InputError, match=f"m: {key} is missing"):
        bench.check(found, "m")


def test_nothing_may_be_missing_inside(found: dict[str, Any]) -> None:
    """All mistakes are reported at once."""
    parts = [
        (found["claims"][0], Claim),
        (found["table"]["ours"]["PSNR"], Metric),
        (found["data"][0], Data),
    ]
    for part, schema in parts:
        for name in {f.name for f in fields(schema)} - bench.LATER:
            kept = copy.deepcopy(part)
            del part[name]
            with pytest.raises(InputError, match="expected the keys"):
                bench.check(found, "m")
            part.update(kept)
    found["claims"][0]["holds"] = "yes"
    found["claims"][1]["value"] = "much"
    with pytest.raises(
        InputError, match=r"^m: claim 0: holds cannot be 'yes'; claim 1: value cannot"
    ):
        bench.check(found, "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\xff", "[" * 100_000])
def test_files_that_are_no_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"results.json: (not JSON|expected a JSON object)"):
        bench.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        bench.read(tmp_path / "none.json")


def test_a_record_that_cannot_be_written(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        bench.write(found, tmp_path)


def test_every_record_in_the_repository_is_good() -> None:
    """No claim in it was typed by hand: its cells decide it again."""
    for path in (ROOT / "hub_cards").rglob("results.json"):
        found = bench.read(path)
        assert found["model"] == path.parent.name
        for claim, again in zip(found["claims"], experiment.decide_again(found), strict=True):
            assert claim == {name: value for name, value in asdict(again).items() if name in claim}


def test_cells_are_kept_each_in_a_line(found: dict[str, Any], tmp_path: Path) -> None:
    cells = {"ours": {"PSNR": {"a.png": 25.5, "ö.png": 26.0}, "SSIM": {"0": 1.0}}, "bicubic": {}}
    record = bench.record("m", replace(RESULTS, cells=cells), "c", 1.0)
    path = bench.write(record, tmp_path)
    assert bench.read(path) == record
    assert record["cells"] == cells
    assert '   "PSNR": {"a.png": 25.5, "ö.png": 26.0},' in path.read_text("utf-8").splitlines()
    assert "cells" not in found  # a record written before them has none, and is good
    for wrong in ({"ours": {"PSNR": [1.0]}}, {"ours": {"PSNR": {"0": math.nan}}}, [1]):
        with pytest.raises(InputError, match="cells cannot be"):
            bench.check({**found, "cells": wrong}, "m")


# --- how results look -----------------------------------------------------------------------------


def test_the_table(found: dict[str, Any]) -> None:
    assert bench.table_text(found).splitlines() == [
        "|         | PSNR ↑      | LPIPS ↓ |",
        "|---------|-------------|---------|",
        "| bicubic | 24.12       | 0.4     |",
        "| ours    | 25.5 ± 0.71 | 0.25    |",
    ]
    del found["table"]["bicubic"]["PSNR"]
    found["higher_is_better"] = {}
    assert bench.table_text(found).splitlines()[0].split("|")[2:4] == [" LPIPS ", " PSNR        "]
    assert bench.table_text(found).splitlines()[2].split("|")[3].strip() == ""


def test_a_terminal_gets_lines_that_fit(found: dict[str, Any]) -> None:
    """All numbers are there, in more tables; a claim is a paragraph."""
    names = [f"metric number {i}" for i in range(9)]
    for cells in found["table"].values():
        cells |= {name: {"mean": 1.25, "std": 0.5, "n": 3} for name in names}
    wide, narrow = bench.table_text(found), bench.table_text(found, 80)
    assert max(map(len, wide.splitlines())) > 150
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(narrow.count(f" {name} ") == 1 for name in names)
    assert narrow.count("1.25 ± 0.5") == wide.count("1.25 ± 0.5") == 18
    assert narrow.count("| ours ") > 1
    said = bench.claims_lines(found, 80)
    assert max(map(len, said.splitlines())) <= 80
    for claim in found["claims"]:
        assert claim["statement"] in " ".join(said.split())
        assert " ".join(claim["rule"].split()) in " ".join(said.split())


def test_what_other_methods_were_measured_by_is_another_table(found: dict[str, Any]) -> None:
    one = {"mean": 1.0, "std": 0.0, "n": 1}
    found["table"] |= {name: {"seconds": one} for name in ("slow", "quick")}
    found["table"]["ours"]["seconds"] = one
    first, second = bench.table_text(found).split("\n\n")
    assert [line.split("|")[1].strip() for line in first.splitlines()[2:]] == ["bicubic", "ours"]
    assert "seconds" not in first
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in second.splitlines()]
    assert rows[0] == ["", "seconds"]
    assert rows[2:] == [["ours", "1"], ["slow", "1"], ["quick", "1"]]


def test_the_claims(found: dict[str, Any]) -> None:
    lines = bench.claims_text(found).splitlines()
    cells = [[c.strip() for c in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    assert cells[0] == ["claim", "", "measured (± standard error)", "rule"]
    assert cells[2] == ["more ¦ better", "holds", "25.5 against 24.1 (± 0.7)", "mean above"]
    assert [row[1] for row in cells[2:]] == ["holds", "does not hold", "undecided"]
    assert len({len(line) for line in lines}) == 1


def test_numbers_for_people() -> None:
    assert bench.number({"mean": 0.000123456, "std": 0.0, "n": 1}) == "0.0001235"
    assert bench.number({"mean": 12.3456, "std": 0.0123, "n": 3}) == "12.35 ± 0.012"
    assert bench.measured({"value": 21.8, "against": 19.2, "spread": 0.0}) == "21.8 against 19.2"
    assert bench.number({"mean": 12.3456, "std": 0.0, "n": 3}) == "12.35 ± 0"


# --- running --------------------------------------------------------------------------------------

BENCH = """
@hookimpl
def zoo_bench(request):
    from zoo.interfaces import Claim, Data, Metric, Results
    value = 3.0 + request.seed + request.options["more"]
    what = request.entry.name
    (request.out / "a.png").write_text("picture")
    if what == "wrong":
        return {"table": {}}
    if what == "loose":
        return Results(table={"row": {"m": 3.0}})
    if what == "endless":
        return Results(table={"row": {"m": Metric(float("inf"))}})
    claim = Claim("c", "above two", "value > 2", value, 2.0, 0.1, value > 2)
    return Results(
        {"row": {"m": Metric(value)}}, [claim], [Data("d", "CC0", "1")], [request.seed], {},
        ["a.png"],
    )
"""


@pytest.fixture
def measured(here: Site) -> Site:
    """A plugin whose models answer zoo_bench, some of them badly."""
    head, _, block = MINIMAL_REGISTRY.partition("models:\n")
    more = "    options: {bench: {more: {type: float, default: 0.0, max: 9}}}\n"
    names = ("good", "wrong", "loose", "endless")
    blocks = "".join(block.format(name=name, package="measured") + more for name in names)
    here.plugin("measured", init=MINIMAL_INIT + BENCH, registry=f"{head}models:\n{blocks}")
    return here


def test_a_plugin_is_measured(measured: Site, tmp_path: Path) -> None:
    entry = zoo.info("good")
    found = bench.run(entry, command="zoo bench good", out=tmp_path, device="cpu")
    assert found["table"] == {"row": {"m": {"mean": 3.0, "std": 0.0, "n": 1}}}
    assert found["claims"][0]["holds"] is True
    assert (found["model"], found["pictures"], found["weights"]) == ("good", ["a.png"], {})
    low = bench.run(entry, command="c", out=tmp_path, device="cpu", seed=-3, options={"more": "1"})
    assert low["claims"][0]["holds"] is False
    assert low["seeds"] == [-3]
    with pytest.raises(ZooError, match="out of range"):
        bench.run(entry, command="c", out=tmp_path, device="cpu", options={"more": 10})
    with pytest.raises(InputError, match="there is no such file or folder"):
        bench.run(entry, command="c", out=tmp_path, data=tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong", "measured: zoo_bench returned a dict, which is not Results"),
        ("loose", "measured: zoo_bench broke the schema of results"),
        ("endless", "table: row: m: mean cannot be inf"),
    ],
)
def test_a_plugin_that_breaks_the_schema(
    measured: Site, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        bench.run(zoo.info(name), command="c", out=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("--data", "--data"),
        ("given/cifar10", "PATH/cifar10"),
        ("/far/away/cifar10", "PATH/cifar10"),
        ("image=/far/away/lite0", "image=PATH/lite0"),
        ("--base=image=/far/away/lite0", "--base=image=PATH/lite0"),
        ("text=org/encoder", "text=org/encoder"),
        ("--write", "--write"),
        ("hub_cards", "hub_cards"),
    ],
)
def test_the_command_that_is_kept_names_no_place_of_this_machine(word: str, kept: str) -> None:
    from zoo.cli.bench import _for_others

    assert _for_others(word, Path("given/cifar10")) == kept


def test_the_command_keeps_results(
    measured: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With --write: pictures and results.json by model; the location of the data is left out."""
    from zoo.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    words = ["bench", "good", "--data", str(tmp_path / "data"), "--write", "kept", "-O", "more=2"]
    monkeypatch.setattr("sys.argv", ["zoo", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    assert "| row | 5 |" in out
    assert "above two" in out
    assert out.endswith(f"{Path('kept/good/results.json')}\n")
    kept = bench.read(tmp_path / "kept" / "good" / "results.json")
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["command"] == "zoo bench good --data PATH/data --write kept -O more=2"
    assert (tmp_path / "kept" / "good" / "a.png").exists()

    monkeypatch.setattr("sys.argv", ["zoo", "bench", "good", "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out)["model"] == "good"


@pytest.mark.slow
def test_the_common_metrics(here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model of a kind on the same data; models that cannot be measured are reported."""
    pytest.importorskip("piq")
    monkeypatch.setenv("ZOO_PLUGINS_DISABLE", "zoo_edge_sd_sr,zoo_yonos_sr")
    here.plugin("twice")
    model = (here.path / "twice" / "model.py").read_text()
    four = model.replace("(2,)", "(4,)").replace("scale=2)", "scale=4)").replace("eave(2", "eave(4")
    here.plugin("four_times", model=four)
    here.plugin("broken", init="raise ValueError('no')")
    here.plugin(
        "odd", model=four.replace("def double(rgb):", "def double(rgb):\n            1 / 0")
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (66, 67, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a.png")
    said: list[str] = []
    found = bench.run_interface("SRModel", command="c", data=photos, device="cpu", say=said.append)
    bench.check(found, "SRModel")
    assert list(found["table"]) == ["bicubic", "four-times"]
    assert set(found["table"]["four-times"]) == {"PSNR-Y", "SSIM", "HaarPSI", "CPU-s/megapixel"}
    assert found["data"][0]["size"] == "1 images"
    scores = found["cells"]["four-times"]
    assert all([*values] == ["a.png"] for values in scores.values())  # item by item
    assert scores["PSNR-Y"]["a.png"] == found["table"]["four-times"]["PSNR-Y"]["mean"]
    assert any(line.startswith("twice: left out: it enlarges by (2,)") for line in said)
    assert "odd: left out: unexpected ZeroDivisionError: division by zero" in said
    assert any(line.startswith("broken: left out: broken: import failed") for line in said)
    with pytest.raises(NotReadyError, match=r"for the kind Quantizer yet.* for: SRModel"):
        bench.run_interface("Quantizer", command="c")
    (photos / "a.png").unlink()
    with pytest.raises(UsageError, match=r"contains no images"):
        bench.run_interface("SRModel", command="c", data=photos)


def test_a_table_of_nothing_is_refused(here: Site, tmp_path: Path) -> None:
    """lfa accepts only features if it has no base."""
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    with pytest.raises(NotReadyError, match="none of the installed models of VLAligner"):
        bench.run_interface("VLAligner", command="c", data=tmp_path / "photos", device="cpu")


def test_models_are_timed_on_one_thread(tmp_path: Path) -> None:
    """Threads that wait for each other use CPU time without computing."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("piq")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "a.png")
    protocol = protocols.of("SRModel")
    reference, threads = protocol.references()["bicubic"], []

    class Spy:
        scales = (4,)

        def upscale(self, image: Image.Image, *, scale: int) -> Image.Image:
            threads.append(torch.get_num_threads())
            made: Image.Image = reference.upscale(image, scale=scale)
            return made

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [*protocol.measure(Spy(), protocol.items(tmp_path))]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {*threads} == {1}


def test_a_flat_picture_has_a_finite_score(tmp_path: Path) -> None:
    """Its enlargement is exact; names are relative to the folder, so all differ."""
    pytest.importorskip("piq")
    protocol = protocols.of("SRModel")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / name / "a.png")
    items = protocol.items(tmp_path)
    measured = protocol.measure(protocol.references()["bicubic"], items)
    found = {one.item: one.scores for one in measured}
    assert [*found] == ["one/a.png", "two/a.png"]
    assert all(scores["PSNR-Y"] == 100 for scores in found.values())
    assert all(set(scores) == set(protocol.HIGHER) for scores in found.values())
    assert protocol.described(tmp_path, items).size == "2 images"
