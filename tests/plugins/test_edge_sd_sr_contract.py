"""edge-sd-sr and edge-sd-sr-photo keep the contract of its interface."""

from __future__ import annotations

from zoo.testing import SRModelSuite


class TestEdgeSDSR(SRModelSuite):
    name = "edge-sd-sr"


class TestEdgeSDSRPhoto(SRModelSuite):
    name = "edge-sd-sr-photo"
