"""The two modulations in a diffusers pipeline, which stays as it is: hooks and a callback.

    with recorded(pipe) as native:                       # 1. the native pass, as always
        z = pipe(prompt, output_type="latent").images
    with guided(pipe, z, (height, width), native=native) as extra:      # 2. the target pass
        image = pipe(prompt, height=height, width=width, **extra).images[0]

``guided`` yields what the pipeline's call needs: the latent to start from (eq. 2) and a callback
that modulates frequencies after each step (eq. 3). While it is open, chosen self-attention layers
of the UNet blend in the native maps (eq. 5). Both leave the pipeline as they found it, also after
an exception or Ctrl-C.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from zoo.errors import InputError, OptionError

from .attention import attend, modulated_attention, token_grid
from .frequency import Frequency, Size

SCHEDULERS: Mapping[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}
"""Samplers of one evaluation per step and no noise of their own; others would lose an edited latent
or the noise that it shares with its reference."""
Mix = Callable[[Tensor, Tensor, float, Size], Tensor]
"""(z_t, reference, t / T, native size) -> the latent to go on from; see ``Frequency``."""
Maps = dict[str, tuple[Tensor, Tensor]]
"""Layer -> Q_n, K_n (B,N,L_n,D) of one evaluation of the UNet."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one evaluation."""


# --- the pipelines that this works on -------------------------------------------------------------


def scheduler_like(pipe: Any, name: str) -> Any:
    """A scheduler of ``SCHEDULERS`` with the noise levels of the pipeline's own.

    Raises OptionError for an unknown name.
    """
    if name not in SCHEDULERS:
        raise OptionError(f"scheduler={name!r}: expected one of {', '.join(SCHEDULERS)}.")
    # Latents are not in [-1, 1]: a configuration without this key must not clip them.
    return SCHEDULERS[name].from_config(pipe.scheduler.config, clip_sample=False)


def check_pipeline(pipe: Any) -> None:
    """Raises InputError unless the pipeline denoises latents with a UNet."""
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel) or not hasattr(pipe, "vae"):
        raise InputError(
            f"{type(pipe).__name__} does not denoise latents with a UNet2DConditionModel. Use a "
            "Stable Diffusion 1.x, 2.x or XL pipeline."
        )


def check_scheduler(scheduler: Any) -> None:
    """Raises OptionError for a sampler that loses the modulation."""
    random = "sde" in str(getattr(scheduler.config, "algorithm_type", ""))
    if type(scheduler) not in SCHEDULERS.values() or random:
        known = ", ".join(kind.__name__ for kind in SCHEDULERS.values())
        raise OptionError(
            f"{type(scheduler).__name__}{' with noise' if random else ''} does not keep a "
            f"modulated latent; set pipe.scheduler to one of {known} (from_config keeps its noise "
            "levels)."
        )


def modulated_layers(unet: Any) -> list[str]:
    """Names of the self-attention layers of the first up block that has any, in order.

    ``up_blocks.0`` in SDXL; ``up_blocks.1`` in Stable Diffusion 1.x and 2.x, whose first up block
    has no attention. Raises InputError if no up block has any.
    """
    for i, block in enumerate(unet.up_blocks):
        names = [name for name, _ in block.named_modules() if name.endswith(".attn1")]
        if names:
            return [f"up_blocks.{i}.{name}" for name in names]
    raise InputError(
        f"{type(unet).__name__} has no self-attention in its up blocks, which attention modulation "
        "needs; switch it off with am=False."
    )


# --- attention ------------------------------------------------------------------------------------


class _Enough(Exception):  # noqa: N818 - not an error
    """Ends a native evaluation behind the last layer whose map is needed."""


class _Layer:
    """The processor of one self-attention layer: records Q and K, or blends the native maps in."""

    def __init__(self, taps: Taps, name: str) -> None:
        self.taps, self.name = taps, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B,L,C) to (B,L,C), as diffusers' AttnProcessor2_0."""
        parts = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        taps = self.taps
        if taps.recording:
            taps.recorded[self.name] = (q, k)
            made = attend(q, k, v)
        else:
            q_native, k_native = taps.maps[self.name]
            native, target = (
                token_grid(part.shape[2], size)
                for part, size in ((q_native, taps.native), (q, taps.target))
            )
            made = modulated_attention(q, k, v, q_native, k_native, native, target, taps.lam)
        return attn.to_out[1](attn.to_out[0](made.transpose(1, 2).flatten(2)))


