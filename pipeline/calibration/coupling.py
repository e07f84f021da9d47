"""How the linear part of a similarity and the rest of it meet under a random permutation.

Of S − E S = ℓ + r, with ℓ = x·Py for vectors of zero sum, the two are uncorrelated, and not
independent: where hubs meet hubs all else varies more too. Two of S's third moments tell, E[ℓr²]
and E[ℓ²r], both known exactly. Here they are taken up by

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
"""Factor of the variance of z, where β ℓ would take all of it."""


@dataclass(frozen=True, eq=False)
class LinearMoments:
    """Exact moments of x·Py, P a random permutation, for pairs of vectors of zero sum."""

    variance: Float64
    third: Float64
    fourth: Float64

    @classmethod
    def of(cls, xs: Float64, ys: Float64) -> LinearMoments:
        """Work them out.

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
    """What ℓ does to r, `(Mx, My)` each."""

    variance_slope: Float64
    """β, how much the variance of z grows for each unit of ℓ."""
    quadratic_coef: Float64
    """δ."""
    slope: Float64
    """E[ℓ³]/E[ℓ²]."""
    linear_variance: Float64
    """E[ℓ²]."""
    explained_variance: Float64
    """Variance of δ q(ℓ), which is not z's."""

    @classmethod
    def of(
        cls, linear: LinearMoments, twice: Float64, once: Float64, variance: Float64
    ) -> Coupling:
        """Find β and δ.

        Parameters
        ----------
        linear
            Of ℓ.
        twice, once
            E[ℓ²r] and E[ℓr²], `(Mx, My)`.
        variance
            V, of r, `(Mx, My)`.
        """
        slope = ratio(linear.third, linear.variance)
        of_bend = linear.fourth - linear.variance**2 - slope * linear.third
        quadratic_coef = ratio(twice, of_bend)
        explained_variance = quadratic_coef**2 * of_bend
        variance_slope = ratio(once, linear.variance * (variance - explained_variance))
        return cls(variance_slope, quadratic_coef, slope, linear.variance, explained_variance)

    def own_variance(self, variance: Float64) -> Float64:
        """Give the variance of z from that of r, `(Mx, My)`."""
        return np.maximum(variance - self.explained_variance, 0.0)

    def at(self, places: Any) -> Coupling:
        """Choose some pairs."""
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
    """Divide; 0 where there is nothing to divide by."""
    found: Float64 = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
    return found
