"""Stage: compute the nulls of pairs of encoders that are missing from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import (
    AGGREGATES,
    VERSION,
    aggregate_layers,
    draw,
    flagged_encoders,
    nulls_of,
    permutation_null,
    permutations,
    tail_bounds,
)
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec
from pipeline.measures.footprint import (
    DOUBLE,
    SINGLE,
    permuting_bytes,
    permuting_operations,
    scoring_bytes,
)
from pipeline.schema import ANALYTIC_CALIBRATION, NULL_GROUP, State
from pipeline.stimuli import Subset
from pipeline.store import Store
from pipeline.store.grid import Grid, PendingPairs, pending_pairs
from pipeline.store.io.lease import StoreRef
from pipeline.store.writer import StoreWriter
from pipeline.types import Float64, Index, Mask
from pipeline.workflow.budgets import Cost
from pipeline.workflow.comparisons import Comparison
from pipeline.workflow.context import Context
from pipeline.workflow.representations import (
    Budget,
    PreparedFootprint,
    RepresentationRef,
    prepare_representations,
    representation_refs,
)
from pipeline.workflow.spec import CalibrateSpec
from pipeline.workflow.stages.stage import GridStage, PendingGrids, StageTask, stage_task


class Calibrate(GridStage):
    """One task per block of encoder pairs, for all measures with the same missing pairs."""

    name = "calibrate"
    unit = "pairs"
    counted = "pairs of encoders"

    def pending(self, ctx: Context) -> PendingGrids:
        """Compare the requested pairs with the nulls of each measure."""
        found, settings = PendingGrids(), ctx.workflow.calibrate
        for c in ctx.comparisons if settings is not None else ():
            assert settings is not None
            digests, wanted = wanted_nulls(c)
            todo = {
                label: pending_pairs(
                    find_null(ctx.store_of(label), c.subset.key, label, spec, settings),
                    digests,
                    wanted,
                    NULL_GROUP.chunk,
                )
                for label, spec in ctx.specs.items()
            }
            found.add(c, todo, wanted)
        return found

    def tasks(self, ctx: Context, pending: PendingGrids) -> Iterator[StageTask]:
        """Yield one task per block in which something is missing."""
        settings = ctx.workflow.calibrate
        for c, todo in pending:
            assert settings is not None
            yield from null_tasks(
                todo, ctx.specs, c.encoders, settings, c.subset, ctx.workflow.compare.budget
            )

    def create(self, ctx: Context, pending: PendingGrids) -> None:
        """Assign every encoder a slot in the grids of nulls."""
        settings = ctx.workflow.calibrate
        for c, todo in pending:
            assert settings is not None
            digests, _ = wanted_nulls(c)
            for label, each in todo.items():
                grid = ensure_null(ctx.writer, c.subset, label, ctx.specs[label], settings)
                grid.admit(digests)
                each.check(grid)

    def remedy(self, ctx: Context) -> str:
        """Name the number of permutations, the cache's memory limit and the subset's size."""
        return (
            f"Lower calibrate.n_permutations, compare.memory (now {ctx.workflow.compare.memory}) "
            f"or subset.n (now {len(ctx.subset)})"
        )


def null_key(measure: MeasureSpec, spec: CalibrateSpec) -> str:
    """Return the key of a measure's null, unique to its method, number of values and seed."""
    method, count = spec.null_method(measure)
    model = f"-v{VERSION}" if method == "analytic" else ""
    return f"{method}{model}-{count}-seed{spec.seed}"


def find_null(
    store: Store | None, subset: str, label: str, measure: MeasureSpec, spec: CalibrateSpec
) -> Grid | None:
    """Return the grid of one measure's null on a subset, or None."""
    return None if store is None else store.null(subset, label, null_key(measure, spec))


def ensure_null(
    store: StoreWriter, subset: Subset, label: str, measure: MeasureSpec, spec: CalibrateSpec
) -> Grid:
    """Return the grid of one measure's null, created if necessary. Driver only."""
    method, count = spec.null_method(measure)
    attributes = {
        "method": method,
        **({"version": VERSION} if method == "analytic" else {}),
        "n_permutations": count,
        "seed": spec.seed,
        "aggregates": list(AGGREGATES),
        "n_stimuli": len(subset),
    }
    return store.ensure_null(subset.key, label, null_key(measure, spec), attributes)


