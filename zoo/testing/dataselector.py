"""The conformance suite of ``DataSelector``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ..errors import OptionError, ZooError
from .checks import check_progress, copied, same, shake
from .model import ModelSuite

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SelectionTask:
    """The data and the network that a selector is fitted on."""

    train: Any
    target: Any
    model: Any = None
    loss: Any = None
    relevant: Any = None
    """(N,) bool: which training examples are useful for the target; None skips the test of this."""


class DataSelectorSuite(ModelSuite):
    """Tests of weights, selection, ties, seeds and errors."""

    interface = "DataSelector"
    epochs: ClassVar[int | None] = 3

    @pytest.fixture
    def task(self) -> SelectionTask:
        """Two classes; a third of the training set is shifted and wrongly labelled."""
        import torch

        random = torch.Generator().manual_seed(0)
        x = torch.randn(84, 6, generator=random)
        y = torch.arange(84) % 2
        x[:, 0] += 4.0 * y - 2.0
        relevant = torch.ones(60, dtype=torch.bool)
        relevant[1::3] = False
        wrong = torch.arange(84)[:60][~relevant]
        x[wrong, 1] += 5.0
        labels = y.clone()
        labels[wrong] = 1 - y[wrong]
        data = list(zip(x, labels, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Linear(6, 2)

        def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(output, batch[1], reduction="none")

        return SelectionTask(data[:60], data[60:], model, loss, relevant.numpy())

    def fit(self, model: Any, task: SelectionTask, **keywords: Any) -> Any:
        """Fit on the task, with a copy of its network."""
        from copy import deepcopy

        return model.fit(
            task.train, task.target, model=deepcopy(task.model), loss=task.loss,
            epochs=self.epochs, **keywords,
        )  # fmt: skip

    @pytest.fixture
    def ready(self, model: Any, task: SelectionTask) -> Any:
        """Fitted on the task."""

        def fit() -> Any:
            kept = copied((task.train, task.target))
            fitted = self.fit(model, task)
            assert fitted is model, "fit() returns self"
            same(kept, (task.train, task.target), 0)
            return fitted

        return self.once("ready", fit)

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Weights and a selection."""
        return ready.weights, ready.select(k=5)

    def test_weights(self, ready: Any, task: SelectionTask) -> None:
        """(N,) float32 in [0, 1]; as many ids, if rows have ids."""
        import numpy as np

        weights = ready.weights
        assert isinstance(weights, np.ndarray)
        assert (weights.shape, weights.dtype) == ((len(task.train),), np.float32)
        assert np.isfinite(weights).all()
        assert weights.min() >= 0
        assert weights.max() <= 1
        assert ready.ids is None or len(ready.ids) == len(weights)

    def test_what_is_useful_weighs_more(self, ready: Any, task: SelectionTask) -> None:
        """Useful examples weigh more, in the order of ``train``."""
        if task.relevant is None:
            pytest.skip("the task does not say what is relevant")
        useful, useless = ready.weights[task.relevant], ready.weights[~task.relevant]
        assert useful.mean() > useless.mean(), f"{useful.mean():.3f}, {useless.mean():.3f}"

    def test_select(self, ready: Any, task: SelectionTask) -> None:
        """(k,) int64, heaviest first, ties by index."""
        import numpy as np

        count = len(task.train)
        order = np.argsort(-ready.weights, kind="stable")
        for k in (1, 7, count):
            found = ready.select(k=k)
            assert found.dtype == np.int64
            same(order[:k], found)
        for fraction in (0.25, 0.5, 1.0):
            found = ready.select(fraction=fraction)
            assert abs(len(found) - fraction * count) < 1
            same(order[: len(found)], found)

    def test_select_without_a_number(self, ready: Any) -> None:
        """As many as the method estimates, heaviest first; or OptionError."""
        import numpy as np

        try:
            found = ready.select()
        except OptionError:
            return
        same(np.argsort(-ready.weights, kind="stable")[: len(found)], found)

    def test_ties(self, task: SelectionTask) -> None:
        """Equal examples have equal weights and are selected by index."""
        import numpy as np

        twice = SelectionTask(
            [task.train[0]] * 12, task.target, task.model, task.loss, task.relevant
        )
        fitted = self.fit(self.load(), twice)
        same(np.argsort(-fitted.weights, kind="stable")[:12], fitted.select(k=12))

    def test_seed(self, ready: Any, task: SelectionTask) -> None:
        """The same seed gives the same weights, also when the model was fitted before."""
        shake(3)
        fresh = self.fit(self.load(), task, seed=0)
        same(ready.weights, fresh.weights)
        self.fit(fresh, task, seed=1)
        shake(4)
        same(ready.weights, self.fit(fresh, task, seed=0).weights)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"fraction": 0.5, "k": 3}, {"k": 1000}, {"k": -1}, {"fraction": 1.5},
            {"fraction": -0.1}, {"fraction": float("nan")},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_selection_is_refused(self, ready: Any, wrong: dict[str, Any]) -> None:
        """Exactly one of fraction and k is accepted, within its range."""
        with pytest.raises(ZooError):
            ready.select(**wrong)

    def test_empty_data_is_refused(self, task: SelectionTask) -> None:
        """An empty training or target set is refused."""
        for train, target in (([], task.target), (task.train, [])):
            with pytest.raises(ZooError):
                self.load().fit(train, target, model=task.model, loss=task.loss)

    def test_before_fit(self) -> None:
        """Before ``fit``, weights and selection raise an error."""
        fresh = self.load()
        with pytest.raises(ZooError):
            _ = fresh.weights
        with pytest.raises(ZooError):
            fresh.select(k=1)

    def test_progress(self, task: SelectionTask) -> None:
        """Progress is reported during the fit."""
        check_progress(lambda progress: self.fit(self.load(), task, progress=progress))
