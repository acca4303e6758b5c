"""The stages of the method, one after another, as training, the verbs and the benchmark run them.

pretrain    proposals and pseudo-classes of images without labels, then the detection loss on them
selftrain   the detector's own boxes replace the proposals, and it goes on learning
finetune    real classes, each started from the pseudo-class that finds it
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zoo.errors import InputError, OptionError
from zoo.progress import track
from zoo.training import Run
from zoo.weights import load_tensors, save_tensors

from .clusters import Clusters, cluster
from .detector import Classes, Network
from .learning import Fit, learn, new_classes, regions_of
from .proposals import Preset, Regions
from .scenes import Scene
from .selftraining import hits, relabel, warm

MANY = 100
"""Regions from which a lopsided clustering says something about the images."""
UNSEEN = 0.1
"""Share of a class's objects that the pretrained detector finds, below which it warns."""


class Course:
    """A run on one set of images, from which it learns with and without labels.

    ``images``: (3,h,w) uint8. ``upside_down``: pictures have no upper side. ``count``: of
    pseudo-classes; None: by the number of regions.
    """

    def __init__(
        self,
        run: Run[Fit],
        network: Network,
        images: Sequence[Tensor],
        preset: Preset,
        *,
        upside_down: bool = False,
        count: int | None = None,
    ) -> None:
        self.run, self.network, self.images = run, network, images
        self.preset, self.upside_down, self.count = preset, upside_down, count
        run.keep("trunk", lambda: network.trunk)
        self.names: tuple[str, ...] = ()
        """Of the classes that the network has now."""
        self.mark = torch.tensor([*digest(images, preset, count)], dtype=torch.uint8)
        """What kept boxes belong to."""

    # --- labels that nobody gave ---

    def proposals(self) -> list[Scene]:
        """Stage 0 (eq. 1 and 2), made once: a resumed run reads its file."""
        return self._kept("proposals", self._propose)

    def _propose(self) -> list[Scene]:
        seed = self.run.request.seed
        with track(len(self.images), self.run.request.progress, "proposals") as advance:
            found = regions_of(self.network.trunk, self.images, self.preset, seed, advance)
        made = cluster(found, self.count, seed)
        self.run.validated["proposals"] = told(found, made)
        if made.collapsed and sum(made.sizes) >= MANY:
            warnings.warn(
                f"nearly all regions are in one cluster of {len(made.sizes)} "
                f"({', '.join(map(str, made.sizes))}): the pseudo-classes say little. Give another "
                "scene, or fewer clusters.",
                stacklevel=2,
            )
        return [
            Scene(image, torch.from_numpy(regions.boxes), torch.from_numpy(labels))
            for image, regions, labels in zip(self.images, found, made.labels, strict=True)
        ]

    def relabelled(self, round_: int) -> list[Scene]:
        """The detector's own boxes (eq. 12); those before if there are far too many or too few."""

        def make() -> list[Scene]:
            before = self.proposals() if round_ == 1 else self.relabelled(round_ - 1)
            size = self.run.stages[self.run.stage].size
            with track(len(before), self.run.request.progress, "own boxes") as advance:
                made = relabel(self.network, before, size, advance)
            self.run.validated[f"own boxes {round_}"] = {
                "before": list(made.before),
                "after": list(made.after),
                "thresholds": list(made.thresholds),
                "trusted": made.trusted,
            }
            if not made.trusted:
                warnings.warn(
                    f"the detector finds only {sum(made.own)} of the {sum(made.before)} boxes that "
                    "it learned: it goes on with those, not with its own.",
                    stacklevel=2,
                )
            return made.scenes if made.trusted else before

        return self._kept("own boxes" if round_ == 1 else f"own boxes {round_}", make)

    def _kept(self, name: str, make: Callable[[], list[Scene]]) -> list[Scene]:
        file = self.run.out / f"{name.replace(' ', '-')}.safetensors"
        if not file.is_file():
            keep_boxes(file, make(), self.mark)
        kept = load_tensors(file)
        if not torch.equal(kept["mark"], self.mark):
            raise InputError(
                f"{file} is of other images or options. Give another folder, or delete the file."
            )
        count = kept["count"].tolist()
        parts = zip(
            self.images, kept["boxes"].split(count), kept["labels"].split(count), strict=True
        )
        return [Scene(*part) for part in parts]

    # --- the stages ---

    def pretrain(self) -> None:
        """The standard loss on proposals and pseudo-classes."""
        self._take_pseudo()
        self._learn(self.proposals())

    def selftrain(self, round_: int = 1) -> None:
        """The same on the detector's own boxes, for the first time or again."""
        self._take_pseudo()
        self._learn(self.relabelled(round_))

    def finetune(self, scenes: Sequence[Scene], names: Sequence[str], head: str = "warm") -> None:
        """The same on real labels. ``head``: ``warm`` starts classes by eq. 13, ``fresh`` anew."""
        run = self.run
        if run.fresh and run.keeps("pseudo"):
            self._take_pseudo()

        def make() -> Classes:
            new = new_classes(run, self.network, "named", len(names))
            if head == "warm":
                size = run.stages[run.stage].size
                labelled = [s for s in scenes if len(s.labels)]
                table, share = hits(self.network, labelled, size, len(names))
                sources = warm(self.network.classes, table, new)
                run.validated["start"] = {
                    name: {"from": source, "found": None if math.isnan(part) else round(part, 3)}
                    for name, source, part in zip(names, sources, share, strict=True)
                }
            return new

        self.network.classes = cast(Classes, run.keep("named", make))
        run.drop("pseudo")
        self.names = tuple(names)
        learn(run, self.network, scenes, upside_down=self.upside_down)

    def report(self) -> dict[str, Any]:
        """What the stages found, for JSON."""
        return dict(self.run.validated)

    def unseen(self) -> list[str]:
        """Classes that pretraining took for background: it found few of their objects."""
        start = self.run.validated.get("start", {})
        return [n for n, s in start.items() if s["found"] is not None and s["found"] < UNSEEN]

    def _take_pseudo(self) -> None:
        count = 1 + max(int(s.labels.max()) for s in self.proposals() if len(s.labels))
        self.network.classes = cast(
            Classes,
            self.run.keep("pseudo", lambda: new_classes(self.run, self.network, "pseudo", count)),
        )
        self.names = cluster_names(count)

    def _learn(self, scenes: Sequence[Scene]) -> None:
        useful = [scene for scene in scenes if len(scene.labels)]
        learn(self.run, self.network, useful, upside_down=self.upside_down)


