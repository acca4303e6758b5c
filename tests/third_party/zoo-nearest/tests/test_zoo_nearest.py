"""The plugin as its users see it: through zoo, once it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_nearest.model import Nearest

import zoo
from zoo import actions


@pytest.fixture(scope="module")
def model() -> Nearest:
    return zoo.load("nearest-x2")


def test_it_is_listed_and_loads_from_its_bundle(model: Nearest) -> None:
    assert "nearest-x2" in zoo.list_models(interface="SRModel")
    assert isinstance(model, Nearest)
    assert model.source == "bundled"


def test_it_gives_the_output_it_was_published_with(model: Nearest) -> None:
    off = actions.verify(model)
    assert off is not None
    assert off <= 1e-4


def test_without_the_filter_it_repeats_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    large = zoo.load("nearest-x2", strength=0).upscale(image)
    assert np.array_equal(large, image.repeat(2, 0).repeat(2, 1))


def test_a_flat_image_stays_flat(model: Nearest) -> None:
    flat = torch.full((3, 4, 6), 0.25)
    assert torch.allclose(model.upscale(flat), torch.full((3, 8, 12), 0.25))


@pytest.mark.parametrize("wrong", [{"scale": 3}, {"prompt": "a cat"}])
def test_what_it_cannot_do_it_says(model: Nearest, wrong: dict) -> None:
    with pytest.raises(zoo.ZooError, match="nearest-x2"):
        model.upscale(torch.zeros(3, 4, 4), **wrong)


def test_saved_and_loaded_it_is_the_same(model: Nearest, tmp_path: Path) -> None:
    image = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "mine")
    assert torch.equal(zoo.load(tmp_path / "mine").upscale(image), model.upscale(image))
