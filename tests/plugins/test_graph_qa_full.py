"""graph-qa-full: AMR as AMRBART writes it; from Hub ids to answers on tiny checkpoints."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_graph_qa import amr
from zoo_graph_qa.facts import UNSTATED
from zoo_graph_qa.full import BUNDLED, AmrParser, Seq2Seq, asked, found, marked
from zoo_graph_qa.model import Network
from zoo_graph_qa.parse import Parser
from zoo_graph_qa.questions import Controls, Pair, ask
from zoo_graph_qa.text import read

import zoo
from tests.plugins.tiny_tokenizers import tiny_tokenizer
from zoo.errors import InputError
from zoo.testing import LoopbackHub
from zoo.weights import load_tensors

BAKE = "Bake the cake at 180 C for 45 minutes."
MIX = "In a large bowl, combine flour and sugar until smooth."
WRITTEN = {
    BAKE: """( <pointer:0> bake-01 :mode imperative :ARG0 ( <pointer:1> you )
        :ARG1 ( <pointer:2> cake )
        :ARG2 ( <pointer:3> temperature-quantity :quant 180 :scale ( <pointer:4> c ) )
        :duration ( <pointer:5> temporal-quantity :quant 45 :unit ( <pointer:6> minute ) ) )""",
    MIX: """( <pointer:0> combine-01 :mode imperative :ARG0 ( <pointer:1> you )
        :ARG1 ( <pointer:2> and :op1 ( <pointer:3> flour ) :op2 ( <pointer:4> sugar ) )
        :location ( <pointer:5> bowl :ARG1-of ( <pointer:6> large-01 ) )
        :time ( <pointer:7> until :op1 ( <pointer:8> smooth-06 :ARG1 <pointer:2> ) ) )""",
    "Cool it, then slice it.": """( <pointer:0> and
        :op1 ( <pointer:1> cool-01 :ARG1 ( <pointer:2> it ) )
        :op2 ( <pointer:3> slice-01 :ARG1 <pointer:2> :time ( <pointer:4> then ) ) )""",
}
TEXT = f"Cake\n\n1. {MIX}\n2. {BAKE}\n3. Cool it, then slice it.\n"


class Scripted:
    """A parser that has learned these sentences by heart."""

    def written(self, texts: list[str], most: int, beams: int = 1) -> list[tuple[str, float]]:
        return [(WRITTEN.get(text, "( <pointer:0> 12 ) )("), 1.0) for text in texts]


@pytest.fixture(scope="module")
def graph() -> Any:
    network = Network()
    network.load_state_dict({k: v.float() for k, v in load_tensors(BUNDLED).items()})
    return AmrParser(Scripted(), Parser(network.parser)).graph(read(TEXT))  # type: ignore[arg-type]


# --- AMR ------------------------------------------------------------------------------------------


def test_a_graph_is_read() -> None:
    root = amr.read(WRITTEN[MIX])
    assert root is not None
    assert (root.concept, root.word, root.frame) == ("combine-01", "combine", True)
    (joined,) = root.get(":ARG1")
    assert [n.concept for n in joined.get(":op1", ":op2")] == ["flour", "sugar"]
    (until,) = root.get(":time")
    assert until.get(":op1")[0].get(":ARG1") == [joined]  # met again by its pointer
    assert [n.concept for n in root.get(":mode")] == ["imperative"]


def test_instructions_have_the_spans_and_roles_of_the_text(graph: Any) -> None:
    """The same as the small parser's."""
    made = {
        (graph.node[e.source].text, e.role, graph.node[e.target].text)
        for e in graph.edges
        if e.role not in ("next", "uses", "again", "material")
    }
    assert made == {
        ("combine", "patient", "flour"),
        ("combine", "patient", "sugar"),
        ("combine", "place", "a large bowl"),
        ("combine", "until", "until smooth"),
        ("Bake", "patient", "the cake"),
        ("Bake", "heat", "180 C"),
        ("Bake", "duration", "45 minutes"),
        ("Cool", "patient", "it"),
    }
    assert [a.text for a in graph.actions] == ["combine", "Bake", "Cool", "slice"]
    for node in graph.nodes:
        assert TEXT[node.start : node.end] == node.text


def test_the_graph_is_asked_about_as_any_other(graph: Any) -> None:
    pairs = ask(graph, Controls())[1]
    answers = {(p.kind, p.answer) for p in pairs}
    assert {("howlong", "45 minutes"), ("temp", "180 C"), ("what", "flour and sugar")} <= answers
    assert {n.id for n in graph.nodes} == {n for p in pairs for n in p.nodes}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*WRITTEN[MIX].split(), "<lit>", "x", '"', "<", ":"]), max_size=40))
def test_whatever_is_written_is_read(words: list[str]) -> None:
    """Missing brackets, concepts and pointers: spans stay in the sentence and apart."""
    root = amr.read(" ".join(words))
    if root is not None:
        spans, arcs = amr.roles(MIX, 0, len(MIX), root)
        places = sorted((s.start, s.end) for s in spans)
        assert all(a < b for a, b in places)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))
        assert all(spans[h].kind == "action" and spans[t].kind != "action" for h, t, *_ in arcs)


