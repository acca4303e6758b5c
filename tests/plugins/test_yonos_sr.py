"""YONOS-SR: the network, the chain of magnifications, its controls, its bundled weights."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_yonos_sr
from PIL import Image
from torch import nn
from zoo_sr.measuring import quality, regression, tables
from zoo_sr.measuring.tables import METRICS, less_is_better
from zoo_sr.pixels import bicubic_down, bicubic_up
from zoo_sr.training import recipe as sr
from zoo_sr.training.photos import Photos
from zoo_yonos_sr import controls
from zoo_yonos_sr.model import YonosSR, build_network
from zoo_yonos_sr.train import YonosRecipe, recipe, scale_loss

import zoo
from zoo import training
from zoo.entry import Entry
from zoo.errors import InputError, NotReadyError, OptionError
from zoo.experiment import Book
from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest
from zoo.testing import SRModelSuite
from zoo.training import loop, whole_curve
from zoo.weights import read_saved

TINY = zoo.info("yonos-sr").config
SMALL = {
    **TINY,
    "latent": 4,
    "tile": 16,
    "encoder": {"widths": [8, 12]},
    "unet": {"widths": [8, 12]},
    "decoder": {"widths": [12, 8]},
}
OPTIONS = {
    "autoencoder": True,
    "scale": "4",
    "batch": 2,
    "crop": 32,
    "texture": 0.2,
    "degradation": "light",
    "degraded": 0.3,
    "precision": "float32",
}
WEIGHTS = Path(zoo_yonos_sr.__file__).parent / "weights" / "yonos-sr"


class TestYonosSR(SRModelSuite):
    name = "yonos-sr"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def entry(config=SMALL, name="yonos-sr"):
    return Entry(
        name,
        "SRModel",
        "zoo_yonos_sr",
        "ready",
        "a model for tests",
        config=dict(config),
        options=zoo.info("yonos-sr").options,
        distribution="edgezoo",
    )


def make(config=SMALL, **options) -> YonosSR:
    """A model with random weights that are large enough to make every part matter."""
    network = build_network(config)
    for p in network.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.1)
    return YonosSR(BuildRequest(entry(config), None, options=options), network)


def load(folder: Path) -> YonosSR:
    saved = read_saved(folder).manifest
    return zoo_yonos_sr.zoo_build(
        BuildRequest(entry(), folder, saved=saved, options=saved["options"])
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(["mine", "casa-mila"]):
        Image.fromarray(astronaut()[i * 128 : i * 128 + 264, 100:364]).save(folder / f"{name}.png")
    return folder


def recipe_of(photos, out, config=SMALL, **changes) -> YonosRecipe:
    options = {**OPTIONS, **changes.pop("options", {})}
    request = TrainRequest(
        entry(config), out, **{"data": photos, "steps": 3, "options": options, **changes}
    )
    return recipe(request)


def train(photos, out, config=SMALL, **changes) -> Path:
    return recipe_of(photos, out, config, **changes).fit_chain()


# --- the network ----------------------------------------------------------------------------------


def test_sizes_are_what_the_registry_says():
    network = build_network(TINY)
    parts = network.hr_encoder, network.unet, network.decoder
    assert (
        sum(p.numel() for part in parts for p in part.parameters()) == zoo.info("yonos-sr").params
    )
    assert 2 * sum(p.numel() for p in network.parameters()) < 8e6  # bytes of the bundle


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_any_size_is_enlarged_exactly(scale):
    model = make({**SMALL, "scale": scale})
    assert model.scales == (scale,)
    for h, w in ((7, 11), (37, 5), (1, 1)):
        assert model.upscale(torch.rand(3, h, w)).shape == (3, scale * h, scale * w)


def test_the_seed_chooses_the_noise_and_tiles_share_it():
    model = make()
    x = torch.rand(3, 40, 28)
    noisy: dict[str, Any] = {"noise_scale": 1.0}
    assert torch.equal(model.upscale(x, **noisy), model.upscale(x, seed=0, **noisy))
    assert not torch.equal(model.upscale(x, **noisy), model.upscale(x, seed=1, **noisy))
    assert torch.equal(model.upscale(x), model.upscale(x, seed=1))  # starts at the mean: no chance
    whole = model.upscale(x, tile=None, **noisy)
    tiled = model.upscale(x, tile=32, overlap=16, **noisy)
    inner = (slice(None), slice(40, 120), slice(40, 72))  # what no image border reaches
    torch.testing.assert_close(whole[inner], tiled[inner], atol=2e-3, rtol=0)


def test_an_image_at_scale_1_is_its_own_condition():
    """Eq. 1: nothing to enlarge, so z_l = z_h."""
    network = make().module
    x = 2 * torch.rand(1, 3, 16, 16) - 1
    torch.testing.assert_close(network.encode(x, 1), network.encode_hr(x))


def test_colour_fix_gives_the_colours_of_the_input_back():
    x_h = torch.rand(1, 3, 32, 32)
    x_l = bicubic_down(bicubic_up(x_h, 4), 8)[0]
    model = make()
    network: Any = model.module
    network.forward = lambda x, eps=None, steps=1: bicubic_up(x, 4) + 0.2  # a colour cast
    plain, fixed = (
        model.upscale(x_l, tile=None, color_fix=fix).clamp(0, 1) for fix in (False, True)
    )
    true = bicubic_up(x_l[None], 4)[0].clamp(0, 1)
    assert (plain - true).mean() > 0.1
    assert (fixed - true).abs().max() < 2 / 255


# --- scale distillation ---------------------------------------------------------------------------


def test_teacher_and_student_see_the_same_z_t_and_only_the_student_learns(photos, tmp_path):
    """Eq. 6: the first channels of both inputs agree, the others do not."""
    job = recipe_of(photos, tmp_path)
    job.run.begin("x4")
    job.scale, job.easier = 4, 2
    job.net.unet.requires_grad_(True)
    teacher = job.new_unet().requires_grad_(False)
    before = [p.clone() for p in teacher.parameters()]
    seen: list[torch.Tensor] = []
    for unet in (teacher, job.net.unet):
        unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    batch = job.batch(job.run.draw("any", 2))
    assert batch.x_l.shape[-1] * 2 == batch.x_l_easy.shape[-1]  # type: ignore[union-attr]
    scale_loss(job, batch, torch.ones(4), teacher).backward()
    of_teacher, of_student = seen
    assert torch.equal(of_teacher[:, :4], of_student[:, :4])
    assert not torch.allclose(of_teacher[:, 4:], of_student[:, 4:])
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in job.net.unet.parameters())


def test_regression_control_meets_the_last_level_only(photos, tmp_path):
    job = recipe_of(photos, tmp_path)
    job.run.begin("x2")
    job.scale = 2
    seen: list[torch.Tensor] = []
    job.net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[1].detach()))
    scale_loss(job, job.batch(job.run.draw("any", 2)), torch.ones(4), None, last_only=True)
    assert torch.equal(seen[0], torch.ones(2))


@pytest.mark.parametrize(
    ("scale", "stages"),
    [
        ("2", ["autoencoder", "x2", "decoder"]),
        ("4", ["autoencoder", "x2", "x4", "decoder"]),
        ("8", ["autoencoder", "x2", "x4", "x8", "decoder"]),
    ],
)
def test_the_chain_ends_at_the_scale_asked_for(photos, tmp_path, scale, stages):
    folder = train(photos, tmp_path, steps=2, options={"scale": scale, "crop": 64})
    model = load(folder)
    n = int(scale)
    assert model.upscale(torch.rand(3, 8, 8)).shape == (3, 8 * n, 8 * n)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["done"] == stages
    assert f"x{n}, frozen decoder" in report["validation"]


def test_resumed_in_the_middle_of_the_chain_equals_uninterrupted(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    whole = load(train(photos, tmp_path / "whole")).state()
    real = sr.Recipe.batch

    def interrupted(self, draw, crop=None):
        if self.run.stage == "x4" and self.run.step == 2:
            raise KeyboardInterrupt
        return real(self, draw, crop)

    monkeypatch.setattr(sr.Recipe, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(photos, tmp_path / "cut")
    monkeypatch.setattr(sr.Recipe, "batch", real)
    resumed = load(train(photos, tmp_path / "cut", resume=True)).state()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_each_stage_touches_its_own_part(photos, tmp_path):
    start = make().save_pretrained(tmp_path / "start")
    for stage, part in (("x2", "unet"), ("x4", "unet"), ("decoder", "decoder")):
        made = load(train(photos, tmp_path / stage, stage=stage, init=start)).state()
        before = load(start).state()
        assert {k.split(".")[0] for k in made if not torch.equal(made[k], before[k])} == {part}


def test_the_autoencoder_of_the_sibling_can_be_kept(photos, tmp_path):
    """``--init edge-sd-sr -O autoencoder=false``: E and D unchanged, the rest new."""
    sibling = Path(zoo_yonos_sr.__file__).parents[1] / "zoo_edge_sd_sr/weights/edge-sd-sr"
    job = recipe_of(
        photos, tmp_path, TINY, init=sibling, options={"autoencoder": False, "crop": 64}
    )
    assert list(job.run.stages) == ["x2", "x4", "decoder"]
    _, tensors = training.read_saved(sibling, TINY)
    own = job.net.state_dict()
    assert torch.equal(own["hr_encoder.conv_in.weight"], tensors["hr_encoder.conv_in.weight"])
    assert torch.equal(own["decoder.conv_in.weight"], tensors["decoder_base.conv_in.weight"])
    assert not torch.equal(own["unet.conv_in.weight"], tensors["unet.conv_in.weight"])


def test_a_run_remembers_the_runs_before_it(photos, tmp_path):
    train(photos, tmp_path / "a", stage="autoencoder")
    train(photos, tmp_path / "b", stage="x2", init=tmp_path / "a" / "model")
    report = json.loads((tmp_path / "b" / "train.json").read_text())
    assert [run["done"] for run in report["before"]] == [["autoencoder"]]
    stages = {stage for stage, _, _ in whole_curve(tmp_path / "b" / "train.json")}
    assert stages == {"autoencoder", "x2"}


def test_training_says_what_is_wrong(photos, tmp_path):
    with pytest.raises(OptionError, match="no stage 'x8' with these options"):
        train(photos, tmp_path / "out", stage="x8")
    with pytest.raises(OptionError, match="multiple of 8"):
        train(photos, tmp_path / "out", options={"crop": 30})


# --- baselines and controls -----------------------------------------------------------------------


def test_the_regression_baseline_starts_as_bicubic_and_is_found_again(photos, tmp_path):
    run = recipe_of(photos, tmp_path)
    x_l = torch.rand(3, 9, 7)
    fresh = regression.PlainSR(4, 8, 1)
    torch.testing.assert_close(
        regression.enlarge(fresh, x_l), bicubic_up(x_l[None], 4)[0].clamp(0, 1), atol=1e-6, rtol=0
    )
    made = regression.regression(run, tmp_path / "kept", 2)
    again = regression.regression(run, tmp_path / "kept", 2)
    assert torch.equal(regression.enlarge(made, x_l), regression.enlarge(again, x_l))
    with pytest.raises(InputError, match="another steps"):
        regression.regression(run, tmp_path / "kept", 3)
    ours = zoo.info("yonos-sr").params or 0
    size = sum(p.numel() for p in regression.PlainSR().parameters())
    assert 0.85 * ours < size < 1.15 * ours  # "of the same size" is meant


def test_a_regression_baseline_that_learnt_nothing_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "LEARNS", 2)
    monkeypatch.setattr(regression, "RECIPE", sr.Stage(2, 1e6, 2, crop=32))
    with pytest.raises(InputError, match="no better than bicubic after 3 steps"):
        regression.regression(recipe_of(photos, tmp_path), tmp_path / "kept", 3)
    assert not (tmp_path / "kept").exists()


def test_an_interrupted_regression_baseline_goes_on(photos, tmp_path, monkeypatch):
    """By Ctrl-C in each step; after the last one nothing is left to train."""
    monkeypatch.setattr(regression, "RECIPE", sr.Stage(2, 4e-4, 2, crop=32))
    whole = regression.regression(recipe_of(photos, tmp_path), tmp_path / "whole", 2)
    for step in range(2):
        run, folder = recipe_of(photos, tmp_path), tmp_path / f"cut{step}"
        calls = iter(range(2))

        def batch(draw, crop=None, plain=run.batch, calls=calls, step=step):
            if next(calls) == step:
                signal.raise_signal(signal.SIGINT)
            return plain(draw, crop)

        with monkeypatch.context() as patch:
            patch.setattr(run, "batch", batch)
            with pytest.raises(KeyboardInterrupt):
                regression.regression(run, folder, 2)
        made = regression.regression(run, folder, 2)
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in made.state_dict().items())
        assert [path.name for path in folder.iterdir()] == [regression.FILE]


def test_the_textured_baseline_goes_on_from_the_plain_one(photos, tmp_path):
    run = recipe_of(photos, tmp_path)
    plain = regression.regression(run, tmp_path / "kept", 2)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    made = regression.textured(run, plain, tmp_path / "kept", 2, 0.4)
    again = regression.textured(run, plain, tmp_path / "kept", 2, 0.4)
    x_l = torch.rand(3, 9, 7)
    assert torch.equal(regression.enlarge(made, x_l), regression.enlarge(again, x_l))
    assert not torch.equal(regression.enlarge(made, x_l), regression.enlarge(plain, x_l))
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    with pytest.raises(InputError, match="another texture"):
        regression.textured(run, plain, tmp_path / "kept", 2, 0.5)


def test_the_regression_baseline_gets_better_than_bicubic(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "RECIPE", sr.Stage(60, 2e-3, 4, crop=32))
    monkeypatch.setattr(regression, "LEARNS", 60)  # refuses a baseline that is no better
    regression.regression(recipe_of(photos, tmp_path), tmp_path / "kept", 60)
    assert (tmp_path / "kept" / regression.FILE).is_file()


def test_controls_compare_like_with_like(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "WIDTHS", (8, 12))
    budget = controls.Budget(teacher=3, student=2, decoder=2, batch=2, seeds=2)
    trained: list[tuple[str, int]] = []
    real = controls.Controls.student

    def spied(self, stage, steps, **how):
        trained.append((stage, steps))
        return real(self, stage, steps, **how)

    monkeypatch.setattr(controls.Controls, "student", spied)
    request = BenchRequest(entry(), tmp_path, data=photos)
    book = Book(less_is_better)
    controls.controls(book, request, photos, make().module, budget)
    rows, claims = book.table(), book.claims
    assert trained[: len(trained) // 2] == trained[len(trained) // 2 :]
    assert sorted(trained[: len(trained) // 2]) == sorted(
        [("x2", 3), *[("x4", 2)] * 5, ("x4", 5), *[("x8", 2)] * 3]
    )
    assert rows[controls.DISTILLED][tables.X4].n == 2
    assert len(claims) == 13
    assert rows["bicubic"][tables.X4].mean > 10
    tuned, plain = rows[controls.TUNED], rows[controls.DISTILLED]
    assert tuned[controls.ERROR] == plain[controls.ERROR]  # the UNet is frozen
    assert tuned[tables.X4] != plain[tables.X4]  # and the decoder was not


# --- the bundled weights --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> YonosSR:
    return zoo_yonos_sr.zoo_build(BuildRequest(entry(TINY), WEIGHTS))


def test_bundle_beats_bicubic_on_a_photograph(bundled):
    """Not a benchmark, a guard: the astronaut is in no training set. Measured margin is larger."""
    from skimage.data import astronaut

    from zoo.metrics import haarpsi, psnr_y, ssim_y

    x_h = torch.from_numpy(astronaut()).permute(2, 0, 1).float()[:, :256, 128:384] / 255
    x_l = (bicubic_down(x_h[None], 4)[0].clamp(0, 1) * 255).round() / 255
    ours, bicubic = bundled.upscale(x_l), bicubic_up(x_l[None], 4)[0]
    assert psnr_y(ours, x_h, 4) > psnr_y(bicubic, x_h, 4) + 0.4
    for metric in (ssim_y, haarpsi):
        assert metric(ours, x_h, 4) > metric(bicubic, x_h, 4) + 0.01
    assert (ours.mean((1, 2)) - x_l.mean((1, 2))).abs().max() < 0.01  # no colour shift


def test_bundled_training_is_recorded():
    report = json.loads((WEIGHTS / "train.json").read_text())
    assert report["done"] == ["x2", "x4", "decoder"]
    assert "autoencoder" in {stage for run in report["before"] for stage in run["done"]}
    made = report["validation"]
    assert made["model"]["psnr_y"] > made["bicubic x4"]["psnr_y"]


def test_quick_benchmark_computes_its_claims(tmp_path, monkeypatch):
    from zoo_yonos_sr import bench, linear

    run = partial(linear.run, counts=(400,), runs=2)  # the linear world has separate tests
    monkeypatch.setattr(bench.linear, "run", run)  # type: ignore[attr-defined]
    results = zoo_yonos_sr.zoo_bench(BenchRequest(entry(TINY), tmp_path, quick=True))
    assert {"bicubic", "yonos-sr", "yonos-sr, fidelity setting"} <= set(results.table)
    assert all((tmp_path / name).stat().st_size > 0 for name in results.pictures)
    assert {f"astronaut {k}" for k in METRICS} <= set(results.table["yonos-sr"])
    assert quality.PLAIN not in results.table  # no photographs to train it on
    with pytest.raises(InputError, match="neither set5"):
        zoo_yonos_sr.zoo_bench(BenchRequest(entry(TINY), tmp_path, data=tmp_path, quick=True))
    with pytest.raises(NotReadyError, match="no trained weights"):
        zoo_yonos_sr.zoo_bench(BenchRequest(zoo.info("yonos-sr-full"), tmp_path))


def test_benchmark_with_photographs_trains_the_baseline(photos, tmp_path):
    request = BenchRequest(
        entry(SMALL), tmp_path, data=photos, quick=True, options={"baseline": str(tmp_path / "b")}
    )
    asked = recipe_of(photos, tmp_path)
    made = quality.baselines_for(request, asked, tmp_path / "scratch")
    for file in (regression.FILE, regression.TEXTURED):
        assert (tmp_path / "b" / file).is_file()
    assert not (tmp_path / "scratch").exists()
    folder = make().save_pretrained(tmp_path / "model")
    measured = quality.Quality(request, made, folder)
    x_h = Photos(photos).validation()
    assert x_h is not None
    book = Book(less_is_better)
    measured.measure(book, {"held-out photos": list(x_h)})
    table, claims = book.table(), book.claims
    assert {quality.PLAIN, quality.CONSISTENT} <= set(table)
    assert {quality.SHARPENED, quality.TEXTURED} <= set(table)
    rules = [c.rule for c in claims if "regression network" in c.statement]
    assert rules  # a quick run's baseline has learnt nothing, so no claim may hold against it
    assert all("trained for 8 steps, too few to say anything" in rule for rule in rules)
    found = {c.id for c in claims}
    assert {"fidelity-near-regression", "best-perceptual-score"} <= found
    assert {"fidelity-near-regression-held-out-photos", "one-step-matches-8"} <= found
