"""The conformance suite of ``Detector``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..annotations import write_coco
from ..errors import InputError, NotReadyError, OptionError, ZooError
from ..interfaces import Detections, Detector
from .checks import (
    BAD_IMAGES,
    KINDS,
    check_progress,
    copied,
    make_image,
    picture,
    same,
    shake,
)
from .model import ModelSuite

if TYPE_CHECKING:
    import numpy as np


class DetectorSuite(ModelSuite):
    """Tests of boxes for every kind of image, thresholds, training if there is any, and errors.

    A model for another domain overrides ``known``, and ``scenes`` if it can be fine-tuned.
    """

    interface = "Detector"

    @pytest.fixture
    def scenes(self) -> tuple[list[Any], list[Detections]]:
        """Images and their objects, all of which the model finds after fine-tuning on them.

        Here bright rectangles on a dark background, in images that are not square.
        """
        import numpy as np

        rng = np.random.default_rng(0)
        images, truth = [], []
        for i in range(6):
            image = rng.integers(0, 40, (40, 64, 3)).astype("uint8")
            boxes = [(4 + i, 5, 18 + i, 15), (36, 20 + i, 56, 32 + i)][: 1 + i % 2]
            for left, top, right, bottom in boxes:
                image[top:bottom, left:right] = rng.integers(200, 255, 3)
            images.append(image)
            count = len(boxes)
            truth.append(
                Detections(
                    np.array(boxes, "float32"),
                    np.ones(count, "float32"),
                    np.zeros(count, "int64"),
                    ("thing",),
                )
            )
        return images, truth

    @pytest.fixture
    def known(self, scenes: tuple[list[Any], list[Detections]]) -> tuple[list[Any], list[Any]]:
        """Images with their true boxes, which the loaded model finds; names are compared.

        Override it with photographs of the model's own domain: ``([path], [Detections(...)])``;
        ``([], [])`` if the weights find nothing, as with a random base. By default the drawn
        scenes, under any name.
        """
        return scenes[0], [truth.boxes for truth in scenes[1]]

    @pytest.fixture
    def sample(self, scenes: tuple[list[Any], list[Detections]]) -> Any:
        """The images."""
        return scenes[0]

    def outputs(self, ready: Any, sample: Any) -> Any:
        """Detections, including weak ones."""
        return ready.detect(sample, threshold=0.05)

    def lacks(self, verb: str) -> bool:
        """Does the model lack an optional verb? Then the verb must raise NotReadyError."""
        model = self.once("model", self.load)
        if getattr(type(model), verb) is not getattr(Detector, verb):
            return False
        with pytest.raises(NotReadyError):
            model.pretrain([]) if verb == "pretrain" else model.finetune([], [])
        return True

    @pytest.fixture
    def tuned(self, scenes: tuple[list[Any], list[Detections]]) -> Any:
        """A separate model, fine-tuned on the scenes if it can be."""

        def finetune() -> Any:
            model = self.load()
            if not self.lacks("finetune"):
                kept = copied(scenes)
                assert model.finetune(*scenes, seed=0) is model, "finetune() returns self"
                same(kept, scenes, 0)
            return model

        return self.once("tuned", finetune)

    def test_names(self, model: Any, tuned: Any, sample: Any) -> None:
        """A tuple of words, the same as in its detections."""
        for detector in (model, tuned):
            assert isinstance(detector.names, tuple)
            assert detector.names
            assert all(isinstance(name, str) for name in detector.names)
            for found in detector.detect(sample):
                assert found.names == detector.names

    @pytest.mark.parametrize("kind", KINDS)
    def test_kind_of_image(self, model: Any, kind: str, tmp_path: Path) -> None:
        """Every kind is accepted and not modified; boxes are inside the given image."""
        image = make_image(kind, 33, 24, tmp_path)
        kept = copied(image)
        found = model.detect(image, threshold=0.05)
        same(kept, image)
        if kind == "float NCHW":
            assert isinstance(found, list)
        for one in found if isinstance(found, list) else [found]:
            check_detections(one, 33, 24, 0.05)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (31, 7)])
    def test_size_of_image(self, model: Any, size: tuple[int, int]) -> None:
        """Any sides work, and images without objects."""
        import numpy as np

        width, height = size
        check_detections(model.detect(picture(width, height)), width, height, 0.4)
        blank = np.zeros((height, width, 3), "uint8")
        check_detections(model.detect(blank), width, height, 0.4)

    def test_list(self, model: Any, sample: Any) -> None:
        """A list gives a list, in order, with the same results as one by one."""
        found = model.detect(sample)
        assert isinstance(found, list)
        assert len(found) == len(sample)
        same(found[1], model.detect(sample[1]), 1e-3)
        assert model.detect([]) == []

    def test_kinds_agree(self, model: Any, sample: Any) -> None:
        """The same pixels give the same boxes as an array, a PIL image and a tensor."""
        import torch
        from PIL import Image

        if not hasattr(sample[1], "shape"):
            pytest.skip("the scenes are not arrays")
        array = model.detect(sample[1])
        same(array, model.detect(Image.fromarray(sample[1])), 1e-2)
        tensor = torch.from_numpy(sample[1]).permute(2, 0, 1).float() / 255
        same(array, model.detect(tensor), 1e-2)

    def test_threshold(self, tuned: Any, scenes: tuple[list[Any], list[Detections]]) -> None:
        """A threshold drops lower scores and changes nothing else."""
        import numpy as np

        everything = tuned.detect(scenes[0][1], threshold=0.0)
        check_detections(everything, 64, 40, 0.0, shape_known=hasattr(scenes[0][1], "shape"))
        for threshold in (0.3, 0.6, 0.9):
            found = tuned.detect(scenes[0][1], threshold=threshold)
            assert (found.scores >= threshold).all()
            left = everything.scores >= threshold
            np.testing.assert_allclose(found.boxes, everything.boxes[left], atol=1e-2)

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_wrong_threshold_is_refused(self, model: Any, sample: Any, threshold: float) -> None:
        """A threshold outside [0, 1] is refused."""
        with pytest.raises(OptionError):
            model.detect(sample[0], threshold=threshold)

    def test_finds(self, model: Any, known: tuple[list[Any], list[Any]]) -> None:
        """The loaded model finds the known objects: boxes are x1 y1 x2 y2 in the image's pixels."""
        if not known[0]:
            pytest.skip("known is empty, so the boxes are not tested")
        for image, truth in zip(*known, strict=True):
            check_found(model.detect(image, threshold=0.05), truth)

    def test_learns(self, tuned: Any, scenes: tuple[list[Any], list[Detections]]) -> None:
        """After fine-tuning the model finds the scenes' objects, under their names."""
        if self.lacks("finetune"):
            return
        assert tuned.names == scenes[1][0].names
        for image, truth in zip(*scenes, strict=True):
            check_found(tuned.detect(image, threshold=0.05), truth)

    def test_annotations(
        self, tuned: Any, scenes: tuple[list[Any], list[Detections]], sample: Any, tmp_path: Path
    ) -> None:
        """Fine-tuning accepts boxes from a file: here COCO, with the images in its folder."""
        if self.lacks("finetune"):
            return
        from PIL import Image

        if not hasattr(scenes[0][0], "shape"):
            pytest.skip("the scenes are not arrays")
        files = [tmp_path / f"{i}.png" for i in range(len(scenes[0]))]
        for file, image in zip(files, scenes[0], strict=True):
            Image.fromarray(image).save(file)
        labels = write_coco(tmp_path / "boxes.json", files, scenes[1])
        for images in (None, tmp_path):
            again = self.load().finetune(images, labels, seed=0)
            assert again.names == scenes[1][0].names
            same(self.outputs(tuned, sample), self.outputs(again, sample), 1e-3)

    def test_how_long(self, tuned: Any, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Epochs or steps must be at least 1, and have an effect."""
        for verb, arguments in (("pretrain", scenes[:1]), ("finetune", scenes)):
            if self.lacks(verb):
                continue
            for wrong in ({"epochs": 0}, {"steps": -1}, {"epochs": 1, "steps": 1}):
                with pytest.raises(OptionError):
                    getattr(self.load(), verb)(*arguments, **wrong)
        if not self.lacks("finetune"):
            short = self.load().finetune(*scenes, steps=1, seed=0)
            states = [{k: v.tolist() for k, v in m.state().items()} for m in (short, tuned)]
            assert states[0] != states[1], "steps=1 learns as much as the default"

    def test_finetune_again(
        self, tuned: Any, scenes: tuple[list[Any], list[Detections]], sample: Any
    ) -> None:
        """The same seed gives the same detector."""
        if self.lacks("finetune"):
            return
        shake(6)
        again = self.load().finetune(*scenes, seed=0)
        same(self.outputs(tuned, sample), self.outputs(again, sample), 1e-3)

    def test_tuned_saved_and_loaded(self, tuned: Any, sample: Any, tmp_path: Path) -> None:
        """A saved folder keeps what was learnt."""
        from .. import load

        tuned.save_pretrained(tmp_path / "tuned")
        again = load(tmp_path / "tuned", device="cpu")
        same(self.outputs(tuned, sample), self.outputs(again, sample), 1e-3)

    def test_wrong_labels_are_refused(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Labels must be one ``Detections`` for each image, for at least one image."""
        if self.lacks("finetune"):
            return
        images, truth = scenes
        for wrong in ((images, truth[:-1]), ([], []), (images[:1], [None]), (None, "none.json")):
            with pytest.raises(InputError):
                self.load().finetune(*wrong)

    def test_pretrain(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Pretraining needs only images, returns a report for JSON, and depends on the seed
        alone."""
        if self.lacks("pretrain"):
            return
        report = self.load().pretrain(scenes[0], seed=0)
        assert isinstance(report, Mapping)
        json.dumps(dict(report), allow_nan=False)
        shake(7)
        learnt = [self.load() for _ in range(2)]
        for model in learnt:
            model.pretrain(scenes[0], seed=3)
        same(dict(learnt[0].state()), dict(learnt[1].state()))
        with pytest.raises(ZooError):
            self.load().pretrain([])

    @pytest.mark.parametrize("case", BAD_IMAGES)
    def test_bad_image_is_refused(self, model: Any, case: str) -> None:
        """An unusable image raises InputError, alone and in a list."""
        with pytest.raises(InputError):
            model.detect(BAD_IMAGES[case]())
        with pytest.raises(InputError):
            model.detect([picture(5, 4), BAD_IMAGES[case]()])

    def test_progress(self, scenes: tuple[list[Any], list[Detections]]) -> None:
        """Progress is reported in both kinds of training."""
        if not self.lacks("pretrain"):
            check_progress(lambda progress: self.load().pretrain(scenes[0], progress=progress))
        if not self.lacks("finetune"):
            check_progress(lambda progress: self.load().finetune(*scenes, progress=progress))


def check_detections(
    found: Any, width: int, height: int, threshold: float, *, shape_known: bool = True
) -> None:
    """Assert that ``Detections`` are valid for an image of this size."""
    import numpy as np

    assert isinstance(found, Detections)
    count = len(found)
    assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((count,), np.float32)
    assert (found.labels.shape, found.labels.dtype) == ((count,), np.int64)
    assert isinstance(found.names, tuple)
    if not count:
        return
    assert np.isfinite(found.boxes).all()
    x1, y1, x2, y2 = found.boxes.T
    assert (x1 < x2).all(), "a box has no area, or is not x1 y1 x2 y2"
    assert (y1 < y2).all(), "a box has no area, or is not x1 y1 x2 y2"
    if shape_known:
        assert found.boxes.min() >= 0
        assert (x2 <= width).all(), "a box leaves the image"
        assert (y2 <= height).all(), "a box leaves the image"
    assert (np.diff(found.scores) <= 0).all(), "scores must not increase"
    assert found.scores.min() >= threshold
    assert found.scores.max() <= 1
    assert found.labels.min() >= 0
    assert found.labels.max() < len(found.names)


def check_found(found: Detections, truth: Any) -> None:
    """Assert that each true box (``Detections``, or (N, 4) alone) is found with an IoU above
    0.5."""
    boxes = getattr(truth, "boxes", truth)
    for i, box in enumerate(boxes):
        best = max(range(len(found)), key=lambda k: _iou(found.boxes[k], box), default=None)
        assert best is not None, "nothing is found"
        overlap = _iou(found.boxes[best], box)
        assert overlap > 0.5, f"{box.tolist()}: the best box has an IoU of {overlap:.0%}"
        if isinstance(truth, Detections):
            assert found.names[found.labels[best]] == truth.names[truth.labels[i]]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    both = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / (both - width * height)
