"""What a user can do with a model: ``Model``, six interfaces, their arguments and results.

An interface holds the few verbs that every method of its kind shares; a method's extras are
ordinary methods and keyword options of its own class. Rules for all verbs:

* One in, one out; a list in, a list out.
* Images come back as they went in: path or PIL in, PIL out; HWC uint8 numpy, the same; float CHW or
  NCHW tensor in [0, 1], the same. ``zoo.images`` does this for a plugin in one call.
* A long-running verb has ``progress``: False, True (a bar on stderr), or a callable
  ``progress(done: int, total: int)``. A verb that uses randomness has ``seed``: the same seed gives
  the same result on the same machine.
* Arguments are not modified. A verb prints nothing and opens no connection.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from .errors import MissingDependencyError, NotReadyError, PluginError
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
    """Name of the interface, or None for a saved object that has none of the six."""
    kind: ClassVar[str] = "model"
    """The plugin's own word for what a saved folder holds: ``model``, ``reader``, ``quantized``."""

    entry: Entry
    """The registry entry this model was built from."""
    options: Mapping[str, Any]
    """The load options in force, defaults included."""
    config: Mapping[str, Any]
    """Constructor arguments of the network, from which a saved folder rebuilds it."""
    source: str
    """Where the weights came from: ``bundled``, ``cache``, ``hub``, ``folder`` or ``none``."""
    bases: Mapping[str, Base]
    """Name -> the base that it works on; without a folder if it is gone and not needed."""
    module: torch.nn.Module | None = None

    def __init__(self, request: Any) -> None:
        """``request``: a BuildRequest, or the model that this one is made from (a reader from its
        generator, a quantized model from its quantizer) and under whose entry it is saved.
        """
        self.entry = request.entry
        self.options = dict(request.options)
        self.config = dict(request.config)
        made_from = request if isinstance(request, Model) else None
        self.source = made_from.source if made_from else "none"
        self.bases = dict(request.bases)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
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

        The folder is complete or absent. Raises OutputError if something is already there;
        ``overwrite`` replaces a saved folder, never anything else.
        """
        from .weights import save_model

        return save_model(self, Path(path), overwrite=overwrite)

    def save_files(self, folder: Path) -> None:  # noqa: B027 - most models have nothing to add
        """Write what ``save_pretrained`` keeps besides the tensors (JSON, safetensors)."""

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
        """Write the model in a format for other runtimes, if the method supports it."""
        raise NotReadyError(f"{self.entry.name} cannot be exported to {format!r}.")

    def export_report(self, path: str | Path) -> Sequence[str]:
        """Lines that compare an exported file with this model, if the method can."""
        return ()

    def estimate(self, *args: Any, **options: Any) -> Estimate:
        """The cost of a run on this input, estimated without running it, if the method can."""
        raise NotReadyError(f"{self.entry.name} gives no estimate.")

    def run_check(self, path: Path) -> Mapping[str, torch.Tensor]:
        """What ``zoo verify`` compares: the outputs, by name, for the entry's check input."""
        raise NotReadyError(f"{self.entry.name} has no check.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.entry.name!r} on {self.device}>"


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run."""

    evaluations: int
    """Forward passes of the network (tiles)."""
    flops: float
    """Floating-point operations in total; a multiply-add counts as two."""
    memory: int
    """Peak bytes of activations and working arrays, beyond weights and the result itself."""
    seconds: float
    """Rough time on this machine and device."""
    notes: tuple[str, ...] = ()
    """What else can be told beforehand, a line each."""


# --- super-resolution -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleRange:
    """``SRModel.scales`` of a method with any scale from ``min`` to ``max``."""

    min: float
    max: float
    default: float

    def __contains__(self, scale: object) -> bool:
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            return False
        return self.min <= scale <= self.max

    def __str__(self) -> str:
        return f"{self.min:g} to {self.max:g}"


class SRModel(Model):
    """Enlarges images.

    ``estimate(size)`` is the cost of enlarging an image of ``size`` (height, width) in input
    pixels. A method that can also make images from a prompt alone has a separate verb for this,
    ``generate``.
    """

    interface = "SRModel"

    @property
    @abc.abstractmethod
    def scales(self) -> tuple[int, ...] | ScaleRange:
        """Magnifications that these weights support: integers, or a continuous range.

        Test with ``scale in model.scales``; print with ``str``; the default is ``default_scale``.
        """

    @property
    def default_scale(self) -> int | float:
        """The scale of ``upscale(scale=None)``: the first of ``scales``, or their ``default``."""
        return self.scales.default if isinstance(self.scales, ScaleRange) else self.scales[0]

    @property
    def multiple(self) -> int:
        """Sides of a tile must be a multiple of this many input pixels; images may have any
        size."""
        return 1

    @property
    def tile(self) -> int | None:
        """Side in input pixels of the tile that ``tile="auto"`` uses; None if it never tiles."""
        return None

    @abc.abstractmethod
    def upscale(
        self,
        images: Images,
        *,
        scale: int | float | None = None,
        prompt: str | None = None,
        seed: int = 0,
        tile: int | Literal["auto"] | None = "auto",
        progress: Progress = False,
    ) -> Any:
        """Enlarge images; the result is of the input's kind and scale times as large.

        ``scale``: any of ``scales``, else OptionError (None: ``default_scale``); if it is not an
        integer, each side of the result is ``round(side * scale)``, at least 1. ``prompt``: text
        that guides the method, if it accepts one (else OptionError). ``tile``: side of a tile in
        input pixels, "auto" for the model's own choice, None for a single evaluation of the whole
        image. Alpha is enlarged with the colours; greyscale stays greyscale. Raises InputError for
        unusable images.
        """

    def run_check(self, path: Path) -> Mapping[str, torch.Tensor]:
        """``output``: (3, H, W) in [0, 1], the check image, enlarged with default options."""
        from .images import read, to_tensor

        return {"output": self.upscale(to_tensor(read(path)))}


# --- vision-language alignment --------------------------------------------------------------------


class VLAligner(Model):
    """Brings images and texts into one space, or makes a model prefer the right text."""

    interface = "VLAligner"

    temperature: float = 1.0
    """The divisor of similarities in ``predict_proba``: small for cosines."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The texts of a fit with labels, in the order of the labels; () if there are none."""
        return ()

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

        ``images`` and ``texts``: raw images and strings, or float arrays (N, d_image) and (M,
        d_text) of features; a kind that the method does not support raises InputError. A method for
        raw images also accepts rows for ``zoo.tables.read`` as ``images`` alone: a folder with one
        folder for each class, a JSONL file of image and text, ... ``labels``: (N,) indices into
        ``texts``, if there is not one text for each image.
        """

    @abc.abstractmethod
    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """(N, M) float32, higher is better; raw inputs or features, as in ``align``."""

    def predict_proba(self, images: Any, texts: Any = None) -> np.ndarray:
        """(N, M) float32: softmax of ``similarity / temperature`` over the texts, default
        ``classes``.

        Each row sums to 1. Raises NotReadyError if there are neither texts nor classes.
        """
        import numpy as np

        if texts is None and not self.classes:
            raise NotReadyError(f"{self.entry.name} was not fitted on classes: pass texts.")
        found = self.similarity(images, list(self.classes) if texts is None else texts)
        scores = found.astype(np.float64) / self.temperature
        raised = np.exp(scores - scores.max(1, keepdims=True))
        return (raised / raised.sum(1, keepdims=True)).astype(np.float32)

    def embed_images(self, images: Any) -> np.ndarray:
        """(N, d) float32 of unit norm, if the method has embeddings."""
        raise NotReadyError(f"{self.entry.name} has no image embeddings; use similarity().")

    def embed_texts(self, texts: Any) -> np.ndarray:
        """(M, d) float32 of unit norm, if the method has embeddings."""
        raise NotReadyError(f"{self.entry.name} has no text embeddings; use similarity().")


# --- quantization ---------------------------------------------------------------------------------


class QuantizedModel(Model):
    """The result of ``Quantizer.quantize``: called like the original; can be saved and published.

    ``interface`` stays None: a quantized model does what its original does.
    """

    kind = "quantized"

    tokenizer: Any = None
    """The original's tokenizer (of transformers), or None; it is saved with the weights."""

    @property
    def source_model(self) -> Mapping[str, Any]:
        """The model that was quantized; plugins store it in ``config``, so that it is saved.

        ``id``: Hub id, folder, or class of a module; ``revision``: the Hub's commit, or None;
        ``license``: as the original states it, or None. A plugin may add to it.
        """
        source: Mapping[str, Any] = self.config["source_model"]
        return source

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer's files; a subclass with more files calls this first."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the original, same arguments and outputs."""

    @abc.abstractmethod
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The original's generation, same arguments and outputs."""

    @abc.abstractmethod
    def report(self) -> Mapping[str, Any]:
        """JSON-like. ``bytes_before``: all weights of the original; ``bytes_after``: all that
        ``save_pretrained`` writes of them; ``layers``: name -> bit widths and the calibration's
        error. Optional: ``summary``, lines for people on how good it is, and ``notes``, remarks
        that they should read; a method may add more.
        """


class Quantizer(Model):
    """Quantizes a language model to a few bits."""

    interface = "Quantizer"

    @property
    @abc.abstractmethod
    def schemes(self) -> tuple[str, ...]:
        """Weight and activation bits that ``quantize`` supports, such as ``("w8a8", "w4a16")``; the
        first is the default.
        """

    @abc.abstractmethod
    def quantize(
        self,
        model: Any,
        calibration: Any = None,
        *,
        scheme: str | None = None,
        tokenizer: Any = None,
        seed: int = 0,
        progress: Progress = False,
    ) -> QuantizedModel:
        """Quantize a causal language model (Hub id, folder, or the module itself).

        ``calibration``: texts, or (N, T) token ids; None: zoo's short texts (``zoo.calibration``).
        ``tokenizer``: of transformers, for the texts, and saved with the result; None: the one next
        to the model. Texts without a tokenizer raise InputError. ``scheme``: one of ``schemes``,
        else OptionError; None: the first. The given model keeps its weights, modes and hooks. The
        result is in eval mode.
        """


# --- data selection -------------------------------------------------------------------------------


class DataSelector(Model):
    """Learns which training examples deserve weight."""

    interface = "DataSelector"

    @property
    def ids(self) -> Sequence[Any] | None:
        """(N,) ids of the rows of ``train``, after ``fit`` on rows with ids; else None."""
        return None

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

        ``train`` and ``target``: sources for ``zoo.tables.read``; ``target`` may be None where the
        method can do without. ``model``: a torch module to train with the weights; ``loss``:
        (output, batch) -> (B,) losses, one for each example. Returns self, fitted.
        """

    @property
    @abc.abstractmethod
    def weights(self) -> np.ndarray:
        """(N,) float32 in [0, 1], in the order of ``train``."""

    @abc.abstractmethod
    def select(self, *, fraction: float | None = None, k: int | None = None) -> np.ndarray:
        """(k,) int64 indices into ``train``, heaviest first, ties by index. Give one of fraction
        and k; with neither, as many as the method estimates, or OptionError if it has no estimate.
        """


# --- detection ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image."""

    boxes: np.ndarray
    """(N, 4) float32, x1 y1 x2 y2 in pixels of the given image; x to the right, y down."""
    scores: np.ndarray
    """(N,) float32 in [0, 1], descending."""
    labels: np.ndarray
    """(N,) int64 into ``names``."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def to_supervision(self) -> Any:
        """These detections as ``supervision.Detections``, for its annotators, trackers and metrics.

        Raises MissingDependencyError if supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingDependencyError(
                'to_supervision() needs supervision. Run: pip install "edgezoo[supervision]"',
                name="supervision",
            ) from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)[self.labels]},
        )

    def to_coco(
        self, image_id: int | str, categories: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Records as in a COCO results file: ``image_id, category_id, bbox, score``.

        ``bbox`` is x, y, width, height in pixels. ``categories``: name -> COCO id; names without
        one are left out. None: ``names`` are numbered from 1.
        """
        if categories is None:
            categories = {name: number for number, name in enumerate(self.names, 1)}
        found = []
        for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True):
            if (category := categories.get(self.names[label])) is not None:
                x1, y1, x2, y2 = (float(side) for side in box)
                found.append(
                    {
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": float(score),
                    }
                )
        return found


class Detector(Model):
    """Finds objects; may also learn from images without labels, and from few with labels."""

    interface = "Detector"

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The classes that it finds, as in the ``names`` of its ``Detections``."""

    @abc.abstractmethod
    def detect(self, images: Images, *, threshold: float | None = None) -> Any:
        """``Detections`` for an image, a list of them for a list; no scores below ``threshold``
        (None: the model's own choice).

        Raises OptionError for a threshold outside [0, 1], InputError for unusable images.
        """

    def pretrain(
        self,
        images: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress = False,
    ) -> Mapping[str, Any]:
        """Learn from a list of images without labels, if the method can; returns a JSON-like
        report.

        ``epochs`` or ``steps``: how long, at least 1, not both (OptionError); None: the method's
        own choice.
        """
        raise NotReadyError(f"{self.entry.name} does not learn from images without labels.")

    def finetune(
        self,
        images: Any,
        labels: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress = False,
    ) -> Self:
        """Learn from labelled images, if the method can; returns self.

        ``labels``: one ``Detections`` for each image of a list; or a COCO JSON, a folder of VOC
        XML, or a YOLO folder or ``data.yaml``, and then ``images`` is the image folder, or None if
        the annotations contain the paths (``zoo.annotations.pairs`` reads all of these). Afterwards
        ``names`` are the labels' names. ``epochs``, ``steps``: as in ``pretrain``.
        """
        raise NotReadyError(f"{self.entry.name} cannot be fine-tuned.")


# --- question-answer generation -------------------------------------------------------------------


@dataclass(frozen=True)
class QAPair:
    """One question with its answer, and what it was made from."""

    question: str
    answer: str
    nodes: tuple[str, ...] = ()
    """Ids of the graph's nodes that the question is about."""
    kind: str = ""
    """The question's type, in the method's own words, such as ``duration``."""
    edge: int | None = None
    """Index of the edge that the question is about in the graph's ``edges``, or None."""
    step: int | None = None
    """The step of the procedure that it is about, from 0; None if it is not about a single step."""
    start: int | None = None
    end: int | None = None
    """``text[start:end] == answer``; both None if the answer is not in the text."""


@dataclass(frozen=True)
class QASet:
    """Questions about one text."""

    pairs: tuple[QAPair, ...]
    graph: Mapping[str, Any] = field(default_factory=dict)
    """``{"nodes": [{"id", "text", "kind"}], "edges": [{"source", "target", "role"}]}``."""
    coverage: float = 0.0
    """Share of the graph's nodes that at least one pair is about, in [0, 1]."""
    text: str = ""
    """The given text."""

    def __len__(self) -> int:
        return len(self.pairs)

    def to_squad(self, title: str = "") -> dict[str, Any]:
        """A document of SQuAD 1.1 with one article; pairs whose answer is not in the text are left
        out.

        To put several into one file, join the lists under ``data``.
        """
        import hashlib

        about = hashlib.sha256(self.text.encode())  # once: texts may be long
        questions = []
        for pair in self.pairs:
            if pair.start is not None:
                key = about.copy()
                key.update(f"\0{pair.question}\0{pair.answer}".encode())
                questions.append(
                    {
                        "id": key.hexdigest()[:24],
                        "question": pair.question,
                        "answers": [{"text": pair.answer, "answer_start": pair.start}],
                    }
                )
        paragraph = {"context": self.text, "qas": questions}
        return {"version": "1.1", "data": [{"title": title, "paragraphs": [paragraph]}]}


class QAGenerator(Model):
    """Makes questions and answers from a procedure's graph, and trains readers on them."""

    interface = "QAGenerator"

    @abc.abstractmethod
    def generate(self, text: str | Sequence[str], *, seed: int = 0) -> Any:
        """A ``QASet`` with the questions that the text's graph supports; a list for a list.

        All questions differ. Raises InputError for anything but text.
        """

    @abc.abstractmethod
    def train_reader(
        self, qa: Sequence[QASet], *, seed: int = 0, progress: Progress = False
    ) -> Any:
        """Train a reader: a ``Model`` with ``answer(question, text) -> str``, saved like any model.

        Raises InputError if there are no questions.
        """

    @abc.abstractmethod
    def answer(self, question: str, text: str) -> str:
        """Answer with the bundled reader."""

    def illustrate(self, qa: QASet, folder: Path, *, title: str = "") -> Sequence[Path]:
        """Write what people look at, such as a picture of the graph, to an existing folder; returns
        the files. Methods may have nothing to add.
        """
        return ()


INTERFACES: Mapping[str, type[Model]] = {
    cls.__name__: cls
    for cls in (SRModel, VLAligner, Quantizer, DataSelector, Detector, QAGenerator)
}


def verbs(interface: str) -> tuple[str, ...]:
    """The verbs that an interface adds to ``Model``, including those that a method may lack."""
    return tuple(
        name
        for name, member in vars(INTERFACES[interface]).items()
        if callable(member) and not name.startswith("_") and not hasattr(Model, name)
    )


# --- results of a benchmark -----------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A measured number: mean and sample standard deviation over n runs (std 0.0 if n is 1)."""

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
    """A statement with the rule that decides it, and the outcome of the run."""

    id: str
    statement: str
    rule: str
    """In words: when it holds."""
    value: float
    against: float
    spread: float
    """Standard error of the difference or ratio; 0.0 for a single run."""
    holds: bool | None
    """True, False, or None: undecided within the noise. Computed by the run, never typed."""
    compares: Mapping[str, Any] | None = None
    """What ``zoo.experiment`` compared, so that the cells can decide the claim again; None for
    other claims."""


@dataclass(frozen=True)
class Data:
    """A data set that was measured on."""

    name: str
    license: str
    size: str
    """In words, such as "5 images"."""


@dataclass(frozen=True)
class Results:
    """What a plugin's ``zoo_bench`` returns; the host adds command, commit, date and hardware."""

    table: Mapping[str, Mapping[str, Metric]]
    """Row name -> metric name -> number, in the order to print."""
    claims: Sequence[Claim] = ()
    data: Sequence[Data] = ()
    seeds: Sequence[int] = ()
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    """Metric name -> direction, for arrows in tables; others have none."""
    pictures: Sequence[str] = ()
    """File names under ``request.out``."""
    cells: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Row name -> metric name -> seed or test item -> number, if they were kept."""
    part: str = ""
    """Of a benchmark that is measured in parts: which one, in small letters. The record of a part
    is ``results-PART.json``; measuring it again leaves the others as they are."""
