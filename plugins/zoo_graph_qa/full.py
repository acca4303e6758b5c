"""graph-qa at the paper's size: an AMR parser, a question writer and a reader of transformers.

The parser (AMRBART) gives the graph of each instruction; the flow between them, facts, templates
and coverage are those of ``graph-qa``. The writer, any T5 that writes questions about a marked
answer, adds a question to each fact whose answer is in the text: the answer stays the graph's, so
nothing is lost. The reader is a T5, trained on such pairs by ``zoo train graph-qa-full``.

Page: rules 11 to 13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import DeviceError, InputError, NotReadyError
from zoo.hookspecs import BuildRequest
from zoo.interfaces import Model, QASet
from zoo.isolation import isolated, learning
from zoo.progress import Progress, track
from zoo.weights import load_tensors

from . import amr
from .corpora import Span
from .facts import UNSTATED
from .graph import Graph
from .model import Answer, GraphQA, Network, ProcedureQA
from .parse import Parser
from .questions import Pair, plain_words
from .text import Procedure, read

BUNDLED = Path(__file__).parent / "weights" / "graph-qa" / "model.safetensors"
"""The flow's weights are those of the small model."""
LONGEST = 512
"""Tokens of a question with its text."""
ANSWER_TOKENS, QUESTION_TOKENS, GRAPH_TOKENS = 48, 32, 512
BEAMS = 5
"""Of the parser, as its authors decode."""
BATCH = 16
RATE, EPOCHS = 3e-4, 3
"""Of ``train_reader``."""
_SENTENCE = re.compile(r"[^.!?;]+(?:[.](?=\d)[^.!?;]+)*[.!?;]*")


