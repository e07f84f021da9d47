"""The direction in which layers move together, and its skewness.

A Gaussian copula gives each pair of layers its skewness, which then fixes that of their sum. For
counts the sum is more skewed than that: layers with similar neighbours share many at the same time.
The first principal component of their scores shows this. Its exact third moment is that of a single
pair of relations, the weighted sums of the layers' relations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.calibration.pearson import MAX_SKEWNESS
from pipeline.types import Float64, Index

MIN_REMAINDER = 0.05
"""Share of a component's third moment that its layers must leave free, for it to be set."""


@dataclass(frozen=True, eq=False)
class Leading:
    """First principal components of the first Gaussian term, for pairs of encoders."""

    weights_x: Float64
    """Of each layer in its encoder's relation, `(Mx,)`: the first eigenvector of `within_x`."""
    weights_y: Float64
    third: Float64
    """Third moment of the weighted sum of scores, less that of its linear part, `(Gx, Gy)`."""

    def transposed(self) -> Leading:
        """Exchange the sides."""
        return Leading(self.weights_y, self.weights_x, self.third.T)


def leading_weights(within: Float64, groups: Index) -> Float64:
    """Give the first eigenvector of each encoder's inner products, `(M,)`, of length 1 for each."""
    found = np.empty(len(groups))
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        found[own] = np.linalg.eigh(within[np.ix_(own, own)])[1][:, -1]
    return found


def share_skewness(
    third: float, weights: Float64, deviation: Float64, skewness: Float64,
    with_all: Float64, with_first: Float64,
) -> tuple[float, Float64]:  # fmt: skip
    """Split skewness between a component f = Σ w_ab s_ab and the pairs of layers (a, b).

    If f is drawn with skewness e, a pair of layers whose correlation with it is r inherits e r³ and
    is given the rest of its own skewness g afterwards. To first order, the copula then gives f

        e + Σ w_ab σ_ab (g_ab − e r_ab³) c_ab²,

    with c_ab the correlation of the pair with the whole of f, not only its first term.

    Parameters
    ----------
    third
        Wanted third moment of f.
    weights
        w, such that the first term of f has variance 1, `(Lx, Ly)`.
    deviation, skewness
        σ and g, `(Lx, Ly)`.
    with_all, with_first
        Covariances of f, and of the first term of f, with scores, `(Lx, Ly)`.

    Returns
    -------
    float
        e, between ±`MAX_SKEWNESS`; 0 where f leaves nothing free, as with a single pair of layers.
    numpy.ndarray
        Skewness that pairs of layers are given afterwards, `(Lx, Ly)`.
    """
    c, r = (
        np.divide(part, deviation, out=np.zeros_like(part), where=deviation > 0)
        for part in (with_all, with_first)
    )
    share = weights * deviation * c**2
    room = 1.0 - float((share * r**3).sum())
    if room < MIN_REMAINDER:
        return 0.0, skewness
    own = float(np.clip((third - (share * skewness).sum()) / room, -MAX_SKEWNESS, MAX_SKEWNESS))
    return own, skewness - own * r**3
