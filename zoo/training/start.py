"""What a run starts from: the configuration and the tensors of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import weights


def read_saved(
    folder: Path, config: Mapping[str, Any] | None = None, plugin: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors (float32) of a saved folder.

    ``config``: of the registry entry, for a folder without ``zoo.json`` (the entry's own files,
    bundled or downloaded) or one from another plugin than ``plugin``.
    """
    folder = Path(folder)
    if (
        config is None
        or not (folder / weights.WEIGHTS).is_file()
        or (folder / "zoo.json").is_file()
    ):
        manifest = weights.read_saved(folder).manifest
        if config is None or plugin in (None, manifest["plugin"]):
            config = manifest["config"]
    tensors = weights.load_tensors(folder / weights.WEIGHTS)
    return dict(config or {}), {k: v.float() for k, v in tensors.items()}


def differing(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Sorted names that only one of them has, or whose shapes differ."""
    shapes = [{name: value.shape for name, value in some.items()} for some in (given, wanted)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
