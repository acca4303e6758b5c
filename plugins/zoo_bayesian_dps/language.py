"""The paper's last claim, which instruction rows serve a task, on a real language model.

A mixture of questions with their own answers, questions with another question's answer (CookDial)
and continuations of WikiText; the target: right pairs of other dialogues. What is trained is LoRA
on the upper fifth of the model's layers (``stack.py``), in bfloat16. Each row of the table is kept
in a work folder, under a digest of the model and the settings: a finished one is not run again, an
interrupted one goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.experiment import Book, load
from zoo.hookspecs import BenchRequest
from zoo.weights import load_tensors, save_tensors

from .baselines import Unrolled, auroc, kept_bytes
from .instructions import IRRELEVANT, RIGHT, WRONG, Row, Rows, Sizes, read_rows
from .joint import Joint
from .model import BayesianDPS
from .run import Plan
from .sampler import Recipe, WeightSampler, plain
from .stack import Stack, answer_loss, forward, losses_of
from .tasks import adamw

BATCH, RATE, KEEP = 8, 1e-4, 1 / 3
"""Rows of each set a step, AdamW's rate for LoRA, and the share of the mixture that is right."""
SEEDS, KEPT_EVERY = 2, 25
"""Seeds, and steps after which the state of an unfinished row is written."""


# --- rows of the table ----------------------------------------------------------------------------

OURS, MIXING, TARGET, UNIFORM = "bayesian-dps", "train + target", "target only", "uniform"
TUNED = "loss under a target-tuned model"
RETRAINED, TRAINER = f"{OURS}, retrained on its selection", f"{OURS}, in a Trainer"
LIKELIHOOD = "language: negative log-likelihood of held-out answers"
AUROC_WRONG = "language: AUROC, right against wrong answers"
AUROC_IRRELEVANT = "language: AUROC, right against irrelevant rows"
SECONDS, MEMORY = "language: CPU-seconds", "language: bytes kept for backward"
BILEVEL = "one-step bi-level"


@dataclass(frozen=True)
class Found:
    """A finished row: its cells by column (of ``MEMORY``: by row), and scores of the mixture's rows
    (N,), more is better."""

    cells: dict[str, float]
    scores: list[float] | None = None


