"""simdetr-full: detectors of transformers learn from images without labels.

The checkpoints are tiny and random, in the folder format of the real ones.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo_simdetr
from PIL import Image
from zoo_simdetr.full import PAPER, FullNetwork, SimDETRFull, read_base
from zoo_simdetr.outputs import Target
from zoo_simdetr.proposals import PRESETS

import zoo
from zoo.annotations import write_coco
from zoo.entry import Base
from zoo.errors import NotReadyError, UsageError, WeightsError
from zoo.hookspecs import TrainRequest
from zoo.interfaces import Detections
from zoo.testing import LoopbackHub
from zoo.weights import save_tensors

ENTRY = zoo.info("simdetr-full")
SMALL: dict[str, dict[str, Any]] = {
    "deformable_detr": {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 12,
    },
    "rt_detr": {
        "d_model": 16,
        "encoder_hidden_dim": 16,
        "encoder_in_channels": [32, 48, 64],
        "decoder_in_channels": [16, 16, 16],
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "decoder_layers": 2,
        "num_queries": 12,
        "num_denoising": 8,
    },
}
"""transformers' settings for a network of a few thousand parameters."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random backbone in timm's format."""
    import timm

    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3, zero_init_last=False)
    save_tensors(folder / "model.safetensors", dict(net.state_dict()))
    told = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, settings in SMALL.items():
        monkeypatch.setitem(PAPER, kind, {**PAPER[kind], **settings})
    monkeypatch.setitem(PRESETS, "objects", replace(PRESETS["objects"], size=64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with a bright rectangle each, in COCO's format."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    files, truth = [], []
    for i in range(6):
        x, y = (int(v) for v in rng.integers(4, 30, 2))
        picture = rng.integers(0, 60, (64, 64, 3), np.uint8)
        picture[y : y + 28, x : x + 28] += 150
        Image.fromarray(picture).save(folder / f"{i}.png")
        files.append(folder / f"{i}.png")
        box = np.array([[x, y, x + 28, y + 28]], np.float32)
        truth.append(Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), ("tile",)))
    write_coco(folder / "boxes.json", files, truth)
    return folder / "boxes.json"


def train(base: Path | None, data: Path, out: Path, **asked: Any) -> Path:
    options = ENTRY.checked_options("train", {"size": 64, "batch": 2, **asked.pop("options", {})})
    bases = {} if base is None else {"base": Base("org/base", base, "0" * 40)}
    request = TrainRequest(ENTRY, out, data=data, steps=2, bases=bases, options=options, **asked)
    return zoo_simdetr.zoo_train(request)


def test_the_size_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deformable DETR with box refinement on ResNet-50, with COCO's 91 classes."""
    from transformers import DeformableDetrConfig

    config = DeformableDetrConfig(with_box_refine=True).to_dict()
    with torch.device("meta"):
        network = FullNetwork(91, config, [0.0] * 3, [1.0] * 3)
    size = sum(p.numel() for p in network.parameters())
    assert size == ENTRY.params
    assert len(network.classes.layers) == 6
    assert network.queries == 300


def test_a_flat_image_among_others_has_no_regions(backbone: Path) -> None:
    """Its empty features are as wide as the backbone's others."""
    from zoo_simdetr.learning import regions_of

    _, network = read_base(backbone, "rt-detr")
    rng = np.random.default_rng(0)
    tile = torch.from_numpy(rng.integers(0, 60, (3, 64, 64), np.uint8))
    tile[:, 20:48, 10:38] += 150
    flat = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    found = regions_of(network.trunk, [tile, flat], PRESETS["objects"])  # type: ignore[arg-type]
    assert len(found[1]) == 0
    assert found[0].features.shape[1] == found[1].features.shape[1] > 0


@pytest.mark.parametrize("kind", ["deformable-detr", "rt-detr"])
def test_a_backbone_keeps_its_features_and_everything_learns(backbone: Path, kind: str) -> None:
    import timm

    config, network = read_base(backbone, kind)
    assert config["mean"] == [0.5] * 3
    images = torch.rand(2, 3, 64, 64)
    theirs = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4)).eval()
    from zoo.weights import load_tensors

    theirs.load_state_dict(load_tensors(backbone / "model.safetensors"), strict=False)
    network.eval()
    with torch.no_grad():
        for mine, other in zip(
            network.trunk.features(images), theirs((images - 0.5) / 0.2), strict=True
        ):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
    network.classes = network.fresh(3)
    targets = [
        Target(torch.tensor([0, 2]), torch.tensor([[0.4, 0.4, 0.3, 0.3], [0.7, 0.6, 0.2, 0.4]])),
        Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
    ]
    body, rest = network.trunk.parts()
    parameters = [*body.parameters(), *rest.parameters(), *network.classes.parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in network.parameters()}
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.SGD(parameters, 0.1)
    reached: set[int] = set()
    for _ in range(3):  # layers that start at zero let a gradient through after a step
        optimizer.zero_grad()
        network.loss(images, targets, torch.Generator()).backward()
        reached |= {id(p) for p in parameters if p.grad is not None and p.grad.any()}
        optimizer.step()
    names = {id(p): name for name, p in network.named_parameters()}
    unmoved = [names[id(p)] for p in parameters if id(p) not in reached]
    assert not unmoved


