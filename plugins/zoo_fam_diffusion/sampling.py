"""FAM diffusion on a diffusers pipeline: the native image, then the same image at a larger size.

    fam = FAM(pipe)                           # any Stable Diffusion 1.x, 2.x or XL pipeline
    made = fam("a rabbit pilot", height=2048, width=2048, seed=7)
    made.image, made.native

Two calls of the pipeline (eq. 8), with everything else that it takes (``guidance_scale``,
``negative_prompt``, ``image`` of a ControlNet ...) passed on to both. Between calls of ``FAM`` the
pipeline is what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn.functional import interpolate

from zoo.errors import InputError
from zoo.progress import Advance, Progress, track

from .frequency import Frequency, Size
from .steering import Mix, Native, check_pipeline, guided, recorded, scheduler_like

LARGE = 2048 * 2048
"""Pixels above which the VAE decodes in tiles."""


@dataclass(frozen=True)
class Settings:
    """The method's choices; the defaults are the paper's where it states them."""

    fm: bool = True
    """Frequency modulation; without both modulations only the start is shared with the native
    image."""
    am: bool = True
    """Attention modulation."""
    cutoff: float = 0.5
    """c of eq. 4, in [0, 1]"""
    cutoff_ref: Literal["target", "native"] = "target"
    """Whose grid the box of eq. 4 is measured in."""
    lam: float = 0.7
    """lambda of eq. 5, in [0, 1]"""
    am_source: Literal["replay", "cache", "renoise"] = "replay"
    """Native maps: evaluated again, kept from the native pass, or those of the diffused native
    latent."""
    upsample: Literal["latent", "rgb"] = "latent"
    """Where the native image is enlarged (eq. 1)."""
    scheduler: str = "ddim"
    """ddim, euler or dpm++; with the pipeline's own noise levels."""


@dataclass(frozen=True)
class Made:
    """A generated image, and what led to it."""

    image: Any
    """As the pipeline returns it: PIL, or what ``output_type`` asks for."""
    native: Any
    """The image of the native pass; the same one if the target is not larger."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Seconds of both passes, and their sizes (height, width)."""


