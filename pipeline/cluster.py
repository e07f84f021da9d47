"""Dask clusters, and the sliding window through which tasks reach them.

The only importer of `dask.distributed`. A cluster starts when the first task is submitted, so a
run that finds nothing to do starts none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConsilienceError, InputError
from pipeline.yamlfile import Spec

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 30
_LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.core",
    "distributed.http.proxy",
    "distributed.nanny",
    "distributed.scheduler",
    "distributed.worker",
    "distributed.worker.state_machine",
    "distributed.comm",
)
ATTEMPTS = 3
# workers make and drop arrays of tens of megabytes all the time: where glibc gives each back to the
# system at once, as distributed tells it to, the page faults cost more than the arithmetic
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**28}


class ClusterSpec(Spec):
    """Where tasks run."""

    kind: Literal["local", "address"] = "local"
    """`local`: workers on this machine. `address`: a scheduler that runs already."""
    address: str | None = None
    """The scheduler's address, `tcp://host:8786`, for kind: address."""
    n_workers: int | None = Field(default=None, ge=1)
    """Local workers; default: one per GPU, or one per CPU core."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of arithmetic in each local worker."""
    memory_limit: str = "auto"
    """Memory of each local worker (`4GiB`), `auto` for an equal share, `0` for no limit."""

    @model_validator(mode="after")
    def _address(self) -> ClusterSpec:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("kind: address goes with an address (tcp://host:port), and only it.")
        return self


def override(spec: ClusterSpec, address: str | None) -> ClusterSpec:
    """Return the spec with an address from the command line, or from DASK_SCHEDULER_ADDRESS."""
    if address == "local":
        return spec if spec.kind == "local" else ClusterSpec()
    address = address or (
        os.environ.get("DASK_SCHEDULER_ADDRESS") if spec.kind == "local" else None
    )
    return ClusterSpec(kind="address", address=address) if address else spec


@dataclass(frozen=True)
class Task:
    """One unit of work: a module-level function and small, picklable arguments."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cost: float = 1.0
    """Relative cost: the longest go first."""
    gpu: bool = False
    """Whether to run where a GPU is, if any worker offers one."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    task: Task
    result: Any = None
    error: BaseException | None = None


