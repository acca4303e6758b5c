"""The claims of fam-diffusion: ``zoo bench fam-diffusion``, in parts.

-O part=claims   200 images at 2x and 64 at 4x: native, direct, the method, its halves, rivals;
                 and 64 images of other shapes (hours)
-O part=choices  what else could have been chosen, on 64 images at 2x (hours)
-O part=latency  seconds next to direct generation, in turns; FLOPs and memory of SDXL (minutes)

Everything is counted exactly: the world of one creature says what an image must have. ``-O
work=FOLDER`` keeps the counts of each batch, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from zoo.experiment import Book, Rows, Values, load, one_thread
from zoo.hookspecs import BenchRequest
from zoo.interfaces import Data, Results

from .frequency import Size
from .latency import latency
from .model import FAMDiffusion
from .rivals import MultiDiffusion, Reversed, SkipResidual, Static
from .sampling import FAM, Settings, native_size
from .world import count, creatures, draw

BATCH = 8
COUNTS = {2: 200, 4: 64}
"""Scale -> images."""
CHOICES = 64
TRUTHS = 256
"""True images of the target size."""
STEPS = 50
SIDES: tuple[Size, ...] = ((128, 256), (120, 200))
"""Pixels of targets that are not square; the second is no whole multiple of its native image."""
NATIVE, DIRECT, BICUBIC = "native", "direct", "native, enlarged (bicubic)"
OURS, FM, AM, START = "FAM", "FM alone", "AM alone", "the start alone"
SKIP, WINDOWS = "skip residual", "MultiDiffusion"
ONE, BOTH, AGREE, SPREAD = "one object", "one object, two eyes", "cheeks agree", "spread of cheeks"
AGREE_TOO, SPREAD_TOO = f"{AGREE}, as natively", f"{SPREAD}, where they agree natively"
GRADIENT, APART = "gradient energy / truth's", "distance of its logarithm from 0"
FDR = "Fréchet distance of 8 x 8 pixels"
PICTURE = "images.png"
LESS = (SPREAD, SPREAD_TOO, APART, FDR)

Make = Callable[[list[str], int], Tensor]
"""Prompts and seed -> images (B,3,H,W) in [0,1]."""


def bench(request: BenchRequest) -> Results:
    """Run one part; see the module's docstring."""
    part = request.options.get("part", "claims")
    with TemporaryDirectory() as scratch, one_thread():
        work = Path(request.options.get("work") or scratch)
        model: FAMDiffusion = load(request)
        if part == "latency":
            return latency(request, model, Rows(work / "latency"))
        here = Experiment(request, model, Rows(work / part))
        return here.claims() if part == "claims" else here.choices()


# --- what is counted ------------------------------------------------------------------------------


def seen(images: Tensor, native: int) -> Values:
    """What is in each of some images (B,3,H,W) in [0,1]; see the names of the columns."""
    found = [count(image, native) for image in images]
    pooled = adaptive_avg_pool2d(images, 8).flatten(1)
    return {
        ONE: [float(one.one) for one in found],
        BOTH: [float(one.both) for one in found],
        AGREE: [float(one.agree) for one in found],
        SPREAD: [one.spread for one in found],
        GRADIENT: energy(images).tolist(),
        FDR: [[round(float(x), 5) for x in row] for row in pooled],
    }


def energy(images: Tensor) -> Tensor:
    """(B,) mean squared difference of neighbouring pixels."""
    across, down = images.diff(dim=-1).square(), images.diff(dim=-2).square()
    return across.mean((1, 2, 3)) + down.mean((1, 2, 3))


