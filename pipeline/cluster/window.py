"""Tasks submitted to a cluster through a sliding window, and their outcomes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from pipeline.cluster import connection
from pipeline.cluster.kinds import respawn_workers
from pipeline.cluster.spec import ClusterSpec
from pipeline.errors import ClusterError, ConsilienceError, InputError

if TYPE_CHECKING:
    from distributed import Client

POLL_SECONDS = 1.0
"""How often the scheduler is asked for its workers."""
SILENCE_SECONDS = 60.0
"""How long the scheduler may take to answer."""
RESULT_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Task:
    """One unit of work: a module-level function and small, picklable arguments."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cost: float = 1.0
    """Relative cost: the costliest start first."""
    device: Device = "cpu"
    """`cuda`: only on workers with a GPU. `auto`: on those, if there are any."""


@dataclass(frozen=True)
class Outcome:
    """The result of a task, or its error."""

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

        Two tasks per worker thread are in flight: tasks submitted all at once are assigned in
        advance, and one that kills its worker would take its neighbours in the queue with it. The
        number follows the workers as they come and go.

        A task during which several workers have died is a suspect, as is whatever ran beside it.
        Suspects are retried when all else is done, one at a time with nothing beside them: what
        kills workers even then is reported as failed. So such a task fails after twice the deaths
        that the scheduler allows, and no other task fails with it.

        Raises
        ------
        ClusterError
            Where the scheduler is lost, or there has been no worker for as long as the spec allows.
        InputError
            Where a task must have a GPU, and no worker offers one.
        """
        queue = sorted(tasks, key=lambda t: -t.cost)
        if queue:
            yield from _Window(self.start(), self.spec, queue).outcomes()

    def start(self) -> Client:
        """Connect, or start the cluster, if that has not been done yet."""
        if self._client is None:
            self._client = self._stack.enter_context(connection.connect(self.spec))
        return self._client

    def close(self) -> None:
        """Disconnect, and stop a cluster that was started here."""
        self._stack.close()
        self._client = None


@contextmanager
def executor(spec: ClusterSpec) -> Iterator[Executor]:
    """Yield an executor, and close what it started."""
    made = Executor(spec)
    try:
        yield made
    finally:
        made.close()


def describe_failure(outcome: Outcome) -> str:
    """Return why a task failed, in one line."""
    error = outcome.error
    if isinstance(error, ConsilienceError):
        return str(error)
    return f"{outcome.task.name}: {type(error).__name__}: {error}"


class _Workers:
    """The cluster's workers as last polled, and since when none has been usable."""

    def __init__(self, client: Client, spec: ClusterSpec) -> None:
        self.client, self.spec = client, spec
        self.threads: dict[str, int] = {}
        self.gpus = 0
        self.polled_at = 0.0
        self.usable_at = time.monotonic()
        self.ever_usable = self.warned = False

    def poll(self, *, needs_gpu: Callable[[], bool]) -> None:
        """Ask the scheduler, unless it was asked just now; raise where waiting is hopeless."""
        now = time.monotonic()
        if now - self.polled_at < POLL_SECONDS:
            return
        before = set(self.threads)
        self.threads = self._ask("ncores")
        if set(self.threads) != before:
            workers = self._ask("identity", n_workers=-1)["workers"]
            self.gpus = sum(int(w.get("resources", {}).get("GPU", 0)) for w in workers.values())
        if self.client.cluster is not None:
            respawn_workers(self.client.cluster)
        self.polled_at = time.monotonic()
        if self.gpus if needs_gpu() else self.threads:
            self.usable_at, self.ever_usable, self.warned = self.polled_at, True, False
        else:
            self._wait(self.polled_at - self.usable_at)

    def _ask(self, what: str, **arguments: Any) -> Any:
        try:
            if self.client.status != "running":
                raise OSError(f"the connection is {self.client.status}")
            remote = getattr(self.client.scheduler, what)
            return self.client.sync(remote, **arguments, callback_timeout=SILENCE_SECONDS)
        except TimeoutError:
            raise lost_scheduler(
                self.client, f"has not answered for {SILENCE_SECONDS:g} s"
            ) from None
        except (OSError, AttributeError):  # the client of a lost scheduler loses its attributes
            raise lost_scheduler(self.client, "is gone") from None

    def _wait(self, waited: float) -> None:
        """Raise where the wait has lasted long enough."""
        if self.threads and not self.ever_usable:
            patience = 0.0 if self.spec.kind == "local" else float(connection.WORKER_SECONDS)
            if waited >= min(patience, self.spec.patience):
                raise InputError(
                    f"device: cuda asks for a GPU, and none of the cluster's {len(self.threads)} "
                    "workers offers one. Start workers with one GPU each "
                    "(`dask worker ADDRESS --nthreads 1 --resources GPU=1`), or set device: auto."
                )
        missing = "worker with a GPU" if self.threads else "worker"
        if waited > self.spec.patience:
            raise ClusterError(
                f"the cluster has had no {missing} for {self.spec.wait_for_workers}. What was "
                "finished is kept: start workers again (their own logs say why they ended), and "
                "run the same command. To wait longer, set cluster.wait_for_workers."
            )
        if not self.warned and waited > 2 * POLL_SECONDS:
            self.warned = True
            _LOG.warning(
                "the cluster has no %s: waiting up to %s", missing, self.spec.wait_for_workers
            )


