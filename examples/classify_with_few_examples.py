"""Classify with a pair of encoders that disagree, after four examples of each class.

The features are generated: those of the images are rotated against those of the texts, as for an
image encoder on photographs unlike its training data. Your features can come from any encoder, even
one behind an API.
"""

import numpy as np

import zoo

CLASSES, WIDTH, SHOTS = 20, 64, 4
rng = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


texts = unit(rng.standard_normal((CLASSES, WIDTH)))
turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]


def photographs(labels: np.ndarray) -> np.ndarray:
    """Image features (N, WIDTH) of these classes."""
    noise = 0.15 * rng.standard_normal((len(labels), WIDTH))
    return unit(texts[labels] @ (0.3 * np.eye(WIDTH) + turn) + noise)


few = np.repeat(np.arange(CLASSES), SHOTS)
new = rng.integers(0, CLASSES, 500)
images = photographs(new)

model = zoo.load("lfa").align(photographs(few), texts, labels=few)

for name, scores in {"zero-shot": images @ texts.T, "lfa": model.similarity(images, texts)}.items():
    right = np.asarray(scores).argmax(1) == new
    print(f"{name:10} {100 * right.mean():.1f} % right")
