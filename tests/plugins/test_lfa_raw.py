"""lfa on images and texts through a small open_clip checkpoint, and the verb ``zoo align lfa``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.errors import InputError, UsageError, WeightsError
from zoo.testing import VLAlignerSuite

CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
}
COLOURS = {"red_thing": (220, 40, 40), "green_thing": (40, 200, 60), "blue_thing": (40, 60, 220)}


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A random open_clip model of 1.6 M parameters, nearly all of them word vectors."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG), "utf-8")
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("lfa") / "tiny-clip")


def picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 20, (32, 32, 3))
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


class TestRaw(VLAlignerSuite):
    """The same promises for pictures and texts."""

    name = "lfa"

    @pytest.fixture(autouse=True)
    def _with_base(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "load_with", {"base": base})

    def load(self, **options: Any) -> Any:
        return zoo.load("lfa", **{"device": "cpu", **self.load_with, **options})

    @pytest.fixture
    def pairs(self) -> tuple[Any, Any]:
        colours = {**COLOURS, "white_thing": (230, 230, 230)}
        texts = [list(colours)[i % 4] for i in range(24)]
        return [picture(colours[name], i) for i, name in enumerate(texts)], texts


@pytest.mark.parametrize("kind", ["path", "text", "PIL", "uint8", "tensor"])
def test_pictures_of_every_kind(base: Path, photos: Path, kind: str) -> None:
    model = zoo.load("lfa", base=base, device="cpu")
    file = photos / "red_thing" / "0.png"
    with Image.open(file) as opened:
        loaded = opened.copy()
    pixels = np.asarray(loaded)
    image = {
        "path": file,
        "text": str(file),
        "PIL": loaded,
        "uint8": pixels,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255,
    }[kind]
    expected = model.similarity([file], ["a red thing"])
    np.testing.assert_allclose(model.similarity([image], ["a red thing"]), expected, atol=1e-5)
    assert model.similarity(image, "a red thing").shape == (1, 1)


def test_features_are_those_of_open_clip(base: Path) -> None:
    """Pixels, preprocessing and words as open_clip itself would have them."""
    import open_clip

    name = f"local-dir:{base}"
    net, _, prepare = open_clip.create_model_and_transforms(name)
    model = zoo.load("lfa", base=base, device="cpu")
    tall = picture((200, 120, 30), 0).resize((50, 70))
    with torch.no_grad():
        x = net.eval().encode_image(prepare(tall)[None], normalize=True)
        y = net.encode_text(open_clip.get_tokenizer(name)(["a red thing"]), normalize=True)
    np.testing.assert_allclose(model.embed_images([tall]), x.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(["a red thing"]), y.numpy(), atol=1e-5)


def test_a_folder_of_classes(base: Path, photos: Path) -> None:
    """Folder names are the texts; the fit is the one by features of these texts and pictures."""
    model = zoo.load("lfa", base=base, device="cpu", templates="photo")
    model.align(photos, safe=False)
    files = [photos / name / f"{i}.png" for name in sorted(COLOURS) for i in range(4)]
    names = [name.replace("_", " ") for name in sorted(COLOURS)]
    found = model.similarity(files, names)
    assert (found.argmax(1) == np.arange(12) // 4).all()
    plain = zoo.load("lfa", base=base, device="cpu")
    x, y = plain.embed_images(files), plain.embed_texts([f"a photo of a {n}." for n in names])
    by_features = zoo.load("lfa", device="cpu").align(x, y, labels=np.arange(12) // 4, safe=False)
    np.testing.assert_allclose(by_features.similarity(x, y), found, atol=1e-3)


def test_rows_of_jsonl(base: Path, photos: Path, tmp_path: Path) -> None:
    file = photos / "rows.jsonl"
    rows = [
        {"image": f"{name}/{i}.png", "text": name.replace("_", " ")}
        for name in COLOURS
        for i in (0, 1)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    model = zoo.load("lfa", base=base, device="cpu").align(file, safe=False)
    assert model.report["classes"] == 3
    file.write_text('{"image": "x.png"}\n{"image": "y.png", "text": "y"}', "utf-8")
    with pytest.raises(InputError, match="text is null in row 0"):
        zoo.load("lfa", base=base, device="cpu").align(file)
    file.unlink()  # the folder is another test's


def test_several_texts_a_class_are_averaged(base: Path) -> None:
    model = zoo.load("lfa", base=base, device="cpu")
    both = model.embed_texts([["red", "crimson"]])
    apart = model.embed_texts(["red", "crimson"]).mean(0)
    np.testing.assert_allclose(both[0], apart / np.linalg.norm(apart), atol=1e-5)
    with pytest.raises(InputError, match="same number"):
        model.embed_texts([["red", "crimson"], ["blue"]])
    many = zoo.load("lfa", base=base, device="cpu", templates="imagenet")
    assert many.embed_texts(["cat"]).shape == (1, 32)


def test_a_map_belongs_to_its_encoder(base: Path, photos: Path, tmp_path: Path) -> None:
    made = zoo.load("lfa", base=base, device="cpu").align(photos, safe=False)
    made.save_pretrained(tmp_path / "made")
    assert (
        zoo.load(tmp_path / "made", device="cpu")
        .similarity([photos / "red_thing/0.png"], ["x"])
        .size
    )
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="another encoder"):
        zoo.load(tmp_path / "made", base=other, device="cpu").embed_texts(["x"])


def test_what_is_no_checkpoint_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UsageError, match="open_clip_config"):
        zoo.load("lfa", base=tmp_path / "other", device="cpu")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "open_clip_config.json").write_text("{}", "utf-8")
    weights = (base / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "broken" / "open_clip_model.safetensors").write_bytes(weights)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        zoo.load("lfa", base=tmp_path / "broken", device="cpu").embed_texts(["x"])


# --- the verb -------------------------------------------------------------------------------------


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run ``zoo *args`` in this process, in a folder with features: exit code, stdout, stderr."""
    from zoo.cli import main

    rng = np.random.default_rng(0)
    y = rng.normal(size=(5, 12)).astype(np.float32)
    labels = np.arange(20) % 5
    np.save(tmp_path / "Y.npy", y)
    np.save(tmp_path / "X.npy", (y[labels] + 0.3 * rng.normal(size=(20, 12))).astype(np.float32))
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "y.txt").write_text("\n".join(map(str, labels)), "utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(args)
        said = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, said.out, said.err

    return run


ARGS = ("align", "lfa", "--features", "X.npy", "--prototypes", "Y.npy", "--device", "cpu")


@pytest.mark.parametrize("labels", ["y.npy", "y.txt"])
def test_zoo_align(command: Run, labels: str) -> None:
    code, out, err = command(*ARGS, "--labels", labels, "-o", "aligner", "--json", "-O", "seed=3")
    assert code == 0, err
    assert json.loads(out)["report"]["seed"] == 3
    model = zoo.load("./aligner", device="cpu")
    x, y = np.load("X.npy"), np.load("Y.npy")
    assert (model.similarity(x, y).argmax(1) == np.arange(20) % 5).mean() > 0.9
    code, _, err = command(*ARGS, "--labels", labels, "-o", "aligner")
    assert code == 1
    assert "already exists" in err
    code, out, _ = command(*ARGS, "--labels", labels, "-o", "aligner", "--force", "--quiet")
    assert code == 0
    assert 'zoo.load("./aligner")' in out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("align", "lfa", "-o", "a"), 2, "ROWS"),
        ((*ARGS, "-o", "a"), 1, "20 images and 5 texts"),
        ((*ARGS, "--labels", "no.npy", "-o", "a"), 1, "cannot be read"),
        ((*ARGS, "--labels", "y.npy", "-o", "a", "-O", "loss=mse"), 2, "rerank"),
        ((*ARGS, "--labels", "y.npy", "-o", "a", "-O", "los=rerank"), 2, "did you mean 'loss'"),
        (("align", "edge-sd-sr", "x", "-o", "a"), 1, "does not align"),
    ],
)
def test_zoo_align_says_what_is_wrong(
    command: Run, args: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = command(*args)
    assert (found, words in err, out) == (code, True, ""), err
