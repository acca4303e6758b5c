"""The detectors that the benchmark compares: what they are pretrained on, and how they go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zoo.experiment import training
from zoo.hookspecs import BenchRequest, TrainRequest
from zoo.interfaces import Detections
from zoo.training import CHECKPOINT, Run

from .course import Course
from .dataset import Dataset
from .detector import Network
from .learning import Fit, network_of, trunk_on
from .model import SimDETR
from .proposals import PRESETS
from .scenes import scene_of
from .train import RECIPE, measured

SCENE = "many-small"


@dataclass(frozen=True)
class Arm:
    """One way to a detector."""

    name: str
    stages: tuple[str, ...] = ("pretrain", "selftrain")
    """Before any label; none: the backbone has seen ImageNet, the rest starts at random."""
    more: int = 0
    """Further steps of ``pretrain``, in place of self-training."""
    clusters: int | None = None
    head: str = "fresh"
    lr: float = 1e-3
    body: float = 0.1


OURS = Arm("SimDETR")
IMAGENET = Arm("ImageNet alone", stages=())
WARM = Arm("SimDETR, warm head", head="warm", lr=5e-4, body=0.2)
ONE_CLASS = Arm("SimDETR, one pseudo-class", clusters=1)
NO_ROUND = Arm(
    "SimDETR, no self-training, as many steps",
    stages=("pretrain",),
    more=RECIPE["selftrain"].steps,
)
ARMS = (IMAGENET, OURS, WARM, ONE_CLASS, NO_ROUND)


class Lab:
    """Makes and measures arms on one data set; what is pretrained is kept in ``work``."""

    def __init__(
        self, request: BenchRequest, data: Dataset, images: Sequence[Tensor], work: Path
    ) -> None:
        self.request, self.data, self.images, self.work = request, data, images, work
        sides = data.train.sides()
        self.scenes = [
            scene_of(image, *size, truth)
            for image, size, truth in zip(images, sides, data.train.truth, strict=True)
        ]

    def _request(self, out: Path, seed: int) -> TrainRequest:
        made = training(self.request, out, seed=seed)
        return replace(made, resume=(out / CHECKPOINT).is_file(), progress=self.request.progress)

    def start(self, seed: int) -> Network:
        """ImageNet's backbone in a random detector."""
        base = self.request.base
        assert base is not None  # the benchmark asks for it
        assert base.folder is not None
        run = Run(self._request(self.work / "none", seed), {}, {"none": Fit(1, 1e-3, 1)})
        network = Network(1)
        network.trunk = trunk_on(base.folder, run.draw("trunk", 1).generator)
        return network

    def pretrained(self, arm: Arm, seed: int) -> Network:
        """The arm before it sees labels, from its folder if it was made before."""
        if not arm.stages:
            return self.start(seed)
        facts = "-".join([*arm.stages, f"more{arm.more}", f"k{arm.clusters}", f"seed{seed}"])
        out = self.work / facts
        if not (out / "model" / "zoo.json").is_file():
            stages = {name: RECIPE[name] for name in arm.stages}
            first = stages["pretrain"]
            stages["pretrain"] = replace(first, steps=first.steps + arm.more)
            if self.request.quick:
                stages = {name: replace(s, steps=2, size=96) for name, s in stages.items()}
            run = Run(self._request(out, seed), {}, stages)
            course = self._course(run, self.start(seed), arm)
            parts = {"pretrain": course.pretrain, "selftrain": course.selftrain}

            def made() -> SimDETR:
                config = {**self.request.entry.config, "names": list(course.names)}
                return SimDETR(run.build_request(config), course.network)

            run.fit({name: parts[name] for name in arm.stages}, made)
        return network_of(out / "model")

    def _course(self, run: Run[Fit], network: Network, arm: Arm) -> Course:
        return Course(
            run, network, self.images, PRESETS[SCENE], upside_down=True, count=arm.clusters
        )

    def tuned(self, arm: Arm, share: float, steps: int, seed: int) -> dict[str, Any]:
        """AP on the test images after ``steps`` on this share of the labels, drawn by the seed."""
        network = self.pretrained(arm, seed)
        rng = np.random.default_rng(seed)
        count = max(1, round(share * len(self.scenes)))
        chosen = rng.permutation(len(self.scenes))[:count]
        stage = Fit(steps, arm.lr, 4, body=arm.body, size=96 if self.request.quick else 256)
        name = f"{arm.name}-{share}-{steps}-{seed}".replace(" ", "-").replace(",", "")
        run = Run(self._request(self.work / name, seed), {}, {"finetune": stage})
        course = self._course(run, network, arm)
        scenes = [self.scenes[i] for i in sorted(chosen.tolist())]
        config = {**self.request.entry.config, "names": list(self.data.names)}
        run.fit(
            {"finetune": lambda: course.finetune(scenes, self.data.names, arm.head)},
            lambda: SimDETR(run.build_request(config), course.network),
        )
        return measured(course.network, self.data.test, stage.size, self.data.names)


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,4) corners as fractions: centres anywhere, sides from 0.03 to 0.35."""
    centre, half = rng.uniform(0, 1, (count, 2)), rng.uniform(0.015, 0.175, (count, 2))
    return np.clip(np.concatenate([centre - half, centre + half], 1), 0, 1).astype("float32")


def fractions(truth: Detections, sides: tuple[int, int]) -> np.ndarray:
    """True boxes as fractions of their image."""
    made: np.ndarray = truth.boxes / np.array([*sides, *sides], "float32")
    return made
