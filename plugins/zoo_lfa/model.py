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
    by_chance,
    ensemble,
    labels_of,
    named_by,
    numbers,
    rows_of,
    table_of,
    warn_of,
)

if TYPE_CHECKING:
    from zoo.progress import Progress

PROJECTIONS = ("auto", "none", "random", "pca")
TEMPERATURE = 0.07
TENSORS = ("w", "average", "mean", "project_images", "project_texts", "prototypes")


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
        self._base = request.base.folder if request.base else None
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
            raise WeightsError(f"{where} is no map of {self.entry.name}: {what}.")
        images, texts = tensors.get("project_images"), tensors.get("project_texts")
        faults = [
            name
            for name, fits in {
                "w": w.ndim == 2,
                "average": "average" not in tensors or tensors["average"].shape == w.shape,
                "mean": "mean" not in tensors
                or tensors["mean"].shape == (len(w) if images is None else len(images),),
                "project_images": images is None or images.shape[1] == len(w),
                "project_texts": texts is None or texts.shape[1] == w.shape[-1],
                "prototypes": "prototypes" not in tensors
                or tensors["prototypes"].shape[-1] == w.shape[-1],
            }.items()
            if not fits
        ]
        faults += [
            n for n, t in tensors.items() if not t.is_floating_point() or not t.isfinite().all()
        ]
        if faults:
            raise WeightsError(f"{where}: wrong shape, type or value: {', '.join(faults)}.")
        self._state = {name: tensor.float().to(self._device) for name, tensor in tensors.items()}

    @property
    def w(self) -> np.ndarray | None:
        """The map (d_x,d_y), or None before ``align``. ``x' = x @ w`` on rows of unit norm."""
        return self._state["w"].cpu().numpy() if "w" in self._state else None

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit chose and found: ``kept``, ``blend``, ``beta``, ``zero_shot`` and
        ``validated`` accuracy on held-out rows of the support set, ``seconds``."""
        found: Mapping[str, Any] = self.config.get("report", {})
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """The words of the fit's classes; () where it was given features of texts."""
        return tuple(self.config.get("classes", ()))

    # --- fitting ----------------------------------------------------------------------------------

    @learning()
    def align(  # type: ignore[override]  # options are spelled out
        self,
        images: Any,
        texts: Any = None,
        *,
        labels: Any = None,
        progress: Progress = False,
        unsupervised: bool = False,
        init: str = "beta",
        beta: float | None = None,
        iterations: int = 100,
        loss: str = "rerank",
        k: int = 3,
        s: float = 4.0,
        safe: bool = True,
        met: bool | None = None,
        projection: str = "auto",
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
        folder for each class, or rows such as JSONL's with image and text. ``features``, ``label``:
        columns, where they have other names than usual. ``texts``: features (C,d) or, for T
        templates, (C,T,d), or strings. ``labels`` (N,): numbers into ``texts``, or, where texts are
        strings, these strings; without labels there is one text for each image. Rows are
        normalised.

        ``unsupervised``: no labels; classes are guessed by optimal transport (balanced, or with
        ``marginals`` (C,)) and refined ``rounds`` times. ``init``: beta, procrustes, ridge,
        identity or random. ``iterations``: steps of the refinement, 0 for the closed form alone.
        ``loss``: rerank, contrastive or triplet, with ``k`` and ``s`` of the paper. ``safe``:
        validate on the support set, choose among ridges, closed form and refined map, and keep
        zero-shot where nothing is clearly better (it does nothing with ``unsupervised``, where
        there is nothing to validate on). ``met``: were the encoders trained together? By default
        those of one width were; False, for two strangers of one width, centres the images and
        looks for no zero-shot map.
        ``projection``, where the widths differ: auto centres the images and makes the map
        rectangular; random and pca bring the wider side down first; none is an error. ``pool`` of
        (N,T,d): mean, max, or crops (the last is the centre, and what the fitted model looks at);
        it is kept for the verbs that follow. Raises InputError naming the rows that are wrong.
        """
        iterations, k, seed = _whole("iterations", iterations), _whole("k", k), _whole("seed", seed)
        if _whole("rounds", rounds) < 0:
            raise OptionError(f"rounds={rounds}: expected 0 or more.")
        recipe = self._recipe(init, beta, iterations, loss, k, s, safe, seed)
        _choice("projection", projection, PROJECTIONS)
        _choice("pool", pool, POOLS)
        if marginals is not None and not unsupervised:
            raise OptionError("marginals= is for unsupervised=True: with labels they are counted.")
        names: list[str] = []
        if isinstance(texts, str | Path) and numbers(texts, "texts") is None:
            texts = lines(texts, "texts")
        table, array = table_of(images, features, label), None
        if table is not None:
            texts, own = named_by(table, texts)
            labels = own if labels is None else labels
            array = table.array
            images = [table[i] for i in range(len(table))] if array is None else array
        if texts is None:
            raise InputError("texts are missing: features (classes, columns), or strings.")
        if _strings(texts):
            names = list(texts)
        x = self._image_rows(images, pool)
        classes_given = unsupervised or labels is not None
        y, labels = self._text_rows_and_labels(texts, labels, len(x), unsupervised)
        if unsupervised and x.shape[-1] != y.shape[1]:
            raise InputError(
                f"image features have {x.shape[-1]} columns, text features {y.shape[1]}: without "
                "labels a fit starts from zero-shot, which encoders that never met do not have. "
                "Pass labels."
            )
        state = self._bring_together(x, y, projection, seed, met)
        recipe = replace(recipe, met=not state)
        if unsupervised and state:
            raise OptionError("unsupervised=True starts from zero-shot: not with met=False.")
        x, y = self._prepared_images(x, state), self._prepared_texts(y, state)
        if len(y) < 2:
            raise InputError("there is one class only: nothing to tell apart.")
        notes: list[str] = []
        if unsupervised:
            weights = _marginals(marginals, len(y))
            if len(x) < len(y):
                raise InputError(
                    f"{len(x)} images for {len(y)} classes: without labels expected at least as "
                    "many."
                )
            with track(max(1, rounds * iterations), progress, "align") as advance:
                made = lfa.fit_unsupervised(
                    x, y, recipe, rounds=rounds, marginals=weights, step=advance
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
            total = lfa.steps_of(recipe, labels, len(y))
            with track(total, progress, "align") as advance:
                made = lfa.fit(x, y, labels, recipe, advance)
        state |= {"w": made.w, "average": made.average}
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

    def _recipe(
        self,
        init: str,
        beta: float | None,
        iterations: int,
        loss: str,
        k: int,
        s: float,
        safe: bool,
        seed: int,
    ) -> lfa.Recipe:
        _choice("init", init, lfa.INITS)
        _choice("loss", loss, tuple(lfa.LOSSES))
        for name, value, low in (("iterations", iterations, 0), ("k", k, 1), ("seed", seed, 0)):
            if not low <= value < 2**62:
                raise OptionError(f"{name}={value!r}: expected a whole number, at least {low}.")
        if not _number(s) or not 0 < s < float("inf"):
            raise OptionError(f"s={s!r}: expected a positive number.")
        if beta is not None and (not _number(beta) or not 0 <= beta <= 1):
            raise OptionError(f"beta={beta!r}: expected a number from 0 to 1, or None.")
        return replace(
            lfa.Recipe(),
            init=init,
            beta=beta,
            iterations=iterations,
            loss=loss,
            k=k,
            s=s,
            safe=safe,
            seed=seed,
        )

    def _text_rows_and_labels(
        self, texts: Any, labels: Any, rows: int, unsupervised: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Text features (C,d) and labels (N,); of pairs, equal texts become one class."""
        if unsupervised:
            if labels is not None:
                raise OptionError("unsupervised=True takes no labels.")
            return self._text_rows(texts), None
        if labels is not None:
            y = self._text_rows(texts)
            names = list(texts) if _strings(texts) else []
            return y, labels_of(labels, rows, names, len(y))
        array = numbers(texts, "texts")
        count = len(array) if array is not None else len(texts)
        if count != rows:
            raise InputError(
                f"{rows} images and {count} texts: expected one text for each image, or labels; "
                "unsupervised=True fits without labels."
            )
        if array is None and _strings(texts):
            known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            return self._text_rows(list(known)), torch.tensor([known[t] for t in texts])
        y, inverse = torch.unique(self._text_rows(texts), dim=0, return_inverse=True)
        return y, inverse.cpu()

    def _bring_together(
        self, x: Tensor, y: Tensor, how: str, seed: int, met: bool | None
    ) -> dict[str, Tensor]:
        """What makes strangers' features comparable (eq. 17): empty where the encoders have met."""
        wide_x, wide_y = x.shape[-1], y.shape[1]
        if wide_x == wide_y and met is not False:
            return {}
        if wide_x != wide_y and (met or how == "none"):
            raise InputError(
                f"image features have {wide_x} columns, text features {wide_y}: they "
                "were not trained together. Pass projection='auto', 'random' or 'pca'."
            )
        flat = x.reshape(-1, wide_x)
        state = {"mean": flat.double().mean(0).float()}
        if how not in ("auto", "none") and wide_x != wide_y:
            if wide_x > wide_y:
                state["project_images"] = lfa.projection(flat - state["mean"], wide_y, how, seed)
            else:
                state["project_texts"] = lfa.projection(y, wide_x, how, seed)
        return state

    # --- use --------------------------------------------------------------------------------------

    @isolated()
    def similarity(self, images: Any, texts: Any, *, average: bool = False) -> np.ndarray:
        """(N,M) float32 cosines in [-1,1]; raw inputs or features, as ``align`` takes them.

        ``average``: by the moving average of the map, which stays nearer to zero-shot; for
        classes or domains unlike those of the fit. It is not validated, except that where the fit
        kept zero-shot it is zero-shot too.
        """
        x, y = self._embedded(images, average), self._texts_in(texts)
        _comparable(x, y)
        out = np.empty((len(x), len(y)), np.float32)
        for part in lfa.chunks(len(x)):
            out[part] = (x[part] @ y.T).cpu().numpy()
        return out

    @isolated()
    def embed_images(self, images: Any) -> np.ndarray:
        """(N,d) float32 of unit norm: norm(xW)."""
        return self._embedded(images, False).cpu().numpy()

    @isolated()
    def embed_texts(self, texts: Any) -> np.ndarray:
        """(M,d) float32 of unit norm: the texts are not changed."""
        return self._texts_in(texts).cpu().numpy()

    @isolated()
    def predict_proba(
        self, images: Any, texts: Any = None, *, temperature: float = TEMPERATURE
    ) -> np.ndarray:
        """(N,C) float32, rows summing to 1: softmax of the cosines over ``texts``, by default those
        of the fit."""
        if not temperature > 0:
            raise OptionError(f"temperature={temperature!r}: expected a positive number.")
        y = self._prototypes() if texts is None else self._texts_in(texts)
        x = self._embedded(images, False)
        _comparable(x, y)
        return ((x @ y.T) / temperature).softmax(1).cpu().numpy()

    @isolated()
    def fold(self, texts: Any = None) -> np.ndarray:
        """(C,d_x) float32: the texts with the map in them, for a server that is there already.

        ``argmax(x @ fold(texts).T)`` on image features that nobody has changed is this model's
        answer (where a fit centred them, on ``x - mean``). Rows are not of unit norm, on purpose.
        """
        y = self._prototypes() if texts is None else self._texts_in(texts)
        if "w" not in self._state:
            return y.cpu().numpy()
        folded = lfa.fold(y, self._state["w"])
        if "project_images" in self._state:
            folded = folded @ self._state["project_images"].T
        return folded.cpu().numpy()

    def export(  # type: ignore[override]  # options are spelled out
        self, path: str | Path, format: str = "onnx", *, texts: Any = None, overwrite: bool = False
    ) -> Path:
        """Write the adapted zero-shot classifier; returns the path.

        ``onnx``: input ``features`` (N,d_x), output ``similarity`` (N,C), as the verb gives it.
        ``safetensors``: ``weight`` (C,d_x), the texts with the map folded in, and ``mean`` (d_x,)
        where the fit centred the images. ``texts``: the classes; default those of the fit.
        """
        path, y = Path(path), self._prototypes() if texts is None else self._texts_in(texts)
        if format == "safetensors":
            tensors = {"weight": torch.from_numpy(self.fold(texts))}
            if "mean" in self._state:
                tensors["mean"] = self._state["mean"]
            return save_tensors(path, tensors, overwrite=overwrite)
        if format != "onnx":
            raise OptionError(f"format={format!r}: expected onnx or safetensors.")
        model = _onnx(self._state, y)
        with atomic_file(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(model)
        return path

    # --- features in ------------------------------------------------------------------------------

    def _prototypes(self) -> Tensor:
        if "prototypes" not in self._state:
            raise NotReadyError(
                f"{self.entry.name} keeps no classes (not fitted, or on pairs): pass texts."
            )
        return self._state["prototypes"]

    def _embedded(self, images: Any, average: bool) -> Tensor:
        pool = self.config.get("pool", "mean")  # as in the fit
        rows = self._image_rows(images, pool)
        x = self._prepared_images(rows[:, -1] if rows.ndim == 3 else rows, self._state)
        if "w" not in self._state:
            return x
        w = self._state["average" if average and "average" in self._state else "w"]
        if x.shape[1] != len(w):
            raise InputError(f"images have {x.shape[1]} columns; the map was fitted on {len(w)}.")
        return torch.cat([lfa.unit(x[part] @ w) for part in lfa.chunks(len(x))])

    def _texts_in(self, texts: Any) -> Tensor:
        y = self._prepared_texts(self._text_rows(texts), self._state)
        if "w" in self._state and y.shape[1] != self._state["w"].shape[1]:
            expected = self._state["w"].shape[1]
            raise InputError(f"texts have {y.shape[1]} columns; the map was fitted on {expected}.")
        return y

    def _prepared_images(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if "mean" in state:
            if x.shape[-1] != len(state["mean"]):
                expected = len(state["mean"])
                raise InputError(
                    f"images have {x.shape[-1]} columns; the map was fitted on {expected}."
                )
            x = x - state["mean"]
        return lfa.unit(x @ state["project_images"] if "project_images" in state else x)

    def _prepared_texts(self, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if "project_texts" in state:
            if y.shape[1] != len(state["project_texts"]):
                expected = len(state["project_texts"])
                raise InputError(
                    f"texts have {y.shape[1]} columns; the map was fitted on {expected}."
                )
            y = lfa.unit(y @ state["project_texts"])
        return y

    def _image_rows(self, images: Any, pool: str) -> Tensor:
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


def _comparable(x: Tensor, y: Tensor) -> None:
    """Refuse widths that differ, as before a fit they may."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"image features have {x.shape[1]} columns, text features {y.shape[1]}, and "
            "nothing is fitted. Call align(images, texts, labels=...) first."
        )


def _strings(texts: Any) -> bool:
    return (
        isinstance(texts, list | tuple) and bool(texts) and all(isinstance(t, str) for t in texts)
    )


def _choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{name}={value!r}: expected one of {', '.join(known)}.")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name}={value!r}: expected a whole number.")
    return int(value)


def _number(value: Any) -> bool:
    return isinstance(value, Real)


def _marginals(values: Sequence[float] | None, classes: int) -> Tensor | None:
    if values is None:
        return None
    try:
        found = torch.as_tensor(np.asarray(values, dtype=np.float64))
    except (ValueError, TypeError):
        found = torch.empty(0)
    if found.shape != (classes,) or not bool((found > 0).all()) or not bool(found.isfinite().all()):
        raise InputError(f"marginals: expected {classes} positive numbers, one for each class.")
    return found


def _onnx(state: Mapping[str, Tensor], y: Tensor) -> bytes:
    """features -> - mean -> norm -> project -> W -> norm -> Y^T, as an ONNX file."""
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

    if "mean" in state:
        then("Sub", constant("mean", state["mean"].cpu().numpy()))
    if "project_images" in state:
        then("MatMul", constant("project", state["project_images"].cpu().numpy()))
    if "w" in state:
        then("MatMul", constant("w", state["w"].cpu().numpy()))
    then("LpNormalization", axis=1, p=2)
    then("MatMul", constant("texts", y.T.cpu().numpy()))
    nodes[-1].output[0] = "similarity"
    width = next(
        (len(state[name]) for name in ("mean", "project_images", "w") if name in state), y.shape[1]
    )
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