def wanted_nulls(comparison: Comparison) -> tuple[dict[str, str], Mask]:
    """Return the encoders of a comparison, and which pairs need a null.

    Encoders are sorted by stage of training: mostly those at the same stage are compared, so that
    their pairs fall into few blocks.

    Returns
    -------
    digests
        Encoder → identity of its activations.
    wanted
        Symmetric mask `(n_encoders, n_encoders)`, in the same order.
    """
    encoders = comparison.encoders

    def stage(i: int) -> tuple[bool, bool, int]:
        return encoders[i].final, encoders[i].initial, encoders[i].step

    chosen = sorted(np.flatnonzero(comparison.calibrate_mask.any(1)).tolist(), key=stage)
    digests = {encoders[i].id: encoders[i].digest for i in chosen}
    return digests, comparison.calibrate_mask[np.ix_(chosen, chosen)]


@dataclass(frozen=True)
class NullJob:
    """One block of encoder pairs: chunks (i, j) and (j, i) of one or more measures."""

    subset: str
    specs: Mapping[str, MeasureSpec]
    calibrate: CalibrateSpec
    i: int
    j: int
    left: Mapping[int, Sequence[RepresentationRef]]
    right: Mapping[int, Sequence[RepresentationRef]]
    """Position in the chunk → the encoder's layers."""
    missing: Mask
    """`(chunk, chunk)`; above the diagonal only if i == j."""
    budget: Budget


def null_cost(job: NullJob, subset: Subset) -> Cost:
    """Estimate the cost of one block of nulls."""
    n = len(subset)
    sides = [[m for layers in side.values() for m in layers] for side in (job.left, job.right)]
    n_xs, n_ys = map(len, sides)
    widths_y = np.array([m.width for m in sides[1]], dtype=np.int64)
    refs = list(dict.fromkeys([*sides[0], *sides[1]]))
    prepared = PreparedFootprint(refs, subset, job.specs, job.budget)
    of_left, of_right = (
        np.array([len(layers) for layers in side.values()]) for side in (job.left, job.right)
    )
    wanted = job.missing[np.ix_(list(job.left), list(job.right))]
    pairs = float(of_left @ wanted @ of_right)
    operations, working, results, written = prepared.operations, 0.0, 0.0, 0.0
    scores = 0.0
    for (method, count), specs in _by_method(job).items():
        directed = {k: s for k, s in specs.items() if not s.measure.symmetric}
        if method == "analytic":  # pairs that moments do not determine are permuted
            relations = len({s.relation for s in specs.values()})
            operations += 2.0 * n**3 * len(refs) * relations + 2.0 * n * count * pairs
            scores += (SINGLE + 1.0) * n_xs * n_ys * len(specs)
            layers = max([*of_left.tolist(), *of_right.tolist()])
            draws = 256.0 * SINGLE * layers * (n + n_ys + 4 * layers)
            tables = 3.0 * SINGLE * n * n + DOUBLE * 30.0 * n_xs * n_ys
            working = max(working, draws + tables + scoring_bytes(
                n, n_xs, n_xs, specs, alike=True, spilled=prepared.spilled))  # fmt: skip
        else:
            operations += permuting_operations(n, count, prepared.widths, pairs, specs)
        operations += permuting_operations(n, count, prepared.widths, pairs, directed)
        working = max(working, permuting_bytes(n, count, n_xs, widths_y, specs))
        nulls = DOUBLE * float(len(AGGREGATES) * wanted.size * count)
        cells = float(len(AGGREGATES) * job.missing.size * count)
        results += 3 * nulls * len(specs)
        pair_bytes = 2 + (DOUBLE if method == "analytic" else 0)
        written += ((1 if job.i == job.j else 2) * len(specs)
                    * (SINGLE * cells + pair_bytes * job.missing.size))  # fmt: skip
        results += 6 * SINGLE * cells
    return Cost(
        operations,
        prepared.read + scores + written,
        written,
        prepared.working + working + results,
        prepared.held,
    )


def null_tasks(
    todo: Mapping[str, PendingPairs],
    specs: Mapping[str, MeasureSpec],
    encoders: Sequence[Encoder],
    calibrate: CalibrateSpec,
    subset: Subset,
    budget: Budget,
) -> Iterator[StageTask]:
    """Yield one task per block of encoders in which something is missing.

    Measures with the same slots and the same missing pairs share tasks.
    """
    by_id = {e.id: representation_refs(e, specs.values()) for e in encoders}
    shared: dict[tuple[object, ...], list[str]] = {}
    for label, of_label in todo.items():
        key = (tuple(of_label.members.items()), of_label.missing.tobytes())
        shared.setdefault(key, []).append(label)
    for labels in shared.values():
        # names of tasks are unique: measures of several groups are named
        suffix = f" ({', '.join(labels)})" if len(shared) > 1 else ""
        first = todo[labels[0]]
        table = {slot: by_id[name] for name, slot in first.members.items() if name in by_id}
        for i, j in first.blocks():
            # each unordered pair once: its transposed result is written below the diagonal
            block = first.missing[first.region(i), first.region(j)]
            block = np.triu(block, 1) if i == j else block
            left, right = (
                {k: table[c * first.chunk + k] for k in np.flatnonzero(block.any(axis)).tolist()}
                for c, axis in ((i, 1), (j, 0))
            )
            job = NullJob(
                subset.key,
                {label: specs[label] for label in labels},
                calibrate,
                i,
                j,
                left,
                right,
                block,
                budget,
            )
            yield stage_task(
                f"calibrate {subset.key} {i},{j}{suffix}",
                null_job,
                job,
                estimate=null_cost(job, subset),
                size=int(block.sum()) * len(labels),
            )


