"""The aligner as an estimator of scikit-learn: what ``zoo.load("lfa").estimator(...)`` returns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from .model import LFA


class LFAClassifier(ClassifierMixin, BaseEstimator):
    """Classifies by the texts of the classes; can be cloned, searched and put into a ``Pipeline``.

    ``model``: an aligner, of which each ``fit`` takes a copy, then ``aligner_``. ``texts``,
    ``classes``: as ``LFA.fit`` takes them; the other parameters are options of ``LFA.align``.
    """

    def __init__(
        self,
        model: LFA,
        texts: Any = None,
        classes: Sequence[str] | Sequence[int] | None = None,
        *,
        iterations: int = 100,
        loss: str | None = None,
        safe: bool = True,
        met: bool | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.texts = texts
        self.classes = classes
        self.iterations = iterations
        self.loss = loss
        self.safe = safe
        self.met = met
        self.seed = seed

    def fit(self, X: Any, y: Any) -> Self:
        """Rows X (N,d) or whatever ``LFA.align`` takes, labels y (N,); returns self."""
        options = self.get_params(deep=False)
        self.aligner_: LFA = copy.deepcopy(options.pop("model"))
        self.aligner_.fit(X, y, **options)
        classes = self.aligner_.classes_
        self._order = classes.argsort()  # scorers of scikit-learn take sorted classes for granted
        self.classes_ = classes[self._order]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(N,) the likeliest class of each row."""
        check_is_fitted(self)
        return self.aligner_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N,C) float32, rows summing to 1, in the order of ``classes_``, which is sorted."""
        check_is_fitted(self)
        return self.aligner_.predict_proba(X)[:, self._order]
