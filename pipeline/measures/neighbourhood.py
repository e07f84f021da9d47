"""Measures of nearest neighbours that are not inner products of relations.

Some compare the lists of neighbours (`cycle_knn`, `jaccard_knn`), some their order (`lcs_knn`,
`edit_knn`). None needs an n × n matrix: neighbours come from `find_neighbours`, and similarities
are computed where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.measures.kernel import EPS, Kernel
from pipeline.measures.measure import Parameter
from pipeline.measures.neighbours import find_neighbours, ranking_of

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]

BLOCK_BYTES = 2**25
"""Size of the block of features that is gathered at a time."""


@dataclass(frozen=True, eq=False)
class NeighbourLists:
    """The k nearest of each stimulus, nearest first.

    `indices` is `(n_stimuli, k)`. Of stimuli equally near, that of lowest index comes first.
    `ties` counts the rows in which the index decided who is in the list, `order_ties` those in
    which it decided the order of two who are. `defined` is false where all rows are the same and
    nothing is nearest.
    """

    indices: Indices
    ties: int
    order_ties: int
    defined: bool

    def keys(self) -> Indices:
        """Give each pair (i, neighbour of i) as one number, ascending, `(n_stimuli · k,)`."""
        n = len(self.indices)
        return np.asarray(pair_keys(np.sort(self.indices, axis=1), n).ravel())


def pair_keys(indices: Indices, n: int) -> Indices:
    """Give each pair (row, entry) of a list of indices as one number."""
    return np.asarray(np.arange(len(indices))[:, None] * n + indices)


def prepare_neighbours(
    values: Float64,
    *,
    k: int = 10,
    neighbours: str = "cosine",
    include_self: bool = False,
    unit: float = EPS,
) -> NeighbourLists:
    """Find the k nearest of every row, in order.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > k.
    k
        Length of the lists.
    neighbours
        ``"cosine"``, ``"inner"`` or ``"euclidean"``. A row of zeros has cosine 0 with every row.
    include_self
        Let a stimulus be its own neighbour, if it is near enough to itself.
    unit
        Relative spacing of the numbers that the features were stored in.

    Returns
    -------
    NeighbourLists
        Not defined if all rows are the same (for cosine: point the same way).

    Notes
    -----
    Who is in a list is decided by `find_neighbours`; the order then needs similarities with k
    stimuli only. Both are in float64 from centred rows, so that an offset shared by all stimuli
    costs no digits. What differs by no more than the rounding of these similarities is a tie.
    """
    n = len(values)
    found = find_neighbours(values, unit, neighbours, {k})[k]
    ranking = ranking_of(values, unit, neighbours)
    if ranking is None:
        return NeighbourLists(found.indices, n, n, False)
    candidates = found.indices
    if include_self:
        candidates = np.concatenate([candidates, np.arange(n)[:, None]], axis=1)
    near = products_at(ranking.rows(slice(None)), candidates) + ranking.bias[candidates]
    order = np.argsort(-near, axis=1, kind="stable")
    near = np.take_along_axis(near, order, axis=1)
    candidates = np.take_along_axis(candidates, order, axis=1)
    apart = near[:, :-1] - near[:, 1:] > 2 * ranking.tolerance(slice(None), EPS)[:, None]
    level = np.zeros(candidates.shape, dtype=np.intp)
    np.cumsum(apart, axis=1, out=level[:, 1:])
    order = np.lexsort((candidates, level), axis=1)
    indices = np.take_along_axis(candidates, order, axis=1)[:, :k]
    order_ties = int((~apart[:, : k - 1]).any(axis=1).sum())
    return NeighbourLists(np.ascontiguousarray(indices), found.ties, order_ties, True)


def products_at(rows: Float64, indices: Indices, others: Indices | None = None) -> Float64:
    """Inner products of rows i, or rows others[i], with rows indices[i, :], `(len, k)`."""
    count, k = indices.shape
    products = np.empty((count, k))
    step = max(1, BLOCK_BYTES // (8 * k * rows.shape[1]))
    for start in range(0, count, step):
        some = slice(start, start + step)
        own = rows[some] if others is None else rows[others[some]]
        gathered = rows[indices[some]]
        products[some] = np.matmul(gathered, own[:, :, None])[:, :, 0]
    return products


def is_in(keys: Indices, sought: Indices) -> NDArray[np.bool_]:
    """Tell which of the numbers sought are among ascending keys."""
    place = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return np.asarray(keys[place] == sought)


def compare_cycle_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute how many stimuli are found again by a step in y and a step back in x.

    Parameters
    ----------
    x, y
        States from `prepare_neighbours`, of equal k.

    Returns
    -------
    float
        The share, from 0 to 1, of stimuli i that are among the k nearest in x of some j that is
        among the k nearest of i in y. NaN if a state is not defined.

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
    n = len(x.indices)
    back = y.indices * n + np.arange(n)[:, None]  # the pair (j, i) for each j near i in y
    return float(is_in(x.keys(), back).any(axis=1).mean())


def compare_jaccard_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute the mean Jaccard index of the sets of neighbours.

    Parameters
    ----------
    x, y
        States from `prepare_neighbours`, of equal k.

    Returns
    -------
    float
        |N_x(i) ∩ N_y(i)| / |N_x(i) ∪ N_y(i)|, averaged over stimuli i, from 0 to 1. NaN if a state
        is not defined.

    References
    ----------
    Klabunde et al. 2023, Similarity of Neural Network Models: A Survey of Functional and
    Representational Measures, section on nearest neighbours (Jaccard similarity).
    """
    if not (x.defined and y.defined):
        return float("nan")
    n, k = x.indices.shape
    shared = is_in(x.keys(), pair_keys(y.indices, n)).sum(axis=1)
    return float((shared / (2 * k - shared)).mean())


