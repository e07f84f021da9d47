"""Measures of nearest neighbours that are not inner products of relations.

Some compare sets of neighbours (`cycle_knn`, `jaccard_knn`), some their order (`lcs_knn`,
`edit_knn`). None needs an n × n matrix: neighbours come from `find_neighbours`, and similarities
are computed only where needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.measures.neighbours.lists import (
    N_NEIGHBOURS,
    NEIGHBOUR_CONVENTIONS,
    NEIGHBOUR_INVARIANCES,
    RANKING,
    SHARED_PLACES,
    Neighbours,
    find_neighbours,
    ranking_of,
)
from pipeline.measures.numerics import EPS
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.types import Float64, Index, Mask

BLOCK_BYTES = 2**25
"""Size of the block of features that is gathered at a time."""


def prepare_neighbours(
    values: Float64,
    *,
    k: int = 10,
    neighbours: str = "cosine",
    by_index: bool = False,
    eps: float = EPS,
) -> Neighbours:
    """Find the k nearest of every row.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > k.
    k
        Number of neighbours.
    neighbours
        ``"cosine"``, ``"inner"`` or ``"euclidean"``. A row of zeros has cosine 0 with every row.
    by_index
        Give places for which stimuli are tied to those of lowest index instead of sharing them.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    Neighbours
        Not defined if all rows are the same (for cosine: point the same way).
    """
    return find_neighbours(values, eps, neighbours, {k}, by_index=by_index)[k]


@dataclass(frozen=True, eq=False)
class NeighbourLists:
    """The k nearest of each stimulus, nearest first.

    `indices` is `(n_stimuli, k)`. `determined`, `(n_stimuli,)`, marks the lists that do not depend
    on how ties are resolved, neither for the last place nor between two stimuli in the list.
    `defined` is false where all rows are the same and nothing is nearest.
    """

    indices: Index
    determined: Mask
    defined: bool = True

    @property
    def ties(self) -> int:
        """Number of lists that depend on ties."""
        return int((~self.determined).sum())


def prepare_neighbour_lists(
    values: Float64,
    *,
    k: int = 10,
    neighbours: str = "cosine",
    by_index: bool = False,
    eps: float = EPS,
) -> NeighbourLists:
    """Find the k nearest of every row, in order.

    Parameters
    ----------
    values, k, neighbours, eps
        As for `prepare_neighbours`.
    by_index
        Put the lowest index first among stimuli that are equally near, and call every list
        determined.

    Returns
    -------
    NeighbourLists
        Not defined if all rows are the same (for cosine: point the same way).

    Notes
    -----
    `find_neighbours` decides which stimuli are in a list; ordering them needs similarities with k
    stimuli only. Both are in float64 from centred rows, so that an offset shared by all stimuli
    costs no digits. Similarities that differ by no more than their rounding are tied.
    """
    found = find_neighbours(values, eps, neighbours, {k}, by_index=by_index)[k]
    ranking = ranking_of(values, eps, neighbours)
    if ranking is None:
        return NeighbourLists(found.indices, np.zeros(len(values), dtype=np.bool_), False)
    candidates = found.indices
    near = products_at(ranking.rows(slice(None)), candidates) + ranking.bias[candidates]
    order = np.argsort(-near, axis=1, kind="stable")
    near = np.take_along_axis(near, order, axis=1)
    candidates = np.take_along_axis(candidates, order, axis=1)
    apart = near[:, :-1] - near[:, 1:] > 2 * ranking.tolerance(slice(None), EPS)[:, None]
    level = np.zeros(candidates.shape, dtype=np.intp)
    np.cumsum(apart, axis=1, out=level[:, 1:])
    order = np.lexsort((candidates, level), axis=1)
    indices = np.take_along_axis(candidates, order, axis=1)
    determined = by_index | (apart.all(axis=1) & ~found.tied)
    return NeighbourLists(np.ascontiguousarray(indices), determined)


def products_at(rows: Float64, indices: Index) -> Float64:
    """Inner products of rows i with rows indices[i, :], `(len(indices), k)`."""
    count, k = indices.shape
    products = np.empty((count, k))
    step = max(1, BLOCK_BYTES // (8 * k * rows.shape[1]))
    for start in range(0, count, step):
        some = slice(start, start + step)
        gathered = rows[indices[some]]
        products[some] = np.matmul(gathered, rows[some][:, :, None])[:, :, 0]
    return products


def order_undefined_reason(lists: NeighbourLists, **_: object) -> str:
    """Explain that ties leave the order open in most lists; empty if they do not."""
    n = len(lists.determined)
    if 2 * lists.ties < n:
        return ""
    return (
        f"has the same distance to two or more of its nearest neighbours in {lists.ties} of {n} "
        "stimuli, so that their order is not determined; orders can be compared only if most "
        "stimuli have one. Use mutual_knn or jaccard_knn, which share places among the tied."
    )


_OF_NEIGHBOURS: dict[str, Any] = {
    "kind": "neighbour",
    "version": 2,
    "range": (0.0, 1.0),
    "invariances": NEIGHBOUR_INVARIANCES,
    "parameters": (N_NEIGHBOURS, RANKING),
    "prepares": ("k", "neighbours"),
    "minimum_stimuli": 3,
    "grows_with": "k",
    "of_neighbours": True,
}
_OF_SETS = _OF_NEIGHBOURS | {
    "prepare": prepare_neighbours,
    "changed": SHARED_PLACES,
    "conventions": NEIGHBOUR_CONVENTIONS,
    "beyond": 2,
}
_OF_ORDERED = _OF_NEIGHBOURS | {
    "prepare": prepare_neighbour_lists,
    "undefined_reason": order_undefined_reason,
    "changed": (
        "stimuli with tied neighbours are left out; before, ties took the order of the rows"
    ),
    "conventions": (("self_is_neighbour", False), ("ties", "lists that tie are left out")),
    "beyond": 1,  # all others have an order, too
}


def compare_cycle_knn(x: Neighbours, y: Neighbours) -> float:
    """Compute the share of stimuli that a step in y and a step back in x return to.

    Returns
    -------
    float
        The share, from 0 to 1, of stimuli i that are among the k nearest in x of some j that is
        among the k nearest of i in y. Where stimuli share places, the probability of that if each
        is a neighbour with its share as probability, independently of the others.

    Notes
    -----
    Not symmetric: the first step is in the second argument, as in the paper's code
    (``cycle_knn(feats_A, feats_B)`` of ``metrics.py``: "LLM nearest neighbors → query language
    pair → LVM nearest neighbors"). Not 1 for equal arguments: a stimulus that is among nobody's
    nearest is not found again.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML; appendix B, table 11, describes
    it, ``cycle_knn`` of the code defines it.
    """
    if not (x.defined and y.defined):
        return float("nan")
    ways = y.relation().multiply(x.relation().T).tocoo()  # out from i to j in y, back in x
    missed = np.ones(len(x.indices))
    np.multiply.at(missed, ways.row, 1.0 - ways.data)
    return float(1.0 - missed.mean())


CYCLE_KNN = PairwiseMeasure(
    name="cycle_knn",
    compare=compare_cycle_knn,
    symmetric=False,
    reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
    prose=(
        "The share of stimuli that are found again: among the k nearest in x of some stimulus "
        "that is among their own k nearest in y. Below 1 even for x with itself."
    ),
    **_OF_SETS | {"conventions": (*NEIGHBOUR_CONVENTIONS, ("direction", "out by y, back by x"))},
)


def compare_jaccard_knn(x: Neighbours, y: Neighbours) -> float:
    """Compute the mean Jaccard index of the sets of neighbours.

    Returns
    -------
    float
        |N_x(i) ∩ N_y(i)| / |N_x(i) ∪ N_y(i)|, averaged over stimuli i, from 0 to 1. Where stimuli
        share places, the sum of the lesser shares over the sum of the greater.

    References
    ----------
    Klabunde et al. 2023, Similarity of Neural Network Models: A Survey of Functional and
    Representational Measures, section on nearest neighbours (Jaccard similarity).
    """
    if not (x.defined and y.defined):
        return float("nan")
    own, other = x.relation(), y.relation()
    shared = own.minimum(other).sum(axis=1)
    return float((shared / (own.sum(axis=1) + other.sum(axis=1) - shared)).mean())


JACCARD_KNN = PairwiseMeasure(
    name="jaccard_knn",
    compare=compare_jaccard_knn,
    symmetric=True,
    reference="Klabunde et al. 2023, survey of similarity measures, Jaccard similarity",
    prose="Shared nearest neighbours over all that either representation has, averaged.",
    **_OF_SETS,
)


def compare_lcs_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute the length of the longest common subsequence of the ordered lists of neighbours.

    Returns
    -------
    float
        The length of the longest common subsequence, not necessarily contiguous, over k, averaged
        over the stimuli whose lists do not depend on ties: from 0 to 1. NaN too
        if no stimulus is left.

    Notes
    -----
    The paper's code (``lcs_knn``) gives the mean length, which is k times this.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML; appendix B, table 11, describes
    it, ``lcs_knn`` of the code defines it.
    """
    if not (x.defined and y.defined):
        return float("nan")
    own, other = _determined(x, y)
    n, k = own.shape
    before = np.zeros((k + 1, n), dtype=np.intp)
    for mine in own.T:
        now = np.zeros_like(before)
        for j, theirs in enumerate(other.T, start=1):
            longer = np.maximum(before[j], now[j - 1])
            now[j] = np.where(mine == theirs, before[j - 1] + 1, longer)
        before = now
    return float(before[k].mean() / k) if n else float("nan")


LCS_KNN = PairwiseMeasure(
    name="lcs_knn",
    compare=compare_lcs_knn,
    symmetric=True,
    reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
    prose=(
        "Length of the longest common subsequence of the two ordered lists of nearest "
        "neighbours, over k, averaged; the paper's code does not divide by k."
    ),
    **_OF_ORDERED,
)


def compare_edit_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute one minus the edit distance of the ordered lists of neighbours.

    Returns
    -------
    float
        1 − d/k with d the Levenshtein distance (insertions, deletions and substitutions, each at
        a cost of 1), averaged over the stimuli whose lists do not depend on ties: from 0 to 1. NaN
        too if no stimulus is left.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML; appendix B, table 11, describes
    it, ``edit_distance_knn`` of the code defines it.
    """
    if not (x.defined and y.defined):
        return float("nan")
    own, other = _determined(x, y)
    n, k = own.shape
    before = np.repeat(np.arange(k + 1)[:, None], n, axis=1)
    for i, mine in enumerate(own.T, start=1):
        now = np.full_like(before, i)
        for j, theirs in enumerate(other.T, start=1):
            inserted = np.minimum(before[j], now[j - 1]) + 1
            now[j] = np.minimum(inserted, before[j - 1] + (mine != theirs))
        before = now
    return float(1.0 - before[k].mean() / k) if n else float("nan")


EDIT_KNN = PairwiseMeasure(
    name="edit_knn",
    compare=compare_edit_knn,
    symmetric=True,
    reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
    prose=(
        "1 less the edit distance (Levenshtein, all edits cost 1) of the two ordered lists of "
        "nearest neighbours over k, averaged."
    ),
    **_OF_ORDERED,
)


def _determined(x: NeighbourLists, y: NeighbourLists) -> tuple[Index, Index]:
    """Choose the stimuli whose lists are determined in both."""
    both = x.determined & y.determined
    return x.indices[both], y.indices[both]
