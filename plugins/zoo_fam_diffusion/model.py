"""What ``zoo.load`` returns: the method around the tiny pipeline, or around a base's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from zoo_sr.upscaler import number

from zoo.errors import InputError, NotReadyError, OptionError, WeightsError
from zoo.hookspecs import BuildRequest
from zoo.images import scaled, transform
from zoo.interfaces import Estimate, ScaleRange, SRModel
from zoo.progress import track
from zoo.weights import load_module

from .cost import estimate, free_memory
from .frequency import Size
from .pipeline import Parts, assembled
from .sampling import FAM, Made, Settings, multiple, native_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.interfaces import Images
    from zoo.progress import Progress

TESTED = 4
"""The largest scale of the paper."""
CHECKED = 1024 * 1024
"""Pixels above which a run first counts the memory that it needs; smaller ones start at once."""


class FAMDiffusion(SRModel):
    """Images larger than the pipeline was trained for, from a prompt or from an image.

    Load options are the fields of ``sampling.Settings``. ``pipe`` is the diffusers pipeline; it can
    be saved with its own ``save_pretrained`` and used on its own.
    """

    def __init__(self, request: BuildRequest, pipe: Any) -> None:
        super().__init__(request)
        self.pipe = pipe
        self.fam = FAM(pipe, Settings(**request.options))
        parts = {k: v for k, v in pipe.components.items() if isinstance(v, nn.Module)}
        self.module = nn.ModuleDict(parts).requires_grad_(False).eval()

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From the verified folder of our weights, or around a base in diffusers' layout."""
        if request.base is not None and request.base.folder is not None:
            return cls(request, _pipeline(request))
        if request.folder is None:
            raise NotReadyError(
                f"{request.entry.name} has no weights of its own. Give base= a Stable Diffusion "
                "1.x, 2.x or XL checkpoint, or a folder that `zoo train fam-diffusion` made."
            )
        parts = load_module(
            lambda: Parts(request.config),
            request.folder / "model.safetensors",
            device=request.device,
            dtype=request.dtype,
        )
        assert isinstance(parts, Parts)
        return cls(request, assembled(parts, request.config["words"]))

    def to(self, device: str | torch.device) -> Self:
        self.pipe.to(device)
        return self

    def state(self) -> Mapping[str, Tensor]:
        """The tensors of our own pipeline; a base's stay where they are."""
        if self.bases:
            return {}
        names = {"text": "text_encoder", "vae": "vae", "unet": "unet"}
        return {
            f"{ours}.{key}": value
            for ours, theirs in names.items()
            for key, value in getattr(self.pipe, theirs).state_dict().items()
        }

    # --- from a prompt ---

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        height: int,
        width: int,
        steps: int = 50,
        guidance: float | None = None,
        seed: int = 0,
        progress: Progress = False,
        preview: Callable[[Any], None] | None = None,
        **call: Any,
    ) -> Made:
        """An image of ``height`` x ``width`` pixels, with the native image that it follows.

        ``guidance``: the weight of classifier-free guidance (None: the model's default).
        ``preview`` is called with the native image once it is there. ``call``: what else the
        pipeline takes, such as ``negative_prompt``. ``progress`` counts the steps of both passes.

        Raises InputError for sides that are not multiples of 8 pixels, and with the number
        of bytes if memory cannot hold the run.
        """
        self._check_memory((height, width), steps)
        made = self.fam(
            _prompts(prompt),
            height=height,
            width=width,
            steps=number("steps", steps, 1, 1000, whole=True),
            seed=number("seed", seed, 0, 2**63 - 1, whole=True),
            guidance_scale=self._guidance(guidance),
            progress=progress,
            preview=None if preview is None else (lambda images: preview(images[0])),
            **call,
        )
        if isinstance(prompt, str):
            return Made(made.image[0], made.native[0], made.report)
        return made

    def direct(self, prompt: str, *, guidance: float | None = None, **call: Any) -> Any:
        """What the pipeline alone makes of the arguments of ``generate``: to compare with."""
        return self.fam.direct(prompt, guidance_scale=self._guidance(guidance), **call)[0]

    def _guidance(self, guidance: float | None) -> float:
        default = self.config.get("guidance", 7.5)
        return float(number("guidance", default if guidance is None else guidance, 0, 100))

    # --- from an image ---

    @property
    def scales(self) -> ScaleRange:
        """Any scale; above 4 there is a warning."""
        return ScaleRange(1, 16, 2)

    def upscale(
        self,
        images: Images,
        *,
        scale: int | float | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
        steps: int = 50,
        guidance: float | None = None,
    ) -> Any:
        """Enlarge images as if the pipeline had generated them; see ``SRModel.upscale``.

        ``prompt``: what the image shows; detail is better with it than without (None), where there
        is no guidance. ``tile``: "auto" or None; the image is always one, and the VAE tiles it by
        itself above 2048 x 2048 pixels. ``steps``, ``guidance``: as for ``generate``.
        """
        scale = self.default_scale if scale is None else scale
        if scale not in self.scales:
            raise OptionError(f"scale={scale!r}: {self.entry.name} enlarges by {self.scales}.")
        if tile not in ("auto", None):
            raise OptionError(f"tile={tile!r}: {self.entry.name} has no tiles; give 'auto'.")
        if scale > TESTED:
            warnings.warn(f"scale={scale:g} is beyond {TESTED}, the largest tested.", stacklevel=2)
        steps = number("steps", steps, 1, 1000, whole=True)
        seed = number("seed", seed, 0, 2**63 - 1, whole=True)
        weight = 1.0 if prompt is None else self._guidance(guidance)

        def enlarge(image: Tensor) -> Tensor:
            with track(steps, progress, "upscale") as advance:
                return self._enlarged(
                    image,
                    float(scale),
                    prompt=prompt or "",
                    steps=steps,
                    seed=seed,
                    guidance_scale=weight,
                    advance=advance,
                )

        return transform(images, enlarge, scale=scale)

    def _enlarged(self, image: Tensor, scale: float, **call: Any) -> Tensor:
        """(3,h,w) in [0,1] to (3, scaled(h), scaled(w))."""
        factor, unit = self.pipe.vae_scale_factor, multiple(self.pipe)
        height, width = image.shape[-2:]
        padded = pad(
            image[None], (0, -width % factor, 0, -height % factor), mode="replicate"
        )  # to whole latents
        whole: Size = (padded.shape[-2], padded.shape[-1])
        target = _times(whole, scale, unit)
        self._check_memory(target, call["steps"], given=whole)
        trained = native_size(self.pipe, target)
        if math.prod(whole) > 2 * math.prod(trained):
            warnings.warn(
                f"{height} x {width} pixels are more than the pipeline was trained for (about "
                f"{trained[0]} x {trained[1]}); structure may repeat. Shrink the image first.",
                stacklevel=2,
            )
        made = self.fam.enlarge(padded, target, output_type="pt", **call)
        made = made.float().cpu()
        kept = [
            round(side * large / small)
            for side, large, small in zip((height, width), target, whole, strict=True)
        ]
        made = made[..., : kept[0], : kept[1]]
        size = scaled(height, scale), scaled(width, scale)
        if tuple(kept) != size:  # scale is not a whole number of latents
            made = interpolate(made, size=size, mode="bicubic", antialias=True)
        return made[0].clamp(0, 1)

    # --- cost ---

    def estimate(
        self, size: Sequence[int], *, scale: float | None = None, steps: int = 50
    ) -> Estimate:
        """The cost of enlarging an image of ``size`` (height, width) in input pixels."""
        factor, unit = self.pipe.vae_scale_factor, multiple(self.pipe)
        by = self.default_scale if scale is None else scale
        given = _times((size[0], size[1]), 1, factor)
        return self._estimate(_times(given, by, unit), steps, given)

    def estimate_generate(self, size: Sequence[int], *, steps: int = 50) -> Estimate:
        """The cost of generating an image of ``size`` (height, width) from a prompt."""
        return self._estimate((size[0], size[1]), steps)

    def _estimate(self, size: Size, steps: int, given: Size = (0, 0)) -> Estimate:
        return estimate(self.pipe, size, steps=steps, settings=self.fam.settings, given=given)

    def _check_memory(self, size: Size, steps: int, given: Size = (0, 0)) -> None:
        """Raises InputError if the device has less memory than the run needs."""
        free = free_memory(self.device)
        if math.prod(size) <= CHECKED or free is None:
            return
        needed = self._estimate(size, steps, given).memory
        if needed > free:
            raise InputError(
                f"{size[0]} x {size[1]} pixels need {needed / 1e9:.1f} GB of memory beyond the "
                f"weights; {self.device} has {free / 1e9:.1f} GB free. Generate a smaller image, "
                "load with dtype='float16' (CUDA) or 'bfloat16', or call "
                "model.pipe.enable_model_cpu_offload() first."
            )


def _times(size: Size, scale: float, unit: int) -> Size:
    """A size times ``scale``, rounded up to multiples of ``unit``."""
    height, width = (math.ceil(side * scale / unit) * unit for side in size)
    return height, width


def _prompts(prompt: Any) -> list[str]:
    """One prompt or several as a list; InputError for anything else."""
    found = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(found, list | tuple) or not found or any(type(p) is not str for p in found):
        raise InputError(f"prompt={prompt!r}: expected text, or a list of texts.")
    return list(found)


def _pipeline(request: BuildRequest) -> Any:
    """The pipeline of a base. Raises WeightsError if the folder holds none that can be used."""
    from diffusers import AutoPipelineForText2Image

    folder = request.base.folder if request.base else None
    assert folder is not None
    half = any(folder.glob("unet/*.fp16.safetensors"))
    try:
        pipe: Any = AutoPipelineForText2Image.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            variant="fp16" if half else None,
        )
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{folder}: not a Stable Diffusion 1.x, 2.x or XL checkpoint in diffusers' layout "
            f"({str(error).splitlines()[0]})."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    dtype = getattr(torch, request.dtype)
    return pipe.to(request.device) if pipe.dtype == dtype else pipe.to(request.device, dtype)
