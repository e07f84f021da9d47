"""Exact moments of a relational similarity under random permutations of the stimuli.

Of S = Σ_ij a_ij b_π(i)π(j), π uniform, the k-th moment expands into sums over k edges. Sort these
by which ends of edges coincide, a partition σ of the 2k ends into m vertices; then π takes the m
vertices of a to any m of b alike:

    E[S^k] = Σ_σ p_σ(a) p_σ(b) / (n)_m,    (n)_m = n(n−1)…(n−m+1),

with p_σ the sum over *distinct* vertices. By Möbius inversion on the lattice of partitions,

    p_σ = Σ_{τ ≥ σ} μ(σ, τ) P_τ,    μ = ∏ over vertices of τ of (−1)^(s−1) (s−1)!,

where s vertices of σ become that one of τ, and P_τ is the sum over *free* vertices. For a relation
whose rows sum to zero nearly all P vanish: wherever a vertex has but one end. The few that are left
are *graphs*, written here as their edges (``"ab bc ca"`` is Σ_abc a_ab a_bc a_ca = tr A³), and the
moment is a small bilinear form in their sums, the same for all pairs of relations. So what is known
of one representation is a handful of scalars, and M² pairs take two small matrix products.

The forms are derived as said above, in exact arithmetic, on first use (the fourth moment takes a
tenth of a second), and hold for every n of at least 4.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache, lru_cache
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse

from pipeline.errors import InputError

Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]
Edges = tuple[tuple[Any, ...], ...]

ROWS = 256
"""Rows of A² that are held at a time."""

PATHS = 2**21
"""Paths of two neighbour steps that are held at a time."""

TOLERANCE = 0.1
"""How far from zero rows may sum, relative to the largest entry.

