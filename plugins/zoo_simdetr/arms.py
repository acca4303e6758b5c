"""The detectors that the benchmark compares: what they are pretrained on, and how they go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.experiment import training
from zoo.hookspecs import BenchRequest, TrainRequest
from zoo.training import CHECKPOINT, Run

from .bench_rows import backbone
from .course import Course, keep_boxes
from .dataset import Dataset
from .detector import Network
from .learning import Fit, network_of, seeded, trunk_on
from .model import SimDETR
from .proposals import PRESETS
from .rivals import selective_search
from .scenes import Scene, scene_of
from .train import RECIPE, measured


@dataclass(frozen=True)
class Arm:
    """One way to a detector."""

    name: str
    stages: tuple[str, ...] = ("pretrain", "selftrain")
    """Before any label; none: the backbone has seen ImageNet, the rest starts at random."""
    more: int = 0
    """Further steps of ``pretrain``, in place of self-training."""
    clusters: int | None = None
    search: bool = False
    """Boxes of Selective Search, all of one class, in place of proposals."""
    frozen: bool = False
    """Does the backbone stay as it is while the detector is pretrained?"""
    scratch: bool = False
    """Does the backbone start at random, but for its stem? Proposals are those of ImageNet's."""
    head: str = "fresh"
    lr: float = 1e-3
    body: float = 0.1

    @property
    def start(self) -> str:
        """A name for all that happens before labels; arms that differ later share it."""
        if not self.stages:
            return f"none-scratch{int(self.scratch)}"
        marks = (self.more, self.clusters, self.search, self.frozen, self.scratch)
        return "-".join([*self.stages, *(str(mark) for mark in marks)])


_EXTRA = RECIPE["selftrain"].steps
OURS = Arm("SimDETR")
IMAGENET = Arm("ImageNet alone", stages=())
WARM = Arm("SimDETR, warm head", head="warm")
GENTLE = Arm("SimDETR, warm head, rates of the recipe", head="warm", lr=5e-4, body=0.2)
ONE_CLASS = Arm("SimDETR, one pseudo-class", clusters=1)
NO_ROUND = Arm("SimDETR, no self-training, as many steps", stages=("pretrain",), more=_EXTRA)
DETREG = Arm(
    "like DETReg: Selective Search, one class, as many steps",
    stages=("pretrain",), more=_EXTRA, search=True,
)  # fmt: skip
FROZEN = Arm("SimDETR, backbone frozen in pretraining", frozen=True)
SCRATCH = Arm("SimDETR, backbone from scratch but for its stem", scratch=True)
RANDOM = Arm("nothing pretrained but the stem", stages=(), scratch=True)
ARMS = (IMAGENET, OURS, WARM, GENTLE, DETREG, ONE_CLASS, NO_ROUND, FROZEN, SCRATCH, RANDOM)
LONG_ARMS = (IMAGENET, OURS)
"""Those that go on for four times as long, too."""
FEW_SIZE = 160
"""Longest side of a view when learning from few labels, as in pretraining."""


