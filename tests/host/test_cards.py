"""Cards: their content, its escaping, and the faults that ``zoo card --check`` finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from zoo import about, bench, cards, spec
from zoo.about import About
from zoo.entry import Entry
from zoo.errors import InputError, RegistryError
from zoo.interfaces import Claim, Data, Metric, Results

DIGEST = "ab" * 32
REGISTRY = f"""
schema: 1
zoo_api: 1
models:
  doubler:
    interface: SRModel
    status: ready
    method: doubler
    size: tiny
    summary: makes things twice as large
    paper: {{title: "On <b>Doubling</b> | twice", id: "arXiv:1234.56789"}}
    license: {{code: MIT, weights: CC0-1.0}}
    extra: sr
    params: 1200000
    class: "zoo_doubler.model:Model"
    files:
      - {{path: model.safetensors, size: 10, sha256: "{DIGEST}", dtype: float16}}
    card:
      data: [{{name: photos, license: CC0-1.0}}, {{name: org/more-photos, license: MIT}}]
      training: zoo train doubler --data photos -o runs/doubler
      picture: before.png
"""
ABOUT = """\
Doubles, by `code` and a [link](http://x):
{{doubler | PSNR-Y}} dB.

## Picture

small,
then large

## What it is not good for

- Not for faces: bicubic has {{bicubic | PSNR-Y}},
  so {{better.value}} against {{better.against}} (± {{better.spread}}).
- Nor for text.
"""


@pytest.fixture
def entry() -> Entry:
    parsed = spec.parse(REGISTRY, path=Path("registry.yaml"), package="zoo_doubler")
    return parsed.models["doubler"]


@pytest.fixture
def folder(tmp_path: Path, entry: Entry) -> Path:
    """A valid card folder, measured and rendered."""
    results = Results(
        table={
            "bicubic": {"PSNR-Y": Metric(28.4)},
            "doubler": {"PSNR-Y": Metric.of([29.1, 29.3])},
        },
        claims=[Claim("better", "better than bicubic", "PSNR-Y", 29.2, 28.4, 0.1, True)],
        data=[Data("Set5", "research use", "5 images")],
        seeds=[0, 1],
        higher_is_better={"PSNR-Y": True},
    )
    weights = {"model.safetensors": DIGEST}
    found = bench.record("doubler", results, "zoo bench doubler --data PATH/set5", 12.3, weights)
    found["code"] = "1" * 40
    place = tmp_path / "hub_cards" / "doubler"
    bench.write(found, place)
    (place / "before.png").write_bytes(b"a picture")
    (place / about.FILE).write_text(ABOUT, "utf-8")
    cards.write(entry, place)
    return place


def test_a_fresh_card_has_no_faults(entry: Entry, folder: Path) -> None:
    assert cards.faults(entry, folder) == []


def test_metadata_is_what_the_hub_reads(entry: Entry, folder: Path) -> None:
    card = ModelCard((folder / "README.md").read_text("utf-8"))
    data = card.data.to_dict()
    assert data["license"] == "cc0-1.0"
    assert data["library_name"] == "zoo"
    assert data["pipeline_tag"] == "image-to-image"
    assert "arxiv:1234.56789" in data["tags"]
    assert data["datasets"] == ["org/more-photos"]  # the other is not on the Hub
    (result,) = card.data.eval_results  # type: ignore[attr-defined]
    assert (result.metric_name, result.metric_value) == ("PSNR-Y", 29.2)
    assert result.dataset_name == "Set5"
    # card -> metadata -> card gives equal text
    assert str(ModelCard(str(card))) == str(card)


def test_the_card_says_what_a_reader_needs(entry: Entry, folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    for needed in (
        "tiny variant",
        "not the paper's model",
        'zoo.load("doubler")',
        "Doubles, by `code` and a [link](http://x):\n29.2 dB.",
        "- Not for faces: bicubic has 28.4, so 29.2 against 28.4 (± 0.1).\n- Nor for text.\n",
        "photos (CC0-1.0)",
        "zoo train doubler --data photos",
        "zoo bench doubler --data PATH/set5",
        "29.2 ± 0.14",
        "better than bicubic",
        "Seeds: 0, 1.",
        "![small, then large](before.png)",
        "edgezoo[sr]" if entry.distribution == "edgezoo" else "[sr]",
    ):
        assert needed in text, needed


def test_registry_text_stays_text(entry: Entry, folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    assert "On \\<b\\>Doubling\\</b\\> \\| twice" in text
    assert "<b>" not in text
    from dataclasses import replace

    said = replace(
        entry, license={"code": "<i>", "weights": "MIT"}, paper={"title": "t", "id": "<i>"}
    )
    records = bench.records(folder)
    records[0]["table"]["<i>bicubic"] = {"<i>": {"mean": 1.0, "std": 0.0, "n": 1}}
    records[0]["claims"][0]["rule"] = "<i>"
    body = cards.render(said, records).split("---", 2)[2]
    assert "&lt;i>bicubic" in body
    assert "<i>" not in body.replace("\\<", "")


def test_a_benchmark_in_parts(entry: Entry, folder: Path) -> None:
    """A part stands in a section of its own, and about.md may quote it."""
    whole = bench.records(folder)[0]
    table = {"doubler": {"seconds": {"mean": 0.25, "std": 0.0, "n": 1}}}
    part = {**whole, "part": "speed", "table": table, "claims": [], "command": "zoo bench speed"}
    path = bench.write(part, folder)
    assert (path.name, bench.records(folder)) == ("results-speed.json", [whole, part])
    (folder / "about.md").write_text(
        "It takes {{doubler | seconds}} s, at {{doubler | PSNR-Y}} dB.\n\n"
        "## Picture\n\nP.\n\n## What it is not good for\n\n- Much.\n",
        "utf-8",
    )
    text = cards.write(entry, folder).read_text("utf-8")
    assert f"takes 0.25 s, at {whole['table']['doubler']['PSNR-Y']['mean']:.4g} dB" in text
    assert text.index(whole["command"]) < text.index("### Speed") < text.index("zoo bench speed")
    assert cards.faults(entry, folder) == []
    bench.write({**part, "code": "1" * 40 + "+"}, folder)
    assert any("results-speed.json was made with unc" in f for f in cards.faults(entry, folder))
    path.rename(folder / "results-size.json")
    with pytest.raises(InputError, match=r"results-size.json: holds .* results-speed.json. Rename"):
        bench.records(folder)


def test_a_model_without_trained_weights_says_how_to_train_it(entry: Entry) -> None:
    from dataclasses import replace

    text = cards.render(replace(entry, status="untrained", files=()), [])
    assert "There are no trained weights" in text
    assert "$ zoo train doubler --data PATH -o runs/doubler" in text
    assert 'zoo.load("./runs/doubler/model")' in text
    assert "no weights of its own" not in text


def test_what_the_check_finds(entry: Entry, folder: Path) -> None:
    page, record = folder / "README.md", folder / bench.FILE
    good, measured = page.read_text("utf-8"), json.loads(record.read_text("utf-8"))

    def faults_with(text: str = good, said: Entry = entry, **changes: object) -> str:
        page.write_text(text, "utf-8")
        record.write_text(json.dumps({**measured, **changes}), "utf-8")
        return "; ".join(cards.faults(said, folder))

    from dataclasses import replace

    assert faults_with() == ""
    assert "stale" in faults_with(good.replace("29.2", "39.2"))
    assert "placeholder: 'TODO'" in faults_with(good + "\nTODO\n")
    assert "licence 'gpl'" in faults_with(good.replace("license: cc0-1.0", "license: gpl"))
    assert "metadata" in faults_with(good.replace("license: cc0-1.0", "license: [:"))
    assert "stale" in faults_with(seconds=99.0)
    assert "uncommitted" in faults_with(code="1" * 40 + "+")
    assert "other weights" in faults_with(weights={"model.safetensors": "cd" * 32})
    assert "other weights" in faults_with(weights={})
    assert "about 'tripler'" in faults_with(model="tripler")
    assert "command" in faults_with(command="")
    assert "table" in faults_with(table={"doubler": {"PSNR-Y": 29.2}})
    boast = replace(entry, summary="it reaches 31.4 dB")
    assert "number without a source: '31.4'" in faults_with(said=boast)
    silent = replace(entry, card=replace(entry.card, data=()))
    assert "trained on" in faults_with(said=silent)
    (folder / "before.png").unlink()
    assert "before.png is missing" in faults_with()


def test_what_the_check_finds_in_the_prose(entry: Entry, folder: Path) -> None:
    def faults_with(text: str) -> str:
        (folder / about.FILE).write_text(text, "utf-8")
        return "; ".join(cards.faults(entry, folder))

    assert faults_with(ABOUT) == ""
    assert "about.md" in faults_with(ABOUT.replace("text", "texts"))  # stale
    assert "number without a source: '31.4'" in faults_with(ABOUT + "- It has 31.4 dB.\n")
    silent = faults_with("It doubles.\n")
    assert "not good for" in silent
    assert "what its picture shows" in silent
    (folder / about.FILE).unlink()
    assert "not good for" in "; ".join(cards.faults(entry, folder))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{tripler | PSNR-Y}}", "line 2: {{tripler | PSNR-Y}}: results.json has no row 'tripler'"),
        ("{{double | PSNR-Y}}", "did you mean 'doubler'?"),
        ("{{doubler | SSIM}}", "no metric 'SSIM'"),
        ("{{worse.value}}", "no claim 'worse'"),
        ("{{better.rule}}", "no number 'rule'"),
        ("{{doubler}}", "expected {{row | metric}} or {{claim.value}}"),
        ("{{a | b}} {{c.value}}", "no claim 'c'"),  # all at once
    ],
)
def test_a_number_that_was_not_measured_is_refused(
    text: str, says: str, entry: Entry, folder: Path
) -> None:
    before = (folder / "README.md").read_text("utf-8")
    (folder / about.FILE).write_text(f"First.\nThen {text}.\n", "utf-8")
    with pytest.raises(InputError) as caught:
        cards.write(entry, folder)
    assert says in str(caught.value)
    assert (folder / "README.md").read_text("utf-8") == before
    assert says in "; ".join(cards.faults(entry, folder))


def test_numbers_before_any_measurement_are_refused(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / about.FILE).write_text(ABOUT, "utf-8")
    with pytest.raises(InputError, match="nothing has been measured yet"):
        cards.write(entry, tmp_path)


def test_prose_has_two_headings_and_no_others() -> None:
    found = about.parse("One.\n\nTwo.\n\n## What it is not good for\n- a\n  b\n- c\n", "x")
    assert found == About("One.\n\nTwo.", "", ("a b", "c"))
    assert about.parse("", "x") == About()
    with pytest.raises(InputError, match=r"about\.md: the heading 'Limits' is not known"):
        about.parse("One.\n\n## Limits\n- a\n", "about.md")


def test_the_limits_of_a_card_are_those_of_its_prose(entry: Entry, folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    prose = about.read(folder, bench.records(folder))
    assert about.limits(card) == prose.limits
    assert len(prose.limits) == 2


@pytest.mark.parametrize("key", ["about", "limits", "caption"])
def test_the_registry_says_where_prose_goes(key: str) -> None:
    text = REGISTRY.replace("      picture:", f"      {key}: words\n      picture:")
    with pytest.raises(RegistryError, match=f"{key} is prose: write it to about.md next to"):
        spec.parse(text, path=Path("registry.yaml"), package="zoo_doubler")


def test_an_unmeasured_card_says_so(entry: Entry, tmp_path: Path) -> None:
    cards.write(entry, tmp_path / "doubler")  # without about.md, too
    assert "Nothing has been measured yet." in (tmp_path / "doubler" / "README.md").read_text(
        "utf-8"
    )


# --- our own cards --------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def test_every_model_that_is_not_planned_has_a_valid_card() -> None:
    from zoo.registry import catalogue

    ours = [e for e in catalogue().entries() if e.distribution == "edgezoo"]
    found = {
        entry.name: cards.faults(entry, ROOT / "hub_cards" / entry.name)
        for entry in ours
        if entry.status != "planned"
    }
    assert found
    assert {name: faults for name, faults in found.items() if faults} == {}
    folders = {path.parent.name for path in (ROOT / "hub_cards").glob(f"*/{about.FILE}")}
    assert folders == found.keys()


# What the three lines take from the reader, by interface: a small picture, or names defined before.
GIVEN = {
    "SRModel": "from PIL import Image\n"
    "Image.linear_gradient('L').convert('RGB').resize((20, 12)).save('small.png')",
    "VLAligner": "import numpy as np\n"
    "images, texts = np.random.default_rng(0).standard_normal((2, 8, 4)).astype('float32')",
    "Quantizer": "import shutil, zoo.bases\n"
    "folder = shutil.copytree(zoo.bases.resolve('tiny-lm').folder, 'my-language-model')\n"
    "text = folder + '/calibration.txt'\n"
    "short = open(text).read()[:4000]\n"
    "open(text, 'w').write(short)",
    "Detector": "from PIL import Image\n"
    "Image.linear_gradient('L').convert('RGB').resize((64, 48)).save('photo.jpg')",
    "QAGenerator": "text = 'Mix the flour in a bowl. Bake the cake for 40 minutes.'",
    "DataSelector": "import numpy as np\n"
    "x = np.random.default_rng(0).standard_normal((80, 4)).astype('float32')\n"
    "y = (x[:, 0] > 0).astype('int64')\n"
    "train, target = (x[:60], y[:60]), (x[60:], y[60:])",
}
"""An interface that is missing here has no ready model yet: add what its line needs."""


# What other uses need: training, measuring, exporting, other people's models.
ABSENT = "accelerate diffusers matplotlib onnx onnxruntime open_clip pandas piq pyarrow datasets "
ABSENT += "scipy skimage timm transformers"
NEEDED = {"Quantizer": {"transformers"}}
"""What running a model of a kind needs beside torch."""
WITHOUT = """
import sys
absent = %r
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name in absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


@pytest.mark.slow
def test_the_three_lines_of_a_card_run_with_what_they_need_alone(tmp_path: Path) -> None:
    """The lines run in an empty folder, with the objects that the third line uses."""
    from zoo.registry import catalogue

    ready = [e for e in catalogue().entries() if (e.distribution, e.status) == ("edgezoo", "ready")]
    assert ready
    for entry in ready:
        if any("build" in base.needed for base in entry.bases.values()):
            continue  # it is fetched: the model's own tests run these lines on a small one
        absent = sorted({*ABSENT.split()} - NEEDED.get(entry.interface, set()))
        code = f"{WITHOUT % absent}{GIVEN[entry.interface]}\n{cards.usage(entry)}"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
        if entry.interface == "SRModel":
            assert (tmp_path / "large.png").stat().st_size
            (tmp_path / "large.png").unlink()
