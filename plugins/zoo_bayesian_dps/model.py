"""What ``zoo.load("bayesian-dps")`` returns: the method behind the interface ``DataSelector``."""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from zoo.errors import (
    InputError,
    MissingDependencyError,
    NotReadyError,
    OptionError,
    OutputError,
    WeightsError,
    ZooError,
)
from zoo.hookspecs import BuildRequest
from zoo.interfaces import DataSelector
from zoo.isolation import learning
from zoo.progress import track, whole_steps
from zoo.tables import Table, matched, read
from zoo.weights import check_target, load_module, load_tensors, save_tensors

from . import report as reports
from . import tasks
from .data import called, check_classes, numbered, some_of
from .issues import suggested, wrong
from .joint import Joint, adam, per_example, rate
from .sampler import Recipe, WeightSampler, plain, together
from .trusted import FOLDS, Learner, agreeing, teaches_less

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo.progress import Progress

TENSORS = (
    "weights", "std", "losses", "visits", "labels", "sources", "wrong", "suggested", "trusted",
)  # fmt: skip
NETWORK = "network.safetensors"
Fit = TypeVar("Fit", bound=Callable[..., Any])


@dataclass(frozen=True)
class Trained:
    """The network that a fit trained."""

    net: nn.Module
    kind: str
    """As of a ``Task``."""
    processor: Any
    """A tokenizer of transformers, or None."""


def _or_nothing(fit: Fit) -> Fit:
    """A fit that is refused or interrupted leaves the last one whole."""

    @wraps(fit)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *args, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(Fit, run)


