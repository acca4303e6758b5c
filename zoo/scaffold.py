"""``zoo new``: a complete project for a new plugin, with a model that already works.

The files of ``_template/common``, overlaid by those of ``_template/<interface>``; each is a
``string.Template`` and ends in ``.in``, so that tools ignore it.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from .errors import UsageError
from .interfaces import INTERFACES

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "_template"

# interface -> one line about the model of the template, what it needs, how it is used
_ABOUT: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "SRModel": (
        "bicubic enlargement, sharpened",
        ("torch",),
        'zoo.load("$name").upscale("photo.jpg").save("large.png")',
    ),
    "VLAligner": (
        "ridge regression from image features to text features",
        ("numpy", "torch"),
        'model = zoo.load("$name").align(["a.png", "b.png"], ["a red dot", "a blue dot"])\n'
        'model.similarity(["a.png"], ["a red dot"])',
    ),
    "Quantizer": (
        "linear layers rounded to 8 bits",
        ("torch", "transformers"),
        'small = zoo.load("$name").quantize("./my-language-model", scheme="w8a16")\n'
        'small.save_pretrained("small")',
    ),
    "DataSelector": (
        "examples weighted by their distance to the target's mean",
        ("numpy", "torch"),
        'best = zoo.load("$name").fit(train, target).select(fraction=0.3)',
    ),
    "Detector": (
        "bright objects on a dark background, by connected pixels",
        ("numpy", "torch"),
        'zoo.load("$name").detect("photo.jpg").boxes',
    ),
    "QAGenerator": (
        "questions about a procedure by sentence patterns",
        ("torch",),
        'zoo.load("$name").generate("Mix it. Bake it for 5 minutes.").pairs',
    ),
}


def create(name: str, interface: str, out: str | Path | None = None) -> Path:
    """Write the project to a new folder (``out``, else ``name``), whole or not at all; returns its
    path.

    Raises UsageError for a name that cannot be used, with the reason; OutputError if the folder
    cannot be written or is not empty.
    """
    from .files import atomic_folder

    if interface not in INTERFACES:
        raise UsageError(f"interface {interface!r}: expected one of {', '.join(INTERFACES)}.")
    words = _words(name, interface)
    target = Path(out) if out is not None else Path(name)
    with atomic_folder(target) as folder:
        for path, text in _files(interface).items():
            made = folder / path.replace("package/", f"{words['package']}/", 1)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(Template(text).substitute(words), "utf-8")
    return target


def _files(interface: str) -> dict[str, str]:
    """The template's files: path in the project (below ``package/`` or not) -> text."""
    found = {}
    for layer in ("common", interface):
        for file in sorted((_TEMPLATES / layer).rglob("*.in")):
            path = file.relative_to(_TEMPLATES / layer).as_posix().removesuffix(".in")
            found[path] = file.read_text("utf-8")
    return found


def _words(name: str, interface: str) -> dict[str, str]:
    package = check_name(name)
    class_name = "".join(word.capitalize() for word in package.split("_"))
    if class_name in (*INTERFACES, "Linear8", "Reader", "Rounded"):
        class_name += "Model"  # the template imports or defines that name itself
    summary, needs, example = _ABOUT[interface]
    return {
        "name": name,
        "package": package,
        "interface": interface,
        "class_name": class_name,
        "summary": summary,
        "dependencies": ", ".join(f'"{need}"' for need in ("edgezoo", *needs)),
        "example": Template(example).substitute(name=name),
    }


def check_name(name: str) -> str:
    """The import package for a model of this name. Raises UsageError if it cannot be used."""
    from importlib.util import find_spec

    from .registry import catalogue

    if not _NAME.fullmatch(name) or len(name) > 64:
        raise UsageError(
            f"name {name!r}: expected lower-case words of letters and digits, joined by '-', "
            "such as my-upscaler; at most 64 characters."
        )
    package = re.sub(r"[-.]", "_", name)
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise UsageError(f"name {name!r}: this is a Python keyword. Choose another.")
    if name in catalogue().models or name in catalogue().bases:
        raise UsageError(
            f"name {name!r} is taken: `zoo list` shows it, and a name never changes its meaning."
        )
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise UsageError(
            f"name {name!r}: there is already a Python package {package!r}, and one would hide "
            f"the other. Choose another name, such as my-{name}."
        )
    return package