# --- what writer and reader see and say -----------------------------------------------------------


def test_inputs() -> None:
    start = TEXT.index("45 minutes")
    pair = Pair("How long?", "45 minutes", (), "howlong", None, 1, start, start + 10)
    step = (TEXT.index("Bake"), TEXT.index("Bake") + len(BAKE))
    wanted = "generate question: Bake the cake at 180 C for <hl> 45 minutes <hl>."
    assert marked(pair, TEXT, step) == wanted
    assert asked("How long?", 1, "a\n b") == "question: How long? step: 2 context: a b"


@pytest.mark.parametrize(
    ("said", "kind", "answer"),
    [
        ("45 Minutes", "span", "45 minutes"),
        ("flour  and sugar", "span", "flour and sugar"),
        ("Yes", "yes", "yes"),
        ("3", "span", "3"),
        ("77", "number", "77"),
        ("an hour", "none", UNSTATED),
        ("", "none", UNSTATED),
    ],
)
def test_answers_are_words_of_the_text(said: str, kind: str, answer: str) -> None:
    made = found(said, 0.5, TEXT)
    assert (made.kind, made.text) == (kind, answer)
    assert made.start is None or TEXT[made.start : made.end] == made.text


# --- from Hub ids to answers ----------------------------------------------------------------------


def bart(folder: Path) -> Path:
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = tiny_tokenizer([f"<pointer:{i}>" for i in range(4)])
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=2, max_position_embeddings=600,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def t5(folder: Path, seed: int) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1,
        "num_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
    }  # fmt: skip
    T5ForConditionalGeneration(T5Config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHAIN = """
from pathlib import Path
import zoo
from zoo import actions
from zoo.errors import NotReadyError
try:
    zoo.load("graph-qa-full")
except NotReadyError as error:
    print(error)
folder = actions.train(
    zoo.info("graph-qa-full"), Path({out!r}), data=Path({data!r}), steps=2, device="cpu",
    base={{"parser": "org/amr", "reader": "org/t5", "writer": "org/qg"}},
)
model = zoo.load(folder, device="cpu")
text = {text!r}
made = model.generate(text)
print(type(model).__name__, made.coverage, len(made.pairs))
print(repr(model.answer("How long do I bake it?", text, step=2)))
reader = model.train_reader([made], steps=1)
reader.save_pretrained({reader!r})
again = zoo.load(Path({reader!r}), device="cpu")
asked = [("How long?", 2), ("Where?", None)]
assert again.explain_all(asked, text) == reader.explain_all(asked, text)
"""


def test_from_hub_ids_to_answers(tmp_path: Path) -> None:
    """Downloaded by id, trained, saved, loaded again; the reader is saved and loaded too."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "cake.md").write_text(TEXT)
    (data / "empty.txt").write_text("\n")
    code = CHAIN.format(
        data=str(data), out=str(tmp_path / "out"), text=TEXT, reader=str(tmp_path / "reader")
    )
    with LoopbackHub() as hub:
        for name, folder in (
            ("org/amr", bart(tmp_path / "amr")),
            ("org/t5", t5(tmp_path / "t5", 1)),
            ("org/qg", t5(tmp_path / "qg", 2)),
        ):
            hub.add(name, folder)
        done = hub.run(code, home=tmp_path / "home", timeout=300, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "graph-qa-full has no trained weights" in done.stdout
    assert "GraphQAFull 1.0" in done.stdout
    saved = json.loads((tmp_path / "out" / "model" / "zoo.json").read_text())
    assert {*saved["bases"]} == {"parser", "writer"}  # the reader's weights are in the folder
    base = load_tensors(tmp_path / "t5" / "model.safetensors")
    trained = load_tensors(tmp_path / "out" / "model" / "model.safetensors")
    assert any(not torch.equal(trained[k], base[k].to(trained[k])) for k in trained if k in base)


def test_what_is_written_has_a_probability(tmp_path: Path) -> None:
    """With beams and without, in batches of any size."""
    model = Seq2Seq.opened(t5(tmp_path, 3))
    for beams in (1, 2):
        alone = [model.written([text], 5, beams)[0] for text in ("a", "a longer text")]
        together = model.written(["a", "a longer text"], 5, beams)
        assert [text for text, _ in together] == [text for text, _ in alone]
        assert [p for _, p in together] == pytest.approx([p for _, p in alone], rel=1e-3)
        assert all(0 < chance <= 1 for _, chance in together)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    from zoo_graph_qa.full_train import texts

    with pytest.raises(InputError, match="give a folder of procedures"):
        texts(tmp_path)
    with pytest.raises(InputError, match="give a folder of procedures"):
        texts(None)
    assert zoo.info("graph-qa-full").status == "untrained"
