"""Edge-SD-SR: its page's equations and bad input, on tiny networks and on small diffusers ones."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zoo_edge_sd_sr
import zoo_edge_sd_sr.train as recipe
from PIL import Image
from torch import nn
from zoo_edge_sd_sr.model import EdgeSDSR, build_network
from zoo_sr.measuring.tables import less_is_better
from zoo_sr.pixels import bicubic_down, bicubic_up
from zoo_sr.training import photos as pictures
from zoo_sr.training import recipe as sr
from zoo_sr.upscaler import count

import zoo
from zoo.entry import Entry
from zoo.errors import InputError, NotReadyError, OptionError, ZooError
from zoo.experiment import Book
from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest
from zoo.training import loop
from zoo.weights import read_saved

TINY = zoo.info("edge-sd-sr").config  # what users load, not a copy of it
FULL = zoo.info("edge-sd-sr-full").config
SMALL = {
    **TINY,
    "latent": 4,
    "stride": 2,
    "tile": 16,
    "lr_encoder": {"kind": "native", "width": 8},
    "unet": {"widths": [8, 12]},
    "decoder": {"widths": [12, 8]},
    "hr_encoder": {"widths": [8, 12]},
}
DIFFUSERS = {
    **FULL,
    "stride": 4,
    "tile": 32,
    "lr_encoder": {"kind": "native", "widths": [8, 8], "groups": 4},
    "unet": {"widths": [8, 16], "attention": [1], "head": 8, "groups": 4},
    "decoder": {"widths": [8, 8, 8, 8], "groups": 4},
    "hr_encoder": {"widths": [8, 8, 8, 8], "groups": 4},
}
OPTIONS = {
    "batch": 2,
    "crop": 32,
    "texture": 0.2,
    "degradation": "light",
    "degraded": 0.3,
    "distill": False,
    "precision": "float32",
}
WEIGHTS = Path(zoo_edge_sd_sr.__file__).parent / "weights" / "edge-sd-sr"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def entry(config=SMALL, name="edge-sd-sr"):
    return Entry(
        name,
        "SRModel",
        "zoo_edge_sd_sr",
        "ready",
        "a model for tests",
        config=dict(config),
        options=zoo.info("edge-sd-sr").options,
        distribution="edgezoo",
    )


def make(config=SMALL, **options) -> EdgeSDSR:
    """A model with random weights that are large enough to make every part matter."""
    network = build_network(config)
    for p in network.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.1)
    return EdgeSDSR(BuildRequest(entry(config), None, options=options), network)


def load(folder: Path, **options) -> EdgeSDSR:
    """Load a saved folder like zoo.load, without the registry."""
    saved = read_saved(folder).manifest
    return zoo_edge_sd_sr.zoo_build(
        BuildRequest(entry(), folder, saved=saved, options={**saved["options"], **options})
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        Image.fromarray(astronaut()[i * 128 : i * 128 + 128, 160:320]).save(folder / f"{i}.png")
    return folder


def train(photos, out, config=SMALL, **changes) -> Path:
    options = {**OPTIONS, **changes.pop("options", {})}
    request = TrainRequest(
        entry(config), out, **{"data": photos, "steps": 4, "options": options, **changes}
    )
    return zoo_edge_sd_sr.zoo_train(request)


# --- the full size --------------------------------------------------------------------------------


def test_full_size_meets_the_published_totals():
    with torch.device("meta"):
        network = build_network(FULL)
    parts = network.lr_encoder, network.unet, network.decoder
    assert sum(p.numel() for part in parts for p in part.parameters()) == 169_197_279
    assert count(network, 128, 128)[0] == pytest.approx(141.54e9, abs=0.1e9)


def test_sizes_are_what_the_registry_says():
    assert zoo.info("edge-sd-sr").params == 2_611_468
    assert zoo.info("edge-sd-sr-full").params == 169_197_279


def test_tiny_size_is_what_the_card_says():
    with torch.device("meta"):
        network = build_network(TINY)
    parts = network.lr_encoder, network.unet, network.decoder
    assert sum(p.numel() for part in parts for p in part.parameters()) == 2_611_468
    total = sum(p.numel() for p in network.parameters())
    assert 2 * total < 8e6  # bytes of the bundle, which keeps E_H and the first D too


# --- conditioning and gradients (checks 2, 5, 6) --------------------------------------------------


def batch_of(network, size=16):
    generator = torch.Generator().manual_seed(0)
    x_h = 2 * torch.rand(2, 3, 4 * size, 4 * size, generator=generator) - 1
    return sr.Batch(x_h, bicubic_down(x_h, 4), None, generator)


def loss_of(network, batch):
    job: Any = SimpleNamespace(net=network, autocast=lambda: torch.autocast("cpu", enabled=False))
    return recipe.unet_loss(job, batch)


@pytest.mark.parametrize("config", [SMALL, DIFFUSERS], ids=["tiny", "diffusers"])
def test_encoder_learns_and_the_target_does_not(config):
    network: Any = make(config).module
    for part in (network.lr_encoder, network.unet):
        part.requires_grad_(True)
    loss_of(network, batch_of(network, 32)).backward()
    assert all(p.grad is None for p in network.hr_encoder.parameters())
    assert all(p.grad is not None for p in network.unet.parameters() if p.requires_grad)
    assert network.lr_encoder.conv_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("path", ["z_t", "concatenation"])
def test_gradient_reaches_the_encoder_by_each_path(path, monkeypatch):
    monkeypatch.setattr(recipe, "KL_WEIGHT", 0.0)  # it reaches the variance whatever the path
    network: Any = make().module
    network.lr_encoder.requires_grad_(True)
    denoise = network.denoise
    if path == "z_t":
        network.denoise = lambda z_t, mu, t: denoise(z_t, mu.detach(), t)
    else:
        network.denoise = lambda z_t, mu, t: denoise(z_t.detach(), mu, t)
    loss_of(network, batch_of(network)).backward()
    head = network.lr_encoder.conv_out.weight.grad
    assert head[:4].abs().sum() > 0  # the mean, by both
    assert (head[4:].abs().sum() > 0) == (path == "z_t")  # the network never sees the variance


def test_unit_variance_gives_the_variance_head_no_gradient():
    network: Any = make({**SMALL, "var": "unit"}).module
    network.lr_encoder.requires_grad_(True)
    loss_of(network, batch_of(network)).backward()
    assert network.lr_encoder.conv_out.weight.grad[4:].abs().sum() == 0
    assert network.lr_encoder.conv_out.weight.grad[:4].abs().sum() > 0


def test_zero_mean_and_unit_variance_are_the_reverse_only_process():
    network = make({**SMALL, "mean": "zero", "var": "unit"}).module
    x_l, eps = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 8, 8)
    mu, _ = network.encode(x_l)
    expected = -network.denoise(eps, mu, torch.ones(1))
    assert torch.equal(network.one_step(x_l, eps), expected)


def test_residual_encoder_starts_as_the_frozen_one():
    network = build_network({**SMALL, "lr_encoder": {"kind": "residual", "width": 8}})
    x_l = torch.rand(2, 3, 8, 8)
    mu, log_var = network.encode(x_l)
    assert torch.equal(mu, network.encode_hr(bicubic_up(x_l, 4)))
    assert log_var.exp().sqrt().allclose(torch.tensor(0.3), atol=0.01)


# --- inference (checks 7, 8, 10) ------------------------------------------------------------------


def test_noise_scale_zero_does_not_depend_on_the_seed_and_one_does():
    model, x = make(), torch.rand(3, 20, 20)
    assert torch.equal(model.upscale(x, seed=1), model.upscale(x, seed=2))
    noisy = model.upscale(x, seed=1, noise_scale=1.0)
    assert torch.equal(noisy, model.upscale(x, seed=1, noise_scale=1.0))
    assert not torch.equal(noisy, model.upscale(x, seed=2, noise_scale=1.0))


def test_pixels_do_not_depend_on_how_tiles_are_batched():
    model, x = make(), torch.rand(3, 40, 56)
    first = model.upscale(x, seed=3, noise_scale=1.0, tile_batch=1)
    for size in (2, 5, 64):
        assert torch.equal(first, model.upscale(x, seed=3, noise_scale=1.0, tile_batch=size))


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_tiled_equals_untiled(noise_scale):
    # The halo that is thrown away is a quarter of the overlap: 34 pixels, the receptive radius of
    # the small network. Noise is one field, so tiles agree on that too.
    model, x = make(), torch.rand(3, 401, 20)
    whole = model.upscale(x, tile=None, noise_scale=noise_scale)
    tiled = model.upscale(x, tile=280, overlap=136, noise_scale=noise_scale)
    assert model._grid(401, 20, 280, 136).evaluations == 2
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 500), (37, 53), (8, 6)])
def test_any_size_gives_exactly_four_times_as_much(height, width):
    assert make().upscale(torch.rand(3, height, width)).shape == (3, 4 * height, 4 * width)


def test_the_full_size_takes_25_evaluations_as_published():
    with torch.device("meta"):
        network = build_network(FULL)
    model = EdgeSDSR(BuildRequest(entry(FULL), None), network)
    assert model._grid(512, 512, *model._tiling("auto", None)).evaluations == 25
    assert model._grid(128, 128, *model._tiling("auto", None)).evaluations == 1


def test_kinds_of_images_come_back_as_they_went_in():
    model = make()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8))
    made = model.upscale([picture, np.zeros((5, 6, 3), np.uint8), torch.rand(2, 1, 4, 4)])
    assert made[0].size == (28, 36)
    assert made[0].mode == "RGBA"
    assert made[1].shape == (20, 24, 3)
    assert made[1].dtype == np.uint8
    assert made[2].shape == (2, 1, 16, 16)


def test_progress_counts_tiles():
    seen: list[tuple[int, int]] = []
    make().upscale(torch.rand(3, 40, 20), progress=lambda done, total: seen.append((done, total)))
    total = seen[-1][1]
    assert seen == [(i + 1, total) for i in range(total)]
    assert total > 1


def test_back_projection_gives_the_input_back():
    model = make()
    x_h = 0.2 + 0.6 * torch.rand(1, 3, 8, 8)  # far from 0 and 1: nothing is clamped
    x_l = bicubic_up(x_h, 2)[0]  # smooth
    network: Any = model.module
    # A start that bicubic inputs give.
    network.forward = lambda x, eps=None, steps=1: bicubic_up(x, 4)
    made = [model.upscale(x_l, tile=None, consistency=k)[None] for k in range(6)]
    errors = [float((bicubic_down(x, 4) - x_l).abs().max()) for x in made]
    assert errors == sorted(errors, reverse=True)
    assert errors[5] <= 1 / 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 2}, "no scale 2; it has 4"),
        ({"prompt": "a cat"}, "not support prompts"),
        ({"tile": 15}, "multiple of 2"),
        ({"tile": 0}, "tile=0"),
        ({"tile": "big"}, "tile='big': expected a side"),
        ({"overlap": 10}, "from 0 to 8"),
        ({"overlap": 3}, "multiple of 2"),
        ({"tile_batch": 0}, "tile_batch=0"),
        ({"noise_scale": 1.5}, "noise_scale=1.5"),
        ({"noise_scale": float("nan")}, "noise_scale=nan"),
        ({"noise_scale": True}, "noise_scale=True"),
        ({"steps": 0}, "steps=0"),
        ({"consistency": -1}, "consistency=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"color_fix": "wavlet"}, "color_fix='wavlet': expected true, false"),
        ({"tile": "none"}, "'auto' or None"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        make().upscale(torch.rand(3, 4, 4), **options)


def test_numbers_of_numpy_are_numbers():
    model, x = make(), torch.rand(3, 4, 4)
    theirs: dict[str, Any] = {
        "seed": np.int64(3),
        "noise_scale": np.float32(0.5),
        "tile": np.int32(4),
    }
    ours: dict[str, Any] = {"seed": 3, "noise_scale": 0.5, "tile": 4}
    assert torch.equal(model.upscale(x, **theirs), model.upscale(x, **ours))


@pytest.mark.parametrize("tile", [None, 4])
def test_what_comes_back_can_be_a_target_of_training(tile):
    x_h = make().upscale(torch.rand(3, 8, 8), tile=tile)
    x = torch.zeros_like(x_h, requires_grad=True)
    (x * x_h).sum().backward()  # inference tensors would be refused here
    assert x.grad is not None
    assert torch.equal(x.grad, x_h)


def test_estimate_counts_without_running():
    model = make()
    estimate = model.estimate((40, 40))
    assert estimate.evaluations == len(model._grid(40, 40, 16, 4).rows) ** 2
    assert estimate.flops == estimate.evaluations * count(build_network(SMALL), 16, 16)[0]
    assert estimate.memory > 0
    assert estimate.seconds > 0
    wrong: list[Any] = [(0, 4), (4,), 4, None]
    for size in wrong:
        with pytest.raises(InputError, match="size="):
            model.estimate(size)


MEMORY = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
sys.path[:0] = {path!r}
from types import SimpleNamespace
from zoo.hookspecs import BuildRequest
from zoo_edge_sd_sr.model import EdgeSDSR, build_network
config = {config!r}
entry = SimpleNamespace(name="edge-sd-sr", config=config)
model = EdgeSDSR(BuildRequest(entry, None), build_network(config))
image = np.zeros(({height}, 960, 3), np.uint8)
model.upscale(image[:128], tile=128, overlap=16)
out = model.upscale(image, tile=128, overlap=16)
assert out.shape == ({height} * 4, 3840, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_is_bounded_by_a_row_of_tiles():
    """4K output (3840 x 2160), and twice as high: only the memory of input and result may grow."""

    def peak(height: int) -> int:
        code = MEMORY.format(path=sys.path, config=SMALL, height=height)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    low, high = peak(540), peak(1080)
    more = 540 * 960 * 3
    result, inputs = 16 * more, (4 + 4 + 1) * more  # uint8 out; two float copies and uint8 in
    assert high - low < result + inputs + 24e6  # what the allocator keeps back
    # Float results of the whole image, which a band-wise run never holds, would be over that:
    assert 4 * result > result + inputs + 24e6


# --- saving, loading, fidelity, export (checks 9, 11) ---------------------------------------------


@pytest.mark.parametrize("config", [SMALL, DIFFUSERS], ids=["tiny", "diffusers"])
def test_saved_and_loaded_again_gives_the_same_bits(config, tmp_path):
    model, x = make(config), torch.rand(3, 33, 21)
    again = load(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(model.upscale(x), again.upscale(x))
    assert again.config == config
    assert again.scales == (4,)
    assert again.multiple == config["stride"]


def test_fidelity_blends_decoders_and_saving_keeps_both(tmp_path):
    x = torch.rand(3, 12, 12)
    tuned = make()
    folder = tuned.save_pretrained(tmp_path / "model")
    plain, half = load(folder, fidelity=0.0), load(folder, fidelity=0.5)
    base = plain.module.decoder_base.state_dict()
    assert all(torch.equal(v, base[k]) for k, v in plain.module.decoder.state_dict().items())
    assert not torch.equal(half.upscale(x), tuned.upscale(x))
    assert not torch.equal(half.upscale(x), plain.upscale(x))
    again = load(half.save_pretrained(tmp_path / "half"), fidelity=1.0)
    assert torch.equal(again.upscale(x), tuned.upscale(x))


def test_without_weights_it_says_how_to_train():
    with pytest.raises(NotReadyError, match="zoo train edge-sd-sr-full"):
        zoo_edge_sd_sr.zoo_build(BuildRequest(entry(FULL, "edge-sd-sr-full"), None))


def test_half_precision_is_close():
    model, x = make(), torch.rand(3, 16, 16)
    before = model.upscale(x)
    model.module.to(torch.bfloat16)
    assert (model.upscale(x) - before).abs().mean() < 0.02


ORT = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for i in range(2):
    x = np.load(sys.argv[2] + f"/x{i}.npy")
    np.save(sys.argv[2] + f"/y{i}.npy", session.run(None, {"image": x})[0])
assert "torch" not in sys.modules
"""


