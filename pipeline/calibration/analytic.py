"""The null without permuting relations: drawn from exact moments.

Under a random permutation P of the stimuli of Y, the inner product of two relations is

    S = ⟨U, P U' Pᵀ⟩ + ℓ·Pℓ' + c c'.

Its two random terms are uncorrelated. The first has exact moments from a few scalars per
representation, and over all layers of two encoders an exact covariance, 2/(n(n−3)) C ⊗ C' with C
the inner products of an encoder's own relations. It is drawn from a Gaussian of that covariance,
each pair of layers then passed on to the Pearson III distribution of its third moment (a Gaussian
copula). The second, of vectors only, is permuted for real, with one permutation for all layers. For
nearest neighbours the first term has a symmetric and an antisymmetric part, and the second is that
of the in-degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from pipeline.calibration.layers import AGGREGATES
from pipeline.calibration.moments import (
    BiasedScalars,
    NeighbourScalars,
    UCentredScalars,
    biased_moments,
    neighbour_grams,
    neighbour_moments,
    neighbour_scalars,
    neighbour_weights,
    split_scalars,
    u_centred_moments,
)
from pipeline.calibration.pearson import MOST_SKEWED, PearsonIII, from_normal
from pipeline.calibration.permutation import permutations
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.neighbours import Neighbours
from pipeline.measures.pairs import indicators, relation_products
from pipeline.measures.prepared import Prepared
from pipeline.measures.relations import Relation

Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

KURTOSIS = 1.0
"""A pair whose exact kurtosis is further than this from that of Pearson III is flagged."""
SHARE = 0.1
"""A part of less than this share of the variance may have any shape."""
MOST_SHARED, MOST_LEFT = 1.5, 0.25
"""Skewness that the two parts share: how much of it one part takes, and what may be left."""
BATCH = 64
"""Draws made at a time."""


@dataclass(frozen=True, eq=False)
class Term:
    """A Gaussian term: its covariance over pairs of layers is `weight` · C_x ⊗ C_y."""

    weight: float
    within_x: Float64
    """Inner products within encoders, `(Mx, Mx)`."""
    within_y: Float64


@dataclass(frozen=True, eq=False)
class Null:
    """What determines the null of every pair of representations, for one measure.

    Attributes
    ----------
    terms
        Gaussian terms of the part that has moments.
    skewness
        Of that part, `(Mx, My)`.
    linear_x, linear_y
        Vectors whose inner products are permuted for real, `(Mx, n)` and `(My, n)`; or None.
    mean
        What is added, `(Mx, My)`.
    scale
        What S is divided by to give a score, `(Mx, My)`; NaN where the measure is undefined.
    flagged
        Pairs whose fourth moment says that three do not determine the tails, `(Mx, My)`.
    counts
        Whether S is a whole number.
    """

    terms: Sequence[Term]
    skewness: Float64
    linear_x: Float64 | None
    linear_y: Float64 | None
    mean: Float64
    scale: Float64
    flagged: NDArray[np.bool_]
    counts: bool = False

    @property
    def variance(self) -> Float64:
        """Variance of the part that has moments, `(Mx, My)`."""
        return _variance(self.terms)


def _variance(terms: Sequence[Term]) -> Float64:
    parts = [t.weight * np.outer(t.within_x.diagonal(), t.within_y.diagonal()) for t in terms]
    return np.asarray(np.sum(parts, axis=0))


def null_of(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    x_groups: Index,
    y_groups: Index,
    spec: MeasureSpec,
) -> Null:
    """Work out the null of every pair of representations from scalars of each.

    Parameters
    ----------
    xs, ys
        Prepared representations of the same stimuli.
    x_groups, y_groups
        The encoder of each.
    spec
        A measure of dense relations, or of neighbours.
    """
    if spec.measure.engine == "neighbours":
        return _neighbour_null(
            [x.neighbours_for(spec) for x in xs],
            [y.neighbours_for(spec) for y in ys],
            x_groups,
            y_groups,
        )
    return _dense_null(
        [x.relation_for(spec) for x in xs],
        [y.relation_for(spec) for y in ys],
        x_groups,
        y_groups,
        residual=spec.residual,
    )


def flagged_encoders(
    null: Null, x_groups: Index, y_groups: Index, wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Give the wanted pairs of encoders with a pair of layers that is flagged, `(Gx, Gy)`."""
    odd = null.flagged & np.isfinite(null.scale)
    found = np.zeros(wanted.shape, bool)
    for i, j in np.argwhere(odd):
        found[x_groups[i], y_groups[j]] = True
    return found & wanted


