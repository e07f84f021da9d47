"""The interface of a stage, and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
from pipeline.workflow.representations import prepared_bytes

IDLE = 256 * 2**20
"""Measured bytes of an idle worker, with the imports for comparing."""

Job = TypeVar("Job")
Pending = TypeVar("Pending")


@dataclass(frozen=True, kw_only=True)
class StageTask(Task):
    """A task of a stage, with its cost and its size. Workers call `function(store, job)`."""

    job: Any
    estimate: Cost
    """Estimated cost."""
    size: int
    """Amount of work, counted in the stage's `unit`."""


def stage_task(
    name: str,
    function: Callable[[StoreRef, Job], Any],
    job: Job,
    *,
    estimate: Cost,
    size: int,
    device: Device = "cpu",
) -> StageTask:
    """Return a task whose priority is its number of operations: the costliest run first.

    Parameters
    ----------
    function
        Called on a worker with a reference to the store, and the job.
    estimate
        Estimated cost.
    size
        Amount of work, counted in the stage's `unit`.
    """
    return StageTask(
        name, function, (), estimate.operations, device, job=job, estimate=estimate, size=size
    )


class Failure(NamedTuple):
    """A partial failure, within a task that finished."""

    what: str
    why: str


@dataclass
class PendingGrids:
    """Missing pairs in the grids of all comparisons."""

    grids: list[tuple[Comparison, Mapping[str, PendingPairs]]] = field(default_factory=list)
    """Each comparison with label → missing pairs of that measure's grid."""
    n_missing: int = 0
    """Number of missing unordered pairs, summed over comparisons and measures."""
    n_wanted: int = 0
    """Number of requested unordered pairs, summed likewise."""

    def add(self, comparison: Comparison, todo: Mapping[str, PendingPairs], wanted: Mask) -> None:
        """Add the grids of a comparison.

        Parameters
        ----------
        todo
            Label → missing pairs of that measure's grid.
        wanted
            Symmetric mask of the requested pairs, the same for every measure.
        """
        self.grids.append((comparison, todo))
        self.n_missing += sum(each.n_pairs for each in todo.values())
        self.n_wanted += len(todo) * int(np.triu(wanted).sum())

    def __bool__(self) -> bool:
        return self.n_missing > 0

    def labels(self) -> set[str]:
        """Return the labels of measures with missing pairs."""
        return {label for _, todo in self.grids for label, each in todo.items() if each.n_pairs}

    def __iter__(self) -> Iterator[tuple[Comparison, Mapping[str, PendingPairs]]]:
        return iter(self.grids)


class Stage(Protocol[Pending]):
    """A stage of a run: its pending work, the tasks that do it, and what happens to their results.

    A plan calls only `pending`, `tasks`, `affected`, `summary`, `resident` and `remedy`, which
    write nothing and work before the store exists. The driver of a run calls the other methods
    too, under the store's lease.
    """

    name: str
    unit: str
    """Unit of the tasks' sizes, plural."""
    counted: str
    """What `summary` counts, plural."""
    worker_baseline: int = IDLE
    """Bytes of an idle worker with the stage's imports."""
    leaves_memory: bool = False
    """Whether memory held by its tasks stays allocated through later stages."""

    def pending(self, ctx: Context) -> Pending:
        """Compare what is requested with the store; falsy if nothing is to be done."""

    def tasks(self, ctx: Context, pending: Pending) -> Iterator[StageTask]:
        """Yield the tasks that do the pending work; none if the driver does all of it."""
        yield from ()

    def create(self, ctx: Context, pending: Pending) -> None:
        """Create the arrays that tasks write into. Called even if there are no tasks."""
        return

    def collect(
        self, ctx: Context, pending: Pending, task: StageTask, result: Any
    ) -> Iterator[Failure]:
        """Process the result of a task; yield its partial failures."""
        yield from ()

    def finish(self, ctx: Context, pending: Pending) -> None:
        """Do the driver's part once all tasks have ended. Called even if there are no tasks."""
        return

    def affected(self, ctx: Context, pending: Pending) -> Iterable[str]:
        """Return the labels of measures whose results change with the pending work."""
        return ctx.specs if pending else ()

    def summary(self, ctx: Context, pending: Pending) -> tuple[int, int]:
        """Return how much is missing and how much is requested, in units of `counted`."""

    def resident(self, ctx: Context) -> float:
        """Return the bytes of memory that a worker may hold from other tasks of the stage."""
        return 0.0

    def remedy(self, ctx: Context) -> str:
        """Return which settings to lower if workers have too little memory, with no full stop."""
        return f"Lower subset.n (now {len(ctx.subset)})"


class GridStage(Stage[PendingGrids]):
    """A stage whose tasks fill grids of pairs, from prepared representations."""

    def affected(self, ctx: Context, pending: PendingGrids) -> Iterable[str]:
        """Return the labels of measures with missing pairs."""
        return pending.labels()

    def summary(self, ctx: Context, pending: PendingGrids) -> tuple[int, int]:
        """Count unordered pairs, over subsets and measures."""
        return pending.n_missing, pending.n_wanted

    def resident(self, ctx: Context) -> float:
        """Return the bytes of prepared representations that a worker may cache."""
        prepared = sum(prepared_bytes(c.encoders, c.subset, ctx.specs) for c in ctx.comparisons)
        return min(float(ctx.workflow.compare.budget.memory), prepared)