class BayesianDPS(DataSelector):
    """Weights of training examples, sampled beside the network that is trained with them.

    ``fit`` trains the network handed in, in place (with none, a small one that suits the data);
    it is ``network`` afterwards. ``weights`` are posterior means, ``weights_std`` their spread.
    """

    kind = "selection"

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        self._device = torch.device(request.device)
        self._dtype = request.dtype
        base = request.bases.get("model")
        self._base = base.folder if base else None
        self._found: dict[str, Tensor] = {}
        self._trained: Trained | None = None
        self._train: Table | None = None
        self._target: Table | None = None
        self._folder: Path | None = None
        file = request.folder / "model.safetensors" if request.folder else None
        if request.folder is not None and file is not None and file.is_file():
            self._restore(load_tensors(file), str(file))
            self._folder = request.folder

    # --- state ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: str | torch.device) -> Self:
        self._device = torch.device(device)
        if self._trained is not None:
            self._trained.net.to(self._device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: as in a saved folder, the user's rows are not part of it."""
        return {**vars(self), "_train": None, "_target": None}

    def state(self) -> Mapping[str, Tensor]:
        """``weights``, ``std``, ``losses`` (N,) float32, ``visits`` and, where there are any,
        ``labels`` and ``sources`` (N,) int32; empty before ``fit``."""
        return self._found

    def _restore(self, tensors: Mapping[str, Tensor], where: str) -> None:
        unknown = [name for name in tensors if name not in TENSORS]
        n = len(tensors["weights"]) if "weights" in tensors else 0
        wrong = [k for k, t in tensors.items() if t.shape != (n,) or not t.float().isfinite().all()]
        if unknown or not n or wrong:
            what = ", ".join(unknown + wrong) or "no weights"
            raise WeightsError(f"{where} is no selection of {self.entry.name}: {what}.")
        if float(tensors["weights"].min()) < 0 or float(tensors["weights"].max()) > 1:
            raise WeightsError(f"{where}: weights outside 0 to 1.")
        self._found = dict(tensors)

    def save_files(self, folder: Path) -> None:
        """The trained network, where it is not the caller's own module, beside the weights."""
        if self._trained is None:
            for name in (NETWORK, "network"):
                kept = self._folder / name if self._folder else None
                if kept is not None and kept.is_file():
                    shutil.copyfile(kept, folder / name)
                elif kept is not None and kept.is_dir():
                    shutil.copytree(kept, folder / name)
        elif self._trained.kind == "transformers":
            self._trained.net.save_pretrained(folder / "network")  # type: ignore[operator]
            if self._trained.processor is not None:
                self._trained.processor.save_pretrained(folder / "network")
        elif self._trained.kind in tasks.BUNDLED:
            save_tensors(folder / NETWORK, self._trained.net.state_dict())

    @property
    def network(self) -> nn.Module:
        """The trained network, in eval mode. NotReadyError before ``fit``, and for a selection
        loaded from a folder whose network was the caller's own."""
        if self._trained is not None:
            return self._trained.net
        made = self.config.get("network", {})
        if self._folder is not None and made.get("kind") in tasks.BUNDLED:
            build = tasks.BUNDLED[made["kind"]]
            file = self._folder / NETWORK
            return load_module(lambda: build(**made["config"]), file, device=self._device)
        if self._folder is not None and (self._folder / "network").is_dir():
            raise NotReadyError(
                f"the trained transformers model is in {self._folder / 'network'}: load it with "
                "its class's from_pretrained."
            )
        raise NotReadyError(f"{self.entry.name} has no trained network here: call fit first.")

    # --- fitting ----------------------------------------------------------------------------------

    @learning()
    @_or_nothing
    def fit(  # options are spelled out
        self,
        train: Any,
        target: Any,
        *,
        model: Any = None,
        loss: tasks.Loss | None = None,
        epochs: int | None = None,
        seed: int = 0,
        progress: Progress = False,
        batch: int | None = None,
        target_batch: int | None = None,
        lr: float | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        collate: Callable[[Sequence[Any]], Any] | None = None,
        features: str | Sequence[str] | None = None,
        label: str | None = None,
        weight_features: Callable[[Any, Any], Tensor] | None = None,
        sources: Sequence[Any] | None = None,
        retrain: float | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn weights for ``train`` (N examples) that serve ``target``, and train; returns self.

        ``target``: None where there are no trusted rows: those whose label agrees with predictions
        out of fold then take its place (eq. 14), which the summary says; for classes only.

        ``train``, ``target``: whatever ``zoo.tables.read`` takes: a path (.csv, .jsonl, .parquet,
        .npz, ..., one folder of pictures a class), arrays (x, y), a DataFrame, records, a torch or
        a ``datasets`` data set. ``features``, ``label``: columns, where they have other names than
        usual. ``model``: a torch module, trained in place; of a pair it gets x, of a mapping with
        tensors the fields that it takes. None: the base, or a small network that suits the data.
        ``collate``: a list of rows, as they are in ``train`` and ``target``, -> what the module
        takes. ``loss``: (output, batch) -> (B,), or one of torch's with ``reduction="none"``; None:
        cross-entropy, squared error, or the mean over answer tokens. ``optimizer``: parameters ->
        optimiser; the network's Langevin noise is for SGD only: on others' steps it would sample
        nothing. ``weight_features``: (output, batch) -> (B,d), what ``weighting="network"`` sees.

        ``epochs``: over the training set; None: 3 for transformers, else 10 or 300 steps, whichever
        is more. ``batch``, ``target_batch`` (None: a quarter of it) rows of each set a step, in all
        processes together. ``sources`` (N,): which source each example is from. ``retrain``: after
        this, train the network anew from its first state on this share of the training set, the
        heaviest, and on the target. ``checkpoint``: a file that is written after each epoch and
        goes on with ``resume``. Raises InputError for data that cannot be used.
        """
        started = time.perf_counter()
        seed = _whole("seed", seed, 0)
        share = isinstance(retrain, int | float) and not isinstance(retrain, bool)
        if retrain is not None and not (share and 0 < retrain <= 1):
            raise OptionError(f"retrain={retrain!r}: expected a share above 0 and up to 1.")
        if callable(features):
            raise OptionError("features= names columns; a function goes to weight_features=.")
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            rows = read(train, what="train", features=features, label=label)
            wanted = rows
            if target is not None:
                given_target = read(target, what="target", features=features, label=label)
                rows, wanted = matched(rows, given_target)
                check_classes(rows, wanted)
            elif rows.codes is None:
                raise InputError(
                    "target=None is for rows with classes: there is no out-of-fold prediction that "
                    "a label could agree with. Pass target=, a few trusted rows."
                )
        notes = list(dict.fromkeys(str(w.message) for w in heard))
        if sources is not None and (
            isinstance(sources, str | bytes) or not hasattr(sources, "__len__")
        ):
            raise OptionError(f"sources={sources!r:.60}: expected one for each training example.")
        given = rows.sources if sources is None else sources
        origin, _, origins = numbered(given, wanted.sources, "source")
        if origin is not None and len(origin) != len(rows):
            raise InputError(f"sources: {len(origin)} for {len(rows)} training examples.")
        for note in notes:
            warnings.warn(note, stacklevel=4)  # beyond the decorators
        recipe = self._recipe()
        task = self._task_for(rows, wanted, model, loss, collate, weight_features, recipe)
        task = replace(task, classes=_choices(rows, loss))
        if optimizer is not None or lr is not None:
            task = replace(task, optimiser=_optimiser(task.optimiser or adam(1e-3), optimizer, lr))
        labels = None if rows.codes is None else torch.from_numpy(rows.codes)
        plan = Plan.of(len(rows), len(wanted), epochs, batch, target_batch, task.kind, seed)
        task.net.to(self._device)
        first = deepcopy(task.net.state_dict()) if retrain is not None else None
        trusted = None
        if target is None:
            trusted = self._agreeing(task, rows, plan)
            wanted = some_of(rows, trusted.tolist(), "target")
            plan = replace(plan, m=len(wanted), target_batch=min(plan.target_batch, len(wanted)))
            notes.append(
                f"there was no trusted set: {len(wanted):,} rows whose label agrees most surely "
                "with out-of-fold predictions took its place. Labels that are wrong in a "
                "systematic way (two classes exchanged) agree too; a few hundred trusted rows find "
                "those."
            )
        elif recipe.warm_up and self._teaches_less(task, rows, wanted, plan):
            recipe = replace(recipe, warm_up=0.0)
            notes.append(
                "the training set as it is teaches more than the target set alone: the network "
                "learned from both from the start. Labels that are wrong in a systematic way need "
                "more trusted rows than these."
            )
        both = _Both(task, rows, wanted)
        sampler, history = self._sample(both, task, recipe, plan, progress, checkpoint, resume)
        self._found = {
            "weights": sampler.mean,
            "std": sampler.std,
            "losses": sampler.losses.clone(),
            "visits": sampler.visits.clone(),
        }
        for name, values in (("labels", labels), ("sources", origin)):
            if values is not None:
                self._found[name] = values.to(torch.int32)
        if retrain is not None:
            assert first is not None
            task.net.load_state_dict(first)
            chosen = torch.from_numpy(self.select(fraction=retrain)).sort().values
            history += self._retrain(both, task, chosen, plan, progress)
        task.net.eval()
        self._judge(both, task, rows)
        if trusted is not None:
            self._found["trusted"] = torch.zeros(len(rows), dtype=torch.int32)
            self._found["trusted"][trusted] = 1
        self._trained, self._folder = Trained(task.net, task.kind, task.processor), None
        self._train, self._target = rows, wanted
        self.bases = {}  # the trained network is in the saved folder
        names = list(rows.classes)
        summary = reports.summary(self._found, sampler, plan.steps, notes, names, origins)
        seconds = round(time.perf_counter() - started, 2)
        self.config = {
            **self.config,
            "report": {**summary, "seconds": seconds, "seed": seed, "history": history},
            "network": {"kind": task.kind, "config": task.config},
            "classes": names if len(names) <= 1000 else [],
            "sources": origins if len(origins) <= 1000 else [],
            "train": rows.digest(),
        }
        return self

    def _recipe(self) -> Recipe:
        known = Recipe.__dataclass_fields__
        return replace(Recipe(), **{k: v for k, v in self.options.items() if k in known})

    def _task_for(
        self, rows: Table, wanted: Table, model: Any, loss: Any, collate: Any, features: Any,
        recipe: Recipe,
    ) -> tasks.Task:  # fmt: skip
        """What is to be trained."""
        if model is not None:
            if not isinstance(model, nn.Module):
                raise InputError(
                    f"model={model!r:.60}: expected a torch module. A model from elsewhere is the "
                    f"base: zoo.load({self.entry.name!r}, base='org/model'), or zoo select --model."
                )
            return tasks.own(model, rows, loss, collate, features)
        for name, value in (("collate", collate), ("weight_features", features)):
            if value is not None:
                raise OptionError(f"{name}= is for a network of your own: pass model= too.")
        if rows.kind not in ("custom", "language"):
            for table in (rows, wanted):
                table.require_labels()
            if rows.codes is None:
                raise InputError(
                    "the labels are numbers with fractions, no classes. "
                    "Round them, or pass model= with one output: it learns by the squared error."
                )
        if self._base is not None:
            wide = recipe.weighting == "network"
            task = tasks.transformers_task(self._base, rows, rows.classes, wide)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                task = tasks.bundled(rows)
        if loss is not None:
            task = replace(task, loss=tasks.as_loss(loss))
        return task

    def _sample(
        self, both: _Both, task: tasks.Task, recipe: Recipe, plan: Plan, progress: Progress,
        checkpoint: str | Path | None, resume: bool, chosen: Tensor | None = None,
    ) -> tuple[WeightSampler, list[dict[str, float]]]:  # fmt: skip
        """The joint chain over all steps of the plan."""
        wants_features = recipe.weighting == "network"
        width = self._width(task, both) if wants_features else 0
        sampler = WeightSampler(
            len(both.train), recipe, steps=plan.steps, classes=task.classes, features=width,
            seed=plan.seed,
        )  # fmt: skip
        optimiser = task.optimiser or adam(self._rate(task, both, plan))
        precision = torch.bfloat16 if self._precision() else None
        joint = Joint(
            task.net, task.loss_of(wants_features), sampler, optimiser,
            seed=plan.seed, precision=precision,
        )  # fmt: skip
        if not isinstance(checkpoint, str | Path | None):
            raise OptionError(f"checkpoint={checkpoint!r}: expected the path of a file.")
        file = Path(checkpoint) if checkpoint is not None else None
        if file is not None and not resume:
            _refuse_taken(file)
        facts = {"train": both.train.digest(), "target": both.target.digest(), "n": len(both.train),
                 "recipe": {k: getattr(recipe, k) for k in Recipe.__dataclass_fields__},
                 "plan": [plan.steps, plan.batch, plan.target_batch, plan.seed]}  # fmt: skip
        history: list[dict[str, float]] = []
        every = max(1, plan.steps // 100)
        with _own_random(plan.seed, self._device), whole_steps() as stop:
            if resume:
                if file is None:
                    raise OptionError("resume=True needs checkpoint=, the file of the first run.")
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
                    inputs = moved(both.batch(ids, others), self._device)
                    try:
                        losses = joint.step(ids, inputs, len(others))
                    except InputError as error:
                        kept = "" if file is None or not file.is_file() else (
                            f" The last checkpoint is {file}; go on with resume=True."
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

    def _retrain(
        self, both: _Both, task: tasks.Task, chosen: Tensor, plan: Plan,
        progress: Progress,
    ) -> list[dict[str, float]]:  # fmt: skip
        """Plain training on the chosen rows and the target, for as many steps."""
        _, history = self._sample(
            both, task, plain(self._recipe().meta_weight), replace(plan, n=len(chosen)), progress,
            None, False, chosen,
        )  # fmt: skip
        return [{**point, "retrain": 1.0} for point in history]

    def _learner(self, task: tasks.Task, rows: Table, wanted: Table, plan: Plan) -> Learner:
        """Of rows of the training set, then of the target set, by numbers from 0."""
        both, n = _Both(task, rows, wanted), len(rows)

        def batch_of(ids: Tensor) -> Any:
            return moved(both.batch(ids[ids < n], ids[ids >= n] - n), self._device)

        def logits_of(net: nn.Module, batch: Any) -> Tensor:
            return tasks.logits_of(task.forward(net, batch))

        optimiser = task.optimiser or adam(self._rate(task, both, plan))
        return Learner(
            task.net, task.loss_of(False), optimiser, batch_of, logits_of, plan.batch, plan.seed
        )

    def _teaches_less(self, task: tasks.Task, rows: Table, wanted: Table, plan: Plan) -> bool:
        """Is the target set too little to start from? Asked of classes and small networks only:
        the answer costs half a run."""
        if task.classes < 2 or task.kind == "transformers" or wanted.codes is None:
            return False
        n, m = len(rows), len(wanted)
        if m < 2 * FOLDS or together():
            return False
        with _own_random(plan.seed, self._device):
            return teaches_less(
                self._learner(task, rows, wanted, plan), torch.arange(n), torch.arange(n, n + m),
                torch.from_numpy(np.asarray(wanted.codes)),
            )  # fmt: skip

    def _agreeing(self, task: tasks.Task, rows: Table, plan: Plan) -> Tensor:
        """Numbers of the rows that take a target set's place."""
        with _own_random(plan.seed, self._device):
            found = self._learner(task, rows, rows, plan).out_of_fold(torch.arange(len(rows)))
        if found.shape[1] != len(rows.classes):
            raise InputError(
                f"target=None: the network gives {found.shape[1]} numbers a row, the labels have "
                f"{len(rows.classes)} classes. Pass target=, a few trusted rows."
            )
        kept = agreeing(found, torch.from_numpy(np.asarray(rows.codes)))
        if len(kept) < len(rows.classes):
            raise InputError(
                f"target=None: only {len(kept)} rows agree with out-of-fold predictions, which is "
                "too few to learn from. Pass target=, a few trusted rows."
            )
        return kept

    def _judge(self, both: _Both, task: tasks.Task, rows: Table) -> None:
        """How probably each row's label is wrong, and what it should be."""
        found = self._found
        found["wrong"] = (
            wrong(found["losses"], task.classes) if task.classes > 1 else 1 - found["weights"]
        )
        if rows.codes is None or rows.kind == "language":
            return
        codes, parts = torch.from_numpy(rows.codes), []
        with torch.no_grad():
            for ids in torch.arange(len(rows)).split(256):
                output = task.forward(task.net, moved(both.batch(ids, ids[:0]), self._device))
                logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
                if logits is None or logits.shape != (len(ids), len(rows.classes)):
                    return
                parts.append(suggested(logits.float().cpu(), codes[ids]))
        found["suggested"] = torch.cat(parts).to(torch.int32)

    def _rate(self, task: tasks.Task, both: _Both, plan: Plan) -> float:
        """The learning rate that suits the rows of the first batch."""
        ids, others = plan.rows_of(0)
        batch, loss_of = moved(both.batch(ids, others), self._device), task.loss_of(False)
        count = len(ids) + len(others)
        return rate(task.net, lambda net, b: per_example(loss_of(net, b)[0], count), batch)

    def _precision(self) -> bool:
        """bfloat16 autocast where a dtype of 16 bits was asked for; parameters stay float32."""
        return self._dtype in ("bfloat16", "float16")

    def _width(self, task: tasks.Task, both: _Both) -> int:
        """Columns of the features that a weight network sees."""
        inputs = moved(both.batch(torch.tensor([0]), torch.tensor([0])), self._device)
        was = task.net.training
        with torch.no_grad():
            found = task.features(task.forward(task.net.eval(), inputs), inputs)
        task.net.train(was)
        return int(found.shape[1])

    # --- use --------------------------------------------------------------------------------------

    @property
    def weights(self) -> np.ndarray:
        """(N,) float32 in [0, 1], in the order of ``train``: posterior means."""
        return self._values("weights")

    @property
    def ids(self) -> Sequence[Any] | None:
        """(N,) what the rows of ``train`` are called, where they have an id; None else, and for a
        selection that was loaded."""
        return self._train.ids if self._train is not None else None

    @property
    def weights_std(self) -> np.ndarray:
        """(N,) float32: spread of each weight along the chain, after the burn-in."""
        return self._values("std")

    def _values(self, name: str) -> np.ndarray:
        if name not in self._found:
            if self._found:
                raise NotReadyError(f"the training set has no {name}.")
            raise NotReadyError(f"{self.entry.name} is not fitted: call fit(train, target) first.")
        found: np.ndarray = self._found[name].cpu().numpy()
        return found

    def ranking(self) -> np.ndarray:
        """(N,) int64: all indices, heaviest first, ties by index."""
        return np.argsort(-self.weights, kind="stable")

    def select(
        self, *, fraction: float | None = None, k: int | None = None, per: str | None = None
    ) -> np.ndarray:
        """(k,) int64 indices into ``train``, heaviest first, ties by index.

        With neither ``fraction`` nor ``k`` as many as the estimate says are right (see ``issues``).
        ``per``: ``label`` or ``source`` takes this fraction of each class or source. A warning says
        where a class loses most of its rows.
        """
        n = len(self.weights)
        if fraction is not None and k is not None:
            raise OptionError("select: give either fraction or k.")
        if fraction is None and k is None:
            if per is not None:
                raise OptionError(f"per={per!r} is for a fraction.")
            k = int((self._values("wrong") < 0.5).sum())
        if fraction is not None:
            if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
                raise OptionError(f"fraction={fraction!r}: expected a number from 0 to 1.")
        elif _whole("k", k, 0) > n:
            raise OptionError(f"k={k}: there are {n} training examples.")
        order = self.ranking()
        if per is None:
            chosen = order[: k if fraction is None else round(fraction * n)]
            if lost := self._lost(chosen):
                warnings.warn(
                    f"this selection leaves less than a quarter of what it leaves of the whole set "
                    f"of: {', '.join(lost[:10])}. Rare looks like wrong: select(fraction=..., "
                    "per='label') takes the same share of each class.",
                    stacklevel=2,
                )
            return chosen
        if per not in ("label", "source") or fraction is None:
            raise OptionError(f"per={per!r}: expected label or source, with a fraction.")
        group = self._values(f"{per}s")[order]
        taken = np.zeros(n, bool)
        for value in np.unique(group):
            members = np.flatnonzero(group == value)
            taken[members[: round(fraction * len(members))]] = True
        return order[taken]

    def _lost(self, chosen: np.ndarray) -> list[str]:
        """Classes whose kept share is below a quarter of the whole selection's, of those that would
        have ten rows or more in it."""
        if "labels" not in self._found or not len(chosen):
            return []
        labels, names = self._values("labels"), self.config.get("classes", [])
        rows = np.bincount(labels)
        kept = np.bincount(labels[chosen], minlength=len(rows)) / np.maximum(rows, 1)
        share = len(chosen) / len(labels)
        few = np.flatnonzero((rows * share >= 10) & (kept < 0.25 * share))
        return [names[i] if i < len(names) else str(i) for i in few]

    def issues(self, *, at_least: float = 0.5) -> Any:
        """A DataFrame of the rows whose label is wrong with a probability of ``at_least``, the
        likeliest first: row, id (where rows have one), label, suggested, probability, weight, and
        the file or text (where ``fit`` ran in this process).

        The probability is eq. 13: for labels that are wrong at random it is calibrated, and its sum
        over all rows estimates how many are wrong; systematic exchanges it underestimates. Without
        classes it is 1 - weight, and nothing is suggested.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "issues() gives a DataFrame, which needs pandas. Run: pip install 'edgezoo[data]'",
                name="pandas",
            ) from error
        if isinstance(at_least, bool) or not isinstance(at_least, int | float):
            raise OptionError(f"at_least={at_least!r}: expected a number from 0 to 1.")
        return pandas.DataFrame([self.row(i) for i in self._suspects(at_least)])

    def _suspects(self, at_least: float) -> list[int]:
        p = self._values("wrong")
        order = np.lexsort((np.arange(len(p)), self.weights, -p))
        return [int(i) for i in order if p[i] >= at_least]

    def row(self, index: int) -> dict[str, Any]:
        """One training row for a table: row, id, label, suggested, probability that the label is
        wrong, weight, and its file or text where the rows are still here."""
        names = self.config.get("classes", [])
        found: dict[str, Any] = {"row": index}
        if self.ids is not None:
            found["id"] = self.ids[index]
        for key in ("labels", "suggested"):
            if key in self._found:
                number = int(self._found[key][index])
                name = "label" if key == "labels" else key
                found[name] = names[number] if number < len(names) else number
        found["probability"] = round(float(self._values("wrong")[index]), 5)
        found["weight"] = float(self.weights[index])
        if self._train is not None:
            found |= called(self._train.raw([index])[0])
        return found

    def explain(self, index: int) -> Mapping[str, Any]:
        """What is known of one training example: weight, spread, rank, loss, visits, groups."""
        n, index = len(self.weights), _whole("index", index, 0)
        if index >= n:
            raise OptionError(f"index={index}: there are {n} training examples.")
        rank = int(np.flatnonzero(self.ranking() == index)[0])
        found: dict[str, Any] = {
            "index": index,
            "weight": float(self.weights[index]),
            "std": float(self.weights_std[index]),
            "rank": rank,
            "percentile": 100 * (1 - rank / n),
            "mean_loss": float(self._found["losses"][index]),
            "visits": int(self._found["visits"][index]),
        }
        for name, kind in (("labels", "classes"), ("sources", "sources")):
            if name in self._found:
                number, known = int(self._found[name][index]), self.config.get(kind, [])
                found[name[:-1]] = known[number] if number < len(known) else number
        return found

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the fit found: mean weight, thresholds, shares, per-class and per-source mass,
        warnings, history."""
        self._values("weights")
        found: Mapping[str, Any] = self.config["report"]
        return found

    def report(self, folder: str | Path, chosen: np.ndarray | None = None) -> Mapping[str, Any]:
        """Write ``report.html`` and its pictures to a folder; returns ``summary``, history aside.

        The histogram, the lightest and heaviest examples (where ``fit`` ran in this process), mass
        by class and source. ``chosen``: a selection, whose share of each group is shown too.
        """
        summary = {k: v for k, v in self.summary.items() if k != "history"}
        reports.write(
            Path(folder), self._found, self.summary, self.config, self._train, chosen,
            [self.row(i) for i in self._suspects(0.5)[: reports.SHOWN]],
        )  # fmt: skip
        return summary


# --- the plan of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which rows each step sees: a function of the seed and the step alone, so runs can go on."""

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
        batch = min(64, max(8, n // 8)) if batch is None else _whole("batch", batch, 1)
        batch = min(batch, n)
        if target_batch is None:
            target_batch = max(1, batch // 4)
        target_batch = min(_whole("target_batch", target_batch, 1), m)
        epoch = math.ceil(n / batch)
        if epochs is None:
            epochs = 3 if kind == "transformers" else max(10, math.ceil(300 / epoch))
        return cls(n, m, _whole("epochs", epochs, 1) * epoch, batch, target_batch, seed)

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
def _own_random(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and the like from the seed; the caller's generators are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Both:
    """Both sets as batches of a task: rows of the one, then rows of the other."""

    def __init__(self, task: tasks.Task, train: Table, target: Table) -> None:
        self.task, self.train, self.target = task, train, target
        self.labels = _labels(train, target, task.kind == "custom")

    def batch(self, ids: Tensor, others: Tensor) -> Any:
        """What the task's network takes."""
        y, wanted = self.labels
        return self.task.batch(
            [(self.train, ids.tolist(), y), (self.target, others.tolist(), wanted)]
        )


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


def _choices(rows: Table, loss: Any) -> int:
    """Classes among which the loss chooses; 0 where it is not known to be -log p of a class."""
    known = loss is None or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    numbers = all(isinstance(v, float) for v in rows.labels or ())
    if not known or rows.codes is None or rows.kind == "language" or numbers:
        return 0
    return len(rows.classes)


def _optimiser(
    usual: Callable[[Any], torch.optim.Optimizer], given: Any, lr: Any
) -> Callable[[Any], torch.optim.Optimizer]:
    """The caller's way to make an optimiser, or the task's own, at a rate of the caller's."""
    if given is not None and not callable(given):
        raise OptionError(
            f"optimizer={given!r:.40}: expected a function from parameters to an optimiser, such "
            "as lambda p: torch.optim.SGD(p, lr=0.1)."
        )
    make: Callable[[Any], torch.optim.Optimizer] = given or usual
    if lr is None:
        return make
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr > 0:
        raise OptionError(f"lr={lr!r}: expected a positive number.")

    def changed(parameters: Any) -> torch.optim.Optimizer:
        found = make(parameters)
        for group in found.param_groups:
            group["lr"] = float(lr)
        return found

    return changed


def _keep(joint: Joint, file: Path, facts: Mapping[str, Any], history: list[Any]) -> None:
    text = json.dumps({**facts, "history": history}).encode()
    tensors = {**joint.state(), "torch": torch.get_rng_state(), "facts": _bytes(text)}
    if joint.device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(joint.device)
    save_tensors(file, tensors)


def _refuse_taken(file: Path) -> None:
    """OutputError, before the work, where a checkpoint cannot be written or would replace what is
    no checkpoint."""
    check_target(file, overwrite=True)
    if not file.is_file() or file.stat().st_size == 0:
        return
    try:
        ours = "facts" in load_tensors(file)
    except ZooError:
        ours = False
    if not ours:
        raise OutputError(
            f"checkpoint={str(file)!r} is there and is no checkpoint of this method, so it is not "
            "replaced. Choose another name."
        )


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _go_on(joint: Joint, file: Path, facts: Mapping[str, Any]) -> list[dict[str, float]]:
    if not file.is_file():
        raise InputError(f"{file} is not there: nothing to go on with. Start without resume.")
    tensors = load_tensors(file)
    if "facts" not in tensors:
        raise InputError(f"{file} is no checkpoint of this method.")
    kept = json.loads(bytes(tensors["facts"].tolist()))
    if kept["n"] != facts["n"]:
        raise InputError(
            f"{file} is of {kept['n']} training examples, there are {facts['n']} now. Weights "
            "belong to rows: start anew, or bring back the data of the first run."
        )
    differs = [k for k in ("train", "target", "recipe", "plan") if kept[k] != facts[k]]
    if differs:
        raise InputError(
            f"{file} is of another run: {', '.join(differs)} differ. Start anew, or go back to the "
            "data and settings of the first run."
        )
    joint.restore(tensors)
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], joint.device)
    history: list[dict[str, float]] = kept["history"]
    return history


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) < 2**48:
        raise OptionError(f"{name}={value!r}: expected a whole number, {low} or more.")
    return int(value)
