"""What a task takes: operations, bytes, and the memory of the worker that runs it.

Everything is worked out from the task's own arguments, so that a plan speaks of what will be run,
and the longest tasks go first. Memory is what a task adds to an idle worker, as an upper bound:
what preparing takes for a moment is added to what comparing takes afterwards, because memory that
is given back between arrays that stay is seldom of use to larger ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec, measure_spec
from pipeline.measures.footprint import (
    DOUBLE,
    SINGLE,
    kept_bytes,
    permuting_bytes,
    permuting_operations,
    preparing_bytes,
    preparing_operations,
    scoring_bytes,
    scoring_operations,
)
from pipeline.schema import AGGREGATES, rows_per_chunk
from pipeline.stimuli import StimulusSet, Subset

if TYPE_CHECKING:
    from pipeline.workflow.representations import Budget, Member
    from pipeline.workflow.stages.calibrate import NullJob
    from pipeline.workflow.stages.compare import CompareJob
    from pipeline.workflow.stages.extract import ModelPlan

READ_AT_ONCE = 10
"""Chunks of an array that zarr reads at a time."""
Specs = Mapping[str, MeasureSpec]

OVERHEAD = 24 * 2**20
"""What BLAS and the threads in which zarr reads and writes keep for themselves, as measured."""
DECODED = 256 * 2**20
"""What a worker keeps of decoded images."""


@dataclass(frozen=True)
class Cost:
    """What one task takes."""

    operations: float
    read: float
    """Bytes of the store, if nothing is held of what was read before."""
    written: float
    """Bytes of the store."""
    working: float
    """Bytes of memory while it runs, beside what is held."""
    held: float = 0.0
    """Bytes of memory for what is kept for later tasks too."""

    @property
    def memory(self) -> float:
        """Bytes that the task adds to an idle worker."""
        return self.working + self.held + OVERHEAD


@dataclass(frozen=True)
class Needs:
    """What the tasks of a stage take together, and the memory of the worker that runs them."""

    operations: float
    read: float
    written: float
    memory: float
    """Bytes that one task at a time adds to an idle worker at most."""
    held: float
    """Bytes of these that stay when a task has ended."""

    @classmethod
    def of(cls, costs: Sequence[Cost], at_least: float = 0.0) -> Needs:
        """Add up.

        Parameters
        ----------
        at_least
            What is held from other tasks.
        """
        held = max(at_least, *(c.held for c in costs))
        return cls(
            sum(c.operations for c in costs),
            sum(c.read for c in costs),
            sum(c.written for c in costs),
            max(c.working + max(c.held, at_least) for c in costs) + OVERHEAD,
            held,
        )


def extract_cost(plan: ModelPlan, stimuli: StimulusSet, batch_size: int, device: str) -> Cost:
    """Give what the extraction of one model takes: load, forward passes, pooled outputs."""
    n = len(stimuli)
    assert plan.described is not None
    towers = [plan.described[t] for t in {t for ts in plan.missing.values() for t in ts}]
    weights = max(t.weight_bytes for t in towers)
    files = [_file_bytes(plan.checkpoints[label].file, weights) for label in plan.missing]
    published = any(plan.checkpoints[label].file is None for label in plan.missing)
    rows = rows_per_chunk(n)
    batch = min(batch_size, rows)
    forward = 0.0 if device == "cuda" else max(batch * t.working_bytes for t in towers)
    inputs = max(t.input_bytes for t in towers)
    decoded = min(sum(n * t.input_bytes for t in towers), DECODED)
    pooled = max(SINGLE * (3 * rows * sum(t.widths) + 2 * rows * max(t.widths)) for t in towers)
    # while a model is built its weights are there twice, as they are in the file and in the model;
    # the model of the checkpoint before goes when the next one is there
    loading = max(files, default=0.0) + (weights if published and len(plan.missing) > 1 else 0.0)
    pixels = sum(image.nbytes for image in stimuli.images)
    return Cost(
        plan.flops(n),
        sum(files),
        plan.bytes_to_write(n) + plan.n_missing,
        weights + max(loading, forward + 2.0 * batch * inputs) + pooled,
        decoded + pixels,
    )


def _file_bytes(file: str | None, weights: float) -> float:
    """Give the size of a checkpoint's file; one that is not there yet has the model's weights."""
    if file is not None and Path(file).is_file():
        return float(Path(file).stat().st_size)
    return weights


def compare_cost(job: CompareJob, subset: Subset) -> Cost:
    """Give what one block of similarities takes."""
    n, specs = len(subset), job.specs
    left = [m for m in job.left if m is not None]
    right = [m for m in job.right if m is not None]
    alike = job.i == job.j
    members = list(dict.fromkeys([*left, *right]))
    n_xs, n_ys = (len(members),) * 2 if alike else (len(left), len(right))
    prepared = _Prepared(members, subset, specs, job.budget)
    pairs = {label: float(np.triu(mask).sum() if alike else mask.sum())
             for label, mask in job.missing.items()}  # fmt: skip
    scoring = scoring_bytes(n, n_xs, n_ys, specs, alike=alike, spilled=prepared.spilled)
    if prepared.spilled:  # rows of both sides of a tile are read anew
        scoring += 2.0 * DOUBLE * n * max(m.width for m in members)
    chunks = (1 if alike else 2) * len(job.missing)
    cells = next(iter(job.missing.values())).size
    written = float(chunks * cells * (SINGLE + 1))
    return Cost(
        prepared.operations + scoring_operations(n, prepared.widths, max(pairs.values()), specs),
        prepared.read + written,
        written,
        prepared.working + scoring + 6 * SINGLE * float(cells),
        prepared.held,
    )


def null_cost(job: NullJob, subset: Subset) -> Cost:
    """Give what one block of nulls takes."""
    n = len(subset)
    sides = [[m for layers in side.values() for m in layers] for side in (job.left, job.right)]
    n_xs, n_ys = map(len, sides)
    widths_y = np.array([m.width for m in sides[1]], dtype=np.int64)
    members = list(dict.fromkeys([*sides[0], *sides[1]]))
    prepared = _Prepared(members, subset, job.specs, job.budget)
    of_left, of_right = (
        np.array([len(layers) for layers in side.values()]) for side in (job.left, job.right)
    )
    wanted = job.missing[np.ix_(list(job.left), list(job.right))]
    pairs = float(of_left @ wanted @ of_right)
    by_method: dict[tuple[str, int], dict[str, MeasureSpec]] = {}
    for label, spec in job.specs.items():
        by_method.setdefault(job.calibrate.null_of(spec), {})[label] = spec
    operations, working, results, written = prepared.operations, 0.0, 0.0, 0.0
    scores = 0.0
    for (method, count), specs in by_method.items():
        turned = {k: s for k, s in specs.items() if not s.measure.symmetric}
        if method == "analytic":  # pairs that moments do not determine are permuted too
            relations = len({s.relation for s in specs.values()})
            operations += 2.0 * n**3 * len(members) * relations + 2.0 * n * count * pairs
            scores += (SINGLE + 1.0) * n_xs * n_ys * len(specs)
            layers = max([*of_left.tolist(), *of_right.tolist()])
            draws = 256.0 * SINGLE * layers * (n + n_ys + 4 * layers)
            tables = 3.0 * SINGLE * n * n + DOUBLE * 30.0 * n_xs * n_ys
            working = max(working, draws + tables + scoring_bytes(
                n, n_xs, n_xs, specs, alike=True, spilled=prepared.spilled))  # fmt: skip
        else:
            operations += permuting_operations(n, count, prepared.widths, pairs, specs)
        operations += permuting_operations(n, count, prepared.widths, pairs, turned)
        working = max(working, permuting_bytes(n, count, n_xs, widths_y, specs))
        nulls = DOUBLE * float(len(AGGREGATES) * wanted.size * count)
        cells = float(len(AGGREGATES) * job.missing.size * count)
        results += 3 * nulls * len(specs)
        of_pairs = 2 + (DOUBLE if method == "analytic" else 0)
        written += ((1 if job.i == job.j else 2) * len(specs)
                    * (SINGLE * cells + of_pairs * job.missing.size))  # fmt: skip
        results += 6 * SINGLE * cells
    return Cost(
        operations,
        prepared.read + scores + written,
        written,
        prepared.working + working + results,
        prepared.held,
    )


def competence_cost(encoders: Sequence[Encoder], subset: Subset) -> Cost:
    """Give what measuring the competence of a few encoders takes, on their last layers."""
    n, base = len(subset), len(subset.base)
    each = np.array([e.attributes["widths"][-1] for e in encoders], dtype=np.int64)
    spec = {"knn": measure_spec("mutual_knn")}
    least = np.minimum(n, each)
    # a decomposition of each fold's training part serves all penalties
    fits = float((5 * (2 * n * each * least + 10 * least**3)).sum())
    widest = int(each.max())
    probe = DOUBLE * (6.0 * n * widest + 3.0 * min(n, widest) ** 2)
    return Cost(
        preparing_operations(n, each, spec) + fits,
        float(SINGLE * _stored_rows(base) * each.sum()),
        0.0,
        max(probe, preparing_bytes(n, widest, spec)) + _reading(base, n, widest),
    )


def _reading(base: int, n: int, width: int) -> float:
    """Give what reading a layer takes: all its rows, which are finite, and those chosen."""
    # of each chunk there are the bytes that were read and the array they give
    in_flight = 2 * min(_stored_rows(base), READ_AT_ONCE * rows_per_chunk(base))
    return float(width * (SINGLE * (base + in_flight + n) + base))


def _stored_rows(n: int) -> int:
    """Give the rows that a layer has on disk: its last chunk is as long as the others."""
    rows = rows_per_chunk(n)
    return -(-n // rows) * rows


class _Prepared:
    """What the representations of a task take."""

    def __init__(
        self,
        members: Sequence[Member],
        subset: Subset,
        specs: Specs,
        budget: Budget,
    ) -> None:
        n, base = len(subset), len(subset.base)
        self.widths = np.array([m.width for m in members], dtype=np.int64)
        kept = kept_bytes(n, self.widths, specs)
        movable, fixed = float(kept.movable.sum()), float(kept.fixed.sum())
        self.spilled = movable + fixed > budget.memory
        self.held = movable + fixed
        if self.spilled:
            left = fixed + max(0.0, movable - budget.scratch)
            self.held = max(float(budget.memory), left)
            self.held += float((kept.movable + kept.fixed).max())  # before it is moved
        widest = int(self.widths.max())
        layers = [m.width for m in members if m.stack]
        self.working = max(
            _reading(base, n, widest),
            SINGLE * float(n * widest) + preparing_bytes(n, widest, specs, layers),
        )
        self.operations = preparing_operations(n, self.widths, specs)
        self.read = SINGLE * float(_stored_rows(base) * self.widths.sum())
        if any(m.stack for m in members):  # thresholds are found in passes of their own
            self.read *= 4


def kept_by_all(encoders: Sequence[Encoder], subset: Subset, specs: Specs) -> float:
    """Give what all representations take once they are prepared, in bytes."""
    widths = np.array([w for e in encoders for w in e.attributes["widths"]], dtype=np.int64)
    kept = kept_bytes(len(subset), widths, specs)
    return float((kept.movable + kept.fixed).sum())
