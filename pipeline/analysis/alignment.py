"""From layer × layer to encoder × encoder: best layers, calibration, p and q, and metadata.

Arithmetic is on bare arrays; `alignment_dataset` adds the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.analysis import Analysis, ComparisonResults, Inputs
from pipeline.analysis.competence import COLUMNS
from pipeline.calibration import (
    VERSION,
    BestPair,
    benjamini_hochberg,
    best_pair,
    calibrate_score,
    check_level,
)
from pipeline.encoder import Encoder, related
from pipeline.errors import InputError
from pipeline.schema import ALIGNMENT as VARIABLES
from pipeline.schema import ENCODER
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr

_OF_ENCODERS = ENCODER | {name: column.variable for name, column in COLUMNS.items()}


@dataclass(frozen=True)
class LayerAggregate(BestPair):
    """Aggregates of a layer × layer block of scores."""

    mean: float
    """Mean over the pairs of layers with a defined score; NaN without any."""
    matched: float
    """Mean over layers at equal relative depth: each layer of the deeper encoder with the nearest
    one of the other."""


def aggregate_block(block: Float64) -> LayerAggregate:
    """Aggregate the layer scores of two encoders.

    Parameters
    ----------
    block
        `(layers of x, layers of y)`, NaN where undefined.
    """
    best = best_pair(block)
    return LayerAggregate(
        best.score,
        best.layer_x,
        best.layer_y,
        _mean(block),
        _mean(block[matched_depths(*block.shape)]),
    )


def _mean(scores: Float64) -> float:
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if len(defined) else np.nan


@lru_cache(maxsize=1024)
def matched_depths(n_x: int, n_y: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the layer indices of two encoders at equal relative depth.

    The first layers are matched with each other, and so are the last.

    Parameters
    ----------
    n_x, n_y
        Number of layers of each encoder.

    Returns
    -------
    tuple of numpy.ndarray
        One index per encoder, `(max(n_x, n_y),)` each.
    """
    n = max(n_x, n_y)
    depth = np.linspace(0.0, 1.0, n) if n > 1 else np.ones(1)
    at = [np.rint(depth * (m - 1)).astype(np.int64) for m in (n_x, n_y)]
    return at[0], at[1]


