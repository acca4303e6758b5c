"""The claims of YONOS-SR at our size: one distilled step, its controls and its rivals.

The benchmark compares the bundled model with interpolation and a plain network of its size; short
trainings separate distillation from a curriculum (``controls``); a linear world checks the theory
(``linear``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from zoo_sr.measuring.quality import Quality, baselines_for
from zoo_sr.measuring.tables import described, find_sets, less_is_better, photos_below, picture
from zoo_sr.training.photos import Photos

from zoo.experiment import Book, files, load, training
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Results
from zoo.training import draw_curve, whole_curve

from . import controls, linear
from .train import recipe


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    load(request)  # fails without weights, before minutes of training a baseline
    sets = find_sets(request.data, request.quick, 4)
    photos = photos_below(request.data)
    book = Book(less_is_better)
    baselines = None
    with tempfile.TemporaryDirectory() as scratch:
        if photos is not None:
            options = {**controls.OPTIONS, "degraded": 0.15}
            asked = training(request, Path(scratch), **options)
            baselines = baselines_for(request, recipe(asked, Photos(photos)), Path(scratch))
    quality = Quality(request, baselines)
    quality.measure(book, sets)
    budget = controls.QUICK if request.quick else controls.Budget()
    if photos is not None:
        controls.controls(book, request, photos, quality.model.module, budget)
    world = linear.run(linear.photographs(None if request.quick else photos), request.seed)
    linear.enter(book, world)
    picture(request.out / "before-after.png", quality.shown(), sets, 4)
    linear.draw(world, request.out / "linear-world.png")
    draw_curve(whole_curve(files(request) / "train.json"), request.out / "training.png")
    return book.results(
        data=described(sets),
        seeds=[request.seed + i for i in range(budget.seeds)],
        pictures=["before-after.png", "training.png", "linear-world.png"],
    )
