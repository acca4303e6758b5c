"""What ``zoo.load("bayesian-dps")`` returns: the method behind the interface ``DataSelector``."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import (
    InputError,
    MissingDependencyError,
    NotReadyError,
    OptionError,
    WeightsError,
)
from zoo.hookspecs import BuildRequest
from zoo.interfaces import DataSelector
from zoo.isolation import learning
from zoo.tables import Table, matched, read
from zoo.weights import load_module, load_tensors, save_tensors

from . import report as reports
from . import tasks
from .data import called, check_classes, missing, numbered, require_two_classes, some_of
from .issues import wrong
from .joint import adam
from .networks import BUNDLED
from .run import Plan, Run, check_checkpoint, whole
from .sampler import Recipe

if TYPE_CHECKING:
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
        elif self._trained.kind in BUNDLED:
            save_tensors(folder / NETWORK, self._trained.net.state_dict())

    @property
    def network(self) -> nn.Module:
        """The trained network, in eval mode. NotReadyError before ``fit``, and for a selection
        loaded from a folder whose network was the caller's own."""
        if self._trained is not None:
            return self._trained.net
        made = self.config.get("network", {})
        if self._folder is not None and made.get("kind") in BUNDLED:
            build = BUNDLED[made["kind"]]
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

        ``target``: None where there are no trusted rows. Training rows whose label agrees with
        out-of-fold predictions then take its place (eq. 14), and the summary says so; only for
        classes.

        ``train``, ``target``: whatever ``zoo.tables.read`` takes: a path (.csv, .jsonl, .parquet,
        .npz, ..., one folder of pictures a class), arrays (x, y), a DataFrame, records, a torch or
        a ``datasets`` data set. ``features``, ``label``: names of columns, where they are unusual.
        ``model``: a torch module, trained in place; of a pair (x, y) it gets x, of a mapping the
        fields that its ``forward`` takes. None: the base, or a small network chosen by the kind of
        data. ``collate``: a list of rows, as they are in ``train`` and ``target``, -> a batch.
        ``loss``: (output, batch) -> (B,), or a loss of torch with ``reduction="none"``; None:
        cross-entropy, squared error, or the mean over answer tokens. ``lr``: learning rate; None:
        eq. 11 (transformers models: 2e-5 for text, 1e-4 for images). ``optimizer``: parameters ->
        optimiser. Langevin noise is added to the steps of SGD and Adam only (eq. 10); with any
        other, such as AdamW, the network is trained without noise. ``weight_features``: (output,
        batch) -> (B,d), the input of ``weighting="network"``.

        ``epochs``: over the training set; None: 3 for transformers, else 10 or 300 steps, whichever
        is more. ``batch``, ``target_batch`` (None: a quarter of it) rows of each set a step, in all
        processes together. ``sources`` (N,): the name of each example's source. ``retrain``: then
        train the network again, from its first state, on this share of the training set, the
        heaviest, and on the target. ``checkpoint``: a file, written after each epoch, from which
        ``resume=True`` continues. Raises InputError for data that cannot be used, OptionError for
        an argument out of its range, and OutputError for a checkpoint that cannot be written.
        """
        started = time.perf_counter()
        seed = whole("seed", seed, 0)
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
        if (model is None or target is None) and rows.kind != "language":
            require_two_classes(rows, wanted)
        notes = list(dict.fromkeys(str(w.message) for w in heard))
        if sources is not None and (
            isinstance(sources, str | bytes) or not hasattr(sources, "__len__")
        ):
            raise OptionError(f"sources={sources!r:.60}: expected one for each training example.")
        given = rows.sources if sources is None else sources
        if retrain is not None and round(retrain * len(rows)) < 1:
            raise OptionError(f"retrain={retrain!r} of {len(rows)} rows is less than one row.")
        check_checkpoint(checkpoint, resume)  # before the work
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
        run, trusted = Run(task, rows, wanted, plan, self._device, self._precision()), None
        if target is None:
            trusted = run.agreeing()
            wanted = some_of(rows, trusted.tolist(), "target")
            if absent := missing(rows, wanted):
                notes.append(
                    f"no label agrees with out-of-fold predictions in: {', '.join(absent[:10])}. "
                    "Right rows of these classes lose weight too. Pass target= with a few trusted "
                    "rows of each."
                )
            plan = replace(plan, m=len(wanted), target_batch=min(plan.target_batch, len(wanted)))
            run = replace(run, target=wanted, plan=plan)
            notes.append(
                f"there was no trusted set: {len(wanted):,} rows whose label agrees best with "
                "out-of-fold predictions took its place. Systematically wrong labels (two classes "
                "exchanged) agree too; to find those, pass a few hundred trusted rows as target."
            )
        elif recipe.warm_up and run.teaches_less():
            recipe = replace(recipe, warm_up=0.0)
            notes.append(
                "the target set is too small to start from: a network trained on the training set "
                "alone predicts it better. So the network learned from both sets from the start. "
                "To find systematically wrong labels (two classes exchanged), add trusted rows."
            )
        sampler, history = run.sample(recipe, progress, checkpoint, resume)
        self._found = {
            "weights": sampler.mean,
            "std": sampler.std,
            "losses": sampler.losses.clone(),
            "visits": sampler.visits.clone(),
        }
        for name, values in (("labels", labels), ("sources", origin)):
            if values is not None:
                self._found[name] = values.to(torch.int32)
        names = list(rows.classes)
        self.config = {**self.config, "classes": names if len(names) <= 1000 else []}
        if retrain is not None:
            assert first is not None
            task.net.load_state_dict(first)
            chosen = torch.from_numpy(self.select(fraction=retrain)).sort().values
            history += run.retrain(chosen, self._recipe().meta_weight, progress)
        task.net.eval()
        self._found["wrong"] = (
            wrong(sampler.losses, task.classes) if task.classes > 1 else 1 - sampler.mean
        )
        if (suggested := run.suggested()) is not None:
            self._found["suggested"] = suggested
        if trusted is not None:
            self._found["trusted"] = torch.zeros(len(rows), dtype=torch.int32)
            self._found["trusted"][trusted] = 1
        self._trained, self._folder = Trained(task.net, task.kind, task.processor), None
        self._train, self._target = rows, wanted
        self.bases = {}  # the trained network is in the saved folder
        summary = reports.summary(self._found, sampler, plan.steps, notes, names, origins)
        seconds = round(time.perf_counter() - started, 2)
        self.config = {
            **self.config,
            "report": {**summary, "seconds": seconds, "seed": seed, "history": history},
            "network": {"kind": task.kind, "config": task.config},
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
                    "the labels are numbers with fractions and not classes. "
                    "Round them, or pass model= with one output, trained by the squared error."
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

    def _precision(self) -> torch.dtype | None:
        """bfloat16 autocast where a dtype of 16 bits was asked for; parameters stay float32."""
        return torch.bfloat16 if self._dtype in ("bfloat16", "float16") else None

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
        """(N,) float32: posterior standard deviation of each weight (eq. 12)."""
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

        With neither ``fraction`` nor ``k``, as many as are probably right (see ``issues``).
        ``per="label"`` or ``"source"``: this fraction of each class or source. Warns with the
        classes of which a share less than a quarter of the overall one is kept. Raises OptionError
        for numbers out of range.
        """
        n = len(self.weights)
        if fraction is not None and k is not None:
            raise OptionError("select: give either fraction or k.")
        if fraction is None and k is None:
            if per is not None:
                raise OptionError(
                    f"per={per!r} needs a fraction: select(fraction=0.5, per={per!r})."
                )
            k = int((self._values("wrong") < 0.5).sum())
        if fraction is not None:
            share = isinstance(fraction, int | float) and not isinstance(fraction, bool)
            if not (share and 0 <= fraction <= 1):
                raise OptionError(f"fraction={fraction!r}: expected a number from 0 to 1.")
        elif whole("k", k, 0) > n:
            raise OptionError(f"k={k}: there are {n} training examples.")
        order = self.ranking()
        if per is None:
            chosen = order[: k if fraction is None else round(fraction * n)]
            if lost := self._lost(chosen):
                warnings.warn(
                    f"this selection keeps few rows of: {', '.join(lost[:10])} (less than one "
                    f"quarter of the {100 * len(chosen) / n:.0f} % that it keeps of all). Rare "
                    "looks like wrong: select(fraction=..., per='label') takes the same share of "
                    "each class.",
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
        """A DataFrame of the rows whose label is wrong with a probability of ``at_least`` or more,
        the most probable first: row, id (where rows have one), label, suggested (the likeliest of
        the other classes), probability, weight, and the file or text (where ``fit`` ran in this
        process).

        The probability is eq. 13, made for labels that are wrong at random; its sum over all rows
        estimates how many are wrong. It is too low for systematically wrong labels; the card has
        its measured error for both. Where the loss is not over classes it is 1 - weight, and
        nothing is suggested. Raises OptionError for ``at_least`` outside 0 to 1, and
        MissingDependencyError without pandas.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "issues() gives a DataFrame, which needs pandas. Run: pip install 'edgezoo[data]'",
                name="pandas",
            ) from error
        number = isinstance(at_least, int | float) and not isinstance(at_least, bool)
        if not (number and 0 <= at_least <= 1):
            raise OptionError(f"at_least={at_least!r}: expected a number from 0 to 1.")
        found = [self.row(i) for i in self._suspects(at_least)]
        return pandas.DataFrame(found, columns=None if found else list(self.row(0)))

    def _suspects(self, at_least: float) -> list[int]:
        p = self._values("wrong")
        order = np.lexsort((np.arange(len(p)), self.weights, -p))
        return [int(i) for i in order if p[i] >= at_least]

    def row(self, index: int) -> dict[str, Any]:
        """One training row for a table: row, id, label, suggested, probability that the label is
        wrong, weight, and its file or text where the rows are still here."""
        index, names = self._index(index), self.config.get("classes", [])
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

    def _index(self, index: int) -> int:
        n, index = len(self.weights), whole("index", index, 0)
        if index >= n:
            raise OptionError(f"index={index}: expected 0 to {n - 1}, a row of the training set.")
        return index

    def explain(self, index: int) -> Mapping[str, Any]:
        """What is known of one training example: weight, spread, rank, loss, visits, groups."""
        n, index = len(self.weights), self._index(index)
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
        """Write ``report.html`` and ``issues.jsonl`` to a folder; returns ``summary`` without the
        history.

        The page needs no connection. It has the 24 rows that are most probably wrong, a histogram,
        the lightest and heaviest examples (with pictures where ``fit`` ran in this process), and
        the weight of each class and source. ``issues.jsonl`` has all rows of ``issues()``.
        ``chosen``: a selection, whose share of each group is shown too.
        """
        summary = {k: v for k, v in self.summary.items() if k != "history"}
        reports.write(
            Path(folder), self._found, self.summary, self.config, self._train, chosen,
            [self.row(i) for i in self._suspects(0.5)],
        )  # fmt: skip
        return summary


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
