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

LEAST = 1e-6
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
class Meeting:
    """What ℓ does to r, `(Mx, My)` each."""

    growth: Float64
    """β, how much the variance of z grows for each unit of ℓ."""
    bend: Float64
    """δ."""
    slope: Float64
    """E[ℓ³]/E[ℓ²]."""
    linear_variance: Float64
    """E[ℓ²]."""
    taken: Float64
    """Variance of δ q(ℓ), which is not z's."""

    @classmethod
    def of(cls, linear: LinearMoments, twice: Float64, once: Float64, variance: Float64) -> Meeting:
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
        bend = ratio(twice, of_bend)
        taken = bend**2 * of_bend
        growth = ratio(once, linear.variance * (variance - taken))
        return cls(growth, bend, slope, linear.variance, taken)

    def own_variance(self, variance: Float64) -> Float64:
        """Give the variance of z from that of r, `(Mx, My)`."""
        return np.maximum(variance - self.taken, 0.0)

    def at(self, places: Any) -> Meeting:
        """Choose some pairs."""
        return Meeting(
            self.growth[places],
            self.bend[places],
            self.slope[places],
            self.linear_variance[places],
            self.taken[places],
        )

    def transposed(self) -> Meeting:
        """Exchange the sides."""
        return Meeting(
            self.growth.T, self.bend.T, self.slope.T, self.linear_variance.T, self.taken.T
        )

    def spread(self, linear: Any) -> Any:
        """√(1 + β ℓ), for values of ℓ, `(..., Mx, My)`."""
        return np.sqrt(np.maximum(1.0 + self.growth.astype(linear.dtype) * linear, LEAST))

    def shift(self, linear: Any) -> Any:
        """δ q(ℓ), likewise."""
        kind = linear.dtype
        shift = linear - self.slope.astype(kind)
        shift *= linear
        shift -= self.linear_variance.astype(kind)
        shift *= self.bend.astype(kind)
        return shift


def ratio(part: Float64, whole: Float64) -> Float64:
    """Divide; 0 where there is nothing to divide by."""
    found: Float64 = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
    return found
