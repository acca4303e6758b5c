"""Reads boxes of COCO, VOC and YOLO data sets as ``Detections``, and writes them as COCO.

==================  ==============================================================================
COCO                a JSON file; its images are in the given folder, else next to the file
VOC                 a folder of XML files; or one with ``Annotations/`` and ``JPEGImages/`` in it,
                    or with ``annotations/`` or ``labels/``, and ``images/``
YOLO                ``data.yaml``, or a folder with it, with ``images/`` and ``labels/``, or with a
                    ``.txt`` next to each image; class names from ``data.yaml`` or ``classes.txt``
==================  ==============================================================================

These files are untrusted: every path must stay inside the image folder, XML must not define
entities, and an InputError names the file and the line or element of each mistake.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from . import images as _images
from .errors import InputError
from .files import read_text
from .interfaces import Detections

if TYPE_CHECKING:
    from .yamltree import Node

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_MAX_XML = 16 * 1024 * 1024
_SLACK = 0.5  # pixels that rounding may move a box beyond its image


@dataclass(frozen=True, eq=False)
class Annotations:
    """Images with their true boxes."""

    images: tuple[Path, ...]
    truth: tuple[Detections, ...]
    """One for each image, in pixels of the upright image; all scores are 1."""
    names: tuple[str, ...]
    clipped: int
    """Number of boxes that extended beyond their image and were clipped."""
    dropped: int
    """Number of boxes left out: without area, entirely outside, or crowds (COCO's ``iscrowd``)."""

    def __len__(self) -> int:
        return len(self.images)


def read(
    path: str | Path, images: str | Path | None = None, *, split: str = "train"
) -> Annotations:
    """The annotations of a file or folder, in any of the formats above.

    ``images``: the image folder, if it is elsewhere. ``split``: which images of a
    YOLO ``data.yaml``. Raises InputError.
    """
    path, folder = Path(path), Path(images) if images is not None else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"there is no folder {folder}. Give the image folder.")
    if path.suffix.lower() == ".json" and path.is_file():
        found = _coco(path, folder or path.parent)
    elif path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        found = _yolo_yaml(path, split)
    elif path.is_dir():
        found = _folder(path, folder, split)
    else:
        known = "a COCO .json, a YOLO data.yaml, or a folder of VOC .xml or YOLO .txt files"
        what = "is none of these" if path.exists() else "does not exist"
        raise InputError(f"annotations: expected {known}; {path} {what}.")
    if not found.images:
        raise InputError(f"{path} lists no images.")
    return found.done()


def held_out(folder: Path, images: Sequence[Path]) -> list[bool]:
    """Which images the data set keeps for testing: those that a list in its folder names.

    The list is ``test.txt``, ``splits/test.txt`` or ``ImageSets/Main/test.txt``: one name a line,
    with or without the file's ending. None are kept without a list. Raises InputError for a name
    without an image.
    """
    lists = [folder / name for name in ("test.txt", "splits/test.txt", "ImageSets/Main/test.txt")]
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        return [False] * len(images)
    wanted = {line.strip() for line in read_text(file).split("\n")} - {""}
    kept = [path.name in wanted or path.stem in wanted for path in images]
    if unknown := sorted(wanted - {n for path in images for n in (path.name, path.stem)}):
        raise InputError(f"{file} names {unknown[0]!r}, which has no image or no annotation.")
    return kept


def pairs(images: Any, labels: Any) -> tuple[list[Any], list[Detections]]:
    """The arguments of ``Detector.finetune`` as a list of at least one image, and their boxes.

    ``labels``: a list of ``Detections`` with the same names, one for each of the list ``images``;
    or what ``read`` takes, and then ``images`` is the folder of the images or None. Raises
    InputError.
    """
    if isinstance(labels, str | Path):
        if not isinstance(images, str | Path | None):
            raise InputError(
                "with annotations from a file, images must be the image folder or None."
            )
        found = read(labels, images)
        return list(found.images), list(found.truth)
    if isinstance(images, str | Path) or not hasattr(images, "__len__") or not len(images):
        raise InputError("images: expected a list of at least one image.")
    if not isinstance(labels, list | tuple) or len(labels) != len(images):
        raise InputError(f"labels: expected {len(images)} Detections, one for each image.")
    for i, truth in enumerate(labels):
        if not isinstance(truth, Detections):
            raise InputError(f"labels[{i}] is a {type(truth).__name__}; expected Detections.")
        if truth.names != labels[0].names:
            raise InputError(
                f"labels[{i}] has the names {truth.names}, labels[0] has {labels[0].names}. "
                "Use one tuple of names for all labels."
            )
    return list(images), list(labels)


