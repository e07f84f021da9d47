"""The resources of workers, the progress of tasks on them, and what a task took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.utils import parse_bytes

from pipeline.cluster import connection, machine
from pipeline.cluster.spec import BatchSpec, ClusterSpec, KubernetesSpec, LocalSpec
from pipeline.errors import InputError

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class WorkerResources:
    """Memory and threads of one worker."""

    memory: int
    """Limit in bytes, above which the worker is killed."""
    threads: int = 1
    """Tasks that it runs at a time."""


def worker_resources(client: Client) -> list[WorkerResources]:
    """Return the resources of each worker whose memory is limited."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [
        WorkerResources(int(w["memory_limit"]), int(w["nthreads"]))
        for w in workers
        if w["memory_limit"]
    ]


def planned_worker_resources(spec: ClusterSpec) -> list[WorkerResources]:
    """Return the resources of the workers that a spec starts; empty where the spec has none."""
    if isinstance(spec, BatchSpec):
        return [WorkerResources(parse_bytes(spec.memory) // spec.workers_per_job)]
    if isinstance(spec, KubernetesSpec):
        return [WorkerResources(parse_bytes(spec.memory))]
    if not isinstance(spec, LocalSpec):
        return []
    import logging

    connection.silence()
    from distributed.worker_memory import parse_memory_limit

    # importing torch takes seconds: do so only where there may be a GPU
    gpus = machine.n_gpus() if Path("/dev/nvidiactl").exists() else 0
    n_workers = spec.n_workers or gpus or machine.cpu_count()
    share = {} if gpus else {"total_cores": n_workers}
    quiet = logging.getLogger("pipeline.cluster.workers")
    limit = parse_memory_limit(spec.memory_limit, 1, **share, logger=quiet)
    return [WorkerResources(limit)] * n_workers if limit else []


@dataclass(frozen=True)
class Timed:
    """A task's result, with where it ran, when, and what it took."""

    result: Any
    worker: str
    started: float
    """Seconds since 1970, by the worker's clock."""
    seconds: float
    read: int
    """Bytes that the worker's process read meanwhile, from files and from other processes."""
    written: int
    memory: int
    """Resident bytes of the process at the end."""


_running = threading.local()
REPORT_SECONDS = 1.0
"""Shortest time between two reports of a task's progress."""


def timed(function: Callable[..., Any], topic: str, name: str) -> Callable[..., Timed]:
    """Return a function that calls another on a worker and records where, when and what it took.

    Parameters
    ----------
    topic, name
        Dask topic and name of the task under which `report_progress` reports.
    """
    # the scheduler estimates durations by a function's name
    return update_wrapper(partial(_timed, function, topic, name), function, _NAME, ())


_NAME = ("__name__",)


def _timed(function: Callable[..., Any], topic: str, name: str, *arguments: Any) -> Timed:
    import psutil
    from distributed import get_worker

    process = psutil.Process()
    try:
        worker = str(get_worker().address)
    except ValueError:
        worker = ""
    before, started, tick = _bytes_transferred(process), time.time(), time.monotonic()
    _running.task = topic, name
    _running.last_report = tick
    try:
        result = function(*arguments)
    finally:
        del _running.task
    after = _bytes_transferred(process)
    return Timed(
        result,
        worker,
        started,
        time.monotonic() - tick,
        after[0] - before[0],
        after[1] - before[1],
        process.memory_info().rss,
    )


def report_progress(done: int) -> None:
    """Report from within a task how much of it is done; cheap, and rate-limited.

    Does nothing outside of a worker.
    """
    task, now = getattr(_running, "task", None), time.monotonic()
    if task is None or now - _running.last_report < REPORT_SECONDS:
        return
    from distributed import get_worker

    _running.last_report = now
    topic, name = task
    with suppress(ValueError):
        get_worker().log_event(topic, (name, done))


@contextmanager
def subscribe_progress(
    client: Client, topic: str, on_progress: Callable[[str, int], None]
) -> Iterator[None]:
    """Call `on_progress(name, done)`, in another thread, for what tasks report under a topic."""
    client.subscribe_topic(topic, lambda event: on_progress(*event[1]))
    try:
        yield
    finally:
        if client.status == "running":  # a scheduler that is lost has its own message
            client.unsubscribe_topic(topic)


def _bytes_transferred(process: Any) -> tuple[int, int]:
    """Return the bytes a process has read and written; zeros where the system has no counters."""
    if not hasattr(process, "io_counters"):  # macOS
        return 0, 0
    counters = process.io_counters()
    return (
        int(getattr(counters, "read_chars", counters.read_bytes)),
        int(getattr(counters, "write_chars", counters.write_bytes)),
    )


def check_report_file(file: Path) -> None:
    """Check before a run that its performance report can be written.

    Raises
    ------
    InputError
        Where the folder does not exist, the file is a folder, or bokeh, which draws the report, is
        not installed.
    """
    from importlib.util import find_spec

    if file.is_dir():
        raise InputError(f"--performance-report {file}: this is a folder. Name a file in it.")
    if not file.absolute().parent.is_dir():
        raise InputError(
            f"--performance-report {file}: there is no folder {file.absolute().parent}. Create it, "
            "or name another file."
        )
    if find_spec("bokeh") is None:
        raise InputError(
            "--performance-report: bokeh, which draws the report, is not installed. "
            "`pip install 'consilience[dashboard]'`."
        )


@contextmanager
def performance_report(client: Client, file: Path) -> Iterator[None]:
    """Write Dask's HTML report of what the cluster does in the `with` block."""
    from distributed import performance_report as record

    with client.as_current(), record(filename=str(file)):
        yield
