"""What the command line prints: plans, runs and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.workflow import Plan, RunReport
    from pipeline.workflow.log import RunRecord

OUT = Console(highlight=False, soft_wrap=False)
ERR = Console(stderr=True, highlight=False)


def print_plan(plan: Plan) -> None:
    """Print what has been computed, what is left, and what that takes."""
    from pipeline.workflow import memory_of_stages

    table = new_table(
        "stage", "tasks", "to do", "done already", "operations", "read", "written", "memory"
    )
    untrained = len(plan.context.untrained)
    table.add_row("train", str(untrained), f"{untrained} models", "")
    memory = memory_of_stages(plan)
    for name, planned in plan.stages.items():
        taken = []
        if planned.needs is not None:
            needs = planned.needs
            sizes = needs.read, needs.written, memory[name]
            taken = [f"{needs.operations:.2g}", *map(bytes_text, sizes)]
        missing, wanted = planned.n_missing, planned.n_wanted
        table.add_row(
            name,
            str(planned.n_tasks),
            f"{missing:,} {planned.stage.counted}",
            f"{wanted - missing:,} of {wanted:,}",
            *taken,
        )
    print_table(table)
    if plan.needs:
        OUT.print("memory: what a worker needs to run one task at a time")
    ctx = plan.context
    rows = ", ".join(f"{len(c.subset)} {c.subset.kind}" for c in ctx.comparisons)
    OUT.print(f"stimuli {ctx.stimuli.key}: {len(ctx.stimuli)}; compared on {rows}")
    for note in ctx.stimuli.notes:
        OUT.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    OUT.print("nothing to do" if plan.is_done else f"store {plan.workflow.store}")


def print_runs(runs: Sequence[RunRecord]) -> None:
    """Print one row for each run that wrote to a store."""
    table = new_table("run", "seconds", "host", "tasks", "failed", "outcome")
    for each in runs:
        table.add_row(
            each.name,
            f"{each.seconds:.0f}",
            str(each.start.get("host", "")),
            str(len(each.tasks)),
            str(each.n_failed),
            each.outcome,
        )
    print_table(table)
    OUT.print(f"{len(runs)} runs" if runs else "no run has written to this store yet")


def print_run(run: RunRecord) -> None:
    """Print the tasks of a run, and how it ended."""
    table = new_table("task", "started", "seconds", "worker", "read", "written", "errors")
    for task in run.tasks:
        measured = "started" in task
        table.add_row(
            task["name"],
            task["started"][11:19] if measured else "",
            f"{task['seconds']:.1f}" if measured else "",
            task.get("worker", ""),
            bytes_text(task["read"]) if measured else "",
            bytes_text(task["written"]) if measured else "",
            "; ".join(task["errors"]),
        )
    print_table(table)
    start, end = run.start, run.end
    OUT.print(
        f"{run.name}: by {start.get('user', '')} on {start.get('host', '')}, process "
        f"{start.get('process', '')}, consilience {start.get('versions', {}).get('consilience')}",
        soft_wrap=True,
    )
    why = f": {end['error']}" if "error" in end else ""
    OUT.print(f"{run.outcome}{why}; {run.seconds:.0f} s", soft_wrap=True, markup=False)


def print_report(report: RunReport) -> None:
    """Print a run's findings, its failures, and where its results are."""
    if report.findings:
        columns = list(report.findings[0])
        table = new_table(*columns)
        for row in report.findings:
            table.add_row(*(_cell(row[c]) for c in columns))
        print_table(table)
    for note in report.notes:
        OUT.print(f"note: {note}", soft_wrap=True, markup=False)
    for name, why in report.failures.items():
        OUT.print(f"failed: {name}: {why}", soft_wrap=True)
    tasks = ", ".join(f"{n} {stage}" for stage, n in report.tasks.items() if n) or "none"
    OUT.print(f"tasks run: {tasks}; {report.seconds:.0f} s")
    OUT.print(f"store    {report.store}", soft_wrap=True)
    for figure in report.figures:
        OUT.print(f"figure   {figure}", soft_wrap=True)
    if report.report:
        OUT.print(f"report   {report.report}", soft_wrap=True)


def new_table(*columns: str) -> Table:
    """Return an empty table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table; where the terminal is too narrow for it, without folding its cells."""
    cells = [list(column.cells) for column in table.columns]
    rows: Iterable[tuple[Any, ...]] = zip(*cells, strict=True)
    widths = [
        max(len(str(column.header)), *map(len, map(str, c or [""])))
        for column, c in zip(table.columns, cells, strict=True)
    ]
    if OUT.is_terminal and sum(widths) + 2 * (len(widths) - 1) <= OUT.width:
        OUT.print(table)
        return
    for row in [tuple(column.header for column in table.columns), *rows]:
        text = "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True))
        click.echo(text.rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def count_text(n: float) -> str:
    """Write a number with an SI suffix."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:.0f}"


def bytes_text(n: float) -> str:
    """Write a number of bytes in a suitable unit."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"
