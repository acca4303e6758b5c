"""What ``zoo.load("lfa-photos")`` returns: the bridge of ``bridge.py`` between two encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from zoo import tables
from zoo.errors import InputError, MissingDependencyError, NotReadyError, OptionError, WeightsError
from zoo.hookspecs import BuildRequest
from zoo.interfaces import VLAligner
from zoo.isolation import isolated, learning
from zoo.tables import lines
from zoo.weights import atomic_file, load_tensors

from . import bridge
from .bridge import Bridge
from .features import (
    are_strings,
    distinct,
    labels_of,
    marginals_of,
    named_by,
    rows_of,
    table_of,
    unlabelled,
    warn_of,
)
from .lfa import unit
from .towers import ImageTower, TextTower, both

if TYPE_CHECKING:
    from zoo.progress import Progress

BUNDLED = ("w", "centre", "scale", "image_probe", "text_probe")
"""Tensors of the bundled map."""
LEARNED = ("mean", "texts", "prototypes", "fitted_scale")
"""Tensors that photos add: their mean, and for the fit's classes, what (20) and (21) made."""
SAME = 0.999
"""Cosine above which an encoder is the one of the fit: other precisions and files pass."""
SAME_TEXT = 1 - 1e-5
"""Cosine above which a text is one of the fit's classes."""
SENTENCE = "a photograph of a dog on a beach"
OPSET = 18


