"""What ``zoo.load("simdetr")`` returns."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from zoo.annotations import pairs
from zoo.errors import InputError, NotReadyError, OptionError
from zoo.hookspecs import BuildRequest, TrainRequest
from zoo.images import each, listed, read, to_tensor
from zoo.interfaces import Detections, Detector
from zoo.isolation import isolated, learning
from zoo.progress import Progress, track
from zoo.training import CHECKPOINT, Run
from zoo.weights import atomic_file, load_module

from .course import Course, cluster_names, digest, steps_for
from .detector import Classes, Network
from .export import Graph, onnx_of
from .learning import Fit, new_network
from .proposals import PRESETS
from .reading import NMS, THRESHOLD, detections, look, ranked
from .scenes import ROOM, load, load_readable, scene_of, seen_sides

STAGES: Mapping[str, Fit] = {
    "pretrain": Fit(300, 1e-3, 4),
    "selftrain": Fit(150, 1e-3, 4),
    "finetune": Fit(300, 5e-4, 4, body=0.2),
}
"""What ``pretrain`` and ``finetune`` do unless told otherwise: about ten minutes of a CPU core."""
CHECKED = 5
"""Detections that ``zoo verify`` compares."""
FEW = 50
"""Images without labels below which pseudo-classes are poor."""
LEAST = 8
"""Pixels of an object's side, as the network sees it, below which it is hard to find."""


