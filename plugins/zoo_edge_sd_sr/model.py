"""Edge-SD-SR: one-step latent-diffusion super-resolution with bidirectional conditioning.

I. Hadji, M. Noroozi, V. Escorcia, A. Zaganidis, B. Martinez, G. Tzimiropoulos: "Edge-SD-SR: Low
Latency and Parameter Efficient On-device Super-Resolution with Stable Diffusion via Bidirectional
Conditioning", CVPR 2025, arXiv 2412.06978. Section numbers are those of our brief, which marks
what the paper says and what is our reading of it.

    x_l --E_L--> mu_l, log sigma_l^2        the LR image, by its own trained encoder     (2.4)
    z_1 = mu_l + s_l eps                    the forward process ends at the LR latent    (2.2)
    v^  = UNet(concat[z_1, mu_l], t=1)      the reverse process sees it too              (2.2)
    z^  = -v^                               one DDIM step: alpha_1 = 0, sigma_1 = 1      (2.6)
    x^  = D(z^)                             a decoder tuned on just these z^             (2.0 iii)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_yonos_sr import schedule
from zoo_yonos_sr.autoencoder import TinyDecoder, TinyEncoder
from zoo_yonos_sr.networks import ResBlock, TinyUNet, conv3, zero
from zoo_yonos_sr.noise import ForwardNoise, noise_field
from zoo_yonos_sr.resize import back_project, bicubic_up
from zoo_yonos_sr.tiles import Grid, stream

from zoo.errors import InputError, NotReadyError, OptionError
from zoo.hookspecs import BuildRequest
from zoo.images import transform
from zoo.interfaces import Estimate, SRModel
from zoo.progress import track
from zoo.weights import load_module

if TYPE_CHECKING:
    from zoo.interfaces import Images, Progress

LOG_VAR = (-8.0, 2.0)
"""Bounds of log sigma_l^2 (2.2)."""
LOG_VAR_START = -2.4
"""Where log sigma_l^2 starts: s_l = 0.3, the noise range that the brief found robust (7.1)."""


PROBE_FLOPS = 150e9
"""A tile of more is not computed just to estimate its time."""


class LREncoder(nn.Module):
    """E_L: the LR image at its own size to mu_l and log sigma_l^2, each (B,latent,h,w)."""

    def __init__(self, latent: int = 8, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.conv_in = conv3(3, width)
        self.blocks = nn.Sequential(*(ResBlock(width, width) for _ in range(blocks)))
        self.conv_out = zero(conv3(width, 2 * latent))

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,h,w) in [-1,1] to (B,2*latent,h,w): the mean, then the raw log-variance."""
        return self.conv_out(functional.silu(self.blocks(self.conv_in(x))))


