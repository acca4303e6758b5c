"""``Run``: the stages of a recipe in order, each a loop of AdamW steps; see the package's
docstring."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DeviceError, InputError, OptionError
from ..files import atomic_file
from ..hookspecs import BuildRequest, TrainRequest
from ..progress import track, whole_steps
from ..weights import save_tensors
from .processes import Processes, precision_of
from .reports import Curve, draw_curve, history

EVERY = 50  # steps between points of the loss curve
SAVE_SECONDS = 60  # between checkpoints: the most that a crash costs; longer if writing is slow
CHECKPOINT = "checkpoint.safetensors"
OWN = ("moment", "average")
"""Prefixes of a checkpoint's tensors that do not belong to a module."""

Rate: TypeAlias = Callable[[float], float]
"""The factor of the learning rate at progress 0 ... 1 of a stage."""
AnyStage = TypeVar("AnyStage", bound="Stage")
AnyBatch = TypeVar("AnyBatch")


def cosine(progress: float) -> float:
    """Decay from 1 to 0 along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


@dataclass(frozen=True)
class Stage:
    """How one stage runs. A recipe that needs more numbers makes a subclass with more fields.

    A train option that is named like a field replaces its value, unless it is 0, false or None.
    """

    steps: int
    lr: float
    batch: int
    """Items in a step, over all processes."""
    ema: float = 0.999
    """Decay of the moving average of the weights, the result of a stage; 0: no average."""
    decay: float = 1e-4
    warm_up: int = 100
    """Steps over which the learning rate rises from 0."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates, of the means of the gradient and of its square."""


class Saves(Protocol):
    """What a run ends in: a ``Model``, or anything else that is saved as a folder."""

    def save_pretrained(self, folder: Path, /, *, overwrite: bool = False) -> object: ...


@dataclass(frozen=True)
class Draw:
    """The random generators of one batch: functions of seed, stage, step and part alone."""

    count: int
    """The number of items in the batch."""
    rng: np.random.Generator
    """For the data."""
    generator: torch.Generator
    """For noise, on the CPU, so that it is the same whatever the device."""


