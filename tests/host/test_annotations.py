"""Boxes of data sets: the right pixels from each format, and clear errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.annotations import Annotations, pairs, read, write_coco
from zoo.errors import InputError, MissingDependencyError
from zoo.interfaces import Detections


def picture(path: Path, width: int = 40, height: int = 20, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **how)
    return path


def detections(*boxes: Any, labels: Any = None, names: tuple[str, ...] = ("cat", "dog")) -> Any:
    count = len(boxes)
    return Detections(
        np.array(boxes, "float32").reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype="float32"),
        np.array(labels or [0] * count, "int64"),
        names,
    )


def boxes(found: Annotations, at: int = 0) -> Any:
    return found.truth[at].boxes.tolist()


# --- COCO -----------------------------------------------------------------------------------------


def coco(folder: Path, **changes: Any) -> Path:
    """One image of 40 x 20 with one dog, as COCO; ``changes`` replace whole lists."""
    picture(folder / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 18, "bbox": [4, 5, 10.5, 8]}],
        **changes,
    }
    (folder / "boxes.json").write_text(json.dumps(data), "utf-8")
    return folder / "boxes.json"


def box(*bbox: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 3, "bbox": [*bbox], **more}


def test_coco(tmp_path: Path) -> None:
    found = read(coco(tmp_path))
    assert found.images == (tmp_path / "a.png",)
    assert found.names == ("cat", "dog")
    assert boxes(found) == [[4, 5, 14.5, 13]]
    (truth,) = found.truth
    assert (truth.labels.tolist(), truth.scores.tolist()) == ([1], [1])
    assert (truth.boxes.dtype, truth.labels.dtype) == (np.float32, np.int64)
    assert (found.clipped, found.dropped, len(found)) == (0, 0, 1)


def test_boxes_that_do_not_fit_are_cut_or_dropped_and_counted(tmp_path: Path) -> None:
    file = coco(
        tmp_path,
        annotations=[
            box(30, 10, 20, 20),  # beyond the right and the lower side
            box(-3, -3, 10, 10),
            box(0, 0, 40.3, 20),  # by less than half a pixel
            box(5, 5, 0, 4),
            box(5, 5, 4, -4),
            box(50, 5, 4, 4),
            box(1, 1, 9, 9, iscrowd=1),
        ],
    )
    found = read(file)
    assert boxes(found) == [[30, 10, 40, 20], [0, 0, 7, 7], [0, 0, 40, 20]]
    assert (found.clipped, found.dropped) == (2, 4)


def test_an_image_without_boxes_stays(tmp_path: Path) -> None:
    found = read(coco(tmp_path, annotations=[]))
    assert found.truth[0].boxes.shape == (0, 4)


def test_sizes_that_coco_does_not_say_are_read(tmp_path: Path) -> None:
    file = coco(tmp_path, images=[{"id": 7, "file_name": "a.png"}], annotations=[box(30, 0, 99, 9)])
    assert boxes(read(file)) == [[30, 0, 40, 9]]


def test_the_images_lie_where_the_caller_says(tmp_path: Path) -> None:
    file = coco(tmp_path)
    (tmp_path / "a.png").unlink()
    picture(tmp_path / "elsewhere" / "a.png")
    assert read(file, tmp_path / "elsewhere").images == (tmp_path / "elsewhere" / "a.png",)
    with pytest.raises(InputError, match=r"images\[0\].file_name: there is no image"):
        read(file)
    with pytest.raises(InputError, match="there is no folder"):
        read(file, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "no list 'images'"),
        ({"categories": {}}, "no list 'categories'"),
        ({"images": []}, r"annotations\[0\].image_id: no image has the id 7"),
        ({"images": [], "annotations": []}, "lists no images"),
        ({"images": [{"id": 7}]}, r"images\[0\] has no file_name"),
        ({"images": [{"id": 7, "file_name": "a.png"}] * 2}, r"images\[1\]: the id 7 is used twice"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "category_id: no category has the id 18"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]}, r"categories\[1\]"),
        ({"annotations": ["a box"]}, r"annotations\[0\] has no image_id"),
        ({"annotations": [box(1, 2, 3)]}, r"annotations\[0\].bbox: \[1, 2, 3\] is not"),
        ({"annotations": [box(1, 2, 3, "4")]}, r"\[0\].bbox"),
        ({"annotations": [box(1, 2, 3, float("nan"))]}, r"\[0\].bbox"),
        ({"annotations": [box(1, 2, 3, True)]}, r"\[0\].bbox"),
        ({"annotations": [{**box(1, 2, 3, 4), "image_id": [7]}]}, "an id must be a number or text"),
    ],
)
def test_a_mistake_in_coco_names_the_element(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"boxes\.json.*{said}"):
        read(coco(tmp_path, **changes))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, ""):
        (tmp_path / "x.json").write_text(text, "utf-8")
        with pytest.raises(InputError, match="not JSON"):
            read(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path / "x.json")


# --- VOC ------------------------------------------------------------------------------------------

VOC = """<annotation>
  <filename>{filename}</filename>
  <size><width>40</width><height>20</height><depth>3</depth></size>
  {objects}
