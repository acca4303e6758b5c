"""graph-qa as users meet it: the contract, exhaustive questions, answers, commands, bad input."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_graph_qa
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_graph_qa import drawing, score
from zoo_graph_qa.facts import ABSENT, KINDS, UNSTATED, facts
from zoo_graph_qa.model import ProcedureQA
from zoo_graph_qa.templates import SHORT, WAYS
from zoo_graph_qa.words import PREPOSITIONS

import zoo
from zoo.errors import InputError, OptionError
from zoo.interfaces import QAPair, QASet
from zoo.testing import QAGeneratorSuite

PACKAGE = Path(zoo_graph_qa.__file__).parent
TEXTS = {
    p.stem: p.read_text("utf-8")
    for folder in ("howtos", "recipes")
    for p in sorted((PACKAGE / folder).glob("*.md"))
    if p.stem != "README"
}
CAKE = "Bake the cake at 180 C for 45 minutes."
LINEAR = "1. Peel the potatoes.\n2. Cut the onions.\n3. Fry the bacon.\n4. Serve the soup."


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("graph-qa", device="cpu")


def made(model: Any, text: str, **options: Any) -> ProcedureQA:
    found = model.generate(text, **options)
    assert isinstance(found, ProcedureQA)
    return found


@pytest.mark.slow
class TestContract(QAGeneratorSuite):
    name = "graph-qa"


# --- the graph ------------------------------------------------------------------------------------


def parsed(model: Any, text: str) -> tuple[dict[str, str], set[tuple[str, str, str]]]:
    """Text of each node by kind and text, and (action, role, filler) by their words."""
    graph = model.graph(text)
    nodes = {n.text: n.kind for n in graph.nodes if n.kind != "step"}
    edges = {
        (graph.node[e.source].text, e.role, graph.node[e.target].text)
        for e in graph.edges
        if e.role not in ("next", "uses", "again", "material")
    }
    return nodes, edges


def test_a_simple_step(model: Any) -> None:
    nodes, edges = parsed(model, CAKE)
    assert nodes == {
        "Bake": "action", "the cake": "object", "180 C": "temperature", "45 minutes": "duration",
    }  # fmt: skip
    assert edges == {
        ("Bake", "patient", "the cake"), ("Bake", "heat", "180 C"),
        ("Bake", "duration", "45 minutes"),
    }  # fmt: skip
    pairs = made(model, CAKE, negatives=1.0).pairs
    answers = {(p.kind, p.answer) for p in pairs}
    assert {("howlong", "45 minutes"), ("temp", "180 C"), ("what", "the cake")} <= answers
    assert {p.asks for p in pairs if p.kind == "none"} == {"why", "tool", "where"}


def test_a_fronted_place_and_a_list(model: Any) -> None:
    text = "In a large bowl, combine flour and sugar."
    _, edges = parsed(model, text)
    assert edges == {
        ("combine", "patient", "flour"), ("combine", "patient", "sugar"),
        ("combine", "place", "a large bowl"),
    }  # fmt: skip
    pairs = made(model, text).pairs
    assert {p.answer for p in pairs if p.kind == "what"} == {"flour and sugar"}
    assert len({p.nodes for p in pairs if p.kind == "do"}) == 2


@pytest.mark.parametrize("name", TEXTS)
def test_every_node_and_every_edge_is_asked_about(name: str, model: Any) -> None:
    """Exhaustive by construction: nothing is missing, every span stands where the pair says."""
    text = TEXTS[name]
    found = made(model, text)
    assert found.coverage == 1.0
    assert found.missing["nodes"] == found.missing["edges"] == []
    assert {p.edge for p in found.pairs} >= {*range(len(found.graph["edges"]))}
    for pair in found.pairs:
        if pair.start is not None:
            assert text[pair.start : pair.end] == pair.answer
        else:
            assert pair.answer_kind in ("yes", "no", "number", "none")
    questions = [re.sub(r"\W+", " ", p.question.lower()) for p in found.pairs]
    assert len({*questions}) == len(questions), "a question occurs twice"
    assert not any("{" in p.question for p in found.pairs)


@pytest.mark.parametrize("name", TEXTS)
def test_the_graph_is_ordered(name: str, model: Any) -> None:
    """Edges lead forward in the order of the nodes, so there is no cycle; nodes of one kind do not
    overlap; roles lead from actions to what is no action, except for simultaneous ones."""
    graph = model.graph(TEXTS[name])
    rank = {n.id: i for i, n in enumerate(graph.nodes)}
    for edge in graph.edges:
        assert rank[edge.source] < rank[edge.target] or edge.role == "simultaneous", edge
        source, target = graph.node[edge.source], graph.node[edge.target]
        if edge.role in ("next", "uses", "again"):
            assert source.start < target.start
            assert source.kind == target.kind == "action"
        elif edge.role != "material":
            assert source.kind == "action"
            assert (target.kind == "action") == (edge.role == "simultaneous")
    for kind in {n.kind for n in graph.nodes}:
        spans = sorted((n.start, n.end) for n in graph.nodes if n.kind == kind)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_a_linear_procedure(model: Any) -> None:
    pairs = made(model, LINEAR, short=False).pairs
    count = Counter(p.kind for p in pairs)
    assert count["after"] == count["before"] == 3
    assert count["nth"] == 4
    answers = {p.kind: p.answer for p in pairs}
    assert answers["first"] == "Peel the potatoes."
    assert answers["last"] == "Serve the soup."
    assert answers["count"] == "4"
    order = {p.question: p.answer for p in pairs if p.kind == "order"}
    assert {*order.values()} == {"yes", "no"}
    assert len(order) == 2 * (3 + 2)  # neighbours, and two apart, both ways round


def test_order_is_that_of_the_text(model: Any) -> None:
    graph = model.graph(LINEAR)
    place = {a.id: i for i, a in enumerate(graph.actions)}
    for fact in facts(graph):
        if fact.kind == "order":
            assert place[fact.nodes[0]] < place[fact.nodes[1]]
            verbs = {a.id: a.text.lower() for a in graph.actions}
            forward = fact.slots["vp"].startswith(verbs[fact.nodes[0]])
            assert fact.answer.text == ("yes" if forward else "no")


@pytest.mark.parametrize("name", TEXTS)
def test_wrong_and_missing_fillers(name: str, model: Any) -> None:
    """A wrong filler is not in its step; a role asked for in vain is not in the graph; a substitute
    is nowhere in the text."""
    graph = model.graph(TEXTS[name])
    roles = {"howlong": {"duration", "until"}, "temp": {"heat"}, "why": {"purpose"},
             "tool": {"instrument"}, "where": {"place", "goal"}}  # fmt: skip
    assert {*roles} == {*ABSENT}
    for fact in facts(graph):
        if fact.kind == "polar" and fact.answer.text == "no" and fact.slots["filler"]:
            step = graph.steps[fact.step or 0].text.lower()
            first, _, rest = fact.slots["filler"].lower().partition(" ")
            assert (rest if first in PREPOSITIONS else f"{first} {rest}".strip()) not in step
        elif fact.kind == "none":
            there = {e.role for _, e in graph.out[fact.nodes[0]]}
            assert not there & roles[fact.asks]
        elif fact.kind == "subst":
            assert fact.slots["other"].split()[-1] not in TEXTS[name].lower()


def test_negated_and_optional_actions(model: Any) -> None:
    text = "1. Do not stir the sauce.\n2. Add the pepper, if desired.\n3. Serve the soup."
    graph = model.graph(text)
    marks = {a.text: (a.negated, a.optional) for a in graph.actions}
    assert marks["stir"] == (True, False)
    assert marks["Add"] == (False, True)
    pairs = made(model, text).pairs
    assert ("Should I stir the sauce?", "no") in {(p.question, p.answer) for p in pairs}
    assert ("Do I have to add the pepper?", "no") in {(p.question, p.answer) for p in pairs}
    about = [p for p in pairs if p.kind in ("do", "what") and "sauce" in p.question]
    assert not about


# --- the controls ---------------------------------------------------------------------------------


def test_types_can_be_switched_off_and_counts_follow(model: Any) -> None:
    text = TEXTS["apple-strudel"]
    whole = Counter(p.kind for p in made(model, text, negatives=1.0).pairs)
    assert {*whole} <= {*KINDS}
    without = Counter(p.kind for p in made(model, text, negatives=1.0, without="order,none").pairs)
    assert not {"order", "none"} & {*without}
    only = made(model, text, kinds=["amount", "temp"])
    assert {p.kind for p in only.pairs} == {"amount", "temp"}
    assert Counter(p.kind for p in only.pairs)["amount"] == whole["amount"]
    assert only.coverage < 1
    assert only.missing["nodes"]


def test_paraphrases_multiply(model: Any) -> None:
    """Without short forms: for each fact the smaller of what is asked for and what there is."""
    graph = model.graph(LINEAR)
    every = facts(graph)
    for count in (1, 3, 6):
        pairs = made(model, LINEAR, paraphrases=count, short=False, negatives=1.0).pairs
        assert len(pairs) == sum(min(count, len(WAYS[f.asks or f.kind])) for f in every)
    pairs = made(model, LINEAR, paraphrases=1, short=True, negatives=1.0).pairs
    assert len(pairs) == len(every) + sum(
        f.step is not None and (f.asks or f.kind) in SHORT for f in every
    )


def test_a_budget_takes_facts_in_turn(model: Any) -> None:
    text = TEXTS["carbonara"]
    whole = made(model, text, paraphrases=2).pairs
    part = made(model, text, paraphrases=2, max_pairs=50).pairs
    assert part == whole[:50]
    asked = Counter((p.kind, p.nodes, p.answer) for p in part if p.kind != "order")
    assert max(asked.values()) == 1


def test_the_share_of_questions_without_an_answer(model: Any) -> None:
    for share in (0.0, 0.1, 0.25):
        pairs = made(model, TEXTS["carbonara"], negatives=share).pairs
        assert sum(p.answer == UNSTATED for p in pairs) <= share * len(pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "what,wat"}, "there is no type of question 'wat'"),
        ({"kinds": "what", "without": "what"}, "no type of question is left"),
        ({"paraphrases": 11}, "paraphrases=11: expected 1 to 10"),
        ({"max_pairs": -1}, "max_pairs=-1"),
        ({"negatives": 2.0}, "negatives=2: expected a share"),
    ],
)
def test_wrong_controls_are_refused(options: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        model.generate(CAKE, **options)


def test_the_round_trip_loses_no_node(model: Any) -> None:
    text = TEXTS["banana-bread"]
    checked = made(model, text, checked=True)
    assert checked.coverage == 1.0
    assert len(checked) < len(made(model, text))
    assert "left out" in checked.missing["notes"][-1]


def test_the_same_in_another_process(model: Any) -> None:
    """Whatever the seed of Python's hashes is."""
    text = TEXTS["solder-plug"]

    def digest(found: Any) -> str:
        rows = json.dumps([found.graph, [asdict(p) for p in found.pairs]])
        return hashlib.sha256(rows.encode()).hexdigest()

    code = (
        "import sys, json, hashlib, zoo\nfrom dataclasses import asdict\n"
        "found = zoo.load('graph-qa', device='cpu').generate(sys.stdin.read(), seed=3)\n"
        "rows = json.dumps([found.graph, [asdict(p) for p in found.pairs]])\n"
        "print(hashlib.sha256(rows.encode()).hexdigest())"
    )
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert done.stdout.strip() == digest(made(model, text, seed=3))
    assert digest(made(model, text, seed=4)) != digest(made(model, text, seed=3))


