"""graph-qa as users meet it: ``GraphQA`` makes graphs and questions, ``Reader`` answers."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import DeviceError, InputError
from zoo.hookspecs import BuildRequest
from zoo.interfaces import Model, QAGenerator, QASet
from zoo.isolation import isolated, learning
from zoo.progress import Progress, track
from zoo.weights import load_tensors

from .candidates import Candidate, Candidates, question
from .facts import UNSTATED
from .graph import Graph
from .parse import Parser, ParserModule
from .pointer import Example, Lessons, Pointer, batched, examples, made
from .questions import Controls, Pair, ask
from .score import f1
from .text import read

REMEMBERED = 16
"""Texts whose graphs are kept, so that the next question about one is quick."""
BATCH = 64
RATE = 3e-3
LEAST_STEPS, EPOCHS = 60, 3
"""Of ``train_reader``."""
LONG = 500
"""Steps from which a text is long: a notice says how many questions were left out."""
CHECKED = 24
"""Questions of ``zoo verify``."""
ENOUGH = 0.5
"""Token F1 that an answer of the round trip must reach."""


class Network(nn.Module):
    """The parser and the reader, in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = ParserModule()
        self.pointer = Pointer()


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence."""

    text: str
    kind: str
    """none, yes, no, number, material, size, unit, step, or the role that it fills."""
    start: int | None
    end: int | None
    """``text[start:end]`` of the procedure; None where the answer is not in it."""
    step: int | None
    """The step that it is from, from 0."""
    node: str | None
    """The graph's node."""
    score: float
    """Its probability among all candidates."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The next best answers."""


@dataclass(frozen=True)
class ProcedureQA(QASet):
    """Questions about a procedure, with what they were made from."""

    pairs: tuple[Pair, ...] = ()
    missing: Mapping[str, Any] = field(default_factory=dict)
    """``nodes`` and ``edges`` that no pair is about; ``notes``: what else should be known."""

    def to_squad(self, title: str = "") -> dict[str, Any]:
        """A document of SQuAD 2.0: as of SQuAD 1.1, and the questions that the text does not answer
        with ``is_impossible``. Yes, no and numbers are left out: SQuAD cannot hold them.
        """
        import hashlib

        document = super().to_squad(title)
        document["version"] = "v2.0"
        paragraph = document["data"][0]["paragraphs"][0]
        for row in paragraph["qas"]:
            row["is_impossible"] = False
        about = hashlib.sha256(self.text.encode())
        for pair in self.pairs:
            if pair.answer == UNSTATED:
                key = about.copy()
                key.update(f"\0{pair.question}\0".encode())
                paragraph["qas"].append(
                    {
                        "id": key.hexdigest()[:24],
                        "question": pair.question,
                        "answers": [],
                        "is_impossible": True,
                    }
                )
        return document


class _Reads(Model):
    """What generator and reader share: the network, parsed texts, answers."""

    module: Network

    def _start(self, network: Network, device: str | torch.device) -> None:
        with torch.no_grad():
            for parameter in network.parameters():  # as they are saved: 16-bit floats
                if not parameter.is_meta:
                    parameter.copy_(parameter.half())
        self.module = network.requires_grad_(False).eval().to(device)
        self._parser: Parser | None = None
        self._known: OrderedDict[tuple[str, bool], Candidates] = OrderedDict()

    @property
    def parser(self) -> Parser:
        """The parser alone."""
        if self._parser is None:
            self._parser = Parser(self.module.parser)
        return self._parser

    def forget(self) -> None:
        """Forget the texts that were read."""
        self._known.clear()

    def state(self) -> Mapping[str, Tensor]:
        """All tensors, weights as 16-bit floats, which is what they are; counts as they are."""
        learned = {name for name, _ in self.module.named_parameters()}
        return {k: v.half() if k in learned else v for k, v in self.module.state_dict().items()}

    def graph(self, text: str, *, force: bool = False) -> Graph:
        """The graph of a text. Raises InputError; see ``text.read``."""
        return self._candidates(text, force).graph

    def _candidates(self, text: str, force: bool = False) -> Candidates:
        key = (text, force)
        if not isinstance(text, str):
            raise InputError(f"expected a text, not {type(text).__name__}.")
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = Candidates(self.parser.graph(read(text, force=force)))
        self._known[key] = found
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def answer(
        self, question: str, text: str, *, step: int | None = None, force: bool = False
    ) -> str:
        """The answer in the words of the text; yes, no, a number, or "not stated".

        ``step``: the step that the person is at, from 1; a question may say it itself ("At step 3,
        how long?"). ``force``: also of a text that does not look English.
        """
        return self.explain(question, text, step=step, force=force).text

    def explain(
        self, question: str, text: str, *, step: int | None = None, force: bool = False
    ) -> Answer:
        """The answer with its place, step, node, probability and alternatives."""
        return self.explain_all([(question, step)], text, force=force)[0]

    @isolated()
    @torch.inference_mode()
    def explain_all(
        self, asked: Sequence[tuple[str, int | None]], text: str, *, force: bool = False
    ) -> list[Answer]:
        """The answers to (question, step from 1 or None) about one text."""
        about = self._candidates(text, force)
        nothing = np.zeros(len(about.items), bool)
        rows = []
        for said, step in asked:
            if not isinstance(said, str) or not said.strip():
                raise InputError("the question is empty: ask something about the text.")
            if step is not None and not 1 <= step <= len(about.graph.steps):
                raise InputError(f"step={step}: the text has {len(about.graph.steps)} steps.")
            rows.append((question(said, None if step is None else step - 1), nothing))
        found = []
        for i in range(0, len(rows), BATCH):
            batch = batched(made(about, rows[i : i + BATCH]), self.device)
            scores = self.module.pointer(batch)
            found += [_answer(about.items, row) for row in scores.softmax(1).cpu()]
        return found


