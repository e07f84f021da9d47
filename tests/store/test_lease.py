"""One run at a time on a store, in a folder, in memory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE

from pipeline.errors import LostError, StoreError
from pipeline.store.io import lease as module
from pipeline.store.io.lease import Lease, at_work, holder, lease
from pipeline.store.io.location import LOCK, Location, locate

HOUR = 3600.0


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return locate(
        tmp_path / "s.zarr" if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    )


def held(place: Location, **changes: object) -> None:
    """Write the lock of another run of this process's host, with some things changed."""
    about = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": module._started(os.getpid()),
        "machine": module._machine(),
        "token": "other",
        "since": "2026-01-02 03:04:05",
        "heartbeat": time.time(),
        **changes,
    }
    place.update(LOCK, lambda _: json.dumps(about).encode())


def written(place: Location, text: str) -> None:
    place.update(LOCK, lambda _: text.encode())


def is_free(place: Location) -> bool:
    record = place.read(LOCK)
    return record is None or not record.content


def dead_process() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_lease__writes_and_removes_its_lock(place: Location) -> None:
    with lease(place):
        found = holder(place)
        assert found is not None
        assert (found.host, found.process) == (socket.gethostname(), os.getpid())
    assert is_free(place)
    assert holder(place) is None
    assert place.is_empty()


def test_lease__leaves_no_file(tmp_path: Path) -> None:
    with lease(tmp_path / "s.zarr"):
        pass
    assert list((tmp_path / "s.zarr").iterdir()) == []


def test_lease__removes_its_lock_after_an_error(place: Location) -> None:
    with pytest.raises(KeyboardInterrupt), lease(place):
        raise KeyboardInterrupt
    assert is_free(place)


def test_lease__second_holder_is_told_who_and_where(place: Location) -> None:
    with lease(place):
        expected = (
            rf"in use by process {os.getpid()} on {socket.gethostname()} since .* \(last "
            rf"heartbeat \d+ s ago\).*--wait SECONDS.*remove .*{LOCK}"
        )
        with pytest.raises(StoreError, match=expected), lease(place):
            pass
        assert not is_free(place)
    assert is_free(place)


def test_lease__dead_process_is_taken_over_at_once(place: Location) -> None:
    held(place, process=dead_process())
    with lease(place):
        found = holder(place)
        assert found is not None
        assert found.process == os.getpid()
    assert is_free(place)


def test_lease__killed_process_that_nobody_has_waited_for(place: Location) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"])
    held(place, process=zombie.pid, started=module._started(zombie.pid))
    with pytest.raises(StoreError, match=f"process {zombie.pid} "), lease(place):
        pass
    zombie.kill()
    end = time.monotonic() + PATIENCE
    while module._started(zombie.pid) != "ended" and time.monotonic() < end:
        time.sleep(0.01)
    with lease(place):
        pass
    zombie.wait()


def test_lease__process_id_that_came_again(place: Location) -> None:
    held(place, started="1")  # this process has the number, but began at another time
    with lease(place):
        pass


def test_lease__other_host_of_the_same_name(place: Location) -> None:
    held(place, machine="another boot", process=dead_process())
    with pytest.raises(StoreError, match="in use by"), lease(place):
        pass


@pytest.mark.parametrize("silent", [0.0, module.STALE - 30])
def test_lease__other_host_with_a_heartbeat_is_believed(place: Location, silent: float) -> None:
    before = time.time()
    held(place, host="node17", process=dead_process(), heartbeat=before - silent)
    expected = r"on node17 since 2026-01-02 03:04:05 \(last heartbeat (\d+) s ago\)"
    with pytest.raises(StoreError, match=expected) as caught, lease(place):
        pass
    said = re.search(expected, str(caught.value))
    assert said is not None
    assert round(silent) <= int(said[1]) <= round(silent + time.time() - before)
    assert not is_free(place)


def test_lease__clock_that_is_ahead(tmp_path: Path) -> None:
    """A heartbeat from the future tells nothing; how long ago its file was written does."""
    place = locate(tmp_path)
    held(place, host="node17", heartbeat=time.time() + 24 * HOUR)
    with pytest.raises(StoreError, match="in use by process"), lease(place):
        pass
    os.utime(tmp_path / LOCK, (time.time() - HOUR,) * 2)
    with lease(place) as mine:
        mine.check()
    assert is_free(place)


