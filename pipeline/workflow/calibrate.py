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
from pipeline.schema import AGGREGATES, CALIBRATION
from pipeline.stimuli import Subset
from pipeline.store.catalog import Encoder
from pipeline.store.grid import Grid, Outstanding
from pipeline.store.layout import open_root
from pipeline.workflow.members import Member, prepare_members
from pipeline.workflow.pairs import Comparison, Mask
from pipeline.workflow.spec import CalibrateSpec

CHUNK = 16  # encoders on a side of a chunk


def null_path(subset_key: str, label: str, spec: CalibrateSpec) -> str:
    """Return the group of a null: another number or seed of permutations is another null."""
    return f"calibration/{subset_key}/{label}/permutation-{spec.n_permutations}-seed{spec.seed}"


def find_null(
    root: zarr.Group | None, subset: Subset, label: str, spec: CalibrateSpec
) -> Grid | None:
    """Return the grid of one measure's null, or None where there is none."""
    path = null_path(subset.key, label, spec)
    if root is None or path not in root:
        return None
    group = root[path]
    assert isinstance(group, zarr.Group)
    return Grid(group, "encoder")


def ensure_null(root: zarr.Group, subset: Subset, label: str, spec: CalibrateSpec) -> Grid:
    """Return the grid of one measure's null, made if it is not there. Driver only."""
    return find_null(root, subset, label, spec) or Grid.create(
        root,
        null_path(subset.key, label, spec),
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


def wanted_nulls(comparison: Comparison) -> tuple[dict[str, str], Mask]:
    """Return encoder → identity of its activations, and which pairs of them are wanted.

    Those at the same stage of training stand together, since they are what meets.
    """
    encoders = comparison.encoders

    def stage(i: int) -> tuple[bool, bool, int]:
        return encoders[i].final, encoders[i].initial, encoders[i].step

    chosen = sorted(np.flatnonzero(comparison.calibrated.any(1)).tolist(), key=stage)
    digests = {encoders[i].id: encoders[i].digest for i in chosen}
    return digests, comparison.calibrated[np.ix_(chosen, chosen)]


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
    todo: Mapping[str, Outstanding],
    specs: Mapping[str, MeasureSpec],
    encoders: Sequence[Encoder],
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
                store,
                subset.key,
                {label: specs[label] for label in labels},
                calibrate,
                i,
                j,
                left,
                right,
                block,
            )
            n_layers = sum(map(len, left.values())) * sum(map(len, right.values()))
            cost = float(n_layers) * len(subset) ** 2
            yield Task(f"calibrate {subset.key} {i},{j}", null_job, (job,), cost=cost)


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
