"""What ``zoo bench graph-qa`` rests on: coverage in closed form, arms, scores, the how-tos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo_graph_qa
from zoo_graph_qa import rivals
from zoo_graph_qa.arms import ARMS, ROLE_KINDS, SALIENT, Source, by_procedure
from zoo_graph_qa.candidates import Candidates, question
from zoo_graph_qa.evaluate import Item, howtos, scored, unseen
from zoo_graph_qa.facts import UNSTATED
from zoo_graph_qa.pointer import Lessons, examples, right
from zoo_graph_qa.questions import Controls, ask
from zoo_graph_qa.semantic import (
    Bank,
    TfIdf,
    answered,
    distinct_2,
    rank_correlation,
    retrieved,
    said,
    semantic,
)
from zoo_graph_qa.templates import HELD_OUT
from zoo_graph_qa.text import Part
from zoo_graph_qa.train import TRAINED_WAYS

import zoo
from tests.plugins.tiny_tokenizers import tiny_tokenizer

RECIPES = sorted((Path(zoo_graph_qa.__file__).parent / "recipes").glob("[a-z]*.md"))


@pytest.fixture(scope="module")
def about() -> list[Candidates]:
    model = zoo.load("graph-qa", device="cpu")
    return [Candidates(model.graph(p.read_text("utf-8"))) for p in RECIPES]


@pytest.fixture(scope="module")
def source(about: list[Candidates]) -> Source:
    return Source(about)


def items(*rows: tuple[int, str, str]) -> list[Item]:
    return [Item(about, "factoid", q, None, (a,)) for about, q, a in rows]


H = items((0, "How long?", "5 minutes"), (0, "Where?", "a bowl"), (1, "How hot?", "180 C"))
ENCODE = TfIdf([said(i) for i in H])


# --- coverage -------------------------------------------------------------------------------------


def test_coverage_in_closed_form() -> None:
    """Of itself all; of nothing none; of another text's questions none; adding and doubling."""
    assert semantic(H, H, ENCODE) == (pytest.approx(100, abs=1e-3), 100.0)
    assert semantic([], H, ENCODE) == (0.0, 0.0)
    assert semantic(H[2:], H[:2], ENCODE) == (0.0, 0.0)
    part = semantic(H[:1], H, ENCODE)
    more = semantic(H[:2], H, ENCODE)
    assert part[0] <= more[0]
    assert part[1] == pytest.approx(100 / 3)
    assert more[1] == pytest.approx(200 / 3)
    assert semantic([*H[:2], *H[:2]][::-1], H, ENCODE) == pytest.approx(more)


def test_answer_coverage() -> None:
    assert answered(H, H) == 100.0
    assert answered([], H) == 0.0
    near = items((0, "x", "the 5 minutes"), (1, "x", "a bowl"))
    assert answered(near, H) == pytest.approx(100 / 3)


def test_diversity_and_correlation() -> None:
    assert distinct_2(["a b c", "a b d"]) == 75.0
    assert distinct_2([]) == 0.0
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == 0.0
    assert rank_correlation([1, 2, 2, 4], [1, 3, 3, 4]) == pytest.approx(1)


def test_a_bank_knows_what_is_in_it(source: Source, about: list[Candidates]) -> None:
    """Each generated question is answered as it was generated."""
    arm = source.arm("ALL", 300, 0)
    pairs = by_procedure(arm)
    asked = [
        Item(i, p.kind, p.question, None, (p.answer,)) for i, rows in pairs.items() for p in rows
    ]
    assert scored(asked, Bank(pairs)(asked))["macro"]["EM"] > 99
    assert Bank(pairs)([Item(99, "x", "What?", None, ("",))]) == [""]


def test_the_rule_finds_the_sentence_with_the_rare_words() -> None:
    texts = {0: ["Mix the flour.", "Bake the flour at noon."]}
    asked = items((0, "When do I bake it?", "noon"))
    assert retrieved(texts, asked) == ["Bake the flour at noon."]


# --- arms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARMS)
def test_arms_have_equal_size_and_are_the_same_again(name: str, source: Source) -> None:
    arm = source.arm(name, 500, 3)
    assert len(arm.pairs) == 500
    assert source.arm(name, 500, 3) == arm
    for drawn in arm.pairs:
        text = source.about[drawn.about].graph.procedure.text
        if drawn.pair.start is not None:
            assert text[drawn.pair.start : drawn.pair.end] == drawn.pair.answer
        assert right(source.about[drawn.about], drawn.pair).any()
        assert drawn.pair.template.split("/")[-1] not in map(str, HELD_OUT)


def test_what_arms_cover(source: Source) -> None:
    every = len(source.by_fact)
    shares = {"P50": 0.5, "P25": 0.25, "P10": 0.1}
    for name, share in shares.items():
        assert source.arm(name, 2 * every, 0).facts == int(every * share)
    whole = source.arm("ALL", every, 0)
    assert whole.facts == every
    kinds = {n: {d.pair.kind for d in source.arm(n, 500, 0).pairs} for n in ("SAL", "ROLE")}
    assert kinds["SAL"] <= {*SALIENT}
    assert kinds["ROLE"] <= {*ROLE_KINDS}
    facts = Counter((d.about, d.pair.question) for d in whole.pairs)
    assert max(facts.values()) == 1


# --- questions ------------------------------------------------------------------------------------


