"""yonos-sr-full: Stable Diffusion becomes a one-step upscaler; several processes train it.

The checkpoint is tiny and random, in the folder format of the real ones.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo_yonos_sr
from PIL import Image
from zoo_sr import latent
from zoo_sr.training import photos as pictures
from zoo_sr.training import recipe as sr
from zoo_sr.upscaler import count
from zoo_yonos_sr.full import YonosSRFull, diffusers_network, log_nsr, read_base, timestep
from zoo_yonos_sr.full_train import FULL_RECIPE, recipe
from zoo_yonos_sr.train import train_scale, tune_decoder

import zoo
from zoo import actions
from zoo.entry import Base
from zoo.errors import NotReadyError, OptionError, UsageError, WeightsError
from zoo.hookspecs import BuildRequest, TrainRequest
from zoo.testing import LoopbackHub
from zoo.training import loop

ENTRY = zoo.info("yonos-sr-full")
SD = ENTRY.config["scheduler"]
OPTIONS = {
    "scale": "4",
    "batch": 2,
    "micro": 0,
    "crop": 32,
    "texture": 0.2,
    "degradation": "light",
    "degraded": 0.3,
    "precision": "float32",
}


# --- a Stable Diffusion checkpoint of a few kilobytes ---------------------------------------------


def save_checkpoint(folder: Path, **unet) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(  # type: ignore[attr-defined]
        **{
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            **unet,
        }
    ).save_pretrained(folder / "unet")
    AutoencoderKL(  # type: ignore[attr-defined]
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae")
    DDIMScheduler(  # type: ignore[attr-defined]
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def network(checkpoint):
    config, tensors = read_base(checkpoint)
    made = diffusers_network({"network": "diffusers", "scale": 4, **config})
    made.load_state_dict(tensors, strict=True)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        crop = astronaut()[i * 128 : i * 128 + 128, 128:256]
        Image.fromarray(crop).save(folder / f"{i}.png")
    return folder


def train(checkpoint, photos, out, options=None, **changes) -> Path:
    asked = {
        "data": photos,
        "steps": 2,
        "bases": {"base": Base("org/sd", checkpoint, "0" * 40)} if checkpoint else {},
        "options": OPTIONS | (options or {}),
        **changes,
    }
    return zoo_yonos_sr.zoo_train(TrainRequest(ENTRY, out, **asked))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(zoo.load(folder).state())


# --- the paper's size -----------------------------------------------------------------------------


def test_the_sizes_are_those_of_stable_diffusion_2_1():
    with torch.device("meta"):
        full = diffusers_network(ENTRY.config)
    size = [
        sum(p.numel() for p in part.parameters())  # type: ignore[misc, union-attr]
        for part in (full.unet.net, full.unet, full.hr_encoder, full.decoder)
    ]
    assert size[0] == pytest.approx(865.9e6, abs=0.1e6)
    assert sum(size[1:]) == ENTRY.params
    assert (full.factor, full.latent, full.stride) == (8, 4, 16)
    flops, _ = count(full, 128, 128)
    assert flops == pytest.approx(804e9 + 1117e9 + 2515e9, rel=0.01)


def test_the_recipe_ends_where_it_is_told(checkpoint, photos, tmp_path):
    assert list(FULL_RECIPE) == ["x2", "x4", "x8", "decoder"]
    for scale, crop in (("2", 32), ("8", 64)):
        request = TrainRequest(
            ENTRY,
            tmp_path,
            data=photos,
            bases={"base": Base("org/sd", checkpoint)},
            options=OPTIONS | {"scale": scale, "crop": crop},
        )
        job = recipe(request)
        assert (job.net.scale, "x8" in job.run.stages) == (int(scale), scale == "8")
        assert job.model is YonosSRFull


# --- the start from the base ----------------------------------------------------------------------


def test_widening_changes_nothing_before_training(checkpoint, network):
    """And v of a base that predicts v is our v, at the timestep of the same SNR."""
    from diffusers import UNet2DConditionModel

    old = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    z, anything = torch.randn(2, 4, 16, 16), 100 * torch.randn(2, 4, 16, 16)
    t = torch.tensor([0.4, 1.0])
    prompt = torch.zeros(2, 77, 16)
    with torch.no_grad():
        theirs = old(z, timestep(t, network.unet.log_nsr), prompt).sample
        ours = network.denoise(z, anything, t)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_encoder_and_decoder_are_the_vae(checkpoint, network):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(checkpoint / "vae").eval()
    x = 2 * torch.rand(1, 3, 32, 32) - 1
    with torch.no_grad():
        z = 0.5 * vae.encode(x).latent_dist.mean
        torch.testing.assert_close(network.encode_hr(x), z, atol=1e-6, rtol=0)
        torch.testing.assert_close(network.decode(z), vae.decode(z / 0.5).sample)
        assert torch.equal(network.encode(x, 1), network.encode_hr(x))  # scale 1: z_l = z_h


def test_the_empty_prompt_is_encoded_once(checkpoint, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    assert not read_base(checkpoint)[1]["unet.prompt"].any()  # without a text encoder
    folder = save_checkpoint(tmp_path)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=3,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    encoder.save_pretrained(folder / "text_encoder")
    tokens = torch.tensor([[0] + 76 * [1]])
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state
    torch.testing.assert_close(read_base(folder)[1]["unet.prompt"], expected)


# --- one schedule for both sizes ------------------------------------------------------------------


def test_timesteps_have_the_same_signal_to_noise_ratio():
    table = log_nsr(SD)
    assert len(table) == 1000
    # alpha is 0.0683 at Stable Diffusion's last timestep
    assert 1 / math.sqrt(1 + math.exp(table[-1])) == pytest.approx(0.0683, abs=1e-4)
    ends = timestep(torch.tensor([0.0, 1.0]), table)
    assert ends.tolist() == [0.0, 999.0]
    steps = torch.tensor([1, 10, 250, 500, 998])
    ratio = torch.tensor([math.exp(table[i] / 2) for i in steps])  # sigma / alpha
    t = 2 / math.pi * torch.atan(ratio)
    torch.testing.assert_close(timestep(t, table), steps.float(), atol=1e-2, rtol=0)
    assert torch.allclose(-torch.log(latent.snr(t)), 2 * torch.log(ratio), atol=1e-3)
    assert (timestep(torch.linspace(0, 1, 99), table).diff() >= 0).all()


def test_other_schedules():
    zero = log_nsr({**SD, "rescale_betas_zero_snr": True})
    assert zero[-1] == pytest.approx(30)  # all noise, as far as we count
    assert zero[0] == pytest.approx(log_nsr(SD)[0])
    assert timestep(torch.tensor([1.0]), zero) == 999
    assert log_nsr({**SD, "beta_schedule": "linear"})[-1] > log_nsr(SD)[-1]
    with pytest.raises(WeightsError, match="'squaredcos_cap_v2'; known are"):
        log_nsr({**SD, "beta_schedule": "squaredcos_cap_v2"})


# --- bases that are something else ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 9}, "in_channels=9, and the VAE has 4"),  # inpainting
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 40,
            },
            "addition_embed_type='text_time'",  # SDXL
        ),
    ],
)
def test_a_base_of_another_kind_is_refused(tmp_path, unet, message):
    with pytest.raises(WeightsError, match=message):
        read_base(save_checkpoint(tmp_path, **unet))


def test_a_damaged_base_is_refused_and_nothing_is_drawn_by_chance(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(tmp_path)
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "kept.json")
    with pytest.raises(WeightsError, match=r"scheduler_config\.json"):
        read_base(folder)
    (folder / "kept.json").rename(folder / "scheduler" / "scheduler_config.json")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    with pytest.raises(WeightsError, match="AutoencoderTiny"):
        read_base(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_out.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"conv_out\.bias"):
        read_base(folder)


def test_without_weights_or_base_it_says_what_to_type(checkpoint, photos, tmp_path):
    with pytest.raises(NotReadyError, match="--base org/sd --data PATH -o runs/yonos-sr-full"):
        zoo.load("yonos-sr-full", base="org/sd")
    with pytest.raises(NotReadyError, match="zoo train yonos-sr-full --base ORG/REPO"):
        zoo.load("yonos-sr-full")
    with pytest.raises(UsageError, match="--base ORG/REPO"):
        train(None, photos, tmp_path / "out")
    with pytest.raises(UsageError, match="give either"):
        train(checkpoint, photos, tmp_path / "out", init=tmp_path)
    with pytest.raises(OptionError, match="uses no base"):
        actions.train(zoo.info("yonos-sr"), tmp_path / "out", base="org/sd")
    with pytest.raises(OptionError, match=r"batch=2 is not a whole number of micro-batches of 3"):
        train(checkpoint, photos, tmp_path / "out", options={"micro": 3})
    with pytest.raises(OptionError, match="Stage 'x4' continues from earlier ones"):
        train(checkpoint, photos, tmp_path / "out", stage="x4")
    assert not (tmp_path / "out").exists()


# --- training -------------------------------------------------------------------------------------

CHAIN = """
import sys
import torch, zoo
from zoo.cli import main
try:
    zoo.load("yonos-sr-full", base="org/sd")
