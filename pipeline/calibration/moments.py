"""Exact moments of a relational similarity under random permutations of the stimuli.

Of S = Σ_ij a_ij b_π(i)π(j), π uniform, the moments are small bilinear forms in a few sums over each
relation, the same forms for all pairs (see `pipeline.calibration.graphs`). So a handful of scalars
summarises each representation, and M² pairs take a few outer products. The moments are exact for
every n of at least 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from pipeline.calibration.graphs import permutation_moment
from pipeline.errors import InputError
from pipeline.types import Float64, Floating

ROWS = 128
"""Rows of A² that are held at a time."""

LONGEST_SUM = 2048
"""Terms that are added in the dtype of the relation before the sum goes on in float64."""

U_CENTRED_THIRD = ("ab bc ca", "ab ab ab")
U_CENTRED_FOURTH = ("ab bc cd da", "ab ab cd cd", "ab ab bc bc", "ab ab bc ca", "ab ab ab ab")


@dataclass(frozen=True, eq=False)
class Scalars:
    """Scalars of M representations, one field each, `(M,)`."""

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
    """Scalars of U-centred relations A (symmetric, zero diagonal, zero row sums) for moments.

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
class CouplingScalars(Scalars):
    """Scalars of U-centred relations U and their row effects ℓ for mixed moments.

    Each field is `(M,)`.
    """

    energies: Float64
    """Σ_i ℓ_i Σ_j u_ij²."""
    forms: Float64
    """ℓᵀ U ℓ."""


