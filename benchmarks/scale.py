"""How Consilience scales: what grows with the number of tasks, of pairs, of representations.

    python benchmarks/scale.py --only cluster

`cluster`: what the driver and the scheduler spend on tasks that do nothing, for 10², 10³ and 10⁴ of
them through the window, with the blocks of 10⁶ pairs among them. Scheduler and workers are
processes of their own, so that the memory of each is known.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster import AddressSpec, Task, executor

SIDE = 128
"""Representations along the side of a block of pairs."""
PAIRS = 1_000_000
COUNTS = (100, 1_000, 10_000)
WORKERS = 2


def blocks(pairs: int) -> int:
    """Return the blocks of all pairs of representations, where there are so many pairs."""
    representations = math.isqrt(2 * pairs) + 1
    along = math.ceil(representations / SIDE)
    return along * (along + 1) // 2


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def scheduler() -> Iterator[tuple[str, int]]:
    """Give address and process of a scheduler with workers, all processes of their own."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        where = ["--scheduler-file", str(file)]

        def launch(*arguments: str) -> None:
            command = [sys.executable, "-m", "dask", *arguments, *where]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, cwd=folder, **quiet))

        try:
            launch("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
            for _ in range(WORKERS):
                launch("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard")
            while not file.exists():
                if started[0].poll() is not None:
                    raise SystemExit("the scheduler did not start")
                time.sleep(0.1)
            from distributed import Client

            with Client(scheduler_file=str(file), set_as_default=False) as client:
                client.wait_for_workers(WORKERS, timeout=60)
                address = client.scheduler.address
            yield address, started[0].pid
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def cluster() -> None:
    """Print the cost of tasks that do nothing, by their number."""
    of_pairs = blocks(PAIRS)
    print(f"{PAIRS:,} pairs are {of_pairs} blocks of {SIDE} x {SIDE}; {WORKERS} workers")
    print("tasks   seconds  tasks/s  most in scheduler  scheduler MiB (+)  driver MiB (+)")
    with (
        scheduler() as (address, process),
        executor(AddressSpec(kind="address", address=address)) as pool,
    ):
        client = pool.start()
        list(pool.run([Task(f"warm {i}", abs, (i,)) for i in range(50)]))
        for n in sorted({of_pairs, *COUNTS}):
            before = resident(process), resident(os.getpid())
            started, most = time.perf_counter(), 0
            tasks = (Task(f"block {i}", abs, (i,), cost=float(i)) for i in range(n))
            for i, outcome in enumerate(pool.run(tasks)):
                assert outcome.error is None
                if i % max(1, n // 20) == 0:
                    known = client.run_on_scheduler(_known)
                    most = max(most, known)
            seconds = time.perf_counter() - started
            after = resident(process), resident(os.getpid())
            print(
                f"{n:<7,} {seconds:<8.2f} {n / seconds:<8.0f} {most:<18} "
                f"{after[0]:.0f} (+{after[0] - before[0]:.1f})".ljust(65),
                f"{after[1]:.0f} (+{after[1] - before[1]:.1f})",
            )


def _known(dask_scheduler=None) -> int:
    return len(dask_scheduler.tasks)


SECTIONS = {"cluster": cluster}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=SECTIONS, help="one section; default: all")
    only = parser.parse_args().only
    for name, section in SECTIONS.items():
        if only in (None, name):
            section()


if __name__ == "__main__":
    main()
