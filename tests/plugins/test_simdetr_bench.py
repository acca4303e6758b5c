"""The recipe and the benchmark of simdetr, run whole on a few drawings with random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from zoo_simdetr import (
    arms,
    bench,
    bench_labels,
    bench_proposals,
    bench_rows,
    bench_shipped,
    dataset,
    rivals,
    train,
)
from zoo_simdetr.bundle import bundle
from zoo_simdetr.detector import Network
from zoo_simdetr.learning import network_of
from zoo_simdetr.model import SimDETR
from zoo_simdetr.proposals import PRESETS

from zoo import precision
from zoo.entry import Base
from zoo.errors import InputError, OptionError
from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest
from zoo.registry import catalogue
from zoo.weights import load_tensors, save_tensors

SIDE = 64
BOX = "<object><name>{}</name><bndbox>{}</bndbox></object>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """EfficientNet-Lite0 with random weights, as timm names them."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    folder = tmp_path_factory.mktemp("base")
    save_tensors(folder / "model.safetensors", network.state_dict())
    return Base(str(folder), folder, None, None, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bccd``: eight drawings with two kinds of rectangles, two of them for testing."""
    root = tmp_path_factory.mktemp("data") / "bccd"
    rng = np.random.default_rng(0)
    for folder in ("images", "annotations", "splits"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        image = rng.integers(0, 40, (96, 128, 3)).astype("uint8")
        objects = []
        for kind, at in (("dark", 10 + i), ("light", 70)):
            box = (at, 20, at + 30, 50)
            image[box[1] : box[3], box[0] : box[2]] = 120 if kind == "dark" else 230
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (at + 1, 21, at + 30, 50), strict=True)
            objects.append(BOX.format(kind, "".join(f"<{k}>{v}</{k}>" for k, v in sides)))
        Image.fromarray(image).save(root / "images" / f"p{i}.png")
        text = f"<annotation><filename>p{i}.png</filename>{''.join(objects)}</annotation>"
        (root / "annotations" / f"p{i}.xml").write_text(text)
    (root / "splits" / "test.txt").write_text("p1\np6\n")
    return root.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a stage, on small pictures."""
    short = {k: replace(s, steps=1, batch=2, size=SIDE) for k, s in train.RECIPE.items()}
    presets = {k: replace(p, size=128) for k, p in PRESETS.items()}
    for module in (train, arms):
        monkeypatch.setattr(module, "RECIPE", short)
    for module in (train, arms, bench_rows, bench_proposals):
        monkeypatch.setattr(module, "PRESETS", presets)


def request(data: Path, out: Path, base: Base | None, **asked: Any) -> TrainRequest:
    entry = catalogue().entry("simdetr")
    bases = {} if base is None else {"base": base}
    options = entry.checked_options("train", {})
    return TrainRequest(entry, out, data=data / "bccd", bases=bases, options=options, **asked)


def test_a_data_set_keeps_its_test_images_apart(data: Path, tmp_path: Path) -> None:
    found = dataset.read(data / "bccd")
    assert [path.stem for path in found.test.images] == ["p1", "p6"]
    assert len(found.train) == 6
    assert found.names == ("dark", "light")
    assert found.train.sides()[0] == (128, 96)
    assert found.train.truth[0].boxes[0].tolist() == [10, 20, 40, 50]
    with pytest.raises(InputError, match="--data"):
        dataset.read(None)


def test_unreadable_images_are_left_out_of_training(data: Path, tmp_path: Path) -> None:
    """Each part is told apart: a cut one to train on, and one of the test images."""
    found = dataset.read(shutil.copytree(data / "bccd", tmp_path / "copy"))
    cut = found.train.images[2]
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read, such as .*p3.png"):
        train.readable(found.train, 64)
    many = dataset.Part(found.train.images * 2, found.train.truth * 2)
    enough = dataset.Part(many.images[:2] + many.images[3:], many.truth[:2] + many.truth[3:])
    kept, images, skipped = train.readable(enough, 64)
    assert [Path(name).name for name in skipped] == ["p3.png"]
    assert len(kept) == len(images) == len(kept.truth) == 10
    assert cut not in kept.images


def test_a_test_list_names_images_that_exist(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data / "bccd", tmp_path / "copy")
    (copy / "splits" / "test.txt").write_text("p1\nghost\n")
    with pytest.raises(InputError, match="'ghost', which has no image"):
        dataset.read(copy)
    (copy / "splits" / "test.txt").write_text("\n".join(f"p{i}" for i in range(8)))
    with pytest.raises(InputError, match="no images for training"):
        dataset.read(copy)


@pytest.mark.slow
def test_the_recipe_runs_resumes_and_measures(
    data: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.train(request(data, tmp_path / "whole", base, seed=1))
    report = json.loads((tmp_path / "whole" / "train.json").read_text("utf-8"))
    assert report["done"] == ["pretrain", "selftrain", "finetune"]
    assert report["validation"]["proposals"]["images"] == 6
    for stage in ("finetune",):
        found = report["validation"][f"test after {stage}"]
        assert {*found} == {"decoder + NMS", "decoder", "dense head + NMS"}
        assert all(0 <= value <= 1 for values in found.values() for value in values.values())
    manifest = json.loads((whole / "zoo.json").read_text("utf-8"))
    assert manifest["config"] == {"names": ["dark", "light"], "size": SIDE}

    first = request(data, tmp_path / "parts", base, seed=1, stage="pretrain")
    pretrained = network_of(train.train(first))
    assert pretrained.classes.count == len(report["validation"]["proposals"]["clusters"])
    rest = request(data, tmp_path / "parts", base, seed=1, resume=True)
    again = network_of(train.train(rest)).state_dict()
    for name, tensor in network_of(whole).state_dict().items():
        assert torch.equal(tensor, again[name]), name

    bundle(tmp_path / "whole", data / "bccd", tmp_path / "bundled")
    files = tmp_path / "bundled"
    bundled = SimDETR.build(BuildRequest(catalogue().entry("simdetr"), files, saved=manifest))
    expected = load_tensors(files / "check.safetensors")
    for name, tensor in bundled.run_check(files / "check.png").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


def test_pictures_of_nothing_teach_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.background("", 64) == ([], [])
    for i in range(4):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="4 pictures; more than 20"):
        train.background(str(tmp_path), 64)
    monkeypatch.setattr(train, "HELD", 3)
    scenes, held = train.background(str(tmp_path), 64)
    assert [len(scene.labels) for scene in scenes] == [0]
    assert [int(image[0, 0, 0]) for image in held] == [1, 2, 3]
    torch.manual_seed(0)
    network = Network(2)
    assert train.false_boxes(network, held, 64, ("a", "b")) == {"a": 0, "b": 0}
    with torch.no_grad():
        network.classes.linears()[-1].bias.copy_(torch.tensor([2.0, -9]))
    found = train.false_boxes(network, held, 64, ("a", "b"))
    assert found["a"] > 3
    assert found["b"] == 0


def test_a_recipe_needs_a_base_or_a_start(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--base"):
        train.train(request(data, tmp_path / "out", None))
    with pytest.raises(OptionError, match="no stage"):
        train.train(request(data, tmp_path / "out", None, stage="x"))


def asked(data: Path, tmp_path: Path, base: Base | None, **options: Any) -> BenchRequest:
    entry = catalogue().entry("simdetr")
    bases = {} if base is None else {"base": base}
    options = {"part": "shipped", "work": str(tmp_path / "work"), "only_kept": False, **options}
    return BenchRequest(
        entry, tmp_path / "out", data=data, quick=True, bases=bases, options=options
    )


@pytest.mark.slow
def test_arms_are_measured_once_and_clusters_are_named(
    data: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole in small, then again from kept rows: the same, without measuring."""
    monkeypatch.setattr(bench_labels, "SHARES", {"labels": (0.5,)})
    monkeypatch.setattr(bench_labels, "SHORT_ONLY", {"labels": (0.5,)})
    monkeypatch.setattr(bench_labels, "ARMS", (arms.SCRATCH, arms.IMAGENET, arms.OURS))
    request = asked(data, tmp_path, base, part="labels")
    found = bench.bench(request)
    short = bench_rows.column(0.5, bench_labels.SHORT, "AP")
    assert short in found.table["ImageNet alone"]
    assert short in found.table["SimDETR"]
    claims = {"teacher", "labels-50%", "long-50%", "best-50%"}
    assert {claim.id for claim in found.claims} == claims
    kept = sorted((tmp_path / "work" / "labels").glob("*/proposals.safetensors"))
    assert len(kept) == 2  # two ways of pretraining learn the same boxes
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert (tmp_path / "out" / "labels.png").is_file()
    fail = lambda *_: pytest.fail("rows are measured once")  # noqa: E731
    monkeypatch.setattr(arms.Lab, "tuned", fail)
    again = bench.bench(asked(data, tmp_path, base, part="labels", only_kept=True))
    assert again.cells == found.cells
    named = bench.bench(asked(data, tmp_path, None, part="discover"))
    assert 0 <= named.table["clusters named by six images"]["AP50"].mean <= 1


def test_named_clusters_need_a_base_where_nothing_was_pretrained(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="give --base"):
        bench.bench(asked(data, tmp_path, None, part="discover"))


@pytest.mark.slow
def test_what_is_shipped_is_measured(
    data: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = {"names": ["dark", "light"], "size": SIDE}
    build = BuildRequest(catalogue().entry("simdetr"), folder=None, saved={"config": config})
    monkeypatch.setattr(bench_shipped, "load", lambda request: SimDETR(build, Network(2)))
    monkeypatch.setattr(bench_shipped, "_differences", lambda here, model: {"image 0": 0.1})
    timed = {bench_shipped.SEEING: [0.1, 0.2], bench_shipped.LEARNING: [0.3, 0.4]}
    speed = dict.fromkeys((bench_shipped.BUNDLED, bench_shipped.RTDETR), timed)
    monkeypatch.setattr(bench_shipped, "_seconds", lambda here: speed)
    photos = tmp_path / "data" / "photos-cc0"
    shutil.copytree(data / "bccd", tmp_path / "data" / "bccd")
    photos.mkdir()
    for i in range(22):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(photos / f"{i}.png")
    found = bench.bench(asked(tmp_path / "data", tmp_path, base))
    table = found.table
    assert table["simdetr, bundled weights"]["AP50"].mean <= 1
    assert "AP50, dense head + NMS" in table["simdetr, the whole recipe"]
    assert table["random boxes"][bench_proposals.RECALL].mean <= 1
    assert {"ap50", "photographs", "onnx", "speed", "steps", "proposals-boxes"} <= {
        claim.id for claim in found.claims
    }
    again = bench.bench(asked(tmp_path / "data", tmp_path, base, only_kept=True))
    assert again.cells == found.cells


def test_a_benchmark_says_what_it_needs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data set bccd"):
        bench.bench(asked(tmp_path, tmp_path, None))
    with pytest.raises(InputError, match="the data set playing-cards"):
        bench.bench(asked(data, tmp_path, None, part="cards"))
    with pytest.raises(InputError, match="--base"):
        bench.bench(asked(data, tmp_path, None))


def test_arms_differ_in_what_they_say() -> None:
    assert len({arm.name for arm in arms.ARMS}) == len(arms.ARMS)
    assert arms.IMAGENET.stages == ()
    assert arms.ONE_CLASS.clusters == 1
    assert arms.WARM.start == arms.GENTLE.start == arms.OURS.start
    assert len({arm.start for arm in arms.ARMS}) == len(arms.ARMS) - 2
    assert arms.NO_ROUND.more == arms.DETREG.more == SimDETR.recipe["selftrain"].steps


def test_rivals_find_what_they_can_see() -> None:
    image = torch.full((3, 60, 80), 20, dtype=torch.uint8)
    image[0, 15:35, 20:44] = 220
    found = rivals.of_colour(image, PRESETS["many-small"]).boxes
    wanted = np.array([[20 / 80, 15 / 60, 44 / 80, 35 / 60]], np.float32)
    assert precision.pairwise_iou(found, wanted).max() > 0.85
    pytest.importorskip("cv2")
    found = rivals.selective_search(image)
    assert precision.pairwise_iou(found, wanted).max() > 0.7
    assert found.min() >= 0
    assert found.max() <= 1
