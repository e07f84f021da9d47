"""The log of each run, in the store: JSON, a line for each thing that happened.

A line is written as it happens, so that the log of a run that was killed tells how far it came.
Only a run that has something to do writes one.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, StoreError
from pipeline.store import paths
from pipeline.store.io.lease import Holder, at_work
from pipeline.store.io.location import Location, locate
from pipeline.store.writer import StoreWriter

FOLDER = paths.run_logs()
_SUFFIX = ".jsonl"
_PACKAGES = (
    "consilience",
    "torch",
    "torchvision",
    "timm",
    "open-clip-torch",
    "dask",
    "distributed",
    "zarr",
    "xarray",
    "numpy",
    "scipy",
    "scikit-learn",
)
LOST = "ended without a word"
"""Outcome of a run whose log has no end, and that does not run: it was killed."""
RUNNING = "running"
"""Outcome of the run that holds the store's lock."""


class RunLog:
    """The log of the run that is being made."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add = add
        self._started = time.monotonic()

    def write(self, event: str, **what: Any) -> None:
        """Add a line."""
        line = {"event": event, "time": now(), **what}
        self._add(json.dumps(line, default=str) + "\n")

    def end(self, outcome: str, **what: Any) -> None:
        """Say how the run ended."""
        self.write("end", outcome=outcome, seconds=_short(time.monotonic() - self._started), **what)


@contextmanager
def run_log(store: StoreWriter, **what: Any) -> Iterator[RunLog]:
    """Begin the log of a run, and say how it ended.

    Parameters
    ----------
    store
        The store, under the run's lease.
    **what
        What the run is about to do, able to be written as JSON.
    """
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    with store.appending_run_log(f"{started}-{uuid.uuid4().hex[:6]}") as add:
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
            **what,
        )
        try:
            yield log
        except KeyboardInterrupt as stop:
            how = "terminated" if type(stop) is not KeyboardInterrupt else "interrupted"
            with suppress(StoreError):
                log.end(how)
            raise
        except BaseException as error:
            with suppress(StoreError):  # which may be what this is about
                log.end("error", error=f"{type(error).__name__}: {error}")
            raise


def now() -> str:
    """Return the time, UTC, to the millisecond."""
    return at(time.time())


def at(seconds: float) -> str:
    """Return a time given in seconds since 1970, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _short(seconds: float) -> float:
    return round(seconds, 3)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's process may belong to no one
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
    """What a log says of a run."""

    name: str
    start: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    running: bool = False

    @property
    def outcome(self) -> str:
        """How it ended."""
        return str(self.end.get("outcome", RUNNING if self.running else LOST))

    @property
    def seconds(self) -> float:
        """How long it took, to the last line."""
        if "seconds" in self.end:
            return float(self.end["seconds"])
        lines = [self.start, *self.stages, *self.tasks]
        times = [datetime.fromisoformat(line["time"]) for line in lines if "time" in line]
        return (max(times) - min(times)).total_seconds() if times else 0.0

    @property
    def n_failed(self) -> int:
        """Tasks that failed, or something in them."""
        return sum(bool(task.get("errors")) for task in self.tasks)


def read_runs(store: str | Path | Location) -> list[RunRecord]:
    """Read the logs of a store, the oldest first."""
    location = locate(store)
    holder = at_work(location)
    return [_record(location, name, holder) for name in _names(location)]


def read_run(store: str | Path | Location, name: str) -> RunRecord:
    """Read the log of one run, by its name or the beginning of it.

    Raises
    ------
    InputError
        Where there is none, or several.
    """
    location = locate(store)
    known = _names(location)
    found = [each for each in known if each.startswith(name)]
    if len(found) != 1:
        which = "several runs begin" if found else "no run begins"
        raise InputError(
            f"{location}: {which} with {name!r}. Runs: {', '.join(found or known) or 'none'}."
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
        except ValueError:  # the last line of a run that was killed while it wrote
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
