"""How the linear part of a similarity affects the rest under a random permutation.

In S − E S = ℓ + r, with ℓ = x·Py for vectors of zero sum, the two parts are uncorrelated but not
independent: where hubs are matched with hubs, the rest varies more as well. Two third moments
measure this, E[ℓr²] and E[ℓ²r], and both are known exactly. They are modelled by

    r = √(1 + β ℓ) z + δ q(ℓ),    q(ℓ) = ℓ² − E[ℓ²] − ℓ E[ℓ³]/E[ℓ²],

with z independent of ℓ: q is uncorrelated with ℓ, so that δ = E[ℓ²r]/E[q²], and with the variance
V − δ² E[q²] of z, β = E[ℓr²] over this and E[ℓ²].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.calibration.graphs import permutation_moment
from pipeline.types import Float64

MIN_VARIANCE_FACTOR = 1e-6
"""Least factor of the variance of z, where 1 + β ℓ would be lower."""


@dataclass(frozen=True, eq=False)
class LinearMoments:
    """Exact moments of x·Py, P a random permutation, for pairs of vectors of zero sum."""

    variance: Float64
    third: Float64
    fourth: Float64

    @classmethod
    def of(cls, xs: Float64, ys: Float64) -> LinearMoments:
        """Compute them.

        Parameters
        ----------
        xs, ys
            `(Mx, n)` and `(My, n)`, each row of zero sum, n at least 4.

        Returns
        -------
        LinearMoments
            `(Mx, My)` each.
        """
        n = xs.shape[1]
        squares, cubes, fourths = (
            tuple((side**power).sum(axis=1) for side in (xs, ys)) for power in (2, 3, 4)
        )
        return cls(
            np.outer(*squares) / (n - 1),
            permutation_moment(("a a a",), n, *((c,) for c in cubes)),
            permutation_moment(
                ("a a a a", "a a b b"),
                n,
                *((f, s**2) for f, s in zip(fourths, squares, strict=True)),
            ),
        )


@dataclass(frozen=True, eq=False)
class Coupling:
    """How r depends on ℓ, `(Mx, My)` each."""

    variance_slope: Float64
    """β, the relative change of the variance of z per unit of ℓ."""
    quadratic_coef: Float64
    """δ."""
    slope: Float64
    """E[ℓ³]/E[ℓ²]."""
    linear_variance: Float64
    """E[ℓ²]."""
    explained_variance: Float64
    """Variance of δ q(ℓ), which is subtracted from that of r to give that of z."""

    @classmethod
    def of(cls, linear: LinearMoments, l2r: Float64, lr2: Float64, variance: Float64) -> Coupling:
        """Solve for β and δ.

        Parameters
        ----------
        linear
            Of ℓ.
        l2r, lr2
            E[ℓ²r] and E[ℓr²], `(Mx, My)`.
        variance
            V, of r, `(Mx, My)`.
        """
        slope = ratio(linear.third, linear.variance)
        square_variance = linear.fourth - linear.variance**2 - slope * linear.third
        quadratic_coef = ratio(l2r, square_variance)
        explained_variance = quadratic_coef**2 * square_variance
        variance_slope = ratio(lr2, linear.variance * (variance - explained_variance))
        return cls(variance_slope, quadratic_coef, slope, linear.variance, explained_variance)

    def own_variance(self, variance: Float64) -> Float64:
        """Give the variance of z from that of r, `(Mx, My)`."""
        return np.maximum(variance - self.explained_variance, 0.0)

    def at(self, places: Any) -> Coupling:
        """Select some pairs."""
        return Coupling(
            self.variance_slope[places],
            self.quadratic_coef[places],
            self.slope[places],
            self.linear_variance[places],
            self.explained_variance[places],
        )

    def transposed(self) -> Coupling:
        """Exchange the sides."""
        return Coupling(
            self.variance_slope.T,
            self.quadratic_coef.T,
            self.slope.T,
            self.linear_variance.T,
            self.explained_variance.T,
        )

    def spread(self, linear: Any) -> Any:
        """√(1 + β ℓ), for values of ℓ, `(..., Mx, My)`."""
        return np.sqrt(
            np.maximum(1.0 + self.variance_slope.astype(linear.dtype) * linear, MIN_VARIANCE_FACTOR)
        )

    def shift(self, linear: Any) -> Any:
        """δ q(ℓ), likewise."""
        kind = linear.dtype
        shift = linear - self.slope.astype(kind)
        shift *= linear
        shift -= self.linear_variance.astype(kind)
        shift *= self.quadratic_coef.astype(kind)
        return shift


def ratio(part: Float64, whole: Float64) -> Float64:
    """Divide; 0 where the denominator is not positive."""
    found: Float64 = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
    return found
