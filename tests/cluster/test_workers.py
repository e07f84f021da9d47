"""What tasks report while they run, and what is known of them afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from zoo import Zoo

from pipeline.cluster import workers
from pipeline.cluster.workers import report_progress, timed
from pipeline.progress import StageProgress


def write_and_read(file: str, size: int) -> int:
    report_progress(1)  # outside of a worker nothing is reported
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
    report_progress(3)  # of no task


def test_report_progress__a_model_shows_progress_before_it_is_done(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[tuple[str, float]] = []
    original = StageProgress.within

    def within(self: StageProgress, part: str, done: float, cost: float) -> None:
        reported.append((part, done))
        original(self, part, done, cost)

    monkeypatch.setattr(StageProgress, "within", within)
    monkeypatch.setattr(workers, "REPORT_SECONDS", 0.0)
    report = copied.run("models.sets=[late]", "compare.measures={cka: {}}")
    assert report.failures == {}
    # two checkpoints of 597 stimuli; the last report may come after the end
    assert ("extract timm/late", 597) in reported
    assert {done for _, done in reported} <= {597, 1194}
