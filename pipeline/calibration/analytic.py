"""The null from exact moments, without permuting n × n relations.

Under a random permutation P of the stimuli of Y, the inner product of two relations is

    S = ⟨U, P U' Pᵀ⟩ + ℓ·Pℓ' + c c'.

The first term has exact moments, known from a few scalars of each representation. Over all layers
of two encoders its exact covariance is 2/(n(n−3)) C ⊗ C', with C the inner products of an encoder's
own relations. It is drawn from a Gaussian of that covariance, and each pair of layers is then
mapped to the Pearson III distribution of its third moment (a Gaussian copula). The second term, of
row effects, is permuted explicitly, with one permutation for all layers. For nearest neighbours the
first term has a symmetric and an antisymmetric part, and the second is that of the in-degrees.

The two terms are uncorrelated but not independent; `pipeline.calibration.coupling` models how one
depends on the other. Where counts are compared, the first principal component over layers has a
skewness of its own (see `pipeline.calibration.leading`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse

from pipeline.calibration.coupling import Coupling, LinearMoments, ratio
from pipeline.calibration.draws import Null, Term, variance_of
from pipeline.calibration.leading import Leading, leading_weights
from pipeline.calibration.moments import (
    CouplingScalars,
    UCentredScalars,
    coupling_moments,
    relation_scalars,
    u_centred_moments,
)
from pipeline.calibration.neighbour_moments import (
    NeighbourScalars,
    combined_neighbour_scalars,
    excess_degrees,
    neighbour_coupling_moments,
    neighbour_grams,
    neighbour_moments,
    neighbour_scalars,
    neighbour_weights,
)
from pipeline.calibration.pearson import MAX_SKEWNESS
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.dense.relations import Relation, denominators
from pipeline.measures.neighbours.lists import Neighbours
from pipeline.measures.neighbours.mutual_knn import (
    fractional_pairs,
    neighbour_norms,
    shared_neighbours,
)
from pipeline.measures.pairs import MEMORY, relation_products, sharing
from pipeline.measures.prepared import Prepared
from pipeline.types import Float64, Floating, Index, Mask

VERSION = 3
"""Of the distribution that is drawn from; a store keeps draws of different versions apart."""
MAX_KURTOSIS_ERROR = 1.0
"""Distance of the exact kurtosis from that of Pearson III from which on a pair is flagged."""
MIN_STIMULI = 10
"""With fewer stimuli there are too few permutations for a smooth distribution."""
MIN_VARIANCE_SHARE = 0.1
"""A part with less than this share of the variance may have any shape."""
MAX_TIED_SHARE = 0.5
"""Share of stimuli with tied neighbours beyond which relations are treated as classes."""
MAX_COUPLING = 1.0
"""Largest relative change of the rest's variance per standard deviation of the linear part. Half of
it bounds the share of that variance which the shift of the rest's mean explains."""


def nulls_of(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    x_groups: Index,
    y_groups: Index,
    specs: Mapping[str, MeasureSpec],
) -> dict[str, Null]:
    """Compute the nulls of every pair of representations from scalars of each.

    Parameters
    ----------
    xs, ys
        Prepared representations of the same stimuli.
    x_groups, y_groups
        The encoder of each.
    specs
        By label, measures of dense relations or of neighbours. Those that share a relation share
        its scalars.

    Returns
    -------
    dict of Null
        By label.
    """
    found: dict[str, Null] = {}
    alike = len(xs) == len(ys) and all(x is y for x, y in zip(xs, ys, strict=True))
    alike = alike and np.array_equal(x_groups, y_groups)
    for labels in sharing(specs):
        spec = specs[labels[0]]
        x = _Dense.of([p.relation_for(spec) for p in xs], x_groups)
        y = x if alike else _Dense.of([p.relation_for(spec) for p in ys], y_groups)
        for label in labels:
            found[label] = _dense_null(x, y, specs[label])
    for label, spec in specs.items():
        if spec.measure.engine == "neighbours":
            near = _Near.of([p.neighbours_for(spec) for p in xs], x_groups)
            others = near if alike else _Near.of([p.neighbours_for(spec) for p in ys], y_groups)
            found[label] = _neighbour_null(near, others)
    return {label: found[label] for label in specs}


def flagged_encoders(null: Null, x_groups: Index, y_groups: Index, wanted: Mask) -> Mask:
    """Find the wanted pairs of encoders with a flagged pair of layers, `(Gx, Gy)`."""
    odd = null.flagged & np.isfinite(null.scale)
    found = np.zeros(wanted.shape, bool)
    for i, j in np.argwhere(odd):
        found[x_groups[i], y_groups[j]] = True
    return found & wanted


