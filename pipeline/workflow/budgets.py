"""What tasks take: operations, bytes, and the memory of the worker that runs them.

Memory is what a task adds to an idle worker, as an upper bound: what preparing takes for a moment
is added to what comparing takes afterwards, because memory that is given back between arrays that
stay is seldom of use to larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERHEAD = 24 * 2**20
"""What BLAS and the threads in which zarr reads and writes keep for themselves, as measured."""


@dataclass(frozen=True)
class Cost:
    """What one task takes."""

    operations: float
    read: float
    """Bytes of the store, if nothing is held of what was read before."""
    written: float
    """Bytes of the store."""
    working: float
    """Bytes of memory while it runs, beside what is held."""
    held: float = 0.0
    """Bytes of memory for what is kept for later tasks too."""

    @property
    def memory(self) -> float:
        """Bytes that the task adds to an idle worker."""
        return self.working + self.held + OVERHEAD


@dataclass(frozen=True)
class Needs:
    """What the tasks of a stage take together, and the memory of the worker that runs them."""

    operations: float
    read: float
    written: float
    memory: float
    """Bytes that one task at a time adds to an idle worker at most."""
    held: float
    """Bytes of these that stay when a task has ended."""

    @classmethod
    def of(cls, costs: Sequence[Cost], resident: float = 0.0) -> Needs:
        """Add up the costs of at least one task.

        Parameters
        ----------
        resident
            Bytes that a worker holds from other tasks of the stage.
        """
        held = max(resident, *(c.held for c in costs))
        return cls(
            sum(c.operations for c in costs),
            sum(c.read for c in costs),
            sum(c.written for c in costs),
            max(c.working + max(c.held, resident) for c in costs) + OVERHEAD,
            held,
        )
