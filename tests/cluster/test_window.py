"""The window through which tasks reach a cluster, under the faults that a cluster has."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from processes import PATIENCE, end, evaluate, in_this_process, processes
from zoo import Zoo, inside

from pipeline.cluster import (
    AddressSpec,
    Executor,
    LocalSpec,
    Outcome,
    Task,
    connection,
    describe_failure,
    executor,
    machine,
)
from pipeline.errors import ClusterError, InputError, ModelError

MODULE = "pipeline.cluster.window"


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


def until(file: Path) -> str:
    """Give an expression that waits for a file."""
    there = f"__import__('pathlib').Path({str(file)!r}).exists"
    return f"[__import__('time').sleep(0.01) for _ in iter({there}, True)]"


def address(where: str, patience: str = "10 min") -> AddressSpec:
    return AddressSpec(kind="address", address=where, wait_for_workers=patience)


@pytest.fixture
def pool(cluster: str) -> Iterator[Executor]:
    with executor(address(cluster)) as made:
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


def test_run__tasks_that_time_out_or_lose_a_file_have_failed(pool: Executor) -> None:
    """What the executor itself meets where a worker is lost is no such thing in a task."""
    tasks = [evaluate("late", "(_ for _ in ()).throw(TimeoutError('late'))")]
    tasks.append(evaluate("gone", "open('/nowhere/at/all')"))
    errors = {o.task.name: type(o.error) for o in pool.run(tasks)}
    assert errors == {"late": TimeoutError, "gone": FileNotFoundError}


def test_run__longest_first(pool: Executor) -> None:
    costs = [3.0, 9.0, 1.0, 7.0, 5.0]
    outcomes = list(pool.run([Task(f"t{c}", now, (0.02,), cost=c) for c in costs]))
    started = sorted(outcomes, key=lambda o: o.result)
    assert [o.task.cost for o in started] == [9.0, 7.0, 5.0, 3.0, 1.0]


def test_run__equal_tasks_are_each_run(pool: Executor) -> None:
    outcomes = list(pool.run([Task("same", now, (0.0,)) for _ in range(3)]))
    again = list(pool.run([Task("same", now, (0.0,)) for _ in range(3)]))
    assert len({o.result for o in outcomes + again}) == 6


def in_flight(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what the scheduler has been given and has not given back, at each submission."""
    client = pool.start()
    original, given, counts = client.submit, [], []

    def submit(*args: Any, **keywords: Any) -> Any:
        given.append(original(*args, **keywords))
        counts.append(sum(not future.done() for future in given))
        return given[-1]

    monkeypatch.setattr(client, "submit", submit)
    return counts


def open_when_full(go: Path, counts: list[int], before: int, size: int) -> None:
    """Let tasks end once as many are in flight as should be, and none has come after them."""
    deadline = time.monotonic() + PATIENCE
    while max(counts[before:], default=0) < size and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    go.touch()


