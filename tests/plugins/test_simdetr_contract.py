"""simdetr with its bundled weights: the contract of a Detector, and what it must not find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zoo_simdetr
from PIL import Image
from zoo_simdetr.model import SimDETR

import zoo
from zoo.precision import pairwise_iou
from zoo.testing import DetectorSuite

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
"""Of scikit-image."""
FILES = Path(zoo_simdetr.__file__).parent / "weights" / "simdetr"


@pytest.fixture(scope="module")
def model() -> SimDETR:
    return zoo.load("simdetr")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that learns two bright rectangles, and no more."""
    stages = {k: replace(s, steps=40, lr=2e-3) for k, s in SimDETR.recipe.items()}
    monkeypatch.setattr(SimDETR, "recipe", stages)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* images are few", "ignore:the detector found few objects")
class TestSimDETR(DetectorSuite):
    name = "simdetr"
    load_with: ClassVar[dict[str, Any]] = {"size": 64}

    @pytest.fixture
    def known(self) -> tuple[list[Any], list[Any]]:
        return [], []  # cells are not seen at this size: below

    def test_check_input(self, model: SimDETR) -> None:
        """At the size at which the expected output was made."""
        super().test_check_input(zoo.load("simdetr"))


def test_it_finds_the_white_cell_of_the_check_picture(model: SimDETR) -> None:
    """BloodImage_00007 of BCCD's test images, made smaller; the box is the data set's."""
    with Image.open(FILES / "check.png") as picture:
        sides = np.array([picture.width, picture.height] * 2, np.float32)
    found = model.detect(FILES / "check.png")
    white = found.boxes[found.labels == found.names.index("WBC")]
    whole = np.array([640, 480, 640, 480], np.float32)
    truth = np.array([[193, 92, 387, 285]], np.float32) / whole * sides
    assert len(white) == 1
    assert pairwise_iou(white, truth).max() > 0.7
    assert (found.labels == found.names.index("RBC")).sum() >= 5


def test_photographs_have_hardly_any_confident_cells(model: SimDETR) -> None:
    """The astronaut's round badge may be taken for a white cell."""
    from skimage import data

    found = {name: len(model.detect(getattr(data, name)())) for name in PHOTOGRAPHS}
    assert sum(found.values()) <= 1, found


def test_an_empty_picture_has_none(model: SimDETR) -> None:
    assert len(model.detect(np.zeros((300, 400, 3), np.uint8))) == 0
