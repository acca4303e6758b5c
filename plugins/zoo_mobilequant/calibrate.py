"""What calibration data says of a network: windows of tokens, largest values, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.calibration import token_ids
from zoo.errors import InputError

from .quantizers import Grid, asymmetric, searched
from .simulate import Site

LENGTH = 256
"""Tokens of a window that is made from texts."""
LEAST = 32
"""Fewer tokens in all are refused."""
WANTED = 8
"""Fewer windows are remarked on."""
SAMPLE = 1024
"""Values of a tensor that each window adds to the search of its range, beside the tails."""


def windows(calibration: Any, tokenizer: Any, config: Any) -> tuple[Tensor, list[str]]:
    """(N,T) token ids that begin as a sequence does in use, and remarks.

    Token ids stay as they are. Windows of texts begin with the token that the tokenizer puts before
    every text; where there is none, every second one begins with that of chats. Raises InputError
    where there are fewer than ``LEAST`` tokens, windows of one token, or ids beyond the vocabulary.
    """
    longest = getattr(config, "max_position_embeddings", None)
    ids = token_ids(calibration, tokenizer, length=min(LENGTH, longest or LENGTH)).clone()
    if ids.numel() < LEAST:
        raise InputError(
            f"calibration: {ids.numel()} tokens. At least {LEAST} are needed; {WANTED} or more "
            f"windows of {LENGTH} are better."
        )
    if ids.shape[1] < 2:
        raise InputError("calibration: windows of one token. Each needs two or more.")
    if int(ids.max()) >= config.vocab_size or int(ids.min()) < 0:
        raise InputError(
            f"calibration: token ids from {int(ids.min())} to {int(ids.max())}; the model has "
            f"{config.vocab_size}, from 0. Use the model's own tokenizer."
        )
    remarks = []
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is not None:
        always = tokenizer("a")["input_ids"][:1] == [begin]
        if not hasattr(calibration, "shape"):
            ids[:: 1 if always else 2, 0] = begin
        elif always and not bool((ids[:, 0] == begin).any()):
            remarks.append(
                f"No calibration row begins with token {begin}, with which this tokenizer begins "
                "every text: the first position, which often has massive values, was not seen."
            )
    if longest and ids.shape[1] > longest:
        remarks.append(
            f"Calibrated on windows of {ids.shape[1]} tokens, beyond the {longest} positions of "
            "the model: pass shorter ones."
        )
    if len(ids) < WANTED:
        what = "one window" if len(ids) == 1 else f"{len(ids)} windows"
        remarks.append(
            f"Calibrated on {what} only: pass more text of the kind that the model will see (50 "
            "windows or more)."
        )
    return ids, remarks


class Peaks:
    """Watches the largest magnitude of each channel: the last axis and, before it, the heads."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        """Site -> (channels,), (heads, d)."""

    def __call__(self, site: Site, x: Tensor, found: Tensor) -> None:
        heads = site.axis in ("heads", "keys")
        keep = (1, 3) if heads else tuple(range(2, x.ndim))
        exempt = site.exempt(x)
        sizes = x.abs() if exempt is None else x.abs().masked_fill(exempt, 0)
        peaks = sizes.amax([i for i in range(x.ndim) if i not in keep])
        require_finite(peaks, site)
        before = self.found.get(site.name)
        self.found[site.name] = peaks if before is None else torch.maximum(before, peaks)

    def of(self, layer: int) -> dict[str, Tensor]:
        """Tensor -> peaks, of one layer."""
        begin = f"{layer}."
        return {k.removeprefix(begin): v for k, v in self.found.items() if k.startswith(begin)}


class Spread:
    """Watches least and largest values and, for the search of eq. 13, tails and a sample.

    Of each window: ``SAMPLE`` values by chance, each standing for its share of all, and every value
    beyond these, standing for itself; so the rare massive ones are all there. ``divided``: site ->
    what its tensor is divided by before.
    """

    def __init__(
        self, search: bool, seed: int = 0, divided: Mapping[str, Tensor] | None = None
    ) -> None:
        self.search, self.divided = search, divided or {}
        self.chance = torch.Generator().manual_seed(seed)
        self.bounds: dict[str, tuple[float, float]] = {}
        self.values: dict[str, list[Tensor]] = {}
        self.counts: dict[str, list[Tensor]] = {}

    def __call__(self, site: Site, x: Tensor, found: Tensor) -> None:
        if site.name in self.divided:
            x = x / self.divided[site.name]
        exempt = site.exempt(x)
        if exempt is not None:
            x = x[~exempt.expand_as(x)]
        if x.numel() == 0:
            return
        flat = x.detach().flatten()
        least, largest = (float(b) for b in flat.aminmax())
        require_finite(torch.tensor([least, largest]), site)
        low, high = self.bounds.get(site.name, (0.0, 0.0))
        self.bounds[site.name] = min(low, least), max(high, largest)
        if not self.search or site.bits > 8:
            return
        where = torch.randint(flat.numel(), (SAMPLE,), generator=self.chance)
        some = flat[where.to(flat.device)]
        tails = flat[(flat < some.min()) | (flat > some.max())]
        share = (flat.numel() - tails.numel()) / SAMPLE
        self.values.setdefault(site.name, []).append(torch.cat([some, tails]))
        counts = torch.cat([torch.full_like(some, share), torch.ones_like(tails)])
        self.counts.setdefault(site.name, []).append(counts)

    def grid(self, site: Site) -> Grid:
        """The range of a site (eq. 13), as a grid."""
        least, largest = self.bounds.get(site.name, (0.0, 0.0))
        if site.name.endswith(".sigmoid"):
            least, largest = 0.0, 1.0
        elif site.name in self.values:
            values, counts = torch.cat(self.values[site.name]), torch.cat(self.counts[site.name])
            least, largest = searched(values, counts, least, largest, site.bits)
        return asymmetric(torch.tensor(least), torch.tensor(largest), site.bits)


class Clipped:
    """Watches which share of the values of each site lies beyond its range."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def __call__(self, site: Site, x: Tensor, found: Tensor) -> None:
        low, high = site.grid.range
        half = site.grid.step / 2  # what rounds to the last code is not clipped
        beyond = (x < low - half) | (x > high + half)
        exempt = site.exempt(x)
        if exempt is not None:
            beyond = beyond & ~exempt
        so_far = self.counts.setdefault(site.name, [0, 0])
        so_far[0] += int(beyond.sum())
        so_far[1] += x.numel()

    @property
    def shares(self) -> Mapping[str, float]:
        """Site -> share, from 0 to 1."""
        return {name: beyond / total for name, (beyond, total) in self.counts.items()}


def require_finite(x: Tensor, site: Site) -> None:
    """InputError that names the layer and tensor in which NaN or infinity appeared."""
    if not torch.isfinite(x).all():
        layer, _, tensor = site.name.partition(".")
        raise InputError(
            f"layer {layer}: {tensor} is not finite on the calibration data. The weights may be "
            "damaged, or too large for their dtype: run the original on the same tokens."
        )