class SimDETR(Detector):
    """A small detector that learns from images without labels, then from few with labels.

    ``detect`` finds what ``names`` say. ``pretrain`` learns from images alone; its classes are
    clusters, which ``name_clusters`` names. ``finetune`` learns from boxes.
    """

    recipe: ClassVar[Mapping[str, Fit]] = STAGES
    """The stages of ``pretrain`` and ``finetune``."""
    start: Path | None = None
    """The folder of the base that ``pretrain`` begins with; None: with the model itself."""

    def __init__(self, request: BuildRequest, network: Network) -> None:
        super().__init__(request)
        self._take(network)

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From bundled weights or a saved folder."""
        config = request.config
        if request.folder is None:
            raise NotReadyError(
                f"{request.entry.name} has no weights yet: train them with "
                f"zoo train {request.entry.name} --data FOLDER -o OUT."
            )
        rows = config.get("rows") or range(len(config["names"]))
        network = load_module(
            lambda: Network(len(rows)), request.folder, device=request.device, dtype=request.dtype
        )
        assert isinstance(network, Network)
        made = cls(request, network)
        if request.base is not None and request.saved is None:
            made.start = request.base.folder
        return made

    def _take(self, network: Network) -> None:
        """Use this network, at the precision at which it is saved."""
        for tensor in network.state_dict().values():
            tensor.copy_(tensor.half())
        self.network = network.eval().requires_grad_(False)
        self.module = self.network

    def state(self) -> Mapping[str, Tensor]:
        """Half precision: 7.5 MB."""
        return {name: tensor.half() for name, tensor in self.network.state_dict().items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.config["names"])

    @property
    def size(self) -> int:
        """Longest side at which the network sees an image, in pixels."""
        return int(self.options.get("size") or self.config["size"])

    @property
    def report(self) -> Mapping[str, Any]:
        """What the last ``pretrain`` or ``finetune`` found: proposals, clusters, starts."""
        found: Mapping[str, Any] = self.config.get("report", {})
        return found

    # --- finding ----------------------------------------------------------------------------------

    @isolated()
    def detect(
        self, images: Any, *, threshold: float | None = None, nms: float | None = NMS
    ) -> Any:
        """``Detections`` for an image, a list for a list (eq. 11).

        ``threshold``: the lowest score; None: 0.45, the best F1 of the bundled weights on their
        training images.
        ``nms``: of two boxes of a class that overlap by more than this IoU only the surer stays;
        None: all stay.
        """
        for name, value in (("threshold", threshold), ("nms", nms)):
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name}={value!r}: expected a number from 0 to 1.")
        least = THRESHOLD if threshold is None else threshold
        rows = self.config.get("rows")
        owner = torch.tensor(rows, device=self.device) if rows else None

        def one(colours: Tensor) -> Detections:
            seen = look(self.network, colours, self.size)
            found = ranked(seen, nms=nms, threshold=least, owner=owner)
            height, width = colours.shape[1:]
            return detections(found, width, height, self.names)

        return each(images, one)

    def run_check(self, path: Path) -> Mapping[str, Tensor]:
        """``boxes`` (5,4) as fractions of the image and ``scores`` (5,): the surest detections."""
        colours = to_tensor(read(path, "RGB"))
        with isolated():
            boxes, scores, _ = ranked(look(self.network, colours, self.size))
        return {"boxes": boxes[:CHECKED].clone(), "scores": scores[:CHECKED].clone()}

    # --- learning ---------------------------------------------------------------------------------

    @learning()
    def pretrain(
        self,
        images: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress = False,
        scene: Literal["objects", "many-small"] = "objects",
        upside_down: bool = False,
        clusters: int | None = None,
        rounds: int = 1,
        work: str | Path | None = None,
    ) -> Mapping[str, Any]:
        """Learn from images without labels: a folder, or a list of anything that is an image.

        Classes are then clusters (``cluster 0``, ...). ``scene``: what to look for: a few objects,
        or many small ones that may touch. ``upside_down``: pictures have no upper side.
        ``clusters``: how many; None: by the number of regions. ``rounds`` of self-training.
        ``epochs`` or ``steps``: of each stage. ``work``: a folder where an interrupted call
        continues.

        With a base (``zoo.load(..., base=...)``: EfficientNet-Lite0) it starts from that one's
        weights. Without, from the model's own: the bundled ones know blood cells, and their
        regions of other things are worse.

        Returns a report: boxes per image, what was left out, sizes of the clusters, what
        self-training kept. Unreadable files of a folder are left out and listed; InputError if they
        are more than a tenth, or if nothing looks like an object.
        """
        if scene not in PRESETS:
            raise OptionError(f"scene={scene!r}: expected one of {', '.join(PRESETS)}.")
        if rounds not in (0, 1, 2):
            raise OptionError(f"rounds={rounds!r}: expected 0, 1 or 2.")
        steps_for(1, 1, epochs, steps, 1)
        small, skipped = self._small(images, progress)
        if len(small) < FEW:
            warnings.warn(
                f"{len(small)} images are few: clusters will be poor below about {FEW}.",
                stacklevel=3,
            )
        stages = {"pretrain": self.recipe["pretrain"]}
        stages |= {f"selftrain {i}": self.recipe["selftrain"] for i in range(1, rounds + 1)}
        stages = {
            name: replace(
                stage,
                steps=steps_for(len(small), stage.batch, epochs, steps, stage.steps),
                size=self.size,
            )
            for name, stage in stages.items()
        }
        asked = {"scene": scene, "upside_down": upside_down, "clusters": clusters}
        facts = {"images": len(small), "of": digest(small).hex(), **asked}
        with self._run(stages, seed, progress, work, facts) as run:
            network = self._beginning(run)
            course = Course(
                run, network, small, PRESETS[scene], upside_down=upside_down, count=clusters
            )
            parts = {"pretrain": course.pretrain}
            parts |= {f"selftrain {i}": partial(course.selftrain, i) for i in range(1, rounds + 1)}
            run.fit(parts, lambda: self._with(network, course.names, course.report()))
        report = {**course.report(), "skipped": skipped}
        self._learned(network, course.names, report)
        return report

    @learning()
    def finetune(
        self,
        images: Any,
        labels: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress = False,
        upside_down: bool = False,
        head: Literal["warm", "fresh"] = "warm",
        work: str | Path | None = None,
    ) -> Self:
        """Learn from labelled images (COCO, VOC, YOLO or ``Detections``); returns self.

        ``head``: ``warm`` starts each class from the present class that finds it (eq. 13),
        ``fresh`` anew, as the paper does. ``work``: a folder where an interrupted call continues.
        Warns of classes without objects, and of those whose objects the detector takes for
        background.
        """
        if head not in ("warm", "fresh"):
            raise OptionError(f"head={head!r}: expected warm or fresh.")
        steps_for(1, 1, epochs, steps, 1)
        given, truth = pairs(images, labels)
        small = load(given, round(self.size * ROOM))
        scenes = [
            scene_of(image, *_sides(original), boxes)
            for image, original, boxes in zip(small, given, truth, strict=True)
        ]
        names = truth[0].names
        _check(scenes, names, self.network.queries, self.size)
        stage = replace(self.recipe["finetune"], size=self.size)
        wanted = steps_for(len(scenes), stage.batch, epochs, steps, stage.steps)
        of = digest([*small, *(scene.boxes for scene in scenes)]).hex()
        facts = {"images": len(small), "of": of, "names": list(names), "head": head}
        with self._run(
            {"finetune": replace(stage, steps=wanted)}, seed, progress, work, facts
        ) as run:
            network = deepcopy(self.network)
            course = Course(run, network, small, PRESETS["objects"], upside_down=upside_down)
            run.fit(
                {"finetune": lambda: course.finetune(scenes, names, head)},
                lambda: self._with(network, course.names, course.report()),
            )
        if unseen := course.unseen():
            warnings.warn(
                f"the detector found few objects of {', '.join(unseen)} before it learned them: "
                f"pretraining may have taught it that they are background.",
                stacklevel=3,
            )
        self._learned(network, names, course.report())
        return self

    def name_clusters(self, names: Mapping[int, str]) -> Self:
        """Keep the clusters that have a name here, under it; returns self.

        Several clusters may have the same name. Raises OptionError if there is no such cluster.
        """
        known = self.names
        if known != cluster_names(len(known)):
            raise NotReadyError("the classes have names already: pretrain() makes clusters.")
        if not names:
            raise OptionError("names: name at least one cluster, such as {2: 'white cell'}.")
        for cluster, name in names.items():
            if type(cluster) is not int or not 0 <= cluster < len(known):
                raise OptionError(
                    f"there is no cluster {cluster!r}: they are 0 to {len(known) - 1}."
                )
            if not isinstance(name, str) or not name:
                raise OptionError(f"cluster {cluster}: {name!r} is not a name.")
        chosen = sorted(names)
        words = list(dict.fromkeys(names[c] for c in chosen))
        network = deepcopy(self.network)
        fresh = network.fresh(len(chosen))
        network.classes = chosen_rows(network.classes, fresh, chosen)
        self._learned(network, tuple(words), dict(self.report))
        self.config = {**self.config, "rows": [words.index(names[c]) for c in chosen]}
        return self

    # --- for other runtimes -----------------------------------------------------------------------

    @isolated()
    def export(  # type: ignore[override]  # options are spelled out
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        width: int = 4,
        height: int = 3,
        overwrite: bool = False,
    ) -> Path:
        """Write one ONNX file for images of one shape; returns the path.

        ``width`` and ``height``: of the images, in any unit; only their ratio counts. Input
        ``pixels``: uint8 (1,H,W,3), the image scaled to H x W; outputs ``boxes`` (Q,4), corners as
        fractions of the sides, and ``scores`` (Q,C). Metadata (JSON): ``names``, ``height`` (H),
        ``width`` (W), ``nms``: the IoU above which the user leaves out the weaker of two boxes of a
        class, ``threshold``: the default of ``detect``. ``examples/onnx_detect.py`` does all of it
        without torch.
        """
        path = Path(path)
        if format != "onnx" or path.suffix not in ("", ".onnx"):
            raise OptionError(
                f"{path.name!r} as format {format!r}: {self.entry.name} is exported to ONNX only, "
                "to a file that ends in .onnx."
            )
        if width < 1 or height < 1:
            raise OptionError(f"width={width}, height={height}: expected at least 1.")
        rows = self.config.get("rows") or range(len(self.names))
        graph = Graph(deepcopy(self.network).cpu().float(), list(rows), len(self.names))
        sides = seen_sides(height, width, self.size)
        told = {
            "model": self.entry.name,
            "names": list(self.names),
            "height": sides[0],
            "width": sides[1],
            "nms": NMS,
            "threshold": THRESHOLD,
        }
        made = onnx_of(graph, sides, told)
        with atomic_file(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(made)
        return path

    # --- what the verbs share ---------------------------------------------------------------------

    def _beginning(self, run: Run[Fit]) -> Network:
        """What ``pretrain`` goes on from."""
        if self.start is None:
            return deepcopy(self.network)
        return new_network(self.start, run.draw("trunk", 1).generator).to(self.device)

    def _small(self, images: Any, progress: Progress) -> tuple[list[Tensor], list[str]]:
        """Small copies of the images, and the unreadable files of a folder."""
        folder = isinstance(images, str | Path)
        found = listed(images, below=True) if folder else images
        if not isinstance(found, list | tuple) or not found:
            what = f"{images} has no images" if folder else "images: expected at least one"
            raise InputError(f"{what}. Give a folder or a list of images.")
        largest = max(preset.size for preset in PRESETS.values())
        with track(len(found), progress, "images") as advance:
            if not folder:
                return load(found, largest, advance), []
            small, skipped = load_readable(found, largest, advance)
        return [image for image in small if image is not None], skipped

    @contextmanager
    def _run(
        self,
        stages: Mapping[str, Fit],
        seed: int,
        progress: Progress,
        work: str | Path | None,
        facts: Mapping[str, Any],
    ) -> Iterator[Run[Fit]]:
        """A run in ``work``, or in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(work) if work is not None else Path(scratch)
            request = TrainRequest(
                entry=self.entry,
                out=out,
                seed=seed,
                resume=(out / CHECKPOINT).is_file(),
                device=str(self.device),
                progress=progress,
            )
            run = Run(request, {}, stages, facts=facts)
            try:
                yield run
            except KeyboardInterrupt:
                if work is None:  # what the loop says of a checkpoint is no longer true
                    raise KeyboardInterrupt from None
                raise

    def _with(self, network: Network, names: Sequence[str], report: Mapping[str, Any]) -> Self:
        """Another model like this one, with the network."""
        made = type(self)(self, network)  # type: ignore[arg-type]  # a model stands for its request
        made._learned(network, names, report)
        return made

    def _learned(self, network: Network, names: Sequence[str], report: Mapping[str, Any]) -> None:
        kept = {k: v for k, v in self.config.items() if k != "rows"}
        self.config = {**kept, "names": list(names), "report": dict(report)}
        self._take(network)


