"""The shared super-resolution core: closed forms and invariants of both methods' pages."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo_sr import latent
from zoo_sr.degrade import Bicubic, Params, RealLite
from zoo_sr.latent import ForwardNoise, channel_weights, denoising_loss, kl_to_unit, teacher_target
from zoo_sr.networks import TinyDecoder, TinyEncoder, TinyUNet, normalise_latents
from zoo_sr.pixels import back_project, bicubic, bicubic_down, bicubic_up
from zoo_sr.tiles import Grid, noise_field, reflect, starts, stream, windows
from zoo_sr.training.decoder import decoder_loss, texture_loss

from zoo.metrics import haarpsi, psnr_y, ssim_y
from zoo.plugins import own_registry


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def photo(height: int = 64, width: int = 64) -> torch.Tensor:
    """(1,3,h,w): a part of a real photograph (NASA's, from scikit-image)."""
    from skimage.data import astronaut

    part = astronaut()[:height, 180 : 180 + width]
    return torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 255


# --- schedule (checks 2 and 3) --------------------------------------------------------------------

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_schedule_is_variance_preserving_and_its_snr_falls():
    total = latent.alpha(TIMES) ** 2 + latent.sigma(TIMES) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)
    snr = latent.snr(TIMES)
    assert (snr[1:] < snr[:-1]).all()
    assert snr[-1] == 0  # exactly: one-step inference starts in pure noise
    weight = latent.loss_weight(TIMES)
    assert weight.min() == 1
    assert weight.max() == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_the_chain_are_exact(dtype):
    z_h, n = torch.randn(2, 3, 4, 8, 8, dtype=dtype)
    assert torch.equal(latent.forward(z_h, n, torch.zeros(3, dtype=dtype)), z_h)
    assert torch.equal(latent.forward(z_h, n, torch.ones(3, dtype=dtype)), n)


def test_v_identities():
    z_h, n = torch.randn(2, len(TIMES), 4, 3, 3, dtype=torch.float64)
    z_t, v = latent.forward(z_h, n, TIMES), latent.velocity(z_h, n, TIMES)
    torch.testing.assert_close(latent.x0_from_v(z_t, v, TIMES), z_h, atol=1e-12, rtol=0)
    torch.testing.assert_close(latent.noise_from_v(z_t, v, TIMES), n, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_with_an_oracle_returns_the_latent(steps):
    z_h, n = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    oracle = lambda z_t, t: latent.velocity(z_h, n, t)  # noqa: E731
    torch.testing.assert_close(latent.ddim(oracle, n, steps), z_h, atol=1e-12, rtol=0)


def test_one_step_is_minus_v():
    v = torch.randn(1, 4, 8, 8)
    assert torch.equal(latent.ddim(lambda z, t: v, torch.randn(1, 4, 8, 8), steps=1), -v)


# --- forward noise (checks 2-4 of Edge-SD-SR) -----------------------------------------------------


def test_mean_and_spread_of_z_1_are_those_of_the_lr_encoder():
    mu, log_var = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3) - 2
    draws = 10_000
    n = ForwardNoise("lr", "learned").n(torch.randn(draws, 2, 3, 3), mu, log_var)
    z_1 = latent.forward(torch.randn(draws, 2, 3, 3), n, torch.ones(draws))
    s = (log_var / 2).exp()[0]
    assert ((z_1.mean(0) - mu[0]).abs() < 4 * s / math.sqrt(draws)).all()
    assert ((z_1.std(0) - s).abs() < 4 * s / math.sqrt(2 * draws)).all()