Learned: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""What photos add to the state, and the report."""


class Photos(VLAligner):
    """Free-text photo classification by an ImageNet classifier and a sentence encoder.

    They were never trained together: a linear map that was fitted on the classifier's last layer
    brings texts among images. It works at once; ``recentre`` and ``align`` learn from the user's
    photos, with or without labels. ``report`` says what a fit found.
    """

    kind = "photo-classifier"

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert request.folder is not None  # the entry has files
        self.image, self.text = both(request.bases, request.device)
        self._device = torch.device(request.device)
        file = request.folder / "model.safetensors"
        self._state = _checked(load_tensors(file), str(file))
        for tower, axis, name in ((self.image, 0, "image"), (self.text, 1, "text")):
            width = self._state["w"].shape[axis]
            if tower.width != width:
                raise WeightsError(
                    f"base {name}={request.bases[name].id}: its features have {tower.width} "
                    f"columns, the map of {self.entry.name} was fitted on {width}. {_usual(self)}"
                )
        for name, found in probes(self.image, self.text).items():
            if float(found @ self._state[f"{name}_probe"]) < SAME:
                raise WeightsError(
                    f"base {name}={request.bases[name].id} is another network than the one that "
                    f"the map of {self.entry.name} was fitted on. {_usual(self)}"
                )
        self._state = {name: tensor.to(self._device) for name, tensor in self._state.items()}

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From the bundled map or a saved folder, on the two bases of the request."""
        return cls(request)

    # --- state ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: str | torch.device) -> Self:
        self._device = torch.device(device)
        self.image.to(self._device)
        self.text.to(self._device)
        self._state = {name: tensor.to(self._device) for name, tensor in self._state.items()}
        return self

    def state(self) -> Mapping[str, Tensor]:
        """The map ``w`` (d_image,d_text), and what photos added; not the two encoders."""
        return {
            name: tensor.half() if name == "w" else tensor for name, tensor in self._state.items()
        }

    @property
    def bridge(self) -> Bridge:
        """The map and the mean text that it goes with."""
        return Bridge(self._state["w"], self._state["centre"])

    @property
    def temperature(self) -> float:  # type: ignore[override]  # each fit finds its own
        """What ``predict_proba`` divides cosines by: found in training, and again by ``align``."""
        return 1 / self._scale

    @property
    def _scale(self) -> float:
        return float(self._state.get("fitted_scale", self._state["scale"]))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.config.get("classes", ()))

    @property
    def report(self) -> Mapping[str, Any]:
        """What the last fit found: rows, whether the classes' names helped, the temperature."""
        found: Mapping[str, Any] = self.config.get("report", {})
        return found

    # --- learning from photos ---------------------------------------------------------------------

    @isolated()
    def recentre(self, photos: Any, *, progress: Progress = False) -> Self:
        """Replace the mean of the features by that of these photos, unlabelled; returns self.

        ``photos``: a folder (subfolders included), a list of images, or features (N,d_image). What
        all of them share then no longer favours a label. A few photos move the mean only a little
        (eq. 18). What ``align`` learned is dropped, as it was learned around another mean.
        """
        found, _ = self._photos(unlabelled(photos))
        mean = bridge.mean_of(self._features(found, progress))
        self._state = {k: v for k, v in self._state.items() if k not in LEARNED} | {"mean": mean}
        self.config = {
            **self.config,
            "classes": [],
            "report": {"rows": len(found), "kept": "recentred"},
            "recentred": True,
        }
        return self

    @learning()
    def align(  # type: ignore[override]  # options are spelled out
        self,
        images: Any,
        texts: Any = None,
        *,
        labels: Any = None,
        progress: Progress = False,
        unsupervised: bool = False,
        rounds: int = 5,
        marginals: Sequence[float] | None = None,
        features: str | Sequence[str] | None = None,
        label: str | None = None,
    ) -> Self:
        """Learn from photos of some classes; returns self.

        ``images``: a folder with one folder for each class, rows of images with texts or labels, a
        list of images, or features (N,d_image). ``texts``: strings, or embeddings (C,d_text).
        ``labels`` (N,): numbers into ``texts``, or the texts themselves; without them there is one
        text for each image. Texts for a folder are matched to its folders by name, or else by
        order. ``features``, ``label``: columns, where they have other names than usual.

        Logistic regression with a penalty on the distance from the prototypes of the classes'
        names (eq. 21), or from 0 if the names predict the labels worse than chance.
        ``unsupervised``: without labels, from a list or folder of photos; labels are guessed and
        learned ``rounds`` times, 0 to recentre only. Classes of equal size are assumed, or of the
        shares ``marginals`` (C,). The mean is updated too, unless ``recentre`` has set it. Texts
        that are no class of the fit are still mapped by the bridge.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
            raise OptionError(f"rounds={rounds!r}: expected a whole number, 0 or more.")
        if marginals is not None and not unsupervised:
            raise OptionError("marginals= is for unsupervised=True: with labels they are counted.")
        if unsupervised and labels is not None:
            raise OptionError("unsupervised=True takes no labels.")
        if isinstance(texts, str | Path):
            texts = lines(texts, "texts")
        images = unlabelled(images) if unsupervised else images
        found, table = self._photos(images, features, label)
        if table is not None and not unsupervised:
            texts, own = named_by(table, texts)
            labels = own if labels is None else labels
        if texts is None:
            raise InputError("texts are missing: strings, one for each class or photo.")
        if labels is None and not unsupervised:
            texts, labels = _classes_of(texts, len(found))
        y = self._embedded(texts)
        names = list(texts) if are_strings(texts) else []
        if len(y) < 2:
            raise InputError("there is one class only: nothing to tell apart.")
        shares = marginals_of(marginals, len(y))
        if unsupervised:
            if len(found) < len(y):
                raise InputError(
                    f"{len(found)} photos for {len(y)} classes: without labels expected at least "
                    "as many."
                )
            made = self._guessed(self._features(found, progress), y, rounds, shares)
        else:
            own_labels = labels_of(labels, len(found), names, len(y))
            notes = warn_of(y, own_labels, names)
            made = self._taught(self._features(found, progress), y, own_labels.to(self._device))
            made[1]["notes"] = notes
        state, report = made
        kept = {k: v for k, v in self._state.items() if k not in LEARNED}
        self._state = {**kept, **state, "texts": y}
        self.config = {**self.config, "classes": names, "report": report}
        return self

    def _mean(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self._state["mean"] if self.config.get("recentred") else bridge.mean_of(x, labels)

    def _taught(self, x: Tensor, y: Tensor, labels: Tensor) -> Learned:
        mean = self._mean(x, labels)
        x, z = bridge.centred(x, mean), bridge.prototypes(y, self.bridge)
        informed = bridge.informed(x, z, labels)
        start = z if informed else torch.zeros_like(z)
        learned = bridge.learn(x, start, labels)
        scale = bridge.calibrated(x, start, labels, float(self._state["scale"]))
        report = {
            "rows": len(x),
            "classes": len(y),
            "kept": "names and photos" if informed else "photos alone",
            "zero_shot": float(((x @ z.T).argmax(1) == labels).double().mean()),
            "scale": scale,
        }
        return self._with(mean, learned, scale), report

    def _guessed(self, x: Tensor, y: Tensor, rounds: int, shares: Tensor | None) -> Learned:
        mean, scale = self._mean(x, None), float(self._state["scale"])
        x, z = bridge.centred(x, mean), bridge.prototypes(y, self.bridge)
        learned = bridge.refine(x, z, rounds, shares)
        scale = bridge.as_sure(x, learned, z, scale)
        report = {
            "rows": len(x),
            "classes": len(y),
            "kept": "unsupervised" if rounds else "recentred",
            "changed": float(((x @ z.T).argmax(1) != (x @ learned.T).argmax(1)).double().mean()),
            "scale": scale,
        }
        return self._with(mean, learned, scale), report

    def _with(self, mean: Tensor, learned: Tensor, scale: float) -> dict[str, Tensor]:
        place = self._device
        return {
            "mean": mean,
            "prototypes": learned,
            "fitted_scale": torch.tensor([scale], dtype=torch.float32, device=place),
        }

    # --- use --------------------------------------------------------------------------------------

    @isolated()
    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """(N,M) float32 cosines in [-1,1] of photos, or features (N,d_image), and any texts."""
        x, z = self._images(images), self._prototypes(texts)
        return (x @ z.T).cpu().numpy()

    @isolated()
    def embed_images(self, images: Any) -> np.ndarray:
        """(N,d_image) float32 of unit norm: the features, normalised around their mean."""
        return self._images(images).cpu().numpy()

    @isolated()
    def embed_texts(self, texts: Any) -> np.ndarray:
        """(M,d_image) float32 of unit norm: where the map brings the texts (eq. 20); for a class of
        the last fit what its photos made of it (eq. 21)."""
        return self._prototypes(texts).cpu().numpy()

    def run_check(self, path: Path) -> Mapping[str, Tensor]:
        """``output``: (4,) similarities of the check photo to four texts."""
        texts = ["a cat", "a cup of coffee", "a rocket", "a beach"]
        return {"output": torch.from_numpy(self.similarity([path], texts)[0])}

    def export(  # type: ignore[override]  # options are spelled out
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        labels: Any = None,
        overwrite: bool = False,
    ) -> Path:
        """Write one ONNX file, pixels in, label probabilities out; returns the path.

        Input ``pixels``: uint8 (N,S,S,3), each photo's middle square scaled to S pixels; output
        ``probabilities`` (N,M), those of ``predict_proba`` to 1e-4. The image network is in the
        file, the sentence encoder is not: the texts are fixed. Metadata: ``labels`` (JSON),
        ``side`` (S). ``labels``: strings, or one with commas; default the classes of the fit.
        """
        path = Path(path)
        if format != "onnx" or path.suffix not in ("", ".onnx"):
            raise OptionError(
                f"{path.name!r} as format {format!r}: {self.entry.name} is exported to ONNX only, "
                "to a file that ends in .onnx."
            )
        if isinstance(labels, str):
            labels = [text.strip() for text in labels.split(",")]
        names = list(self.classes) if labels is None else labels
        if not are_strings(names) or len(names) < 2 or not all(names):
            raise NotReadyError(
                f"{self.entry.name} is exported with its labels: pass at least two, such as "
                "labels=['beach', 'dog'], or align it first."
            )
        graph = Graph(
            self.image.pixels,
            self._state.get("mean"),
            self._prototypes(names),
            self._scale,
        )
        told = {"model": self.entry.name, "labels": json.dumps(names), "side": str(self.image.side)}
        made = _onnx(graph, self.image.side, told)
        with atomic_file(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(made)
        return path

    # --- what comes in ----------------------------------------------------------------------------

    def _photos(
        self, images: Any, features: Any = None, label: Any = None
    ) -> tuple[Any, tables.Table | None]:
        """Features (N,d), or a list of images; and the table that they are from, if any."""
        table = table_of(images, features, label)
        if table is not None:
            images = table.array
            if images is None:
                return [table[i] for i in range(len(table))], table
        found = _numbers(images, "images")
        if found is not None:
            return rows_of(found, "image features", device=str(self._device))[:], table
        many = list(images) if isinstance(images, list | tuple) else [images]
        many = list(many[0]) if len(many) == 1 and getattr(many[0], "ndim", 0) == 4 else many
        if not many:
            raise InputError("images: there is nothing in the list.")
        return many, table

    def _features(self, photos: Any, progress: Progress = False) -> Tensor:
        """(N,d_image), not normalised."""
        x: Tensor = photos if isinstance(photos, Tensor) else self.image(photos, progress)
        if x.shape[1] != self.image.width:
            raise InputError(
                f"image features have {x.shape[1]} columns; the base's have {self.image.width}."
            )
        return x.clone()

    def _images(self, images: Any) -> Tensor:
        found, _ = self._photos(unlabelled(images))
        return bridge.centred(self._features(found), self._state.get("mean"))

    def _embedded(self, texts: Any) -> Tensor:
        """(M,d_text) unit rows."""
        found = _numbers(texts, "texts")
        if found is not None:
            y = unit(rows_of(found, "text features", device=str(self._device))[:])
            if y.shape[1] != self.text.width:
                raise InputError(
                    f"text features have {y.shape[1]} columns; the base's have {self.text.width}."
                )
            return y
        texts = [texts] if isinstance(texts, str) else texts
        if not are_strings(texts):
            raise InputError(
                "texts: expected strings, at least one, or embeddings (texts, columns)."
            )
        return self.text(texts)

    def _prototypes(self, texts: Any) -> Tensor:
        """(M,d_image) unit rows: by the bridge, or as the fit left a class."""
        y = self._embedded(texts)
        z = bridge.prototypes(y, self.bridge)
        if "prototypes" in self._state:
            cosine, which = (y @ self._state["texts"].T).max(1)
            known = cosine > SAME_TEXT
            z[known] = self._state["prototypes"][which[known]]
        return z


class Graph(nn.Module):
    """What is exported: (N,S,S,3) uint8 to probabilities (N,M)."""

    def __init__(self, pixels: nn.Module, mean: Tensor | None, z: Tensor, scale: float) -> None:
        super().__init__()
        self.pixels = pixels
        self.register_buffer("mean", mean)
        self.register_buffer("z", scale * z)

    def forward(self, pixels: Tensor) -> Tensor:
        """Photos' middle squares in, probabilities out."""
        x = self.pixels(pixels.permute(0, 3, 1, 2).float() / 255)
        mean, z = self.get_buffer("mean") if self.mean is not None else None, self.get_buffer("z")
        return (bridge.centred(x, mean) @ z.T).softmax(1)


