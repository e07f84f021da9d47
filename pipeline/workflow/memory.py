"""Refuse a plan that needs more memory than its workers have, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from dask.utils import format_bytes

from pipeline.cluster import ClusterSpec, LocalSpec
from pipeline.cluster.workers import WorkerResources
from pipeline.errors import InputError
from pipeline.workflow.plan import Plan

TERMINATE, PAUSE = 0.95, 0.8
"""Dask's defaults: fractions of its memory at which a worker is killed, or gets no new tasks."""


def memory_of_stages(plan: Plan, threads: int = 1) -> dict[str, float]:
    """Return the memory that a worker needs, by stage, in bytes; stages without tasks left out.

    Parameters
    ----------
    threads
        Tasks that a worker runs at a time.

    Notes
    -----
    Counts an idle worker and what earlier stages leave in memory, so that Dask neither kills the
    worker in the middle of a task nor pauses it for ever after one.
    """
    found = {}
    idle, left = 0.0, 0.0
    for name, planned in plan.stages.items():
        needs = planned.needs
        if needs is None:
            continue
        idle = max(idle, float(planned.stage.worker_baseline))
        after_task = idle + left + needs.held
        peak = after_task + threads * (needs.memory - needs.held)
        found[name] = max(peak / TERMINATE, after_task / PAUSE)
        if planned.stage.leaves_memory:
            left += needs.held
    return found


def check_memory(plan: Plan, workers: Sequence[WorkerResources], cluster: ClusterSpec) -> None:
    """Raise if a plan needs more memory than the workers have.

    Parameters
    ----------
    workers
        Memory and threads of each worker; empty if unknown.
    cluster
        The cluster that the workers belong to. It decides which settings the message names.

    Raises
    ------
    InputError
        If a worker has too little memory; with both numbers, and the settings to change.
    """
    local = cluster if isinstance(cluster, LocalSpec) else None
    for worker in workers:
        for name, needed in memory_of_stages(plan, worker.threads).items():
            if needed <= worker.memory:
                continue
            raise InputError(
                f"{name}: a worker needs up to {format_bytes(round(needed))} of memory, and "
                f"{'each' if local else 'one'} has {format_bytes(worker.memory)}"
                + (f" for {worker.threads} tasks at a time" if worker.threads > 1 else "")
                + f". {plan.stages[name].stage.remedy(plan.context)}, "
                + (
                    f"raise cluster.memory_limit (now {local.memory_limit}), or run "
                    f"fewer workers (cluster.n_workers, now {len(workers)})."
                    if local
                    else "or start workers with more (cluster.memory, or `dask worker "
                    "--memory-limit`) or with fewer threads (`--nthreads 1`)."
                )
            )
