"""Computations that do not depend on how the caller has set torch up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def isolated() -> Iterator[None]:
    """No autocast, float32 and the CPU as defaults; on leaving, all is as the caller had it.

    Also a decorator: ``@isolated()``. Gradients stay as they are. The default dtype belongs to the
    whole process: other threads see it change, but only if it was not float32.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # nobody can have changed it yet
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
    """``isolated``, and gradients are computed, also inside the caller's ``no_grad`` or
    ``inference_mode``. Also a decorator.

    Tensors that the caller made in inference mode are to be cloned before they are learned from.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with isolated(), torch.inference_mode(False), torch.enable_grad():
        yield
