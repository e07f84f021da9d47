"""Stages that end in the small, final datasets: competence, alignment, convergence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.analysis.alignment import Compared, alignment_dataset
from pipeline.calibration import VERSION
from pipeline.cluster import Task
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec
from pipeline.schema import AGGREGATES, COMPETENCE, DATASETS, ENCODER, PROBE, State
from pipeline.stimuli import Subset
from pipeline.store.activations import TowerGroup
from pipeline.store.datasets import (
    inputs_digest,
    is_current,
    is_replaced,
    replace_dataset,
    stored_datasets,
    write_dataset,
)
from pipeline.store.io.chunks import array_of, read_whole
from pipeline.store.layout import open_root, subset_rows
from pipeline.workflow.comparisons import Comparison
from pipeline.workflow.cost import competence_cost
from pipeline.workflow.spec import CalibrateSpec
from pipeline.workflow.stages.calibrate import find_null
from pipeline.workflow.stages.compare import find_grid

if TYPE_CHECKING:
    pass

ENCODERS_PER_TASK = 8
MEASURED = ("knn_accuracy", "probe_accuracy")
_DIGEST = "activations_digest"
RESULTS = tuple(kind for kind in DATASETS if kind.scope == "measure")
"""Alignment and convergence."""


def read_competence(root: zarr.Group, subset_key: str) -> dict[str, dict[str, Any]]:
    """Return encoder id → activations_digest, knn_accuracy, probe_accuracy."""
    found: dict[str, dict[str, Any]] = {}
    for dataset in stored_datasets(root, COMPETENCE, subset_key, None):
        if dataset.attrs.get("probe") != PROBE:
            continue  # what another probe gave is measured anew
        for i, encoder in enumerate(dataset["encoder"].values):
            found[str(encoder)] = {
                _DIGEST: str(dataset[_DIGEST].values[i]),
                **{name: float(dataset[name].values[i]) for name in MEASURED},
            }
    return found


def is_settled(root: zarr.Group, subset_key: str) -> bool:
    """Whether the competence of a subset was not being written when a run was killed."""
    return is_replaced(root, COMPETENCE, subset_key, None)


def missing_competence(
    known: Mapping[str, Mapping[str, Any]], comparison: Comparison
) -> list[Encoder]:
    """Return the image encoders whose competence has not been measured, and can be."""
    subset = comparison.subset
    if subset.base.labels is None or subset.kind != "images":
        return []
    return [
        e
        for e in comparison.encoders
        if e.tower == "image" and (not e.digest or known.get(e.id, {}).get(_DIGEST) != e.digest)
    ]


def competence_parts(missing: Sequence[Encoder]) -> list[Sequence[Encoder]]:
    """Return the encoders of each task."""
    return [missing[i : i + ENCODERS_PER_TASK] for i in range(0, len(missing), ENCODERS_PER_TASK)]


def competence_tasks(missing: Sequence[Encoder], store: str, subset: Subset) -> list[Task]:
    """Return tasks of a few encoders each."""
    return [
        Task(
            f"competence {subset.key} {k}",
            competence_job,
            (
                store,
                subset.key,
                subset.base.key,
                [(e.id, e.path, e.checkpoint, e.layers[-1], e.digest) for e in part],
            ),
            cost=competence_cost(part, subset).operations,
        )
        for k, part in enumerate(competence_parts(missing))
    ]


def competence_job(
    store: str, subset_key: str, set_key: str, encoders: Sequence[tuple[str, str, str, str, str]]
) -> dict[str, dict[str, Any]]:
    """Measure the competence of a few encoders on a worker, on their last layers."""
    from pipeline.analysis.competence import knn_accuracy, probe_accuracy

    root = open_root(store, "r")
    rows = subset_rows(root, subset_key)
    labels = read_whole(array_of(root, f"stimuli/{set_key}/label")).astype(np.int64)[rows]
    found = {}
    for encoder, path, checkpoint, layer, digest in encoders:
        group = root[path]
        assert isinstance(group, zarr.Group)
        x = TowerGroup(group).read(checkpoint, layer, rows)
        found[encoder] = {
            _DIGEST: digest,
            "knn_accuracy": knn_accuracy(x, labels),
            "probe_accuracy": probe_accuracy(x, labels),
        }
    return found


def write_competence(
    root: zarr.Group, subset_key: str, found: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the competence of all encoders, so that a kill at any time loses none. Driver only."""
    import xarray as xr

    ids = sorted(found)
    dataset = xr.Dataset(
        {
            _DIGEST: ("encoder", [found[i][_DIGEST] for i in ids]),
            **{
                name: (
                    "encoder",
                    [found[i][name] for i in ids],
                    {"description": ENCODER[name].description},
                )
                for name in MEASURED
            },
        },
        coords={"encoder": ids},
        attrs={"probe": PROBE},
    )
    replace_dataset(root, COMPETENCE, subset_key, None, dataset, inputs_digest(found))


