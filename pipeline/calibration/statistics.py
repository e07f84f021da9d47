"""Thresholds, p-values and q-values, given scores and their nulls."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import InputError
from pipeline.types import Float64

EQUAL = 4 * float(np.finfo(np.float32).eps)
"""Values that differ by no more than this are equal."""


def check_level(alpha: float, n_permutations: int, measure: str = "") -> None:
    """Refuse a level below the smallest p-value of that many permutations or draws.

    Parameters
    ----------
    alpha
        Probability that chance alone exceeds the threshold.
    n_permutations
        K: the smallest p is 1/(K+1).
    measure
        The measure, for the message, where there are several.

    Raises
    ------
    InputError
        If `alpha` is not a probability, or more permutations are needed; the message says how many.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; it is a probability, between 0 and 1.")
    if alpha * (n_permutations + 1) < 1 - 1e-9:
        raise InputError(
            f"{f'{measure}: ' if measure else ''}With n_permutations={n_permutations} the smallest "
            f"possible p is 1/{n_permutations + 1}, above alpha={alpha}: no score could be "
            f"significant. Use at least {math.ceil(1 / alpha - 1 - 1e-9)} permutations."
        )


def calibrate_score(
    observed: ArrayLike,
    null: ArrayLike,
    *,
    alpha: float = 0.05,
    maximum: float = 1.0,
    tail: ArrayLike | None = None,
) -> tuple[Float64, Float64, Float64]:
    """Calibrate scores against their nulls.

    With K values of the null and the observed score s, τ is the ⌈(1−α)(K+1)⌉-th smallest of all K+1
    values, ``p = (1 + #{null ≥ s})/(K+1)``, and the calibrated score ``clip((s − τ)/(s_max − τ),
    0, 1)``. A score is above τ only if its p is at most α.

    Parameters
    ----------
    observed
        Scores, of any shape `(...)`.
    null
        `(..., K)`, the null of each score along the last axis.
    alpha
        Probability that chance alone exceeds τ.
    maximum
        s_max, the highest value of the measure.
    tail
        `(...)`, upper bounds of p from another source, NaN where there is none. Where no value of
        the null reaches the score and the bound is below 1/(K+1), it is p.

    Returns
    -------
    calibrated, tau, p : numpy.ndarray
        Each `(...)` in float64; NaN where the score or a value of its null is. Values of the null
        within the rounding of float32 of the score count as equal to it.

    Raises
    ------
    InputError
        If shapes do not fit, `alpha` is not between 0 and 1, or K is too small for it.

    References
    ----------
    Gröger et al. 2026, the calibrated score and its threshold; Phipson & Smyth 2010 for p.

    Examples
    --------
    >>> calibrated, tau, p = calibrate_score(0.9, [0.1, 0.2, 0.3, 0.4], alpha=0.2)
    >>> float(calibrated.round(3)), float(tau), float(p)
    (0.833, 0.4, 0.2)
    """
    scores, nulls = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    if nulls.shape[:-1] != scores.shape or nulls.ndim == 0 or nulls.shape[-1] == 0:
        raise InputError(
            f"A null of shape {nulls.shape} does not go with scores of shape {scores.shape}; it "
            "needs the same axes and one more, the permutations, at the end."
        )
    check_level(alpha, nulls.shape[-1])
    count = nulls.shape[-1] + 1
    # (1 − 0.44) · 25 is 14.000000000000002 in floating point, but should be 14.
    rank = math.ceil((1 - alpha) * count - 1e-9)
    # Equal scores, such as counts of neighbours, may come from different sums or from float32.
    own = scores[..., None]
    nulls = np.where(np.abs(nulls - own) <= EQUAL * np.maximum(1.0, np.abs(own)), own, nulls)
    together = np.concatenate([nulls, own], axis=-1)
    missing = np.isnan(together).any(axis=-1)
    tau = np.partition(together, rank - 1, axis=-1)[..., rank - 1]
    reached = (nulls >= own).sum(axis=-1)
    p = (1 + reached) / count
    if tail is not None:
        bound = np.asarray(tail, np.float64)
        p = np.where((reached == 0) & (bound < p), bound, p)
    p = np.where(missing, np.nan, p)
    room = maximum - tau
    share = np.divide(scores - tau, room, out=np.zeros_like(tau), where=room > 0)
    calibrated = np.where(missing, np.nan, np.clip(share, 0.0, 1.0))
    return calibrated, np.where(missing, np.nan, tau), p


def benjamini_hochberg(p: ArrayLike) -> Float64:
    """Turn p-values into q-values: the false discovery rate at which each becomes significant.

    Parameters
    ----------
    p
        p-values of any shape; NaN is passed through and not counted as a test.

    Returns
    -------
    numpy.ndarray
        q-values of the same shape.

    Raises
    ------
    InputError
        If a value is not between 0 and 1.

    References
    ----------
    Benjamini & Hochberg 1995, JRSS B 57.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, float("nan")]).tolist()
    [0.02, 0.04, nan]
    """
    values = np.asarray(p, dtype=np.float64)
    tested = ~np.isnan(values)
    if np.any((values[tested] < 0) | (values[tested] > 1)):
        raise InputError("p-values must be between 0 and 1; at least one of those given is not.")
    adjusted = np.full(values.shape, np.nan)
    tests = values[tested]
    order = np.argsort(tests)[::-1]
    ranks = np.arange(tests.size, 0, -1)
    # The largest p first: no q may exceed that of a larger p.
    ordered = np.minimum.accumulate(tests[order] * tests.size / ranks)
    q = np.empty_like(tests)
    q[order] = ordered
    adjusted[tested] = q
    return adjusted
