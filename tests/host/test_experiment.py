"""The tools for benchmarks: decisions of claims, costs, charts."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import zoo
from tests.conftest import MINIMAL_INIT, MINIMAL_REGISTRY, Site
from zoo import bench, experiment
from zoo.charts import figure
from zoo.entry import Base
from zoo.errors import InputError, NotReadyError, OptionError, OutputError
from zoo.experiment import Bars, Book, Curves, decide_again
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Claim, Metric, Results


def book_of(less: bool = False, **rows: Any) -> Book:
    """Rows of one column "x", by seed for lists, by item for mappings."""
    book = Book(lambda column: less)
    for row, values in rows.items():
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in pairs:
            book.add(row, "x", value, key)
    return book


def decided(book: Book, *comparisons: experiment.Comparison) -> Claim:
    return book.claim("id", "statement", *comparisons)


def test_two_sentences_say_how_claims_are_decided() -> None:
    assert experiment.DECIDED.startswith("A claim compares two methods")
    assert experiment.DECIDED.endswith("the rule beside each claim says what was done.")
    assert experiment.DECIDED.count(". ") == 1


# --- cells ----------------------------------------------------------------------------------------


def test_cells_keep_the_order_and_six_digits() -> None:
    book = Book(lambda column: column == "seconds")
    book.add("b", "seconds", np.float32(0.12345678), np.int64(3))
    book.add("b", "seconds", 2, -1)
    book.add("a", "accuracy", True, "one.png")
    book.add("a", "accuracy", False, "two.png")
    assert book.cells() == {
        "b": {"seconds": {"3": 0.123457, "-1": 2.0}},
        "a": {"accuracy": {"one.png": 1.0, "two.png": 0.0}},
    }
    assert [*book.cells()] == ["b", "a"]
    assert book.values("b", "seconds") == {3: 0.123457, -1: 2.0}
    assert book.columns("b") == ["seconds"]
    assert book.columns("c") == []
    assert book.table()["b"]["seconds"] == Metric.of([0.123457, 2.0])
    assert book.table()["a"]["accuracy"] == Metric(0.5)  # the spread of items is not that of runs
    results = book.results(seeds=[3, -1])
    assert results.higher_is_better == {"seconds": False, "accuracy": True}
    assert Book.of(book.cells()).cells() == book.cells()
    assert Book.of(book.cells()).values("b", "seconds") == book.values("b", "seconds")


@pytest.mark.parametrize(
    ("value", "key", "words"),
    [
        (math.nan, 1, "nan is not a finite number"),
        (math.inf, 1, "inf is not a finite number"),
        (1.0, 0, "there is already a number for 0"),
        (1.0, "7", "'7' looks like a seed; name it 'item 7'"),
        (1.0, "a.png", "'a.png' would mix seeds with items"),
    ],
)
def test_numbers_that_are_no_cells(value: float, key: int | str, words: str) -> None:
    book = book_of(a=[5.0])
    with pytest.raises(ValueError, match=words):
        book.add("a", "x", value, key)
    assert book.cells() == {"a": {"x": {"0": 5.0}}}


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no number for the row 'b' and the column 'x'"):
        book_of(a=[1.0]).mean("b", "x")


# --- Student's t ----------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    """By hand: differences 1, 2, 3 have mean 2 and standard error 0.577; 4.303 of these are 2.48,
    so that 0 is inside; -0.49 is not."""
    book = book_of(a=[11, 22, 33], b=[10, 20, 30])
    found = decided(book, book.better("a", "b", "x"))
    assert (found.value, found.against, found.holds) == (22.0, 20.0, None)
    assert found.spread == pytest.approx(1 / math.sqrt(3))
    for margin, holds in ((0.48, None), (0.49, True)):
        assert decided(book, book.not_worse("a", "b", "x", margin=margin)).holds is holds
    for by, holds in ((4.48, None), (4.49, False)):
        assert decided(book, book.better("a", "b", "x", by=by)).holds is holds


def test_it_agrees_with_scipys_paired_test() -> None:
    dice = np.random.default_rng(0)
    a, b = np.round(dice.normal([[1], [0]], 1, (2, 12)), 3)
    book = book_of(a=a.tolist(), b=b.tolist())
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    for bound, holds in ((low - 1e-6, True), (low + 1e-6, None), (high - 1e-6, None)):
        assert decided(book, book.better("a", "b", "x", by=bound)).holds is holds
    assert decided(book, book.better("a", "b", "x", by=high + 1e-6)).holds is False


@pytest.mark.parametrize(
    ("a", "b", "by", "holds"),
    [
        ([10, 11, 12], [1, 2, 2], 0, True),
        ([1, 2, 2], [10, 11, 12], 0, False),
        ([10, 11, 12], [1, 2, 2], 20, False),
        ([1, 9, 2], [2, 3, 4], 0, None),
        ([10], [1], 0, None),
        ([3, 4], [3, 4], 0, None),
        ([3, 4], [2, 3], 0, True),
    ],
)
def test_claims_are_decided_by_paired_differences(
    a: list[float], b: list[float], by: float, holds: bool | None
) -> None:
    book = book_of(a=a, b=b)
    assert decided(book, book.better("a", "b", "x", by=by)).holds is holds
    book = book_of(True, a=[-value for value in a], b=[-value for value in b])  # less is better
    assert decided(book, book.better("a", "b", "x", by=by)).holds is holds


def test_one_pair_decides_nothing_and_the_rule_says_so() -> None:
    book = book_of(a=[2.0], b=[1.0])
    found = decided(book, book.better("a", "b", "x"))
    assert (found.holds, found.spread) == (None, 0.0)
    assert found.rule.endswith("over 1 seed above 0, which one seed alone cannot tell")


def test_numbers_are_paired_by_key_whatever_their_order() -> None:
    book = book_of(a={"p": 2.0, "q": 12.0, "r": 22.0}, b={"r": 21.1, "p": 1.0, "q": 10.9})
    found = decided(book, book.better("a", "b", "x"))
    assert found.holds is True
    assert "over 3 items" in found.rule
    other = book_of(a={"p": 2.0, "q": 1.0}, b={"p": 2.0, "r": 1.0})
    with pytest.raises(ValueError, match="'a' and 'b' cannot be paired"):
        decided(other, other.better("a", "b", "x"))


def test_against_the_best_of_several_rivals() -> None:
    rows: dict[str, Any] = {"a": [5, 6, 7], "b": [1, 2, 3], "c": [4, 5, 6.1]}
    book = book_of(**rows)
    found = decided(book, book.better("a", ("b", "c"), "x"))
    assert found.against == pytest.approx(5.03333)
    assert "over 3 seeds to c, the best of 2 there, above 0" in found.rule
    book = book_of(True, **rows)
    found = decided(book, book.better("a", ("c", "b"), "x"))
    assert (found.against, found.holds) == (2.0, False)


def test_against_a_number() -> None:
    book = book_of(True, a=[50, 51, 52])
    found = decided(book, book.better("a", 60, "x"))
    assert (found.value, found.against, found.holds) == (51.0, 60.0, True)
    assert found.rule == "95 % interval (Student's t) of the mean over 3 seeds below 60"
    assert decided(book, book.better("a", 52.0, "x")).holds is None


def test_columns_are_averaged_by_seed_and_pooled_over_items() -> None:
    book = Book()
    for seed in range(3):
        for row, lead in (("a", 1.0), ("b", 0.0)):
            book.add(row, "1 shot", 10 * seed + lead, seed)
            book.add(row, "2 shots", 20 * seed + lead * (2 + seed / 10), seed)
    found = decided(book, book.better("a", "b", ["1 shot", "2 shots"]))
    assert found.value - found.against == pytest.approx((1 + 2.1) / 2)
    assert found.holds is True
    assert "over 3 seeds (2 columns averaged)" in found.rule
    sets = Book()
    for row, lead in (("a", 1.0), ("b", 0.0)):
        for item in ("one", "two"):
            sets.add(row, "small", 5 + lead, item)
        for item in ("three", "four", "five"):
            sets.add(row, "large", 10 + lead, item)
    found = decided(sets, sets.better("a", "b", ("small", "large")))
    assert found.value == pytest.approx((2 * 6 + 3 * 11) / 5)
    assert "over 5 items (2 columns pooled)" in found.rule
    sets.add("a", "large", 3.0, "two")
    with pytest.raises(ValueError, match="share only some seeds or items"):
        decided(sets, sets.better("a", "b", ("small", "large")))


def test_the_rivals_numbers_may_stand_in_another_column() -> None:
    book = Book()
    for seed in range(3):
        book.add("a", "one step", 5.0 + seed, seed)
        book.add("b", "many steps", 4.0 + seed, seed)
    found = decided(book, book.better("a", "b", "one step", than_columns="many steps"))
    assert (found.value, found.against, found.holds) == (6.0, 5.0, True)


def test_columns_of_both_directions_are_refused() -> None:
    book = Book(lambda column: column == "seconds")
    with pytest.raises(ValueError, match="more is better in some"):
        book.better("a", "b", ["seconds", "accuracy"])


# --- items: McNemar, bootstrap --------------------------------------------------------------------


def right_and_wrong(mine: int, theirs: int, both: int) -> Book:
    """Items that only a, only b, and both have right."""
    kinds = [(1, 0)] * mine + [(0, 1)] * theirs + [(1, 1)] * both
    return book_of(
        a={f"item {i}": a for i, (a, _) in enumerate(kinds)},
        b={f"item {i}": b for i, (_, b) in enumerate(kinds)},
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "p", "holds"),
    [
        (8, 1, 20 / 512, True),  # two-sided: 2 * (C(9,0) + C(9,1)) / 2^9
        (1, 8, 20 / 512, False),
        (7, 1, 18 / 256, None),  # 2 * (1 + 8) / 2^8 = 0.07
        (0, 0, 1.0, None),
    ],
)
def test_right_and_wrong_items_are_compared_by_mcnemar(
    mine: int, theirs: int, p: float, holds: bool | None
) -> None:
    book = right_and_wrong(mine, theirs, 20)
    found = decided(book, book.better("a", "b", "x"))
    assert found.holds is holds
    assert found.rule == (
        f"exact McNemar test over {20 + mine + theirs} items, p below 0.05: "
        f"{mine} are 1 here alone, {theirs} there alone, p = {p:.2g}"
    )


def test_mcnemar_is_for_items_without_a_margin() -> None:
    book = right_and_wrong(8, 1, 20)
    assert book.not_worse("a", "b", "x", margin=0.1).test == "t"
    assert book_of(a=[1, 0], b=[0, 0]).better("a", "b", "x").test == "t"  # seeds, not items
    other = book_of(a={"p": 0.5}, b={"p": 0.2})
    with pytest.raises(ValueError, match=r"right \(1\) or wrong \(0\)"):
        decided(other, other.better("a", "b", "x", test="mcnemar"))


def test_a_bootstrap_over_items() -> None:
    dice = np.random.default_rng(0)
    a, b = dice.exponential(1.3, 300), dice.exponential(1.0, 300)
    items = [f"line {i}" for i in range(300)]
    book = book_of(a=dict(zip(items, a, strict=True)), b=dict(zip(items, b, strict=True)))
    low = stats.bootstrap(
        (np.round(a - b, 6),), np.mean, n_resamples=9999, rng=1
    ).confidence_interval.low
    for bound, holds in ((low - 0.01, True), (low + 0.01, None)):
        found = decided(book, book.better("a", "b", "x", by=bound, test="bootstrap"))
        assert found.holds is holds
    assert "bootstrap of 9,999 samples" in found.rule
    same = book_of(a={"p": 2.0, "q": 3.0}, b={"p": 1.0, "q": 2.0})
    assert decided(same, same.better("a", "b", "x", test="bootstrap")).holds is True


# --- ratios, and several comparisons --------------------------------------------------------------


def test_a_ratio_is_decided_by_logarithms() -> None:
    """Ratios 2, 4, 8: mean of the logarithms 4, standard error log(2)/sqrt(3); 4.303 of these are
    a factor of 5.597."""
    book = book_of(a=[2, 8, 40], b=[1, 2, 5])
    found = decided(book, book.times("a", "b", "x", at_least=0.7))
    assert found.value == pytest.approx(4)
    assert found.against == 0.7
    assert found.spread == pytest.approx(4 * math.log(2) / math.sqrt(3))
    assert found.holds is True
    assert "of the ratio over 3 runs at least 0.7" in found.rule
    bounds = (("at_least", 0.72, None), ("at_most", 22.3, None), ("at_most", 22.5, True))
    for bound, value, holds in (*bounds, ("at_least", 22.5, False), ("at_most", 0.7, False)):
        asked = book.times("a", "b", "x", **{bound: value})  # type: ignore[arg-type]
        assert decided(book, asked).holds is holds
    rivals = book_of(a=[1, 1], b=[2, 2], c=[4, 4])
    assert decided(rivals, rivals.times("a", ("b", "c"), "x", at_most=1)).value == 0.5
    assert decided(rivals, rivals.times("a", ("b", "c"), "x", at_least=1)).value == 0.25


@pytest.mark.parametrize("bounds", [{}, {"at_most": 1.0, "at_least": 1.0}, {"at_most": 0.0}])
def test_a_ratio_needs_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="one of at_most and at_least"):
        book_of(a=[1], b=[1]).times("a", "b", "x", **bounds)  # type: ignore[arg-type]


def test_a_ratio_needs_numbers_above_0() -> None:
    book = book_of(a=[0.0, 1.0], b=[1.0, 1.0])
    with pytest.raises(ValueError, match="numbers above 0"):
        decided(book, book.times("a", "b", "x", at_most=2))


def test_what_is_counted_has_no_noise() -> None:
    book = book_of(True, a=[1000], b=[900])
    for bound, holds in ((1.2, True), (1.1, False)):
        found = decided(book, book.times("a", "b", "x", at_most=bound, test="counted"))
        assert found.holds is holds
        assert "counted" in found.rule


def test_a_claim_of_several_parts_fails_with_one_and_shows_the_first() -> None:
    book = Book(lambda column: column == "seconds")
    for seed in range(3):
        book.add("slow", "seconds", 60 + seed, seed)
        book.add("quick", "seconds", 10, seed)
        book.add("slow", "accuracy", 80 + seed, seed)
        book.add("quick", "accuracy", 79.8 + 1.1 * seed, seed)
    faster = book.times("slow", "quick", "seconds", at_least=5)
    as_good = book.not_worse("quick", "slow", "accuracy", margin=0.5)
    better = book.better("quick", "slow", "accuracy")
    worse = book.better("slow", "quick", "accuracy", by=1)
    assert decided(book, faster, as_good).holds is True
    assert decided(book, faster, better).holds is None
    assert decided(book, better, worse).holds is False
    found = decided(book, faster, as_good)
    assert found.value == pytest.approx(6.1, abs=0.01)
    assert found.rule.count("; ") == 1
    noted = book.claim("id", "s", faster, note="both in full")
    assert noted.rule.endswith("at least 5; both in full")


def test_of_many_comparisons_alike_the_closest_is_shown() -> None:
    """The worst comparison decides, not the mean."""
    book = Book()
    for column, lead in (("a", 5.0), ("b", -0.4), ("c", 0.1)):
        for seed in range(3):
            book.add("ours", column, 50 + lead + seed, seed)
            book.add("theirs", column, 50 + seed * 1.01, seed)

    def harmless() -> Claim:
        columns = book.columns("ours")
        return decided(book, *(book.not_worse("ours", "theirs", c, margin=1) for c in columns))

    found = harmless()
    assert found.holds is True
    assert found.value - found.against == pytest.approx(-0.41)
    assert found.rule.startswith("in each of 3 comparisons, 95 % interval (Student's t)")
    assert found.rule.endswith("above -1; shown is the closest (ours, b)")
    for seed in range(3):
        book.add("ours", "d", 47 + seed, seed)
        book.add("theirs", "d", 50 + seed, seed)
    assert harmless().holds is False


# --- deciding again -------------------------------------------------------------------------------


def measured() -> Results:
    """Claims of every kind, by numbers of many digits."""
    dice = np.random.default_rng(0)
    book = Book(lambda column: column == "seconds")
    for row, mean in (("a", 1.0), ("b", 0.6), ("c", 0.3)):
        for seed in range(4):
            book.add(row, "score", mean + dice.normal() / 10, seed)
            book.add(row, "other score", mean + dice.normal() / 10, seed)
            book.add(row, "seconds", math.exp(mean + dice.normal() / 10), seed)
        for item in range(40):
            book.add(row, "right", dice.random() < mean, f"image {item}")
            book.add(row, "error", dice.exponential(mean), f"image {item}")
    for a, b in (("a", "b"), ("b", "a"), ("a", "c")):
        book.claim("t", "s", book.better(a, b, ["score", "other score"], by=0.1))
        book.claim("rivals", "s", book.better(a, [b, "c"], "score"), note="a note")
        book.claim("mcnemar", "s", book.better(a, b, "right"))
        book.claim("bootstrap", "s", book.better(a, b, "error", test="bootstrap"))
        book.claim("ratio", "s", book.times(a, b, "seconds", at_most=1.5))
        book.claim("number", "s", book.better(a, 2, "seconds"), book.better(a, b, "score"))
        book.claim("counted", "s", book.times(a, b, "seconds", at_most=1.4, test="counted"))
    return book.results(seeds=range(4))


def test_a_record_decides_its_claims_again(tmp_path: Path) -> None:
    found = bench.read(bench.write(bench.record("m", measured(), "c", 1.0), tmp_path))
    assert {claim["holds"] for claim in found["claims"]} == {True, False, None}
    assert [asdict(claim) for claim in decide_again(found)] == found["claims"]
    found["cells"]["a"]["score"]["0"] = -50.0  # and it really looks at the cells
    changed = [asdict(claim) for claim in decide_again(found)]
    moved = {c["id"] for c, old in zip(changed, found["claims"], strict=True) if c != old}
    assert {"t", "rivals"} <= moved <= {"t", "rivals", "number"}


def test_a_claim_of_another_kind_comes_back_as_it_is() -> None:
    claim = Claim("id", "s", "typed by hand", 1.0, 2.0, 0.0, False)
    plain = asdict(claim)
    assert decide_again({"claims": [plain]}) == [claim]
    del plain["compares"]  # as a record has it that was written before
    assert decide_again({"claims": [plain]}) == [claim]


# --- cost -----------------------------------------------------------------------------------------


def test_runs_take_turns_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order, threads = 0.0, [], torch.get_num_threads()
    monkeypatch.setattr(experiment, "now", lambda device: clock)

    def work(label: str, seconds: float) -> None:
        nonlocal clock
        clock += seconds
        order.append((label, torch.get_num_threads()))

    torch.set_num_threads(2)
    try:
        runs = {"a": lambda: work("a", 1.0), "b": lambda: work("b", 3.0)}
        assert experiment.take_turns(runs, rounds=2) == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
        assert order == [("a", 1), ("b", 1)] * 3  # the first round warms up
        once = experiment.take_turns(runs, rounds=5, patience=0)
        assert once == {"a": [1.0], "b": [3.0]}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_waiting_costs_nothing_on_a_cpu() -> None:
    def wait() -> int:
        time.sleep(0.2)
        return 7

    # torch's threads of the test before may still spin for a moment: the least of three counts
    found = [experiment.timed(wait) for _ in range(3)]
    assert {result for result, _ in found} == {7}
    assert min(seconds for _, seconds in found) < 0.1


# --- models ---------------------------------------------------------------------------------------

TRAINABLE = """
@hookimpl
def zoo_train(request):
    from zoo.weights import save_model
    from zoo.hookspecs import BuildRequest
    from .model import Model
    model = Model(BuildRequest(request.entry, None, options={"gain": request.options["rate"]}))
    model.config["seen"] = [request.seed, request.steps, request.options["rate"]]
    request.out.mkdir(exist_ok=True)
    return model.save_pretrained(request.out / "model")