def draw(
    null: Null,
    x_groups: Index,
    y_groups: Index,
    wanted: NDArray[np.bool_],
    n_draws: int,
    seed: int,
) -> dict[str, Float64]:
    """Draw scores of encoders as permutations of the stimuli of Y would give them.

    Parameters
    ----------
    null
        Of every pair of representations, as `null_of` gives it.
    x_groups, y_groups
        The encoder of each representation, integers from 0.
    wanted
        Boolean mask `(Gx, Gy)` of pairs of encoders.
    n_draws
        K.
    seed
        Of the draws. The same Gaussians serve all pairs of encoders with as many layers, so that
        a pair's draws do not depend on what else is drawn.

    Returns
    -------
    dict of numpy.ndarray
        Aggregate → `(Gx, Gy, K)`; NaN for pairs not wanted or undefined.
    """
    mask = wanted
    linear_x = linear_y = orders = None
    if null.linear_x is not None and null.linear_y is not None:
        # sums of a thousand products each: float32 has digits enough, and is twice as fast
        linear_x, linear_y = null.linear_x.astype(np.float32), null.linear_y.astype(np.float32)
        orders = permutations(linear_x.shape[1], n_draws, seed)
    of_x = [np.flatnonzero(x_groups == g) for g in range(mask.shape[0])]
    of_y = [np.flatnonzero(y_groups == h) for h in range(mask.shape[1])]
    roots_x = [[_root(t.within_x[np.ix_(i, i)]) for i in of_x] for t in null.terms]
    roots_y = [[_root(t.within_y[np.ix_(j, j)]) for j in of_y] for t in null.terms]
    weights = [np.sqrt(t.weight) for t in null.terms]
    deviation = np.sqrt(null.variance)
    sizes = {(len(of_x[g]), len(of_y[h])) for g, h in np.argwhere(mask)}
    sources = {size: np.random.default_rng([seed, *size]) for size in sorted(sizes)}
    values = {how: np.full((*mask.shape, n_draws), np.nan) for how in AGGREGATES}
    for start in range(0, n_draws, BATCH):
        batch = slice(start, min(start + BATCH, n_draws))
        size = batch.stop - batch.start
        normals = {
            layers: source.standard_normal((len(null.terms), size, *layers))
            for layers, source in sources.items()
        }
        linear = None
        if orders is not None and linear_x is not None and linear_y is not None:
            linear = np.stack([linear_x @ linear_y[:, order].T for order in orders[batch]])
        for g, h in np.argwhere(mask):
            at = np.ix_(of_x[g], of_y[h])
            scale = null.scale[at]
            if np.isnan(scale).all():
                continue
            normal = sum(
                w * (rx[g] @ z @ ry[h].T)
                for w, rx, ry, z in zip(
                    weights, roots_x, roots_y, normals[scale.shape], strict=True
                )
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                standard = np.where(deviation[at] > 0, normal / deviation[at], 0.0)
            scores = from_normal(standard, null.skewness[at]) * deviation[at]
            scores += null.mean[at]
            if linear is not None:
                scores += linear[(slice(None), *at)]
            if null.counts:
                np.rint(scores, out=scores)
            scores /= scale
            layers = scores.reshape(size, -1)[:, np.isfinite(scale).ravel()]
            values["max"][g, h, batch] = layers.max(axis=1)
            values["mean"][g, h, batch] = layers.mean(axis=1)
    return values


@dataclass(frozen=True, eq=False)
class PairNull:
    """The null of one pair of representations, as a distribution.

    Its part that has moments is Pearson III; over the draws of the linear part, probabilities are
    averaged, so that they reach far below one over the number of draws.
    """

    residual: PearsonIII
    offsets: Float64
    """What the linear part and the mean add, `(K,)`."""
    scale: float
    counts: bool

    def sf(self, score: float) -> float:
        """Give the probability that chance reaches `score`."""
        value = score * self.scale
        if self.counts:  # a whole number and all above it
            value = np.rint(value) - 0.5
        return float(self.residual.sf(value - self.offsets).mean())

    def threshold(self, alpha: float) -> float:
        """Give the lowest score that chance exceeds with probability of at most `alpha`."""
        spread = 40.0 * float(np.sqrt(self.residual.variance))
        low = (float(self.offsets.min()) - spread) / self.scale
        high = (float(self.offsets.max()) + spread) / self.scale
        while high - low > 1e-12 * max(1.0, abs(high)):
            middle = (low + high) / 2
            low, high = (low, middle) if self.sf(middle) <= alpha else (middle, high)
        if self.counts:  # the whole number below the first that is reached rarely enough
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
    offsets = np.array([null.mean[0, 0]])
    if null.linear_x is not None and null.linear_y is not None:
        orders = permutations(null.linear_x.shape[1], n_draws, seed)
        offsets = offsets + null.linear_y[0][orders] @ null.linear_x[0]
    residual = PearsonIII(0.0, null.variance[0, 0], null.skewness[0, 0])
    return PairNull(residual, offsets, float(null.scale[0, 0]), null.counts)


def _root(covariance: Float64) -> Float64:
    """Square root of a covariance, which may be singular: layers can be copies of each other."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))


def _dense_null(
    xs: list[Relation], ys: list[Relation], gx: Index, gy: Index, *, residual: bool
) -> Null:
    n = xs[0].n_stimuli
    (own_x, whole_x), (own_y, whole_y) = _dense_scalars(xs), _dense_scalars(ys)
    variance, third, fourth = u_centred_moments(n, own_x, own_y)
    skewness = _ratio(third, variance**1.5)
    excess = np.where(variance > 0, _ratio(fourth, variance**2) - 3.0, 0.0)
    odd = np.abs(excess - 1.5 * skewness**2)
    flagged = np.abs(skewness) > MOST_SKEWED
    linear_x = linear_y = None
    mean = np.zeros_like(variance)
    if not residual:
        linear_x, linear_y = np.stack([r.linear for r in xs]), np.stack([r.linear for r in ys])
        mean = np.outer([r.constant for r in xs], [r.constant for r in ys])
        total = variance + np.outer((linear_x**2).sum(1), (linear_y**2).sum(1)) / (n - 1)
        share = _ratio(variance, total)
        odd = odd * share**2
        flagged &= share > SHARE
        # In the third moment the two parts meet. It is exact if the skewness of this part takes
        # what they share; but where this part is small that would be all there is of it.
        shared = biased_moments(n, whole_x, whole_y)[-1] - third - _linear_third(linear_x, linear_y)
        taken = np.clip(_ratio(shared, variance**1.5), -MOST_SHARED, MOST_SHARED)
        left = _ratio(shared - taken * variance**1.5, total**1.5)
        flagged |= np.abs(left) > MOST_LEFT
        skewness = skewness + taken
    within_x = _within(xs, gx)
    alike = len(xs) == len(ys) and all(x is y for x, y in zip(xs, ys, strict=True))
    within_y = within_x if alike and np.array_equal(gx, gy) else _within(ys, gy)
    term = Term(2.0 / (n * (n - 3)), within_x, within_y)
    of_x, of_y = ([r.squared_norm(residual=residual) for r in side] for side in (xs, ys))
    scale = np.sqrt(np.outer(of_x, of_y))
    scale[scale == 0.0] = np.nan
    flagged |= odd >= KURTOSIS
    return Null([term], skewness, linear_x, linear_y, mean, scale, flagged)


def _linear_third(xs: Float64, ys: Float64) -> Float64:
    """E[(x·Py)³] for vectors of zero sum, `(Mx, n)` and `(My, n)`."""
    n = xs.shape[1]
    return np.asarray(n / ((n - 1) * (n - 2)) * np.outer((xs**3).sum(1), (ys**3).sum(1)))


def _ratio(part: Float64, whole: Float64) -> Float64:
    """Divide; 0 where there is nothing to divide by."""
    found: Float64 = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
    return found


def _within(relations: list[Relation], groups: Index) -> Float64:
    """Inner products of relations within encoders; 0 between."""
    same = groups[:, None] == groups
    return np.where(same, relation_products(relations, same), 0.0)


_scalars: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of each relation, or list


def _dense_scalars(relations: list[Relation]) -> tuple[UCentredScalars, BiasedScalars]:
    """Scalars of relations, worked out once for each."""
    for relation in relations:
        if relation not in _scalars:
            _scalars[relation] = split_scalars(relation.whole(), relation.linear, relation.constant)
    own, both = zip(*(_scalars[r] for r in relations), strict=True)
    return UCentredScalars.stack(own), BiasedScalars.stack(both)


def _neighbour_null(xs: list[Neighbours], ys: list[Neighbours], gx: Index, gy: Index) -> Null:
    n, k = xs[0].indices.shape
    defined = np.outer([x.defined for x in xs], [y.defined for y in ys])
    xs, ys = _all_defined(xs), _all_defined(ys)
    (*grams_x, degrees_x), (*grams_y, degrees_y) = (
        _neighbour_parts(side, groups) for side, groups in ((xs, gx), (ys, gy))
    )
    *weights, of_degrees = neighbour_weights(n)
    terms = [Term(w, x, y) for w, x, y in zip(weights, grams_x, grams_y, strict=True)]
    # x·Py has variance (x·x)(y·y)/(n−1)
    weight = ((n - 1) * of_degrees) ** 0.25
    linear_x, linear_y = weight * degrees_x, weight * degrees_y
    mean, _, third = neighbour_moments(n, _list_scalars(xs), _list_scalars(ys))
    skewness = _ratio(third - _linear_third(linear_x, linear_y), _variance(terms) ** 1.5)
    scale = np.where(defined, float(n * k), np.nan)
    flagged = np.abs(skewness) > MOST_SKEWED
    return Null(terms, skewness, linear_x, linear_y, mean, scale, flagged, counts=True)


def _all_defined(lists: list[Neighbours]) -> list[Neighbours]:
    """Put any lists in the place of those that mean nothing; their pairs have no scale."""
    n, k = lists[0].indices.shape
    any_lists = Neighbours((np.arange(n)[:, None] + np.arange(1, k + 1)) % n, 0, True)
    return [each if each.defined else any_lists for each in lists]


def _neighbour_parts(lists: list[Neighbours], groups: Index) -> tuple[Float64, Float64, Float64]:
    """Products of symmetric and of antisymmetric parts within encoders; in-degrees less k."""
    n, k = lists[0].indices.shape
    degrees = np.stack([np.bincount(x.indices.ravel(), minlength=n) - k for x in lists])
    degrees = degrees.astype(np.float64)
    shared, crossed = np.zeros((2, len(lists), len(lists)))
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        some = indicators([lists[m] for m in members.tolist()], slice(0, n))
        rows, columns = np.divmod(some.indices, n)
        turned = scipy.sparse.csr_array(
            (some.data, columns * n + rows, some.indptr), shape=some.shape
        )
        at = np.ix_(members, members)
        shared[at] = (some @ some.T).toarray()
        crossed[at] = (some @ turned.T).toarray()
    same = groups[:, None] == groups
    parts = neighbour_grams(n, k, shared, crossed, degrees @ degrees.T)
    return np.where(same, parts[0], 0.0), np.where(same, parts[1], 0.0), degrees


def _list_scalars(lists: list[Neighbours]) -> NeighbourScalars:
    """Scalars of neighbour lists, worked out once for each."""
    for each in lists:
        if each not in _scalars:
            _scalars[each] = neighbour_scalars(each.indices)
    return NeighbourScalars.stack([_scalars[each] for each in lists])
