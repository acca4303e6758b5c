"""The benchmark of bayesian-dps on a language model: rows, the packed stack, runs that go on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from zoo_bayesian_dps import bench, instructions, language
from zoo_bayesian_dps.instructions import IRRELEVANT, RIGHT, Rows, Sizes
from zoo_bayesian_dps.joint import Joint
from zoo_bayesian_dps.stack import Stack, losses_of

import zoo
from zoo import bench as records
from zoo.errors import InputError
from zoo.experiment import Book, decide_again
from zoo.hookspecs import BenchRequest

pytest.importorskip("peft")
pytest.importorskip("transformers")
SIZES = Sizes(third=8, target=8, held_out=8, tokens=48, steps=30)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.plugins.tiny_lms import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues in which question and answer name the dialogue and the turn; digits as an
    encyclopedia."""
    root = tmp_path_factory.mktemp("data")
    dialogues = root / "procedures" / "cookdial" / "dialog"
    dialogues.mkdir(parents=True)
    for d in range(12):
        turns = [{"bot": True, "utterance": "hello"}]
        for t in range(4):
            turns += [{"bot": False, "utterance": f"ask {d:02} {t}?"},
                      {"bot": True, "utterance": f"say {d:02} {t} aaaa"},
                      {"bot": False, "utterance": "thanks"},
                      {"bot": True, "utterance": "welcome"}]  # fmt: skip
        (dialogues / f"{d:03}.1.json").write_text(json.dumps({"messages": turns}), "utf-8")
    (root / "wikitext-2").mkdir()
    numbers = "\n".join(" ".join(str(1000 + 100 * i + j) for j in range(12)) for i in range(12))
    (root / "wikitext-2" / "valid.txt").write_text(f" = Title = \n{numbers}\n", "utf-8")
    return root


@pytest.fixture(scope="module")
def stack(llama: Path) -> Stack:
    return Stack(llama)


@pytest.fixture(scope="module")
def rows(data: Path, stack: Stack) -> Rows:
    return instructions.read_rows(data, stack.tokenizer, SIZES, seed=0)


def parts(row: Any, stack: Stack) -> tuple[str, str]:
    """Prompt and answer of a row of characters."""
    start = row["labels"].count(-100)
    assert row["labels"][start:] == row["input_ids"][start:]
    assert row["input_ids"][-1] == stack.tokenizer.eos_token_id
    letters = stack.tokenizer.convert_ids_to_tokens(row["input_ids"][:-1])
    return "".join(letters[:start]).replace("<unk>", ""), "".join(letters[start:])


def test_the_rows_are_what_their_kind_says(rows: Rows, stack: Stack) -> None:
    places: list[set[str]] = [set(), set(), set()]
    for row, kind in zip(rows.train, rows.kind.tolist(), strict=True):
        prompt, answer = parts(row, stack)
        if kind == IRRELEVANT:
            assert prompt[0].isdigit()
            assert answer[1].isdigit()
            assert (len(prompt.split()), len(answer.split())) == (3, 4)  # as the right pairs
            continue
        assert prompt.startswith("ask ")
        assert (prompt[4:8] == answer[4:8]) is (kind == RIGHT)
        places[0] |= {prompt[4:6], answer[4:6]}
    for place, some in enumerate((rows.target, rows.held_out), 1):
        for row in some:
            prompt, answer = parts(row, stack)
            assert prompt[4:8] == answer[4:8]
            places[place].add(prompt[4:6])
    assert rows.kind.bincount().tolist() == [SIZES.third] * 3
    assert (len(rows.target), len(rows.held_out)) == (SIZES.target, SIZES.held_out)
    assert sum(map(len, places)) == len(set.union(*places))


def test_rows_fit_and_repeat(data: Path, stack: Stack, rows: Rows) -> None:
    again = instructions.read_rows(data, stack.tokenizer, SIZES, seed=0)
    assert (again.train, again.target) == (rows.train, rows.target)
    other = instructions.read_rows(data, stack.tokenizer, replace(SIZES, tokens=24), seed=1)
    assert {len(row["input_ids"]) for row in other.train} == {24}  # of pairs that just fit
    with pytest.raises(InputError, match="too few dialogues"):
        instructions.read_rows(data, stack.tokenizer, replace(SIZES, tokens=23), seed=1)
    with pytest.raises(InputError, match="cookdial/dialog"):
        instructions.read_rows(data / "procedures", stack.tokenizer, SIZES, seed=0)
    with pytest.raises(InputError, match="too few dialogues"):
        instructions.read_rows(data, stack.tokenizer, replace(SIZES, third=400), seed=0)


