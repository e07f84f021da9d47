"""Dask clusters in this process, or of processes that a test may kill, and what tasks do there.

Workers import nothing of the tests: tasks are expressions, evaluated by `eval`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from pipeline.cluster import Task

if TYPE_CHECKING:
    from distributed import LocalCluster

ROOT = Path(__file__).parent.parent
PATIENCE = 600.0
"""Seconds for whatever must come about in the end, on a busy machine."""


def evaluate(name: str, expression: str, **options: object) -> Task:
    """Give a task that evaluates an expression."""
    return Task(name, eval, (expression,), **options)  # type: ignore[arg-type]


def in_this_process() -> LocalCluster:
    """Start a scheduler with one worker of one thread, both in this process."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=":0",
        memory_limit=0,
    )


@dataclass
class Processes:
    """A scheduler and workers, each a process group of its own."""

    folder: Path
    environment: dict[str, str]
    options: Sequence[str] = ()
    """Options of scheduler and workers alike."""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def start(self, host: str = "tcp://127.0.0.1") -> None:
        self.scheduler, self.address = self._launch(
            ["scheduler", "--host", host, "--port", "0", "--no-dashboard"], "Scheduler at:"
        )

    def add_worker(self, *options: str, nanny: bool = False) -> subprocess.Popen[bytes]:
        process, _ = self._launch(
            [
                *("worker", self.address, "--nthreads", "1", "--memory-limit", "0"),
                *("--no-dashboard", "--nanny" if nanny else "--no-nanny", *options),
            ],
            "Registered to:",
        )
        self.workers.append(process)
        return process

    def _launch(
        self, arguments: Sequence[str], announced: str
    ) -> tuple[subprocess.Popen[bytes], str]:
        log = self.folder / f"{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, *self.options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            for line in log.read_text().splitlines():
                if announced in line:
                    return process, line.partition(announced)[2].strip()
            time.sleep(0.05)
        end(process)
        raise AssertionError(f"dask {arguments[0]} did not start:\n{log.read_text()}")

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                end(process)


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
    """End a process with all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.wait(PATIENCE)


@contextmanager
def processes(folder: Path, *options: str, **environment: str) -> Iterator[Processes]:
    """Give a cluster whose scheduler and workers are yet to be started."""
    made = Processes(folder, environment, options)
    try:
        yield made
    finally:
        made.close()


def certificates(folder: Path) -> dict[str, str]:
    """Write an authority of its own, and a certificate that it signed."""
    folder.mkdir()
    authority = trustme.CA()
    signed = authority.issue_cert("localhost", "127.0.0.1")
    paths = {part: str(folder / f"{part}.pem") for part in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    signed.cert_chain_pems[0].write_to_path(paths["cert"])
    signed.private_key_pem.write_to_path(paths["key"])
    return paths
