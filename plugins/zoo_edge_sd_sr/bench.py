"""The claim of Edge-SD-SR at our size: one cheap step beats interpolation; each part pays.

``--data`` is a folder with any of ``set5``, ``bsd100`` (also below ``sr-eval``) and ``photos-cc0``,
or one of them itself. Without it a photograph that scikit-image brings is used. Of the CC0 photos
only those that training never saw are measured.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional
from zoo_yonos_sr.degrade import round8
from zoo_yonos_sr.distill import channel_weights
from zoo_yonos_sr.resize import bicubic_down, bicubic_up

from zoo.errors import InputError, NotReadyError
from zoo.hookspecs import BenchRequest, BuildRequest, TrainRequest
from zoo.interfaces import Claim, Data, Metric, Results
from zoo.metrics import haarpsi, psnr_y, ssim_y
from zoo.progress import track

from .model import EdgeSDSR
from .train import HELD_OUT, STAGES, Photos, Trainer, cosine, unet_loss

METRICS: Mapping[str, Callable[[Tensor, Tensor, int], float]] = {
    "PSNR-Y": psnr_y,
    "SSIM": ssim_y,
    "HaarPSI": haarpsi,
}
SCALE = 4
OURS = "edge-sd-sr"
LICENSES = {
    "Set5": "research use",
    "BSD100": "research use",
    "held-out photos": "CC0-1.0",
    "astronaut": "public domain (NASA)",
}


def read_hr(path: Path, crop: int | None = None) -> Tensor:
    """(3,H,W) in [0,1], sides cut to multiples of the scale, or a centre crop."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return cut(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, crop)


