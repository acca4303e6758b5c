"""The verbs of each interface, with the models that ``zoo new`` writes, and ``zoo eval``."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from tests.conftest import Site, forget, install
from zoo import calibration, cli, protocols, scaffold
from zoo.annotations import read as read_boxes
from zoo.cli.inputs import numbered
from zoo.cli.options import split_settings
from zoo.entry import Entry
from zoo.errors import InputError, NotReadyError, OptionError, UsageError
from zoo.evaluation import evaluate
from zoo.protocols import alignment

pytest.importorskip("torch")

Run = Callable[..., tuple[int, str, str]]
COLOURS = {"red_dots": (220, 30, 30), "green_dots": (30, 200, 30), "blue_dots": (30, 40, 220)}


@pytest.fixture
def run(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """``zoo *args`` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main(args)
        assert isinstance(done.value.code, int)
        return (done.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def toy(here: Site, tmp_path: Path) -> Callable[[str], str]:
    """Write the model of ``zoo new`` for an interface, and install it; its name."""

    def made(interface: str) -> str:
        name = f"my-{interface.lower()}"
        install(here.path, scaffold.create(name, interface, tmp_path / "projects" / name))
        forget()
        return name

    (tmp_path / "projects").mkdir()
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder for each colour with four images of 8 x 8, and files that systems add."""
    root = tmp_path / "photos"
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).normal(0, 15, (8, 8, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "red_dots" / "._0.png").write_bytes(b"not an image")
    return root


def said(done: tuple[int, str, str], code: int, *words: str) -> None:
    """Assert that it failed with one line on stderr that has these words."""
    assert (done[0], done[1]) == (code, ""), done
    lines = [line for line in done[2].splitlines() if line.startswith("zoo: ")]
    assert len(lines) == 1, done
    for word in words:
        assert word in lines[0]


# --- what all verbs share -------------------------------------------------------------------------

CALLS = {
    "upscale": ("in.png",),
    "align": ("photos", "-o", "out"),
    "classify": ("in.png", "-o", "out"),
    "quantize": ("./llm", "-o", "out"),
    "select": ("--train", "a", "--target", "b", "-o", "out"),
    "detect": ("in.png",),
    "qa": ("text.txt",),
}


def test_labels_are_given_once(run: Run) -> None:
    files = ("--features", "x.npy", "--labels", "y.txt", "--texts", "t.npy")
    done = run("align", "lfa", *files, "-o", "out", "-O", "labels=3")
    said(done, 2, "labels: given twice, by --labels and by -O labels")


def test_a_keyword_that_is_also_an_option_is_given_once(
    run: Run, toy: Callable[[str], str]
) -> None:
    data = ("--train", "a.csv", "--target", "b.csv", "-o", "out")
    name = toy("DataSelector")
    for key in ("epochs", "seed"):
        done = run("select", name, *data, f"--{key}", "3", "-O", f"{key}=4")
        said(done, 2, f"{key}: given twice, by --{key} and by -O {key}")
    done = run("upscale", "edge-sd-sr", "x.png", "--tile", "none", "-O", "tile=64")
    said(done, 2, "tile: given twice, by --tile and by -O tile")
    # the default of --epochs does not count
    assert "given twice" not in run("select", name, *data, "-O", "epochs=4")[2]


@pytest.mark.parametrize("verb", ["eval", "train", "bench"])
def test_a_verb_without_keywords_promises_none(verb: str, run: Run) -> None:
    assert "keyword" not in run(verb, "--help")[1]
    assert "keyword" in run("upscale", "--help")[1]


@pytest.mark.parametrize("verb", CALLS)
def test_a_verb_is_for_models_of_its_kind(verb: str, run: Run, toy: Callable[[str], str]) -> None:
    other = toy("QAGenerator" if verb != "qa" else "Detector")
    arguments = CALLS[verb]
    said(run(verb, other, *arguments), 1, f"{other} is of kind ", "it does not")
    said(run(verb, "no-such-model", *arguments), 2, "no-such-model")
    planned = {"classify": "vladva"}
    if verb in planned:
        said(run(verb, planned[verb], *arguments), 1, "planned")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("verb", "interface", "keyword"),
    [
        ("classify", "VLAligner", "lables=1"),
        ("quantize", "Quantizer", "shceme=w8a8"),
        ("detect", "Detector", "treshold=1"),
        ("qa", "QAGenerator", "progress=1"),
    ],
)
def test_unknown_settings_are_refused(
    verb: str, interface: str, keyword: str, run: Run, toy: Callable[[str], str]
) -> None:
    done = run(verb, toy(interface), *CALLS[verb], "-O", keyword)
    said(done, 2, "has no option", keyword.partition("=")[0])


# --- quantize -------------------------------------------------------------------------------------


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    """A tiny Llama with random weights, and a tokenizer of characters."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "?", *"abcdefghijklmnopqrstuvwxyz ,.0123456789"]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="</s>", unk_token="?"
    ).save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_quantize(llm: Path, run: Run, toy: Callable[[str], str]) -> None:
    """A folder gives a smaller one that loads; texts calibrate it."""
    name = toy("Quantizer")
    Path("texts.txt").write_text("one and two.\n\n \nthree, 4.\r\n\r\nfive\n", "utf-8")
    assert calibration.read(Path("texts.txt")) == ["one and two.", "three, 4.", "five"]
    done = run("quantize", name, "./llm", "--calibration", "texts.txt", "-o", "small", "--quiet")
    assert done[0] == 0, done
    assert 'small: load it with zoo.load("./small")' in done[1]
    assert "7 layers quantized" in done[1]
    small = zoo.load("./small")
    assert small.report()["bytes_after"] < 0.6 * small.report()["bytes_before"]
    assert small.tokenizer("a")["input_ids"]
    said(run("quantize", name, "./llm", "-o", "small"), 1, "small already exists")
    said(run("quantize", "./small", "./llm", "-o", "x"), 1, "./small is of kind quantized")
    said(run("eval", "./small", "texts.txt"), 1, "no common metrics for the kind quantized")
    shown = run("info", "./small")[1]
    assert max(map(len, shown.splitlines())) < 400  # the network's config is far longer
    done = run("quantize", name, "./llm", "-o", "small", "--scheme", "w8a16", "--force", "--json")
    found = json.loads(done[1])
    assert (done[0], found["source"]["id"]) == (0, str(Path("llm")))
    assert zoo.load("./small").config["scheme"] == "w8a16"