class FAM:
    """The method around one pipeline; see the module's docstring.

    Raises InputError for a pipeline that does not denoise latents with a UNet.
    """

    def __init__(self, pipe: Any, settings: Settings | None = None) -> None:
        check_pipeline(pipe)
        self.pipe, self.settings = pipe, settings or Settings()

    def __call__(
        self,
        prompt: Any = None,
        *,
        height: int,
        width: int,
        steps: int = 50,
        seed: int = 0,
        progress: Progress = False,
        preview: Callable[[Any], None] | None = None,
        **call: Any,
    ) -> Made:
        """Generate at ``height`` x ``width`` pixels, multiples of ``multiple``.

        A target that is not larger than the native size is generated directly. ``preview`` is
        called with the native image as soon as it is there. Raises InputError for a size that
        cannot be, and if memory runs out.
        """
        size = (height, width)
        check_size(self.pipe, size)
        small = native_size(self.pipe, size)
        generator = torch.Generator().manual_seed(seed)
        call = {"prompt": prompt, "num_inference_steps": steps, "generator": generator, **call}
        larger = small != size
        with self._scheduler(), track(steps * (2 if larger else 1), progress, "generate") as tell:
            started = time.perf_counter()
            image, z, native = self._native(small, call, tell, keep=larger and self.settings.am)
            first = time.perf_counter() - started
            report: dict[str, Any] = {"native_s": first, "native": small, "target": size}
            if preview is not None:
                preview(image)
            if not larger:
                return Made(image, image, report)
            made = self._target(z, size, native, call, tell)
            report["target_s"] = time.perf_counter() - started - first
        return Made(made, image, report)

    def enlarge(
        self,
        images: Tensor,
        size: Size,
        prompt: Any = "",
        *,
        steps: int = 50,
        seed: int = 0,
        advance: Advance = lambda n=1: None,
        **call: Any,
    ) -> Any:
        """Images (B,3,h,w) in [0,1] at ``size``: the target pass, with them as native images.

        There is no native pass, so native maps are those of the diffused image
        (``am_source="renoise"``).
        """
        check_size(self.pipe, size)
        generator = torch.Generator().manual_seed(seed)
        call = {"prompt": prompt, "num_inference_steps": steps, "generator": generator, **call}
        with self._scheduler():
            return self._target(encode(self.pipe, images), size, None, call, advance)

    def direct(
        self,
        prompt: Any = None,
        *,
        height: int,
        width: int,
        steps: int = 50,
        seed: int = 0,
        progress: Progress = False,
        **call: Any,
    ) -> Any:
        """The image of the pipeline alone at this size, which repeats objects: to compare with."""
        check_size(self.pipe, (height, width))
        generator = torch.Generator().manual_seed(seed)
        call = {"prompt": prompt, "num_inference_steps": steps, "generator": generator, **call}
        with self._scheduler(), track(steps, progress, "direct") as advance:
            return self._native((height, width), call, advance, keep=False)[0]

    # --- the two passes ---

    def mix(self, z: Tensor) -> Mix | None:
        """What brings each step towards its reference. ``z``: the native latent, or the enlarged
        one; rivals replace this.
        """
        chosen = self.settings
        return Frequency(chosen.cutoff, chosen.cutoff_ref) if chosen.fm else None

    def _native(
        self, size: Size, call: dict[str, Any], advance: Advance, *, keep: bool
    ) -> tuple[Any, Tensor, Native | None]:
        """Image, latent z^n_0 and the record of the native pass."""
        kept: dict[str, Tensor] = {}

        def remember(latents: Tensor) -> None:
            kept["z"] = latents

        call = {**call, "height": size[0], "width": size[1]}
        source, native = self.settings.am_source, None
        with ExitStack() as stack, enough_memory("native"):
            stack.enter_context(_tiled(self.pipe, size))
            if keep and source != "renoise":
                native = stack.enter_context(recorded(self.pipe, cache=source == "cache"))
            image = self.pipe(**_watched(call, remember, advance)).images
        return image, kept["z"], native

    def _target(
        self, z: Tensor, size: Size, native: Native | None, call: dict[str, Any], advance: Advance
    ) -> Any:
        """The image of the target pass, from the native latent (B,C,h,w)."""
        pipe, chosen = self.pipe, self.settings
        shape = (*z.shape[:2], *(side // pipe.vae_scale_factor for side in size))
        noise = randn_tensor(shape, generator=call["generator"], device=z.device, dtype=z.dtype)
        if chosen.upsample == "rgb":
            pixels = interpolate(decode(pipe, z), size=size, mode="bicubic").clamp(0, 1)
            z_large: Tensor | None = encode(pipe, pixels)
        else:
            z_large = None
        watched = _watched(call, _check_finite, advance)
        with (
            _tiled(pipe, size),
            enough_memory("target"),
            guided(
                pipe,
                z,
                size,
                steps=call["num_inference_steps"],
                noise=noise,
                large=z_large,
                mix=self.mix(z_large if z_large is not None else z),
                lam=chosen.lam if chosen.am else 0.0,
                native=native,
                callback=watched.pop("callback_on_step_end"),
            ) as extra,
        ):
            return pipe(**{**watched, **extra}).images

    @contextmanager
    def _scheduler(self) -> Iterator[None]:
        """The chosen sampler in place of the pipeline's."""
        before = self.pipe.scheduler
        self.pipe.scheduler = scheduler_like(self.pipe, self.settings.scheduler)
        try:
            yield
        finally:
            self.pipe.scheduler = before


# --- sizes ----------------------------------------------------------------------------------------


def multiple(pipe: Any) -> int:
    """Sides in pixels are multiples of this: of the VAE's factor, and of what pipelines accept."""
    return math.lcm(8, pipe.vae_scale_factor)


def check_size(pipe: Any, size: Size) -> None:
    """Raises InputError unless both sides are positive multiples of ``multiple(pipe)``."""
    unit = multiple(pipe)
    if min(size) < unit or any(side % unit for side in size):
        nearest = " x ".join(str(max(unit, round(side / unit) * unit)) for side in size)
        raise InputError(
            f"{size[0]} x {size[1]}: both sides must be multiples of {unit} pixels; the nearest "
            f"size is {nearest}."
        )


def native_size(pipe: Any, size: Size) -> Size:
    """(height, width) of the native pass: the target's aspect, about the area of training.

    Sides are multiples of 8 latents; a target that is not larger in area is its own native size.
    """
    factor = pipe.vae_scale_factor
    trained = pipe.unet.config.sample_size
    sides = (trained, trained) if isinstance(trained, int) else tuple(trained)
    area = math.prod(sides) * factor**2
    if math.prod(size) <= area:
        return size
    unit, shrink = 8 * factor, math.sqrt(area / math.prod(size))
    small = [max(unit, round(side * shrink / unit) * unit) for side in size]
    return min(small[0], size[0]), min(small[1], size[1])


# --- around a call of the pipeline ----------------------------------------------------------------


def _watched(
    call: Mapping[str, Any], last: Callable[[Tensor], None], advance: Advance
) -> dict[str, Any]:
    """The call with a callback that counts steps and gives the final latents to ``last``."""
    own = call.get("callback_on_step_end")

    def after(running: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if own is not None:
            values = {**values, **(own(running, step, t, values) or {})}
        if step + 1 == len(running.scheduler.timesteps):
            last(values["latents"])
        advance()
        return values

    return {**call, "callback_on_step_end": after}


def _check_finite(latents: Tensor) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise InputError(
            f"Latents of dtype {latents.dtype} are not finite; load the pipeline in float32 or "
            "bfloat16."
        )


@contextmanager
def _tiled(pipe: Any, size: Size) -> Iterator[None]:
    """Tiles in the VAE for a large image, which would need most memory there."""
    before = pipe.vae.use_tiling
    if math.prod(size) > LARGE:
        pipe.vae.enable_tiling()
    try:
        yield
    finally:
        pipe.vae.use_tiling = before


@contextmanager
def enough_memory(stage: str) -> Iterator[None]:
    """Too little memory becomes an InputError that says where, and what needs less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "not enough memory" not in str(error):
            raise
        raise InputError(
            f"Too little memory in the {stage} pass. Less is needed for a smaller target, in "
            "float16 or bfloat16, with am_source='replay', or after "
            "pipe.enable_model_cpu_offload()."
        ) from error


# --- the VAE --------------------------------------------------------------------------------------


@torch.no_grad()
def encode(pipe: Any, images: Tensor) -> Tensor:
    """Images (B,3,H,W) in [0,1] to latents (B,C,H/f,W/f): the posterior's mode, scaled."""
    with _whole_precision(pipe.vae) as vae:
        pixels = (2 * images - 1).to(pipe._execution_device, vae.dtype)
        z = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return z.to(pipe.unet.dtype)


@torch.no_grad()
def decode(pipe: Any, z: Tensor) -> Tensor:
    """Latents (B,C,h,w) to images (B,3,f h,f w) in [0,1], float32."""
    with _whole_precision(pipe.vae) as vae:
        made = vae.decode(z.to(vae.dtype) / vae.config.scaling_factor).sample
    return (made.float() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _whole_precision(vae: Any) -> Iterator[Any]:
    """The VAE, in float32 if it is one that overflows in float16 (SDXL's)."""
    before = vae.dtype
    upcast = before == torch.float16 and vae.config.force_upcast
    try:
        yield vae.to(torch.float32) if upcast else vae
    finally:
        if upcast:
            vae.to(before)


__all__ = ["FAM", "Made", "Settings", "check_size", "decode", "multiple", "native_size"]
