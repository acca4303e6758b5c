"""Find wrong labels in a training set, with the help of a few rows that are known to be right."""

import numpy as np

import zoo

rng = np.random.default_rng(0)


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 8) and their class: which side of a curved border they are on."""
    x = rng.standard_normal((count, 8)).astype("float32")
    return x, (x[:, 0] + x[:, 1] ** 2 > 1).astype("int64")


x, y = rows(800)
wrong = rng.random(len(y)) < 0.2
train = x, np.where(wrong, 1 - y, y)
trusted = rows(80)

model = zoo.load("bayesian-dps").fit(train, trusted)

suspects = np.setdiff1d(np.arange(len(y)), model.select())
print(f"all rows   {100 * wrong.mean():.1f} % wrong")
print(f"suspects   {100 * wrong[suspects].mean():.1f} % wrong, {len(suspects)} for {wrong.sum()}")
