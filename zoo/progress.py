"""One way to show how far a long verb has come: ``progress=False``, ``True`` or a callback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from .errors import UsageError

if TYPE_CHECKING:
    from .interfaces import Progress


class Advance(Protocol):
    """What ``track`` yields: says that ``n`` more steps are done."""

    def __call__(self, n: int = 1) -> None: ...


@contextmanager
def track(total: int, progress: Progress, label: str) -> Iterator[Advance]:
    """Follow ``total`` steps: ``with track(len(tiles), progress, "upscale") as advance:``.

    ``progress``: False shows nothing; True draws a bar on stderr (where stderr is no terminal, only
    the label); a callable is called as ``progress(done, total)`` after each step, and what it
    raises ends the work. ``done`` never goes beyond ``total``.
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
