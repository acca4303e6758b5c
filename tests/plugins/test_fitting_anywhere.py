"""A fit is the same in any context, keeps the previous one on errors, and can be pickled."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from tests.host.test_isolation import STATES, state
from zoo.errors import ZooError

DICE = np.random.default_rng(0)
TEXTS = DICE.normal(size=(3, 8)).astype("float32")
LABELS = np.arange(30) % 3
IMAGES = (TEXTS[LABELS] + 0.5 * DICE.normal(size=(30, 8))).astype("float32")
ROWS = DICE.normal(size=(24, 3)).astype("float32")
SIDES = (ROWS[:, 0] > 0).astype(int)


def align(model: Any = None, seed: int = 0) -> Any:
    model = model or zoo.load("lfa", device="cpu")
    return model.align(IMAGES, TEXTS, labels=LABELS, iterations=5, seed=seed)


def fit(model: Any = None, seed: int = 0) -> Any:
    model = model or zoo.load("bayesian-dps", device="cpu")
    return model.fit((ROWS, SIDES), (ROWS[:8], SIDES[:8]), epochs=2, seed=seed)


FITS: dict[str, tuple[Callable[..., Any], Callable[[Any], np.ndarray]]] = {
    "lfa": (align, lambda model: model.similarity(IMAGES, TEXTS)),
    "bayesian-dps": (fit, lambda model: model.weights),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("where", STATES)
def test_a_fit_is_the_same_wherever_it_is_called(where: str, name: str) -> None:
    make, look = FITS[name]
    wanted = look(make())
    with STATES[where]():
        before = state()
        made = look(make())
        assert state() == before
    assert np.array_equal(made, wanted)


@pytest.mark.parametrize("name", FITS)
def test_features_computed_in_inference_mode(name: str) -> None:
    """Features are often computed in inference mode; such tensors cannot be trained on directly."""
    make, look = FITS[name]
    wanted = look(make())
    with torch.inference_mode():
        tensors = [torch.from_numpy(a) * 1 for a in (IMAGES, TEXTS, ROWS)]
    if name == "lfa":
        model: Any = zoo.load("lfa").align(tensors[0], tensors[1], labels=LABELS, iterations=5)
    else:
        y = torch.from_numpy(SIDES)
        model = zoo.load("bayesian-dps", device="cpu")
        model.fit((tensors[2], y), (tensors[2][:8], y[:8]), epochs=2)
    np.testing.assert_allclose(look(model), wanted, atol=1e-6)


@pytest.mark.parametrize("name", FITS)
def test_a_refused_fit_leaves_the_last_one_whole(name: str) -> None:
    make, look = FITS[name]
    model = make()
    before, report = look(model).copy(), dict(model.config["report"])
    with pytest.raises(ZooError):
        make(model, seed=-1)
    wrong: list[Callable[[], Any]] = (
        [lambda: model.align(IMAGES, TEXTS, labels=LABELS + 9)]
        if name == "lfa"
        else [
            lambda: model.fit((ROWS[:0], SIDES[:0]), (ROWS, SIDES)),
            lambda: model.fit((ROWS, SIDES), (ROWS, SIDES), model=torch.nn.Linear(5, 2)),
        ]
    )
    for call in wrong:
        with pytest.raises(ZooError):
            call()
    assert np.array_equal(look(model), before)
    assert model.config["report"] == report


def test_an_interrupted_fit_leaves_the_last_one_whole() -> None:
    model = fit()
    before = model.weights.copy()

    def stop(done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit((ROWS[:20], SIDES[:20]), (ROWS[:8], SIDES[:8]), epochs=2, progress=stop)
    assert np.array_equal(model.weights, before)
    assert model.network(torch.from_numpy(ROWS)).shape == (24, 2)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_fitted_model_travels(name: str, way: str, tmp_path: Any) -> None:
    """joblib and process pools pickle what they are given."""
    make, look = FITS[name]
    model = make()
    again = pickle.loads(pickle.dumps(model)) if way == "pickle" else copy.deepcopy(model)  # noqa: S301
    assert np.array_equal(look(again), look(model))
    again.save_pretrained(tmp_path / "again")
    assert np.array_equal(look(zoo.load(tmp_path / "again")), look(model))
    make(again, seed=1)  # it can be fitted again, and the original is unchanged
    assert np.array_equal(look(model), look(make()))


@pytest.mark.parametrize("name", ["edge-sd-sr", "yonos-sr"])
def test_an_upscaler_travels(name: str) -> None:
    model = zoo.load(name, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):  # noqa: S301
        assert np.array_equal(again.upscale(picture), model.upscale(picture))


def test_a_warning_points_at_the_callers_line() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        zoo.load("lfa").align(IMAGES[LABELS < 2], TEXTS, labels=LABELS[LABELS < 2], iterations=1)
        three = np.arange(24) % 3
        zoo.load("bayesian-dps", device="cpu").fit(
            (ROWS, three), (ROWS[three < 2], three[three < 2]), epochs=1
        )
    told = [w for w in heard if w.category is UserWarning]
    assert len(told) >= 2
    assert {w.filename for w in told} == {__file__}
