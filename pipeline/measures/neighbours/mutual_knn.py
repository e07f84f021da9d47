"""Mutual nearest neighbours: how many of k two representations share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from pipeline.measures.measure import Measure
from pipeline.measures.neighbours.lists import (
    N_NEIGHBOURS,
    NEIGHBOUR_CONVENTIONS,
    NEIGHBOUR_INVARIANCES,
    RANKING,
    SHARED_PLACES,
    Neighbours,
)
from pipeline.types import Float64, Index, Mask

MUTUAL_KNN = Measure(
    name="mutual_knn",
    kind="neighbour",
    version=2,
    changed=SHARED_PLACES,
    relation=("neighbours", "neighbours", "k"),
    engine="neighbours",
    symmetric=True,
    range=(0.0, 1.0),
    invariances=NEIGHBOUR_INVARIANCES,
    parameters=(N_NEIGHBOURS, RANKING),
    conventions=NEIGHBOUR_CONVENTIONS,
    minimum_stimuli=3,
    grows_with="k",
    beyond=2,
    reference="Huh et al. 2024, ICML, appendix A, eq. 11 (m_NN)",
    prose=(
        "The share of k nearest neighbours that two representations have in common, averaged "
        "over stimuli: the inner product of two relations whose rows add up to k, over their "
        "norms, which are √(n k) without ties. With cosine neighbours also invariant to "
        "scaling of single rows, with Euclidean ones to translation."
    ),
)


def shared_neighbours(
    xs: Sequence[Neighbours],
    ys: Sequence[Neighbours],
    wanted: Mask,
    *,
    transposed: bool = False,
    memory: int,
) -> Float64:
    """Count the neighbours that two representations share, summed over stimuli.

    Parameters
    ----------
    xs, ys
        Neighbours of the same stimuli, of equal k.
    wanted
        Boolean mask `(len(xs), len(ys))`.
    transposed
        Count how often j is near i in X and i is near j in Y.
    memory
        Bytes to work in.

    Returns
    -------
    numpy.ndarray
        `(len(xs), len(ys))`; 0 for pairs that are not wanted. The inner products of the relations:
        whole numbers where neither has ties.

    Notes
    -----
    One look-up in a table of X for each neighbour of Y: n·k for each pair, however many they share.
    A sparse product would take longer the more similar the representations are. Pairs with ties
    are products of sparse relations.
    """
    n, k = xs[0].shape
    shared = np.zeros(wanted.shape)
    tied = wanted & fractional_pairs(xs, ys)
    own = {i: xs[i].relation() for i in np.flatnonzero(tied.any(axis=1)).tolist()}
    for j in np.flatnonzero(tied.any(axis=0)).tolist():
        other = ys[j].relation()
        other = other.T.tocsr() if transposed else other
        for i in np.flatnonzero(tied[:, j]).tolist():
            shared[i, j] = inner_product(own[i], other)
    counted = wanted & ~tied
    columns = np.flatnonzero(counted.any(axis=0)).tolist()
    step = max(1, min(n, memory // (n + 8 * k * max(1, len(columns)))))
    for start in range(0, n if columns else 0, step):
        rows = slice(start, min(start + step, n))
        places = {j: _places(ys[j].indices, rows) for j in columns}
        is_near = np.zeros((rows.stop - rows.start) * n, dtype=np.bool_)
        for i in np.flatnonzero(counted.any(axis=1)).tolist():
            # Transposed here, so that look-ups go through the table in order.
            near = _places(xs[i].indices, rows, transposed=transposed)
            is_near[near] = True
            for j in np.flatnonzero(counted[i]).tolist():
                shared[i, j] += np.count_nonzero(is_near[places[j]])
            is_near[near] = False
    return shared


def fractional_pairs(xs: Sequence[Neighbours], ys: Sequence[Neighbours]) -> Mask:
    """Find pairs with ties on either side, whose shared neighbours are not an integer."""
    of_x, of_y = ([each.fractional for each in side] for side in (xs, ys))
    return np.asarray(np.logical_or.outer(of_x, of_y))


def inner_product(x: scipy.sparse.csr_array, y: scipy.sparse.csr_array) -> float:
    """Sum the products of two sparse relations' entries, row by row; symmetric to the last bit."""
    return float(x.multiply(y).tocsr().data.sum())


def neighbour_norms(xs: Sequence[Neighbours], ys: Sequence[Neighbours]) -> Float64:
    """Give the products of the relations' norms, `(len(xs), len(ys))`; n·k without ties."""
    products = np.outer([x.squared_norm for x in xs], [y.squared_norm for y in ys])
    return np.asarray(np.sqrt(products))


def neighbour_scores(
    shared: Float64, xs: Sequence[Neighbours], ys: Sequence[Neighbours]
) -> Float64:
    """Turn `(..., len(xs), len(ys))` neighbours shared into scores: 1 with itself, at most 1."""
    return np.asarray(np.minimum(shared / neighbour_norms(xs, ys), 1.0))


def _places(near: Index, rows: slice, *, transposed: bool = False) -> Index:
    """Where some rows of an indicator of neighbours, or of its transpose, are one."""
    n = len(near)
    if transposed:
        of, slot = np.nonzero((near >= rows.start) & (near < rows.stop))
        return np.asarray((near[of, slot] - rows.start) * n + of)
    return np.asarray((near[rows] + (np.arange(rows.stop - rows.start) * n)[:, None]).ravel())


def indicators(neighbours: list[Neighbours], rows: slice) -> scipy.sparse.csr_array:
    """0/1 matrix: a row per representation, a column per (stimulus in `rows`, neighbour)."""
    n, k = neighbours[0].shape
    height = rows.stop - rows.start
    # scipy is faster with 32-bit indices, and converts at every product unless they are so.
    most = max(height * n, len(neighbours) * height * k)
    kind = np.int32 if most <= np.iinfo(np.int32).max else np.int64
    starts = (np.arange(height) * n)[:, None]
    columns = np.empty((len(neighbours), height, k), dtype=kind)
    for row, each in zip(columns, neighbours, strict=True):
        row[:] = starts + each.indices[rows]
    pointers = (np.arange(len(neighbours) + 1) * (height * k)).astype(kind)
    ones = np.ones(columns.size, dtype=np.int32)
    shape = (len(neighbours), height * n)
    return scipy.sparse.csr_array((ones, columns.ravel(), pointers), shape=shape)