def chosen_rows(classes: Classes, made: Classes, rows: Sequence[int]) -> Classes:
    """``made`` with these rows of ``classes``, in this order."""
    with torch.no_grad():
        for theirs, mine in zip(classes.linears(), made.linears(), strict=True):
            mine.weight.copy_(theirs.weight[list(rows)])
            mine.bias.copy_(theirs.bias[list(rows)])
        if classes.embedding is not None:
            made.embedding.weight[: len(rows)] = classes.embedding.weight[list(rows)]
    return made.to(classes.linears()[0].weight)


def _sides(image: Any) -> tuple[int, int]:
    """(width, height) of anything that ``zoo.images`` takes."""
    found: tuple[int, int] = each(image, lambda colours: (colours.shape[2], colours.shape[1]))
    return found


def _check(scenes: Sequence[Any], names: Sequence[str], queries: int, size: int) -> None:
    """Warn of classes without objects, of images with more objects than queries, and of objects
    that are very small. Raises InputError if there is no object.
    """
    count = torch.bincount(torch.cat([s.labels for s in scenes]), minlength=len(names))
    if not count.sum():
        raise InputError(f"none of the {len(scenes)} images has an object to learn from.")
    if absent := [name for name, n in zip(names, count.tolist(), strict=True) if not n]:
        warnings.warn(
            f"no image has an object of {', '.join(absent)}: they cannot be learned.", stacklevel=4
        )
    if full := sum(len(s.labels) > queries for s in scenes):
        warnings.warn(
            f"{full} images have more than {queries} objects, the most that are found in one: cut "
            f"such images into parts.",
            stacklevel=4,
        )
    sides = [_small_sides(s, size) for s in scenes]
    if small := int((torch.cat(sides) < LEAST).sum()):
        warnings.warn(
            f"{small} of {int(count.sum())} objects are less than {LEAST} pixels high or wide as "
            f"the network sees them, at size={size}, and will hardly be found: load the model with "
            "a larger size, or cut the images into parts.",
            stacklevel=4,
        )


def _small_sides(scene: Any, size: int) -> Tensor:
    """(n,) the shorter side of each object in an image whose longer side has ``size`` pixels."""
    h, w = scene.image.shape[1:]
    sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]) * torch.tensor([w, h])
    return sides.amin(1) * size / max(h, w)
