"""The code of the interfaces: scales, optional verbs, spans to SQuAD, saved tokenizers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zoo.errors import NotReadyError
from zoo.interfaces import (
    INTERFACES,
    Detections,
    Detector,
    Model,
    QAPair,
    QASet,
    QuantizedModel,
    ScaleRange,
    SRModel,
    verbs,
)

REQUEST = SimpleNamespace(entry=SimpleNamespace(name="mine"), options={}, config={}, bases={})


@pytest.mark.parametrize(
    ("scale", "inside"),
    [(1, True), (1.0, True), (2.5, True), (4, True), (np.float64(3), True), (0.99, False),
     (4.01, False), (float("nan"), False), (True, False), ("2", False), (None, False)],
)  # fmt: skip
def test_a_range_of_scales(scale: Any, inside: bool) -> None:
    assert (scale in ScaleRange(1, 4, 2)) is inside


class Upscaler(SRModel):
    scales: Any = (4, 2)

    def upscale(self, images: Any, **keywords: Any) -> Any:
        return images


def test_scales_as_callers_use_them() -> None:
    made = Upscaler(REQUEST)
    assert (made.default_scale, 2 in made.scales, 3 in made.scales) == (4, True, False)
    made.scales = ScaleRange(1, 4, 2.5)
    assert (made.default_scale, 3 in made.scales, str(made.scales)) == (2.5, True, "1 to 4")


def test_verbs_are_those_that_an_interface_adds() -> None:
    assert verbs("SRModel") == ("upscale",)
    assert verbs("Detector") == ("detect", "pretrain", "finetune")
    assert verbs("VLAligner") == (
        "align", "similarity", "predict_proba", "embed_images", "embed_texts"
    )  # fmt: skip
    for interface, cls in INTERFACES.items():
        required = {name for name in cls.__abstractmethods__ if callable(getattr(cls, name))}
        assert required <= {*verbs(interface)}
        assert not [verb for verb in verbs(interface) if hasattr(Model, verb)]


def test_only_detect_and_names_are_asked_of_a_detector() -> None:
    class Spotter(Detector):
        names = ("dot",)

        def detect(self, images: Any, *, threshold: float | None = None) -> Any:
            return []

    made = Spotter(REQUEST)
    with pytest.raises(NotReadyError, match="mine does not learn from images without labels"):
        made.pretrain([])
    with pytest.raises(NotReadyError, match="mine cannot be fine-tuned"):
        made.finetune([], [])
    assert Detector.__abstractmethods__ == {"detect", "names"}


def test_every_long_verb_has_progress_and_those_with_chance_a_seed() -> None:
    for interface, with_seed in {
        "SRModel": {"upscale"},
        "Quantizer": {"quantize"},
        "DataSelector": {"fit"},
        "Detector": {"pretrain", "finetune"},
        "QAGenerator": {"generate", "train_reader"},
    }.items():
        for verb in with_seed:
            parameters = inspect.signature(getattr(INTERFACES[interface], verb)).parameters
            assert parameters["seed"].default == 0
            assert verb == "generate" or parameters["progress"].default is False


# --- questions as SQuAD ---------------------------------------------------------------------------

TEXT = "Mix it. Bake it for 5 minutes."
LONG = QAPair("How long?", "5 minutes", ("s1",), "duration", 0, 1, 20, 29)
FREE = QAPair("Why?", "because")


def test_a_set_as_squad() -> None:
    made = QASet((LONG, FREE), text=TEXT).to_squad("cake")
    assert made["version"] == "1.1"
    (article,) = made["data"]
    (paragraph,) = article["paragraphs"]
    assert (article["title"], paragraph["context"]) == ("cake", TEXT)
    (question,) = paragraph["qas"]  # the other answer is not in the text
    (answer,) = question["answers"]
    assert (question["question"], answer["text"]) == ("How long?", "5 minutes")
    assert TEXT[answer["answer_start"] :].startswith(answer["text"])
    json.dumps(made)


def test_ids_of_questions_last_and_differ() -> None:
    def ids(*pairs: QAPair, text: str = TEXT) -> list[str]:
        made = QASet(pairs, text=text).to_squad()
        return [q["id"] for q in made["data"][0]["paragraphs"][0]["qas"]]

    other = QAPair("For how long?", "5 minutes", start=20, end=29)
    assert ids(LONG, other) == ids(LONG) + ids(other)
    assert len({*ids(LONG, other), *ids(LONG, text=TEXT + " ")}) == 3


def test_an_old_set_has_no_text_and_no_places() -> None:
    made = QASet((QAPair("What?", "it", ("s0",)),), {"nodes": [], "edges": []}, 0.5)
    assert (made.text, made.pairs[0].start, made.pairs[0].kind) == ("", None, "")
    assert made.to_squad()["data"][0]["paragraphs"][0]["qas"] == []


# --- what a quantized model keeps -----------------------------------------------------------------


class Small(QuantizedModel):
    def __call__(self) -> Any:
        return None

    def generate(self) -> Any:
        return None

    def report(self) -> dict[str, Any]:
        return {}


def test_a_quantized_model_keeps_its_tokenizer_and_its_source(tmp_path: Path) -> None:
    made = Small(REQUEST)
    assert made.interface is None
    assert made.tokenizer is None
    made.save_files(tmp_path)
    assert not [*tmp_path.iterdir()]
    made.tokenizer = SimpleNamespace(
        save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}", "utf-8")
    )
    made.save_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    made.config = {"source_model": {"id": "org/llm", "revision": None, "license": "MIT"}}
    assert made.source_model["license"] == "MIT"


def test_detections_count_their_boxes() -> None:
    found = Detections(
        np.zeros((3, 4), "float32"), np.ones(3, "float32"), np.zeros(3, "int64"), ("dot",)
    )
    assert len(found) == 3
