"""lfa-photos on tiny random encoders: the bridge's closed forms, learning, refusals, export."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.overlay import ROOT
from zoo import actions, api, cards
from zoo import bench as zoo_bench
from zoo.cli import main
from zoo.errors import InputError, NotReadyError, OptionError, WeightsError
from zoo.images import listed
from zoo.testing import LoopbackHub, VLAlignerSuite

pytest.importorskip("timm")
pytest.importorskip("transformers")

from zoo_lfa import bridge
from zoo_lfa.lfa import unit
from zoo_lfa.photos import Photos
from zoo_lfa.towers import ImageTower, TextTower

SIDE = 32
COLOURS = {"red thing": (220, 40, 40), "green thing": (40, 200, 60), "blue thing": (40, 60, 220)}


# --- tiny encoders of both kinds ------------------------------------------------------------------


def make_image(folder: Path, seed: int = 0, name: str = "test_efficientnet", **more: Any) -> Path:
    """A random classifier of 1,000 classes as timm's Hub pages have it."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=1000)
    settings = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": settings, **more}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def make_text(folder: Path, seed: int = 0, width: int = 32) -> Path:
    """A random BERT that reads letters, as a transformers folder."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.:;-'()"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"image": make_image(root / "image"), "text": make_text(root / "text")}


def fitted(out: Path, bases: dict[str, Path]) -> Path:
    return actions.train(api.entry_of("lfa-photos"), out, base=bases, device="cpu")


@pytest.fixture(scope="module")
def folder(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map of the tiny encoders, as ``zoo train`` leaves it."""
    return fitted(tmp_path_factory.mktemp("map") / "run", bases)


@pytest.fixture
def model(folder: Path) -> Photos:
    found: Photos = zoo.load(folder, device="cpu")
    return found


