"""EfficientNet-Lite0 without its classifier, batch norms folded into the convolutions.

A folded batch norm is exact in evaluation and cannot be upset by small batches in training. The
names of the layers are timm's, so that ``folded`` can read timm's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo.errors import WeightsError

WIDTHS = (40, 112, 320)
"""Channels of the maps of strides 8, 16 and 32."""
STRIDES = (8, 16, 32)
STEM_WIDTH = 24
"""Channels of the map of stride 4, where the trained part begins."""
_STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _LEVELS = 2, ((2, 3), (3, 5), (5, 7))
"""Stages up to stride 4, and those that end in each of the three maps."""
_EPSILON = 1e-3  # of the batch norms, as TensorFlow's models have it


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does: with stride 2, sides must be even."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2 if stride == 1 else 0,
            groups=groups,
        )
        self.before = (kernel - 2) // 2 if stride == 2 else 0
        self.after = kernel - 2 - self.before if stride == 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.after:
            x = nn.functional.pad(x, (self.before, self.after, self.before, self.after))
        return super().forward(x)


class Block(nn.Module):
    """An inverted residual: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        if expand > 1:
            self.conv_pw = Conv(inputs, width, 1)
        self.conv_dw = Conv(width, width, kernel, stride, groups=width)
        # timm calls the projection of a block without expansion conv_pw
        self.last = "conv_pwl" if expand > 1 else "conv_pw"
        self.add_module(self.last, Conv(width, outputs, 1))
        self.expand = expand > 1
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.conv_pw(x)) if self.expand else x
        y = nn.functional.relu6(self.conv_dw(y))
        y = self.get_submodule(self.last)(y)
        return x + y if self.residual else y


class Stem(nn.Module):
    """(N,3,H,W) in [0,1] to (N,24,H/4,W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = Conv(3, 32, 3, 2)
        self.blocks = _blocks(0, _STEM)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.blocks(nn.functional.relu6(self.conv_stem(2 * images - 1)))
        return y


class Body(nn.Module):
    """The stem's map to those of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_blocks(*level) for level in _LEVELS)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


def _blocks(first: int, end: int) -> nn.Sequential:
    """The blocks of stages ``first`` to ``end`` - 1."""
    inputs = 32 if first == 0 else _STAGES[first - 1][4]
    made = []
    for count, kernel, stride, expand, outputs in _STAGES[first:end]:
        for i in range(count):
            made.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(*made)


def folded(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of ``Stem`` and ``Body`` from timm's ``tf_efficientnet_lite0``.

    A convolution w followed by a batch norm (gamma, beta, mean, variance) becomes
    w gamma / sigma with the bias beta - mean gamma / sigma. Raises WeightsError if tensors are
    missing or have other shapes.
    """
    stem, body = Stem(), Body()
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for part, module in enumerate((stem, body)):
        for name, wanted in module.state_dict().items():
            conv, _, field = name.rpartition(".")
            theirs, norm = _in_timm(conv)
            keys = [f"{theirs}.weight", *(f"{norm}.{k}" for k in _NORM)]
            missing = [key for key in keys if key not in tensors]
            if missing:
                raise WeightsError(
                    f"the base is not tf_efficientnet_lite0 of timm: it has no {missing[0]}."
                )
            weight, gamma, beta, mean, variance = (tensors[key].float() for key in keys)
            scale = gamma / torch.sqrt(variance + _EPSILON)
            made = weight * scale[:, None, None, None] if field == "weight" else beta - mean * scale
            if made.shape != wanted.shape:
                raise WeightsError(
                    f"the base is not tf_efficientnet_lite0 of timm: {theirs} has the shape "
                    f"{tuple(weight.shape)}."
                )
            found[part][name] = made
    return found


_NORM = ("weight", "bias", "running_mean", "running_var")


def _in_timm(conv: str) -> tuple[str, str]:
    """timm's name of a convolution, and of the batch norm after it."""
    if conv == "conv_stem":
        return conv, "bn1"
    *front, index, kind = conv.split(".")  # blocks.3.conv_dw, levels.1.0.conv_dw
    first, end = (0, _STEM) if front == ["blocks"] else _LEVELS[int(front[1])]
    at = int(index)
    for stage in range(first, end):
        count, expand = _STAGES[stage][0], _STAGES[stage][3]
        if at < count:
            order = ("conv_pw", "conv_dw", "conv_pwl") if expand > 1 else ("conv_dw", "conv_pw")
            place = f"blocks.{stage}.{at}"
            return f"{place}.{kind}", f"{place}.bn{order.index(kind) + 1}"
        at -= count
    raise AssertionError(conv)
