"""Stage: the null of every wanted pair of encoders that is not in the store yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.calibration import permutation_null, permutations
from pipeline.cluster import Task
from pipeline.measures import MeasureSpec
from pipeline.schema import AGGREGATES, CALIBRATION, State
from pipeline.stimuli import Subset
from pipeline.store.catalog import Encoder
from pipeline.store.grid import Allocation, Grid, blocks_of, padded_state
from pipeline.store.layout import open_root
from pipeline.workflow.members import Member, prepare_members
from pipeline.workflow.pairs import Comparison, Mask
from pipeline.workflow.spec import CalibrateSpec

CHUNK = 16  # encoders on a side of a chunk


def null_path(subset_key: str, label: str, spec: CalibrateSpec) -> str:
    """Return the group of a null: another number or seed of permutations is another null."""
    return f"calibration/{subset_key}/{label}/permutation-{spec.n_permutations}-seed{spec.seed}"


def ensure_null(
    root: zarr.Group, subset: Subset, label: str, spec: CalibrateSpec, *, create: bool = True
) -> Grid | None:
    """Return the grid of one measure's null, made if it is not there."""
    path = null_path(subset.key, label, spec)
    if path in root:
        group = root[path]
        assert isinstance(group, zarr.Group)
        return Grid(group, "encoder")
    if not create:
        return None
    return Grid.create(
        root,
        path,
        "encoder",
        CALIBRATION,
        chunk=CHUNK,
        sizes={"aggregate": len(AGGREGATES), "permutation": spec.n_permutations},
        attributes={
            "method": spec.method,
            "n_permutations": spec.n_permutations,
            "seed": spec.seed,
            "aggregates": list(AGGREGATES),
            "n_stimuli": len(subset),
        },
    )


def digests_of(comparison: Comparison) -> dict[str, str]:
    """Return encoder id → identity of its activations, of the encoders that are calibrated.

    Those at the same stage of training stand together, since they are what meets.
    """
    chosen = [comparison.encoders[i] for i in _calibrated(comparison)]
    chosen.sort(key=lambda e: (e.final, e.initial, e.step))
    return {e.id: e.digest for e in chosen}


def missing_nulls(grid: Grid | None, allocation: Allocation, comparison: Comparison) -> Mask:
    """Return the pairs of slots that are wanted and not computed."""
    state = padded_state(grid, allocation.length)
    todo = np.zeros(state.shape, bool)
    chosen = _calibrated(comparison)
    slots = [allocation.members[comparison.encoders[i].id] for i in chosen]
    at = np.ix_(slots, slots)
    wanted = comparison.calibrated[np.ix_(chosen, chosen)]
    todo[at] = wanted & ~np.isin(state[at], (State.DONE, State.UNDEFINED))
    return todo | todo.T


def _calibrated(comparison: Comparison) -> list[int]:
    """Return the positions of the encoders that are in some calibrated pair."""
    positions: list[int] = np.flatnonzero(comparison.calibrated.any(1)).tolist()
    return positions


@dataclass(frozen=True)
class NullJob:
    """One block of encoder pairs: chunks (i, j) and (j, i) of one or more measures."""

    store: str
    subset: str
    specs: Mapping[str, MeasureSpec]
    calibrate: CalibrateSpec
    i: int
    j: int
    left: Mapping[int, Sequence[Member]]
    right: Mapping[int, Sequence[Member]]
    """Position in the chunk → the encoder's layers."""
    missing: Mask


def null_tasks(
    grids: Mapping[str, Grid],
    specs: Mapping[str, MeasureSpec],
    encoders: Sequence[Encoder],
    missing: Mapping[str, Mask],
    calibrate: CalibrateSpec,
    store: str,
    subset: Subset,
) -> Iterator[Task]:
    """Yield one task per block of encoders in which something is missing.

    Measures with the same slots and the same missing pairs share their tasks.
    """
    by_id = {
        e.id: [Member(e.path, e.checkpoint, layer, e.digest) for layer in e.layers]
        for e in encoders
    }
    shared: dict[tuple[object, ...], list[str]] = {}
    for label, grid in grids.items():
        key = (tuple(grid.members.items()), missing[label].tobytes())
        shared.setdefault(key, []).append(label)
    for labels in shared.values():
        grid, todo = grids[labels[0]], missing[labels[0]]
        table = {slot: by_id[name] for name, slot in grid.members.items() if name in by_id}
        for i, j in blocks_of(todo, grid.chunk):
            # each unordered pair once: below the diagonal stands the transposed result
            block = todo[grid.region(i), grid.region(j)]
            block = np.triu(block, 1) if i == j else block
            sides = [
                {k: table[c * grid.chunk + k] for k in np.flatnonzero(block.any(axis)).tolist()}
                for c, axis in ((i, 1), (j, 0))
            ]
            n_layers = [sum(map(len, side.values())) for side in sides]
            yield Task(
                f"calibrate {subset.key} {i},{j}",
                null_job,
                (
                    NullJob(
                        store,
                        subset.key,
                        {label: specs[label] for label in labels},
                        calibrate,
                        i,
                        j,
                        sides[0],
                        sides[1],
                        block,
                    ),
                ),
                cost=float(n_layers[0] * n_layers[1]) * len(subset) ** 2,
            )


def null_job(job: NullJob) -> int:
    """Compute one block of nulls on a worker; return the number of encoder pairs."""
    xs, x_groups = _prepared(job, job.left)
    ys, y_groups = _prepared(job, job.right)
    rows, columns = list(job.left), list(job.right)
    calibrate = job.calibrate
    orders = permutations(xs[0].n_stimuli, calibrate.n_permutations, calibrate.seed)
    nulls = permutation_null(
        xs,
        ys,
        x_groups,
        y_groups,
        job.specs,
        orders,
        wanted=job.missing[np.ix_(rows, columns)],
    )
    root = open_root(job.store, "r+")
    for label, by_aggregate in nulls.items():
        group = root[null_path(job.subset, label, calibrate)]
        assert isinstance(group, zarr.Group)
        grid = Grid(group, "encoder")
        shape = (len(AGGREGATES), *job.missing.shape, calibrate.n_permutations)
        values = np.full(shape, np.nan, np.float32)
        for a, aggregate in enumerate(AGGREGATES):
            values[a][np.ix_(rows, columns)] = by_aggregate[aggregate]
        mask = job.missing
        if job.i == job.j:
            mask = mask | mask.T
            values = np.where(job.missing[None, ..., None], values, values.swapaxes(1, 2))
        undefined = np.isnan(values[0]).any(-1)
        grid.write_chunk("null", job.i, job.j, values, mask, undefined)
        if job.i != job.j:
            grid.write_chunk("null", job.j, job.i, values.swapaxes(1, 2), mask.T, undefined.T)
    return int(job.missing.sum())


def _prepared(job: NullJob, side: Mapping[int, Sequence[Member]]) -> tuple[list, NDArray[np.int64]]:  # type: ignore[type-arg]
    members = [m for layers in side.values() for m in layers]
    groups = np.repeat(np.arange(len(side)), [len(layers) for layers in side.values()])
    return prepare_members(job.store, job.subset, members, job.specs), groups
