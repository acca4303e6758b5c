"""The recipe of Edge-SD-SR, in the order of the paper's three ingredients.

    autoencoder   E_H and D learn to reconstruct; then both are frozen and the latents normalised
    lr_encoder    E_L learns to imitate E_H(up(x_l)), so that the UNet starts from something   (2.4)
    teacher       only with ``distill``: a reverse-only x2 model, the target of the UNet       (2.5)
    unet          UNet alone (20 %), UNet and E_L jointly (70 %), UNet alone, decaying (10 %)  (2.4)
    decoder       D is tuned on what one step really gives                                 (2.0 iii)

Each step draws its data and noise from (seed, stage, step), so a run that was interrupted and
resumed ends with the weights of one that was not. Checkpoints are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from zoo_yonos_sr import schedule
from zoo_yonos_sr.autoencoder import normalise_latents
from zoo_yonos_sr.decoder import decoder_loss
from zoo_yonos_sr.degrade import RealLite
from zoo_yonos_sr.distill import channel_weights, denoising_loss, teacher_target
from zoo_yonos_sr.noise import kl_to_unit
from zoo_yonos_sr.resize import bicubic_up

from zoo import images
from zoo.errors import InputError, OptionError
from zoo.hookspecs import TrainRequest

from .model import build_network

HELD_OUT = (
    "book-beside-flowers",
    "casa-mila",
    "japanese-shop",
    "oakland-zoo-otters",
    "perched-osprey",
    "tea-gardens",
)
"""Photographs of the CC0 set that training never sees: validation and the benchmark use them."""


@dataclass(frozen=True)
class Stage:
    """How one stage of the recipe runs."""

    steps: int
    lr: float
    batch: int
    crop: int
    """Side of an HR crop in pixels."""


TINY_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(4000, 1e-3, 16, 64),
    "lr_encoder": Stage(400, 1e-3, 16, 64),
    "teacher": Stage(5000, 8e-4, 16, 64),
    "unet": Stage(5000, 8e-4, 16, 64),
    "decoder": Stage(1500, 4e-4, 16, 64),
}
"""For ``edge-sd-sr``: about 40 minutes on two CPU cores that compute bfloat16 (AMX), else hours."""

FULL_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(100_000, 2e-4, 32, 256),
    "lr_encoder": Stage(5_000, 2e-4, 64, 256),
    "teacher": Stage(100_000, 2e-4, 64, 256),
    "unet": Stage(200_000, 2e-4, 64, 256),
    "decoder": Stage(20_000, 5e-5, 32, 256),
}
"""For ``edge-sd-sr-full``: our choice, the paper's schedule is not public. Needs a large GPU."""

KL_WEIGHT = 1e-3  # on log sigma_l^2 (2.2)
LR_ENCODER_RATE = 0.2  # E_L learns slower than the UNet while both learn (2.4: 0.1 to 0.3)
EMA = 0.999
CLIP = 1.0
EVERY = 50  # steps between points of the loss curve
SAVE_SECONDS = 60  # between checkpoints: what an interruption costs at most


# --- data -----------------------------------------------------------------------------------------