</annotation>"""
DOG = """<object><name>dog</name><bndbox><xmin>5</xmin><ymin>6</ymin>
  <xmax>14</xmax><ymax>13</ymax></bndbox></object>"""


def voc(folder: Path, text: str = "", filename: str = "a.png", objects: str = DOG) -> Path:
    picture(folder / "a.png")
    (folder / "a.xml").write_text(text or VOC.format(filename=filename, objects=objects), "utf-8")
    return folder


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    whole = DOG.replace(">5<", ">1<").replace(">6<", ">1<").replace(">14<", ">40<")
    whole = whole.replace(">13<", ">20<").replace("dog", "ant")
    found = read(voc(tmp_path, objects=DOG + whole))
    assert found.names == ("ant", "dog")
    assert boxes(found) == [[4, 5, 14, 13], [0, 0, 40, 20]]
    assert found.truth[0].labels.tolist() == [1, 0]
    assert found.clipped == 0


def test_voc_in_its_own_two_folders(tmp_path: Path) -> None:
    voc(tmp_path / "Annotations")
    (tmp_path / "Annotations" / "a.png").unlink()
    picture(tmp_path / "JPEGImages" / "a.png")
    assert read(tmp_path).images == (tmp_path / "JPEGImages" / "a.png",)
    assert read(tmp_path / "Annotations", tmp_path / "JPEGImages").names == ("dog",)


def test_voc_with_a_wrong_filename_finds_the_image_of_the_same_name(tmp_path: Path) -> None:
    assert read(voc(tmp_path, filename="IMG_0001.JPG")).images == (tmp_path / "a.png",)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"there is no image a\.\*"):
        read(tmp_path)


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]>
<annotation><filename>&lol2;</filename></annotation>"""
OUTSIDE = """<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><filename>&x;</filename></annotation>"""


