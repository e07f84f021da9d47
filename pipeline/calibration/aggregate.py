"""Aggregate scores of pairs of layers into scores of encoders: observed, drawn and permuted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import InputError
from pipeline.types import Float64, Floating, Index

AGGREGATES = ("max", "mean")
"""How the layer × layer scores of two encoders become one: the best pair, or the mean of all."""


def aggregate_layers(
    values: ArrayLike, x_groups: ArrayLike, y_groups: ArrayLike
) -> dict[str, Float64]:
    """Aggregate the scores of layers over the layers of each pair of encoders.

    Parameters
    ----------
    values
        `(..., Mx, My)` scores of pairs of representations; NaN where there is none.
    x_groups, y_groups
        The encoder of each representation, `(Mx,)` and `(My,)`: integers from 0.

    Returns
    -------
    dict of numpy.ndarray
        For ``"max"`` and ``"mean"``, `(..., Gx, Gy)`. Pairs of layers without a score (a layer
        that is constant) are left out; NaN where no pair of layers has one.

    Raises
    ------
    InputError
        If the last two axes of `values` do not have the lengths of the groups.
    """
    scores = np.asarray(values, dtype=np.float64)
    gx, gy = np.asarray(x_groups, dtype=np.intp), np.asarray(y_groups, dtype=np.intp)
    if scores.shape[-2:] != (gx.size, gy.size):
        raise InputError(
            f"Scores of shape {scores.shape} do not go with {gx.size} and {gy.size} "
            "representations; their last two axes must have these lengths."
        )
    best = _by_encoder(scores, gx, gy, np.maximum, -np.inf)
    present = ~np.isnan(scores)
    total = _by_encoder(np.where(present, scores, 0.0), gx, gy, np.add, 0.0)
    count = _by_encoder(present.astype(np.float64), gx, gy, np.add, 0.0)
    count[count == 0] = np.nan
    return {"max": np.where(np.isnan(count), np.nan, best), "mean": total / count}


def aggregate_draws(draws: Floating) -> dict[str, Floating]:
    """Aggregate draws of one pair of encoders, of which every pair of layers has a score.

    Parameters
    ----------
    draws
        `(n_draws, n_pairs)`.

    Returns
    -------
    dict of numpy.ndarray
        For ``"max"`` and ``"mean"``, `(n_draws,)` in the dtype of `draws`.
    """
    return {"max": draws.max(axis=1), "mean": draws.mean(axis=1)}


@dataclass(frozen=True)
class BestPair:
    """The pair of layers of two encoders with the highest score."""

    score: float
    layer_x: int
    layer_y: int


def best_pair(block: Float64) -> BestPair:
    """Find the best pair of layers of two encoders.

    Parameters
    ----------
    block
        `(layers of x, layers of y)`; NaN where the measure is undefined.

    Returns
    -------
    BestPair
        The first of equals, by rows; NaN and −1 if no pair has a score.
    """
    if np.isnan(block).all():
        return BestPair(np.nan, -1, -1)
    i, j = divmod(int(np.nanargmax(block)), block.shape[1])
    return BestPair(float(block[i, j]), i, j)


def _by_encoder(scores: Float64, gx: Index, gy: Index, combine: Any, start: float) -> Float64:
    """Combine layers of the same encoder, first of Y, then of X, ignoring NaN."""
    filled = np.where(np.isnan(scores), start, scores)
    for groups, axis in ((gy, -1), (gx, -2)):
        parts = np.moveaxis(filled, axis, 0)
        combined = np.full((int(groups.max()) + 1, *parts.shape[1:]), start)
        for group, part in zip(groups, parts, strict=True):
            combine(combined[group], part, out=combined[group])
        filled = np.moveaxis(combined, 0, axis)
    return filled
