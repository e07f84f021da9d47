"""Centred features, from which measures of directions of feature space start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.measures.numerics import constant_features
from pipeline.types import Float64

CENTRING = (("centring", "features"),)
"""The convention of measures of centred features."""


@dataclass(frozen=True, eq=False)
class Centred:
    """Features minus their means, scaled by a power of two so that the largest is below 1."""

    features: Float64
    noise: float
    """Bound on the Frobenius norm of the rounding error with which the features were stored."""


def centred(values: Float64, eps: float) -> Centred | None:
    """Centre features; None if all are constant.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    eps
        Machine epsilon of the dtype they were stored in.

    Returns
    -------
    Centred or None
        Features that vary by no more than their own rounding are exactly zero.
    """
    constant = constant_features(values, eps)
    if constant.all():
        return None
    scaled = _below_one(values)  # squares of 1e200 would overflow
    scaled[:, constant] = 0.0
    noise = eps * float(np.linalg.norm(scaled))
    scaled -= scaled.mean(axis=0)
    scaled -= scaled.mean(axis=0)  # what rounding left of an offset
    scaled[:, constant] = 0.0
    features = _below_one(scaled)
    largest = float(np.abs(features).max())
    return Centred(features, noise * (largest / float(np.abs(scaled).max())))


def _below_one(values: Float64) -> Float64:
    """Scale by a power of two, which rounds nothing, to a largest value from ½ to 1."""
    return np.asarray(np.ldexp(values, -np.frexp(np.abs(values).max())[1]), dtype=np.float64)
