"""The loop that all stages of both recipes share: steps, averages, checkpoints, reports.

Each step draws its data and noise from (seed, stage, step), so a run that was interrupted and
resumed ends with the weights of one that was not. Checkpoints are safetensors. Under ``accelerate
launch`` several processes share the micro-batches of a step (``processes``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo.errors import DeviceError, InputError, OptionError, WeightsError
from zoo.hookspecs import BuildRequest, TrainRequest

from ..degrade import Bicubic, RealESRGAN, RealLite
from ..networks import LatentNetwork
from ..pixels import bicubic_up
from ..tiles import noise_field
from ..upscaler import LatentSR
from .photos import Photos
from .processes import Processes, precision_of

EMA = 0.999
CLIP = 1.0
EVERY = 50  # steps between points of the loss curve
SAVE_SECONDS = 60  # between checkpoints: what an interruption costs; more where writing is slow
AT_ONCE = 8  # held-out crops that validation computes at once
HOW = ("micro", "checkpointing")
"""Options that say how a step is computed, not what: a run may go on with others."""


@dataclass(frozen=True)
class Stage:
    """How one stage of a recipe runs."""

    steps: int
    lr: float
    batch: int
    """Images in a step, of all processes together."""
    crop: int
    """Side of an HR crop in pixels."""
    ema: float = EMA
    decay: float = 1e-4


@dataclass
class Batch:
    """What one step works on. Images in [-1,1]."""

    x_h: Tensor  # (B,3,H,W)
    x_l: Tensor  # (B,3,H/N,W/N)
    x_l_easy: Tensor | None  # (B,3,2H/N,2W/N): the same degradation at half the factor
    generator: torch.Generator

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like)

    def uniform(self) -> Tensor:
        return torch.rand(len(self.x_h), generator=self.generator).to(self.x_h)


class Trainer:
    """The network, its data, and the loop. A method's own one names model, recipes and stages."""

    model: ClassVar[type[LatentSR]]
    recipes: ClassVar[Mapping[str, Mapping[str, Stage]]]
    """``config["network"]`` -> stage -> how it runs, in order."""
    stages: ClassVar[Mapping[str, Callable[[Any], None]]]
    """Stage -> what runs it, given the trainer."""
    net: Any

    def start(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Configuration and tensors to start from; without tensors they are drawn."""
        request = self.request
        if request.init is not None:
            return read_saved(request.init, request.entry.config, request.entry.plugin)
        return dict(request.entry.config), None

    def configured(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with what the options change."""
        return config

    def adopted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network takes over from the tensors that it starts from."""
        return tensors

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Of a recipe's stages those that the options ask for."""
        return list(names)

    def ready(self) -> None:
        """Raises OptionError where ``current`` cannot follow what was done before it."""

    def factors(self) -> tuple[int, int | None]:
        """N of the stage that runs, and that of a teacher's easier task where there is one."""
        return self.net.scale, None

    def __init__(self, request: TrainRequest, photos: Photos | None = None) -> None:
        options = request.options
        self.request = request
        self.out = Path(request.out)
        self.processes = Processes(request.device)
        self.device = self.processes.device
        self.photos = photos or Photos(request.data)
        self.texture: float = options["texture"]
        kind = {"light": RealLite, "real": RealESRGAN}[options["degradation"]]
        self.degradation: RealLite | RealESRGAN = kind(share=options["degraded"])
        self.precision = precision_of(options["precision"], self.device)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == "float16"
        )  # the gradients of float16 are too small for it
        torch.manual_seed(request.seed)
        config, tensors = self.start()
        self.config: dict[str, Any] = self.configured(config)
        self.net = self.model.network(self.config)
        self.before = history(request.init)
        if tensors is not None:
            adopted = self.adopted(tensors)
            if wrong := differing(adopted, self.net.state_dict()):
                raise WeightsError(
                    f"--init {request.init}: {len(wrong)} of its tensors are not those of "
                    f"{request.entry.name}, such as {wrong[0]}: start from a model of its kind."
                )
            self.net.load_state_dict(adopted, strict=True)
        self.net.requires_grad_(False)
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher: nn.Module | None = None
        self.current = ""
        """The stage that runs."""
        self.stage = ""
        """The stage that ``step``, ``moments`` and ``average`` belong to: "" between stages."""
        self.step = 0
        self.part: int | None = None
        """The micro-batch of this step that is worked on; None where there is only one."""
        self.done: list[str] = []
        self.moments: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.curve: list[tuple[str, int, float]] = []
        self.validated: dict[str, Any] = {}
        self.seconds = 0.0
        self.recipe = self._recipe()

    def _recipe(self) -> dict[str, Stage]:
        """The stages to run in order, with the caller's changes."""
        request, options = self.request, self.request.options
        own = self.recipes[self.config["network"]]
        names = self.wanted(list(own))
        if request.stage is not None:
            if request.stage not in names:
                hint = " with these options" if request.stage in own else ""
                raise OptionError(
                    f"There is no stage {request.stage!r}{hint}. Stages: {', '.join(names)}."
                )
            names = [request.stage]
        chosen = {}
        for name in names:
            stage = own[name]
            changes: dict[str, Any] = {}
            if request.steps is not None:
                changes["steps"] = request.steps
            changes |= {k: options[k] for k in ("batch", "crop", "lr") if options.get(k)}
            chosen[name] = replace(stage, **changes)
            multiple = self.net.scale * self.net.stride
            if chosen[name].crop % multiple:
                raise OptionError(f"crop={chosen[name].crop} is not a multiple of {multiple}.")
            self.micro(chosen[name])
        return chosen

    def micro(self, stage: Stage) -> Stage:
        """The stage with the batch that is computed at once."""
        count = self.processes.count
        micro = self.request.options.get("micro", 0) or max(1, stage.batch // count)
        if stage.batch % (micro * count):
            raise OptionError(
                f"batch={stage.batch} is not a whole number of micro-batches of {micro} "
                f"for each of {count} process{'es' if count > 1 else ''}: try "
                f"-O batch={max(1, stage.batch // (micro * count)) * micro * count}."
            )
        return replace(stage, batch=micro)

    def batch(self, stage: Stage, name: str | None = None) -> Batch:
        """The data of this step, of its micro-batch, or of ``name``: a function of the seed."""
        part = "" if self.part is None else f" {self.part}"
        text = f"{self.request.seed} {name or f'{self.stage} {self.step}{part}'}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        rng = np.random.default_rng(key)
        x_h = self.photos.crops(rng, stage.batch, stage.crop)  # (B,3,H,W) in [0,1]
        params = self.degradation.sample(rng, stage.batch)
        scale, easier = self.factors()
        x_l = self.degradation.apply(x_h, scale, params, scale)
        easy = None if easier is None else self.degradation.apply(x_h, easier, params, scale)

        def ready(x: Tensor) -> Tensor:
            return (2 * x - 1).to(self.device).contiguous(memory_format=torch.channels_last)

        generator = torch.Generator().manual_seed(key & 0x7FFF_FFFF)
        return Batch(ready(x_h), ready(x_l), None if easy is None else ready(easy), generator)

    def autocast(self) -> torch.autocast:
        low = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.precision != "float32")

    def run(
        self,
        name: str,
        parts: Mapping[str, tuple[nn.Module, Callable[[float], float]]],
        loss_of: Callable[[Batch], Tensor],
    ) -> None:
        """Minimise ``loss_of`` over the parts, each with its rate as a function of progress."""
        from zoo.progress import track, whole_steps

        stage, first = self.recipe[name], self.processes.first
        at_once = self.micro(stage)
        micros = stage.batch // at_once.batch
        if self.stage != name:  # a fresh stage, not one that goes on from a checkpoint
            self.stage, self.step, self.moments, self.average = name, 0, {}, {}
        groups: list[dict[str, Any]] = []
        tensors: dict[str, nn.Parameter] = {}
        for part, (module, _) in parts.items():
            module.requires_grad_(True)
            named = {f"{part}.{k}": p for k, p in module.named_parameters()}
            tensors |= named
            groups.append({"params": list(named.values()), "lr": 0.0})
        self.processes.copy_first([*self.net.parameters(), *tensors.values()])
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=stage.decay)
        self._restore_moments(optimizer, tensors)
        average = {k: self.average.get(k, p.detach()).clone().to(p) for k, p in tensors.items()}
        self.moments, self.average = {}, {}  # read from a checkpoint: twice the network each
        recent: list[float] = []
        pause: float = SAVE_SECONDS
        saved_at = time.monotonic()
        with (
            track(stage.steps, self.request.progress and first, name) as advance,
            whole_steps() as interrupted,
            enough_memory(name, at_once, self.request.options),
        ):
            advance(self.step)
            while self.step < stage.steps:
                progress = self.step / stage.steps
                for group, (_, rate) in zip(groups, parts.values(), strict=True):
                    group["lr"] = stage.lr * rate(progress) * min(1.0, (self.step + 1) / 100)
                optimizer.zero_grad(set_to_none=True)
                shared = 0.0
                for micro in self.processes.share(micros):
                    self.part = micro if micros > 1 else None
                    loss = loss_of(self.batch(at_once)) / micros
                    self.scaler.scale(loss).backward()
                    shared += float(loss.detach())
                self.processes.add([p.grad for p in tensors.values() if p.grad is not None])
                self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(tensors.values(), CLIP)
                self.scaler.step(optimizer)
                self.scaler.update()
                self.part = None
                self.step += 1
                keep = min(stage.ema, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(
                    list(average.values()), [p.detach() for p in tensors.values()], 1 - keep
                )
                recent.append(shared)
                if self.step % EVERY == 0 or self.step == stage.steps:
                    value = self.processes.total(sum(recent) / len(recent))
                    if not math.isfinite(value):
                        raise InputError(
                            f"The loss of stage {name!r} is {value} at step {self.step}. What to "
                            "change: -O precision=float32, or a lower learning rate (-O lr, or "
                            "the recipe). The last checkpoint is from before it."
                        )
                    self.curve.append((name, self.step, value))
                    recent.clear()
                now = time.monotonic()
                due = self.step % EVERY == 0 and now - saved_at > pause
                stop = self.processes.any(interrupted())
                if (due and self.step < stage.steps) or stop:
                    self.seconds += now - saved_at
                    saved_at = now
                    self._keep_moments(optimizer, tensors, average)
                    self.checkpoint()
                    self.moments, self.average = {}, {}  # the optimizer's, no copies
                    pause = SAVE_SECONDS * max(1.0, (time.monotonic() - now) / 3)
                if stop:
                    self.processes.wait()  # for the first one to have written
                    raise KeyboardInterrupt
                advance(1)
        self.seconds += time.monotonic() - saved_at
        with torch.no_grad():
            for key, parameter in tensors.items():
                parameter.copy_(average[key])
        for module, _ in parts.values():
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)

    def finish(self, name: str) -> None:
        """Mark a stage as done and keep its result."""
        self.done.append(name)
        self.stage, self.step, self.moments, self.average = "", 0, {}, {}
        self.checkpoint()

    # --- checkpoints: one safetensors file, with its facts in the header ---

    def _keep_moments(
        self,
        optimizer: torch.optim.Optimizer,
        tensors: Mapping[str, nn.Parameter],
        average: Mapping[str, Tensor],
    ) -> None:
        self.average = dict(average)
        self.moments = {
            f"{key}|{field}": value
            for key, parameter in tensors.items()
            for field, value in optimizer.state[parameter].items()
        }

    def _restore_moments(
        self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, nn.Parameter]
    ) -> None:
        for name, value in self.moments.items():
            key, field = name.split("|")
            parameter = tensors[key]
            # The step count stays on the CPU, as torch keeps it.
            optimizer.state[parameter][field] = (
                value.clone() if field == "step" else value.to(parameter)
            )

    def facts(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be gone on with."""
        return {
            "config": self.config,
            "seed": self.request.seed,
            "data": self.photos.hash,
            "options": dict(self.request.options),
        }

    def checkpoint(self) -> None:
        from zoo.weights import save_tensors

        if not self.processes.first:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        if self.teacher is not None:
            tensors |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        tensors |= {f"moment.{k}": v for k, v in self.moments.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        state = self.facts() | {
            "stage": self.stage,
            "recipe": asdict(self.recipe[self.stage]) if self.stage else None,
            "step": self.step,
            "scaler": self.scaler.state_dict(),
            "done": self.done,
            "curve": self.curve,
            "validated": self.validated,
            "seconds": self.seconds,
            "before": self.before,
        }
        save_tensors(
            self.out / "checkpoint.safetensors",
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            {"state": json.dumps(state)},
        )
        self.report()

    def restore(self) -> None:
        """Go on from the checkpoint in ``out``."""
        from safetensors import safe_open

        path = self.out / "checkpoint.safetensors"
        if not path.exists():
            raise InputError(f"There is no checkpoint in {str(self.out)!r} to resume from.")
        with safe_open(str(path), "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        given, found = (_flat(json.loads(json.dumps(f))) for f in (self.facts(), state))
        for key, value in given.items():
            if found.get(key) != value:
                raise OptionError(
                    f"The checkpoint in {str(self.out)!r} was made with {key}={found.get(key)!r}, "
                    f"not {value!r}: resume with the same, or start in another folder."
                )

        stage, recipe = state["stage"], state["recipe"]
        if stage in self.recipe and asdict(self.recipe[stage]) != recipe:
            raise OptionError(
                f"The checkpoint in {str(self.out)!r} is in the middle of stage {stage!r} with "
                f"{recipe}: resume with the same --steps, or start in another folder."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.net.load_state_dict(part("net."))
        if teacher := part("teacher."):
            self.teacher = copy.deepcopy(self.net.unet)
            self.teacher.load_state_dict(teacher)
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.moments, self.average = part("moment."), part("average.")
        self.stage, self.step, self.done = state["stage"], state["step"], state["done"]
        self.curve = [(s, i, v) for s, i, v in state["curve"]]
        self.validated, self.seconds = state["validated"], state["seconds"]
        self.before = state.get("before", self.before)

    def new_teacher(self) -> nn.Module:
        """A network of the UNet's shape."""
        return (
            self.model.network(self.config)
            .unet.requires_grad_(False)
            .to(
                self.device,
                memory_format=torch.channels_last,  # type: ignore[call-overload]
            )
        )

    def report(self) -> None:
        """``train.json``: how these weights were made; ``curve.png``: the loss so far."""
        from zoo.weights import atomic_file

        report = {
            "model": self.request.entry.name,
            "seed": self.request.seed,
            "stages": {k: asdict(v) for k, v in self.recipe.items()},
            "done": self.done,
            "stage": self.stage,
            "step": self.step,
            "options": dict(self.request.options),
            "precision": self.precision,
            "processes": self.processes.count,
            "seconds": round(self.seconds, 1),
            "data": {
                "photos": self.photos.count,
                "held_out": sorted(self.photos.held_out),
                "sha256": self.photos.hash,
            },
            "validation": self.validated,
            "config": self.config,
            "curve": self.curve,
            "before": self.before,
        }
        with atomic_file(self.out / "train.json") as temporary:
            Path(temporary).write_text(json.dumps(report) + "\n")
        draw_curve(self.curve, self.out / "curve.png")

    # --- validation on the held-out photos ---

    @torch.no_grad()
    def validate(self, name: str, picture: Callable[[Tensor, Tensor], Tensor]) -> None:
        """PSNR-Y of ``picture``(x_h, x_l), both in [-1,1], and of bicubic; mean over held-out."""
        from zoo.metrics import psnr_y

        x_h = self.photos.validation() if self.processes.first else None
        if x_h is None:
            return
        scale = self.factors()[0]
        rng = np.random.default_rng(0)
        degradation = self.degradation if self.degradation.share == 1 else Bicubic()
        x_l = degradation.apply(x_h, scale, degradation.sample(rng, len(x_h)), scale)
        parts = zip(x_h.split(AT_ONCE), x_l.split(AT_ONCE), strict=True)  # all may be too many
        pictures = [
            picture(2 * hr.to(self.device) - 1, 2 * lr.to(self.device) - 1).cpu()
            for hr, lr in parts
        ]
        made = (torch.cat(pictures) + 1) / 2
        for row, enlarged in ((name, made), (f"bicubic x{scale}", bicubic_up(x_l, scale))):
            values = [psnr_y(a, b, scale) for a, b in zip(enlarged, x_h, strict=True)]
            self.validated[row] = {"psnr_y": round(sum(values) / len(values), 3)}


# --- a whole run ----------------------------------------------------------------------------------


def fit(run: Trainer) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    request, first = run.request, next(iter(run.recipes[run.config["network"]]))
    if request.resume:
        run.restore()
    elif (run.out / "checkpoint.safetensors").exists():
        raise OptionError(
            f"{str(run.out)!r} holds a checkpoint: add --resume to go on from it, "
            "or give another folder."
        )
    elif request.init is None and request.stage not in (None, first):
        raise OptionError(
            f"Stage {request.stage!r} goes on from earlier ones: give --init with a saved model, "
            "or --resume in a folder where they ran."
        )
    run.net.eval()
    for name in run.recipe:
        if name not in run.done:
            run.current = name
            run.ready()
            run.stages[name](run)
            run.finish(name)
    return save(run)


def save(run: Trainer) -> Path:
    """``out/model`` (what zoo.load takes), ``train.json`` and ``curve.png``."""
    if not run.processes.first:
        run.processes.wait()
        return run.out / "model"
    run.report()
    request = run.request
    saved = {"config": run.config, "options": {}}
    model = run.model(
        BuildRequest(request.entry, folder=run.out, saved=saved, device=request.device), run.net
    )
    folder = model.save_pretrained(run.out / "model", overwrite=True)
    run.processes.wait()
    return folder


# --- small helpers --------------------------------------------------------------------------------


@contextmanager
def enough_memory(name: str, stage: Stage, options: Mapping[str, Any]) -> Iterator[None]:
    """Where the GPU's memory ends, a DeviceError says which options need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        hints = []
        if "micro" in options and stage.batch > 1:
            hints.append(f"-O micro={stage.batch // 2}")
        if options.get("checkpointing") is False:
            hints.append("-O checkpointing=true")
        wanted = " and ".join(hints) or "a smaller -O batch or -O crop"
        raise DeviceError(
            f"Stage {name!r} needs more memory than the GPU has for {stage.batch} images of "
            f"{stage.crop} x {stage.crop} pixels at once. Try {wanted}."
        ) from error


def differing(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of them has, or that have another shape, sorted."""
    shapes = [{name: value.shape for name, value in some.items()} for some in (given, wanted)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """``Trainer.facts`` with each option by itself, but for those that change no result."""
    options = {f"-O {k}": v for k, v in facts["options"].items() if k not in HOW}
    return {key: facts[key] for key in ("config", "seed", "data")} | options


def history(init: Path | None) -> list[dict[str, Any]]:
    """The reports of the runs that made ``init``, oldest first; [] where none are known."""
    for path in (
        () if init is None else (Path(init) / "train.json", Path(init).parent / "train.json")
    ):
        if path.is_file():
            last = json.loads(path.read_text(encoding="utf-8"))
            return [*last.pop("before", []), last]
    return []


def whole_curve(report: Path) -> list[tuple[str, int, float]]:
    """The loss curves of all runs that made a model, from its ``train.json``: repeats numbered."""
    last = json.loads(report.read_text(encoding="utf-8"))
    runs = [run["curve"] for run in (*last.get("before", []), last)]
    found: dict[str, list[tuple[str, int, float]]] = {}
    for run in runs:
        for stage in dict.fromkeys(name for name, _, _ in run):
            again = sum(name.split(",")[0] == stage for name in found)
            label = f"{stage}, run {again + 1}" if again else stage
            found[label] = [(label, step, value) for name, step, value in run if name == stage]
    return [point for points in found.values() for point in points]


def read_saved(
    folder: Path, config: Mapping[str, Any] | None = None, plugin: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors (float32) of a saved folder.

    ``config``: that of the registry entry, for a folder with the entry's own files (a bundle, a
    download), which has no ``zoo.json``, or one that another method than ``plugin``'s has made.
    """
    from zoo import weights

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


def draw_curve(curve: Iterable[Sequence[Any]], path: Path) -> None:
    """The loss of each stage over its steps, on a logarithmic axis; one panel for a stage."""
    from PIL import ImageDraw

    panels: dict[str, list[tuple[int, float]]] = {}
    for stage, step, value in curve:
        panels.setdefault(stage, []).append((step, math.log10(max(value, 1e-12))))
    width, height, margin = 280, 200, 24
    image = Image.new("RGB", (width * max(1, len(panels)), height), "white")
    draw = ImageDraw.Draw(image)
    for i, (stage, points) in enumerate(panels.items()):
        low, high = min(v for _, v in points), max(v for _, v in points)
        last = max(s for s, _ in points)
        left = i * width + margin
        spots = [
            (
                left + s / last * (width - 2 * margin),
                margin + (high - v) / (high - low or 1) * (height - 2 * margin),
            )
            for s, v in points
        ]
        draw.rectangle(
            (left, margin, left + width - 2 * margin, height - margin), outline="#bbbbbb"
        )
        draw.line(spots, fill="#1f5fbf", width=2)
        draw.text((left, 6), f"{stage}: {10**high:.3g} to {10**low:.3g}", fill="black")
        draw.text((left, height - 18), f"{last} steps", fill="black")
    from zoo.weights import atomic_file

    with atomic_file(path) as temporary:
        image.save(temporary, "PNG")


# --- the bundle -----------------------------------------------------------------------------------


def bundle(model: type[LatentSR], out: Path, into: Path) -> None:
    """Turn what ``train`` left in ``out`` into the files that the package carries, in ``into``.

    Weights in float16, ``train.json``, and a check: a small photograph (NASA's astronaut, public
    domain, from scikit-image, 32 x 32 at x4) with what these weights make of it. After a training:

        python -c "from pathlib import Path; from zoo_edge_sd_sr.model import EdgeSDSR; \
                   from zoo_sr.training.trainer import bundle; bundle(EdgeSDSR, Path('out'), \
                   Path('plugins/zoo_edge_sd_sr/weights/edge-sd-sr'))"

    then update size and sha256 in the registry.
    """
    from skimage.data import astronaut

    from zoo.weights import load_module, save_tensors

    from ..degrade import round8
    from ..pixels import bicubic_down

    config, tensors = read_saved(out / "model")
    into.mkdir(parents=True, exist_ok=True)
    largest = max(float(v.abs().max()) for v in tensors.values())
    if largest > 6e4:
        raise InputError(f"A weight of {largest:g} does not fit float16.")
    save_tensors(into / "model.safetensors", {k: v.half() for k, v in tensors.items()})
    (into / "train.json").write_bytes((out / "train.json").read_bytes())
    face = torch.from_numpy(astronaut()[32:160, 160:288].copy()).permute(2, 0, 1)[None]
    scale = model.network(config).scale
    x_l = round8(bicubic_down(face.float() / 255, scale))[0]  # (3,128/scale,128/scale)
    pixels = (x_l * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(into / "check.png")
    network = load_module(lambda: model.network(config), into / "model.safetensors")
    assert isinstance(network, LatentNetwork)
    h, w = (n * scale // network.factor for n in x_l.shape[1:])
    eps = model.noise_scale * noise_field(0, network.latent, 0, 0, h, w)[None]
    with torch.no_grad():
        made = network(x_l[None], eps)[0].clamp(0, 1)  # (3,128,128)
    save_tensors(into / "check.safetensors", {"output": made})