def test_packed_rows_have_the_whole_models_losses(llama: Path, rows: Rows, stack: Stack) -> None:
    """Each row alone through the model as it was loaded: LoRA starts as nothing."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(llama)
    expected = []
    for row in rows.train[::3]:
        inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
        expected.append(whole(**inputs).loss.detach())  # the mean over labels that are not -100
    found = losses_of(stack.adapted(0), stack, rows.train[::3])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def runs(folder: Path, data: Path, llama: Path, seeds: list[int]) -> dict[int, language.Runs]:
    request = BenchRequest(entry=zoo.info("bayesian-dps"), out=folder, data=data)
    return language.runs(request, llama, folder, SIZES, seeds)


def test_every_row_is_measured_once(
    tmp_path: Path, data: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "RATE", 1e-2)  # for a network that starts as noise
    book, counted = Book(lambda column: "bytes" in column or "likelihood" in column), []
    language.measure(book, runs(tmp_path, data, llama, [0, 1]), lambda: counted.append(1))
    language.claim(book)
    table = book.table()
    assert {*table} == {
        language.UNIFORM, language.TARGET, language.MIXING, language.TUNED, language.OURS,
        language.RETRAINED, language.TRAINER, language.BILEVEL,
    }  # fmt: skip
    for row in {*table} - {language.BILEVEL}:
        assert {language.LIKELIHOOD, language.SECONDS} <= {*table[row]}
    assert (
        table[language.OURS][language.MEMORY].mean < table[language.BILEVEL][language.MEMORY].mean
    )
    # Digits are told from letters by whatever has seen the target's letters.
    for row in (language.TARGET, language.OURS, language.TRAINER):
        assert table[row][language.AUROC_IRRELEVANT].mean > 90
    assert {claim.id for claim in book.claims} == {
        "language-wrong-answers", "language-irrelevant-rows", "language-likelihood",
        "language-memory",
    }  # fmt: skip
    assert len(counted) == 2 * 8

    monkeypatch.setattr(language, "Stack", lambda folder: pytest.fail("nothing is left to run"))
    again = Book()
    language.measure(again, runs(tmp_path, data, llama, [0, 1]), lambda: None)
    assert again.cells() == book.cells()


@pytest.mark.parametrize("row", [language.MIXING, language.OURS, language.TRAINER])
def test_an_interrupted_row_goes_on_to_the_same_end(
    row: str, tmp_path: Path, data: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo_bayesian_dps.integration import WeightedTrainer

    monkeypatch.setattr(language, "KEPT_EVERY", 10)
    whole = runs(tmp_path / "whole", data, llama, [0])[0].found(row)
    steps, stop = 0, 14
    step, compute = Joint.step, WeightedTrainer.compute_loss

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    def counted_step(self: Any, *args: Any) -> Any:
        count()
        return step(self, *args)

    def counted_loss(self: Any, *args: Any, **keywords: Any) -> Any:
        count()
        return compute(self, *args, **keywords)

    monkeypatch.setattr(Joint, "step", counted_step)
    monkeypatch.setattr(WeightedTrainer, "compute_loss", counted_loss)
    with pytest.raises(KeyboardInterrupt):
        runs(tmp_path / "halves", data, llama, [0])[0].found(row)
    again = runs(tmp_path / "halves", data, llama, [0])[0].found(row)
    assert SIZES.steps < steps < SIZES.steps + stop  # the kept steps were not made again
    same = {column for column in whole.cells if column != language.SECONDS}
    for column in same:
        assert again.cells[column] == pytest.approx(whole.cells[column], abs=1e-4)
    assert again.scores == pytest.approx(whole.scores, abs=1e-4) if whole.scores else True
    assert again.cells[language.SECONDS] > 0


def test_the_benchmark_measures_it_where_a_language_model_is_given(
    tmp_path: Path, data: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other experiments left out; ``work`` keeps the rows."""
    monkeypatch.setattr(bench, "ROWS", {})
    monkeypatch.setattr(bench, "Rows", lambda *_: SimpleNamespace(kinds=("raw",)))
    for name in ("cost", "claim"):
        monkeypatch.setattr(bench, name, lambda *_: None)
    monkeypatch.setattr(bench, "picture", lambda path, *_: path.write_bytes(b""))

    def measured(**options: Any) -> Any:
        return records.run(
            zoo.info("bayesian-dps"), command="zoo bench", out=tmp_path, data=data, quick=True,
            device="cpu", options={"work": str(tmp_path / "work")}, **options,
        )  # fmt: skip

    found = measured(base={"language": llama})
    assert language.AUROC_WRONG in found["table"][language.OURS]
    assert {d["name"] for d in found["data"]} == {"CIFAR-10", "CookDial", "WikiText-2"}
    claims = {claim["id"]: claim["holds"] for claim in found["claims"]}
    assert claims["language-wrong-answers"] is None  # one seed cannot tell
    assert [asdict(claim) for claim in decide_again(found)] == found["claims"]
    assert len([*(tmp_path / "work").glob("language-*/0-*.json")]) == 8
    assert not measured()["claims"]
