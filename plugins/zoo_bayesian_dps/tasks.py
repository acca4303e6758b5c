"""What is trained: a network, how rows become its batch, and the loss of each example.

A user's own module with a user's own loss; a transformers model; or one of four small networks that
suit the data (images, features, text with labels, language), so that the method works at once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from zoo.errors import InputError, MissingDependencyError, OptionError, ZooError
from zoo.tables import Table

from .data import collated, pixels_of
from .joint import adam
from .networks import BUNDLED, MLP, ByteLM, pieces

Loss = Callable[[Any, Any], Tensor]
"""(output, batch) -> losses (B,)."""
TEXT_RATE = 0.03
"""Adam's, for the bag of words: a word's embedding moves only where the word occurs."""
IGNORED = -100
"""Label of a token that the loss leaves out, as transformers has it."""


@dataclass
class Task:
    """Everything that ``fit`` needs to know about a network and its data."""

    net: nn.Module
    collate: Callable[[Any, Tensor | None], Any]
    """(inputs, labels) -> batch: what ``Table.rows`` gives, and (B,) or None."""
    forward: Callable[[nn.Module, Any], Any]
    loss: Loss
    features: Callable[[Any, Any], Tensor]
    """(output, batch) -> (B,d), what a weight network sees: the label or answer included."""
    optimiser: Callable[[Any], torch.optim.Optimizer] | None = None
    """None: Adam at the rate that suits the rows (``joint.rate``)."""
    kind: str = "custom"
    """custom, transformers, or the name of a bundled network."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments that build a bundled network again."""
    processor: Any = None
    """A tokenizer, saved beside a transformers model."""
    raw: bool = False
    """Does ``collate`` take a list of rows as the user has them, and no labels?"""
    classes: int = 0
    """Among which the loss, -log p, chooses; 0 for any other loss."""

    def batch(self, parts: Sequence[tuple[Table, Sequence[int], Tensor | None]]) -> Any:
        """Rows of several tables, with their labels (N,) or None, as one batch."""
        parts = [part for part in parts if len(part[1])]
        if self.raw:
            rows = [row for table, ids, _ in parts for row in table.raw(ids)]
            return self.collate(rows, None)
        found = [table.rows(ids) for table, ids, _ in parts]
        inputs = (
            np.concatenate(found)
            if isinstance(found[0], np.ndarray)
            else [row for rows in found for row in rows]
        )
        labels = [y[torch.as_tensor(ids)] for _, ids, y in parts if y is not None]
        return self.collate(inputs, torch.cat(labels) if len(labels) == len(parts) else None)

    def loss_of(self, wants_features: bool) -> Callable[[nn.Module, Any], Any]:
        """As ``Joint`` calls it."""

        def run(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
            output = self.forward(net, batch)
            seen = self.features(output, batch).detach() if wants_features else None
            return self.loss(output, batch), seen

        return run


def adamw(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """AdamW, for language models."""
    return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.01)


# --- losses ---------------------------------------------------------------------------------------


def logits_of(output: Any) -> Tensor:
    """The tensor in a network's output."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the network gives a {type(output).__name__} without logits: pass loss=, a function "
            "(output, batch) -> one loss for each example."
        )
    return found


def labels_in(batch: Any) -> Tensor | None:
    """The labels of a batch: the second of a pair, or the field of that name."""
    if isinstance(batch, Mapping):
        found = next((batch[k] for k in ("labels", "label", "y") if k in batch), None)
    else:
        found = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    return found if isinstance(found, Tensor) else None


def default_loss(output: Any, batch: Any) -> Tensor:
    """(B,) cross-entropy for classes, mean over tokens for language, squared error for numbers."""
    logits, labels = logits_of(output), labels_in(batch)
    if labels is None:
        raise InputError("the batch has no labels: expected pairs (x, y) or a field 'labels'.")
    if logits.ndim == 3 and labels.ndim == 2:
        return token_loss(logits, labels)
    if labels.ndim == 1 and logits.ndim == 2 and logits.shape[1] > 1 and _whole(labels):
        labels = labels.long()
    if logits.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point():
        return functional.cross_entropy(logits.float(), labels, reduction="none")
    if labels.is_floating_point() and logits.numel() == labels.numel():
        squares = (logits.reshape(labels.shape).float() - labels).square()
        return squares.reshape(len(labels), -1).mean(1)
    raise InputError(
        f"no default loss for outputs {tuple(logits.shape)} and labels {tuple(labels.shape)}: "
        "pass loss=, a function (output, batch) -> one loss for each example."
    )


def _whole(labels: Tensor) -> bool:
    return bool((labels == labels.round()).all()) if labels.is_floating_point() else True


def as_loss(loss: Any) -> Loss:
    """The caller's (output, batch) -> (B,), or one of torch's losses on output and labels."""
    if not callable(loss):
        raise OptionError(
            f"loss={loss!r:.40}: expected a function (output, batch) -> (B,), or one of torch's "
            "losses with reduction='none'."
        )

    def of_torch(output: Any, batch: Any) -> Tensor:
        logits, labels = logits_of(output), labels_in(batch)
        if labels is None:
            raise InputError("the batch has no labels: expected pairs (x, y) or a field 'labels'.")
        classes = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss)
        if classes and labels.ndim == 1 and _whole(labels):
            labels = labels.long()
        elif not classes:
            labels = labels.to(logits.dtype)
            labels = labels.reshape(logits.shape) if labels.numel() == logits.numel() else labels
        losses: Tensor = loss(logits, labels)
        return losses.reshape(len(losses), -1).mean(1) if losses.ndim > 1 else losses

    def checked(output: Any, batch: Any) -> Tensor:
        try:
            found: Tensor = (of_torch if isinstance(loss, _Loss) else loss)(output, batch)
        except FAULTS as error:
            raise_own(error)
            name = getattr(loss, "__name__", type(loss).__name__)
            raise InputError(
                f"loss={name} fails on {_said(output)} and the batch {_said(batch)}: {error}. It "
                "is called as loss(output, batch); labels are batch[1], or the batch's field."
            ) from error
        return found

    return checked


FAULTS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What code of torch and of a caller raises on data that it cannot take."""


def raise_own(error: Exception) -> None:
    """Raise again what is said in words already, and what is no fault of the data."""
    if isinstance(error, ZooError | torch.OutOfMemoryError):
        raise error


def _said(value: Any) -> str:
    """A batch or an output for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_said(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return "(" + ", ".join(map(_said, value)) + ")"
    return f"of {type(value).__name__}"


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) mean negative log-likelihood of the next token, where ``labels`` (B,T) are not -100.

    The mean and not the sum: else long answers would weigh more than short ones. NaN for a row
    without such a label: it has nothing to learn, and 0 would be the loss of a perfect answer.
    """
    losses = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], reduction="none",
        ignore_index=IGNORED,
    )  # fmt: skip
    counted = labels[:, 1:] != IGNORED
    return (losses * counted).sum(1) / counted.sum(1)


