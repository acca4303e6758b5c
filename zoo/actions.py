"""Actions on a model besides its own verbs: pull its files, verify it, train it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bases, hub, plugins
from .api import require_code, untrained_message
from .arguments import as_folder, refuse_bare_folder, torch_device
from .bases import Given
from .errors import InputError, NotReadyError, OptionError, OutputError, WeightsError
from .registry import catalogue

if TYPE_CHECKING:
    from .entry import Entry
    from .interfaces import Model
    from .progress import Progress


def pull(name: str) -> hub.Located:
    """Download a model's files and verify them, without importing its plugin."""
    entry = catalogue().entry(name)
    if entry.status == "planned":
        require_code(entry)
    if entry.status == "untrained":
        raise NotReadyError(untrained_message(entry))
    bundled = catalogue().owner(entry).bundle(entry.name)
    return hub.locate(entry, bundled=bundled, progress=hub.bar())


def verify(model: Model) -> float | None:
    """Run the model on its check input; returns the largest deviation from the expected output.

    None if its entry has no check input (loading has compared the hashes of its files). Raises
    NotReadyError for weights that are not the entry's own, and WeightsError if the deviation
    exceeds the entry's tolerance.
    """
    from .weights import load_tensors

    entry = model.entry
    if entry.check is None:
        return None
    if model.source not in ("bundled", "cache", "hub"):
        raise NotReadyError(
            f"{entry.name}'s expected output is for its own weights, and these are from a folder. "
            "Their hashes were checked when they were loaded."
        )
    folder = pull(f"{entry.distribution}:{entry.name}").folder
    assert folder is not None  # spec.py: a check's files are among the entry's files
    expected = load_tensors(folder / entry.check.expected)
    found = model.run_check(folder / entry.check.input)
    worst = 0.0
    for key, tensor in expected.items():
        if key not in found or found[key].shape != tensor.shape:
            shape = tuple(found[key].shape) if key in found else "nothing"
            raise WeightsError(f"{entry.name}: {key} is {shape}, expected {tuple(tensor.shape)}.")
        off = float((found[key].cpu().double() - tensor.double()).abs().max())
        worst = max(worst, off if off == off else float("inf"))
    if worst > entry.check.atol:
        raise WeightsError(
            f"{entry.name}: the output is off by {worst:.3g}, more than {entry.check.atol:g}. "
            "The weights match their hashes, so suspect the device, the dtype or the torch build."
        )
    return worst


def train(
    entry: Entry,
    out: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    stage: str | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    base: Given = None,
    device: Any = "auto",
    progress: Progress = False,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Run a method's training recipe; returns the saved folder, for ``load``.

    ``init``: a saved folder, or the name of a model whose weights to start from. ``base``: as for
    ``load``, if the method starts from another model. Raises InputError if ``data`` does not exist,
    and OutputError if ``out`` is not empty and ``resume`` is off.
    """
    from .hookspecs import TrainRequest

    checked = entry.checked_options("train", options or {})
    bases.asked(entry, base)
    plugin = require_code(entry)
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: there is no such file or folder.")
    if steps is not None and steps < 1:
        raise OptionError(f"steps={steps}: expected at least 1.")
    if out.exists() and not resume and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty. Continue with --resume, or choose another folder.")
    start = None
    if init is not None:
        start = as_folder(init)
        if start is None and str(init) not in {*catalogue().models, *catalogue().qualified}:
            refuse_bare_folder(str(init), "init")
        start = start or pull(str(init)).folder
        if start is None or not start.is_dir():
            raise InputError(f"--init {init}: there is no such folder.")
    # With --init, the saved model replaces the base; a method that still needs one says so.
    found = bases.find(entry, base, "train" if init is None else "")
    request = TrainRequest(
        entry=entry,
        out=out,
        data=data,
        seed=seed,
        steps=steps,
        stage=stage,
        resume=resume,
        init=start,
        bases=found,
        device=torch_device(device, entry),
        progress=bool(progress),
        options=checked,
    )
    return Path(plugins.call(plugin, "zoo_train", request))
