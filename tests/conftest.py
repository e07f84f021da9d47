"""What the rooms that need models share: a tiny zoo, run once, and a cluster in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from processes import in_this_process
from slow import SLOW
from threadpoolctl import threadpool_limits
from zoo import Zoo, write_zoo

from pipeline.store import Store
from pipeline.workflow.representations import PreparedCache

# on a busy machine an example takes longer than it should, and is right all the same
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The zoo and its store, run once by two worker processes. Read-only."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # one zoo for all test processes
    made, whole = Zoo(shared / "zoo"), shared / "zoo.whole"
    with FileLock(shared / "zoo.lock"):
        if not whole.exists():
            shutil.rmtree(made.folder, ignore_errors=True)  # what a failure has left
            made.folder.mkdir()
            write_zoo(made.folder)
            assert made.run().failures == {}
            whole.touch()
    return made


@pytest.fixture(scope="session")
def zoo_store(zoo: Zoo) -> Store:
    return zoo.store()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a scheduler with one worker, both in this process: no start-up, and patchable.

    As in workers that are processes, BLAS has one thread: with more, last digits are others. It
    ends with the module: its threads draw from `random`, which Hypothesis takes for a fault.
    """
    with threadpool_limits(1, user_api="blas"), in_this_process() as running:
        yield running.scheduler_address


@pytest.fixture
def copied(zoo: Zoo, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A copy of the zoo with its store, which a test may change. Its runs write no report."""
    monkeypatch.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
    monkeypatch.setattr("pipeline.workflow.representations.CACHE", PreparedCache())
    return zoo.copy(tmp_path / "zoo", cluster)
