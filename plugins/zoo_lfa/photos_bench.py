"""``zoo bench lfa-photos``: the bundled map on ImageNet's classes and, with ``--data``, CIFAR-10.

"held-out classes" needs no image: it has five splits of ImageNet's classes. On CIFAR-10, what needs
no labels is measured on five parts of the test photographs, few-shot learning with five draws of
the support set on all of them. Accuracies are per cent; seconds are CPU-seconds of one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.experiment import Bars, Book, Curves, draw, load, one_thread, take_turns, timed
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results
from zoo.progress import track

from . import bridge, real
from .encoder import no_warning
from .lfa import unit
from .photos import Photos
from .real import accuracy, calibration_error
from .towers import imagenet

OURS, RECENTRED, REFINED = "lfa-photos", "lfa-photos, recentred", "lfa-photos, no labels"
UNKNOWN = "lfa-photos, map without CIFAR-10's classes"
BACKWARDS = "map from rows to texts"
NEAREST, MIXTURE = "nearest known class", "mixture of known classes"
PROBE, MEAN = "logistic regression", "nearest class mean"
CLIP = "CLIP ViT-B/32 (untrained, for its speed)"
HELD, SEEN = "held-out classes", "CIFAR-10"
SPEED, FITTING = "CPU-seconds an image", "CPU-seconds to fit the map"
SHOTS = (1, 2, 4, 8, 16)
HELD_OUT = 200
PARTS = 5
MIXED = 10
"""Known classes in a mixture (ConSE's usual number)."""
CALIBRATION = 0.08

KNOWN: Mapping[str, Sequence[int]] = {
    "airplane": (404, 895),
    "automobile": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": range(281, 286),
    "deer": (),
    "dog": range(151, 269),
    "frog": range(30, 33),
    "horse": (339, 340),
    "ship": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914),
    "truck": (555, 569, 586, 675, 717, 734, 864, 867),
}
"""Class of CIFAR-10 -> the kinds of it among ImageNet's classes."""


def bench(request: BenchRequest) -> Results:
    """Run every experiment; see the module's docstring."""
    quick, data = request.quick, real.cifar(request.data)
    seeds = [request.seed + i for i in range(1 if quick else 5)]
    shots = (1, 4) if quick else SHOTS
    book = Book(lambda column: "seconds" in column or column.startswith("ECE"))
    with one_thread(), track(4, request.progress, "bench") as advance:
        model: Photos = load(request)
        rows = model.image.classifier.weight.detach().float()
        sentences = model.text(imagenet())
        held_out(rows, sentences, book, seeds)
        advance()
        speed(model, rows, sentences, book, quick)
        advance()
        if data is not None:
            kept = Path(request.options["features"]) if request.options["features"] else None
            photographs(model, rows, sentences, data, kept, book, shots, seeds, quick, advance)
    claim(book, shots, data is not None)
    pictures = []
    if data is not None:
        picture(request.out / "photos.png", book, shots)
        pictures.append("photos.png")
    sets = [Data("names and definitions of ImageNet's classes", "WordNet licence", "1,000 classes")]
    if data is not None:
        sets.append(Data("CIFAR-10", "research use", f"{_tests(quick):,} tests, scaled to 224"))
    return book.results(data=sets, seeds=seeds, pictures=pictures)


def _tests(quick: bool) -> int:
    return 200 if quick else real.TESTS


# --- without images -------------------------------------------------------------------------------


def held_out(rows: Tensor, sentences: Tensor, book: Book, seeds: Sequence[int]) -> None:
    """Fit without 200 random classes; does each of their rows find its own sentence among them?"""
    for seed in seeds:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        held = order[:HELD_OUT]
        kept = torch.ones(len(rows), dtype=torch.bool)
        kept[held] = False
        chosen = bridge.choose(rows[kept], sentences[kept], seed)
        r, made = bridge.without(rows, sentences, held, chosen.penalty)
        scores = r @ bridge.prototypes(sentences[held], made).T
        book.add(OURS, HELD, accuracy(scores, torch.arange(len(held))), seed)
        book.add(BACKWARDS, HELD, _backwards(rows, sentences, kept, held), seed)


def _backwards(rows: Tensor, sentences: Tensor, kept: Tensor, held: Tensor) -> float:
    """The same ridge in the other direction, by the best of its penalties on these classes."""
    swapped = {p: bridge.without(sentences, rows, held, p) for p in (0.03, 0.1, *bridge.PENALTIES)}
    own = torch.arange(len(held))
    return max(
        accuracy(bridge.prototypes(rows[held], made) @ y.T, own) for y, made in swapped.values()
    )


