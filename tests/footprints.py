"""Measure what tasks take: run by a test as a process of its own, prints a line for each task.

Peak memory is what the kernel says of the process (VmHWM, set back before each task), above what
it held before; bytes are those that it read, and those of the store's files that it wrote.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.analysis.competence import COMPETENCE
from pipeline.encoder import Encoder
from pipeline.measures import measure_spec
from pipeline.stimuli import Subset, SubsetSpec, draw
from pipeline.stimuli.memory import table_of
from pipeline.store.grid import PendingPairs, pending_pairs
from pipeline.store.io.lease import StoreRef
from pipeline.store.writer import StoreWriter
from pipeline.types import Weights
from pipeline.workflow import representations as members
from pipeline.workflow.comparisons import Comparison
from pipeline.workflow.representations import Budget, PreparedCache
from pipeline.workflow.spec import CalibrateSpec
from pipeline.workflow.stages import analyse, calibrate, compare
from pipeline.workflow.stages.stage import StageTask

THREE = {"cka": {}, "cka_debiased": {}, "mutual_knn": {}}
CASES = [
    ("three", THREE, 2**29, CalibrateSpec(n_permutations=19)),
    ("spilled", {"cka": {}}, 2**25, None),
    ("distances", {"distance_correlation": {}}, 2**29, None),
    ("analytic", THREE, 2**29, CalibrateSpec(method="analytic", n_permutations=99)),
    ("kernel", {"procrustes": {}}, 2**29, None),
]


class Made:
    """A store of random activations."""

    def __init__(self, path: str, n: int, widths: tuple[int, ...], n_models: int) -> None:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 255, (4, 4), np.uint8) for _ in range(n)]
        self.path, self.store = path, StoreWriter(path, create=True)
        self.stimuli = table_of("made", {}, images=images, labels=rng.integers(0, 5, n))
        self.encoders: list[Encoder] = []
        self.store.write_stimuli(self.stimuli)
        for model in range(n_models):
            self._add(f"made/m{model}", widths, rng)

    def _add(self, model: str, widths: tuple[int, ...], rng: np.random.Generator) -> None:
        group = self.store.create_tower(
            self.stimuli.key,
            model,
            "image",
            stimulus_ids=self.stimuli.stimulus_ids,
            layers={f"l{i}": width for i, width in enumerate(widths)},
            attributes={
                "model": model,
                "recipe_digest": model,
                "stimuli_fingerprint": self.stimuli.fingerprint,
                "widths": list(widths),
            },
        )
        group.add_checkpoints({"final": (10, Weights(model))})
        for start, stop in group.blocks:
            values = {
                layer: rng.normal(size=(stop - start, width)).astype(np.float32)
                for layer, width in zip(group.layers, widths, strict=True)
            }
            group.write_block("final", (start, stop), values)
        self.encoders += self.store.tower_encoders(self.stimuli.key, model, "image")

    def tasks(
        self, n: int, measures: dict[str, Any], memory: int, null: CalibrateSpec | None, tag: str
    ) -> Iterator[StageTask]:
        """Give the tasks that compare everything, each with what it is said to take."""
        subset, budget = draw(self.stimuli, SubsetSpec(n=n)), Budget(memory)
        specs = {f"{name}-{tag}": measure_spec(name, **o) for name, o in measures.items()}
        every = np.ones((len(self.encoders),) * 2, bool)
        comparison = Comparison(
            subset, self.encoders, every, every & ~np.eye(len(every), dtype=bool)
        )
        self.store.ensure_subset(subset)
        digests, wanted = compare.wanted_scores(comparison)
        todo: dict[str, PendingPairs] = {}
        for label, spec in specs.items():
            grid = compare.ensure_grid(self.store, subset, label, spec)
            grid.admit(digests)
            todo[label] = pending_pairs(grid, digests, wanted, grid.chunk)
        yield from compare.compare_tasks(todo, specs, self.encoders, subset, budget, "cpu")
        if null is not None:
            yield from self._nulls(comparison, specs, null, budget)

    def _nulls(
        self, comparison: Comparison, specs: dict[str, Any], null: CalibrateSpec, budget: Budget
    ) -> Iterator[StageTask]:
        subset = comparison.subset
        digests, wanted = calibrate.wanted_nulls(comparison)
        todo = {}
        for label, spec in specs.items():
            grid = calibrate.ensure_null(self.store, subset, label, spec, null)
            grid.admit(digests)
            todo[label] = pending_pairs(grid, digests, wanted, grid.chunk)
        yield from calibrate.null_tasks(todo, specs, self.encoders, null, subset, budget)

    def competence(self, subset: Subset) -> Iterator[StageTask]:
        """Give the tasks that measure competence."""
        yield analyse.columns_task(COMPETENCE, subset, self.encoders[:8], 0)


def extraction(folder: Path, arguments: dict[str, Any], batch_size: int) -> StageTask:
    """Give the task of extracting one model."""
    from pipeline.config.model import ModelSpec
    from pipeline.stimuli.digits import DigitsSpec, load_digits
    from pipeline.workflow.models import plan_model
    from pipeline.workflow.stages.extract import create_towers, extract_task

    stimuli = load_digits("test")
    spec = ModelSpec(
        id=f"timm/b{batch_size}",
        source="timm",
        name="vit_tiny_patch16_224",
        arguments={"num_classes": 10, **arguments},
        preprocessing={"input_size": arguments["img_size"]},
        checkpoints={"init": {"init": {"seed": 0}}},
    )
    store = StoreWriter(folder / "s.zarr", create=True)
    plan = plan_model(store, spec, stimuli)
    store.write_stimuli(stimuli)
    create_towers(store, plan, stimuli)
    return extract_task(plan, stimuli, DigitsSpec(), batch_size, "cpu")


def status(name: str) -> int:
    """Read a size from what the kernel says of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def written_since(store: str, start: int) -> int:
    """Sum the files of a store that were written since a time in nanoseconds."""
    files = (file.stat() for file in Path(store).rglob("*") if file.is_file())
    return sum(file.st_size for file in files if file.st_mtime_ns >= start)


