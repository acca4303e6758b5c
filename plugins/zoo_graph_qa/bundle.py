"""``python -m zoo_graph_qa.bundle RUN``: what ``zoo train graph-qa -o RUN`` made, as bundled files.

Writes the weights, how they were made, and the check of ``zoo verify`` to ``weights/graph-qa``, and
prints the registry's lines.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from zoo.weights import save_tensors, sha256

PACKAGE = Path(__file__).parent
CHECK = PACKAGE / "recipes" / "banana-bread.md"
KEPT = ("model", "seed", "stages", "done", "options", "precision", "seconds")
"""Entries of ``train.json`` that say how the weights were made."""


def bundle(run: Path, into: Path) -> list[str]:
    """Fill the folder; the lines of the registry."""
    from .model import GraphQA

    model = GraphQA.from_pretrained(run / "model", device="cpu")
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "model" / "model.safetensors", into / "model.safetensors")
    report = json.loads((run / "train.json").read_text("utf-8"))
    kept = {key: report[key] for key in KEPT}
    (into / "train.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    shutil.copyfile(CHECK, into / "check.txt")
    save_tensors(into / "check.safetensors", dict(model.run_check(into / "check.txt")))
    names = ("model.safetensors", "train.json", "check.txt", "check.safetensors")
    return [
        f'- {{path: {p.name}, size: {p.stat().st_size},\n   sha256: "{sha256(p)}"}}'
        for p in (into / name for name in names)
    ]


if __name__ == "__main__":
    print("\n".join(bundle(Path(sys.argv[1]), PACKAGE / "weights" / "graph-qa")))