class Photos:
    """Photographs in memory, and crops of them drawn from a seed."""

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            raise InputError("Training needs photographs: give a folder of images with --data.")
        paths = sorted(
            p for p in Path(folder).glob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg"}
        )
        if not paths:
            raise InputError(f"No .png or .jpg files in {str(folder)!r}: nothing to train on.")
        digest = hashlib.sha256()
        self.train: list[np.ndarray] = []  # (H,W,3) uint8, each photo at full and at half size
        self.held_out: dict[str, np.ndarray] = {}
        known = any(p.stem in HELD_OUT for p in paths)
        for i, path in enumerate(paths):
            digest.update(path.name.encode() + path.read_bytes())
            rgb = images.read(path).convert("RGB")
            # Somebody else's photos: every tenth is held out, if there are enough.
            if path.stem in HELD_OUT if known else i % 10 == 9:
                self.held_out[path.stem] = np.asarray(rgb)
                continue
            self.train.append(np.asarray(rgb))
            half = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.BICUBIC)
            self.train.append(np.asarray(half))  # finer detail per pixel than a large photo has
        if not self.train:
            raise InputError(f"{str(folder)!r} has only photos of the held-out list.")
        self.hash = digest.hexdigest()
        self.count = len(paths)

    def crops(self, rng: np.random.Generator, count: int, side: int) -> Tensor:
        """(count,3,side,side) in [0,1]: of two candidates the more detailed, flipped, turned."""
        usable = [a for a in self.train if min(a.shape[:2]) >= side]
        if not usable:
            raise InputError(f"No training photo is at least {side} pixels wide and high.")
        area = np.array([a.shape[0] * a.shape[1] for a in usable], dtype=np.float64) ** 0.5
        batch = []
        for _ in range(count):
            best, detail = usable[0][:0], -1.0
            for index in rng.choice(len(usable), 2, p=area / area.sum()):
                a = usable[index]
                y = int(rng.integers(a.shape[0] - side + 1))
                x = int(rng.integers(a.shape[1] - side + 1))
                crop = a[y : y + side, x : x + side]  # (side,side,3)
                green = crop[..., 1].astype(np.int16)
                found = float(np.abs(np.diff(green, axis=0)).mean())
                if found > detail:
                    best, detail = crop, found
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            turned = np.rot90(best[:, ::-1] if flip else best, turns)
            batch.append(torch.from_numpy(turned.transpose(2, 0, 1).copy()))
        return torch.stack(batch).float() / 255

    def validation(self, side: int = 256) -> Tensor | None:
        """(N,3,side,side) in [0,1]: centre crops of the held-out photos, or None."""
        crops = []
        for a in self.held_out.values():
            y, x = (a.shape[0] - side) // 2, (a.shape[1] - side) // 2
            if y >= 0 and x >= 0:
                crop = a[y : y + side, x : x + side].transpose(2, 0, 1).copy()
                crops.append(torch.from_numpy(crop))
        return torch.stack(crops).float() / 255 if crops else None


# --- state ----------------------------------------------------------------------------------------


@dataclass
class Batch:
    """What one step works on. Images in [-1,1]."""

    x_h: Tensor  # (B,3,H,W)
    x_l: Tensor  # (B,3,H/4,W/4)
    x_l_easy: Tensor | None  # (B,3,H/2,W/2), the same degradation at half the factor
    generator: torch.Generator

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like)

    def uniform(self) -> Tensor:
        return torch.rand(len(self.x_h), generator=self.generator).to(self.x_h)


