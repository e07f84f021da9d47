"""The command itself, with processes of its own: Ctrl-C, and what becomes of them without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faults.harness import (
    POLL,
    REPOSITORY,
    Drivers,
    Ground,
    Tally,
    assert_equal,
    complete_blocks,
    stage,
)
from processes import PATIENCE

# tests that run in the background of a script were told to ignore Ctrl-C, and so is what they start
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = (
    *(sys.executable, "-c", HEARING + "from pipeline.cli import main; main()"),
    *("run", "workflow.yaml"),
)
ORPHANS = 120.0
"""Seconds in which processes end whose driver is gone."""


def group_of(leader: int) -> list[psutil.Process]:
    """Give the processes of a group that run."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != "zombie":
                found.append(process)
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_run__command_killed(
    kill: signal.Signals, forked: Drivers, ground: Ground, tally: Tally, tmp_path: Path
) -> None:
    """Ctrl-C reaches every process of the terminal's group, and a kill the driver alone."""
    fresh = ground.copy(tmp_path / "zoo")
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            COMMAND,
            cwd=fresh.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    while not complete_blocks(fresh.store):
        assert run.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(POLL)
    where, kept = stage(fresh.store), complete_blocks(fresh.store)
    if kill is signal.SIGINT:
        os.killpg(run.pid, kill)
    else:
        run.send_signal(kill)
    code, since = run.wait(PATIENCE), time.monotonic()
    output = (tmp_path / "log").read_text()
    while left := group_of(run.pid):
        assert time.monotonic() - since < ORPHANS, f"{left}\n{output}"
        time.sleep(POLL)
    tally.add(f"command and its workers ended by {kill.name}", where)
    assert "Traceback" not in output
    if kill is signal.SIGINT:
        assert code == 130, output
        assert "Finished work is kept (tasks finished in this run: extract " in output
        assert "); run the same command again to continue." in output
        assert not (fresh.store / "consilience.lock").exists()
    last = forked.run(fresh)
    assert last.code == 0, last.output
    after = complete_blocks(fresh.store)
    assert {file: after[file] for file in kept} == kept
    assert_equal(fresh, ground, last.output)
