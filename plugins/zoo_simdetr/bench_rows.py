"""What all parts of the benchmark share: the data, the kept rows, the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.experiment import Rows
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data

from . import dataset
from .dataset import Dataset, Part
from .proposals import PRESETS
from .scenes import load as small_copies

BEST = "decoder + NMS"
SEEDS = 3


class Bench:
    """One part's request, data and rows."""

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

    def row(self, name: str, make: Callable[[], Any], **of: Any) -> Any:
        """The kept values of a row, else ``make()``'s; {} if only kept rows are asked for.

        ``of``: what else the values depend on.
        """
        facts: Mapping[str, Any] = {"quick": self.request.quick, "code": 2, **of}
        only = self.request.options.get("only_kept", False)
        return self._rows.row(name, facts, None if only else make)

    def described(self) -> Data:
        """The data set, for a record."""
        size = f"{len(self.data.train)} images, {len(self.data.test)} for testing"
        if self.scene == "objects":
            return Data("playing cards (EdjeElectronics)", "Apache-2.0", size)
        return Data("BCCD blood cells", "MIT", size)


def backbone(request: BenchRequest) -> Path:
    """The folder of EfficientNet-Lite0. Raises InputError if none was given."""
    if request.base is None or request.base.folder is None:
        raise InputError("give --base: a folder or Hub id of timm's tf_efficientnet_lite0.")
    return request.base.folder


def _first(part: Part, count: int) -> Part:
    return Part(part.images[:count], part.truth[:count])


def column(share: float, steps: int, metric: str, arm: str = BEST) -> str:
    """The name of a column."""
    output = "" if arm == BEST else f", {arm}"
    return f"{metric}, {share:.0%} of the labels, {steps} steps{output}"
