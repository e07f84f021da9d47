"""Exact moments of the number of nearest neighbours that two representations share by chance.

As `pipeline.calibration.moments`, for 0/1 indicators, which are not symmetric: what is known of one
representation are eight sums over paths of three edges, and what the mean and variance need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.calibration.graphs import pair_up
from pipeline.calibration.moments import Scalars, check_stimuli
from pipeline.errors import InputError

Float64 = NDArray[np.float64]

PATHS = 2**21
"""Paths of two neighbour steps that are held at a time."""

TABLE = 2**25
"""Pairs of stimuli in a table of who is near whom."""

NEIGHBOUR_THIRD = (
    "ab bc ca",
    "ab bc ac",
    "ab ab ab",
    "ab ab ba",
    "ab cb db",
    "ca ab db",
    "ab ba ca",
    "ab ab cb",
)
"""Directed graphs. A column sum, as e_b, is an edge that comes from a vertex of its own."""


@dataclass(frozen=True, eq=False)
class NeighbourScalars(Scalars):
    """What moments need of the 0/1 indicators of k nearest neighbours.

    a_ij is the indicator that j is a neighbour of i, less k/(n−1), with zero diagonal; its rows sum
    to zero and its columns to e, the in-degrees less k. Each field is `(M,)`.
    """

    neighbours: Float64
    """k."""
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


def neighbour_scalars(indices: ArrayLike) -> NeighbourScalars:
    """Summarise one representation's nearest neighbours.

    Parameters
    ----------
    indices
        `(n, k)`: the k nearest other stimuli of each of n ≥ 4 stimuli, in any order.

    Returns
    -------
    NeighbourScalars
        Of one representation, each field `(1,)`.

    Raises
    ------
    InputError
        If `indices` is not a matrix of integers that name k different other stimuli in each row.

    Notes
    -----
    n k² look-ups; about 2 million paths of two steps are held at a time.
    """
    lists = _checked_neighbours(indices)
    n, k = lists.shape
    mutual = np.empty(n, dtype=np.int64)
    cycles = transitive = 0
    size = max(1, min(n, PATHS // k**2, TABLE // n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        own = np.arange(rows.stop - start)
        near, back = np.zeros((2, len(own), n), dtype=np.bool_)  # of these rows, and to them
        near[own[:, None], lists[rows]] = True
        of, slot = np.nonzero((lists >= start) & (lists < rows.stop))
        back[lists[of, slot] - start, of] = True
        paths = lists[lists[rows]].reshape(len(own), -1)
        cycles += int(np.count_nonzero(back[own[:, None], paths]))
        transitive += int(np.count_nonzero(near[own[:, None], paths]))
        mutual[rows] = back[own[:, None], lists[rows]].sum(axis=1)
    degrees = np.bincount(lists.ravel(), minlength=n)
    excess = degrees - k

    # Each factor is an indicator less p off the diagonal; the indicators' own sums are integers.
    p = k / (n - 1)
    both, squared = int(mutual.sum()), float(excess @ excess)
    level = 3 * p**2 * (n - 2) * n * k + k * (p**2 - k**2)
    values = {
        "neighbours": k,
        "mutual": both - p * n * k,
        "degree_squares": squared,
        "cycles": cycles + 3 * p * (both - n * k**2) + level,
        "transitive": transitive
        + p * (both + 2 * n * k - 2 * n * k**2 - degrees @ degrees)
        + level,
        "cubes": n * (k * (1 - p) ** 3 - (n - 1 - k) * p**3),
        "mutual_cubes": (1 - 2 * p) * (both - p * n * k),
        "degree_cubes": float((excess**3).sum()),
        "degree_form": float(excess @ excess[lists].sum(axis=1)) + p * squared,
        "degree_mutual": float(mutual @ excess) - p * squared,
        "degree_entries": (1 - 2 * p) * squared,
    }
    return NeighbourScalars(**{name: np.array([float(v)]) for name, v in values.items()})


def neighbour_moments(
    n: int, xs: NeighbourScalars, ys: NeighbourScalars
) -> tuple[Float64, Float64, Float64]:
    """Exact moments of Σ_ij A_ij B_π(i)π(j), the neighbours shared, for all pairs of indicators.

    The mean is n k k'/(n−1); the variance is that of `neighbour_grams` with a relation and itself;
    the third central moment is a form in eight sums, those of three edges in `NeighbourScalars`.

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
    check_stimuli(n)
    mean = n / (n - 1) * np.outer(xs.neighbours, ys.neighbours)
    variance = np.zeros_like(mean)
    for weight, x, y in zip(
        neighbour_weights(n), _own_grams(n, xs), _own_grams(n, ys), strict=True
    ):
        variance += weight * np.outer(x, y)
    third = pair_up(NEIGHBOUR_THIRD, n, _three_edges(xs), _three_edges(ys), directed=True)
    return mean, variance, third


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
    check_stimuli(n)
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
    check_stimuli(n)
    return 2 / (n * (n - 3)), 2 / ((n - 1) * (n - 2)), (n - 1) / (n * (n - 2)) ** 2


def _own_grams(n: int, scalars: NeighbourScalars) -> tuple[Float64, Float64, Float64]:
    """Split every relation's product with itself as `neighbour_grams` does."""
    k = scalars.neighbours
    swapped = scalars.mutual + n * k**2 / (n - 1)
    return neighbour_grams(n, k, n * k, swapped, scalars.degree_squares)


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
    ]


def _checked_neighbours(indices: ArrayLike) -> NDArray[np.int64]:
    """Neighbours, in order of index within each row."""
    array = np.asarray(indices)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not 1 <= array.shape[1] < len(array):
        raise InputError(
            f"Neighbours have shape {array.shape} and dtype {array.dtype}; give integers (n, k), "
            "with k from 1 to n−1."
        )
    check_stimuli(len(array))
    lists = np.sort(array.astype(np.int64), axis=1)
    own = np.arange(len(lists))[:, None]
    wrong = (lists == own).any() or lists[:, 0].min() < 0 or lists[:, -1].max() >= len(lists)
    if wrong or (np.diff(lists, axis=1) == 0).any():
        raise InputError(
            f"Every row of neighbours must name different stimuli from 0 to {len(lists) - 1}, and "
            "not its own."
        )
    return lists
