"""One run of a fit: which rows each step sees, the joint chain over all steps, its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from zoo.errors import InputError, OptionError, OutputError, ZooError
from zoo.progress import track, whole_steps
from zoo.tables import Table
from zoo.weights import check_target, load_tensors, save_tensors

from . import report as reports
from . import tasks
from .issues import suggested
from .joint import Joint, adam, per_example, rate
from .sampler import Recipe, WeightSampler, plain, together
from .trusted import FOLDS, Learner, agreeing, teaches_less

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo.progress import Progress


# --- the plan of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which rows each step sees: a function of the seed and the step alone, so runs can resume."""

    n: int
    m: int
    steps: int
    batch: int
    target_batch: int
    seed: int

    @classmethod
    def of(
        cls, n: int, m: int, epochs: int | None, batch: int | None, target_batch: int | None,
        kind: str, seed: int,
    ) -> Plan:  # fmt: skip
        batch = min(64, max(8, n // 8)) if batch is None else whole("batch", batch, 1)
        batch = min(batch, n)
        if target_batch is None:
            target_batch = max(1, batch // 4)
        target_batch = min(whole("target_batch", target_batch, 1), m)
        epoch = math.ceil(n / batch)
        if epochs is None:
            epochs = 3 if kind == "transformers" else max(10, math.ceil(300 / epoch))
        return cls(n, m, whole("epochs", epochs, 1) * epoch, batch, target_batch, seed)

    @property
    def epoch(self) -> int:
        """Steps in an epoch."""
        return math.ceil(self.n / self.batch)

    def rows_of(self, step: int, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices into both sets. ``chosen``: the rows of the training set to use."""
        epoch, place = divmod(step, self.epoch)
        order = _order(self.n, self.seed, 0, epoch)
        ids = order[place * self.batch : (place + 1) * self.batch]
        spots = range(step * self.target_batch, (step + 1) * self.target_batch)
        others = [_order(self.m, self.seed, 1, s // self.m)[s % self.m] for s in spots]
        return ids if chosen is None else chosen[ids], torch.tensor(others, dtype=torch.long)


_orders: dict[tuple[int, ...], Tensor] = {}


def _order(n: int, seed: int, which: int, epoch: int) -> Tensor:
    """A permutation, the same for the same arguments; the last few are kept."""
    key = (n, seed, which, epoch)
    if key not in _orders:
        if len(_orders) >= 4:
            _orders.pop(next(iter(_orders)))
        dice = torch.Generator().manual_seed((seed * 2 + which) * 1_000_003 + epoch)
        _orders[key] = torch.randperm(n, generator=dice)
    return _orders[key]


# --- a run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A network, rows of both sets, and the plan of its steps."""

    task: tasks.Task
    train: Table
    target: Table
    plan: Plan
    device: torch.device
    precision: torch.dtype | None = None
    """Of autocast."""

    @cached_property
    def labels(self) -> tuple[Tensor | None, Tensor | None]:
        """Of both sets."""
        return _labels(self.train, self.target, self.task.kind == "custom")

    def batch(self, ids: Tensor, others: Tensor) -> Any:
        """What the task's network takes: rows of the one set, then rows of the other."""
        y, wanted = self.labels
        return self.task.batch(
            [(self.train, ids.tolist(), y), (self.target, others.tolist(), wanted)]
        )

    def sample(
        self, recipe: Recipe, progress: Progress = False, checkpoint: str | Path | None = None,
        resume: bool = False, chosen: Tensor | None = None,
    ) -> tuple[WeightSampler, list[dict[str, float]]]:  # fmt: skip
        """The joint chain over all steps of the plan, and its history. ``chosen``: rows of the
        training set to use."""
        task, plan = self.task, self.plan
        wants_features = recipe.weighting == "network"
        width = self._width() if wants_features else 0
        sampler = WeightSampler(
            len(self.train), recipe, steps=plan.steps, classes=task.classes, features=width,
            seed=plan.seed,
        )  # fmt: skip
        optimiser = task.optimiser or adam(self._rate())
        joint = Joint(
            task.net, task.loss_of(wants_features), sampler, optimiser,
            seed=plan.seed, precision=self.precision,
        )  # fmt: skip
        file = Path(checkpoint) if checkpoint is not None else None
        facts = {"train": self.train.digest(), "target": self.target.digest(), "n": len(self.train),
                 "recipe": {k: getattr(recipe, k) for k in Recipe.__dataclass_fields__},
                 "plan": [plan.steps, plan.batch, plan.target_batch, plan.seed]}  # fmt: skip
        history: list[dict[str, float]] = []
        every = max(1, plan.steps // 100)
        with own_random(plan.seed, self.device), whole_steps() as stop:
            if resume:
                assert file is not None  # by check_checkpoint
                history = _go_on(joint, file, facts)
            task.net.train()
            with track(plan.steps, progress, "select") as advance:
                advance(sampler.step_number)
                while sampler.step_number < plan.steps:
                    ids, others = plan.rows_of(sampler.step_number, chosen)
                    mine = slice(None)
                    if together():
                        rank, world = distributed.get_rank(), distributed.get_world_size()
                        mine = slice(rank, None, world)
                    ids, others = ids[mine], others[mine]
                    inputs = moved(self.batch(ids, others), self.device)
                    try:
                        losses = joint.step(ids, inputs, len(others))
                    except InputError as error:
                        kept = "" if file is None or not file.is_file() else (
                            f" The last checkpoint is {file}; continue from it with resume=True."
                        )  # fmt: skip
                        raise InputError(f"{error}{kept}") from None
                    if sampler.step_number % every == 0:
                        history.append(reports.moment(sampler, *losses))
                    last = sampler.step_number == plan.steps or stop()
                    due = file is not None and (last or sampler.step_number % plan.epoch == 0)
                    if due and (not together() or distributed.get_rank() == 0):
                        assert file is not None
                        _keep(joint, file, facts, history)
                    if stop():
                        raise KeyboardInterrupt
                    advance()
        return sampler, history

    def retrain(
        self, chosen: Tensor, meta_weight: float, progress: Progress
    ) -> list[dict[str, float]]:
        """Plain training on the chosen rows and the target, for as many steps; its history."""
        shorter = replace(self, plan=replace(self.plan, n=len(chosen)))
        _, history = shorter.sample(plain(meta_weight), progress, chosen=chosen)
        return [{**point, "retrain": 1.0} for point in history]

    def _learner(self) -> Learner:
        """Of rows of the training set, then of the target set, by numbers from 0."""
        task, n = self.task, len(self.train)

        def batch_of(ids: Tensor) -> Any:
            return moved(self.batch(ids[ids < n], ids[ids >= n] - n), self.device)

        def logits_of(net: nn.Module, batch: Any) -> Tensor:
            return tasks.logits_of(task.forward(net, batch))

        optimiser = task.optimiser or adam(self._rate())
        return Learner(
            task.net,
            task.loss_of(False),
            optimiser,
            batch_of,
            logits_of,
            self.plan.batch,
            self.plan.seed,
        )

    def teaches_less(self) -> bool:
        """Is the target set too small to start from? Tested for classes and small networks only: it
        takes nearly as long as the run itself."""
        if self.task.classes < 2 or self.task.kind == "transformers" or self.target.codes is None:
            return False
        n, m = len(self.train), len(self.target)
        if m < 2 * FOLDS or together():
            return False
        with own_random(self.plan.seed, self.device):
            return teaches_less(
                self._learner(), torch.arange(n), torch.arange(n, n + m),
                torch.from_numpy(np.asarray(self.target.codes)),
            )  # fmt: skip

    def agreeing(self) -> Tensor:
        """Numbers of the training rows that take a target set's place."""
        rows = self.train
        with own_random(self.plan.seed, self.device):
            found = self._learner().out_of_fold(torch.arange(len(rows)))
        if found.shape[1] != len(rows.classes):
            raise InputError(
                f"target=None: the network gives {found.shape[1]} numbers a row, the labels have "
                f"{len(rows.classes)} classes. Pass target=, a few trusted rows."
            )
        kept = agreeing(found, torch.from_numpy(np.asarray(rows.codes)))
        if len(kept) < len(rows.classes):
            raise InputError(
                f"target=None: only {len(kept)} labels agree with out-of-fold predictions, which "
                "is too few to learn from. Pass target=, a few trusted rows."
            )
        return kept

    def suggested(self) -> Tensor | None:
        """(N,) int32 class that each training row should have, of the others; None where the
        network gives no classes."""
        task, rows = self.task, self.train
        if rows.codes is None or rows.kind == "language":
            return None
        codes, parts = torch.from_numpy(rows.codes), []
        with torch.no_grad():
            for ids in torch.arange(len(rows)).split(256):
                output = task.forward(task.net, moved(self.batch(ids, ids[:0]), self.device))
                logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
                if logits is None or logits.shape != (len(ids), len(rows.classes)):
                    return None
                parts.append(suggested(logits.float().cpu(), codes[ids]))
        return torch.cat(parts).to(torch.int32)

    def _rate(self) -> float:
        """The learning rate that suits the rows of the first batch."""
        ids, others = self.plan.rows_of(0)
        batch, loss_of = moved(self.batch(ids, others), self.device), self.task.loss_of(False)
        count = len(ids) + len(others)
        return rate(self.task.net, lambda net, b: per_example(loss_of(net, b)[0], count), batch)

    def _width(self) -> int:
        """Columns of the features that a weight network sees."""
        task, first = self.task, torch.tensor([0])
        inputs = moved(self.batch(first, first), self.device)
        was = task.net.training
        with torch.no_grad():
            found = task.features(task.forward(task.net.eval(), inputs), inputs)
        task.net.train(was)
        return int(found.shape[1])


# --- checkpoints ----------------------------------------------------------------------------------


def _keep(joint: Joint, file: Path, facts: Mapping[str, Any], history: list[Any]) -> None:
    text = json.dumps({**facts, "history": history}).encode()
    tensors = {**joint.state(), "torch": torch.get_rng_state(), "facts": _bytes(text)}
    if joint.device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(joint.device)
    save_tensors(file, tensors)


def check_checkpoint(checkpoint: Any, resume: bool) -> None:
    """Before the work: OutputError where a checkpoint cannot be written or would replace what is no
    checkpoint, InputError where there is none to resume from."""
    if not isinstance(checkpoint, str | Path | None):
        raise OptionError(f"checkpoint={checkpoint!r}: expected the path of a file.")
    if checkpoint is None:
        if resume:
            raise OptionError("resume=True needs checkpoint=, the file of the first run.")
        return
    file = Path(checkpoint)
    if resume:
        if not file.is_file():
            raise InputError(f"{file} does not exist, so no run can be resumed. Leave out resume.")
        return
    check_target(file, overwrite=True)
    if not file.is_file() or file.stat().st_size == 0:
        return
    try:
        ours = "facts" in load_tensors(file)
    except ZooError:
        ours = False
    if not ours:
        raise OutputError(
            f"checkpoint={str(file)!r} exists and is no checkpoint of this method, so it is not "
            "replaced. Choose another name."
        )


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _go_on(joint: Joint, file: Path, facts: Mapping[str, Any]) -> list[dict[str, float]]:
    tensors = load_tensors(file)
    if "facts" not in tensors:
        raise InputError(f"{file} is no checkpoint of this method.")
    kept = json.loads(bytes(tensors["facts"].tolist()))
    if kept["n"] != facts["n"]:
        raise InputError(
            f"{file} is for {kept['n']} training examples, there are {facts['n']} now. Weights "
            "belong to rows: start a new run, or use the data of the first run."
        )
    differs = [k for k in ("train", "target", "recipe", "plan") if kept[k] != facts[k]]
    if differs:
        raise InputError(
            f"{file} is from another run: {', '.join(differs)} differ. Start a new run, or use the "
            "data and settings of the first run."
        )
    joint.restore(tensors)
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], joint.device)
    history: list[dict[str, float]] = kept["history"]
    return history


# --- small things ---------------------------------------------------------------------------------


def moved(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [moved(value, device) for value in batch]
    return batch


@contextmanager
def own_random(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and the like from the seed; the caller's generators are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _labels(train: Table, target: Table, own: bool) -> tuple[Tensor | None, Tensor | None]:
    """Labels of both as tensors. A network of the caller's own gets whole numbers and floats as
    they are; texts and classes with names are numbered, in the order of ``classes``."""
    both = (train, target)
    given = [value for table in both for value in table.labels or ()]
    if train.labels is None or target.labels is None or (own and train.kind == "language"):
        return None, None
    if own and all(isinstance(v, float) for v in given):
        made = [torch.tensor(table.labels, dtype=torch.float32) for table in both]
    elif train.codes is None or target.codes is None:
        made = [torch.tensor([float(v) for v in t.labels or ()]) for t in both]
    elif own and all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
        made = [torch.tensor([int(v) for v in t.labels or ()]) for t in both]
    else:
        made = [torch.from_numpy(t.codes) for t in both if t.codes is not None]
    return made[0], made[1]


def whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) < 2**48:
        raise OptionError(f"{name}={value!r}: expected a whole number, {low} or more.")
    return int(value)
