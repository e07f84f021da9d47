"""Stage: the null of every wanted pair of encoders that is not in the store yet."""

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
from pipeline.workflow.stages.compare import Compare
from pipeline.workflow.stages.stage import PendingGrids, Stage, StageTask, stage_task


class Calibrate(Stage[PendingGrids]):
    """One task a block of pairs of encoders, for all measures that lack the same ones."""

    name = "calibrate"
    unit = "pairs"
    counted = "pairs of encoders"

    def pending(self, ctx: Context) -> PendingGrids:
        """Compare the wanted pairs with the nulls of each measure."""
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
        """Give every encoder its place in the grids of nulls."""
        settings = ctx.workflow.calibrate
        for c, todo in pending:
            assert settings is not None
            digests, _ = wanted_nulls(c)
            for label in todo:
                ensure_null(ctx.writer, c.subset, label, ctx.specs[label], settings).admit(digests)

    def summary(self, ctx: Context, pending: PendingGrids) -> tuple[int, int]:
        """Count unordered pairs, over subsets and measures."""
        return pending.n_missing, pending.n_wanted

    def resident(self, ctx: Context) -> float:
        """Return what a worker keeps of what it has prepared."""
        return Compare().resident(ctx)

    def remedy(self, ctx: Context) -> str:
        """Name the number of permutations, the budget and the size of the subset."""
        return (
            f"Lower calibrate.n_permutations, compare.memory (now {ctx.workflow.compare.memory}) "
            f"or subset.n (now {len(ctx.subset)})"
        )


def null_key(measure: MeasureSpec, spec: CalibrateSpec) -> str:
    """Name the null of a measure: another method, number or seed makes another null."""
    method, count = spec.null_method(measure)
    model = f"-v{VERSION}" if method == "analytic" else ""
    return f"{method}{model}-{count}-seed{spec.seed}"


def find_null(
    store: Store | None, subset: str, label: str, measure: MeasureSpec, spec: CalibrateSpec
) -> Grid | None:
    """Return the grid of one measure's null on a subset, or None where there is none."""
    return None if store is None else store.null(subset, label, null_key(measure, spec))


def ensure_null(
    store: StoreWriter, subset: Subset, label: str, measure: MeasureSpec, spec: CalibrateSpec
) -> Grid:
    """Return the grid of one measure's null, made if it is not there. Driver only."""
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
    """Return encoder → identity of its activations, and which pairs of them are wanted.

    Those at the same stage of training stand together, since they are what meets.
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
    budget: Budget


def null_cost(job: NullJob, subset: Subset) -> Cost:
    """Give what one block of nulls takes."""
    n = len(subset)
    sides = [[m for layers in side.values() for m in layers] for side in (job.left, job.right)]
    n_xs, n_ys = map(len, sides)
    widths_y = np.array([m.width for m in sides[1]], dtype=np.int64)
    members = list(dict.fromkeys([*sides[0], *sides[1]]))
    prepared = PreparedFootprint(members, subset, job.specs, job.budget)
    of_left, of_right = (
        np.array([len(layers) for layers in side.values()]) for side in (job.left, job.right)
    )
    wanted = job.missing[np.ix_(list(job.left), list(job.right))]
    pairs = float(of_left @ wanted @ of_right)
    by_method: dict[tuple[str, int], dict[str, MeasureSpec]] = {}
    for label, spec in job.specs.items():
        by_method.setdefault(job.calibrate.null_method(spec), {})[label] = spec
    operations, working, results, written = prepared.operations, 0.0, 0.0, 0.0
    scores = 0.0
    for (method, count), specs in by_method.items():
        directed = {k: s for k, s in specs.items() if not s.measure.symmetric}
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
        operations += permuting_operations(n, count, prepared.widths, pairs, directed)
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


def null_tasks(
    todo: Mapping[str, PendingPairs],
    specs: Mapping[str, MeasureSpec],
    encoders: Sequence[Encoder],
    calibrate: CalibrateSpec,
    subset: Subset,
    budget: Budget,
) -> Iterator[StageTask]:
    """Yield one task per block of encoders in which something is missing.

    Measures with the same slots and the same missing pairs share their tasks.
    """
    by_id = {e.id: representation_refs(e, specs.values()) for e in encoders}
    shared: dict[tuple[object, ...], list[str]] = {}
    for label, of_label in todo.items():
        key = (tuple(of_label.members.items()), of_label.missing.tobytes())
        shared.setdefault(key, []).append(label)
    for labels in shared.values():
        first = todo[labels[0]]
        table = {slot: by_id[name] for name, slot in first.members.items() if name in by_id}
        for i, j in first.blocks():
            # each unordered pair once: below the diagonal stands the transposed result
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
                f"calibrate {subset.key} {i},{j}",
                null_job,
                job,
                takes=null_cost(job, subset),
                size=int(block.sum()) * len(labels),
            )


def null_job(store: StoreRef, job: NullJob) -> int:
    """Compute one block of nulls on a worker; return the number of encoder pairs."""
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
                nulls[label] = _merged(in_order, drawn, transposed)
                permuted[label] = flagged_encoders(null, x_groups, y_groups, mask)
                tails[label] = tail_bounds(null, x_groups, y_groups, best)
                tails[label][permuted[label]] = np.nan
        orders = permutations(xs[0].n_stimuli, count, job.calibrate.seed)
        for labels in _together(permuted):
            mask = permuted[labels[0]]
            some = {label: specs[label] for label in labels}
            both = {label: spec for label, spec in some.items() if spec.measure.symmetric}
            directed = {label: spec for label, spec in some.items() if label not in both}
            found = permutation_null(xs, ys, x_groups, y_groups, directed, orders, wanted=mask)
            one = permutation_null(xs, ys, x_groups, y_groups, both, orders, wanted=mask & in_order)
            other = permutation_null(
                ys, xs, y_groups, x_groups, both, orders, wanted=(mask & ~in_order).T
            )
            found |= {label: _merged(in_order, one[label], other[label]) for label in both}
            for label in labels:
                drawn = nulls.get(label, found[label])
                nulls[label] = {
                    how: np.where(mask[..., None], found[label][how], drawn[how])
                    for how in AGGREGATES
                }
        for label, by_aggregate in nulls.items():
            transposed = {how: found.swapaxes(0, 1) for how, found in by_aggregate.items()}
            if not specs[label].measure.symmetric:
                transposed = permutation_null(
                    ys, xs, y_groups, x_groups, {label: specs[label]}, orders, wanted=wanted.T
                )[label]
            of_pairs: dict[str, NDArray[Any]] = {"permuted": permuted[label]}
            if label in tails:
                of_pairs["tail"] = tails[label]
            _write(_null(writer, job, label), job, by_aggregate, transposed, of_pairs, masks[label])
    return int(job.missing.sum())


def _in_order(job: NullJob) -> Mask:
    """Tell which pairs of encoders stand in the order in which they are told apart by name.

    It is the stimuli of the second that are permuted. Which of two that is must not depend on when
    they came into the store.
    """
    left, right = (
        np.array([f"{layers[0].path}@{layers[0].checkpoint}" for layers in side.values()])
        for side in (job.left, job.right)
    )
    return np.asarray(left[:, None] <= right)


def _merged(
    in_order: Mask, one: Mapping[str, Float64], other: Mapping[str, Float64]
) -> dict[str, Float64]:
    """Put nulls of pairs in order, and of the others with sides exchanged, into one."""
    return {
        how: np.where(in_order[..., None], one[how], other[how].swapaxes(0, 1))
        for how in AGGREGATES
    }


def _best_scores(
    store: Store, job: NullJob, label: str, x_groups: Index, y_groups: Index, wanted: Mask
) -> tuple[Float64, Mask]:
    """Return the best layer scores of pairs of encoders, and which of those wanted were compared.

    A pair that could not be compared has no score to tell the tail of, and its null waits for it.
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
    # the mean of what is done or not is 1 where all is
    compared = wanted & (aggregate_layers(done, x_groups, y_groups)["mean"] == 1.0)
    best = np.where(compared, aggregate_layers(scores, x_groups, y_groups)["max"], np.nan)
    return best, compared


