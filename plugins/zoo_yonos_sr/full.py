"""The paper's size, on Stable Diffusion 1.x or 2.x: its UNet and VAE from diffusers classes.

                                             of SD 2.1, for 128 to 512 pixels
    E      AutoencoderKL's encoder, mean       34.2 M    1117 GFLOP
    UNet   UNet2DConditionModel, 8 channels   865.9 M     804 GFLOP
    D      AutoencoderKL's decoder             49.5 M    2515 GFLOP

A base is a folder in diffusers' layout: ``unet/``, ``vae/``, ``scheduler/`` and, if the UNet was
trained with text, ``text_encoder/`` and ``tokenizer/``, which are used once: the model has no
prompt, so the UNet always sees the same tokens. They start as those of the empty prompt and are
trained with the UNet (our choice; the paper does not mention it).

One schedule serves both sizes: our t in [0, 1] becomes the timestep at which the base has the same
signal-to-noise ratio (eq. 15); t=1, which has no signal, becomes its last one. The UNet's output is
v (eq. 3). A base that predicts epsilon learns v in the first stage: at t=1 epsilon has no
information about z_h.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from zoo_sr.latent import alpha, sigma

from zoo.errors import MissingDependencyError, OptionError, WeightsError, WeightsNotFoundError
from zoo.hookspecs import BuildRequest

from .model import YonosNetwork, YonosSR

TOKENS = 77
"""The number of tokens of CLIP's text encoder, for any prompt."""
LARGEST = 30.0
"""Bound of the log-SNR, beyond which there is only signal or only noise; keeps numbers finite."""
NEEDED = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
LAYOUT = "expected Stable Diffusion 1.x or 2.x in diffusers' layout"


# --- the network ----------------------------------------------------------------------------------


class ConditionalUNet(nn.Module):
    """``UNet2DConditionModel`` with the method's interface: (x, t in [0, 1]) -> v^."""

    def __init__(self, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__()
        self.net: Any = UNet2DConditionModel(**config)
        self.prompt = nn.Parameter(torch.zeros(1, TOKENS, config["cross_attention_dim"]))
        self.log_nsr = log_nsr(scheduler)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B,2*latent,h,w), t (B,) to (B,latent,h,w)."""
        prompt = self.prompt.expand(len(x), -1, -1)  # (B,77,d)
        made: Tensor = self.net(x, timestep(t, self.log_nsr), prompt).sample
        return made


class VAEEncoder(nn.Module):
    """E: (B,3,H,W) in [-1,1] to z (B,latent,H/f,W/f): the posterior's mean, at unit variance."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.net, self.quant = vae.encoder, vae.quant_conv or nn.Identity()
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0)

    def forward(self, x: Tensor) -> Tensor:
        with _no_float16(x):
            mean: Tensor = self.quant(self.net(x)).chunk(2, dim=1)[0]
            return (mean - self.shift) * self.scale


class VAEDecoder(nn.Module):
    """D: z (B,latent,h,w) to (B,3,f h,f w), about in [-1,1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.net, self.post = vae.decoder, vae.post_quant_conv or nn.Identity()
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0)

    def forward(self, z: Tensor) -> Tensor:
        with _no_float16(z):
            made: Tensor = self.net(self.post(z / self.scale + self.shift))
            return made


def _no_float16(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast to float16, in which Stable Diffusion's VAE overflows."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=torch.get_autocast_dtype(kind) != torch.float16)


def diffusers_network(config: Mapping[str, Any]) -> YonosNetwork:
    """The network of a configuration with the base's ``unet``, ``vae`` and ``scheduler``."""
    unet = ConditionalUNet(config["unet"], config["scheduler"])
    vae: Any = AutoencoderKL(**config["vae"])  # diffusers sets its config at run time
    decoder = VAEDecoder(vae)
    return YonosNetwork(
        VAEEncoder(vae),
        unet,
        decoder,
        copy.deepcopy(decoder),
        scale=config["scale"],
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        latent=vae.config.latent_channels,
        unet_stride=2 ** (len(unet.net.config.block_out_channels) - 1),
    )


# --- one schedule for both sizes ------------------------------------------------------------------


def log_nsr(scheduler: Mapping[str, Any]) -> tuple[float, ...]:
    """log(sigma^2 / alpha^2) at each timestep of the base, ascending. Raises WeightsError."""
    first, last, steps = (
        scheduler[key] for key in ("beta_start", "beta_end", "num_train_timesteps")
    )
    kind = scheduler["beta_schedule"]
    if kind == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    elif kind == "linear":
        betas = np.linspace(first, last, steps)
    else:
        raise WeightsError(
            f"The base has beta_schedule={kind!r}; known are 'scaled_linear' and 'linear'."
        )
    signal = np.cumprod(1 - betas) ** 0.5  # alpha
    if scheduler.get("rescale_betas_zero_snr"):
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    square = np.clip(signal**2, math.exp(-LARGEST), 1)
    return tuple(float(x) for x in np.log((1 - square) / square))


