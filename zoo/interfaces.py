"""What a user can do with a model: ``Model``, six interfaces, and the values they take and give.

An interface holds the few verbs that every method of its kind shares; a method's extras are
ordinary methods and keyword options of its own class. Rules for all verbs:

* One in, one out; a list in, a list out.
* Images come back as they went in: path or PIL in, PIL out; HWC uint8 numpy, the same; float CHW or
  NCHW tensor in [0, 1], the same. ``zoo.images`` does this for a plugin in one call.
* A verb that takes long has ``progress``: False, True (a bar on stderr), or a callable
  ``progress(done: int, total: int)``. A verb in which chance plays a part has ``seed``: the same
  seed gives the same result on the same machine.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from .errors import NotReadyError, PluginError
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .entry import Base, Entry

    ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | torch.Tensor"
    Images: TypeAlias = "ImageLike | Sequence[ImageLike]"


class Model(abc.ABC):
    """Base of everything ``zoo.load`` returns.

    A plugin's class calls ``super().__init__(request)`` and sets ``self.module`` to its
    ``torch.nn.Module``; device, saving and loading then work without further code. A model whose
    state is not one module overrides ``state`` instead, and ``to``.
    """

    interface: ClassVar[str | None] = None
    """Name of the interface, or None for something saved that has none of the six."""
    kind: ClassVar[str] = "model"
    """The plugin's own word for what a saved folder holds: ``model``, ``reader``, ``quantized``."""

    entry: Entry
    """The registry entry this model was built from."""
    options: Mapping[str, Any]
    """The load options in force, defaults included."""
    config: Mapping[str, Any]
    """Constructor arguments of the network: what a saved folder needs to build it again."""
    source: str
    """Where the weights came from: ``bundled``, ``cache``, ``hub``, ``folder`` or ``none``."""
    bases: Mapping[str, Base]
    """Name -> the base that it works on; a folder may be gone where it is not needed."""
    module: torch.nn.Module | None = None

    def __init__(self, request: Any) -> None:
        """``request``: a BuildRequest, or the model that this one is made from (a reader from its
        generator, a quantized model from its quantizer): it then is saved and loaded as that one's.
        """
        self.entry = request.entry
        self.options = dict(request.options)
        self.config = dict(request.config)
        made_from = request if isinstance(request, Model) else None
        self.source = made_from.source if made_from else "none"
        self.bases = dict(request.bases)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        import torch

        first = next(iter(self.module.parameters()), None) if self.module is not None else None
        return first.device if first is not None else torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Move to a torch device; returns self."""
        if self.module is not None:
            self.module.to(device)
        return self

    @property
    def base(self) -> Base | None:
        """The base of a model that has one; of several, the first."""
        return next(iter(self.bases.values()), None)

    def state(self) -> Mapping[str, torch.Tensor]:
        """The tensors that ``save_pretrained`` writes, by name."""
        return self.module.state_dict() if self.module is not None else {}

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``model.safetensors`` and ``zoo.json`` to a folder that ``zoo.load`` accepts.

        The folder appears whole or not at all. Raises OutputError where something is already
        there, unless ``overwrite``; what is not a saved folder is never replaced.
        """
        from .weights import save_model

        return save_model(self, Path(path), overwrite=overwrite)

    def save_files(self, folder: Path) -> None:  # noqa: B027 - most models have nothing to add
        """Write what ``save_pretrained`` shall keep beside the tensors (JSON, safetensors)."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """Load a folder written by ``save_pretrained``; same as ``zoo.load(Path(path), ...)``."""
        from .api import load

        model = load(Path(path), **options)
        if not isinstance(model, cls):
            raise PluginError(
                f"{path} holds a {type(model).__name__}, not a {cls.__name__}. "
                f"Load it with zoo.load({str(path)!r})."
            )
        return model

    def export(self, path: str | Path, format: str = "onnx", **options: Any) -> Path:
        """Write the model in a format for other runtimes, where the method supports it."""
        raise NotReadyError(f"{self.entry.name} cannot be exported to {format!r}.")

    def export_report(self, path: str | Path) -> Sequence[str]:
        """Lines that set an exported file beside this model, where the method can compare them."""
        return ()

    def estimate(self, *args: Any, **options: Any) -> Estimate:
        """What a run on this input would cost, without running it, where the method can tell."""
        raise NotReadyError(f"{self.entry.name} gives no estimate.")

    def run_check(self, path: Path) -> Mapping[str, torch.Tensor]:
        """What ``zoo verify`` compares: the outputs, by name, for the entry's check input."""
        raise NotReadyError(f"{self.entry.name} says nothing about how to check it.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.entry.name!r} on {self.device}>"


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, before running it."""

    evaluations: int
    """Forward passes of the network (tiles)."""
    flops: float
    """Floating-point operations in total; a multiply-add counts as two."""
    memory: int
    """Peak bytes of activations and working arrays, beyond weights and the result itself."""
    seconds: float
    """Rough time on this machine and device."""


# --- super-resolution -----------------------------------------------------------------------------


class SRModel(Model):
    """Enlarges images."""

    interface = "SRModel"

    @property
    @abc.abstractmethod
    def scales(self) -> tuple[int, ...]:
        """Magnifications that these weights support; the first is the default."""

    @property
    def multiple(self) -> int:
        """Sides of a tile must be a multiple of this many input pixels; images have any size."""
        return 1

    @property
    def tile(self) -> int | None:
        """Side in input pixels of the tile that ``tile="auto"`` uses; None where it never tiles."""
        return None

    @abc.abstractmethod
    def upscale(
        self,
        images: Images,
        *,
        scale: int | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
    ) -> Any:
        """Enlarge images; the result is of the input's kind and exactly scale times as large.

        ``scale``: one of ``scales`` (None: the first). ``prompt``: text that guides the method,
        where it takes one (else OptionError). ``tile``: side of a tile in input pixels, "auto"
        for the model's own choice, None for one evaluation whatever the size. Alpha is enlarged
        beside the colours; greyscale stays greyscale. Raises InputError naming what is wrong.
        """

    def run_check(self, path: Path) -> Mapping[str, torch.Tensor]:
        """``output``: (3, H, W) in [0, 1], the check image enlarged, all options default."""
        from .images import read, to_tensor

        return {"output": self.upscale(to_tensor(read(path)))}


# --- vision-language alignment --------------------------------------------------------------------


class VLAligner(Model):
    """Brings images and texts into one space, or makes a model prefer the right text."""

    interface = "VLAligner"

    @abc.abstractmethod
    def align(
        self,
        images: Any,
        texts: Any = None,
        *,
        labels: Sequence[int] | None = None,
        progress: Progress = False,
        **options: Any,
    ) -> Self:
        """Fit on pairs; returns self, fitted.

        ``images`` and ``texts``: raw images and strings, a folder or JSONL file of rows, or float
        arrays (N, d_image) and (M, d_text) of features. ``labels``: (N,) integers into ``texts``
        where there is not one text for each image.
        """

    @abc.abstractmethod
    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """(N, M) float32, higher is better; raw inputs or features, as ``align`` takes them."""

    def embed_images(self, images: Any) -> np.ndarray:
        """(N, d) float32 of unit norm, where the method has embeddings."""
        raise NotReadyError(f"{self.entry.name} has no image embeddings; use similarity().")

    def embed_texts(self, texts: Any) -> np.ndarray:
        """(M, d) float32 of unit norm, where the method has embeddings."""
        raise NotReadyError(f"{self.entry.name} has no text embeddings; use similarity().")


# --- quantization ---------------------------------------------------------------------------------


class QuantizedModel(Model):
    """What ``Quantizer.quantize`` returns: called like the original, can be kept and shipped."""

    kind = "quantized"

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the original, same arguments and outputs."""

    @abc.abstractmethod
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The original's generation, same arguments and outputs."""

    @abc.abstractmethod
    def report(self) -> Mapping[str, Any]:
        """JSON-like. ``bytes_before`` and ``bytes_after`` of all weights; ``layers``: name -> bit
        widths and the calibration's error; a method may add more.
        """


class Quantizer(Model):
    """Turns a language model into one of few bits."""

    interface = "Quantizer"

    @abc.abstractmethod
    def quantize(
        self,
        model: Any,
        calibration: Any = None,
        *,
        scheme: str = "w8a8",
        progress: Progress = False,
    ) -> QuantizedModel:
        """Quantize a causal language model (Hub id, folder, or the module itself).

        ``calibration``: texts or (N, T) token ids; None uses a few bundled texts. ``scheme``:
        weight and activation bits, such as ``w4a8``. The model handed in is left unchanged.
        """


# --- data selection -------------------------------------------------------------------------------


class DataSelector(Model):
    """Learns which training examples deserve weight."""

    interface = "DataSelector"

    @abc.abstractmethod
    def fit(
        self,
        train: Any,
        target: Any,
        *,
        model: Any = None,
        loss: Any = None,
        epochs: int | None = None,
        seed: int = 0,
        progress: Progress = False,
    ) -> Self:
        """Learn weights for ``train`` (N examples) that serve the small ``target`` set.

        ``model``: a torch module to train with the weights; ``loss``: (output, batch) -> (B,)
        losses, one for each example. Returns self, fitted.
        """

    @property
    @abc.abstractmethod
    def weights(self) -> np.ndarray:
        """(N,) float32 in [0, 1], in the order of ``train``."""

    @abc.abstractmethod
    def select(self, *, fraction: float | None = None, k: int | None = None) -> np.ndarray:
        """(k,) int64 indices into ``train``, heaviest first, ties by index. Give one of the two."""


# --- detection ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image."""

    boxes: np.ndarray
    """(N, 4) float32, x1 y1 x2 y2 in pixels of the image given; x to the right, y down."""
    scores: np.ndarray
    """(N,) float32 in [0, 1], falling."""
    labels: np.ndarray
    """(N,) int64 into ``names``."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)


class Detector(Model):
    """Finds objects; can be pretrained without labels and fine-tuned with few."""

    interface = "Detector"

    @abc.abstractmethod
    def pretrain(
        self, images: Any, *, seed: int = 0, progress: Progress = False
    ) -> Mapping[str, Any]:
        """Learn from images alone; returns a report of the run."""

    @abc.abstractmethod
    def finetune(
        self, images: Any, labels: Any, *, seed: int = 0, progress: Progress = False
    ) -> Self:
        """Learn from images and their boxes (a list of ``Detections``); returns self."""

    @abc.abstractmethod
    def detect(self, images: Images, *, threshold: float = 0.4) -> Any:
        """``Detections`` for an image, a list of them for a list; no scores below ``threshold``."""


# --- question-answer generation -------------------------------------------------------------------


@dataclass(frozen=True)
class QAPair:
    """One question with its answer and the part of the graph it was made from."""

    question: str
    answer: str
    nodes: tuple[str, ...] = ()
    """Ids of the graph's nodes that the question is about."""


@dataclass(frozen=True)
class QASet:
    """Questions about one text."""

    pairs: tuple[QAPair, ...]
    graph: Mapping[str, Any] = field(default_factory=dict)
    """``{"nodes": [{"id", "text", "kind"}], "edges": [{"source", "target", "role"}]}``."""
    coverage: float = 0.0
    """Share of the graph's nodes that at least one pair is about, in [0, 1]."""

    def __len__(self) -> int:
        return len(self.pairs)


class QAGenerator(Model):
    """Makes questions and answers from a procedure's graph, and trains readers on them."""

    interface = "QAGenerator"

    @abc.abstractmethod
    def generate(self, text: str) -> QASet:
        """All questions that the text's graph supports."""

    @abc.abstractmethod
    def train_reader(
        self, qa: Sequence[QASet], *, seed: int = 0, progress: Progress = False
    ) -> Any:
        """A reader: a ``Model`` with ``answer(question, text) -> str``, saved as any model is."""

    @abc.abstractmethod
    def answer(self, question: str, text: str) -> str:
        """Answer with the bundled reader."""


INTERFACES: Mapping[str, type[Model]] = {
    cls.__name__: cls
    for cls in (SRModel, VLAligner, Quantizer, DataSelector, Detector, QAGenerator)
}


# --- results of a benchmark -----------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A measured number: mean and sample standard deviation over n runs (std 0.0 where n is 1)."""

    mean: float
    std: float = 0.0
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Metric:
        """Mean and spread of one value for each run (seed)."""
        import statistics

        numbers = [float(v) for v in values]
        spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return cls(statistics.fmean(numbers), spread, len(numbers))


@dataclass(frozen=True)
class Claim:
    """A statement with the rule that decides it, and what the run said."""

    id: str
    statement: str
    rule: str
    """In words: when does it hold?"""
    value: float
    against: float
    spread: float
    holds: bool | None
    """True, False, or None: undecided within the noise. Computed by the run, never typed."""


@dataclass(frozen=True)
class Data:
    """A data set that a number rests on."""

    name: str
    license: str
    size: str
    """For people, such as "5 images"."""


@dataclass(frozen=True)
class Results:
    """What a plugin's ``zoo_bench`` returns; the host adds command, commit, date and hardware."""

    table: Mapping[str, Mapping[str, Metric]]
    """Row name -> metric name -> number, in the order to print."""
    claims: Sequence[Claim] = ()
    data: Sequence[Data] = ()
    seeds: Sequence[int] = ()
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    """Metric name -> direction, for arrows in tables; metrics not named have none."""
    pictures: Sequence[str] = ()
    """File names under ``request.out``."""