def test_onnx_gives_the_same_pixels_without_torch(tmp_path):
    import onnx

    model = make()
    path = model.export(tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    assert {"InstanceNormalization", "GroupNormalization"}.isdisjoint(n.op_type for n in graph.node)
    inputs = [torch.rand(1, 3, 32, 48), torch.rand(1, 3, 20, 6)]
    for i, x in enumerate(inputs):
        np.save(tmp_path / f"x{i}.npy", x.numpy())
    subprocess.run([sys.executable, "-c", ORT, str(path), str(tmp_path)], check=True)
    for i, x in enumerate(inputs):
        made = torch.from_numpy(np.load(tmp_path / f"y{i}.npy"))
        torch.testing.assert_close(made[0], model.upscale(x[0], tile=None), atol=1e-3, rtol=0)
    with pytest.raises(OptionError, match="'onnx'"):
        model.export(tmp_path / "model.trt", format="tensorrt")
    with pytest.raises(OptionError, match="multiples of 2"):
        model.export(tmp_path / "model.onnx", size=(3, 4))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, DIFFUSERS], ids=["tiny", "diffusers"])
def test_the_whole_recipe_makes_a_model_that_loads(config, photos, tmp_path):
    options = {"crop": 64, "batch": 1} if config is DIFFUSERS else {}
    folder = train(photos, tmp_path, config, steps=2, options=options)
    assert folder == tmp_path / "model"
    model = load(folder)
    assert model.upscale(torch.rand(3, 16, 16)).shape == (3, 64, 64)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["done"] == ["autoencoder", "lr_encoder", "unet", "decoder"]
    assert report["data"]["photos"] == 2
    assert len(report["data"]["sha256"]) == 64
    assert (tmp_path / "curve.png").stat().st_size > 0
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {
        ".safetensors",
        ".json",
        ".png",
    }


