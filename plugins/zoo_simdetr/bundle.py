"""From the output of ``zoo train`` to the files that a package ships.

    python -m zoo_simdetr.bundle OUT DATA plugins/zoo_simdetr/weights/simdetr

then update ``size`` and ``sha256`` in the registry, and its names and size in ``config``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from zoo.training import read_saved
from zoo.weights import save_tensors

from . import dataset
from .learning import network_of
from .model import CHECKED
from .reading import look, ranked
from .scenes import load


def bundle(out: Path, data: Path, into: Path) -> None:
    """Weights in float16, ``train.json``, and a check: the first test image, as small as the
    network sees it, with its surest detections."""
    config, _ = read_saved(out / "model")
    into.mkdir(parents=True, exist_ok=True)
    network = network_of(out / "model").eval()
    save_tensors(into / "model.safetensors", {k: v.half() for k, v in network.state_dict().items()})
    told = json.loads((out / "train.json").read_text("utf-8"))
    told["options"]["background"] = Path(told["options"]["background"]).name  # of whoever trained
    (into / "train.json").write_text(json.dumps(told) + "\n", "utf-8")
    image = load(dataset.read(data).test.images[:1], config["size"])[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(into / "check.png")
    boxes, scores, _ = ranked(look(network, image, config["size"]))
    with torch.no_grad():
        expected = {"boxes": boxes[:CHECKED].clone(), "scores": scores[:CHECKED].clone()}
    save_tensors(into / "check.safetensors", expected)


if __name__ == "__main__":
    bundle(*map(Path, sys.argv[1:4]))