def test_questions_about_the_thing(model: Any) -> None:
    """Passive forms: the participle, and the verb in the object's number."""
    text = "1. Peel the apples with a knife.\n2. Bake the cake for 40 minutes."
    said = {p.question for p in made(model, text, paraphrases=10, short=False).pairs}
    assert said > {
        "What are the apples peeled with?",
        "How long does the cake have to bake?",
        "How long is the cake baked?",
    }


def test_facts_have_ten_ways() -> None:
    for kind in KINDS:
        if kind != "none":
            assert len({*WAYS[kind]}) == 10, kind
    assert {*WAYS} | {"none"} == {*KINDS}
    assert {*SHORT} <= {*WAYS}


# --- SQuAD ----------------------------------------------------------------------------------------


def test_a_forbidden_action_is_only_asked_about_as_such(model: Any) -> None:
    """With its fillers and its place in the order; every node and edge is asked about all the
    same."""
    text = "1. Heat the oil.\n2. Do not bake the cake in the oven for 5 minutes.\n3. Stir the rice."
    found = made(model, text, negatives=0)
    assert found.coverage == 1
    assert found.missing["edges"] == []
    baked = [p for p in found.pairs if "bake" in p.question]
    assert {p.kind for p in baked} == {"polar", "order"}
    assert {p.answer for p in baked} == {"no"}
    assert "Should I bake the cake in the oven?" in {p.question for p in baked}