def cut(x: Tensor, crop: int | None) -> Tensor:
    """x (3,H,W) with sides that are multiples of the scale, at most ``crop``, from the centre."""
    h, w = (min(crop or n, n // SCALE * SCALE) for n in x.shape[1:])
    y, z = (0, 0) if crop is None else ((x.shape[1] - h) // 2, (x.shape[2] - w) // 2)
    return x[:, y : y + h, z : z + w]


def find_sets(data: Path | None, quick: bool) -> dict[str, list[Tensor]]:
    """Name -> HR images (3,H,W) in [0,1] of each test set under ``data``."""
    sets: dict[str, list[Tensor]] = {}
    if data is not None:
        for name in ("Set5", "BSD100"):
            for folder in (data / name.lower(), data / "sr-eval" / name.lower(), data):
                if folder.name == name.lower() and (files := sorted(folder.glob("*.png"))):
                    few = quick and len(files) > 10
                    sets[name] = [read_hr(p) for p in (files[::10] if few else files)]
                    break
        for folder in (data / "photos-cc0", data):
            files = sorted(p for p in folder.glob("*.jpg") if p.stem in HELD_OUT)
            if files:
                sets["held-out photos"] = [read_hr(p, 256 if quick else 512) for p in files]
                break
        if not sets:
            raise InputError(
                f"{str(data)!r} has neither set5, bsd100 nor photos-cc0 (the held-out photos "
                f"{', '.join(HELD_OUT)}). Leave --data out to measure on a bundled photograph."
            )
    else:
        from skimage.data import astronaut

        picture = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
        sets["astronaut"] = [cut(picture, 256 if quick else None)]
    return sets


def unsharp(x: Tensor, amount: float = 1.0) -> Tensor:
    """x + amount (x - blur(x)), Gaussian of 2 pixels: a baseline that costs nothing. (B,3,H,W)."""
    taps = torch.exp(-0.5 * (torch.arange(-6, 7) / 2.0) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, -1)  # (3,1,13)
    blur = functional.conv2d(
        functional.pad(x, (6, 6, 6, 6), mode="replicate"), taps[:, :, None, :], groups=3
    )
    blur = functional.conv2d(blur, taps[:, :, :, None], groups=3)
    return x + amount * (x - blur)


def several_steps(model: EdgeSDSR, x_l: Tensor, steps: int) -> Tensor:
    """x_l (3,h,w) through the network with more DDIM steps than the one it is for."""
    net, (h, w) = model.module, x_l.shape[1:]
    pad = (0, -w % net.stride, 0, -h % net.stride)
    x = functional.pad(x_l[None], pad, mode="reflect").to(model.device)
    with torch.no_grad():
        made = (net.decode(net.one_step(2 * x - 1, steps=steps)) + 1) / 2
    return made[0, :, : h * SCALE, : w * SCALE].cpu()


def bench(request: BenchRequest) -> Results:
    """Run the experiment; see the module's docstring."""
    folder = Path(__file__).parent / "weights" / request.entry.name
    if not (folder / "model.safetensors").is_file():
        raise NotReadyError(
            f"{request.entry.name} has no weights to measure. Train it with "
            f"`zoo train {request.entry.name}`; `zoo bench edge-sd-sr` measures the small one."
        )

    def load(fidelity: float) -> EdgeSDSR:
        return EdgeSDSR.build(
            BuildRequest(
                request.entry, folder, device=request.device, options={"fidelity": fidelity}
            )
        )

    model, frozen = load(1.0), load(0.0)
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "bicubic": lambda x: bicubic_up(x[None], SCALE)[0],
        "bicubic + unsharp": lambda x: unsharp(bicubic_up(x[None], SCALE))[0],
        OURS: lambda x: model.upscale(x),
        f"{OURS} + 2 back-projections": lambda x: model.upscale(x, consistency=2),
        f"{OURS}, decoder not fine-tuned": lambda x: frozen.upscale(x),
        f"{OURS}, with its noise (noise_scale 1)": lambda x: model.upscale(
            x, noise_scale=1.0, seed=request.seed
        ),
        f"{OURS}, 8 steps": lambda x: several_steps(model, x, 8),
    }
    sets = find_sets(request.data, request.quick)
    # values[method][set][metric] -> one number for each image
    values: dict[str, dict[str, dict[str, list[float]]]] = {
        m: {s: {k: [] for k in METRICS} for s in sets} for m in methods
    }
    with track(sum(map(len, sets.values())), request.progress, "measure") as advance:
        for name, images in sets.items():
            for x_h in images:
                x_l = round8(bicubic_down(x_h[None], SCALE))[0]  # (3,h,w)
                for method, enlarge in methods.items():
                    x = enlarge(x_l)
                    for metric, measure in METRICS.items():
                        values[method][name][metric].append(measure(x, x_h, SCALE))
                advance(1)
    table: dict[str, dict[str, Metric]] = {
        method: {
            f"{name} {metric}": Metric.of([sum(v) / len(v)])
            for name, by_metric in by_set.items()
            for metric, v in by_metric.items()
        }
        for method, by_set in values.items()
    }
    table[OURS]["seconds 128 to 512"] = Metric.of(seconds(model, 3 if request.quick else 7))
    claims = [
        *better_than_interpolation(values, sets),
        *parts_earn_their_place(values, sets),
    ]
    if not request.quick:
        rows, more = ablations(request, model)
        table |= rows
        claims += more
    picture(request.out / "before-after.png", model, sets)
    return Results(
        table,
        claims,
        [Data(s, LICENSES[s], f"{len(x)} image{'s' * (len(x) > 1)}") for s, x in sets.items()],
        [request.seed] if request.quick else [request.seed + i for i in range(SEEDS)],
        {
            **{f"{s} {k}": True for s in sets for k in METRICS},
            "seconds 128 to 512": False,
            "latent error": False,
            "held-out PSNR-Y": True,
        },
        ["before-after.png"],
    )


def seconds(model: EdgeSDSR, times: int) -> list[float]:
    """Wall time of 128 to 512, after one run to warm up."""
    x = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    model.upscale(x)
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        model.upscale(x)
        spent.append(time.perf_counter() - started)
    return spent


# --- claims: decided here, by the numbers ---------------------------------------------------------


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean difference a - b and its standard error (infinite where there is one pair only)."""
    d = np.asarray(a) - np.asarray(b)
    error = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf
    return float(d.mean()), error


def decide(difference: float, error: float) -> bool | None:
    """True or False beyond two standard errors, else undecided."""
    if not math.isfinite(error) or abs(difference) <= 2 * error:
        return None
    return difference > 0


def better_than_interpolation(values: Mapping[str, Any], sets: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for name in sets:
        for metric in METRICS:
            mean = {m: float(np.mean(values[m][name][metric])) for m in values}
            rival = max(("bicubic", "bicubic + unsharp"), key=lambda m: mean[m])
            difference, error = paired(values[OURS][name][metric], values[rival][name][metric])
            claims.append(
                Claim(
                    f"beats-interpolation-{name}-{metric}".lower().replace(" ", "-"),
                    f"On {name} x4, {OURS} has a higher {metric} than bicubic with and without "
                    "unsharp masking.",
                    "mean paired difference to the better of the two, over images, "
                    "above two standard errors",
                    mean[OURS],
                    mean[rival],
                    error if math.isfinite(error) else 0.0,
                    decide(difference, error),
                )
            )
    return claims


def parts_earn_their_place(values: Mapping[str, Any], sets: Mapping[str, Any]) -> list[Claim]:
    def all_of(method: str, metric: str) -> list[float]:
        return [v for name in sets for v in values[method][name][metric]]

    plain, many = f"{OURS}, decoder not fine-tuned", f"{OURS}, 8 steps"
    haar, haar_error = paired(all_of(OURS, "HaarPSI"), all_of(plain, "HaarPSI"))
    loss, _ = paired(all_of(plain, "PSNR-Y"), all_of(OURS, "PSNR-Y"))
    better = decide(haar, haar_error)
    steps, steps_error = paired(all_of(OURS, "PSNR-Y"), all_of(many, "PSNR-Y"))
    return [
        Claim(
            "decoder-fine-tuning",
            "Fine-tuning the decoder on one-step outputs raises HaarPSI and costs at most "
            "0.3 dB of PSNR.",
            "mean paired difference of HaarPSI over all images above two standard errors, "
            "and mean PSNR-Y at most 0.3 dB lower",
            float(np.mean(all_of(OURS, "HaarPSI"))),
            float(np.mean(all_of(plain, "HaarPSI"))),
            haar_error if math.isfinite(haar_error) else 0.0,
            False if loss > 0.3 else better,
        ),
        Claim(
            "one-step-is-enough",
            "One step has a PSNR-Y at least as high as eight steps of the same network.",
            "mean paired difference over all images above two standard errors",
            float(np.mean(all_of(OURS, "PSNR-Y"))),
            float(np.mean(all_of(many, "PSNR-Y"))),
            steps_error if math.isfinite(steps_error) else 0.0,
            decide(steps, steps_error),
        ),
    ]


# --- ablations: short trainings on the frozen autoencoder -----------------------------------------

SEEDS = 3
ABLATION_STEPS = 400
VARIANTS: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    # name: changed configuration, does E_L learn together with the UNet?
    "short: reverse-only, E_L joint": ({"mean": "zero", "var": "unit"}, True),
    "short: bidirectional, s = 0.3, E_L joint": ({"mean": "lr", "var": "const"}, True),
    "short: bidirectional, learned s, E_L joint": ({"mean": "lr", "var": "learned"}, True),
    "short: bidirectional, learned s, E_L frozen": ({"mean": "lr", "var": "learned"}, False),
}


def ablations(
    request: BenchRequest, model: EdgeSDSR
) -> tuple[dict[str, dict[str, Metric]], list[Claim]]:
    """UNet and E_L trained anew for a few hundred steps, equal for all variants; three seeds."""
    data = photos_of(request.data)
    if data is None:
        return {}, []
    photos, net = Photos(data), model.module
    x_h = 2 * photos.crops(np.random.default_rng(request.seed), 16, 64).to(model.device) - 1
    with torch.no_grad():
        z_h = net.encode_hr(x_h)
    noise = torch.randn(z_h.shape, generator=torch.Generator().manual_seed(request.seed))
    channels = channel_weights(net.decoder_base, z_h, noise.to(z_h))
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with track(SEEDS * len(VARIANTS), request.progress, "ablations") as advance:
        for seed in range(request.seed, request.seed + SEEDS):
            for name, (changes, joint) in VARIANTS.items():
                found[name].append(
                    short_training(request, model, photos, channels, seed, changes, joint)
                )
                advance(1)
    rows = {name: {"held-out PSNR-Y": Metric.of(v)} for name, v in found.items()}
    reverse, const, learned, frozen = VARIANTS
    claims = []
    for identity, statement, a, b in (
        (
            "joint-encoder",
            "Training E_L jointly beats a frozen E_L at equal steps.",
            learned,
            frozen,
        ),
        (
            "bidirectional",
            "Bidirectional conditioning (learned s) beats reverse-only at equal steps.",
            learned,
            reverse,
        ),
        ("variance", "A learned s beats a constant one at equal steps.", learned, const),
    ):
        difference, error = paired(found[a], found[b])
        claims.append(
            Claim(
                identity,
                statement,
                f"mean paired difference of PSNR-Y over {SEEDS} seeds, {ABLATION_STEPS} steps "
                "each, above two standard errors",
                float(np.mean(found[a])),
                float(np.mean(found[b])),
                error,
                decide(difference, error),
            )
        )
    return rows, claims


def photos_of(data: Path | None) -> Path | None:
    """The folder of CC0 photos under ``data``, where there is one."""
    for folder in () if data is None else (data / "photos-cc0", data, data.parent / "photos-cc0"):
        if any(p.stem in HELD_OUT for p in folder.glob("*.jpg")):
            return folder
    return None


def short_training(
    request: BenchRequest,
    model: EdgeSDSR,
    photos: Photos,
    channels: Tensor,
    seed: int,
    changes: Mapping[str, Any],
    joint: bool,
) -> float:
    """PSNR-Y on held-out crops after a few hundred steps of UNet and E_L; E_H and D are frozen."""
    options = {
        "batch": 0,
        "crop": 0,
        "texture": 0.0,
        "degraded": 0.0,
        "distill": False,
        "precision": "auto",
    }
    with tempfile.TemporaryDirectory() as scratch:
        entry = replace(request.entry, config={**request.entry.config, **changes})
        run = Trainer(
            TrainRequest(entry, Path(scratch), seed=seed, device=request.device, options=options),
            photos,
        )
        net = run.net.eval()
        net.hr_encoder.load_state_dict(model.module.hr_encoder.state_dict())
        net.decoder_base.load_state_dict(model.module.decoder_base.state_dict())
        run.recipe["lr_encoder"] = replace(run.recipe["lr_encoder"], steps=ABLATION_STEPS // 4)
        run.recipe["unet"] = replace(run.recipe["unet"], steps=ABLATION_STEPS, batch=8)
        STAGES["lr_encoder"](run)
        parts: dict[str, tuple[nn.Module, Callable[[float], float]]] = {"unet": (net.unet, cosine)}
        if joint:
            parts["lr_encoder"] = (net.lr_encoder, lambda p: 0.3 * cosine(p))
        run.run("unet", parts, lambda batch: unet_loss(run, batch, channels))
        run.validate("short", lambda x_h, x_l: net.decoder_base(net.one_step(x_l)))
        return float(run.validated["short"]["psnr_y"])


# --- picture --------------------------------------------------------------------------------------


def picture(path: Path, model: EdgeSDSR, sets: Mapping[str, Sequence[Tensor]]) -> None:
    """Input, bicubic, ours and truth side by side; CC0 or public-domain photos only."""
    if "held-out photos" in sets:
        photos = list(sets["held-out photos"])[:3]
    else:
        from skimage.data import astronaut

        photos = [torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255]
    rows = []
    for photo in photos:
        x_h = cut(photo, 256)
        x_l = round8(bicubic_down(x_h[None], SCALE))
        nearest = functional.interpolate(x_l, scale_factor=SCALE, mode="nearest")[0]
        columns = [nearest, bicubic_up(x_l, SCALE)[0], model.upscale(x_l[0]), x_h]
        rows.append(torch.cat([functional.pad(c, (2, 2, 2, 2), value=1.0) for c in columns], 2))
    sheet = (torch.cat(rows, 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + 16), "white")
    image.paste(Image.fromarray(sheet), (0, 16))
    draw = ImageDraw.Draw(image)
    for i, label in enumerate(("input", "bicubic", OURS, "truth")):
        draw.text((i * sheet.shape[1] // 4 + 4, 2), label, fill="black")
    from zoo.images import save

    path.parent.mkdir(parents=True, exist_ok=True)
    save(image, path, overwrite=True)
