"""Calibration data of a language model: texts or token ids to equal rows of token ids."""

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
    """zoo's own short texts: stories, instructions, letters, a little code and JSON."""
    text = _FILE.read_text("utf-8").partition("\n\n")[2]  # after the licence
    return [part.strip("\n") for part in text.split("\n\n")]


def read(path: str | Path) -> Any:
    """Read a file for ``token_ids``: texts of a UTF-8 file, separated by empty lines, or the (N, T)
    ids of a ``.npy`` file. Raises InputError.
    """
    path = Path(path)
    if path.suffix == ".npy":
        import numpy as np

        try:
            return np.load(path)  # pickled arrays are refused by default
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"calibration: {path} is not a plain .npy array: {error}.") from None
    parts = [part.strip("\n") for part in re.split(r"\n(?:[ \t]*\n)+", read_text(path))]
    if not (found := [part for part in parts if part.strip()]):
        raise InputError(f"calibration: {path} is empty.")
    return found


def token_ids(calibration: Any, tokenizer: Any = None, *, length: int = 128) -> torch.Tensor:
    """(N, T) int64 token ids from the ``calibration`` argument of ``Quantizer.quantize``.

    Ids are unchanged. Texts, by default ``texts()``, are tokenized, joined with the end token, and
    cut into rows of ``length`` tokens; an incomplete last row is left out unless it is the only
    one. ``tokenizer``: of transformers. Raises InputError.
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
