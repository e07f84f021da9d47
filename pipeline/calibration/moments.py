"""Exact moments of a relational similarity under random permutations of the stimuli.

Of S = Σ_ij a_ij b_π(i)π(j), π uniform, the moments are small bilinear forms in a few sums over each
relation, the same forms for all pairs (see `pipeline.calibration.graphs`). So what is known of one
representation is a handful of scalars, and M² pairs take a few outer products. They are exact
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

U_CENTRED_THIRD = ("ab bc ca", "ab ab ab")
U_CENTRED_FOURTH = ("ab bc cd da", "ab ab cd cd", "ab ab bc bc", "ab ab bc ca", "ab ab ab ab")


@dataclass(frozen=True, eq=False)
class Scalars:
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
class UCentredScalars(Scalars):
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
class BiasedScalars(Scalars):
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
    check_stimuli(n)
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
    check_stimuli(n)
    mean = np.outer(xs.constants, ys.constants)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    variance += np.outer(xs.linear_squares, ys.linear_squares) / (n - 1)
    third = pair_up(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    third += pair_up(("a a a",), n, *((s.linear_cubes,) for s in (xs, ys)))
    twice, once = biased_meetings(n, xs, ys)
    return mean, variance, third + 3 * (twice + once)


def biased_meetings(n: int, xs: BiasedScalars, ys: BiasedScalars) -> tuple[Float64, Float64]:
    """Exact third moments in which both random terms of `biased_moments` occur.

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations.

    Returns
    -------
    twice, once : numpy.ndarray
        E[λ²μ] and E[λμ²] with λ = ℓ·ℓ'_π and μ = ⟨U, U'_π⟩, `(Mx, My)` each: a third of the terms
        with B B' and with R R' there.

    Raises
    ------
    InputError
        If `n` is below 4.
    """
    check_stimuli(n)
    twice = pair_up(("a b ab",), n, *((s.linear_form,) for s in (xs, ys)))
    once = pair_up(("a ab ab",), n, *((s.linear_energies,) for s in (xs, ys)))
    return twice, once


# Sums over one relation


def _summed(
    matrix: Floating, linear: Float64, constant: float
) -> tuple[UCentredScalars, BiasedScalars]:
    """Sum up a U-centred matrix and what is beside it, from the upper half of A·A."""
    n = len(matrix)
    energies = np.zeros(n)
    ones = np.ones(n, dtype=matrix.dtype)
    rooms = np.empty((2, min(ROWS, n) * n), dtype=matrix.dtype)
    triangles = cubes = cycles = chords = fourths = 0.0
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        height = rows.stop - start
        entries = matrix[rows, start:]
        shape = entries.shape
        paths = np.matmul(matrix[rows], matrix[:, start:], out=_room(rooms[0], shape))
        powers = np.multiply(entries, entries, out=_room(rooms[1], shape))
        energies[rows] += powers @ ones[start:]
        energies[rows.stop :] += ones[rows] @ powers[:, height:]
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


def check_stimuli(n: int) -> None:
    """Refuse so few stimuli that moments have no form."""
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