def speed(model: Photos, rows: Tensor, sentences: Tensor, book: Book, quick: bool) -> None:
    """CPU-seconds for each image in the two networks, in turn; and those of the map."""
    image = torch.rand(1, 3, model.image.side, model.image.side)
    networks: dict[str, Any] = {OURS: lambda: model.image.pixels(image)}
    if (clip := _clip()) is not None:
        picture = torch.rand(1, 3, 224, 224)
        networks[CLIP] = lambda: clip.encode_image(picture)
    with torch.inference_mode():
        spent = take_turns(networks, rounds=3 if quick else 15)
    for name, seconds in spent.items():
        for i, value in enumerate(seconds):
            book.add(name, SPEED, value, i)
    for i in range(3):
        book.add(OURS, FITTING, timed(lambda: bridge.fit(rows, sentences, 3.0))[1], i)


def _clip() -> Any:
    """A CLIP of the usual size with random weights; None where open_clip is missing."""
    try:
        import open_clip
    except ModuleNotFoundError:
        return None
    with no_warning():  # random weights are meant
        return open_clip.create_model("ViT-B-32", pretrained=None).eval().requires_grad_(False)


# --- CIFAR-10 -------------------------------------------------------------------------------------


def photographs(
    model: Photos,
    rows: Tensor,
    sentences: Tensor,
    data: Path,
    kept: Path | None,
    book: Book,
    shots: Sequence[int],
    seeds: Sequence[int],
    quick: bool,
    advance: Any,
) -> None:
    """Without labels on five parts of the tests; with labels on five draws and all tests."""
    many, pool = (200, 200) if quick else (real.UNLABELLED, real.POOL)
    tests = real.features(data, "test", _tests(quick), model.image, kept, False)
    train = real.features(data, "train", many + pool, model.image, kept, False)
    advance()
    names = list(real.CLASSES)
    unlabelled = train[0][:many].numpy()
    for row, scores in without_labels(model, rows, sentences, tests[0], unlabelled, names):
        for i, part in enumerate(torch.arange(len(scores)).tensor_split(PARTS)):
            book.add(row, SEEN, accuracy(scores[part], tests[1][part]), i)
            if row not in (NEAREST, MIXTURE):
                error = calibration_error(scores[part], tests[1][part])
                book.add(row, f"ECE, {SEEN}", error, i)
    fitted = copy(model)  # its encoders are shared
    for n in shots:
        for seed in seeds:
            few = real.support(train[1][many:], n, seed) + many
            x, labels = train[0][few], train[1][few]
            fitted.align(x.numpy(), names, labels=labels.tolist())
            scores = torch.from_numpy(fitted.predict_proba(tests[0].numpy()))
            book.add(OURS, _column(n), accuracy(scores, tests[1]), seed)
            book.add(OURS, f"ECE, {_column(n)}", calibration_error(scores, tests[1]), seed)
            for row, found in images_alone(x, labels, *tests).items():
                book.add(row, _column(n), accuracy(found, tests[1]), seed)
    advance()


def _column(n: int) -> str:
    return f"{SEEN}, {n} shot{'s' * (n > 1)}"


def without_labels(
    model: Photos,
    rows: Tensor,
    sentences: Tensor,
    tests: Tensor,
    unlabelled: np.ndarray,
    names: list[str],
) -> list[tuple[str, Tensor]]:
    """Row -> probabilities or scores (N,10) of the tests."""
    x = tests.numpy()
    recentred = copy(model).recentre(unlabelled)
    refined = copy(model).align(unlabelled, names, unsupervised=True)
    made = [
        (OURS, torch.from_numpy(model.predict_proba(x, names))),
        (RECENTRED, torch.from_numpy(recentred.predict_proba(x, names))),
        (REFINED, torch.from_numpy(refined.predict_proba(x))),
    ]
    # The same settings; the map and its mean are those of the other classes.
    keep = torch.ones(len(rows), dtype=torch.bool)
    keep[[i for kinds in KNOWN.values() for i in kinds]] = False
    chosen = bridge.choose(rows[keep], sentences[keep])
    fewer = bridge.fit(rows[keep], sentences[keep], chosen.penalty)
    y = model.text(names)
    cosines = bridge.centred(tests) @ bridge.prototypes(y, fewer).T
    made.append((UNKNOWN, (chosen.scale * cosines).softmax(1)))
    # What needs no map: the classifier's own answer, as a sentence, or a mixture of sentences.
    logits = model.image.classifier(tests)
    best = logits.argmax(1)
    made.append((NEAREST, unit(sentences)[best] @ y.T))
    top = logits.softmax(1).topk(MIXED, 1)
    mixed = (top.values[..., None] * unit(sentences)[top.indices]).sum(1)
    made.append((MIXTURE, unit(mixed) @ y.T))
    return made


