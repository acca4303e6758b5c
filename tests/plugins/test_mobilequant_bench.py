"""What ``zoo bench mobilequant`` rests on: texts, kept rows, worlds, the rules of claims."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_mobilequant import bench, bench_integers, kept, measured, passages, worlds
from zoo_mobilequant.evaluate import Choice, accuracy
from zoo_mobilequant.families import describe
from zoo_mobilequant.learn import last_hidden
from zoo_mobilequant.method import compare, fit
from zoo_mobilequant.recipe import make

from tests.plugins.tiny_lms import tiny_lm, tokens
from zoo.bases import resolve
from zoo.errors import InputError
from zoo.experiment import Book, Rows
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Claim
from zoo.registry import catalogue
from zoo.testing import QuantizerSuite

# --- texts ----------------------------------------------------------------------------------------


def test_wikitext_is_read_as_one_would_write_it() -> None:
    words = (
        " = = Early life = = \n"
        ' The " red " boat ( 1 @,@ 000 m long ) , built for sea @-@ trade . \n'
    )
    assert passages.plain(words).strip().splitlines() == [
        "== Early life ==",
        'The "red" boat (1,000 m long), built for sea-trade.',
    ]


class Once:
    """What a suite's fixture asks of the suite."""

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        return make()


TOKENIZER = QuantizerSuite.tokenizer.__wrapped__(Once())  # type: ignore[attr-defined]
WORDS = passages.Words(TOKENIZER, 8)


def test_windows_begin_as_texts_and_chats_do() -> None:
    assert WORDS.text_begin == WORDS.chat_begin == 1
    rows = WORDS.windows("abcdefghijklmnopqrstuvwxyz", 3)
    assert rows.shape == (3, 8)
    assert rows[:, 0].tolist() == [1, 1, 1]
    assert torch.equal(rows[:, 1:].flatten(), WORDS.ids("abcdefghijklmnopqrstu"))
    with pytest.raises(InputError, match="4 windows of 8 tokens: the text has only 26"):
        WORDS.windows("abcdefghijklmnopqrstuvwxyz", 4)


def test_drawn_windows_are_pieces_of_the_text() -> None:
    ids = torch.arange(100, 200)
    rows = WORDS.drawn(ids, 50, seed=1)
    assert torch.equal(rows[:, 1:].diff(), torch.ones(50, 6, dtype=torch.long))
    assert int(rows[:, 1:].min()) >= 100
    assert torch.equal(rows, WORDS.drawn(ids, 50, seed=1))
    assert not torch.equal(rows, WORDS.drawn(ids, 50, seed=2))


def test_chats_are_the_models_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "ANSWER", 8)
    network = tiny_lm("llama tied")
    rows = WORDS.chats(network, ["abc", "defg"])
    asked = WORDS.ids("abc")
    assert torch.equal(rows[0, :3], asked)
    with torch.no_grad():
        said = network(rows[:1]).logits[0].argmax(-1)
    assert torch.equal(rows[0, 3:], said[2:-1])


# --- a language model and data, small -------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WikiText and recipes of invented words."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "wikitext-2").mkdir()
    dice = torch.Generator().manual_seed(0)
    for part in ("valid", "test"):
        letters = torch.randint(0, 26, (4000,), generator=dice).tolist()
        text = "".join(chr(97 + n) + " " * (n % 5 == 0) for n in letters)
        (folder / "wikitext-2" / f"{part}.txt").write_text(text, "utf-8")
    recipes = folder / "procedures" / "cookdial" / "recipe"
    recipes.mkdir(parents=True)
    for i in range(6):
        steps = [f"{k}) step {k} of meal {i}" for k in range(4)]
        content = [{"text": "an egg", "type": "ingredient"}]
        content += [{"text": step, "type": "instruction"} for step in steps]
        found = {"title": f"meal {i}", "content": content}
        (recipes / f"{i}.json").write_text(json.dumps(found), "utf-8")
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    tiny_lm("llama tied").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_questions_ask_for_the_next_step(data: Path) -> None:
    items = passages.next_steps(data, 100)
    assert len(items) == 12
    assert len({item.answer for item in items}) > 1
    for item in items:
        title, _, before = item.question.partition(". ")
        at = int(before.split()[-4]) + 1
        assert item.choices[item.answer] == f"step {at} of {title}"
        wrong = [choice for i, choice in enumerate(item.choices) if i != item.answer]
        assert all(not choice.endswith(title) for choice in wrong)
    assert items == passages.next_steps(data, 100)
    assert items[:3] == passages.next_steps(data, 3)
    with pytest.raises(InputError, match="expected the recipes of CookDial"):
        passages.next_steps(data / "wikitext-2", 3)


