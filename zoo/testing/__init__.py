"""For plugin authors: the conformance suite of each interface, and a Hub to test against.

    from zoo.testing import SRModelSuite

    class TestMyModel(SRModelSuite):
        name = "my-model"

That is a whole test file. A model that needs more to be loaded sets ``load_with`` (keywords of
``zoo.load``) or overrides ``load``; if the sample data does not suit it, override the fixture
(``pairs``, ``network``, ``task``, ``scenes``, ``known``, ``text``). Additional tests are ordinary
methods, which may also use ``model`` and ``ready``.

All tests follow from ``zoo.interfaces``. They test a model's quality only as far as a toy shows it:
higher is better, and useful examples weigh more. There is one file for each interface, and
``model`` for what they share. The suites need pytest and are imported when first used;
``zoo.testing.loopback`` is a Hub on this machine that the real client talks to, without pytest.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .loopback import FAULTS, LoopbackHub, Request, closed_port, git_hash

if TYPE_CHECKING:
    from .dataselector import DataSelectorSuite, SelectionTask
    from .detector import DetectorSuite
    from .model import ModelSuite
    from .qagenerator import QAGeneratorSuite
    from .quantizer import QuantizerSuite
    from .srmodel import SRModelSuite
    from .vlaligner import VLAlignerSuite

_MODULES = {
    "DataSelectorSuite": "dataselector",
    "DetectorSuite": "detector",
    "ModelSuite": "model",
    "QAGeneratorSuite": "qagenerator",
    "QuantizerSuite": "quantizer",
    "SRModelSuite": "srmodel",
    "SelectionTask": "dataselector",
    "VLAlignerSuite": "vlaligner",
}

__all__ = [
    "FAULTS",
    "DataSelectorSuite",
    "DetectorSuite",
    "LoopbackHub",
    "ModelSuite",
    "QAGeneratorSuite",
    "QuantizerSuite",
    "Request",
    "SRModelSuite",
    "SelectionTask",
    "VLAlignerSuite",
    "closed_port",
    "git_hash",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zoo.testing' has no attribute {name!r}")
    if "zoo.testing.checks" not in sys.modules:
        import pytest

        # Before the imports, so that failing asserts in the suites show their values.
        for module in ("checks", *_MODULES.values()):
            pytest.register_assert_rewrite(f"zoo.testing.{module}")
    return getattr(import_module(f"zoo.testing.{_MODULES[name]}"), name)
