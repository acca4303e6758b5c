"""RealESRGAN degradation: its steps in closed form, and the properties that scale distillation
needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from zoo_sr.degrade import (
    Bicubic,
    Blur,
    Chain,
    Degradation,
    Jpeg,
    Noise,
    Params,
    RealESRGAN,
    RealLite,
    Resize,
)
from zoo_sr.pixels import bicubic_down, bicubic_up

LAW = RealESRGAN()


def crops(count: int, side: int = 96) -> torch.Tensor:
    """(count,3,side,side): parts of a real photograph (NASA's, from scikit-image)."""
    from skimage.data import astronaut

    at = np.random.default_rng(1).integers(0, 512 - side, (count, 2))
    parts = [astronaut()[y : y + side, x : x + side] for y, x in at]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -10 * (x - y).square().mean((1, 2, 3)).log10()


def one(x_h: torch.Tensor, *chain: Blur | Resize | Noise | Jpeg, scale: int = 1) -> torch.Tensor:
    return LAW.apply(x_h, scale, [chain] * len(x_h), scale)


# --- each step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.6, 1.0, 4.0])
@pytest.mark.parametrize(("cycles", "direction"), [(8, "x"), (12, "x"), (8, "y"), (12, "y")])
def test_blur_has_the_frequency_response_it_states(shape, cycles, direction):
    side = 96
    wave = 0.5 + 0.4 * torch.cos(2 * math.pi * cycles * torch.arange(side) / side)
    image = wave.expand(1, 3, side, side)
    image = image if direction == "x" else image.transpose(-1, -2)
    spread = (1.4, 0.5)  # the first axis is x at angle 0
    blurred = one(image, Blur(spread, 0.0, shape))[0, 0, 32:64, 32:64]  # whole periods
    omega = 2 * math.pi * cycles / side * (1.4 if direction == "x" else 0.5)
    gain = math.exp(-0.5 * omega ** (2 * shape))
    assert float(blurred.std() / image[0, 0, 32:64, 32:64].std()) == pytest.approx(gain, abs=0.02)
    turned = one(image, Blur((0.5, 1.4), math.pi / 2, shape))[0, 0, 32:64, 32:64]
    torch.testing.assert_close(turned, blurred, atol=1 / 255, rtol=0)


def test_blur_keeps_brightness_and_a_high_shape_rings():
    flat = torch.full((1, 3, 32, 32), 0.4)
    assert torch.equal(one(flat, Blur((2.0, 1.0), 0.3, 0.7)), one(flat))
    edge = torch.zeros(1, 3, 64, 64) + 0.25
    edge[..., 32:] = 0.75
    gauss, sinc = (one(edge, Blur((1.5, 1.5), 0.0, shape)) for shape in (1.0, 6.0))
    assert gauss.max() <= 0.75 + 0.5 / 255
    assert 0.78 < sinc.max() < 0.82  # a perfect cut overshoots by 9 % of the step: 0.795


@pytest.mark.parametrize("shot", [False, True])
def test_noise_has_the_spread_it_states(shot):
    flat = torch.full((1, 3, 128, 128), 0.49)
    rest = one(flat, Noise(0.05, 3, shot=shot)) - 0.49
    count = rest.numel()
    std = 0.05 * (0.7 if shot else 1)
    # Rounding to 8 bits adds 1/12 of a squared level.
    std = math.hypot(std, 1 / 255 / math.sqrt(12))
    assert abs(rest.std() - std) < 4 * std / math.sqrt(2 * count)
    assert abs(rest.mean() - (round(0.49 * 255) / 255 - 0.49)) < 4 * std / math.sqrt(count) + 2e-3
    red, green, blue = rest[0]
    assert abs(torch.corrcoef(torch.stack([red.flatten(), green.flatten()]))[0, 1]) < 0.04
    grey = one(flat, Noise(0.05, 3, grey=True, shot=shot))[0]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    assert not torch.equal(red, blue)


def test_jpeg_makes_blocks_and_more_of_them_at_lower_quality():
    x = crops(8)
    half = x.mean(1)
    errors, blocks = [], []
    for quality in (95, 60, 30):
        y = one(x, Jpeg(quality))
        errors.append(float((y - x).square().mean()))
        steps = ((y.mean(1) - half).diff(dim=-1)).abs().mean((0, 1))  # (95,)
        at_border = torch.arange(95) % 8 == 7
        blocks.append(float(steps[at_border].mean() / steps[~at_border].mean()))
    assert errors[0] < errors[1] < errors[2]
    assert blocks[2] > 1.1  # the error jumps where 8x8 blocks meet


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
def test_resize_shifts_nothing_and_loses_detail(mode):
    ramp = torch.linspace(0.2, 0.8, 96).expand(1, 3, 96, 96)
    through = one(ramp, Resize(0.5, mode))
    torch.testing.assert_close(through[..., 8:-8], ramp[..., 8:-8], atol=2 / 255, rtol=0)
    x = crops(4)
    assert (psnr(one(x, Resize(0.5, mode)), x) < psnr(one(x, Resize(0.8, mode)), x)).all()


# --- the chain ------------------------------------------------------------------------------------


def test_same_seed_same_images_and_all_of_them_usable():
    x = crops(16)
    chains, again = (LAW.sample(np.random.default_rng(4), 16) for _ in range(2))
    assert chains == again
    assert chains != LAW.sample(np.random.default_rng(5), 16)
    for scale, final in [(4, 4), (2, 4), (1, 4), (2, 2), (8, 8)]:
        y = LAW.apply(x, scale, chains, final)
        assert y.shape == (16, 3, 96 // scale, 96 // scale)
        assert y.dtype == x.dtype
        assert torch.equal(y, (y * 255).round() / 255)  # finite, in range, 8 bits
        assert y.min() >= 0
        assert y.max() <= 1
        assert torch.equal(y, LAW.apply(x, scale, chains, final))
    tall = LAW.apply(x[..., :40], 4, chains, 4)
    assert tall.shape == (16, 3, 24, 10)


def test_no_share_is_bicubic_and_share_does_not_shift_the_rest():
    x = crops(4)
    clean = RealESRGAN(share=0)
    chains = clean.sample(np.random.default_rng(0), 4)
    assert torch.equal(clean.apply(x, 4, chains, 4), Bicubic().apply(x, 4, [Params()] * 4, 4))
    every = RealESRGAN(share=1).sample(np.random.default_rng(7), 2000)
    some = RealESRGAN(share=0.3).sample(np.random.default_rng(7), 2000)
    kept = [a == b for a, b in zip(some, every, strict=True)]
    assert all(k or a == () for k, a in zip(kept, some, strict=True))
    assert abs(np.mean(kept) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_what_is_drawn_lies_in_the_stated_ranges():
    law = RealESRGAN(share=1, blur=(0.2, 0.6), noise=(0.01, 0.03), jpeg=(40, 50))
    chains = law.sample(np.random.default_rng(0), 3000)
    steps = [step for chain in chains for step in chain]
    blurs = [s for s in steps if isinstance(s, Blur)]
    assert all(0.2 <= v <= 0.6 for b in blurs for v in b.spread)
    assert all(0.5 <= b.shape <= 6 for b in blurs)
    assert {s.mode for s in steps if isinstance(s, Resize)} == {"bicubic", "bilinear", "area"}
    assert all(0.7 <= s.factor <= 2.5 for s in steps if isinstance(s, Resize))
    assert all(0.01 <= s.std <= 0.03 for s in steps if isinstance(s, Noise))
    assert {s.quality for s in steps if isinstance(s, Jpeg)} == set(range(40, 51))
    rounds = np.array([sum(isinstance(s, Resize) for s in chain) for chain in chains])
    assert set(rounds) == {1, 2}
    assert abs(rounds.mean() - 1.4) < 4 * math.sqrt(0.4 * 0.6 / 3000)
    orders = {tuple(type(s).__name__ for s in chain) for chain in chains}
    assert len(orders) > 50
    # Noise and JPEG are never on the HR grid: see the class.
    grid = {"Resize", "Blur"}
    assert all(set(o[: o.index("Resize")]) <= grid for o in orders)


def test_the_same_parameters_at_a_smaller_scale_are_an_easier_version():
    law = RealESRGAN(share=1)
    x = crops(48)
    chains = law.sample(np.random.default_rng(2), 48)
    hard, easy = (law.apply(x, scale, chains, 4) for scale in (4, 2))
    gain = psnr(bicubic_up(easy, 2), x) - psnr(bicubic_up(hard, 4), x)
    assert gain.min() > -0.05  # of 300 crops one lost 0.003 dB: two rounds of noise, little else
    assert gain.mean() > 1  # dB; clean bicubic gains about 4 on photographs


def test_two_scales_share_blur_and_noise():
    """Without JPEG, which is not linear, the easier image shrinks to about the harder one."""
    law = RealESRGAN(share=1)
    x = crops(32)
    strip = lambda chain: tuple(s for s in chain if not isinstance(s, Jpeg))  # noqa: E731
    other_noise: list[Chain] = []
    chains = [strip(chain) for chain in law.sample(np.random.default_rng(3), 32)]
    for chain in chains:
        other_noise.append(
            tuple(
                Noise(s.std, s.seed + 1, s.grey, s.shot) if isinstance(s, Noise) else s
                for s in chain
            )
        )
    shrunk = bicubic_down(law.apply(x, 2, chains, 4), 2)
    same = (shrunk - law.apply(x, 4, chains, 4)).std()
    assert same < 0.6 * (shrunk - law.apply(x, 4, other_noise, 4)).std()


def test_every_law_has_the_protocol():
    laws: list[Degradation] = [Bicubic(), RealLite(), RealESRGAN()]
    for law in laws:
        params = law.sample(np.random.default_rng(0), 2)
        assert law.apply(crops(2), 4, params, 4).shape == (2, 3, 24, 24)