def test_what_is_optional_is_the_action_beside_the_words(model: Any) -> None:
    for text, optional in (
        ("Turn on the light and open the window, if desired.", {"open"}),
        ("If desired, sprinkle it with sugar and serve the cake.", {"sprinkle"}),
        ("Serve the steak with optional sauce, then wash the grill.", set()),
        ("Optional: glaze the cake. Cut the cake.", {"glaze"}),
    ):
        nodes = model.generate(f"1. Boil the water.\n2. {text}").graph["nodes"]
        assert {n["text"].lower() for n in nodes if n.get("optional")} == optional, text


def test_contradictory_numbers_are_told(model: Any) -> None:
    found = model.generate("3. Bake the bread.\n1. Mix the dough.\n2. Shape a loaf.")
    assert any("numbers its steps 3, 1, 2" in note for note in found.missing["notes"])
    assert not model.generate("1. Mix the dough.\n2. Bake it.").missing["notes"]


def test_another_language_is_read_when_asked_to(model: Any) -> None:
    german = "Nimm zwei Eier und schlage sie auf. " * 6
    with pytest.raises(InputError, match="force=True"):
        model.answer("Was?", german)
    assert isinstance(model.answer("Was?", german, force=True), str)


def test_a_picture_has_no_characters_that_its_font_lacks() -> None:
    said = "Saut\u00e9 \u00bd cup \u2013 10 \u00b0C \U0001f955"
    assert drawing._in_latin(said) == "Saute 1/2 cup - 10  deg C "