@torch.no_grad()
def test_a_model_that_remembers_gives_the_same_logits() -> None:
    network = tiny_lm()
    remembering = measured.Remembering(network)
    for row in ([5, 6, 7, 8], [5, 6, 9], [5, 6, 9, 7, 4, 3], [4, 6, 9], [4, 6, 9]):
        ids = torch.tensor([row])
        torch.testing.assert_close(remembering(ids).logits, network(ids).logits)


@torch.no_grad()
def test_it_answers_as_the_model_does(data: Path) -> None:
    network = tiny_lm("llama tied")
    items = [Choice("a b", [f"{x} c", "d e", "e"], 0) for x in "abcdefghij"]
    plain = accuracy(network, TOKENIZER, items)
    assert accuracy(measured.Remembering(network), TOKENIZER, items) == plain
    assert 0 < sum(plain) < 10


# --- what is kept ---------------------------------------------------------------------------------


def test_a_finished_row_is_not_made_again(tmp_path: Path) -> None:
    rows, made = Rows(tmp_path / "rows"), []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"kl": 0.1}

    assert rows.row("a", {"seed": 0}, None) == {}
    assert rows.row("a", {"seed": 0}, make) == rows.row("a", {"seed": 0}, make) == {"kl": 0.1}
    assert Rows(tmp_path / "rows").row("a", {"seed": 0}, None) == {"kl": 0.1}
    assert len(made) == 1
    with pytest.raises(InputError, match="holds the row 'a' with another seed"):
        rows.row("a", {"seed": 1}, make)


def shared_fit(folder: Path, name: str, scheme: str = "w8a8", **changes: Any) -> Any:
    recipe = make(name, scheme, changes)
    work, network = kept.Shared(folder, recipe), tiny_lm().requires_grad_(False)
    found = fit(network, describe(network), tokens(8), recipe, work=work)
    return work, network, found


def test_rows_share_what_they_have_in_common(tmp_path: Path) -> None:
    """And give what they give alone; the time of shared stages counts for each."""
    for name, scheme, changes in (
        ("smoothquant-all", "w8a8", {}),
        ("smoothquant-all", "w4a8", {}),
        ("mobilequant", "w8a8", {"steps": 3}),
        ("mobilequant", "w4a8", {"steps": 3}),
        ("mobilequant", "w8a8", {"steps": 3, "fallback": 2, "budget": 0.0}),
        ("layerwise", "w8a8", {"steps": 2}),
        ("rtn", "w8a8", {"prefix_tokens": 1}),
    ):
        work, network, found = shared_fit(tmp_path / "shared", name, scheme, **changes)
        alone = shared_fit(tmp_path / f"{name} {scheme} {len(changes)}", name, scheme, **changes)
        assert torch.equal(network(tokens()).logits, alone[1](tokens()).logits), (name, scheme)
        assert found.report["kl"] == alone[2].report["kl"]
        first = (name, scheme) == ("smoothquant-all", "w8a8") or "prefix_tokens" in changes
        assert (work.seconds > 0) == (not first)
    files = [file.name.split("-")[0] for file in (tmp_path / "shared").glob("*.safetensors")]
    assert {name: files.count(name) for name in files} == {
        "peaks": 2, "ranges": 4, "strengths": 2, "learning": 2,
    }  # fmt: skip


@pytest.mark.skipif(not kept.RESET.exists(), reason="Linux only")
def test_the_peak_is_of_what_follows() -> None:
    """In a process of its own: an older one may have freed memory at hand."""
    code = """
import torch
from zoo_mobilequant import kept
torch.ones(40_000_000).sum()
kept.forget_peak()
before = kept.peak()
torch.ones(20_000_000).sum()
print(kept.peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.06 < float(done.stdout) < 0.12


# --- rows and claims ------------------------------------------------------------------------------


def few_steps(row: measured.Row) -> measured.Row:
    some = {"steps": 1} if "steps" in row.changes else {}
    return replace(row, changes={**row.changes, **some})


def test_the_whole_benchmark(
    data: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small: every row is measured once, kept, and reported."""
    for name, value in {
        "CALIBRATION": 8,
        "TESTS": 2,
        "CODE": 1,
        "ITEMS": 3,
        "LONG": (1, 40),
    }.items():
        monkeypatch.setattr(measured, name, value)
    monkeypatch.setattr(passages, "ANSWER", 8)
    rows = [(few_steps(row), i) for row, i in bench.planned(False)]
    monkeypatch.setattr(bench, "planned", lambda quick: rows)
    request = BenchRequest(
        entry=catalogue().entry("mobilequant"), out=tmp_path, data=data,
        bases={"language": resolve(language)}, options={"work": str(tmp_path / "work")},
    )  # fmt: skip
    found = bench.bench(request)
    assert found.cells is not None
    assert {row.name for row, _ in rows} | {"float"} == {*found.cells}
    assert set(found.cells[bench.OURS][bench.KL]) == {"0", "1", "2"}
    assert found.table["float"][bench.KL].mean == 0
    assert len(found.cells["float"][bench.RIGHT]) == 3
    assert found.table[bench.SQ_GRID][bench.SECONDS].mean > 0
    assert (tmp_path / "divergence.png").is_file()
    assert len(found.claims) == 14
    outcomes = {claim.id: claim.holds for claim in found.claims}
    assert outcomes["float-perplexity"] is False
    assert None not in outcomes.values()

    def again(*args: Any, **keywords: Any) -> None:
        raise AssertionError("a finished row is computed again")

    monkeypatch.setattr(measured, "fit", again)
    assert bench.bench(request).cells == found.cells
    some = next(
        file for file in (tmp_path / "work" / "rows").iterdir() if bench.OURS_4 in file.read_text()
    )
    some.unlink()
    with pytest.raises(AssertionError, match="computed again"):
        bench.bench(request)
    partial = bench.bench(replace(request, options={**request.options, "only_kept": True}))
    assert {c.id for c in found.claims} - {c.id for c in partial.claims} == {
        "w4a8-rtn",
        "w4a8-smoothquant",
    }


