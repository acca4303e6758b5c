"""A latent super-resolution network as an ``SRModel``: images, tiles, seeds, estimates, export.

YONOS-SR and Edge-SD-SR differ in their networks; their interface for users is the same and is here.
"""

from __future__ import annotations

import abc
import numbers
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zoo.errors import InputError, NotReadyError, OptionError
from zoo.hookspecs import BuildRequest
from zoo.images import transform
from zoo.interfaces import Estimate, SRModel
from zoo.isolation import isolated
from zoo.progress import track
from zoo.weights import load_module

from .networks import LatentNetwork
from .pixels import back_project, bicubic_up, wavelet_fix
from .tiles import Grid, noise_field, stream

if TYPE_CHECKING:
    from zoo.interfaces import Images
    from zoo.progress import Progress

PROBE_FLOPS = 150e9
"""Tiles with more FLOPs are not run to estimate their time."""


class LatentSR(SRModel):
    """Super-resolution by one evaluation of a latent network for each tile.

    Load option ``fidelity`` in [0, 1] blends the weights of the decoder before (0) and after (1)
    its fine-tuning.
    """

    module: LatentNetwork
    noise_scale: ClassVar[float] = 0.0
    """The default of ``upscale(noise_scale=None)``."""
    color_fix: ClassVar[bool] = False
    """The default of ``upscale(color_fix=None)``."""

    @classmethod
    @abc.abstractmethod
    def network(cls, config: Mapping[str, Any]) -> LatentNetwork:
        """An untrained network of this configuration."""

    def __init__(self, request: BuildRequest, network: LatentNetwork) -> None:
        super().__init__(request)
        self.module = network.requires_grad_(False).eval()
        self.module.to(memory_format=torch.channels_last)
        self._tuned: dict[str, Tensor] = {}
        fidelity = request.options.get("fidelity", 1.0)
        if fidelity != 1:
            # ``state`` needs the loaded weights: a saved blend would be blended again when loaded.
            self._tuned = {
                f"decoder.{k}": v.clone() for k, v in network.decoder.state_dict().items()
            }
            base = network.decoder_base.state_dict()
            for name, value in network.decoder.state_dict().items():
                value.copy_(base[name] if fidelity == 0 else base[name].lerp(value, fidelity))

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """Load from the verified folder of a registry entry or of ``save_pretrained``."""
        if request.folder is None:
            raise NotReadyError(
                f"{request.entry.name} has no trained weights. Train it with "
                f"`zoo train {request.entry.name}`, then load the resulting folder."
            )
        network = load_module(
            lambda: cls.network(request.config),
            request.folder / "model.safetensors",
            device=request.device,
            dtype=request.dtype,
        )
        assert isinstance(network, LatentNetwork)
        return cls(request, network)

    def state(self) -> Mapping[str, Tensor]:
        """All five parts of the network, with the decoder as loaded, before blending."""
        return {**self.module.state_dict(), **self._tuned}

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.module.scale,)

    @property
    def multiple(self) -> int:
        return self.module.stride

    @property
    def tile(self) -> int | None:
        return int(self.config["tile"])

    def upscale(
        self,
        images: Images,
        *,
        scale: int | float | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
        overlap: int | None = None,
        tile_batch: int = 1,
        steps: int = 1,
        noise_scale: float | None = None,
        consistency: int = 0,
        color_fix: bool | None = None,
    ) -> Any:
        """Enlarge images; see ``SRModel.upscale`` for what all such models share.

        ``overlap``: input pixels that neighbouring tiles share, at most half a tile (None: a
        quarter of a tile, at most 32). ``tile_batch``: tiles evaluated at once; no pixel depends on
        it. ``steps``: DDIM steps; the method is designed for 1. ``noise_scale`` in [0, 1]: the
        scale of the noise at the start of the chain (None: the model's own); with 0 ``seed`` has no
        effect. ``consistency``: steps of back-projection, so that the result shrinks to the input;
        only for inputs made by clean bicubic shrinking (it restores the artefacts of others).
        ``color_fix``: take the low frequencies of colour from the input (None: the model's own).
        ``progress`` counts tiles, anew for each image.
        """
        self._check(scale, prompt)
        noise_scale = self.noise_scale if noise_scale is None else noise_scale
        color_fix = self.color_fix if color_fix is None else color_fix
        if not isinstance(color_fix, bool):  # any text, even a typo, would count as true
            raise OptionError(f"color_fix={color_fix!r}: expected true, false or null.")
        noise_scale = number("noise_scale", noise_scale, 0, 1)
        steps = number("steps", steps, 1, 1000, whole=True)
        tile_batch = number("tile_batch", tile_batch, 1, 4096, whole=True)
        consistency = number("consistency", consistency, 0, 100, whole=True)
        seed = number("seed", seed, 0, 2**63 - 1, whole=True)
        side, shared = self._tiling(tile, overlap)

        def evaluate(tiles: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
            made = self._evaluate(tiles, places, steps, seed, noise_scale)
            if color_fix:
                made = wavelet_fix(made, bicubic_up(tiles, self.module.scale))
            return back_project(made, tiles, self.module.scale, consistency)

        def enlarge(image: Tensor) -> Iterator[Tensor]:
            grid = self._grid(image.shape[-2], image.shape[-1], side, shared)
            with track(grid.evaluations, progress, "upscale") as advance:
                yield from stream(image, grid, evaluate, batch=tile_batch, advance=advance)

        return transform(images, enlarge, scale=self.module.scale)

    @torch.inference_mode()
    def _evaluate(
        self,
        tiles: Tensor,
        places: Sequence[tuple[int, int]],
        steps: int = 1,
        seed: int = 0,
        noise_scale: float = 0.0,
    ) -> Tensor:
        """Tiles (B,3,h,w) in [0,1] at (row, column) of the image to (B,3,H,W), float32, CPU."""
        net = self.module
        first = next(net.parameters())
        x_l = tiles.to(first.device, first.dtype).contiguous(memory_format=torch.channels_last)
        eps = None
        if noise_scale:
            h, w, *corners = (
                n * net.scale // net.factor
                for n in (*tiles.shape[-2:], *(n for place in places for n in place))
            )  # in latents
            eps = noise_scale * torch.stack(
                [
                    noise_field(seed, net.latent, y, x, h, w)
                    for y, x in zip(corners[::2], corners[1::2], strict=True)
                ]
            )
        if first.device.type == "cpu":
            # The order of sums inside a convolution may depend on the batch size. On a CPU a batch
            # gains nothing, so tiles run one by one: the same bits for any ``tile_batch``.
            made = torch.cat([net(x_l[i : i + 1], _part(eps, i), steps) for i in range(len(x_l))])
        else:
            made = net(x_l, eps, steps)
        return made.to("cpu", torch.float32)

    def _check(self, scale: float | None, prompt: str | None) -> None:
        if scale is not None and scale not in self.scales:
            known = ", ".join(map(str, self.scales))
            raise OptionError(f"{self.entry.name} has no scale {scale!r}; it has {known}.")
        if prompt is not None:
            raise OptionError(f"{self.entry.name} does not support prompts; leave it out.")

    def _tiling(self, tile: Any, overlap: int | None) -> tuple[int | None, int]:
        """Side of a tile (None: no tiles) and overlap of neighbours, checked."""
        multiple = self.multiple
        side = self.tile if tile == "auto" else tile
        if side is None:
            return None, 0
        if isinstance(side, str):
            raise OptionError(f"tile={side!r}: expected a side in pixels, 'auto' or None.")
        side = number("tile", side, multiple, 1 << 20, whole=True)
        if side % multiple:
            raise OptionError(f"tile={side} is not a multiple of {multiple}.")
        highest = side // 2 // multiple * multiple
        if overlap is None:
            overlap = min(32, side // 4) // multiple * multiple
        shared = number("overlap", overlap, 0, highest, whole=True)
        if shared % multiple:
            raise OptionError(f"overlap={shared} is not a multiple of {multiple}.")
        return side, shared

    def _grid(self, height: int, width: int, tile: int | None, overlap: int) -> Grid:
        return Grid(height, width, tile, overlap, self.multiple, self.module.scale)

    @isolated()
    def estimate(
        self,
        size: Sequence[int],
        *,
        tile: int | Literal["auto"] | None = "auto",
        overlap: int | None = None,
    ) -> Estimate:
        """The estimated cost of enlarging an image of ``size`` (height, width) in input pixels.

        Counts the FLOPs of one tile without running it, and times a tile on this device: a smaller
        one if a full tile is expensive.
        """
        sides: Sequence[Any] = size if isinstance(size, list | tuple) else ()
        if len(sides) != 2 or not all(
            isinstance(n, numbers.Integral) and int(n) > 0 for n in sides
        ):
            raise InputError(f"size={size!r}: expected (height, width) in pixels.")
        height, width = map(int, sides)
        grid = self._grid(height, width, *self._tiling(tile, overlap))
        flops, activation = count(self.module, *grid.shape)
        shape, cost = grid.shape, flops
        for side in (64, 32, 16):
            if cost > PROBE_FLOPS and side % self.multiple == 0:
                shape = (min(side, shape[0]), min(side, shape[1]))
                cost, _ = count(self.module, *shape)
        probe = torch.rand(1, 3, *shape)
        for _ in range(2):  # the first pass is warm-up
            started = time.perf_counter()
            self._evaluate(probe, [(0, 0)])
            spent = time.perf_counter() - started
        seconds = grid.evaluations * flops / cost * spent
        band = 2 * 3 * self.module.scale**2 * grid.shape[0] * grid.padded[1]
        memory = 4 * (4 * activation + band + 3 * grid.padded[0] * grid.padded[1])
        return Estimate(grid.evaluations, float(grid.evaluations * flops), memory, seconds)

    def export(  # type: ignore[override]  # options are spelled out
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        size: int | Sequence[int] | None = None,
        int8: bool = False,
    ) -> Path:
        """Write an ONNX graph: ``image`` (1,3,h,w) in [0,1] to ``enlarged`` (1,3,H,W) in [0,1].

        ``size``: side, or (height, width), for a graph of fixed shape, as phones need; without it h
        and w are free multiples of ``multiple``. ``int8``: 8-bit weights and activations. Needs no
        torch to run.
        """
        from .export import export_onnx

        if format != "onnx":
            raise OptionError(f"{self.entry.name} exports to 'onnx', not to {format!r}.")
        return export_onnx(self, Path(path), size=size, int8=int8)

    def export_report(self, path: str | Path) -> Sequence[str]:
        """Lines that compare an exported file with this model: size, pixels and time; for int8 also
        dB."""
        from .export import report

        return report(self, Path(path))


def _part(eps: Tensor | None, i: int) -> Tensor | None:
    return None if eps is None else eps[i : i + 1]


def number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> Any:
    """The value, possibly numpy's, as int (whole) or float; OptionError if it is not a number in
    range."""
    right = isinstance(value, numbers.Integral if whole else numbers.Real)
    if not right or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise OptionError(f"{name}={value!r}: expected {kind} from {low} to {high}.")
    return int(value) if whole else float(value)


def count(network: LatentNetwork, height: int, width: int) -> tuple[int, int]:
    """FLOPs of one evaluation on an LR tile (height, width), and the size of the largest output."""
    from torch.utils.flop_counter import FlopCounterMode

    from .measuring.cost import count_flops

    largest = 0

    def look(module: nn.Module, args: Any, made: Any) -> None:
        nonlocal largest
        if isinstance(made, Tensor):
            largest = max(largest, made.numel())

    counter = FlopCounterMode(display=False)
    watched = [m.register_forward_hook(look) for m in network.modules()]
    try:
        count_flops(counter, network, (height, width))
    finally:
        for hook in watched:
            hook.remove()
    return int(counter.get_total_flops()), largest