def _onnx(graph: nn.Module, side: int, told: Mapping[str, str]) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it and says so less clearly)
    except ImportError as error:
        raise MissingDependencyError(
            "export needs onnx and onnxscript. Run: pip install 'edgezoo[export]'", name="onnx"
        ) from error
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        graph.cpu().eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("photos", min=1)}},
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(told))
    return bytes(model.SerializeToString())


def probes(image: ImageTower, text: TextTower) -> dict[str, Tensor]:
    """Each encoder's unit features of something fixed, by which it is known again."""
    ramp = torch.linspace(0, 1, image.side)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    waves = 0.5 + 0.5 * torch.sin(40 * rows * columns)
    picture = torch.stack([rows, columns, waves])
    return {
        "image": unit(image([picture]))[0].cpu(),
        "text": unit(text([SENTENCE]))[0].cpu(),
    }


def _usual(model: Photos) -> str:
    usual = ", ".join(f"{name}={spec.default}" for name, spec in model.entry.bases.items())
    return f"Its own bases are {usual}; zoo train {model.entry.name} fits a map on others."


def _checked(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a map in float32. Raises WeightsError for what is none."""
    lacking = [name for name in BUNDLED if name not in tensors]
    unknown = [name for name in tensors if name not in (*BUNDLED, *LEARNED)]
    if lacking or unknown:
        what = f"no {', '.join(lacking)}" if lacking else f"unknown {', '.join(unknown)}"
        raise WeightsError(f"{where} is not a map between two encoders: {what}.")
    made = {name: tensor.float() for name, tensor in tensors.items()}
    w = made["w"]
    wide, narrow = (w.shape[0], w.shape[1]) if w.ndim == 2 else (0, 0)
    classes = len(made.get("texts", ()))
    shapes = {
        "centre": (narrow,), "scale": (1,), "image_probe": (wide,), "text_probe": (narrow,),
        "mean": (wide,), "texts": (classes, narrow), "prototypes": (classes, wide),
        "fitted_scale": (1,),
    }  # fmt: skip
    faults = [n for n, shape in shapes.items() if n in made and tuple(made[n].shape) != shape]
    faults += [n for n, t in made.items() if not t.isfinite().all()]
    if not wide or faults:
        raise WeightsError(f"{where}: wrong shape or value: {', '.join(faults or ['w'])}.")
    return made


def _numbers(value: Any, what: str) -> Any:
    """Rows of numbers; None for images and texts."""
    found = tables.array(value, what)
    if found is None or found.ndim != 2:
        return None
    floating = found.is_floating_point() if isinstance(found, Tensor) else found.dtype.kind == "f"
    return found if floating else None


def _classes_of(texts: Any, rows: int) -> tuple[Any, Any]:
    """Classes and labels of one text for each image: equal texts are one class."""
    if len(texts) != rows:
        raise InputError(
            f"{rows} images and {len(texts)} texts: expected one text for each image, or labels; "
            "unsupervised=True learns without labels."
        )
    if are_strings(texts):
        return distinct(texts)
    found = _numbers(texts, "texts")
    if found is None:
        raise InputError("texts: expected strings, or embeddings (texts, columns).")
    y, inverse = np.unique(np.asarray(found), axis=0, return_inverse=True)
    return y, inverse.reshape(-1)
