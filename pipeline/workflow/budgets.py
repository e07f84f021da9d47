"""Estimated cost of tasks: operations, bytes of I/O, and memory of the worker.

Memory is an upper bound on what a task adds to an idle worker. The temporary memory of preparing
is added to that of comparing afterwards: blocks freed between arrays that stay alive are fragmented
and can seldom be reused for larger arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERHEAD = 24 * 2**20
"""Measured bytes that BLAS and zarr's I/O threads keep for themselves."""


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one task."""

    operations: float
    read: float
    """Bytes read from the store if nothing is cached."""
    written: float
    """Bytes written to the store."""
    working: float
    """Bytes of memory used only while the task runs."""
    held: float = 0.0
    """Bytes of memory that stay allocated for later tasks."""

    @property
    def memory(self) -> float:
        """Bytes that the task adds to an idle worker, at most."""
        return self.working + self.held + OVERHEAD


@dataclass(frozen=True)
class Needs:
    """Total cost of a stage's tasks, and the memory of the worker that runs them."""

    operations: float
    read: float
    written: float
    memory: float
    """Bytes that one task at a time adds to an idle worker, at most."""
    held: float
    """Bytes of these that stay allocated after a task has ended."""

    @classmethod
    def of(cls, costs: Sequence[Cost], resident: float = 0.0) -> Needs:
        """Add up the costs of at least one task.

        Parameters
        ----------
        resident
            Bytes that a worker holds from other tasks of the stage.

        Returns
        -------
        Needs
            Operations and I/O summed over tasks; memory as the maximum.
        """
        held = max(resident, *(c.held for c in costs))
        return cls(
            sum(c.operations for c in costs),
            sum(c.read for c in costs),
            sum(c.written for c in costs),
            max(c.working + max(c.held, resident) for c in costs) + OVERHEAD,
            held,
        )