def test_training_learns_one_picture(photos, tmp_path):
    """A small autoencoder on 2 photos: the loss falls well below where it began."""
    train(photos, tmp_path, stage="autoencoder", steps=300, options={"batch": 4})
    curve = [v for stage, _, v in json.loads((tmp_path / "train.json").read_text())["curve"]]
    assert curve[-1] < 0.5 * curve[0]


def test_same_seed_same_weights_and_resumed_equals_uninterrupted(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 2)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    whole = train(photos, tmp_path / "whole", steps=5)
    real = sr.Recipe.batch

    def interrupted(self, draw, crop=None):
        if self.run.stage == "unet" and self.run.step == 3:
            raise KeyboardInterrupt
        return real(self, draw, crop)

    monkeypatch.setattr(sr.Recipe, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(photos, tmp_path / "cut", steps=5)
    monkeypatch.setattr(sr.Recipe, "batch", real)
    with pytest.raises(OptionError, match="add --resume"):
        train(photos, tmp_path / "cut", steps=5)
    with pytest.raises(OptionError, match="seed=0"):
        train(photos, tmp_path / "cut", steps=5, seed=1, resume=True)
    resumed = train(photos, tmp_path / "cut", steps=5, resume=True)
    a, b = (load(folder).state() for folder in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    other = load(train(photos, tmp_path / "other", steps=5, seed=1)).state()
    assert not all(torch.equal(a[k], other[k]) for k in a)


def test_ctrl_c_in_the_first_seconds_loses_nothing(photos, tmp_path, monkeypatch):
    """No checkpoint is due yet; Ctrl-C makes one of a complete step."""
    whole = train(photos, tmp_path / "whole", steps=4)
    real = sr.Recipe.batch

    def interrupted(self, draw, crop=None):
        if self.run.stage == "autoencoder" and self.run.step == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self, draw, crop)

    monkeypatch.setattr(sr.Recipe, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(photos, tmp_path / "cut", steps=4)
    monkeypatch.setattr(sr.Recipe, "batch", real)
    assert json.loads((tmp_path / "cut" / "train.json").read_text())["step"] == 3
    with pytest.raises(OptionError, match="with steps=4, not 9"):
        train(photos, tmp_path / "cut", steps=9, resume=True)
    resumed = train(photos, tmp_path / "cut", steps=4, resume=True)
    a, b = (load(folder).state() for folder in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_damaged_photo_is_named(photos, tmp_path):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(InputError, match=r"torn\.jpg"):
        train(tmp_path, tmp_path / "out")


def test_decoder_stage_touches_the_decoder_only(photos, tmp_path):
    start = make().save_pretrained(tmp_path / "start")
    made = load(train(photos, tmp_path / "out", stage="decoder", init=start))
    before, after = load(start).state(), made.state()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder"}
    x = torch.rand(3, 8, 8)
    restored = load(tmp_path / "out" / "model", fidelity=0.0)
    plain = load(start, fidelity=0.0)
    assert torch.equal(restored.upscale(x), plain.upscale(x))


def test_training_goes_on_from_a_folder_without_zoo_json(photos, tmp_path):
    """--init with a model's name uses the bundle or a download, which the entry describes."""
    start = make().save_pretrained(tmp_path / "start")
    (start / "zoo.json").unlink()
    made = load(train(photos, tmp_path / "out", stage="decoder", init=start))
    assert made.config == SMALL


def test_unet_stage_leaves_the_autoencoder_alone(photos, tmp_path):
    start = make().save_pretrained(tmp_path / "start")
    made = load(train(photos, tmp_path / "out", stage="unet", steps=10, init=start))
    before, after = load(start).state(), made.state()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"unet", "lr_encoder"}


def test_phases_of_the_dedicated_schedule():
    rates = [
        [recipe.phases(p, encoder=e) for p in (0.0, 0.19, 0.2, 0.89, 0.9, 0.95, 1.0)]
        for e in (False, True)
    ]
    unet, encoder = rates
    assert unet[:3] == [1, 1, 1]
    assert unet[3] == pytest.approx(0.15, abs=0.01)
    assert unet[6] == pytest.approx(0)
    assert encoder[:2] == [0, 0]
    assert encoder[2] == pytest.approx(0.2)
    assert encoder[4:] == [0, 0, 0]


def test_scale_distillation_runs_and_resumes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    distill = {"distill": True}
    whole = load(train(photos, tmp_path / "a", steps=3, options=distill)).state()
    real = sr.Recipe.batch

    def interrupted(self, draw, crop=None):
        if self.run.stage == "unet" and self.run.step == 2:
            raise KeyboardInterrupt
        return real(self, draw, crop)

    monkeypatch.setattr(sr.Recipe, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(photos, tmp_path / "b", steps=3, options=distill)
    monkeypatch.setattr(sr.Recipe, "batch", real)
    resumed = load(train(photos, tmp_path / "b", steps=3, options=distill, resume=True)).state()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert "teacher" in json.loads((tmp_path / "a" / "train.json").read_text())["done"]


def test_training_says_what_is_wrong(photos, tmp_path):
    cases: list[tuple[dict, type[ZooError], str]] = [
        ({"data": None}, InputError, "--data"),
        ({"data": tmp_path}, InputError, "nothing to train on"),
        ({"stage": "sleep"}, OptionError, "Stages: autoencoder"),
        ({"stage": "teacher"}, OptionError, "with these options"),
        ({"stage": "unet"}, OptionError, "--init"),
        ({"resume": True}, InputError, "no checkpoint"),
        ({"init": tmp_path}, ZooError, "is not a saved model"),
        ({"options": {"crop": 33}}, OptionError, "multiple of 8"),
        ({"options": {"crop": 256}}, InputError, "at least 256"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            train(photos, tmp_path / "out", **copy.deepcopy(changes))
    assert not (tmp_path / "out").exists()


def test_held_out_photos_are_never_trained_on(tmp_path):
    for i, name in enumerate(["casa-mila", "other"]):
        Image.new("RGB", (64, 64), (100 * i + 50, 0, 0)).save(tmp_path / f"{name}.png")
    photos = pictures.Photos(tmp_path)
    assert set(photos.held_out) == {"casa-mila"}
    assert {int(a[0, 0, 0]) for a in photos.train} == {150}


# --- the bundled weights --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> EdgeSDSR:
    return zoo_edge_sd_sr.zoo_build(BuildRequest(entry(TINY), WEIGHTS))


def test_bundle_is_small_and_its_check_holds(bundled):
    from safetensors.torch import load_file

    assert sum(p.stat().st_size for p in WEIGHTS.iterdir()) < 8e6
    expected = load_file(WEIGHTS / "check.safetensors")["output"]
    with Image.open(WEIGHTS / "check.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(bundled.upscale(x), expected, atol=0.004, rtol=0)


def test_bundle_beats_bicubic_on_a_photograph(bundled):
    """Not a benchmark, a guard: the astronaut is in no training set. Measured margin is larger."""
    from skimage.data import astronaut

    from zoo.metrics import haarpsi, psnr_y, ssim_y

    x_h = torch.from_numpy(astronaut()).permute(2, 0, 1).float()[:, :256, 128:384] / 255
    x_l = (bicubic_down(x_h[None], 4)[0].clamp(0, 1) * 255).round() / 255
    ours, bicubic = bundled.upscale(x_l), bicubic_up(x_l[None], 4)[0]
    assert psnr_y(ours, x_h, 4) > psnr_y(bicubic, x_h, 4) + 0.5
    for metric in (ssim_y, haarpsi):
        assert metric(ours, x_h, 4) > metric(bicubic, x_h, 4) + 0.01
    assert (ours.mean((1, 2)) - x_l.mean((1, 2))).abs().max() < 0.005  # no colour shift


@pytest.mark.parametrize("name", ["edge-sd-sr", "edge-sd-sr-photo"])
def test_bundled_training_is_recorded(name):
    report = json.loads((WEIGHTS.parent / name / "train.json").read_text())
    runs = [*report.get("before", []), report]
    done = [stage for run in runs for stage in run["done"]]
    assert set(done) == {"autoencoder", "lr_encoder", "unet", "decoder"}
    assert done[-1] == "decoder"
    drawn = {point[0] for run in runs for point in run["curve"]}
    assert drawn == set(done)  # the curve of each
    assert all(set(run["data"]["held_out"]) == set(pictures.HELD_OUT) for run in runs)
    first = runs[0]["validation"]
    # The page's rule: the autoencoder at least 4 dB above bicubic.
    assert first["autoencoder"]["psnr_y"] > first["bicubic"]["psnr_y"] + 4
    assert first["model"]["psnr_y"] > first["bicubic"]["psnr_y"]


def test_quick_benchmark_computes_its_claims(tmp_path):
    results = zoo_edge_sd_sr.zoo_bench(BenchRequest(entry(TINY), tmp_path, quick=True))
    assert {"bicubic", "edge-sd-sr"} <= set(results.table)
    assert (tmp_path / results.pictures[0]).stat().st_size > 0
    ours, bicubic = results.table["edge-sd-sr"], results.table["bicubic"]
    assert ours["astronaut PSNR-Y"].mean > bicubic["astronaut PSNR-Y"].mean
    assert [d.name for d in results.data] == ["astronaut"]
    with pytest.raises(InputError, match="neither set5"):
        zoo_edge_sd_sr.zoo_bench(BenchRequest(entry(TINY), tmp_path, data=tmp_path, quick=True))
    with pytest.raises(NotReadyError, match="no trained weights"):
        zoo_edge_sd_sr.zoo_bench(BenchRequest(zoo.info("edge-sd-sr-full"), tmp_path))


def test_ablations_train_every_variant_equally(bundled, tmp_path, monkeypatch):
    import zoo_edge_sd_sr.bench as experiment
    from skimage.data import astronaut

    for i, name in enumerate(["casa-mila", "mine"]):
        Image.fromarray(astronaut()[i * 200 : i * 200 + 264, :264]).save(tmp_path / f"{name}.jpg")
    monkeypatch.setattr(experiment, "ABLATION_STEPS", 2)
    monkeypatch.setattr(experiment, "IMITATION_STEPS", 1)
    monkeypatch.setattr(experiment, "SEEDS", 2)
    trained: list[tuple[str, int, int, tuple[str, ...]]] = []
    real = loop.Run.minimise

    def spied(self, parts, batch, loss):
        stage = self.stages[self.stage]
        trained.append((self.stage, stage.steps, stage.batch, tuple(parts)))
        return real(self, parts, batch, loss)

    monkeypatch.setattr(loop.Run, "minimise", spied)
    request = BenchRequest(entry(TINY), tmp_path / "out", data=tmp_path)
    book = Book(less_is_better)
    experiment.ablations(book, request, bundled, tmp_path)
    rows, claims = book.table(), book.claims
    imitation, joint = (
        ("lr_encoder", 1, 16, ("lr_encoder",)),
        ("unet", 2, 8, ("unet", "lr_encoder")),
    )
    frozen = ("unet", 2, 8, ("unet",))
    assert trained == 2 * [*5 * [imitation, joint], imitation, frozen]
    bicubic = rows.pop("bicubic")
    assert set(rows) == set(experiment.VARIANTS)
    assert all(cells[experiment.ONE].n == 2 for cells in rows.values())
    assert all(cells[experiment.MANY] != cells[experiment.ONE] for cells in rows.values())
    assert 15 < bicubic[experiment.ONE].mean < 40
    assert {c.id for c in claims} == {
        "joint-encoder",
        "bidirectional",
        "bidirectional-8-steps",
        "mean-shift",
        "mean-shift-8-steps",
        "less-noise-8-steps",
        "variance",
    }
