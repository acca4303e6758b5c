"""``zoo train lfa-photos``: the bundled map from two pretrained networks, without an image."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from zoo.errors import InputError
from zoo.hookspecs import BuildRequest, TrainRequest
from zoo.progress import track
from zoo.weights import atomic_file, save_tensors

from . import bridge
from .photos import Photos, probes
from .towers import both, imagenet


def train(request: TrainRequest) -> Path:
    """Embed the classes' sentences, choose p and the scale on held-out classes, solve (19)."""
    out = request.out / "model"
    if request.resume and (out / "zoo.json").is_file():
        return out
    image, text = both(request.bases, request.device)
    texts = imagenet()
    rows = image.classifier.weight.detach().float().cpu()
    if len(rows) != len(texts):
        raise InputError(
            f"base image={request.bases['image'].id} has {len(rows)} classes; expected a "
            f"classifier of ImageNet's {len(texts)}."
        )
    with track(len(texts), request.progress, "texts") as advance:
        y = text(texts, advance).cpu()
    chosen = bridge.choose(rows, y, request.seed)
    made = bridge.fit(rows, y, chosen.penalty)
    known = probes(image, text)
    request.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        save_tensors(
            Path(scratch) / "model.safetensors",
            {
                "w": made.w.half(),
                "centre": made.centre,
                "scale": torch.tensor([chosen.scale]),
                "image_probe": known["image"],
                "text_probe": known["text"],
            },
        )
        model = Photos.build(
            BuildRequest(request.entry, Path(scratch), bases=request.bases, device=request.device)
        )
        model.save_pretrained(out, overwrite=True)
    report = {
        "image": {"architecture": image.architecture, "sha256": image.digest},
        "text": {"model": text.network.config.model_type, "width": text.width},
        "penalty": chosen.penalty,
        "scale": chosen.scale,
        "held_out_accuracy": round(chosen.accuracy, 2),
        "seed": request.seed,
    }
    with atomic_file(request.out / "train.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return out
