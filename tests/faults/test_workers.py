"""Workers that are killed in the middle of every stage: the run itself goes on to the end."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from faults.harness import Drivers, Ground, Tally, assert_equal, has_come_to, stage

KILLS = {"extract": 2, "compare": 2, "calibrate": 2}
"""Fewer than the attempts that a task has."""


def test_run__workers_killed(
    forked: Drivers,
    ground: Ground,
    rounds: int,
    rng: random.Random,
    tally: Tally,
    tmp_path: Path,
) -> None:
    for number in range(rounds):
        fresh = ground.copy(tmp_path / f"zoo{number}")
        run = forked.start(fresh)
        for name, kills in KILLS.items():
            assert run.until(partial(has_come_to, name, fresh)), run.output
            for _ in range(kills):
                time.sleep(rng.uniform(0, 0.5))
                if not run.until(lambda: bool(forked.workers())):
                    break
                where = stage(fresh.store)
                with suppress(psutil.NoSuchProcess, IndexError):
                    rng.choice(forked.workers()).send_signal(signal.SIGKILL)
                    tally.add("worker killed", where)
        assert run.code == 0, run.output
        assert_equal(fresh, ground, run.output)
