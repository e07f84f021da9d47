"""The window through which tasks reach a cluster, and the clusters."""

from __future__ import annotations

import operator
import os
import socket
import time
import warnings
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from zoo import Zoo, inside

from pipeline import cluster as module
from pipeline.cluster import (
    ATTEMPTS,
    ClusterSpec,
    Executor,
    Outcome,
    Task,
    connect,
    cpu_count,
    describe_failure,
    executor,
    gpu_cluster,
    override,
)
from pipeline.errors import InputError, ModelError


def double(x: int) -> int:
    return 2 * x


def fail(x: int) -> int:
    if x % 3 == 0:
        raise ValueError(f"not {x}")
    return x


def now(pause: float) -> float:
    started = time.monotonic()
    time.sleep(pause)
    return started


@pytest.fixture
def pool(cluster: str) -> Iterator[Executor]:
    with executor(ClusterSpec(kind="address", address=cluster)) as made:
        yield made


def test_run__every_outcome_with_its_task(pool: Executor) -> None:
    tasks = [Task(f"t{i}", double, (i,)) for i in range(7)]
    outcomes = list(pool.run(tasks))
    assert sorted(o.result for o in outcomes) == [0, 2, 4, 6, 8, 10, 12]
    assert all(o.result == 2 * o.task.arguments[0] for o in outcomes)
    assert all(o.error is None for o in outcomes)


def test_run__failing_tasks_do_not_stop_others(pool: Executor) -> None:
    outcomes = list(pool.run([Task(f"t{i}", fail, (i,)) for i in range(9)]))
    failed = [o for o in outcomes if o.error is not None]
    assert sorted(o.task.arguments[0] for o in failed) == [0, 3, 6]
    assert sorted(o.result for o in outcomes if o.error is None) == [1, 2, 4, 5, 7, 8]
    assert describe_failure(failed[0]).startswith(f"{failed[0].task.name}: ValueError: not ")


def test_run__longest_first(pool: Executor) -> None:
    costs = [3.0, 9.0, 1.0, 7.0, 5.0]
    outcomes = list(pool.run([Task(f"t{c}", now, (0.02,), cost=c) for c in costs]))
    started = sorted(outcomes, key=lambda o: o.result)
    assert [o.task.cost for o in started] == [9.0, 7.0, 5.0, 3.0, 1.0]


def test_run__window_is_twice_the_threads(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pool.start()
    in_flight, most = 0, 0
    original = client.submit

    def submit(*args: Any, **keywords: Any) -> Any:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        return original(*args, **keywords)

    monkeypatch.setattr(client, "submit", submit)
    for _ in pool.run([Task(f"t{i}", double, (i,)) for i in range(12)]):
        in_flight -= 1
        # the next one goes out before an outcome is handed over
        assert in_flight <= 2 * sum(client.nthreads().values())
    assert in_flight == 0
    assert most <= 2 * sum(client.nthreads().values()) + 1


def test_run__equal_tasks_are_each_run(pool: Executor) -> None:
    outcomes = list(pool.run([Task("same", now, (0.0,)) for _ in range(3)]))
    again = list(pool.run([Task("same", now, (0.0,)) for _ in range(3)]))
    assert len({o.result for o in outcomes + again}) == 6


def test_run__gpu_tasks_where_no_worker_offers_one(pool: Executor) -> None:
    (outcome,) = pool.run([Task("t", double, (4,), gpu=True)])
    assert outcome.result == 8


def test_run__nothing_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "connect", lambda _: pytest.fail("a cluster was started"))
    with executor(ClusterSpec()) as made:
        assert list(made.run([])) == []


def test_run__finished_workflow_starts_no_cluster(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "connect", lambda _: pytest.fail("a cluster was started"))
    assert not any(Zoo(copied.folder).run().tasks.values())


