"""The paper's last claim, which instruction rows serve a task, on a real language model.

A mixture of questions with their own answers, questions with another question's answer (CookDial)
and continuations of WikiText; the target: right pairs of other dialogues. What is trained is LoRA
on the upper fifth of the model's layers. The layers below are frozen, so what they give a row is
computed once (``Stack``). Each row of the table is kept in a work folder, under a digest of the
model and the settings: a finished one is not run again, an interrupted one goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.errors import MissingDependencyError
from zoo.experiment import Book
from zoo.weights import load_tensors, save_tensors

from .baselines import Unrolled, auroc, kept_bytes
from .instructions import IRRELEVANT, RIGHT, WRONG, Row, Rows, Sizes, read_rows
from .joint import Joint
from .model import BayesianDPS, Plan
from .sampler import Recipe, WeightSampler, plain
from .tasks import IGNORED, adamw

BATCH, RATE, KEEP = 8, 5e-4, 1 / 3
"""Rows of each set a step, AdamW's rate for LoRA, and the share of the mixture that is right."""
SEEDS, KEPT_EVERY = 2, 25
"""Seeds, and steps after which the state of an unfinished row is written."""


# --- the model ------------------------------------------------------------------------------------


class Stack:
    """The upper fifth of a causal language model, on what the frozen layers below give each row."""

    def __init__(self, folder: Path) -> None:
        try:
            import peft
            import transformers
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "--base language=... needs transformers and peft. Run: "
                "pip install 'edgezoo[bench]'",
                name=str(error.name),
            ) from error
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.net = transformers.AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
        ).eval()
        self.peft = peft
        layers = self.net.model.layers
        self.cut = 4 * len(layers) // 5
        self.lower = deepcopy(self.net.model)
        self.lower.layers = self.lower.layers[: self.cut + 1]
        self.net.model.layers = layers[self.cut :]
        self.hidden: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def below(self, ids: Sequence[int]) -> Tensor:
        """(T,d) what the upper layers take."""
        key = tuple(ids)
        if key not in self.hidden:
            found = self.lower(
                input_ids=torch.tensor([key]), output_hidden_states=True, use_cache=False
            )
            self.hidden[key] = found.hidden_states[self.cut][0].clone()
        return self.hidden[key]

    def collate(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Rows one after the other, without padding: positions start anew with each, and attention
        stays within a row. Logits are computed where an answer's token is next.

        ``labels`` (B,T) are padded by -100.
        """
        sizes = [len(row["input_ids"]) for row in rows]
        labels = torch.full((len(rows), max(sizes)), IGNORED)
        for i, row in enumerate(rows):
            labels[i, : sizes[i]] = torch.tensor(row["labels"])
        packed = torch.cat([torch.tensor([*row["labels"][1:], IGNORED]) for row in rows])
        return {
            "labels": labels,
            "inputs_embeds": torch.cat([self.below(row["input_ids"]) for row in rows])[None],
            "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
            "logits_to_keep": (packed != IGNORED).nonzero()[:, 0],
        }

    def adapted(self, seed: int) -> nn.Module:
        """A copy with LoRA on every linear layer, of the seed's first weights."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft is behind transformers
            torch.manual_seed(seed)
            config = self.peft.LoraConfig(
                r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            net: nn.Module = self.peft.get_peft_model(deepcopy(self.net), config)
            net.config.use_cache = False  # type: ignore[union-attr]
            return net


def answer_loss(output: Any, batch: Any) -> Tensor:
    """(B,) mean negative log-likelihood of the answer's tokens, in nats."""
    wanted = batch["labels"][:, 1:]
    counted = wanted != IGNORED
    losses = torch.zeros(wanted.shape, device=wanted.device)
    losses[counted] = functional.cross_entropy(
        output.logits[0].float(), wanted[counted], reduction="none"
    )
    return losses.sum(1) / counted.sum(1).clamp_min(1)


def forward(net: Callable[..., Any], batch: Any) -> Tensor:
    """(B,) losses of a batch of ``Stack.collate``."""
    return answer_loss(net(**{k: v for k, v in batch.items() if k != "labels"}), batch)


def losses_of(net: nn.Module, stack: Stack, rows: Sequence[Row]) -> Tensor:
    """(N,) of rows, in float32."""
    net.eval()
    with torch.no_grad():
        parts = [rows[i : i + 16] for i in range(0, len(rows), 16)]
        return torch.cat([forward(net, stack.collate(part)) for part in parts])


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
        self, make: Callable[[], Stack], data: Path, folder: Path, sizes: Sizes, seed: int
    ) -> None:
        self.make, self.data, self.folder, self.sizes, self.seed = make, data, folder, sizes, seed
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
        rows = read_rows(self.data, self.stack.tokenizer, self.sizes, self.seed)
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
        import zoo

        net, began = self.stack.adapted(self.seed), time.process_time()
        resumed = file.is_file()
        done = int(load_tensors(file)["sampler.counts"]) if resumed else 0
        made = zoo.load("bayesian-dps", keep=KEEP, device="cpu", dtype="bfloat16")
        assert isinstance(made, BayesianDPS)
        made.fit(
            self.rows.train, self.rows.target, model=net, loss=answer_loss,
            collate=self.stack.collate, lr=RATE, batch=BATCH, target_batch=BATCH, seed=self.seed,
            epochs=math.ceil(self.sizes.steps * BATCH / len(self.rows.train)), checkpoint=file,
            resume=resumed,
        )  # fmt: skip
        seconds = (time.process_time() - began) * self.sizes.steps / (self.sizes.steps - done)
        return self.cells(net, seconds, torch.from_numpy(made.weights))

    def trainer(self, file: Path) -> Found:
        """The method in transformers' Trainer."""
        from transformers import PrinterCallback, TrainingArguments
        from transformers.trainer_utils import get_last_checkpoint

        from .integration import WeightedTrainer

        folder, began = file.with_suffix(""), time.process_time()
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        done = int(last.rpartition("-")[2]) if last else 0
        net = self.stack.adapted(self.seed)
        trainer = WeightedTrainer(
            model=net, train_dataset=self.rows.train, target_dataset=self.rows.target,
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
        trainer.train(last)
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


def runs(base: Path, data: Path, work: Path, sizes: Sizes, seeds: Sequence[int]) -> dict[int, Runs]:
    """Of each seed, kept in a folder of ``work`` that says which model and settings they are of."""
    facts = hashlib.blake2b(repr((sizes, BATCH, RATE, KEEP)).encode(), digest_size=6)
    for weights in sorted(base.glob("*.safetensors")):
        with weights.open("rb") as opened:
            facts.update(hashlib.file_digest(opened, "sha256").digest())
    folder = work / f"language-{facts.hexdigest()}"
    stack = cache(lambda: Stack(base))
    return {seed: Runs(stack, data, folder, sizes, seed) for seed in seeds}


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