def frechet(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of normal distributions fitted to two sets of features (N,D)."""
    from scipy.linalg import sqrtm

    (m, c), (n, d) = (
        (x.mean(0), np.cov(x, rowvar=False)) for x in (a.double().numpy(), b.double().numpy())
    )
    root = sqrtm(c @ d).real
    return float(((m - n) ** 2).sum() + np.trace(c + d - 2 * root))


# --- the experiment -------------------------------------------------------------------------------


class Experiment:
    """Rows of images with the same prompts and seeds."""

    def __init__(self, request: BenchRequest, model: FAMDiffusion, rows: Rows) -> None:
        self.request, self.model, self.rows = request, model, rows
        self.book = Book(lambda name: name.startswith(LESS))
        self.side = model.pipe.unet.config.sample_size * model.pipe.vae_scale_factor
        self.steps = 2 if request.quick else STEPS
        self.guidance = model.config["guidance"]
        self.shown: dict[str, Tensor] = {}

    def sizes(self, scale: int) -> Size:
        return self.side * scale, self.side * scale

    def fam(self, kind: type[FAM] = FAM, **settings: Any) -> Callable[[Size], Make]:
        """A guided pass around the model's pipeline, by target size."""
        guided = kind(self.model.pipe, Settings(**settings))

        def at(size: Size) -> Make:
            def make(prompts: list[str], seed: int) -> Tensor:
                call: Any = {"height": size[0], "width": size[1], "steps": self.steps, "seed": seed}
                made = guided(prompts, **call, guidance_scale=self.guidance, output_type="pt")
                return made.image.float()

            return make

        return at

    def direct(self, size: Size) -> Make:
        def make(prompts: list[str], seed: int) -> Tensor:
            call: Any = {"height": size[0], "width": size[1], "steps": self.steps, "seed": seed}
            made = self.model.fam.direct(
                prompts, **call, guidance_scale=self.guidance, output_type="pt"
            )
            return made.float()

        return make

    def native(self, size: Size) -> Make:
        """The images of the native pass, whose seed the target pass shares."""
        return self.direct(native_size(self.model.pipe, size))

    def bicubic(self, size: Size) -> Make:
        def make(prompts: list[str], seed: int) -> Tensor:
            small = self.native(size)(prompts, seed)
            return interpolate(small, size=size, mode="bicubic").clamp(0, 1)

        return make

    def windows(self, size: Size) -> Make:
        rival = MultiDiffusion(self.model.pipe)
        return lambda prompts, seed: rival.sample(prompts, size, self.steps, seed, self.guidance)

    # --- rows ---

    def row(self, name: str, at: Callable[[Size], Make], size: Size, images: int) -> None:
        """Generate, count and enter ``images`` images of one row at one size."""
        where = f"{size[0]} x {size[1]}"
        made: dict[str, list[Any]] = {}
        for first in range(0, images, BATCH):
            batch = min(BATCH, images - first)
            kept = self.rows.row(
                f"{name}, {where}, from {first}",
                {"quick": self.request.quick, "weights": self.model.entry.files[0].sha256
                 if self.model.entry.files else ""},
                partial(self._counted, at(size), first, batch),
            )  # fmt: skip
            for column, values in kept.items():
                made.setdefault(column, []).extend(values)
        self._enter(name, size, made)

    def _counted(self, make: Make, first: int, batch: int) -> Values:
        seed = 1000 * (1 + self.request.seed) + first
        prompts = creatures(np.random.default_rng(seed), batch).prompts()
        return seen(make(prompts, seed).clamp(0, 1), self.side)

    def _enter(self, name: str, size: Size, made: Mapping[str, list[Any]]) -> None:
        truth = self._truth(size)
        native = self.book.values(NATIVE, self.at(AGREE, size)) if name != NATIVE else {}
        for i in range(len(made[ONE])):
            item = f"image {i}"
            for column in (ONE, BOTH, AGREE, SPREAD):
                self.book.add(name, self.at(column, size), made[column][i], item)
            if native.get(item):
                self.book.add(name, self.at(AGREE_TOO, size), made[AGREE][i], item)
                self.book.add(name, self.at(SPREAD_TOO, size), made[SPREAD][i], item)
            ratio = made[GRADIENT][i] / truth[GRADIENT]
            self.book.add(name, self.at(GRADIENT, size), ratio, item)
            self.book.add(name, self.at(APART, size), abs(np.log(ratio)), item)
        distance = frechet(truth[FDR], torch.tensor(made[FDR]))
        self.book.add(name, self.at(FDR, size), distance)

    def _truth(self, size: Size) -> dict[str, Any]:
        """Gradient energy and features of true images; of the square in the middle."""
        side = max(size)
        images = draw(creatures(np.random.default_rng(7), TRUTHS), side)
        top, left = (side - size[0]) // 2, (side - size[1]) // 2
        images = images[..., top : top + size[0], left : left + size[1]]
        pooled = adaptive_avg_pool2d(images, 8).flatten(1)
        return {GRADIENT: float(energy(images).mean()), FDR: pooled}

    def at(self, column: str, size: Size) -> str:
        """The name of a column at a size."""
        scale = size[0] / self.side
        where = f"{scale:g}x" if size == self.sizes(round(scale)) else f"{size[0]} x {size[1]}"
        return f"{column}, {where}"

    # --- the parts ---

    def claims(self) -> Results:
        """At 2x and 4x, and for other shapes."""
        halves: dict[str, dict[str, Any]] = {
            START: {"fm": False, "am": False},
            FM: {"am": False},
            AM: {"fm": False},
        }
        rows: dict[str, Callable[[Size], Make]] = {
            NATIVE: self.native,
            DIRECT: self.direct,
            BICUBIC: self.bicubic,
            **{name: self.fam(**settings) for name, settings in halves.items()},
            OURS: self.fam(),
            SKIP: self.fam(SkipResidual),
            WINDOWS: self.windows,
        }
        for scale, images in COUNTS.items():
            size = self.sizes(scale)
            for name, at in rows.items():
                if scale == 2 or name in (NATIVE, DIRECT, BICUBIC, FM, OURS, SKIP):
                    self.row(name, at, size, 2 if self.request.quick else images)
            self._claims(size)
        for size in SIDES:
            for name in (NATIVE, DIRECT, OURS):
                self.row(name, rows[name], size, 2 if self.request.quick else CHOICES)
            self._flexible(size)
        shown = (NATIVE, DIRECT, SKIP, WINDOWS, OURS)
        picture = self._picture({name: rows[name] for name in shown})
        return self._results("", [picture])

    def _claims(self, size: Size) -> None:
        book, at, by = self.book, partial(self.at, size=size), f"{size[0] // self.side}x"
        if by == "2x":
            book.claim(
                "native",
                "At least 90 % of native images have one object with two eyes.",
                book.better(NATIVE, 0.9, at(BOTH)),
            )
        book.claim(
            f"one-{by}",
            f"At {by} images have one object as often as native ones, within 3 points, and 30 "
            "points more often than direct ones.",
            book.not_worse(OURS, NATIVE, at(ONE), margin=0.03),
            book.better(OURS, DIRECT, at(ONE), by=0.3),
        )
        book.claim(
            f"both-{by}",
            f"At {by} one object with two eyes is 20 points more frequent than with the skip "
            "residual.",
            book.better(OURS, SKIP, at(BOTH), by=0.2),
        )
        book.claim(
            f"layout-{by}",
            f"At {by} images are nearer to true ones than direct ones are (Fréchet distance).",
            book.better(OURS, DIRECT, at(FDR), test="counted"),
        )
        book.claim(
            f"detail-{by}",
            f"At {by} the gradient's energy is nearer to the truth's than that of enlarged native "
            "images.",
            book.better(OURS, BICUBIC, at(APART)),
        )
        if at(AGREE_TOO) not in book.columns(OURS):
            return  # no native image has cheeks that agree
        book.claim(
            f"attention-{by}",
            f"At {by} attention modulation makes cheeks agree more often, of images whose native "
            "version agrees, and their colours spread less.",
            book.better(OURS, FM, at(AGREE_TOO)),
            book.better(OURS, FM, at(SPREAD_TOO)),
        )

    def _flexible(self, size: Size) -> None:
        at = partial(self.at, size=size)
        self.book.claim(
            f"sides-{size[0]}x{size[1]}",
            f"{size[0]} x {size[1]} pixels: one object as often as in native images of this shape, "
            "within 3 points, and more often than in direct ones.",
            self.book.not_worse(OURS, NATIVE, at(ONE), margin=0.03),
            self.book.better(OURS, DIRECT, at(ONE)),
        )

    def choices(self) -> Results:
        """The method with another constant or another part."""
        others: dict[str, dict[str, Any]] = {
            OURS: {},
            "c = .25": {"cutoff": 0.25},
            "c = 1": {"cutoff": 1.0},
            "box on the native grid": {"cutoff_ref": "native"},
            "lambda = .3": {"lam": 0.3},
            "lambda = 1": {"lam": 1.0},
            "maps of the diffused image": {"am_source": "renoise"},
            "enlarged in pixels": {"upsample": "rgb"},
            FM: {"am": False},
        }
        rows: dict[str, Callable[[Size], Make]] = {NATIVE: self.native, BICUBIC: self.bicubic}
        rows |= {name: self.fam(**settings) for name, settings in others.items()}
        rows |= {"K = 1 - rho": self.fam(Reversed), "clean reference": self.fam(Static)}
        for name, at in rows.items():
            self.row(name, at, self.sizes(2), 2 if self.request.quick else CHOICES)
        return self._results("choices", [])

    def _results(self, part: str, pictures: list[str]) -> Results:
        data = [Data("one creature (drawn)", "Apache-2.0", f"{TRUTHS} true images of each size")]
        return self.book.results(data=data, seeds=[self.request.seed], pictures=pictures, part=part)

    def _picture(self, rows: Mapping[str, Callable[[Size], Make]]) -> str:
        """Four prompts at 2x, a row for each method."""
        size, seed = self.sizes(2), 5
        prompts = creatures(np.random.default_rng(seed), 4).prompts()
        panels = {
            name: interpolate(at(size)(prompts, seed), size=size, mode="nearest").clamp(0, 1)
            for name, at in rows.items()
        }
        self.request.out.mkdir(parents=True, exist_ok=True)
        sheet(panels).save(self.request.out / PICTURE)
        return PICTURE


def sheet(panels: Mapping[str, Tensor]) -> Image.Image:
    """A row of images (B,3,H,W) for each name."""
    font, gap, left = ImageFont.load_default(size=16), 6, 150
    count, _, height, width = next(iter(panels.values())).shape
    size = (left + count * (width + gap), len(panels) * (height + gap))
    made = Image.new("RGB", size, "white")
    for row, (name, images) in enumerate(panels.items()):
        top = row * (height + gap)
        ImageDraw.Draw(made).text((4, top + height / 2 - 10), name, fill="black", font=font)
        for column, image in enumerate(images):
            pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
            made.paste(Image.fromarray(pixels), (left + column * (width + gap), top))
    return made
