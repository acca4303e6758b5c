"""``zoo bench simdetr -O part=shipped``: the bundled weights, their recipe, proposals, speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.drawing import drawn
from zoo.experiment import Book, load, training
from zoo.images import read
from zoo.interfaces import Data, Results
from zoo.training import CHECKPOINT

from .bench_proposals import SECONDS, proposals
from .bench_rows import BEST, Bench
from .full import around
from .model import SimDETR
from .outputs import Target
from .reading import THRESHOLD
from .train import HELD, RECIPE, background, false_boxes, measured, train

BUNDLED, RECIPES = "simdetr, bundled weights", "simdetr, the whole recipe"
RTDETR = "RT-DETR, same backbone"
HALF = 0.5
"""Pixels by which a box of the exported model may differ."""
PHOTOS = f"boxes in {HELD} photographs without cells"
DIFFERENCE = "largest difference of an ONNX box, pixels"
SEEING, LEARNING = "CPU-seconds to see an image", "CPU-seconds to learn an image"
LESS = {SECONDS, SEEING, LEARNING, PHOTOS, DIFFERENCE}
"""Columns in which less is better."""
PICTURE, SHOWN = "found.jpg", 3
"""The first test images with what is found in them."""
_RECIPE = {"recipe": [str(stage) for stage in RECIPE.values()], "threshold": THRESHOLD}
"""What the values of a run of the recipe depend on, beside its seed."""
BATCH, TURNS = 4, 3
"""Images in a timed step of training, and how often each is timed."""


def measure(here: Bench, part: str) -> Results:
    """All rows that need no comparison of schedules."""
    book = Book(lambda name: name in LESS)
    model: SimDETR = load(here.request)
    size = int(model.config["size"])
    found = here.row(BUNDLED, lambda: measured(
        model.network, here.data.test, size, model.names), weights=_weights(here))  # fmt: skip
    _table(book, found, BUNDLED)
    _photos(book, here, model, size)
    _exported(book, here, model)
    _speed(book, here)
    proposals(book, here)
    for seed in here.seeds:
        found = here.row(f"recipe, seed {seed}", partial(_recipe, here, seed), **_RECIPE)
        _table(book, found.get("test", {}), RECIPES, seed)
        if "photos" in found:
            book.add(RECIPES, PHOTOS, sum(found["photos"].values()), seed)
    _claims(book)
    _picture(here, model)
    photos = Data("CC0 photographs", "CC0-1.0", f"{HELD} without any cell")
    ran = book.values(RECIPES, "AP50") if book.columns(RECIPES) else {}
    return book.results(
        data=[here.described(), photos], seeds=[int(seed) for seed in ran], pictures=[PICTURE]
    )


def _picture(here: Bench, model: SimDETR) -> None:
    shown = [drawn(read(path, "RGB"), model.detect(path)) for path in here.data.test.images[:SHOWN]]
    sheet = Image.new("RGB", (sum(one.width for one in shown), max(one.height for one in shown)))
    left = 0
    for one in shown:
        sheet.paste(one, (left, 0))
        left += one.width
    here.request.out.mkdir(parents=True, exist_ok=True)
    sheet.save(here.request.out / PICTURE, quality=90)


def _table(book: Book, found: dict[str, Any], row: str, key: int = 0) -> None:
    for arm, values in found.items():
        for metric, value in values.items():
            name = metric if metric.startswith("AP") else f"AP50 of {metric}"
            book.add(row, name if arm == BEST else f"{name}, {arm}", value, key)


def _weights(here: Bench) -> str:
    """The hash of the bundled weights."""
    return next(file.sha256 for file in here.request.entry.files if file.path.endswith("tensors"))


def _recipe(here: Bench, seed: int) -> dict[str, Any]:
    """The recipe as ``zoo train`` runs it, from ``work/recipe-seedN`` if it is there."""
    out = here.work / f"recipe-seed{seed}"
    if not (out / "model" / "zoo.json").is_file() or not _finished(out):
        folder = str(here.root / "photos-cc0")
        asked = training(here.request, out, data=here.root / "bccd", seed=seed, background=folder)
        train(replace(asked, resume=(out / CHECKPOINT).is_file()))
    told = json.loads((out / "train.json").read_text("utf-8"))["validation"]
    last = [*RECIPE][-1]
    made = {"test": told[f"test after {last}"]}
    made["photos"] = told[f"boxes in {HELD} other pictures after {last}"]
    return made


def _finished(out: Path) -> bool:
    done: list[str] = json.loads((out / "train.json").read_text("utf-8"))["done"]
    return set(done) >= {*RECIPE}


def _photos(book: Book, here: Bench, model: SimDETR, size: int) -> None:
    """Boxes above the default threshold in pictures without a cell; training did not see them."""
    folder = here.root / "photos-cc0"
    if folder.is_dir():
        found = here.row(PHOTOS, lambda: false_boxes(
            model.network, background(str(folder), 640)[1], size, model.names),
            weights=_weights(here), threshold=THRESHOLD)  # fmt: skip
        if found:
            book.add(BUNDLED, PHOTOS, sum(found.values()))


def _exported(book: Book, here: Bench, model: SimDETR) -> None:
    """The largest difference of a box between onnxruntime and torch, in pixels of the image."""
    if found := here.row("ONNX", lambda: _differences(here, model), weights=_weights(here)):
        for item, value in found.items():
            book.add(BUNDLED, DIFFERENCE, value, item)


def _differences(here: Bench, model: SimDETR) -> dict[str, float]:
    import onnxruntime

    from zoo.images import to_tensor

    from .boxes import corners
    from .scenes import resized, seen_sides

    made = {}
    with TemporaryDirectory() as scratch:
        file = model.export(Path(scratch) / "model.onnx")
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        sides = seen_sides(3, 4, model.size)
        for i, path in enumerate(here.data.test.images[:10]):
            image = to_tensor(read(path, "RGB"))
            pixels = (resized(image, sides) * 255).round().to(torch.uint8)
            with torch.inference_mode():
                seen = model.network(pixels.float() / 255)
            theirs, scores = session.run(None, {"pixels": pixels.permute(0, 2, 3, 1).numpy()})
            mine = corners(seen.boxes[-1][0]).clamp(0, 1).numpy()
            sure = scores.max(1) >= 0.2
            whole = np.array([image.shape[2], image.shape[1]] * 2)
            made[f"image {i}"] = float(np.abs((mine - theirs) * whole)[sure].max(initial=0.0))
    return made


def _speed(book: Book, here: Bench) -> None:
    """CPU-seconds of an image and of an image in a training step, in turns with RT-DETR."""
    for row, columns in here.row("speed", lambda: _seconds(here)).items():
        for name, values in columns.items():
            for turn, value in enumerate(values):
                book.add(row, name, value, f"turn {turn}")


def _seconds(here: Bench) -> dict[str, dict[str, list[float]]]:
    from .detector import Network

    torch.manual_seed(0)
    networks: dict[str, Any] = {
        BUNDLED: Network(len(here.data.names)),
        RTDETR: around("tf_efficientnet_lite0", "rt_detr", d_model=128, encoder_hidden_dim=128,
                       decoder_in_channels=[128] * 3, encoder_ffn_dim=256, decoder_ffn_dim=256,
                       decoder_layers=2, num_queries=100, num_denoising=40),
    }  # fmt: skip
    boxes = torch.rand(14, 4) * 0.2 + 0.3
    targets = [Target(torch.randint(len(here.data.names), (14,)), boxes)] * BATCH
    images = torch.rand(BATCH, 3, 192, 256).contiguous(memory_format=torch.channels_last)
    networks[RTDETR].classes = networks[RTDETR].fresh(len(here.data.names))
    made: dict[str, dict[str, list[float]]] = {row: {SEEING: [], LEARNING: []} for row in networks}
    for turn in range(1 + TURNS):
        for row, network in networks.items():
            network.eval().requires_grad_(True)
            with torch.inference_mode():
                seeing = _cpu(partial(network, images[:1]))
            learning = _cpu(partial(_step, network, images, targets))
            if turn:  # the first one warms up
                made[row][SEEING].append(seeing)
                made[row][LEARNING].append(learning / BATCH)
    return made


def _step(network: Any, images: Tensor, targets: Sequence[Target]) -> None:
    network.loss(images, targets, torch.Generator().manual_seed(0)).backward()


def _cpu(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _claims(book: Book) -> None:
    if book.columns(RECIPES):
        book.claim(
            "ap50",
            "After the whole recipe AP50 on the test images is at least .80, with NMS.",
            book.better(RECIPES, 0.8, "AP50"),
        )
    if PHOTOS in book.columns(BUNDLED):
        book.claim(
            "photographs",
            f"At most one box of the bundled weights is above the default threshold in {HELD} "
            "photographs without cells.",
            book.better(BUNDLED, 1, PHOTOS, test="counted"),
        )
    if DIFFERENCE in book.columns(BUNDLED):
        book.claim(
            "onnx",
            "Boxes in onnxruntime are torch's within half a pixel.",
            book.better(BUNDLED, HALF, DIFFERENCE),
        )
    if book.columns(RTDETR):
        for name, words, metric in (
            ("speed", "sees", SEEING),
            ("steps", "learns from", LEARNING),
        ):
            book.claim(
                name,
                f"It {words} an image in less time than RT-DETR with the same backbone.",
                book.better(BUNDLED, RTDETR, metric),
            )
