"""What a stage of a run is, and what its tasks are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.cluster import Device, Task
from pipeline.store.grid import PendingPairs
from pipeline.store.io.lease import StoreRef
from pipeline.types import Mask
from pipeline.workflow.budgets import Cost
from pipeline.workflow.comparisons import Comparison
from pipeline.workflow.context import Context

IDLE = 256 * 2**20
"""Bytes of a worker with what it imports to compare, as measured."""

Job = TypeVar("Job")
Pending = TypeVar("Pending")


@dataclass(frozen=True, kw_only=True)
class StageTask(Task):
    """A task of a stage, with what it takes and how much of the stage it is.

    Its function is called with where the store is and the job: `function(store, job)`.
    """

    job: Any
    takes: Cost
    size: int
    """Units of the stage."""


def stage_task(
    name: str,
    function: Callable[[StoreRef, Job], Any],
    job: Job,
    *,
    takes: Cost,
    size: int,
    device: Device = "cpu",
) -> StageTask:
    """Make a task; the costliest of a stage go first."""
    return StageTask(
        name, function, (job,), takes.operations, device, job=job, takes=takes, size=size
    )


class Failure(NamedTuple):
    """Something that failed within a task that came to an end."""

    what: str
    why: str


@dataclass
class PendingGrids:
    """What the grids of all comparisons lack."""

    grids: list[tuple[Comparison, Mapping[str, PendingPairs]]] = field(default_factory=list)
    """Each comparison with label → what that measure's grid lacks."""
    n_missing: int = 0
    """Unordered pairs, over comparisons and measures."""
    n_wanted: int = 0

    def add(self, comparison: Comparison, todo: Mapping[str, PendingPairs], wanted: Mask) -> None:
        """Add the grids of a comparison, of all of whose pairs those of a mask are wanted."""
        self.grids.append((comparison, todo))
        self.n_missing += sum(each.n_pairs for each in todo.values())
        self.n_wanted += len(todo) * int(np.triu(wanted).sum())

    def __bool__(self) -> bool:
        return self.n_missing > 0

    def __iter__(self) -> Iterator[tuple[Comparison, Mapping[str, PendingPairs]]]:
        return iter(self.grids)


class Stage(Protocol[Pending]):
    """A stage of a run: what it lacks, the tasks that make it, and what becomes of their results.

    A plan calls what reads only, `pending`, `tasks`, `summary` and `resident`, and works where
    there is no store yet. The driver of a run calls the others as well, under the store's lease.
    """

    name: str
    unit: str
    """Of the tasks' sizes, in the plural."""
    counted: str
    """What `summary` counts, in the plural."""
    worker_baseline: int = IDLE
    """Bytes of an idle worker with what the stage imports."""
    leaves_memory: bool = False
    """Whether what its tasks hold stays in the workers through later stages."""

    def pending(self, ctx: Context) -> Pending:
        """Compare what is wanted with the store; falsy where nothing is to be done."""

    def tasks(self, ctx: Context, pending: Pending) -> Iterator[StageTask]:
        """Yield the tasks that do what is pending; none where the driver does it all."""
        yield from ()

    def create(self, ctx: Context, pending: Pending) -> None:
        """Make what the tasks write into; also where there are none."""
        return

    def collect(
        self, ctx: Context, pending: Pending, task: StageTask, result: Any
    ) -> Iterator[Failure]:
        """Take in what a task returned; yield what failed within it."""
        yield from ()

    def finish(self, ctx: Context, pending: Pending) -> None:
        """Do what remains for the driver once all tasks have ended."""
        return

    def summary(self, ctx: Context, pending: Pending) -> tuple[int, int]:
        """Return how much is missing, and how much is wanted, as `counted`."""

    def resident(self, ctx: Context) -> float:
        """Return the bytes that a worker may hold from other tasks of the stage."""
        return 0.0

    def remedy(self, ctx: Context) -> str:
        """Say which settings to lower where workers have not the memory, without a full stop."""
        return f"Lower subset.n (now {len(ctx.subset)})"
