"""What tasks tell while they run, and what is known of them afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from zoo import Zoo

from pipeline.cluster import workers
from pipeline.cluster.workers import tell, timed
from pipeline.progress import Stage


def write_and_read(file: str, size: int) -> int:
    tell(1)  # outside of a worker nobody hears it
    Path(file).write_bytes(b"x" * size)
    return len(Path(file).read_bytes())


def test_timed__what_a_task_took(tmp_path: Path) -> None:
    call = timed(write_and_read, "t", "n")
    assert call.__name__ == "write_and_read"
    found = call(str(tmp_path / "file"), 2**20)
    assert found.result == 2**20
    assert found.worker == ""
    assert found.seconds > 0
    assert found.memory > 2**20
    if os.path.exists("/proc/self/io"):
        assert 2**20 <= found.written < 2**21
        assert 2**20 <= found.read < 2**21


def test_timed__errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        timed(divmod, "t", "n")(1, 0)
    tell(3)  # of no task


def test_tell__a_model_shows_progress_before_it_is_done(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    original = Stage.within

    def within(self: Stage, part: str, done: float, cost: float) -> None:
        told.append((part, done))
        original(self, part, done, cost)

    monkeypatch.setattr(Stage, "within", within)
    monkeypatch.setattr(workers, "TELL_SECONDS", 0.0)
    report = copied.run("models.sets=[late]", "compare.measures={cka: {}}")
    assert report.failures == {}
    # two checkpoints of 597 stimuli; the last word may come after the end
    assert ("extract timm/late", 597) in told
    assert {done for _, done in told} <= {597, 1194}
