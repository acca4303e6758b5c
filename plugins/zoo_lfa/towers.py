"""Two encoders that were never trained together: an image network of timm, a sentence encoder of
transformers. Folders in, float32 features out; nothing here knows of the method."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, MissingDependencyError, WeightsError
from zoo.images import each, read
from zoo.progress import Progress, track
from zoo.weights import load_module, sha256

if TYPE_CHECKING:
    from PIL import Image

    from zoo.entry import Base

BATCH = 32
"""Images at once: more are no faster on a CPU."""
ARGUMENTS = (bool, int, float, str)
"""Types that a folder's ``model_args`` may have."""


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{what} needs {package}. Run: pip install 'edgezoo[vlm]'", name=package
    )


def both(bases: Mapping[str, Base], device: str | torch.device) -> tuple[ImageTower, TextTower]:
    """The encoders of the bases ``image`` and ``text``."""
    image, text = bases["image"].folder, bases["text"].folder
    assert image is not None  # the registry says that both are needed
    assert text is not None
    return ImageTower(image, device), TextTower(text, device)


def imagenet() -> list[str]:
    """ImageNet's 1,000 classes in the classifiers' order: names, and WordNet's definition."""
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ModuleNotFoundError as error:
        raise _missing("timm", "the list of ImageNet's classes") from error
    known = ImageNetInfo()
    return [known.index_to_description(i, detailed=True) for i in range(known.num_classes())]


