"""Small worlds to measure few-shot adaptation in: all generated, so the truth is known exactly.

*Shapes*: rendered pictures of 8 colours x 8 shapes and their names, with a small CLIP trained on
them here, in about a CPU-minute; the target domain mixes colours, bends contrast, blurs and adds
noise. *Faint*: features for which zero-shot is the best possible rule, so that whatever is learned
harms. *Large*: features of any size, for speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lfa import unit


class Task(NamedTuple):
    """A support set, a test set, and the texts; all rows of unit norm."""

    x: Tensor
    """(N,d_x) support images."""
    labels: Tensor
    y: Tensor
    """(C,d_y) one text for each class."""
    test: Tensor
    test_labels: Tensor


# --- shapes: pictures -----------------------------------------------------------------------------

COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.90, 0.85, 0.15),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.95, 0.55, 0.10),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "crescent")
NAMES = tuple(f"a photo of a {colour} {shape}." for colour in COLOURS for shape in SHAPES)
SIDE = 32
PIXEL_NOISE = 0.04


def _distance(shape: int, u: Tensor, v: Tensor) -> Tensor:
    """Below 0 inside the shape of radius about 1, at (u, v)."""
    r, angle = (u * u + v * v).sqrt(), torch.atan2(v, u)
    if shape == 0:
        return r - 0.95
    if shape == 1:
        return torch.maximum(u.abs(), v.abs()) - 0.8
    if shape == 2:
        return torch.maximum(v - 0.6, 0.87 * u.abs() - 0.5 * v - 0.5)
    if shape == 3:
        return r - (0.68 + 0.32 * torch.cos(5 * angle))
    if shape == 4:
        bar = torch.maximum(u.abs() - 0.3, v.abs() - 0.95)
        return torch.minimum(bar, torch.maximum(v.abs() - 0.3, u.abs() - 0.95))
    if shape == 5:
        return (r - 0.75).abs() - 0.2
    if shape == 6:
        return u.abs() * 1.3 + v.abs() - 1
    return torch.maximum(r - 1, 0.85 - ((u - 0.5) ** 2 + v * v).sqrt())


def render(labels: Tensor, dice: torch.Generator) -> Tensor:
    """(N,3,32,32) in [0,1]: one shape each, any place and size, turned a little, on a slope."""
    n = len(labels)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=dice)

    grid = torch.linspace(-1, 1, SIDE)
    size, centre = 0.4 + 0.3 * draw(n, 1, 1), 0.7 * (draw(2, n, 1, 1) - 0.5)
    turn = 0.35 * (2 * draw(n, 1, 1) - 1)
    a, b = (grid[None, None, :] - centre[0]) / size, (grid[None, :, None] - centre[1]) / size
    u, v = a * turn.cos() + b * turn.sin(), b * turn.cos() - a * turn.sin()
    inside = torch.empty(n, SIDE, SIDE)
    for shape in range(len(SHAPES)):
        rows = (labels % len(SHAPES) == shape).nonzero()[:, 0]
        inside[rows] = _distance(shape, u[rows], v[rows])
    inside = torch.sigmoid(-inside * (6 + 14 * draw(n, 1, 1)))[:, None]
    palette = torch.tensor(list(COLOURS.values()))[labels // len(SHAPES)]
    colour = (palette + 0.08 * torch.randn(n, 3, generator=dice))[:, :, None, None]
    ground = 0.35 + 0.3 * draw(n, 1, 1, 1) + 0.05 * torch.randn(n, 3, 1, 1, generator=dice)
    slope = 0.15 * (2 * draw(2, n, 1, 1, 1) - 1)
    ground = ground + slope[0] * grid[None, None, None, :] + slope[1] * grid[None, None, :, None]
    made = inside * colour + (1 - inside) * ground
    return (made + PIXEL_NOISE * torch.randn(made.shape, generator=dice)).clamp(0, 1)


_MIX = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.3, 0.6], [0.6, 0.1, 0.3]])


def shifted(images: Tensor, strength: float, dice: torch.Generator) -> Tensor:
    """The target domain: colours mixed, contrast bent, blurred, noise added. 0 changes nothing."""
    if strength == 0:
        return images
    mix = torch.lerp(torch.eye(3), _MIX, min(1.0, strength))
    x = torch.einsum("ij,njhw->nihw", mix, images).clamp(1e-4, 1) ** (1 + 0.8 * strength)
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, min(1.0, strength))
    return (x + 0.08 * strength * torch.randn(x.shape, generator=dice)).clamp(0, 1)


# --- shapes: a small CLIP -------------------------------------------------------------------------

WIDTH = 256
"""Columns of the features."""


class Towers(nn.Module):
    """An image tower (0.5 M parameters) and a text tower over the 20 words of ``NAMES``."""

    def __init__(self, words: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.vocabulary = {w: i for i, w in enumerate(dict.fromkeys(" ".join(NAMES).split()))}
        self.image = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 96, 3, 2, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU(),
            nn.Flatten(), nn.Linear(96 * 16, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, WIDTH),
        )  # fmt: skip
        self.words = nn.Embedding(len(self.vocabulary), words)
        self.place = nn.Parameter(0.1 * torch.randn(8, words))
        layer = nn.TransformerEncoderLayer(
            words, 4, 2 * words, 0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(words, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def tokens(self, texts: tuple[str, ...]) -> Tensor:
        """(C,6) word numbers; every text has six words."""
        return torch.tensor([[self.vocabulary[word] for word in text.split()] for text in texts])

    def encode_texts(self, texts: tuple[str, ...]) -> Tensor:
        """(C,d), not normalised."""
        embedded = self.words(self.tokens(texts))
        return self.out(self.layers(embedded + self.place[: embedded.shape[1]])[:, -1])


def train_towers(seed: int = 0, images: int = 8000, epochs: int = 12) -> Towers:
    """Contrastive training on the source domain; pictures with the same name are all positives."""
    torch.manual_seed(seed)  # initial weights; the rest has a generator of its own
    dice = torch.Generator().manual_seed(seed)
    net, batch = Towers(), 100
    labels = torch.arange(images) % len(NAMES)
    pictures = torch.cat([render(part, dice) for part in labels.split(2000)])
    steps = epochs * (images // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(images, generator=dice).split(batch)[: images // batch]:
            x = unit(net.image(pictures[rows]))
            y = unit(net.encode_texts(NAMES))[labels[rows]]
            logits = net.log_scale.exp() * x @ y.T
            same = (labels[rows][:, None] == labels[rows]).float()
            same = same / same.sum(1, keepdim=True)
            loss = functional.cross_entropy(logits, same) + functional.cross_entropy(logits.T, same)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                net.log_scale.clamp_(max=math.log(100.0))
    return net.eval().requires_grad_(False)


@dataclass
class Shapes:
    """The world: towers and their texts; tasks at any shift, number of shots and seed."""

    net: Towers
    y: Tensor
    """(64,d) unit rows."""

    @classmethod
    def made(cls, seed: int = 0, images: int = 8000, epochs: int = 12) -> Shapes:
        net = train_towers(seed, images, epochs)
        return cls(net, unit(net.encode_texts(NAMES)))

    def features(self, labels: Tensor, strength: float, seed: int) -> Tensor:
        """(N,d) unit rows of fresh pictures."""
        dice = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return torch.cat(
                [
                    unit(self.net.image(shifted(render(part, dice), strength, dice)))
                    for part in labels.split(1024)
                ]
            )

    def task(self, strength: float, shots: int, seed: int, tests: int = 40) -> Task:
        """``shots`` pictures of each of the 64 classes, ``tests`` of each to test on."""
        labels = torch.arange(len(NAMES)).repeat_interleave(shots)
        test = torch.arange(len(NAMES)).repeat_interleave(tests)
        return Task(
            self.features(labels, strength, 1000 + seed),
            labels,
            self.y,
            self.features(test, strength, 999),
            test,
        )


# --- faint: nothing can be learned ----------------------------------------------------------------


def faint(shots: int, seed: int, classes: int = 40, d: int = 128, tests: int = 50) -> Task:
    """x = y_l + isotropic noise, texts of random directions: zero-shot is Bayes' rule, half right.

    With equal, isotropic noise and equal priors the nearest text is the best rule there is. A map
    fitted on few such examples can only be worse.
    """
    dice = torch.Generator().manual_seed(77)
    y = unit(torch.randn(classes, d, generator=dice))

    def draw(labels: Tensor, seed: int) -> Tensor:
        own = torch.Generator().manual_seed(seed)
        return unit(y[labels] + 0.48 * torch.randn(len(labels), d, generator=own))

    labels = torch.arange(classes).repeat_interleave(shots)
    test = torch.arange(classes).repeat_interleave(tests)
    return Task(draw(labels, 1000 + seed), labels, y, draw(test, 999), test)


# --- large: ImageNet's size -----------------------------------------------------------------------


def large(
    classes: int = 1000,
    shots: int = 16,
    d: int = 512,
    tests: int = 5,
    seed: int = 0,
    turn: float = 0.5,
    noise: float = 1.2,
) -> Task:
    """Texts with correlated directions, class means a turned copy of them, noise.

    Class means are the texts turned (``turn`` in radians or so), so zero-shot is weak and a
    linear map is the right answer: a world for timing, not for claims about accuracy.
    """
    dice = torch.Generator().manual_seed(seed)
    y = unit(torch.randn(classes, d, generator=dice) + 0.7 * torch.randn(1, d, generator=dice))
    skew = torch.randn(d, d, generator=dice) / math.sqrt(d)
    rotation = torch.matrix_exp(turn * (skew - skew.T))
    means = y @ rotation

    def draw(labels: Tensor) -> Tensor:
        return unit(
            means[labels] + noise / math.sqrt(d) * torch.randn(len(labels), d, generator=dice)
        )

    labels = torch.arange(classes).repeat_interleave(shots)
    test = torch.arange(classes).repeat_interleave(tests)
    return Task(draw(labels), labels, y, draw(test), test)
