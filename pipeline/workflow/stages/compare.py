"""Stage: compute the similarities of pairs of representations that are missing from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster import Device
from pipeline.encoder import Encoder
from pipeline.errors import InputError
from pipeline.measures import MeasureSpec, Prepared, Scores, check_version, score_pairs
from pipeline.measures.dense.panels import resolve_device
from pipeline.measures.footprint import DOUBLE, SINGLE, scoring_bytes, scoring_operations
from pipeline.schema import SCORE_GROUP
from pipeline.stimuli import Subset
from pipeline.store import Store
from pipeline.store.grid import Grid, PendingPairs, pending_pairs
from pipeline.store.io.lease import StoreRef
from pipeline.store.writer import StoreWriter
from pipeline.types import Mask
from pipeline.workflow.budgets import Cost
from pipeline.workflow.comparisons import Comparison, expand_to_layers
from pipeline.workflow.context import Context
from pipeline.workflow.representations import (
    Budget,
    PreparedFootprint,
    RepresentationRef,
    prepare_representations,
    representation_refs,
)
from pipeline.workflow.stages.stage import Failure, GridStage, PendingGrids, StageTask, stage_task


class Compare(GridStage):
    """One task per block of pairs, for all measures with missing pairs in it."""

    name = "compare"
    unit = "pairs"
    counted = "pairs of representations"

    def pending(self, ctx: Context) -> PendingGrids:
        """Compare the requested pairs with the grid of each measure."""
        found = PendingGrids()
        for c in ctx.comparisons:
            digests, wanted = wanted_scores(c)
            todo = {}
            for label, spec in ctx.specs.items():
                grid = find_grid(ctx.store_of(label), c.subset.key, label, spec)
                todo[label] = pending_scores(grid, digests, wanted, spec)
            found.add(c, todo, wanted)
        return found

    def tasks(self, ctx: Context, pending: PendingGrids) -> Iterator[StageTask]:
        """Yield one task per block in which something is missing."""
        settings = ctx.workflow.compare
        for c, todo in pending:
            yield from compare_tasks(
                todo, ctx.specs, c.encoders, c.subset, settings.budget, settings.device
            )

    def create(self, ctx: Context, pending: PendingGrids) -> None:
        """Write the rows of the subsets, and assign every representation a slot in the grids."""
        for c, todo in pending:
            ctx.writer.ensure_subset(c.subset)
            digests, _ = wanted_scores(c)
            for label, each in todo.items():
                grid = ensure_grid(ctx.writer, c.subset, label, ctx.specs[label])
                grid.admit(digests)
                each.check(grid)

    def collect(
        self, ctx: Context, pending: PendingGrids, task: StageTask, result: Diagnostics
    ) -> Iterator[Failure]:
        """Write the per-representation diagnostics."""
        record_diagnostics(ctx.writer, task.job.subset, result)
        yield from ()

    def remedy(self, ctx: Context) -> str:
        """Name the cache's memory limit and the size of the subset."""
        return (
            f"Lower compare.memory (now {ctx.workflow.compare.memory}) or subset.n "
            f"(now {len(ctx.subset)})"
        )


def find_grid(store: Store | None, subset: str, label: str, spec: MeasureSpec) -> Grid | None:
    """Return the grid of one measure on a subset, or None.

    Raises
    ------
    InputError
        If the store has another measure, or an earlier version of it, under this label.
    """
    grid = None if store is None else store.scores(subset, label)
    if grid is None:
        return None
    stored, current = grid.attrs["measure"], spec.identity()
    if any(stored[key] != current[key] for key in ("name", "parameters")):
        raise InputError(
            f"measure {label!r}: in the store this label stands for {_describe(stored)}, now for "
            f"{_describe(current)}. Give the new one another label, or drop the stored results "
            f"with --replace {label}."
        )
    check_version(stored, label)
    return grid


