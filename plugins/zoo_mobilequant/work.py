"""What a long quantization keeps on disk, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import OutputError, UsageError
from zoo.weights import atomic_file, load_tensors, save_tensors

EVERY = 10
"""Steps of learning between checkpoints."""
FACTS = "work.json"


class Work:
    """A folder of finished stages and of learning that is under way.

    It belongs to one call of ``quantize``: what that was about, ``facts``, is in ``work.json``.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        if facts is None:
            return
        file = folder / FACTS
        wanted = json.loads(json.dumps(facts))
        if file.is_file():
            found = json.loads(file.read_text("utf-8"))
            other = [k for k in {**wanted, **found} if wanted.get(k) != found.get(k)]
            if other:
                raise UsageError(
                    f"checkpoint={str(folder)!r} holds work with another {', '.join(other)}. Name "
                    "another folder, or delete this one."
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is no folder of checkpoints. Name a new one.")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as part:
            part.write_text(json.dumps(wanted, indent=1), "utf-8")

    def part(self, name: str) -> Work:
        """The same for one part of the work, such as a layer."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Work(folder)

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a stage: those of the last time, else made and kept."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            save_tensors(file, make())
        return load_tensors(file)

    # --- learning ---------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self.folder / "learning.safetensors"

    def step(self, done: int, steps: int, values: Mapping[str, Tensor], adam: Any) -> None:
        """Keep the state after a step, every ``EVERY`` steps and after the last."""
        if done % EVERY and done < steps:
            return
        kept = {"done": torch.tensor(done)}
        for name, value in values.items():
            moments = adam.state[value]
            kept |= {
                f"value:{name}": value.detach(),
                f"first:{name}": moments["exp_avg"],
                f"second:{name}": moments["exp_avg_sq"],
            }
        save_tensors(self._file, kept)

    def restore(self, values: Mapping[str, Tensor], adam: Any) -> int:
        """Bring the state back; how many steps are done."""
        if not self._file.is_file():
            return 0
        kept = load_tensors(self._file)
        done = int(kept["done"])
        for name, value in values.items():
            with torch.no_grad():
                value.copy_(kept[f"value:{name}"])
            adam.state[value] = {
                "step": torch.tensor(float(done)),
                "exp_avg": kept[f"first:{name}"].to(value.device),
                "exp_avg_sq": kept[f"second:{name}"].to(value.device),
            }
        return done
