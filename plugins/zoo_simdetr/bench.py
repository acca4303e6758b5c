"""The claims of simdetr: ``zoo bench simdetr --data PATH``, in parts.

-O part=shipped   the bundled weights and two more seeds of their recipe, photographs without cells,
                  proposals next to others, ONNX, speed (an hour; most of it is training)
-O part=labels    pretrained and not, on 2, 10 and 100 % of BCCD's labels (many hours)
-O part=cards     the same at 2 and 100 % on playing cards, and proposals there (hours)
-O part=discover  detectors from clusters that six labelled images name, without training (minutes
                  after ``labels``)

``PATH`` has ``bccd``, ``photos-cc0`` and ``playing-cards``; ``--base`` is EfficientNet-Lite0, a
folder or a Hub id. ``-O work=FOLDER`` keeps each row as soon as it is measured, so that an
interrupted benchmark goes on where it was, and ``-O only_kept=true`` reports those rows alone.

A seed is the start of a network, the order of its images, and the draw of the labelled images.
Every number is measured with the decoder and NMS, the decoder alone, and the dense head with NMS.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from zoo.errors import InputError
from zoo.experiment import one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Results

from .bench_rows import Bench, backbone

FOLDERS = {"shipped": "bccd", "labels": "bccd", "cards": "playing-cards", "discover": "bccd"}
"""Part -> the data set that it is about."""


def bench(request: BenchRequest) -> Results:
    """Run one part; see the module's docstring."""
    part = request.options.get("part", "shipped")
    folder = FOLDERS[part]
    if request.data is None or not (request.data / folder).is_dir():
        raise InputError(f"give --data: a folder with the data set {folder}.")
    if part != "discover":  # which goes on from what ``labels`` pretrained
        backbone(request)
    with TemporaryDirectory() as scratch, one_thread():
        here = Bench(request, Path(request.options.get("work") or scratch), folder)
        if part == "shipped":
            from .bench_shipped import measure
        elif part == "discover":
            from .bench_discover import measure
        else:
            from .bench_labels import measure
        return measure(here, part)