def default_features(output: Any, batch: Any) -> Tensor:
    """(B,d): log-probabilities and the label's one-hot; for language the mean hidden state."""
    hidden = getattr(output, "hidden_states", None)
    labels = labels_in(batch)
    if hidden is not None and isinstance(batch, Mapping):
        mask = torch.ones_like(hidden[-1][:, :, :1])
        if "attention_mask" in batch:
            mask = batch["attention_mask"][:, :, None].to(hidden[-1])
        return (hidden[-1] * mask).sum(1) / mask.sum(1).clamp_min(1)
    logits = logits_of(output)
    if logits.ndim == 2 and labels is not None and labels.ndim == 1:
        seen = functional.log_softmax(logits.float(), 1)
        if labels.is_floating_point():
            return torch.cat([logits.float(), labels[:, None].float()], 1)
        return torch.cat([seen, functional.one_hot(labels, logits.shape[1]).float()], 1)
    if logits.ndim == 3 and labels is not None:
        return functional.log_softmax(logits.float(), -1).mean(1)
    raise InputError(
        "weighting='network' has no default features for this network: pass weight_features=, a "
        "function (output, batch) -> (B, d) that includes the label or answer."
    )


# --- a user's own network -------------------------------------------------------------------------


def own(net: nn.Module, train: Table, loss: Any, collate: Any, features: Any) -> Task:
    """A torch module: of a pair (x, y) it gets x, of a mapping the fields that it takes.

    Floats come in the type of its parameters.
    """
    accepted = inspect.signature(net.forward).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name, given in (("collate", collate), ("weight_features", features)):
        if given is not None and not callable(given):
            raise OptionError(f"{name}={given!r:.40}: expected a function.")

    def inputs_of(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            skip = ("labels", "label", "y", "source")
            return {k: v for k, v in batch.items() if (every or k in accepted) and k not in skip}
        return batch[0] if isinstance(batch, list | tuple) else batch

    def forward(net: nn.Module, batch: Any) -> Any:
        kind = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
        inputs = _in_type(inputs_of(batch), kind)
        try:
            return net(**inputs) if isinstance(inputs, Mapping) else net(inputs)
        except FAULTS as error:
            raise_own(error)
            raise InputError(
                f"model= ({type(net).__name__}) cannot take its input, {_said(inputs)}: {error}. "
                "Pass collate=, a function from a list of rows to what it takes."
            ) from error

    is_language = hasattr(net, "config") and hasattr(net, "generate")
    return Task(
        net, _own_collate(train) if collate is None else lambda rows, _: collate(rows), forward,
        default_loss if loss is None else as_loss(loss), features or default_features,
        adamw(2e-5) if is_language else None, raw=collate is not None,
    )  # fmt: skip


def _in_type(value: Any, kind: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(kind) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {k: _in_type(v, kind) for k, v in value.items()}
    return value


def _own_collate(train: Table) -> Callable[[Any, Tensor | None], Any]:
    """A batch for a module that brings no function of its own: (x, labels)."""
    if train.kind == "language":
        raise InputError(
            "rows of prompt and response for model=: pass collate=, a function from a list of "
            "rows to a batch. A transformers model by base= needs none."
        )
    whole = train.inputs is train.origin  # rows in which the label is one part

    def collate(rows: Any, y: Tensor | None) -> Any:
        if isinstance(rows, np.ndarray):
            x: Any = torch.from_numpy(rows)
        elif train.kind == "text":
            x = rows
        elif train.kind == "image" and not isinstance(rows[0], Tensor | np.ndarray):
            x = _stacked([pixels_of(row) for row in rows])
        elif not whole or y is None:
            x = collated(rows)
        elif isinstance(rows[0], Mapping):
            key = next(k for k in rows[0] if str(k).lower() in ("label", "labels", "y"))
            return {**collated([{k: v for k, v in r.items() if k != key} for r in rows]), key: y}
        else:
            first, *others = collated([(row[0], *row[2:]) for row in rows])
            return [first, y, *others]
        return x if whole or y is None else [x, y]

    return collate


# --- bundled networks -----------------------------------------------------------------------------


def bundled(train: Table) -> Task:
    """The small network for this kind of data."""
    kind, classes = train.kind, len(train.classes)
    config: dict[str, Any] = {}
    to_inputs: Callable[[Any], Tensor]
    if kind == "image":
        first = pixels_of(train[0])
        if first.ndim != 3:
            raise InputError(
                f"{train.what}: images of shape {tuple(first.shape)}; expected (C, H, W)."
            )
        side = (min(first.shape[2], 64), min(first.shape[1], 64))
        config = {"classes": classes, "channels": len(first)}

        def to_inputs(rows: Any) -> Tensor:
            return _stacked([pixels_of(row, side) for row in rows])
    elif kind == "features":
        sample = torch.from_numpy(train.rows(range(0, len(train), 1 + len(train) // 2000))).float()
        if sample.ndim != 2:
            raise InputError(
                f"{train.what}: rows of shape {tuple(sample.shape[1:])}; the bundled network takes "
                "rows of numbers. Pass model=."
            )
        config = {"width": sample.shape[1], "classes": classes}

        def to_inputs(rows: Any) -> Tensor:
            return torch.from_numpy(rows).float()
    elif kind == "text":
        config = {"classes": classes}

        def to_inputs(rows: Any) -> Tensor:
            return nn.utils.rnn.pad_sequence([pieces(row) for row in rows], batch_first=True)
    elif kind == "language":
        return Task(
            ByteLM(), language_collate(bytes_of), lambda net, b: net(b["input_ids"]), default_loss,
            default_features, adamw(3e-3), "language", {},
        )  # fmt: skip
    else:
        raise InputError(
            "there is no bundled network for such rows: pass model=, a torch module, and loss= "
            "where it is neither cross-entropy nor squared error."
        )
    net = BUNDLED[kind](**config)
    if isinstance(net, MLP):
        net.centre.copy_(sample.mean(0))
        net.scale.copy_(sample.std(0, unbiased=False).clamp_min(1e-6))
    return Task(
        net, lambda rows, y: (to_inputs(rows), y), lambda net, b: net(b[0]), default_loss,
        default_features, optimiser=adam(TEXT_RATE) if kind == "text" else None, kind=kind,
        config=config,
    )  # fmt: skip


def _stacked(rows: list[Tensor]) -> Tensor:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise InputError(f"inputs have different shapes: {sorted(shapes)[:3]}.")
    return torch.stack(rows)


# --- language -------------------------------------------------------------------------------------


def bytes_of(prompt: str, answer: str, most: int = 256) -> tuple[list[int], list[int]]:
    """Byte numbers with a start symbol, and labels: -100 on the prompt."""
    start = [256, *prompt.encode()][: most // 2]
    rest = list(answer.encode())[: most - len(start)]
    return start + rest, [IGNORED] * len(start) + rest


def language_collate(
    encode: Callable[[str, str], tuple[list[int], list[int]]], pad: int = 0
) -> Any:
    """(prompt, response) to {input_ids, attention_mask, labels} (B,T), padded on the right."""

    def collate(rows: Sequence[Any], _: Tensor | None = None) -> dict[str, Tensor]:
        pairs = [encode(prompt, answer) for prompt, answer in rows]
        longest = max(len(ids) for ids, _ in pairs)

        def padded(lists: Any, fill: int) -> Tensor:
            return torch.tensor([list(x) + [fill] * (longest - len(x)) for x in lists])

        return {
            "input_ids": padded((ids for ids, _ in pairs), pad),
            "attention_mask": padded(([1] * len(ids) for ids, _ in pairs), 0),
            "labels": padded((labels for _, labels in pairs), IGNORED),
        }

    return collate


# --- transformers ---------------------------------------------------------------------------------


def transformers_task(
    folder: Path, train: Table, names: Sequence[str], wants_features: bool
) -> Task:
    """A causal language model or a classifier from a verified folder, safetensors only.

    In float32 whatever the precision of the computation: steps of 2e-5 are lost in bfloat16.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a transformers model needs transformers. Run: pip install 'edgezoo[select]'",
            name="transformers",
        ) from error
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no transformers model: config.json: {error}.") from None
    made = (config.get("architectures") or [""])[0]
    load = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    classes = {"num_labels": len(names), "ignore_mismatched_sizes": True}
    if train.kind == "language":
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, **load)
    elif train.kind == "text":
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, **load, **classes
        )
    elif train.kind == "image":
        net = transformers.AutoModelForImageClassification.from_pretrained(
            folder, **load, **classes
        )
    else:
        raise InputError(f"{folder} ({made}) reads text or images, the rows are {train.kind}.")

    def forward(net: nn.Module, batch: Any) -> Any:
        given = {k: v for k, v in batch.items() if k != "labels"}
        return net(**given, output_hidden_states=True) if wants_features else net(**given)

    def make(collate: Any, processor: Any, lr: float) -> Task:
        return Task(net, collate, forward, default_loss, default_features, adamw(lr),
                    "transformers", {}, processor)  # fmt: skip

    if train.kind == "image":
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        file = folder / "preprocessor_config.json"
        if file.is_file():
            statistics |= json.loads(file.read_text("utf-8"))
        side = config.get("image_size", 224)
        mean = torch.tensor(statistics["image_mean"])[:, None, None]
        std = torch.tensor(statistics["image_std"])[:, None, None]

        def pictures(rows: Sequence[Any], y: Tensor | None) -> Any:
            x = [(pixels_of(row, (side, side)) - mean) / std for row in rows]
            return {"pixel_values": _stacked(x), "labels": y}

        return make(pictures, None, 1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pad = tokenizer.pad_token_id
    pad = (tokenizer.eos_token_id or 0) if pad is None else pad
    most = min(int(config.get("max_position_embeddings") or 1024), 1024)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if train.kind == "language":

        def encode(prompt: str, answer: str) -> tuple[list[int], list[int]]:
            before = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
            before = before[: most // 2]
            rest = tokenizer(answer, add_special_tokens=False)["input_ids"] + end
            rest = rest[: most - len(before)]
            return before + rest, [IGNORED] * len(before) + rest

        return make(language_collate(encode, pad), tokenizer, 2e-5)
    if net.config.pad_token_id is None:
        net.config.pad_token_id = pad  # else a classifier refuses a batch of several

    def texts(rows: Sequence[Any], y: Tensor | None) -> Any:
        ids = [tokenizer(row)["input_ids"][:most] for row in rows]
        longest = max(map(len, ids))
        return {
            "input_ids": torch.tensor([i + [pad] * (longest - len(i)) for i in ids]),
            "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids]),
            "labels": y,
        }

    return make(texts, tokenizer, 2e-5)
