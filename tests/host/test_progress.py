"""``progress=``: silent, a bar on stderr, or the caller's own function."""

from __future__ import annotations

import io
import sys

import pytest

from zoo.errors import UsageError
from zoo.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_false_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with track(3, False, "work") as advance:
        advance()
        advance(2)
    assert capfd.readouterr() == ("", "")


def test_a_callback_hears_every_step() -> None:
    heard: list[tuple[int, int]] = []
    with track(4, lambda done, total: heard.append((done, total)), "work") as advance:
        advance()
        advance(2)
        advance(5)
    assert heard == [(1, 4), (3, 4), (4, 4)]


def test_what_a_callback_raises_ends_the_work() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), track(4, stop, "work") as advance:
        advance()


def test_true_draws_a_bar_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with track(2, True, "upscale") as advance:
        advance()
        advance()
    assert "upscale" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("total", [0, 1])
def test_no_terminal_no_bar(capfd: pytest.CaptureFixture[str], total: int) -> None:
    with track(total, True, "upscale") as advance:
        for _ in range(total):
            advance()
    assert capfd.readouterr() == ("", "upscale\n")


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_anything_else_is_a_usage_error(value: object) -> None:
    with (
        pytest.raises(UsageError, match=r"progress=.*expected False, True"),
        track(1, value, "work"),  # type: ignore[arg-type]
    ):
        pass
