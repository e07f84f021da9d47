"""Exact moments of a relational similarity under random permutations of the stimuli.

Of S = Σ_ij a_ij b_π(i)π(j), π uniform, the moments are small bilinear forms in a few sums over each
relation, the same forms for all pairs (see `pipeline.calibration.graphs`). So what is known of one
representation is a handful of scalars, and M² pairs take two small matrix products. They are exact
for every n of at least 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipeline.calibration.graphs import pair_up
from pipeline.errors import InputError

Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]

ROWS = 128
"""Rows of A² that are held at a time."""

LONGEST_SUM = 2048
"""Numbers that are added in the precision of the relation, before float64 takes over."""

PATHS = 2**21
"""Paths of two neighbour steps that are held at a time."""

TABLE = 2**25
"""Pairs of stimuli in a table of who is near whom."""

U_CENTRED_THIRD = ("ab bc ca", "ab ab ab")
U_CENTRED_FOURTH = ("ab bc cd da", "ab ab cd cd", "ab ab bc bc", "ab ab bc ca", "ab ab ab ab")
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
class _Scalars:
    """Numbers about representations, a field each, `(M,)`."""

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Join the scalars of several representations.

        Parameters
        ----------
        parts
            At least one, of this class.

        Returns
        -------
        Self
            All representations of the parts, in order.

        Raises
        ------
        InputError
            If there are no parts.
        """
        if not parts:
            raise InputError("There are no scalars to join; give at least those of one relation.")
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, eq=False)
class UCentredScalars(_Scalars):
    """What moments need of U-centred relations A: symmetric, zero diagonal, zero row sums.

    Each is `(M,)`, one value for each representation.
    """

    squares: Float64
    """Σ a²."""
    triangles: Float64
    """tr A³."""
    cubes: Float64
    """Σ a³."""
    cycles: Float64
    """tr A⁴."""
    energies: Float64
    """Σ_i (Σ_j a_ij²)²."""
    chords: Float64
    """Σ_ij a_ij² (A²)_ij."""
    fourths: Float64
    """Σ a⁴."""


@dataclass(frozen=True, eq=False)
class BiasedScalars(_Scalars):
    """What moments need of relations that keep their row effects: biased CKA, mean-centred RSA.

    Such a relation is the sum of three orthogonal parts, of which products are taken apart:

        S = ⟨U, U'⟩ + ℓ·ℓ' + c c',

    with U the U-centred relation, ℓ a vector of zero sum and c a number. Each field is `(M,)`.
    """

    constants: Float64
    """c."""
    squares: Float64
    """Σ u²."""
    triangles: Float64
    """tr U³."""
    cubes: Float64
    """Σ u³."""
    linear_squares: Float64
    """Σ ℓ²."""
    linear_cubes: Float64
    """Σ ℓ³."""
    linear_energies: Float64
    """Σ_i ℓ_i Σ_j u_ij²."""
    linear_form: Float64
    """ℓᵀ U ℓ."""


@dataclass(frozen=True, eq=False)
class NeighbourScalars(_Scalars):
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


# U-centred relations


def u_centred_scalars(relation: ArrayLike, *, dtype: DTypeLike | None = None) -> UCentredScalars:
    """Summarise one U-centred relation.

    Parameters
    ----------
    relation
        A, `(n, n)`, n ≥ 4: symmetric, with zero diagonal and zero row sums.
    dtype
        Precision of the product A·A, the dtype of `relation` if not given. All sums are float64.

    Returns
    -------
    UCentredScalars
        Of one representation, each field `(1,)`.

    Raises
    ------
    InputError
        If `relation` is not a square matrix of at least 4 rows, its diagonal is not zero, or a sum
        is not finite. Symmetry and zero row sums are taken on trust: of a relation that is zero but
        for rounding they could not be asked.

    Notes
    -----
    n³ multiplications and additions, half of A·A, of which 128 rows are held at a time. Fourth
    powers must neither overflow nor underflow: scale entries to about one.

    Examples
    --------
    >>> square = [[0, 1, -1, 0], [1, 0, 0, -1], [-1, 0, 0, 1], [0, -1, 1, 0]]
    >>> scalars = u_centred_scalars(square)
    >>> float(scalars.squares[0]), float(scalars.cycles[0])
    (8.0, 32.0)
    """
    matrix = _checked_relation(relation, dtype, hollow=True)
    return _summed(matrix, np.zeros(len(matrix)), 0.0)[0]


