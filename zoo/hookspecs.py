"""Everything the host asks of a plugin: three hooks, each with one request object.

A plugin is a top-level package with an entry point in the group ``zoo.plugins`` and a
``registry.yaml`` next to its ``__init__.py``. Its module is imported only when one of its models
is used, so keep it light: import torch inside the hook. Minimal plugin:

    from zoo.hookspecs import BuildRequest, hookimpl

    @hookimpl
    def zoo_build(request: BuildRequest):
        from .model import MyModel
        return MyModel.build(request)

Names of hooks and of request fields are public API, versioned by ``API_VERSION``
(``zoo_api`` in a registry file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from .entry import API_VERSION as API_VERSION
from .progress import Progress

if TYPE_CHECKING:
    from .entry import Base, Entry
    from .interfaces import Model, Results

hookspec = pluggy.HookspecMarker("zoo")
hookimpl = pluggy.HookimplMarker("zoo")


@dataclass(frozen=True)
class BuildRequest:
    """What ``zoo.load`` hands to the plugin that owns the model."""

    entry: Entry
    """The registry entry of the model."""
    folder: Path | None
    """Complete, verified folder with the weight files; None if the model has none."""
    saved: Mapping[str, Any] | None = None
    """The parsed ``zoo.json`` where a saved folder is loaded, else None."""
    bases: Mapping[str, Base] = field(default_factory=dict)
    """Name -> base, complete and verified: the bases that were given or have a default."""
    device: str = "cpu"
    """A torch device that exists on this machine, never "auto"."""
    dtype: str = "float32"
    """Name of the torch dtype for floating-point weights, such as "float16"."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """All load options that the entry declares, checked, with defaults filled in."""

    @property
    def base(self) -> Base | None:
        """The base of an entry that has one; the first present of several."""
        return next(iter(self.bases.values()), None)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration to build from: the saved folder's, else the registry entry's."""
        return self.saved["config"] if self.saved else self.entry.config


@dataclass(frozen=True)
class TrainRequest:
    """What ``zoo train`` hands to the plugin that owns the model."""

    entry: Entry
    out: Path
    """Output folder, for checkpoints, the loss curve and the saved model."""
    data: Path | None = None
    """Folder or file of training data, or None if the recipe generates its own."""
    seed: int = 0
    steps: int | None = None
    """Steps of each stage that runs; None: the recipe's number."""
    stage: str | None = None
    """One named stage of the recipe; None runs them all in order."""
    resume: bool = False
    """Continue from the checkpoint in ``out``."""
    init: Path | None = None
    """A saved folder of this model to start from."""
    bases: Mapping[str, Base] = field(default_factory=dict)
    """Name -> base to train on, as in ``BuildRequest``."""
    device: str = "cpu"
    progress: Progress = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Base | None:
        """The base of an entry that has one; the first present of several."""
        return next(iter(self.bases.values()), None)


@dataclass(frozen=True)
class BenchRequest:
    """What ``zoo bench MODEL`` hands to the plugin that owns the model."""

    entry: Entry
    out: Path
    """Folder for pictures; the host writes ``results.json`` itself."""
    data: Path | None = None
    seed: int = 0
    """The first seed; an experiment over n seeds uses seed ... seed + n - 1."""
    quick: bool = False
    """The same code on less data with one seed, in minutes."""
    bases: Mapping[str, Base] = field(default_factory=dict)
    """Name -> base to measure on, as in ``BuildRequest``."""
    device: str = "cpu"
    progress: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Base | None:
        """The base of an entry that has one; the first present of several."""
        return next(iter(self.bases.values()), None)


@hookspec(firstresult=True)
def zoo_build(request: BuildRequest) -> Model:
    """Build the model, ready to use. Required of every plugin that has models.

    Only the plugin that owns the entry is asked. Errors that the user can fix are ``ZooError``s;
    any other exception is reported as a fault of this plugin, with the cause chained.
    """
    raise AssertionError("a hook specification is never called")


@hookspec(firstresult=True)
def zoo_train(request: TrainRequest) -> Path:
    """Run the method's training recipe; return the saved folder (loadable by ``zoo.load``).

    Training can be interrupted and continued with ``resume``; the same seed gives the same weights.
    """
    raise AssertionError("a hook specification is never called")


@hookspec(firstresult=True)
def zoo_bench(request: BenchRequest) -> Results:
    """Run the experiment behind the method's claim; pictures go under ``request.out``."""
    raise AssertionError("a hook specification is never called")