@dataclass(frozen=True, eq=False)
class _Dense:
    """One side of a null of relations."""

    relations: list[Relation]
    u_centred: UCentredScalars
    coupling: CouplingScalars
    within: Float64
    """Inner products of relations within encoders, 0 between."""

    @classmethod
    def of(cls, relations: list[Relation], groups: Index) -> _Dense:
        same = groups[:, None] == groups
        within = np.where(same, relation_products(relations, same), 0.0)
        return cls(relations, *_dense_scalars(relations), within)


def _dense_null(x: _Dense, y: _Dense, spec: MeasureSpec) -> Null:
    xs, ys = x.relations, y.relations
    n = xs[0].n_stimuli
    variance, third, fourth = u_centred_moments(n, x.u_centred, y.u_centred)
    skewness = ratio(third, variance**1.5)
    excess = np.where(variance > 0, ratio(fourth, variance**2) - 3.0, 0.0)
    kurtosis_error = np.abs(excess - 1.5 * skewness**2)
    flagged = np.abs(skewness) > MAX_SKEWNESS
    linear_x = linear_y = coupling = None
    mean = np.zeros_like(variance)
    if not spec.u_centred_only:
        linear_x, linear_y = (
            np.stack([r.row_effects for r in xs]),
            np.stack([r.row_effects for r in ys]),
        )
        mean = np.outer([r.grand_effect for r in xs], [r.grand_effect for r in ys])
        linear = LinearMoments.of(linear_x, linear_y)
        coupling = Coupling.of(linear, *coupling_moments(n, x.coupling, y.coupling), variance)
        skewness = ratio(third, coupling.own_variance(variance) ** 1.5)
        share = ratio(variance, variance + linear.variance)
        kurtosis_error = kurtosis_error * share**2
        flagged = (flagged | _strong(coupling, variance)) & (share > MIN_VARIANCE_SHARE)
    term = Term(2.0 / (n * (n - 3)), x.within, y.within)
    wanted = np.ones_like(variance, dtype=np.bool_)
    scale = denominators(
        xs, ys, wanted=wanted, u_centred_only=spec.u_centred_only, added=spec.added
    )
    flagged |= (kurtosis_error >= MAX_KURTOSIS_ERROR) | (n < MIN_STIMULI)
    return Null([term], skewness, linear_x, linear_y, mean, scale, flagged, coupling=coupling)


def _strong(coupling: Coupling, variance: Float64) -> Mask:
    """Find where the linear part affects the rest too strongly for a first-order model."""
    met = np.abs(coupling.variance_slope) * np.sqrt(coupling.linear_variance)
    found: Mask = np.maximum(met, 2 * ratio(coupling.explained_variance, variance)) > MAX_COUPLING
    return found