def picture(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 32)) -> Any:
    noise = np.random.default_rng(seed).normal(0, 20, (*size[::-1], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, four pictures in each."""
    root = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(4):
            picture(colour, i).save(root / name / f"{i}.png")
    return root


class TestPhotos(VLAlignerSuite):
    """What every aligner promises, for raw photos and texts."""

    @pytest.fixture(autouse=True)
    def _with_map(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "name", str(folder))

    @pytest.fixture
    def pairs(self) -> tuple[Any, Any]:
        colours = {**COLOURS, "white thing": (230, 230, 230)}
        texts = [list(colours)[i % 4] for i in range(24)]
        return [picture(colours[name], i) for i, name in enumerate(texts)], texts


# --- the bridge -----------------------------------------------------------------------------------


def linear(classes: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (C,24) that are a linear map of texts (C,8)."""
    dice = torch.Generator().manual_seed(seed)
    y = unit(torch.randn(classes, 8, generator=dice))
    y = unit(y - y.mean(0))
    return y @ torch.randn(8, 24, generator=dice), y


def test_a_linear_relation_carries_over_to_classes_that_were_held_out() -> None:
    rows, texts = linear()
    held = torch.arange(12)
    r, made = bridge.without(rows, texts, held, 1e-6)
    cosines = r @ bridge.prototypes(texts[held], made).T
    assert (cosines.argmax(1) == held).all()
    # not 1: both sides are normalised around means of their own
    assert float(cosines.diagonal().min()) > 0.95


def test_the_map_is_the_ridge_of_equation_19() -> None:
    """Its gradient is 0: Y^T (Y W^T - R) + p W^T."""
    rows, texts = linear()
    made = bridge.fit(rows, texts, 2.0)
    r = bridge.centred(rows, unit(rows).mean(0)).double()
    y = bridge.centred(texts, made.centre).double()
    w = made.w.double()
    gradient = y.T @ (y @ w.T - r) + 2.0 * w.T
    assert float(gradient.abs().max()) < 1e-5  # W is float32


def test_the_scale_of_a_row_or_a_text_changes_nothing() -> None:
    rows, texts = linear()
    factors = torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.01
    plain, scaled = bridge.fit(rows, texts, 1.0), bridge.fit(rows * factors, texts / factors, 1.0)
    torch.testing.assert_close(scaled.w, plain.w, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        bridge.prototypes(texts * factors, plain), bridge.prototypes(texts, plain)
    )
    mean = torch.full((24,), 0.1)
    torch.testing.assert_close(bridge.centred(rows * factors, mean), bridge.centred(rows, mean))


def test_settings_come_from_held_out_classes() -> None:
    rows, texts = linear(200)
    noisy = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    chosen = bridge.choose(noisy, texts)
    assert chosen == bridge.choose(noisy, texts)
    assert chosen.accuracy > 50
    strangers = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
    nothing = bridge.choose(strangers, texts)
    assert nothing.accuracy < 10  # 2.5 by chance
    assert nothing.scale < chosen.scale


def clusters(
    n: int = 20, noise: float = 0.6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (5n,16) around five directions, labels, and the directions."""
    dice = torch.Generator().manual_seed(seed)
    z = unit(torch.randn(5, 16, generator=dice))
    labels = torch.arange(5).repeat(n)
    x = z[labels] + noise * torch.randn(5 * n, 16, generator=dice) / 4
    return unit(x), labels, z


def test_from_nothing_learning_is_plain_logistic_regression() -> None:
    """a s ||B||^2 is scikit-learn's penalty with C = 1 / (2 a s), on rows of length s."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels, z = clusters(noise=2.0)
    ours = bridge.learn(x, torch.zeros_like(z), labels)
    theirs = linear_model.LogisticRegression(
        C=1 / (2 * bridge.STRENGTH * bridge.SHARP), fit_intercept=False, max_iter=1000, tol=1e-8
    ).fit(bridge.SHARP * x.numpy(), labels.numpy())
    coefficients = unit(torch.from_numpy(theirs.coef_).float())
    assert float((ours * coefficients).sum(1).min()) > 0.999


def test_learning_is_drawn_to_where_it_started() -> None:
    x, labels, z = clusters(noise=2.0)
    other = unit(torch.randn(z.shape, generator=torch.Generator().manual_seed(9)))
    held = bridge.learn(x, other, labels, strength=1e6)
    torch.testing.assert_close(held, other, atol=1e-4, rtol=0)
    free = bridge.learn(x, other, labels)
    assert float((free * z).sum()) > float((held * z).sum())


def test_names_that_say_nothing_are_noticed() -> None:
    x, labels, z = clusters()
    assert bridge.informed(x, z, labels)
    assert not bridge.informed(x, z.roll(1, 0), labels)


def test_labels_are_guessed_where_prototypes_are_roughly_right() -> None:
    x, labels, z = clusters(n=40)
    rough = unit(z + 0.8 * unit(torch.randn(5, 16, generator=_dice(4))))
    before = float(((x @ rough.T).argmax(1) == labels).float().mean())
    learned = bridge.refine(x, rough, 3)
    after = float(((x @ learned.T).argmax(1) == labels).float().mean())
    assert after > before
    assert torch.equal(bridge.refine(x, rough, 0), rough)
    # four times as many of the first class: told, the transport does not spread them
    many = torch.cat([(labels == 0).nonzero()[:, 0]] * 4 + [(labels > 0).nonzero()[:, 0]])
    shares = torch.tensor([4.0, 1, 1, 1, 1])
    right = [
        float(
            ((x[many] @ bridge.refine(x[many], rough, 3, m).T).argmax(1) == labels[many])
            .float()
            .mean()
        )
        for m in (None, shares)
    ]
    assert right[1] > right[0]


def _dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_photo_is_no_mean() -> None:
    x, labels, _ = clusters()
    one = bridge.mean_of(x[:1])
    torch.testing.assert_close(one, x[0] / (1 + bridge.WEIGHT))
    uneven = torch.cat([x, x[labels == 0]])
    torch.testing.assert_close(
        bridge.mean_of(uneven, torch.cat([labels, labels[labels == 0]])) / len(uneven)
        * (len(uneven) + bridge.WEIGHT),
        bridge.mean_of(x, labels) / len(x) * (len(x) + bridge.WEIGHT),
    )  # fmt: skip


def test_calibration() -> None:
    x, labels, z = clusters(noise=1.5)
    assert bridge.calibrated(x[:5], z, labels[:5], 28.0) == 28.0  # one of each
    clean, unclean = (bridge.calibrated(*_shuffled(n), 28.0) for n in (0.3, 3.0))
    assert unclean < 28.0 < clean
    few = torch.arange(0, 100, 4)
    rows, near, own = _shuffled(0.3)
    assert (
        bridge.calibrated(rows[few], near, own[few], 28.0) == 28.0
    )  # 25 rows, all right, make it no surer


def test_prototypes_that_learned_are_no_more_confident_than_before() -> None:
    """Equal mean confidence, to within the values that are tried (a factor of 1.19)."""
    x, _, z = clusters(noise=1.5)
    usual = bridge.SCALES[9]
    assert bridge.as_sure(x, z, z, usual) == usual
    blunt = unit(z + z.mean(0) * 3)  # cosines close together
    found = bridge.as_sure(x, blunt, z, usual)
    assert found > usual

    def confidence(b: torch.Tensor, scale: float) -> float:
        return float((scale * x @ b.T).softmax(1).amax(1).mean())

    near = [confidence(blunt, found * step) for step in (1 / 1.19, 1.19)]
    assert near[0] < confidence(z, usual) < near[1]


def _shuffled(noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, labels, z = clusters(noise=noise)
    return x, z, labels


# --- the model ------------------------------------------------------------------------------------


def test_training_is_deterministic_and_the_map_small(
    bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    again = fitted(tmp_path / "run", bases)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    told = json.loads((tmp_path / "run" / "train.json").read_text("utf-8"))
    assert told["image"]["architecture"] == "test_efficientnet"
    assert told["penalty"] in bridge.PENALTIES


def test_similarity_is_a_cosine_of_features_and_mapped_texts(
    model: Photos, bases: dict[str, Path]
) -> None:
    image, text = ImageTower(bases["image"], "cpu"), TextTower(bases["text"], "cpu")
    pictures, words = [picture((200, 30, 30), 0), picture((9, 9, 9), 1, (64, 20))], ["a dog", "sky"]
    x, y = image(pictures), text(words)
    z = unit((unit(unit(y) - model.bridge.centre)) @ model.bridge.w.T)
    expected = (unit(x) @ z.T).numpy()
    np.testing.assert_allclose(model.similarity(pictures, words), expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity(x.numpy(), y.numpy()), expected, atol=1e-5)
    scaled = model.similarity((x * torch.tensor([[5.0], [0.1]])).numpy(), words)
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    raised = np.exp(expected / model.temperature)
    np.testing.assert_allclose(
        model.predict_proba(pictures, words), raised / raised.sum(1, keepdims=True), atol=1e-4
    )


def test_features_are_those_of_timm_and_transformers(bases: dict[str, Path]) -> None:
    """Pixels, preprocessing and pooling as the two libraries would have them."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform
    from transformers import AutoModel, AutoTokenizer

    square = picture((200, 120, 30), 0, (SIDE, SIDE))
    network: Any = timm.create_model(f"local-dir:{bases['image']}", pretrained=True)
    network.reset_classifier(0)
    settings = resolve_data_config({}, model=network)
    assert tuple(settings["input_size"]) == (3, SIDE, SIDE)
    prepared = create_transform(**{**settings, "crop_pct": 1.0})(square)
    with torch.no_grad():
        wanted = network.eval()(prepared[None])
    torch.testing.assert_close(
        ImageTower(bases["image"], "cpu")([square]), wanted, atol=1e-4, rtol=1e-4
    )
    tokens = AutoTokenizer.from_pretrained(bases["text"])("a dog", return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(bases["text"]).eval()(**tokens).last_hidden_state
    wanted = unit(hidden.mean(1))
    found = TextTower(bases["text"], "cpu")(["a dog", "a much longer sentence about dogs"])[:1]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_photos_of_each_class_are_learned_and_other_texts_stay(model: Photos, photos: Path) -> None:
    names = list(COLOURS)
    other_before = model.embed_texts(["something else"])
    model.align(photos)
    assert sorted(model.classes) == sorted(names)
    new = [picture(COLOURS[name], 50 + i) for i in range(5) for name in names]
    found = model.predict_proba(new).argmax(1)
    assert [model.classes[i] for i in found] == names * 5
    np.testing.assert_allclose(model.embed_texts(["something else"]), other_before, atol=1e-6)
    assert model.report["rows"] == 12


def test_without_labels(model: Photos, photos: Path) -> None:
    pictures = sorted(photos.rglob("*.png"))
    model.align(pictures, list(COLOURS), unsupervised=True, rounds=2)
    assert model.report["kept"] == "unsupervised"
    assert model.classes == tuple(COLOURS)
    share = model.predict_proba(pictures).argmax(1)
    assert sorted(np.bincount(share, minlength=3)) == [4, 4, 4]  # balanced, and clearly apart


def test_recentre_takes_off_what_all_photos_share(model: Photos, photos: Path) -> None:
    pictures = sorted(photos.rglob("*.png"))
    x = unit(model.image(pictures))
    assert model.recentre(photos) is model
    mean = x.mean(0) * 12 / (12 + bridge.WEIGHT)
    np.testing.assert_allclose(model.embed_images(pictures), unit(x - mean).numpy(), atol=1e-5)
    model.align(photos)
    np.testing.assert_allclose(  # a mean that the user set is kept
        model.embed_images(pictures), unit(x - mean).numpy(), atol=1e-5
    )
    assert model.recentre(photos).classes == ()


def test_photos_of_every_kind_give_the_same_features(bases: dict[str, Path], photos: Path) -> None:
    """By path, as bytes (in parquet), opened, as an array, as a tensor; errors are numbered."""
    tower, file = ImageTower(bases["image"], "cpu"), photos / "red thing" / "0.png"
    pixels = np.asarray(Image.open(file))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    kinds = [file, str(file), file.read_bytes(), Image.open(file), pixels, tensor]
    for found in tower(kinds):
        torch.testing.assert_close(found, tower([file])[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"image 40 of the list: .*no file no\.png"):
        tower([file] * 40 + ["no.png"])  # past the first batch


@pytest.fixture
def holiday(photos: Path, tmp_path: Path) -> Path:
    """The same pictures without folders for their classes, but for two in a subfolder."""
    for i, file in enumerate(sorted(photos.rglob("*.png"))):
        place = tmp_path / "holiday" / ("more" if i < 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{i:02}.png")
    return tmp_path / "holiday"


def test_a_folder_of_photos_without_classes(model: Photos, photos: Path, holiday: Path) -> None:
    pictures, texts = sorted(holiday.rglob("*.png")), list(COLOURS)
    by_list = dict(zip(pictures, model.embed_images(pictures), strict=True))
    order = listed(holiday, below=True)
    assert len(order) == 12
    np.testing.assert_array_equal(model.embed_images(holiday), [by_list[f] for f in order])
    assert model.predict_proba(holiday, texts).shape == (12, 3)
    x = model.recentre(holiday).embed_images(pictures)
    np.testing.assert_allclose(x, model.recentre(photos).embed_images(pictures), atol=1e-6)
    assert model.align(holiday, texts, unsupervised=True).report["rows"] == 12
    (holiday / "02.json").write_text("{}")  # as albums from the web have them
    with pytest.warns(UserWarning, match="02.json"):
        assert len(model.embed_images(holiday)) == 12
    (holiday / "metadata.csv").write_text("file_name,text\n02.png,a\n03.png,b\n")
    assert len(model.embed_images(holiday)) == 2  # the rows of a data set
    with pytest.raises(InputError, match="a folder of images for each class"):
        model.align(holiday / "more", texts)  # nothing says which photo is which


def test_texts_find_the_folders_of_their_classes(model: Photos, photos: Path) -> None:
    """The folders' names in any order; other words in the folders' order; nothing between."""
    tests = [picture(COLOURS[name], 70 + i) for i, name in enumerate(COLOURS)]
    expected = model.align(photos).predict_proba(tests)
    names, folders = model.classes, photos.parent / f"{photos.name}_underscored"
    assert names == ("blue thing", "green thing", "red thing")
    for name in names:
        shutil.copytree(photos / name, folders / name.replace(" ", "_"), dirs_exist_ok=True)
    turned = model.align(folders, list(names[::-1])).predict_proba(tests)
    assert model.classes == names[::-1]
    np.testing.assert_allclose(turned[:, ::-1], expected, atol=1e-4)
    model.align(folders, ["blue thing", "leaves", "fire"])
    assert model.classes[model.predict_proba(tests[:1])[0].argmax()] == "fire"
    with pytest.raises(InputError, match="'red thing' is not at the place"):
        model.align(folders, ["red thing", "leaves", "sky"])
    with pytest.raises(InputError, match="2 for the 3 classes 'blue thing'"):
        model.align(folders, ["sky", "fire"])


def test_a_second_fit_is_as_a_first_one(model: Photos, folder: Path, photos: Path) -> None:
    """Nothing of an earlier fit is left: its scale neither."""
    pictures = sorted(photos.rglob("*.png"))
    fresh = zoo.load(folder, device="cpu").align(pictures, list(COLOURS), unsupervised=True)
    bundled = model.temperature
    many = np.random.default_rng(0).normal(size=(120, 256)).astype("float32")
    many += 3 * np.tile(many[:3], (40, 1))
    model.align(many, list(COLOURS), labels=[i % 3 for i in range(120)])
    assert model.temperature < bundled  # three heaps far apart
    model.align(pictures, list(COLOURS), unsupervised=True)
    np.testing.assert_array_equal(model.predict_proba(pictures), fresh.predict_proba(pictures))
    assert model.recentre(photos).temperature == bundled


def test_refusals(model: Photos, photos: Path) -> None:
    pictures = [picture((1, 2, 3), 0)]
    with pytest.raises(NotReadyError, match="was not fitted on classes"):
        model.predict_proba(pictures)
    with pytest.raises(InputError, match="texts: expected strings"):
        model.similarity(pictures, [])
    with pytest.raises(InputError, match="one class only"):
        model.align(pictures * 2, ["a", "a"])
    with pytest.raises(InputError, match="texts are missing"):
        model.align(pictures)
    with pytest.raises(InputError, match="1 photos for 3 classes"):
        model.align(pictures, list(COLOURS), unsupervised=True)
    with pytest.raises(OptionError, match="takes no labels"):
        model.align(photos, list(COLOURS), labels=[0] * 12, unsupervised=True)
    with pytest.raises(OptionError, match="marginals"):
        model.align(photos, marginals=[1, 1, 1])
    with pytest.raises(InputError, match="3 positive numbers"):
        model.align(photos, list(COLOURS), unsupervised=True, marginals=[1, 0, 1])
    with pytest.raises(OptionError, match="rounds=-1"):
        model.align(photos, rounds=-1)
    with pytest.raises(InputError, match="7 columns; the base's have 256"):
        model.similarity(np.ones((2, 7), "float32"), ["a"])
    with pytest.raises(InputError, match="5 columns; the base's have 32"):
        model.similarity(pictures, np.ones((2, 5), "float32"))
    assert model.classes == ()  # a refused fit leaves the model as it was


# --- the bases ------------------------------------------------------------------------------------


def test_other_bases_than_those_of_the_fit_are_refused(
    folder: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    resnet = make_image(tmp_path / "resnet", name="test_resnet")
    with pytest.raises(WeightsError, match=r"image=.*96 columns.* fitted on 256.*tf_efficient"):
        zoo.load(folder, base={"image": resnet})
    with pytest.raises(WeightsError, match=r"image=.*another network"):
        zoo.load(folder, base={"image": make_image(tmp_path / "other", seed=1)})
    with pytest.raises(WeightsError, match=r"text=.*another network"):
        zoo.load(folder, base={"text": make_text(tmp_path / "text", seed=1)})
    with pytest.raises(WeightsError, match=r"text=.*16 columns"):
        zoo.load(folder, base={"text": make_text(tmp_path / "narrow", width=16)})
    with pytest.raises(WeightsError, match="fitted on 1280"):  # the bundled map, on the tiny ones
        zoo.load("lfa-photos", base=bases)


def test_another_precision_of_the_same_network_is_the_same(
    folder: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(bases["image"], half)
    tensors = load_file(half / "model.safetensors")
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()},
        half / "model.safetensors",
    )
    model = zoo.load(folder, base={"image": half}, device="cpu")
    full = zoo.load(folder, device="cpu")
    pictures = [picture((200, 30, 30), 0)]
    np.testing.assert_allclose(
        model.similarity(pictures, ["a", "b"]), full.similarity(pictures, ["a", "b"]), atol=5e-3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "timm has no architecture 'model'"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (
            lambda f: (f / "config.json").write_text(
                json.dumps({"architecture": "test_vit", "model_args": {"checkpoint_path": "x.pth"}})
            ),
            "plain settings",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "a.safetensors"), None),
        (lambda f: (f / "model.safetensors").unlink(), "found none"),
    ],
)
def test_folders_of_timm(bases: dict[str, Path], tmp_path: Path, change: Any, words: Any) -> None:
    folder = tmp_path / "image"
    shutil.copytree(bases["image"], folder)
    change(folder)
    if words is None:  # one safetensors file of any name, beside the configuration
        assert ImageTower(folder, "cpu").width == 256
        return
    with pytest.raises(WeightsError, match=words):
        ImageTower(folder, "cpu")


def test_a_file_alone_is_named_after_its_architecture(tmp_path: Path) -> None:
    folder = make_image(tmp_path / "image")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "test_efficientnet.safetensors")
    assert ImageTower(folder, "cpu").side == 160  # what timm knows of it


def test_a_sentence_encoder_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_text(tmp_path / "text")
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "query" not in k}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no values for .*query"):
        TextTower(folder, "cpu")


def test_training_needs_imagenets_classes(bases: dict[str, Path], tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    few = make_image(tmp_path / "few", num_classes=10)
    save_file(
        timm.create_model("test_efficientnet", num_classes=10).state_dict(),
        few / "model.safetensors",
    )
    with pytest.raises(InputError, match="10 classes; expected a classifier of ImageNet's 1000"):
        fitted(tmp_path / "out", {**bases, "image": few})


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.slow
def test_bases_come_by_hub_id_and_are_kept_by_commit(
    hub: LoopbackHub, folder: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    ids = {name: spec.default for name, spec in api.entry_of("lfa-photos").bases.items()}
    commits = {
        name: hub.add(str(ids[name]), {f.name: f.read_bytes() for f in sorted(base.iterdir())})
        for name, base in bases.items()
    }
    kept = tmp_path / "kept"
    code = (
        f"import zoo; m = zoo.load({str(folder)!r}, base={ids!r}, device='cpu')\n"
        f"print(m.bases['image'].revision, m.bases['text'].revision)\n"
        f"m.save_pretrained({str(kept)!r})"
    )
    done = hub.run(code, home=tmp_path / "home", HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [commits["image"], commits["text"]]
    manifest = json.loads((kept / "zoo.json").read_text("utf-8"))
    assert manifest["bases"]["image"]["revision"] == commits["image"]


def test_bases_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    """Offline, with nothing in the cache."""
    code = "import zoo\ntry: zoo.load('lfa-photos')\nexcept zoo.ZooError as e: print(e)"
    with LoopbackHub() as hub:
        done = hub.run(code, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "timm/tf_efficientnet_lite0.in1k" in done.stdout


# --- the command ----------------------------------------------------------------------------------


def run(*args: Any) -> int:
    """The exit code of ``zoo ARGS``."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return int(ended.value.code or 0)


def test_classify_goes_on_past_a_broken_photo(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, file in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copy(file, mixed / f"{i}.png")
    (mixed / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "sorted"
    assert run("classify", folder, mixed, "--labels", "beach, dog, receipt", "-o", out) == 1
    assert "1 of 13 images could not be used" in capsys.readouterr().err
    rows = list(csv.DictReader((out / "labels.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 12
    assert {row["label"] for row in rows} <= {"beach", "dog", "receipt"}
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert run("classify", folder, mixed, "-o", tmp_path / "none") == 2
    assert "--labels" in capsys.readouterr().err


def test_align_by_folder_name_then_classify(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    assert run("align", folder, photos, "-o", mine, "--quiet") == 0
    assert "rows 12" in capsys.readouterr().out
    out = tmp_path / "sorted"
    assert run("classify", mine, photos / "red thing", "-o", out, "--quiet") == 0
    rows = list(csv.DictReader((out / "labels.csv").read_text("utf-8").splitlines()))
    assert {row["label"] for row in rows} == {"red thing"}


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = zoo.load(folder, device="cpu").align(photos)
    return Path(model.export(tmp_path_factory.mktemp("export") / "photos.onnx"))


@pytest.mark.slow
def test_the_example_gives_the_same_without_torch(
    exported: Path, folder: Path, photos: Path
) -> None:
    pytest.importorskip("onnxruntime")
    script = ROOT / "plugins" / "zoo_lfa" / "examples" / "onnx_classify.py"
    files = [str(file) for file in sorted(photos.rglob("*.png"))]
    blocked = "import sys, runpy; sys.modules['torch'] = sys.modules['zoo'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[1])", str(script)],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0  # without arguments
    code = blocked + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), str(exported), *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    model = zoo.load(folder, device="cpu").align(photos)
    wanted = model.predict_proba(files)
    for line, row in zip(done.stdout.splitlines(), wanted, strict=True):
        _, label, probability = line.split("\t")
        assert label == model.classes[row.argmax()]
        assert float(probability) == pytest.approx(row.max(), abs=1.5e-4)  # and four digits


@pytest.mark.slow
def test_an_export_takes_any_number_of_photos_and_tells_its_labels(
    exported: Path, model: Photos, photos: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert sorted(json.loads(told["labels"])) == sorted(COLOURS)
    model.align(photos)
    for n in (1, 3):
        pictures = [picture((40, 60, 220), 90 + i, (SIDE, SIDE)) for i in range(n)]
        pixels = np.stack([np.asarray(p) for p in pictures])
        (found,) = session.run(None, {"pixels": pixels})
        np.testing.assert_allclose(found, model.predict_proba(pictures), atol=1e-4)


def test_export_refusals(model: Photos, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="labels="):
        model.export(tmp_path / "a.onnx")
    with pytest.raises(NotReadyError, match="at least two"):
        model.export(tmp_path / "a.onnx", labels="dog")
    with pytest.raises(OptionError, match=r"a\.safetensors"):
        model.export(tmp_path / "a.safetensors", labels=["dog", "cat"])
    assert not list(tmp_path.iterdir())


def test_the_lines_of_the_card(folder: Path, photos: Path, tmp_path: Path) -> None:
    """As a reader would run them, but for the encoders."""
    shutil.copy(photos / "red thing" / "0.png", tmp_path / "photo.jpg")
    lines = cards.usage(api.entry_of("lfa-photos")).replace('"lfa-photos"', repr(str(folder)))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            lines.replace("model.pred", "found = model.pred") + "\nprint(found)",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[0.")


# --- the bundle and the benchmark -----------------------------------------------------------------


def test_the_bundled_map_is_of_its_encoders_widths() -> None:
    from zoo.weights import header

    file = ROOT / "plugins" / "zoo_lfa" / "weights" / "lfa-photos" / "model.safetensors"
    assert header(file)["w"] == ("float16", (1280, 384))
    assert file.stat().st_size < 1.1e6


def test_the_benchmark_runs_on_tiny_encoders(
    folder: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    from pyarrow import parquet
    from zoo_lfa import photos_bench

    for part, count in (("train", 400), ("test", 200)):
        jpegs = []
        for i in range(count):
            made = io.BytesIO()
            red, green, blue = np.random.default_rng(i % 10).integers(0, 255, 3).tolist()
            picture((red, green, blue), i, (32, 32)).save(made, "jpeg")
            jpegs.append(made.getvalue())
        table = pyarrow.table({"jpeg": jpegs, "label": [i % 10 for i in range(count)]})
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    monkeypatch.setattr(photos_bench, "load", lambda request: zoo.load(folder, device="cpu"))
    monkeypatch.setattr(photos_bench, "_clip", lambda: None)
    entry, out = api.entry_of("lfa-photos"), tmp_path / "out"
    found = zoo_bench.run(
        entry, command="zoo bench", data=tmp_path, quick=True, base=bases, out=out
    )
    assert (out / "photos.png").is_file()
    assert found["table"]["lfa-photos"]["CIFAR-10, 4 shots"]["mean"] > 50  # ten plain colours
    identities = {claim["id"] for claim in found["claims"]}
    assert {"zero-shot", "few-shot-4", "calibrated-as-it-is", "held-out-classes"} <= identities
