"""The conformance suite of ``VLAligner``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..errors import NotReadyError, ZooError
from .checks import check_progress, copied, picture, rows, same, shake
from .model import ModelSuite


class VLAlignerSuite(ModelSuite):
    """Tests of fitting on pairs, similarity, embeddings and errors.

    Override ``pairs`` with raw images and texts (lists) for a method without features.
    """

    interface = "VLAligner"

    @pytest.fixture
    def pairs(self) -> tuple[Any, Any]:
        """Images and texts, row by row: here float features with a linear relation and noise."""
        import numpy as np

        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(96, 6))
        images = hidden @ rng.normal(size=(6, 24)) + 0.1 * rng.normal(size=(96, 24))
        texts = hidden @ rng.normal(size=(6, 16)) + 0.1 * rng.normal(size=(96, 16))
        return images.astype("float32"), texts.astype("float32")

    @pytest.fixture
    def ready(self, model: Any, pairs: tuple[Any, Any]) -> Any:
        """Fitted on the pairs."""

        def fit() -> Any:
            kept = copied(pairs)
            fitted = model.align(*pairs)
            assert fitted is model, "align() returns self"
            same(kept, pairs)
            return fitted

        return self.once("ready", fit)

    @pytest.fixture
    def sample(self, pairs: tuple[Any, Any]) -> Any:
        """A few rows: five images, seven texts."""
        return rows(pairs[0], range(5)), rows(pairs[1], range(7))

    def outputs(self, ready: Any, sample: Any) -> Any:
        """The similarities."""
        return ready.similarity(*sample)

    def test_similarity(self, ready: Any, sample: Any) -> None:
        """Similarities are (N, M) float32 and finite."""
        import numpy as np

        found = ready.similarity(*sample)
        assert isinstance(found, np.ndarray)
        assert (found.shape, found.dtype) == ((5, 7), np.float32)
        assert np.isfinite(found).all()
        one = ready.similarity(rows(sample[0], [0]), rows(sample[1], [0]))
        assert one.shape == (1, 1)

    def test_higher_is_better(self, ready: Any, pairs: tuple[Any, Any]) -> None:
        """Pairs are more similar than other combinations."""
        import numpy as np

        count = min(len(pairs[0]), 16)
        found = ready.similarity(rows(pairs[0], range(count)), rows(pairs[1], range(count)))
        own = np.diag(found).mean()
        others = found[~np.eye(count, dtype=bool)].mean()
        assert own > others, f"own pairs {own:.3f}, others {others:.3f}"

    def test_each_pair_stands_alone(self, ready: Any, sample: Any) -> None:
        """A similarity does not depend on the other rows."""
        import numpy as np

        whole = ready.similarity(*sample)
        part = ready.similarity(rows(sample[0], [3]), rows(sample[1], [2, 5]))
        np.testing.assert_allclose(whole[3:4, [2, 5]], part, atol=1e-4)

    def test_embeddings(self, ready: Any, sample: Any) -> None:
        """Embeddings are (N, d) float32 of unit norm in one space, or raise NotReadyError."""
        import numpy as np

        try:
            images, texts = ready.embed_images(sample[0]), ready.embed_texts(sample[1])
        except NotReadyError:
            return
        assert images.dtype == texts.dtype == np.float32
        assert (len(images), len(texts)) == (5, 7)
        assert images.ndim == texts.ndim == 2
        assert images.shape[1] == texts.shape[1]
        for found in (images, texts):
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)

    def test_align_again(self, ready: Any, sample: Any, pairs: tuple[Any, Any]) -> None:
        """The same pairs give the same model."""
        shake(5)
        same(self.outputs(ready, sample), self.outputs(self.load().align(*pairs), sample), 1e-4)

    def test_labels(self, pairs: tuple[Any, Any]) -> None:
        """Labels assign several images to one text, which is then the most similar one."""
        import numpy as np

        labels = [i % 4 for i in range(24)]
        images = rows(pairs[0], [label + 4 * (i // 8) for i, label in enumerate(labels)])
        fitted = self.load().align(images, rows(pairs[1], range(4)), labels=labels)
        found = fitted.similarity(images, rows(pairs[1], range(4)))
        assert found.shape == (24, 4)
        own = np.eye(4, dtype=bool)[labels]
        assert found[own].mean() > found[~own].mean(), "the labels are not used"

    def test_predict_proba(self, ready: Any, sample: Any) -> None:
        """Probabilities are (N, M) float32, sum to 1 in each row, and are highest for the most
        similar text."""
        import numpy as np

        found = ready.predict_proba(*sample)
        assert (found.shape, found.dtype) == ((5, 7), np.float32)
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
        similar = ready.similarity(*sample)
        chosen = np.take_along_axis(similar, found.argmax(1)[:, None], 1)[:, 0]
        np.testing.assert_allclose(
            chosen, similar.max(1), rtol=1e-5, atol=1e-5
        )  # texts may be equal

    def test_classes(self, tmp_path: Path) -> None:
        """The texts of a fit with labels are saved, and are the default of ``predict_proba``."""
        import numpy as np

        import zoo

        images, words, labels = _raw()
        fitted = self.load()
        assert fitted.classes == ()
        try:
            fitted.align(images, words, labels=labels)
        except ZooError:
            return  # it takes features only
        assert fitted.classes == tuple(words)
        again = zoo.load(fitted.save_pretrained(tmp_path / "fitted"), **self.load_with)
        assert again.classes == tuple(words)
        found = again.predict_proba(images)
        np.testing.assert_allclose(found, fitted.predict_proba(images, words), atol=1e-4)

    def test_wrong_pairs_are_refused(self, pairs: tuple[Any, Any]) -> None:
        """Unequal numbers without labels, labels without a text, too few labels and no rows are
        refused."""
        images, texts = pairs
        few = rows(texts, range(3))
        some = rows(images, range(4))
        with pytest.raises(ZooError):
            self.load().align(some, few)
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1, 2, 3])
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1, -1, 0])
        with pytest.raises(ZooError):
            self.load().align(some, few, labels=[0, 1])
        with pytest.raises(ZooError):
            self.load().align(rows(images, []), rows(texts, []))

    def test_wrong_features_are_refused(self, ready: Any, pairs: tuple[Any, Any]) -> None:
        """NaN and a wrong number of columns are refused."""
        import numpy as np

        images, texts = pairs
        if not isinstance(images, np.ndarray):
            pytest.skip("the pairs are raw")
        with pytest.raises(ZooError):
            self.load().align(images * np.float32("nan"), texts)
        with pytest.raises(ZooError):
            ready.similarity(images[:2] * np.float32("nan"), texts[:2])
        with pytest.raises(ZooError):
            ready.similarity(images[:2, :-1], texts[:2])

    def test_raw_rows(self, tmp_path: Path) -> None:
        """Images and strings are refused with an error, or accepted; then so are the same images in
        a folder by class and a JSONL file.
        """
        images, classes, labels = _raw()
        words = [classes[label] for label in labels]
        lines = []
        for i, (image, text) in enumerate(zip(images, words, strict=True)):
            (tmp_path / "rows" / text).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "rows" / text / f"{i}.png")
            lines.append(json.dumps({"image": f"rows/{text}/{i}.png", "text": text}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
        try:
            listed = self.load().align(images, words)
        except ZooError:
            return  # it takes features only
        found = listed.similarity(images, classes)
        assert found.shape == (6, 3)
        for file in (tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl")):
            same(found, self.load().align(file).similarity(images, classes), 1e-4)
        sorted_in = self.load().align(tmp_path / "rows")
        assert sorted(sorted_in.classes) == sorted(classes), "the folders' names are the classes"
        assert sorted_in.similarity(images, classes).shape == (6, 3)

    def test_before_align(self, sample: Any) -> None:
        """A model that must be fitted first raises an error; a trained one answers."""
        import numpy as np

        try:
            found = self.load().similarity(*sample)
        except ZooError:
            return
        assert np.isfinite(found).all()

    def test_progress(self, pairs: tuple[Any, Any]) -> None:
        """Progress is reported."""
        check_progress(lambda progress: self.load().align(*pairs, progress=progress))


def _raw() -> tuple[list[Any], list[str], list[int]]:
    """Six images, three texts, and the index of each image's text."""
    from PIL import Image

    images = [Image.fromarray(picture(16 + i, 16)) for i in range(6)]
    return images, ["a red dot", "a blue dot", "a green dot"], [0, 1, 2] * 2
