"""fam-diffusion: both modulations, alone and in pipelines of three shapes with random weights."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo_fam_diffusion
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import SlicedAttnProcessor
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from zoo_fam_diffusion import cost, steering
from zoo_fam_diffusion.attention import (
    attend,
    enlarge,
    enlarged_map,
    modulated_attention,
    pool,
    token_grid,
)
from zoo_fam_diffusion.frequency import Frequency, modulate, response
from zoo_fam_diffusion.pipeline import SCHEDULE, TOKENS, tokenizer
from zoo_fam_diffusion.sampling import FAM, Settings, native_size
from zoo_fam_diffusion.steering import guided, modulated_layers, recorded, scheduler_like

from zoo.errors import InputError, OptionError

WORDS = ("a", "red", "disc")
PROMPT = "a red disc"
STEPS = 3
# Of numpy 2, about diffusers' Euler and DPM++.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# --- tiny pipelines in the shapes of Stable Diffusion 1.5, 2.1 and XL -----------------------------


def text_model(kind: Any, width: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer(WORDS)),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=8,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=0,
    )
    return kind(config).eval()


def autoencoder() -> Any:
    return AutoencoderKL(  # type: ignore[attr-defined]
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        scaling_factor=0.5,
        sample_size=32,
    ).eval()


def unet(down: str, up: str, **more: Any) -> Any:
    """A UNet of these blocks, of which A has attention and P (plain) has none; latents 16 x 16."""
    kinds = {"A": "CrossAttn", "P": ""}
    return UNet2DConditionModel(  # type: ignore[attr-defined]
        **{
            "sample_size": 16,
            "block_out_channels": (8, 16, 16, 16)[: len(down)],
            "down_block_types": tuple(f"{kinds[k]}DownBlock2D" for k in down),
            "up_block_types": tuple(f"{kinds[k]}UpBlock2D" for k in up),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 8,
            **more,
        }
    ).eval()


def make_sd15() -> Any:
    torch.manual_seed(1)
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_model(CLIPTextModel, 8),
        tokenizer=tokenizer(WORDS),
        unet=unet("AAAP", "PAAA"),
        scheduler=PNDMScheduler(
            skip_prk_steps=True,
            **{k: v for k, v in SCHEDULE.items() if k != "clip_sample"},
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sd21() -> Any:
    pipe = make_sd15()
    torch.manual_seed(2)
    heads = {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}
    pipe.register_modules(unet=unet("AAAP", "PAAA", **heads))
    v = {**SCHEDULE, "prediction_type": "v_prediction"}
    pipe.scheduler = DDIMScheduler(**v)
    return pipe


def make_sdxl(**more: Any) -> Any:
    torch.manual_seed(3)
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=text_model(CLIPTextModel, 4),
        text_encoder_2=text_model(CLIPTextModelWithProjection, 4),
        tokenizer=tokenizer(WORDS),
        tokenizer_2=tokenizer(WORDS),
        unet=unet("PAA", "AAP", **{**SDXL, **more}),
        scheduler=DDIMScheduler(**SCHEDULE),
        add_watermarker=False,
    )


SDXL = {
    "transformer_layers_per_block": (1, 1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
    "use_linear_projection": True,
}
MAKERS: dict[str, Callable[[], Any]] = {"sd15": make_sd15, "sd21": make_sd21, "sdxl": make_sdxl}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    made = {name: make() for name, make in MAKERS.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(params=MAKERS)
def pipe(request, pipes) -> Any:
    return pipes[request.param]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


# --- frequency modulation -------------------------------------------------------------------------


def full_response(size: tuple[int, int], rho: float, c: float) -> Tensor:
    """K on all frequencies, by the definition on the shifted spectrum: (H, W)."""
    height, width = size
    y = torch.arange(height)[:, None] - height // 2
    x = torch.arange(width)[None] - width // 2
    inside = (y.abs() < height * c * (1 - rho) / 2) & (x.abs() < width * c * (1 - rho) / 2)
    return torch.fft.ifftshift(torch.where(inside, rho, 1.0))


def test_equal_latents_stay_and_the_ends_of_k_choose_one_side() -> None:
    z, reference = normal(2, 4, 24, 32), normal(2, 4, 24, 32, seed=1)
    k = response((24, 32), 0.3, 0.5)
    torch.testing.assert_close(modulate(z, z, k), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(modulate(z, reference, k * 0 + 1), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(modulate(z, reference, k * 0), reference, atol=2e-6, rtol=0)
    for c in (0.25, 0.5, 1.0):
        assert bool((response((24, 32), 1.0, c) == 1).all())  # an empty box


def test_the_spectrum_form_is_the_circular_convolution() -> None:
    z, reference = normal(1, 2, 12, 10), normal(1, 2, 12, 10, seed=1)
    full = full_response((12, 10), 0.3, 0.5)
    kappa = torch.fft.ifft2(1 - full)
    assert float(kappa.imag.abs().max()) < 1e-8
    spectrum = full * torch.fft.fft2(z) + (1 - full) * torch.fft.fft2(reference)
    by_eq = torch.fft.ifft2(spectrum).real
    convolved = z.clone()
    for dy in range(12):
        for dx in range(10):
            convolved += kappa.real[dy, dx] * (reference - z).roll((dy, dx), (-2, -1))
    made = modulate(z, reference, response((12, 10), 0.3, 0.5))
    torch.testing.assert_close(made, by_eq, atol=1e-6, rtol=0)
    torch.testing.assert_close(made, convolved, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "rho", "bins"),
    [((24, 32), 0.3, 99), ((64, 64), 0.981, 1), ((64, 64), 0.501, 225), ((64, 64), 0.001, 961)],
)
def test_the_box_has_as_many_bins_as_its_sides_say(size, rho: float, bins: int) -> None:
    full = full_response(size, rho, 0.5)
    sides = [2 * math.ceil(0.5 * side * (1 - rho) / 2) - 1 for side in size]
    inside = full != 1
    assert int(inside.sum()) == bins == math.prod(sides)
    assert torch.equal(full[inside], torch.full((bins,), rho))
    assert torch.equal(full, full.flip(0, 1).roll((1, 1), (0, 1)))  # K at -f
    assert torch.equal(response(size, rho, 0.5), full[:, : size[1] // 2 + 1])


def test_the_mean_and_each_wave_are_scaled_by_k() -> None:
    z, reference = normal(1, 3, 24, 32), normal(1, 3, 24, 32, seed=1)
    made = modulate(z, reference, response((24, 32), 0.3, 0.5))
    expected = 0.3 * z.mean((-2, -1)) + 0.7 * reference.mean((-2, -1))
    torch.testing.assert_close(made.mean((-2, -1)), expected, atol=1e-7, rtol=0)
    y, x = torch.arange(24)[:, None] / 24, torch.arange(32)[None] / 32
    for fy, fx, factor in [(4, 5, 0.3), (5, 5, 1.0), (4, 6, 1.0), (-4, 1, 0.3)]:
        wave = torch.cos(2 * math.pi * (fy * y + fx * x))[None, None]
        zero = torch.zeros_like(wave)
        only = modulate(wave, zero, response((24, 32), 0.3, 0.5))
        torch.testing.assert_close(only, factor * wave, atol=1e-5, rtol=0)


def test_modulation_is_linear_and_commutes_with_what_moves_pixels() -> None:
    z, reference = normal(2, 4, 12, 16), normal(2, 4, 12, 16, seed=1)
    k = response((12, 16), 0.4, 0.5)
    made = modulate(z, reference, k)
    other = modulate(reference, z, k)
    close: dict[str, Any] = {"atol": 2e-6, "rtol": 0.0}
    torch.testing.assert_close(modulate(z + reference, reference + z, k), made + other, **close)
    torch.testing.assert_close(modulate(3 * z, 3 * reference, k), 3 * made, atol=6e-6, rtol=0)
    torch.testing.assert_close(modulate(z + 2, reference + 2, k), made + 2, **close)
    for move in (
        lambda a: a.roll((3, 5), (-2, -1)),
        lambda a: a.flip(-1),
        lambda a: a.flip(-2),
        lambda a: a[:, [2, 0, 3, 1]],
    ):
        torch.testing.assert_close(modulate(move(z), move(reference), k), move(made), **close)


def test_the_box_is_measured_on_either_grid_and_half_precision_stays() -> None:
    z, reference = normal(1, 4, 32, 48), normal(1, 4, 32, 48, seed=1)
    native = Frequency(grid="native")(z, reference, 0.5, (16, 24))
    torch.testing.assert_close(native, modulate(z, reference, response((32, 48), 0.5, 0.25)))
    half = Frequency()(z.half(), reference.half(), 0.5, (16, 24))
    assert half.dtype == torch.float16
    whole = Frequency()(z, reference, 0.5, (16, 24))
    torch.testing.assert_close(half.float(), whole, atol=5e-3, rtol=0)


# --- attention modulation -------------------------------------------------------------------------

GRIDS = [((3, 5), (6, 10)), ((3, 5), (7, 13))]
"""Native and target: an integer scale and others, not square."""


@pytest.mark.parametrize(("native", "target"), GRIDS)
@pytest.mark.parametrize("kernel", ["bilinear", "nearest"])
def test_the_factorised_product_is_the_materialised_one(native, target, kernel) -> None:
    small, large = math.prod(native), math.prod(target)
    q, k, v = (normal(2, 3, large, 4, seed=i, dtype=torch.float64) for i in range(3))
    qn, kn = (normal(2, 3, small, 4, seed=i, dtype=torch.float64) for i in (3, 4))
    m = (q @ k.mT / 2).softmax(-1)
    u = enlarged_map((qn @ kn.mT / 2).softmax(-1), native, target, kernel)
    torch.testing.assert_close(u.sum(-1), torch.ones(2, 3, large).double(), atol=1e-12, rtol=0)
    for lam in (0.0, 0.7, 1.0):
        made = modulated_attention(q, k, v, qn, kn, native, target, lam, kernel)
        expected = (lam * u + (1 - lam) * m) @ v
        torch.testing.assert_close(made, expected, atol=1e-12, rtol=0)
    flat = torch.full_like(v, 3.0)
    constant = modulated_attention(q, k, flat, qn, kn, native, target, 0.7, kernel)
    torch.testing.assert_close(constant, flat, atol=1e-12, rtol=0)


def test_nearest_pooling_is_the_mean_of_blocks() -> None:
    v = normal(2, 3, 60, 4, dtype=torch.float64)
    images = v.unflatten(2, (6, 10)).permute(0, 1, 4, 2, 3).flatten(0, 1)  # (6,4,6,10)
    expected = adaptive_avg_pool2d(images, (3, 5)).unflatten(0, (2, 3)).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(pool(v, (3, 5), (6, 10), "nearest"), expected.flatten(2, 3))
    tokens = enlarge(pool(v, (3, 5), (6, 10), "nearest"), (3, 5), (6, 10), "nearest")
    blocks = tokens.unflatten(2, (3, 2, 5, 2)).transpose(3, 4).flatten(4, 5)
    torch.testing.assert_close(blocks, blocks[..., :1, :].expand_as(blocks))


def test_a_pair_of_cells_becomes_a_pair_of_blocks() -> None:
    """A resize of the flattened map would mix rows of a grid that is not square."""
    native, target, s = (3, 5), (6, 10), 2
    p, q = (1, 3), (2, 0)
    m = torch.zeros(15, 15, dtype=torch.float64)
    m[p[0] * 5 + p[1], q[0] * 5 + q[1]] = 1
    expected = torch.zeros(6, 10, 6, 10, dtype=torch.float64)
    rows = [slice(s * i, s * i + s) for i in (*p, *q)]
    expected[rows[0], rows[1], rows[2], rows[3]] = 1 / s**2
    made = enlarged_map(m, native, target, "nearest")
    torch.testing.assert_close(made, expected.reshape(60, 60), atol=1e-12, rtol=0)


def test_attention_in_groups_of_queries_is_the_same(monkeypatch) -> None:
    q, k, v = (normal(2, 3, 37, 4, seed=i) for i in range(3))
    whole = scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr("zoo_fam_diffusion.attention.LARGEST_MAP", 2 * 3 * 37 * 5)
    torch.testing.assert_close(attend(q, k, v), whole, atol=1e-6, rtol=0)


def test_a_token_grid_is_found_by_halving_upwards() -> None:
    assert token_grid(15 * 25, (60, 100)) == (15, 25)
    assert token_grid(30 * 50, (60, 100)) == (30, 50)
    assert token_grid(8 * 13, (60, 100)) == (8, 13)
    with pytest.raises(ValueError, match="90 tokens"):
        token_grid(90, (60, 100))


# --- both in a pipeline ---------------------------------------------------------------------------


def run(pipe: Any, latents: Tensor | None = None, size: int = 32, **call: Any) -> Any:
    """The final latents of a plain call with a fixed seed."""
    if latents is not None:
        call["latents"] = latents
    made = pipe(
        PROMPT,
        height=size,
        width=size,
        output_type="latent",
        **{"num_inference_steps": STEPS, "generator": rng(7), **call},
    )
    return made.images


class Inputs:
    """The UNet's inputs in full evaluations, in order; ``early`` counts those that were cut."""

    def __init__(self, unet: Any) -> None:
        self.seen: list[Tensor] = []
        self.finished = 0
        self.hooks = [
            unet.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].clone())),
            unet.register_forward_hook(lambda *_: setattr(self, "finished", self.finished + 1)),
        ]

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_the_unet_sees_the_modulated_latent_and_the_sampler_steps_from_it(
    pipes, name: str, shape: str, monkeypatch
) -> None:
    pipe = pipes[shape]
    monkeypatch.setattr(pipe, "scheduler", scheduler_like(pipe, name))
    z, noise = normal(1, 4, 16, 16), normal(1, 4, 32, 32, seed=1)
    before: list[Tensor] = []
    after: list[Tensor] = []

    def mix(latents: Tensor, reference: Tensor, rho: float, native: Any) -> Tensor:
        before.append(reference)
        after.append(Frequency()(latents, reference, rho, native))
        return after[-1]

    with (
        guided(pipe, z, (64, 64), steps=STEPS, noise=noise, mix=mix, lam=0) as extra,
        Inputs(pipe.unet) as inputs,
    ):
        run(pipe, **{k: v for k, v in extra.items() if k not in ("height", "width")}, size=64)
    clean = steering.enlarge_latent(z, (32, 32))
    times = pipe.scheduler.timesteps
    for i, (seen, t) in enumerate(zip(inputs.seen, times, strict=True)):
        signal = float(pipe.scheduler.alphas_cumprod[int(t)]) ** 0.5
        sigma = float(pipe.scheduler.sigmas[i]) if name != "ddim" else 0.0
        if name == "euler":
            expected, scale = clean + sigma * noise, 1 / (sigma**2 + 1) ** 0.5
        elif name == "dpm++":
            level = 1 / (sigma**2 + 1) ** 0.5
            expected, scale = level * clean + sigma * level * noise, 1.0
        else:
            expected, scale = signal * clean + (1 - signal**2) ** 0.5 * noise, 1.0
        if i == 0:
            torch.testing.assert_close(seen[:1], expected * scale, atol=3e-5, rtol=0)
            continue
        torch.testing.assert_close(before[i - 1], expected, atol=1e-4, rtol=1e-5)
        scaled = after[i - 1] / ((sigma**2 + 1) ** 0.5) if name == "euler" else after[i - 1]
        torch.testing.assert_close(seen[:1], scaled, atol=1e-7, rtol=1e-6)
        assert torch.equal(seen[:1], seen[1:])  # both halves of guidance


