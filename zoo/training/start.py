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

    ``config``: that of the registry entry, for a folder with the entry's own files (a bundle, a
    download), which has no ``zoo.json``, or one that another method than ``plugin``'s has made.
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
    """Names that only one of them has, or that have another shape, sorted."""
    shapes = [{name: value.shape for name, value in some.items()} for some in (given, wanted)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