@pytest.mark.parametrize("text", [LAUGHS, OUTSIDE], ids=["entities", "external"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_a_doctype_is_refused(text: str, encoding: str, tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"a\.xml:\d: a DOCTYPE is not allowed"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        (DOG.replace("<xmin>5</xmin>", ""), r"a\.xml:4: <bndbox> needs a number <xmin>"),
        (DOG.replace(">13<", ">low<"), r"a\.xml:5: <bndbox> needs a number <ymax>"),
        (DOG.replace(">13<", ">inf<"), r"a\.xml:5: <bndbox> needs a number <ymax>"),
        ("<object><name>dog</name></object>", r"a\.xml:4: <object> needs"),
        (DOG.replace("dog", " "), r"a\.xml:4: <object> needs"),
        ("<object>", r"a\.xml:5: not XML: mismatched tag"),
        ("&undefined;", r"a\.xml:4: not XML: undefined entity"),
    ],
)
def test_a_mistake_in_voc_names_the_line(objects: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read(voc(tmp_path, objects=objects))


def test_xml_that_is_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected <annotation>, not <svg>"):
        read(voc(tmp_path, "<svg/>"))
    for text in ("", "no xml", "<" * 1000):
        (tmp_path / "a.xml").write_text(text, "utf-8")
        with pytest.raises(InputError, match="not XML"):
            read(tmp_path)


# --- YOLO -----------------------------------------------------------------------------------------


def yolo(folder: Path, lines: str = "1 0.25 0.5 0.2 0.4\n", data: str = "") -> Path:
    picture(folder / "images" / "train" / "a.png")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text(lines, "utf-8")
    data = data or "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    (folder / "data.yaml").write_text(data, "utf-8")
    return folder


@pytest.mark.parametrize("name", ["", "data.yaml"])
def test_yolo(name: str, tmp_path: Path) -> None:
    found = read(yolo(tmp_path) / name)
    assert found.names == ("cat", "dog")
    assert boxes(found) == [[6, 6, 14, 14]]
    assert found.truth[0].labels.tolist() == [1]


def test_yolo_names_as_a_list_and_places_as_lists(tmp_path: Path) -> None:
    picture(yolo(tmp_path, data="train: [images/train, more]\nnames: [cat, 'no']\n") / "more/b.png")
    (tmp_path / "more" / "b.txt").write_text("0 0.5 0.5 1 1", "utf-8")
    found = read(tmp_path)
    assert found.names == ("cat", "no")
    assert [path.name for path in found.images] == ["a.png", "b.png"]
    assert boxes(found, 1) == [[0, 0, 40, 20]]


def test_yolo_lists_images_in_a_text_file(tmp_path: Path) -> None:
    yolo(tmp_path, data="train: train.txt\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("./images/train/a.png\n", "utf-8")
    assert boxes(read(tmp_path)) == [[6, 6, 14, 14]]
    (tmp_path / "train.txt").write_text("\n../a.png\n", "utf-8")
    with pytest.raises(InputError, match=r"train\.txt:2: '\.\./a\.png' is not a path inside"):
        read(tmp_path)


def test_yolo_that_climbs_where_it_need_not(tmp_path: Path) -> None:
    # Roboflow writes ../train/images and means train/images next to the file
    assert len(read(yolo(tmp_path, data="train: ../images/train\nnames: [cat, dog]\n"))) == 1


def test_yolo_splits(tmp_path: Path) -> None:
    picture(yolo(tmp_path) / "images" / "val" / "b.png")
    found = read(tmp_path, split="val")
    assert [path.name for path in found.images] == ["b.png"]
    assert len(found.truth[0]) == 0
    with pytest.raises(InputError, match="names no images under 'test'"):
        read(tmp_path, split="test")


def test_yolo_without_yaml(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1 0.25 0.5 0.2 0.4\n\n", "utf-8")
    assert read(tmp_path).names == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\n", "utf-8")
    assert read(tmp_path).names == ("cat", "dog")
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "a.txt").rename(tmp_path / "boxes" / "a.txt")
    assert boxes(read(tmp_path / "boxes", tmp_path / "pictures")) == [[6, 6, 14, 14]]


def test_a_yolo_polygon_becomes_its_box(tmp_path: Path) -> None:
    found = read(yolo(tmp_path, "0 0.1 0.2 0.5 0.1 0.3 0.9\n"))
    np.testing.assert_allclose(boxes(found), [[4, 2, 20, 18]], rtol=1e-6)


def test_a_photo_that_lies_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    yolo(tmp_path)
    picture(tmp_path / "images" / "train" / "a.png", exif=exif)
    assert boxes(read(tmp_path)) == [[3, 12, 7, 28]]  # of 20 x 40, as every reader shows it


@pytest.mark.parametrize(
    "line", ["dog 0.5 0.5 1 1", "0 0.5 0.5 1", "0 0.5 0.5 1 x", "-1 0 0 1 1", "0 nan 0 1 1", "0",
             "0 .5 .5 .1 .1 .9"]
)  # fmt: skip
def test_a_mistake_in_yolo_names_the_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt:2: expected 'class x y width height', not"):
        read(yolo(tmp_path, "0 0.5 0.5 1 1\n" + line))


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt:1: class 2, but there are only 2"):
        read(yolo(tmp_path, "2 0.5 0.5 1 1"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("train: &x images\nval: *x\n", r"data\.yaml:1: anchors"),
        ("train: !!python/name:os.system x", r"data\.yaml:1: tags"),
        ("train: [", r"data\.yaml:\d: not YAML"),
        ("names: [cat]", "names no images under 'train'"),
        ("train: images/none", r"data\.yaml:1: train: there is no folder"),
        ("train: {a: b}", r"data\.yaml:1: train: .* is not a path"),
        ("train: images/train\nnames: {1: cat, 0: dog}", r"data\.yaml:2: names: expected a list"),
        ("train: images/train\nnames: cat", r"data\.yaml:2: names: expected a list"),
        ("train: images/train\nnames: [[cat]]", r"data\.yaml:2: names: expected a list"),
    ],
)
def test_a_mistake_in_data_yaml_names_the_line(data: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read(yolo(tmp_path, data=data))


# --- names stay inside the folder -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "C:\\secret.png",
             "..\\secret.png", "file:///secret.png", "a\0.png", "", ".", 3, None]
)  # fmt: skip
def test_no_name_leaves_the_folder(name: Any, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    picture(tmp_path / "secret.png")
    with pytest.raises(InputError, match="is not a path inside"):
        read(coco(folder, images=[{"id": 7, "file_name": name}]))
    if isinstance(name, str) and name.strip(".") and "\0" not in name:
        with pytest.raises(InputError, match=r"a\.xml:2: <filename>: .* is not a path inside"):
            read(voc(tmp_path / "voc", filename=name))
        for key in ("path", "val"):
            data = f"train: images/train\n{key}: {json.dumps(name)}\nnames: [cat, dog]\n"
            if key == "val" and name.startswith("../"):
                continue  # looked for inside
            with pytest.raises(InputError, match=rf"data\.yaml:2: {key}: .* is not a path inside"):
                read(yolo(tmp_path / key, data=data), split="val" if key == "val" else "train")


def test_what_is_no_annotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match="is none of these"):
        read(picture(tmp_path / "a.png"))
    with pytest.raises(InputError, match=r"contains no data\.yaml"):
        read(tmp_path)  # an image, and nothing about it


# --- for a detector -------------------------------------------------------------------------------


def test_pairs_of_a_list() -> None:
    images, truth = ["a.png", "b.png"], [detections((0, 0, 1, 1)), detections()]
    assert pairs(images, truth) == (images, truth)
    other = detections(names=("horse",))
    for wrong, said in (
        ((images, truth[:1]), "expected 2 Detections"),
        ((images, None), "expected 2 Detections"),
        (([], []), "at least one image"),
        ((None, truth), "at least one image"),
        (("folder", truth), "at least one image"),
        ((images, [truth[0], None]), r"labels\[1\] is a NoneType"),
        ((images, [truth[0], other]), r"labels\[1\] has the names \('horse',\)"),
    ):
        with pytest.raises(InputError, match=said):
            pairs(*wrong)


@pytest.mark.parametrize("make", [coco, voc, yolo])
def test_pairs_of_a_file_or_folder(make: Callable[[Path], Path], tmp_path: Path) -> None:
    images, truth = pairs(None, make(tmp_path))
    assert [path.name for path in images] == ["a.png"]
    assert truth[0].names[truth[0].labels[0]] == "dog"
    with pytest.raises(InputError, match="images must be the image folder"):
        pairs(["a.png"], make(tmp_path / "again"))


def test_written_and_read_again(tmp_path: Path) -> None:
    images = [picture(tmp_path / "a.png"), picture(tmp_path / "more" / "b.png", 9, 9)]
    truth = [detections((1, 2, 3.5, 4), (0, 0, 40, 20), labels=[1, 0]), detections()]
    assert write_coco(tmp_path / "boxes.json", images, truth) == tmp_path / "boxes.json"
    found = read(tmp_path / "boxes.json")
    assert found.images == tuple(images)
    assert found.names == ("cat", "dog")
    for mine, theirs in zip(truth, found.truth, strict=True):
        np.testing.assert_array_equal(mine.boxes, theirs.boxes)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
    with pytest.raises(InputError, match="does not lie in"):
        write_coco(tmp_path / "more" / "boxes.json", images, truth)


def test_detections_as_coco_results() -> None:
    found = detections((1, 2, 4, 8), (0, 0, 1, 1), labels=[1, 0])
    first, second = found.to_coco(5)
    assert first == {
        "image_id": 5,
        "category_id": 2,
        "bbox": [1, 2, 3, 6],
        "score": pytest.approx(0.9),
    }
    assert second["category_id"] == 1
    json.dumps([first, second])
    assert [r["category_id"] for r in found.to_coco(5, {"dog": 18})] == [18]
    assert detections().to_coco(1) == []


def test_detections_for_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    made = detections((1, 2, 4, 8), (0, 0, 1, 1), labels=[1, 0])
    module = ModuleType("supervision")
    module.Detections = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    found = made.to_supervision()
    assert found.xyxy is made.boxes
    assert (found.confidence is made.scores, found.class_id is made.labels) == (True, True)
    assert found.data["class_name"].tolist() == ["dog", "cat"]


def test_supervision_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"edgezoo\[supervision\]"):
        detections().to_supervision()
