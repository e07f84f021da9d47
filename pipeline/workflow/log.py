"""The log of each run, kept in the store as JSON lines, one per event.

Each line is written when its event occurs, so that the log of a killed run shows how far it got.
A run with nothing to do writes no log.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.errors import InputError, StoreError
from pipeline.sources import packages
from pipeline.store import paths
from pipeline.store.io.lease import Holder, at_work
from pipeline.store.io.location import Location, locate
from pipeline.store.writer import StoreWriter

FOLDER = paths.run_logs()
_SUFFIX = ".jsonl"
_PACKAGES = (
    "consilience",
    *packages(),
    "dask",
    "distributed",
    "zarr",
    "xarray",
    "numpy",
    "scipy",
    "scikit-learn",
)
LOST = "killed"
"""Outcome of a run that is no longer running and whose log has no end."""
RUNNING = "running"
"""Outcome of the run that holds the store's lock."""


class RunLog:
    """The log of the current run."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add = add
        self._started = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Add a line, with fields that JSON can hold."""
        line = {"event": event, "time": now(), **fields}
        self._add(json.dumps(line, default=str) + "\n")

    def end(self, outcome: str, **fields: Any) -> None:
        """Record how the run ended."""
        self.write(
            "end", outcome=outcome, seconds=_rounded(time.monotonic() - self._started), **fields
        )


@contextmanager
def run_log(store: StoreWriter, **fields: Any) -> Iterator[RunLog]:
    """Open the log of a run, and record how it ended if it ends with an exception.

    Parameters
    ----------
    store
        The store, under the run's lease.
    **fields
        What the run is about to do, as values that JSON can hold.
    """
    # to the microsecond: names sort by time, though two runs may start within a second
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    with store.appending_run_log(f"{started}-{uuid4().hex[:6]}") as add:
        log = RunLog(add)
        log.write(
            "start",
            host=socket.gethostname(),
            process=os.getpid(),
            user=_user(),
            folder=str(Path.cwd()),
            command=sys.argv,
            python=platform.python_version(),
            platform=platform.platform(),
            versions=_versions(),
            **fields,
        )
        try:
            yield log
        except KeyboardInterrupt as stop:
            outcome = "terminated" if type(stop) is not KeyboardInterrupt else "interrupted"
            with suppress(StoreError):
                log.end(outcome)
            raise
        except BaseException as error:
            with suppress(StoreError):  # the store itself may be what failed
                log.end("error", error=f"{type(error).__name__}: {error}")
            raise


def now() -> str:
    """Return the current time in UTC, to the millisecond, as ISO 8601."""
    return at(time.time())


def at(seconds: float) -> str:
    """Return a Unix time in seconds as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container, the user id may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class RunRecord:
    """What the log of a run says."""

    name: str
    start: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    running: bool = False

    @property
    def outcome(self) -> str:
        """How the run ended, or that it is still running."""
        return str(self.end.get("outcome", RUNNING if self.running else LOST))

    @property
    def seconds(self) -> float:
        """Duration in seconds, up to the last line of the log."""
        if "seconds" in self.end:
            return float(self.end["seconds"])
        lines = [self.start, *self.stages, *self.tasks]
        times = [datetime.fromisoformat(line["time"]) for line in lines if "time" in line]
        return (max(times) - min(times)).total_seconds() if times else 0.0

    @property
    def n_failed(self) -> int:
        """Number of tasks that failed, wholly or in part."""
        return sum(bool(task.get("errors")) for task in self.tasks)


def read_runs(store: str | Path | Location) -> list[RunRecord]:
    """Read the logs of a store, oldest first."""
    location = locate(store)
    holder = at_work(location)
    return [_record(location, name, holder) for name in _names(location)]


def read_run(store: str | Path | Location, name: str) -> RunRecord:
    """Read the log of one run, by its name or a prefix of it.

    Raises
    ------
    InputError
        If no run, or more than one, matches.
    """
    location = locate(store)
    known = _names(location)
    found = [run for run in known if run.startswith(name)]
    if len(found) != 1:
        problem = "several runs begin" if found else "no run begins"
        raise InputError(
            f"{location}: {problem} with {name!r}. Runs: {', '.join(found or known) or 'none'}."
        )
    return _record(location, found[0], at_work(location))


def _names(location: Location) -> list[str]:
    files = sorted(location.files(FOLDER))
    return [file.removesuffix(_SUFFIX) for file in files if file.endswith(_SUFFIX)]


def _record(location: Location, name: str, holder: Holder | None) -> RunRecord:
    record, found = RunRecord(name), location.read(f"{FOLDER}/{name}{_SUFFIX}")
    for text in found.content.decode().splitlines() if found else ():
        try:
            line = json.loads(text)
        except ValueError:  # a run killed while writing leaves an incomplete last line
            continue
        if line["event"] == "start":
            record.start = line
        elif line["event"] == "end":
            record.end = line
        elif line["event"] == "task":
            record.tasks.append(line)
        else:
            record.stages.append(line)
    record.running = holder is not None and record.start.get("lock") == holder.token
    return record