def timestep(t: Tensor, log_nsr: tuple[float, ...]) -> Tensor:
    """t (B,) in [0,1] to the base's timestep of equal SNR, possibly fractional; (B,) float32."""
    t = t.float()
    table = torch.tensor(log_nsr, device=t.device)  # (T,)
    wanted = 2 * (torch.log(sigma(t)) - torch.log(alpha(t)))
    wanted = wanted.clamp(log_nsr[0], log_nsr[-1])
    above = (wanted[:, None] > table).sum(1).clamp(1, len(log_nsr) - 1)  # (B,)
    low, high = table[above - 1], table[above]
    return above - 1 + (wanted - low) / (high - low)


# --- from a base to the network at the start of training ------------------------------------------


def read_base(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``unet``, ``vae`` and ``scheduler`` of a configuration, and the network's tensors, float32.

    ``folder``: verified, in diffusers' layout. Raises WeightsError for anything else or a missing
    tensor: no weights are random.
    """
    unet, unet_config = _part(UNet2DConditionModel, folder, "unet")
    vae, vae_config = _part(AutoencoderKL, folder, "vae")
    given, latent = unet.config.in_channels, vae.config.latent_channels
    for what, wrong in {
        f"in_channels={given}, and the VAE has {latent} channels": given != latent,
        **{
            f"{key}={unet.config[key]!r}": unet.config[key] is not None
            for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
        },
        f"cross_attention_dim={unet.config.cross_attention_dim!r}": not isinstance(
            unet.config.cross_attention_dim, int
        ),
    }.items():
        if wrong:
            raise WeightsError(f"{folder}: its UNet has {what}; {LAYOUT}.")
    known = _json(folder / "scheduler" / "scheduler_config.json")
    if missing := [key for key in NEEDED if key not in known]:
        raise WeightsError(f"{folder}: its scheduler has no {', '.join(missing)}; {LAYOUT}.")
    kept = (*NEEDED, "rescale_betas_zero_snr", "prediction_type")
    scheduler = {key: known[key] for key in kept if key in known}
    config = {
        "unet": {**unet_config, "in_channels": 2 * latent},
        "vae": vae_config,
        "scheduler": scheduler,
    }
    decoder = VAEDecoder(vae).state_dict()
    tensors = {
        **_under("unet.net", widened(unet.state_dict())),
        "unet.prompt": empty_prompt(folder, unet.config.cross_attention_dim),
        **_under("hr_encoder", VAEEncoder(vae).state_dict()),
        **_under("decoder", decoder),
        **_under("decoder_base", decoder),
    }
    return config, tensors


def widened(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's tensors with twice the input channels; the new ones have zero weights."""
    old = unet["conv_in.weight"]  # (C,latent,3,3)
    return {**unet, "conv_in.weight": torch.cat([old, torch.zeros_like(old)], dim=1)}


def empty_prompt(folder: Path, width: int) -> Tensor:
    """The base's text embedding of "": (1,77,width); zeros without a text encoder."""
    if not (folder / "text_encoder" / "config.json").is_file():
        return torch.zeros(1, TOKENS, width)
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The text encoder of a Stable Diffusion checkpoint needs transformers. "
            'Run: pip install "edgezoo[sr-full]"',
            name="transformers",
        ) from error
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    loaded: Any = CLIPTextModel.from_pretrained(
        folder / "text_encoder",
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,  # so that it also returns the report
    )
    encoder, report = loaded
    _complete(folder / "text_encoder", report)
    tokens = tokenizer("", padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        made: Tensor = encoder(tokens).last_hidden_state
    return made


def _part(kind: Any, folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """One model of the base, and the arguments of its class."""
    given = _json(folder / name / "config.json")
    if given.get("_class_name") != kind.__name__:
        raise WeightsError(
            f"{folder}: its {name} is {given.get('_class_name')!r}, not {kind.__name__}; {LAYOUT}."
        )
    files = [f.name for f in (folder / name).glob("diffusion_pytorch_model*.safetensors*")]
    half = files and all(".fp16" in file for file in files)
    model, report = kind.from_pretrained(
        str(folder / name),
        local_files_only=True,
        use_safetensors=True,
        torch_dtype=torch.float32,
        variant="fp16" if half else None,
        output_loading_info=True,
    )
    _complete(folder / name, report)
    wanted = inspect.signature(kind.__init__).parameters
    return model, {key: value for key, value in given.items() if key in wanted}


def _complete(folder: Path, report: Mapping[str, Any]) -> None:
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, report[what])):
            raise WeightsError(
                f"{folder}: {len(wrong)} tensors are {what.split('_')[0]}, such as {wrong[0]}: "
                "it is damaged or does not match its configuration."
            )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsNotFoundError(f"There is no {path}; {LAYOUT}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is not a JSON object; {LAYOUT}.")
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


# --- what zoo.load returns ------------------------------------------------------------------------


class YonosSRFull(YonosSR):
    """YONOS-SR on Stable Diffusion, whose norms span a whole tile, so colours come from the
    input."""

    noise_scale: ClassVar[float] = 1.0
    color_fix: ClassVar[bool] = True

    @classmethod
    def network(cls, config: Mapping[str, Any]) -> YonosNetwork:
        return diffusers_network(config)

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        if request.base is not None:
            raise OptionError(
                f"The weights of {request.entry.name} already include their trained base; leave "
                f"out base=."
            )
        return super().build(request)
