"""Proposals next to others: how many of the objects 30 boxes of an image contain, and the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import MissingDependencyError
from zoo.experiment import Book
from zoo.precision import recall

from .bench_rows import Bench, backbone
from .detector import Network
from .learning import regions_of, trunk_on
from .proposals import PRESETS
from .reading import look, ranked
from .rivals import fractions, of_colour, random_boxes, selective_search

RECALL, PRECISION = "recall of 30 boxes", "precision of 30 boxes"
FEW = 20
TOP = f"recall of {FEW} boxes"
SECONDS = "CPU-seconds an image"
MOST = 30
RANDOM, COLOUR, SEARCH = "random boxes", "regions of like colour", "Selective Search, fast"
SMALL_INPUT = 480
"""Longest side of the image for faster proposals, in pixels."""


def proposals(book: Book, here: Bench) -> None:
    """The proposals of the training images, whose labels nobody has seen, and claims about them."""
    preset = PRESETS[here.scene]
    ours, small = f"regions of like features ({here.scene})", f"the same, {SMALL_INPUT} pixels"
    trunk = trunk_on(backbone(here.request), torch.Generator().manual_seed(0))

    def features(size: int) -> tuple[list[Any], float]:
        began = time.process_time()
        found = regions_of(trunk, here.images, replace(preset, size=size))
        return [one.boxes for one in found], (time.process_time() - began) / len(found)

    def each(one: Callable[[Tensor], Any]) -> tuple[list[Any], float]:
        began = time.process_time()
        found = [one(image)[:MOST] for image in here.images]
        return found, (time.process_time() - began) / len(found)

    rng = np.random.default_rng(0)
    rows: dict[str, Callable[[], tuple[list[Any], float]]] = {
        RANDOM: partial(each, lambda image: random_boxes(MOST, rng)),
        COLOUR: partial(each, lambda image: of_colour(image, preset).boxes),
        SEARCH: partial(each, selective_search),
        ours: partial(features, preset.size),
        small: partial(features, SMALL_INPUT),
    }
    for name, make in rows.items():
        try:
            kept = here.row(f"{here.scene}: {name}", lambda make=make: _scores(here, *make()))  # type: ignore[misc]
        except MissingDependencyError:
            continue
        for item, values in kept.get("images", {}).items():
            for metric, value in values.items():
                book.add(name, metric, value, item)
        for metric, value in kept.get("all", {}).items():
            book.add(name, metric, value)
    for rival, words in ((RANDOM, "random boxes"), (COLOUR, "regions of like colour"),
                         (SEARCH, "as many boxes of Selective Search")):  # fmt: skip
        if book.columns(ours) and book.columns(rival):
            book.claim(
                f"proposals-{words.split()[-1].lower()}",
                f"Regions of like features find more objects than {words}.",
                book.better(ours, rival, RECALL),
            )


def _scores(here: Bench, found: Sequence[Any], seconds: float) -> dict[str, Any]:
    """Of each image: recall and precision; of all: recall of each class, and time."""
    truth, sides = here.data.train.truth, here.data.train.sides()
    wanted = [fractions(t, s) for t, s in zip(truth, sides, strict=True)]
    images = {}
    for i, (boxes, real) in enumerate(zip(found, wanted, strict=True)):
        if len(real):
            found_, good = recall([boxes], [real])
            images[f"image {i}"] = {RECALL: found_, PRECISION: good}
    whole = {SECONDS: seconds}
    for k, name in enumerate(here.data.names):
        own = [real[t.labels == k] for real, t in zip(wanted, truth, strict=True)]
        whole[f"{RECALL}, {name}"] = recall(found, own)[0]
    return {"images": images, "all": whole}


def surest(here: Bench, network: Network, size: int) -> float:
    """Recall of a detector's ``FEW`` surest boxes of each training image, whatever their class."""
    found = [
        ranked(look(network, image, size), agnostic=True)[0][:FEW].numpy() for image in here.images
    ]
    return of_all(here, found)


def of_all(here: Bench, found: Sequence[Any]) -> float:
    """Recall of boxes (n,4), fractions, over all objects of the training images."""
    data = here.data.train
    wanted = [fractions(t, s) for t, s in zip(data.truth, data.sides(), strict=True)]
    return recall(found, wanted)[0]