CHAIN = """
import sys
import zoo
from zoo.cli import main
try:
    zoo.load("simdetr-full", base="org/base")
except zoo.ZooError as error:
    print(error)
from dataclasses import replace
from zoo_simdetr import full
from zoo_simdetr.proposals import PRESETS
full.PAPER = {settings!r}
PRESETS["objects"] = replace(PRESETS["objects"], size=64)
sys.argv[1:] = [
    "train", "simdetr-full", "--base", "org/base", "--data", {data!r}, "-o", {out!r},
    "--steps", "2", "--quiet", "--device", "cpu", "-O", "batch=2", "-O", "size=64",
]
try:
    main()
except SystemExit as end:
    assert not end.code, end
model = zoo.load({out!r} + "/model")
print(type(model).__name__, model.names, len(model.detect({photo!r}, threshold=0.0)))
"""


def test_from_a_hub_id_to_boxes(backbone: Path, data: Path, tmp_path: Path) -> None:
    """Downloaded by id, all stages trained, saved; the folder no longer needs the base."""
    out = tmp_path / "out"
    settings = {kind: {**PAPER[kind]} for kind in PAPER}
    with LoopbackHub() as hub:
        commit = hub.add("org/base", backbone)
        code = CHAIN.format(
            settings=settings, data=str(data), out=str(out), photo=str(data.parent / "0.png")
        )
        done = hub.run(code, home=tmp_path / "home", timeout=300, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "SimDETRFull ('tile',)" in done.stdout
    saved = json.loads((out / "model" / "zoo.json").read_text())
    assert saved["bases"] == {}
    assert saved["config"]["base"] == {"id": "org/base", "revision": commit}
    report = json.loads((out / "train.json").read_text())
    assert report["done"] == ["pretrain", "selftrain", "finetune"]
    with pytest.raises(NotReadyError, match="is not exported"):
        zoo.load(out / "model").export(tmp_path / "x.onnx")


def test_a_checkpoint_of_transformers_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    """Stage by stage: what --init names is the start of the next."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, TimmBackboneConfig

    torch.manual_seed(0)
    settings: dict[str, Any] = {"use_pretrained_backbone": False, "out_indices": [2, 3, 4]}
    backbone = TimmBackboneConfig(backbone="test_resnet", **settings)
    net = RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **SMALL["rt_detr"]))
    net.save_pretrained(tmp_path / "base")
    _, network = read_base(tmp_path / "base", "deformable-detr")
    theirs = net.state_dict()
    mine = network.trunk.net.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert {k for k in theirs if k not in mine} == {
        k for k in theirs if "class_embed" in k or "enc_score_head" in k
    }
    first = train(tmp_path / "base", data, tmp_path / "a", stage="pretrain")
    pseudo = zoo.load(first)
    assert isinstance(pseudo, SimDETRFull)
    assert pseudo.names[0] == "cluster 0"
    named = zoo.load(train(None, data, tmp_path / "b", stage="finetune", init=first))
    assert named.names == ("tile",)
    assert named.config["base"]["id"] == "org/base"
    before = zoo.load(first).detect(data.parent / "0.png", threshold=0.0)
    after = pseudo.name_clusters({0: "thing"}).detect(data.parent / "0.png", threshold=0.0)
    same = before.scores[before.labels == 0]
    assert np.allclose(np.sort(after.scores), np.sort(same)[-len(after.scores) :], atol=1e-6)


def test_what_is_missing_is_said(backbone: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="zoo train simdetr-full --base ORG/REPO"):
        zoo.load("simdetr-full")
    with pytest.raises(UsageError, match="--base ORG/REPO"):
        train(None, data, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"'bert'.*expected a Deformable DETR"):
        read_base(tmp_path, "rt-detr")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    save_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(WeightsError, match="is not test_resnet of timm: it has no"):
        read_base(tmp_path, "rt-detr")


def test_the_class_is_the_one_that_the_registry_names() -> None:
    assert ENTRY.class_ == f"{SimDETRFull.__module__}:{SimDETRFull.__name__}"
