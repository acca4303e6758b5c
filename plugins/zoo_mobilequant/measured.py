"""One row of the benchmark: a method on a language model, beside the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.bases import resolve
from zoo.experiment import Rows, Values, digest, timed
from zoo.weights import load_tensors, save_tensors

from .evaluate import Choice, accuracy
from .families import describe
from .kept import Shared, forget_peak, peak
from .learn import last_hidden
from .method import Fitted, compare, fit
from .original import opened, outline, tokenizer_of
from .passages import LENGTH, Words, next_steps, wikitext
from .quantizers import asymmetric
from .recipe import make
from .simulate import Site

CALIBRATION = 104
"""Windows of 256 tokens that a seed draws; of these, 4 are held back, 32 serve the closed forms."""
TESTS = 8
"""Windows of WikiText's test text: 2,040 tokens."""
LONG = (20, 1024)
"""Windows and new tokens, the first of which is not scored, of the longer test of the original."""
CODE = 4
"""Windows of code."""
ITEMS = 150
"""Questions with four answers, for the rows of the first seed that answer them."""
FLOAT = "float"
TEXT, IN_CODE, IN_CHAT = "KL", "KL, code", "KL, chat"
"""What the texts are called: by the column of the divergence on them."""
SEEDS = 3

After = Callable[[Mapping[str, Site]], None]


def mlp_16(sites: Mapping[str, Site]) -> None:
    """The activations inside the MLP get 16 bits, over the range they have."""
    for name, site in sites.items():
        if name.rpartition(".")[2] in ("gate", "up", "sigmoid", "act", "h"):
            site.set(asymmetric(*site.grid.range, 16))


def clip_first(sites: Mapping[str, Site]) -> None:
    """Positions that stayed in float are quantized too, by ranges that never saw them."""
    for site in sites.values():
        site.positions.prefix = 0


@dataclass(frozen=True)
class Row:
    """A method: a scheme, a recipe, and what is changed of it."""

    name: str
    scheme: str
    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    after: After | None = None
    """What is done to the sites in the end."""
    chooses: bool = False
    """Does it answer the questions, with the first seed?"""
    seeds: int = SEEDS


class Measured:
    """A language model, what is measured on it, and the rows that have been."""

    def __init__(self, folder: Path, data: Path, work: Path, quick: bool = False) -> None:
        self.folder, self.work, self.quick = folder, work, quick
        self.windows = 12 if quick else CALIBRATION
        longest = int(outline(folder)[0].config.max_position_embeddings)
        self.words = Words(tokenizer_of(folder), min(LENGTH, longest))
        self.sha256 = resolve(folder).sha256
        self.lessons = self.words.ids(wikitext(data, "valid"))
        self.items: list[Choice] = [] if quick else next_steps(data, ITEMS)
        self.rows = Rows(work / "rows")
        self.texts = {TEXT: self.words.windows(wikitext(data, "test"), 2 if quick else TESTS)}
        if not quick:
            self.texts[IN_CODE] = self.words.code(CODE)
            self.texts[IN_CHAT] = self._chats()
        self.long = self.words.windows(wikitext(data, "test"), LONG[0], LONG[1] + 1)

    def _chats(self) -> Tensor:
        file = self.work / "chats.safetensors"
        if not file.is_file():
            save_tensors(file, {"ids": self.words.chats(opened(self.folder).network)})
        return load_tensors(file)["ids"]

    @cached_property
    def wanted(self) -> Mapping[str, list[Tensor]]:
        """Of each text, the original's last states."""
        network = opened(self.folder).network
        with torch.no_grad():
            return {
                name: [last_hidden(network, row)[1] for row in rows]
                for name, rows in self.texts.items()
            }

    def original(self, kept: bool = False) -> Values:
        """The float row. ``kept``: without what has not been measured yet."""
        facts = {**self._facts(), "items": len(self.items)}
        found = self.rows.row(FLOAT, facts, None if kept else self._original)
        if self.quick:
            return found
        long = {**self._facts(), "long": digest(self.long.tolist())}
        again = None if kept else self._at_length
        return {**found, **self.rows.row(f"{FLOAT}, long text", long, again)}

    def _original(self) -> Values:
        network = opened(self.folder).network
        found = self._compared(network)
        return found if self.quick else {**found, "choices": self._choices(network)}

    @torch.no_grad()
    def _at_length(self) -> Values:
        network = opened(self.folder).network
        losses = []
        for row in self.long:
            labels = row.clone()
            labels[:2] = -100  # not scored
            losses.append(network(row[None], labels=labels[None]).loss)
        return {"long": float(torch.stack(losses).mean().exp())}

    def row(self, row: Row, seed: int, first: bool, kept: bool = False) -> Values:
        """A row of a seed; ``first``: of the seed that answers questions. ``kept``: {} where it has
        not been measured yet.
        """
        facts = {**self._facts(), "scheme": row.scheme, "recipe": row.recipe}
        facts |= {"changes": dict(row.changes), "windows": self.windows}
        choices = first and row.chooses
        if choices:
            facts |= {"items": len(self.items)}
        again = None if kept else lambda: self._row(row, seed, choices)
        return self.rows.row(f"{row.name}, seed {seed}", facts, again)

    def _facts(self) -> Values:
        texts = {name: digest(rows.tolist()) for name, rows in self.texts.items()}
        return {"base": self.sha256, "texts": texts}

    def _row(self, row: Row, seed: int, choices: bool) -> Values:
        recipe = make(row.recipe, row.scheme, {"table": False, **row.changes})  # as the paper
        rows = self.words.drawn(self.lessons, self.windows, seed)
        network = opened(self.folder).network
        work = Shared(self.work / f"seed-{seed}", recipe)
        forget_peak()
        fitted: Fitted
        fitted, seconds = timed(
            lambda: fit(network, describe(network), rows, recipe, seed=seed, work=work)
        )
        memory = peak()
        if row.after:
            row.after(fitted.sites)
        found = self._compared(network)
        found |= {"seconds": seconds + work.seconds, "memory": memory}
        found |= {"wide": fitted.report["wide"], "notes": fitted.report["notes"]}
        if choices and self.items:
            found["choices"] = self._choices(network)
        return found

    @torch.no_grad()
    def _compared(self, network: Any) -> Values:
        found = {name: compare(network, t, self.wanted[name]) for name, t in self.texts.items()}
        return {"compared": found}

    @torch.no_grad()
    def _choices(self, network: Any) -> list[bool]:
        return accuracy(Remembering(network), self.words.tokenizer, self.items)


class Remembering:
    """A language model that keeps its cache: what a sequence has in common with the one before it
    is not computed again. One sequence at a time.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.ids = torch.empty(0, dtype=torch.long)
        self.logits = torch.empty(0)
        self.cache: Any = None

    def __call__(self, ids: Tensor) -> Any:
        """(1,T) -> something with ``logits`` (1,T,vocabulary)."""
        row = ids[0]
        most = min(len(row) - 1, len(self.ids))
        differs = (row[:most] != self.ids[:most]).nonzero()
        same = int(differs[0]) if len(differs) else most
        if same:
            if same < len(self.ids):
                self.cache.crop(same - len(self.ids))
            found = self.network(ids[:, same:], past_key_values=self.cache, use_cache=True)
            found.logits = torch.cat([self.logits[:same], found.logits[0]])[None]
        else:
            found = self.network(ids, use_cache=True)
            self.cache = found.past_key_values
        self.ids, self.logits = row, found.logits[0]
        return found
