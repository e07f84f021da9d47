"""Draws from a null that is known by its moments, for the search over layers and for single pairs.

Gaussians of the exact covariance are mapped to Pearson III margins (a Gaussian copula); for counts,
the first principal component is given a skewness of its own first. The row-effect term is permuted
explicitly, with one permutation for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.calibration.aggregate import AGGREGATES, aggregate_draws
from pipeline.calibration.coupling import Coupling
from pipeline.calibration.leading import Leading, share_skewness
from pipeline.calibration.pearson import PearsonIII, from_normal
from pipeline.calibration.permutation import permutations
from pipeline.types import Float32, Float64, Index, Mask

BATCH = 256
"""Draws made at a time."""


@dataclass(frozen=True, eq=False)
class Term:
    """A Gaussian term whose covariance over pairs of layers is `weight` · C_x ⊗ C_y."""

    weight: float
    within_x: Float64
    """Inner products within encoders, `(Mx, Mx)`."""
    within_y: Float64


@dataclass(frozen=True, eq=False)
class Null:
    """The parameters of the null of every pair of representations, for one measure.

    Attributes
    ----------
    terms
        Gaussian terms of the part that has moments.
    skewness
        Of that part without its coupling to the linear one, `(Mx, My)`.
    linear_x, linear_y
        Vectors whose inner products are permuted explicitly, `(Mx, n)` and `(My, n)`; or None.
    mean
        What is added, `(Mx, My)`.
    scale
        What S is divided by to give a score, `(Mx, My)`; NaN where the measure is undefined.
    flagged
        Pairs whose tails are not determined by three moments, as the fourth shows, `(Mx, My)`.
    counts
        Pairs whose S is a whole number, `(Mx, My)`; or None.
    coupling
        How the other part depends on the linear one; or None.
    leading
        First principal components, if they are given a skewness of their own.
    """

    terms: Sequence[Term]
    skewness: Float64
    linear_x: Float64 | None
    linear_y: Float64 | None
    mean: Float64
    scale: Float64
    flagged: Mask
    counts: Mask | None = None
    coupling: Coupling | None = None
    leading: Leading | None = None

    def transposed(self) -> Null:
        """Swap the sides, so that the stimuli of X are permuted."""
        return Null(
            [Term(t.weight, t.within_y, t.within_x) for t in self.terms],
            self.skewness.T,
            self.linear_y,
            self.linear_x,
            self.mean.T,
            self.scale.T,
            self.flagged.T,
            None if self.counts is None else self.counts.T,
            None if self.coupling is None else self.coupling.transposed(),
            None if self.leading is None else self.leading.transposed(),
        )

    @property
    def variance(self) -> Float64:
        """Variance of the part that has moments, `(Mx, My)`."""
        return variance_of(self.terms)

    @property
    def own_variance(self) -> Float64:
        """Variance of that part without its coupling to the linear one, `(Mx, My)`."""
        variance = self.variance
        return variance if self.coupling is None else self.coupling.own_variance(variance)


def variance_of(terms: Sequence[Term]) -> Float64:
    """Add up the variances of independent terms, `(Mx, My)`."""
    parts = [t.weight * np.outer(t.within_x.diagonal(), t.within_y.diagonal()) for t in terms]
    return np.asarray(np.sum(parts, axis=0))


def draw(
    null: Null,
    x_groups: Index,
    y_groups: Index,
    wanted: Mask,
    n_draws: int,
    seed: int,
) -> dict[str, Float64]:
    """Draw scores of encoders as permutations of the stimuli of Y would give them.

    Parameters
    ----------
    null
        Of every pair of representations, from `nulls_of`.
    x_groups, y_groups
        The encoder of each representation, integers from 0.
    wanted
        Boolean mask `(Gx, Gy)` of pairs of encoders.
    n_draws
        K.
    seed
        Of the draws. All pairs of encoders with the same numbers of layers share their Gaussians,
        so that the draws of a pair do not depend on what else is drawn.

    Returns
    -------
    dict of numpy.ndarray
        Aggregate → `(Gx, Gy, K)`; NaN for pairs not wanted or undefined.

    Notes
    -----
    In float32, since K draws determine three digits at most. Costs K · n operations for each pair
    of layers where there are vectors, and about a hundred for each draw of a pair of layers.
    """
    of_x = [np.flatnonzero(x_groups == g) for g in range(wanted.shape[0])]
    of_y = [np.flatnonzero(y_groups == h) for h in range(wanted.shape[1])]
    first_x, first_y = (
        (None, None) if null.leading is None else (null.leading.weights_x, null.leading.weights_y)
    )
    roots = [
        ([_root(t.weight * t.within_x[np.ix_(i, i)], first_x, i) for i in of_x],
         [_root(t.within_y[np.ix_(j, j)], first_y, j).T for j in of_y])
        for t in null.terms
    ]  # fmt: skip
    deviation, own = (np.sqrt(v).astype(np.float32) for v in (null.variance, null.own_variance))
    known = wanted & _any_defined(null, x_groups, y_groups, wanted.shape)
    sizes = sorted({(len(of_x[g]), len(of_y[h])) for g, h in np.argwhere(known)})
    sources = {size: np.random.default_rng([seed, *size]) for size in sizes}
    linear = None if null.linear_x is None else _PermutedLinear(null, n_draws, seed)
    skewness = {(g, h): _skewness(null, of_x, of_y, g, h) for g, h in np.argwhere(known).tolist()}
    values = {how: np.full((*wanted.shape, n_draws), np.nan) for how in AGGREGATES}
    for start in range(0, n_draws, BATCH):
        batch = slice(start, min(start + BATCH, n_draws))
        size = batch.stop - batch.start
        normals = {
            (lx, ly): source.standard_normal((len(roots), lx, size, ly), dtype=np.float32)
            for (lx, ly), source in sources.items()
        }
        first = {of: z[0, -1, :, -1].copy() for of, z in normals.items()}
        for g in np.flatnonzero(known.any(axis=1)).tolist():
            others = np.flatnonzero(known[g]).tolist()
            moved = None if linear is None else linear.moved(of_x[g], batch)
            for h in others:
                at = np.ix_(of_x[g], of_y[h])
                lx, ly = len(of_x[g]), len(of_y[h])
                scores: Float32 = np.zeros((lx, size, ly), dtype=np.float32)
                of_first, of_layers = skewness[g, h]
                if null.leading is not None:
                    skewed = from_normal(first[lx, ly][None, :, None], np.full((1, 1), of_first))
                    normals[lx, ly][0, -1, :, -1] = skewed[0, :, 0]
                for (roots_x, roots_y), z in zip(roots, normals[lx, ly], strict=True):
                    correlated = (roots_x[g] @ z.reshape(lx, -1)).reshape(-1, ly) @ roots_y[h]
                    scores += correlated.reshape(scores.shape)
                spread = deviation[at][:, None]
                np.divide(scores, spread, out=scores, where=spread > 0)
                scores = from_normal(scores, of_layers)
                scores *= own[at][:, None]
                if linear is not None and moved is not None:
                    part = linear.products(moved, of_y[h])
                    if null.coupling is not None:
                        coupling = null.coupling.at((of_x[g][:, None, None], of_y[h]))
                        scores *= coupling.spread(part)
                        scores += coupling.shift(part)
                    scores += part
                scores += null.mean[at].astype(np.float32)[:, None]
                if null.counts is not None:
                    np.rint(scores, out=scores, where=null.counts[at][:, None])
                scale = null.scale[at]
                scores /= scale.astype(np.float32)[:, None]
                layers = scores.swapaxes(0, 1)
                if not np.isfinite(scale).all():
                    layers = layers[:, np.isfinite(scale)]
                layers = layers.reshape(size, -1)
                for how, each in aggregate_draws(layers).items():
                    values[how][g, h, batch] = each
    return values


def _skewness(
    null: Null, of_x: list[Index], of_y: list[Index], g: int, h: int
) -> tuple[float, Float64]:
    """Skewness of the first principal component of a pair of encoders, and of pairs of layers."""
    i, j = of_x[g], of_y[h]
    at = np.ix_(i, j)
    if null.leading is None:
        return 0.0, null.skewness[at]
    u, v = null.leading.weights_x[i], null.leading.weights_y[j]
    outer = np.outer(u, v)
    moved = np.stack(
        [t.weight * t.within_x[np.ix_(i, i)] @ outer @ t.within_y[np.ix_(j, j)] for t in null.terms]
    )
    length = max(float((outer * moved[0]).sum()), 0.0) ** 0.5
    if length == 0.0:
        return 0.0, null.skewness[at]
    weights, with_first, with_all = outer / length, moved[0] / length, moved.sum(0) / length
    third = null.leading.third[g, h] / length**3
    if null.coupling is not None and null.linear_x is not None and null.linear_y is not None:
        x, y = null.linear_x[i], null.linear_y[j]
        with_linear = np.outer(x @ (u @ x), y @ (v @ y)) / ((x.shape[1] - 1) * length)
        coupling = null.coupling.at(at)
        met = coupling.variance_slope * with_all + 2.0 * coupling.quadratic_coef * with_linear
        third -= 3.0 * float((weights * with_linear * met).sum())
    deviation = np.sqrt(null.variance[at])
    return share_skewness(third, weights, deviation, null.skewness[at], with_all, with_first)


def _any_defined(null: Null, x_groups: Index, y_groups: Index, shape: tuple[int, ...]) -> Mask:
    """Find the pairs of encoders of which a pair of layers has a score."""
    found = np.zeros(shape, bool)
    i, j = np.nonzero(np.isfinite(null.scale))
    found[x_groups[i], y_groups[j]] = True
    return found


class _PermutedLinear:
    """The linear part under permutations of Y, as inverse permutations of X."""

    def __init__(self, null: Null, n_draws: int, seed: int) -> None:
        assert null.linear_x is not None
        assert null.linear_y is not None
        self.x, self.y = null.linear_x.astype(np.float32), null.linear_y.astype(np.float32)
        self.undone = np.argsort(permutations(self.x.shape[1], n_draws, seed), axis=1)

    def moved(self, rows: Index, batch: slice) -> Float32:
        """Permute vectors of X: `(rows, draws, n)`."""
        return np.take(self.x[rows], self.undone[batch], axis=1)

    def products(self, moved: Float32, columns: Index) -> Float32:
        """Multiply them with vectors of Y, of one encoder: `(rows, draws, columns)`.

        One encoder at a time, because the last digits of a product depend on its shape.
        """
        flat = moved.reshape(-1, moved.shape[-1]) @ self.y[columns].T
        return np.asarray(flat.reshape(*moved.shape[:2], len(columns)))


@dataclass(frozen=True, eq=False)
class PairNull:
    """The null of one pair of representations, as a distribution.

    The part that has moments is Pearson III. Its tail probabilities are averaged over the draws of
    the linear part, so that they reach far below one over the number of draws.
    """

    residual: PearsonIII
    offsets: Float64
    """Linear part, its shift of the rest, and mean, `(K,)`."""
    spreads: Float64
    """Factor by which the linear part scales the rest, `(K,)`."""
    scale: float
    counts: bool

    def sf(self, score: float) -> float:
        """Give the probability that chance reaches `score`."""
        value = score * self.scale
        if self.counts:  # this integer and all above it
            value = np.rint(value) - 0.5
        return float(self.residual.sf((value - self.offsets) / self.spreads).mean())

    def threshold(self, alpha: float) -> float:
        """Give the lowest score that chance exceeds with probability `alpha` at most."""
        spread = 40.0 * float(np.sqrt(self.residual.variance) * self.spreads.max())
        low = (float(self.offsets.min()) - spread) / self.scale
        high = (float(self.offsets.max()) + spread) / self.scale
        while high - low > 1e-12 * max(1.0, abs(high)):
            middle = (low + high) / 2
            low, high = (low, middle) if self.sf(middle) <= alpha else (middle, high)
        if self.counts:  # the integer below the first one that is reached rarely enough
            return float((np.rint(high * self.scale) - 1.0) / self.scale)
        return high


def pair_null(null: Null, n_draws: int, seed: int) -> PairNull:
    """Give the null of a single pair of representations.

    Parameters
    ----------
    null
        Of one representation with one other.
    n_draws
        Permutations of the linear part, where there is one.
    seed
        Of these.
    """
    linear = np.zeros(1)
    if null.linear_x is not None and null.linear_y is not None:
        orders = permutations(null.linear_x.shape[1], n_draws, seed)
        linear = null.linear_y[0][orders] @ null.linear_x[0]
    offsets, spreads = linear + null.mean[0, 0], np.ones_like(linear)
    if null.coupling is not None:
        coupling = null.coupling.at((0, 0))
        offsets, spreads = offsets + coupling.shift(linear), coupling.spread(linear)
    residual = PearsonIII(0.0, null.own_variance[0, 0], null.skewness[0, 0])
    counts = null.counts is not None and bool(null.counts[0, 0])
    return PairNull(residual, offsets, spreads, float(null.scale[0, 0]), counts)


def _root(covariance: Float64, weights: Float64 | None, chosen: Index) -> Float32:
    """Square root of a covariance, which may be singular: layers can be copies of each other.

    With `weights`, of which those `chosen` are of these layers, its last column is the covariance
    with their weighted sum.
    """
    left, column = covariance, None
    if weights is not None:
        column = covariance @ weights[chosen]
        length = max(float(weights[chosen] @ column), 0.0) ** 0.5
        column = column / length if length > 0 else 0.0 * column
        left = covariance - np.outer(column, column)
    eigenvalues, vectors = np.linalg.eigh(left)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    if column is not None:  # replaces the direction that subtracting it left empty
        root = np.column_stack((root[:, 1:], column))
    return np.asarray(root, dtype=np.float32)