def test_mean_shifted_noise_is_a_reparametrisation():
    """f(z_t, mu) with n = mu + eps equals g(z_t - sigma mu, mu); g(z, mu) = f(z + sigma mu, mu)."""
    f = nn.Conv2d(8, 4, 3, padding=1).double()
    z_h, mu, eps = torch.randn(3, 5, 4, 8, 8, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    sigma = latent.sigma(t)[:, None, None, None]
    z_t = latent.forward(z_h, ForwardNoise("lr", "unit").n(eps, mu, mu), t)
    usual = latent.forward(z_h, ForwardNoise().n(eps, mu, mu), t)
    a = f(torch.cat([z_t, mu], 1))
    b = f(torch.cat([usual + sigma * mu, mu], 1))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_zero_unit_is_the_yonos_process_and_const_is_its_scale():
    eps, mu, log_var = torch.randn(3, 2, 4, 8, 8)
    assert torch.equal(ForwardNoise("zero", "unit").n(eps, mu, log_var), eps)
    assert torch.equal(ForwardNoise("lr", "const", 0.3).n(eps, mu, log_var), mu + 0.3 * eps)


def test_kl_is_zero_for_unit_variance_only():
    assert kl_to_unit(torch.zeros(4)) == 0
    assert kl_to_unit(torch.full((4,), 1.0)) > 0
    assert kl_to_unit(torch.full((4,), -1.0)) > 0


def test_noise_field_is_normal_and_addressed_by_position():
    whole = noise_field(3, 4, 0, 0, 200, 150)
    assert torch.equal(noise_field(3, 4, 17, 40, 30, 25), whole[:, 17:47, 40:65])
    count = whole.numel()
    assert abs(whole.mean()) < 4 / math.sqrt(count)
    assert abs(whole.std() - 1) < 4 / math.sqrt(2 * count)
    assert abs((whole**4).mean() - 3) < 4 * math.sqrt(96 / count)
    neighbours = [whole.roll(1, axis) for axis in range(3)]
    for other in (noise_field(4, 4, 0, 0, 200, 150), *neighbours):
        assert abs((whole * other).mean()) < 4 / math.sqrt(count)


# --- resizing and degradations --------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (256, 256), (40, 100)])
def test_bicubic_equals_pil(size):
    x = photo()
    ours = bicubic(x, size)[0].numpy()
    for plane, mine in zip(x[0].numpy(), ours, strict=True):
        image = Image.fromarray(plane)  # mode F: no rounding between PIL's two passes
        pil = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_allclose(mine, pil, atol=1e-5)


def test_back_projection_shrinks_the_error_at_each_step():
    x_h = photo()
    x_l = bicubic_down(x_h, 4)
    errors = [
        float((bicubic_down(back_project(bicubic_up(x_l, 4), x_l, 4, k), 4) - x_l).abs().max())
        for k in range(6)
    ]
    assert all(b < a for a, b in itertools.pairwise(errors))
    assert errors[5] <= 1 / 255


def test_degradation_parameters_are_data_and_shared_by_scales():
    rng = lambda: np.random.default_rng(5)  # noqa: E731
    law = RealLite()
    params = law.sample(rng(), 4)
    assert params == law.sample(rng(), 4)
    x_h = photo().expand(4, -1, -1, -1)
    first, again = (law.apply(x_h, 4, params, 4) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 3, 16, 16)
    easy = law.apply(x_h, 2, params, 4)
    assert easy.shape == (4, 3, 32, 32)
    # Same blur and noise: the easier version shrinks to about the harder one (JPEG is not linear).
    quiet = [Params(blur=p.blur, noise=p.noise, noise_seed=p.noise_seed) for p in params]
    a = bicubic_down(law.apply(x_h, 2, quiet, 4), 2)
    b = law.apply(x_h, 4, quiet, 4)
    other = [Params(blur=p.blur, noise=p.noise, noise_seed=p.noise_seed + 1) for p in params]
    c = law.apply(x_h, 4, other, 4)
    assert (a - b).std() < 0.5 * (c - b).std()


def test_share_of_degraded_images():
    params = RealLite(share=0.25).sample(np.random.default_rng(0), 2000)
    degraded = sum(p != Params() for p in params)
    assert abs(degraded / 2000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
    x = photo()
    clean = RealLite(share=0.0)
    assert torch.equal(
        clean.apply(x, 4, clean.sample(np.random.default_rng(0), 1), 4),
        Bicubic().apply(x, 4, [Params()], 4),
    )


# --- tiles (checks 7 and 8) -----------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "evaluations"), [(32, 25), (16, 25), (0, 16)])
def test_grid_of_the_paper(overlap, evaluations):
    assert Grid(512, 512, 128, overlap, 16, 4).evaluations == evaluations
    assert Grid(128, 128, 128, overlap, 16, 4).evaluations == 1
    assert starts(512, 128, 32) == [0, 96, 192, 288, 384]


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_any_length_is_covered_and_weights_sum_to_one(stride):
    for length, tile, overlap in itertools.product(
        range(stride, 500, 3 * stride), (64, 128), (0, 16, 32)
    ):
        at = starts(length, tile, overlap, stride)
        assert at[0] == 0
        assert at[-1] == max(0, length - tile)
        assert all(s % stride == 0 for s in at)
        assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(at))
        total = torch.zeros(length * 2)
        for start, weight in windows(at, length, tile, overlap, 2):
            total[start : start + len(weight)] += weight
        torch.testing.assert_close(total, torch.ones(length * 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 53), (3, 500), (130, 64)])