"""
OPTIONS = """    options:
      load: {gain: {type: float, default: 1.0}}
      train: {rate: {type: float, default: 0.5, max: 1}, deep: {type: bool, default: false}}
"""


@pytest.fixture
def request_for(here: Site, tmp_path: Path) -> BenchRequest:
    """The request for a plugin with a trainable model and an untrained one."""
    head, _, block = MINIMAL_REGISTRY.partition("models:\n")
    raw = block.format(name="raw", package="learns").replace("ready", "untrained")
    text = f"{head}models:\n{block.format(name='learner', package='learns')}{OPTIONS}{raw}"
    here.plugin("learns", init=MINIMAL_INIT + TRAINABLE, registry=text)
    return BenchRequest(zoo.info("learner"), tmp_path / "out", seed=5)


def test_the_model_is_loaded_by_the_host(request_for: BenchRequest) -> None:
    model = experiment.load(request_for, gain=2.0)
    assert (model.entry.name, dict(model.options)) == ("learner", {"gain": 2.0})
    assert str(model.device) == "cpu"
    with pytest.raises(NotReadyError, match=r"raw has no trained weights. Train some with"):
        experiment.load(request_for, "raw")
    with pytest.raises(OptionError, match="no option 'gian' for load; did you mean 'gain'"):
        experiment.load(request_for, gian=1)


def test_the_bases_of_the_request_are_used_as_they_are(
    here: Site, request_for: BenchRequest, tmp_path: Path
) -> None:
    head, _, block = MINIMAL_REGISTRY.partition("models:\n")
    block = block.format(name="upon", package="upon")
    on = "    base: {kind: transformers, default: null, needed: build}\n"
    raw = block.replace("upon:", "rawer:").replace("ready", "untrained")
    here.plugin("upon", registry=f"{head}models:\n{block}{on}{raw}{on}")
    base = Base("org/model", tmp_path, "c" * 40)  # already resolved: no request to the Hub
    request = BenchRequest(zoo.info("upon"), tmp_path, bases={"base": base})
    assert experiment.load(request).bases["base"] is base
    assert experiment.training(request, tmp_path / "run").bases == {"base": base}
    with pytest.raises(NotReadyError, match=r"for the base 'org/model'.*--base org/model --data"):
        experiment.load(replace(request, entry=zoo.info("rawer")))


def test_a_recipe_is_asked_with_every_option(request_for: BenchRequest, tmp_path: Path) -> None:
    asked = experiment.training(request_for, tmp_path / "run", steps=3, rate="0.25")
    assert dict(asked.options) == {"rate": 0.25, "deep": False}
    assert (asked.seed, asked.steps, asked.data, asked.device) == (5, 3, None, "cpu")
    other = replace(request_for.entry, config={"width": 8})
    asked = experiment.training(request_for, tmp_path, entry=other, seed=0, data=tmp_path)
    assert (asked.entry.config, asked.seed, asked.data) == ({"width": 8}, 0, tmp_path)
    with pytest.raises(OptionError, match="out of range"):
        experiment.training(request_for, tmp_path, rate=2)


def test_a_recipe_is_run(request_for: BenchRequest, tmp_path: Path) -> None:
    folder = experiment.train(request_for, tmp_path / "run", seed=2, steps=4, rate=0.75)
    model = experiment.load(request_for, folder)
    assert model.config["seen"] == [2, 4, 0.75]
    with pytest.raises(OutputError, match="is not empty"):
        experiment.train(request_for, tmp_path / "run")


# --- data -----------------------------------------------------------------------------------------


def test_cifar(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def jpeg(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(file, "JPEG")
        return file.getvalue()

    rows = {"jpeg": [jpeg(20 * i) for i in range(10)], "label": [*range(10)]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    x, y = experiment.read_cifar(tmp_path / "train.parquet", 6)
    assert x.shape == (6, 3, 32, 32)
    torch.testing.assert_close(x.mean((1, 2, 3)) * 255 / 20, y.float(), atol=0.1, rtol=0)
    _, again = experiment.read_cifar(tmp_path / "train.parquet", 6)
    assert torch.equal(y, again)
    assert not torch.equal(y, experiment.read_cifar(tmp_path / "train.parquet", 6, seed=1)[1])
    with pytest.raises(InputError, match=r"expected the CIFAR-10 file test\.parquet"):
        experiment.read_cifar(tmp_path / "test.parquet", 6)


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_of_curves(tmp_path: Path) -> None:
    lines: dict[str, experiment.Line] = {
        "ours": [(1, 0.1, 0.05), (2, 0.2, 0.05), (4, 0.4, 0.1)],
        "theirs": [(1, 0.2), (2, 0.2), (4, 0.2)],
    }
    made = figure(Curves(lines, "shots", "accuracy", "Few shots", "x"))
    (axes,) = made.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "shots", "accuracy", "Few shots",
    )  # fmt: skip
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "linear"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "theirs"]
    assert [container.has_yerr for container in axes.containers] == [True, False]  # type: ignore[attr-defined]
    path = tmp_path / "new" / "curve.png"
    experiment.curves(path, {"": [(1, 2), (2, 3)]}, xlabel="step", ylabel="loss", log="y")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]


def test_a_panel_for_each_title(tmp_path: Path) -> None:
    line = [(1.0, 2.0), (2.0, 1.0)]
    drawn = {}
    for name, lines in (("one", {"": line}), ("two", {"first": {"": line}, "second": {"": line}})):
        path = tmp_path / f"{name}.png"
        experiment.curves(path, lines, xlabel="step", ylabel="loss")
        with Image.open(path) as image:
            drawn[name] = image.size
    assert drawn["two"] == (2 * drawn["one"][0], drawn["one"][1])


def test_a_picture_of_bars() -> None:
    rows: dict[str, dict[str, float | Metric]] = {
        "ours": {"noise": Metric(40.0, 2.0, 3), "text": 3.0},
        "theirs": {"noise": 38.0},
    }
    made = figure(Bars(rows, "accuracy in per cent"), Curves({}, "x", "y"))
    axes, _ = made.axes
    assert axes.get_xlabel() == "accuracy in per cent"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ours", "theirs"]
    assert sorted(bar.get_width() for bar in axes.patches) == [3.0, 38.0, 40.0]  # type: ignore[attr-defined]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["noise", "text"]


def test_drawing_touches_nothing_global(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    experiment.draw(tmp_path / "a.png", Bars({"a": {"": 1.0}}, "x"))
    assert dict(matplotlib.rcParams) == before


def test_features_are_kept_from_one_benchmark_to_the_next(tmp_path: Path) -> None:
    """Made once; fewer rows are the first of them; more are made anew and kept."""
    asked: list[int] = []
    file = tmp_path / "new" / "features.safetensors"

    def rows(count: int, place: Path | None = file) -> torch.Tensor:
        def make() -> torch.Tensor:
            asked.append(count)
            return torch.arange(3.0 * count).reshape(count, 3)

        return experiment.kept(place, count, make)

    for count in (4, 4, 2, 6, 5):
        assert torch.equal(rows(count), torch.arange(3.0 * count).reshape(count, 3))
    assert asked == [4, 6]
    assert torch.equal(rows(2, None), torch.arange(6.0).reshape(2, 3))
    assert asked == [4, 6, 2]