def digest(tensors: Sequence[Tensor], *more: object) -> bytes:
    """A hash of tensors, and of what else has a ``repr`` that says it all."""
    made = hashlib.sha256(repr(more).encode())
    for tensor in tensors:
        made.update(repr(tensor.shape).encode())
        made.update(tensor.contiguous().numpy().tobytes())
    return made.digest()


def keep_boxes(file: Path, scenes: Sequence[Scene], mark: Tensor) -> None:
    """Write the boxes and labels of scenes, for a course of this mark in the file's folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "boxes": torch.cat([s.boxes for s in scenes]),
        "labels": torch.cat([s.labels for s in scenes]),
        "count": torch.tensor([len(s.labels) for s in scenes]),
        "mark": mark,
    }
    save_tensors(file, tensors)


def cluster_names(count: int) -> tuple[str, ...]:
    """Names of pseudo-classes."""
    return tuple(f"cluster {i}" for i in range(count))


def told(found: Sequence[Regions], made: Clusters) -> dict[str, Any]:
    """What the labelling found, for a report in JSON."""
    dropped: dict[str, int] = {}
    for one in found:
        for reason, n in one.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
    return {
        "images": len(found),
        "boxes_per_image": round(sum(map(len, found)) / max(1, len(found)), 2),
        "without_boxes": sum(not len(one) for one in found),
        "dropped": dropped,
        "clusters": list(made.sizes),
        "collapsed": made.collapsed,
        "inertia": round(made.inertia, 4),
    }


def steps_for(images: int, batch: int, epochs: int | None, steps: int | None, own: int) -> int:
    """The steps of a stage. Raises OptionError as the verbs of ``Detector`` do."""
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"{name}={value!r}: expected a whole number, at least 1.")
    if epochs is not None and steps is not None:
        raise OptionError("epochs and steps: give one of them.")
    if epochs is not None:
        return max(1, math.ceil(epochs * images / batch))
    return steps if steps is not None else own
