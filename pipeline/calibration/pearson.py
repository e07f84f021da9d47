"""The Pearson type III distribution, which three moments of a null determine.

A gamma variable, shifted and scaled, and mirrored if the skewness is negative. With g the size of
the skewness and a = 4/g², its standardised form is (G − a)/√a, where G is Gamma(a, 1):

    skewness > 0:  P(Z > z) = Q(a, a + z√a)
    skewness < 0:  P(Z > z) = P(a, a − z√a)

with Q and P the regularised upper and lower incomplete gamma functions. For small g the argument
a + z√a loses the digits of z, and libraries do not use Temme's expansion far enough into the tails.
So above a = 40,000 the expansion is evaluated here, from z/√a itself. At g = 0 it is the normal
distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pipeline.types import Float32, Float64, Mask

MAX_SKEWNESS = 5.0
"""Skewness up to which quantiles are tabulated."""

LARGE_SHAPE = 4e4
"""Shape a above which two terms of Temme's expansion are good to 1e-8."""

SMALL = 0.05
"""Below this, differences of large numbers are replaced by their power series."""

SERIES = [(-1) ** k * 2 / (k + 2) for k in range(14)]
"""Of (η/μ)² = 2(μ − log(1 + μ))/μ² in powers of μ."""

FIRST = [-1 / 3, 1 / 12, -2 / 135, 1 / 864, 1 / 2835, -139 / 777600]
"""Of c₀ = 1/μ − 1/η in powers of η."""


@dataclass(frozen=True, eq=False)
class PearsonIII:
    """Pearson type III distributions of given mean, variance and skewness.

    Parameters
    ----------
    mean, variance, skewness
        Of any shapes that broadcast together. The skewness is E[(X − mean)³]/variance^(3/2), of
        either sign; 0 is the normal distribution.

    Notes
    -----
    Where the variance is not positive, or a parameter is NaN, every result is NaN.

    Survival functions are good to a relative error of 1e-8, down to 1e-12 and beyond, for skewness
    from 0 to 5 in size; but close to the end of the support, mean − 2·√variance/skewness, only as
    good as the difference of `x` from that end.

    References
    ----------
    Pearson 1895, Phil. Trans. R. Soc. A 186, type III; Temme 1979, SIAM J. Math. Anal. 10, the
    expansion (NIST Digital Library of Mathematical Functions, section 8.12); Josse, Pagès & Husson
    2008, Comput. Stat. Data Anal. 53, type III as the null of the RV coefficient.

    Examples
    --------
    An exponential distribution has skewness 2:

    >>> waiting = PearsonIII(1.0, 1.0, 2.0)
    >>> float(waiting.sf(3.0).round(6))
    0.049787
    """

    mean: ArrayLike
    variance: ArrayLike
    skewness: ArrayLike

    @classmethod
    def from_moments(cls, mean: ArrayLike, variance: ArrayLike, third: ArrayLike) -> PearsonIII:
        """Build from the third central moment E[(X − mean)³] instead of the skewness.

        Parameters
        ----------
        mean, variance, third
            Of any shapes that broadcast together.

        Returns
        -------
        PearsonIII
            With skewness NaN where the variance is not positive.
        """
        spread = _deviation(variance)
        return cls(mean, variance, np.asarray(third, np.float64) / spread / spread / spread)

    def sf(self, x: ArrayLike) -> Float64:
        """Probability of a value above `x`.

        Parameters
        ----------
        x
            Of any shape that broadcasts with the parameters.

        Returns
        -------
        numpy.ndarray
            Between 0 and 1, of the broadcast shape.
        """
        spread = _deviation(self.variance)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            z = (np.asarray(x, np.float64) - np.asarray(self.mean, np.float64)) / spread
        z, skewness = np.broadcast_arrays(z, np.asarray(self.skewness, np.float64))
        right = skewness >= 0
        return _tail(np.where(right, z, -z), np.abs(skewness), right)


def _deviation(variance: ArrayLike) -> Float64:
    """Square root of a positive variance, NaN for another."""
    values = np.asarray(variance, np.float64)
    return np.sqrt(np.where(values > 0, values, np.nan))