def null_job(store: StoreRef, job: NullJob) -> int:
    """Compute one block of nulls on a worker; return its number of encoder pairs."""
    left, right = (
        [m for layers in side.values() for m in layers] for side in (job.left, job.right)
    )
    prepared = prepare_representations(
        store.place, job.subset, [*left, *right], job.specs, job.budget
    )
    xs, ys = prepared[: len(left)], prepared[len(left) :]
    x_groups, y_groups = (
        np.repeat(np.arange(len(side)), [len(layers) for layers in side.values()])
        for side in (job.left, job.right)
    )
    wanted = job.missing[np.ix_(list(job.left), list(job.right))]
    in_order = _in_order(job)
    writer = StoreWriter(store.place, lease=store.lease_check())
    for (method, count), specs in _by_method(job).items():
        masks = dict.fromkeys(specs, wanted)
        permuted = dict(masks)
        nulls: dict[str, dict[str, Float64]] = {}
        tails: dict[str, Float64] = {}
        if method == "analytic":
            for label, null in nulls_of(xs, ys, x_groups, y_groups, specs).items():
                best, mask = _best_scores(writer, job, label, x_groups, y_groups, wanted)
                masks[label], seed = mask, job.calibrate.seed
                drawn = draw(null, x_groups, y_groups, mask & in_order, count, seed)
                transposed = draw(
                    null.transposed(), y_groups, x_groups, (mask & ~in_order).T, count, seed
                )
                nulls[label] = _merge_directions(in_order, drawn, transposed)
                permuted[label] = flagged_encoders(null, x_groups, y_groups, mask)
                tails[label] = tail_bounds(null, x_groups, y_groups, best)
                tails[label][permuted[label]] = np.nan
        orders = permutations(xs[0].n_stimuli, count, job.calibrate.seed)
        for labels in _group_by_mask(permuted):
            mask = permuted[labels[0]]
            selected = {label: specs[label] for label in labels}
            symmetric = {label: spec for label, spec in selected.items() if spec.measure.symmetric}
            directed = {label: spec for label, spec in selected.items() if label not in symmetric}
            found = permutation_null(xs, ys, x_groups, y_groups, directed, orders, wanted=mask)
            ordered = permutation_null(
                xs, ys, x_groups, y_groups, symmetric, orders, wanted=mask & in_order
            )
            swapped = permutation_null(
                ys, xs, y_groups, x_groups, symmetric, orders, wanted=(mask & ~in_order).T
            )
            found |= {
                label: _merge_directions(in_order, ordered[label], swapped[label])
                for label in symmetric
            }
            for label in labels:
                drawn = nulls.get(label, found[label])
                nulls[label] = {
                    aggregate: np.where(mask[..., None], found[label][aggregate], drawn[aggregate])
                    for aggregate in AGGREGATES
                }
        for label, by_aggregate in nulls.items():
            transposed = {
                aggregate: found.swapaxes(0, 1) for aggregate, found in by_aggregate.items()
            }
            if not specs[label].measure.symmetric:
                transposed = permutation_null(
                    ys, xs, y_groups, x_groups, {label: specs[label]}, orders, wanted=wanted.T
                )[label]
            pair_values: dict[str, NDArray[Any]] = {"permuted": permuted[label]}
            if label in tails:
                pair_values["tail"] = tails[label]
            _write(
                _null(writer, job, label), job, by_aggregate, transposed, pair_values, masks[label]
            )
    return int(job.missing.sum())


def _in_order(job: NullJob) -> Mask:
    """Return the mask `(left, right)` of pairs whose encoders are in alphabetical order.

    The stimuli of the alphabetically second encoder are permuted: the choice must not depend on
    the order in which encoders were added to the store.
    """
    left, right = (
        np.array([f"{layers[0].path}@{layers[0].checkpoint}" for layers in side.values()])
        for side in (job.left, job.right)
    )
    return np.asarray(left[:, None] <= right)