class ScalarCache:
    """Scalars of relations and of lists of neighbours, kept as long as these are."""

    def __init__(self) -> None:
        self._scalars: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def get(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Look up the scalars of a relation, or of a list, and compute them the first time."""
        if key not in self._scalars:
            self._scalars[key] = compute()
        return self._scalars[key]


_SCALARS = ScalarCache()


def _dense_scalars(relations: list[Relation]) -> tuple[UCentredScalars, CouplingScalars]:
    """Scalars of relations, computed once for each."""
    n = relations[0].n_stimuli
    table: Floating = np.empty((n, n), dtype=relations[0].dtype)
    found = [_SCALARS.get(r, partial(_scalars_of, r, table)) for r in relations]
    alone, coupling = zip(*found, strict=True)
    return UCentredScalars.stack(alone), CouplingScalars.stack(coupling)


@dataclass(frozen=True, eq=False)
class _Near:
    """One side of a null of nearest neighbours."""

    lists: list[Neighbours]
    defined: Mask
    grams: tuple[Float64, Float64]
    """Inner products of symmetric and of antisymmetric parts within encoders, 0 between."""
    linear: Float64
    """In-degrees less k, scaled so that x·Py is the linear part, `(M, n)`."""
    scalars: NeighbourScalars
    weights: Float64
    """Of the layers in their encoder's first principal component, `(M,)`."""
    combined: NeighbourScalars
    """Of each encoder's weighted sum."""
    combined_linear: Float64
    """Its linear part, `(G, n)`."""

    @classmethod
    def of(cls, lists: list[Neighbours], groups: Index) -> _Near:
        defined = np.array([x.defined for x in lists])
        lists = _all_defined(lists)
        n, k = lists[0].shape
        relations = [x.relation() for x in lists]
        degrees = np.stack([excess_degrees(relation, k) for relation in relations])
        grams = _neighbour_parts(lists, degrees, groups)
        # x·Py has variance (x·x)(y·y)/(n−1)
        linear = ((n - 1) * neighbour_weights(n)[-1]) ** 0.25 * degrees
        weights = leading_weights(grams[0], groups)
        encoders = [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
        combined = [
            combined_neighbour_scalars([relations[i] for i in own], weights[own])
            for own in encoders
        ]
        together = np.stack([weights[own] @ linear[own] for own in encoders])
        return cls(
            lists, defined, grams, linear, _list_scalars(lists, relations), weights,
            NeighbourScalars.stack(combined), together,
        )  # fmt: skip


def _neighbour_null(x: _Near, y: _Near) -> Null:
    n = len(x.lists[0].indices)
    weights = neighbour_weights(n)
    terms = [Term(w, a, b) for w, a, b in zip(weights, x.grams, y.grams, strict=False)]
    variance = variance_of(terms)
    linear = LinearMoments.of(x.linear, y.linear)
    coupling_moments = neighbour_coupling_moments(n, x.scalars, y.scalars)
    coupling = Coupling.of(linear, *coupling_moments, variance)
    mean, _, third = neighbour_moments(n, x.scalars, y.scalars)
    third -= linear.third + 3 * sum(coupling_moments)
    skewness = ratio(third, coupling.own_variance(variance) ** 1.5)
    together = neighbour_moments(n, x.combined, y.combined)[-1]
    together -= LinearMoments.of(x.combined_linear, y.combined_linear).third
    scale = np.where(np.outer(x.defined, y.defined), neighbour_norms(x.lists, y.lists), np.nan)
    share = ratio(variance, variance + linear.variance)
    flagged = ((np.abs(skewness) > MAX_SKEWNESS) | _strong(coupling, variance)) & (
        share > MIN_VARIANCE_SHARE
    )
    flagged |= n < MIN_STIMULI
    # Where both broke ties by index, permuting finished lists would lose that they did so alike;
    # where both are mostly ties, as labels are, scores are few and far apart.
    for most, kind in ((0.0, True), (MAX_TIED_SHARE * n, False)):
        both = [[z.by_index == kind and z.ties > most for z in side.lists] for side in (x, y)]
        flagged |= np.logical_and.outer(*both)
    return Null(
        terms, skewness, x.linear, y.linear, mean, scale, flagged,
        counts=~fractional_pairs(x.lists, y.lists),
        coupling=coupling, leading=Leading(x.weights, y.weights, together),
    )  # fmt: skip


def _all_defined(lists: list[Neighbours]) -> list[Neighbours]:
    """Replace undefined lists by arbitrary ones; the scale of their pairs is NaN."""
    n, k = lists[0].shape
    any_lists = Neighbours((np.arange(n)[:, None] + np.arange(1, k + 1)) % n)
    return [each if each.defined else any_lists for each in lists]


def _neighbour_parts(
    lists: list[Neighbours], degrees: Float64, groups: Index
) -> tuple[Float64, Float64]:
    """Products of symmetric and of antisymmetric parts within encoders."""
    n, k = lists[0].shape
    same = groups[:, None] == groups
    shared, transposed = (
        both + np.triu(both, 1).T
        for both in (
            shared_neighbours(lists, lists, np.triu(same), transposed=transposed, memory=MEMORY)
            for transposed in (False, True)
        )
    )
    parts = neighbour_grams(n, k, shared, transposed, degrees @ degrees.T)
    return np.where(same, parts[0], 0.0), np.where(same, parts[1], 0.0)


def _scalars_of(relation: Relation, table: Floating) -> tuple[UCentredScalars, CouplingScalars]:
    return relation_scalars(relation.whole(out=table), relation.row_effects)


def _list_scalars(
    lists: list[Neighbours], relations: list[scipy.sparse.csr_array]
) -> NeighbourScalars:
    """Scalars of neighbours, computed once for each representation."""
    return NeighbourScalars.stack(
        [
            _SCALARS.get(each, partial(neighbour_scalars, relation))
            for each, relation in zip(lists, relations, strict=True)
        ]
    )
