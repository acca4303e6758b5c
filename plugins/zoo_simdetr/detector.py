"""The network: a backbone, one encoder layer, a dense head that proposes queries, and a decoder.

``Trunk`` holds all that does not depend on the classes; ``Classes`` holds what does, and is
replaced between pretraining (pseudo-classes) and fine-tuning (real ones). Boxes are
(centre x, centre y, width, height), as fractions of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, scaled_dot_product_attention, silu

from . import boxes as geometry
from .backbone import STRIDES, WIDTHS, Body, Stem
from .losses import loss, noise
from .outputs import Noised, Seen, Target

WIDTH = 128
HEADS = 8
HIDDEN = 256
"""Width inside the feed-forward parts."""
POINTS = 4
"""Sampled places of a query in each map, for each head."""
LAYERS = 2
"""Of the decoder."""
ANCHOR = 3.0
"""Side of a dense head's starting box, in strides."""
PRIOR = -4.0
"""Starting logit of every class: most boxes are background."""
QUERIES = 100
"""Of the decoder: several times the objects of an image, or the faint ones get none."""
CANDIDATES = 240
"""Best dense boxes among which the queries are chosen."""
DUPLICATE = 0.8
"""IoU above which the weaker of two dense boxes is no query."""


class Classes(nn.Module):
    """All parameters that belong to classes: a classifier for each output, and their embedding."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, count)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, count) for _ in range(LAYERS))
        self.embedding = nn.Embedding(count, WIDTH)
        for linear in self.linears():
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.constant_(linear.bias, PRIOR)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def count(self) -> int:
        """Number of classes."""
        return self.embedding.num_embeddings

    def linears(self) -> list[nn.Linear]:
        """The classifiers, the dense head's first."""
        return [self.dense, *(layer for layer in self.layers if isinstance(layer, nn.Linear))]


class Perceptron(nn.Sequential):
    """Two hidden layers; the last layer starts at zero."""

    def __init__(self, inputs: int, outputs: int, hidden: int = WIDTH) -> None:
        last = nn.Linear(hidden, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )


class Attention(nn.Module):
    """Multi-head attention among the queries or cells of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, place: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N,T,d); ``place`` is added to queries and keys; ``mask`` (T,T): who may see whom."""
        n, t, d = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(n, t, HEADS, d // HEADS).transpose(1, 2)

        q, k, v = self.query(x + place), self.key(x + place), self.value(x)
        found = scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask)
        y: Tensor = self.out(found.transpose(1, 2).reshape(n, t, d))
        return y


class DeformableAttention(nn.Module):
    """Each query reads a few places around its box from every map (eq. 5)."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(WIDTHS)
        self.offsets = nn.Linear(WIDTH, HEADS * levels * POINTS * 2)
        self.weights = nn.Linear(WIDTH, HEADS * levels * POINTS)
        self.value, self.out = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():  # each head starts in a direction of its own, further at each point
            angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
            way = torch.stack([angle.cos(), angle.sin()], -1)
            way = way / way.abs().amax(-1, keepdim=True)
            steps = torch.arange(1, POINTS + 1)[:, None]
            start = (way[:, None, None] * steps).expand(HEADS, levels, POINTS, 2)
            self.offsets.bias.copy_(start.reshape(-1))

    def forward(self, x: Tensor, boxes: Tensor, maps: list[Tensor]) -> Tensor:
        """(N,Q,d) queries with boxes (N,Q,4) read maps (N,d,h,w)."""
        n, q, d = x.shape
        levels = len(maps)
        moved = self.offsets(x).view(n, q, HEADS, levels, POINTS, 2) / POINTS
        weights = self.weights(x).view(n, q, HEADS, levels * POINTS).softmax(-1)
        at = boxes[:, :, None, None, None, :2]
        places = at + moved * boxes[:, :, None, None, None, 2:] * 0.5
        grid = (2 * places - 1).transpose(1, 2).reshape(n * HEADS, q, levels, POINTS, 2)
        read = [
            grid_sample(
                self.value(one).reshape(n * HEADS, d // HEADS, *one.shape[2:]),
                grid[:, :, level],
                align_corners=False,
            )
            for level, one in enumerate(maps)
        ]
        shares = weights.transpose(1, 2).reshape(n * HEADS, 1, q, levels * POINTS)
        found = (torch.cat(read, -1) * shares).sum(-1).view(n, d, q)
        y: Tensor = self.out(found.transpose(1, 2))
        return y


class Feed(nn.Sequential):
    """The feed-forward part of a layer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, WIDTH))


