"""simdetr as users meet it: what it learns from images alone and from boxes, and bad input."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from zoo_simdetr import course
from zoo_simdetr import model as simdetr
from zoo_simdetr.backbone import folded
from zoo_simdetr.clusters import Clusters
from zoo_simdetr.course import Course, cluster_names, steps_for
from zoo_simdetr.detector import Network
from zoo_simdetr.discover import Find, crop
from zoo_simdetr.model import SimDETR
from zoo_simdetr.proposals import PRESETS
from zoo_simdetr.scenes import scene_of
from zoo_simdetr.selftraining import Relabelled

import zoo
from zoo.annotations import write_coco
from zoo.errors import InputError, NotReadyError, OptionError, UsageError
from zoo.hookspecs import BuildRequest
from zoo.interfaces import Detections
from zoo.registry import catalogue
from zoo.weights import save_tensors

SIDE = 64
"""Longest side that the network sees here, so that a step takes a tenth of a second."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a stage, on small pictures."""
    stages = {k: replace(s, steps=1, batch=2) for k, s in SimDETR.recipe.items()}
    monkeypatch.setattr(SimDETR, "recipe", stages)
    presets = {k: replace(p, size=128) for k, p in PRESETS.items()}
    monkeypatch.setattr(simdetr, "PRESETS", presets)


@pytest.fixture
def detector() -> SimDETR:
    """Random weights, three classes."""
    torch.manual_seed(0)
    config = {"names": ["a", "b", "c"], "size": SIDE}
    entry = catalogue().entry("simdetr")
    return SimDETR(BuildRequest(entry, folder=None, saved={"config": config}), Network(3))


def pictures(count: int = 6) -> tuple[list[np.ndarray], list[Detections]]:
    """Bright rectangles on a dark background, and their boxes."""
    rng = np.random.default_rng(0)
    images, truth = [], []
    for i in range(count):
        image = rng.integers(0, 40, (48, 64, 3)).astype("uint8")
        box = (8 + i, 10, 30 + i, 34)
        image[box[1] : box[3], box[0] : box[2]] = rng.integers(200, 255, 3)
        images.append(image)
        boxes = np.array([box], "float32")
        truth.append(Detections(boxes, np.ones(1, "float32"), np.zeros(1, "int64"), ("thing",)))
    return images, truth


def state(model: SimDETR) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state().items()}


@pytest.mark.filterwarnings("ignore:6 images are few")
def test_images_alone_give_clusters_and_then_names(detector: SimDETR) -> None:
    images, _ = pictures()
    before = state(detector)
    report = detector.pretrain(images, clusters=3, seed=1)
    assert detector.names == cluster_names(3)
    assert report["proposals"]["images"] == 6
    assert sum(report["proposals"]["clusters"]) == pytest.approx(
        6 * report["proposals"]["boxes_per_image"], abs=0.1
    )
    assert len(report["own boxes 1"]["before"]) == 3
    after = state(detector)
    assert torch.equal(before["trunk.stem.conv_stem.weight"], after["trunk.stem.conv_stem.weight"])
    moved = [k for k in before if k in after and before[k].shape == after[k].shape]
    assert any(not torch.equal(before[k], after[k]) for k in moved if k.startswith("trunk.body"))

    everything = detector.detect(images[0], threshold=0, nms=None)
    detector.name_clusters({0: "thing", 2: "thing", 1: "other"})
    assert detector.names == ("thing", "other")
    named = detector.detect(images[0], threshold=0, nms=None)
    renamed = np.array([0, 1, 0])[everything.labels]
    np.testing.assert_array_equal(named.labels, renamed)
    np.testing.assert_allclose(named.scores, everything.scores, atol=1e-6)
    with pytest.raises(NotReadyError, match="have names already"):
        detector.name_clusters({0: "x"})


@pytest.mark.filterwarnings("ignore:6 images are few")
def test_clusters_are_named_by_number(detector: SimDETR) -> None:
    detector.pretrain(pictures()[0], clusters=2, rounds=0)
    with pytest.raises(OptionError, match="no cluster 5: they are 0 to 1"):
        detector.name_clusters({5: "cell"})
    with pytest.raises(OptionError, match="at least one"):
        detector.name_clusters({})
    detector.name_clusters({1: "cell"})
    assert {*detector.detect(pictures()[0][0], threshold=0).labels} == {0}


def test_few_images_are_said_to_be_few(detector: SimDETR) -> None:
    with pytest.warns(UserWarning, match="6 images are few"):
        detector.pretrain(pictures()[0], rounds=0)


