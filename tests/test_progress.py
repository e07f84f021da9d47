"""Bars where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import io
import re
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient
from processes import PATIENCE
from rich.console import Console

from pipeline import progress
from pipeline.progress import counted, stage


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
    with stage(made, "x", 3, "u") as shown:
        shown.advance(1)
        raise RuntimeError("broken")


def plain(made: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(made))


def test_counted__shows_nothing_without_work_and_counts_what_there_is(clock: Clock) -> None:
    silent, lines = console(), console()
    with counted(silent, "stimuli", "items"):
        pass
    assert written(silent) == ""
    with counted(lines, "stimuli", "items") as count:
        count(1, 7)
        clock.now += progress.LINE_SECONDS
        count(5, 7)
        count(3, 7)  # of a thread that comes late
        count(7, 7)
    assert written(lines).splitlines() == [
        "stimuli: 7 items",
        "stimuli: 5 of 7 items, 20/min, about 6 s left",
        f"stimuli: 7 items in {progress.LINE_SECONDS:.1f} s",
    ]


def test_stage__lines(clock: Clock) -> None:
    lines = console()
    with stage(lines, "extract", 2000, "stimuli") as shown:
        clock.now += 1
        shown.advance(100)  # too soon for another line
        clock.now += progress.LINE_SECONDS - 1
        shown.advance(400)
        clock.now += 1
        shown.advance(500, failed=2)  # too soon after that one
        clock.now += progress.LINE_SECONDS
        shown.advance(1000)
        clock.now += 0.5
    assert written(lines).splitlines() == [
        "extract: 2,000 stimuli",
        "extract: 500 of 2,000 stimuli, 33/s, about 45 s left",
        "extract: 2,000 of 2,000 stimuli, 65/s, about 0 s left, 2 failed",
        "extract: 2,000 stimuli in 31.5 s, 2 failed",
    ]


def test_stage__time_goes_by_cost(clock: Clock) -> None:
    """Half of the units can be nine tenths of the work."""
    lines = console()
    with stage(lines, "compare", 10, "pairs", cost=100.0) as shown:
        clock.now += 90
        shown.advance(5, cost=90.0)
        assert shown.left == pytest.approx(10.0)
    assert "compare: 5 of 10 pairs, 3.3/min, about 10 s left" in written(lines)


def test_stage__what_is_told_of_a_task_before_it_ends(clock: Clock) -> None:
    with stage(console(), "extract", 100, "stimuli", cost=200.0) as shown:
        clock.now += 10
        shown.within("a", 25, 50.0)
        shown.within("a", 50, 100.0)
        assert (shown.done, shown.share) == (50, 0.5)
        shown.within("a", 10, 20.0)  # its worker died, and it began anew
        assert (shown.done, shown.share) == (10, 0.1)
        shown.advance(100, cost=200.0, part="a")
        shown.within("a", 60, 120.0)  # word that was long on its way
        assert (shown.done, shown.share) == (100, 1.0)


def test_stage__nothing_done_yet(clock: Clock) -> None:
    lines = console()
    with stage(lines, "compare", 5, "pairs") as shown:
        clock.now += progress.LINE_SECONDS
        shown.advance(0)
    assert "compare: 0 of 5 pairs\n" in written(lines)  # nobody knows how long it will take


def test_stage__says_nothing_of_an_end_that_was_not_reached(clock: Clock) -> None:
    lines = console()
    with pytest.raises(RuntimeError, match="broken"):
        break_off(lines)
    assert " in " not in written(lines)


def test_stage__bar_fits_into_80_columns() -> None:
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    with stage(terminal, "competence", 12800, "encoders") as shown:
        shown.advance(3000)
        shown.advance(9800, failed=1)
    last = plain(terminal).replace("\r", "\n").strip().splitlines()[-1]
    expected = r"competence +━+ 12,800/12,800 encoders [\d,]+/s +took 0:00:00 1 failed"
    assert re.fullmatch(expected, last.strip()), last
    assert "calibrate: " not in plain(terminal)


def test_stage__bar_of_an_end_that_was_not_reached() -> None:
    terminal = console(force_terminal=True)
    with pytest.raises(RuntimeError, match="broken"):
        break_off(terminal)
    assert "1/3" in written(terminal)
    assert terminal._live_stack == []  # the terminal is free again


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter_client's event loops
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stage__in_a_notebook() -> None:
    """One bar for a stage, which moves: no widgets, no line upon line."""
    cell = textwrap.dedent(
        """
        from rich.console import Console
        from pipeline import progress
        progress.NOTEBOOK_SECONDS = 0
        with progress.stage(Console(stderr=True), "extract", 8, "stimuli") as shown:
            shown.advance(3)
            shown.advance(5, failed=1)
        """
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=int(PATIENCE), startup_timeout=int(PATIENCE)).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert re.fullmatch(
        r"extract +100%  8/8 stimuli  [\d,.]+/s  took 0:00:00  1 failed",
        output.data["text/plain"],
    )
    assert '<progress value="1.000" max="1"' in output.data["text/html"]
    assert "1 failed" in output.data["text/html"]