@pytest.mark.filterwarnings("ignore:This CPU saturates", "ignore:No product of 8-bit integers")
def test_the_part_on_integers(
    data: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to compute is near the others, and the claims are about rows that there are."""
    monkeypatch.setattr(bench_integers, "STEPS", 1)
    monkeypatch.setattr(bench_integers, "NOISE", 0.1)  # a network this small forgives less
    small = {"CALIBRATION": 8, "TESTS": 2, "CODE": 1, "ITEMS": 3, "LONG": (1, 40)}
    for name, value in small.items():
        monkeypatch.setattr(measured, name, value)
    monkeypatch.setattr(passages, "ANSWER", 8)
    request = BenchRequest(
        entry=catalogue().entry("mobilequant"), out=tmp_path, data=data,
        bases={"language": resolve(language)},
        options={"part": "integers", "work": str(tmp_path / "work")},
    )  # fmt: skip
    found = bench.bench(request)
    assert found.part == "integers"
    for row in (bench_integers.ON_INTEGERS, bench_integers.EXACT):
        ratio = found.table[row][bench_integers.TO_SIMULATION].mean
        assert ratio == pytest.approx(1, abs=0.05)
    assert found.table[bench_integers.NOISY][bench_integers.TO_SIMULATION].mean != 1
    sizes = [found.table[f"{s}, saved"][bench_integers.SIZE].mean for s in ("w8a8", "w4a8")]
    assert sizes[1] < sizes[0]
    assert {claim.id for claim in found.claims} == {"size", "exact-products", "this-cpu"}
    assert None not in [claim.holds for claim in found.claims]


def test_integers_are_those_of_a_language_model(tmp_path: Path) -> None:
    request = BenchRequest(entry=catalogue().entry("mobilequant"), out=tmp_path)
    with pytest.raises(InputError, match=r"part=integers .* --base language=FOLDER"):
        bench.bench(replace(request, options={"part": "integers"}))


def test_without_data_it_says_what_to_pass(language: Path, tmp_path: Path) -> None:
    request = BenchRequest(
        entry=catalogue().entry("mobilequant"),
        out=tmp_path,
        bases={"language": resolve(language)},
    )
    with pytest.raises(InputError, match="pass --data PATH"):
        bench.bench(request)


def a_book(**changed: float) -> dict[str, Claim]:
    """The claims of numbers that are all within the limits but for what is changed."""
    numbers = {
        (bench.RTN, bench.RATIO): 1.5, (bench.RTN, bench.KL): 0.6,
        (bench.SQ, bench.KL): 0.5, (bench.SQ_ALL, bench.KL): 0.25,
        (bench.SQ_GRID, bench.KL): 0.24, (bench.OURS, bench.KL): 0.08,
        (bench.OURS, bench.RATIO): 1.05, (bench.OURS, bench.AGREEMENT): 86.0,
        (bench.SQ_GRID, "KL, code"): 0.3, (bench.OURS, "KL, code"): 0.2,
        (bench.SQ_GRID, "KL, chat"): 0.4, (bench.OURS, "KL, chat"): 0.3,
    }  # fmt: skip
    book = Book(bench.less_is_better)
    book.add("float", bench.PERPLEXITY, 29.19)
    book.add("float", bench.PERPLEXITY_LONG, 19.43)
    for (row, column), value in numbers.items():
        value = changed.get(f"{row}; {column}", value)
        for seed, factor in enumerate((0.9, 1.0, 2.0)):  # the median is the number itself
            book.add(row, column, value * factor, seed)
    bench.claim(book)
    return {claim.id: claim for claim in book.claims}


def test_claims_are_about_medians() -> None:
    claims = a_book()
    assert {*claims} == {
        "float-perplexity", "rtn-loses", "all-pairs", "searched-ranges", "w8a8", "w8a8-perplexity",
        "w8a8-agreement", "learning", "learning-code", "learning-chat",
    }  # fmt: skip
    assert all(claim.holds for claim in claims.values())
    assert claims["w8a8"].value == 0.08


@pytest.mark.parametrize(
    ("row", "column", "value", "fails"),
    [
        (bench.OURS, bench.KL, 0.115, {"w8a8"}),
        (bench.OURS, bench.KL, 0.13, {"w8a8", "learning"}),
        (bench.OURS, bench.RATIO, 1.08, {"w8a8-perplexity"}),
        (bench.OURS, bench.AGREEMENT, 83.0, {"w8a8-agreement"}),
        (bench.OURS, "KL, chat", 0.33, {"learning-chat"}),
        (bench.RTN, bench.KL, 0.3, {"rtn-loses"}),
        (bench.RTN, bench.RATIO, 1.9, {"rtn-loses"}),
        (bench.SQ_ALL, bench.KL, 0.31, {"all-pairs"}),
    ],
)
def test_a_number_beyond_its_limit_fails(
    row: str, column: str, value: float, fails: set[str]
) -> None:
    claims = a_book(**{f"{row}; {column}": value})
    assert {name for name, claim in claims.items() if not claim.holds} == fails


# --- what is done to sites, and planted outliers --------------------------------------------------


def test_wider_mlp_activations_and_clipped_first_positions() -> None:

    def divergence(after: Callable[[Any], None] | None, **changes: Any) -> float:
        copy = tiny_lm()
        with torch.no_grad():  # a first position unlike all others
            copy.model.embed_tokens.weight[1] *= 30
        ids = tokens(8)
        ids[:, 0] = 1
        states = [last_hidden(copy, row)[1] for row in ids]
        found = fit(
            copy, describe(copy), ids, make("smoothquant-all", "w8a8", {"table": False, **changes})
        )
        if after:
            after(found.sites)
        return compare(copy, ids, states)["kl"]

    with torch.no_grad():
        plain = divergence(None)
        assert divergence(measured.mlp_16) < plain
        exempt = divergence(None, prefix_tokens=1)
        assert divergence(measured.clip_first, prefix_tokens=1) > 2 * exempt


@torch.no_grad()
def test_planted_outliers_change_nothing_but_the_activations() -> None:
    network = tiny_lm("llama GQA")
    before = network(tokens()).logits
    peaks = []
    for layer in describe(network):
        layer.linears["down"].register_forward_pre_hook(
            lambda module, args: peaks.append(float(args[0].abs().max()))
        )
    network(tokens())
    worlds.channels(network, tokens())
    after = network(tokens()).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert max(peaks[3:]) > 8 * max(peaks[:3])


@torch.no_grad()
def test_a_planted_neuron_makes_the_first_position_massive() -> None:
    network, rows = tiny_lm("llama GQA"), tokens(8)
    rows[:, 0] = 1
    rows[:, 1:][rows[:, 1:] == 1] = 3
    worlds.first_position(network, rows)
    largest = torch.stack([last_hidden(network, row)[0].abs().amax(1) for row in rows])
    assert float(largest[:, 0].min()) > 300
    assert float(largest[:, 1:].median()) < 30


@pytest.mark.slow
def test_without_a_base_small_worlds_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In which all pairs undo planted channels, and learning copes with a massive position."""
    monkeypatch.setattr(worlds, "LESSONS", 8)
    monkeypatch.setattr(worlds, "TESTS", 4)
    found = bench.bench(BenchRequest(entry=catalogue().entry("mobilequant"), out=tmp_path))
    assert {*found.table} == {bench.RTN, bench.SQ, bench.SQ_ALL, bench.OURS}
    column = f"{bench.CHANNELS}: {bench.KL}"
    kl = {row: cells[column].mean for row, cells in found.table.items()}
    assert kl[bench.RTN] > 10 * kl[bench.SQ_ALL]
    column = f"{bench.FIRST}: {bench.KL}"
    kl = {row: cells[column].mean for row, cells in found.table.items()}
    assert kl[bench.OURS] < 0.4 * kl[bench.SQ_ALL] < 0.4 * kl[bench.RTN]
    assert {claim.id for claim in found.claims} == {"planted-channels", "massive-first-position"}
