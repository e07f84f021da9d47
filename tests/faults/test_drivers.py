"""Drivers that are killed at any moment: the next run does what is left, and nothing twice."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

from faults.harness import (
    STAGES,
    Drivers,
    Ground,
    Run,
    Tally,
    assert_equal,
    complete_blocks,
    has_come_to,
    stage,
)

CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {130}}
PARTS = ("stimuli", "activations", "measures", "calibration", "competence", "alignment", "report")


def assert_kept(ground: Ground, before: dict[str, int], run: Run) -> None:
    """What was complete has not been written again."""
    after = complete_blocks(ground.store)
    assert {file: after.get(file) for file in before} == before, run.output


def test_run__driver_killed_at_random_moments(
    forked: Drivers,
    ground: Ground,
    rounds: int,
    rng: random.Random,
    tally: Tally,
    tmp_path: Path,
) -> None:
    """By every signal, one after the other; the workers of a killed driver end by themselves."""
    for number in range(rounds):
        fresh = ground.copy(tmp_path / f"zoo{number}")
        # each in a stage of its own, some time after it begins: how long runs take varies a lot
        reached = sorted(rng.sample(STAGES, len(CODES)), key=STAGES.index)
        for kill, least in zip(rng.sample(list(CODES), len(CODES)), reached, strict=True):
            run = forked.start(fresh)
            run.until(partial(has_come_to, least, fresh))
            time.sleep(rng.uniform(0, 1.0))
            where, kept = stage(fresh.store), complete_blocks(fresh.store)
            run.signal(kill)
            if run.code == 0:  # it ended before
                tally.add(f"driver to be killed by {kill.name}", "but it had ended")
                break
            assert run.code in CODES[kill], run.output
            assert "Traceback" not in run.output
            if kill is signal.SIGINT:
                assert "interrupted. Finished work is kept" in run.output
                assert "; run the same command again to continue." in run.output
            tally.add(f"driver killed by {kill.name}", where)
            forked.orphaned()
            assert_kept(fresh, kept, run)
        kept = complete_blocks(fresh.store)
        run = forked.run(fresh)
        assert run.code == 0, run.output
        assert_kept(fresh, kept, run)
        assert_equal(fresh, ground, run.output)


def test_run__driver_killed_between_any_two_writes(
    forked: Drivers,
    ground: Ground,
    changes: dict[str, int],
    rounds: int,
    rng: random.Random,
    tally: Tally,
    tmp_path: Path,
) -> None:
    """Just before a random write, rename or removal in each part of the store, one a run."""
    for number in range(rounds):
        fresh = ground.copy(tmp_path / f"zoo{number}")
        moments = []
        for part in PARTS:
            kept = complete_blocks(fresh.store)
            run = forked.run(fresh, at=(part, rng.randint(1, changes[part])))
            # of what is left of a part there may be fewer changes than that
            assert run.code in (-9, 0), "\n".join([*moments, run.output])
            assert_kept(fresh, kept, run)
            moments.append(f"{part}: {run.changes[-1] if run.changes else ''}")
            if run.code == -9:
                tally.add("driver killed between two writes", part)
            forked.orphaned()
        run = forked.run(fresh)
        said = "\n".join([*moments, run.output])
        assert run.code == 0, said
        assert_equal(fresh, ground, said)