def write_coco(path: str | Path, images: Sequence[str | Path], truth: Sequence[Detections]) -> Path:
    """Write images and their boxes as a COCO JSON file for ``read``; returns the path.

    The images must be in the file's folder or below, and all truths must have the same names.
    Raises InputError, or OutputError if the file cannot be written.
    """
    from .files import atomic_file

    path = Path(path)
    pairs(images, list(truth))
    entries: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (image, found) in enumerate(zip(images, truth, strict=True), 1):
        image = Path(image)
        if not image.resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"{image} does not lie in {path.parent}, the folder of {path.name}.")
        name = image.resolve().relative_to(path.parent.resolve()).as_posix()
        width, height = _images.size(image)
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
        for record in found.to_coco(number):
            del record["score"]
            area = record["bbox"][2] * record["bbox"][3]
            boxes.append({"id": len(boxes) + 1, **record, "area": area, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(truth[0].names, 1)]
    made = {"images": entries, "annotations": boxes, "categories": categories}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(made, allow_nan=False), "utf-8")
    return path


# --- what all formats share -----------------------------------------------------------------------


@dataclass
class _Found:
    """Annotations in the making."""

    names: list[str]
    images: list[Path] = field(default_factory=list)
    boxes: list[list[tuple[float, ...]]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    clipped: int = 0
    dropped: int = 0

    def image(self, path: Path) -> None:
        self.images.append(path)
        self.boxes.append([])
        self.labels.append([])

    def box(self, at: int, corners: Sequence[float], size: tuple[int, int], label: int) -> None:
        """Add a box (x1, y1, x2, y2) to image ``at``, clipped to the image, if anything is left."""
        cut = [min(max(c, 0.0), size[i % 2]) for i, c in enumerate(corners)]
        if not (cut[0] < cut[2] and cut[1] < cut[3]):
            self.dropped += 1
            return
        self.clipped += any(abs(a - b) > _SLACK for a, b in zip(cut, corners, strict=True))
        self.boxes[at].append(tuple(cut))
        self.labels[at].append(label)

    def done(self) -> Annotations:
        import numpy as np

        names = tuple(self.names)
        truth = tuple(
            Detections(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.ones(len(boxes), np.float32),
                np.array(labels, np.int64),
                names,
            )
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        )
        return Annotations(tuple(self.images), truth, names, self.clipped, self.dropped)


def _inside(folder: Path, name: Any, where: str) -> Path:
    """The path for a name in a file; InputError if it could leave the folder."""
    text = name.replace("\\", "/") if isinstance(name, str) else ""
    parts = PurePosixPath(text).parts
    if not parts or ".." in parts or text.startswith("/") or set(text) & {":", "\0"}:
        raise InputError(f"{where}: {name!r:.200} is not a path inside {folder}.")
    return folder.joinpath(*parts)


def _image(folder: Path, name: Any, where: str) -> Path:
    path = _inside(folder, name, where)
    if not path.is_file():
        raise InputError(f"{where}: there is no image {path}. Give the image folder.")
    return path


def _folder(path: Path, images: Path | None, split: str) -> _Found:
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file():
            return _yolo_yaml(path / name, split)
    for folder in ("Annotations", "annotations", "labels", ""):
        if files := sorted((path / folder).glob("*.xml")):
            beside = (path / name for name in ("JPEGImages", "images"))
            return _voc(files, images or next((p for p in beside if p.is_dir()), path))
    listed = _listed(images or (path / "images" if (path / "images").is_dir() else path))
    labels = [_yolo_labels(file, path, images) for file in listed]
    if not any(file.is_file() for file in labels):
        raise InputError(
            f"{path} contains no data.yaml, VOC .xml, or YOLO .txt next to its images."
        )
    return _yolo(listed, labels, _yolo_names(path / "classes.txt"))


def _listed(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


# --- COCO -----------------------------------------------------------------------------------------


def _coco(path: Path, folder: Path) -> _Found:
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
    for key in ("images", "annotations", "categories"):
        if not (isinstance(data, dict) and isinstance(data.get(key), list)):
            raise InputError(f"{path} is not a COCO file with boxes: it has no list {key!r}.")

    def records(key: str, *wanted: str) -> Iterator[tuple[str, list[Any]]]:
        for i, record in enumerate(data[key]):
            where = f"{path}: {key}[{i}]"
            missing = [w for w in wanted if not isinstance(record, dict) or w not in record]
            if missing:
                raise InputError(f"{where} has no {', '.join(missing)}.")
            ids = [record[w] for w in wanted if w.endswith("id")]
            if not all(isinstance(value, int | str) for value in ids):
                raise InputError(f"{where}: an id must be a number or text, not {ids}.")
            yield where, [record[w] for w in wanted] + [record]

    labels: dict[Any, int] = {}
    found = _Found([])
    for where, (key, name, _) in records("categories", "id", "name"):
        if key in labels or not isinstance(name, str):
            raise InputError(f"{where}: expected a name and a unique id.")
        labels[key] = len(labels)
        found.names.append(name)
    at: dict[Any, tuple[int, tuple[int, int]]] = {}
    for where, (key, name, record) in records("images", "id", "file_name"):
        if key in at:
            raise InputError(f"{where}: the id {key!r} is used twice.")
        found.image(_image(folder, name, f"{where}.file_name"))
        sides = record.get("width"), record.get("height")
        known = all(type(side) is int and side > 0 for side in sides)
        at[key] = len(at), sides if known else _images.size(found.images[-1])
    for where, (image, category, box, record) in records(
        "annotations", "image_id", "category_id", "bbox"
    ):
        if image not in at:
            raise InputError(f"{where}.image_id: no image has the id {image!r}.")
        if category not in labels:
            raise InputError(f"{where}.category_id: no category has the id {category!r}.")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_finite, box))):
            raise InputError(f"{where}.bbox: {box!r:.80} is not [x, y, width, height].")
        if record.get("iscrowd"):
            found.dropped += 1
            continue
        x, y, width, height = box
        found.box(at[image][0], (x, y, x + width, y + height), at[image][1], labels[category])
    return found


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# --- VOC ------------------------------------------------------------------------------------------


