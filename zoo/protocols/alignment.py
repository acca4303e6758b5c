"""Aligners: accuracy on a folder by class, or recall at 1, 5 and 10 on pairs of image and text.

==============  ==================================================================================
folder          one folder for each class; its name, underscores as spaces, is the class's text
rows            of ``zoo.tables``, such as ``.jsonl`` or ``.csv``: ``image`` (a path next to it)
                and ``text``, or ``label``
``.npz`` features: ``images`` (N, d), ``texts`` (C, e), and ``labels`` (N,), indices into the texts;
without labels the rows of both are pairs ==============
==================================================================================

A tie counts as wrong: equal scores for all texts tell nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..errors import InputError, UsageError
from ..interfaces import Data
from . import Measured, Skip

if TYPE_CHECKING:
    import numpy as np

RECALLS = (1, 5, 10)
HIGHER = {
    "accuracy": True,
    "margin": True,
    **{f"image to text R@{k}": True for k in RECALLS},
    **{f"text to image R@{k}": True for k in RECALLS},
    "CPU-s/image": False,
}
PART = 1024
"""The number of images for each call of the model."""


@dataclass(frozen=True, eq=False)
class Rows(Sequence[str]):
    """Images with their texts; as a sequence, the names of the images."""

    names: list[str]
    images: Any
    """N paths, or (N, d) features."""
    texts: Any
    """M strings, all different, or (M, e) features."""
    labels: list[int]
    """N indices into ``texts``."""
    by_class: bool
    """Are the texts classes, or captions?"""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        return self.names[at]

    def text(self, number: int) -> str:
        """The text, or its number for features."""
        return self.texts[number] if isinstance(self.texts, list) else str(number)


def items(data: Path | None, most: int | None = None, skip: Skip | None = None) -> Rows:
    """The rows of a folder or file, or ``most`` of them, evenly spaced.

    ``skip``: called for each image that cannot be read. Raises InputError, UsageError.
    """
    if data is None:
        raise UsageError(
            "zoo has no labelled photos. Pass --data: a folder with one folder for "
            "each class, or a .jsonl file of image and text."
        )
    found = _features(data) if data.suffix == ".npz" else _pictures(data)
    if skip is not None and isinstance(found.images, list):
        found = _readable(found, skip)
    if len(found.texts) < 2:
        what = "class" if found.by_class else "text"
        raise InputError(f"{data} has only one {what}: there is nothing to distinguish.")
    if most is None or len(found) <= most:
        return found
    return _chosen(found, [i * len(found) // most for i in range(most)])


def _readable(found: Rows, skip: Skip) -> Rows:
    """The rows whose images can be read."""
    from .. import images

    kept = []
    for i, picture in enumerate(found.images):
        try:
            if isinstance(picture, str | Path | bytes):
                images.read(picture)
            kept.append(i)
        except InputError as error:
            skip(error)
    return _chosen(found, kept)


def _chosen(found: Rows, kept: Sequence[int]) -> Rows:
    images = found.images
    return Rows(
        [found.names[i] for i in kept],
        [images[i] for i in kept] if isinstance(images, list) else images[kept],
        found.texts,
        [found.labels[i] for i in kept],
        found.by_class,
    )


def _pictures(data: Path) -> Rows:
    from .. import tables

    table = tables.read(data, what=str(data))
    if table.kind != "image" or (table.texts is None and table.codes is None):
        raise InputError(f"{data}: expected images with a text or a label for each.")
    pictures = table.rows(range(len(table)))
    names = [_name(picture, data, i) for i, picture in enumerate(pictures)]
    if len({*names}) < len(names):
        names = [f"{name} (row {i})" for i, name in enumerate(names)]
    if table.texts is None:
        assert table.codes is not None
        classes = [name.replace("_", " ") for name in table.classes]
        return Rows(names, pictures, classes, table.codes.tolist(), True)
    known = {text: i for i, text in enumerate(dict.fromkeys(table.texts))}
    return Rows(names, pictures, list(known), [known[text] for text in table.texts], False)


def _name(picture: Any, data: Path, row: int) -> str:
    """The name of an image: of a file, its path relative to the data."""
    if not isinstance(picture, str | Path):
        return f"row {row}"
    folder, path = data if data.is_dir() else data.parent, Path(picture)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _features(data: Path) -> Rows:
    import numpy as np

    try:
        # opened here: numpy does not close a broken archive; it refuses pickled arrays by default
        with data.open("rb") as opened, np.load(opened) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, header or pickle: numpy raises many kinds
        raise InputError(f"{data} is not a plain .npz file: {error}.") from None
    if missing := {"images", "texts"} - set(arrays):
        raise InputError(f"{data} has no {' and no '.join(sorted(missing))}.")
    images, texts = arrays["images"], arrays["texts"]
    labels = arrays.get("labels")
    if labels is None and len(images) != len(texts):
        raise InputError(
            f"{data}: {len(images)} images and {len(texts)} texts are not pairs. Add labels: for "
            f"each image the index of its text."
        )
    numbers = np.arange(len(images)) if labels is None else labels
    good = numbers.dtype.kind in "iu" and numbers.shape == (len(images),) and len(numbers)
    if not good or numbers.min() < 0 or numbers.max() >= len(texts):
        raise InputError(
            f"{data}: labels: {numbers.dtype} of shape {numbers.shape}; expected "
            f"{len(images)} whole numbers from 0 to {len(texts) - 1}."
        )
    names = [str(i) for i in range(len(images))]
    return Rows(names, images, texts, numbers.tolist(), labels is not None)


def described(data: Path | None, items: Rows) -> Data:
    """The description of the rows for a record."""
    what = "classes" if items.by_class else "texts"
    size = f"{len(items)} images, {len(items.texts)} {what}"
    return Data(str(data.name) if data else "", "not stated", size)


def references() -> dict[str, Any]:
    """No baselines: an aligner that is not fitted is its own reference."""
    return {}


def measure(model: Any, items: Rows) -> Iterator[Measured]:
    """Each image against all texts; on pairs, then each text against all images."""
    import numpy as np

    scores, seconds = _similarities(model, items)
    every = np.arange(len(items))
    own = scores[every, items.labels]
    scores[every, items.labels] = -np.inf
    others = scores.max(1)
    taken_for = scores.argmax(1)
    scores[every, items.labels] = own
    for i, name in enumerate(items):
        margin = float(own[i] - others[i])
        note = "" if margin > 0 else f"taken for {items.text(int(taken_for[i]))!r}"
        if items.by_class:
            found = {"accuracy": float(margin > 0), "margin": margin, "CPU-s/image": seconds[i]}
            yield Measured(name, found, margin, items.text(items.labels[i]), note)
        else:
            rank = int((scores[i] >= own[i]).sum())  # 1 is best; its own text counts
            found = {f"image to text R@{k}": float(rank <= k) for k in RECALLS}
            yield Measured(name, {**found, "CPU-s/image": seconds[i]}, -rank, "", note)
    if not items.by_class:
        yield from _texts(scores, items)


def _texts(scores: np.ndarray, items: Rows) -> Iterator[Measured]:
    """Each text: the rank of the best of its images among those of other texts."""
    import numpy as np

    labels = np.array(items.labels)
    for number in np.unique(labels).tolist():
        its = labels == number
        rank = 1 + int((scores[~its, number] >= scores[its, number].max()).sum())
        found = {f"text to image R@{k}": float(rank <= k) for k in RECALLS}
        yield Measured(f"text: {items.text(number)}", found, -rank)


def _similarities(model: Any, items: Rows) -> tuple[np.ndarray, list[float]]:
    """(N, M) float32, and CPU-seconds for each image. Raises InputError if any is not finite."""
    import numpy as np

    parts, seconds = [], []
    model.similarity(items.images[:1], items.texts)  # warm up, outside the timing
    for start in range(0, len(items), PART):
        images = items.images[start : start + PART]
        began = time.process_time()
        parts.append(model.similarity(images, items.texts))
        seconds += [(time.process_time() - began) / len(images)] * len(images)
    scores = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(scores).all():
        at = int((~np.isfinite(scores)).any(1).argmax())
        raise InputError(f"the model's similarities to {items.names[at]} are not finite.")
    return scores, seconds
