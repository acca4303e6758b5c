"""zoo: a small host for published vision and language methods, each an installable plugin.

    import zoo
    big = zoo.load("edge-sd-sr").upscale("small.png")

Importing zoo imports none of its parts: each public name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "load": "api",
    "list_models": "api",
    "info": "api",
    "Model": "interfaces",
    "SRModel": "interfaces",
    "VLAligner": "interfaces",
    "Quantizer": "interfaces",
    "DataSelector": "interfaces",
    "Detector": "interfaces",
    "QAGenerator": "interfaces",
    "ZooError": "errors",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(import_module(f"zoo.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
