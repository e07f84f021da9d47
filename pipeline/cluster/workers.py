"""What is known of workers: the memory they have, and where and how long a task ran on one."""

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
class Room:
    """What one worker has."""

    memory: int
    """Bytes, after which it is ended."""
    threads: int = 1
    """Tasks that it runs at a time."""


def rooms_of(client: Client) -> list[Room]:
    """Return what each worker has, of those whose memory is limited."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [Room(int(w["memory_limit"]), int(w["nthreads"])) for w in workers if w["memory_limit"]]


def rooms_to_be(spec: ClusterSpec) -> list[Room]:
    """Return what the workers that a spec starts will have; nothing where it does not say."""
    if isinstance(spec, BatchSpec):
        return [Room(parse_bytes(spec.memory) // spec.workers_per_job)]
    if isinstance(spec, KubernetesSpec):
        return [Room(parse_bytes(spec.memory))]
    if not isinstance(spec, LocalSpec):
        return []
    import logging

    connection.silence()
    from distributed.worker_memory import parse_memory_limit

    # torch is asked only where there may be something to find
    gpus = machine.n_gpus() if Path("/dev/nvidiactl").exists() else 0
    n_workers = spec.n_workers or gpus or machine.cpu_count()
    share = {} if gpus else {"total_cores": n_workers}
    quiet = logging.getLogger("pipeline.cluster.workers")
    limit = parse_memory_limit(spec.memory_limit, 1, **share, logger=quiet)
    return [Room(limit)] * n_workers if limit else []


@dataclass(frozen=True)
class Timed:
    """A task's result, with where and when it ran."""

    result: Any
    worker: str
    started: float
    """Seconds since 1970, by the worker's clock."""
    seconds: float
    read: int
    """Bytes that the worker's process read meanwhile, from files and from others."""
    written: int
    memory: int
    """Bytes that the process took at the end."""


_running = threading.local()
TELL_SECONDS = 1.0
"""How often a task says how far it is."""


def timed(function: Callable[..., Any], topic: str, name: str) -> Callable[..., Timed]:
    """Return a function that calls another on a worker, and says where, when, and what it took.

    Parameters
    ----------
    topic, name
        Under which the function's `tell` is heard.
    """
    # the scheduler learns durations by a function's name
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
    before, started, tick = _moved(process), time.time(), time.monotonic()
    _running.about = topic, name
    _running.told = tick
    try:
        result = function(*arguments)
    finally:
        del _running.about
    after = _moved(process)
    return Timed(
        result,
        worker,
        started,
        time.monotonic() - tick,
        after[0] - before[0],
        after[1] - before[1],
        process.memory_info().rss,
    )


def tell(done: int) -> None:
    """Say from within a task how much of it is done, for whoever shows it. Costs next to nothing.

    Outside of a worker nobody hears it.
    """
    about, now = getattr(_running, "about", None), time.monotonic()
    if about is None or now - _running.told < TELL_SECONDS:
        return
    from distributed import get_worker

    _running.told = now
    with suppress(ValueError):
        get_worker().log_event(about[0], (about[1], done))


@contextmanager
def heard(client: Client, topic: str, hear: Callable[[str, int], None]) -> Iterator[None]:
    """Pass on what tasks tell under a topic, as (name, done), in another thread."""
    client.subscribe_topic(topic, lambda event: hear(*event[1]))
    try:
        yield
    finally:
        if client.status == "running":  # a scheduler that is lost has its own message
            client.unsubscribe_topic(topic)


def _moved(process: Any) -> tuple[int, int]:
    """Return the bytes that a process has read and written; zeros where no system counts them."""
    if not hasattr(process, "io_counters"):  # macOS
        return 0, 0
    counters = process.io_counters()
    return (
        int(getattr(counters, "read_chars", counters.read_bytes)),
        int(getattr(counters, "write_chars", counters.write_bytes)),
    )


def check_report_file(file: Path) -> None:
    """Raise where a performance report could not be written in the end.

    Raises
    ------
    InputError
        Where the folder is not there, the file is one, or bokeh, which draws it, is not installed.
    """
    from importlib.util import find_spec

    if file.is_dir():
        raise InputError(f"--performance-report {file}: this is a folder. Name a file in it.")
    if not file.absolute().parent.is_dir():
        raise InputError(
            f"--performance-report {file}: there is no folder {file.absolute().parent}. Make it, "
            "or name another file."
        )
    if find_spec("bokeh") is None:
        raise InputError(
            "--performance-report: bokeh, which draws the report, is not installed. "
            "`pip install 'consilience[dashboard]'`."
        )


@contextmanager
def performance_report(client: Client, file: Path) -> Iterator[None]:
    """Write Dask's report of what a cluster did meanwhile, as HTML."""
    from distributed import performance_report as record

    with client.as_current(), record(filename=str(file)):
        yield