def test_run__window_is_twice_the_threads(
    pool: Executor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts, go = in_flight(pool, monkeypatch), tmp_path / "go"
    outcomes = pool.run([evaluate(f"t{i}", until(go)) for i in range(12)])
    opener = threading.Thread(target=open_when_full, args=(go, counts, 0, 2))
    opener.start()
    assert len(list(outcomes)) == 12
    opener.join()
    assert len(counts) == 12
    assert max(counts) == 2 * sum(pool.start().nthreads().values()) == 2


def test_run__window_follows_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{MODULE}.POLL_SECONDS", 0.02)
    with in_this_process() as growing, executor(address(growing.scheduler_address)) as pool:
        counts = in_flight(pool, monkeypatch)
        windows = []
        for n in (1, 3, 1):
            go, before = tmp_path / f"go{len(windows)}", len(counts)

            def scaled(go: Path = go, before: int = before, n: int = n) -> None:
                growing.scale(n)  # in the middle of a run
                open_when_full(go, counts, before, 2 * n)

            opener = threading.Thread(target=scaled)
            opener.start()
            list(pool.run([evaluate(f"t{i}", until(go)) for i in range(30)]))
            opener.join()
            windows.append(max(counts[before:]))
            growing.scale(1)
            while len(pool.start().nthreads()) > 1:
                time.sleep(0.02)
    assert windows == [2, 6, 2]


def test_run__nothing_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connect", lambda _: pytest.fail("a cluster was started"))
    with executor(LocalSpec()) as made:
        assert list(made.run([])) == []


def test_run__finished_workflow_starts_no_cluster(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "connect", lambda _: pytest.fail("a cluster was started"))
    assert not any(Zoo(copied.folder).run().tasks.values())


def test_run__leaves_dask_as_it_was(cluster: str) -> None:
    """What a notebook computes by Dask before and after is no business of a run's cluster."""
    before = dict(dask.config.config)
    with executor(address(cluster)) as pool:
        (outcome,) = pool.run([Task("one", abs, (-1,))])
        assert outcome.result == 1
        assert dask.config.get("scheduler", None) is None
    assert {k: v for k, v in dask.config.config.items() if k != "logging"} == {
        k: v for k, v in before.items() if k != "logging"
    }


def test_run__workers_that_stand_in_another_folder(copied: Zoo, tmp_path: Path) -> None:
    """A scheduler that runs already was started wherever its owner stood."""
    from distributed import LocalCluster

    with (
        inside(tmp_path),
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as elsewhere,
    ):
        report = Zoo(copied.folder, elsewhere.scheduler_address).run(
            "models.sets=[late]", "compare.measures={cka: {}}"
        )
    assert report.failures == {}
    assert report.tasks["extract"] == 1


def test_run__processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "n_gpus", lambda: 0)
    spec = LocalSpec(n_workers=2, memory_limit="0", environment={"ANSWER": "42"})
    with executor(spec) as made:
        names = ("OMP_NUM_THREADS", "ANSWER")
        outcomes = list(made.run([Task(name, os.getenv, (name,)) for name in names]))
        assert len(made.start().nthreads()) == 2
    assert {o.task.name: o.result for o in outcomes} == {"OMP_NUM_THREADS": "1", "ANSWER": "42"}
    assert made._client is None