def ensure_grid(store: StoreWriter, subset: Subset, label: str, spec: MeasureSpec) -> Grid:
    """Return the grid of one measure, created if necessary. Driver only."""
    attributes = {
        "measure": spec.identity(),
        "conventions": spec.conventions(),
        "n_stimuli": len(subset),
    }
    return find_grid(store, subset.key, label, spec) or store.ensure_scores(
        subset.key, label, attributes
    )


def _describe(measure: Any) -> str:
    parameters = ", ".join(f"{k}={v!r}" for k, v in measure["parameters"].items())
    return f"{measure['name']}({parameters})"


def wanted_scores(comparison: Comparison) -> tuple[dict[str, str], Mask]:
    """Return the representations of a comparison, and which pairs are requested.

    Returns
    -------
    digests
        Representation → identity of its activations.
    wanted
        Symmetric mask `(n_representations, n_representations)`.
    """
    encoders = comparison.encoders
    digests = {r: e.digest for e in encoders for r in e.representations}
    return digests, expand_to_layers(comparison.compare_mask, [len(e.layers) for e in encoders])


def pending_scores(
    grid: Grid | None, digests: Mapping[str, str], wanted: Mask, spec: MeasureSpec
) -> PendingPairs:
    """Return the requested pairs of one measure that are missing from its grid, or from none.

    Workers write scores, but return diagnostics of representations to the driver, which writes
    them. If the driver was killed in between, the pairs are done and the diagnostics lost: one
    pair of each such representation is then computed again.
    """
    todo = pending_pairs(grid, digests, wanted, SCORE_GROUP.chunk)
    if grid is None:
        return todo
    slots = np.array([todo.members[m] for m in digests], dtype=np.int64)
    finished = wanted.any(1) & ~todo.missing[slots].any(1)
    for row in np.flatnonzero(finished & ~_has_diagnostics(grid, spec, len(todo.missing))[slots]):
        other = slots[row if wanted[row, row] else int(np.argmax(wanted[row]))]
        todo.missing[slots[row], other] = todo.missing[other, slots[row]] = True
    return todo


def _has_diagnostics(grid: Grid, spec: MeasureSpec, length: int) -> NDArray[np.bool_]:
    """Return a mask `(length,)` of the slots whose diagnostics are all written."""
    has = np.ones(length, bool)
    for name in _diagnostic_names(spec):
        column = grid.column(name)[:length]  # a lost chunk reads as fill values: not written
        has[: len(column)] &= ~np.isnan(column) if column.dtype.kind == "f" else column >= 0
    return has


