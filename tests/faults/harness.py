"""Runs in processes of their own that can be killed, and what is left of them and their store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from processes import PATIENCE

from pipeline.store.io.location import LOCK

REPOSITORY = Path(__file__).parents[2]
POLL = 0.005

Moment = tuple[str, int]
"""A part of the store, and the number of a change to it."""


@dataclass(frozen=True)
class Ground:
    """A folder with models, registry and workflow; runs start there."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store.zarr"

    def copy(self, folder: Path) -> Ground:
        """Copy models and workflow, with their files' times, and no store."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.zarr", "*.report"))
        return Ground(folder)


class Run:
    """A `consilience run` in a process of its own, forked from one with everything imported."""

    def __init__(
        self, drivers: Drivers, ground: Ground, arguments: tuple[str, ...], at: Moment | None
    ) -> None:
        self.ground = ground
        self.record = ground.folder.with_name(f"{ground.folder.name}-{time.monotonic_ns()}")
        drivers.order(
            folder=str(ground.folder),
            record=str(self.record),
            arguments=["run", "workflow.yaml", *arguments],
            at=at,
        )
        self.process = int(self._note("pid"))

    def _note(self, what: str) -> str:
        path = self.record.with_suffix(f".{what}")
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, self.output
            time.sleep(POLL)
        return path.read_text()

    @property
    def output(self) -> str:
        log = self.record.with_suffix(".log")
        return log.read_text() if log.exists() else ""

    @property
    def changes(self) -> list[str]:
        """What the driver changed below its folder, and was about to: part, kind, path."""
        return self.record.with_suffix(".changes").read_text().splitlines()

    @property
    def ended(self) -> bool:
        return self.record.with_suffix(".code").exists()

    @property
    def code(self) -> int:
        """The exit code, once the run has ended; negative, the signal that ended it."""
        return int(self._note("code"))

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process, number)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return False where the run ended before."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.ended:
                return False
            assert time.monotonic() < deadline, self.output
            time.sleep(POLL)
        return True


class Drivers:
    """Starts runs. Their workers are forked too, by a server that lives as long as this."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("drivers.py"))],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.server = psutil.Process(int(self.process.stdout.readline()))

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def start(self, ground: Ground, *arguments: str, at: Moment | None = None) -> Run:
        """Start a run, to be killed just before a change of the file system."""
        return Run(self, ground, arguments, at)

    def run(self, ground: Ground, *arguments: str, at: Moment | None = None) -> Run:
        """Run to the end."""
        run = self.start(ground, *arguments, at=at)
        run.until(lambda: False)
        return run

    def workers(self) -> list[psutil.Process]:
        """Give the worker processes of all runs."""
        found = []
        for process in self.server.children():
            with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def orphaned(self, bound: float = 120.0) -> float:
        """Return after how many seconds no worker is left."""
        since = time.monotonic()
        while left := self.workers():
            assert time.monotonic() - since < bound, f"{len(left)} workers left after {bound} s"
            time.sleep(POLL)
        return time.monotonic() - since

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)


STAGES = ("plan", "extract", "compare", "calibrate", "results")


def stage(store: Path) -> str:
    """Tell how far the first run on a store has come, from the groups that it has made."""
    if any((store / name).exists() for name in ("competence", "alignment")):
        return "results"
    if (store / "calibration").exists():
        return "calibrate"
    if any(store.glob("measures/*/*/score")):
        return "compare"
    return "extract" if (store / "activations").exists() else "plan"


def has_come_to(name: str, ground: Ground) -> bool:
    """Tell whether a run is at a stage or past it: a short one may go by between two looks."""
    return STAGES.index(stage(ground.store)) >= STAGES.index(name)


TIMES = {"weights_mtime_ns"}
"""What may differ between two stores made from the same things at different times."""
LEFTOVERS = (".partial", LOCK)


def differences(left: Path, right: Path) -> list[str]:
    """Say in what two stores differ: files, groups, arrays, attributes; nothing where equal."""
    found = [f"{a.relative_to(p)}: left over" for p in (left, right) for a in leftovers(p)]
    one, other = set(_files(left)), set(_files(right))
    found += [f"{f}: only in {left}" for f in one - other]
    found += [f"{f}: only in {right}" for f in other - one]
    a, b = (dict(zarr.open_group(p, mode="r").members(max_depth=None)) for p in (left, right))
    for name in sorted(a.keys() & b.keys()):
        x, y = a[name], b[name]
        if dict(x.attrs) != dict(y.attrs):
            found.append(f"{name}: attributes {_unlike(dict(x.attrs), dict(y.attrs))}")
        if not (isinstance(x, zarr.Array) and isinstance(y, zarr.Array)):
            continue
        if (x.shape, x.dtype, x.chunks) != (y.shape, y.dtype, y.chunks):
            found.append(f"{name}: {x.shape} {x.dtype} and {y.shape} {y.dtype}")
        elif Path(name).name not in TIMES:
            u, v = np.asarray(x[...]), np.asarray(y[...])
            same = (u == v) | ((u != u) & (v != v))
            if not same.all():
                found.append(f"{name}: {int((~same).sum())} of {same.size} values differ")
    return found


def _unlike(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (a.get(k), b.get(k)) for k in {*a, *b} if a.get(k) != b.get(k)}


def _files(store: Path) -> Iterator[str]:
    for file in store.rglob("*"):
        if file.is_file() and not file.name.endswith((*LEFTOVERS, ".jsonl")):  # logs of runs
            yield file.relative_to(store).as_posix()


def leftovers(store: Path) -> list[Path]:
    return [f for f in store.rglob("*") if f.name.endswith(LEFTOVERS)]


def assert_equal(left: Ground, right: Ground, log: str = "") -> None:
    found = differences(left.store, right.store)
    assert not found, "\n".join([*found[:20], log])


def complete_blocks(store: Path) -> dict[str, int]:
    """Give each layer's chunk of every complete block, with the time at which it was written."""
    found = {}
    for mark in store.glob("activations/*/*/*/*/complete/c/*/*"):
        tower, (row, block) = mark.parents[3], mark.parts[-2:]
        if mark.name.endswith(".partial") or not _is_marked(tower, int(row), int(block)):
            continue
        for layer in tower.glob(f"*/c/{row}/{block}/0"):
            found[layer.relative_to(store).as_posix()] = layer.stat().st_mtime_ns
    return found


def _is_marked(tower: Path, row: int, block: int) -> bool:
    complete = zarr.open_array(tower / "complete", mode="r")
    return row < complete.shape[0] and bool(np.asarray(complete[row, block]))


@dataclass
class Tally:
    """What was caused and what came of it, printed at the end of the tests."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fault: str, where: str) -> None:
        self.rows.append((fault, where))

    def lines(self) -> Iterator[str]:
        for row in sorted(set(self.rows)):
            yield f"{self.rows.count(row):5d}  {row[0]}, {row[1]}"
