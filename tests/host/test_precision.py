"""Average precision by hand-made cases, and the common metrics of detectors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import precision, protocols
from zoo.annotations import write_coco
from zoo.errors import InputError, NotReadyError, UsageError
from zoo.interfaces import Detections


def seen(*boxes: tuple[float, ...], scores: tuple[float, ...] = (), label: int = 0) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores or (1.0,) * n, np.float32),
        np.full(n, label, np.int64),
        ("a", "b"),
    )


TRUTH = [seen((0, 0, 10, 10), (20, 20, 40, 40)), seen((5, 5, 25, 15))]


def test_ap_of_perfect_empty_and_shifted_predictions() -> None:
    perfect = precision.average_precision(TRUTH, TRUTH)
    assert (perfect.ap, perfect.ap50, perfect.classes) == (1.0, 1.0, {"a": 1.0})
    nothing = precision.average_precision([seen(), seen()], TRUTH)
    assert (nothing.ap, nothing.ap50) == (0.0, 0.0)
    # moved by a fifth of their width: IoU 0.8 / 1.2 = 2/3, which counts at .50 to .65
    moved = [seen((2, 0, 12, 10), (24, 20, 44, 40)), seen((9, 5, 29, 15))]
    found = precision.average_precision(moved, TRUTH)
    assert found.ap50 == 1.0
    assert found.ap == pytest.approx(0.4)
    other = [seen(*one.boxes.tolist(), label=1) for one in TRUTH]
    assert precision.average_precision(other, TRUTH).ap50 == 0.0


def test_ap_with_a_false_box_first_and_one_missing() -> None:
    """Found 1 of 3, after a false one: precision 1/2 up to recall 1/3, so at 34 of 101 points."""
    found = [seen((60, 60, 70, 70), (0, 0, 10, 10), scores=(0.9, 0.8)), seen()]
    assert precision.average_precision(found, TRUTH).ap50 == pytest.approx(34 / 101 / 2)
    twice = [seen((0, 0, 10, 10), (0, 0, 10, 10), scores=(0.9, 0.8)), seen()]
    assert precision.average_precision(twice, TRUTH).ap50 == pytest.approx(34 / 101)


def test_recall_and_precision_of_boxes() -> None:
    boxes = [np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32), np.zeros((0, 4), np.float32)]
    assert precision.recall(boxes, [t.boxes for t in TRUTH]) == (1 / 3, 1 / 2)


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], np.float32)
    wanted = np.array([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]])
    assert np.allclose(precision.pairwise_iou(boxes, boxes), wanted)


# --- zoo eval and zoo bench Detector --------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images with TRUTH's boxes and one more; two are for testing."""
    for name in ("x", "y", "z"):
        Image.new("RGB", (50, 50)).save(tmp_path / f"{name}.png")
    images = [tmp_path / f"{name}.png" for name in ("x", "y", "z")]
    write_coco(tmp_path / "boxes.json", images, [*TRUTH, seen((1, 1, 9, 9))])
    return tmp_path


class Oracle:
    """Knows the boxes of x and y by their order."""

    names: tuple[str, ...] = ("a", "b")

    def __init__(self, *found: Detections) -> None:
        self.found = itertools.cycle(found)

    def detect(self, image: Any, *, threshold: float | None = None) -> Detections:
        return next(self.found)


def test_a_detector_is_measured_by_image_and_by_class(data: Path) -> None:
    protocol = protocols.of("Detector")
    items = protocol.items(data / "boxes.json", most=2)
    assert protocol.described(data, items).size == "2 images, 3 objects, 2 classes"
    first, second = TRUTH[0], seen()
    model = Oracle(first, first, first, second, second)  # warm up, then twice for each image
    made = {one.item: one for one in protocol.measure(model, items)}
    assert [*made] == ["x.png", "y.png", "class: a"]
    assert made["x.png"].scores["recall"] == made["x.png"].scores["precision"] == 1
    assert made["y.png"].scores["recall"] == 0
    assert "precision" not in made["y.png"].scores
    assert (made["x.png"].note, made["y.png"].note) == ("", "1 of 1 missed, 0 false")
    assert made["y.png"].quality < made["x.png"].quality
    assert made["class: a"].scores["AP50"] == pytest.approx(67 / 101)  # 2 of 3 found, none false
    assert {*made["x.png"].scores, *made["class: a"].scores} == {*protocol.HIGHER}


def test_only_test_images_count_if_there_is_a_list(data: Path) -> None:
    labels = data / "annotations"
    labels.mkdir()
    for name in ("x", "y", "z"):
        (labels / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>a</name><bndbox>"
            "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
            "</annotation>"
        )
    protocol = protocols.of("Detector")
    (data / "images").mkdir()
    for name in ("x", "y", "z"):
        (data / f"{name}.png").rename(data / "images" / f"{name}.png")
    assert len(protocol.items(data)) == 3
    (data / "test.txt").write_text("y\nz.png\n")
    assert [item.name for item in protocol.items(data)] == ["y.png", "z.png"]
    (data / "test.txt").write_text("ghost\n")
    with pytest.raises(InputError, match=r"test.txt names 'ghost', which has no image"):
        protocol.items(data)


def test_a_broken_image_is_left_out_and_other_classes_are_refused(data: Path) -> None:
    protocol = protocols.of("Detector")
    (data / "y.png").write_bytes(b"no image")
    failed: list[InputError] = []
    items = protocol.items(data / "boxes.json", skip=failed.append)
    assert [item.name for item in items] == ["x.png", "z.png"]
    assert len(failed) == 1
    model = Oracle(TRUTH[0])
    model.names = ("otter",)
    with pytest.raises(NotReadyError, match="finds otter, and none of the data's classes: a, b"):
        [*protocol.measure(model, items)]
    with pytest.raises(UsageError, match="--data"):
        protocol.items(None)