def show(case: str, store: str, task: StageTask) -> None:
    """Run a task and print what it took, and what it was said to take."""
    members.CACHE = PreparedCache()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    process = psutil.Process()
    before, code, moved = status("VmRSS"), status("RssFile"), process.io_counters()
    start = time.time_ns()
    task.function(StoreRef(store), task.job)
    after = process.io_counters()
    measured = {
        # less the pages of libraries that were touched for the first time
        "memory": status("VmHWM") - before - max(0, status("RssFile") - code),
        "read": after.read_chars - moved.read_chars,
        "written": written_since(store, start),
    }
    estimate = task.estimate
    said = {"memory": estimate.memory, "read": estimate.read, "written": estimate.written}
    line = {"case": case, "stage": task.name.split()[0], "measured": measured, "said": said}
    print(json.dumps(line), flush=True)


def main(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if what == "extract":
            import open_clip  # noqa: F401  (as every worker that extracts does)
            import timm  # noqa: F401

            small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
            large = {"img_size": 96, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
            task = extraction(Path(folder), small, 8)
            # what is imported late is no part of what is measured
            task.function(StoreRef(f"{folder}/s.zarr"), task.job)
            show("vit", f"{folder}/s.zarr", extraction(Path(folder), large, 64))
            return
        warm, made = (
            Made(f"{folder}/w.zarr", 64, (8, 8), 2),
            Made(f"{folder}/s.zarr", 3000, (256, 768), 8),
        )
        for case, measures, memory, null in CASES:
            if case == "kernel":  # pair by pair, and so slow
                made.encoders = made.encoders[:2]
            for task in warm.tasks(48, measures, memory, null, case):
                task.function(StoreRef(warm.path), task.job)
            for task in made.tasks(1536, measures, memory, null, case):
                show(case, made.path, task)
        for task in warm.competence(draw(warm.stimuli, SubsetSpec(n=48))):
            task.function(StoreRef(warm.path), task.job)
        for task in made.competence(draw(made.stimuli, SubsetSpec(n=1536))):
            show("competence", made.path, task)


if __name__ == "__main__":
    main(sys.argv[1])
