"""Calibration data of a language model: texts or token ids in, equal rows of token ids out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import read_text

if TYPE_CHECKING:
    import torch

_FILE = Path(__file__).parent / "data" / "calibration.txt"


def texts() -> list[str]:
    """The host's own short texts: stories, instructions, letters, a little code and JSON."""
    text = _FILE.read_text("utf-8").partition("\n\n")[2]  # the first paragraph says whose they are
    return [part.strip("\n") for part in text.split("\n\n")]


def read(path: str | Path) -> Any:
    """What a file holds for ``token_ids``: texts of a UTF-8 file, which empty lines divide, or the
    (N, T) ids of a ``.npy`` file. Raises InputError.
    """
    path = Path(path)
    if path.suffix == ".npy":
        import numpy as np

        try:
            return np.load(path)  # pickled arrays are refused by default
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"calibration: {path} is no plain .npy array: {error}.") from None
    parts = [part.strip("\n") for part in re.split(r"\n(?:[ \t]*\n)+", read_text(path))]
    if not (found := [part for part in parts if part.strip()]):
        raise InputError(f"calibration: {path} is empty.")
    return found


def token_ids(calibration: Any, tokenizer: Any = None, *, length: int = 128) -> torch.Tensor:
    """(N, T) int64 token ids of what ``Quantizer.quantize`` takes as ``calibration``.

    Ids stay as they are. Texts, by default ``texts()``, are tokenized, put one after another with
    the end token between them, and cut into rows of ``length`` tokens; the rest that fills no row
    is left out, unless there is nothing else. ``tokenizer``: of transformers. Raises InputError.
    """
    import torch

    if hasattr(calibration, "shape"):
        ids = torch.as_tensor(calibration)
        if ids.ndim != 2 or 0 in ids.shape or ids.is_floating_point() or ids.is_complex():
            raise InputError(
                f"calibration: {ids.dtype} of shape {tuple(ids.shape)}; expected (N, T) token ids."
            )
        return ids.long()
    given = texts() if calibration is None else calibration
    if not (
        isinstance(given, Sequence)
        and not isinstance(given, str | bytes)
        and given
        and all(isinstance(text, str) for text in given)
    ):
        raise InputError("calibration: expected a list of texts, or (N, T) token ids.")
    if tokenizer is None:
        what = "the default texts" if calibration is None else "texts"
        raise InputError(f"calibration: {what} need a tokenizer. Pass tokenizer=, or token ids.")
    row: list[int] = []
    for text in given:
        row += tokenizer(text)["input_ids"]
        if tokenizer.eos_token_id is not None:
            row.append(tokenizer.eos_token_id)
    if not row:
        raise InputError("calibration: the texts have no tokens.")
    length = min(length, len(row))
    return torch.tensor(row[: len(row) // length * length]).reshape(-1, length)