def compare_lcs_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute how long a common subsequence the ordered lists of neighbours have.

    Parameters
    ----------
    x, y
        States from `prepare_neighbours`, of equal k.

    Returns
    -------
    float
        The length of the longest common subsequence, not necessarily contiguous, over k, averaged
        over stimuli: from 0 to 1. NaN if a state is not defined.

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
    n, k = x.indices.shape
    before = np.zeros((k + 1, n), dtype=np.intp)
    for mine in x.indices.T:
        now = np.zeros_like(before)
        for j, theirs in enumerate(y.indices.T, start=1):
            longer = np.maximum(before[j], now[j - 1])
            now[j] = np.where(mine == theirs, before[j - 1] + 1, longer)
        before = now
    return float(before[k].mean() / k)


def compare_edit_knn(x: NeighbourLists, y: NeighbourLists) -> float:
    """Compute how few edits turn one ordered list of neighbours into the other.

    Parameters
    ----------
    x, y
        States from `prepare_neighbours`, of equal k.

    Returns
    -------
    float
        1 − d/k with d the Levenshtein distance (insertions, deletions and substitutions, each at
        a cost of 1), averaged over stimuli: from 0 to 1. NaN if a state is not defined.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML; appendix B, table 11, describes
    it, ``edit_distance_knn`` of the code defines it.
    """
    if not (x.defined and y.defined):
        return float("nan")
    n, k = x.indices.shape
    before = np.repeat(np.arange(k + 1)[:, None], n, axis=1)
    for i, mine in enumerate(x.indices.T, start=1):
        now = np.full_like(before, i)
        for j, theirs in enumerate(y.indices.T, start=1):
            inserted = np.minimum(before[j], now[j - 1]) + 1
            now[j] = np.minimum(inserted, before[j - 1] + (mine != theirs))
        before = now
    return float(1.0 - before[k].mean() / k)


_K = Parameter("k", 10, "number of nearest neighbours")
_RANKING = Parameter(
    "neighbours",
    "cosine",
    "how nearness is ranked; cosine because the paper's code L2-normalises rows",
    choices=("cosine", "inner", "euclidean"),
)
_LISTS = ("k", "neighbours")

KERNELS: Mapping[str, Kernel] = {
    "cycle_knn": Kernel(prepare_neighbours, compare_cycle_knn, (_K, _RANKING), _LISTS),
    "jaccard_knn": Kernel(prepare_neighbours, compare_jaccard_knn, (_K, _RANKING), _LISTS),
    "lcs_knn": Kernel(prepare_neighbours, compare_lcs_knn, (_K, _RANKING), _LISTS),
    "edit_knn": Kernel(prepare_neighbours, compare_edit_knn, (_K, _RANKING), _LISTS),
}
"""By the measure's name."""