@dataclass
class Executor:
    """Runs tasks on a cluster that starts at the first one."""

    spec: ClusterSpec
    _stack: ExitStack = field(default_factory=ExitStack)
    _client: Client | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yield outcomes as tasks finish, the costliest started first.

        Few tasks are in flight at a time: tasks submitted all at once are pre-assigned, and one
        that kills its worker would take its neighbours in the queue down with it.
        """
        queue = sorted(tasks, key=lambda t: -t.cost)
        if not queue:
            return
        client = self.start()
        from distributed import as_completed

        has_gpu = any(
            "GPU" in w.get("resources", {}) for w in client.scheduler_info()["workers"].values()
        )
        threads = max(1, sum(client.nthreads().values()))
        waiting = iter(queue)
        running: dict[Any, Task] = {}

        def submit(task: Task) -> Any:
            resources = {"GPU": 1} if task.gpu and has_gpu else None
            # every call is its own: the scheduler would return the result of an equal key, also
            # to another run
            future = client.submit(
                task.function,
                *task.arguments,
                key=f"{task.name}-{uuid.uuid4().hex[:8]}",
                pure=False,
                resources=resources,
                retries=0,
            )
            running[future] = task
            return future

        completed = as_completed(loop=client.loop)
        for task in islice(waiting, 2 * threads):
            completed.add(submit(task))
        for future in completed:
            task = running.pop(future)
            error = future.exception()
            result = None if error else future.result()
            future.release()
            following = next(waiting, None)
            if following is not None:
                completed.add(submit(following))
            yield Outcome(task, result, error)

    def start(self) -> Client:
        """Connect, or start the cluster, if that has not been done yet."""
        if self._client is None:
            self._client = self._stack.enter_context(connect(self.spec))
        return self._client

    def close(self) -> None:
        """Disconnect, and stop a cluster that was started here."""
        self._stack.close()
        self._client = None


@contextmanager
def executor(spec: ClusterSpec) -> Iterator[Executor]:
    """Give an executor, and close what it started."""
    made = Executor(spec)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def connect(spec: ClusterSpec) -> Iterator[Client]:
    """Connect to the cluster that a spec names, starting a local one.

    Raises
    ------
    InputError
        Where no scheduler answers at the address within half a minute, or it has no worker.
    """
    import dask

    # what goes wrong is reported by the run itself, once and by name; read at the next import
    dask.config.set({"logging": dict.fromkeys(_LOGGERS, "critical")})
    from distributed import Client, LocalCluster, SpecCluster

    with ExitStack() as stack:
        stack.enter_context(
            dask.config.set(
                {
                    "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
                    **{f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in _MALLOC.items()},
                }
            )
        )
        if spec.kind == "address":
            try:
                _probe(str(spec.address))
                client = Client(spec.address, timeout=CONNECT_SECONDS, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise InputError(
                    f"no Dask scheduler answers at {spec.address} within {CONNECT_SECONDS} s "
                    f"({type(error).__name__}). Start one (`dask scheduler`), or correct the "
                    "address in `cluster:` or --cluster."
                ) from None
            stack.enter_context(client)
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError:
                raise InputError(
                    f"the scheduler at {spec.address} has had no worker for {CONNECT_SECONDS} s. "
                    f"Start workers: `dask worker {spec.address}`."
                ) from None
            yield client
            return
        gpus = n_gpus()
        with _interrupts_for_this_thread():
            if gpus:
                cluster: Any = SpecCluster(**gpu_cluster(spec, gpus))
            else:
                cluster = LocalCluster(
                    n_workers=spec.n_workers or cpu_count(),
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=spec.memory_limit,
                    dashboard_address=":0",
                    env=_thread_limits(spec.threads_per_worker),
                )
        stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def _interrupts_for_this_thread() -> Iterator[None]:
    """Keep Ctrl-C from what is started here, and from what that starts: masks are inherited.

    A terminal sends it to the workers too, which would each end with a traceback of its own.
    """
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # in the thread that first starts a process it would take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _probe(address: str) -> None:
    """Raise where nothing speaks Dask's protocol at an address.

    A client that cannot connect is never quite gone: collected at a bad moment, in the middle of
    another's start, it closes itself and waits for ever. So none is made before there is an answer.
    """
    from concurrent.futures import ThreadPoolExecutor

    from distributed.comm import connect as reach

    async def probe() -> None:
        comm = await reach(address, timeout=CONNECT_SECONDS)
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own in this one
        thread.submit(asyncio.run, probe()).result()


def n_gpus() -> int:
    """Return how many GPUs torch sees on this machine."""
    import torch

    return int(torch.cuda.device_count())


def cpu_count() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_cluster(spec: ClusterSpec, gpus: int) -> dict[str, Any]:
    """Return the options of a local cluster with one worker per GPU, each seeing its own."""
    from distributed import Nanny, Scheduler

    n = spec.n_workers or gpus
    workers = {
        f"gpu-{i}": {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1},
                "memory_limit": spec.memory_limit,
                "env": {
                    **_thread_limits(spec.threads_per_worker),
                    "CUDA_VISIBLE_DEVICES": str(i % gpus),
                },
            },
        }
        for i in range(n)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}}
    return {"workers": workers, "scheduler": scheduler}


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names}


def describe_failure(outcome: Outcome) -> str:
    """Say why a task failed, in one line."""
    error = outcome.error
    if isinstance(error, ConsilienceError):
        return str(error)
    if type(error).__name__ == "KilledWorker":
        return (
            f"{outcome.task.name}: whatever worker ran it died, {ATTEMPTS} times (out of memory, "
            "or a crash in native code). Give workers more memory, or a smaller batch size."
        )
    return f"{outcome.task.name}: {type(error).__name__}: {error}"


def worker_folder() -> str | None:
    """Return the folder of the Dask worker that this runs in, or None outside of one."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None