def alignment_dataset(
    encoders: Sequence[Encoder],
    results: Sequence[ComparisonResults],
    *,
    alpha: float,
    maximum: float,
    columns: Mapping[str, Mapping[str, float]],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Join the aggregated, calibrated scores of all encoder pairs with the encoders' metadata.

    Parameters
    ----------
    alpha
        Significance level of the threshold, in (0, 1).
    maximum
        The measure's highest possible score, which is calibrated to 1.
    columns
        Encoder id → column → measured value.
    attributes
        Attributes of the dataset.

    Returns
    -------
    xarray.Dataset
        Dimensions `(encoder_x, encoder_y)`; variables as declared in `pipeline.schema.ALIGNMENT`;
        coordinates `<name>_x` and `<name>_y` for each variable of `pipeline.schema.ENCODER` and
        for each column of competence.
    """
    import xarray as xr

    n = len(encoders)
    index = {e.id: i for i, e in enumerate(encoders)}
    found: dict[str, NDArray[Any]] = {
        name: np.full((n, n), v.fill_value, dtype=v.dtype)
        for name, v in VARIABLES.items()
        if v.dims == ("encoder_x", "encoder_y")
    }
    for result in results:
        for (x, y), block in result.scores.items():
            at = index[x], index[y]
            best = aggregate_block(block)
            found["score"][at], found["mean"][at] = best.score, best.mean
            found["layer_x"][at], found["layer_y"][at] = best.layer_x, best.layer_y
            found["matched"][at], found["n_stimuli"][at] = best.matched, result.n_stimuli
        _calibrate(found, index, result, alpha, maximum)
    found["related"] = related(encoders)
    tested = np.isfinite(found["p"]) & ~np.eye(n, dtype=bool)
    symmetric = np.array_equal(found["p"], found["p"].T, equal_nan=True)
    if symmetric:
        tested = np.triu(tested)  # each unordered pair is one test
    if tested.any():
        found["q"][tested] = benjamini_hochberg(found["p"][tested])
        if symmetric:
            found["q"].T[tested] = found["q"][tested]
    variables = {
        name: (VARIABLES[name].dims, values, {"description": VARIABLES[name].description})
        for name, values in found.items()
    }
    coordinates: dict[str, Any] = {}
    for side in ("encoder_x", "encoder_y"):
        coordinates[side] = (side, [e.id for e in encoders])
        for name, column in encoder_columns(encoders, columns).items():
            coordinates[f"{name}_{side[-1]}"] = (
                side,
                column,
                {"description": _OF_ENCODERS[name].description},
            )
    return xr.Dataset(variables, coords=coordinates, attrs=dict(attributes))


def calibration_fault(attributes: Mapping[str, Any]) -> str:
    """Return what is wrong with the calibration of a stored alignment dataset.

    Parameters
    ----------
    attributes
        Attributes of the dataset.

    Returns
    -------
    str
        Empty if nothing is wrong, or if the dataset is not calibrated.
    """
    if attributes.get("method") == "analytic" and attributes.get("null_version") != VERSION:
        return "it was calibrated against an older model of the null"
    if "alpha" in attributes:
        try:
            check_level(float(attributes["alpha"]), int(attributes["n_permutations"]))
        except InputError as error:
            return f"it was calibrated at a level that no p reaches ({str(error).rstrip('.')})"
    return ""


def _calibrate(
    found: dict[str, NDArray[Any]],
    index: Mapping[str, int],
    result: ComparisonResults,
    alpha: float,
    maximum: float,
) -> None:
    pairs = [p for p in result.nulls if p in result.scores]
    if not pairs:
        return
    at = (np.array([index[x] for x, _ in pairs]), np.array([index[y] for _, y in pairs]))
    nulls = np.stack([result.nulls[p] for p in pairs]).astype(np.float64)
    tails = np.array([result.tails.get(p, np.nan) for p in pairs])
    for a, (score, calibrated) in enumerate((("score", "calibrated"), ("mean", "calibrated_mean"))):
        value, threshold, p = calibrate_score(
            found[score][at],
            nulls[:, a],
            alpha=alpha,
            maximum=maximum,
            tail=tails if score == "score" else None,
        )
        found[calibrated][at] = value
        if score == "score":
            found["threshold"][at], found["p"][at] = threshold, p
    found["permuted"][at] = [p in result.permuted for p in pairs]


def encoder_columns(
    encoders: Sequence[Encoder], columns: Mapping[str, Mapping[str, float]]
) -> dict[str, list[Any]]:
    """Return one list per column: metadata of the encoders, and their measured competence.

    Parameters
    ----------
    columns
        Encoder id → column → measured value; NaN where missing.
    """
    nan = float("nan")
    return {
        "model": [e.model for e in encoders],
        "checkpoint": [e.checkpoint for e in encoders],
        "tower": [e.tower for e in encoders],
        "modality": [e.modality for e in encoders],
        "family": [str(e.attributes.get("family")) for e in encoders],
        "step": [e.step for e in encoders],
        "initial": [e.initial for e in encoders],
        "final": [e.final for e in encoders],
        "n_parameters": [float(e.attributes.get("n_parameters", nan)) for e in encoders],
        "flops": [float(e.attributes.get("flops", nan)) for e in encoders],
        "samples_seen": [e.samples_seen for e in encoders],
        **{name: [columns.get(e.id, {}).get(name, nan) for e in encoders] for name in COLUMNS},
    }


def _compute(inputs: Inputs) -> xr.Dataset:
    return alignment_dataset(
        inputs.encoders,
        inputs.results,
        alpha=inputs.alpha,
        maximum=inputs.maximum,
        columns=inputs.columns,
        attributes=inputs.attributes,
    )


ALIGNMENT = Analysis(
    name="alignment",
    version=3,  # 2 took models with the same weights for independent ones
    scope="measure",
    needs=("scores", "competence"),
    variables=VARIABLES,
    compute=_compute,
    fault_of=calibration_fault,
)
