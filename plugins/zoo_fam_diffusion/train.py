"""The recipe of ``zoo train fam-diffusion``: a tiny latent pipeline on the world of one creature.

Nothing of the method is trained; this makes the small pipeline that it is shown on. Images are
drawn anew in each step, so that there is no data set. Stages: the autoencoder (eq. 9), then text
model and UNet on its latents (eq. 10).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from zoo.hookspecs import TrainRequest
from zoo.training import Draw, Run, Stage, read_saved

from .model import FAMDiffusion
from .pipeline import SCHEDULE, Parts, assembled, tokenizer
from .world import Creatures, count, creatures, draw

RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(3000, 1e-3, 16, ema=0.995),
    "denoiser": Stage(8000, 1e-3, 32, warm_up=200),
}
KL = 1e-3
"""Weight of the KL term in eq. 9."""
UNPROMPTED = 0.1
"""Share of images that are learned without their prompt, for classifier-free guidance."""
HELD = 64
"""Images that are measured after each stage."""
SAMPLING = 50
"""Steps of those that are generated."""


@dataclass(frozen=True)
class Batch:
    """The images of a step, and their random numbers."""

    these: Creatures
    draw: Draw

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, of the shape of ``like``, the same on any device."""
        return torch.randn(like.shape, generator=self.draw.generator).to(like)

    def prompts(self) -> list[str]:
        """Some are empty."""
        kept = self.draw.rng.random(self.draw.count) >= UNPROMPTED
        return [text if k else "" for text, k in zip(self.these.prompts(), kept, strict=True)]


class Lesson:
    """The losses and measurements of one run."""

    def __init__(self, run: Run[Stage], parts: Parts, config: dict[str, Any]) -> None:
        self.run, self.parts, self.config = run, parts, config
        self.size = int(config["vae"]["sample_size"])
        self.words = tokenizer(config["words"])
        self.scheduler: Any = DDIMScheduler(**SCHEDULE)

    def batch(self, drawn: Draw) -> Batch:
        return Batch(creatures(drawn.rng, drawn.count), drawn)

    def pixels(self, these: Creatures) -> Tensor:
        """(B,3,S,S) in [-1,1]"""
        return 2 * draw(these, self.size).to(self.run.device) - 1

    # --- the autoencoder ---

    def autoencoder(self) -> None:
        vae = self.parts.vae

        def error(batch: Batch) -> Tensor:
            """Eq. 9: L1 and KL."""
            x = self.pixels(batch.these)
            with self.run.autocast():
                posterior = vae.encode(x).latent_dist
                z = posterior.mean + posterior.std * batch.noise(posterior.mean)
                made = vae.decode(z).sample
            kl = posterior.mean.square() + posterior.var - 1 - posterior.logvar
            return (made.float() - x).abs().mean() + KL * kl.float().mean() / 2

        self.run.minimise({"vae": vae}, self.batch, error)
        self.measure_autoencoder()

    def spread(self) -> float:
        """The standard deviation of latents, by which they are divided."""
        some = self.batch(self.run.draw("latent spread", 256)).these
        with torch.no_grad():
            return float(self.parts.vae.encode(self.pixels(some)).latent_dist.mode().std())

    def measure_autoencoder(self) -> None:
        """Do reconstructed creatures still have all their parts?"""
        these = self.batch(self.run.draw("held out", HELD)).these
        x = self.pixels(these)
        with torch.no_grad():
            made = self.parts.vae(x).sample
        found = {**_shares(made / 2 + 0.5), "L1": float((made - x).abs().mean())}
        self.run.validated["autoencoder"] = found

    # --- text model and UNet ---

    def denoiser(self) -> None:
        parts, spread = self.parts, self.spread()
        total = self.scheduler.config.num_train_timesteps

        def error(batch: Batch) -> Tensor:
            """Eq. 10: the squared error of the noise."""
            with torch.no_grad():
                posterior = parts.vae.encode(self.pixels(batch.these)).latent_dist
                z = (posterior.mean + posterior.std * batch.noise(posterior.mean)) / spread
            noise = batch.noise(z)
            t = torch.from_numpy(batch.draw.rng.integers(total, size=len(z))).to(z.device)
            tokens = self.words(
                batch.prompts(), padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids.to(z.device)
            with self.run.autocast():
                text = parts.text(tokens).last_hidden_state
                made = parts.unet(self.scheduler.add_noise(z, noise, t), t, text).sample
            return (made.float() - noise).square().mean()

        learned = nn.ModuleDict({"text": parts.text, "unet": parts.unet})
        self.run.minimise({"denoiser": learned}, self.batch, error)
        self.measure_denoiser()

    def measure_denoiser(self) -> None:
        """What is in images generated at the native size."""
        these = self.batch(self.run.draw("prompts", HELD)).these
        made = self.model().fam.direct(
            these.prompts(),
            height=self.size,
            width=self.size,
            steps=SAMPLING,
            seed=0,
            guidance_scale=self.config["guidance"],
            output_type="pt",
        )
        self.run.validated["native images"] = _shares(made)

    def model(self) -> FAMDiffusion:
        """The model, with the scale of its latents written into its configuration."""
        self.config["vae"] = {**self.config["vae"], "scaling_factor": 1 / self.spread()}
        self.parts.vae.register_to_config(scaling_factor=self.config["vae"]["scaling_factor"])
        pipe = assembled(self.parts, self.config["words"])
        return FAMDiffusion(self.run.build_request(self.config), pipe)


def _shares(images: Tensor) -> dict[str, float]:
    """Shares of images (N,3,S,S) with one object, with its two eyes, with equal cheeks."""
    found = [count(image, images.shape[-1]) for image in images.float().clamp(0, 1).cpu()]
    return {
        name: sum(getattr(one, name) for one in found) / len(found)
        for name in ("one", "both", "agree")
    }


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    config = copy.deepcopy(dict(request.entry.config))
    with torch.random.fork_rng([]):
        torch.manual_seed(request.seed)
        parts = Parts(config)
    if request.init is not None:
        config, tensors = read_saved(request.init)
        parts.load_state_dict(tensors)
    run = Run(request, {"parts": parts}, RECIPE)
    lesson = Lesson(run, parts, config)
    stages = {"autoencoder": lesson.autoencoder, "denoiser": lesson.denoiser}
    return run.fit(stages, lesson.model)
