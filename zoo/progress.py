"""The progress of long-running verbs: ``progress=False``, ``True`` or a callback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from .errors import UsageError

Progress: TypeAlias = "bool | Callable[[int, int], None]"
"""What a long-running verb accepts: False, True (a bar on stderr), or ``progress(done, total)``."""


class Advance(Protocol):
    """What ``track`` yields: reports that ``n`` more steps are done."""

    def __call__(self, n: int = 1) -> None: ...


@contextmanager
def track(total: int, progress: Progress, label: str) -> Iterator[Advance]:
    """Follow ``total`` steps: ``with track(len(tiles), progress, "upscale") as advance:``.

    ``progress``: False shows nothing; True draws a bar on stderr (only the label if stderr is not a
    terminal); a callable is called as ``progress(done, total)`` after each step, and an exception
    from it ends the work. ``done`` never exceeds ``total``.
    """
    if progress is False:
        yield lambda n=1: None
    elif progress is True:
        import click

        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield lambda n=1: bar.update(n)
    elif callable(progress):
        done = 0

        def advance(n: int = 1) -> None:
            nonlocal done
            done = min(done + n, total)
            progress(done, total)

        yield advance
    else:
        raise UsageError(
            f"progress={progress!r}: expected False, True, or a callable progress(done, total)."
        )


@contextmanager
def whole_steps() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C to the end of a step, so that a complete step can be saved.

    Yields a function that says whether Ctrl-C was pressed; the caller saves and raises
    KeyboardInterrupt. A second Ctrl-C interrupts at once. Outside the main thread, which receives
    no signals, it always returns False.
    """
    import signal
    import threading

    pressed = False

    def remember(signum: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
