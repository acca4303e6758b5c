"""The tiny latent pipeline: a text model, an autoencoder and a UNet in a StableDiffusionPipeline.

The text model knows a few words, each one token; the rest is diffusers' and transformers' classes
at a small size, so that everything here works on Stable Diffusion too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import AddedToken, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 8
"""The length of a prompt: start, at most six words, end."""
SCHEDULE: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Stable Diffusion's noise levels (eq. 2) and steps."""


def tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """CLIP's tokenizer for prompts of these words, one token each, in upper or lower case.

    Each letter of any other word is the unknown token.
    """
    ends = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    made = CLIPTokenizer(vocab=ends, model_max_length=TOKENS)
    made.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return made


class Parts(nn.Module):
    """The three networks of a pipeline, from the constructor arguments of their classes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        words = tokenizer(config["words"])
        ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        text = CLIPTextConfig(
            **config["text"],
            vocab_size=len(words),
            max_position_embeddings=TOKENS,
            pad_token_id=words.pad_token_id,
            **ends,
        )
        self.text: Any = CLIPTextModel(text)
        self.vae: Any = AutoencoderKL(**config["vae"])
        self.unet: Any = UNet2DConditionModel(**config["unet"])

    def recompute_buffers(self, device: str | torch.device) -> None:
        """The buffer that no file has: the positions of the text model."""
        self.text.embeddings.position_ids = torch.arange(TOKENS, device=device)[None]


def assembled(parts: Parts, words: Sequence[str]) -> Any:
    """A StableDiffusionPipeline of these networks, which it shares."""
    pipe: Any = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text,
        tokenizer=tokenizer(words),
        unet=parts.unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
