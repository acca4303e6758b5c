"""The recipe of ``zoo train simdetr``: the three stages of ``course.py`` on one data set.

The training images are learned from without their labels, then with them; test images are only
measured on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.hookspecs import TrainRequest
from zoo.images import listed
from zoo.precision import average_precision
from zoo.progress import Advance, track
from zoo.training import Run

from . import dataset
from .course import Course
from .dataset import Part
from .detector import Network
from .learning import Fit, network_of, new_network
from .model import SimDETR
from .outputs import Target
from .proposals import PRESETS
from .reading import THRESHOLD, Head, detections, look, ranked
from .scenes import ROOM, Scene, load, load_readable, scene_of

RECIPE: Mapping[str, Fit] = {
    "pretrain": Fit(300, 1e-3, 4, size=160),
    "selftrain": Fit(150, 1e-3, 4, size=160),
    "finetune": Fit(1000, 5e-4, 4, size=320, body=0.2),
}
"""For ``simdetr``: about 15 minutes of one CPU core."""
HELD = 20
"""Pictures without objects that are kept for measuring."""


@dataclass(frozen=True)
class Kind:
    """What differs between the sizes of the method."""

    recipe: Mapping[str, Fit]
    start: Callable[[TrainRequest, Run[Fit]], tuple[Network, dict[str, Any]]]
    """The network to begin with, and its configuration beside the entry's."""
    model: type[SimDETR]


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    kind = kind_of(request)
    data = dataset.read(request.data)
    preset = PRESETS[request.options["scene"]]
    largest = max(preset.size, *(round(stage.size * ROOM) for stage in kind.recipe.values()))
    with track(len(data.train), request.progress, "images") as advance:
        part, images, skipped = readable(data.train, largest, advance)
    tested, _, more = readable(data.test, kind.recipe[[*kind.recipe][-1]].size)
    if skipped or more:
        warnings.warn(
            f"left out, as they cannot be read: {', '.join([*skipped, *more])}", stacklevel=2
        )
    nothing, held = background(request.options["background"], largest)
    facts = {"names": list(data.names), "images": len(part), "tested": len(tested)}
    run = Run(request, {}, kind.recipe, facts=facts)
    network, config = kind.start(request, run)
    course = Course(
        run,
        network,
        images,
        preset,
        upside_down=request.options["upside_down"],
    )
    size = run.stages[[*run.stages][-1]].size

    def finetune() -> None:
        labelled = zip(images, part.sides(), part.truth, strict=True)
        scenes = [scene_of(image, *sides, truth) for image, sides, truth in labelled]
        stage = run.stage
        course.finetune([*scenes, *nothing], data.names)
        if held:
            run.validated[f"boxes in {len(held)} other pictures after {stage}"] = false_boxes(
                network, held, run.stages[stage].size, data.names
            )
        if len(tested):
            found = measured(network, tested, run.stages[stage].size, data.names)
            run.validated[f"test after {stage}"] = found

    def made() -> SimDETR:
        own = {**request.entry.config, **config, "names": list(course.names), "size": size}
        return kind.model(run.build_request(own), network)

    stages = {"pretrain": course.pretrain, "selftrain": course.selftrain}
    stages |= {name: finetune for name in kind.recipe if name not in stages}
    return run.fit(stages, made)


def kind_of(request: TrainRequest) -> Kind:
    """The small detector, or one of transformers."""
    if request.entry.size == "tiny":
        return Kind(RECIPE, start, SimDETR)
    from .full import STAGES, SimDETRFull, start_full

    return Kind(STAGES, start_full, SimDETRFull)


def start(request: TrainRequest, run: Run[Fit]) -> tuple[Network, dict[str, Any]]:
    """EfficientNet-Lite0 in a random detector, or what ``--init`` names."""
    if request.init is not None:
        return network_of(request.init), {}
    if request.base is None or request.base.folder is None:
        raise InputError("give --base: a folder or Hub id of timm's tf_efficientnet_lite0.")
    return new_network(request.base.folder, run.draw("trunk", 1).generator), {}


def readable(
    part: Part, size: int, advance: Advance = lambda n=1: None
) -> tuple[Part, list[Tensor], list[str]]:
    """The images that can be read, their small copies, and the names of the others."""
    small, skipped = load_readable(part.images, size, advance)
    there = [i for i, image in enumerate(small) if image is not None]
    kept = Part(tuple(part.images[i] for i in there), tuple(part.truth[i] for i in there))
    return kept, [image for image in small if image is not None], skipped


def background(folder: str, size: int) -> tuple[list[Scene], list[Tensor]]:
    """Pictures without any object: those to learn from, and the last ``HELD``, to measure on.

    Without them a detector takes every round thing for what it was shown. ``folder``: "" for none.
    """
    if not folder:
        return [], []
    images = load(listed(folder, below=True), size)
    if len(images) <= HELD:
        raise InputError(
            f"background={folder}: {len(images)} pictures; more than {HELD} are needed."
        )
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    scenes = [Scene(image, empty.boxes, empty.labels) for image in images[:-HELD]]
    return scenes, images[-HELD:]


def false_boxes(
    network: Network, images: Sequence[Tensor], size: int, names: Sequence[str]
) -> dict[str, int]:
    """Boxes of each class above the default threshold, in pictures that have none."""
    labels = [ranked(look(network, image, size), threshold=THRESHOLD)[2] for image in images]
    count = torch.bincount(torch.cat(labels).cpu(), minlength=len(names)).tolist()
    return dict(zip(names, count, strict=True))


ARMS: Mapping[str, tuple[Head, float | None]] = {
    "decoder + NMS": ("decoder", 0.6),
    "decoder": ("decoder", None),
    "dense head + NMS": ("dense", 0.6),
}
"""What is measured of a detector: which output, and with which suppression of duplicates."""


def measured(network: Network, part: Part, size: int, names: tuple[str, ...]) -> dict[str, Any]:
    """AP on labelled images, of the decoder with and without NMS, and of the dense head."""
    images = load(part.images, round(size * ROOM))
    seen = [look(network, image, size) for image in images]
    report = {}
    for arm, (head, nms) in ARMS.items():
        if head == "dense" and not seen[0].dense_logits.shape[1]:
            continue  # a detector without a dense head
        found = [
            detections(ranked(one, head=head, nms=nms), *sides, names)
            for one, sides in zip(seen, part.sides(), strict=True)
        ]
        precision = average_precision(found, part.truth)
        report[arm] = {"AP": precision.ap, "AP50": precision.ap50, **precision.classes}
    return report