# --- images ---------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """(N,3,S,S) in [0,1] to pooled features (N,d) of a timm classifier, before its last layer."""

    def __init__(self, network: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (N,d), not normalised."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        hidden = self.network.forward_features((pixels - mean) / std)
        made: Tensor = self.network.forward_head(hidden, pre_logits=True)
        return made


class ImageTower:
    """A timm classifier from a folder: safetensors, and ``config.json`` as timm's Hub pages have.

    Without ``config.json`` the file's name is the architecture's, such as
    ``tf_efficientnet_lite0.safetensors``. Each image is cut to the square in its middle and scaled
    bicubically to the network's input size.
    """

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        try:
            import timm
            from timm.data.config import resolve_data_config
        except ModuleNotFoundError as error:
            raise _missing("timm", "an image network") from error
        file = _only_weights(folder)
        told = _config(folder / "config.json") if (folder / "config.json").is_file() else {}
        name = told.get("architecture", file.stem)
        if not isinstance(name, str) or not timm.is_model(name):
            raise WeightsError(
                f"{folder}: timm has no architecture {name!r}. Expected config.json with "
                "'architecture', or a file named after one, such as "
                "tf_efficientnet_lite0.safetensors."
            )
        arguments = _arguments(told, folder)
        network: Any = load_module(
            lambda: timm.create_model(name, pretrained=False, **arguments), file
        )
        settings = resolve_data_config(_settings(told), model=network)
        self.architecture = name
        self.digest = sha256(file)
        """SHA-256 of the file with the weights."""
        self.side = int(settings["input_size"][1])
        """Pixels of the square that the network looks at."""
        self.pixels = Pixels(network, settings["mean"], settings["std"])
        self.pixels.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def to(self, device: str | torch.device) -> None:
        """Move to a torch device."""
        self.device = torch.device(device)
        self.pixels.to(self.device)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: weight (classes,d), one row for each class."""
        layer = self.pixels.network.get_classifier()
        if not isinstance(layer, nn.Linear):
            raise WeightsError(
                f"{self.architecture} ends in {type(layer).__name__}, not in a linear layer with a "
                "row for each class."
            )
        return layer

    @property
    def width(self) -> int:
        """Columns of the features."""
        return int(self.pixels.network.num_features)

    def __call__(self, images: Any, progress: Progress = False) -> Tensor:
        """(N,d) features of a list of anything that ``zoo.images`` takes, or of one image."""
        many = list(images) if isinstance(images, list | tuple) else [images]
        if len(many) == 1 and getattr(many[0], "ndim", 0) == 4:
            many = list(many[0])
        if not many:
            raise InputError("images: there is nothing in the list.")
        made = []
        with torch.inference_mode(), track(len(many), progress, "images") as advance:
            squares = (squared(image, self.side) for image in pictures(many))
            while part := list(itertools.islice(squares, BATCH)):
                made.append(self.pixels(torch.stack(part).to(self.device)).float())
                advance(len(part))
        return torch.cat(made).clone()  # outside of inference mode: a tensor like any other


def pictures(images: Sequence[Any]) -> Iterator[Image.Image]:
    """Anything that ``zoo.images`` takes, and files as bytes: as Pillow's, 8 bits of RGB, upright.

    Raises InputError with the number of the image that cannot be used.
    """
    from PIL import Image

    for i, image in enumerate(images):
        try:
            if isinstance(image, str | Path | bytes | Image.Image):
                yield read(image, "RGB")
            else:
                yield each(image, _picture)
        except InputError as error:
            raise InputError(f"image {i} of the list: {error}") from error


def _picture(colours: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray((colours * 255).round().byte().permute(1, 2, 0).numpy())


def squared(image: Image.Image, side: int) -> Tensor:
    """(3,side,side) in [0,1]: the square in the middle, scaled bicubically.

    By Pillow and in 8 bits, so that the user of an exported file can do the same.
    """
    import numpy as np
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def _only_weights(folder: Path) -> Path:
    """``model.safetensors``, or the one safetensors file that is there."""
    files = sorted(folder.glob("*.safetensors"))
    named = [file for file in files if file.name == "model.safetensors"] or files
    if len(named) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise WeightsError(
            f"{folder} is not a timm model: expected model.safetensors, or one safetensors file; "
            f"found {found}."
        )
    return named[0]


def _config(file: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}.") from None
    if not isinstance(told, dict):
        raise WeightsError(f"{file}: expected an object with 'architecture'.")
    return told


def _arguments(told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Keyword arguments of the architecture; none that would make timm open a file."""
    given = told.get("model_args") or {}
    plain = isinstance(given, dict) and all(isinstance(v, ARGUMENTS) for v in given.values())
    if not plain or any(name.startswith(("pretrained", "checkpoint", "cache")) for name in given):
        raise WeightsError(
            f"{folder / 'config.json'}: model_args {given!r:.200}: expected plain settings of the "
            "architecture."
        )
    classes = told.get("num_classes", (told.get("pretrained_cfg") or {}).get("num_classes"))
    return {**given, **({"num_classes": int(classes)} if classes is not None else {})}


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Input size, mean and standard deviation, where the folder tells."""
    given = told.get("pretrained_cfg") or {}
    return {k: tuple(given[k]) for k in ("input_size", "mean", "std") if k in given}


# --- sentences ------------------------------------------------------------------------------------


class TextTower:
    """A sentence encoder from a transformers folder: mean over a text's tokens, unit norm."""

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise _missing("transformers", "a sentence encoder") from error
        _only_weights(folder)
        try:
            with _silent(transformers.utils.logging):
                self.tokens: Any = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True
                )
                self.network: Any
                self.network, found = transformers.AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:  # whatever a configuration from elsewhere makes it raise
            raise WeightsError(f"{folder} cannot be loaded by transformers: {error}") from error
        lacking = sorted(name for name in found["missing_keys"] if not name.startswith("pooler"))
        if lacking:
            raise WeightsError(f"{folder}: the file has no values for {', '.join(lacking[:5])}.")
        if self.tokens.pad_token_id is None:
            raise WeightsError(
                f"{folder} is not a sentence encoder: its tokenizer has no padding token. Expected "
                "one such as sentence-transformers/all-MiniLM-L6-v2."
            )
        self.network.eval().requires_grad_(False).to(device)
        self.most = min(int(self.network.config.max_position_embeddings), 256)
        self.device = torch.device(device)

    def to(self, device: str | torch.device) -> None:
        """Move to a torch device."""
        self.device = torch.device(device)
        self.network.to(self.device)

    @property
    def width(self) -> int:
        """Columns of the features."""
        return int(self.network.config.hidden_size)

    def __call__(self, texts: Sequence[str], step: Callable[[int], Any] | None = None) -> Tensor:
        """(N,d) unit rows; a text longer than 256 tokens is cut."""
        made = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                part = list(texts[start : start + 64])
                given = self.tokens(
                    part, padding=True, truncation=True, max_length=self.most, return_tensors="pt"
                ).to(self.device)
                hidden = self.network(**given).last_hidden_state.float()
                mask = given["attention_mask"][..., None].to(hidden)
                pooled = (hidden * mask).sum(1) / mask.sum(1)
                made.append(nn.functional.normalize(pooled, dim=1))
                if step is not None:
                    step(len(part))
        return torch.cat(made).clone()


@contextmanager
def _silent(log: Any) -> Iterator[None]:
    """Without the bars and remarks of transformers: what is wrong is checked here."""
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