Float32 leaves a hundredth for 100,000 stimuli; a centred Gram whose diagonal was merely deleted has
a row that sums to more than its largest entry.
"""

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
class UCentredScalars:
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
class BiasedScalars:
    """What moments need of doubly centred relations W, symmetric, with a diagonal.

    With t = tr W and d = diag W − t/n, W is the sum of three orthogonal parts: t/(n−1) (I − 11ᵀ/n),
    one that is linear in d, and the U-centred U. Each field is `(M,)`.
    """

    traces: Float64
    """tr W."""
    squares: Float64
    """Σ u²."""
    triangles: Float64
    """tr U³."""
    cubes: Float64
    """Σ u³."""
    diagonal_squares: Float64
    """Σ d²."""
    diagonal_cubes: Float64
    """Σ d³."""
    diagonal_energies: Float64
    """Σ_i d_i Σ_j u_ij²."""
    diagonal_form: Float64
    """dᵀ U d."""


@dataclass(frozen=True, eq=False)
class NeighbourScalars:
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


Scalars = TypeVar("Scalars", UCentredScalars, BiasedScalars, NeighbourScalars)


def stack_scalars(parts: Sequence[Scalars]) -> Scalars:
    """Join the scalars of several representations.

    Parameters
    ----------
    parts
        Of one class, at least one.

    Returns
    -------
    UCentredScalars or BiasedScalars or NeighbourScalars
        Of the class of the parts, which follow one another in order.

    Raises
    ------
    InputError
        If there are no parts.
    """
    if not parts:
        raise InputError("There are no scalars to join; give those of at least 1 representation.")
    kind = type(parts[0])
    columns = [np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)]
    return kind(*columns)


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
        If `relation` is not a square matrix of at least 4 rows, its diagonal is not zero, or its
        rows do not sum to zero. Symmetry is taken on trust.

    Notes
    -----
    n³ multiplications and additions, half of A·A, of which 256 rows are held at a time. Fourth
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
    Mantel 1967, Cancer Research 27, for mean and variance; the higher moments follow in the same
    way (see the module).
    """
    _check_stimuli(n)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    third = _pair_up(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    fourth = _pair_up(
        U_CENTRED_FOURTH,
        n,
        *((s.cycles, s.squares**2, s.energies, s.chords, s.fourths) for s in (xs, ys)),
    )
    return variance, third, fourth


# Doubly centred relations


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
        If `relation` is not a square matrix of at least 4 rows that sum to zero.

    Notes
    -----
    Costs a copy of W and what `u_centred_scalars` does. If U, the centred diagonal and the trace
    are at hand, `gram_scalars` gives both from one product.
    """
    matrix = _checked_relation(relation, dtype, hollow=False).copy()
    n = len(matrix)
    diagonal = np.diagonal(matrix).astype(np.float64)
    trace = float(diagonal.sum())
    shift = (diagonal / (n - 2) - trace / (2 * (n - 1) * (n - 2))).astype(matrix.dtype)
    matrix += shift[:, None]
    matrix += shift
    np.fill_diagonal(matrix, 0.0)
    return gram_scalars(matrix, diagonal - trace / n, trace)[1]


def gram_scalars(
    relation: ArrayLike, diagonal: ArrayLike, trace: float, *, dtype: DTypeLike | None = None
) -> tuple[UCentredScalars, BiasedScalars]:
    """Summarise one relation, both U-centred and doubly centred, from one product.

    Parameters
    ----------
    relation
        U, `(n, n)`, n ≥ 4: the U-centred relation, symmetric, with zero diagonal and row sums.
    diagonal
        d, `(n,)`: the diagonal of the doubly centred relation, less its mean.
    trace
        Sum of the diagonal of the doubly centred relation.
    dtype
        Precision of the product U·U, the dtype of `relation` if not given. All sums are float64.

    Returns
    -------
    UCentredScalars
        Of one representation, each field `(1,)`.
    BiasedScalars
        The same of U + linear part + trace.

    Raises
    ------
    InputError
        As `u_centred_scalars`, and if `diagonal` does not fit.
    """
    matrix = _checked_relation(relation, dtype, hollow=True)
    centred = np.asarray(diagonal, dtype=np.float64)
    if centred.shape != (len(matrix),):
        raise InputError(
            f"The diagonal has shape {centred.shape}; a relation of {len(matrix)} stimuli needs "
            f"({len(matrix)},)."
        )
    return _summed(matrix, centred, trace)


def biased_moments(
    n: int, xs: BiasedScalars, ys: BiasedScalars
) -> tuple[Float64, Float64, Float64]:
    """Exact moments of Σ_ij w_ij w'_π(i)π(j) for all pairs of doubly centred relations.

    With U, d and t as in `BiasedScalars` and c = n/(n−2),

        S = ⟨U, U'_π⟩ + c d·d'_π + t t'/(n−1),

    whose first two terms are uncorrelated. So the mean is t t'/(n−1), the variance

        2 ⟨U,U⟩⟨U',U'⟩/(n(n−3)) + c² (d·d)(d'·d')/(n−1),

    and the third central moment is that of ⟨U, U'_π⟩, as in `u_centred_moments`, plus

        3c  · 4(n−2)/((n−1)(n−3)(n−4)) · R R',   R = Σ_i d_i Σ_j u_ij²
        3c² · 2/(n(n−3)) · B B',                 B = dᵀ U d
        c³  · n/((n−1)(n−2)) · D D',             D = Σ d³.

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
    Kazi-Aoual et al. 1995, Comput. Stat. Data Anal. 20, for mean, variance and (in other
    invariants) third moment of the RV coefficient, which is biased CKA.
    """
    _check_stimuli(n)
    c = n / (n - 2)
    mean = np.outer(xs.traces, ys.traces) / (n - 1)
    variance = 2 / (n * (n - 3)) * np.outer(xs.squares, ys.squares)
    variance += c**2 / (n - 1) * np.outer(xs.diagonal_squares, ys.diagonal_squares)
    third = _pair_up(U_CENTRED_THIRD, n, *((s.triangles, s.cubes) for s in (xs, ys)))
    third += 3 * c * _pair_up(("a ab ab",), n, *((s.diagonal_energies,) for s in (xs, ys)))
    third += 3 * c**2 * _pair_up(("a b ab",), n, *((s.diagonal_form,) for s in (xs, ys)))
    third += c**3 * _pair_up(("a a a",), n, *((s.diagonal_cubes,) for s in (xs, ys)))
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
    n k² steps, on integers; about 2 million paths of two steps are held at a time.
    """
    lists = _checked_neighbours(indices)
    n, k = lists.shape
    names = lists.astype(np.int32)
    steps = np.arange(0, n * k + 1, k)
    adjacency = sparse.csr_array((np.ones(n * k, dtype=np.int64), names.ravel(), steps), (n, n))
    reverse = adjacency.T.tocsr()
    cycles = transitive = 0
    size = max(1, PATHS // k**2)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        paths = adjacency[rows] @ adjacency
        cycles += int(paths.multiply(reverse[rows]).sum())
        transitive += int(paths.multiply(adjacency[rows]).sum())
    mutual = np.asarray(adjacency.multiply(reverse).sum(axis=1)).ravel()
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
        "degree_form": float(excess @ (adjacency @ excess)) + p * squared,
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
    Huh et al. 2024 for mutual k-NN; Mantel 1967, Cancer Research 27, for mean and variance.
    """
    _check_stimuli(n)
    mean = n / (n - 1) * np.outer(xs.neighbours, ys.neighbours)
    variance = np.zeros_like(mean)
    for weight, x, y in zip(
        neighbour_weights(n), _own_grams(n, xs), _own_grams(n, ys), strict=True
    ):
        variance += weight * np.outer(x, y)
    third = _pair_up(NEIGHBOUR_THIRD, n, _three_edges(xs), _three_edges(ys), directed=True)
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
    """The `neighbour_grams` of every relation with itself."""
    k = scalars.neighbours
    swapped = scalars.mutual + n * k**2 / (n - 1)
    return neighbour_grams(n, k, n * k, swapped, scalars.degree_squares)


def _three_edges(scalars: NeighbourScalars) -> list[Float64]:
    """The sums in the order of `NEIGHBOUR_THIRD`."""
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
    matrix: Floating, diagonal: Float64, trace: float
) -> tuple[UCentredScalars, BiasedScalars]:
    """Every sum over a U-centred matrix and a centred diagonal, from the upper half of A·A."""
    n = len(matrix)
    energies = np.zeros(n)
    triangles = cubes = cycles = chords = fourths = form = 0.0
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        height = rows.stop - start
        paths = (matrix[rows] @ matrix[:, start:]).astype(np.float64)
        entries = matrix[rows, start:].astype(np.float64)
        powers = entries * entries
        energies[rows] += powers.sum(axis=1)
        energies[rows.stop :] += powers[:, height:].sum(axis=0)
        triangles += _both_halves(entries, paths)
        cubes += _both_halves(entries, powers)
        cycles += _both_halves(paths, paths)
        chords += _both_halves(powers, paths)
        fourths += _both_halves(powers, powers)
        form += _both_halves(entries, np.outer(diagonal[rows], diagonal[start:]))
    squares = energies.sum()
    u_centred = [squares, triangles, cubes, cycles, energies @ energies, chords, fourths]
    d = diagonal
    biased = [trace, squares, triangles, cubes, d @ d, (d**3).sum(), d @ energies, form]
    return (
        UCentredScalars(*(np.array([float(value)]) for value in u_centred)),
        BiasedScalars(*(np.array([float(value)]) for value in biased)),
    )


def _both_halves(x: Float64, y: Float64) -> float:
    """Σ x∘y over rows of symmetric matrices from the diagonal on, and over what mirrors them."""
    height = len(x)
    own = float(np.vdot(x[:, :height], y[:, :height]))
    return own + 2 * float(np.vdot(x[:, height:], y[:, height:]))


# Bilinear forms


def _pair_up(
    graphs: tuple[str, ...],
    n: int,
    xs: Sequence[Float64],
    ys: Sequence[Float64],
    *,
    directed: bool = False,
) -> Float64:
    """E[∏ over edges] for all pairs, `(Mx, My)`, from the graphs' sums `(Mx,)` and `(My,)`."""
    return np.asarray(np.stack(xs, axis=1) @ _form(graphs, int(n), directed) @ np.stack(ys))


@lru_cache(maxsize=64)
def _form(graphs: tuple[str, ...], n: int, directed: bool) -> Float64:
    """Coefficients of the products of graphs' sums for n stimuli, exact until the last rounding."""
    form = [[Fraction(0)] * len(graphs) for _ in graphs]
    for n_vertices, table in _tables(graphs, directed).items():
        if n_vertices > n:
            continue  # there are no so many distinct stimuli
        for row, counts in zip(form, table, strict=True):
            for j, count in enumerate(counts):
                row[j] += Fraction(count, math.perm(n, n_vertices))
    return np.array([[float(value) for value in row] for row in form])


@cache
def _tables(graphs: tuple[str, ...], directed: bool) -> dict[int, list[list[int]]]:
    """Σ over partitions σ into m vertices of the products of graphs' coefficients, by m.

    An edge of one letter is a factor with one index, such as d_i. Graphs that are not among
    `graphs` have sum zero.
    """
    sizes = [len(edge) for edge in graphs[0].split()]
    cuts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    places = {_canonical(tuple(map(tuple, g.split())), directed): i for i, g in enumerate(graphs)}
    largest = max(len(set(g) - {" "}) for g in graphs)
    coefficients: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0] * len(graphs))
    for merged in _partitions(cuts[-1]):
        if max(merged) >= largest:
            continue
        edges = tuple(merged[i:j] for i, j in zip(cuts, cuts[1:], strict=False))
        place = places.get(_canonical(tuple(sorted(edges)), directed))
        if place is None:
            continue
        for split, mobius in _refinements(merged):
            coefficients[split][place] += mobius
    tables: dict[int, list[list[int]]] = {}
    for split, values in coefficients.items():
        table = tables.setdefault(max(split) + 1, [[0] * len(graphs) for _ in graphs])
        for row, x in zip(table, values, strict=True):
            for j, y in enumerate(values):
                row[j] += x * y
    return tables


