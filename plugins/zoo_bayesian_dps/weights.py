"""Where instance weights live: one logit for each example, or a small network that gives them.

Both are moved by ``gradient``, the derivative of the energy by the weight of each example of the
batch, dU/dw_i: positive numbers lower a weight. Nothing here knows the rest of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

LIMIT = 6.0
"""Logits stay in [-6, 6], weights in [0.0025, 0.9975]: what was dropped can come back."""
RATE = 5e-3
"""Adam's learning rate of a weight network at step size 1."""


class Weights(Protocol):
    """w_i in (0, 1) of the examples ``ids`` (B,)."""

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """(B,) float32 weights, detached."""

    def move(
        self,
        ids: Tensor,
        features: Tensor | None,
        gradient: Tensor,
        lr: float,
        temperature: float,
        dice: torch.Generator,
    ) -> None:
        """One Langevin step down the energy; ``ids`` are unique, ``gradient`` (B,) is dU/dw."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite."""


def logit(share: float) -> float:
    """The logit of a share, within the limits."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return min(max(math.log(share / (1 - share)), -LIMIT), LIMIT)


class FreeWeights:
    """w_i = sigmoid(a_i), a (N,) float32: 4 bytes an example; only rows of the batch move.

    a_i <- a_i - h (w_i (1 - w_i) dU/dw_i - T (1 - 2 w_i)) + sqrt(2 h T) xi, with h = 4 lr (eq. 9).
    The last term of the drift is the change of variables from w to a, so that at T = 1 the w_i
    themselves have the density exp(-U) on (0, 1). T = 0 is the plain gradient step.
    """

    def __init__(self, start: Tensor) -> None:
        """``start`` (N,): the first weights."""
        p = start.clamp(1e-6, 1 - 1e-6)
        self.a = (p / (1 - p)).log().clamp(-LIMIT, LIMIT).float()

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        return self.a[ids].sigmoid()

    def move(
        self,
        ids: Tensor,
        features: Tensor | None,
        gradient: Tensor,
        lr: float,
        temperature: float,
        dice: torch.Generator,
    ) -> None:
        a, h = self.a[ids], 4 * lr
        w = a.sigmoid()
        drift = w * (1 - w) * gradient - temperature * (1 - 2 * w)
        a = a - h * drift
        if temperature:
            a += math.sqrt(2 * h * temperature) * torch.randn(a.shape, generator=dice)
        self.a[ids] = a.clamp(-LIMIT, LIMIT)

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.a.copy_(state["a"])


class WeightNetwork:
    """w_i = sigmoid(g(h_i)): an MLP on features h_i of the example, its label or answer included.

    For data too large for each example to be seen a few times. Starts at w = ``start`` for all.
    Trained by Adam, 5e-3 times the step size, on mean_i w_i dU/dw_i (eq. 12).
    """

    def __init__(self, width: int, start: float, hidden: int = 64, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, logit(start))
        self.net = nn.Sequential(nn.LayerNorm(width), first, nn.GELU(), last)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=RATE)

    def _weights(self, features: Tensor | None) -> Tensor:
        assert features is not None
        found: Tensor = self.net(features.float())[:, 0]
        return found.clamp(-LIMIT, LIMIT).sigmoid()

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        with torch.no_grad():
            return self._weights(features)

    def move(
        self,
        ids: Tensor,
        features: Tensor | None,
        gradient: Tensor,
        lr: float,
        temperature: float,
        dice: torch.Generator,
    ) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * lr
        self.optimiser.zero_grad()
        (self._weights(features) * gradient).mean().backward()
        self.optimiser.step()

    def state(self) -> dict[str, Tensor]:
        kept = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            kept |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        net = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        self.net.load_state_dict(net)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, i, name = key.split(".", 2)
                moments.setdefault(int(i), {})[name] = value.clone()
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({**whole, "state": moments})