def test_quantize_dry_run(
    llm: Path, run: Run, toy: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the method estimates, and nothing is written; a method that cannot tell says so."""
    from zoo.interfaces import Estimate, Quantizer

    name = toy("Quantizer")
    said(run("quantize", name, "./llm", "-o", "small", "--dry-run"), 1, "gives no estimate")
    asked = []

    def estimate(self: Any, llm: Any, texts: Any, **keywords: Any) -> Estimate:
        asked.append((llm, keywords["scheme"]))
        return Estimate(3, 1e9, 2_000_000_000, 240.0, ("two layers",))

    monkeypatch.setattr(Quantizer, "estimate", estimate)
    arguments = ("quantize", name, "./llm", "-o", "small", "--dry-run", "--scheme", "w8a16")
    assert run(*arguments)[1].splitlines() == [
        "two layers",
        "about 2.0 GB of memory beyond the weights, and 4 min on this machine",
    ]
    assert json.loads(run(*arguments, "--json")[1])["seconds"] == 240
    assert asked == [("./llm", "w8a16")] * 2
    assert not Path("small").exists()


def test_quantize_refuses_before_it_writes(llm: Path, run: Run, toy: Callable[[str], str]) -> None:
    name = toy("Quantizer")
    Path("empty.txt").write_text("\n\n", "utf-8")
    Path("latin.txt").write_bytes("größer".encode("latin-1"))
    Path("ids.npy").write_bytes(b"\x93NUMPY and no more")
    for given, words in {
        "empty.txt": "empty",
        "latin.txt": "latin.txt is not UTF-8 text",
        "ids.npy": "not a plain .npy",
        "gone.txt": "gone.txt",
    }.items():
        done = run("quantize", name, "./llm", "--calibration", given, "-o", "small")
        said(done, 1, words)
    said(run("quantize", name, "./llm", "--scheme", "w1a1", "-o", "small"), 2, "w1a1")
    said(run("quantize", name, "./llm", "-o", "no/small"), 1, "no is not a folder")
    assert not Path("small").exists()


def test_a_fault_of_a_plugin_is_reported_to_its_author(
    llm: Path, run: Run, toy: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = toy("Quantizer")
    done = run("quantize", name, "./llm", "-o", "small", "-O", "tokenizer=3")
    said(done, 1, "unexpected TypeError", f"please report it to {name})")
    monkeypatch.setattr("zoo.calibration.read", lambda path: 1 / 0)
    done = run("quantize", name, "./llm", "-o", "small", "--calibration", "texts.txt")
    said(done, 1, "unexpected ZeroDivisionError", "please report it)")


# --- detect ---------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two bright boxes on black, in a folder of a folder; an image without objects; a broken
    one."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:20, 5:25] = 250
    pixels[30:50, 40:70] = 230
    (tmp_path / "scene" / "deep").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "scene" / "deep" / "two.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "scene" / "none.png")
    return tmp_path / "scene"


def test_detect(scene: Path, run: Run, toy: Callable[[str], str]) -> None:
    """Boxes as text, as a COCO file that COCO's readers read, and drawn."""
    name = toy("Detector")
    code, out, _ = run("detect", name, "scene")
    assert (code, out.splitlines()) == (0, [
        f"{Path('scene/deep/two.png')}: bright 0.98 (5, 10, 25, 20); bright 0.90 (40, 30, 70, 50)",
        f"{Path('scene/none.png')}: nothing",
    ])  # fmt: skip
    assert run("detect", name, "scene", "-o", "found")[0] == 0
    made = json.loads(Path("found/detections.json").read_text("utf-8"))
    assert [box["bbox"] for box in made["annotations"]] == [[5, 10, 20, 10], [40, 30, 30, 20]]
    read = read_boxes("found/detections.json", ".")
    assert read.names == ("bright",)
    np.testing.assert_array_equal(read.truth[0].boxes, [[5, 10, 25, 20], [40, 30, 70, 50]])
    with Image.open("found/deep/two.png") as drawn, Image.open(scene / "deep/two.png") as before:
        assert drawn.size == before.size
        assert drawn.getpixel((5, 15)) != before.getpixel((5, 15))  # the box's left edge
        assert drawn.getpixel((55, 40)) == before.getpixel((55, 40))
    said(run("detect", name, "scene", "-o", "found"), 1, "already exists")
    assert run("detect", name, "scene", "-o", "found", "--force")[0] == 0
    code, out, _ = run("detect", name, "scene/**/t*.png", "--threshold", "0.95", "--json")
    assert (code, len(json.loads(out)["annotations"])) == (0, 1)


def test_detect_draws_one_picture_where_o_names_one(
    scene: Path, run: Run, toy: Callable[[str], str]
) -> None:
    name, one = toy("Detector"), "scene/deep/two.png"
    assert run("detect", name, one, "-o", "new/boxes.png")[0] == 0
    assert [*Path("new").iterdir()] == [Path("new/boxes.png")]
    with Image.open("new/boxes.png") as drawn, Image.open(one) as before:
        assert drawn.getpixel((5, 15)) != before.getpixel((5, 15))
    said(run("detect", name, one, "-o", "new/boxes.png"), 1, "already exists")
    assert run("detect", name, one, "-o", "new/boxes.png", "--force")[0] == 0
    said(run("detect", name, "scene", "-o", "all.png"), 1, "2 inputs. Give a folder")
    assert not Path("all.png").exists()


def test_one_broken_picture_does_not_stop_the_others(
    scene: Path, run: Run, toy: Callable[[str], str]
) -> None:
    name = toy("Detector")
    (scene / "broken.png").write_bytes(b"not an image")
    code, out, err = run("detect", name, "scene", "-o", "found")
    assert code == 1
    assert "two.png: bright" in out
    assert "zoo: 1 of 3 images could not be used:" in err
    assert "broken.png" in err
    assert Path("found/deep/two.png").is_file()
    assert len(json.loads(Path("found/detections.json").read_text())["images"]) == 2
    said(run("detect", name, "scene/broken.png", "-o", "other"), 1, "broken.png")
    assert not Path("other").exists()
    said(run("detect", name, "gone.png"), 1, "gone.png: there is no such file")
    said(run("detect", name, "*.jpg"), 1, "*.jpg: no file matches")
    said(run("detect", name, ""), 1, "an input is empty")
    said(run("detect", name, "x" * 300), 1, f"{'x' * 300}: File name too long")
    said(run("detect", name, "scene", "--threshold", "2"), 2, "threshold")


def test_pictures_of_one_name_are_numbered(
    scene: Path, run: Run, toy: Callable[[str], str]
) -> None:
    """Both become a PNG: the second gets a number that no other image has."""
    name = toy("Detector")
    for other in ("none.jpg", "none-2.png"):
        Image.new("RGB", (30, 20)).save(scene / other)
    assert run("detect", name, "scene", "-o", "found")[0] == 0
    made = sorted(path.name for path in Path("found").glob("*.png"))
    assert made == ["none-2.png", "none-3.png", "none.png"]
    assert [str(p) for p in numbered(map(PurePath, ["d/a.b", "a.b", "d/A.b", "d/a.b"]))] == [
        str(PurePath(text)) for text in ("d/a.b", "a.b", "d/A-2.b", "d/a-3.b")
    ]


def test_an_option_may_be_set_as_a_keyword(
    scene: Path, run: Run, toy: Callable[[str], str]
) -> None:
    code, out, _ = run("detect", toy("Detector"), "scene/deep", "-O", "threshold=0.95")
    assert (code, out.count("bright")) == (0, 1)


def test_a_keyword_without_annotation_is_read_as_the_interface_says() -> None:
    class Plain:
        def detect(self, images, *, threshold=None, own=None):
            pass

    entry = Entry(name="plain", interface="Detector", plugin="plain", status="ready", summary="")
    read = split_settings({"threshold": "1", "own": "[1]"}, entry, Plain.detect)[1]
    assert read == {"threshold": 1.0, "own": [1]}
    with pytest.raises(OptionError, match="a number"):
        split_settings({"threshold": "x"}, entry, Plain.detect)


# --- qa -------------------------------------------------------------------------------------------


def test_qa(run: Run, toy: Callable[[str], str]) -> None:
    """Questions are printed, or saved as SQuAD with right positions, or as JSONL with all
    fields."""
    name = toy("QAGenerator")
    text = "Mix it well. Bake it for 5 minutes."
    Path("cake.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    Path("tea.txt").write_text("Boil water. Wait for 3 minutes.", "utf-8")
    code, out, _ = run("qa", name, "cake.txt")
    assert code == 0
    assert "cake.txt: 2 pairs, 2 with their answer in the text; coverage 100%" in out
    assert "    5 minutes" in out
    assert run("qa", name, "cake.txt", "tea.txt", "-o", "all.json")[0] == 0
    squad = json.loads(Path("all.json").read_text("utf-8"))
    assert [article["title"] for article in squad["data"]] == ["cake", "tea"]
    paragraph = squad["data"][0]["paragraphs"][0]
    assert paragraph["context"] == text
    for question in paragraph["qas"]:
        (answer,) = question["answers"]
        assert text[answer["answer_start"] :].startswith(answer["text"])
    assert run("qa", name, "cake.txt", "-o", "all.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path("all.jsonl").read_text("utf-8").splitlines()]
    assert {row["kind"] for row in rows} == {"next", "duration"}
    code, out, _ = run("qa", name, "cake.txt", "--json")
    assert [len(record["pairs"]) for record in json.loads(out)] == [2]


def test_qa_into_a_folder(run: Run, toy: Callable[[str], str]) -> None:
    """A folder for one text, or for each of several; it is complete or absent, and not replaced."""
    name = toy("QAGenerator")
    Path("cake.txt").write_text("Mix it well. Bake it for 5 minutes.", "utf-8")
    Path("more").mkdir()
    Path("more/cake.txt").write_text("Boil water. Wait for 3 minutes.", "utf-8")
    assert run("qa", name, "cake.txt", "-o", "one")[0] == 0
    assert {p.name for p in Path("one").iterdir()} == {"graph.json", "qa.jsonl", "squad.json"}
    graph = json.loads(Path("one/graph.json").read_text("utf-8"))
    assert {n["kind"] for n in graph["nodes"]} == {"step", "duration"}
    said(run("qa", name, "cake.txt", "-o", "one"), 1, "one")
    assert run("qa", name, "cake.txt", "more/cake.txt", "-o", "two")[0] == 0
    for folder, answer in (("cake", "5 minutes"), ("cake-2", "3 minutes")):
        lines = Path("two", folder, "qa.jsonl").read_text("utf-8").splitlines()
        assert answer in {json.loads(line)["answer"] for line in lines}
    Path("empty.txt").write_text(" ", "utf-8")
    said(run("qa", name, "empty.txt", "-o", "three"), 1, "empty.txt is empty")
    assert not Path("three").exists()


def test_qa_refuses(run: Run, toy: Callable[[str], str]) -> None:
    name = toy("QAGenerator")
    Path("empty.txt").write_text(" \n", "utf-8")
    Path("cake.txt").write_text("Mix it.", "utf-8")
    said(run("qa", name, "empty.txt"), 1, "empty.txt is empty")
    said(run("qa", name, "gone.txt"), 1, "cannot read gone.txt")
    said(run("qa", name, "cake.txt", "-o", "x.csv"), 1, "x.csv", ".json or .jsonl")
    said(run("qa", name, "cake.txt", "-o", "no/x.json"), 1, "no is not a folder")


# --- classify -------------------------------------------------------------------------------------


@pytest.fixture
def fitted(photos: Path, run: Run, toy: Callable[[str], str]) -> str:
    """An aligner of the three colours, saved as ./fitted."""
    model = zoo.load(toy("VLAligner"))
    names = [name.replace("_", " ") for name in COLOURS]
    images = [path for name in COLOURS for path in sorted((photos / name).glob("[0-9].png"))]
    model.align(images, names, labels=[i // 4 for i in range(12)]).save_pretrained("fitted")
    return "./fitted"


def test_classify(fitted: str, photos: Path, run: Run) -> None:
    """A table, a contact sheet, copies by label; the photos stay where they are."""
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    code, out, _ = run("classify", fitted, "photos", "-o", "sorted", "--copy")
    assert code == 0
    assert "     4  red dots" in out
    with Path("sorted/labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        assert Path(row["file"]).parent.name.replace("_", " ") == row["label"]
        assert 1 / 3 < float(row["probability"]) <= 1
    with Image.open("sorted/sheet.png") as sheet:
        assert sheet.width > 8 * 128
        red = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
        assert ((abs(red - COLOURS["red_dots"])).max(1) < 60).sum() >= 4 * 64
    copies = {
        path.relative_to("sorted/by_label").parent for path in Path("sorted").rglob("*/*.png")
    }
    assert {path.as_posix() for path in copies} == {"red dots", "green dots", "blue dots"}
    assert sum(1 for path in Path("sorted/by_label").rglob("*.png")) == 12
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before
    said(run("classify", fitted, "photos", "-o", "sorted"), 1, "already exists")
    assert run("classify", fitted, "photos", "-o", "sorted", "--force", "--copy")[0] == 0
    assert sum(1 for path in Path("sorted/by_label").rglob("*.png")) == 12


def test_classify_by_labels_of_ones_own(fitted: str, run: Run) -> None:
    labels = "../red dots, blue dots"
    photos = "photos/red_dots/*.png"
    code, out, _ = run(
        "classify", fitted, photos, "--labels", labels, "-o", "s", "--copy", "--json"
    )
    found = json.loads(out)["photos"]
    assert (code, len(found)) == (0, 4)
    assert {one["label"] for one in found} <= {"../red dots", "blue dots"}
    copies = [path for path in Path().rglob("?.png") if "photos" not in path.parts]
    assert {path.parts[:-2] for path in copies} == {("s", "by_label")}  # a label leads nowhere else
    Path("labels.txt").write_text("red dots\nblue, not red\n", "utf-8")
    code, out, _ = run("classify", fitted, photos, "--labels", "labels.txt", "-o", "u")
    assert (code, "blue, not red" in out) == (0, True)
    many = ", ".join(f"a photo of {'a very ' * i}red dot" for i in range(60))
    assert run("classify", fitted, photos, "--labels", many, "-o", "v", "--copy")[0] == 0
    Path("one.txt").write_text("red dots\n", "utf-8")
    for wrong in ("red", "a,,b", "a, a", "one.txt"):
        said(run("classify", fitted, "photos", "--labels", wrong, "-o", "t"), 2, "--labels", wrong)


def test_classify_needs_labels(run: Run, photos: Path, toy: Callable[[str], str]) -> None:
    done = run("classify", toy("VLAligner"), "photos", "-o", "out")
    said(done, 2, "has no labels", "--labels")
    assert not Path("out").exists()


def test_a_contact_sheet_of_many(photos: Path, tmp_path: Path) -> None:
    """More photos than fit: the most probable, and in the last line the least probable."""
    from zoo.cli import classify
    from zoo.cli.inputs import Picture

    path = next(photos.rglob("0.png"))
    many = [classify.Labelled(Picture(path, PurePath(str(i))), "a", 1 - i / 100) for i in range(60)]
    few = classify.sheet(many[:24], ["a", "b"])
    assert classify.sheet(many, ["a", "b"]).size == few.size
    assert classify.sheet([], ["a"]).height < few.height


# --- eval -----------------------------------------------------------------------------------------


def test_eval_of_classes(fitted: str, photos: Path, run: Run) -> None:
    """Accuracy over all and by class; a photo in the wrong folder is the worst."""
    (photos / "red_dots" / "0.png").rename(photos / "blue_dots" / "red.png")
    code, out, _ = run("eval", fitted, "photos", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["size"] == "12 images, 3 classes"
    assert found["means"]["accuracy"] == pytest.approx(11 / 12)
    assert found["classes"]["blue dots"]["accuracy"] == pytest.approx(4 / 5)
    assert found["classes"]["red dots"]["accuracy"] == 1
    code, out, _ = run("eval", fitted, "photos", "--worst", "1")
    assert code == 0
    assert "12 images, 3 classes" in out
    assert out.splitlines()[-1].split("|")[1].strip() == "blue_dots/red.png"
    assert "taken for 'red dots'" in out.splitlines()[-1]


class Known:
    """Similarities that are known."""

    interface = "VLAligner"

    def __init__(self, table: Any) -> None:
        self.table = np.array(table, np.float32)

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        assert len(texts) == self.table.shape[1]
        return self.table[[int(image[0]) for image in images]]


def features(path: Path, rows: int, texts: int, labels: list[int] | None = None) -> Path:
    numbers = np.arange(rows, dtype=np.float32)[:, None]
    words = np.zeros((texts, 2), np.float32)
    if labels is None:
        np.savez(path, images=numbers, texts=words)
    else:
        np.savez(path, images=numbers, texts=words, labels=np.array(labels))
    return path


def test_recall_by_hand(tmp_path: Path) -> None:
    """Three pairs: the ranks are counted on paper; ties count as wrong."""
    data = features(tmp_path / "pairs.npz", 3, 3)
    #        text  0    1    2
    table = [[0.9, 0.1, 0.2],  # image 0: its text first
             [0.5, 0.5, 0.1],  # image 1: a tie with text 0, so second
             [0.8, 0.6, 0.3]]  # image 2: third  # fmt: skip
    found = evaluate(Known(table), data)  # type: ignore[arg-type]
    assert found.means["image to text R@1"] == pytest.approx(1 / 3)
    assert found.means["image to text R@5"] == 1
    # text 0: image 0 first; text 1: image 2 is above image 1; text 2: image 2 first
    assert found.means["text to image R@1"] == pytest.approx(2 / 3)
    assert found.worst(1)[0].item == "2"
    assert found.groups == {}
    nothing = evaluate(Known(np.ones((3, 3))), data)  # type: ignore[arg-type]
    assert nothing.means["image to text R@1"] == nothing.means["text to image R@1"] == 0


def test_accuracy_by_hand(tmp_path: Path) -> None:
    data = features(tmp_path / "classes.npz", 4, 2, [0, 0, 1, 1])
    table = [[0.9, 0.1], [0.2, 0.4], [0.3, 0.3], [0.1, 0.8]]
    found = evaluate(Known(table), data)  # type: ignore[arg-type]
    assert found.means["accuracy"] == 0.5
    assert found.groups["0"]["accuracy"] == found.groups["1"]["accuracy"] == 0.5
    assert [item.item for item in found.worst(2)] == ["1", "2"]
    assert found.worst(1)[0].scores["margin"] == pytest.approx(-0.2)
    assert found.worst(1)[0].note == "taken for '1'"


def test_pairs_of_a_file(tmp_path: Path) -> None:
    """Paths are relative to the file; all images of a text count as right for it."""
    lines = [
        {"image": "a.png", "text": "a\u2028dog"},
        {"image": "b.png", "text": "a cat"},
        {"image": "c.png", "text": "a cat"},
    ]
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(r, ensure_ascii=False) for r in lines))
    rows = alignment.items(path)
    assert (rows.texts, rows.labels) == (["a\u2028dog", "a cat"], [0, 1, 1])
    assert Path(rows.images[0]) == tmp_path / "a.png"
    assert list(rows) == ["a.png", "b.png", "c.png"]

    class Sure:
        interface = "VLAligner"

        def similarity(self, images: Any, texts: Any) -> np.ndarray:
            return np.array([[0.9, 0.1], [0.1, 0.8], [0.1, 0.7]], np.float32)

    found = evaluate(Sure(), path)  # type: ignore[arg-type]
    assert {m: v for m, v in found.means.items() if "R@" in m} == {
        f"{way} R@{k}": 1.0 for way in ("image to text", "text to image") for k in (1, 5, 10)
    }


def test_what_a_model_loads_at_first_is_not_timed(tmp_path: Path) -> None:
    """Opening an encoder on first use is a one-time cost."""
    data = features(tmp_path / "classes.npz", 4, 2, [0, 0, 1, 1])

    class Lazy(Known):
        ready = False

        def similarity(self, images: Any, texts: Any) -> np.ndarray:
            began = time.process_time()
            while not self.ready and time.process_time() - began < 0.4:
                pass
            self.ready = True
            return super().similarity(images, texts)

    found = evaluate(Lazy(np.eye(4, 2)), data)  # type: ignore[arg-type]
    assert found.means["CPU-s/image"] < 0.05  # 0.1 with the first call


def test_a_part_of_the_rows(photos: Path) -> None:
    part = alignment.items(photos, 3)
    assert list(part) == ["blue_dots/0.png", "green_dots/0.png", "red_dots/0.png"]
    assert (len(part.texts), part.labels) == (3, [0, 1, 2])


def test_wrong_data_is_refused_in_words(tmp_path: Path, photos: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    for text, words in {
        '{"image": "a.png"}': "images with a text or a label",
        "[]": "line 1",
        '{"image": "a.png", "text": "a"}': "only one text",
        "": "empty",
    }.items():
        broken.write_text(text, "utf-8")
        with pytest.raises(InputError, match=words):
            alignment.items(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder of images for each class"):
        alignment.items(tmp_path / "empty")
    (tmp_path / "one" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a" / "x.png")
    with pytest.raises(InputError, match="only one class"):
        alignment.items(tmp_path / "one")
    for labels, words in (([0, 1], "expected 3 whole"), ([0, 1, 2], "from 0 to 1")):
        with pytest.raises(InputError, match=words):
            alignment.items(features(tmp_path / "f.npz", 3, 2, labels))
    with pytest.raises(InputError, match="are not pairs"):
        alignment.items(features(tmp_path / "f.npz", 3, 2))
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 2)))
    with pytest.raises(InputError, match="has no texts"):
        alignment.items(tmp_path / "f.npz")
    (tmp_path / "f.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"not a plain \.npz"):
        alignment.items(tmp_path / "f.npz")
    with pytest.raises(UsageError, match="--data"):
        alignment.items(None)


def test_eval_of_super_resolution(run: Run, toy: Callable[[str], str], tmp_path: Path) -> None:
    """The common metrics; a picture of noise is worse than a plain one."""
    (tmp_path / "large").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("large/noise.png")
    Image.new("RGB", (66, 65), (80, 90, 100)).save("large/plain.png")
    code, out, _ = run("eval", toy("SRModel"), "large", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found["means"]) == {"PSNR-Y", "SSIM", "HaarPSI", "CPU-s/megapixel"}
    assert found["size"] == "2 images"
    code, out, _ = run("eval", "edge-sd-sr", "large")
    assert out.split("The worst 2 of 2:")[1].split("|")[13].strip() == "noise.png"


def test_eval_says_what_it_cannot_do(run: Run, toy: Callable[[str], str], tmp_path: Path) -> None:
    said(run("eval", toy("Quantizer"), "x"), 1, "no common metrics for the kind Quantizer yet")
    said(run("eval", "edge-sd-sr", "gone"), 1, "gone: there is no such file")
    with pytest.raises(NotReadyError, match="a model without an interface"):
        protocols.of(None)
    (tmp_path / "none").mkdir()
    said(run("eval", "edge-sd-sr", "none"), 2, "contains no images")
    for size in ((23, 40), (3, 3)):
        Image.new("RGB", size).save(tmp_path / "none" / "small.png")
        said(run("eval", "edge-sd-sr", "none"), 1, "small.png is ", "less than 24 pixels")
    Image.new("RGB", (24, 27)).save(tmp_path / "none" / "small.png")
    assert run("eval", "edge-sd-sr", "none")[0] == 0


def test_eval_continues_after_a_broken_image(fitted: str, photos: Path, run: Run) -> None:
    """The other images are measured; the broken one is reported, with exit code 1."""
    (photos / "red_dots" / "broken.png").write_bytes(b"not an image")
    code, out, err = run("eval", fitted, "photos")
    assert code == 1
    assert "12 images, 3 classes" in out
    assert "zoo: 1 of 13 images could not be used:" in err
    assert "broken.png" in err
    Path("large").mkdir()
    Image.new("RGB", (24, 24)).save("large/whole.png")
    Image.new("RGB", (8, 8)).save("large/small.png")
    Path("large/broken.png").write_bytes(b"not an image")
    code, out, err = run("eval", "edge-sd-sr", "large", "--json")
    found = json.loads(out)
    assert code == 1
    assert [item["item"] for item in found["items"]] == ["whole.png"]
    assert len(found["failures"]) == 2
    assert "zoo: 2 of 3 images could not be used:" in err


# --- select ---------------------------------------------------------------------------------------


def test_select_checks_k_before_the_fit(
    run: Run, toy: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = toy("DataSelector")
    Path("train.csv").write_text("a,b,label\n1,2,0\n3,4,1\n", "utf-8")

    def load(*args: Any, **options: Any) -> Any:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("zoo.api.load", load)
    for k in ("3", "-1"):
        data = ("--train", "train.csv", "--target", "train.csv", "-o", "out", "--k", k)
        said(run("select", name, *data), 2, f"--k {k}: expected 0 to 2")


# --- outputs, before the work ---------------------------------------------------------------------

FOLDERS = {
    "align": ("VLAligner", ("photos",)),
    "classify": ("VLAligner", ("photos", "--labels", "a, b")),
    "quantize": ("Quantizer", ("./llm",)),
    "select": ("DataSelector", ("--train", "a.csv", "--target", "b.csv")),
    "detect": ("Detector", ("photos",)),
    "upscale": ("SRModel", ("photos",)),
}
MAKES_PARENTS = {"classify", "detect", "upscale"}
"""Their output folder holds several files, and is created with its parents."""


@pytest.mark.parametrize("verb", FOLDERS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    verb: str,
    run: Run,
    toy: Callable[[str], str],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interface, arguments = FOLDERS[verb]
    name = toy(interface)

    def load(*args: Any, **options: Any) -> Any:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("zoo.api.load", load)
    Path("file").write_text("mine")
    Path("taken").mkdir()
    files = {
        "upscale": [f"{colour}/{i}-x2.png" for colour in COLOURS for i in range(4)],
        "detect": ["detections.json"],
        "classify": ["labels.csv"],
    }.get(verb, ["notes.txt"])
    for file in files:
        (Path("taken") / file).parent.mkdir(parents=True, exist_ok=True)
        (Path("taken") / file).write_text("mine")
    more = ("--scale", "2") if verb == "upscale" else ()
    said(run(verb, name, *arguments, *more, "-o", "file/"), 1, "file")
    said(run(verb, name, *arguments, *more, "-o", "taken"), 1, "already exists")
    if verb not in MAKES_PARENTS:
        said(run(verb, name, *arguments, "-o", "no/such/out"), 1, "no/such is not a folder")
        said(run(verb, name, *arguments, "-o", "taken", "--force"), 1, "is not a saved model")
    assert Path("file").read_text() == "mine"
    assert all((Path("taken") / file).read_text() == "mine" for file in files)
    assert not Path("no").exists()


def test_train_refuses_its_output_before_the_work(
    run: Run, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: Any) -> Any:
        raise AssertionError("training began")

    monkeypatch.setattr("zoo.plugins.call", call)
    Path("file").write_text("mine")
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    for out, words in {"file": "file", "taken": "is not empty"}.items():
        said(run("train", "edge-sd-sr", "--data", "photos", "-o", out), 1, words)
    assert Path("taken/notes.txt").read_text() == "mine"
