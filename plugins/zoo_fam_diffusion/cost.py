"""What a run costs, from shapes alone: FLOPs and the peak of memory, on the meta device.

Nothing is computed and no weight is copied. Attention is counted as a fused kernel does it, without
its map: that is what runs on a CPU and on CUDA.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from zoo.interfaces import Estimate

from .frequency import Size
from .sampling import LARGE, Settings, native_size
from .steering import Taps

PROBE_FLOPS = 2e10
"""Most work of the evaluation that is timed."""


# --- counting -------------------------------------------------------------------------------------


class _Fused(TorchFunctionMode):
    """Attention without a map: only its result, and its FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self.flops += 2 * q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return q.new_empty(*q.shape[:-1], v.shape[-1])


class _Watch(TorchDispatchMode):
    """FLOPs, and bytes of the tensors that exist at a time with the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._users: dict[int, list[int]] = {}  # storage -> tensors on it, bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        given = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                key = tensor.untyped_storage()._cdata
                if key in self._users or key not in given:  # not a view of a weight or an input
                    self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        users = self._users.setdefault(key, [0, storage.nbytes()])
        if not users[0]:
            self.now += users[1]
            self.peak = max(self.peak, self.now)
        users[0] += 1
        weakref.finalize(tensor, self._drop, key)

    def _drop(self, key: int) -> None:
        users = self._users[key]
        users[0] -= 1
        if not users[0]:
            self.now -= self._users.pop(key)[1]


def measure(run: Callable[[], Any]) -> tuple[float, int]:
    """FLOPs and peak bytes of new tensors, of a function that computes on the meta device."""
    with torch.no_grad(), _Fused() as fused, _Watch() as watch:
        run()
    return float(watch.flops + fused.flops), watch.peak


def on_meta(module: Any) -> Any:
    """A copy of a diffusers model without weights."""
    with torch.device("meta"):
        made = type(module).from_config(module.config).eval()
    return made if made.dtype == module.dtype else made.to(module.dtype)


def unet_inputs(unet: Any, latent: Size, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an evaluation, without values, on the UNet's device."""
    config, like = unet.config, {"device": unet.device, "dtype": unet.dtype}
    sample = torch.empty(batch, config.in_channels, *latent, **like)
    context = torch.empty(batch, 77, config.cross_attention_dim, **like)
    added = {}
    if config.addition_embed_type == "text_time":  # SDXL
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added["text_embeds"] = torch.empty(batch, width, **like)
        added["time_ids"] = torch.empty(batch, 6, **like)
    t = torch.empty((), device=unet.device)
    return (sample, t, context), {"added_cond_kwargs": added or None, "return_dict": False}


@dataclass(frozen=True)
class Pass:
    """One evaluation of the UNet."""

    flops: float
    memory: int


def evaluation(unet: Any, latent: Size, batch: int = 2, native: Size | None = None) -> Pass:
    """The cost of an evaluation at ``latent``; ``native``: with attention modulation from that
    size, the native evaluation (which ends early) included.

    ``unet``: on the meta device.
    """
    if native is None:
        call = unet_inputs(unet, latent, batch)
        return Pass(*measure(lambda: unet(*call[0], **call[1])))
    taps = Taps(unet, 0.7)
    taps.native, taps.target = native, latent
    small, large = unet_inputs(unet, native, batch), unet_inputs(unet, latent, batch)

    def modulated() -> Any:
        taps.maps = taps.record(small)
        return unet(*large[0], **large[1])

    with taps.installed():
        return Pass(*measure(modulated))


# --- a whole run ----------------------------------------------------------------------------------


def estimate(
    pipe: Any,
    size: Size,
    *,
    steps: int,
    settings: Settings,
    guidance: bool = True,
    given: Size = (0, 0),
) -> Estimate:
    """The cost of an image of ``size`` (height, width); ``given``: the native image's size, if it
    exists already.

    Memory is the peak of all that is not weights. Seconds are measured on one small evaluation.
    """
    factor, batch = pipe.vae_scale_factor, 2 if guidance else 1
    unet, vae = on_meta(pipe.unet), on_meta(pipe.vae)
    small = given if given[0] else native_size(pipe, size)
    native, target = ((a // factor, b // factor) for a, b in (small, size))
    first = evaluation(unet, native, batch)
    second = evaluation(unet, target, batch, native if settings.am else None)
    if size[0] * size[1] > LARGE:
        vae.enable_tiling()
    z = torch.empty(1, vae.config.latent_channels, *target, device="meta", dtype=vae.dtype)
    decoding = Pass(*measure(lambda: vae.decode(z)))
    passes = [second, *([] if given[0] or small == size else [first])]
    flops = steps * sum(one.flops for one in passes) + decoding.flops
    rate, note = _rate(pipe, unet, native)
    return Estimate(
        steps * len(passes),
        flops,
        max(first.memory, second.memory, decoding.memory),
        flops / rate,
        (note,),
    )


def _rate(pipe: Any, unet: Any, native: Size) -> tuple[float, str]:
    """FLOPs per second of this device, from one evaluation that it can do quickly."""
    side = min(native)
    while (flops := evaluation(unet, (side, side), 1).flops) > PROBE_FLOPS and side > 16:
        side //= 2
    call = unet_inputs(pipe.unet, (side, side), 1)
    with torch.no_grad():
        for _ in range(2):  # the first one is warm-up
            started = time.perf_counter()
            pipe.unet(*call[0], **call[1])
            if pipe.unet.device.type == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - started
    return flops / spent, f"time from one evaluation of a {side} x {side} latent"


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if device.type == "cpu" and table.is_file():
        for line in table.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


__all__ = ["Pass", "estimate", "evaluation", "free_memory", "measure", "on_meta"]
