"""One run at a time on a store."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store.lease import NAME, lease


def held(path: Path, **changes: object) -> Path:
    lock = path / NAME
    lock.write_text(
        json.dumps(
            {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "token": "other",
                "since": "2026-01-02 03:04:05",
                **changes,
            }
        )
    )
    return lock


def dead_process() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_lease__writes_and_removes_its_lock(tmp_path: Path) -> None:
    with lease(tmp_path / "s.zarr"):
        holder = json.loads((tmp_path / "s.zarr" / NAME).read_text())
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
    assert list((tmp_path / "s.zarr").iterdir()) == []


def test_lease__removes_its_lock_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lease(tmp_path):
        raise KeyboardInterrupt
    assert not (tmp_path / NAME).exists()


def test_lease__second_holder_is_told_who_and_where(tmp_path: Path) -> None:
    with lease(tmp_path):
        expected = rf"process {os.getpid()} on {socket.gethostname()} since .*remove .*{NAME}"
        with pytest.raises(StoreError, match=expected), lease(tmp_path):
            pass
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()


def test_lease__dead_process_is_taken_over(tmp_path: Path) -> None:
    held(tmp_path, process=dead_process())
    with lease(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_lease__process_of_another_host_is_not_judged(tmp_path: Path) -> None:
    lock = held(tmp_path, host="node17", process=dead_process())
    with pytest.raises(StoreError, match="on node17 since 2026-01-02 03:04:05"), lease(tmp_path):
        pass
    assert lock.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_lease__lock_not_yet_written(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(StoreError, match="in use by a run that has just begun"), lease(tmp_path):
        pass


def test_lease__another_ones_lock_is_left(tmp_path: Path) -> None:
    with lease(tmp_path):
        held(tmp_path)  # someone removed ours by hand and began a run
    assert json.loads((tmp_path / NAME).read_text())["token"] == "other"


def test_lease__of_many_at_once_one_has_it(tmp_path: Path) -> None:
    begin, end = threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def hold() -> None:
        begin.wait()
        try:
            with lease(tmp_path):
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
    assert not (tmp_path / NAME).exists()


def test_lease__path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(StoreError), lease(tmp_path):
        pass