@dataclass(frozen=True)
class CompareJob:
    """One block of pairs: chunks (i, j) and (j, i) of one or more measures."""

    subset: str
    specs: Mapping[str, MeasureSpec]
    i: int
    j: int
    budget: Budget
    device: Device
    left: Sequence[RepresentationRef | None]
    right: Sequence[RepresentationRef | None]
    """By position in the chunk; None if no missing pair involves it."""
    missing: Mapping[str, Mask]
    """Label → `(chunk, chunk)`."""

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs, summed over measures."""
        masks = self.missing.values()
        return int(sum((np.triu(m) if self.i == self.j else m).sum() for m in masks))


def compare_cost(job: CompareJob, subset: Subset) -> Cost:
    """Estimate the cost of one block of similarities."""
    n, specs = len(subset), job.specs
    left = [m for m in job.left if m is not None]
    right = [m for m in job.right if m is not None]
    same_chunk = job.i == job.j
    refs = list(dict.fromkeys([*left, *right]))
    n_xs, n_ys = (len(refs),) * 2 if same_chunk else (len(left), len(right))
    prepared = PreparedFootprint(refs, subset, specs, job.budget)
    pairs = {label: float(np.triu(mask).sum() if same_chunk else mask.sum())
             for label, mask in job.missing.items()}  # fmt: skip
    scoring = scoring_bytes(n, n_xs, n_ys, specs, alike=same_chunk, spilled=prepared.spilled)
    if prepared.spilled:  # every tile reads the rows of both its sides from files
        scoring += 2.0 * DOUBLE * n * max(ref.width for ref in refs)
    chunks = (1 if same_chunk else 2) * len(job.missing)
    cells = next(iter(job.missing.values())).size
    written = float(chunks * cells * (SINGLE + 1))
    return Cost(
        prepared.operations + scoring_operations(n, prepared.widths, max(pairs.values()), specs),
        prepared.read + written,
        written,
        prepared.working + scoring + 6 * SINGLE * float(cells),
        prepared.held,
    )


def compare_tasks(
    todo: Mapping[str, PendingPairs],
    specs: Mapping[str, MeasureSpec],
    encoders: Sequence[Encoder],
    subset: Subset,
    budget: Budget,
    device: Device,
) -> Iterator[StageTask]:
    """Yield one task per block in which something is missing.

    Measures with the same slots share their tasks; those of one workflow usually do.
    """
    by_name = {
        name: ref
        for e in encoders
        for name, ref in zip(e.representations, representation_refs(e, specs.values()), strict=True)
    }
    shared: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for label, of_label in todo.items():
        shared.setdefault(tuple(of_label.members.items()), []).append(label)
    for labels in shared.values():
        # names of tasks are unique: measures of several groups are named
        suffix = f" ({', '.join(labels)})" if len(shared) > 1 else ""
        first = todo[labels[0]]
        table: list[RepresentationRef | None] = [None] * len(first.missing)
        for name, slot in first.members.items():
            table[slot] = by_name.get(name)
        # `np.any` of a list would stack the masks, which are the largest arrays of a plan
        anything = reduce(or_, [todo[label].missing for label in labels])
        for i, j in replace(first, missing=anything).blocks():
            rows, columns = first.region(i), first.region(j)
            blocks = {label: todo[label].missing[rows, columns] for label in labels}
            blocks = {label: block for label, block in blocks.items() if block.any()}
            job = CompareJob(
                subset.key,
                {label: specs[label] for label in blocks},
                i,
                j,
                budget,
                device,
                _needed(table[rows], np.any([b.any(1) for b in blocks.values()], axis=0)),
                _needed(table[columns], np.any([b.any(0) for b in blocks.values()], axis=0)),
                blocks,
            )
            yield stage_task(
                f"compare {subset.key} {i},{j}{suffix}",
                compare_job,
                job,
                estimate=compare_cost(job, subset),
                size=job.n_pairs,
                # `auto` may run on any worker, so that none is idle if only some have a GPU
                device="cuda" if device == "cuda" else "cpu",
            )


def _needed(
    refs: Sequence[RepresentationRef | None], used: NDArray[np.bool_]
) -> list[RepresentationRef | None]:
    return [ref if u else None for ref, u in zip(refs, used, strict=True)]


Diagnostics = dict[str, dict[str, dict[int, float]]]
"""Label → variable of the axis `representation` → slot → value."""


def compare_job(store: StoreRef, job: CompareJob) -> Diagnostics:
    """Compute one block on a worker; return diagnostics of its representations.

    Raises
    ------
    InputError
        If a measure refuses its input; the scores of the other measures are written first.
    """
    at_left = [k for k, m in enumerate(job.left) if m is not None]
    at_right = [k for k, m in enumerate(job.right) if m is not None]
    diagonal = job.i == job.j
    at_both = sorted({*at_left, *at_right}) if diagonal else []
    left = [m for m in job.left if m is not None]
    right = [m for m in job.right if m is not None]
    if diagonal:  # one list, so that each unordered pair is computed once
        either = [a or b for a, b in zip(job.left, job.right, strict=True)]
        left = right = [m for m in either if m is not None]
        at_left = at_right = at_both
    both = left if diagonal else [*left, *right]
    prepared = prepare_representations(store.place, job.subset, both, job.specs, job.budget)
    xs, ys = prepared[: len(left)], prepared if diagonal else prepared[len(left) :]
    writer = StoreWriter(store.place, lease=store.lease_check())
    diagnostics: Diagnostics = {}
    device = resolve_device(job.device)
    refused: list[str] = []
    for labels in _same_masks(job.missing, job.specs):
        mask = job.missing[labels[0]]
        mask = mask | mask.T if diagonal else mask
        inner = mask[np.ix_(at_left, at_right)]
        specs = {n: job.specs[n] for n in labels}
        try:
            scores = score_pairs(xs, ys, specs, wanted=inner, device=device)
            transposed = {
                label: Scores(found.values.T, found.undefined.T) for label, found in scores.items()
            }
            if not diagonal:
                other = {n: s for n, s in specs.items() if not s.measure.symmetric}
                transposed |= score_pairs(ys, xs, other, wanted=inner.T) if other else {}
        except InputError as error:  # the other measures are not affected
            refused.append(f"{', '.join(labels)}: {error}")
            continue
        for label in labels:
            grid = writer.scores(job.subset, label)
            assert grid is not None  # the driver has created it
            values = _scatter(scores[label].values, mask.shape, at_left, at_right, np.nan)
            undefined = _scatter(scores[label].undefined, mask.shape, at_left, at_right, False)
            grid.write_chunk(job.i, job.j, {"score": values}, mask, undefined)
            if not diagonal:
                shape = mask.T.shape
                values = _scatter(transposed[label].values, shape, at_right, at_left, np.nan)
                undefined = _scatter(transposed[label].undefined, shape, at_right, at_left, False)
                grid.write_chunk(job.j, job.i, {"score": values}, mask.T, undefined)
            by_slot = {
                chunk * grid.chunk + k: p
                for chunk, at, ps in ((job.i, at_left, xs), (job.j, at_right, ys))
                for k, p in zip(at, ps, strict=True)
            }
            diagnostics[label] = _diagnostics(by_slot, specs[label])
    if refused:
        raise InputError("; ".join(refused))
    return diagnostics


_DIAGNOSTICS: Mapping[str, Callable[[Prepared, MeasureSpec], float]] = {
    "n_ties": lambda p, spec: p.ties(spec),
    "clip": lambda p, spec: p.clip[spec.preset],
}


def _diagnostic_names(spec: MeasureSpec) -> list[str]:
    """Return the names of a measure's per-representation diagnostics."""
    has = {"n_ties": spec.measure.kind == "neighbour", "clip": bool(spec.preset)}
    return [name for name in _DIAGNOSTICS if has[name]]


