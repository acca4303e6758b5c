"""bayesian-dps on rows as people have them: nothing that comes in ends in an exception of torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.errors import InputError, OptionError, OutputError, ZooError

DICE = np.random.default_rng(0)
X = DICE.normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
NAMES = np.array(["cat", "dog"])[Y]
RECORDS = [{"a": float(a), "b": float(b), "c": float(c), "label": str(n)}
           for (a, b, c), n in zip(X, NAMES, strict=True)]  # fmt: skip
CE = nn.CrossEntropyLoss(reduction="none")


def fit(train: Any, target: Any = None, **options: Any) -> Any:
    selector = zoo.load("bayesian-dps", device="cpu")
    return selector.fit(train, train if target is None else target, epochs=2, **options)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids))


OWN: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "records": (lambda: nn.Linear(3, 2), RECORDS, {}),
    "records, a loss of torch": (lambda: nn.Linear(3, 2), RECORDS, {"loss": CE}),
    "float64": (lambda: nn.Linear(3, 2), (X.astype(np.float64), Y), {}),
    "float64, the network too": (lambda: nn.Linear(3, 2).double(), (X, Y), {}),
    "classes as floats": (lambda: nn.Linear(3, 2), (X, Y.astype(float)), {}),
    "classes as floats, a loss of torch": (lambda: nn.Linear(3, 2), (X, 1.0 * Y), {"loss": CE}),
    "fractions": (lambda: nn.Linear(3, 1), (X, X[:, 0] / 3), {}),
    "fractions, a loss of torch": (
        lambda: nn.Linear(3, 1), (X, X[:, 0] / 3), {"loss": nn.MSELoss(reduction="none")}),
    "names": (lambda: nn.Linear(3, 2), (X, NAMES.astype(object)), {"loss": CE}),
    "pairs of tensors and names": (
        lambda: nn.Linear(3, 2), list(zip(torch.tensor(X), NAMES, strict=True)), {}),
    "two lists": (lambda: nn.Linear(3, 2), (X.tolist(), Y.tolist()), {}),
    "token ids in an array": (Embedded, (np.arange(120).reshape(40, 3) % 9, Y), {}),
    "token ids by name": (
        Embedded, [{"ids": torch.tensor([1, i % 9]), "labels": y} for i, y in enumerate(Y)], {}),
    "lists of token ids by name": (
        Embedded, [{"input_ids": [1, i % 9], "labels": int(y)} for i, y in enumerate(Y)],
        {"collate": lambda rows: {"ids": torch.tensor([r["input_ids"] for r in rows]),
                                  "labels": torch.tensor([r["labels"] for r in rows])}}),
    "an own collate sees the rows": (
        lambda: nn.Linear(3, 2), RECORDS,
        {"collate": lambda rows: (torch.tensor([[r["a"], r["b"], r["c"]] for r in rows]),
                                  torch.tensor([int(r["label"] == "dog") for r in rows]))}),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_a_network_of_the_callers_own(case: str) -> None:
    make, rows, options = OWN[case]
    torch.manual_seed(0)
    selector = fit(rows, model=make(), **options)
    assert selector.weights.shape == (40,)
    assert np.isfinite(selector.weights).all()


def test_whole_numbers_reach_a_network_of_ones_own_as_they_are() -> None:
    """Output 4 means label 4, also where no example has 3."""
    seen: set[int] = set()

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.update(batch[1].tolist())
        return nn.functional.cross_entropy(output, batch[1], reduction="none")

    fit((X, np.where(Y == 1, 4, 2)), model=nn.Linear(3, 5), loss=loss)
    assert seen == {2, 4}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another width": (lambda: fit((X, Y), model=nn.Linear(4, 2)), "model= .Linear.*float32 .*3"),
    "whole numbers into a linear layer": (
        lambda: fit((np.arange(120).reshape(40, 3), Y), model=nn.Linear(3, 2)), "int64"),
    "too few outputs": (
        lambda: fit((X, Y + 5), model=nn.Linear(3, 2), loss=CE), "loss=CrossEntropyLoss fails"),
    "a function of torch": (
        lambda: fit((X, Y), model=nn.Linear(3, 2), loss=nn.functional.cross_entropy),
        r"called as loss\(output, batch\)"),
    "no reduction": (
        lambda: fit((X, Y), model=nn.Linear(3, 2), loss=nn.CrossEntropyLoss()),
        r"reduction='none'"),
    "no labels": (lambda: fit(X), "no label"),
    "no labels, an own network": (lambda: fit(X, model=nn.Linear(3, 2)), "no labels"),
    "fractions": (lambda: fit((X, X[:, 0])), "numbers with fractions"),
    "text and sentiment": (lambda: fit([{"text": "a", "stars": 3}] * 9), "label='stars'"),
    "prompts without collate": (
        lambda: fit([{"prompt": "a", "response": "b"}] * 9, model=nn.Linear(1, 1)), "collate="),
    "one number a row": (lambda: fit((np.arange(40.0), Y)), "no bundled network"),
    "other columns": (
        lambda: fit(RECORDS, [{("d" if k == "c" else k): r[k] for k in r} for r in RECORDS]),
        "target lacks c and train lacks d"),
    "text labels for numbers": (lambda: fit((X, Y), (X, [*map(str, Y)])), "share no class"),
    "a text as loss": (lambda: fit((X, Y), loss="ce"), "loss='ce'"),
    "a text as lr": (lambda: fit((X, Y), lr="fast"), "lr='fast'"),
    "a text as optimizer": (lambda: fit((X, Y), optimizer="adam"), "optimizer='adam'"),
    "a text as collate": (
        lambda: fit((X, Y), model=nn.Linear(3, 2), collate="x"), "collate='x'"),
    "collate without a model": (lambda: fit((X, Y), collate=list), "pass model="),
    "a number as checkpoint": (lambda: fit((X, Y), checkpoint=5), "checkpoint=5"),
    "a number as sources": (lambda: fit((X, Y), sources=5), "sources=5: expected one for each"),
    "lists as sources": (lambda: fit((X, Y), sources=[[1]] * len(X)), "source in row 0 is a list"),
    "resume without a checkpoint": (lambda: fit((X, Y), resume=True), "needs checkpoint="),
    "less than a row to train on": (lambda: fit((X, Y), retrain=0.001), "less than one row"),
    "one class": (lambda: fit((X, 0 * Y)), "all rows have the label '0'"),
    "one class and no target": (
        lambda: zoo.load("bayesian-dps", device="cpu").fit((X, 0 * Y), None), "all rows have"),
    "an answer without a token to learn": (
        lambda: fit([{"input_ids": [1, i % 9], "labels": [-100, -100 if i == 7 else 3]}
                     for i in range(40)], [{"input_ids": [1, 2], "labels": [-100, 3]}] * 8,
                    model=Tokens(), lr=1e-3),
        r"training examples \[7\] is NaN.*label that is not -100"),
    "a function as features": (lambda: fit((X, Y), features=len), "weight_features"),
    "a column that is not there": (lambda: fit(RECORDS, label="lable"), "mean 'label'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_said_in_words(case: str) -> None:
    call, said = REFUSED[case]
    with pytest.raises(ZooError, match=said) as caught:
        call()
    assert isinstance(caught.value, InputError | OptionError)


def test_a_bad_checkpoint_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the out-of-fold predictions, which take half a run."""
    from zoo_bayesian_dps.run import Run

    monkeypatch.setattr(Run, "agreeing", lambda self: pytest.fail("the work has begun"))
    load = zoo.load("bayesian-dps", device="cpu")
    with pytest.raises(InputError, match="no run can be resumed"):
        load.fit((X, Y), None, checkpoint=tmp_path / "no", resume=True)
    with pytest.raises(OutputError, match="is a folder"):
        load.fit((X, Y), None, checkpoint=tmp_path)