class Lab:
    """Makes and measures arms on one data set; what is pretrained is kept in ``work``."""

    def __init__(
        self,
        request: BenchRequest,
        data: Dataset,
        images: Sequence[Tensor],
        work: Path,
        scene: str,
    ) -> None:
        self.request, self.data, self.images, self.work = request, data, images, work
        self.preset, self.upside_down = PRESETS[scene], scene == "many-small"
        sides = data.train.sides()
        self.scenes = [
            scene_of(image, *size, truth)
            for image, size, truth in zip(images, sides, data.train.truth, strict=True)
        ]

    def _request(self, out: Path, seed: int) -> TrainRequest:
        made = training(self.request, out, seed=seed)
        return replace(made, resume=(out / CHECKPOINT).is_file(), progress=self.request.progress)

    def start(self, arm: Arm, seed: int) -> Network:
        """A random detector, with ImageNet's backbone unless the arm starts from scratch."""
        folder = backbone(self.request)
        run = Run(self._request(self.work / "none", seed), {}, {"none": Fit(1, 1e-3, 1)})
        network = Network(1)
        generator = run.draw("trunk", 1).generator
        network.trunk = trunk_on(folder, generator)
        if arm.scratch:
            network.trunk.body = seeded(generator, type(network.trunk.body))
        return network

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where an arm is pretrained."""
        return self.work / f"{arm.start}-seed{seed}"

    def pretrained(self, arm: Arm, seed: int) -> Network:
        """The arm before it sees labels, from its folder if it was made before."""
        if not arm.stages:
            return self.start(arm, seed)
        out = self.folder(arm, seed)
        if not (out / "model" / "zoo.json").is_file():
            stages = {name: RECIPE[name] for name in arm.stages}
            first = stages["pretrain"]
            stages["pretrain"] = replace(first, steps=first.steps + arm.more)
            if arm.frozen:
                stages = {name: replace(s, body=0.0) for name, s in stages.items()}
            if self.request.quick:
                stages = {name: replace(s, steps=2, size=96) for name, s in stages.items()}
            run = Run(self._request(out, seed), {}, stages)
            course = self._course(run, self.start(arm, seed), arm)
            self._propose(arm, course, out / "proposals.safetensors", seed)
            parts = {"pretrain": course.pretrain, "selftrain": course.selftrain}

            def made() -> SimDETR:
                config = {**self.request.entry.config, "names": list(course.names)}
                return SimDETR(run.build_request(config), course.network)

            run.fit({name: parts[name] for name in arm.stages}, made)
        return network_of(out / "model")

    def _propose(self, arm: Arm, course: Course, file: Path, seed: int) -> None:
        """Write the boxes that the arm learns, unless its ``file`` has them.

        Proposals of a seed are made once, always by ImageNet's backbone.
        """
        if file.is_file():
            return
        if arm.search:
            keep_boxes(file, [*map(self._searched, self.images)], course.mark)
            return
        shared = self.work / f"proposals-{arm.clusters}-seed{seed}.safetensors"
        if arm.scratch and not shared.is_file():
            self.pretrained(replace(arm, scratch=False), seed)
        if not shared.is_file():
            keep_boxes(shared, course.proposals(), course.mark)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, file)

    def _searched(self, image: Tensor) -> Scene:
        """Selective Search's first boxes, as objects of one class."""
        boxes = torch.from_numpy(selective_search(image)[: self.preset.most])
        return Scene(image, boxes, torch.zeros(len(boxes), dtype=torch.int64))

    def _course(self, run: Run[Fit], network: Network, arm: Arm) -> Course:
        return Course(
            run,
            network,
            self.images,
            self.preset,
            upside_down=self.upside_down,
            count=arm.clusters,
        )

    def tuned(self, arm: Arm, share: float, steps: int, seed: int) -> dict[str, Any]:
        """AP on the test images after ``steps`` on this share of the labels, drawn by the seed."""
        network = self.pretrained(arm, seed)
        rng = np.random.default_rng(seed)
        count = max(1, round(share * len(self.scenes)))
        chosen = rng.permutation(len(self.scenes))[:count]
        stage = Fit(steps, arm.lr, 4, body=arm.body, size=96 if self.request.quick else FEW_SIZE)
        name = f"{arm.name}-{share}-{steps}-{seed}".replace(" ", "-").replace(",", "")
        run = Run(self._request(self.work / name, seed), {}, {"finetune": stage})
        course = self._course(run, network, arm)
        scenes = [self.scenes[i] for i in sorted(chosen.tolist())]
        config: Mapping[str, Any] = {**self.request.entry.config, "names": list(self.data.names)}
        run.fit(
            {"finetune": lambda: course.finetune(scenes, self.data.names, arm.head)},
            lambda: SimDETR(run.build_request(config), course.network),
        )
        return measured(course.network, self.data.test, stage.size, self.data.names)
