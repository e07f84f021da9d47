"""How Consilience scales: what grows with the number of tasks, of pairs, of representations.

    python benchmarks/scale.py --only cluster

`workers`: the quickstart's extraction and comparison with one worker and with two; its models must
have been trained (`make quickstart`). `store`: a store of 10,000 representations, opened and read
in a process of its own, and one more model. `cluster`: what the driver and the scheduler spend on
tasks that do nothing, for 10², 10³ and 10⁴ of them through the window, with the blocks of 10⁶ pairs
among them. Scheduler and workers are processes of their own, so that the memory of each is known.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np

from pipeline.cluster import AddressSpec, Task, executor
from pipeline.measures import measure_spec
from pipeline.schema import SCORE_GROUP, State
from pipeline.stimuli import StimulusTable
from pipeline.stimuli.digits import load_digits
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.grid import Grid, pending_pairs
from pipeline.store.layout import open_root
from pipeline.store.stimuli import write_stimuli
from pipeline.types import Weights
from pipeline.workflow.log import RunRecord, read_runs

SIDE = 128
"""Representations along the side of a block of pairs."""
PAIRS = 1_000_000
COUNTS = (100, 1_000, 10_000)
WORKERS = 2
THREADS = 32
"""Of each worker, where it stands for many."""


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
def scheduler(threads: int) -> Iterator[tuple[str, int]]:
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
                launch("worker", "--nthreads", str(threads), "--no-nanny", "--no-dashboard")
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
    throughput(1, sorted({of_pairs, *COUNTS}))
    print(f"as many threads as {THREADS * WORKERS} workers of one would have")
    throughput(THREADS, [COUNTS[-1]])


def throughput(threads: int, counts: Sequence[int]) -> None:
    """Print a line for each number of tasks."""
    print("tasks   seconds  tasks/s  most in scheduler  scheduler MiB (+)  driver MiB (+)")
    with (
        scheduler(threads) as (address, process),
        executor(AddressSpec(kind="address", address=address)) as pool,
    ):
        client = pool.start()
        list(pool.run([Task(f"warm {i}", abs, (i,)) for i in range(50)]))
        for n in counts:
            before = resident(process), resident(os.getpid())
            started, most = time.perf_counter(), 0
            tasks = (Task(f"block {i}", abs, (i,), cost=float(i)) for i in range(n))
            for i, outcome in enumerate(pool.run(tasks)):
                assert outcome.error is None
                if i % max(1, n // 20) == 0:
                    known = client.run_on_scheduler(
                        lambda dask_scheduler: len(dask_scheduler.tasks)
                    )
                    most = max(most, known)
            seconds = time.perf_counter() - started
            after = resident(process), resident(os.getpid())
            print(
                f"{n:<7,} {seconds:<8.2f} {n / seconds:<8.0f} {most:<18} "
                f"{after[0]:.0f} (+{after[0] - before[0]:.1f})".ljust(65),
                f"{after[1]:.0f} (+{after[1] - before[1]:.1f})",
            )


def workers() -> None:
    """Print how much faster two workers are than one."""
    taken: dict[int, dict[str, float]] = {}
    busy: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, 2):
            store = f"{folder}/{n}.zarr"
            settings = (f"cluster.n_workers={n}", "calibrate=null")
            command = [Path(sys.executable).with_name("consilience"), "run",
                       "workflows/quickstart.yaml", "--store", store]  # fmt: skip
            for setting in settings:
                command += ["--set", setting]
            subprocess.run(command, check=True, capture_output=True)
            (log,) = read_runs(store)
            taken[n] = {stage["stage"]: stage_seconds(log, stage) for stage in log.stages}
            for stage, span in taken[n].items():
                busy[stage] = sum(t["seconds"] for t in log.tasks if t["stage"] == stage) / span / n
    alone, together = additions(1), additions(2)
    print("\nstage     1 worker s  2 workers s  efficiency  two are busy")
    for stage in ("extract", "compare"):
        one, two = taken[1][stage], taken[2][stage]
        print(f"{stage:<10}{one:<12.1f}{two:<13.1f}{one / two / 2:<12.0%}{busy[stage]:.0%}")
    print(f"sums of long arrays by two processes at once: {alone / together:.0%} of one alone")


ADD = """
import time, numpy as np
a = np.ones(2**25, np.float32)
def add():
    for _ in range(12): a + a
