"""Writes the weights and the check of nearest-x2, and prints their lines for registry.yaml.

The kernel is a closed form, so "training" is one line: nearest neighbour, then a tent of side
three, is linear interpolation but for a half pixel.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save_file
from zoo_nearest.model import Nearest

FOLDER = Path(__file__).parent / "zoo_nearest" / "weights" / "nearest-x2"


def main() -> None:
    """Write the three files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tent = torch.tensor([0.25, 0.5, 0.25])
    save_file({"kernel": torch.outer(tent, tent)[None, None]}, FOLDER / "model.safetensors")
    pixels = torch.randint(0, 256, (12, 16, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(FOLDER / "check.png")
    request = SimpleNamespace(
        entry=SimpleNamespace(name="nearest-x2"),
        folder=FOLDER / "model.safetensors",
        config={"factor": 2, "side": 3},
        options={"strength": 1.0},
        bases={},
        device="cpu",
        dtype="float32",
    )
    output = Nearest(request).run_check(FOLDER / "check.png")  # type: ignore[arg-type]
    save_file(dict(output), FOLDER / "check.safetensors")
    for path in sorted(FOLDER.iterdir()):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        print(f"      - {{path: {path.name}, size: {len(data)}, sha256: {digest}}}")


if __name__ == "__main__":
    main()
