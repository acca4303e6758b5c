"""graph-qa's parser in closed form: the CRF, its features, attachment, roles, the flow."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_graph_qa import corpora, flow
from zoo_graph_qa.corpora import TYPES, Arc, Labelled, Span
from zoo_graph_qa.features import COUNT, features
from zoo_graph_qa.flow import WINDOW, Action, Flow, candidates, head, producers
from zoo_graph_qa.roles import PRIOR, Roles, attach, preposition
from zoo_graph_qa.tagger import FORBIDDEN, TAGS, Tagger, joined, tagged, viterbi
from zoo_graph_qa.text import read

from zoo.errors import InputError


def tagger(seed: int = 0) -> Tagger:
    made = Tagger()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.follow.copy_(torch.randn(made.follow.shape, generator=generator))
    return made.double()


def score(scores: torch.Tensor, tags: tuple[int, ...], table: torch.Tensor) -> float:
    """Of one sequence, by the definition."""
    total = float(scores[0, tags[0]] + table[-1, tags[0]])
    for i in range(1, len(tags)):
        total += float(table[tags[i - 1], tags[i]] + scores[i, tags[i]])
    return total


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_crf_is_a_sum_over_all_sequences(length: int) -> None:
    """Partition, score and best sequence (eqs. 1, 2), against all 17**L sequences."""
    crf = tagger()
    table = crf.transitions().detach()
    scores = torch.randn(length, len(TAGS), generator=torch.Generator().manual_seed(3)).double()
    every = [*itertools.product(range(len(TAGS)), repeat=length)]
    totals = torch.tensor([score(scores, tags, table) for tags in every], dtype=torch.float64)
    lengths = torch.tensor([length])
    found = crf.partition(scores[None], lengths)
    torch.testing.assert_close(found[0], totals.logsumexp(0))
    best = every[int(totals.argmax())]
    got = viterbi(scores.numpy().astype(np.float32), [length], table.numpy().astype(np.float32))
    assert tuple(got) == best
    gold = torch.tensor([best])
    torch.testing.assert_close(crf.score(scores[None], gold, lengths, table)[0], totals.max())


def test_batches_of_sentences_are_as_one_by_one() -> None:
    """Padding changes neither the loss nor the best sequences."""
    crf = tagger()
    table = crf.transitions().detach()
    generator = torch.Generator().manual_seed(5)
    lengths = [4, 1, 7, 0, 3]
    rows = [torch.randn(n, len(TAGS), generator=generator).double() for n in lengths]
    flat = torch.cat(rows).numpy().astype(np.float32)
    together = viterbi(flat, lengths, table.numpy().astype(np.float32))
    alone = [viterbi(r.numpy().astype(np.float32), [len(r)], table.numpy().astype(np.float32))
             for r in rows if len(r)]  # fmt: skip
    assert together.tolist() == np.concatenate(alone).tolist()
    full = [r for r in rows if len(r)]
    padded = torch.nn.utils.rnn.pad_sequence(full, batch_first=True)
    gold = torch.zeros(padded.shape[:2], dtype=torch.long)
    sizes = torch.tensor([len(r) for r in full])
    whole = crf.loss(padded, gold, sizes)
    single = [crf.loss(r[None], gold[:1, : len(r)], torch.tensor([len(r)])) for r in full]
    torch.testing.assert_close(whole, torch.stack(single).mean())


def test_the_gradient_of_the_loss() -> None:
    crf = tagger()
    scores = torch.randn(2, 3, len(TAGS), generator=torch.Generator().manual_seed(1)).double()
    gold, sizes = torch.tensor([[1, 2, 0], [0, 3, 0]]), torch.tensor([3, 2])
    assert torch.autograd.gradcheck(
        lambda s: crf.loss(s, gold, sizes), (scores.requires_grad_(True),)
    )


def test_no_inside_without_a_beginning() -> None:
    table = tagger().transitions().detach().numpy().astype(np.float32)
    scores = np.random.default_rng(0).normal(0, 3, (400, len(TAGS))).astype(np.float32)
    tags = viterbi(scores, [400], table)
    for before, tag in zip([0, *tags[:-1]], tags, strict=True):
        if TAGS[tag].startswith("I-"):
            assert TAGS[before][2:] == TAGS[tag][2:]
    assert FORBIDDEN < -1000


def test_spans_from_tags_and_back() -> None:
    places = [(0, 3), (4, 7), (8, 9), (10, 14)]
    b, i = TAGS.index("B-object"), TAGS.index("I-object")
    spans = joined([b, i, 0, b], places)
    assert spans == [Span("object", 0, 7), Span("object", 10, 14)]
    procedure = read("Mix the flour and sugar.")
    spans = [Span("action", 0, 3), Span("object", 4, 13), Span("object", 18, 23)]
    _, (gold,) = tagged(Labelled("x", procedure, tuple(spans), ()))
    assert [TAGS[t] for t in gold] == [
        "B-action", "B-object", "I-object", "O", "B-object", "O",
    ]  # fmt: skip
    starts = [(t.start, t.end) for t in features(procedure)[0][0]]
    assert joined(gold, starts) == spans


def test_features_do_not_depend_on_the_process() -> None:
    text = "Cake\n- 2 eggs\n1. Mix the eggs. 2. Bake it for 5 minutes."
    _, numbers = features(read(text))
    assert numbers.shape[1] == COUNT
    code = (
        "from zoo_graph_qa.features import features\nfrom zoo_graph_qa.text import read\n"
        f"print(features(read({text!r}))[1].sum(), features(read({text!r}))[1][:3].tolist())"
    )
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**path, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout.strip() == f"{numbers.sum()} {numbers[:3].tolist()}"


def test_a_words_features_are_the_same_wherever_it_stands() -> None:
    """Steps do not see one another."""
    one = features(read("1. Mix it.\n2. Bake it."))[1]
    two = features(read("1. Fry it.\n2. Bake it."))[1]
    assert (one[3:] == two[3:]).all()
    assert (one[0] != two[0]).any()


# --- attachment and roles -------------------------------------------------------------------------


def spans(text: str, *marks: tuple[str, str]) -> list[Span]:
    return [Span(kind, text.index(said), text.index(said) + len(said)) for kind, said in marks]


def test_a_span_belongs_to_the_action_before_it() -> None:
    text = "Mix the flour in a bowl, then bake it for 5 minutes."
    given = spans(text, ("action", "Mix"), ("object", "the flour"), ("tool", "a bowl"),
                  ("action", "bake"), ("object", "it"), ("duration", "5 minutes"))  # fmt: skip
    assert attach(text, given) == [(0, 1), (0, 2), (3, 4), (3, 5)]


def test_a_fronted_phrase_belongs_to_the_next_action() -> None:
    text = "Mix the flour. In a large bowl, combine eggs and milk."
    given = spans(text, ("action", "Mix"), ("object", "the flour"), ("tool", "a large bowl"),
                  ("action", "combine"), ("object", "eggs"), ("object", "milk"))  # fmt: skip
    assert attach(text, given) == [(0, 1), (3, 2), (3, 4), (3, 5)]
    assert attach("the flour", [Span("object", 0, 9)]) == []


def test_prepositions() -> None:
    text = "Bake at about 180 C until golden in the oven."
    given = spans(text, ("temperature", "180 C"), ("until", "until golden"), ("tool", "the oven"))
    assert [preposition(text, s) for s in given] == ["at", "until", "in"]


def test_roles_are_smoothed_counts() -> None:
    """Eq. 3 with numbers, and roles that a kind cannot have are never chosen."""
    text = "Bake it in the oven. Put it in the oven."
    procedure = read(text)
    given = spans(text, ("action", "Bake"), ("tool", "the oven"), ("action", "Put"))
    roles = Roles()
    arcs = (Arc(0, 1, "place"), Arc(0, 1, "place"), Arc(2, 1, "goal"))
    roles.count([Labelled("x", procedure, tuple(given), arcs)])
    tables = roles.tables()
    general = np.array([2.01, 1.01] + [0.01] * 10)
    general /= general.sum()
    coarse = (np.array([2, 1]) + PRIOR * general[:2]) / (3 + PRIOR)
    fine = (2 + PRIOR * coarse[0]) / (2 + PRIOR)
    role, chance = tables.role(text, given[1], given[0])
    assert role == "place"
    assert chance == pytest.approx(fine, abs=1e-6)
    assert tables.role(text, given[1], given[2])[0] == "goal"
    unseen = Span("duration", 8, 10)
    assert tables.role(text, unseen, given[0])[0] == "duration"


# --- the flow -------------------------------------------------------------------------------------


def actions(count: int) -> list[Action]:
    return [
        Action("mix", i, ("egg",) if i % 2 else (), (), False, False, False) for i in range(count)
    ]


def test_candidates_are_none_and_the_window_before() -> None:
    numbers = candidates(actions(20))
    assert numbers.shape[:2] == (20, 1 + WINDOW)
    there = numbers[:, :, 0] >= 0
    assert there.sum(1).tolist() == [1 + min(i, WINDOW) for i in range(20)]


def test_probabilities_sum_to_one_and_lead_back() -> None:
    """Eq. 4: the first action uses nothing; producers come before; all but NONE are returned."""
    numbers = candidates(actions(20))
    module = Flow()
    with torch.no_grad():
        module.weight.copy_(
            torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    chances = module.scores(torch.from_numpy(numbers)).softmax(1).detach()
    torch.testing.assert_close(chances.sum(1), torch.ones(20))
    assert float(chances[0, 0]) == 1.0
    found = producers(numbers, module.weight.detach().numpy())
    for i, row in enumerate(found):
        for j, chance in row:
            assert 0 <= i - j - 1 < WINDOW
            assert chance == pytest.approx(float(chances[i, i - j]), abs=1e-5)
    assert producers(candidates([]), module.weight.detach().numpy()) == []


def test_the_flow_loss_is_that_of_all_right_candidates() -> None:
    """Eq. 5: with weights of zero, log(candidates) - log(right ones)."""
    numbers = torch.from_numpy(candidates(actions(4)))
    gold = torch.zeros(4, 1 + WINDOW, dtype=torch.bool)
    gold[0, 0] = gold[1, 0] = gold[2, 1] = gold[3, 1] = gold[3, 2] = True
    expected = (np.log([1, 2, 3, 4]) - np.log([1, 1, 1, 2])).mean()
    assert float(Flow().loss(numbers, gold).detach()) == pytest.approx(expected, abs=1e-6)


def test_heads() -> None:
    assert [head(t) for t in ("the large eggs", "a cup of milk", "it", "eggs, beaten")] == [
        "egg", "cup", "it", "egg",
    ]  # fmt: skip


# --- corpora --------------------------------------------------------------------------------------

RECIPE = {
    "id": "000", "title": "Cake",
    "content": [
        {"id": "ing-0", "text": "2 eggs", "type": "ingredient", "eamr": '( ing-0 "2 eggs" )'},
        {"id": "inst-0", "type": "instruction", "text": "0) Beat the eggs or milk well, turning.",
         "eamr": '( inst-0 / R\r\n :inform ( ac-0-0 "Beat"@3:7 / AC\r\n'
         ' :ppt ( ing-0 "the eggs"@8:16 / FOOD )\r\n :option ( "milk"@-1:-1 / FOOD )\r\n'
         ' :ppt ( NULL / FOOD )\r\n #a comment: ( # :mnr ( "well"@25:29 / OTHER )\r\n'
         ' :simultaneous ( ac-0-1 "turning"@-1:-1/ AC )\r\n :_result ( beaten ) ) )'},
    ],
}  # fmt: skip


def test_cookdial_is_read(tmp_path: Path) -> None:
    """Places of -1, comments, NULL, no blank before the slash."""
    folder = tmp_path / "cookdial" / "recipe"
    folder.mkdir(parents=True)
    (folder / "000_Cake.json").write_text(json.dumps(RECIPE), "utf-8")
    (recipe,) = corpora.cookdial(tmp_path)
    text = recipe.procedure.text
    assert recipe.procedure.of(recipe.procedure.steps[0]) == "Beat the eggs or milk well, turning."
    found = [(s.kind, text[s.start : s.end]) for s in recipe.spans]
    assert found == [
        ("action", "Beat"), ("object", "the eggs"), ("object", "milk"), ("other", "well"),
        ("action", "turning"),
    ]  # fmt: skip
    assert [(a.head, a.tail, a.role) for a in recipe.arcs] == [
        (0, 1, "patient"), (0, 2, "patient"), (0, 3, "manner"), (0, 4, "simultaneous"),
    ]  # fmt: skip


def test_dialogues_are_read(tmp_path: Path) -> None:
    """A pointer makes a factoid, a refusal alone an unanswerable one, an instruction a next."""
    folder = tmp_path / "cookdial"
    (folder / "recipe").mkdir(parents=True)
    (folder / "dialog").mkdir()
    (folder / "recipe" / "000_Cake.json").write_text(json.dumps(RECIPE), "utf-8")

    def turn(said: str, intent: str, reply: str) -> list[dict[str, object]]:
        about = {"intent": intent, "tracker_completed_step": "inst-0"}
        return [
            {"utterance": said, "bot": False, "annotations": json.dumps(about)},
            {"utterance": "...", "bot": True, "annotations": reply},
        ]

    messages = (
        turn("How many eggs?", "req_amount;", "inform_amount(ing-0);")
        + turn("Is it vegan?", "other;", "fence();")
        + turn("What next?", "req_instruction;", "inform_instruction(inst-0);")
        + turn("Thanks.", "thank;", "fence();")
    )
    (folder / "dialog" / "000.1.json").write_text(json.dumps({"messages": messages}), "utf-8")
    recipes = corpora.cookdial(tmp_path)
    asked = corpora.dialogues(tmp_path, recipes)
    assert [a.kind for a in asked] == ["factoid", "unanswerable", "next"]
    text = recipes[0].procedure.text
    assert [text[a:b] for a, b in asked[0].answers] == ["2 eggs"]
    assert asked[2].step == 0


def test_risec_is_read(tmp_path: Path) -> None:
    for part in ("train", "dev", "test"):
        folder = tmp_path / "risec" / part
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text("1) Beat the eggs.\n2) Bake.", "utf-8")
        (folder / "1.ann").write_text(
            "T1\tAC 3 7\tBeat\nT2\tFOOD 8 16\tthe eggs\nT3\tAC 21 25\tBake\n"
            "R1\tArg1_PPT Arg1:T1 Arg2:T2\nR2\tArg1_PPT_X Arg1:T3 Arg2:T1\n"
            "#1\tAnnotatorNotes R2\tx",
            "utf-8",
        )
    recipe = corpora.risec(tmp_path)["dev"][0]
    assert recipe.links == ((2, 0),)
    numbers, gold = flow.linked(recipe)
    assert numbers.shape[0] == 2
    assert gold[:, :2].tolist() == [[True, False], [False, True]]
    assert {s.kind for s in recipe.spans} <= {*TYPES}


@pytest.mark.parametrize("reader", [corpora.cookdial, corpora.risec])
def test_missing_data_are_named(reader: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected"):
        reader(tmp_path)  # type: ignore[operator]