def lost_scheduler(client: Client, how: str) -> ClusterError:
    """Return the error for a scheduler that is lost."""
    where = f" at {client.scheduler.address}" if client.scheduler else ""
    return ClusterError(
        f"the scheduler{where} {how}, in the middle of a run. What was finished is kept: start the "
        "cluster again, and run the same command."
    )


@dataclass
class _Window:
    """The tasks of one call: waiting, in flight, and suspected of killing workers."""

    client: Client
    spec: ClusterSpec
    queue: Sequence[Task]

    def __post_init__(self) -> None:
        self.waiting = deque(self.queue)
        self.suspects: deque[tuple[Task, int]] = deque()
        self.running: dict[Any, _Flight] = {}
        self.done: SimpleQueue[Any] = SimpleQueue()
        self.workers = _Workers(self.client, self.spec)
        # keys are unique to a call: the scheduler would return the result of an equal key, even to
        # another run. It keeps durations by the first part of a key, so that is the function's name
        # and not the task's, of which there are many
        self.run, self.number = uuid4().hex[:8], count()

    def outcomes(self) -> Iterator[Outcome]:
        try:
            while self.waiting or self.running or self.suspects:
                self.workers.poll(needs_gpu=self._needs_gpu)
                self._fill()
                try:
                    future = self.done.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                outcome = self._outcome(future)
                self._fill()  # submit the next before this one is handled
                if outcome is not None:
                    yield outcome
        finally:
            for future in self.running:
                future.release()

    def _needs_gpu(self) -> bool:
        following = next(iter(self.waiting), None) or next((t for t, _ in self.suspects), None)
        return any(flight.gpu for flight in self.running.values()) or (
            not self.running and following is not None and following.device == "cuda"
        )

    def _fill(self) -> None:
        while self.waiting and len(self.running) < self._capacity(self.waiting[0]):
            self._submit(_Flight(self.waiting.popleft()))
        if self.suspects and not self.waiting and not self.running:
            task, deaths = self.suspects.popleft()
            self._submit(_Flight(task, deaths=deaths, alone=True))

    def _capacity(self, task: Task) -> int:
        """Return how many may be in flight; without workers, enough for a cluster to start one."""
        if task.device == "cuda" or (task.device == "auto" and self.workers.gpus):
            return 2 * self.workers.gpus
        return 2 * max(1, sum(self.workers.threads.values()))

    def _submit(self, flight: _Flight) -> None:
        task = flight.task
        flight.gpu = task.device != "cpu" and self.workers.gpus > 0
        future = self.client.submit(
            task.function,
            *task.arguments,
            key=(f"{task.function.__name__}-{self.run}", next(self.number), task.name),
            pure=False,
            resources={"GPU": 1} if flight.gpu else None,
            retries=0,
        )
        self._track(future, flight)

    def _track(self, future: Any, flight: _Flight) -> None:
        self.running[future] = flight
        future.add_done_callback(self.done.put)

    def _outcome(self, future: Any) -> Outcome | None:
        """Return the outcome of a task, or None where it is still open."""
        from distributed import CancelledError, KilledWorker

        flight = self.running.pop(future)
        match future.status:
            case "finished":
                try:
                    result = future.result(timeout=RESULT_SECONDS)
                except (TimeoutError, OSError, CancelledError, KilledWorker):
                    # its worker was lost just now: the task runs again, or has failed
                    self._track(future, flight)
                    return None
                except Exception as unread:
                    outcome = Outcome(flight.task, error=unread)
                else:
                    outcome = Outcome(flight.task, result)
            case "cancelled":  # the client cancels all futures of a scheduler that it has lost
                raise lost_scheduler(self.client, "is gone")
            case "error":
                error = future.exception()
                if isinstance(error, KilledWorker):
                    return self._suspect(flight, error.allowed_failures + 1)
                outcome = Outcome(flight.task, error=error)
            case _:  # its worker was lost with the result: the task runs again
                self._track(future, flight)
                return None
        future.release()
        return outcome

    def _suspect(self, flight: _Flight, deaths: int) -> Outcome | None:
        total = flight.deaths + deaths
        if not flight.alone:
            self.suspects.append((flight.task, total))
            return None
        return Outcome(
            flight.task,
            error=ClusterError(
                f"{flight.task.name}: every worker that ran it died, {total} times, the last "
                f"{deaths} with nothing else running (out of memory, a crash in native code, or a "
                "batch job's time limit). Give workers more memory or time, or a smaller batch "
                "size."
            ),
        )


@dataclass
class _Flight:
    """A task in flight."""

    task: Task
    deaths: int = 0
    """Workers that died running it in earlier flights."""
    alone: bool = False
    gpu: bool = False