except zoo.ZooError as error:
    print(error)
sys.argv[1:] = [
    "train", "yonos-sr-full", "--base", "org/sd", "--data", {photos!r}, "-o", {out!r},
    "--steps", "2", "--quiet", "--device", "cpu", "-O", "batch=2", "-O", "crop=32",
]
try:
    main()
except SystemExit as end:
    assert not end.code, end
model = zoo.load({out!r} + "/model")
print(type(model).__name__, tuple(model.upscale(torch.rand(3, 13, 9)).shape))
"""


def test_from_a_hub_id_to_an_enlarged_picture(checkpoint, photos, tmp_path):
    """Downloaded by id, trained, saved; the folder no longer needs the base."""
    out = tmp_path / "out"
    with LoopbackHub() as hub:
        commit = hub.add("org/sd", checkpoint)
        code = CHAIN.format(photos=str(photos), out=str(out))
        done = hub.run(code, home=tmp_path / "home", timeout=300, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "no trained weights for the base 'org/sd'" in done.stdout
    assert "YonosSRFull (3, 52, 36)" in done.stdout
    saved = json.loads((out / "model" / "zoo.json").read_text())
    assert saved["bases"] == {}  # nothing to fetch when it is loaded
    assert saved["config"]["base"] == {"id": "org/sd", "revision": commit}
    report = json.loads((out / "train.json").read_text())
    assert report["done"] == ["x2", "x4", "decoder"]
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".safetensors", ".json", ".png"}
    model = zoo.load(out / "model")  # another process, no Hub at all
    assert (model.color_fix, model.noise_scale, model.scales) == (True, 1.0, (4,))
    x = torch.rand(3, 8, 8)
    assert torch.equal(model.upscale(x), model.upscale(x))
    assert not torch.equal(model.upscale(x), model.upscale(x, seed=1))
    assert model.estimate((8, 8)).seconds > 0
    with pytest.raises(OptionError, match="leave out base="):
        zoo_yonos_sr.zoo_build(
            BuildRequest(
                ENTRY, out / "model", saved=saved, bases={"base": Base("org/sd", checkpoint)}
            )
        )


def test_each_stage_trains_its_part_and_leaves_the_base_alone(checkpoint, photos, tmp_path):
    _, before = read_base(checkpoint)
    twice = {"scale": "2"}
    after = tensors_of(train(checkpoint, photos, tmp_path / "a", twice, stage="x2"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"unet"}
    assert after["unet.net.conv_in.weight"][:, 4:].any()  # z_l has begun to count
    tuned = tensors_of(
        train(None, photos, tmp_path / "b", twice, stage="decoder", init=tmp_path / "a" / "model")
    )
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], tuned[name])}
    assert changed == {"decoder"}
    assert any(not torch.equal(after[n], tuned[n]) for n in tuned if n.startswith("decoder.post"))


@pytest.mark.parametrize(("stage", "part"), [("x2", "unet"), ("decoder", "decoder")])
def test_checkpointing_computes_again_and_changes_nothing(
    checkpoint, photos, tmp_path, stage, part
):
    made, calls = [], []
    for on in (False, True):
        options = OPTIONS | {"scale": "2", "checkpointing": on}
        request = TrainRequest(
            ENTRY,
            tmp_path,
            data=photos,
            steps=2,
            bases={"base": Base("org/sd", checkpoint)},
            options=options,
        )
        job = recipe(request)
        job.run.begin(stage)
        seen: list[int] = []
        block = getattr(job.net, part).net.mid_block.resnets[1]
        block.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.is_grad_enabled()))
        train_scale(job, 2) if stage == "x2" else tune_decoder(job)
        made.append(job.net.state_dict())
        calls.append(sum(seen))
    assert calls == [2, 4]  # once, then twice, for each of two steps
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


@pytest.mark.parametrize(
    ("precision", "options", "stage", "at"),
    [
        ("float32", {"micro": 1}, None, "x4"),  # the student's stage, which has a teacher
        ("float16", {"crop": 16, "batch": 1}, "x2", "x2"),  # the loss scale continues too
    ],
)
def test_resumed_equals_uninterrupted(
    checkpoint, photos, tmp_path, monkeypatch, precision, options, stage, at
):
    monkeypatch.setattr(loop, "EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    asked = {"options": {"precision": precision, **options}, "stage": stage, "steps": 3}
    whole = train(checkpoint, photos, tmp_path / "whole", **asked)
    real = sr.Recipe.batch

    def interrupted(self, draw, crop=None):
        if self.run.stage == at and self.run.step == 2:
            raise KeyboardInterrupt
        return real(self, draw, crop)

    monkeypatch.setattr(sr.Recipe, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, photos, tmp_path / "cut", **asked)
    monkeypatch.setattr(sr.Recipe, "batch", real)
    resumed = train(checkpoint, photos, tmp_path / "cut", **asked, resume=True)
    a, b = tensors_of(whole), tensors_of(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(value.isfinite().all() for value in a.values())
    moved = a["unet.net.conv_in.weight"] != read_base(checkpoint)[1]["unet.net.conv_in.weight"]
    assert moved.any()


def test_photos_that_do_not_fit_in_memory_give_the_same_crops(photos, monkeypatch):
    kept = pictures.Photos(photos)
    monkeypatch.setattr(pictures, "MEMORY", 1)
    read = pictures.Photos(photos)
    assert {type(a) for a in read.train} == {pictures.OnDisk}
    crops = [p.crops(np.random.default_rng(0), 4, 32) for p in (kept, read)]
    assert torch.equal(*crops)


# --- several processes ----------------------------------------------------------------------------

LAUNCH = """
import json, sys
from dataclasses import replace
from pathlib import Path
import zoo, zoo_yonos_sr
from zoo.hookspecs import TrainRequest
entry = zoo.info("yonos-sr")
config = {**entry.config, **json.loads(sys.argv[3])}
request = TrainRequest(
    replace(entry, config=config), Path(sys.argv[2]), data=Path(sys.argv[1]), steps=3,
    options=json.loads(sys.argv[4]),
)
zoo_yonos_sr.zoo_train(request)
"""
SMALL = {
    "latent": 4,
    "tile": 16,
    "encoder": {"widths": [8, 12]},
    "unet": {"widths": [8, 12]},
    "decoder": {"widths": [12, 8]},
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_two_processes_train_as_one_does(photos, tmp_path):
    """The same micro-batches, so the same gradient but for the order of its sums.

    The environment is what ``accelerate launch`` gives each of its processes.
    """
    options = OPTIONS | {"batch": 4, "micro": 1, "autoencoder": True}
    script = tmp_path / "train.py"
    script.write_text(LAUNCH)
    settings = [json.dumps(SMALL), json.dumps(options)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(photos), str(tmp_path / "2"), *settings],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert json.loads((tmp_path / "2" / "train.json").read_text())["processes"] == 2
    entry = zoo.info("yonos-sr")
    request = TrainRequest(
        replace(entry, config={**entry.config, **SMALL}),
        tmp_path / "1",
        data=photos,
        steps=3,
        options=options,
    )
    zoo_yonos_sr.zoo_train(request)
    two, one = tensors_of(tmp_path / "2" / "model"), tensors_of(tmp_path / "1" / "model")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    curves = [json.loads((tmp_path / n / "train.json").read_text())["curve"] for n in "12"]
    for a, b in zip(*curves, strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], rel=1e-4)


def test_the_class_is_the_one_that_the_registry_names():
    assert ENTRY.class_ == f"{YonosSRFull.__module__}:{YonosSRFull.__name__}"
