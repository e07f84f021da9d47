"""Upper tails of a null: p-values below the resolution of the draws.

With K draws the smallest p is 1/(K+1). Below it p comes from the moments: for one pair of layers
the whole of S, its linear part included, has a known mean, variance and third moment, and its
distribution is approximated by the Pearson III of these. The best of several pairs has no such
form, but Boole's inequality bounds its tail, however the pairs depend on each other:

    P(max S_ij ≥ s) ≤ Σ P(S_ij ≥ s).
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.calibration.draws import Null
from pipeline.calibration.pearson import PearsonIII
from pipeline.types import Float64, Index


def tail_bounds(null: Null, x_groups: Index, y_groups: Index, best: Float64) -> Float64:
    """Bound the probability that chance reaches the score of the best pair of layers.

    Parameters
    ----------
    null
        Of every pair of representations, from `nulls_of`.
    x_groups, y_groups
        The encoder of each representation, integers from 0.
    best
        `(Gx, Gy)`, the score of the best pair of layers; NaN where there is none.

    Returns
    -------
    numpy.ndarray
        `(Gx, Gy)` in float64, from 0 to 1: for encoders of one layer each the probability, for
        others an upper bound of it; NaN where `best` is.

    Notes
    -----
    Costs about a microsecond for each pair of layers, and draws nothing. Against 400,000
    permutations of one pair (n = 120; Gaussian, clustered and low-rank data) the tail is within a
    factor of two where it is 1e-4, and up to three times too low where it is 2e-5; with rows of
    heavy tails, at 1e-4, four times too high for biased CKA and twenty times too low for distance
    correlation. Much lower values only say that the score is not chance.

    References
    ----------
    Josse, Pagès & Husson 2008, Comput. Stat. Data Anal. 53, Pearson III far in the tail of the RV
    coefficient; Boole's inequality, as Bonferroni 1936 has it.
    """
    values = best[np.ix_(x_groups, y_groups)] * null.scale
    if null.counts is not None:  # this integer and all above it
        values = np.where(null.counts, np.rint(values) - 0.5, values)
    tails = _whole(null).sf(values)
    # a score that never varies may be the best one
    tails[np.isnan(tails) & np.isfinite(values)] = 1.0
    tails[~np.isfinite(null.scale)] = 0.0
    found = np.full(best.shape, np.nan)
    for g, h in np.argwhere(np.isfinite(best)):
        layers = tails[np.ix_(x_groups == g, y_groups == h)]
        found[g, h] = min(math.fsum(layers.ravel().tolist()), 1.0)  # exact, so the same for (h, g)
    return found


def _whole(null: Null) -> PearsonIII:
    """Give the distribution of S for every pair of representations, `(Mx, My)`."""
    own = null.own_variance
    variance, third = null.variance, null.skewness * own**1.5
    if null.coupling is not None:
        met = null.coupling
        bent = np.divide(
            met.explained_variance,
            met.quadratic_coef,
            out=np.zeros_like(own),
            where=met.quadratic_coef != 0,
        )
        variance = variance + met.linear_variance
        # E[ℓ³] + 3 E[ℓ²r] + 3 E[ℓr²]
        third = third + met.slope * met.linear_variance
        third = third + 3 * (bent + met.variance_slope * met.linear_variance * own)
    return PearsonIII.from_moments(null.mean, variance, third)
