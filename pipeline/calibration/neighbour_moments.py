"""Exact moments of the number of nearest neighbours that two representations share by chance.

As `pipeline.calibration.moments`, for relations of neighbours, which are not symmetric: 0/1
indicators, shares of places for which stimuli are tied, and weighted sums of these. All rows of
a relation add up to the same number. Each relation is summarised by nine sums over paths of three
edges, and by the scalars that mean and variance need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike

from pipeline.calibration.graphs import permutation_moment
from pipeline.calibration.moments import Scalars, check_moments_exist
from pipeline.errors import InputError
from pipeline.types import Float64

PATHS = 2**21
"""Paths of two neighbour steps that are held at a time."""

FULL, MAX_FULL_ROWS = 0.1, 4096
"""Share of neighbours in the longest row from which a dense table is faster, up to these rows."""

NEIGHBOUR_THIRD = (
    "ab bc ca",
    "ab bc ac",
    "ab ab ab",
    "ab ab ba",
    "ab cb db",
    "ca ab db",
    "ab ba ca",
    "ab ab cb",
    "ab ab ca",
)
"""Directed graphs. A column sum such as e_b is an edge from a vertex of its own."""
LINEAR_AND_TWO = ("b ab cb", "a ab cb", "a ba cb", "a ab ba", "b ab ab", "a ab ab")
TWO_LINEAR = ("a a ba", "a b ab")
"""The same, with a factor e for each single letter."""


@dataclass(frozen=True, eq=False)
class NeighbourScalars(Scalars):
    """Scalars of relations of k nearest neighbours, or of weighted sums of them, for moments.

    a_ij is the share that neighbour j has of a place in row i, less k/(n−1), with zero diagonal;
    its rows sum to zero and its columns to e, the in-degrees less k. Each field is `(M,)`.
    """

    neighbours: Float64
    """k, what each row of the relation adds up to."""
    squares: Float64
    """Σ a²."""
    mutual: Float64
    """Σ a_ij a_ji."""
    degree_squares: Float64
    """Σ e²."""
    cycles: Float64
    """Σ a_ij a_jk a_ki = tr A³."""
    transitive: Float64
    """Σ a_ij a_jk a_ik."""
    cubes: Float64
    """Σ a³."""
    mutual_cubes: Float64
    """Σ a_ij² a_ji."""
    degree_cubes: Float64
    """Σ e³."""
    degree_form: Float64
    """Σ e_i a_ij e_j."""
    degree_mutual: Float64
    """Σ e_i a_ij a_ji."""
    degree_entries: Float64
    """Σ a_ij² e_j."""
    degree_rows: Float64
    """Σ e_i a_ij²: 0 without ties, since as many are 1 in every row."""


def neighbour_scalars(relation: scipy.sparse.csr_array) -> NeighbourScalars:
    """Summarise one representation's nearest neighbours.

    Parameters
    ----------
    relation
        `(n, n)`, n ≥ 4, as `Neighbours.relation` gives it: zero diagonal, rows that add up to k.

    Returns
    -------
    NeighbourScalars
        Of one representation, each field `(1,)`.

    Raises
    ------
    InputError
        If `relation` is not square, has a diagonal, or its rows do not add up to the same number.

    Notes
    -----
    n k² paths of two steps, of which about 2 million are held at a time.
    """
    return combined_neighbour_scalars([relation], [1.0])


def combined_neighbour_scalars(
    relations: Sequence[scipy.sparse.csr_array], weights: ArrayLike
) -> NeighbourScalars:
    """Summarise a weighted sum of the neighbours of several representations.

    Parameters
    ----------
    relations
        Of the same stimuli, as `neighbour_scalars` takes them.
    weights
        A number for each.

    Returns
    -------
    NeighbourScalars
        Of the sum, each field `(1,)`.

    Raises
    ------
    InputError
        As `neighbour_scalars`.
    """
    links, k = 0, 0.0
    for relation, weight in zip(relations, np.asarray(weights, np.float64).tolist(), strict=True):
        k += weight * _checked_neighbours(relation)
        links = links + weight * relation
    return _summed(links, k)


def _summed(links: scipy.sparse.csr_array, k: float) -> NeighbourScalars:
    """Sum up a relation, or a weighted sum of some, of which each row adds up to k."""
    n = links.shape[0]
    back = links.T.tocsr()
    cycles, transitive = _closed_paths(links, back)
    both, squares = links * back, links * links
    mutual = np.asarray(both.sum(axis=1))
    excess = excess_degrees(links, k)
    degree_squares = float(excess @ excess)

    # Each factor is an entry of `links` minus p off the diagonal. With pI added to `links`, rows
    # sum to n p, and p is subtracted everywhere.
    p = k / (n - 1)
    level = n * (n - 1) * p**3
    of_both, of_squares = float(both.sum()), float(squares.sum())
    values = {
        "neighbours": k,
        "squares": of_squares - p * n * k,
        "mutual": of_both - p * n * k,
        "degree_squares": degree_squares,
        "cycles": cycles + 3 * p * of_both - (n + 1) * level,
        "transitive": transitive
        + p * (2 * of_squares + of_both - degree_squares)
        - (n + 1) * level,
        "cubes": float((squares * links).sum()) - 3 * p * of_squares + 2 * level,
        "mutual_cubes": float((squares * back).sum()) - p * (2 * of_both + of_squares) + 2 * level,
        "degree_cubes": float((excess**3).sum()),
        "degree_form": float(excess @ (links @ excess)) + p * degree_squares,
        "degree_mutual": float(mutual @ excess) - p * degree_squares,
        "degree_entries": float(squares.sum(axis=0) @ excess) - 2 * p * degree_squares,
        "degree_rows": float(squares.sum(axis=1) @ excess),
    }
    return NeighbourScalars(**{name: np.array([float(v)]) for name, v in values.items()})


def excess_degrees(links: scipy.sparse.csr_array, k: float) -> Float64:
    """Give the in-degrees minus k, `(n,)`, with those within rounding of 0 set to 0.

    Equal shares within classes give every stimulus an in-degree of k; a linear part that is only
    rounding errors would be divided by its own variance.
    """
    degrees = np.asarray(links.sum(axis=0))
    excess = degrees - k
    rounding = 4 * np.finfo(np.float64).eps * len(degrees) * np.abs(degrees).max()
    excess[np.abs(excess) <= rounding] = 0.0
    return excess


def _closed_paths(
    links: scipy.sparse.csr_array, back: scipy.sparse.csr_array
) -> tuple[float, float]:
    """Σ w_ij w_jk w_ki and Σ w_ij w_jk w_ik."""
    n = links.shape[0]
    longest = int(np.diff(links.indptr).max())
    if longest > FULL * n and n <= MAX_FULL_ROWS:
        table = links.toarray()
        paths = table @ table
        return float((paths * table.T).sum()), float((paths * table).sum())
    cycles = transitive = 0.0
    size = max(1, PATHS // longest**2)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        some = links[rows] @ links
        cycles += float((some * back[rows]).sum())
        transitive += float((some * links[rows]).sum())
    return cycles, transitive


def neighbour_moments(
    n: int, xs: NeighbourScalars, ys: NeighbourScalars
) -> tuple[Float64, Float64, Float64]:
    """Exact moments of Σ_ij A_ij B_π(i)π(j), the neighbours shared, for all pairs of relations.

    The mean is n k k'/(n−1); the variance is that of `neighbour_grams` with a relation and itself;
    the third central moment is a form in nine sums, those of three edges in `NeighbourScalars`.
    For weighted sums of relations they are those of the weighted sum of neighbours shared.

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations. Numbers of neighbours may differ.

    Returns
    -------
    mean, variance, third : numpy.ndarray
        Mean and central moments, `(Mx, My)` each. Divide by n·k, its square and its cube for those
        of mutual k-NN.

    Raises
    ------
    InputError
        If `n` is below 4.

    References
    ----------
    Huh et al. 2024 for mutual k-NN; Mantel 1967 and Siemiatycki 1978 as in `u_centred_moments`.
    """
    check_moments_exist(n)
    mean = n / (n - 1) * np.outer(xs.neighbours, ys.neighbours)
    variance = np.zeros_like(mean)
    for weight, x, y in zip(
        neighbour_weights(n), _own_grams(n, xs), _own_grams(n, ys), strict=True
    ):
        variance += weight * np.outer(x, y)
    third = permutation_moment(
        NEIGHBOUR_THIRD, n, _three_edges(xs), _three_edges(ys), directed=True
    )
    return mean, variance, third


def neighbour_coupling_moments(
    n: int, xs: NeighbourScalars, ys: NeighbourScalars
) -> tuple[Float64, Float64]:
    """Exact third moments that mix the linear part of a count with the rest of it.

    The linear part is ℓ = (n−1)/(n(n−2)) Σ_i e_i e'_π(i), of the in-degrees; the rest r, which is
    uncorrelated with it, is the count minus its mean and ℓ. The third central moment of the
    count is E[ℓ³] + 3 E[ℓ²r] + 3 E[ℓr²] + E[r³].

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations.

    Returns
    -------
    l2r, lr2 : numpy.ndarray
        E[ℓ²r] and E[ℓr²], `(Mx, My)` each.

    Raises
    ------
    InputError
        If `n` is below 4.
    """
    check_moments_exist(n)
    factor = (n - 1) / (n * (n - 2))
    sides = xs, ys
    cubes = factor**3 * permutation_moment(("a a a",), n, *((s.degree_cubes,) for s in sides))
    squared = factor**2 * permutation_moment(
        TWO_LINEAR, n, *((s.degree_cubes, s.degree_form) for s in sides), directed=True
    )
    linear = factor * permutation_moment(
        LINEAR_AND_TWO,
        n,
        *(
            (
                s.degree_cubes,
                s.degree_form,
                s.degree_form,
                s.degree_mutual,
                s.degree_entries,
                s.degree_rows,
            )
            for s in sides
        ),
        directed=True,
    )
    # These are E[ℓ²(ℓ + r)] and E[ℓ(ℓ + r)²].
    return squared - cubes, linear - 2 * squared + cubes


def neighbour_grams(
    n: int, k: ArrayLike, same: ArrayLike, swapped: ArrayLike, degrees: ArrayLike
) -> tuple[Float64, Float64, Float64]:
    """Split the inner products of neighbour indicators of one model into three orthogonal parts.

    Let A and C be indicators in X, and B and D in Y. With one permutation for both,

        Cov(⟨A, B_π⟩, ⟨C, D_π⟩) = Σ_r w_r G_r(A, C) G_r(B, D),    r = 1, 2, 3,

    where w are the `neighbour_weights`, and the G are of the U-centred symmetric, the antisymmetric
    and the in-degree parts of the indicators: with a = ⟨A, C⟩, b = ⟨A, Cᵀ⟩, and D the product of
    in-degrees less k,

        G_1 = (a + b)/2 − n k²/(n−1) − D/(2(n−2)),    G_2 = (a − b)/2 − D/(2n),    G_3 = D.

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    k
        Number of neighbours, the same in A and C.
    same, swapped, degrees
        a, b and D, of any shapes that broadcast together and with `k`; for the layers of one model
        `(L, L)`.

    Returns
    -------
    symmetric, antisymmetric, linear : numpy.ndarray
        G_1, G_2 and G_3, of the broadcast shape. Of two models, the sum of w_r times the Kronecker
        products of their G_r is the covariance of all layers' scores with all layers'.

    Raises
    ------
    InputError
        If `n` is below 4.

    References
    ----------
    Mantel 1967, Cancer Research 27, in orthogonal parts.
    """
    check_moments_exist(n)
    a, b, d = (np.asarray(x, dtype=np.float64) for x in (same, swapped, degrees))
    expected = n / (n - 1) * np.asarray(k, dtype=np.float64) ** 2
    symmetric = (a + b) / 2 - expected - d / (2 * (n - 2))
    antisymmetric = (a - b) / 2 - d / (2 * n)
    return symmetric, antisymmetric, np.broadcast_to(d, symmetric.shape).copy()


def neighbour_weights(n: int) -> tuple[float, float, float]:
    """Weights of the products of `neighbour_grams` in the covariance under permutation.

    Parameters
    ----------
    n
        Number of stimuli, at least 4.

    Returns
    -------
    tuple of float
        2/(n(n−3)), 2/((n−1)(n−2)) and (n−1)/(n²(n−2)²).

    Raises
    ------
    InputError
        If `n` is below 4.
    """
    check_moments_exist(n)
    return 2 / (n * (n - 3)), 2 / ((n - 1) * (n - 2)), (n - 1) / (n * (n - 2)) ** 2


def _own_grams(n: int, scalars: NeighbourScalars) -> tuple[Float64, Float64, Float64]:
    """Split every relation's product with itself as `neighbour_grams` does."""
    k = scalars.neighbours
    expected = n * k**2 / (n - 1)
    same, swapped = scalars.squares + expected, scalars.mutual + expected
    return neighbour_grams(n, k, same, swapped, scalars.degree_squares)


def _three_edges(scalars: NeighbourScalars) -> list[Float64]:
    """List the sums in the order of `NEIGHBOUR_THIRD`."""
    return [
        scalars.cycles,
        scalars.transitive,
        scalars.cubes,
        scalars.mutual_cubes,
        scalars.degree_cubes,
        scalars.degree_form,
        scalars.degree_mutual,
        scalars.degree_entries,
        scalars.degree_rows,
    ]


def _checked_neighbours(relation: scipy.sparse.csr_array) -> float:
    """Give k, the sum of each row of a relation of neighbours."""
    if relation.ndim != 2 or relation.shape[0] != relation.shape[1]:
        raise InputError(
            f"The relation of neighbours has shape {relation.shape}; it must be (n, n)."
        )
    check_moments_exist(relation.shape[0])
    sums = relation.sum(axis=1)
    if relation.diagonal().any() or not np.allclose(sums, sums[0], rtol=1e-9, atol=0.0):
        raise InputError(
            "In a relation of neighbours every row adds up to the same number k, and no stimulus "
            f"is its own neighbour; here rows add up to {sums.min():g} to {sums.max():g}, and "
            f"{np.count_nonzero(relation.diagonal())} stimuli are their own."
        )
    return float(np.rint(sums[0]))
