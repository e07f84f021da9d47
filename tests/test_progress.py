"""Bars where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import stage


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def console(**options: object) -> Console:
    return Console(file=io.StringIO(), width=120, **options)  # type: ignore[arg-type]


def written(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def break_off(made: Console) -> None:
    with stage(made, "x", 3, "u") as advance:
        advance(1)
        raise RuntimeError("broken")


def test_stage__lines(clock: Clock) -> None:
    lines = console()
    with stage(lines, "extract", 200, "models") as advance:
        clock.now += 1
        advance(10)  # too soon for another line
        clock.now += progress.LINE_SECONDS - 1
        advance(40)
        clock.now += 1
        advance(50)  # too soon after that one
        clock.now += progress.LINE_SECONDS
        advance(100)
        clock.now += 0.5
    assert written(lines).splitlines() == [
        "extract: 200 models",
        "extract: 50 of 200 models, about 45 s left",
        "extract: 200 of 200 models, about 0 s left",
        "extract: 200 models in 31.5 s",
    ]


def test_stage__nothing_done_yet(clock: Clock) -> None:
    lines = console()
    with stage(lines, "compare", 5, "pairs") as advance:
        clock.now += progress.LINE_SECONDS
        advance(0)
    assert "compare: 0 of 5 pairs, about 75 s left" in written(lines)


def test_stage__says_nothing_of_an_end_that_was_not_reached(clock: Clock) -> None:
    lines = console()
    with pytest.raises(RuntimeError, match="broken"):
        break_off(lines)
    assert " in " not in written(lines)


def test_stage__bar() -> None:
    terminal = console(force_terminal=True)
    with stage(terminal, "extract", 8, "models") as advance:
        advance(3)
        advance(5)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(terminal))
    assert re.search(r"extract .*8/8 models .* left 0:00:00", plain)
    assert "extract: " not in plain


def test_stage__bar_of_an_end_that_was_not_reached() -> None:
    terminal = console(force_terminal=True)
    with pytest.raises(RuntimeError, match="broken"):
        break_off(terminal)
    assert "1/3" in written(terminal)
    assert terminal._live_stack == []  # the terminal is free again