def _null(store: Store, job: NullJob, label: str) -> Grid:
    found = find_null(store, job.subset, label, job.specs[label], job.calibrate)
    assert found is not None  # the driver has made it
    return found


def _by_method(job: NullJob) -> dict[tuple[str, int], dict[str, MeasureSpec]]:
    """Return (method, number of values) → the measures whose null is had so."""
    found: dict[tuple[str, int], dict[str, MeasureSpec]] = {}
    for label, spec in job.specs.items():
        found.setdefault(job.calibrate.null_method(spec), {})[label] = spec
    return found


def _together(masks: Mapping[str, Mask]) -> list[list[str]]:
    """Return the labels with something to permute, those with the same pairs together."""
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
    of_pairs: Mapping[str, NDArray[Any]],
    computed: Mask,
) -> None:
    """Write a block and, below the diagonal, that of the other direction.

    Parameters
    ----------
    nulls, transposed
        Aggregate → values of this direction and of the other.
    of_pairs
        Variable of the grid → its value for each pair of encoders.
    computed
        The pairs among those of the job that the others hold.
    """
    rows, columns = list(job.left), list(job.right)
    mask = np.zeros_like(job.missing)
    mask[np.ix_(rows, columns)] = computed
    above = _chunk(job, nulls, of_pairs, rows, columns)
    below = _chunk(job, transposed, {n: v.T for n, v in of_pairs.items()}, columns, rows)
    if job.i == job.j:
        both = {
            name: np.where(mask[..., None] if name == "null" else mask, found, below[name])
            for name, found in above.items()
        }
        missing = np.isnan(both["null"][0]).any(-1)
        grid.write_chunk(job.i, job.j, both, mask | mask.T, missing)
        return
    for i, j, found, wanted in ((job.i, job.j, above, mask), (job.j, job.i, below, mask.T)):
        grid.write_chunk(i, j, found, wanted, np.isnan(found["null"][0]).any(-1))


def _chunk(
    job: NullJob,
    nulls: Mapping[str, Float64],
    of_pairs: Mapping[str, NDArray[Any]],
    rows: list[int],
    columns: list[int],
) -> dict[str, NDArray[Any]]:
    """Return the variables of a chunk, filled at some rows and columns."""
    at = np.ix_(rows, columns)
    count = nulls[AGGREGATES[0]].shape[-1]
    null = np.full((len(AGGREGATES), *job.missing.shape, count), np.nan, np.float32)
    for a, aggregate in enumerate(AGGREGATES):
        null[a][at] = nulls[aggregate]
    found: dict[str, NDArray[Any]] = {"null": null}
    for name, values in of_pairs.items():
        variable = ANALYTIC_CALIBRATION[name]
        found[name] = np.full(job.missing.shape, variable.fill_value, variable.dtype)
        found[name][at] = values
    return found
