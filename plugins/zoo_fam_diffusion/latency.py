"""``zoo bench fam-diffusion -O part=latency``: seconds in turns, and SDXL's cost by its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from zoo.experiment import Book, Rows, Values, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Results

from .cost import evaluation
from .frequency import Size
from .model import FAMDiffusion
from .rivals import MultiDiffusion
from .sampling import FAM, Settings

TURNS = 5
STEPS = 50
BOUNDS = {2: 1.40, 4: 1.12}
"""Scale -> seconds, as a multiple of direct generation's."""
MEMORY = 1.05
DIRECT, OURS, CACHED, WINDOWS = "direct", "FAM", "FAM, maps kept", "MultiDiffusion"
SDXL, SDXL_FAM = "SDXL, direct", "SDXL, FAM"
SDXL_UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The UNet of SDXL's base model."""


def latency(request: BenchRequest, model: FAMDiffusion, rows: Rows) -> Results:
    """All methods in turns on one thread; FLOPs and memory by ``cost``."""
    book = Book(less_is_better=lambda column: True)
    side = model.pipe.unet.config.sample_size * model.pipe.vae_scale_factor
    for scale in BOUNDS:
        kept = rows.row(
            f"{scale}x", {"quick": request.quick}, partial(_seconds, request, model, side * scale)
        )
        for name, values in kept.items():
            for turn, value in enumerate(values):
                book.add(name, seconds(scale), value, f"turn {turn}")
    for scale, (direct, ours) in sdxl((2,) if request.quick else (2, 3, 4)).items():
        for name, cost in ((SDXL, direct), (SDXL_FAM, ours)):
            book.add(name, f"TFLOP a step, {scale}x", cost[0] / 1e12)
            book.add(name, f"GB beyond the weights, {scale}x", cost[1] / 1e9)
    if not request.quick:
        _claims(book)
    return book.results(part="latency")


def seconds(scale: int) -> str:
    """The name of a column."""
    return f"CPU-seconds an image, {scale}x"


def _seconds(request: BenchRequest, model: FAMDiffusion, side: int) -> Values:
    steps = 2 if request.quick else STEPS
    call = {
        "height": side, "width": side, "steps": steps, "seed": 0,
        "guidance_scale": model.config["guidance"], "output_type": "pt",
    }  # fmt: skip
    prompt = "a red disc creature"
    cached = FAM(model.pipe, Settings(am_source="cache"))
    windows = MultiDiffusion(model.pipe)
    runs: dict[str, Callable[[], Any]] = {
        DIRECT: lambda: model.fam.direct(prompt, **call),
        OURS: lambda: model.fam(prompt, **call),
        CACHED: lambda: cached(prompt, **call),
        WINDOWS: lambda: windows.sample([prompt], (side, side), steps, 0, call["guidance_scale"]),
    }
    made: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + (1 if request.quick else TURNS)):
        for name, run in runs.items():
            _, spent = timed(run)
            if turn:  # the first one warms up
                made[name].append(spent)
    return made


def sdxl(scales: tuple[int, ...]) -> dict[int, tuple[tuple[float, float], tuple[float, float]]]:
    """Scale -> (FLOPs, bytes) of a step of direct generation and of ours, which counts the native
    pass and the second native evaluation.
    """
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**SDXL_UNET)
    unet = unet.half().eval()
    native: Size = (SDXL_UNET["sample_size"],) * 2
    first = evaluation(unet, native)
    made = {}
    for scale in scales:
        latent: Size = (native[0] * scale, native[1] * scale)
        alone, ours = evaluation(unet, latent), evaluation(unet, latent, native=native)
        made[scale] = (
            (alone.flops, float(alone.memory)),
            (first.flops + ours.flops, float(max(first.memory, ours.memory))),
        )
    return made


def _claims(book: Book) -> None:
    for scale, bound in BOUNDS.items():
        book.claim(
            f"latency-{scale}x",
            f"At {scale}x an image takes {bound:.2f} times as long as direct generation or less, "
            "the native pass included.",
            book.times(OURS, DIRECT, seconds(scale), at_most=bound),
        )
        book.claim(
            f"windows-{scale}x",
            f"At {scale}x it takes less time than overlapping windows.",
            book.better(OURS, WINDOWS, seconds(scale)),
        )
    book.claim(
        "memory",
        f"SDXL at 4x needs at most {MEMORY:.2f} times the memory of direct generation.",
        book.times(SDXL_FAM, SDXL, "GB beyond the weights, 4x", at_most=MEMORY, test="counted"),
    )