def test_boxes_give_names(detector: SimDETR, tmp_path: Path) -> None:
    """The same from a file as from ``Detections``; a fresh head differs from a warm one."""
    images, truth = pictures()
    files = [tmp_path / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    labels = write_coco(tmp_path / "boxes.json", files, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights find nothing
        other = SimDETR(detector, detector.network)  # type: ignore[arg-type]
        assert detector.finetune(images, truth, seed=2) is detector
        other.finetune(None, labels, seed=2)
    assert detector.names == other.names == ("thing",)
    assert detector.report["start"]["thing"]["from"] in (None, 0, 1, 2)
    for name, tensor in state(detector).items():
        assert torch.equal(tensor, other.state()[name]), name


def test_a_saved_detector_has_what_was_learned(detector: SimDETR, tmp_path: Path) -> None:
    """Weights are rounded to half precision as soon as they are learned."""
    detector.save_pretrained(tmp_path / "made")
    torch.manual_seed(5)
    request = BuildRequest(
        detector.entry, folder=tmp_path / "made", saved={"config": dict(detector.config)}
    )
    again = SimDETR.build(request)
    image = pictures(1)[0][0]
    for a, b in zip(
        vars(detector.detect(image, threshold=0)).values(),
        vars(again.detect(image, threshold=0)).values(),
        strict=True,
    ):
        assert np.array_equal(a, b)


@pytest.mark.filterwarnings("ignore:6 images are few")
def test_an_interrupted_call_goes_on_where_it_was(
    detector: SimDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = pictures()
    whole = SimDETR(detector, detector.network)  # type: ignore[arg-type]
    whole.pretrain(images, clusters=2, seed=3)

    def stop(self: Course, round_: int = 1) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Course, "selftrain", stop)
        with pytest.raises(KeyboardInterrupt):
            detector.pretrain(images, clusters=2, seed=3, work=tmp_path / "work")
    assert detector.names == ("a", "b", "c"), "nothing is half learned"
    with monkeypatch.context() as patch:
        patch.setattr(Course, "_propose", lambda self: pytest.fail("proposals are made once"))
        detector.pretrain(images, clusters=2, seed=3, work=tmp_path / "work")
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, detector.state()[name]), name


@pytest.mark.filterwarnings("ignore:.* images are few")
def test_a_folder_of_other_images_is_refused(
    detector: SimDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = pictures()

    def stop(self: Course, round_: int = 1) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Course, "selftrain", stop)
        with pytest.raises(KeyboardInterrupt):
            detector.pretrain(images, clusters=2, work=tmp_path)
    with pytest.raises(OptionError, match="of"):
        detector.pretrain([255 - image for image in images], clusters=2, work=tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(InputError, match="of other images or options"):
        detector.pretrain(images, clusters=3, work=tmp_path)


@pytest.mark.filterwarnings("ignore:.* images are few")
def test_a_base_is_where_pretraining_starts(detector: SimDETR, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    save_tensors(tmp_path / "model.safetensors", network.state_dict())
    images, _ = pictures()
    model = zoo.load("simdetr", base=tmp_path, size=64)
    model.pretrain(images, clusters=2, rounds=0, steps=1)
    stem, _ = folded(network.state_dict())
    for name, tensor in stem.items():  # the stem is never trained
        torch.testing.assert_close(
            model.state()[f"trunk.stem.{name}"].float(), tensor, rtol=1e-3, atol=1e-4
        )  # half precision


@pytest.mark.filterwarnings("ignore:the detector found few objects")
def test_labels_without_objects_and_with_tiny_ones(detector: SimDETR) -> None:
    images, truth = pictures()
    nothing = [replace(one, boxes=one.boxes[:0], scores=one.scores[:0], labels=one.labels[:0])
               for one in truth]  # fmt: skip
    with pytest.raises(InputError, match="none of the 6 images has an object"):
        detector.finetune(images, nothing)
    tiny = [replace(one, boxes=np.array([[10, 10, 13, 40]], "float32")) for one in truth]
    with pytest.warns(UserWarning, match="6 of 6 objects are less than 8 pixels"):
        detector.finetune(images, tiny, steps=1)


@pytest.mark.filterwarnings("ignore:.* images are few")
def test_poor_labels_are_told(detector: SimDETR, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that say nothing, and a detector that finds nothing of its own."""
    images, _ = pictures()
    monkeypatch.setattr(Clusters, "collapsed", True)
    monkeypatch.setattr(Relabelled, "trusted", False)
    monkeypatch.setattr(course, "MANY", 1)
    with (
        pytest.warns(UserWarning, match="nearly all regions are in one cluster"),
        pytest.warns(UserWarning, match="it goes on with those"),
    ):
        detector.pretrain(images, clusters=2, steps=1)


def folder_of(folder: Path, good: int, bad: int) -> Path:
    """A folder of pictures, some cut short."""
    folder.mkdir()
    for i, image in enumerate(pictures(good)[0]):
        Image.fromarray(image).save(folder / f"{i}.png")
    for i in range(bad):
        (folder / f"bad{i}.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


@pytest.mark.filterwarnings("ignore:.* images are few")
def test_unreadable_files_of_a_folder_are_left_out_and_listed(
    detector: SimDETR, tmp_path: Path
) -> None:
    report = detector.pretrain(folder_of(tmp_path / "some", 10, 1), rounds=0)
    assert [Path(name).name for name in report["skipped"]] == ["bad0.png"]
    with pytest.raises(InputError, match="3 of 9 images cannot be read"):
        detector.pretrain(folder_of(tmp_path / "many", 6, 3))


def test_what_cannot_be_learned_from_is_refused(detector: SimDETR, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for images, message in (
        (tmp_path / "empty", "has no images"),
        ([], "at least one"),
        ([np.zeros((8, 8, 3), "float32")], "image 0"),
    ):
        with pytest.raises(InputError, match=message):
            detector.pretrain(images)
    plain = [np.full((48, 64, 3), 90, "uint8")] * 3
    with pytest.warns(UserWarning, match="few"), pytest.raises(InputError, match="looks like an"):
        detector.pretrain(plain)
    for wrong in ({"scene": "x"}, {"rounds": 3}, {"epochs": 0}, {"epochs": 1, "steps": 1}):
        with pytest.raises(OptionError):
            detector.pretrain(pictures()[0], **wrong)
    assert detector.names == ("a", "b", "c")


def test_classes_without_objects_and_too_many_objects_are_named(detector: SimDETR) -> None:
    images, truth = pictures(2)
    crowd = np.repeat(truth[0].boxes, 101, 0)
    labels = [
        Detections(crowd, np.ones(101, "float32"), np.zeros(101, "int64"), ("thing", "ghost")),
        Detections(truth[1].boxes, truth[1].scores, truth[1].labels, ("thing", "ghost")),
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        detector.finetune(images, labels)
    messages = " ".join(str(one.message) for one in told)
    assert "no image has an object of ghost" in messages
    assert "1 images have more than 100 objects" in messages
    assert detector.names == ("thing", "ghost")


def test_boxes_outside_the_image_or_without_area_teach_nothing(detector: SimDETR) -> None:
    images, _ = pictures(2)
    odd = np.array([[-5, -5, 20, 20], [10, 10, 10, 30], [70, 50, 90, 60]], "float32")
    labels = [Detections(odd, np.ones(3, "float32"), np.zeros(3, "int64"), ("thing",))] * 2
    scene = scene_of(torch.zeros(3, 48, 64, dtype=torch.uint8), 64, 48, labels[0])
    assert scene.boxes.tolist() == [[0, 0, 20 / 64, pytest.approx(20 / 48)]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        detector.finetune(images, labels)


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_limits_are_from_0_to_1(detector: SimDETR, value: float) -> None:
    for name in ("threshold", "nms"):
        with pytest.raises(OptionError, match=name):
            detector.detect(pictures(1)[0][0], **{name: value})


def test_suppression_drops_only_what_overlaps(detector: SimDETR) -> None:
    image = pictures(1)[0][0]
    everything = detector.detect(image, threshold=0, nms=None)
    apart = detector.detect(image, threshold=0, nms=0.3)
    assert 0 < len(apart) < len(everything)
    for label in range(3):
        boxes = apart.boxes[apart.labels == label]
        for i, box in enumerate(boxes):
            for other in boxes[:i]:
                low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
                both = np.prod(np.maximum(high - low, 0))
                areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
                assert both / (sum(areas) - both) <= 0.3 + 1e-4


def test_how_long_a_stage_takes() -> None:
    assert steps_for(10, 4, None, None, 300) == 300
    assert steps_for(10, 4, 2, None, 300) == 5
    assert steps_for(10, 4, None, 7, 300) == 7


def test_a_model_without_weights_says_how_to_make_them() -> None:
    entry = catalogue().entry("simdetr")
    with pytest.raises(NotReadyError, match="zoo train simdetr"):
        SimDETR.build(BuildRequest(entry, folder=None))


def test_all_is_the_same_for_the_same_seed(detector: SimDETR) -> None:
    made: list[Any] = []
    for shake in (1, 2):
        torch.manual_seed(shake)
        np.random.seed(shake)
        other = SimDETR(detector, detector.network)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            other.pretrain(pictures()[0], seed=4, clusters=2)
        made.append(state(other))
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_detector_gives_the_same_boxes(detector: SimDETR, tmp_path: Path) -> None:
    """In onnxruntime, to half a pixel; without torch, by the script that is shipped."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    detector.config = {**detector.config, "names": ["x", "y"], "rows": [0, 1, 0]}
    file = detector.export(tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8")
    pixels[10:40, 20:50] = 240
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    assert shape == [1, 64, 64, 3]  # 48 rounds to 64
    boxes, scores = session.run(None, {"pixels": pixels[None]})
    wanted = detector.detect(pixels, threshold=0, nms=None)
    cells = 8 * 8 + 4 * 4 + 2 * 2  # each gives a query, as there are fewer than 100
    assert boxes.shape == (cells, 4)
    assert scores.shape == (cells, 2)
    for box, score, label in zip(wanted.boxes, wanted.scores, wanted.labels, strict=True):
        near = np.abs(boxes * 64 - box).max(1) < 0.5
        assert near.any()
        assert scores[near, label].max() >= score - 1e-3
    with torch.no_grad():  # surer, so that there is something to print
        detector.network.classes.linears()[-1].bias.fill_(0.5)
    file = detector.export(tmp_path / "surer.onnx")
    found = detector.detect(pixels)
    assert len(found) > 3
    Image.fromarray(pixels).save(tmp_path / "a.png")
    script = Path(simdetr.__file__).parent / "examples" / "onnx_detect.py"
    done = subprocess.run(
        [sys.executable, script, file, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == [found.names[label] for label in found.labels]
    printed = np.array([line[3].split() for line in lines], "float32")
    np.testing.assert_allclose(printed, found.boxes, atol=0.5)
    with pytest.raises(OptionError, match="to ONNX only"):
        detector.export(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:.* images are few")
def test_clusters_are_discovered_shown_and_named(
    detector: SimDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole command: a sheet first, then a detector."""
    from zoo_simdetr import cli, discover

    def load(folder: Path) -> SimDETR:
        import json

        config = json.loads((folder / "zoo.json").read_text("utf-8"))["config"]
        return SimDETR.build(BuildRequest(detector.entry, folder, saved={"config": config}))

    monkeypatch.setattr(SimDETR, "from_pretrained", staticmethod(load))
    monkeypatch.setattr(discover, "WEAK", 0.0)
    photos = folder_of(tmp_path / "photos", 12, 1)
    arguments = [str(photos), "-o", str(tmp_path / "out"), "--clusters", "2", "--quiet"]
    assert cli.discover(detector, arguments) == 0
    said = capsys.readouterr().out
    assert "bad0.png" in said
    assert "2 clusters" in said
    with Image.open(tmp_path / "out" / "clusters.png") as sheet:
        assert sheet.height == 2 * (discover.SIDE + 6) + 6
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50  # crops of pictures
    assert cli.discover(detector, [*arguments, "--names", "0=thing, 1=other"]) == 0
    assert load(tmp_path / "out" / "detector").names == ("thing", "other")
    for wrong in ("x=thing", "3", "2="):
        with pytest.raises(OptionError, match="NUMBER=NAME"):
            cli.discover(detector, [*arguments, "--names", wrong])
    # the same folder with something else: nothing old is shown for it
    with pytest.raises(UsageError, match="of other clusters"):
        cli.discover(detector, [str(photos), "-o", str(tmp_path / "out"), "--clusters", "3"])
    others = folder_of(tmp_path / "others", 11, 0)
    with pytest.raises(UsageError, match="of other photos"):
        cli.discover(detector, [str(others), *arguments[1:]])


def test_finds_come_from_different_images_first(
    detector: SimDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo_simdetr import discover

    box = np.array([[0, 0, 9, 9], [5, 5, 9, 9]], "float32")
    scores = {"a": [0.9, 0.8], "b": [0.5, 0.4]}

    def detect(path: Path, threshold: float) -> Detections:
        return Detections(
            box, np.array(scores[path.name], "float32"), np.zeros(2, "int64"), ("cluster 0",)
        )

    monkeypatch.setattr(detector, "detect", detect)
    detector.config = {**detector.config, "names": ["cluster 0"]}
    found, counts = discover.finds(detector, [Path("a"), Path("b")])
    assert [f"{f.path.name} {f.score:.1f}" for f in found[0]] == [
        "a 0.9",
        "b 0.5",
        "a 0.8",
        "b 0.4",
    ]
    assert counts == [4]


def test_a_crop_stays_in_the_picture(tmp_path: Path) -> None:
    """At an edge the window moves inward; an object larger than the picture is shown whole."""
    file = tmp_path / "white.png"
    Image.new("RGB", (60, 40), "white").save(file)
    for box in ((0.0, 0.0, 20.0, 10.0), (45.0, 25.0, 60.0, 40.0), (20.0, 10.0, 30.0, 30.0)):
        assert np.asarray(crop(Find(1.0, file, box))).min() == 255
    whole = np.asarray(crop(Find(1.0, file, (0.0, 0.0, 60.0, 40.0))))
    assert whole[48, 20:76].min() == 255  # the picture, in the middle
    assert whole[2].max() == 0  # and what is above it
