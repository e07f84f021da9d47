"""Forks drivers that have imported everything, as are their workers: each begins at once.

A program of its own, since what forks may have no threads. Each line of its input orders a driver,
which can be killed just before a given change of the file system.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IMPORTED = (
    "distributed",
    "matplotlib.pyplot",
    "open_clip",
    "pipeline.cli",
    "pipeline.extraction.extract",
    "pipeline.report",
    "pipeline.extraction.torch_timm",
    "pipeline.workflow",
    "timm",
    "xarray",
    "zarr",
)
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}
SECONDS = 600


class Countdown:
    """An audit hook: notes the changes below a folder, and kills just before one of them."""

    def __init__(self, folder: str, at: tuple[str, int] | None, note: int) -> None:
        self.folder, self.at, self.note = folder, at, note
        self.counts: Counter[str] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        path = os.fsdecode(path).removeprefix(f"{self.folder}/")
        if os.path.isabs(path):
            return
        # what removes a whole folder gives the last names alone
        part = part_of(path)
        self.counts[part] += 1
        # in one call: zarr writes from several threads
        os.write(self.note, f"{part} {event} {path}\n".encode())
        if self.at is not None and self.counts[self.at[0]] >= self.at[1]:
            os.kill(os.getpid(), signal.SIGKILL)


def part_of(path: str) -> str:
    """Say to which part of a store a file belongs, if it lies in one."""
    _, inside, below = path.partition("store.zarr/")
    if inside:
        return below.partition("/")[0].partition(".")[0]
    return "report" if "store.report" in path else "elsewhere"


def drive(order: dict[str, Any]) -> None:
    """Be the driver."""
    os.setsid()
    os.chdir(order["folder"])
    log = os.open(f"{order['record']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    note = os.open(f"{order['record']}.changes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.alarm(SECONDS)
    # it runs, as somebody else's child: asking after it as after one's own would raise
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    from pipeline.cli import main

    sys.addaudithook(Countdown(order["folder"], order["at"], note))
    sys.argv = ["consilience", *order["arguments"]]
    main()


def keep(order: dict[str, Any]) -> None:
    """Start a driver, and note its process and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    record = Path(order["record"])
    driver = os.fork()
    if driver == 0:
        code = 70
        try:
            drive(order)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    write(record.with_suffix(".pid"), str(driver))
    code = os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])
    write(record.with_suffix(".code"), str(code))


def write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def serve() -> None:
    os.environ |= dict.fromkeys(THREADS, "1")
    os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
    for name in IMPORTED:
        __import__(name)
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    multiprocessing.forkserver.ensure_running()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)  # type: ignore[attr-defined]
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                keep(json.loads(line))
            finally:
                os._exit(0)


if __name__ == "__main__":
    serve()
    os._exit(0)  # tearing down all that is imported takes long