def test_squad(model: Any) -> None:
    """The rules that the official evaluation relies on."""
    text = TEXTS["car-wheel"]
    found = made(model, text)
    document = found.to_squad("car")
    assert document["version"] == "v2.0"
    (paragraph,) = document["data"][0]["paragraphs"]
    assert paragraph["context"] == text
    ids = [qa["id"] for qa in paragraph["qas"]]
    assert len({*ids}) == len(ids)
    for qa in paragraph["qas"]:
        assert isinstance(qa["question"], str)
        assert qa["is_impossible"] == (not qa["answers"])
        for answer in qa["answers"]:
            assert text[answer["answer_start"] :].startswith(answer["text"])
    count = Counter(p.answer_kind for p in found.pairs)
    assert len(ids) == count["span"] + count["none"]


@pytest.mark.parametrize(
    ("a", "b", "em", "f1"),
    [
        ("", "", 1, 1),
        ("", "cake", 0, 0),
        ("The cake!", "a cake", 1, 1),
        ("5 minutes", "for 5 minutes", 0, 0.8),
        ("the", "a", 1, 1),
        ("red red", "red", 0, 2 / 3),
    ],
)
def test_scores_are_those_of_squad(a: str, b: str, em: float, f1: float) -> None:
    assert score.exact(a, b) == em
    assert score.f1(a, b) == pytest.approx(f1)


# --- the reader -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "step", "answer"),
    [
        ("How long should I bake the cake?", None, "40 minutes"),
        ("Where do I mix the flour and the sugar?", None, "a bowl"),
        ("What do I add?", None, "two eggs"),
        ("How hot should the oven be?", None, "180 degrees"),
        ("What is the first step?", None, "Preheat the oven to 180 degrees."),
        ("OK, it is hot. What now?", 1, "Mix the flour and the sugar in a bowl."),
        ("For how long?", 5, "40 minutes"),
        ("How many steps are there?", None, "5"),
    ],
)
def test_answers(question: str, step: int | None, answer: str, model: Any) -> None:
    from zoo.testing.qagenerator import PROCEDURE

    assert model.answer(question, PROCEDURE, step=step) == answer
    told = model.explain(question, PROCEDURE, step=step)
    if told.start is not None:
        assert PROCEDURE[told.start : told.end] == answer
    assert 0 < told.score <= 1
    assert len(told.alternatives) == 3


def test_the_step_may_stand_in_the_question(model: Any) -> None:
    text = "1. Boil the eggs for 9 minutes.\n2. Fry the bacon for 4 minutes."
    for step, answer in ((1, "9 minutes"), (2, "4 minutes")):
        assert model.answer(f"At step {step}, how long?", text) == answer
        assert model.answer("How long?", text, step=step) == answer


def test_wrong_questions_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        model.answer(" ", CAKE)
    with pytest.raises(InputError, match="step=2: the text has 1 steps"):
        model.answer("And now?", CAKE, step=2)


def test_a_reader_learns_from_the_users_own_pairs(model: Any, tmp_path: Path) -> None:
    """A word that the bundled reader cannot know; trained without other examples."""
    pairs = (QAPair("What is the zorble?", "45 minutes", start=21, end=31),)
    assert CAKE[21:31] == " 45 minute" or CAKE.index("45 minutes") >= 0
    start = CAKE.index("45 minutes")
    pairs = (QAPair("What is the zorble?", "45 minutes", start=start, end=start + 10),)
    reader = model.train_reader([QASet(pairs, text=CAKE)], steps=60)
    assert reader.answer("What is the zorble?", CAKE) == "45 minutes"
    folder = reader.save_pretrained(tmp_path / "reader")
    again = zoo.load(folder, device="cpu")
    assert again.answer("What is the zorble?", CAKE) == "45 minutes"
    for a, b in zip(reader.state().values(), again.state().values(), strict=True):
        assert torch.equal(a, b)


