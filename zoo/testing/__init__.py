"""For plugin authors: the conformance suite of each interface, and a Hub to test against.

``zoo.testing.loopback`` is a Hub on this machine that the real client talks to; it needs no pytest.
"""

from __future__ import annotations

from .loopback import FAULTS, LoopbackHub, Request, closed_port, git_hash

__all__ = ["FAULTS", "LoopbackHub", "Request", "closed_port", "git_hash"]
