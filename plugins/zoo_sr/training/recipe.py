"""The base of the recipes of latent super-resolution: a network, photographs, a degradation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo import training
from zoo.errors import InputError, OptionError, WeightsError
from zoo.hookspecs import TrainRequest
from zoo.training import Draw, Rate, Run, differing, read_saved

from ..degrade import Bicubic, Degradation, RealESRGAN, RealLite, round8
from ..networks import LatentNetwork
from ..pixels import bicubic_down, bicubic_up
from ..tiles import noise_field
from ..upscaler import LatentSR
from .photos import Photos

AT_ONCE = 8  # held-out crops that validation computes at once
HOW = ("micro", "checkpointing")
"""Options that change how a step is computed, not its result: a resumed run may change them."""


@dataclass(frozen=True)
class Stage(training.Stage):
    """How one stage of a recipe runs; ``batch`` counts images."""

    crop: int = 64
    """Side of an HR crop in pixels."""


@dataclass
class Batch:
    """The data of one step. Images in [-1,1]."""

    x_h: Tensor  # (B,3,H,W)
    x_l: Tensor  # (B,3,H/N,W/N)
    x_l_easy: Tensor | None  # (B,3,2H/N,2W/N): the same degradation at half the factor
    generator: torch.Generator

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like)

    def uniform(self) -> Tensor:
        return torch.rand(len(self.x_h), generator=self.generator).to(self.x_h)


def starting_point(request: TrainRequest) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Configuration and tensors that a run starts from; without ``--init`` no tensors."""
    if request.init is None:
        return dict(request.entry.config), None
    return read_saved(request.init, request.entry.config, request.entry.plugin)


