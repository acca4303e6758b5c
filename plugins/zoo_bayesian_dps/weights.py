"""The chain of the weights given the network: three ways to move w_i in [0, 1].

Given theta the weights are independent of each other, and of each the energy knows one number, its
derivative z_i = dU/dw_i = l_i - tau: positive numbers lower a weight. Nothing here knows the rest
of the model.
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


# --- the conditional of one weight ----------------------------------------------------------------
#
# p(w | theta) is proportional to exp(-w z / T) on [0, 1]: an exponential distribution, cut off.


def _not_zero(z: Tensor) -> Tensor:
    """float64, away from the removable singularity at 0."""
    z = z.double()
    return torch.where(z.abs() < 1e-4, torch.full_like(z, 1e-4), z)


def conditional_mean(z: Tensor) -> Tensor:
    """E[w] = 1/z - 1/(e^z - 1): 1/2 at 0, falling in z. Eq. 5, float32."""
    z = _not_zero(z)
    return (1 / z - 1 / torch.expm1(z)).float()


def conditional_variance(z: Tensor) -> Tensor:
    """Var[w] = 1/z^2 - e^z/(e^z - 1)^2: 1/12 at 0, and minus the derivative of the mean."""
    z = _not_zero(z)
    small = 1 / 12 - z.square() / 240  # the series, where the difference below cancels
    exact = 1 / z.square() - 0.25 / (z / 2).sinh().square()  # an infinite one leaves 1/z^2
    return torch.where(z.abs() < 0.05, small, exact).clamp_min(0).float()


def conditional_draw(z: Tensor, dice: torch.Generator) -> Tensor:
    """One draw of each, by the inverse of the distribution function."""
    z = _not_zero(z)
    u = torch.rand(z.shape, generator=dice, dtype=torch.float64)
    # For z < 0 by symmetry: 1 - w has the distribution of -z.
    a = z.abs()
    w = -torch.log1p(u * torch.expm1(-a)) / a
    return torch.where(z > 0, w, 1 - w).clamp(0, 1).float()


class Weights(Protocol):
    """w_i in [0, 1] of the examples ``ids`` (B,)."""

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """(B,) float32 weights, detached."""

    def move(
        self, ids: Tensor, features: Tensor | None, z: Tensor, step: float, dice: torch.Generator
    ) -> None:
        """One step down the energy; ``ids`` are unique, ``z`` (B,) is dU/dw, ``step`` falls from
        ``lr_weights`` to 0."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The opposite."""


def logit(share: float) -> float:
    """The logit of a share, within the limits."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return min(max(math.log(share / (1 - share)), -LIMIT), LIMIT)


class ExactWeights:
    """w_i drawn from its conditional at each visit: Gibbs sampling, with no step size (eq. 5)."""

    def __init__(self, n: int, start: float, temperature: float) -> None:
        self.w = torch.full((n,), start)
        self.temperature = temperature

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        return self.w[ids]

    def move(
        self, ids: Tensor, features: Tensor | None, z: Tensor, step: float, dice: torch.Generator
    ) -> None:
        self.w[ids] = conditional_draw(z / self.temperature, dice)

    def state(self) -> dict[str, Tensor]:
        return {"w": self.w}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.w.copy_(state["w"])


class LangevinWeights:
    """w_i = sigmoid(a_i), the logits moved by Langevin dynamics, as in the paper (eq. 6).

    a_i <- a_i - h (w_i (1 - w_i) dU/dw_i - T (1 - 2 w_i)) + sqrt(2 h T) xi, with h = 4 step.
    The last term of the drift is the change of variables from w to a, so that at T = 1 the w_i
    themselves have the density exp(-U) on (0, 1). T = 0 is the plain gradient step.
    """

    def __init__(self, n: int, start: float, temperature: float) -> None:
        self.a = torch.full((n,), logit(start))
        self.temperature = temperature

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        return self.a[ids].sigmoid()

    def move(
        self, ids: Tensor, features: Tensor | None, z: Tensor, step: float, dice: torch.Generator
    ) -> None:
        a, h, t = self.a[ids], 4 * step, self.temperature
        w = a.sigmoid()
        a = a - h * (w * (1 - w) * z - t * (1 - 2 * w))
        a += math.sqrt(2 * h * t) * torch.randn(a.shape, generator=dice)
        self.a[ids] = a.clamp(-LIMIT, LIMIT)

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.a.copy_(state["a"])


class WeightNetwork:
    """w_i = sigmoid(g(h_i)): an MLP on features h_i of the example, its label or answer included.

    For data too large for each example to be seen a few times. Starts at w = ``start`` for all.
    Trained by Adam, 5e-3 times the step size, towards the means of the conditionals (eq. 7).
    """

    def __init__(
        self, width: int, start: float, temperature: float, hidden: int = 64, seed: int = 0
    ) -> None:
        self.temperature = temperature
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
        return (LIMIT * (found / LIMIT).tanh()).sigmoid()  # a hard limit would stop its learning

    def now(self, ids: Tensor, features: Tensor | None) -> Tensor:
        with torch.no_grad():
            return self._weights(features)

    def move(
        self, ids: Tensor, features: Tensor | None, z: Tensor, step: float, dice: torch.Generator
    ) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * step
        self.optimiser.zero_grad()
        wanted = conditional_mean(z / self.temperature)
        nn.functional.binary_cross_entropy(self._weights(features), wanted).backward()
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