def test_lease__process_that_is_stopped_while_it_writes_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.io.location.LOCK_SECONDS", 0.2)
    with lease(tmp_path, beat=HOUR), (tmp_path / LOCK).open("rb") as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        expected = r"in use by a process that does not release its lock \(is it stopped\?\)"
        with pytest.raises(StoreError, match=expected), lease(tmp_path):
            pass
        with pytest.raises(StoreError, match=r"and was for the 0\.5 s"), lease(tmp_path, wait=0.5):
            pass
        fcntl.flock(record, fcntl.LOCK_UN)


def test_lease__other_host_without_a_heartbeat_is_taken_over(place: Location) -> None:
    held(place, host="node17", heartbeat=time.time() - module.STALE - 1)
    with lease(place) as mine:
        mine.check()
    assert is_free(place)


@pytest.mark.parametrize("text", ["{", "[]", '{"host": "a"}'])
def test_lease__lock_not_yet_written(place: Location, text: str) -> None:
    written(place, text)
    with pytest.raises(StoreError, match="in use by a run that has just started"), lease(place):
        pass


def test_lease__lock_whose_maker_died_before_it_was_written(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    lock.touch()
    with pytest.raises(StoreError, match="in use by a run that has just started"), lease(tmp_path):
        pass
    os.utime(lock, (time.time() - HOUR,) * 2)
    with lease(tmp_path):
        pass
    assert not lock.exists()


def test_lease__heartbeat_is_renewed(place: Location) -> None:
    with lease(place, beat=0.05):
        first = last = holder(place)
        assert first is not None
        end = time.monotonic() + PATIENCE
        while last is not None and last.heartbeat == first.heartbeat and time.monotonic() < end:
            time.sleep(0.01)
            last = holder(place)
    assert last is not None
    assert last.heartbeat > first.heartbeat
    assert last.token == first.token


def look_again(mine: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.0)
    mine.check()


def test_at_work__not_who_is_gone(place: Location) -> None:
    assert at_work(place) is None
    with lease(place):
        found = at_work(place)
        assert found is not None
        assert found.process == os.getpid()
    held(place, started="0")  # the process id has come again
    assert at_work(place) is None
    held(place, host="node17", heartbeat=time.time() - module.STALE - 1)
    assert at_work(place) is None


def test_watch__cannot_look_for_long(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its run could be taken for dead, a task writes; and looks once a second."""
    now, looks = [1000.0], []

    def broken(*_: object) -> None:
        looks.append(now[0])
        raise OSError("no route to host")

    with lease(place) as mine:
        monkeypatch.setattr(module, "_clock", lambda: now[0])
        watch = module.LeaseCheck(place, mine.token)
        with monkeypatch.context() as patch:
            patch.setattr(type(place), "read", broken)
            for _ in range(100):
                watch.check()
            assert len(looks) == 1
            now[0] += module.STALE
            with pytest.raises(LostError, match="its lock could not be read for 300 s"):
                watch.check()


def test_lease__taken_by_another(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(place) as mine:
        held(place, host="node17")
        expected = "this run has lost the store: process .* on node17 .* has taken it over"
        with pytest.raises(StoreError, match=expected):
            look_again(mine, monkeypatch)
        with pytest.raises(StoreError, match="has lost the store"):
            mine.check()  # for good
    found = holder(place)
    assert found is not None
    assert found.token == "other"  # another one's lock is left


def test_lease__removed_by_hand(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(place) as mine:
        place.update(LOCK, lambda _: None)
        with pytest.raises(StoreError, match="someone has removed its lock"):
            look_again(mine, monkeypatch)
    assert is_free(place)


def test_lease__lost_is_found_by_the_heartbeat(place: Location) -> None:
    with lease(place, beat=0.05) as mine:
        held(place)
        end = time.monotonic() + PATIENCE
        while not mine._lost and time.monotonic() < end:  # nothing asks it
            time.sleep(0.01)
        with pytest.raises(StoreError, match="has lost the store"):
            mine.check()


def test_lease__not_renewed_until_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.0)
    clock = module._clock
    with lease(tmp_path, beat=0.1, stale=1e3) as mine:
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).mkdir()  # it can be neither read nor written
        mine.check()
        monkeypatch.setattr(module, "_clock", lambda: clock() + 1e3)
        with pytest.raises(StoreError, match=r"lock could not be renewed for \d+ s"):
            mine.check()


def test_lease__stopped_process_finds_out_before_it_writes(tmp_path: Path) -> None:
    """A driver that sleeps past its lease, while another takes it over, writes nothing more."""
    text = (
        "import sys, time; from pipeline.store.io.lease import lease\n"
        f"with lease({str(tmp_path)!r}, beat=1000, stale=1.0) as mine:\n"
        "    print('held', flush=True); sys.stdin.readline(); mine.check(); print('wrote')\n"
    )
    sleeper = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == "held\n"
    os.kill(sleeper.pid, signal.SIGSTOP)
    with lease(tmp_path, wait=PATIENCE, stale=1.0):
        os.kill(sleeper.pid, signal.SIGCONT)
        out, error = sleeper.communicate("\n", timeout=PATIENCE)
        assert "wrote" not in out
        assert "this run has lost the store" in error
        found = holder(tmp_path)
        assert found is not None
        assert found.process == os.getpid()


def test_lease__waits(place: Location) -> None:
    told: list[str] = []

    def free(who: str) -> None:
        told.append(who)
        place.update(LOCK, lambda _: None)

    with lease(place), lease(place, wait=PATIENCE, on_wait=free) as second:
        second.check()
    assert len(told) == 1
    assert str(os.getpid()) in told[0]


def test_lease__waits_in_vain(place: Location) -> None:
    expected = r"in use by .*, and was for the 0\.2 s of --wait"
    with lease(place), pytest.raises(StoreError, match=expected), lease(place, wait=0.2):
        pass


CONTEST = """
import json, os, sys, time, uuid
from pathlib import Path
from pipeline.errors import StoreError
from pipeline.store.io.lease import lease
from pipeline.store.io.location import LOCK
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
won = []
for n in range(rounds):
    print(n, flush=True)
    sys.stdin.readline()  # all begin at once
    try:
        with lease(folder / str(n)):
            won.append(n)
            print("held", flush=True)
            sys.stdin.readline()  # and none ends before all have tried
    except StoreError:
        print("refused", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def contestants(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEST, str(tmp_path), "200"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_lease__of_many_processes_one_has_it(
    tmp_path: Path, contestants: list[subprocess.Popen[str]]
) -> None:
    """Four processes, 200 stores: free, of a dead process, of a host that fell silent, in turn."""
    dead = dead_process()
    outcomes = []
    for n in range(200):
        kind = ({"process": dead}, {"host": "node17", "heartbeat": time.time() - HOUR}, None)[n % 3]
        (tmp_path / str(n)).mkdir()
        if kind is not None:
            held(locate(tmp_path / str(n)), **kind)
        for step in (str(n), None):
            said = []
            for process in contestants:
                assert process.stdout is not None
                said.append(process.stdout.readline().strip())
            if step is None:
                outcomes.append(sorted(said))
            else:
                assert said == [step] * 4
            for process in contestants:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
    assert outcomes == [["held", "refused", "refused", "refused"]] * 200
    for process in contestants:
        process.wait(timeout=PATIENCE)
    assert not list(tmp_path.rglob(LOCK))


def test_lease__of_many_at_once_one_has_it(place: Location) -> None:
    begin, end = threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def hold() -> None:
        begin.wait()
        try:
            with lease(place):
                outcomes.append("held")
                end.wait()
        except StoreError:
            outcomes.append("refused")
            end.wait()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + 7 * ["refused"]
    assert is_free(place)


def test_lease__path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    expected = r"cannot be written: Is a directory\. .*--store"
    with pytest.raises(StoreError, match=expected), lease(tmp_path):
        pass
