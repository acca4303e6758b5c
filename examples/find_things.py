"""Teach the detector to find new things from two dozen pictures with boxes, and save it."""

import numpy as np

import zoo
from zoo.interfaces import Detections
from zoo.precision import average_precision

NAMES = ("bead", "tile")
dice = np.random.default_rng(0)


def drawing() -> tuple[np.ndarray, Detections]:
    """A noisy picture of a few round beads and square tiles, and where they are."""
    picture = dice.integers(0, 70, (96, 128, 3))
    y, x = np.mgrid[:96, :128]
    boxes, labels = [], []
    for column in range(4):
        for row in range(3):
            if dice.random() < 0.6:
                continue
            label, half = int(dice.integers(2)), int(dice.integers(8, 14))
            cx, cy = 16 + 32 * column, 16 + 32 * row
            distance = np.hypot(x - cx, y - cy)
            square = np.maximum(abs(x - cx), abs(y - cy))
            picture[(distance if label == 0 else square) < half] += dice.integers(90, 150, 3)
            boxes.append((cx - half, cy - half, cx + half, cy + half))
            labels.append(label)
    corners = np.array(boxes, np.float32).reshape(-1, 4).clip(0, (128, 96, 128, 96))
    ones, kinds = np.ones(len(boxes), np.float32), np.array(labels, np.int64)
    return picture.astype(np.uint8), Detections(corners, ones, kinds, NAMES)


learned, held = ([drawing() for _ in range(n)] for n in (24, 8))
detector = zoo.load("simdetr", size=128)
print("finds", ", ".join(detector.names))


def precision() -> float:
    """AP50 on drawings that it did not learn from."""
    found = [detector.detect(picture, threshold=0.05) for picture, _ in held]
    return average_precision(found, [truth for _, truth in held]).ap50


before = 100 * precision()
detector.finetune([picture for picture, _ in learned], [truth for _, truth in learned], steps=80)
print("finds", ", ".join(detector.names))
print(f"AP50 of beads and tiles: {before:.1f} % before, {100 * precision():.1f} % after")
detector.save_pretrained("beads-and-tiles", overwrite=True)
