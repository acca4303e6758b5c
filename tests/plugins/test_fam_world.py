"""fam-diffusion: the world of one creature, its counters, the recipe, and what users call."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zoo_fam_diffusion
from PIL import Image
from zoo_fam_diffusion import cli, train
from zoo_fam_diffusion import model as api
from zoo_fam_diffusion.model import FAMDiffusion
from zoo_fam_diffusion.pipeline import tokenizer
from zoo_fam_diffusion.world import CHEEKS, COLOURS, SHAPES, WORDS, Count, count, creatures, draw

import zoo
from zoo import plugins
from zoo.entry import Base
from zoo.errors import InputError, NotReadyError, OptionError, WeightsError
from zoo.hookspecs import BuildRequest, TrainRequest

# Of numpy 2, about diffusers' Euler.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ENTRY = plugins.own_registry().models["fam-diffusion"]
SMALL = {
    **ENTRY.config,
    "text": {**ENTRY.config["text"], "hidden_size": 8, "intermediate_size": 16},
    "vae": {**ENTRY.config["vae"], "block_out_channels": [8, 8], "sample_size": 32},
    "unet": {
        **ENTRY.config["unet"],
        "block_out_channels": [8] * len(ENTRY.config["unet"]["block_out_channels"]),
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
        "sample_size": 16,
    },
}
"""The entry's configuration with few channels: its blocks, at 32 pixels."""


def options(**changed: Any) -> dict[str, Any]:
    return dict(ENTRY.checked_options("load", changed))


# --- the world ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "images"), [(64, 60), (128, 20), (256, 6)])
def test_true_images_are_counted_without_a_mistake(size: int, images: int) -> None:
    these = creatures(np.random.default_rng(size), images)
    for image, cheek in zip(draw(these, size), these.cheek.tolist(), strict=True):
        found = count(image)
        assert found.both
        assert found.cheeks == (tuple(CHEEKS)[cheek],) * 2
        assert found.agree
        assert found.spread < 0.2


def test_all_kinds_are_drawn_and_named_by_the_prompt() -> None:
    these = creatures(np.random.default_rng(0), 300)
    prompts = these.prompts()
    assert len({*prompts}) == len(COLOURS) * len(SHAPES)
    assert {word for text in prompts for word in text.split()} == {*WORDS}
    assert not {*CHEEKS} & {*WORDS}
    assert len({*these.cheek.tolist()}) == len(CHEEKS)


def test_a_larger_drawing_is_the_same_picture() -> None:
    these = creatures(np.random.default_rng(1), 8)
    shrunk = torch.nn.functional.avg_pool2d(draw(these, 256), 4)
    assert float((shrunk - draw(these, 64)).abs().mean()) < 0.01


