"""The conformance suite of ``QAGenerator``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ..errors import InputError, ZooError
from ..interfaces import Model, QAPair, QASet
from .checks import check_progress, same, shake
from .model import ModelSuite

PROCEDURE = (
    "Preheat the oven to 180 degrees. Mix the flour and the sugar in a bowl. "
    "Add two eggs and stir for 3 minutes. Pour the dough into a tin. Bake the cake for 40 minutes."
)


class QAGeneratorSuite(ModelSuite):
    """Tests of questions, graph, coverage and readers."""

    interface = "QAGenerator"

    @pytest.fixture
    def text(self) -> str:
        """A procedure that the method can make questions about."""
        return PROCEDURE

    @pytest.fixture
    def sample(self, text: str) -> Any:
        """The text."""
        return text

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Questions and an answer."""
        made = ready.generate(sample)
        return made, ready.answer(made.pairs[0].question, sample)

    @pytest.fixture
    def made(self, model: Any, text: str) -> QASet:
        """The questions about the text."""
        found: QASet = self.once("made", lambda: model.generate(text))
        return found

    @pytest.fixture
    def reader(self, model: Any, made: QASet) -> Any:
        """A reader trained on the questions."""
        return self.once("reader", lambda: model.train_reader([made], seed=0))

    def test_pairs(self, made: QASet) -> None:
        """There are pairs, each with a question and an answer, none twice."""
        assert isinstance(made, QASet)
        assert len(made) > 0, "no question about the text"
        for pair in made.pairs:
            assert isinstance(pair, QAPair)
            assert pair.question.strip()
            assert pair.answer.strip()
        assert len({(p.question, p.answer) for p in made.pairs}) == len(made), "a pair occurs twice"

    def test_list(self, model: Any, made: QASet, text: str) -> None:
        """A list gives a list, in order, with the same results as one by one."""
        other = text.partition(". ")[2]
        found = model.generate([other, text])
        assert isinstance(found, list)
        same([model.generate(other), made], found)
        assert [one.text for one in found] == [other, text]
        assert model.generate([]) == []

    def test_seed(self, model: Any, text: str) -> None:
        """The same seed gives the same questions."""
        for seed in (0, 7):
            shake(seed + 1)
            first = model.generate(text, seed=seed)
            shake(seed + 2)
            same(first, model.generate(text, seed=seed))

    def test_places(self, made: QASet, text: str) -> None:
        """Each pair has a type, and its place, edge and step are right."""
        assert made.text == text
        edges = len(made.graph["edges"])
        for pair in made.pairs:
            assert isinstance(pair.kind, str)
            assert pair.kind, f"{pair}: no kind"
            assert pair.edge is None or 0 <= pair.edge < edges, f"{pair}: no such edge"
            assert pair.step is None or (type(pair.step) is int and pair.step >= 0)
            assert (pair.start is None) == (pair.end is None), f"{pair}: half a place"
            if pair.start is not None:
                assert text[pair.start : pair.end] == pair.answer, f"{pair}: it is elsewhere"
                assert pair.start >= 0

    def test_graph(self, made: QASet) -> None:
        """Ids are unique; edges and pairs name nodes that exist; it can be saved as JSON."""
        json.dumps(made.graph, allow_nan=False)
        nodes = [node["id"] for node in made.graph["nodes"]]
        assert nodes
        assert len(set(nodes)) == len(nodes), "an id is used twice"
        for node in made.graph["nodes"]:
            assert {"id", "text", "kind"} <= set(node)
        for edge in made.graph["edges"]:
            assert {"source", "target", "role"} <= set(edge)
            assert {edge["source"], edge["target"]} <= set(nodes), f"{edge}: no such node"
        for pair in made.pairs:
            assert set(pair.nodes) <= set(nodes), f"{pair}: no such node"

    def test_coverage(self, made: QASet) -> None:
        """Coverage is the share of nodes that a pair is about."""
        assert 0 <= made.coverage <= 1
        asked = {node for pair in made.pairs for node in pair.nodes}
        assert math.isclose(made.coverage, len(asked) / len(made.graph["nodes"]), abs_tol=1e-6)

    def test_text_without_content(self, model: Any) -> None:
        """A text without content is refused, or gives no question."""
        for nothing in ("", " \n\t", "?!…", "\N{GRINNING FACE}" * 3):
            try:
                made = model.generate(nothing)
            except ZooError:
                continue
            assert 0 <= made.coverage <= 1

    @pytest.mark.parametrize("wrong", [None, 3, b"Mix it.", [3], ["Mix it.", None]], ids=repr)
    def test_what_is_no_text_is_refused(self, model: Any, wrong: Any) -> None:
        """Anything but text raises InputError."""
        with pytest.raises(InputError):
            model.generate(wrong)
        with pytest.raises(InputError):
            model.answer("What is mixed?", wrong)

    def test_answer(self, model: Any, made: QASet, text: str) -> None:
        """The bundled reader answers with text."""
        for pair in made.pairs[:5]:
            assert isinstance(model.answer(pair.question, text), str)

    def test_illustrate(self, model: Any, made: QASet, tmp_path: Path) -> None:
        """All pictures are in the folder, and all that is written there is named."""
        files = model.illustrate(made, tmp_path, title="a procedure")
        assert {Path(file).resolve() for file in files} == {
            file.resolve() for file in tmp_path.rglob("*") if file.is_file()
        }

    def test_reader(self, reader: Any, made: QASet, text: str) -> None:
        """A reader is a ``Model`` without an interface that answers with text."""
        assert issubclass(type(reader), Model)
        assert reader.interface is None
        for pair in made.pairs[:5]:
            assert isinstance(reader.answer(pair.question, text), str)

    def test_reader_again(self, reader: Any, model: Any, made: QASet, text: str) -> None:
        """The same questions and seed give the same reader."""
        shake(8)
        again = model.train_reader([made], seed=0)
        for pair in made.pairs:
            assert again.answer(pair.question, text) == reader.answer(pair.question, text)

    def test_reader_saved_and_loaded(
        self, reader: Any, made: QASet, text: str, tmp_path: Path
    ) -> None:
        """``zoo.load`` returns the reader, not the generator, and it answers as before."""
        from .. import load

        reader.save_pretrained(tmp_path / "reader")
        again = load(tmp_path / "reader", device="cpu")
        assert type(again) is type(reader)
        for pair in made.pairs:
            assert again.answer(pair.question, text) == reader.answer(pair.question, text)

    def test_reader_needs_questions(self, model: Any) -> None:
        """Training without questions is refused."""
        for nothing in ([], [QASet(())]):
            with pytest.raises(InputError):
                model.train_reader(nothing)

    def test_progress(self, model: Any, made: QASet) -> None:
        """Progress is reported during training."""
        check_progress(lambda progress: model.train_reader([made], progress=progress))
