"""Makes computations independent of the caller's torch settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def isolated() -> Iterator[None]:
    """No autocast, and float32 and the CPU as defaults; restores the caller's settings on exit.

    Also a decorator: ``@isolated()``. The gradient mode is unchanged. The default dtype is global
    to the process: other threads see it change, but only if it was not float32.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # not imported yet, so nothing can be set
        yield
        return
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (default := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def learning() -> Iterator[None]:
    """``isolated`` with gradients, even inside the caller's ``no_grad`` or ``inference_mode``. Also
    a decorator.

    Clone tensors that the caller made in inference mode before training on them.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with isolated(), torch.inference_mode(False), torch.enable_grad():
        yield