def _plain(stage: Stage) -> dict[str, Any]:
    """The stage as in a file: JSON has no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(stage)))
    return plain


class Run(Generic[AnyStage]):
    """One training run: its modules, its current stage and step, and its measurements.

    ``modules``: what checkpoints hold, by name; all are moved to the device and frozen; each stage
    unfreezes what it trains. ``stages``: all of the recipe, in order; ``skip``: those that the
    options leave out. ``facts``: JSON-like; must agree when a run is resumed, as must the seed and
    all options except those in ``how``, which say how a step is computed. ``about``: further
    entries for ``train.json``.

    Options that the loop uses if an entry declares them: the fields of ``Stage``, ``precision``
    (auto, float32, bfloat16, float16) and ``micro`` (items drawn and computed at once: with the
    same value a run is the same on any number of processes, up to the order of sums; with another
    value, or none, its batches differ).

    Raises OptionError for an unknown stage or a batch that cannot be divided.
    """

    def __init__(
        self,
        request: TrainRequest,
        modules: Mapping[str, nn.Module],
        stages: Mapping[str, AnyStage],
        *,
        skip: Collection[str] = (),
        facts: Mapping[str, Any] | None = None,
        how: Sequence[str] = ("micro",),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        assert not {*modules} & {*OWN}, f"{OWN} are names of the checkpoint's own"
        self.request = request
        self.out = Path(request.out)
        self.processes = Processes(request.device)
        self.device = self.processes.device
        self.precision = precision_of(request.options.get("precision", "float32"), self.device)
        # Gradients underflow in float16 without scaling.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        self.modules = {k: m.requires_grad_(False).to(self.device) for k, m in modules.items()}
        self.first = next(name for name in stages if name not in skip)
        self.stages = self._chosen(stages, skip)
        self.facts, self.how, self.about = dict(facts or {}), tuple(how), dict(about or {})
        self.before = history(request.init)
        """The reports of the earlier runs that this one starts from."""
        self.stage = ""
        """The stage that ``step`` belongs to: "" between stages."""
        self.step = 0
        self.fresh = True
        """Does the stage begin now, rather than continue from a checkpoint?"""
        self.done: list[str] = []
        self.ran: dict[str, dict[str, Any]] = {}
        """The numbers of each stage that has begun, as they were when it began."""
        self.curve: Curve = []
        self.validated: dict[str, Any] = {}
        """What the stages measured on held-out data, for ``train.json``."""
        self.seconds = 0.0
        self._moments: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}
        self._unclaimed: dict[str, dict[str, Tensor]] = {}  # of a checkpoint; see ``keep``

    def _chosen(self, stages: Mapping[str, AnyStage], skip: Collection[str]) -> dict[str, AnyStage]:
        """The stages to run, with the caller's changes."""
        request = self.request
        names = [name for name in stages if name not in skip]
        if request.stage is not None:
            if request.stage not in names:
                hint = " with these options" if request.stage in stages else ""
                raise OptionError(
                    f"There is no stage {request.stage!r}{hint}. Stages: {', '.join(names)}."
                )
            names = [request.stage]
        chosen = {}
        for name in names:
            own = {f.name for f in fields(stages[name])} - {"steps"}
            changes = {k: v for k, v in request.options.items() if k in own and v}
            if request.steps is not None:
                changes["steps"] = request.steps
            chosen[name] = replace(stages[name], **changes)
            self._at_once(chosen[name])
        return chosen

    def _at_once(self, stage: Stage) -> int:
        """Items that each process computes at once."""
        count = self.processes.count
        micro: int = self.request.options.get("micro") or max(1, stage.batch // count)
        if stage.batch % (micro * count):
            raise OptionError(
                f"batch={stage.batch} is not a whole number of micro-batches of {micro} "
                f"for each of {count} process{'es' if count > 1 else ''}: try "
                f"-O batch={max(1, stage.batch // (micro * count)) * micro * count}."
            )
        return micro

    # --- the stages in order ---

    def fit(self, stages: Mapping[str, Callable[[], None]], model: Callable[[], Saves]) -> Path:
        """Run the recipe (or the chosen stage); returns the saved folder ``out/model``.

        ``stages``: name -> function that runs it. ``model``: makes the model that is saved at the
        end. Raises OptionError if the run cannot start (there is a checkpoint but no ``resume``, or
        a later stage has nothing to start from), and KeyboardInterrupt, which names the checkpoint,
        after Ctrl-C.
        """
        request = self.request
        if request.resume:
            self.restore()
        elif (self.out / CHECKPOINT).exists():
            raise OptionError(
                f"{str(self.out)!r} holds a checkpoint: add --resume to continue from it, or "
                f"give another folder."
            )
        elif request.init is None and request.stage not in (None, self.first):
            raise OptionError(
                f"Stage {request.stage!r} continues from earlier ones: give --init with a saved "
                "model, or --resume in a folder where they ran."
            )
        for module in self.modules.values():
            module.eval()
        for name in self.stages:
            if name not in self.done:
                self.fresh = self.stage != name
                if self.fresh:
                    self.begin(name)
                stages[name]()
                self._finish(name)
        if self.processes.first:
            self.report()
            model().save_pretrained(self.out / "model", overwrite=True)
        self.processes.wait()  # until the first one has written
        return self.out / "model"

    def begin(self, name: str, stage: AnyStage | None = None) -> None:
        """Start the stage ``name`` at its first step; ``stage``: with other numbers.

        ``fit`` calls this; a benchmark that trains parts of a recipe calls it before ``minimise``.
        """
        self.stages[name] = stage or self.stages[name]
        self.stage, self.step, self.fresh = name, 0, True
        self.ran[name] = _plain(self.stages[name])
        self._moments, self._average = {}, {}

    def _finish(self, name: str) -> None:
        self.done.append(name)
        self.stage, self.step, self._moments, self._average = "", 0, {}, {}
        self.checkpoint()

    def build_request(self, config: Mapping[str, Any] | None = None) -> BuildRequest:
        """The request that makes the model's class from the trained modules, with default options.

        ``config``: from which the modules were built; None: the entry's.
        """
        entry = self.request.entry
        return BuildRequest(
            entry,
            folder=None,
            saved={"config": dict(entry.config if config is None else config)},
            device=str(self.device),
            options=entry.checked_options("load", {}),
        )

    # --- modules that only some stages have ---

    def keep(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A frozen module, such as a teacher, that checkpoints include from now on.

        Returns the module already kept under this name or in the checkpoint, else that of ``make``.
        """
        if name not in self.modules:
            module = make().requires_grad_(False).to(self.device)
            if name in self._unclaimed:
                module.load_state_dict(self._unclaimed.pop(name))
            self.modules[name] = module
        return self.modules[name]

    def keeps(self, name: str) -> bool:
        """Is there a module of this name, here or in the checkpoint?"""
        return name in self.modules or name in self._unclaimed

    def drop(self, name: str) -> None:
        """Forget a kept module that is no longer needed, if there is one."""
        self.modules.pop(name, None)
        self._unclaimed.pop(name, None)

    # --- the loop ---

    def draw(self, name: str, count: int) -> Draw:
        """Random generators for ``name``: the same for the same seed, whatever ran before."""
        key = int.from_bytes(hashlib.sha256(f"{self.request.seed} {name}".encode()).digest()[:8])
        generator = torch.Generator().manual_seed(key & 0x7FFF_FFFF)
        return Draw(count, np.random.default_rng(key), generator)

    def autocast(self) -> torch.autocast:
        """The autocast of the run, for computing a loss."""
        low = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.precision != "float32")

    def minimise(
        self,
        parts: Mapping[str, nn.Module | tuple[nn.Module, Rate]],
        batch: Callable[[Draw], AnyBatch],
        loss: Callable[[AnyBatch], Tensor],
    ) -> None:
        """Train the parts on ``loss(batch(draw))`` (a mean over items) until the stage ends.

        Each part's learning rate follows its ``Rate`` (``cosine`` by default). At the end the parts
        have the moving average of their weights and are frozen again. Random numbers inside a
        network, such as dropout, also depend on seed, stage and step alone (``fit`` puts the
        modules in ``eval`` mode: a stage with dropout calls ``train()``).
        """
        stage, first = self.stages[self.stage], self.processes.first
        at_once = self._at_once(stage)
        micros = stage.batch // at_once
        trained = {k: p if isinstance(p, tuple) else (p, cosine) for k, p in parts.items()}
        tensors: dict[str, nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        for part, (module, _) in trained.items():
            module.requires_grad_(True)
            named = {f"{part}.{k}": p for k, p in module.named_parameters()}
            tensors |= named
            groups.append({"params": list(named.values()), "lr": 0.0})
        self.processes.copy_first([p for m in self.modules.values() for p in m.parameters()])
        self.processes.copy_first(list(tensors.values()))
        optimizer = torch.optim.AdamW(groups, betas=stage.betas, weight_decay=stage.decay)
        self._restore_moments(optimizer, tensors)
        average = {k: self._average.get(k, p.detach()).clone().to(p) for k, p in tensors.items()}
        self._moments, self._average = {}, {}  # free the copies from the checkpoint
        recent: list[float] = []
        pause: float = SAVE_SECONDS
        saved_at = time.monotonic()
        gpus = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(gpus),
            track(stage.steps, self.request.progress if first else False, self.stage) as advance,
            whole_steps() as interrupted,
            self._enough_memory(at_once),
        ):
            advance(self.step)
            while self.step < stage.steps:
                warm = min(1.0, (self.step + 1) / max(1, stage.warm_up))
                for group, (_, rate) in zip(groups, trained.values(), strict=True):
                    group["lr"] = stage.lr * rate(self.step / stage.steps) * warm
                optimizer.zero_grad(set_to_none=True)
                shared = 0.0
                for micro in self.processes.share(micros):
                    part = f" {micro}" if micros > 1 else ""
                    draw = self.draw(f"{self.stage} {self.step}{part}", at_once)
                    drawn = batch(draw)
                    torch.manual_seed(draw.generator.initial_seed())  # for dropout in a network
                    value = loss(drawn) / micros
                    self.scaler.scale(value).backward()
                    shared += float(value.detach())
                self.processes.add([p.grad for p in tensors.values() if p.grad is not None])
                self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(tensors.values(), stage.clip)
                self.scaler.step(optimizer)
                self.scaler.update()
                self.step += 1
                # Early averages decay faster: they began with untrained weights.
                kept = min(stage.ema, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(
                    list(average.values()), [p.detach() for p in tensors.values()], 1 - kept
                )
                recent.append(shared)
                stop = self.processes.any(interrupted())
                if self.step % EVERY == 0 or self.step == stage.steps or stop:
                    self._note(self.processes.total(sum(recent) / len(recent)))
                    recent.clear()
                now = time.monotonic()
                due = self.step % EVERY == 0 and now - saved_at > pause
                if (due and self.step < stage.steps) or stop:
                    self.seconds += now - saved_at
                    saved_at = now
                    self._average = dict(average)
                    self._moments = {
                        f"{key}|{field}": value
                        for key, parameter in tensors.items()
                        for field, value in optimizer.state[parameter].items()
                    }
                    self.checkpoint()
                    self._moments, self._average = {}, {}  # not copies
                    pause = SAVE_SECONDS * max(1.0, (time.monotonic() - now) / 3)
                if stop:
                    self.processes.wait()  # until the first one has written
                    raise KeyboardInterrupt(
                        f"Step {self.step} of {stage.steps} of stage {self.stage!r} is saved in "
                        f"{str(self.out)!r}: run the same command with --resume to continue."
                    )
                advance(1)
        self.seconds += time.monotonic() - saved_at
        with torch.no_grad():
            for key, parameter in tensors.items():
                parameter.copy_(average[key])
        for module, _ in trained.values():
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)

    def _note(self, value: float) -> None:
        """Add a point to the loss curve. Raises InputError if the loss is not finite."""
        if not math.isfinite(value):
            options = self.request.options
            ways = ["-O precision=float32"] if "precision" in options else []
            ways.append(
                "a lower learning rate " + ("(-O lr)" if "lr" in options else "(the recipe)")
            )
            raise InputError(
                f"The loss of stage {self.stage!r} is {value} at step {self.step}. Try "
                f"{', or '.join(ways)}. The last checkpoint is from before that step."
            )
        self.curve.append((self.stage, self.step, value))

    def _restore_moments(
        self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, nn.Parameter]
    ) -> None:
        for name, value in self._moments.items():
            key, field = name.split("|")
            parameter = tensors[key]
            # The step count stays on the CPU, as torch keeps it.
            optimizer.state[parameter][field] = (
                value.clone() if field == "step" else value.to(parameter)
            )

    @contextmanager
    def _enough_memory(self, at_once: int) -> Iterator[None]:
        """If the GPU's memory is too small, raise a DeviceError that names options that need
        less."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            options, stage = self.request.options, self.stages[self.stage]
            hints = []
            if "micro" in options and at_once > 1:
                hints.append(f"-O micro={at_once // 2}")
            if options.get("checkpointing") is False:
                hints.append("-O checkpointing=true")
            smaller = [f"-O {k}" for k in ("batch", "crop") if k in options]
            wanted = " and ".join(hints) or f"a smaller {' or '.join(smaller) or 'batch'}"
            own = {f.name for f in fields(stage)} - {f.name for f in fields(Stage)}
            sizes = ", ".join(f"{name}={getattr(stage, name)}" for name in sorted(own))
            raise DeviceError(
                f"Stage {self.stage!r} needs more memory than the GPU has for {at_once} items at "
                f"once{f' ({sizes})' if sizes else ''}. Try {wanted}."
            ) from error

    # --- checkpoints: one safetensors file, with its facts in the header ---

    def checkpoint(self) -> None:
        """Write the checkpoint for ``restore``, and the report; only in the first process."""
        if not self.processes.first:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        held = {name: module.state_dict() for name, module in self.modules.items()}
        held |= {**self._unclaimed, "moment": self._moments, "average": self._average}
        state = {
            "facts": self._agreed(),
            "stage": self.stage,
            "ran": self.ran,
            "step": self.step,
            "scaler": self.scaler.state_dict(),
            "done": self.done,
            "curve": self.curve,
            "validated": self.validated,
            "seconds": self.seconds,
            "before": self.before,
        }
        save_tensors(
            self.out / CHECKPOINT,
            {
                f"{name}:{key}": tensor.detach().cpu().contiguous()
                for name, tensors in held.items()
                for key, tensor in tensors.items()
            },
            {"state": json.dumps(state)},
        )
        self.report()

    def restore(self) -> None:
        """Continue from the checkpoint in ``out``. Raises OptionError if its facts differ."""
        from safetensors import safe_open

        path = self.out / CHECKPOINT
        if not path.exists():
            raise InputError(f"There is no checkpoint in {str(self.out)!r} to resume from.")
        with safe_open(str(path), "pt") as file:
            state = json.loads(file.metadata()["state"])
            held: dict[str, dict[str, Tensor]] = {}
            for full in file.keys():  # noqa: SIM118
                name, _, key = full.partition(":")
                held.setdefault(name, {})[key] = file.get_tensor(full)
        for key, value in json.loads(json.dumps(self._agreed())).items():
            if (found := state["facts"].get(key)) != value:
                raise OptionError(
                    f"The checkpoint in {str(self.out)!r} was made with {key}={found!r}, "
                    f"not {value!r}: resume with the same value, or start in another folder."
                )
        stage, self.ran = state["stage"], state["ran"]
        self._refuse_other_numbers(stage)
        self._moments, self._average = (held.pop(own, {}) for own in OWN)
        for name in self.modules:
            self.modules[name].load_state_dict(held.pop(name))
        self._unclaimed = held
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.stage, self.step, self.done = stage, state["step"], state["done"]
        self.curve = [(s, i, v) for s, i, v in state["curve"]]
        self.validated, self.seconds = state["validated"], state["seconds"]
        self.before = state["before"]

    def _refuse_other_numbers(self, current: str) -> None:
        """Raise OptionError if ``current``, or another stage that has begun, ran with other
        numbers."""
        for name in self.ran.keys() & self.stages.keys():
            ran, asked = self.ran[name], _plain(self.stages[name])
            differing = [
                f"{k}={ran.get(k)!r}, not {v!r}" for k, v in asked.items() if ran.get(k) != v
            ]
            if name == current and differing:
                raise OptionError(
                    f"The checkpoint in {str(self.out)!r} is in the middle of stage {name!r} with "
                    f"{'; '.join(differing)}: resume with the same values (--steps), or start in "
                    f"another folder."
                )
            # Without --steps, a recipe continues after a stage that was shortened on purpose.
            if self.request.steps not in (None, ran["steps"]):
                raise OptionError(
                    f"Stage {name!r} in {str(self.out)!r} has run with steps={ran['steps']}, not "
                    f"{asked['steps']}: choose the remaining stages with --stage, or start in "
                    f"another folder."
                )

    def _agreed(self) -> dict[str, Any]:
        """What must agree to continue from a checkpoint."""
        options = {f"-O {k}": v for k, v in self.request.options.items() if k not in self.how}
        return {**self.facts, "seed": self.request.seed, **options}

    def report(self) -> None:
        """``train.json``: how these weights were made; ``curve.png``: the loss so far."""
        report = {
            "model": self.request.entry.name,
            "seed": self.request.seed,
            "stages": {**{k: _plain(v) for k, v in self.stages.items()}, **self.ran},
            "done": self.done,
            "stage": self.stage,
            "step": self.step,
            "options": dict(self.request.options),
            "precision": self.precision,
            "processes": self.processes.count,
            "seconds": round(self.seconds, 1),
            **self.facts,
            **self.about,
            "validation": self.validated,
            "curve": self.curve,
            "before": self.before,
        }
        with atomic_file(self.out / "train.json") as temporary:
            Path(temporary).write_text(json.dumps(report) + "\n")
        draw_curve(self.curve, self.out / "curve.png")
