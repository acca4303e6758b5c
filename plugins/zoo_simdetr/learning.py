"""The steps that training, the verbs and the benchmark share: make networks, label, and learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.progress import Advance
from zoo.training import Draw, Run, Stage, cosine, read_saved
from zoo.weights import load_tensors

from .backbone import folded
from .detector import Classes, Network, Trunk
from .outputs import Target
from .proposals import Preset, Regions, Scale, propose
from .scenes import Batch, Scene, canvas, drawn, resized, seen_sides

SAMPLE = 32
"""Images from which the scale of the features is measured."""
FLAT = 8
"""Range of an image's values, of 255, below which it shows nothing: features then only show its
edges."""
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Fit(Stage):
    """One stage of training a detector."""

    ema: float = 0.999
    warm_up: int = 30
    clip: float = 2.0
    size: int = 256
    """Longest side of a view, in pixels."""
    body: float = 0.1
    """Learning rate of the backbone, as a share of ``lr``."""


def seeded(generator: torch.Generator, make: Callable[[], AnyModule]) -> AnyModule:
    """A module whose random start depends on the generator alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(generator.initial_seed())
        return make()


def trunk_on(folder: Path, generator: torch.Generator) -> Trunk:
    """A trunk with the backbone of a timm folder (EfficientNet-Lite0), the rest random."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise InputError(f"{folder} should hold one safetensors file; it holds {len(files)}.")
    stem, body = folded(load_tensors(files[0]))
    trunk = seeded(generator, Trunk)
    trunk.stem.load_state_dict(stem)
    trunk.body.load_state_dict(body)
    return trunk


def new_network(folder: Path, generator: torch.Generator) -> Network:
    """A detector of one class on the backbone of a timm folder, the rest random."""
    network = Network(1)
    network.trunk = trunk_on(folder, generator)
    return network


def network_of(saved: Path) -> Network:
    """The network of a saved detector, with the classes that it has."""
    _, tensors = read_saved(saved)
    network = Network(len(tensors["classes.embedding.weight"]))
    network.load_state_dict(tensors)
    return network


# --- pseudo-labels --------------------------------------------------------------------------------


def regions_of(
    trunk: Trunk,
    images: Sequence[Tensor],
    preset: Preset,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[Regions]:
    """The proposals (eq. 1) of each image (3,h,w) uint8, by the features of the trunk's backbone.

    Features are standardised over up to ``SAMPLE`` of the images.
    """

    like = next(trunk.parameters())

    @torch.inference_mode()
    def maps(image: Tensor) -> list[Tensor]:
        sides = seen_sides(image.shape[1], image.shape[2], preset.size)
        small = resized(image.float() / 255, sides)
        # Channels last, as in ``learn``.
        return trunk.features(small.to(like, memory_format=torch.channels_last))

    every = max(1, len(images) // SAMPLE)
    scale = Scale.of([maps(image) for image in images[::every]])
    found = []
    for image in images:
        if int(image.max()) - int(image.min()) < FLAT:
            found.append(Regions.none(sum(len(scale.mean[level]) for level in preset.levels)))
        else:
            found.append(propose(maps(image), scale, preset, seed))
        if advance is not None:
            advance()
    return found


# --- learning -------------------------------------------------------------------------------------


def learn(
    run: Run[Fit], network: Network, scenes: Sequence[Scene], *, upside_down: bool = False
) -> None:
    """Train trunk (but for the stem) and classes on the scenes for the run's stage.

    The loss is the same for real labels and pseudo-labels (eq. 6 to 10).
    """
    stage = run.stages[run.stage]
    sides = canvas(scenes, stage.size)
    body, rest = network.trunk.parts()

    def batch(draw: Draw) -> Batch:
        return drawn(scenes, sides, draw, upside_down=upside_down)

    def error(views: Batch) -> Tensor:
        targets = [Target(t.labels.to(run.device), t.boxes.to(run.device)) for t in views.targets]
        # Convolutions on a CPU are an eighth quicker with channels last.
        images = views.images.to(run.device, memory_format=torch.channels_last)
        return network.loss(images, targets, views.generator)

    run.minimise(
        {
            "body": (body, lambda progress: stage.body * cosine(progress)),
            "rest": rest,
            "classes": network.classes,
        },
        batch,
        error,
    )


def new_classes(run: Run[Fit], network: Network, name: str, count: int) -> Classes:
    """Fresh class layers; the same for the same seed and name."""
    return seeded(run.draw(f"classes {name}", 1).generator, lambda: network.fresh(count))
