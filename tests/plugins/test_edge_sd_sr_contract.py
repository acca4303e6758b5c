"""edge-sd-sr keeps the contract of its interface."""

from __future__ import annotations

from zoo.testing import SRModelSuite


class TestEdgeSDSR(SRModelSuite):
    name = "edge-sd-sr"