class EdgeNetwork(nn.Module):
    """The joint network behind four verbs; what its parts are made of is the configuration's.

    Inference uses ``lr_encoder``, ``unet`` and ``decoder`` (these are the published 169 M at the
    full size). ``hr_encoder`` is E_H: frozen, needed to go on training. ``decoder_base`` is D
    before fine-tuning: where ``fidelity`` 0 leads back to.
    """

    def __init__(self, parts: Mapping[str, nn.Module], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.lr_encoder = parts["lr_encoder"]
        self.unet = parts["unet"]
        self.decoder = parts["decoder"]
        self.hr_encoder = parts["hr_encoder"]
        self.decoder_base = parts["decoder_base"]
        self.scale: int = 4
        self.factor: int = config["factor"]  # HR pixels per latent
        self.latent: int = config["latent"]
        self.stride: int = config["stride"]  # the LR size must be a multiple of this
        self.residual: bool = config["lr_encoder"]["kind"] == "residual"
        self.noise = ForwardNoise(config["mean"], config["var"], config["const"])

    # --- the verbs: everything else is written against these ---

    def encode_hr(self, x_h: Tensor) -> Tensor:
        """x_h (B,3,H,W) in [-1,1] to z_h (B,latent,H/f,W/f). Never trained with E_L (2.4)."""
        return self.hr_encoder(x_h)

    def encode(self, x_l: Tensor) -> tuple[Tensor, Tensor]:
        """x_l (B,3,h,w) in [-1,1] to mu_l and log sigma_l^2, each (B,latent,4h/f,4w/f)."""
        mu, log_var = self.lr_encoder(x_l).chunk(2, dim=1)
        if self.residual:  # mu_l = E_H(up(x_l)) + r(x_l), r = 0 at first (2.4)
            mu = mu + self.hr_encoder(bicubic_up(x_l, self.scale))
        return mu, (log_var + LOG_VAR_START).clamp(*LOG_VAR)

    def denoise(self, z_t: Tensor, mu: Tensor, t: Tensor) -> Tensor:
        """v^ from z_t and mu_l (B,latent,h',w') and t (B,)."""
        return self.unet(torch.cat([z_t, mu], dim=1), t)

    def decode(self, z: Tensor) -> Tensor:
        """z (B,latent,h',w') to (B,3,f h',f w'), about in [-1,1]."""
        return self.decoder(z)

    # --- inference (2.6) ---

    def one_step(self, x_l: Tensor, eps: Tensor | None = None, steps: int = 1) -> Tensor:
        """z^ (B,latent,h',w') from x_l (B,3,h,w) in [-1,1]; eps None is noise_scale 0."""
        mu, log_var = self.encode(x_l)
        if eps is None:
            eps = torch.zeros_like(mu)
        z_1 = self.noise.n(eps.to(mu), mu, log_var)  # alpha_1 = 0: nothing of z_h is in it
        return schedule.ddim(lambda z, t: self.denoise(z, mu, t), z_1, steps)

    def forward(self, x_l: Tensor, eps: Tensor | None = None) -> Tensor:
        """x_l (B,3,h,w) in [0,1] to x^ (B,3,4h,4w) in [0,1]."""
        return (self.decode(self.one_step(2 * x_l - 1, eps)) + 1) / 2


def build_network(config: Mapping[str, Any]) -> EdgeNetwork:
    """The network of a configuration: ours (``network: tiny``) or of diffusers classes."""
    if config["network"] == "diffusers":
        from .full import diffusers_parts

        return EdgeNetwork(diffusers_parts(config), config)
    latent = config["latent"]
    return EdgeNetwork(
        {
            "lr_encoder": LREncoder(latent, config["lr_encoder"]["width"]),
            "unet": TinyUNet(2 * latent, latent, config["unet"]["widths"]),
            "decoder": TinyDecoder(latent, config["decoder"]["widths"]),
            "hr_encoder": TinyEncoder(latent, config["hr_encoder"]["widths"]),
            "decoder_base": TinyDecoder(latent, config["decoder"]["widths"]),
        },
        config,
    )


# --- what zoo.load returns ------------------------------------------------------------------------


class EdgeSDSR(SRModel):
    """Edge-SD-SR as an ``SRModel``: 4x, one evaluation of the network for each tile.

    Load option ``fidelity`` in [0, 1] blends the weights of the decoder before (0) and after (1)
    its fine-tuning.
    """

    module: EdgeNetwork

    def __init__(self, request: BuildRequest, network: EdgeNetwork) -> None:
        super().__init__(request)
        self.module = network.requires_grad_(False).eval()
        self.module.to(memory_format=torch.channels_last)
        self._tuned: dict[str, Tensor] = {}
        fidelity = request.options.get("fidelity", 1.0)
        if fidelity != 1:
            # What was loaded is kept for ``state``: a blend that is saved would be blended again.
            self._tuned = {
                f"decoder.{k}": v.clone() for k, v in network.decoder.state_dict().items()
            }
            base = network.decoder_base.state_dict()
            for name, value in network.decoder.state_dict().items():
                value.copy_(base[name] if fidelity == 0 else base[name].lerp(value, fidelity))

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From the verified folder of a registry entry or of ``save_pretrained``."""
        if request.folder is None:
            raise NotReadyError(
                f"{request.entry.name} has no trained weights. Train it with "
                f"`zoo train {request.entry.name}`, then load the folder that makes."
            )
        network = load_module(
            lambda: build_network(request.config),
            request.folder / "model.safetensors",
            device=request.device,
            dtype=request.dtype,
        )
        assert isinstance(network, EdgeNetwork)
        return cls(request, network)

    def state(self) -> Mapping[str, Tensor]:
        """All five parts of the network, the decoder as it was loaded."""
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
        scale: int | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
        overlap: int | None = None,
        tile_batch: int = 1,
        noise_scale: float = 0.0,
        consistency: int = 0,
    ) -> Any:
        """Enlarge images 4 times; see ``SRModel.upscale`` for what all such models share.

        ``overlap``: input pixels that neighbouring tiles share, at most half a tile (None: a
        quarter of a tile, at most 32). ``tile_batch``: tiles evaluated at once; no pixel depends
        on it. ``noise_scale`` in [0, 1]: how much of the noise s_l eps z_1 gets; with 0, the
        default, ``seed`` has no effect. ``consistency``: steps of back-projection, after which the
        result shrinks to the input again; for inputs made by clean bicubic shrinking only (others
        have artefacts, which it brings back). ``progress`` counts tiles, anew for each image.
        """
        self._check(scale, prompt)
        number("noise_scale", noise_scale, 0, 1)
        number("tile_batch", tile_batch, 1, 4096, whole=True)
        number("consistency", consistency, 0, 100, whole=True)
        number("seed", seed, 0, 2**63 - 1, whole=True)
        side, shared = self._tiling(tile, overlap)

        def enlarge(image: Tensor) -> Iterator[Tensor]:
            grid = self._grid(image.shape[-2], image.shape[-1], side, shared)
            with track(grid.evaluations, progress, "upscale") as advance:

                def evaluate(tiles: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
                    return self._evaluate(tiles, places, seed, noise_scale, consistency)

                yield from stream(image, grid, evaluate, batch=tile_batch, advance=advance)

        return transform(images, enlarge, scale=self.module.scale)

    @torch.no_grad()
    def _evaluate(
        self,
        tiles: Tensor,
        places: Sequence[tuple[int, int]],
        seed: int,
        noise_scale: float,
        consistency: int,
    ) -> Tensor:
        """Tiles (B,3,h,w) in [0,1] at (row, column) of the image to (B,3,4h,4w)."""
        net = self.module
        first = next(net.parameters())
        x_l = tiles.to(first.device, first.dtype).contiguous(memory_format=torch.channels_last)
        eps = None
        if noise_scale:
            ratio = net.factor // net.scale  # input pixels per latent
            h, w = tiles.shape[-2] // ratio, tiles.shape[-1] // ratio
            eps = noise_scale * torch.stack(
                [noise_field(seed, net.latent, y // ratio, x // ratio, h, w) for y, x in places]
            )
        if first.device.type == "cpu":
            # The order of sums inside a convolution may depend on the batch size. On a CPU a batch
            # gains nothing, so one by one: the same bits whatever ``tile_batch`` is.
            made = torch.cat([net(x_l[i : i + 1], _part(eps, i)) for i in range(len(x_l))])
        else:
            made = net(x_l, eps)
        made = made.float()
        return back_project(made, x_l.float(), net.scale, consistency) if consistency else made

    def _check(self, scale: int | None, prompt: str | None) -> None:
        if scale is not None and scale not in self.scales:
            known = ", ".join(map(str, self.scales))
            raise OptionError(f"{self.entry.name} has no scale {scale!r}; it has {known}.")
        if prompt is not None:
            raise OptionError(f"{self.entry.name} takes no prompt; leave it out.")

    def _tiling(self, tile: Any, overlap: int | None) -> tuple[int | None, int]:
        """Side of a tile (None: no tiles) and what neighbours share, checked."""
        multiple = self.multiple
        side = self.tile if tile == "auto" else tile
        if side is None:
            return None, 0
        number("tile", side, multiple, 1 << 20, whole=True)
        if side % multiple:
            raise OptionError(f"tile={side} is not a multiple of {multiple}.")
        highest = side // 2 // multiple * multiple
        if overlap is None:
            overlap = min(32, side // 4) // multiple * multiple
        number("overlap", overlap, 0, highest, whole=True)
        if overlap % multiple:
            raise OptionError(f"overlap={overlap} is not a multiple of {multiple}.")
        return side, overlap

    def _grid(self, height: int, width: int, tile: int | None, overlap: int) -> Grid:
        return Grid(height, width, tile, overlap, self.multiple, self.module.scale)

    def estimate(
        self,
        size: tuple[int, int],
        *,
        tile: int | Literal["auto"] | None = "auto",
        overlap: int | None = None,
    ) -> Estimate:
        """What enlarging an image of ``size`` (height, width) in input pixels would cost.

        Counts the FLOPs of one tile without computing, and times a tile on this device: the
        very one where that is cheap, else a smaller one.
        """
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"size={size!r}: expected (height, width) in pixels.")
        grid = self._grid(*size, *self._tiling(tile, overlap))
        flops = grid.evaluations * count_flops(self.config, *grid.shape)
        shape = grid.shape
        if count_flops(self.config, *shape) > PROBE_FLOPS:  # 64 is a multiple of every stride
            shape = (min(64, shape[0]), min(64, shape[1]))
        probe = torch.rand(1, 3, *shape)
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            self._evaluate(probe, [(0, 0)], 0, 0.0, 0)
            spent = time.perf_counter() - started
        seconds = flops / count_flops(self.config, *shape) * spent
        h, w = grid.shape
        s = self.module.scale
        widest = max(self.config["decoder"]["widths"]) * h * w  # our decoder, at the input's size
        if self.config["network"] == "tiny":
            finest = min(self.config["decoder"]["widths"]) * 4 * h * w
        else:
            finest = self.config["decoder"]["widths"][1] * 16 * h * w
        band = 3 * h * s * grid.padded[1] * s * 2
        memory = 4 * (4 * max(widest, finest) + band + 3 * grid.padded[0] * grid.padded[1])
        return Estimate(grid.evaluations, float(flops), memory, seconds)

    def export(self, path: str | Path, format: str = "onnx", **options: Any) -> Path:
        """Write an ONNX graph: ``image`` (1,3,h,w) in [0,1] to ``enlarged`` (1,3,4h,4w) in [0,1].

        ``size``: side, or (height, width), for a graph of fixed shape, as phones want it; without
        it h and w are free, but must be multiples of ``multiple``. Needs no torch to run.
        """
        from .export import export_onnx

        if format != "onnx":
            raise OptionError(f"{self.entry.name} exports to 'onnx', not to {format!r}.")
        return export_onnx(self, Path(path), **options)


def _part(eps: Tensor | None, i: int) -> Tensor | None:
    return None if eps is None else eps[i : i + 1]


def number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """OptionError where value is no number (or no whole one) in [low, high]."""
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise OptionError(f"{name}={value!r}: expected {kind} from {low} to {high}.")


def count_flops(config: Mapping[str, Any], height: int, width: int) -> int:
    """FLOPs of one evaluation on an LR tile (height, width), counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        network = build_network(config).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, height, width))
    return int(counter.get_total_flops())