def test_pairs_that_the_graph_cannot_answer_are_refused(model: Any) -> None:
    pairs = (QAPair("What?", "the cake at", start=5, end=16),)
    with pytest.raises(InputError, match="no questions to learn from"):
        model.train_reader([QASet(pairs, text=CAKE)])


# --- commands -------------------------------------------------------------------------------------


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = ":".join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-m", "zoo", *words], capture_output=True, text=True, cwd=cwd,
        env={"PYTHONPATH": path, "HOME": str(cwd)}, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    """``zoo qa graph-qa TEXT -o out``: all files, each as it should be; pairs come back as they
    were."""
    (tmp_path / "strudel.md").write_text(TEXTS["apple-strudel"], "utf-8")
    done = run("qa", "graph-qa", "strudel.md", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "graph.json", "graph.svg", "graph.png", "qa.jsonl", "squad.json", "coverage.html",
    }  # fmt: skip
    lines = (out / "qa.jsonl").read_text("utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert lines == [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    assert all(TEXTS["apple-strudel"][r["start"] : r["end"]] == r["answer"]
               for r in rows if r["start"] is not None)  # fmt: skip
    from xml.etree import ElementTree

    ElementTree.parse(out / "graph.svg")
    assert "100% of" in (out / "coverage.html").read_text("utf-8")
    assert json.loads((out / "squad.json").read_text("utf-8"))["version"] == "v2.0"
    again = run("qa", "graph-qa", "strudel.md", "-o", "out", cwd=tmp_path)
    assert again.returncode == 1
    assert "out" in again.stderr
    done = run("run", "graph-qa", "ask", "strudel.md", "How long do I bake it?", cwd=tmp_path)
    assert done.stdout.startswith("40 minutes  (duration, step 8; ")
    done = run("run", "graph-qa", "ask", "gone.md", "What?", cwd=tmp_path)
    assert "cannot read gone.md" in done.stderr


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Stir.",
        "Cake",
        "1. 🍰🍰\n2. Mix it 🙂 well ™.",
        "Preheat.\tMix the “dough”\u00a0— then bake… until done!!!",
        "It was a dark night. Nobody came. The wind blew.",
        "1. Bake it before you mix it. 2. Mix it after step 1, but before step 1.",
        "1. Mix it.\n1. Mix it.\n1. Mix it.",
        "| a | b | c |\n|---|---|---|\n| Mix it | now | ok |\n| Bake it | later | ok |",
        "Repeat steps 2 to 4 twice. Proceed as above.",
        "\ufeff1. Mix İ and ß.\r\n2. Bake ﬁsh.\u2028",
        "((((( mix ))))) {vp} {0} %s",
        "<ul><li>Mix <li>Bake</ul",
        "mix " * 400,
    ],
    ids=range(13),
)
def test_odd_texts(text: str, model: Any) -> None:
    found = made(model, text, force=True)
    assert found.pairs
    assert found.coverage == 1.0
    json.dumps(found.graph)
    assert all(p.start is None or text[p.start : p.end] == p.answer for p in found.pairs)
    assert isinstance(model.explain_all([("What do I do?", None)], text, force=True)[0].text, str)


def test_prose_is_reported(model: Any) -> None:
    notes = made(model, "It was a dark night. Nobody was there. The wind was cold.").missing[
        "notes"
    ]
    assert any("is this a procedure?" in note for note in notes)


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=120))
def test_any_text_gives_questions_or_is_refused(model: Any, text: str) -> None:
    try:
        found = made(model, text, force=True)
    except InputError:
        return
    assert all(p.start is None or text[p.start : p.end] == p.answer for p in found.pairs)
    assert found.coverage == 1.0


@pytest.mark.slow
def test_ten_thousand_steps(model: Any) -> None:
    """Linear in the number of steps: ten times the steps take less than thirty times as long."""
    verbs = ("Mix", "Bake", "Stir", "Fry", "Cut")
    things = ("flour", "egg", "butter", "onion", "potato", "apple")
    lines = [
        f"{i}. {verbs[i % 5]} the {things[i % 6]} for {i % 50 + 1} minutes."
        for i in range(1, 10_001)
    ]
    spent = []
    for count in (1000, 10_000):
        before = time.process_time()
        found = made(model, "\n".join(lines[:count]), short=False, without="none,polar,order")
        spent.append(time.process_time() - before)
        assert found.coverage == 1.0
        assert len(found.graph["nodes"]) == 4 * count
    assert spent[1] < 30 * spent[0]