def test_without_modulation_it_is_the_plain_pipeline_from_the_same_start(pipe) -> None:
    pipe.scheduler = scheduler_like(pipe, "ddim")
    z, noise = normal(1, 4, 16, 16), normal(1, 4, 32, 32, seed=1)
    with guided(pipe, z, (64, 64), steps=STEPS, noise=noise, lam=0) as extra:
        made = pipe(PROMPT, output_type="latent", **extra).images
    assert torch.equal(made, run(pipe, extra["latents"], 64))

    def copied(latents: Tensor, reference: Tensor, rho: float, native: Any) -> Tensor:
        seen.append(reference)
        return reference

    seen: list[Tensor] = []
    with (
        Inputs(pipe.unet) as inputs,
        guided(pipe, z, (64, 64), steps=STEPS, noise=noise, mix=copied, lam=0) as extra,
    ):
        pipe(PROMPT, output_type="latent", **extra)
    for seen_by_unet, reference in zip(inputs.seen[1:], seen, strict=True):
        assert torch.equal(seen_by_unet[:1], reference)  # the reference's trajectory


@pytest.mark.parametrize(
    ("shape", "source"),
    [
        ("sd15", "replay"),
        ("sd21", "replay"),
        *(("sdxl", s) for s in ("replay", "cache", "renoise")),
    ],
)
def test_evaluations_are_counted_and_the_pipeline_is_what_it_was(pipes, shape, source) -> None:
    pipe = pipes[shape]
    before, scheduler = run(pipe), pipe.scheduler
    processors = dict(pipe.unet.attn_processors)
    with Inputs(pipe.unet) as inputs:
        FAM(pipe, Settings(am_source=source))(PROMPT, height=64, width=64, steps=STEPS)
    replays = 0 if source == "cache" else STEPS
    assert len(inputs.seen) == 2 * STEPS + replays
    assert inputs.finished == 2 * STEPS  # a replay ends early
    assert pipe.scheduler is scheduler
    assert dict(pipe.unet.attn_processors) == processors  # the same objects
    assert not pipe.unet._forward_pre_hooks
    assert torch.equal(run(pipe), before)