class Taps:
    """The chosen layers of a UNet while their processors are ours; ``with taps.installed():``."""

    def __init__(self, unet: Any, lam: float = 0.0) -> None:
        self.unet, self.lam = unet, lam
        self.layers = {name: unet.get_submodule(name) for name in modulated_layers(unet)}
        for name, layer in self.layers.items():
            _check_layer(name, layer)
        self.recording = False
        self.recorded: Maps = {}
        self.maps: Maps = {}
        self.native: Size = (0, 0)
        self.target: Size = (0, 0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put our processors in place of the layers' own, which come back at the end."""
        before = {name: layer.processor for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                layer.set_processor(_Layer(self, name))
            yield
        finally:
            for name, layer in self.layers.items():
                layer.set_processor(before[name])

    def record(self, call: Call) -> Maps:
        """Q_n and K_n of one native evaluation, which ends behind the last chosen layer."""

        def stop(*_: Any) -> None:
            raise _Enough

        self.recording, self.recorded = True, {}
        hook = self._behind().register_forward_pre_hook(stop)
        try:
            self.unet(*call[0], **call[1])
        except _Enough:
            pass
        finally:
            hook.remove()
            self.recording = False
        return self.recorded

    def _behind(self) -> Any:
        """The module that runs after the block of the chosen layers."""
        following = int(next(iter(self.layers)).split(".")[1]) + 1
        blocks = self.unet.up_blocks
        return blocks[following] if following < len(blocks) else self.unet.conv_norm_out


def _check_layer(name: str, layer: Any) -> None:
    """Raises InputError for a layer that does more than plain attention."""
    kind = type(layer.processor)
    extra = [
        part
        for part in ("norm_q", "norm_k", "group_norm", "spatial_norm")
        if getattr(layer, part, None) is not None
    ]
    if layer.residual_connection or layer.rescale_output_factor != 1:
        extra.append("residual_connection")
    if kind not in (AttnProcessor, AttnProcessor2_0) or extra:
        has = ", ".join(extra) or f"the processor {kind.__name__}"
        raise InputError(
            f"{name} has {has}, which attention modulation does not know. Undo it (attention "
            "slicing, xFormers, fused projections) or switch the modulation off with am=False."
        )


@contextmanager
def _before_each_call(unet: Any, look: Callable[[Call], None]) -> Iterator[None]:
    """Call ``look`` with the arguments of each evaluation of the UNet, before it runs."""
    inside = False

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inside
        if inside:  # an evaluation that ``look`` itself asked for
            return
        inside = True
        try:
            look((args, kwargs))
        finally:
            inside = False

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _sample(call: Call) -> Tensor:
    """The UNet's input (B,C,h,w) in the arguments of an evaluation."""
    args, kwargs = call
    return args[0] if args else kwargs["sample"]


def _timestep(call: Call) -> float:
    args, kwargs = call
    return float(args[1] if len(args) > 1 else kwargs["timestep"])


# --- the native pass ------------------------------------------------------------------------------


@dataclass
class Native:
    """What the native pass leaves for attention modulation: calls to repeat, or their maps."""

    size: Size = (0, 0)
    """(h, w) of the latent"""
    times: list[float] = field(default_factory=list)
    """The timestep of each evaluation of the UNet."""
    calls: list[Call] = field(default_factory=list)
    maps: list[Maps] = field(default_factory=list)


@contextmanager
def recorded(pipe: Any, *, cache: bool = False) -> Iterator[Native]:
    """Remember the UNet's evaluations while the pipeline runs at its native size.

    By default their arguments, which are small, to evaluate them again later; ``cache``: the Q and
    K of the chosen layers, which need memory for all steps but no second evaluation.
    """
    check_pipeline(pipe)
    native = Native()
    taps = Taps(pipe.unet) if cache else None

    def look(call: Call) -> None:
        native.size = tuple(_sample(call).shape[-2:])  # type: ignore[assignment]
        native.times.append(_timestep(call))
        if taps is None:
            native.calls.append(call)
        else:
            taps.recording, taps.recorded = True, {}
            native.maps.append(taps.recorded)

    with ExitStack() as stack:
        if taps is not None:
            stack.enter_context(taps.installed())
        stack.enter_context(_before_each_call(pipe.unet, look))
        yield native


# --- the target pass ------------------------------------------------------------------------------


def enlarge_latent(z: Tensor, size: Size) -> Tensor:
    """U(z, s) of eq. 1: bicubic, (B,C,h,w) to (B,C,*size)."""
    return interpolate(z.float(), size=size, mode="bicubic", align_corners=False).to(z.dtype)


def shrunk_noise(noise: Tensor, size: Size) -> Tensor:
    """Block means of unit noise (B,C,H,W), scaled to unit variance: (B,C,*size).

    So the two sizes see the same noise at low frequencies.
    """
    for axis, side in zip((-2, -1), size, strict=True):
        whole = noise.shape[axis]
        first = torch.arange(side) * whole // side
        last = -(-(torch.arange(side) + 1) * whole // side)
        count = (last - first).to(noise).sqrt()  # cells in each block of adaptive pooling
        noise = adaptive_avg_pool2d(noise, (side, None) if axis == -2 else (None, side))
        noise = noise * (count[:, None] if axis == -2 else count)
    return noise


@contextmanager
def guided(
    pipe: Any,
    latent: Tensor,
    size: Size,
    *,
    steps: int,
    noise: Tensor,
    large: Tensor | None = None,
    mix: Mix | None = None,
    lam: float = 0.7,
    native: Native | None = None,
    callback: Callable[..., Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Sample at ``size`` (height, width in pixels), guided by a native ``latent`` (B,C,h,w).

    Yields keyword arguments for the pipeline's call. ``noise`` (B,C,H,W): the one noise of start
    and reference. ``large`` (B,C,H,W): the enlarged latent, if not by eq. 1. ``mix``: what brings
    z_t towards its reference, such as ``Frequency()``, or None. ``lam``: lambda of attention
    modulation, 0 for none. ``native``: from ``recorded``; None: the native maps are those of
    ``latent``, diffused. ``callback``: the caller's own ``callback_on_step_end``, called after the
    modulation.

    Raises InputError or OptionError for a pipeline, layer or scheduler that this does not work on.
    """
    check_pipeline(pipe)
    check_scheduler(pipe.scheduler)
    grid: Size = (latent.shape[-2], latent.shape[-1])
    clean = large
    if clean is None:
        clean = enlarge_latent(latent, (noise.shape[-2], noise.shape[-1]))
    total = pipe.scheduler.config.num_train_timesteps

    def diffused(t: Tensor) -> Tensor:
        """z~_t of eq. 2, by the pipeline's scheduler, which is at the step of t."""
        return pipe.scheduler.add_noise(clean, noise, t[None])

    def after_step(running: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        times = running.scheduler.timesteps
        if mix is not None and step + 1 < len(times):
            now = times[step + 1]  # the step that these latents will be denoised at
            reference = diffused(now)
            values["latents"] = mix(values["latents"], reference, float(now) / total, grid)
        if callback is not None:
            values = {**values, **(callback(running, step, t, values) or {})}
        return values

    ahead = copy.deepcopy(pipe.scheduler)
    ahead.set_timesteps(steps, device=latent.device)
    start = ahead.add_noise(clean, noise, ahead.timesteps[:1]) / ahead.init_noise_sigma
    with ExitStack() as stack:
        if lam:
            stack.enter_context(_attending(pipe, latent, noise, lam, native))
        yield {
            "height": size[0],
            "width": size[1],
            "num_inference_steps": steps,
            "latents": start.to(latent.dtype),
            "callback_on_step_end": after_step,
        }


@contextmanager
def _attending(
    pipe: Any, latent: Tensor, noise: Tensor, lam: float, native: Native | None
) -> Iterator[None]:
    """Attention modulation of every evaluation of the UNet."""
    taps = Taps(pipe.unet, lam)
    taps.native = (latent.shape[-2], latent.shape[-1])
    small = shrunk_noise(noise, taps.native)
    count = 0

    def look(call: Call) -> None:
        nonlocal count
        taps.target = tuple(_sample(call).shape[-2:])  # type: ignore[assignment]
        if native is None:
            taps.maps = taps.record(_diffused_call(pipe, call, latent, small))
        else:
            if count >= len(native.times) or native.times[count] != _timestep(call):
                raise InputError(
                    f"Evaluation {count} is at timestep {_timestep(call):g}, the native pass had "
                    f"{native.times[count : count + 1] or 'ended'}: use the same scheduler and "
                    "number of steps for both."
                )
            repeat = not native.maps
            taps.maps = taps.record(native.calls[count]) if repeat else native.maps[count]
        count += 1

    with taps.installed(), _before_each_call(pipe.unet, look):
        yield


def _diffused_call(pipe: Any, call: Call, latent: Tensor, noise: Tensor) -> Call:
    """The native evaluation that belongs to one of the target pass, on the diffused latent."""
    args, kwargs = call
    kwargs = {**kwargs}
    if args:
        sample, t, *rest = args
    else:
        sample, t, rest = kwargs.pop("sample"), kwargs.pop("timestep"), []
    z = pipe.scheduler.add_noise(latent, noise, torch.as_tensor(t).reshape(1))
    z = pipe.scheduler.scale_model_input(z, t).to(sample.dtype)
    z = z.repeat(len(sample) // len(z), 1, 1, 1)  # a copy for each half of guidance
    for name in ("down_block_additional_residuals", "mid_block_additional_residual"):
        kwargs.pop(name, None)  # of the target's size
    added = kwargs.get("added_cond_kwargs") or {}
    if "time_ids" in added:  # SDXL is told the image's size: original, crop, target
        times = added["time_ids"].clone()
        pixels = torch.tensor(latent.shape[-2:]) * pipe.vae_scale_factor
        times[:, :2] = times[:, -2:] = pixels.to(times)
        kwargs["added_cond_kwargs"] = {**added, "time_ids": times}
    return (z, t, *rest), kwargs


__all__ = [
    "SCHEDULERS", "Frequency", "Mix", "Native", "check_pipeline", "check_scheduler",
    "enlarge_latent", "guided", "modulated_layers", "recorded", "scheduler_like", "shrunk_noise",
]  # fmt: skip