class Trainer:
    """The network, its data, and the loop that all stages share."""

    def __init__(self, request: TrainRequest, photos: Photos | None = None) -> None:
        options = request.options
        self.request = request
        self.out = Path(request.out)
        self.device = torch.device(request.device)
        self.photos = photos or Photos(request.data)
        self.texture: float = options["texture"]
        self.distill: bool = options["distill"]
        self.degradation = RealLite(share=options["degraded"])
        self.bfloat16 = options["precision"] == "bfloat16" or (
            options["precision"] == "auto" and bfloat16_is_fast(self.device)
        )
        torch.manual_seed(request.seed)
        self.config: dict[str, Any] = dict(request.entry.config)
        if request.init is not None:
            self.config, tensors = read_saved(request.init, request.entry.config)
        self.net = build_network(self.config)
        if request.init is not None:
            self.net.load_state_dict(tensors, strict=True)
        self.net.requires_grad_(False)
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher: nn.Module | None = None
        self.stage = ""
        self.step = 0
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
        own = TINY_RECIPE if self.config["network"] == "tiny" else FULL_RECIPE
        names = [n for n in own if n != "teacher" or self.distill]
        if request.stage is not None:
            if request.stage not in names:
                hint = " (teacher needs the option distill)" if request.stage == "teacher" else ""
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
            changes |= {k: options[k] for k in ("batch", "crop") if options[k]}
            chosen[name] = replace(stage, **changes)
            multiple = self.net.scale * self.net.stride
            if chosen[name].crop % multiple:
                raise OptionError(f"crop={chosen[name].crop} is not a multiple of {multiple}.")
        return chosen

    def batch(self, stage: Stage, name: str | None = None) -> Batch:
        """The data of this step: a function of (seed, stage, step), or of (seed, name), alone."""
        text = f"{self.request.seed} {name or f'{self.stage} {self.step}'}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        rng = np.random.default_rng(key)
        x_h = self.photos.crops(rng, stage.batch, stage.crop)  # (B,3,H,W) in [0,1]
        params = self.degradation.sample(rng, stage.batch)
        scale = self.net.scale
        x_l = self.degradation.apply(x_h, scale, params, scale)
        easy = self.degradation.apply(x_h, scale // 2, params, scale) if self.distill else None

        def ready(x: Tensor) -> Tensor:
            return (2 * x - 1).to(self.device).contiguous(memory_format=torch.channels_last)

        generator = torch.Generator().manual_seed(key & 0x7FFF_FFFF)
        return Batch(ready(x_h), ready(x_l), None if easy is None else ready(easy), generator)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def run(
        self,
        name: str,
        parts: Mapping[str, tuple[nn.Module, Callable[[float], float]]],
        loss_of: Callable[[Batch], Tensor],
    ) -> None:
        """Minimise ``loss_of`` over the parts, each with its rate as a function of progress."""
        from zoo.progress import track, whole_steps

        stage = self.recipe[name]
        if self.stage != name:  # a fresh stage, not one that goes on from a checkpoint
            self.stage, self.step, self.moments, self.average = name, 0, {}, {}
        groups: list[dict[str, Any]] = []
        tensors: dict[str, nn.Parameter] = {}
        for part, (module, _) in parts.items():
            module.requires_grad_(True)
            named = {f"{part}.{k}": p for k, p in module.named_parameters()}
            tensors |= named
            groups.append({"params": list(named.values()), "lr": 0.0})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-4)
        self._restore_moments(optimizer, tensors)
        average = {k: self.average.get(k, p.detach()).clone().to(p) for k, p in tensors.items()}
        recent: list[float] = []
        started = time.monotonic()
        saved_at = started
        with (
            track(stage.steps, self.request.progress, name) as advance,
            whole_steps() as interrupted,
        ):
            advance(self.step)
            while self.step < stage.steps:
                progress = self.step / stage.steps
                for group, (_, rate) in zip(groups, parts.values(), strict=True):
                    group["lr"] = stage.lr * rate(progress) * min(1.0, (self.step + 1) / 100)
                loss = loss_of(self.batch(stage))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(tensors.values(), CLIP)
                optimizer.step()
                self.step += 1
                keep = min(EMA, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(
                    list(average.values()), [p.detach() for p in tensors.values()], 1 - keep
                )
                recent.append(float(loss.detach()))
                if self.step % EVERY == 0 or self.step == stage.steps:
                    value = sum(recent) / len(recent)
                    if not math.isfinite(value):
                        raise InputError(
                            f"The loss of stage {name!r} is {value} at step {self.step}: "
                            "lower the learning rate or check the data."
                        )
                    self.curve.append((name, self.step, value))
                    recent.clear()
                now = time.monotonic()
                due = self.step % EVERY == 0 and now - saved_at > SAVE_SECONDS
                if (due and self.step < stage.steps) or interrupted():
                    self.seconds += now - saved_at
                    saved_at = now
                    self._keep_moments(optimizer, tensors, average)
                    self.checkpoint()
                if interrupted():
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
            "done": self.done,
            "curve": self.curve,
            "validated": self.validated,
            "seconds": self.seconds,
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
        for key, value in json.loads(json.dumps(self.facts())).items():
            if state[key] != value:
                raise OptionError(
                    f"The checkpoint in {str(self.out)!r} was made with {key}={state[key]!r}, "
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
            self.teacher = self.new_teacher()
            self.teacher.load_state_dict(teacher)
        self.moments, self.average = part("moment."), part("average.")
        self.stage, self.step, self.done = state["stage"], state["step"], state["done"]
        self.curve = [(s, i, v) for s, i, v in state["curve"]]
        self.validated, self.seconds = state["validated"], state["seconds"]

    def new_teacher(self) -> nn.Module:
        """A network of the UNet's shape."""
        return (
            build_network(self.config)
            .unet.requires_grad_(False)
            .to(
                self.device,
                memory_format=torch.channels_last,  # type: ignore[call-overload]
            )
        )

    def report(self) -> None:
        """``train.json``: how these weights were made."""
        from zoo.weights import atomic_file

        report = {
            "model": self.request.entry.name,
            "seed": self.request.seed,
            "stages": {k: asdict(v) for k, v in self.recipe.items()},
            "done": self.done,
            "stage": self.stage,
            "step": self.step,
            "options": dict(self.request.options),
            "bfloat16": self.bfloat16,
            "seconds": round(self.seconds, 1),
            "data": {
                "photos": self.photos.count,
                "held_out": sorted(self.photos.held_out),
                "sha256": self.photos.hash,
            },
            "validation": self.validated,
            "config": self.config,
            "curve": self.curve,
        }
        with atomic_file(self.out / "train.json") as temporary:
            Path(temporary).write_text(json.dumps(report) + "\n")

    # --- validation on the held-out photos ---

    @torch.no_grad()
    def validate(self, name: str, picture: Callable[[Tensor, Tensor], Tensor]) -> None:
        """PSNR-Y of ``picture``(x_h, x_l), both in [-1,1], and of bicubic; mean over held-out."""
        from zoo.metrics import psnr_y

        x_h = self.photos.validation()
        if x_h is None:
            return
        scale = self.net.scale
        clean = RealLite(share=0.0)
        x_l = clean.apply(x_h, scale, clean.sample(np.random.default_rng(0), len(x_h)), scale)
        made = (picture(2 * x_h.to(self.device) - 1, 2 * x_l.to(self.device) - 1).cpu() + 1) / 2
        for row, enlarged in ((name, made), ("bicubic", bicubic_up(x_l, scale))):
            values = [psnr_y(a, b, scale) for a, b in zip(enlarged, x_h, strict=True)]
            self.validated[row] = {"psnr_y": round(sum(values) / len(values), 3)}


# --- the stages -----------------------------------------------------------------------------------


def cosine(progress: float) -> float:
    """1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def phases(progress: float, *, encoder: bool) -> float:
    """Rates of the dedicated schedule (2.4): E_L learns in phase B only; in C all decay to 0."""
    if progress < 0.2:  # A: the UNet alone
        return 0.0 if encoder else 1.0
    if progress < 0.9:  # B: jointly
        rate = 0.15 + 0.85 * cosine((progress - 0.2) / 0.7)
        return LR_ENCODER_RATE * rate if encoder else rate
    return 0.0 if encoder else 0.15 * (1 - progress) / 0.1  # C


def train_autoencoder(run: Trainer) -> None:
    """E_H and D learn to reconstruct (L1); the latents are then brought to unit variance."""
    net = run.net

    def loss(batch: Batch) -> Tensor:
        with run.autocast():
            x = net.decoder_base(net.hr_encoder(batch.x_h))
        return (x.float() - batch.x_h).abs().mean()

    run.run(
        "autoencoder",
        {"hr_encoder": (net.hr_encoder, cosine), "decoder_base": (net.decoder_base, cosine)},
        loss,
    )
    stage = replace(run.recipe["autoencoder"], batch=128)
    with torch.no_grad():
        z = net.encode_hr(run.batch(stage, "latent spread").x_h)  # (128,latent,h,w)
    net.decoder.load_state_dict(net.decoder_base.state_dict())
    ends: list[Any] = [net.hr_encoder.conv_out, net.decoder_base.conv_in, net.decoder.conv_in]
    normalise_latents(ends[0], ends[1:], z.std((0, 2, 3)))
    run.validate("autoencoder", lambda x_h, x_l: net.decode(net.encode_hr(x_h)))


def train_lr_encoder(run: Trainer) -> None:
    """|| mu_l - E_H(up(x_l)) ||_1: the UNet shall meet the kind of thing it will see (2.4, A)."""
    net = run.net

    def loss(batch: Batch) -> Tensor:
        with run.autocast():
            target = net.encode_hr(bicubic_up(batch.x_l, net.scale))
            mu, _ = net.encode(batch.x_l)
        return (mu.float() - target.float()).abs().mean()

    run.run("lr_encoder", {"lr_encoder": (net.lr_encoder, cosine)}, loss)


def draw_t(batch: Batch) -> Tensor:
    """t (B,): 1 with probability a half, for inference only meets t=1; else uniform (2.5)."""
    u = batch.uniform()
    return torch.where(u < 0.5, torch.ones_like(u), 2 * (u - 0.5))


def train_teacher(run: Trainer) -> None:
    """A reverse-only x2 model, conditioned on E_H(up(x_l')) (2.5, step 4)."""
    net = run.net
    if run.teacher is None:
        run.teacher = run.new_teacher()
    teacher = run.teacher

    def loss(batch: Batch) -> Tensor:
        assert batch.x_l_easy is not None
        with run.autocast():
            z_h = net.encode_hr(batch.x_h).float()
            z_l = net.encode_hr(bicubic_up(batch.x_l_easy, net.scale // 2)).float()
            t = draw_t(batch)
            z_t = schedule.forward(z_h, batch.noise(z_h), t)
            return denoising_loss(conditional(teacher), z_t, z_l, t, z_h, channels)

    channels = latent_metric(run)
    run.run("teacher", {"teacher": (teacher, cosine)}, loss)


def conditional(unet: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A UNet as a function of (z_t, z_l, t)."""
    return lambda z_t, z_l, t: unet(torch.cat([z_t, z_l], dim=1), t)


def latent_metric(run: Trainer) -> Tensor:
    """What an error in each latent channel counts (C,); a function of the frozen E_H and D."""
    stage = replace(run.recipe.get("unet") or run.recipe["teacher"], batch=32)
    batch = run.batch(stage, "latent metric")
    z_h = run.net.encode_hr(batch.x_h)
    return channel_weights(run.net.decoder_base, z_h, batch.noise(z_h))


def unet_loss(run: Trainer, batch: Batch, channels: Tensor | None = None) -> Tensor:
    """omega(t) || z^ - y ||^2 + KL: one iteration of section 2.5."""
    net = run.net
    with run.autocast():
        z_h = net.encode_hr(batch.x_h).float()  # no gradient: E_H is frozen
        mu, log_var = net.encode(batch.x_l)
        mu, log_var = mu.float(), log_var.float()
        t, eps = draw_t(batch), batch.noise(z_h)
        # Gradient reaches E_L through z_t and through the concatenation; detach neither.
        z_t = schedule.forward(z_h, net.noise.n(eps, mu, log_var), t)
        if run.teacher is None:
            y = z_h
        else:
            assert batch.x_l_easy is not None
            easy = net.encode_hr(bicubic_up(batch.x_l_easy, net.scale // 2)).float()
            y = teacher_target(conditional(run.teacher), z_h, eps, t, easy)
        loss = denoising_loss(net.denoise, z_t, mu, t, y, channels)
    return loss + KL_WEIGHT * kl_to_unit(log_var) if net.noise.var == "learned" else loss


def train_unet(run: Trainer) -> None:
    """UNet and E_L, jointly, on the dedicated schedule."""
    net = run.net
    if run.teacher is not None and run.stage != "unet":
        net.unet.load_state_dict(run.teacher.state_dict())  # the nearby, easier task
    channels = latent_metric(run)
    run.run(
        "unet",
        {
            "unet": (net.unet, lambda p: phases(p, encoder=False)),
            "lr_encoder": (net.lr_encoder, lambda p: phases(p, encoder=True)),
        },
        lambda batch: unet_loss(run, batch, channels),
    )
    run.validate("frozen decoder", lambda x_h, x_l: net.decoder_base(net.one_step(x_l)))


def train_decoder(run: Trainer) -> None:
    """D on the one-step latents, with and without the noise that inference may ask for."""
    net = run.net

    def loss(batch: Batch) -> Tensor:
        with run.autocast():
            with torch.no_grad():
                mu, log_var = net.encode(batch.x_l)
                noisy = (batch.uniform() < 0.5).to(mu)[:, None, None, None]  # (B,1,1,1)
                z_1 = net.noise.n(noisy * batch.noise(mu), mu, log_var)
                z = schedule.one_step(lambda z_t, t: net.denoise(z_t, mu, t), z_1)
            x = net.decode(z.detach())
        return decoder_loss(x.float(), batch.x_h, run.texture)

    run.run("decoder", {"decoder": (net.decoder, cosine)}, loss)
    run.validate("model", lambda x_h, x_l: net.decode(net.one_step(x_l)))


STAGES: Mapping[str, Callable[[Trainer], None]] = {
    "autoencoder": train_autoencoder,
    "lr_encoder": train_lr_encoder,
    "teacher": train_teacher,
    "unet": train_unet,
    "decoder": train_decoder,
}


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    run = Trainer(request)
    first = next(iter(STAGES))
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
            STAGES[name](run)
            run.finish(name)
    return save(run)


def save(run: Trainer) -> Path:
    """``out/model`` (what zoo.load takes), ``train.json`` and ``curve.png``."""
    from zoo.hookspecs import BuildRequest

    from .model import EdgeSDSR

    run.report()
    draw_curve(run.curve, run.out / "curve.png")
    request = run.request
    saved = {"config": run.config, "options": {}}
    model = EdgeSDSR(
        BuildRequest(request.entry, folder=run.out, saved=saved, device=request.device),
        run.net,
    )
    return model.save_pretrained(run.out / "model", overwrite=True)


# --- small helpers --------------------------------------------------------------------------------


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are quicker than float32: GPUs, and CPUs with AMX tiles."""
    if device.type != "cpu":
        return device.type == "cuda"
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than torch 2.6
    return bool(capabilities.get("amx_bf16", False))


def read_saved(
    folder: Path, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors (float32) of a saved folder.

    ``config``: that of the registry entry, for a folder with the entry's own files (a bundle, a
    download), which has no ``zoo.json``.
    """
    from zoo import weights

    folder = Path(folder)
    if (
        config is None
        or not (folder / weights.WEIGHTS).is_file()
        or (folder / "zoo.json").is_file()
    ):
        config = weights.read_saved(folder).manifest["config"]
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


def bundle(out: Path, into: Path) -> None:
    """Turn what ``train`` left in ``out`` into the files that the package carries, in ``into``.

    Weights in float16, ``train.json``, and a check: a small photograph (NASA's astronaut, public
    domain, from scikit-image, 32 x 32) with what these weights make of it. After a new training:

        python -c "from pathlib import Path; from zoo_edge_sd_sr.train import bundle; \
                   bundle(Path('out'), Path('plugins/zoo_edge_sd_sr/weights/edge-sd-sr'))"

    then update size and sha256 in the registry.
    """
    from skimage.data import astronaut
    from zoo_yonos_sr.degrade import round8
    from zoo_yonos_sr.resize import bicubic_down

    from zoo.weights import load_module, save_tensors

    config, tensors = read_saved(out / "model")
    into.mkdir(parents=True, exist_ok=True)
    largest = max(float(v.abs().max()) for v in tensors.values())
    if largest > 6e4:
        raise InputError(f"A weight of {largest:g} does not fit float16.")
    save_tensors(into / "model.safetensors", {k: v.half() for k, v in tensors.items()})
    (into / "train.json").write_bytes((out / "train.json").read_bytes())
    face = torch.from_numpy(astronaut()[32:160, 160:288].copy()).permute(2, 0, 1)[None]
    x_l = round8(bicubic_down(face.float() / 255, 4))[0]  # (3,32,32)
    pixels = (x_l * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(into / "check.png")
    network = load_module(lambda: build_network(config), into / "model.safetensors")
    with torch.no_grad():
        made = network(x_l[None])[0].clamp(0, 1)  # (3,128,128)
    save_tensors(into / "check.safetensors", {"output": made})