def _merge_directions(
    in_order: Mask, ordered: Mapping[str, Float64], swapped: Mapping[str, Float64]
) -> dict[str, Float64]:
    """Merge nulls of pairs in alphabetical order with those of the others, sides swapped."""
    return {
        aggregate: np.where(
            in_order[..., None], ordered[aggregate], swapped[aggregate].swapaxes(0, 1)
        )
        for aggregate in AGGREGATES
    }


def _best_scores(
    store: Store, job: NullJob, label: str, x_groups: Index, y_groups: Index, wanted: Mask
) -> tuple[Float64, Mask]:
    """Return the best layer score of each encoder pair, and which requested pairs have one.

    A pair that could not be compared has no score whose tail could be bounded: its null stays
    pending until there is one.
    """
    null, grid = _null(store, job, label), store.scores(job.subset, label)
    assert grid is not None  # scores come before nulls
    encoders = {slot: encoder for encoder, slot in null.members.items()}
    rows, columns = (
        [
            grid.members[f"{encoders[chunk * null.chunk + k]}/{member.layer}"]
            for k, layers in side.items()
            for member in layers
        ]
        for chunk, side in ((job.i, job.left), (job.j, job.right))
    )
    scores, state = grid.scores_among(rows, columns)
    done = np.isin(state, (State.DONE, State.UNDEFINED)).astype(np.float64)
    # the mean over layers is 1 only if all are done
    compared = wanted & (aggregate_layers(done, x_groups, y_groups)["mean"] == 1.0)
    best = np.where(compared, aggregate_layers(scores, x_groups, y_groups)["max"], np.nan)
    return best, compared


def _null(store: Store, job: NullJob, label: str) -> Grid:
    found = find_null(store, job.subset, label, job.specs[label], job.calibrate)
    assert found is not None  # the driver has created it
    return found


def _by_method(job: NullJob) -> dict[tuple[str, int], dict[str, MeasureSpec]]:
    """Group measures by method and number of values of their null."""
    found: dict[tuple[str, int], dict[str, MeasureSpec]] = {}
    for label, spec in job.specs.items():
        found.setdefault(job.calibrate.null_method(spec), {})[label] = spec
    return found


def _group_by_mask(masks: Mapping[str, Mask]) -> list[list[str]]:
    """Group the labels by mask; those with an empty mask are left out."""
    groups: dict[bytes, list[str]] = {}
    for label, mask in masks.items():
        if mask.any():
            groups.setdefault(mask.tobytes(), []).append(label)
    return list(groups.values())


def _write(
    grid: Grid,
    job: NullJob,
    nulls: Mapping[str, Float64],
    transposed: Mapping[str, Float64],
    pair_values: Mapping[str, NDArray[Any]],
    computed: Mask,
) -> None:
    """Write a block and, below the diagonal, its counterpart in the other direction.

    Parameters
    ----------
    nulls, transposed
        Aggregate → null values `(left, right, permutation)` of this direction, and
        `(right, left, permutation)` of the other.
    pair_values
        Other variables of the grid → one value per pair of encoders `(left, right)`.
    computed
        Mask `(left, right)` of the pairs whose null was computed.
    """
    rows, columns = list(job.left), list(job.right)
    mask = np.zeros_like(job.missing)
    mask[np.ix_(rows, columns)] = computed
    above = _chunk_variables(job, nulls, pair_values, rows, columns)
    below = _chunk_variables(
        job, transposed, {n: v.T for n, v in pair_values.items()}, columns, rows
    )
    if job.i == job.j:
        merged = {
            name: np.where(mask[..., None] if name == "null" else mask, found, below[name])
            for name, found in above.items()
        }
        missing = np.isnan(merged["null"][0]).any(-1)
        grid.write_chunk(job.i, job.j, merged, mask | mask.T, missing)
        return
    for i, j, found, wanted in ((job.i, job.j, above, mask), (job.j, job.i, below, mask.T)):
        grid.write_chunk(i, j, found, wanted, np.isnan(found["null"][0]).any(-1))


def _chunk_variables(
    job: NullJob,
    nulls: Mapping[str, Float64],
    pair_values: Mapping[str, NDArray[Any]],
    rows: list[int],
    columns: list[int],
) -> dict[str, NDArray[Any]]:
    """Return the variables of a chunk, with fill values except at some rows and columns."""
    at = np.ix_(rows, columns)
    count = nulls[AGGREGATES[0]].shape[-1]
    null = np.full((len(AGGREGATES), *job.missing.shape, count), np.nan, np.float32)
    for a, aggregate in enumerate(AGGREGATES):
        null[a][at] = nulls[aggregate]
    found: dict[str, NDArray[Any]] = {"null": null}
    for name, values in pair_values.items():
        variable = ANALYTIC_CALIBRATION[name]
        found[name] = np.full(job.missing.shape, variable.fill_value, variable.dtype)
        found[name][at] = values
    return found