def u_centred_moments(
    n: int, xs: UCentredScalars, ys: UCentredScalars
) -> tuple[Float64, Float64, Float64]:
    """Exact moments of Σ_ij a_ij b_π(i)π(j) for all pairs of U-centred relations.

    With V = Σa², T = tr A³, U = Σa³ and primes for B, the mean is 0 and

        E[S²] = 2 V V' / (n(n−3))
        E[S³] = [8(n³−9n²+26n−22) T T' − 8(3n²−15n+16)(T U' + U T')
                 + 4(n⁴−8n³+19n²−4n−16) U U'] / (n)_6;

    the fourth moment is a form in (tr A⁴, V², Σ_i(Σ_j a_ij²)², Σ a_ij²(A²)_ij, Σ a⁴).

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations.

    Returns
    -------
    variance, third, fourth : numpy.ndarray
        Central moments, `(Mx, My)` each.

    Raises
    ------
    InputError
        If `n` is below 4.

    References
    ----------
    Mantel 1967, Cancer Research 27, for mean and variance; Siemiatycki 1978, J. Stat. Comput.
    Simul. 7, for the third and fourth moments of any relations.
    """
    _check_stimuli(n)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    third = pair_up(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    fourth = pair_up(
        U_CENTRED_FOURTH,
        n,
        *((s.cycles, s.squares**2, s.energies, s.chords, s.fourths) for s in (xs, ys)),
    )
    return variance, third, fourth


# Relations that keep their row effects


def biased_scalars(relation: ArrayLike, *, dtype: DTypeLike | None = None) -> BiasedScalars:
    """Summarise one doubly centred relation.

    Parameters
    ----------
    relation
        W, `(n, n)`, n ≥ 4: symmetric with zero row sums, and a diagonal.
    dtype
        Precision of the product U·U, the dtype of `relation` if not given. All sums are float64.

    Returns
    -------
    BiasedScalars
        Of one representation, each field `(1,)`.

    Raises
    ------
    InputError
        If `relation` is not a square matrix of at least 4 rows, or a sum is not finite. Symmetry
        and zero row sums are taken on trust.

    Notes
    -----
    With w = diag W and t = tr W, c = t/√(n−1) and ℓ = √(n/(n−2)) (w − t/n). Costs a copy of W and
    what `u_centred_scalars` does. If U, ℓ and c are at hand, `split_scalars` is the way.
    """
    matrix = _checked_relation(relation, dtype, hollow=False).copy()
    n = len(matrix)
    diagonal = np.diagonal(matrix).astype(np.float64)
    trace = float(diagonal.sum())
    shift = (diagonal / (n - 2) - trace / (2 * (n - 1) * (n - 2))).astype(matrix.dtype)
    matrix += shift[:, None]
    matrix += shift
    np.fill_diagonal(matrix, 0.0)
    return split_scalars(
        matrix, math.sqrt(n / (n - 2)) * (diagonal - trace / n), trace / math.sqrt(n - 1)
    )[1]


def split_scalars(
    relation: ArrayLike, linear: ArrayLike, constant: float, *, dtype: DTypeLike | None = None
) -> tuple[UCentredScalars, BiasedScalars]:
    """Summarise one relation, without and with its row effects, from one product.

    Parameters
    ----------
    relation
        U, `(n, n)`, n ≥ 4: the U-centred relation, symmetric, with zero diagonal and row sums.
    linear
        ℓ, `(n,)`, with zero sum.
    constant
        c.
    dtype
        Precision of the product U·U, the dtype of `relation` if not given. All sums are float64.

    Returns
    -------
    UCentredScalars
        Of U alone, each field `(1,)`.
    BiasedScalars
        Of U, ℓ and c, each field `(1,)`.

    Raises
    ------
    InputError
        As `u_centred_scalars`, and if `linear` does not fit.
    """
    matrix = _checked_relation(relation, dtype, hollow=True)
    vector = np.asarray(linear, dtype=np.float64)
    if vector.shape != (len(matrix),):
        raise InputError(
            f"The linear part has shape {vector.shape}; a relation of {len(matrix)} stimuli needs "
            f"({len(matrix)},)."
        )
    return _summed(matrix, vector, constant)


def biased_moments(
    n: int, xs: BiasedScalars, ys: BiasedScalars
) -> tuple[Float64, Float64, Float64]:
    """Exact moments of ⟨U, U'_π⟩ + ℓ·ℓ'_π + c c' for all pairs of relations.

    For doubly centred relations this is Σ_ij w_ij w'_π(i)π(j). The first two terms are
    uncorrelated: the mean is c c' and the variance

        2 ⟨U,U⟩⟨U',U'⟩/(n(n−3)) + (ℓ·ℓ)(ℓ'·ℓ')/(n−1).

    In the third central moment they meet. It is that of ⟨U, U'_π⟩, as in `u_centred_moments`, plus

        12(n−2)/((n−1)(n−3)(n−4)) · R R',   R = Σ_i ℓ_i Σ_j u_ij²
        6/(n(n−3)) · B B',                  B = ℓᵀ U ℓ
        n/((n−1)(n−2)) · D D',              D = Σ ℓ³.

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations.

    Returns
    -------
    mean, variance, third : numpy.ndarray
        Mean and central moments, `(Mx, My)` each.

    Raises
    ------
    InputError
        If `n` is below 4.

    References
    ----------
    Kazi-Aoual et al. 1995, Comput. Stat. Data Anal. 20, for moments of the RV coefficient, which is
    biased CKA, in other invariants.
    """
    _check_stimuli(n)
    mean = np.outer(xs.constants, ys.constants)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    variance += np.outer(xs.linear_squares, ys.linear_squares) / (n - 1)
    third = pair_up(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    third += 3 * pair_up(("a ab ab",), n, *((s.linear_energies,) for s in (xs, ys)))
    third += 3 * pair_up(("a b ab",), n, *((s.linear_form,) for s in (xs, ys)))
    third += pair_up(("a a a",), n, *((s.linear_cubes,) for s in (xs, ys)))
    return mean, variance, third


# Neighbour indicators


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
    _check_stimuli(n)
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
    _check_stimuli(n)
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
    _check_stimuli(n)
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


# Sums over one relation


def _summed(
    matrix: Floating, linear: Float64, constant: float
) -> tuple[UCentredScalars, BiasedScalars]:
    """Sum up a U-centred matrix and what is beside it, from the upper half of A·A."""
    n = len(matrix)
    energies = np.zeros(n)
    rooms = np.empty((2, min(ROWS, n) * n), dtype=matrix.dtype)
    triangles = cubes = cycles = chords = fourths = 0.0
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        height = rows.stop - start
        entries = matrix[rows, start:]
        shape = entries.shape
        paths = np.matmul(matrix[rows], matrix[:, start:], out=_room(rooms[0], shape))
        powers = np.multiply(entries, entries, out=_room(rooms[1], shape))
        energies[rows] += powers.sum(axis=1, dtype=np.float64)
        energies[rows.stop :] += powers[:, height:].sum(axis=0, dtype=np.float64)
        triangles += _both_halves(entries, paths)
        cubes += _both_halves(entries, powers)
        cycles += _both_halves(paths, paths)
        chords += _both_halves(powers, paths)
        fourths += _both_halves(powers, powers)
    form = float(linear @ (matrix @ linear.astype(matrix.dtype)))
    squares = energies.sum()
    u_centred = [squares, triangles, cubes, cycles, energies @ energies, chords, fourths]
    of_linear = [linear @ linear, (linear**3).sum(), linear @ energies, form]
    biased = [constant, squares, triangles, cubes, *of_linear]
    if not np.isfinite([*u_centred, *biased]).all():
        raise InputError(
            "Sums over a relation are not finite: it holds NaN or infinity, or entries so large "
            "that their fourth powers overflow. Scale it to entries of about one."
        )
    return (
        UCentredScalars(*(np.array([float(value)]) for value in u_centred)),
        BiasedScalars(*(np.array([float(value)]) for value in biased)),
    )


def _room(room: Floating, shape: tuple[int, ...]) -> Floating:
    return room[: math.prod(shape)].reshape(shape)


def _both_halves(x: Floating, y: Floating) -> float:
    """Σ x∘y over rows of symmetric matrices from the diagonal on, and over what mirrors them."""
    height = len(x)
    total = 0.0
    for start in range(0, x.shape[1], LONGEST_SUM):
        columns = slice(start, start + LONGEST_SUM)
        total += 2.0 * float(np.vecdot(x[:, columns], y[:, columns]).sum(dtype=np.float64))
    return total - float(np.vecdot(x[:, :height], y[:, :height]).sum(dtype=np.float64))


# Checks


def _check_stimuli(n: int) -> None:
    if n < 4:
        raise InputError(f"There are {n} stimuli; moments under permutation need at least 4.")


def _checked_relation(relation: ArrayLike, dtype: DTypeLike | None, *, hollow: bool) -> Floating:
    """Return the relation as floating-point numbers; if `hollow`, its diagonal must be zero."""
    name = "U-centred" if hollow else "doubly centred"
    array = np.asarray(relation)
    kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    matrix: Floating = array.astype(kind if dtype is None else dtype, copy=False)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 4:
        raise InputError(
            f"The {name} relation has shape {matrix.shape}; it must be (n, n), with n at least 4."
        )
    if hollow and np.diagonal(matrix).any():
        raise InputError(
            "The diagonal of a U-centred relation is zero, and this one's is not: set it to zero."
        )
    return matrix


def _checked_neighbours(indices: ArrayLike) -> NDArray[np.int64]:
    """Neighbours, in order of index within each row."""
    array = np.asarray(indices)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not 1 <= array.shape[1] < len(array):
        raise InputError(
            f"Neighbours have shape {array.shape} and dtype {array.dtype}; give integers (n, k), "
            "with k from 1 to n−1."
        )
    _check_stimuli(len(array))
    lists = np.sort(array.astype(np.int64), axis=1)
    own = np.arange(len(lists))[:, None]
    wrong = (lists == own).any() or lists[:, 0].min() < 0 or lists[:, -1].max() >= len(lists)
    if wrong or (np.diff(lists, axis=1) == 0).any():
        raise InputError(
            f"Every row of neighbours must name different stimuli from 0 to {len(lists) - 1}, and "
            "not its own."
        )
    return lists