class Runs:
    """The table's rows for one seed, and ``MEMORY``, each run once and kept in ``folder``."""

    def __init__(
        self,
        request: BenchRequest,
        make: Callable[[], Stack],
        folder: Path,
        sizes: Sizes,
        seed: int,
    ) -> None:
        self.request = replace(request, device="cpu", bases={})
        self.make, self.folder, self.sizes, self.seed = make, folder, sizes, seed
        self.rows_of: Mapping[str, Callable[[Path], Found]] = {
            TARGET: lambda file: self.trained(self.rows.target, [], file, scored=True),
            OURS: self.ours,
            MIXING: lambda file: self.trained(self.rows.train, self.rows.target, file),
            UNIFORM: lambda file: self.trained(self.rows.train, [], file),
            TUNED: lambda file: self.selected(TARGET, file),
            RETRAINED: lambda file: self.selected(OURS, file),
            TRAINER: self.trainer,
            MEMORY: self.memory,
        }

    def found(self, row: str) -> Found:
        """Of a row, which is run unless it was."""
        file = self.folder / f"{self.seed}-{row.replace(' ', '-')}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = self.rows_of[row](file.with_suffix(".safetensors"))
            kept = file.with_suffix(".part")
            kept.write_text(json.dumps(vars(made)), "utf-8")
            kept.replace(file)
        return Found(**json.loads(file.read_text("utf-8")))

    @cached_property
    def stack(self) -> Stack:
        return self.make()

    @cached_property
    def rows(self) -> Rows:
        assert self.request.data is not None
        rows = read_rows(self.request.data, self.stack.tokenizer, self.sizes, self.seed)
        for row in [*rows.train, *rows.target, *rows.held_out]:
            self.stack.below(row["input_ids"])
        return rows

    def cells(self, net: nn.Module, seconds: float, scores: Tensor | None = None) -> Found:
        found = {
            LIKELIHOOD: float(losses_of(net, self.stack, self.rows.held_out).mean()),
            SECONDS: seconds,
        }
        if scores is None:
            return Found(found)
        for column, kind in ((AUROC_WRONG, WRONG), (AUROC_IRRELEVANT, IRRELEVANT)):
            part = (self.rows.kind == RIGHT) | (self.rows.kind == kind)
            found[column] = auroc(scores[part], self.rows.kind[part] == RIGHT)
        return Found(found, scores.tolist())

    def trained(
        self, train: list[Row], target: list[Row], file: Path, scored: bool = False
    ) -> Found:
        """Plain training, whose state is kept in ``file``; ``scored``: with the loss of the
        mixture's rows afterwards, which counts in the seconds."""
        net, steps = self.stack.adapted(self.seed).train(), self.sizes.steps
        plan = Plan(len(train), len(target), steps, BATCH, BATCH if target else 0, self.seed)
        sampler = WeightSampler(len(train), plain(), steps=steps)
        joint = Joint(
            net, lambda net, batch: (forward(net, batch), None), sampler, adamw(RATE),
            precision=torch.bfloat16,
        )  # fmt: skip
        spent = torch.zeros(1, dtype=torch.float64)
        if file.is_file():
            kept = load_tensors(file)
            spent = kept.pop("spent")
            joint.restore(kept)
        began = time.process_time()
        while sampler.step_number < steps:
            ids, others = plan.rows_of(sampler.step_number)
            batch = [train[i] for i in ids] + [target[i] for i in others]
            joint.step(ids, self.stack.collate(batch), len(others))
            if sampler.step_number % KEPT_EVERY == 0:
                now = spent + time.process_time() - began
                save_tensors(file, {**joint.state(), "spent": now})
        scores = -losses_of(net, self.stack, self.rows.train) if scored else None
        return self.cells(net, float(spent) + time.process_time() - began, scores)

    def selected(self, ranked_by: str, file: Path) -> Found:
        """Plain training on the rows that another row of the table ranks highest, and the
        target."""
        ranking = self.found(ranked_by)
        scores = torch.tensor(ranking.scores)
        best = scores.argsort(descending=True, stable=True)[: round(KEEP * len(scores))].sort()
        chosen = [self.rows.train[i] for i in best.values.tolist()]
        made = self.trained(chosen, self.rows.target, file)
        return Found(
            {**ranking.cells, **made.cells, SECONDS: ranking.cells[SECONDS] + made.cells[SECONDS]}
        )

    def ours(self, file: Path) -> Found:
        """The method on the token rows, by ``fit``."""
        rows, net = self.rows, self.stack.adapted(self.seed)
        done = int(load_tensors(file)["sampler.counts"]) if file.is_file() else 0
        done %= self.sizes.steps  # one that was at its end starts anew: its seconds are not known
        began = time.process_time()
        made = load(self.request, keep=KEEP, dtype="bfloat16")
        assert isinstance(made, BayesianDPS)
        made.fit(
            rows.train, rows.target, model=net, loss=answer_loss,
            collate=self.stack.collate, lr=RATE, batch=BATCH, target_batch=BATCH, seed=self.seed,
            epochs=math.ceil(self.sizes.steps * BATCH / len(rows.train)), checkpoint=file,
            resume=done > 0,
        )  # fmt: skip
        seconds = (time.process_time() - began) * self.sizes.steps / (self.sizes.steps - done)
        return self.cells(net, seconds, torch.from_numpy(made.weights))

    def trainer(self, file: Path) -> Found:
        """The method in transformers' Trainer."""
        from transformers import PrinterCallback, TrainingArguments
        from transformers.trainer_utils import get_last_checkpoint

        from .integration import WeightedTrainer

        rows, net, folder = self.rows, self.stack.adapted(self.seed), file.with_suffix("")
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        done = int(last.rpartition("-")[2]) % self.sizes.steps if last else 0
        began = time.process_time()
        trainer = WeightedTrainer(
            model=net, train_dataset=rows.train, target_dataset=rows.target,
            data_collator=self.stack.collate, loss=answer_loss, target_batch_size=BATCH,
            recipe=Recipe(keep=KEEP, temperature=0),
            args=TrainingArguments(
                str(folder), max_steps=self.sizes.steps, per_device_train_batch_size=BATCH,
                learning_rate=RATE, lr_scheduler_type="cosine", weight_decay=0.01, max_grad_norm=0,
                save_steps=KEPT_EVERY, save_total_limit=1, bf16=True, use_cpu=True, report_to=[],
                disable_tqdm=True, logging_strategy="no", seed=self.seed,
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train(last if done else None)
        net = trainer.accelerator.unwrap_model(net, keep_fp32_wrapper=False)
        seconds = (time.process_time() - began) * self.sizes.steps / (self.sizes.steps - done)
        return self.cells(net, seconds, trainer.sampler.mean)

    def memory(self, file: Path) -> Found:
        """Of a step of the trained fifth in float32, with attention that has second derivatives:
        the faster kinds have none."""
        n, target = len(self.rows.train), self.rows.target
        ids = torch.arange(0, n, n // BATCH)[:BATCH]  # of every kind
        rows = [self.rows.train[i] for i in ids]
        both = self.stack.collate([*rows, *target[:BATCH]])

        def joint(recipe: Recipe) -> Callable[[], Any]:
            net = self.stack.adapted(self.seed).train()
            sampler = WeightSampler(n, recipe)
            made = Joint(net, lambda n, b: (forward(n, b), None), sampler, adamw(RATE))
            return lambda: made.step(ids, both, BATCH)

        unrolled = Unrolled(forward, self.stack.adapted(self.seed).train(), n)
        steps = {
            MIXING: joint(plain()),
            OURS: joint(Recipe(keep=KEEP)),
            BILEVEL: lambda: unrolled.step(
                ids, self.stack.collate(rows), self.stack.collate(target[:BATCH])
            ),
        }
        with sdpa_kernel(SDPBackend.MATH):
            return Found({row: float(kept_bytes(step)) for row, step in steps.items()})


# --- the whole ------------------------------------------------------------------------------------


def runs(
    request: BenchRequest, base: Path, work: Path, sizes: Sizes, seeds: Sequence[int]
) -> dict[int, Runs]:
    """Of each seed, kept in a folder of ``work`` that says which model and settings they are of."""
    facts = hashlib.blake2b(repr((sizes, BATCH, RATE, KEEP)).encode(), digest_size=6)
    for weights in sorted(base.glob("*.safetensors")):
        with weights.open("rb") as opened:
            facts.update(hashlib.file_digest(opened, "sha256").digest())
    folder = work / f"language-{facts.hexdigest()}"
    stack = cache(lambda: Stack(base))
    return {seed: Runs(request, stack, folder, sizes, seed) for seed in seeds}


def measure(book: Book, made: Mapping[int, Runs], advance: Callable[[], object]) -> None:
    """Every row of every seed; ``advance`` is called after each row."""
    for seed, of_seed in made.items():
        for row in of_seed.rows_of:
            for name, value in of_seed.found(row).cells.items():
                book.add(*((name, MEMORY) if row == MEMORY else (row, name)), value, seed)
            advance()


def claim(book: Book) -> None:
    """What the method has to show, whether it holds or not."""
    for what, column in (("wrong answers", AUROC_WRONG), ("irrelevant rows", AUROC_IRRELEVANT)):
        book.claim(
            f"language-{what.replace(' ', '-')}",
            f"On a language model, the weights rank right rows against {what} at least as well as "
            "the loss under a model tuned on the target.",
            book.better(OURS, TUNED, column),
        )
    book.claim(
        "language-likelihood",
        "On a language model, held-out answers are at least as likely as after training on both "
        "sets.",
        book.better(OURS, MIXING, LIKELIHOOD),
    )
    book.claim(
        "language-memory",
        "On a language model, a step keeps at most half of what a bi-level method's keeps.",
        book.times(OURS, BILEVEL, MEMORY, at_most=0.5, test="counted"),
    )