def test_run__task_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    """All share one worker of four threads: each death is everyone's."""
    deaths = tmp_path / "deaths"
    poison = f"(open({str(deaths)!r}, 'a').write('x'), __import__('os')._exit(3))"
    slow = "__import__('time').sleep(0.2)"
    with processes(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1") as made:
        made.start()
        made.add_worker("--nthreads", "4", nanny=True)
        with executor(address(made.address)) as pool:
            tasks = [evaluate(f"t{i}", f"({slow}, {i})[1]") for i in range(9)]
            outcomes = list(pool.run([*tasks, evaluate("poison", poison, cost=9.0)]))
    failed = [o for o in outcomes if o.error is not None]
    assert [describe_failure(o) for o in failed] == [
        "poison: every worker that ran it died, 4 times, the last 2 with nothing else running (out "
        "of memory, a crash in native code, or a batch job's time limit). Give workers more memory "
        "or time, or a smaller batch size."
    ]
    assert sorted(o.result for o in outcomes if o.error is None) == list(range(9))
    assert len(outcomes) == 10
    assert deaths.read_text() == "xxxx"


def test_run__task_that_takes_more_memory_than_its_worker_has(tmp_path: Path) -> None:
    """The nanny ends the worker: like any other death it is bounded, and said."""
    hog = "(b'x' * 2**30, __import__('time').sleep(30))"
    with processes(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as made:
        made.start()
        made.add_worker("--memory-limit", "600 MiB", nanny=True)
        with executor(address(made.address)) as pool:
            tasks = [evaluate(f"t{i}", str(i)) for i in range(4)]
            outcomes = list(pool.run([evaluate("hog", hog, cost=9.0), *tasks]))
    (failed,) = [o for o in outcomes if o.error is not None]
    assert "hog: every worker that ran it died, 2 times" in describe_failure(failed)
    assert "Give workers more memory" in describe_failure(failed)
    assert sorted(o.result for o in outcomes if o.error is None) == list(range(4))


def test_run__a_worker_whose_time_is_up_fails_nothing(tmp_path: Path) -> None:
    """Its task runs again elsewhere, and counts as never tried: no death is allowed here."""
    first = tmp_path / "first"
    working = "lambda: __import__('distributed').get_worker().status.name == 'running'"
    task = (
        f"__import__('os').path.exists({str(first)!r}) or (open({str(first)!r}, 'w').close(), "
        f"[__import__('time').sleep(0.05) for _ in iter({working}, False)], "
        "__import__('time').sleep(4))"
    )
    with processes(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as made:
        made.start()
        made.add_worker("--lifetime", "2s", "--lifetime-restart", nanny=True)
        with executor(address(made.address)) as pool:
            (outcome,) = pool.run([evaluate("long", task)])
    assert outcome.error is None
    assert outcome.result is True


def test_run__workers_that_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one comes back in time the run goes on; where none does it ends, and says so."""
    monkeypatch.setattr(f"{MODULE}.POLL_SECONDS", 0.2)
    go = tmp_path / "go"
    with processes(tmp_path) as made:
        made.start()
        only = made.add_worker()
        with executor(address(made.address)) as pool:
            # all but the first are in the middle of running as their worker ends: had one finished,
            # its result would be waited for first
            tasks = [evaluate(f"t{i}", f"({until(go)}, {i})[1]") for i in range(1, 9)]
            outcomes = pool.run([evaluate("t0", "0", cost=9.0), *tasks])
            done = [next(outcomes)]
            end(only)
            go.touch()
            back = threading.Timer(5.0, made.add_worker)  # so late that waiting is said
            back.start()
            done += outcomes
            back.join()
            assert sorted(o.result for o in done) == list(range(9))
            assert [r.getMessage() for r in caplog.records if r.name == MODULE] == [
                "the cluster has no worker: waiting up to 10 min"
            ]
        with executor(address(made.address, "1 s")) as pool:
            tasks = [evaluate(f"t{i}", "__import__('time').sleep(900)") for i in (1, 2)]
            outcomes = pool.run(tasks)
            threading.Timer(1.0, end, made.workers[-1:]).start()
            started = time.monotonic()
            expected = "the cluster has had no worker for 1 s. What was finished is kept: start"
            with pytest.raises(ClusterError, match=expected):
                next(outcomes)
            assert time.monotonic() - started < 300


@pytest.mark.parametrize(
    ("how", "says"), [(signal.SIGSTOP, "has not answered for 0.5 s"), (signal.SIGKILL, "is gone")]
)
def test_run__scheduler_that_is_lost(
    how: signal.Signals, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.POLL_SECONDS", 0.2)
    with processes(tmp_path) as made:
        made.start()
        made.add_worker()
        assert made.scheduler is not None
        tasks = [evaluate("t0", "0"), evaluate("t1", "__import__('time').sleep(900)")]
        with executor(address(made.address)) as pool:
            outcomes = pool.run(tasks)
            assert next(outcomes).result == 0
            if how == signal.SIGSTOP:
                monkeypatch.setattr(f"{MODULE}.SILENCE_SECONDS", 0.5)
            os.kill(made.scheduler.pid, how)
            started = time.monotonic()
            expected = f"the scheduler at {made.address} {says}, in the middle of a run. What was"
            with pytest.raises(ClusterError, match=expected):
                next(outcomes)
            raised = time.monotonic()
    assert raised - started < 45
    assert time.monotonic() - raised < 45  # nor does it wait on the way out


def test_run__a_gpu_that_no_worker_offers(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WORKER_SECONDS", 0.5)
    monkeypatch.setattr(f"{MODULE}.POLL_SECONDS", 0.1)
    with executor(address(cluster)) as pool:
        (outcome,) = pool.run([Task("t", double, (4,), device="auto")])
        assert outcome.result == 8
        expected = (
            r"device: cuda asks for a GPU, and none of the cluster's 1 workers offers one. "
            r"Start workers with one GPU each \(`dask worker ADDRESS --nthreads 1 --resources GPU=1"
        )
        with pytest.raises(InputError, match=expected):
            list(pool.run([Task("t", double, (4,), device="cuda")]))


def test_run__gpu_tasks_go_where_one_is(tmp_path: Path) -> None:
    where = "__import__('distributed').get_worker().name"
    with processes(tmp_path) as made:
        made.start()
        made.add_worker("--name", "plain")
        made.add_worker("--name", "gpu", "--resources", "GPU=1")
        with executor(address(made.address)) as pool:
            for device in ("cuda", "auto"):
                tasks = [evaluate(f"t{i}", where, device=device) for i in range(6)]
                assert {o.result for o in pool.run(tasks)} == {"gpu"}


def test_describe_failure__our_own_errors_speak_for_themselves() -> None:
    outcome = Outcome(Task("t", double, (1,)), error=ModelError("model x: it is broken."))
    assert describe_failure(outcome) == "model x: it is broken."