class Seq2Seq:
    """An encoder-decoder of transformers with its tokenizer."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = network, tokenizer

    @classmethod
    def opened(cls, folder: Path, device: str | torch.device = "cpu") -> Seq2Seq:
        """From a folder in transformers' layout; float32."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        network: Any = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
        network = network.requires_grad_(False).eval().to(device)
        return cls(network, AutoTokenizer.from_pretrained(folder))

    @isolated()
    @torch.inference_mode()
    def written(self, texts: Sequence[str], most: int, beams: int = 1) -> list[tuple[str, float]]:
        """What it writes for each text, and the mean probability of its words; no sampling."""
        found: list[tuple[str, float]] = []
        for k in range(0, len(texts), BATCH):
            rows = self._rows(texts[k : k + BATCH])
            made = self.network.generate(
                **rows, max_new_tokens=most, num_beams=beams, do_sample=False,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            scores = self.network.compute_transition_scores(
                made.sequences, made.scores, getattr(made, "beam_indices", None),
                normalize_logits=True,
            )  # fmt: skip
            for tokens, row in zip(made.sequences, scores, strict=True):
                real = row[torch.isfinite(row) & (row < 0)]
                chance = float(real.mean().exp()) if len(real) else 1.0
                found.append((self.tokenizer.decode(tokens, skip_special_tokens=True), chance))
        return found

    def loss(self, texts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """Cross-entropy of the targets' tokens, mean."""
        rows = self._rows(texts)
        wanted = self.tokenizer(
            list(targets), padding=True, truncation=True, max_length=ANSWER_TOKENS,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        wanted = wanted.masked_fill(wanted == self.tokenizer.pad_token_id, -100)
        made: Tensor = self.network(**rows, labels=wanted.to(self.network.device)).loss
        return made

    def _rows(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        kept = ("input_ids", "attention_mask")
        return {k: rows[k].to(self.network.device) for k in kept}


# --- the parser -----------------------------------------------------------------------------------


class AmrParser:
    """The graph of a procedure by a model that writes AMR: rule 11."""

    def __init__(self, model: Seq2Seq, flow: Parser) -> None:
        self._model, self._flow = model, flow
        self._known: dict[str, str] = {}

    def graph(self, procedure: Procedure) -> Graph:
        """Each sentence is parsed once, and remembered."""
        clean = procedure.clean
        places = [
            [(step.start + m.start(), step.start + m.end())
             for m in _SENTENCE.finditer(clean[step.start : step.end]) if m[0].strip()]
            for step in procedure.steps
        ]  # fmt: skip
        wanted = dict.fromkeys(clean[a:b].strip() for row in places for a, b in row)
        new = [text for text in wanted if text not in self._known]
        told = self._model.written(new, GRAPH_TOKENS, BEAMS)
        self._known.update({text: said for text, (said, _) in zip(new, told, strict=True)})
        steps, arcs = [], []
        for row in places:
            spans: list[Span] = []
            found: list[tuple[int, int, str, float]] = []
            for start, end in row:
                root = amr.read(self._known[clean[start:end].strip()])
                if root is not None:
                    more, roles = amr.roles(clean, start, end, root)
                    at = len(spans)
                    spans += more
                    found += [(head + at, tail + at, role, p) for head, tail, role, p in roles]
            steps.append(spans)
            arcs.append(found)
        return self._flow.joined(procedure, *_ordered(steps, arcs))


def _ordered(steps: Any, arcs: Any) -> tuple[Any, Any]:
    """Spans in the order of the text, and the arcs between them."""
    spans, roles = [], []
    for row, found in zip(steps, arcs, strict=True):
        order = sorted(range(len(row)), key=lambda i: row[i].start)
        place = {old: new for new, old in enumerate(order)}
        spans.append([row[i] for i in order])
        roles.append(sorted((place[h], place[t], role, p) for h, t, role, p in found))
    return spans, roles


# --- questions ------------------------------------------------------------------------------------


def marked(pair: Pair, text: str, around: tuple[int, int]) -> str:
    """A writer's input: the step with the answer between marks, as lmqg's models read it."""
    start, end = pair.start or 0, pair.end or 0
    a, b = around
    return f"generate question: {text[a:start]}<hl> {text[start:end]} <hl>{text[end:b]}"


def asked(question: str, step: int | None, text: str) -> str:
    """A reader's input."""
    at = "" if step is None else f" step: {step + 1}"
    return f"question: {question}{at} context: {' '.join(text.split())}"


class _T5Reads(Model):
    """What generator and reader share: answers by a T5, found in the text again."""

    reader: Seq2Seq

    def state(self) -> Mapping[str, Tensor]:
        """The reader's tensors; those that it shares only once."""
        tied: dict[int, str] = {}
        found = {}
        for name, tensor in self.reader.network.state_dict().items():
            if tied.setdefault(tensor.data_ptr(), name) == name:
                found[name] = tensor.contiguous()
        return found

    def save_files(self, folder: Path) -> None:
        self.reader.network.config.save_pretrained(folder)
        self.reader.tokenizer.save_pretrained(folder)

    def answer(
        self, question: str, text: str, *, step: int | None = None, force: bool = False
    ) -> str:
        """The answer in the words of the text; yes, no, a number, or "not stated"."""
        return self.explain_all([(question, step)], text, force=force)[0].text

    def explain_all(
        self, questions: Sequence[tuple[str, int | None]], text: str, *, force: bool = False
    ) -> list[Answer]:
        """Answers to (question, step from 1 or None). What the reader writes that is not in the
        text is "not stated": rule 13.
        """
        del force  # no graph is needed
        for said, _ in questions:
            if not isinstance(said, str) or not said.strip():
                raise InputError("the question is empty: ask something about the text.")
        if not isinstance(text, str) or not text.strip():
            raise InputError("the text is empty: give a procedure.")
        rows = [asked(q, None if s is None else s - 1, text) for q, s in questions]
        told = self.reader.written(rows, ANSWER_TOKENS)
        return [found(said, chance, text) for said, chance in told]


def found(said: str, chance: float, text: str) -> Answer:
    """An answer of a reader, at its place in the text."""
    said = said.strip()
    if said.lower() in ("yes", "no"):
        return Answer(said.lower(), said.lower(), None, None, None, None, chance)
    words = [re.escape(w) for w in said.split()]
    match = re.search(r"\s+".join(words), text, re.IGNORECASE) if words else None
    if match:
        return Answer(match[0], "span", match.start(), match.end(), None, None, chance)
    if said.isdigit():
        return Answer(said, "number", None, None, None, None, chance)
    return Answer(UNSTATED, "none", None, None, None, None, chance)


class GraphQAFull(_T5Reads, GraphQA):
    """Graphs by AMR, questions by templates and a writer, answers by a T5."""

    def __init__(self, request: BuildRequest, reader: Seq2Seq) -> None:
        network = Network()
        network.load_state_dict({k: v.float() for k, v in load_tensors(BUNDLED).items()})
        super().__init__(request, network)
        self.reader = reader
        models = {n: Seq2Seq.opened(b.folder, request.device)
                  for n, b in request.bases.items() if n != "reader" and b.folder}  # fmt: skip
        self.writer = models.get("writer")
        self._amr = AmrParser(models["parser"], self.parser) if "parser" in models else None

    def graph(self, text: str, *, force: bool = False) -> Graph:
        """The graph of a text. Raises InputError; NotReadyError without a parser."""
        if self._amr is None:
            raise NotReadyError(
                f"{self.entry.name} has no AMR parser: load it with base={{'parser': 'ORG/NAME'}}."
            )
        if not isinstance(text, str):
            raise InputError(f"expected a text, not {type(text).__name__}.")
        return self._amr.graph(read(text, force=force))

    def _about(
        self, text: str, controls: Any, seed: int, checked: bool, force: bool
    ) -> ProcedureQA:
        made = super()._about(text, controls, seed, checked, force)
        if self.writer is None or controls.max_pairs:
            return made
        return replace(made, pairs=(*made.pairs, *self._written(made)))

    def _written(self, made: ProcedureQA) -> list[Pair]:
        """A question by the writer for each fact that is in the text: rule 12."""
        steps = {n["id"]: (n["start"], n["end"]) for n in made.graph["nodes"]}
        facts = {(p.kind, p.nodes, p.start): p for p in reversed(made.pairs) if p.start is not None}
        rows = [(p, steps.get(f"s{p.step}", (p.start or 0, p.end or 0))) for p in facts.values()]
        inputs = [marked(p, made.text, around) for p, around in rows]
        told = self.writer.written(inputs, QUESTION_TOKENS) if self.writer else []
        known = {plain_words(p.question) for p in made.pairs}
        found = []
        for (pair, _), (said, _) in zip(rows, told, strict=True):
            said = said.strip()
            if said.endswith("?") and (plain := plain_words(said)) and plain not in known:
                known.add(plain)
                found.append(replace(pair, question=said, template=f"{pair.kind}/written"))
        return found

    def run_check(self, path: Path) -> Mapping[str, Tensor]:
        raise NotReadyError(f"{self.entry.name} has no check.")

    def train_reader(
        self, qa: Sequence[QASet], *, seed: int = 0, progress: Progress = False,
        steps: int | None = None, fresh: bool = False,
    ) -> Any:  # fmt: skip
        """A ``T5Reader``, this one's tuned on questions about their texts. ``steps``: optimizer
        steps; None: three times through. Raises InputError if there are no questions.
        """
        if fresh:
            raise InputError("fresh: a T5 is tuned, not trained from random weights.")
        rows = lessons(qa)
        reader = tuned(self.reader, rows, steps or max(1, EPOCHS * len(rows) // BATCH), seed,
                       progress)  # fmt: skip
        return T5Reader(self, reader)


class T5Reader(_T5Reads):
    """Answers questions about procedures; what ``train_reader`` returns."""

    kind = "reader"

    def __init__(self, made_from: Any, reader: Seq2Seq) -> None:
        super().__init__(made_from)
        self.reader = reader


def lessons(qa: Sequence[QASet]) -> list[tuple[str, str]]:
    """(input, answer) of each pair; every second one with its step. Raises InputError for none."""
    rows = [
        (asked(p.question, p.step if i % 2 else None, one.text), p.answer)
        for one in qa
        for i, p in enumerate(one.pairs)
        if one.text
    ]
    if not rows:
        raise InputError("no questions to learn from: each needs a text.")
    return rows


@learning()
def tuned(
    reader: Seq2Seq, rows: Sequence[tuple[str, str]], steps: int, seed: int, progress: Progress
) -> Seq2Seq:
    """A copy of the reader after AdamW steps on rows, the rate falling to 0."""
    from copy import deepcopy

    network = deepcopy(reader.network).requires_grad_(True)
    made = Seq2Seq(network, reader.tokenizer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    rng = np.random.default_rng(seed)
    with track(steps, progress, "train_reader") as advance:
        for _ in range(steps):
            chosen = [rows[i] for i in rng.integers(0, len(rows), BATCH)]
            made.loss(*zip(*chosen, strict=True)).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            advance()
    network.requires_grad_(False).eval()
    return made


def build_full(request: BuildRequest) -> GraphQAFull | T5Reader:
    """A trained folder, or a reader that ``train_reader`` saved."""
    if request.dtype != "float32":
        raise DeviceError(f"dtype={request.dtype}: graph-qa-full computes in float32 only.")
    assert request.folder is not None  # untrained: there is no other way here
    reader = Seq2Seq.opened(request.folder, request.device)
    if request.saved and request.saved["kind"] == T5Reader.kind:
        return T5Reader(request, reader)
    return GraphQAFull(request, reader)
