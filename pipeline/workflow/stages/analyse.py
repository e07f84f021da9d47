"""Stages: compute the final datasets, each as declared by its record in `ANALYSES`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.analysis import ANALYSES, Analysis, ComparisonResults, Inputs
from pipeline.calibration import AGGREGATES, VERSION
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec
from pipeline.measures.footprint import SINGLE
from pipeline.schema import State
from pipeline.stimuli import StimulusTable, Subset
from pipeline.store import Store, open_store
from pipeline.store.datasets import inputs_digest
from pipeline.store.io.lease import StoreRef
from pipeline.store.writer import StoreWriter
from pipeline.types import Float64
from pipeline.workflow.budgets import Cost
from pipeline.workflow.comparisons import Comparison
from pipeline.workflow.context import Context
from pipeline.workflow.representations import reading_bytes, stored_rows
from pipeline.workflow.spec import CalibrateSpec
from pipeline.workflow.stages.calibrate import find_null
from pipeline.workflow.stages.compare import find_grid
from pipeline.workflow.stages.stage import Failure, Stage, StageTask, stage_task

ENCODERS_PER_TASK = 8
SAVE_SECONDS = 60.0
"""Seconds between writes of measured columns, which are lost if the driver is killed."""
_DIGEST = "activations_digest"

Columns = dict[str, dict[str, Any]]
"""Encoder id → column → value, and the identity of activations and labels, under
`activations_digest`."""


@dataclass
class PendingColumns:
    """The columns already measured, and the encoders to measure."""

    known: Columns
    missing: list[tuple[Comparison, list[Encoder]]]
    n_wanted: int
    is_committed: bool
    """Whether the last write of the dataset was completed."""
    saved: float = field(default_factory=time.monotonic)

    @property
    def n_missing(self) -> int:
        """Number of encoders to measure."""
        return sum(len(encoders) for _, encoders in self.missing)

    def __bool__(self) -> bool:
        return self.n_missing > 0 or not self.is_committed


class AnalyseEncoders(Stage[PendingColumns]):
    """An analysis with columns: each task measures the last layers of a few encoders."""

    unit = "encoders"
    counted = "encoders"

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.name = analysis, analysis.name

    def pending(self, ctx: Context) -> PendingColumns:
        """Compare the encoders that can be measured with the stored columns."""
        store = ctx.store
        known = {} if store is None else read_columns(store, self.analysis, ctx.key)
        missing, n_wanted = [], 0
        for comparison, encoders in _measurable(ctx.comparisons):
            n_wanted += len(encoders)
            base = comparison.subset.base
            todo = [
                e
                for e in encoders
                if not e.digest or known.get(e.id, {}).get(_DIGEST) != _identity(e, base)
            ]
            if todo:
                missing.append((comparison, todo))
        is_committed = store is None or store.is_committed(self.name, ctx.key)
        return PendingColumns(known, missing, n_wanted, is_committed)

    def tasks(self, ctx: Context, pending: PendingColumns) -> Iterator[StageTask]:
        """Yield tasks of a few encoders each."""
        for comparison, encoders in pending.missing:
            for k, i in enumerate(range(0, len(encoders), ENCODERS_PER_TASK)):
                yield columns_task(
                    self.analysis, comparison.subset, encoders[i : i + ENCODERS_PER_TASK], k
                )

    def collect(
        self, ctx: Context, pending: PendingColumns, task: StageTask, result: Columns
    ) -> Iterator[Failure]:
        """Collect the measured columns, and write them once a minute."""
        pending.known |= result
        pending.is_committed = False
        # not after every task: each write replaces the whole dataset
        if time.monotonic() - pending.saved > SAVE_SECONDS:
            self._write(ctx, pending)
        yield from ()

    def finish(self, ctx: Context, pending: PendingColumns) -> None:
        """Write the dataset if anything was measured, or an earlier write was interrupted."""
        if not pending.is_committed:
            self._write(ctx, pending)

    def _write(self, ctx: Context, pending: PendingColumns) -> None:
        write_columns(ctx.writer, self.analysis, ctx.key, pending.known)
        pending.saved, pending.is_committed = time.monotonic(), True

    def affected(self, ctx: Context, pending: PendingColumns) -> Iterable[str]:
        """Return all labels if encoders are to be measured."""
        return ctx.specs if pending.n_missing else ()

    def summary(self, ctx: Context, pending: PendingColumns) -> tuple[int, int]:
        """Count encoders."""
        return pending.n_missing, pending.n_wanted


def _measurable(comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, list[Encoder]]]:
    """Yield each comparison whose rows have labels, with the encoders to measure on these rows.

    An encoder is measured on the rows of the first comparison that it is part of: those on which
    it is compared with others of its modality.
    """
    seen: set[str] = set()
    for comparison in comparisons:
        encoders = [e for e in comparison.encoders if e.id not in seen]
        seen |= {e.id for e in encoders}
        if comparison.subset.base.labels is not None:
            yield comparison, encoders


def _identity(encoder: Encoder, base: StimulusTable) -> str:
    """Return the identity of an encoder's activations and of the labels of its stimuli."""
    return hashlib.sha256(f"{encoder.digest} {base.labels_digest}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ColumnsJob:
    """A few encoders to measure."""

    analysis: str
    subset: str
    set_key: str
    encoders: Sequence[tuple[str, str, str, str, str]]
    """For each: id, path of its group, checkpoint, last layer, identity of what is measured."""


def columns_task(
    analysis: Analysis, subset: Subset, encoders: Sequence[Encoder], number: int
) -> StageTask:
    """Return the task that measures a few encoders."""
    n, base = len(subset), len(subset.base)
    widths = np.array([e.attributes["widths"][-1] for e in encoders], dtype=np.int64)
    footprint = analysis.footprint(n, widths)
    return stage_task(
        f"{analysis.name} {subset.key} {number}",
        measure_columns,
        ColumnsJob(
            analysis.name,
            subset.key,
            subset.base.key,
            [
                (e.id, e.path, e.checkpoint, e.layers[-1], _identity(e, subset.base))
                for e in encoders
            ],
        ),
        estimate=Cost(
            footprint.operations,
            float(SINGLE * stored_rows(base) * widths.sum()),
            0.0,
            footprint.memory + reading_bytes(base, n, int(widths.max())),
        ),
        size=len(encoders),
    )


def measure_columns(store: StoreRef, job: ColumnsJob) -> Columns:
    """Measure the columns of a few encoders, on a worker."""
    (analysis,) = (a for a in ANALYSES if a.name == job.analysis)
    stored = open_store(store.place)
    rows = stored.rows(job.subset)
    # numbered anew: a person's class numbers may be any
    _, labels = np.unique(stored.stimulus_column(job.set_key, "label")[rows], return_inverse=True)
    found: Columns = {}
    for encoder, path, checkpoint, layer, digest in job.encoders:
        x = stored.tower_at(path).read(checkpoint, layer, rows)
        found[encoder] = {
            _DIGEST: digest,
            **{name: column.measure(x, labels) for name, column in analysis.columns.items()},
        }
    return found


def read_columns(store: Store, analysis: Analysis, subset: str) -> Columns:
    """Return the stored columns, if measured by this version of the analysis."""
    found: Columns = {}
    for dataset in store.column_datasets(analysis.name, subset):
        if analysis.fault(dataset.attrs):
            continue
        found |= {
            str(encoder): {
                _DIGEST: str(dataset[_DIGEST].values[i]),
                **{name: float(dataset[name].values[i]) for name in analysis.columns},
            }
            for i, encoder in enumerate(dataset.encoder.values)
        }
    return found


def write_columns(store: StoreWriter, analysis: Analysis, subset: str, found: Columns) -> None:
    """Write the columns of all encoders; a kill at any time loses none of them. Driver only."""
    dataset = analysis.compute(Inputs([], columns=found))
    dataset[_DIGEST] = ("encoder", [found[str(i)][_DIGEST] for i in dataset.encoder.values])
    store.replace_dataset(analysis.name, subset, analysis.stamped(dataset), inputs_digest(found))


class Analyse(Stage[list[str]]):
    """An analysis that the driver computes: one dataset per measure."""

    unit = "measures"
    counted = "measures"

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.name = analysis, analysis.name

    def pending(self, ctx: Context) -> list[str]:
        """Return the labels whose dataset is missing, or was computed from other inputs."""
        return [
            label
            for label in ctx.specs
            if label in ctx.changing
            or (store := ctx.store_of(label)) is None
            or not store.is_current(self.name, ctx.key, label, self._digest(store, ctx, label))
        ]

    def finish(self, ctx: Context, pending: list[str]) -> None:
        """Compute and write the datasets."""
        store = ctx.writer
        for label in pending:
            dataset = self.analysis.stamped(self.analysis.compute(self._inputs(store, ctx, label)))
            inputs = self._digest(store, ctx, label)
            store.write_dataset(self.name, ctx.key, label, dataset, inputs)

    def affected(self, ctx: Context, pending: list[str]) -> Iterable[str]:
        """Return the labels whose dataset is to be computed."""
        return pending

    def summary(self, ctx: Context, pending: list[str]) -> tuple[int, int]:
        """Count measures."""
        return len(pending), len(ctx.specs)

    @property
    def _needs(self) -> list[Analysis]:
        return [a for a in ANALYSES if a.name in self.analysis.needs]

    def _columns(self, store: Store, key: str) -> Columns:
        found: Columns = {}
        for need in self._needs:
            if need.columns:
                for encoder, columns in read_columns(store, need, key).items():
                    found.setdefault(encoder, {}).update(columns)
        return found

    def _digest(self, store: Store, ctx: Context, label: str) -> str:
        """Return the identity of the inputs from which the dataset must be computed."""
        spec, calibrate = ctx.specs[label], ctx.workflow.calibrate
        encoders, columns = _encoders(ctx.comparisons), self._columns(store, ctx.key)
        return inputs_digest(
            [(a.name, a.version) for a in (*self._needs, self.analysis)],
            settings_of(label, spec, calibrate),
            [
                (
                    e.id,
                    e.digest,
                    e.initial,
                    e.final,
                    e.step,
                    *(e.attributes.get(name) for name in ("family", "related", "metadata")),
                )
                for e in encoders
            ],
            [
                (c.subset.key, c.compare_mask.tobytes().hex(), c.calibrate_mask.tobytes().hex())
                for c in ctx.comparisons
            ],
            [columns.get(e.id) for e in encoders],
            [
                store.dataset_inputs(need.name, ctx.key, label)
                for need in self._needs
                if not need.columns
            ],
            [
                _state_digests(store, c, label, spec, calibrate)
                for c in ctx.comparisons
                if "scores" in self.analysis.needs
            ],
        )

    def _inputs(self, store: Store, ctx: Context, label: str) -> Inputs:
        spec, calibrate = ctx.specs[label], ctx.workflow.calibrate
        datasets = {
            need.name: store.dataset(need.name, label, ctx.key)
            for need in self._needs
            if not need.columns
        }
        return Inputs(
            _encoders(ctx.comparisons),
            columns=self._columns(store, ctx.key),
            results=[
                read_results(store, c, label, spec, calibrate)
                for c in ctx.comparisons
                if "scores" in self.analysis.needs
            ],
            datasets=datasets,
            alpha=calibrate.alpha if calibrate else 0.05,
            maximum=float(spec.measure.range[1]),
            attributes=settings_of(label, spec, calibrate),
        )


def stage_of(analysis: Analysis) -> Analyse | AnalyseEncoders:
    """Return the stage that computes the dataset of an analysis."""
    return AnalyseEncoders(analysis) if analysis.columns else Analyse(analysis)


def read_results(
    store: Store,
    comparison: Comparison,
    label: str,
    spec: MeasureSpec,
    calibrate: CalibrateSpec | None,
) -> ComparisonResults:
    """Read the layer scores and nulls of all encoder pairs of a comparison that are complete."""
    grid = find_grid(store, comparison.subset.key, label, spec)
    assert grid is not None
    encoders = comparison.encoders
    slots = [grid.members[r] for e in encoders for r in e.representations]
    at = np.ix_(slots, slots)
    scores = grid.values("score")[at].astype(np.float64)
    done = np.isin(grid.state()[at], (State.DONE, State.UNDEFINED))
    ends = np.cumsum([0, *(len(e.layers) for e in encoders)])
    layers = [slice(a, b) for a, b in pairwise(ends)]
    found: dict[tuple[str, str], Float64] = {}
    for i, j in np.argwhere(comparison.compare_mask):
        if done[layers[i], layers[j]].all():
            found[encoders[i].id, encoders[j].id] = scores[layers[i], layers[j]]
    nulls: dict[tuple[str, str], Float64] = {}
    tails: dict[tuple[str, str], float] = {}
    permuted: set[tuple[str, str]] = set()
    if calibrate is not None and comparison.calibrate_mask.any():
        null = find_null(store, comparison.subset.key, label, spec, calibrate)
        assert null is not None
        values, finished = null.values("null"), null.state() == State.DONE
        by_permutation = null.values("permuted").astype(bool)
        analytic = calibrate.null_method(spec)[0] == "analytic"
        bounds = null.values("tail") if analytic else np.full(finished.shape, np.nan)
        for i, j in np.argwhere(comparison.calibrate_mask):
            pair = null.members[encoders[i].id], null.members[encoders[j].id]
            if finished[pair]:
                ids = encoders[i].id, encoders[j].id
                nulls[ids] = values[(slice(None), *pair)]
                tails[ids] = float(bounds[pair])
                if by_permutation[pair]:
                    permuted.add(ids)
    return ComparisonResults(len(comparison.subset), found, nulls, permuted, tails)


def _encoders(comparisons: Sequence[Comparison]) -> list[Encoder]:
    return list({e.id: e for c in comparisons for e in c.encoders}.values())


def settings_of(label: str, spec: MeasureSpec, calibrate: CalibrateSpec | None) -> dict[str, Any]:
    """Return a dataset's attributes: conventions of the measure, settings of the calibration."""
    settings: dict[str, Any] = {
        "label": label,
        **{f"measure_{k}" if k != "measure" else k: v for k, v in spec.conventions().items()},
        "aggregates": list(AGGREGATES),
    }
    if calibrate:
        method, count = calibrate.null_method(spec)
        settings |= {
            "alpha": calibrate.alpha,
            "method": method,
            "n_permutations": count,
            "permutation_seed": calibrate.seed,
        }
        if method == "analytic":
            settings["null_version"] = VERSION
    return settings


def _state_digests(
    store: Store,
    comparison: Comparison,
    label: str,
    spec: MeasureSpec,
    calibrate: CalibrateSpec | None,
) -> list[str]:
    """Return digests of the states of the comparison's own pairs.

    They change when missing pairs are computed, not with what others add to the grids.
    """
    encoders = comparison.encoders
    found = []
    grid = find_grid(store, comparison.subset.key, label, spec)
    null = None
    if calibrate is not None:
        null = find_null(store, comparison.subset.key, label, spec, calibrate)
    for each, names in (
        (grid, [r for e in encoders for r in e.representations]),
        (null, [e.id for e in encoders]),
    ):
        if each is not None:
            slots = [each.members[name] for name in names if name in each.members]
            state = each.state()[np.ix_(slots, slots)]
            found.append(hashlib.sha256(state.tobytes()).hexdigest())
    return found