@dataclass
class _Element:
    tag: str
    line: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def child(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)


def _xml(path: Path) -> _Element:
    """The root element. A DOCTYPE is refused: entities are defined in one, and only there."""
    from xml.parsers import expat

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_XML + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    if len(data) > _MAX_XML:
        raise InputError(f"{path} is larger than {_MAX_XML} bytes.")
    parser = expat.ParserCreate()
    stack = [_Element("", 0)]

    def doctype(*_: Any) -> None:
        raise InputError(f"{path}:{parser.CurrentLineNumber}: a DOCTYPE is not allowed. Remove it.")

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        element = _Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def text(part: str) -> None:
        stack[-1].text += part

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: stack.pop()
    parser.CharacterDataHandler = text
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}:{parser.CurrentLineNumber}: not XML: {error}.") from None
    return stack[0].children[0]


def _voc(files: Sequence[Path], folder: Path) -> _Found:
    objects: list[tuple[int, str, tuple[float, ...], tuple[int, int]]] = []
    found = _Found([])
    for file in files:
        root = _xml(file)
        if root.tag != "annotation":
            raise InputError(f"{file}:{root.line}: expected <annotation>, not <{root.tag}>.")
        found.image(_voc_image(file, root, folder))
        size = _voc_size(root) or _images.size(found.images[-1])
        for thing in root.children:
            if thing.tag == "object":
                name, box = thing.child("name"), thing.child("bndbox")
                if name is None or not name.text.strip() or box is None:
                    raise InputError(f"{file}:{thing.line}: <object> needs a <name> and <bndbox>.")
                corners = [_voc_number(file, box, tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
                # VOC counts pixels from 1, both ends included; (1, 1, w, h) is the whole image.
                corners = [corners[0] - 1, corners[1] - 1, *corners[2:]]
                objects.append((len(found.images) - 1, name.text.strip(), tuple(corners), size))
    found.names = sorted({name for _, name, _, _ in objects})
    for at, called, sides, whole in objects:
        found.box(at, sides, whole, found.names.index(called))
    return found


def _voc_image(file: Path, root: _Element, folder: Path) -> Path:
    """The image that ``<filename>`` names (often wrongly), else the one named like the XML file."""
    element = root.child("filename")
    if element is not None and element.text.strip():
        path = _inside(folder, element.text.strip(), f"{file}:{element.line}: <filename>")
        if path.is_file():
            return path
    for suffix in SUFFIXES:
        if (folder / (file.stem + suffix)).is_file():
            return folder / (file.stem + suffix)
    raise InputError(f"{file}: there is no image {file.stem}.* in {folder}. Give the image folder.")


def _voc_size(root: _Element) -> tuple[int, int] | None:
    size = root.child("size")
    sides = [size.child(tag) for tag in ("width", "height")] if size else []
    numbers = [int(s.text) for s in sides if s is not None and s.text.strip().isdecimal()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(numbers) else None


def _voc_number(file: Path, box: _Element, tag: str) -> float:
    element = box.child(tag)
    try:
        value = float(element.text) if element is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        line = box.line if element is None else element.line
        raise InputError(f"{file}:{line}: <bndbox> needs a number <{tag}>.")
    return value


# --- YOLO -----------------------------------------------------------------------------------------


def _yolo_yaml(path: Path, split: str) -> _Found:
    from .yamltree import MalformedError, tree

    def wrong(line: int, text: str) -> None:
        raise InputError(f"{path}:{line}: {text}.")

    try:
        root = tree(read_text(path), wrong)
    except MalformedError as error:
        raise InputError(f"{path}:{error.line}: {error.text}.") from None
    keys = root.value
    if not isinstance(keys, dict) or split not in keys:
        raise InputError(f"{path} names no images under {split!r}.")
    folder = path.parent
    if "path" in keys and keys["path"].value not in (".", "./", ""):
        folder = _inside(folder, keys["path"].value, f"{path}:{keys['path'].line}: path")
    value = keys[split].value
    images: list[Path] = []
    for node in value if isinstance(value, list) else [keys[split]]:
        where = f"{path}:{node.line}: {split}"
        name = node.value
        if isinstance(name, str) and name.startswith("../"):
            name = name[3:]  # some exporters write this but mean the file's own folder
        place = _inside(folder, name, where)
        if place.is_dir():
            images += _listed(place)
        elif place.suffix == ".txt" and place.is_file():
            for number, line in enumerate(read_text(place).split("\n"), 1):
                if line.strip():
                    images.append(_image(place.parent, line.strip(), f"{place}:{number}"))
        else:
            raise InputError(f"{where}: there is no folder {place}.")
    labels = [_yolo_labels(image, folder) for image in images]
    return _yolo(images, labels, _yaml_names(path, keys.get("names")))


def _yaml_names(path: Path, node: Node | None) -> list[str]:
    """``names`` as a list, or as a mapping from numbers."""
    if node is None:
        return []
    value = node.value
    nodes = list(value.values()) if isinstance(value, dict) else value
    numbered = not isinstance(value, dict) or [*value] == [str(i) for i in range(len(value))]
    names = [child.value for child in nodes if not isinstance(child, str)]
    if not numbered or isinstance(nodes, str) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}:{node.line}: names: expected a list, or a mapping from 0, 1, ...")
    return [str(name) for name in names]


def _yolo_names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _yolo(images: Sequence[Path], labels: Sequence[Path], names: list[str]) -> _Found:
    found = _Found(list(names))
    largest = -1
    for image, file in zip(images, labels, strict=True):
        found.image(image)
        if not file.is_file():
            continue  # no label file: no objects
        size = _images.size(image)
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                label, corners = _yolo_box(line, f"{file}:{number}", size)
                if names and label >= len(names):
                    raise InputError(
                        f"{file}:{number}: class {label}, but there are only {len(names)} names."
                    )
                largest = max(largest, label)
                found.box(len(found.images) - 1, corners, size, label)
    found.names = found.names or [str(number) for number in range(largest + 1)]
    return found


def _yolo_labels(image: Path, folder: Path, images: Path | None = None) -> Path:
    """The label file of an image: at the same relative path in ``folder`` if the images are in
    another folder; else with ``labels/`` in place of the last ``images/``; else next to the image.
    """
    if images is not None and not images.is_relative_to(folder):
        return folder.joinpath(image.relative_to(images)).with_suffix(".txt")
    parts = list(image.relative_to(folder).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return folder.joinpath(*parts).with_suffix(".txt")


def _yolo_box(line: str, where: str, size: tuple[int, int]) -> tuple[int, list[float]]:
    """(class, corners in pixels) of a line: class, then centre and size or a polygon, as
    fractions."""
    word, *rest = line.split()
    try:
        numbers = [float(text) for text in rest]
    except ValueError:
        numbers = []
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if not (re.fullmatch(r"\d{1,6}", word, re.ASCII) and all(map(math.isfinite, numbers))) or not (
        len(numbers) == 4 or polygon
    ):
        raise InputError(f"{where}: expected 'class x y width height', not {line.strip()!r:.80}.")
    if polygon:
        xs, ys = numbers[::2], numbers[1::2]
        shares = [min(xs), min(ys), max(xs), max(ys)]
    else:
        x, y, width, height = numbers
        shares = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return int(word), [share * size[i % 2] for i, share in enumerate(shares)]
