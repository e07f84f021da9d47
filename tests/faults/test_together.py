"""Two runs on one store at the same time: one has it, the other is told so and waits its turn."""

from __future__ import annotations

import signal
from pathlib import Path

from faults.harness import Drivers, Ground, Tally, assert_equal, stage

FIRST = ("--set", "models={ids: [timm/vit-b]}")


def test_run__two_at_once(forked: Drivers, ground: Ground, tally: Tally, tmp_path: Path) -> None:
    """Of the same models, and of others; the store is that of runs made in order."""
    together, apart = ground.copy(tmp_path / "together"), ground.copy(tmp_path / "apart")
    first = forked.start(together, *FIRST)
    assert first.until(lambda: stage(together.store) != "plan"), first.output
    first.signal(signal.SIGSTOP)  # it has not ended before the others have been told
    for arguments in (FIRST, ()):
        second = forked.run(together, *arguments)
        assert second.code == 2, second.output
        assert f"in use by process {first.process} on " in " ".join(second.output.split())
        assert not first.ended
        tally.add("second run at the same time", "refused")
    first.signal(signal.SIGCONT)
    assert first.code == 0, first.output
    last = forked.run(together)
    assert last.code == 0, last.output
    assert forked.run(apart, *FIRST).code == 0
    assert forked.run(apart).code == 0
    assert_equal(together, apart, last.output)