class EncoderLayer(nn.Module):
    """Self-attention over the cells of the two coarse maps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed = Attention(), Feed()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(x, place))
        y: Tensor = self.norms[1](x + self.feed(x))
        return y


class DecoderLayer(nn.Module):
    """Queries see each other, then the image around their boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.look, self.feed = Attention(), DeformableAttention(), Feed()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(
        self, x: Tensor, place: Tensor, boxes: Tensor, maps: list[Tensor], mask: Tensor | None
    ) -> Tensor:
        x = self.norms[0](x + self.attention(x, place, mask))
        x = self.norms[1](x + self.look(x + place, boxes, maps))
        y: Tensor = self.norms[2](x + self.feed(x))
        return y


class Smooth(nn.Module):
    """A filter of 3x3 cells after maps were added."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm = nn.GroupNorm(HEADS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return silu(self.norm(self.mix(self.filter(x)))) + x


class Trunk(nn.Module):
    """Everything but the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Stem(), Body()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, WIDTH, 1), nn.GroupNorm(HEADS, WIDTH))
            for width in WIDTHS
        )
        self.encoder = EncoderLayer()
        self.smooth = nn.ModuleList(Smooth() for _ in range(2))
        self.dense = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.SiLU())
        self.dense_box = Perceptron(WIDTH, 4)
        self.start = nn.Linear(WIDTH, WIDTH)
        self.place = nn.Sequential(nn.Linear(4, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, WIDTH))
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.boxes = nn.ModuleList(Perceptron(WIDTH, 4) for _ in range(LAYERS))

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """(backbone, the rest) that are trained; the stem is not."""
        rest = nn.ModuleDict({k: m for k, m in self.named_children() if k not in ("stem", "body")})
        return self.body, rest

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) in [0,1], sides multiples of 32, to the backbone's three maps."""
        made: list[Tensor] = self.body(self.stem(images))
        return made

    def maps(self, images: Tensor) -> list[Tensor]:
        """The same, of width d, after the encoder."""
        fine, middle, coarse = (
            lateral(x) for lateral, x in zip(self.lateral, self.features(images), strict=True)
        )
        n, d = middle.shape[:2]
        cells = torch.cat([middle.flatten(2), coarse.flatten(2)], 2).transpose(1, 2)
        place = torch.cat([waves(*middle.shape[2:]), waves(*coarse.shape[2:])]).to(cells)
        cells = self.encoder(cells, place).transpose(1, 2)
        split = middle.shape[2] * middle.shape[3]
        middle = cells[:, :, :split].reshape(n, d, *middle.shape[2:])
        coarse = cells[:, :, split:].reshape(n, d, *coarse.shape[2:])
        middle = self.smooth[1](middle + interpolate(coarse, size=middle.shape[2:]))
        fine = self.smooth[0](fine + interpolate(middle, size=fine.shape[2:]))
        return [fine, middle, coarse]


