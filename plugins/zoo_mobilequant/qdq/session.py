"""An export in onnxruntime: without torch, and without the model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from zoo.errors import InputError
from zoo.weights import sha256

from . import FORMAT

EXACT = ("session.x64quantprecision", "1")
"""onnxruntime's setting against saturation: CPUs without VNNI then multiply u8 by u8."""
KINDS = {"tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(float)": np.float32}
"""How onnxruntime calls what a cache holds -> numpy's type."""


def opened(file: Path, threads: int = 1, optimized: bool = True, exact: bool = True) -> Any:
    """A session of onnxruntime on the CPU. ``optimized``: with integer kernels in place of floats
    between codes. ``exact``: without saturation.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    if exact:
        settings.add_session_config_entry(*EXACT)
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def padded(ids: Sequence[int], length: int) -> np.ndarray:
    """(1, length) int32: token ids, then zeros."""
    found = np.zeros((1, length), np.int32)
    found[0, : len(ids)] = ids
    return found


class Session:
    """One sequence at a time: ``prefill`` begins one, ``decode`` continues it."""

    def __init__(self, folder: Path, **how: Any) -> None:
        """``how``: see ``opened``. Raises InputError for a folder that is no export, one of another
        version, and one whose files have changed.
        """
        self.folder = folder
        if not (folder / "model.json").is_file():
            raise InputError(f"{folder} has no model.json: pass what zoo export wrote.")
        self.told: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
        if self.told.get("format") != FORMAT:
            raise InputError(
                f"{folder} has format {self.told.get('format')!r}; this plugin runs {FORMAT}. "
                "Export again."
            )
        for name, hash_ in self.told.get("sha256", {}).items():
            if not (folder / name).is_file() or sha256(folder / name) != hash_:
                raise InputError(
                    f"{folder / name} is not what was exported: it is missing, cut off or changed. "
                    "Export again."
                )
        self._prefill, self._decode = (
            opened(folder / f"{name}.onnx", **how) for name in ("prefill", "decode")
        )
        self._names = [output.name for output in self._decode.get_outputs()]
        self._cache = {
            given.name: np.zeros(given.shape, KINDS[given.type])
            for given in self._decode.get_inputs()
            if given.name.startswith("cache.")
        }
        self.position = 0
        """Tokens in the cache."""

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Begin a sequence with a prompt; the logits (V,) of what follows it."""
        length = self.told["length"]
        if np.ndim(ids) != 1:
            raise InputError(
                f"token ids of shape {np.shape(ids)}: {self.folder} takes one sequence at a time."
            )
        if not 0 < len(ids) <= length:
            raise InputError(
                f"the prompt has {len(ids)} tokens; {self.folder} takes 1 to {length}. Export with "
                "a larger length."
            )
        last = np.array([len(ids) - 1], np.int32)
        found = self._prefill.run(self._names, {"input_ids": padded(ids, length), "last": last})
        self.position = len(ids)
        return self._keep(found, 0)

    def decode(self, token: int) -> np.ndarray:
        """Continue it with a token; the logits (V,) of what follows."""
        at = self.position
        if at >= self.told["cache"]:
            raise InputError(
                f"the cache of {self.folder} is full: it holds {at} tokens. Export with a larger "
                "cache."
            )
        given = {"input_ids": padded([token], 1), "position": np.array([at], np.int32)}
        found = self._decode.run(self._names, given | self._cache)
        self.position = at + 1
        return self._keep(found, at)

    def _keep(self, found: Sequence[np.ndarray], begin: int) -> np.ndarray:
        for name, codes in zip(self._names[1:], found[1:], strict=True):
            self._cache[f"cache.{name}"][:, begin : begin + codes.shape[1]] = codes
        logits: np.ndarray = found[0][0]
        return logits


def timed(folder: Path, repeats: int = 5, threads: int = 1, **how: Any) -> tuple[float, float]:
    """CPU-seconds of a whole prompt, and of a token after it; the quickest of ``repeats``."""
    session = Session(folder, threads=threads, **how)
    ids = [i % session.told["vocabulary"] for i in range(session.told["length"])]
    room = session.told["cache"] > len(ids)
    prompts, tokens = [], []
    for _ in range(repeats):
        begin = time.process_time()
        session.prefill(ids)
        prompts.append(time.process_time() - begin)
        session.position -= not room  # the last one again, where the cache has no place for more
        begin = time.process_time()
        session.decode(ids[-1])
        tokens.append(time.process_time() - begin)
    return min(prompts), min(tokens)