# Moments


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
    check_moments_exist(n)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    third = permutation_moment(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    fourth = permutation_moment(
        U_CENTRED_FOURTH,
        n,
        *((s.cycles, s.squares**2, s.energies, s.chords, s.fourths) for s in (xs, ys)),
    )
    return variance, third, fourth


def coupling_moments(n: int, xs: CouplingScalars, ys: CouplingScalars) -> tuple[Float64, Float64]:
    """Exact third moments that mix ⟨U, U'_π⟩ with ℓ·ℓ'_π, for all pairs of relations.

    A relation that keeps its row effects (biased CKA, mean-centred RSA) is the sum of three
    orthogonal parts, so that S = ⟨U, U'_π⟩ + ℓ·ℓ'_π + c c', with U the U-centred relation, ℓ a
    vector of zero sum and c a number. The two random terms are uncorrelated, but in the third
    central moment of S they mix: it is that of each term plus 3 E[λ²μ] + 3 E[λμ²], where
    λ = ℓ·ℓ'_π and μ = ⟨U, U'_π⟩,

        E[λ²μ] = 2/(n(n−3)) · B B',                  B = ℓᵀ U ℓ
        E[λμ²] = 4(n−2)/((n−1)(n−3)(n−4)) · R R',    R = Σ_i ℓ_i Σ_j u_ij².

    Parameters
    ----------
    n
        Number of stimuli, at least 4.
    xs, ys
        Scalars of Mx and of My representations.

    Returns
    -------
    l2r, lr2 : numpy.ndarray
        E[λ²μ] and E[λμ²], `(Mx, My)` each.

    Raises
    ------
    InputError
        If `n` is below 4.

    References
    ----------
    Kazi-Aoual et al. 1995, Comput. Stat. Data Anal. 20, for moments of the RV coefficient, which is
    biased CKA, in other invariants.
    """
    check_moments_exist(n)
    l2r = permutation_moment(("a b ab",), n, *((s.forms,) for s in (xs, ys)))
    lr2 = permutation_moment(("a ab ab",), n, *((s.energies,) for s in (xs, ys)))
    return l2r, lr2


# Sums over one relation


def relation_scalars(
    relation: ArrayLike, row_effects: ArrayLike
) -> tuple[UCentredScalars, CouplingScalars]:
    """Summarise one relation, without and with its row effects, from one product U·U.

    Parameters
    ----------
    relation
        U, `(n, n)`, n ≥ 4: the U-centred relation, symmetric, with zero diagonal and row sums.
    row_effects
        ℓ, `(n,)`, with zero sum.

    Returns
    -------
    UCentredScalars
        Of U alone, each field `(1,)`.
    CouplingScalars
        Of U and ℓ, each field `(1,)`.

    Raises
    ------
    InputError
        If `relation` is not a square matrix of at least 4 rows, its diagonal is not zero,
        `row_effects` does not fit, or a sum is not finite. Symmetry and zero row sums are not
        checked: rounding errors of a relation that is zero would fail any test of them.

    Notes
    -----
    n³ multiplications and additions, half of U·U, of which 128 rows are held at a time. Products
    are in the dtype of `relation`, sums in float64. Fourth powers must neither overflow nor
    underflow: scale entries to about one.
    """
    matrix = _checked_relation(relation)
    vector = np.asarray(row_effects, dtype=np.float64)
    if vector.shape != (len(matrix),):
        raise InputError(
            f"The row effects have shape {vector.shape}; a relation of {len(matrix)} stimuli needs "
            f"({len(matrix)},)."
        )
    return _summed(matrix, vector)


def _summed(matrix: Floating, row_effects: Float64) -> tuple[UCentredScalars, CouplingScalars]:
    """Sum up a U-centred matrix and its row effects, from the upper half of U·U."""
    n = len(matrix)
    energies = np.zeros(n)
    ones = np.ones(n, dtype=matrix.dtype)
    buffers = np.empty((2, min(ROWS, n) * n), dtype=matrix.dtype)
    triangles = cubes = cycles = chords = fourths = 0.0
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        height = rows.stop - start
        entries = matrix[rows, start:]
        shape = entries.shape
        paths = np.matmul(matrix[rows], matrix[:, start:], out=_view(buffers[0], shape))
        powers = np.multiply(entries, entries, out=_view(buffers[1], shape))
        energies[rows] += powers @ ones[start:]
        energies[rows.stop :] += ones[rows] @ powers[:, height:]
        triangles += _both_halves(entries, paths)
        cubes += _both_halves(entries, powers)
        cycles += _both_halves(paths, paths)
        chords += _both_halves(powers, paths)
        fourths += _both_halves(powers, powers)
    form = float(row_effects @ (matrix @ row_effects.astype(matrix.dtype)))
    alone = [energies.sum(), triangles, cubes, cycles, energies @ energies, chords, fourths]
    coupled = [float(row_effects @ energies), form]
    if not np.isfinite([*alone, *coupled]).all():
        raise InputError(
            "Sums over a relation are not finite: it holds NaN or infinity, or entries so large "
            "that their fourth powers overflow. Scale it to entries of about one."
        )
    return (
        UCentredScalars(*(np.array([float(value)]) for value in alone)),
        CouplingScalars(*(np.array([float(value)]) for value in coupled)),
    )


def _view(buffer: Floating, shape: tuple[int, ...]) -> Floating:
    return buffer[: math.prod(shape)].reshape(shape)


def _both_halves(x: Floating, y: Floating) -> float:
    """Σ x∘y over rows of symmetric matrices from the diagonal on, mirror image included."""
    height = len(x)
    total = 0.0
    for start in range(0, x.shape[1], LONGEST_SUM):
        columns = slice(start, start + LONGEST_SUM)
        total += 2.0 * float(np.vecdot(x[:, columns], y[:, columns]).sum(dtype=np.float64))
    return total - float(np.vecdot(x[:, :height], y[:, :height]).sum(dtype=np.float64))


# Checks


def check_moments_exist(n: int) -> None:
    """Refuse fewer stimuli than the moments are defined for."""
    if n < 4:
        raise InputError(f"There are {n} stimuli; moments under permutation need at least 4.")


def _checked_relation(relation: ArrayLike) -> Floating:
    """Return the relation as floating-point numbers, square and with a zero diagonal."""
    array = np.asarray(relation)
    kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    matrix: Floating = array.astype(kind, copy=False)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 4:
        raise InputError(
            f"The U-centred relation has shape {matrix.shape}; it must be (n, n), with n at "
            "least 4."
        )
    if np.diagonal(matrix).any():
        raise InputError(
            "The diagonal of a U-centred relation is zero, and this one's is not: set it to zero."
        )
    return matrix
