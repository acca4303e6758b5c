"""Images and texts to features through an open_clip checkpoint: a convenience, not the method."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError, MissingDependencyError, WeightsError, ZooError
from zoo.weights import load_tensors, sha256

from .towers import pictures

FILES = ("open_clip_model.safetensors", "model.safetensors")
TEMPLATES = {
    "none": ("{}",),
    "photo": ("a photo of a {}.",),
    "video": ("a video frame of a person {}.",),
    "imagenet": (  # those of Tip-Adapter and of the authors' code
        "a photo of a {}.",
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


@contextmanager
def no_warning() -> Iterator[None]:
    """Without open_clip's warning that the weights are random: they are read a moment later."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Encoder:
    """The two towers of a folder with ``open_clip_config.json`` and safetensors weights."""

    def __init__(self, folder: Path, device: str) -> None:
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "raw images and texts need open_clip. Run: pip install 'edgezoo[vlm]'",
                name="open_clip",
            ) from error
        weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if weights is None or not (folder / "open_clip_config.json").is_file():
            raise WeightsError(
                f"{folder} is not an open_clip checkpoint: expected open_clip_config.json and "
                f"{FILES[0]}. Many open_clip repositories on the Hub have both."
            )
        name = f"local-dir:{folder}"
        try:
            # The weights come from our own reader: open_clip would also open pickles.
            with no_warning():
                self.model: Any = open_clip.create_model(
                    name, load_weights=False, pretrained_image=False, pretrained_text=False
                )
            self.model.load_state_dict(load_tensors(weights), strict=True)
            self.tokens = open_clip.get_tokenizer(name)
        except ZooError:
            raise
        except Exception as error:  # whatever a configuration from elsewhere makes it raise
            raise WeightsError(f"{folder} cannot be loaded by open_clip: {error}") from error
        self.model.eval().requires_grad_(False).to(device)
        self.device = device
        config = open_clip.get_model_preprocess_cfg(self.model)
        self.transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**config), is_train=False
        )
        self.digest = sha256(weights)

    def images(self, images: Sequence[Any], batch: int = 64) -> Tensor:
        """(N,d) features of anything that ``zoo.images`` takes, and of files as bytes."""
        ready = (self.transform(image) for image in pictures(images))
        made = []
        while part := list(itertools.islice(ready, batch)):
            with torch.no_grad():
                made.append(self.model.encode_image(torch.stack(part).to(self.device)).float())
        return torch.cat(made)

    def texts(self, texts: Sequence[Any], templates: Sequence[str]) -> Tensor:
        """(C,T,d) features; a text may be a list of texts, which then are its templates."""
        lists = [[t] if isinstance(t, str) else list(t) for t in texts]
        if not all(one and all(isinstance(t, str) for t in one) for one in lists):
            raise InputError("texts: expected strings, or a list of strings for each class.")
        if len({len(one) for one in lists}) > 1:
            raise InputError("texts: expected the same number of texts for each class.")
        filled = [
            [form.replace("{}", t.replace("_", " ")) for t in one for form in templates]
            for one in lists
        ]
        flat = [t for one in filled for t in one]
        made = []
        with torch.no_grad():
            for i in range(0, len(flat), 256):
                made.append(self.model.encode_text(self.tokens(flat[i : i + 256]).to(self.device)))
        return torch.cat(made).float().reshape(len(filled), len(filled[0]), -1)