def test_identity_function_tiled_is_the_identity(height, width):
    image = torch.rand(3, height, width)
    grid = Grid(height, width, 32, 8, 4, 2)
    done: list[int] = []
    enlarge = lambda tiles, places: tiles.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
    bands = list(stream(image, grid, enlarge, batch=3, advance=done.append))
    assert sum(done) == grid.evaluations
    assert len(bands) == len(grid.rows)
    out = torch.cat(bands, 1)
    assert out.shape == (3, 2 * height, 2 * width)
    torch.testing.assert_close(out, enlarge(image, []), atol=1e-6, rtol=0)


def test_tiled_equals_untiled_where_the_halo_covers_the_receptive_field():
    # Receptive radius of two 3x3 convolutions is 2; the halo is a quarter of the overlap.
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    image = torch.rand(3, 100, 75)
    with torch.no_grad():
        tiled = torch.cat(
            list(stream(image, Grid(100, 75, 32, 8, 1, 1), lambda t, p: net(t), batch=4)), 1
        )
        torch.testing.assert_close(tiled, net(image[None])[0], atol=1e-5, rtol=0)


def test_reflection_works_for_any_size():
    row = torch.arange(3.0).expand(3, 1, 3)
    assert reflect(row, 8)[0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert reflect(torch.ones(3, 1, 1), 4).shape == (3, 4, 4)


# --- networks -------------------------------------------------------------------------------------


def test_latents_get_unit_variance_and_reconstruct_the_same():
    encoder, decoder = TinyEncoder(4, (8, 16)), TinyDecoder(4, (16, 8))
    x = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        before, std = decoder(encoder(x)), encoder(x).std((0, 2, 3))
        normalise_latents(encoder.conv_out, [decoder.conv_in], std)
        z = encoder(x)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(decoder(z), before, atol=1e-5, rtol=0)


def test_no_pixel_sees_beyond_its_neighbourhood():
    """The property behind "tiled equals untiled": no norm over space, no attention."""
    net = TinyUNet(2, 2, (8, 8), blocks=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(1, 2, 64, 64)
    y = x.clone()
    y[..., :4] += 1
    with torch.no_grad():
        changed = (net(x, torch.ones(1)) - net(y, torch.ones(1))).abs().sum((0, 1, 2)).nonzero()
    assert changed.max() < 32


# --- losses (checks 4 to 6) -----------------------------------------------------------------------


def conditional(net: nn.Module, seen: list[torch.Tensor] | None = None):
    def call(z_t, z_l, t):
        x = torch.cat([z_t, z_l], 1)
        if seen is not None:
            seen.append(x)
        return net(x, t)

    return call


def small_unet() -> TinyUNet:
    net = TinyUNet(8, 4, (8, 12), blocks=1)
    nn.init.normal_(net.conv_out.weight, std=0.1)
    return net


def test_scale_distillation_shares_z_t_and_leaves_the_teacher_alone():
    student, teacher = small_unet(), small_unet()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    z_h, z_l, z_easy, eps = torch.randn(4, 2, 4, 8, 8)
    t = torch.tensor([1.0, 0.4])
    seen: list[torch.Tensor] = []
    law = ForwardNoise()
    y = teacher_target(conditional(teacher, seen), z_h, eps, t, z_easy, law)
    z_t = latent.forward(z_h, law.n(eps, z_l, z_l), t)
    denoising_loss(conditional(student, seen), z_t, z_l, t, y).backward()
    assert torch.equal(seen[0][:, :4], seen[1][:, :4])
    assert not torch.equal(seen[0][:, 4:], seen[1][:, 4:])
    assert not y.requires_grad
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


def test_distilling_from_oneself_on_the_same_condition_costs_nothing():
    net = small_unet()
    z_h, z_l, eps = torch.randn(3, 2, 4, 8, 8)
    t = torch.tensor([1.0, 0.3])
    y = teacher_target(conditional(net), z_h, eps, t, z_l)
    z_t = latent.forward(z_h, eps, t)
    with torch.no_grad():
        assert float(denoising_loss(conditional(net), z_t, z_l, t, y)) == 0


def test_denoising_loss_by_hand():
    z_h = torch.zeros(1, 2, 4, 4)
    v = torch.ones(1, 2, 4, 4)
    loss = denoising_loss(lambda z, c, t: v, z_h, z_h, torch.ones(1), z_h)
    assert float(loss) == 1  # z^ = -v at t=1, weight 1
    loss = denoising_loss(lambda z, c, t: v, z_h, z_h, torch.ones(1), z_h, torch.tensor([0.5, 2.5]))
    assert float(loss) == 1.5


def test_channel_weights_follow_the_decoder():
    z = torch.randn(4, 3, 8, 8)
    gains = torch.tensor([1.0, 2.0, 0.0])[:, None, None]
    weights = channel_weights(lambda z: z * gains, z, torch.randn_like(z))
    torch.testing.assert_close(weights, torch.tensor([0.6, 2.4, 0.0]), atol=0.15, rtol=0)


def test_texture_loss_asks_for_contrast_and_not_for_pixels():
    x_h = 2 * photo() - 1
    smooth = 2 * bicubic_up(bicubic_down(photo(), 4), 4) - 1
    assert float(texture_loss(x_h, x_h)) == 0
    assert float(texture_loss(smooth, x_h)) > 3 * float(texture_loss(x_h.roll(1, -1), x_h))
    assert float(decoder_loss(smooth, x_h, 0.0)) == float((smooth - x_h).abs().mean())


@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("spread", [1, 2, 3])
def test_a_regular_pattern_is_no_way_to_make_grain(spread, period):
    """The decoder has no noise: drawing a checkerboard where the truth has grain must not pay."""
    grain = spread * 2 / 255 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    side = period // 2
    board = 1.0 - 2 * ((rows // side + columns // side) % 2)
    contrast = (grain.diff(dim=-1).square().mean() / board.diff(dim=-1).square().mean()).sqrt()
    smooth = torch.zeros_like(grain)
    models = own_registry().models
    weight = max(
        models[name].options["train"]["texture"].default for name in ("edge-sd-sr", "yonos-sr")
    )
    for share in (0.3, 0.5, 1.0):  # of the grain's contrast
        hatched = (share * contrast * board).expand_as(grain)
        assert decoder_loss(smooth, grain, weight) < decoder_loss(hatched, grain, weight)


# --- the tower property: scale distillation removes label variance --------------------------------


def test_scale_distillation_in_a_linear_world():
    """YONOS-SR, eq. 10: excess risk of a student falls by the ratio of its labels' variance.

    A Gaussian world, so all optima are linear and known: y = a x' + noise, x' = x + more noise.
    The student sees x, a perfect teacher sees (x, x'); the predicted ratio of excess risks is
    Var[E[y|x,x'] | x] / Var[y | x].
    """
    generator = torch.Generator().manual_seed(0)
    n, d, runs = 200, 20, 400
    beta = torch.randn(d, generator=generator, dtype=torch.float64)
    ratio_direct = ratio_distilled = 0.0
    easy, hard = (
        0.8,
        0.6,
    )  # spread of the part that only the teacher sees, and of the unpredictable part
    for _ in range(runs):
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        teacher = x @ beta + easy * torch.randn(n, generator=generator, dtype=torch.float64)
        truth = teacher + hard * torch.randn(n, generator=generator, dtype=torch.float64)
        fit = lambda y: torch.linalg.lstsq(x, y[:, None]).solution[:, 0]  # noqa: B023, E731
        ratio_direct += float((fit(truth) - beta).square().sum())
        ratio_distilled += float((fit(teacher) - beta).square().sum())
    predicted = easy**2 / (easy**2 + hard**2)
    assert abs(ratio_distilled / ratio_direct / predicted - 1) < 0.15


# --- metrics --------------------------------------------------------------------------------------


def test_psnr_by_hand():
    x = photo()[0]
    assert psnr_y(x, x, 4) == math.inf
    darker = x.clamp(0, 200 / 255)
    # A grey shift of 10 levels is 10 * 219 / 255 levels of Y in studio range.
    expected = 10 * math.log10(255**2 / (10 * 219 / 255) ** 2)
    assert psnr_y(darker + 10 / 255, darker, 4) == pytest.approx(expected, abs=1e-3)


def test_ssim_equals_scikit_image():
    from skimage.metrics import structural_similarity

    from zoo.metrics import luma

    x = photo()[0]
    y = bicubic_up(bicubic_down(x[None], 4), 4)[0].clamp(0, 1)
    y = (y * 255).round() / 255
    inner = (slice(4, -4), slice(4, -4))
    reference, full = structural_similarity(
        luma(x)[inner].numpy(),
        luma(y)[inner].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    assert ssim_y(x, y, 4) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)
    assert abs(reference - ssim_y(x, y, 4)) < 0.02


def test_metrics_rank_a_sharper_picture_higher():
    x = photo(128, 128)[0]
    worse, better = (bicubic_up(bicubic_down(x[None], s), s)[0] for s in (4, 2))
    for metric in (psnr_y, ssim_y, haarpsi):
        assert metric(better, x, 4) > metric(worse, x, 4)
    with pytest.raises(ValueError, match="shapes differ"):
        psnr_y(x, x[:, 1:], 4)
    with pytest.raises(ValueError, match="border"):
        psnr_y(x[:, :8], x[:, :8], 4)
