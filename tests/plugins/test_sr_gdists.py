"""G-DISTS: the features by closed form, and the order of degraded photographs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from zoo_sr.degrade import round8
from zoo_sr.measuring.gdists import WAVES, _magnitudes, gdists
from zoo_sr.pixels import bicubic_down, bicubic_up

from zoo.metrics import psnr_y

NAMES = ["astronaut", "chelsea", "coffee", "rocket"]


def photo(name: str) -> torch.Tensor:
    """(1,3,192,192) in [0,1]: a part of one of scikit-image's photographs."""
    import skimage.data

    part = getattr(skimage.data, name)()[80:272, 150:342]
    return torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 255


def blur(x: torch.Tensor, std: float) -> torch.Tensor:
    taps = torch.exp(-0.5 * (torch.arange(-12, 13) / std) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, -1)
    x = functional.pad(x, (12, 12, 12, 12), mode="replicate")
    x = functional.conv2d(x, taps[:, :, None, :], groups=3)
    return functional.conv2d(x, taps[:, :, :, None], groups=3)


def shrunk(x: torch.Tensor, scale: int) -> torch.Tensor:
    return bicubic_up(round8(bicubic_down(x, scale)), scale)


def unsharp(x: torch.Tensor) -> torch.Tensor:
    return 2 * x - blur(x, 2.0)


@pytest.mark.parametrize("index", range(len(WAVES)))
@pytest.mark.parametrize("direction", ["x", "y"])
def test_a_wave_of_amplitude_a_gives_a_at_every_phase(index, direction):
    wave = 0.5 + 0.2 * torch.cos(2 * math.pi * torch.arange(96.0).double() / WAVES[index] + 0.3)
    picture = wave.expand(96, 96) if direction == "x" else wave[:, None].expand(96, 96)
    maps = _magnitudes(picture).unflatten(0, (len(WAVES), 4))[:, :, 40:56, 40:56]
    own = maps[index, 0 if direction == "x" else 2]
    torch.testing.assert_close(own, torch.full_like(own, 0.2), atol=0.002, rtol=0)
    assert maps[index, 2 if direction == "x" else 0].max() < 0.002
    assert _magnitudes(torch.full((40, 50), 0.7).double()).max() < 1e-9  # brightness is not a wave


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_section_7_4(name):
    x = photo(name)
    x4 = shrunk(x, 4)
    nearest = round8(bicubic_down(x, 4)).repeat_interleave(4, -1).repeat_interleave(4, -2)
    noisy = x4 + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ours = {
        key: gdists(y[0], x[0], 4)
        for key, y in {
            "HR": x,
            "x2": shrunk(x, 2),
            "unsharp": unsharp(x4),
            "x4": x4,
            "x8": shrunk(x, 8),
            "nearest": nearest,
            "noise": noisy,
        }.items()
    }
    assert ours["HR"] == pytest.approx(0, abs=1e-12)
    assert ours["HR"] < ours["x2"] < ours["unsharp"] < ours["x4"] < ours["x8"]
    # Noise hardly passes for detail, as it does for no-reference metrics: their value falls by a
    # third, this one by 5 % at most and on the mean it grows. Blocks are nearly as bad as blur:
    # 0.93 of its distance on photographs.
    assert 0.9 * ours["x4"] < ours["noise"]
    assert ours["nearest"] == pytest.approx(ours["x4"], rel=0.25)


def test_more_blur_is_farther():
    x = photo("chelsea")
    distances = [gdists(blur(x, std)[0], x[0], 4) for std in (0.3, 0.5, 0.8, 1.2, 2.0, 4.0)]
    assert all(a < b for a, b in itertools.pairwise(distances))
    assert distances[-1] < 1


def test_symmetric():
    x = photo("coffee")
    y = shrunk(x, 4)
    assert gdists(x[0], y[0], 4) == pytest.approx(gdists(y[0], x[0], 4), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_and_another_brightness_cost_little(name):
    """Magnitudes have no phase: PSNR finds the shifted picture as bad as the blurred one."""
    x = photo(name)
    x4 = gdists(shrunk(x, 4)[0], x[0], 4)
    shifted = x.roll(1, -1)[0]
    assert psnr_y(shifted, x[0], 4) < psnr_y(shrunk(x, 4)[0], x[0], 4) + 0.5
    assert gdists(shifted, x[0], 4) < 0.25 * x4
    assert gdists((0.8 * x + 0.1)[0], x[0], 4) < 0.15 * x4


def test_a_texture_drawn_again_is_nearer_than_none():
    rng = np.random.default_rng(0)
    grains = [
        torch.from_numpy(rng.normal(0.5, 0.1, (128, 128))).float().expand(3, -1, -1)
        for _ in range(2)
    ]
    flat = torch.full((3, 128, 128), 0.5)
    assert gdists(grains[0], grains[1], 4) < 0.7 * gdists(flat, grains[1], 4)
    assert psnr_y(grains[0], grains[1], 4) < psnr_y(flat, grains[1], 4)


def test_border_and_sizes():
    x = photo("rocket")[0]
    framed = x.clone()
    framed[:, :4] = 0
    framed[:, :, -4:] = 1
    assert gdists(framed, x, 4) == pytest.approx(0, abs=1e-12)
    assert gdists(framed, x, 0) > 0.01
    assert gdists(x[:, :24, :31], x[:, :24, :31], 4) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="shapes differ"):
        gdists(x, x[:, 1:], 4)
    with pytest.raises(ValueError, match="less than a window of 16 pixels"):
        gdists(x[:, :23], x[:, :23], 4)
