"""The recipe of Edge-SD-SR, in the order of the paper's three ingredients.

autoencoder   E_H and D learn to reconstruct; then both are frozen and the latents normalised
lr_encoder    E_L learns to imitate E_H(up(x_l)), so that the UNet has an input           (eq. 8)
teacher       only with ``distill``: a reverse-only x2 model, the target of the UNet     (eq. 10)
unet          UNet alone (20 %), UNet and E_L jointly (70 %), UNet alone, decaying (10 %) (eq. 9)
decoder       D is tuned on the actual output of one step                              (eq. 12)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from zoo_sr import latent
from zoo_sr.latent import denoising_loss, kl_to_unit, teacher_target
from zoo_sr.pixels import bicubic_up
from zoo_sr.training.photos import Photos
from zoo_sr.training.recipe import Batch, Recipe, Stage, starting_point
from zoo_sr.training.stages import (
    conditional,
    draw_t,
    latent_metric,
    train_autoencoder,
    train_decoder,
)

from zoo.errors import OptionError
from zoo.hookspecs import TrainRequest
from zoo.training import cosine

from .model import EdgeSDSR

TINY_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(4000, 1e-3, 16, crop=64),
    "lr_encoder": Stage(400, 1e-3, 16, crop=64),
    "teacher": Stage(5000, 8e-4, 16, crop=64),
    "unet": Stage(5000, 8e-4, 16, crop=64),
    "decoder": Stage(1500, 4e-4, 16, crop=64),
}
"""For ``edge-sd-sr``: about 40 minutes on two CPU cores with bfloat16 (AMX), else hours."""

FULL_RECIPE: Mapping[str, Stage] = {
    "autoencoder": Stage(100_000, 2e-4, 32, crop=256),
    "lr_encoder": Stage(5_000, 2e-4, 64, crop=256),
    "teacher": Stage(100_000, 2e-4, 64, crop=256),
    "unet": Stage(200_000, 2e-4, 64, crop=256),
    "decoder": Stage(20_000, 5e-5, 32, crop=256),
}
"""For ``edge-sd-sr-full``: our choice, as the paper's schedule is not public. Needs a large GPU."""

KL_WEIGHT = 1e-3  # on log sigma_l^2 (eq. 6)
LR_ENCODER_RATE = 0.2  # E_L learns more slowly than the UNet while both learn (eq. 9)

# --- the stages of this method --------------------------------------------------------------------


def phases(progress: float, *, encoder: bool) -> float:
    """Learning rates of the dedicated schedule (eq. 9): E_L learns only in phase B; in C all decay
    to 0."""
    if progress < 0.2:  # A: the UNet alone
        return 0.0 if encoder else 1.0
    if progress < 0.9:  # B: jointly
        rate = 0.15 + 0.85 * cosine((progress - 0.2) / 0.7)
        return LR_ENCODER_RATE * rate if encoder else rate
    return 0.0 if encoder else 0.15 * (1 - progress) / 0.1  # C


def train_lr_encoder(job: Recipe) -> None:
    """|| mu_l - E_H(up(x_l)) ||_1: mu_l becomes the kind of input that the UNet will see (eq.
    8)."""
    net = job.net

    def loss(batch: Batch) -> Tensor:
        with job.autocast():
            target = net.encode_hr(bicubic_up(batch.x_l, net.scale))
            mu, _ = net.encode(batch.x_l)
        return (mu.float() - target.float()).abs().mean()

    job.minimise({"lr_encoder": net.lr_encoder}, loss)


def train_teacher(job: Recipe) -> None:
    """A reverse-only x2 model, conditioned on E_H(up(x_l')) (eq. 10)."""
    net = job.net
    teacher = job.run.keep("teacher", job.new_unet)

    def loss(batch: Batch) -> Tensor:
        assert batch.x_l_easy is not None
        with job.autocast():
            z_h = net.encode_hr(batch.x_h).float()
            z_l = net.encode_hr(bicubic_up(batch.x_l_easy, net.scale // 2)).float()
            t = draw_t(batch)
            z_t = latent.forward(z_h, batch.noise(z_h), t)
            return denoising_loss(conditional(teacher), z_t, z_l, t, z_h, channels)

    channels = latent_metric(job)
    job.minimise({"teacher": teacher}, loss)


def unet_loss(
    job: Recipe, batch: Batch, channels: Tensor | None = None, teacher: nn.Module | None = None
) -> Tensor:
    """omega(t) || z^ - y ||^2 + KL, eq. 5, for one batch."""
    net = job.net
    with job.autocast():
        z_h = net.encode_hr(batch.x_h).float()  # no gradient: E_H is frozen
        mu, log_var = net.encode(batch.x_l)
        mu, log_var = mu.float(), log_var.float()
        t, eps = draw_t(batch), batch.noise(z_h)
        # The gradient reaches E_L through z_t and through the concatenation; detach neither.
        z_t = latent.forward(z_h, net.noise.n(eps, mu, log_var), t)
        if teacher is None:
            y = z_h
        else:
            assert batch.x_l_easy is not None
            easy = net.encode_hr(bicubic_up(batch.x_l_easy, net.scale // 2)).float()
            y = teacher_target(conditional(teacher), z_h, eps, t, easy)
        loss = denoising_loss(net.denoise, z_t, mu, t, y, channels)
    return loss + KL_WEIGHT * kl_to_unit(log_var) if net.noise.var == "learned" else loss


def train_unet(job: Recipe) -> None:
    """Train UNet and E_L jointly, on the dedicated schedule."""
    net = job.net
    teacher = None
    if job.request.options["distill"]:
        if not job.run.keeps("teacher"):
            raise OptionError(
                "distill=true needs the teacher, which no saved model contains: run all stages "
                "without --stage, or --resume in the folder where stage 'teacher' ran."
            )
        teacher = job.run.keep("teacher", job.new_unet)
        if job.run.fresh:
            net.unet.load_state_dict(teacher.state_dict())  # trained on the similar, easier task
    channels = latent_metric(job)
    job.minimise(
        {
            "unet": (net.unet, lambda p: phases(p, encoder=False)),
            "lr_encoder": (net.lr_encoder, lambda p: phases(p, encoder=True)),
        },
        lambda batch: unet_loss(job, batch, channels, teacher),
    )
    job.run.drop("teacher")  # it is no longer needed
    job.validate("frozen decoder", lambda x_h, x_l: net.decoder_base(net.one_step(x_l)))


def recipe(request: TrainRequest, photos: Photos | None = None) -> Recipe:
    """The recipe of a request; ``distill`` adds a teacher before the UNet."""
    distill = request.options["distill"]
    config, tensors = starting_point(request)
    stages = {"tiny": TINY_RECIPE, "diffusers": FULL_RECIPE}[config["network"]]
    skip = () if distill else ("teacher",)
    job = Recipe(request, EdgeSDSR, config, stages, skip=skip, photos=photos)
    if tensors is not None:
        job.start_from(tensors)
    job.easier = job.scale // 2 if distill else None
    return job


STAGES: Mapping[str, Callable[[Recipe], None]] = {
    "autoencoder": train_autoencoder,
    "lr_encoder": train_lr_encoder,
    "teacher": train_teacher,
    "unet": train_unet,
    "decoder": partial(train_decoder, noisy=0.5),
}


def train(request: TrainRequest) -> Path:
    """Run the recipe (or one stage of it) and return the saved folder ``out/model``."""
    job = recipe(request)
    return job.fit({name: partial(stage, job) for name, stage in STAGES.items()})
