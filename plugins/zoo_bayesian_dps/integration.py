"""The method inside a transformers ``Trainer``: mixed precision, several processes, checkpoints.

    from zoo_bayesian_dps.integration import WeightedTrainer

    trainer = WeightedTrainer(model=model, args=args, train_dataset=train, target_dataset=target,
                              data_collator=collator, recipe=Recipe(keep=0.3, temperature=0))
    trainer.train()
    trainer.sampler.mean        # (N,) posterior mean weights

Own loops, with accelerate or without, need no more than ``WeightSampler`` (see there): between
processes it gathers losses by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from zoo.errors import InputError
from zoo.weights import load_tensors, save_tensors

from .joint import per_example
from .sampler import Recipe, WeightSampler
from .tasks import default_features, default_loss

ID = "example_id"
FILE = "instance_weights.safetensors"


class Numbered:
    """A data set whose rows (mappings) carry their number, and only the fields of the model."""

    def __init__(self, rows: Any, fields: set[str] | None) -> None:
        self.rows, self.fields = rows, fields

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.of_model(self.rows[i]), ID: i}

    def of_model(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row that the model takes."""
        return {k: v for k, v in row.items() if self.fields is None or k in self.fields}


class BothSets:
    """A collator: the training rows of a batch and rows of the target set, padded together.

    Which target rows follows from the training rows, so that workers, processes and resumed runs
    agree without sharing a state.
    """

    def __init__(
        self, collate: Callable[[list[Any]], Any], target: Numbered, count: int, seed: int
    ) -> None:
        self.collate, self.target, self.count, self.seed = collate, target, count, seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if ID not in rows[0]:  # evaluation
            return dict(self.collate([self.target.of_model(row) for row in rows]))
        mine = [dict(row) for row in rows]
        ids = [row.pop(ID) for row in mine]
        mixed = hash((self.seed, *ids)) % 2**62
        dice = torch.Generator().manual_seed(mixed)
        chosen = torch.randint(len(self.target), (self.count,), generator=dice).tolist()
        others = [dict(self.target[i]) for i in chosen]
        for row in others:
            del row[ID]
        return {**self.collate(mine + others), ID: torch.tensor(ids)}


class WeightedTrainer(Trainer):
    """A ``Trainer`` that learns a weight for each row of ``train_dataset`` beside the training.

    The loss of each example is the mean over its labels that are not -100; ``loss``: another
    (output, batch) -> (B,). ``target_batch_size``: rows of the target set for each device batch
    (default a quarter). The network's steps have no noise (the Trainer's AdamW does not sample).
    """

    def __init__(
        self,
        *args: Any,
        target_dataset: Any,
        recipe: Recipe | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        features: int = 0,
        target_batch_size: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*args, **keywords)
        self.recipe = recipe or Recipe(temperature=0.0)
        if self.train_dataset is None or not hasattr(self.train_dataset, "__len__"):
            raise InputError("train_dataset: weights need rows by index, and their number.")
        if not len(target_dataset):
            raise InputError("target_dataset is empty: there is nothing to serve.")
        self.per_example = loss or default_loss
        self._sampler_options = {"features": features}
        fields = None
        assert self.model is not None
        if self.args.remove_unused_columns:
            taken = inspect.signature(self.model.forward).parameters
            fields = {*taken, *(self.label_names or ()), "labels", "label", "label_ids"}
        self.args.remove_unused_columns = False  # would drop the numbers of the rows
        self.count = len(self.train_dataset)
        self.train_dataset = Numbered(self.train_dataset, fields)
        rows = target_batch_size or max(1, self.args.train_batch_size // 4)
        self.data_collator = BothSets(
            self.data_collator, Numbered(target_dataset, fields), rows, self.args.seed
        )
        # The loss is a mean over examples: the Trainer has to divide it by the accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.sampler = self._sampler(None)
        self._resume_from: str | None = None
        self.add_callback(_Steps(self))

    def _sampler(self, steps: int | None) -> WeightSampler:
        return WeightSampler(
            self.count, self.recipe, steps=steps, seed=self.args.seed,
            **self._sampler_options,
        )  # fmt: skip

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **keywords: Any) -> Any:
        """As ``Trainer.train``; weights go on from the checkpoint too."""
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        self._resume_from = str(found) if found else None
        return super().train(resume_from_checkpoint, *args, **keywords)

    def log(self, logs: dict[str, float], *args: Any, **keywords: Any) -> None:
        """With the mean weight and the loss threshold."""
        logs["mean_weight"] = self.sampler.mean_weight
        logs["loss_threshold"] = self.sampler.threshold
        super().log(logs, *args, **keywords)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """mean_I(w l) + rho mean_J l where a batch has both sets, else the plain mean."""
        inputs = dict(inputs)
        ids = inputs.pop(ID, None)
        given = {k: v for k, v in inputs.items() if k != "labels"}
        wide = self.sampler.amortised
        output = model(**given, output_hidden_states=True) if wide else model(**given)
        count = len(next(iter(inputs.values())))
        losses = per_example(self.per_example(output, inputs), count)
        if ids is None or not model.training:
            return (losses.mean(), output) if return_outputs else losses.mean()
        b = len(ids)
        if not bool(losses.isfinite().all()):
            wrong = ids[~losses[:b].isfinite()].tolist()
            where = f"of the training examples {wrong[:10]}" if wrong else "on the target set"
            raise InputError(
                f"step {self.state.global_step}: the loss {where} is NaN or infinite. Check these "
                "rows (a row of tokens needs a label that is not -100), or lower learning_rate. "
                f"Checkpoints are in {self.args.output_dir}."
            )
        seen = default_features(output, inputs)[:b].detach() if wide else None
        coefficients = self.sampler.coefficients(ids, seen).to(losses)
        total = (coefficients * losses[:b]).mean()
        total = total + self.recipe.meta_weight * losses[b:].mean()
        self.sampler.observe(ids, losses[:b], features=seen)
        return (total, output) if return_outputs else total


class _Steps(TrainerCallback):
    """The sampler's step at each optimiser step, and its state beside each checkpoint."""

    def __init__(self, trainer: WeightedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        sampler = self.trainer._sampler(state.max_steps)
        if self.trainer._resume_from is not None:
            file = Path(self.trainer._resume_from) / FILE
            if not file.is_file():
                raise InputError(f"{file} is missing: the checkpoint has no instance weights.")
            sampler.restore(load_tensors(file))
        self.trainer.sampler = sampler

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.sampler.update()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if folder.is_dir():
                save_tensors(folder / FILE, self.trainer.sampler.state())
