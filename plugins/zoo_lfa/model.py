"""What ``zoo.load("lfa")`` returns: the method of ``lfa.py`` behind the interface ``VLAligner``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from zoo.errors import (
    InputError,
    MissingDependencyError,
    NotReadyError,
    OptionError,
    WeightsError,
)
from zoo.hookspecs import BuildRequest
from zoo.interfaces import VLAligner
from zoo.isolation import isolated, learning
from zoo.progress import track
from zoo.tables import lines
from zoo.weights import atomic_file, load_tensors, save_tensors

from . import lfa
from .encoder import TEMPLATES, Encoder
from .features import (
    POOLS,
    Stream,
    are_strings,
    by_chance,
    distinct,
    ensemble,
    labels_of,
    marginals_of,
    named_by,
    numbers,
    rows_of,
    table_of,
    unlabelled,
    warn_of,
)

if TYPE_CHECKING:
    from zoo.progress import Progress

    from .classifier import LFAClassifier

FORMATS = ("onnx", "safetensors")
TENSORS = ("w", "mean", "text_mean", "prototypes")


class LFA(VLAligner):
    """One linear map from image features to text features, fitted on a few images.

    Works on plain features, so on any pair of encoders, those behind an API included; with
    ``base=`` (an open_clip checkpoint) also on images and texts. Before ``align`` the map is the
    identity: zero-shot, where both features have the same width. ``report`` says what a fit chose.
    """

    kind = "aligner"

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        self._device = _place(request.device)
        if wrong := [name for name in ("image", "text") if name in request.bases]:
            raise OptionError(
                f"the base {wrong[0]!r} is for zoo bench {request.entry.name}. Its own, for images "
                "and texts, is an open_clip model: base='org/name'."
            )
        base = request.bases.get("clip")
        self._base = base.folder if base else None
        self._encoder: Encoder | None = None
        self._state: dict[str, Tensor] = {}
        file = request.folder / "model.safetensors" if request.folder else None
        if file is not None and file.is_file():
            self._restore(load_tensors(file), str(file))

    @classmethod
    def build(cls, request: BuildRequest) -> Self:
        """From a registry entry (nothing fitted yet) or a saved folder."""
        return cls(request)

    # --- state ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: str | torch.device) -> Self:
        self._device = _place(device)
        self._state = {name: tensor.to(self._device) for name, tensor in self._state.items()}
        if self._encoder is not None:
            self._encoder.model.to(self._device)
            self._encoder.device = str(self._device)
        return self

    def state(self) -> Mapping[str, Tensor]:
        """``w`` (d_x,d_y) float32, and what a fit made beside it; empty before ``align``."""
        return self._state

    def _restore(self, tensors: Mapping[str, Tensor], where: str) -> None:
        unknown = [name for name in tensors if name not in TENSORS]
        w = tensors.get("w")
        if w is None or unknown:
            what = f"unknown tensors {', '.join(unknown)}" if unknown else "no tensor 'w'"
            raise WeightsError(f"{where} is not a map of {self.entry.name}: {what}.")
        wide_x, wide_y = (*w.shape, 0, 0)[:2]
        shapes = {"mean": (wide_x,), "text_mean": (wide_y,)}
        faults = [] if w.ndim == 2 else ["w"]
        faults += [n for n, shape in shapes.items() if n in tensors and tensors[n].shape != shape]
        if "prototypes" in tensors and tensors["prototypes"].shape[1:] != (wide_y,):
            faults.append("prototypes")
        faults += [
            n for n, t in tensors.items() if not t.is_floating_point() or not t.isfinite().all()
        ]
        if faults:
            raise WeightsError(f"{where}: wrong shape, type or value: {', '.join(faults)}.")
        self._state = {name: tensor.float().to(self._device) for name, tensor in tensors.items()}

    @property
    def w(self) -> np.ndarray | None:
        """The map (d_x,d_y), or None before ``align``. ``x' = x @ w`` on rows of unit norm, centred
        where the encoders never met."""
        return self._state["w"].cpu().numpy() if "w" in self._state else None

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit chose and found: ``kept``, ``blend``, ``beta``, ``scale``, ``zero_shot``
        and ``validated`` accuracy on held-out rows of the support set, ``seconds``."""
        found: Mapping[str, Any] = self.config.get("report", {})
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """The words of the fit's classes; () where they have none."""
        return tuple(map(str, self.config.get("classes", ())))

    @property
    def classes_(self) -> np.ndarray:
        """(C,) what ``predict`` answers with: the names of the fit's classes, or their numbers."""
        named = self.config.get("classes")
        return np.asarray(named) if named else np.arange(len(self._prototypes()))

    @property
    def temperature(self) -> float:  # type: ignore[override]  # what the fit found
        """What ``predict_proba`` divides cosines by: one over the scale that the fit found."""
        return 1 / float(self.report.get("scale", lfa.SCALE))

    # --- fitting ----------------------------------------------------------------------------------

    @learning()
    def align(  # type: ignore[override]  # options are spelled out
        self,
        images: Any,
        texts: Any = None,
        *,
        labels: Any = None,
        classes: Sequence[str] | Sequence[int] | None = None,
        progress: Progress = False,
        unsupervised: bool = False,
        beta: float | None = None,
        iterations: int = 100,
        loss: str | None = None,
        k: int = 3,
        s: float = 4.0,
        safe: bool = True,
        met: bool | None = None,
        pool: str = "mean",
        rounds: int = 5,
        marginals: Sequence[float] | None = None,
        seed: int = 0,
        features: str | Sequence[str] | None = None,
        label: str | None = None,
    ) -> Self:
        """Fit the map on a few images and the texts of their classes; returns self.

        ``images``: features (N,d) or, as frames or crops, (N,T,d): numpy, torch, lists, or what
        ``zoo.tables.read`` takes (a ``.npy`` file, mapped, safetensors, CSV, parquet, a DataFrame),
        whose column of labels or texts is used; with a base also raw images, a folder with one
        folder for each class (``texts`` are matched to these by name, or else by order), or rows
        such as JSONL's with image and text. ``features``, ``label``:
        columns, where they have other names than usual. ``texts``: features (C,d) or, for T
        templates, (C,T,d), or strings. ``classes``: (C,) names for features of texts. ``labels``:
        (N,) numbers into ``texts``, or names of classes; without labels there is one text for each
        image. The length of a row does not matter.

        ``unsupervised``: no labels; classes are guessed by optimal transport (balanced, or with
        ``marginals`` (C,)) and refined ``rounds`` times. ``iterations``: steps of the refinement, 0
        for the closed forms alone. ``loss``: rerank (with ``k`` and ``s`` of the paper) or
        contrastive; None tries both. ``beta``: 0 starts the refinement from the closed form, 1 from
        zero-shot; None validates it. ``safe``: choose among zero-shot, ridges, closed form and
        refined maps by validation on the support set, and keep zero-shot where nothing is clearly
        better (it does nothing with ``unsupervised``, where there is nothing to validate on).
        ``met``: were the encoders trained together? By default this is assumed of equal widths. If
        they were not, both sides are centred, and a ridge takes the place of zero-shot. ``pool`` of
        (N,T,d): mean, max, or crops (the last is the centre, and what the fitted model looks at);
        it is kept for the verbs that follow. Raises InputError naming the rows that are wrong.
        """
        iterations, k, seed = _whole("iterations", iterations), _whole("k", k), _whole("seed", seed)
        if _whole("rounds", rounds) < 0:
            raise OptionError(f"rounds={rounds}: expected 0 or more.")
        recipe = _recipe(beta, iterations, loss, k, s, safe, seed)
        _choice("pool", pool, POOLS)
        if marginals is not None and not unsupervised:
            raise OptionError("marginals= is for unsupervised=True: with labels they are counted.")
        names: list[Any] = []
        if isinstance(texts, str | Path) and numbers(texts, "texts") is None:
            texts = lines(texts, "texts")
        images = unlabelled(images) if unsupervised else images
        table, array = table_of(images, features, label), None
        if table is not None and not unsupervised:
            texts, own = named_by(table, texts)
            labels = own if labels is None else labels
        if table is not None:
            array = table.array
            images = [table[i] for i in range(len(table))] if array is None else array
        if texts is None:
            raise InputError("texts are missing: features (classes, columns), or strings.")
        if are_strings(texts):
            names = list(texts)
        x = self._image_rows(images, pool)
        classes_given = unsupervised or labels is not None
        y, labels = self._text_rows_and_labels(texts, labels, len(x), unsupervised, classes)
        if classes is not None:
            names = [c.item() if isinstance(c, np.generic) else c for c in classes]
        if unsupervised and x.shape[-1] != y.shape[1]:
            raise InputError(
                f"image features have {x.shape[-1]} columns, text features {y.shape[1]}: without "
                "labels a fit starts from zero-shot, which encoders that never met do not have. "
                "Pass labels."
            )
        state = _centres(x, y, met)
        recipe = replace(recipe, met=not state)
        if unsupervised and state:
            raise OptionError("unsupervised=True starts from zero-shot: not with met=False.")
        x, y = _in_memory(_centred(x, state.get("mean"))), _centred(y, state.get("text_mean"))
        if len(y) < 2:
            raise InputError("there is one class only: nothing to tell apart.")
        notes: list[str] = []
        if unsupervised:
            weights = marginals_of(marginals, len(y))
            if len(x) < len(y):
                raise InputError(
                    f"{len(x)} images for {len(y)} classes: without labels expected at least as "
                    "many."
                )
            with track(max(1, rounds * iterations), progress, "align") as advance:
                made = lfa.fit_unsupervised(
                    x[:], y, recipe, rounds=rounds, marginals=weights, step=advance
                )
        else:
            assert labels is not None
            labels = labels.to(x.device)
            notes = warn_of(y, labels, names)
            if recipe.met and by_chance(x, y, labels):
                notes.append(
                    "Zero-shot is no better than chance on these examples. If the two encoders "
                    "were not trained together, pass met=False."
                )
            with track(lfa.steps_of(recipe), progress, "align") as advance:
                made = lfa.fit(x, y, labels, recipe, advance)
        state["w"] = made.w
        if classes_given or len(y) < len(x):  # N pairs, no two alike, are no classes
            state["prototypes"] = y
        self._state = {name: tensor.contiguous() for name, tensor in state.items()}
        if len(names) != len(y):  # one text for each image
            names = list(dict.fromkeys(names))
        self.config = {
            **self.config,
            "report": {**made.report, "notes": notes, "seed": seed},
            "classes": names if "prototypes" in state else [],
            "encoder": self._encoder.digest if self._encoder else None,
            "pool": pool,
            "columns": list(table.columns) if table is not None and array is not None else [],
        }
        return self

    def _text_rows_and_labels(
        self,
        texts: Any,
        labels: Any,
        rows: int,
        unsupervised: bool,
        classes: Sequence[Any] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Text features (C,d) and labels (N,); of pairs, equal texts become one class."""
        if classes is not None and labels is None:
            raise OptionError("classes= names what labels= refers to: pass labels too.")
        if unsupervised:
            if labels is not None:
                raise OptionError("unsupervised=True takes no labels.")
            return self._text_rows(texts), None
        if labels is not None:
            y = self._text_rows(texts)
            names = list(texts) if are_strings(texts) else []
            if classes is not None:
                names = list(classes)
                if len(names) != len(y) or len({*names}) < len(names):
                    raise InputError(
                        f"classes: {len(names)} names for {len(y)} texts; expected one for each, "
                        "all different."
                    )
            return y, labels_of(labels, rows, names, len(y))
        array = numbers(texts, "texts")
        count = len(array) if array is not None else len(texts)
        if count != rows:
            raise InputError(
                f"{rows} images and {count} texts: expected one text for each image, or labels; "
                "unsupervised=True fits without labels."
            )
        if array is None and are_strings(texts):
            known, own = distinct(texts)
            return self._text_rows(known), torch.tensor(own)
        y, inverse = torch.unique(self._text_rows(texts), dim=0, return_inverse=True)
        return y, inverse.cpu()

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        texts: Any = None,
        classes: Sequence[str] | Sequence[int] | None = None,
        **options: Any,
    ) -> Self:
        """``align`` in the words of scikit-learn: images X, labels y; returns self.

        ``texts``: features or strings, one for each class; without them ``classes`` are the texts,
        and without these the labels themselves. ``options``: those of ``align``.
        """
        given = y.tolist() if hasattr(y, "tolist") else y
        if texts is None and (classes is not None or are_strings(given)):
            texts = sorted({*given}) if classes is None else classes
        return self.align(X, texts, labels=y, classes=classes, **options)

    def estimator(
        self,
        texts: Any = None,
        classes: Sequence[str] | Sequence[int] | None = None,
        **options: Any,
    ) -> LFAClassifier:
        """This model as an estimator of scikit-learn, for ``Pipeline``, ``cross_val_score``, ...

        ``texts``, ``classes``: as ``fit`` takes them; ``options``: see ``LFAClassifier``.
        """
        try:
            from .classifier import LFAClassifier
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "an estimator needs scikit-learn. Run: pip install scikit-learn", name="sklearn"
            ) from error
        return LFAClassifier(self, texts, classes, **options)

    # --- use --------------------------------------------------------------------------------------

    @isolated()
    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """(N,M) float32 cosines in [-1,1]; raw inputs or features, as ``align`` takes them."""
        return self._similar(images, self._texts_in(texts))

    def _similar(self, images: Any, y: Tensor) -> np.ndarray:
        """The same for texts as they are compared."""
        x = self._images_in(images)
        if "w" not in self._state and x.shape[1] != y.shape[1]:
            raise InputError(
                f"image features have {x.shape[1]} columns, text features {y.shape[1]}, and "
                "nothing is fitted. Call align(images, texts, labels=...) first."
            )
        out = np.empty((len(x), len(y)), np.float32)
        for part in lfa.chunks(len(x)):
            out[part] = (self._mapped(x[part]) @ y.T).cpu().numpy()
        return out

    @isolated()
    def embed_images(self, images: Any) -> np.ndarray:
        """(N,d) float32 of unit norm: norm(xW)."""
        x = self._images_in(images)
        made = [self._mapped(x[part]).cpu().numpy() for part in lfa.chunks(len(x))]
        return np.concatenate(made)

    @isolated()
    def embed_texts(self, texts: Any) -> np.ndarray:
        """(M,d) float32 of unit norm: the texts are not changed."""
        return self._texts_in(texts).cpu().numpy()

    @isolated()
    def predict_proba(
        self, images: Any, texts: Any = None, *, temperature: float | None = None
    ) -> np.ndarray:
        """(N,C) float32, rows summing to 1: softmax of the cosines over ``texts``, by default those
        of the fit, at the temperature that the fit found or another."""
        divisor = self.temperature if temperature is None else temperature
        if not _number(divisor) or not divisor > 0:
            raise OptionError(f"temperature={temperature!r}: expected a positive number.")
        y = self._prototypes() if texts is None else self._texts_in(texts)
        scores = self._similar(images, y)
        for part in lfa.chunks(len(scores)):
            scores[part] = torch.from_numpy(scores[part] / divisor).softmax(1).numpy()
        return scores

    @isolated()
    def predict(self, images: Any) -> np.ndarray:
        """(N,) the likeliest of ``classes_`` for each row."""
        scores = self._similar(images, self._prototypes())
        found: np.ndarray = self.classes_[scores.argmax(1)]
        return found

    def score(self, images: Any, labels: Any) -> float:
        """Share of the rows whose label ``predict`` gives."""
        known = {value: i for i, value in enumerate(self.classes_.tolist())}
        names = list(known) if self.config.get("classes") else []
        found = self.predict(images)
        truth = labels_of(labels, len(found), names, len(known))
        return float(np.mean([known[value] for value in found.tolist()] == truth.numpy()))

    @isolated()
    def fold(self, texts: Any = None) -> np.ndarray:
        """(C,d_x) float32: the texts with the map in them, for a server that is there already.

        ``argmax(x @ fold(texts).T + bias)`` on image features x of unit norm is this model's
        answer; ``bias`` is ``-fold(texts) @ mean`` where the fit centred the images, else 0. The
        folded rows are not of unit norm, on purpose.
        """
        y = self._prototypes() if texts is None else self._texts_in(texts)
        return (lfa.fold(y, self._state["w"]) if "w" in self._state else y).cpu().numpy()

    def export(  # type: ignore[override]  # options are spelled out
        self,
        path: str | Path,
        format: str | None = None,
        *,
        texts: Any = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the adapted zero-shot classifier; returns the path.

        ``format``: onnx or safetensors; None is the path's suffix. They must not differ.

        ``onnx``: input ``features`` (N,d_x), output ``similarity`` (N,C), as the verb gives it.
        ``safetensors``: a linear layer for features of unit norm: ``weight`` (C,d_x), the texts
        with the map folded in, and ``bias`` (C,), which is not 0 where the fit centred the images.
        ``texts``: the classes; default those of the fit.
        """
        path = Path(path)
        suffix = path.suffix.lower().removeprefix(".")
        format = suffix if format is None else format
        if format not in FORMATS:
            raise OptionError(
                f"{path.name}: {self.entry.name} has no format {format!r}. Expected a name "
                "that ends in .onnx or .safetensors."
            )
        if suffix not in ("", format):
            raise OptionError(f"{path.name} as format {format}: expected .{format} at its end.")
        y = self._prototypes() if texts is None else self._texts_in(texts)
        if format == "safetensors":
            weight = torch.from_numpy(self.fold(texts))
            bias = torch.zeros(len(weight))
            if "mean" in self._state:
                bias = -weight @ self._state["mean"].cpu()
            return save_tensors(path, {"weight": weight, "bias": bias}, overwrite=overwrite)
        model = _onnx(self._state, y)
        with atomic_file(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(model)
        return path

    # --- features in ------------------------------------------------------------------------------

    def _prototypes(self) -> Tensor:
        if "prototypes" not in self._state:
            raise NotReadyError(
                f"{self.entry.name} has no classes (not fitted, or fitted on pairs): pass texts."
            )
        return self._state["prototypes"]

    def _images_in(self, images: Any) -> lfa.Rows:
        """(N,d_x) rows as the map takes them."""
        pool = self.config.get("pool", "mean")  # as in the fit
        rows = self._image_rows(images, pool)
        rows = rows[:, -1] if rows.ndim == 3 else rows
        w = self._state.get("w")
        if w is not None and rows.shape[1] != len(w):
            raise InputError(
                f"images have {rows.shape[1]} columns; the map was fitted on {len(w)}."
            )
        return _centred(rows, self._state.get("mean"))

    def _mapped(self, x: Tensor) -> Tensor:
        """norm(xW)."""
        return lfa.unit(x @ self._state["w"]) if "w" in self._state else x

    def _texts_in(self, texts: Any) -> Tensor:
        """(M,d_y) rows as they are compared."""
        y, w = self._text_rows(texts), self._state.get("w")
        if w is not None and y.shape[1] != w.shape[1]:
            raise InputError(
                f"texts have {y.shape[1]} columns; the map was fitted on {w.shape[1]}."
            )
        return _centred(y, self._state.get("text_mean"))

    def _image_rows(self, images: Any, pool: str) -> Any:
        images = unlabelled(images)
        array = numbers(images, "images", self.config.get("columns", ()))
        if array is not None and not self._is_image(array):
            return rows_of(array, "image features", pool=pool, device=str(self._device))
        if isinstance(images, list | tuple) and not images:
            raise InputError("images: there is nothing in the list.")
        encoder = self._encoder_for("images")
        many = images if isinstance(images, list | tuple) else [images]
        if len(many) == 1 and getattr(many[0], "ndim", 0) == 4:
            many = list(many[0])
        return encoder.images(many)

    def _is_image(self, array: Any) -> bool:
        """A float tensor with a base loaded: an image where it has the shape of one."""
        return (
            self._base is not None
            and isinstance(array, torch.Tensor)
            and array.ndim in (3, 4)
            and array.shape[-3] in (1, 3, 4)
        )

    def _text_rows(self, texts: Any) -> Tensor:
        array = numbers(texts, "texts")
        if array is not None:
            return ensemble(array, str(self._device))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple):
            raise InputError(f"texts: {type(texts).__name__}; expected features or strings.")
        if not texts:
            raise InputError("texts: there is nothing in the list.")
        encoder = self._encoder_for("texts")
        templates = TEMPLATES[self.options.get("templates", "none")]
        return ensemble(encoder.texts(texts, templates), str(self._device))

    def _encoder_for(self, what: str) -> Encoder:
        if self._encoder is None:
            if self._base is None:
                raise InputError(
                    f"{what}: not features, and no encoder is loaded. Pass float features (rows, "
                    f"columns), or load one: zoo.load({self.entry.name!r}, base='org/model')."
                )
            self._encoder = Encoder(self._base, str(self._device))
        fitted = self.config.get("encoder")
        if fitted not in (None, self._encoder.digest):
            raise InputError(
                "this map was fitted on features of another encoder (SHA-256 of its weights "
                f"{fitted[:12]}..., here {self._encoder.digest[:12]}...). Load the base of the fit."
            )
        return self._encoder


def _place(device: str | torch.device) -> torch.device:
    """Where to compute: on the CPU for mps, which lacks the float64 of the closed forms."""
    found = torch.device(device)
    return torch.device("cpu") if found.type == "mps" else found


def _centres(x: lfa.Rows, y: Tensor, met: bool | None) -> dict[str, Tensor]:
    """``mean`` and ``text_mean`` of encoders that never met (eq. 17); empty where they have met."""
    wide_x, wide_y = x.shape[-1], y.shape[1]
    if met and wide_x != wide_y:
        raise InputError(
            f"image features have {wide_x} columns, text features {wide_y}: they were not trained "
            "together. Leave met=True out."
        )
    if wide_x == wide_y and met is not False:
        return {}
    centre = _centred(x[:, -1] if x.ndim == 3 else x, None)
    ones = torch.zeros(len(x), dtype=torch.long, device=x.device)
    mean = lfa.class_sums(centre, ones, 1)[0] / len(x)
    return {"mean": mean.float(), "text_mean": y.double().mean(0).float()}


def _centred(rows: Any, mean: Tensor | None) -> Any:
    """Unit rows; with a mean, less it and of unit norm again. A stream stays one."""
    if isinstance(rows, Stream):
        return rows.then(lambda part: _centred(part, mean))
    rows = lfa.unit(rows / rows.abs().amax(-1, keepdim=True))  # first so that none underflows
    return rows if mean is None else lfa.unit(rows - mean)


def _in_memory(rows: Any) -> Any:
    """A stream of few rows as a tensor."""
    return rows[:] if isinstance(rows, Stream) and rows.is_small else rows


def _choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{name}={value!r}: expected one of {', '.join(known)}.")


def _recipe(
    beta: Any, iterations: int, loss: Any, k: int, s: Any, safe: bool, seed: int
) -> lfa.Recipe:
    """The checked settings."""
    if loss is not None:
        _choice("loss", loss, lfa.LOSSES)
    for name, value, low in (("iterations", iterations, 0), ("k", k, 1), ("seed", seed, 0)):
        if not low <= value < 2**62:
            raise OptionError(f"{name}={value!r}: expected a whole number, at least {low}.")
    if not _number(s) or not 0 < s < float("inf"):
        raise OptionError(f"s={s!r}: expected a positive number.")
    if beta is not None and (not _number(beta) or not 0 <= beta <= 1):
        raise OptionError(f"beta={beta!r}: expected a number from 0 to 1, or None.")
    return lfa.Recipe(beta=beta, iterations=iterations, loss=loss, k=k, s=s, safe=safe, seed=seed)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name}={value!r}: expected a whole number.")
    return int(value)


def _number(value: Any) -> bool:
    return isinstance(value, Real)


def _onnx(state: Mapping[str, Tensor], y: Tensor) -> bytes:
    """features -> norm -> - mean -> W -> norm -> Y^T, as an ONNX file."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "export to onnx needs the package onnx. Run: pip install 'edgezoo[export]'", name="onnx"
        ) from error
    nodes: list[Any] = []
    constants: list[Any] = []
    last = "features"

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def then(operator: str, *inputs: str, **attributes: Any) -> None:
        nonlocal last
        out = f"step{len(nodes)}"
        nodes.append(helper.make_node(operator, [last, *inputs], [out], **attributes))
        last = out

    then("LpNormalization", axis=1, p=2)
    if "mean" in state:
        then("Sub", constant("mean", state["mean"].cpu().numpy()))
    if "w" in state:
        then("MatMul", constant("w", state["w"].cpu().numpy()))
    then("LpNormalization", axis=1, p=2)
    then("MatMul", constant("texts", y.T.cpu().numpy()))
    nodes[-1].output[0] = "similarity"
    width = len(state["w"]) if "w" in state else y.shape[1]
    graph = helper.make_graph(
        nodes,
        "lfa",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("similarity", TensorProto.FLOAT, ["rows", len(y)])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())
