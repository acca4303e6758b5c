"""The caller's torch settings change no pixel, and are restored afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo import images
from zoo.isolation import isolated, learning

pytestmark = pytest.mark.slow


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float16 by default": lambda: default_dtype(torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "another device by default": lambda: torch.device("meta"),
}


def state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
    )


@pytest.mark.parametrize("name", STATES)
def test_defaults_inside_and_the_callers_outside(name: str) -> None:
    with STATES[name]():
        before = state()
        with isolated():
            made = torch.ones(2, 2) / 3 @ torch.ones(2, 2)
            assert (made.dtype, made.device.type) == (torch.float32, "cpu")
            assert torch.is_grad_enabled() == before[0]
        assert state() == before
        with pytest.raises(KeyError), isolated():
            raise KeyError
        assert state() == before


@pytest.mark.parametrize("name", STATES)
def test_learning_has_gradients_wherever_it_is_called(name: str) -> None:
    with STATES[name]():
        before = state()
        with learning():
            weight = torch.ones(2, requires_grad=True)
            (weight * torch.ones(2)).sum().backward()
            assert weight.grad is not None
            assert (weight.grad.dtype, weight.grad.tolist()) == (torch.float32, [1.0, 1.0])
        assert state() == before
        with pytest.raises(KeyError), learning():
            raise KeyError
        assert state() == before


def halves(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Work that depends on all of that state, a part of it between the bands."""
    kernel = torch.linspace(-1, 1, 27).reshape(1, 3, 3, 3).expand(3, -1, -1, -1) / 7
    made = torch.nn.functional.conv2d(x[None], kernel, padding=1)[0].sigmoid()
    for band in made.split(3, 1):
        yield (band.flatten(1).T @ torch.full((3, 3), 0.3)).T.reshape(band.shape)


@pytest.mark.parametrize("name", STATES)
def test_no_pixel_changes(name: str) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    tensor = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))
    wanted = images.transform(array, halves), images.transform(tensor, halves)
    looked = images.each(array, lambda x: torch.cat(list(halves(x)), 1))
    with STATES[name]():
        made = images.transform(array, halves), images.transform(tensor, halves)
        seen = images.each(array, lambda x: torch.cat(list(halves(x)), 1))
    assert np.array_equal(made[0], wanted[0])
    assert torch.equal(made[1], wanted[1])
    assert torch.equal(seen, looked)


@pytest.fixture(scope="module")
def upscaled() -> dict[str, tuple[Any, np.ndarray]]:
    return {
        name: (model := zoo.load(name, device="cpu"), enlarged(model))
        for name in ("edge-sd-sr", "yonos-sr")
    }


def enlarged(model: Any) -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    made: np.ndarray = model.upscale(
        array, seed=1, noise_scale=0.5, color_fix=True, consistency=1, tile=8
    )
    return made


@pytest.mark.parametrize("model", ["edge-sd-sr", "yonos-sr"])
@pytest.mark.parametrize("name", STATES)
def test_no_pixel_of_an_enlargement_changes(
    upscaled: dict[str, tuple[Any, np.ndarray]], name: str, model: str
) -> None:
    ready, wanted = upscaled[model]
    with STATES[name]():
        assert np.array_equal(enlarged(ready), wanted)
        assert np.array_equal(enlarged(zoo.load(model, device="cpu")), wanted)
        assert ready.estimate((12, 16)).seconds > 0
