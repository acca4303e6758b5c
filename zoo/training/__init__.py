"""One training loop for all recipes; a recipe is data, losses and stages.

    run = Run(request, {"net": net}, {"fit": Stage(steps=1000, lr=1e-3, batch=16)})

    def fit() -> None:
        run.minimise({"net": net}, batch=lambda draw: crops(draw.rng, draw.count), loss=error)

    return run.fit({"fit": fit}, lambda: MyModel(request, net))

Random numbers depend only on (seed, stage, step), so that a run that was interrupted and resumed
ends with the same weights as one that was not. Checkpoints are safetensors; Ctrl-C, too little
memory and a loss that is not finite have clear messages. ``accelerate launch -m zoo train ...``
trains in several processes, which share the micro-batches of a step.

Importing this package imports torch: only recipes import it.
"""

from .loop import CHECKPOINT, Draw, Rate, Run, Stage, constant, cosine
from .reports import draw_curve, history, whole_curve
from .start import differing, read_saved

__all__ = [
    "CHECKPOINT",
    "Draw",
    "Rate",
    "Run",
    "Stage",
    "constant",
    "cosine",
    "differing",
    "draw_curve",
    "history",
    "read_saved",
    "whole_curve",
]
