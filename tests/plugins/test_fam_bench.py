"""fam-diffusion's benchmark: its rivals, what it counts, and each part in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_fam_diffusion import bench, latency, rivals
from zoo_fam_diffusion.frequency import response
from zoo_fam_diffusion.model import FAMDiffusion
from zoo_fam_diffusion.pipeline import Parts, assembled
from zoo_fam_diffusion.steering import enlarge_latent
from zoo_fam_diffusion.world import creatures, draw

from zoo.hookspecs import BenchRequest, BuildRequest

from .test_fam_world import ENTRY, SMALL, options

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> FAMDiffusion:
    """Random weights, native images of 32 pixels."""
    torch.manual_seed(0)
    request = BuildRequest(ENTRY, None, options=options(), saved={"config": SMALL})
    parts = Parts(SMALL)
    parts.requires_grad_(False).eval()
    return FAMDiffusion(request, assembled(parts, SMALL["words"]))


def test_true_images_are_counted_as_true() -> None:
    images = draw(creatures(np.random.default_rng(0), 6), 128)
    found = bench.seen(images, 64)
    assert found[bench.ONE] == found[bench.BOTH] == found[bench.AGREE] == [1.0] * 6
    assert max(found[bench.SPREAD]) < 0.02
    assert np.shape(found[bench.FDR]) == (6, 192)
    flat = bench.seen(torch.full((1, 3, 128, 128), 0.5), 64)
    assert flat[bench.ONE] == [0.0]
    assert flat[bench.GRADIENT] == [0.0]


def test_the_frechet_distance_of_known_sets() -> None:
    """Two clouds that differ by a shift alone: its squared length."""
    a = torch.randn(400, 192, generator=torch.Generator().manual_seed(0))
    assert bench.frechet(a, a) == pytest.approx(0, abs=1e-3)
    assert bench.frechet(a, a + 0.1) == pytest.approx(0.01 * 192, rel=1e-3)


def test_energy_is_that_of_a_ramp() -> None:
    ramp = (torch.arange(8) / 8).expand(1, 3, 8, 8)
    torch.testing.assert_close(bench.energy(ramp), torch.tensor([1 / 64]))


def test_rivals_blend_as_they_say(model: FAMDiffusion) -> None:
    z, reference = torch.randn(2, 1, 4, 16, 16)
    skip = rivals.SkipResidual(model.pipe).mix(z)
    torch.testing.assert_close(skip(z, reference, 1.0, (8, 8)), reference)
    torch.testing.assert_close(skip(z, reference, 0.0, (8, 8)), z)
    back = rivals.Reversed(model.pipe).mix(z)
    torch.testing.assert_close(back(z, reference, 0.0, (8, 8)), z)  # nothing at the end
    still = rivals.Static(model.pipe).mix(reference[..., ::2, ::2])
    made = torch.fft.rfft2(still(z, reference, 0.0, (8, 8)))
    inside = response((16, 16), 0.0, 0.5) == 0
    clean = enlarge_latent(reference[..., ::2, ::2], (16, 16))
    torch.testing.assert_close(
        made[..., inside], torch.fft.rfft2(clean)[..., inside], atol=1e-4, rtol=0
    )


def test_one_window_is_the_pipeline_itself(model: FAMDiffusion) -> None:
    """At the native size MultiDiffusion's mean is over one window."""
    call: dict[str, Any] = {"height": 32, "width": 32, "steps": 2, "seed": 3}
    alone = model.fam.direct(["a red disc"], **call, guidance_scale=2.0, output_type="pt")
    windows = rivals.MultiDiffusion(model.pipe).sample(["a red disc"], (32, 32), 2, 3, 2.0)
    torch.testing.assert_close(windows, alone.float(), atol=1e-5, rtol=0)
    assert rivals._starts(32, 16) == [0, 8, 16]
    assert rivals._starts(36, 16) == [0, 8, 16, 20]
    large = rivals.MultiDiffusion(model.pipe).sample(["a red disc"] * 2, (48, 64), 1, 0, 2.0)
    assert large.shape == (2, 3, 48, 64)


@pytest.mark.parametrize("part", ["claims", "choices", "latency"])
def test_each_part_in_small(
    model: FAMDiffusion, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "load", lambda request: model)
    monkeypatch.setattr(bench, "SIDES", ((32, 64),))
    monkeypatch.setattr(bench, "TRUTHS", 8)
    asked = BenchRequest(
        ENTRY, tmp_path / "out", quick=True, options={"part": part, "work": str(tmp_path / "work")}
    )
    made = bench.bench(asked)
    if part == "claims":
        assert (tmp_path / "out" / made.pictures[0]).is_file()
        found = {claim.id for claim in made.claims}
        assert {"native", "one-2x", "one-4x", "both-2x", "sides-32x64"} <= found
        with monkeypatch.context() as patch:
            patch.setattr(bench, "seen", lambda *_: pytest.fail("rows are made once"))
            assert bench.bench(asked).cells == made.cells
    if part == "latency":
        theory = made.table[latency.SDXL_FAM]["TFLOP a step, 2x"].mean
        theory /= made.table[latency.SDXL]["TFLOP a step, 2x"].mean
        assert theory == pytest.approx(1.34, abs=0.01)  # page, "What it costs"
