"""Calibration data: zoo's own texts, and rows of token ids from any input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zoo.calibration import texts, token_ids
from zoo.errors import InputError

torch = pytest.importorskip("torch")


class Letters(SimpleNamespace):
    """A token for each character, and 0 at the end."""

    eos_token_id: int | None = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


def test_the_hosts_own_texts() -> None:
    found = texts()
    assert len(found) == len(set(found)) >= 16
    assert not [text for text in found if text.startswith("#")], "the licence is no text"
    assert all(100 < len(text) < 1000 for text in found)
    assert sum(len(text.split()) for text in found) > 700
    assert "\n    " in "".join(found), "code keeps its lines"


def test_ids_stay_as_they_are() -> None:
    ids = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    assert token_ids(ids).equal(ids.long())
    assert token_ids(ids.numpy(), Letters()).tolist() == [[1, 2, 3]]


def test_texts_are_joined_and_cut_into_rows() -> None:
    made = token_ids(["ab", "cde"], Letters(), length=3)
    assert made.tolist() == [[97, 98, 0], [99, 100, 101]]
    assert made.dtype == torch.int64
    assert token_ids(("ab",), Letters()).tolist() == [[97, 98, 0]]
    assert token_ids(["abc"], Letters(eos_token_id=None)).tolist() == [[97, 98, 99]]


def test_the_default_is_the_hosts_texts() -> None:
    made = token_ids(None, Letters())
    assert made.equal(token_ids(texts(), Letters()))
    assert made.shape[1] == 128
    assert len(made) > 32


@pytest.mark.parametrize("given", [None, ["text"]])
def test_texts_need_a_tokenizer(given: Any) -> None:
    with pytest.raises(InputError, match="need a tokenizer"):
        token_ids(given)


@pytest.mark.parametrize(
    "wrong",
    ["a text", b"x", [], 3, [1, 2], ["a", None], {"a": 1}, torch.ones(2, 3), torch.tensor([1, 2]),
     torch.zeros(0, 4, dtype=torch.long)],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_is_no_calibration_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="calibration"):
        token_ids(wrong, Letters())


def test_texts_without_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        token_ids([""], Letters(eos_token_id=None))