def read_compared(
    root: zarr.Group,
    comparison: Comparison,
    label: str,
    spec: MeasureSpec,
    calibrate: CalibrateSpec | None,
) -> Compared:
    """Read the layer scores, and the nulls, of every pair of encoders of a comparison."""
    grid = find_grid(root, comparison.subset, label, spec)
    assert grid is not None
    encoders = comparison.encoders
    slots = [grid.members[r] for e in encoders for r in e.representations]
    at = np.ix_(slots, slots)
    scores = grid.values("score")[at].astype(np.float64)
    done = np.isin(grid.state()[at], (State.DONE, State.UNDEFINED))
    ends = np.cumsum([0, *(len(e.layers) for e in encoders)])
    layers = [slice(a, b) for a, b in pairwise(ends)]
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for i, j in np.argwhere(comparison.wanted):
        if done[layers[i], layers[j]].all():
            found[encoders[i].id, encoders[j].id] = scores[layers[i], layers[j]]
    nulls: dict[tuple[str, str], NDArray[np.float64]] = {}
    tails: dict[tuple[str, str], float] = {}
    permuted: set[tuple[str, str]] = set()
    if calibrate is not None and comparison.calibrated.any():
        null = find_null(root, comparison.subset, label, spec, calibrate)
        assert null is not None
        values, finished = null.values("null"), null.state() == State.DONE
        by_permutation = null.values("permuted").astype(bool)
        analytic = calibrate.null_of(spec)[0] == "analytic"
        bounds = null.values("tail") if analytic else np.full(finished.shape, np.nan)
        for i, j in np.argwhere(comparison.calibrated):
            pair = null.members[encoders[i].id], null.members[encoders[j].id]
            if finished[pair]:
                ids = encoders[i].id, encoders[j].id
                nulls[ids] = values[(slice(None), *pair)]
                tails[ids] = float(bounds[pair])
                if by_permutation[pair]:
                    permuted.add(ids)
    return Compared(len(comparison.subset), found, nulls, permuted, tails)


def stale_inputs(
    root: zarr.Group,
    label: str,
    spec: MeasureSpec,
    comparisons: Sequence[Comparison],
    calibrate: CalibrateSpec | None,
    competence: Mapping[str, Mapping[str, Any]],
) -> str | None:
    """Return the identity of what alignment and convergence have to be made from.

    None where both are there and were made from it.
    """
    inputs = inputs_digest(
        _settings(label, spec, calibrate),
        [
            (
                e.id,
                e.digest,
                e.initial,
                e.final,
                e.step,
                e.attributes.get("family"),
                e.attributes.get("related"),
                e.attributes.get("metadata"),
            )
            for e in _encoders(comparisons)
        ],
        [
            (c.subset.key, c.wanted.tobytes().hex(), c.calibrated.tobytes().hex())
            for c in comparisons
        ],
        [competence.get(e.id) for e in _encoders(comparisons)],
        [_progress(root, c, label, spec, calibrate) for c in comparisons],
    )
    key = comparisons[0].subset.key
    current = all(is_current(root, kind, key, label, inputs) for kind in RESULTS)
    return None if current else inputs


def write_alignment(
    root: zarr.Group,
    label: str,
    spec: MeasureSpec,
    comparisons: Sequence[Comparison],
    calibrate: CalibrateSpec | None,
    competence: Mapping[str, Mapping[str, Any]],
    inputs: str,
) -> None:
    """Aggregate one measure into alignment and convergence. Driver only.

    Parameters
    ----------
    inputs
        The identity of what they are made from, as `stale_inputs` gives it.
    """
    from pipeline.analysis.convergence import convergence_dataset

    alignment = alignment_dataset(
        _encoders(comparisons),
        [read_compared(root, c, label, spec, calibrate) for c in comparisons],
        alpha=calibrate.alpha if calibrate else 0.05,
        maximum=float(spec.measure.range[1]),
        competence=competence,
        attributes=_settings(label, spec, calibrate),
    )
    results = alignment, convergence_dataset(alignment)
    key = comparisons[0].subset.key
    for kind, dataset in zip(RESULTS, results, strict=True):
        write_dataset(root, kind, key, label, dataset, inputs)


def _encoders(comparisons: Sequence[Comparison]) -> list[Encoder]:
    return list({e.id: e for c in comparisons for e in c.encoders}.values())


def _settings(label: str, spec: MeasureSpec, calibrate: CalibrateSpec | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "label": label,
        **{f"measure_{k}" if k != "measure" else k: v for k, v in spec.conventions().items()},
        "aggregates": list(AGGREGATES),
    }
    if calibrate:
        method, count = calibrate.null_of(spec)
        settings |= {
            "alpha": calibrate.alpha,
            "method": method,
            "n_permutations": count,
            "permutation_seed": calibrate.seed,
        }
        if method == "analytic":
            settings["null_version"] = VERSION
    return settings


def _progress(
    root: zarr.Group,
    comparison: Comparison,
    label: str,
    spec: MeasureSpec,
    calibrate: CalibrateSpec | None,
) -> list[str]:
    """Return what tells a finished grid from one with pairs still missing."""
    grids = [find_grid(root, comparison.subset, label, spec)]
    if calibrate is not None:
        grids.append(find_null(root, comparison.subset, label, spec, calibrate))
    return [hashlib.sha256(g.state().tobytes()).hexdigest() for g in grids if g is not None]