def _tail(z: Float64, g: Float64, upper: Mask) -> Float64:
    """P(Z > z) where `upper`, else P(Z < z), for standardised right-skewed Z of skewness g."""
    nearly_normal = g * g * LARGE_SHAPE < 4
    tail = np.full(z.shape, np.nan)
    some = nearly_normal
    tail[some] = _expansion(z[some], g[some], upper[some])
    some = ~nearly_normal & (g > 0)  # leaves NaN
    root = 2 / g[some]
    x = np.maximum(root * (root + z[some]), 0.0)
    tail[some] = np.where(upper[some], special.gammaincc(root**2, x), special.gammainc(root**2, x))
    return tail


def _expansion(z: Float64, g: Float64, upper: Mask) -> Float64:
    """Give the same by Temme's uniform expansion for large shapes a = 4/g²."""
    sign = np.where(upper, 1.0, -1.0)
    z = np.clip(z, -1e100, 1e100)
    mu = g * z / 2  # x/a − 1
    outside = mu <= -1
    mu = np.where(outside, 0.0, mu)
    ratio = _ratio(mu)
    eta, zeta = mu * ratio, z * ratio
    remainder = g / 2 * _density(zeta) * _first(mu, eta)
    tail = np.clip(special.ndtr(-sign * zeta) + sign * remainder, 0.0, 1.0)
    return np.where(outside, np.where(upper, 1.0, 0.0), tail)


def _ratio(mu: Float64) -> Float64:
    """η/μ, where η²/2 = μ − log(1 + μ) and η has the sign of μ."""
    small = np.abs(mu) < SMALL
    large = np.where(small, 1.0, mu)
    squared = 2 * (large - np.log1p(large)) / large / large
    series = np.polynomial.polynomial.polyval(np.where(small, mu, 0.0), SERIES)
    return np.sqrt(np.where(small, series, squared))


def _first(mu: Float64, eta: Float64) -> Float64:
    """Temme's coefficient c₀ = 1/μ − 1/η."""
    small = np.abs(eta) < SMALL
    mu, near = np.where(small, 1.0, mu), np.where(small, eta, 0.0)
    return np.where(
        small,
        np.polynomial.polynomial.polyval(near, FIRST),
        1 / mu - 1 / np.where(small, 1.0, eta),
    )


def _density(z: Float64) -> Float64:
    """Evaluate the standard normal density."""
    return np.asarray(np.exp(-z * z / 2) / np.sqrt(2 * np.pi))


_Z = np.linspace(-6.0, 6.0, 241)
_G = np.linspace(0.0, MAX_SKEWNESS, 201)


@lru_cache(maxsize=1)
def _quantiles() -> Float32:
    """Pearson III quantiles at the normal probabilities of `_Z`, a row for each skewness."""
    table = np.empty((len(_G), len(_Z)), dtype=np.float32)
    table[0] = _Z
    # Each quantile comes from the smaller of its two tails, the one that is known precisely.
    right = _Z >= 0
    tail = special.ndtr(-np.abs(_Z))
    for row, skewness in zip(table[1:], _G[1:], strict=True):
        root = 2 / skewness
        x = np.where(right, special.gammainccinv(root**2, tail), special.gammaincinv(root**2, tail))
        row[:] = x / root - root
    return table


def from_normal(z: Float32, skewness: Float64) -> Float32:
    """Map standard normal values to standardised Pearson III distributions.

    Parameters
    ----------
    z
        `(Lx, K, Ly)`; clipped at ±6.
    skewness
        `(Lx, Ly)`; clipped at ±`MAX_SKEWNESS`.

    Returns
    -------
    numpy.ndarray
        `(Lx, K, Ly)`: values at the same probabilities, interpolated in a table to about 1e-3.
    """
    at = np.clip(np.abs(skewness), 0.0, MAX_SKEWNESS) / (_G[1] - _G[0])
    low = np.minimum(at.astype(np.intp), len(_G) - 2)
    table, share = _quantiles(), (at - low).astype(np.float32)[..., None]
    rows = table[low] + share * (table[low + 1] - table[low])
    sign = np.where(skewness < 0, -1, 1).astype(np.float32)[:, None]
    step = np.float32(_Z[1] - _Z[0])
    place = np.clip(z * sign, _Z[0], _Z[-1])
    place -= np.float32(_Z[0])
    place /= step
    index = np.minimum(place.astype(np.intp), len(_Z) - 2)
    place -= index.astype(np.float32)
    index += (np.arange(at.size) * len(_Z)).reshape(at.shape)[:, None]
    values = rows.ravel()
    found = values[index]
    index += 1
    place *= values[index] - found
    found += place
    found *= sign
    return np.asarray(found)