add(); start = time.perf_counter(); add(); add(); print(time.perf_counter() - start)
"""


def additions(processes: int) -> float:
    """Return the seconds that work takes which is nothing but reading and writing memory."""
    running = [
        subprocess.Popen([sys.executable, "-c", ADD], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return max(float(process.communicate()[0]) for process in running)


def stage_seconds(log: RunRecord, stage: dict) -> float:
    """Return the time from the beginning of a stage to the end of its last task."""
    ends = [task["ended"] for task in log.tasks if task["stage"] == stage["stage"]]
    begin, end = (datetime.fromisoformat(text) for text in (stage["time"], max(ends)))
    return (end - begin).total_seconds()


MODELS, CHECKPOINTS, LAYERS, FEATURES = 20, 50, 10, 4


def add_model(root, stimuli: StimulusTable, name: str) -> list[str]:
    """Write a model's activations; return its representations."""
    rng = np.random.default_rng(0)
    layers = [f"blocks.{i}" for i in range(LAYERS)]
    steps = {f"step{10 * i}": (10 * i, Weights(f"sha256:{name}{i}")) for i in range(CHECKPOINTS)}
    tower = TowerGroup.create(
        root, paths.tower(stimuli.key, f"made/{name}", "image"),
        stimulus_ids=stimuli.stimulus_ids,
        layers=dict.fromkeys(layers, FEATURES),
        attributes={"model": f"made/{name}", "tower": "image", "recipe": {}, "recipe_digest": name,
                    "n_parameters": 1, "stimuli_fingerprint": stimuli.fingerprint, "metadata": {}},
    )  # fmt: skip
    tower.add_checkpoints(steps)
    for step in steps:
        values = rng.normal(size=(LAYERS, len(stimuli), FEATURES)).astype(np.float32)
        tower.write_block(step, (0, len(stimuli)), dict(zip(layers, values, strict=True)))
    return [f"made/{name}@{step}#image/{layer}" for step in steps for layer in layers]


READ = """
import sys, time
import xarray, pandas, zarr, dask.array, pipeline
from pipeline.store import open_store
def timed(what, call):
    start = time.perf_counter()
    found = call()
    print(f"{what}: {time.perf_counter() - start:.3f} s", flush=True)
    return found
store = timed("opened", lambda: open_store(sys.argv[1]))
catalog = timed("catalog of all", store.catalog)
print(len(catalog), "representations")
timed("one checkpoint's rows of it", lambda: catalog.query("model == 'made/m7' and step == 490"))
one = "made/m7@step490#image/blocks.3"
timed("one array of activations, the first", lambda: store.activations(one).values)
timed("another", lambda: store.activations("made/m9@step10#image/blocks.1").values)
assert "torch" not in sys.modules
"""


def store() -> None:
    """Print how long it takes to make, open and read a store of many representations."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/many.zarr"
        root = open_root(path, "a")
        stimuli = load_digits("test")
        write_stimuli(root, stimuli)
        started = time.perf_counter()
        names = [name for i in range(MODELS) for name in add_model(root, stimuli, f"m{i}")]
        print(f"\n{len(names):,} representations made in {time.perf_counter() - started:.1f} s")
        subprocess.run([sys.executable, "-c", READ, path], check=True)
        digests = dict.fromkeys(names, "0")
        spec = measure_spec("cka")
        grid = Grid.create(
            root, "measures/subset/cka", SCORE_GROUP, chunk=SIDE,
            attributes={"measure": spec.identity()},
        )  # fmt: skip
        grid.admit(digests)
        grid.array("state")[:] = int(State.DONE)
        started = time.perf_counter()
        new = add_model(root, stimuli, "one-more")
        written = time.perf_counter()
        more = digests | dict.fromkeys(new, "0")
        todo = pending_pairs(grid, more, np.ones((len(more),) * 2, bool), SIDE)
        tasks = sum(1 for _ in todo.blocks())
        known, pairs = time.perf_counter(), len(more) * (len(more) + 1) // 2
        print(
            f"one more model: {len(new)} representations written in {written - started:.2f} s; of "
            f"{pairs:,} pairs {todo.n_pairs:,} are to be computed, in {tasks} tasks of "
            f"{blocks(pairs)}; known after {known - written:.2f} s"
        )


SECTIONS = {"workers": workers, "store": store, "cluster": cluster}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=SECTIONS, help="one section; default: all")
    only = parser.parse_args().only
    for name, section in SECTIONS.items():
        if only in (None, name):
            section()


if __name__ == "__main__":
    main()
