"""The claims of simdetr, on microscope images of blood cells.

``zoo bench simdetr --data PATH --base FOLDER -O work=FOLDER``: ``PATH`` has ``bccd``, the base is
EfficientNet-Lite0. Each row of each seed is kept in the work folder, so that an interrupted
benchmark goes on where it was. Without a base only the bundled weights and proposals by their
backbone are measured.

A seed is the start of a network, the order of its images, and the draw of the labelled images.
Every number is measured with the decoder and NMS, the decoder alone, and the dense head with NMS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from zoo.errors import InputError
from zoo.experiment import Bars, Book, Rows, draw, load, one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.precision import recall

from . import dataset
from .arms import (
    ARMS,
    IMAGENET,
    NO_ROUND,
    ONE_CLASS,
    OURS,
    SCENE,
    WARM,
    Lab,
    fractions,
    random_boxes,
)
from .dataset import Dataset, Part
from .learning import regions_of
from .model import SimDETR
from .proposals import PRESETS
from .scenes import load as small_copies
from .train import measured

SHARES = (0.02, 0.1)
"""Of the labels."""
SHORT, LONG = 160, 640
"""Steps of fine-tuning."""
SEEDS = 3
BUNDLED = "simdetr, bundled weights"
BEST = "decoder + NMS"


def column(share: float, steps: int, metric: str, arm: str = BEST) -> str:
    """The name of a column."""
    output = "" if arm == BEST else f", {arm}"
    return f"{metric}, {share:.0%} of the labels, {steps} steps{output}"


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    if request.data is None or not (request.data / "bccd").is_dir():
        raise InputError("give --data: a folder with the data set bccd.")
    data = dataset.read(request.data / "bccd")
    if request.quick:
        data = Dataset(_first(data.train, 12), _first(data.test, 4), data.names)
    seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
    book = Book()
    with TemporaryDirectory() as scratch, one_thread():
        work = Path(request.options["work"] or scratch)
        rows = Rows(work / "rows")
        facts = {"quick": request.quick, "code": 1}
        model: SimDETR = load(request)
        _bundled(book, rows, facts, model, data)
        images = small_copies(data.train.images, PRESETS[SCENE].size)
        _proposals(book, rows, facts, model, data, images)
        if request.base is not None:
            _arms(book, rows, facts, Lab(request, data, images, work), seeds)
    pictures = _picture(book, request.out) if request.base is not None else []
    cells = Data(
        "BCCD blood cells", "MIT", f"{len(data.train)} images, {len(data.test)} for testing"
    )
    return book.results(data=[cells], seeds=seeds, pictures=pictures)


def _first(part: Part, count: int) -> Part:
    return Part(part.images[:count], part.truth[:count])


def _bundled(
    book: Book, rows: Rows, facts: Mapping[str, Any], model: SimDETR, data: Dataset
) -> None:
    """The weights that are shipped, on images that they were never trained on."""
    size = model.config["size"]
    found = rows.row(BUNDLED, facts, lambda: measured(model.network, data.test, size, model.names))
    for arm, values in found.items():
        for metric, value in values.items():
            name = metric if metric.startswith("AP") else f"AP50 of {metric}"
            book.add(BUNDLED, name if arm == BEST else f"{name}, {arm}", value)


def _proposals(
    book: Book,
    rows: Rows,
    facts: Mapping[str, Any],
    model: SimDETR,
    data: Dataset,
    images: Sequence[Tensor],
) -> None:
    """Recall of 30 boxes of each training image, whose labels nobody has seen."""
    wanted = [fractions(t, s) for t, s in zip(data.train.truth, data.train.sides(), strict=True)]
    most = PRESETS[SCENE].most

    def ours() -> dict[str, Any]:
        found = regions_of(model.network.trunk, images, PRESETS[SCENE])
        return _each([one.boxes for one in found], wanted)

    def chance() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        return _each([random_boxes(most, rng) for _ in images], wanted)

    for name, make in ((f"proposals, {SCENE}", ours), ("random boxes", chance)):
        for item, values in rows.row(name, facts, make).items():
            for metric, value in values.items():
                book.add(name, metric, value, item)
    book.claim(
        "proposals",
        "Regions of like features find more objects than random boxes.",
        book.better(f"proposals, {SCENE}", "random boxes", RECALL),
    )


RECALL, PRECISION = "recall of 30 boxes", "precision of 30 boxes"


def _each(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, Any]:
    made = {}
    for i, (boxes, truth) in enumerate(zip(found, wanted, strict=True)):
        if len(truth):
            made[f"image {i}"] = dict(
                zip((RECALL, PRECISION), recall([boxes], [truth]), strict=True)
            )
    return made


def _arms(book: Book, rows: Rows, facts: Mapping[str, Any], lab: Lab, seeds: Sequence[int]) -> None:
    """Fine-tuning on few labels after each way of pretraining."""
    quick = lab.request.quick
    for share in SHARES:
        for steps in (SHORT, LONG):
            for arm in ARMS if steps == SHORT else (IMAGENET, OURS):
                for seed in seeds:
                    count = 2 if quick else steps
                    found = rows.row(
                        f"{arm.name}, {share}, {steps}, {seed}",
                        facts,
                        partial(lab.tuned, arm, share, count, seed),
                    )
                    for output, values in found.items():
                        for metric in ("AP", "AP50"):
                            name = column(share, steps, metric, output)
                            book.add(arm.name, name, values[metric], seed)
    for share in SHARES:
        short, long = (column(share, n, "AP") for n in (SHORT, LONG))
        book.claim(
            f"labels-{share:.0%}",
            f"With {share:.0%} of the labels SimDETR has a higher AP than ImageNet alone at the "
            "same schedule.",
            book.better(OURS.name, IMAGENET.name, short),
        )
        book.claim(
            f"long-{share:.0%}",
            f"With {share:.0%} of the labels it still has one at a schedule four times as long.",
            book.better(OURS.name, IMAGENET.name, long),
        )
        for rival, words in (
            (ONE_CLASS, "several pseudo-classes are better than one"),
            (NO_ROUND, "self-training is better than as many steps on proposals"),
        ):
            book.claim(
                f"{'classes' if rival is ONE_CLASS else 'self-training'}-{share:.0%}",
                f"With {share:.0%} of the labels {words} (AP).",
                book.better(OURS.name, rival.name, short),
            )
        book.claim(
            f"warm-{share:.0%}",
            f"With {share:.0%} of the labels a warm head is better than a fresh one (AP).",
            book.better(WARM.name, OURS.name, short),
        )


def _picture(book: Book, out: Path) -> list[str]:
    """AP of each arm."""
    bars = {
        arm.name: {
            f"{share:.0%}": book.mean(arm.name, column(share, SHORT, "AP")) for share in SHARES
        }
        for arm in ARMS
    }
    draw(out / "labels.png", Bars(bars, "share of the labels", "AP on the test images"))
    return ["labels.png"]
