"""Four small networks, one for each kind of rows, so that the method works at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three strided convolutions with GroupNorm, 26,000 parameters and 10 classes at 32x32."""

    def __init__(self, classes: int, channels: int = 3, widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        sizes = [channels, *widths]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(8, after),
                       nn.ReLU()]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,classes)."""
        found: Tensor = self.head(self.body((x - 0.5) / 0.25))
        return found


class MLP(nn.Module):
    """One hidden layer on standardised features."""

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int, hidden: int = 128):
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B,d) -> (B,classes)."""
        found: Tensor = self.layers((x.float() - self.centre) / self.scale)
        return found


BUCKETS = 1 << 13


class BagOfPieces(nn.Module):
    """Mean embedding of hashed words and pairs of words, one hidden layer."""

    def __init__(self, classes: int, width: int = 32):
        super().__init__()
        self.embed = nn.Embedding(BUCKETS + 1, width, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B,T) piece numbers, 0 is padding -> (B,classes)."""
        mask = (x != 0).float()[:, :, None]
        found: Tensor = self.head((self.embed(x) * mask).sum(1) / mask.sum(1).clamp_min(1).sqrt())
        return found


def pieces(text: str, most: int = 256) -> Tensor:
    """(T,) hashed words and pairs of words, at least one."""
    words = text.lower().split()[:most] or [""]
    found = words + [f"{a} {b}" for a, b in pairwise(words)]
    return torch.tensor([zlib.crc32(w.encode()) % BUCKETS + 1 for w in found])


class ByteLM(nn.Module):
    """A GRU over bytes: the smallest language model that learns; 257 symbols, 256 is the start."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.embed = nn.Embedding(257, 48)
        self.body = nn.GRU(48, width, batch_first=True)
        self.head = nn.Linear(width, 257)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B,T) -> (B,T,257), the next byte."""
        found: Tensor = self.head(self.body(self.embed(input_ids))[0])
        return found


BUNDLED: Mapping[str, Callable[..., nn.Module]] = {
    "image": ConvNet,
    "features": MLP,
    "text": BagOfPieces,
    "language": ByteLM,
}