def test_the_how_tos() -> None:
    """Twenty texts, 300 questions; answers stand where the file says, next is the next step."""
    texts, found = howtos()
    assert (len(texts), len(found)) == (20, 300)
    assert Counter(i.about for i in found).most_common(1)[0][1] == 15
    for item in found:
        for answer in item.answers:
            assert item.kind == "order" or answer == UNSTATED or answer in texts[item.about]


def test_the_set_u_has_words_that_nothing_is_trained_on(about: list[Candidates]) -> None:
    found = unseen(about)
    trained = {
        p.question
        for c in about
        for p in ask(c.graph, Controls(paraphrases=len(TRAINED_WAYS), ways=TRAINED_WAYS))[1]
        if p.kind != "polar"
    }
    asked = {i.question for i in found if i.kind != "polar"}
    assert not asked & trained
    assert max(Counter(i.kind for i in found).values()) <= 40


def test_scores_are_means_of_types() -> None:
    asked = [
        Item(0, "a", "?", None, ("5 minutes", "until done")),
        Item(0, "a", "?", None, ("x",)),
        Item(0, "b", "?", None, (UNSTATED,)),
    ]
    found = scored(asked, ["until done", "y", UNSTATED])
    assert (found["a"]["EM"], found["b"]["EM"], found["macro"]["EM"]) == (50, 100, 75)


def test_questions_of_people_are_trimmed() -> None:
    """Of what they say only the last question counts; numbers do not end a sentence."""
    chatty = question("Ok, I added 1.5 cups. It looks smooth. What now?", 2)
    assert chatty.content == question("What now?", 2).content
    assert chatty.step == 2
    assert question("At step 4, how long?").step == 3
    assert question("What is step 7?").nth == 6
    assert question("How much is that in Celsius?").unit == "Celsius"
    first, then = question("Do I bake it before I mix it?").halves
    assert (first, then) == ({"bake"}, {"mix"})


def test_right_candidates(about: list[Candidates]) -> None:
    """Every generated pair has its answer among the candidates."""
    for candidates in about:
        for pair in ask(candidates.graph, Controls(paraphrases=1))[1]:
            found = right(candidates, pair)
            assert found.any(), pair
            assert {candidates.items[i].text for i in np.flatnonzero(found)} == {pair.answer}


def test_lessons_have_all_types_and_lose_words(about: list[Candidates]) -> None:
    """Rare types are drawn as often as frequent ones, yes and no apart."""
    pairs = ask(about[0].graph, Controls(paraphrases=2))[1]
    rows = examples(about[0], pairs, np.random.default_rng(0))
    kinds = {row.kind for row in rows}
    assert {"order yes", "order no", "amount", "none"} <= kinds
    assert "order" not in kinds
    rare = [row for row in rows if row.kind == min(kinds, key=[r.kind for r in rows].count)]
    often = [row for row in rows if row.kind == max(kinds, key=[r.kind for r in rows].count)]
    assert len(often) > 3 * len(rare)
    lessons = Lessons([*rare, *often])
    batch = lessons.draw(np.random.default_rng(0), 2000)
    assert batch.gold is not None
    said = {tuple(row.asked.words) for row in rare}
    words = batch.words.split(batch.offsets.diff(append=torch.tensor([len(batch.words)])).tolist())
    known = {word for question in said for word in question}
    share = sum({*question.tolist()} <= known for question in words) / len(words)
    assert 0.4 < share < 0.7  # half are rare; some of the others share all their words
    length = np.mean([len(row.asked.words) for row in [*rare * len(often), *often * len(rare)]])
    assert len(batch.words) / 2000 == pytest.approx(0.7 * length, rel=0.05)


# --- the rival ------------------------------------------------------------------------------------


def test_what_a_language_model_writes_is_read() -> None:
    text = "Mix the flour. Bake it for 5 minutes."
    written = (
        "Sure!\nQ: How long?\nA: 5 Minutes.\n\nQ2: What is mixed?\nA2: the flour\nQ: Who?\n"
        "A: the cook\nQ: How long?\nA: 5 minutes"
    )
    whole = Part(0, len(text))
    found = rivals.parsed(written, text, whole)
    assert [(p.question, p.answer) for p in found] == [
        ("How long?", "5 minutes"),
        ("What is mixed?", "the flour"),
    ]
    assert all(text[p.start : p.end] == p.answer for p in found)
    assert rivals.parsed("", text, whole) == []
    first = rivals.parsed(written, text, Part(0, text.index(".")), 0)
    assert [(p.answer, p.step) for p in first] == [("the flour", 0)]


def test_a_batch_is_answered_as_one_by_one(tmp_path: Path) -> None:
    """What prompts share is read once, shorter ones are filled up; the words stay the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}<s>"
    )
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    rival = rivals.Rival(tmp_path)
    asked = [("Boil it.", "How?"), ("Boil it.", "How long?"), ("Wash the cups and dry them.", "?")]
    together = rival.answers(asked, 2)
    assert together == [rival.answers([one], 2)[0] for one in asked]
    assert len({*together}) > 1


def test_the_benchmark_says_what_it_needs(tmp_path: Path) -> None:
    from zoo_graph_qa.bench import bench

    from zoo.errors import InputError
    from zoo.hookspecs import BenchRequest
    from zoo.registry import catalogue

    asked: dict[str, Any] = {"entry": catalogue().entry("graph-qa"), "out": tmp_path}
    with pytest.raises(InputError, match="--data"):
        bench(BenchRequest(**asked))
    with pytest.raises(InputError, match="expected CookDial's recipes"):
        bench(BenchRequest(**asked, data=tmp_path, quick=True))