class Network(nn.Module):
    """Trunk and classes: images to boxes."""

    def __init__(self, classes: int, queries: int = QUERIES) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.classes = Classes(classes)
        self.queries = queries

    def fresh(self, count: int) -> Classes:
        """New class layers."""
        return Classes(count)

    def forward(self, images: Tensor, noised: Noised | None = None) -> Seen:
        """(N,3,H,W) in [0,1], sides multiples of 32."""
        trunk, classes = self.trunk, self.classes
        maps = trunk.maps(images)
        cells = torch.cat([one.flatten(2) for one in maps], 2).transpose(1, 2)
        memory = trunk.dense(cells)
        dense_logits = classes.dense(memory)
        first = anchors(images.shape[2], images.shape[3]).to(memory)
        dense_boxes = (first + trunk.dense_box(memory)).sigmoid()
        chosen = choose(dense_logits.detach(), dense_boxes.detach(), self.queries)
        at = chosen[..., None]
        x = trunk.start(memory.gather(1, at.expand(-1, -1, WIDTH)))
        boxes = dense_boxes.detach().gather(1, at.expand(-1, -1, 4))
        mask, queries = None, x.shape[1]
        if noised is not None:
            x = torch.cat([x, classes.embedding(noised.labels)], 1)
            boxes = torch.cat([boxes, noised.boxes], 1)
            count = len(noised.mask)
            mask = torch.zeros(queries + count, queries + count, dtype=torch.bool, device=x.device)
            mask[:, :queries] = True  # ordinary queries are seen by all, and see only each other
            mask[queries:, queries:] = noised.mask
        logits, found = [], []
        for i, layer in enumerate(trunk.layers):
            x = layer(x, trunk.place(boxes), boxes, maps, mask)
            made = (inverse_sigmoid(boxes) + trunk.boxes[i](x)).sigmoid()
            logits.append(classes.layers[i](x))
            found.append(made)
            boxes = made.detach()
        return Seen(
            dense_logits,
            dense_boxes,
            tuple(one[:, :queries] for one in logits),
            tuple(one[:, :queries] for one in found),
            tuple(one[:, queries:] for one in logits),
            tuple(one[:, queries:] for one in found),
        )

    def loss(self, images: Tensor, targets: Sequence[Target], generator: torch.Generator) -> Tensor:
        """The loss of a batch; ``generator``: of the denoising queries (eq. 6 to 10)."""
        noised = noise(targets, self.classes.count, generator)
        seen = self(images, noised[0] if noised else None)
        return loss(seen, targets, noised[1:] if noised else None)


def choose(logits: Tensor, boxes: Tensor, count: int) -> Tensor:
    """(N,Q) indices of the dense boxes that become queries, those first that differ (eq. 4).

    The surest of all classes and the surest of each class take turns: by score alone a class of
    many objects would leave no query to a rare one.
    """
    scores = logits.amax(-1)
    classes = logits.shape[2]
    turns = classes * places(logits) + torch.arange(classes, device=logits.device)
    turn = torch.minimum(places(scores[..., None])[..., 0] + 0.5, turns.amin(-1).to(scores))
    count = min(count, scores.shape[1])
    best = (-turn).topk(min(max(CANDIDATES, count), scores.shape[1]), sorted=True)
    sides = geometry.corners(boxes.gather(1, best.indices[..., None].expand(-1, -1, 4)))
    apart = geometry.first_of_each(sides, DUPLICATE)
    ranked = best.values + apart.to(best.values) * (2 * scores.shape[1] * classes)
    return best.indices.gather(1, ranked.topk(count).indices)


def places(scores: Tensor) -> Tensor:
    """(N,T,K) int64: the place of each cell in the order of its scores, from 0; all differ."""
    order = scores.topk(scores.shape[1], 1).indices
    count = torch.arange(scores.shape[1], device=scores.device)[None, :, None]
    return torch.zeros_like(order).scatter(1, order, count.expand_as(order))


def anchors(height: int, width: int) -> Tensor:
    """(T,4) logits of a box around each cell of the three maps (eq. 3)."""
    made = []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        side = torch.full_like(x, ANCHOR)
        box = torch.stack([x / columns, y / rows, side / columns, side / rows], -1)
        made.append(inverse_sigmoid(box.clamp(0.01, 0.99)).reshape(-1, 4))
    return torch.cat(made)


def waves(rows: int, columns: int) -> Tensor:
    """(rows*columns,d): sines and cosines of the place, as fractions of the image's sides."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    rate = 2 * math.pi / 20 ** (torch.arange(WIDTH // 4) / (WIDTH // 4)) * 4
    angles = torch.cat([(x[..., None] * rate), (y[..., None] * rate)], -1)
    return torch.cat([angles.sin(), angles.cos()], -1).reshape(rows * columns, WIDTH)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """The logit, finite for 0 and 1."""
    x = x.clamp(1e-4, 1 - 1e-4)
    return torch.log(x / (1 - x))