def test_run__workers_of_two_processes_one_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: thread limits, and a task that kills them is named while others finish."""
    monkeypatch.setattr(module, "n_gpus", lambda: 0)
    # functions that a worker has without importing anything: it starts anew three times
    tasks = [Task(f"t{i}", operator.neg, (i,)) for i in range(6)]
    with executor(ClusterSpec(n_workers=2, threads_per_worker=1, memory_limit="0")) as made:
        outcomes = list(made.run([*tasks, Task("poison", os._exit, (3,), cost=9.0)]))
        (limit,) = made.run([Task("threads", os.getenv, ("OMP_NUM_THREADS",))])
        assert len(made.start().scheduler_info()["workers"]) <= 2
    assert limit.result == "1"
    assert len(outcomes) == 7
    # what is queued on the worker that dies may go down with it: the window keeps that to one
    failed = {o.task.name: o for o in outcomes if o.error is not None}
    assert "poison" in failed
    assert len(failed) <= 2
    assert describe_failure(failed["poison"]) == (
        f"poison: whatever worker ran it died, {ATTEMPTS} times (out of memory, or a crash in "
        "native code). Give workers more memory, or a smaller batch size."
    )
    assert all(o.result == -o.task.arguments[0] for o in outcomes if o.error is None)
    assert made._client is None


def test_describe_failure__our_own_errors_speak_for_themselves() -> None:
    outcome = Outcome(Task("t", double, (1,)), error=ModelError("model x: it is broken."))
    assert describe_failure(outcome) == "model x: it is broken."


def test_connect__nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    started = time.monotonic()
    expected = rf"no Dask scheduler answers at {address} within 0.5 s .* `cluster:` or --cluster"
    with (
        pytest.raises(InputError, match=expected),
        connect(ClusterSpec(kind="address", address=address)),
    ):
        pass
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("address", ["nonsense://a:1", "tcp://", "tcp://127.0.0.1:notaport"])
def test_connect__address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(InputError, match="no Dask scheduler answers at"),
        connect(ClusterSpec(kind="address", address=address)),
    ):
        pass


def test_connect__scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0"
    ) as empty:
        spec = ClusterSpec(kind="address", address=empty.scheduler_address)
        expected = "has had no worker for 0.5 s. Start workers: `dask worker tcp://"
        with pytest.raises(InputError, match=expected), connect(spec):
            pass


def test_connect__says_nothing_where_the_dashboards_port_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another cluster of the same person's on this machine is no reason for a warning."""
    monkeypatch.setattr(module, "n_gpus", lambda: 0)
    with socket.socket() as taken:
        try:
            taken.bind(("0.0.0.0", 8787))
            taken.listen()
        except OSError:
            pass  # taken already, by somebody else
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            with connect(ClusterSpec(n_workers=1)):
                pass
    assert [str(w.message) for w in said if "8787" in str(w.message)] == []


def test_override__address_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    spec = ClusterSpec(n_workers=3)
    assert override(spec, None) == spec
    assert override(spec, "tcp://a:1") == ClusterSpec(kind="address", address="tcp://a:1")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://b:2")
    assert override(spec, None).address == "tcp://b:2"
    assert override(spec, "tcp://a:1").address == "tcp://a:1"
    assert override(ClusterSpec(kind="address", address="tcp://c:3"), None).address == "tcp://c:3"
    assert override(ClusterSpec(kind="address", address="tcp://c:3"), "local").kind == "local"


def test_override__local_keeps_the_files_local_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert override(ClusterSpec(n_workers=3), "local").n_workers == 3


@pytest.mark.parametrize(("n_workers", "expected"), [(None, ["0", "1"]), (3, ["0", "1", "0"])])
def test_gpu_cluster__one_worker_sees_one_gpu(n_workers: int | None, expected: list[str]) -> None:
    from distributed import Nanny, Scheduler

    spec = ClusterSpec(n_workers=n_workers, threads_per_worker=4, memory_limit="2GiB")
    options = gpu_cluster(spec, 2)
    workers = [w["options"] for w in options["workers"].values()]
    assert {w["cls"] for w in options["workers"].values()} == {Nanny}
    assert [w["env"]["CUDA_VISIBLE_DEVICES"] for w in workers] == expected
    assert all(w["resources"] == {"GPU": 1} for w in workers)
    assert all(w["nthreads"] == 1 for w in workers)
    assert all(w["memory_limit"] == "2GiB" for w in workers)
    assert all(w["env"]["OMP_NUM_THREADS"] == "4" for w in workers)
    assert options["scheduler"]["cls"] is Scheduler
    assert options["scheduler"]["options"]["host"] == "127.0.0.1"


def test_cpu_count__what_this_process_may_use() -> None:
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)


def test_run__leaves_dask_as_it_was(cluster: str) -> None:
    """What a notebook computes by Dask before and after is no business of a run's cluster."""
    before = dict(dask.config.config)
    with executor(ClusterSpec(kind="address", address=cluster)) as pool:
        (outcome,) = pool.run([Task("one", abs, (-1,))])
        assert outcome.result == 1
        assert dask.config.get("scheduler", None) is None
    assert {k: v for k, v in dask.config.config.items() if k != "logging"} == {
        k: v for k, v in before.items() if k != "logging"
    }


def test_run__workers_that_stand_in_another_folder(copied: Zoo, tmp_path: object) -> None:
    """A scheduler that runs already was started wherever its owner stood."""
    from distributed import LocalCluster

    with (
        inside(tmp_path),
        LocalCluster(  # type: ignore[arg-type]
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as elsewhere,
    ):
        report = Zoo(copied.folder, elsewhere.scheduler_address).run(
            "models.sets=[late]", "compare.measures={cka: {}}"
        )
    assert report.failures == {}
    assert report.tasks["extract"] == 1
