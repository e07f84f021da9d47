"""Refuse a plan that its workers have not the memory for, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from dask.utils import format_bytes

from pipeline.cluster import ClusterSpec, LocalSpec
from pipeline.cluster.workers import WorkerResources
from pipeline.errors import InputError
from pipeline.workflow.plan import Plan

ENDS, PAUSES = 0.95, 0.8
"""Shares of its memory at which Dask ends a worker, and gives it nothing more to do."""


def memory_of_stages(plan: Plan, threads: int = 1) -> dict[str, float]:
    """Return, by stage, the memory that a worker has to have, in bytes.

    Parameters
    ----------
    threads
        Tasks that it runs at a time.

    Notes
    -----
    With what an idle worker takes and what earlier stages have left, so that Dask neither ends the
    worker in the middle of a task nor leaves it idle for ever after one.
    """
    found = {}
    idle, left = 0.0, 0.0
    for name, planned in plan.stages.items():
        needs = planned.needs
        if needs is None:
            continue
        idle = max(idle, float(planned.stage.worker_baseline))
        resting = idle + left + needs.held
        peak = resting + threads * (needs.memory - needs.held)
        found[name] = max(peak / ENDS, resting / PAUSES)
        if planned.stage.leaves_memory:
            left += needs.held
    return found


def check_memory(plan: Plan, rooms: Sequence[WorkerResources], cluster: ClusterSpec) -> None:
    """Raise where the workers have not the memory that a plan takes.

    Parameters
    ----------
    rooms
        What each worker has; none where nothing is known.
    cluster
        Whose workers they are: of a local one a person can change the settings.

    Raises
    ------
    InputError
        With both numbers, and the settings to change.
    """
    local = cluster if isinstance(cluster, LocalSpec) else None
    for room in rooms:
        for name, needed in memory_of_stages(plan, room.threads).items():
            if needed <= room.memory:
                continue
            raise InputError(
                f"{name}: a worker needs up to {format_bytes(round(needed))} of memory, and "
                f"{'each' if local else 'one'} has {format_bytes(room.memory)}"
                + (f" for {room.threads} tasks at a time" if room.threads > 1 else "")
                + f". {plan.stages[name].stage.remedy(plan.context)}, "
                + (
                    f"raise cluster.memory_limit (now {local.memory_limit}), or run "
                    f"fewer workers (cluster.n_workers, now {len(rooms)})."
                    if local
                    else "or start workers with more (cluster.memory, or `dask worker "
                    "--memory-limit`) or with fewer threads (`--nthreads 1`)."
                )
            )
