"""What ``quantize`` does, as one value: the scheme, and each part of the method on or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from zoo.errors import OptionError

from .quantizers import WeightFormat
from .transform import PAIRS

SCHEMES: Mapping[str, tuple[int, int]] = {
    "w8a8": (8, 8),
    "w4a8": (4, 8),
    "w8a16": (8, 16),
    "w4a16": (4, 16),
}
"""Scheme -> bits of weights and of activations."""
LEARNED = ("transformation", "clipping", "ranges")
"""What can be learned (eq. 16)."""


@dataclass(frozen=True)
class Recipe:
    """Every setting of the method. The defaults are the method itself."""

    scheme: str = "w8a8"
    pairs: tuple[str, ...] = PAIRS
    """Where scale moves (eq. 3 to 6): any of ``PAIRS``."""
    alpha: float | None = None
    """Of eq. 8, from 0 (weights are evened out) to 1 (activations are); None: what serves best, or
    no smoothing where that does (eq. 22)."""
    grid: bool = True
    """Is the range of least squared error searched (eq. 13)? Else it is from least to largest."""
    steps: int = 150
    """Steps of learning, each on one window; layer by layer, of each layer."""
    learn: tuple[str, ...] = LEARNED
    """What is learned (eq. 16). Weights of 8 bits are not clipped."""
    loss: str = "kl"
    """``kl`` on the logits (eq. 17), or ``mse`` on the last hidden state (eq. 18)."""
    jointly: bool = True
    """Through all layers at once, or layer by layer (eq. 19)."""
    prefix_tokens: int = 0
    """So many first positions keep floating-point activations."""
    weights: str = "row"
    """``row``: symmetric, a grid for each row; ``paper``: asymmetric (eq. 11)."""
    table: bool = True
    """Are embedding and head rows of 8-bit codes (eq. 23)? Else they stay floats."""
    fallback: int = 0
    """At most so many activations get 16 bits (eq. 21)."""
    budget: float = 0.05
    """The KL divergence, in nats for each token, beyond which ``fallback`` acts."""

    def kept(self) -> dict[str, Any]:
        """As JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def restored(cls, kept: Mapping[str, Any]) -> Self:
        """From what ``kept`` gave."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        return cls(**fixed)

    @property
    def weight_bits(self) -> int:
        return SCHEMES[self.scheme][0]

    @property
    def activation_bits(self) -> int:
        return SCHEMES[self.scheme][1]

    @property
    def learns(self) -> tuple[str, ...]:
        """What is learned with this scheme."""
        skipped = "clipping" if self.weight_bits == 8 else ""
        return tuple(part for part in self.learn if part != skipped) if self.steps else ()

    def form(self, linear: str) -> WeightFormat:
        """How the weight of a linear layer is quantized (eq. 11)."""
        paper = self.weights == "paper"
        whole = paper and self.weight_bits == 8 and linear != "down"
        return WeightFormat(self.weight_bits, per_row=not whole, zero_point=paper)


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "mobilequant": {},
    "rtn": {"pairs": (), "grid": False, "steps": 0},
    "rtn-grid": {"pairs": (), "steps": 0},
    "smoothquant": {"pairs": ("n1", "n2"), "alpha": 0.5, "grid": False, "steps": 0},
    "smoothquant-all": {"alpha": 0.5, "grid": False, "steps": 0},
    "smoothquant-all-grid": {"alpha": 0.5, "steps": 0},
    "layerwise": {"jointly": False},
}
"""The method and its baselines, by what they change."""


def make(name: str, scheme: str, changes: Mapping[str, Any]) -> Recipe:
    """A recipe by name, with settings changed. Raises OptionError with what there is."""
    if scheme not in SCHEMES:
        raise OptionError(f"scheme={scheme!r}: expected one of {', '.join(SCHEMES)}.")
    if name not in RECIPES:
        raise OptionError(f"recipe={name!r}: expected one of {', '.join(RECIPES)}.")
    given = {key: value for key, value in changes.items() if value is not None}
    for key, known in {"pairs": PAIRS, "learn": LEARNED}.items():
        if key in given:
            given[key] = _some(key, given[key], known)
    made = replace(Recipe(scheme=scheme), **{**RECIPES[name], **given})
    _check(made)
    return made


def _some(key: str, given: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Some of the known words: a sequence, or text with commas; "none" is none of them."""
    if not isinstance(given, str | Sequence):
        raise OptionError(f"{key}={given!r}: expected any of {', '.join(known)}, or none.")
    words = given.replace(" ", "").split(",") if isinstance(given, str) else list(given)
    words = [] if words in (["none"], [""]) else words
    if unknown := [word for word in words if word not in known]:
        raise OptionError(f"{key}={unknown[0]!r}: expected any of {', '.join(known)}, or none.")
    return tuple(word for word in known if word in words)


def _check(recipe: Recipe) -> None:
    least: Mapping[str, tuple[float, float]] = {
        "alpha": (0, 1), "steps": (0, 1_000_000), "prefix_tokens": (0, 64),
        "fallback": (0, 10_000), "budget": (0, 100),
    }  # fmt: skip
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in least and not (value is None and field.default is None):
            low, high = least[field.name]
            whole = isinstance(field.default, int)
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not right or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise OptionError(f"{field.name}={value!r}: expected {kind} from {low} to {high}.")
        elif isinstance(field.default, bool) and not isinstance(value, bool):
            raise OptionError(f"{field.name}={value!r}: expected True or False.")
    for key, known in {"loss": ("kl", "mse"), "weights": ("row", "paper")}.items():
        if getattr(recipe, key) not in known:
            found = getattr(recipe, key)
            raise OptionError(f"{key}={found!r}: expected one of {', '.join(known)}.")