def _partitions(size: int) -> Iterator[tuple[int, ...]]:
    """Set partitions of `range(size)`: the block of each element, blocks in order of appearance."""
    if size == 0:
        yield ()
        return
    for first in _partitions(size - 1):
        for block in range(max(first, default=-1) + 2):
            yield (*first, block)


def _refinements(merged: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """All partitions that refine one, with the Möbius function of the two."""
    blocks = [[i for i, b in enumerate(merged) if b == block] for block in range(max(merged) + 1)]
    for parts in product(*(list(_partitions(len(block))) for block in blocks)):
        labels: list[tuple[int, int]] = [(0, 0)] * len(merged)
        mobius = 1
        for number, (block, part) in enumerate(zip(blocks, parts, strict=True)):
            mobius *= (-1) ** max(part) * math.factorial(max(part))
            for element, label in zip(block, part, strict=True):
                labels[element] = (number, label)
        names: dict[tuple[int, int], int] = {}
        yield tuple(names.setdefault(label, len(names)) for label in labels), mobius


@cache
def _canonical(edges: Edges, directed: bool) -> Edges:
    """The same edges for all graphs that differ in names of vertices only."""
    vertices = sorted({vertex for edge in edges for vertex in edge})
    candidates = []
    for order in permutations(range(len(vertices))):
        names = dict(zip(vertices, order, strict=True))
        renamed = [tuple(names[vertex] for vertex in edge) for edge in edges]
        candidates.append(tuple(sorted(e if directed else tuple(sorted(e)) for e in renamed)))
    return min(candidates)


# Checks


def _check_stimuli(n: int) -> None:
    if n < 4:
        raise InputError(f"There are {n} stimuli; moments under permutation need at least 4.")


def _checked_relation(relation: ArrayLike, dtype: DTypeLike | None, *, hollow: bool) -> Floating:
    """The relation as a matrix of floating-point numbers; `hollow` if its diagonal must be zero."""
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
    excess = float(np.abs(matrix.sum(axis=1, dtype=np.float64)).max())
    largest = float(max(matrix.max(), -matrix.min()))
    if not excess <= TOLERANCE * largest:  # NaN is caught too
        raise InputError(
            f"A row of the {name} relation sums to {excess:.3g} in size, with a largest entry of "
            f"{largest:.3g}; rows must sum to zero. Centre the relation first."
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
