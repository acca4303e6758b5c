"""For plugin authors: the conformance suite of each interface, and a Hub to test against.

    from zoo.testing import SRModelSuite

The suites need pytest and are imported when first used. ``zoo.testing.loopback`` is a Hub on this
machine that the real client talks to; it needs no pytest.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .loopback import FAULTS, LoopbackHub, Request, closed_port, git_hash

if TYPE_CHECKING:
    from .conformance import (
        DataSelectorSuite,
        DetectorSuite,
        ModelSuite,
        QAGeneratorSuite,
        QuantizerSuite,
        SRModelSuite,
        VLAlignerSuite,
    )

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
    "VLAlignerSuite",
    "closed_port",
    "git_hash",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo.testing' has no attribute {name!r}")
    if "zoo.testing.conformance" not in sys.modules:
        import pytest

        # Before the import: only then do failing asserts in the suites show their values.
        pytest.register_assert_rewrite("zoo.testing.conformance")
    from . import conformance

    return getattr(conformance, name)
