"""``zoo bench simdetr -O part=discover``: a detector without training on labels.

Six labelled images say what each cluster of the pretrained detector is; nothing else is learned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from zoo.experiment import Book
from zoo.interfaces import Results
from zoo.precision import average_precision

from .arms import FEW_SIZE, OURS, Lab
from .bench_rows import Bench
from .reading import detections, look, ranked
from .scenes import load
from .selftraining import hits

IMAGES = 6
"""Labelled images that name the clusters."""
SURE = 0.25
"""Share of a cluster's scores that hit a class, from which the cluster has its name."""
ROW = "clusters named by six images"
GOAL = 0.35


def measure(here: Bench, part: str) -> Results:
    """AP of the named clusters, on the test images."""
    book = Book()
    lab = Lab(here.request, here.data, here.images, here.work / "labels", here.scene)
    for seed in here.seeds:
        found = here.row(f"{part}, {seed}", partial(_named, here, lab, seed))
        for metric, value in found.items():
            book.add(ROW, metric, value, seed)
    if book.columns(ROW):
        book.claim(
            "zero-labels",
            f"Clusters that boxes of {IMAGES} images name, without any further learning, have an "
            f"AP50 of at least {GOAL:.2f}, with NMS.",
            book.better(ROW, GOAL, "AP50"),
        )
    return book.results(data=[here.described()], seeds=here.seeds, part=part)


def _named(here: Bench, lab: Lab, seed: int) -> dict[str, Any]:
    network = lab.pretrained(OURS, seed)
    size = 96 if here.request.quick else FEW_SIZE
    chosen = np.random.default_rng(seed).permutation(len(lab.scenes))[:IMAGES]
    scenes = [lab.scenes[i] for i in sorted(chosen.tolist())]
    names = here.data.names
    table, _ = hits(network, scenes, size, len(names))
    every = torch.zeros(network.classes.count)
    for scene in scenes:
        _, scores, labels = ranked(look(network, scene.image, size))
        every.index_add_(0, labels.clone(), scores.clone())
    share = table / every[:, None].clamp(min=1e-9)
    owner = torch.where(share.amax(1) > SURE, share.argmax(1), len(names))  # the last: no name
    found = []
    for image, sides in zip(load(here.data.test.images, 640), here.data.test.sides(), strict=True):
        boxes, scores, labels = ranked(look(network, image, size), owner=owner)
        kept = labels < len(names)
        found.append(detections((boxes[kept], scores[kept], labels[kept]), *sides, names))
    precision = average_precision(found, here.data.test.truth)
    classes = {f"AP50 of {name}": value for name, value in precision.classes.items()}
    return {"AP": precision.ap, "AP50": precision.ap50, **classes}
