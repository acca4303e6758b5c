"""The claims of YONOS-SR at our size: one distilled step, its controls, and what it is up against.

The bundled model against interpolation and a plain network of its size; short trainings that tell
distillation from a curriculum (``controls``); the argument in a linear world (``linear``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from zoo_sr.measuring.quality import Quality, baselines_for
from zoo_sr.measuring.tables import HIGHER, described, find_sets, photos_below, picture
from zoo_sr.training.photos import Photos

from zoo.errors import NotReadyError
from zoo.hookspecs import BenchRequest, TrainRequest
from zoo.interfaces import Claim, Metric, Results
from zoo.training import draw_curve, whole_curve

from . import controls, linear
from .model import YonosSR
from .train import recipe

OURS = "yonos-sr"


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    folder = Path(__file__).parent / "weights" / request.entry.name
    if not (folder / "model.safetensors").is_file():
        raise NotReadyError(
            f"{request.entry.name} has no weights to measure. Train it with "
            f"`zoo train {request.entry.name}`; `zoo bench {OURS}` measures the small one."
        )
    sets = find_sets(request.data, request.quick, 4)
    photos = photos_below(request.data)
    rows: dict[str, dict[str, Metric]] = {}
    claims: list[Claim] = []
    baselines = None
    with tempfile.TemporaryDirectory() as scratch:
        if photos is not None:
            asked = TrainRequest(
                request.entry,
                Path(scratch),
                seed=request.seed,
                device=request.device,
                options={**controls.OPTIONS, "scale": "4", "degraded": 0.15},
            )
            baselines = baselines_for(request, recipe(asked, Photos(photos)), Path(scratch))
    quality = Quality(YonosSR, request, folder, baselines)
    table, found = quality.measure(sets)
    rows |= table
    claims += found
    if photos is not None:
        budget = controls.QUICK if request.quick else controls.Budget()
        more, found = controls.controls(request, photos, quality.model.module, budget)
        rows |= {row: rows.get(row, {}) | cells for row, cells in more.items()}
        claims += found
    world = linear.run(linear.photographs(None if request.quick else photos), request.seed)
    more, found = linear.rows_and_claims(world)
    rows |= more
    claims += found
    picture(request.out / "before-after.png", quality.shown(), sets, 4)
    linear.draw(world, request.out / "linear-world.png")
    draw_curve(whole_curve(folder / "train.json"), request.out / "training.png")
    seeds = 1 if request.quick else controls.Budget().seeds
    return Results(
        rows,
        claims,
        described(sets),
        [request.seed + i for i in range(seeds)],
        {
            **{f"{s} {k}": higher for s in sets for k, higher in HIGHER.items()},
            **controls.HIGHER,
        },
        ["before-after.png", "training.png", "linear-world.png"],
    )