def test_a_checkpoint_replaces_nothing_but_checkpoints(tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    data.write_text("precious")
    for taken, said in ((data, "no checkpoint of this method"), (tmp_path, "is a folder"),
                        (tmp_path / "no" / "a", "is not a folder")):  # fmt: skip
        with pytest.raises(OutputError, match=said):
            fit((X, Y), checkpoint=taken)
    assert data.read_text() == "precious"
    for _ in range(2):  # its own from an earlier run is replaced
        fit((X, Y), checkpoint=tmp_path / "a.safetensors")


def test_texts_with_a_sentiment_are_classes() -> None:
    rows = [{"text": w, "sentiment": s} for w, s in (("good", "pos"), ("bad", "neg"))] * 8
    selector = fit(rows)
    assert selector.config["classes"] == ["neg", "pos"]
    assert selector.config["network"]["kind"] == "text"


def test_a_row_is_called_by_its_text_or_its_file() -> None:
    """Neither by numbers that a file has as text, nor by what stands beside it anyway."""
    from zoo_bayesian_dps.data import called

    assert called({"id": "r1", "text": "two  words", "label": "cat"}) == {"text": "two words"}
    assert called({"a": "0.5", "b": "12", "label": "cat"}) == {}
    assert called((Path("a/b.png"), 1)) == {"file": "a/b.png"}
    assert called({"image": {"path": "c.png", "bytes": None}, "label": 1}) == {"file": "c.png"}
    assert called((np.zeros(3), 1)) == {}
    assert called(("12", "13")) == {"text": "12 13"}  # a prompt and its response


def test_indices_outside_of_the_rows_are_refused() -> None:
    selector = fit((X, Y))
    for call in (selector.row, selector.explain):
        for index in (-1, 40, 1.5):
            with pytest.raises(OptionError, match="index="):
                call(index)
    for at_least in (-0.1, 1.1, np.nan, True):
        with pytest.raises(OptionError, match="from 0 to 1"):
            selector.issues(at_least=at_least)
    for fraction in (-0.1, 1.1, np.nan, True):
        with pytest.raises(OptionError, match="from 0 to 1"):
            selector.select(fraction=fraction)
    assert selector.select(k=0).shape == (0,)
    assert selector.select(k=40).tolist() == selector.ranking().tolist()


def test_an_empty_list_of_issues_has_its_columns() -> None:
    pytest.importorskip("pandas")
    selector = fit((X, Y))
    selector._found["wrong"] = torch.zeros(40)
    assert list(selector.issues()) == list(selector.issues(at_least=0.0))
    assert len(selector.issues()) == 0


def test_a_class_with_which_no_prediction_agrees_is_named() -> None:
    rare = np.where(np.arange(40) == 3, 7, Y)  # one row of its class: no other teaches it
    selector = zoo.load("bayesian-dps", device="cpu").fit((X, rare), None, epochs=2)
    assert any("out-of-fold predictions in: 7." in note for note in selector.summary["notes"])


def test_the_order_of_the_targets_columns_changes_nothing() -> None:
    turned = [dict(sorted(row.items(), reverse=True)) for row in RECORDS[:20]]
    same, other = fit(RECORDS, RECORDS[:20]), fit(RECORDS, turned)
    np.testing.assert_array_equal(same.weights, other.weights)


def test_columns_by_other_names() -> None:
    rows = [{"u": r["a"], "v": r["b"], "rest": r["c"], "species": r["label"]} for r in RECORDS]
    selector = fit(rows, features=["u", "v"], label="species")
    assert selector.config["network"]["config"]["width"] == 2
    assert selector.config["classes"] == ["cat", "dog"]


def test_pixels_of_eight_bits_are_shares_of_white() -> None:
    from zoo_bayesian_dps.data import pixels_of

    white = np.full((4, 6, 3), 255, np.uint8)
    for value in (white, torch.from_numpy(white).permute(2, 0, 1)):
        assert pixels_of(value).shape == (3, 4, 6)
        assert float(pixels_of(value).max()) == 1
    swapped = np.full((3, 4, 6), 0.5, ">f4")
    assert float(pixels_of(swapped).max()) == 0.5


def test_zoo_select_writes_the_ids_of_rows(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from zoo.cli import cli

    rows = [{"id": f"row {i}", **r} for i, r in enumerate(RECORDS)]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    done = CliRunner().invoke(
        cli, ["select", "bayesian-dps", "--train", str(file), "--target", str(file), "-o", str(out),
              "--epochs", "1", "--k", "3", "--quiet"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for name, count in (("weights.jsonl", 40), ("selection.jsonl", 3)):
        found = [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]
        assert len(found) == count
        assert all(row["id"] == f"row {row['index']}" for row in found)