class Recipe:
    """A network, its training data, and the ``run`` that trains it.

    The network is initialised from the seed, unless ``start_from`` replaces it. ``scale`` and
    ``easier`` determine the batches: N, and the factor of a teacher's easier task, if there is one;
    a method's stages set them.
    """

    def __init__(
        self,
        request: TrainRequest,
        model: type[LatentSR],
        config: Mapping[str, Any],
        stages: Mapping[str, Stage],
        *,
        skip: Collection[str] = (),
        photos: Photos | None = None,
    ) -> None:
        options = request.options
        self.request, self.model, self.config = request, model, dict(config)
        self.photos = photos or Photos(request.data)
        self.texture: float = options["texture"]
        kind = {"light": RealLite, "real": RealESRGAN}[options["degradation"]]
        self.degradation: Degradation = kind(share=options["degraded"])
        torch.manual_seed(request.seed)
        self.net: Any = self.new_network()
        self.scale: int = self.net.scale
        self.easier: int | None = None
        photographs = {
            "photos": self.photos.count,
            "held_out": sorted(self.photos.held_out),
            "sha256": self.photos.hash,
        }
        self.run: Run[Stage] = Run(
            request,
            {"net": self.net.to(memory_format=torch.channels_last)},
            stages,
            skip=skip,
            facts={"config": self.config, "data": self.photos.hash},
            how=HOW,
            about={"data": photographs},
        )
        for stage in self.run.stages.values():
            multiple = self.net.scale * self.net.stride
            if stage.crop % multiple:
                raise OptionError(f"crop={stage.crop} is not a multiple of {multiple}.")

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Load these tensors. Raises WeightsError if their names or shapes differ from the
        network's."""
        if wrong := differing(tensors, self.net.state_dict()):
            raise WeightsError(
                f"--init {self.request.init}: {len(wrong)} of its tensors do not fit "
                f"{self.request.entry.name}, such as {wrong[0]}: start from a model of the same "
                f"kind."
            )
        self.net.load_state_dict(tensors, strict=True)

    def new_network(self) -> LatentNetwork:
        """An untrained network of the configuration, from torch's global generator."""
        return self.model.network(self.config)

    def new_unet(self) -> nn.Module:
        """A network of the UNet's shape."""
        unet: nn.Module = self.new_network().unet
        return unet.to(memory_format=torch.channels_last)

    # --- data ---

    def batch(self, draw: Draw, crop: int | None = None) -> Batch:
        """The degraded photographs of a draw; ``crop``: None is the current stage's."""
        side = crop or self.run.stages[self.run.stage].crop
        x_h = self.photos.crops(draw.rng, draw.count, side)  # (B,3,H,W) in [0,1]
        params = self.degradation.sample(draw.rng, draw.count)
        x_l = self.degradation.apply(x_h, self.scale, params, self.scale)
        easy = (
            None
            if self.easier is None
            else self.degradation.apply(x_h, self.easier, params, self.scale)
        )
        there = self.run.device

        def ready(x: Tensor) -> Tensor:
            return (2 * x - 1).to(there).contiguous(memory_format=torch.channels_last)

        return Batch(ready(x_h), ready(x_l), None if easy is None else ready(easy), draw.generator)

    def some(self, name: str, count: int) -> Batch:
        """A batch outside of the steps, always the same for its name; crops as in the first
        stage."""
        stage = next(iter(self.run.stages.values()))
        return self.batch(self.run.draw(name, count), stage.crop)

    # --- training ---

    def minimise(
        self,
        parts: Mapping[str, nn.Module | tuple[nn.Module, Rate]],
        loss: Callable[[Batch], Tensor],
    ) -> None:
        """Train the parts on photographs until the stage ends."""
        self.run.minimise(parts, self.batch, loss)

    def autocast(self) -> torch.autocast:
        return self.run.autocast()

    def fit(self, stages: Mapping[str, Callable[[], None]]) -> Path:
        """Run the recipe, or the requested stage; returns the saved folder ``out/model``."""
        return self.run.fit(stages, self.built)

    def built(self) -> LatentSR:
        """The network as the model that ``zoo.load`` returns."""
        return self.model(self.run.build_request(self.config), self.net)

    # --- validation on the held-out photos ---

    @torch.no_grad()
    def validate(self, name: str, picture: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Record PSNR-Y of ``picture``(x_h, x_l), both in [-1,1], and of bicubic, on held-out
        photos."""
        from zoo.metrics import psnr_y

        x_h = self.photos.validation() if self.run.processes.first else None
        if x_h is None:
            return
        scale, there = self.scale, self.run.device
        rng = np.random.default_rng(0)
        degradation = self.degradation if self.degradation.share == 1 else Bicubic()
        x_l = degradation.apply(x_h, scale, degradation.sample(rng, len(x_h)), scale)
        parts = zip(x_h.split(AT_ONCE), x_l.split(AT_ONCE), strict=True)  # all may be too many
        pictures = [picture(2 * hr.to(there) - 1, 2 * lr.to(there) - 1).cpu() for hr, lr in parts]
        made = (torch.cat(pictures) + 1) / 2
        for row, enlarged in ((name, made), (f"bicubic x{scale}", bicubic_up(x_l, scale))):
            values = [psnr_y(a, b, scale) for a, b in zip(enlarged, x_h, strict=True)]
            self.run.validated[row] = {"psnr_y": round(sum(values) / len(values), 3)}


# --- the bundle -----------------------------------------------------------------------------------


def bundle(model: type[LatentSR], out: Path, into: Path) -> None:
    """Turn the output of ``train`` in ``out`` into the bundled files of a package, in ``into``.

    Weights in float16, ``train.json``, and a check: a small photograph (NASA's astronaut, public
    domain, from scikit-image, 32 x 32 at x4) with the output of these weights. After training:

        python -c "from pathlib import Path; from zoo_edge_sd_sr.model import EdgeSDSR; \
                   from zoo_sr.training.recipe import bundle; bundle(EdgeSDSR, Path('out'), \
                   Path('plugins/zoo_edge_sd_sr/weights/edge-sd-sr'))"

    then update size and sha256 in the registry.
    """
    from skimage.data import astronaut

    from zoo.weights import load_module, save_tensors

    config, tensors = read_saved(out / "model")
    into.mkdir(parents=True, exist_ok=True)
    largest = max(float(v.abs().max()) for v in tensors.values())
    if largest > 6e4:
        raise InputError(f"A weight of {largest:g} does not fit float16.")
    save_tensors(into / "model.safetensors", {k: v.half() for k, v in tensors.items()})
    (into / "train.json").write_bytes((out / "train.json").read_bytes())
    face = torch.from_numpy(astronaut()[32:160, 160:288].copy()).permute(2, 0, 1)[None]
    scale = model.network(config).scale
    x_l = round8(bicubic_down(face.float() / 255, scale))[0]  # (3,128/scale,128/scale)
    pixels = (x_l * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(into / "check.png")
    network = load_module(lambda: model.network(config), into / "model.safetensors")
    assert isinstance(network, LatentNetwork)
    h, w = (n * scale // network.factor for n in x_l.shape[1:])
    eps = model.noise_scale * noise_field(0, network.latent, 0, 0, h, w)[None]
    with torch.no_grad():
        made = network(x_l[None], eps)[0].clamp(0, 1)  # (3,128,128)
    save_tensors(into / "check.safetensors", {"output": made})