@pytest.mark.parametrize(("error", "call"), [(RuntimeError, 1), (KeyboardInterrupt, STEPS + 1)])
def test_an_exception_in_either_pass_leaves_the_pipeline_as_it_was(pipe, error, call) -> None:
    before, scheduler = run(pipe), pipe.scheduler
    processors = dict(pipe.unet.attn_processors)
    count = 0

    def fail(*_: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == call:
            raise error("stop")
        return {}

    with pytest.raises(error):
        FAM(pipe)(PROMPT, height=64, width=64, steps=STEPS, callback_on_step_end=fail)
    assert pipe.scheduler is scheduler
    assert dict(pipe.unet.attn_processors) == processors
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.vae.use_tiling
    assert torch.equal(run(pipe), before)


def test_the_native_image_is_the_pipelines_own_and_seeds_decide(pipe) -> None:
    fam = FAM(pipe)
    made = fam(PROMPT, height=64, width=64, steps=STEPS, seed=3, output_type="np")
    before = pipe.scheduler
    pipe.scheduler = scheduler_like(pipe, "ddim")
    plain = pipe(
        PROMPT,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        generator=rng(3),
        output_type="np",
    ).images
    pipe.scheduler = before
    assert np.array_equal(made.native, plain)
    assert made.image.shape == (1, 64, 64, 3)
    again = fam(PROMPT, height=64, width=64, steps=STEPS, seed=3, output_type="np")
    other = fam(PROMPT, height=64, width=64, steps=STEPS, seed=4, output_type="np")
    assert np.array_equal(again.image, made.image)
    assert not np.allclose(other.image, made.image)


def test_the_three_sources_of_native_maps() -> None:
    """Kept maps are those of a second evaluation; those of the diffused latent differ."""
    pipe = make_sdxl()
    pipe.set_progress_bar_config(disable=True)
    made = {
        source: FAM(pipe, Settings(am_source=source))(
            PROMPT, height=64, width=64, steps=STEPS, output_type="latent"
        ).image
        for source in ("replay", "cache", "renoise")
    }
    off = FAM(pipe, Settings(am=False))
    plain = off(PROMPT, height=64, width=64, steps=STEPS, output_type="latent").image
    torch.testing.assert_close(made["replay"], made["cache"], atol=1e-6, rtol=0)
    assert not torch.allclose(made["replay"], made["renoise"], atol=1e-6)
    assert not torch.allclose(made["replay"], plain, atol=1e-6)


def test_at_scale_one_with_its_own_maps_nothing_changes(pipe) -> None:
    pipe.scheduler = scheduler_like(pipe, "ddim")
    start = normal(1, 4, 16, 16)
    with recorded(pipe) as native:
        plain = run(pipe, start)
    for lam in (0.3, 1.0):
        with steering._attending(pipe, start, start, lam, native):
            torch.testing.assert_close(run(pipe, start), plain, atol=1e-5, rtol=0)
    with guided(pipe, start, (32, 32), steps=STEPS, noise=start, lam=0, native=native):
        assert torch.equal(run(pipe, start), plain)  # lambda 0 installs nothing


def test_each_half_of_guidance_has_its_own_maps(pipe) -> None:
    pipe.scheduler = scheduler_like(pipe, "ddim")
    z, noise = normal(1, 4, 16, 16), normal(1, 4, 32, 32, seed=1)
    with recorded(pipe, cache=True) as native:
        run(pipe)

    def target() -> Tensor:
        with guided(pipe, z, (64, 64), steps=STEPS, noise=noise, native=native) as extra:
            return pipe(PROMPT, output_type="latent", **extra).images

    right = target()
    native.maps = [
        {name: (q.flip(0), k.flip(0)) for name, (q, k) in maps.items()} for maps in native.maps
    ]
    assert not torch.allclose(target(), right, atol=1e-7)


def test_any_size_not_square_and_not_a_multiple(pipe) -> None:
    """24 x 40 latents to 60 x 100, and one side only."""
    pipe.scheduler = scheduler_like(pipe, "ddim")
    for small, large in [((24, 40), (60, 100)), ((16, 16), (16, 32))]:
        z, noise = normal(1, 4, *small), normal(1, 4, *large, seed=1)
        with recorded(pipe) as native:
            pipe(PROMPT, height=2 * small[0], width=2 * small[1], num_inference_steps=1,
                 guidance_scale=1, output_type="latent")  # fmt: skip
        with guided(
            pipe, z, (2 * large[0], 2 * large[1]), steps=1, noise=noise, mix=Frequency(),
            native=native,
        ) as extra:  # fmt: skip
            made = pipe(PROMPT, guidance_scale=1, output_type="latent", **extra).images
        assert made.shape == (1, 4, *large)
        assert bool(torch.isfinite(made).all())


def test_layers_are_those_of_the_first_up_block_that_has_any(pipes) -> None:
    assert {n.split(".")[1] for n in modulated_layers(pipes["sd15"].unet)} == {"1"}
    assert {n.split(".")[1] for n in modulated_layers(pipes["sdxl"].unet)} == {"0"}
    assert len(modulated_layers(pipes["sdxl"].unet)) == 4  # two transformers of two blocks


def test_shrunk_noise_has_unit_variance_and_the_blocks_of_the_large_one() -> None:
    noise = normal(1, 4, 96, 128)
    small = steering.shrunk_noise(noise, (48, 64))
    torch.testing.assert_close(small, 2 * adaptive_avg_pool2d(noise, (48, 64)))
    assert float(steering.shrunk_noise(noise, (60, 50)).std()) == pytest.approx(1, abs=0.05)


# --- what cannot be -------------------------------------------------------------------------------


def test_wrong_pipelines_layers_and_samplers_are_refused(pipes) -> None:
    with pytest.raises(InputError, match="does not denoise latents"):
        FAM(object())
    pipe = pipes["sd15"]
    z, noise = normal(1, 4, 16, 16), normal(1, 4, 32, 32, seed=1)
    before = pipe.scheduler
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(before.config)
    with (
        pytest.raises(OptionError, match="EulerAncestralDiscreteScheduler does not keep"),
        guided(pipe, z, (64, 64), steps=2, noise=noise),
    ):
        pass
    pipe.scheduler = before
    with pytest.raises(OptionError, match="expected one of ddim"):
        FAM(pipe, Settings(scheduler="heun"))(PROMPT, height=64, width=64)
    layer = pipe.unet.get_submodule(modulated_layers(pipe.unet)[0])
    processor = layer.processor
    layer.set_processor(SlicedAttnProcessor(1))
    with pytest.raises(InputError, match="SlicedAttnProcessor"):
        FAM(pipe)(PROMPT, height=64, width=64, steps=1)
    FAM(pipe, Settings(am=False))(PROMPT, height=64, width=64, steps=1)
    layer.set_processor(processor)
    with pytest.raises(InputError, match="the nearest size is 64 x 72"):
        FAM(pipe)(PROMPT, height=64, width=69)


def test_the_native_size_keeps_the_aspect_and_the_area(pipes) -> None:
    pipe = pipes["sdxl"]  # 16 latents of 2 pixels
    assert native_size(pipe, (64, 64)) == (32, 32)
    assert native_size(pipe, (32, 128)) == (16, 64)
    assert native_size(pipe, (32, 64)) == (16, 48)
    assert native_size(pipe, (24, 40)) == (24, 40)  # not larger: generated directly
    made = FAM(pipe)(PROMPT, height=24, width=40, steps=1)
    assert made.image is made.native


# --- cost -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdxl_on_meta() -> Any:
    """SDXL's blocks with few channels, without weights."""
    with torch.device("meta"):
        return unet("PAA", "AAP", **SDXL).eval()


def test_memory_at_512_latents_is_that_of_direct_sampling(sdxl_on_meta) -> None:
    """The claim: at most 5 % more, with the native evaluation and its maps; guidance is on."""
    direct = cost.evaluation(sdxl_on_meta, (512, 512))
    ours = cost.evaluation(sdxl_on_meta, (512, 512), native=(128, 128))
    assert 1 <= ours.memory / direct.memory <= 1.05
    assert 1 < ours.flops / direct.flops < 1.1


def test_the_memory_of_frequency_modulation_is_below_an_evaluations(sdxl_on_meta) -> None:
    z = torch.empty(1, 4, 512, 512, device="meta")
    spectra = cost.measure(lambda: modulate(z, z, response((512, 512), 0.5, 0.5)))[1]
    assert spectra < cost.evaluation(sdxl_on_meta, (512, 512)).memory


def test_what_is_counted_is_what_is_computed() -> None:
    """A product of matrices, attention without its map, and tensors that are gone."""
    a = torch.empty(8, 16, device="meta")
    flops, peak = cost.measure(lambda: (a @ a.mT) @ (a @ a.mT))
    assert flops == 2 * 8 * 16 * 8 * 2 + 2 * 8**3
    assert peak == 3 * 8 * 8 * 4
    q = torch.empty(1, 2, 64, 4, device="meta")
    flops, peak = cost.measure(lambda: scaled_dot_product_attention(q, q, q))
    assert (flops, peak) == (4 * 2 * 64 * 64 * 4, q.numel() * 4)


def test_an_estimate_counts_both_passes(pipes) -> None:
    pipe = pipes["sdxl"]
    found = cost.estimate(pipe, (48, 48), steps=4, settings=Settings())
    assert found.evaluations == 8
    given = cost.estimate(pipe, (48, 48), steps=4, settings=Settings(), given=(32, 32))
    assert given.evaluations == 4
    assert given.flops < found.flops
    # a first call may keep a constant of some bytes
    assert given.memory == pytest.approx(found.memory, rel=1e-3)
    assert found.memory > 48 * 48 * 3 * 4
    assert found.seconds > 0


# --- the page -------------------------------------------------------------------------------------

PAGE = Path(zoo_fam_diffusion.__file__).with_name("README.md")


def test_the_lines_of_the_page_work_in_a_pipeline_of_ones_own(pipe, tmp_path) -> None:
    """At most ten of them, besides imports."""
    (lines,) = re.findall(r"<!-- executed by .*? -->\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in lines.splitlines() if line and "import" not in line]) <= 10
    file = tmp_path / "lines.py"
    file.write_text(lines.replace("=20", f"={STEPS}"), "utf-8")
    before = pipe.scheduler
    try:
        torch.manual_seed(0)
        made = runpy.run_path(
            str(file), init_globals={"pipe": pipe, "prompt": PROMPT, "size": (64, 48)}
        )
    finally:
        pipe.scheduler = before
    assert made["image"].size == (48, 64)
    assert not pipe.unet._forward_pre_hooks