def _diagnostics(
    prepared: Mapping[int, Prepared], spec: MeasureSpec
) -> dict[str, dict[int, float]]:
    return {
        name: {slot: _DIAGNOSTICS[name](p, spec) for slot, p in prepared.items()}
        for name in _diagnostic_names(spec)
    }


def _same_masks(missing: Mapping[str, Mask], specs: Mapping[str, MeasureSpec]) -> list[list[str]]:
    groups: list[list[str]] = []
    for label, mask in missing.items():
        for group in groups:
            # a pairwise measure that refuses its input must not fail others
            together = all(specs[n].measure.engine != "pairwise" for n in (group[0], label))
            if together and np.array_equal(missing[group[0]], mask):
                group.append(label)
                break
        else:
            groups.append([label])
    return groups


def _scatter(
    values: NDArray[Any], shape: tuple[int, ...], rows: list[int], columns: list[int], fill: Any
) -> NDArray[Any]:
    out = np.full(shape, fill, dtype=values.dtype)
    out[np.ix_(rows, columns)] = values
    return out


def record_diagnostics(store: StoreWriter, subset: str, diagnostics: Diagnostics) -> None:
    """Write the diagnostics that workers returned. Driver only."""
    for label, variables in diagnostics.items():
        grid = store.scores(subset, label)
        assert grid is not None  # the driver has created it
        for name, of_slot in variables.items():
            grid.write_column(name, of_slot)