def test_repetition_and_broken_parts_are_counted() -> None:
    image = draw(creatures(np.random.default_rng(2), 1), 64)[0]
    assert count(torch.cat([image, image], dim=2)).objects == 2
    flat = torch.full_like(image, 0.6)
    assert count(flat) == Count(0, 0, (), 0.0)
    ys, xs = np.nonzero((image.amin(0) > 0.9).numpy())
    left = xs < xs.mean()
    blind = image.clone()
    body = image[:, int(ys.max()) + 3, int(xs.mean())]  # between the cheeks
    for y, x in zip(ys[left], xs[left], strict=True):
        blind[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = body[:, None, None]
    assert count(blind).eyes == 1
    assert not count(blind).both


def test_cheeks_of_two_colours_do_not_agree() -> None:
    one = creatures(np.random.default_rng(3), 1)
    a, b = (draw(replace(one, cheek=torch.tensor([i])), 64)[0] for i in (0, 2))
    middle = round(float(one.centre[0, 0]) * 64)
    found = count(torch.cat([a[..., :middle], b[..., middle:]], dim=2))
    assert {*found.cheeks} == {"maroon", "navy"}
    assert not found.agree
    assert found.spread > 0.4


def test_each_word_is_one_token() -> None:
    words = tokenizer(WORDS)
    ids = words("a magenta triangle creature").input_ids
    assert len(ids) == 6
    assert len({*ids}) == 6
    assert words("A Magenta triangle CREATURE").input_ids == ids
    unknown = words("a fox").input_ids  # a token for each letter
    assert unknown == [*words("a").input_ids[:2], *[words.unk_token_id] * 3, words.eos_token_id]


# --- the recipe -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe() -> Any:
    """The recipe on the small configuration, measured on little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "HELD", 2)
        patch.setattr(train, "SAMPLING", 1)
        patch.setattr(
            train,
            "RECIPE",
            {name: replace(stage, batch=2) for name, stage in train.RECIPE.items()},
        )
        yield replace(ENTRY, config=SMALL)


def fit(entry: Any, out: Path, **changes: Any) -> Path:
    asked = {"steps": 2, "options": dict(entry.checked_options("train", {})), **changes}
    return zoo_fam_diffusion.zoo_train(TrainRequest(entry, out, **asked))


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> Path:
    return fit(recipe, tmp_path_factory.mktemp("fam"))


def load(folder: Path, **changed: Any) -> FAMDiffusion:
    import json

    saved = json.loads((folder / "zoo.json").read_text("utf-8"))
    request = BuildRequest(ENTRY, folder, saved, options=options(**changed))
    return zoo_fam_diffusion.zoo_build(request)


@pytest.fixture(scope="module")
def model(trained) -> FAMDiffusion:
    return load(trained)


def tensors(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_training_is_decided_by_the_seed_and_resumes_bit_for_bit(
    recipe, trained, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "cut"
    stage = train.Lesson.denoiser

    def stop(lesson: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Lesson, "denoiser", stop)
    with contextlib.suppress(KeyboardInterrupt):
        fit(recipe, out)
    monkeypatch.setattr(train.Lesson, "denoiser", stage)
    assert tensors(fit(recipe, out, resume=True)) == tensors(trained)
    assert tensors(fit(recipe, tmp_path / "other", seed=1)) != tensors(trained)


def test_a_trained_model_says_what_it_draws_and_scales_its_latents(trained, model) -> None:
    import json

    report = json.loads((trained.parent / "train.json").read_text("utf-8"))["validation"]
    assert {*report} == {"autoencoder", "native images"}
    assert {*report["native images"]} == {"one", "both", "agree"}
    some = draw(creatures(np.random.default_rng(0), 64), 32)
    z = (
        model.pipe.vae.encode(2 * some - 1).latent_dist.mode()
        * model.pipe.vae.config.scaling_factor
    )
    assert float(z.std()) == pytest.approx(1, abs=0.2)


# --- what users call ------------------------------------------------------------------------------

PROMPT = "a red disc creature"


def test_a_prompt_becomes_an_image_and_the_native_one(model) -> None:
    seen: list[tuple[int, int]] = []
    shown: list[Any] = []
    made = model.generate(
        PROMPT,
        height=64,
        width=96,
        steps=2,
        progress=lambda done, total: seen.append((done, total)),
        preview=shown.append,
    )
    assert made.image.size == (96, 64)
    assert made.native.size == (32, 32) or made.report["native"] == made.native.size[::-1]
    assert shown == [made.native]
    assert seen == [(i, 4) for i in range(1, 5)]
    again = model.generate(PROMPT, height=64, width=96, steps=2)
    assert np.array_equal(np.asarray(again.image), np.asarray(made.image))
    several = model.generate([PROMPT, PROMPT], height=64, width=64, steps=1)
    assert len(several.image) == 2


@pytest.mark.parametrize("scale", [1, 1.5, 2])
def test_an_image_is_enlarged_to_the_size_that_was_asked_for(model, scale) -> None:
    image = draw(creatures(np.random.default_rng(0), 1), 32)[0, :, :27, :]
    made = model.upscale(image, scale=scale, steps=1)
    assert made.shape == (3, round(27 * scale), round(32 * scale))
    assert made.dtype == torch.float32
    grey = Image.new("L", (20, 14), 90)
    assert model.upscale(grey, scale=scale, prompt=PROMPT, steps=1).mode == "L"


def test_what_cannot_be_generated_is_refused(model, monkeypatch) -> None:
    with pytest.raises(InputError, match="nearest size is 64 x 72"):
        model.generate(PROMPT, height=64, width=69)
    with pytest.raises(InputError, match="expected text"):
        model.generate(None, height=64, width=64)
    with pytest.raises(OptionError, match=r"scale=0\.5"):
        model.upscale(Image.new("RGB", (8, 8)), scale=0.5)
    with pytest.raises(OptionError, match="tile=64"):
        model.upscale(Image.new("RGB", (8, 8)), tile=64)
    with pytest.raises(OptionError, match="steps=0"):
        model.generate(PROMPT, height=64, width=64, steps=0)
    with pytest.warns(UserWarning, match="beyond 4"):
        model.upscale(Image.new("RGB", (4, 4)), scale=5, steps=1)
    monkeypatch.setattr(api, "free_memory", lambda device: 10**6)
    monkeypatch.setattr(api, "CHECKED", 64 * 64)
    with pytest.raises(InputError, match=r"need \d+\.\d GB .* 0\.0 GB free"):
        model.generate(PROMPT, height=256, width=256, steps=1)


def test_too_little_memory_says_where_and_what_needs_less(model, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model.pipe.unet, "forward", full)
    with pytest.raises(InputError, match="native pass"):
        model.generate(PROMPT, height=64, width=64, steps=1)


def test_the_pipeline_is_a_folder_that_diffusers_and_base_read(model, tmp_path) -> None:
    folder = tmp_path / "pipe"
    model.pipe.save_pretrained(folder)
    request = BuildRequest(
        replace(ENTRY, config={"guidance": 2}),
        None,
        bases={"base": Base(str(folder), folder, None)},
        options=options(scheduler="euler"),
    )
    loaded = zoo_fam_diffusion.zoo_build(request)
    assert loaded.state() == {}
    call: dict[str, Any] = {"height": 64, "width": 64, "steps": 1, "seed": 1}
    ours = load_with(model, scheduler="euler").generate(PROMPT, **call)
    theirs = loaded.generate(PROMPT, **call)
    assert np.array_equal(np.asarray(ours.image), np.asarray(theirs.image))
    (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match="not a Stable Diffusion"):
        zoo_fam_diffusion.zoo_build(request)
    with pytest.raises(NotReadyError, match="no weights of its own"):
        zoo_fam_diffusion.zoo_build(BuildRequest(ENTRY, None, options=options()))


def load_with(model: FAMDiffusion, **changed: Any) -> FAMDiffusion:
    """The same pipeline with other options."""
    facts: Any = SimpleNamespace(
        entry=ENTRY, options=options(**changed), config=model.config, bases={}
    )
    return FAMDiffusion(facts, model.pipe)


def test_the_command_writes_one_image_or_a_comparison(model, tmp_path, capsys) -> None:
    size = ["--height", "64", "--width", "64", "--steps", "1", "--no-progress"]
    out, native = tmp_path / "out.png", tmp_path / "native.png"
    assert cli.generate(model, [PROMPT, "-o", str(out), "--save-native", str(native), *size]) == 0
    assert zoo_image(out).size == (64, 64)
    assert zoo_image(native).size == (32, 32)
    sheet = tmp_path / "sheet.png"
    assert cli.generate(model, [PROMPT, "-o", str(sheet), "--compare", "--estimate", *size]) == 0
    assert zoo_image(sheet).size == (3 * 64 + 2 * cli.SPACE, 64)
    told = capsys.readouterr().out
    assert "64 x 64, native 32 x 32" in told
    assert "GB beyond the weights" in told


def zoo_image(path: Path) -> Image.Image:
    from zoo import images

    return images.read(path)


def test_the_entry_is_planned_until_it_has_weights() -> None:
    with pytest.raises(NotReadyError, match="planned"):
        zoo.load("fam-diffusion")