def _answer(items: Sequence[Candidate], chances: Tensor) -> Answer:
    best, *others = chances.topk(min(4, len(items))).indices.tolist()
    item = items[best]
    return Answer(
        item.text,
        item.kind,
        None if item.place is None else item.place.start,
        None if item.place is None else item.place.end,
        item.step,
        item.node,
        float(chances[best]),
        tuple((items[i].text, float(chances[i])) for i in others),
    )


class GraphQA(_Reads, QAGenerator):
    """Questions and answers from a procedure's graph."""

    def __init__(self, request: BuildRequest, network: Network) -> None:
        super().__init__(request)
        self._start(network, request.device)

    def generate(
        self,
        text: str | Sequence[str],
        *,
        seed: int = 0,
        kinds: str | Sequence[str] | None = None,
        without: str | Sequence[str] = (),
        paraphrases: int = 1,
        short: bool = True,
        max_pairs: int = 0,
        negatives: float = 0.25,
        checked: bool = False,
        force: bool = False,
    ) -> ProcedureQA | list[ProcedureQA]:
        """A ``ProcedureQA`` with every question that the graph supports; a list for a list.

        ``kinds``, ``without``: types of questions to make or leave out, as a list or with commas.
        ``paraphrases``: ways to ask for the same, 1 to 10. ``short``: also what people say who are
        at a step ("At step 3, how long?"). ``max_pairs``: facts in turn up to this number; 0: all.
        ``negatives``: largest share of questions that the text does not answer. ``checked``: only
        questions that the bundled reader answers right, and the last one of each node. ``force``:
        also texts that do not look English. Raises InputError for text without steps, OptionError.
        """
        controls = Controls.of(
            kinds, without, paraphrases=paraphrases, short=short, max_pairs=max_pairs,
            negatives=negatives,
        )  # fmt: skip
        if isinstance(text, list | tuple):
            return [self._about(one, controls, seed, checked, force) for one in text]
        return self._about(text, controls, seed, checked, force)  # type: ignore[arg-type]

    def _about(
        self, text: str, controls: Controls, seed: int, checked: bool, force: bool
    ) -> ProcedureQA:
        graph = self.graph(text, force=force)
        _, pairs = ask(graph, controls, seed)
        notes = _notes(graph)
        if checked:
            kept = self._checked(pairs, text, force)
            notes.append(f"{len(pairs) - len(kept)} of {len(pairs)} questions left out: the reader "
                         "answered them otherwise.")  # fmt: skip
            pairs = kept
        if controls.max_pairs and len(pairs) == controls.max_pairs and len(graph.steps) > LONG:
            notes.append(f"only the first {len(pairs)} pairs: max_pairs.")
        asked = {node for pair in pairs for node in pair.nodes}
        edges = {pair.edge for pair in pairs}
        missing = {
            "nodes": [n.id for n in graph.nodes if n.id not in asked],
            "edges": [i for i in range(len(graph.edges)) if i not in edges],
            "notes": notes,
        }
        coverage = len(asked) / len(graph.nodes)
        return ProcedureQA(tuple(pairs), graph.plain(), coverage, text, missing)

    def _checked(self, pairs: Sequence[Pair], text: str, force: bool) -> list[Pair]:
        """The round trip: rule 8."""
        answers = self.explain_all([(p.question, None) for p in pairs], text, force=force)
        good = [f1(a.text, p.answer) >= ENOUGH for a, p in zip(answers, pairs, strict=True)]
        held = {node for p, ok in zip(pairs, good, strict=True) if ok for node in p.nodes}
        kept = []
        for pair, ok in zip(pairs, good, strict=True):
            if ok or not held >= {*pair.nodes}:
                held.update(pair.nodes)
                kept.append(pair)
        return kept

    def illustrate(self, qa: QASet, folder: Path, *, title: str = "") -> list[Path]:
        """``graph.svg``, ``graph.png`` and ``coverage.html``; returns them."""
        from .drawing import write

        return write(qa, folder, title, getattr(qa, "missing", {}))

    def run_check(self, path: Path) -> Mapping[str, Tensor]:
        """``places``: where the nodes of the check text are; ``answers``: the reader's
        probabilities for the first questions about it.
        """
        text = path.read_text("utf-8")
        graph = self.graph(text)
        about = self.generate(text)
        assert isinstance(about, ProcedureQA)
        told = self.explain_all([(p.question, None) for p in about.pairs[:CHECKED]], text)
        return {
            "places": torch.tensor([[n.start, n.end] for n in graph.nodes], dtype=torch.float32),
            "answers": torch.tensor([a.score for a in told]),
        }

    def train_reader(
        self,
        qa: Sequence[QASet],
        *,
        seed: int = 0,
        progress: Progress = False,
        steps: int | None = None,
        fresh: bool = False,
    ) -> Reader:
        """A reader trained on questions about their texts, from the bundled one.

        ``qa``: of ``generate``, or a ``QASet`` of your own pairs. ``steps``: optimizer steps; None:
        about three times through the questions. ``fresh``: start from random weights. Raises
        InputError if no question has an answer that the graph can give.
        """
        rng = np.random.default_rng(seed)
        rows: list[Example] = []
        for one in qa:
            if one.pairs:
                rows += examples(self._candidates(one.text, True), one.pairs, rng)
        if not rows:
            raise InputError(
                "no questions to learn from: each needs a text, and an answer that is a step, a "
                "material or a part of a step that the graph has, yes, no, or "
                f"{UNSTATED!r}."
            )
        wanted = steps or max(LEAST_STEPS, EPOCHS * len(rows) // BATCH)
        network = Network()
        network.load_state_dict(self.module.state_dict())
        if fresh:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network.pointer = Pointer()
        fit(network.pointer.to(self.device), rows, wanted, seed, progress)
        return Reader(self, network.cpu(), self.device)


class Reader(_Reads):
    """Answers questions about procedures; what ``train_reader`` returns."""

    kind = "reader"

    def __init__(self, made_from: Any, network: Network, device: str | torch.device) -> None:
        super().__init__(made_from)
        self._start(network, device)


@learning()
def fit(
    pointer: Pointer, rows: Sequence[Example], steps: int, seed: int, progress: Progress = False
) -> None:
    """Train a pointer on examples, with AdamW and a rate that falls along a cosine."""
    rng, lessons = np.random.default_rng(seed), Lessons(rows)
    pointer.requires_grad_(True)
    device = next(pointer.parameters()).device
    optimizer = torch.optim.AdamW(pointer.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with track(steps, progress, "train_reader") as advance:
        for _ in range(steps):
            loss = pointer.loss(lessons.draw(rng, min(BATCH, len(rows)), device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(pointer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance()
    pointer.requires_grad_(False)


def _notes(graph: Graph) -> list[str]:
    silent, notes = graph.silent, list[str]()
    if silent:
        places = ", ".join(str((n.step or 0) + 1) for n in silent[:8])
        more = ", ..." if len(silent) > 8 else ""
        notes.append(f"no action was found in {len(silent)} of {len(graph.steps)} steps "
                     f"({places}{more}): is this a procedure?")  # fmt: skip
    numbers = graph.procedure.numbers
    if any(b != a + 1 for a, b in itertools.pairwise(numbers)):
        said = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        notes.append(f"the text numbers its steps {said}: here they are counted in its order.")
    if graph.procedure.skipped:
        notes.append(f"{len(graph.procedure.skipped)} lines are neither materials nor steps.")
    return notes


def build(request: BuildRequest) -> GraphQA | Reader:
    """The generator, or a saved reader."""
    if request.dtype != "float32":
        raise DeviceError(f"dtype={request.dtype}: graph-qa computes in float32 only.")
    network = Network()
    if request.folder is not None:
        tensors = load_tensors(request.folder / "model.safetensors")
        network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=True)
    if request.saved and request.saved["kind"] == Reader.kind:
        return Reader(request, network, request.device)
    return GraphQA(request, network)