def images_alone(x: Tensor, labels: Tensor, tests: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Classifiers of the same features that know no names; logistic regression with the penalty
    that is best on the tests, in its favour."""
    from sklearn.linear_model import LogisticRegression

    mean = unit(x).mean(0)
    a, b = unit(unit(x) - mean), unit(unit(tests) - mean)
    scores = []
    for c in (0.1, 1.0, 10.0):
        fitted = LogisticRegression(C=c, max_iter=2000).fit(bridge.SHARP * a.numpy(), labels)
        scores.append(torch.from_numpy(fitted.decision_function(bridge.SHARP * b.numpy())))
    best = max(scores, key=lambda found: accuracy(found, own))
    means = torch.stack([a[labels == c].mean(0) for c in range(len(real.CLASSES))])
    return {PROBE: best, MEAN: b @ unit(means).T}


# --- what is claimed ------------------------------------------------------------------------------


def claim(book: Book, shots: Sequence[int], photos: bool) -> None:
    """Every claim, those that do not hold too."""
    book.claim(
        "held-out-classes",
        "Rows of 200 classes that the map was not fitted on find their own text in 50 % of all "
        "cases or more (chance is 0.5).",
        book.better(OURS, 50.0, HELD),
    )
    book.claim(
        "from-texts-to-rows",
        "The ridge from texts to rows is better than the one from rows to texts, by its best "
        "penalty.",
        book.better(OURS, BACKWARDS, HELD),
    )
    if CLIP in book.table():
        book.claim(
            "speed",
            "An image costs at most a third of what CLIP ViT-B/32 takes.",
            book.times(OURS, CLIP, SPEED, at_most=1 / 3),
        )
    if not photos:
        return
    book.claim(
        "zero-shot",
        "Without any photo it is better than the known classes' sentences, the nearest one or a "
        "mixture.",
        book.better(OURS, (NEAREST, MIXTURE), SEEN),
    )
    book.claim(
        "recentred",
        "recentre() on unlabelled photos makes it better.",
        book.better(RECENTRED, OURS, SEEN),
    )
    book.claim(
        "no-labels",
        "Learning without labels is better than recentre() by 5 points or more.",
        book.better(REFINED, RECENTRED, SEEN, by=5),
    )
    book.claim(
        "classes-that-imagenet-does-not-know",
        "Fitted without ImageNet's kinds of these ten classes it loses at most 5 points.",
        book.not_worse(UNKNOWN, OURS, SEEN, margin=5),
    )
    for n in shots:
        book.claim(
            f"few-shot-{n}",
            f"From {n} photo{'s' * (n > 1)} of each class it is better than logistic regression on "
            "the same features.",
            book.better(OURS, PROBE, _column(n)),
        )
    for row in (OURS, RECENTRED, REFINED):
        what = row.removeprefix("lfa-photos").removeprefix(", ") or "as it is"
        book.claim(
            f"calibrated-{what.replace(' ', '-')}",
            f"Its probabilities, {what}, have an expected calibration error below {CALIBRATION}.",
            book.better(row, CALIBRATION, f"ECE, {SEEN}"),
        )
    book.claim(
        "calibrated-few-shot",
        f"After few photos too: below {CALIBRATION} at every number of them.",
        *(book.better(OURS, CALIBRATION, f"ECE, {_column(n)}") for n in shots),
    )


def picture(path: Path, book: Book, shots: Sequence[int]) -> None:
    """Left: what needs no labels. Right: accuracy against photos of each class."""
    table = book.table()
    rows = (NEAREST, MIXTURE, UNKNOWN, OURS, RECENTRED, REFINED)
    learned = {row: [(n, book.mean(row, _column(n))) for n in shots] for row in (OURS, PROBE, MEAN)}
    learned["lfa-photos, no photo"] = [(n, book.mean(OURS, SEEN)) for n in shots]
    draw(
        path,
        Bars(
            {row: {"": table[row][SEEN]} for row in rows}, "per cent right", "CIFAR-10, no labels"
        ),
        Curves(learned, "photos of each class", "per cent right", "CIFAR-10", log="x"),
    )
