"""Progress of a stage: a bar in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

LINE_SECONDS = 15.0
"""How often a line is printed where there is no terminal."""
NOTEBOOK_SECONDS = 0.5
"""How often a notebook's bar is redrawn."""


class StageProgress:
    """Progress of a stage.

    Units are what a person counts (pairs, stimuli); remaining time goes by cost, since tasks
    differ. Thread-safe.
    """

    def __init__(self, title: str, total: int, unit: str, cost: float | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.cost = float(total) if cost is None else cost
        self.done, self.cost_done, self.failed = 0.0, 0.0, 0
        self.started = time.monotonic()
        self.lock = RLock()
        self._parts: dict[str, tuple[float, float]] = {}
        self._ended: set[str] = set()
        self.ended: float | None = None
        """Seconds that the stage took, once it has ended."""

    def advance(
        self, done: float, *, cost: float | None = None, failed: int = 0, part: str = ""
    ) -> None:
        """Count what has been done since the last call, and what has failed.

        Parameters
        ----------
        part
            Name of a task that ends; what it reported before is subtracted.
        """
        with self.lock:
            self._ended.add(part)
            reported, reported_cost = self._parts.pop(part, (0.0, 0.0))
            self.done += done - reported
            self.cost_done += (done if cost is None else cost) - reported_cost
            self.failed += failed
            self.changed()

    def within(self, part: str, done: float, cost: float) -> None:
        """Report how much of an unfinished task is done by now."""
        with self.lock:
            if part in self._ended:  # reported after its result came in
                return
            reported, reported_cost = self._parts.get(part, (0.0, 0.0))
            self.done += done - reported
            self.cost_done += cost - reported_cost
            self._parts[part] = done, cost
            self.changed()

    def changed(self) -> None:
        """Redraw."""

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Part of the cost that is done, 0 to 1."""
        return min(1.0, self.cost_done / self.cost) if self.cost > 0 else 1.0

    @property
    def left(self) -> float | None:
        """Seconds left at the rate so far; None before anything is done."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None

    @property
    def rate(self) -> str:
        """Units per second, or per minute where that is less than one."""
        each = self.done / max(self.seconds, 1e-3)
        if 0 < each < 1:
            return f"{60 * each:.2g}/min"
        return f"{each:,.0f}/s" if each >= 10 else f"{each:.2g}/s"

    @property
    def count(self) -> str:
        """Units done, of the total."""
        return f"{self.done:,.0f}/{self.total:,} {self.unit}"

    @property
    def clock(self) -> str:
        """Time left; in the end, time taken."""
        if self.ended is not None:
            return f"took {_clock(self.ended)}"
        return f"left {_clock(self.left)}"

    @property
    def failures(self) -> str:
        """How many failed, or nothing."""
        return f"{self.failed} failed" if self.failed else ""


@contextmanager
def stage(
    console: Console, title: str, total: int, unit: str, *, cost: float | None = None
) -> Iterator[StageProgress]:
    """Show the progress of a stage: units done, rate, time left and failures.

    Parameters
    ----------
    total
        Number of units.
    cost
        Cost of all units; default: 1 each.

    Yields
    ------
    StageProgress
        To report progress to.
    """
    kind: type[_Bar | _Cell | _Lines] = _Lines
    if console.is_jupyter:
        kind = _Cell
    elif console.is_terminal:
        kind = _Bar
    with ExitStack() as stack:
        shown = kind(title, total, unit, cost)
        shown.begin(console, stack)
        yield shown
        shown.ended = shown.seconds
        shown.end()


@contextmanager
def counted(console: Console, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of work whose extent it tells itself; nothing where there is none.

    Yields
    ------
    Callable
        Takes how many units are done, of how many. Thread-safe.
    """
    lock, shown = RLock(), list[StageProgress]()
    with ExitStack() as stack:

        def count(done: int, total: int) -> None:
            with lock:
                if not shown:
                    shown.append(stack.enter_context(stage(console, title, total, unit)))
                if done > shown[0].done:  # threads may report in another order
                    shown[0].advance(done - shown[0].done)

        yield count


class _Lines(StageProgress):
    """Plain lines at intervals."""

    def begin(self, console: Console, stack: ExitStack) -> None:
        del stack
        self.console, self.last = console, self.started
        self._print(f"{self.title}: {self.total:,} {self.unit}")

    def changed(self) -> None:
        now = time.monotonic()
        if now - self.last < LINE_SECONDS:
            return
        self.last = now
        parts = [f"{self.title}: {self.done:,.0f} of {self.total:,} {self.unit}"]
        if self.left is not None:
            parts += [self.rate, f"about {self.left:.0f} s left"]
        self._print(", ".join([*parts, *filter(None, [self.failures])]))

    def end(self) -> None:
        parts = [
            f"{self.title}: {self.done:,.0f} {self.unit} in {self.seconds:.1f} s",
            self.failures,
        ]
        self._print(", ".join(filter(None, parts)))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


class _Column(ProgressColumn):
    """One property of a stage."""

    max_refresh = 0.5

    def __init__(self, name: str, style: str = "") -> None:
        super().__init__()
        self.name, self.style = name, style

    def render(self, task: Any) -> Text:
        return Text(getattr(task.fields["stage"], self.name), style=self.style)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class _Bar(StageProgress):
    """A bar in a terminal."""

    def begin(self, console: Console, stack: ExitStack) -> None:
        self.bars = stack.enter_context(
            Progress(
                TextColumn(f"{self.title:<10}"),
                BarColumn(bar_width=12),  # so that the line fits into 80 columns
                _Column("count"),
                _Column("rate", "cyan"),
                _Column("clock", "yellow"),
                _Column("failures", "red"),
                console=console,
            )
        )
        self.bar = self.bars.add_task(self.title, total=1.0, stage=self)

    def changed(self) -> None:
        self.bars.update(self.bar, completed=self.share)

    def end(self) -> None:
        self.bars.update(self.bar, completed=self.share)


class _Cell(StageProgress):
    """A bar in a notebook's cell, without widgets."""

    def begin(self, console: Console, stack: ExitStack) -> None:
        del console
        self.last = self.started
        self.handle: Any = None
        stack.callback(self._draw)

    def changed(self) -> None:
        if self.handle is None or time.monotonic() - self.last >= NOTEBOOK_SECONDS:
            self._draw()

    def end(self) -> None:
        """Leave the bar as it is: it is redrawn on exit anyway."""

    def _draw(self) -> None:
        from IPython import display

        show: Any = display.display
        self.last = time.monotonic()
        text = "  ".join(filter(None, [self.count, self.rate, self.clock, self.failures]))
        bar = f'<progress value="{self.share:.3f}" max="1" style="width: 16em"></progress>'
        bundle = {
            "text/plain": f"{self.title:<10} {100 * self.share:3.0f}%  {text}",
            "text/html": f"<code>{html.escape(f'{self.title:<10}')}</code> {bar} "
            f"<code>{html.escape(text)}</code>",
        }
        if self.handle is None:
            self.handle = show(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
