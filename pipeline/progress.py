"""Progress of a stage: a bar in terminal and notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 15.0
"""How often a line is printed where there is no terminal."""

Advance = Callable[[int], None]


@contextmanager
def stage(console: Console, title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far a stage is, with the time left.

    Yields
    ------
    callable
        Call it with the number of units done since the last call.
    """
    started = time.monotonic()
    if console.is_terminal or console.is_jupyter:
        with Progress(
            TextColumn(f"{title:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        ) as bars:
            bar = bars.add_task(title, total=total)
            yield lambda n: bars.advance(bar, n)
        return
    done, last = 0, started
    console.print(f"{title}: {total} {unit}")

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            console.print(f"{title}: {done} of {total} {unit}, about {left:.0f} s left")

    yield advance
    console.print(f"{title}: {done} {unit} in {time.monotonic() - started:.1f} s")
