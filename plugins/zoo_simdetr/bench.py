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

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zoo.errors import InputError
from zoo.experiment import Rows, one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from . import dataset
from .dataset import Dataset, Part
from .proposals import PRESETS
from .scenes import load as small_copies

BEST = "decoder + NMS"
FOLDERS = {"shipped": "bccd", "labels": "bccd", "cards": "playing-cards", "discover": "bccd"}
"""Part -> the data set that it is about."""
SEEDS = 3


class Bench:
    """What all parts share: the data, the kept rows, the seeds."""

    def __init__(self, request: BenchRequest, work: Path, folder: str) -> None:
        self.request, self.work = request, work
        assert request.data is not None
        self.root = request.data
        data = dataset.read(self.root / folder)
        if request.quick:
            data = Dataset(_first(data.train, 12), _first(data.test, 4), data.names)
        self.data = data
        self.seeds = [request.seed + i for i in range(1 if request.quick else SEEDS)]
        self.scene = "objects" if folder == "playing-cards" else "many-small"
        self.images = small_copies(data.train.images, PRESETS[self.scene].size)
        self._rows = Rows(work / "rows")

    def row(self, name: str, make: Callable[[], Any]) -> Any:
        """The kept values of a row, else ``make()``'s; {} if only kept rows are asked for."""
        facts: Mapping[str, Any] = {"quick": self.request.quick, "code": 2}
        only = self.request.options.get("only_kept", False)
        return self._rows.row(name, facts, None if only else make)

    def described(self) -> Data:
        """The data set, for a record."""
        size = f"{len(self.data.train)} images, {len(self.data.test)} for testing"
        if self.scene == "objects":
            return Data("playing cards (EdjeElectronics)", "Apache-2.0", size)
        return Data("BCCD blood cells", "MIT", size)


def bench(request: BenchRequest) -> Results:
    """Run one part; see the module's docstring."""
    part = request.options.get("part", "shipped")
    folder = FOLDERS[part]
    if request.data is None or not (request.data / folder).is_dir():
        raise InputError(f"give --data: a folder with the data set {folder}.")
    if request.base is None and part != "discover":
        raise InputError("give --base: a folder or Hub id of timm's tf_efficientnet_lite0.")
    with TemporaryDirectory() as scratch, one_thread():
        here = Bench(request, Path(request.options.get("work") or scratch), folder)
        if part == "shipped":
            from .bench_shipped import measure
        elif part == "discover":
            from .bench_discover import measure
        else:
            from .bench_labels import measure
        return measure(here, part)


def _first(part: Part, count: int) -> Part:
    return Part(part.images[:count], part.truth[:count])


def column(share: float, steps: int, metric: str, arm: str = BEST) -> str:
    """The name of a column."""
    output = "" if arm == BEST else f", {arm}"
    return f"{metric}, {share:.0%} of the labels, {steps} steps{output}"
