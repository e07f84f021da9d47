"""What the measures that are compared pair by pair have in common.

A pairwise measure prepares each representation once, into a state of its own kind, and compares two
states many times. It knows arrays only: no specs, no labels, no store. Every state has a field
`defined`, false for a representation for which the measure is undefined, such as a constant one.
Undefined states are not compared, nor are those with an `undefined_reason`.

In every module, ``compare_NAME(x, y)`` takes two states of the same stimuli, prepared with equal
parameters by the `prepare` of its record, and returns NaN if one of them is undefined. Where the
measure is not symmetric, its docstring says what x and y are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.measures.measure import Parameter
from pipeline.measures.numerics import constant_features
from pipeline.types import Float64


def always_defined(_: object, **__: object) -> str:
    """Give no reason. A named function, since workers unpickle it."""
    return ""


@dataclass(frozen=True)
class PairwiseMeasure:
    """How one pairwise measure is computed.

    Parameters
    ----------
    prepare
        ``prepare(values, *, eps=…, **parameters)``: from features `(n_stimuli, n_features)`,
        real, finite and float64, to a state. `eps` is the machine epsilon of the dtype that
        the features were stored in. Measures with the same `prepare` and equal parameters for it
        share states.
    compare
        ``compare(x, y, **parameters)``: from two states of the same stimuli to the score.
    parameters
        What a caller may set.
    prepares
        The names of those parameters that `prepare` takes; `compare` takes the others.
    undefined_reason
        ``undefined_reason(x, **parameters)``, with the parameters of `compare`: why the measure is
        undefined for a state, with the remedy; empty if it is defined.
    of_neighbours
        Whether nearest neighbours are compared. Then `prepare` takes ``by_index`` too, which breaks
        ties by index as published code does, and its states have a field `ties`.
    """

    prepare: Callable[..., Any]
    compare: Callable[..., float]
    parameters: tuple[Parameter, ...] = ()
    prepares: tuple[str, ...] = ()
    undefined_reason: Callable[..., str] = always_defined
    of_neighbours: bool = False


@dataclass(frozen=True, eq=False)
class Centred:
    """Features about their means, scaled by a power of two so that the largest is below 1."""

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
