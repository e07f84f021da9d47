"""Nearest neighbours, exact to float64 at the speed of float32.

Three rankings, one form: with z the centred rows (of unit length before centring, for cosine) and
m their former mean, stimulus j is near i when z_i·z_j + b_j is large, where

    inner product, cosine:  b_j = z_j·m
    Euclidean:              b_j = −|z_j|²/2

(omitted terms, such as z_i·m + m·m, are the same for all j). So an offset shared by all stimuli
does not cost the digits of float32. Where the k-th and the next similarity of a row are too close
to order, the candidates are recomputed in float64; a difference within rounding of float64 is a
tie. Stimuli tied at the k-th place share the remaining places equally: a choice by index would be
the same in every representation, and create alignment where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from pipeline.measures.measure import Parameter, Value
from pipeline.measures.numerics import is_constant, power_of_two, row_blocks
from pipeline.types import Float32, Float64, Index, Mask

TiedRows = tuple[Index, scipy.sparse.csr_array]
"""Rows in which stimuli are tied for the last places, and what each neighbour has, `(rows, n)`."""

BLOCK_BYTES = 2**25
"""Most memory for blocks of similarities in float64, or of rows to compute some."""
RANKED_ROWS = 256
"""Rows of similarities that are ranked at a time: few enough for the cache."""
SPARSE_SHARE = 0.05
"""Up to this share of a block's similarities are computed one by one, more by a product."""

N_NEIGHBOURS = Parameter("k", 10, "number of nearest neighbours")
RANKING = Parameter(
    "neighbours",
    "cosine",
    "how nearness is ranked; cosine because the paper's code L2-normalises rows",
    choices=("cosine", "inner", "euclidean"),
)
NEIGHBOUR_CONVENTIONS: tuple[tuple[str, Value], ...] = (
    ("self_is_neighbour", False),
    ("ties", "share the last places equally"),
)
"""Conventions of measures of nearest neighbours."""
SHARED_PLACES = (
    "stimuli that are equally near share the last places; before, the lowest index had them, the "
    "same in every representation, which created alignment where there is none"
)
"""What changed with the convention on ties."""
NEIGHBOUR_INVARIANCES = ("isotropic scaling", "orthogonal transformation")
"""Of the nearest neighbours, however they are ranked."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest other stimuli of each stimulus, as a relation whose rows add up to k.

    Row i of the relation has a 1 for each stimulus that is among the k nearest of i however ties
    are resolved. Where m stimuli are tied for the last f < m places, each has f/m.
    """

    indices: Index
    """`(n_stimuli, k)`; the order within a row is arbitrary. Of stimuli tied for the last places,
    those of lowest index."""
    defined: bool = True
    """False where all rows are the same and nothing is nearest."""
    shares: scipy.sparse.csr_array | None = None
    """The relation `(n_stimuli, n_stimuli)`, if there are ties; the longer the more are tied."""
    by_index: bool = False
    """Whether `indices` is the relation in spite of ties, as in published code."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of stimuli and of neighbours, `(n_stimuli, k)`."""
        return self.indices.shape

    @property
    def fractional(self) -> bool:
        """Whether the relation holds anything but 0 and 1."""
        return self.shares is not None and not self.by_index

    @property
    def tied(self) -> Mask:
        """Tell in which rows stimuli are tied for the last places, `(n_stimuli,)`."""
        n = len(self.indices)
        if not self.defined or self.shares is None:
            return np.full(n, not self.defined)
        rows = np.repeat(np.arange(n), np.diff(self.shares.indptr))
        return np.asarray(np.bincount(rows[self.shares.data < 1.0], minlength=n) > 0)

    @property
    def ties(self) -> int:
        """Count the rows in which stimuli are tied for the last places."""
        return int(np.count_nonzero(self.tied))

    @property
    def squared_norm(self) -> float:
        """Sum of the squares of the relation; n·k without ties."""
        if self.shares is not None and not self.by_index:
            return float((self.shares.data * self.shares.data).sum())
        return float(self.indices.size)

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        parts: list[NDArray[Any]] = [self.indices]
        if self.shares is not None:
            parts += [self.shares.data, self.shares.indices, self.shares.indptr]
        return sum(part.nbytes for part in parts)

    def relation(self) -> scipy.sparse.csr_array:
        """Give the relation, `(n_stimuli, n_stimuli)` in float64, columns in ascending order."""
        if self.shares is not None and not self.by_index:
            return self.shares
        n, k = self.shape
        ends = np.arange(0, n * k + 1, k)
        columns = np.sort(self.indices, axis=1).ravel()
        return scipy.sparse.csr_array((np.ones(n * k), columns, ends), shape=(n, n))

    def permuted(self, order: Index) -> Neighbours:
        """Reorder the stimuli: the rows, and the indices of the neighbours."""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        moved = place[self.indices[order]]
        if self.shares is None:
            return replace(self, indices=moved)
        rows = self.shares[order]
        columns = place.astype(rows.indices.dtype)[rows.indices]
        shares = scipy.sparse.csr_array((rows.data, columns, rows.indptr), shape=rows.shape)
        shares.sort_indices()
        if self.by_index:  # other stimuli have the lowest index now
            moved = _lowest(shares, self.shape[1])
        return replace(self, indices=moved, shares=shares)


def _lowest(shares: scipy.sparse.csr_array, k: int) -> Index:
    """Choose k neighbours of each row, the lowest index first among those that are tied."""
    tied = shares.data < 1.0
    row = np.repeat(np.arange(shares.shape[0]), np.diff(shares.indptr))
    free = k - np.bincount(row[~tied], minlength=shares.shape[0])
    before = np.concatenate([[0], np.cumsum(tied)])
    rank = before[1:] - before[shares.indptr[row]]
    chosen = ~tied | (rank <= free[row])
    return np.asarray(shares.indices[chosen].reshape(-1, k), dtype=np.intp)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rows z and biases b that rank neighbours, with bounds of their rounding errors.

    Row i is ``values[i] * powers[i] * factors[i] - mean``, computed in float64 when needed.
    """

    values: NDArray[Any]
    powers: Float64
    """Of two, `(n, 1)` or `(1, 1)`: they scale without rounding."""
    factors: Float64
    """Further factors that give rows unit length, `(n, 1)`; or ones, `(1, 1)`."""
    mean: Float64
    bias: Float64
    lengths: Float64
    """Of the rows."""
    offset: float
    """Length of the vector that a row is multiplied with to give its bias."""
    blur: float
    """Error of a similarity due to scaling rows to unit length; 0 if they were not scaled."""

    def rows(self, which: slice | Index) -> Float64:
        """Compute some rows."""
        return _affine(self.values, self.powers, self.factors, which) - self.mean

    def near(self, rows: Index, columns: Index) -> Float64:
        """Give the similarity of each pair, `(len(rows),)`, in float64."""
        found = np.empty(len(rows))
        step = max(1, BLOCK_BYTES // (16 * len(self.mean)))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            found[some] = np.einsum("ij,ij->i", self.rows(rows[some]), self.rows(columns[some]))
        return found + self.bias[columns]

    def tolerance(self, rows: slice | Index, eps: float) -> Float64:
        """Bound the error of a similarity computed with relative precision `eps`, per row."""
        bound = (self.lengths[rows] + self.offset) * self.lengths.max()
        return np.asarray(eps * (4 + np.sqrt(len(self.mean))) * bound + self.blur)


def find_neighbours(
    values: NDArray[Any],
    eps: float,
    neighbours: str,
    ks: set[int],
    *,
    include_self: bool = False,
    by_index: bool = False,
) -> dict[int, Neighbours]:
    """Find the nearest neighbours of every row, for each k.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, float32 or float64.
    eps
        Machine epsilon of the dtype they were stored in.
    neighbours
        ``"cosine"``, ``"inner"`` or ``"euclidean"``. A row of zeros has cosine 0 with every row.
    ks
        The numbers of neighbours wanted.
    include_self
        Let a stimulus be its own neighbour, if it is near enough to itself.
    by_index
        Give places for which stimuli are tied to those of lowest index, as published code does,
        instead of sharing them.

    Returns
    -------
    dict
        From k to `Neighbours`.

    Notes
    -----
    Holds a float32 copy of the features, similarities of 256 rows at a time in float32, and 32 MiB
    for those in float64; never n × n, but where ties are: 12 bytes for every stimulus that is tied
    for the last places of another.
    """
    n = len(values)
    single = np.empty(values.shape, dtype=np.float32)
    ranking = ranking_of(values, eps, neighbours, out=single)
    if ranking is None:
        return {k: Neighbours(np.zeros((n, k), dtype=np.intp), defined=False) for k in ks}
    bias = ranking.bias.astype(np.float32)
    indices = {k: np.empty((n, k), dtype=np.intp) for k in ks}
    tied: dict[int, list[TiedRows]] = {k: [] for k in ks}
    block = np.empty((min(RANKED_ROWS, n), n), dtype=np.float32)
    for start in range(0, n, RANKED_ROWS):
        own = np.arange(start, min(start + RANKED_ROWS, n))
        block = block[: len(own)]
        np.matmul(single[start : start + len(own)], single.T, out=block)
        block += bias
        if not include_self:
            block[own - start, own] = -np.inf
        tolerance = 2 * ranking.tolerance(own, float(np.finfo(np.float32).eps))
        # In ascending order: the (most + 1) nearest, or all there are.
        most = min(max(ks) + 1, n - 1 + include_self)
        nearest = np.sort(np.partition(block, n - most, axis=1)[:, n - most :], axis=1)
        for k in ks:
            last = nearest[:, -k]
            following = nearest[:, -k - 1] if k < most else np.full(len(own), -np.inf)
            clear = last - following > tolerance
            chosen = block >= np.where(clear, last, np.inf)[:, None]
            indices[k][own[clear]] = (np.flatnonzero(chosen) % n).reshape(-1, k)
            unclear = ~clear
            if unclear.any():
                possible = block[unclear] >= (last - tolerance)[unclear, None]
                for some, found, ties in _rank_exactly(
                    ranking, own[unclear], possible, k, include_self=include_self
                ):
                    indices[k][some] = found
                    tied[k].append(ties)
    return {
        k: Neighbours(indices[k], shares=_shares(indices[k], tied[k]), by_index=by_index)
        for k in ks
    }


def ranking_of(
    values: NDArray[Any], eps: float, neighbours: str, *, out: Float32 | None = None
) -> Ranking | None:
    """Rows and biases for one way of ranking; None if all rows are the same.

    Parameters
    ----------
    out
        Where to write the rows, rounded.
    """
    n, d = values.shape
    by_row = neighbours == "cosine"
    powers = np.ones((1, 1))
    if not by_row or values.dtype != np.float32:  # in float64, squares of float32 are ordinary
        axis = 1 if by_row else None
        high, low = (extreme(axis=axis, keepdims=True) for extreme in (values.max, values.min))
        powers = power_of_two(np.maximum(np.abs(high), np.abs(low)))
    factors = np.ones((n, 1) if by_row else (1, 1))
    mean = np.zeros(d)
    for rows in row_blocks(n):
        scaled = _affine(values, powers, None, rows)
        weights = np.ones(len(scaled))
        if by_row:
            norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
            np.divide(1.0, norms, out=weights, where=norms > 0)
            factors[rows, 0] = weights
        mean += weights @ scaled / n
    if by_row:
        eps *= 4  # lengths and quotients are rounded too
    bias, squares = np.empty(n), np.empty(n)
    for rows in row_blocks(n):
        z = _affine(values, powers, factors, rows)
        z -= mean
        squares[rows] = np.einsum("ij,ij->i", z, z)
        bias[rows] = z @ mean
        if out is not None:
            out[rows] = z
    # If every feature were constant, no row could be longer than this.
    if squares.max() <= 4 * eps**2 * (squares.sum() + n * (mean @ mean)):
        scaled = _affine(values, powers, factors, slice(None))
        if is_constant(scaled, eps):
            return None
    lengths: Float64 = np.sqrt(squares)
    offset = float(np.linalg.norm(mean))
    if neighbours == "euclidean":
        bias, offset = -squares / 2, float(lengths.max())
    blur = 8 * float(np.finfo(np.float64).eps) if by_row else 0.0
    return Ranking(values, powers, factors, mean, bias, lengths, offset, blur)


def _affine(
    values: NDArray[Any],
    powers: Float64,
    factors: Float64 | None,
    which: slice | Index,
) -> Float64:
    """Scale some rows, in float64."""
    scaled: Float64 = values[which] * (powers[which] if len(powers) > 1 else powers)
    if factors is not None and len(factors) > 1:
        scaled *= factors[which]
    return scaled


def _rank_exactly(
    ranking: Ranking,
    which: Index,
    possible: Mask,
    k: int,
    *,
    include_self: bool,
) -> Iterator[tuple[Index, Index, TiedRows]]:
    """Neighbours of some rows in float64.

    Parameters
    ----------
    possible
        Which stimuli can be among the k nearest, `(len(which), n)`.

    Yields
    ------
    tuple
        Rows, the k nearest of each with the lowest index first among those tied, and the ties.
    """
    n = len(ranking.bias)
    step = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, len(which), step):
        some, asked = which[start : start + step], possible[start : start + step]
        block = np.full((len(some), n), -np.inf)
        if asked.mean() < SPARSE_SHARE:
            rows, columns = np.nonzero(asked)
            block[rows, columns] = ranking.near(some[rows], columns)
        else:
            own = ranking.rows(some)
            for rows_of in row_blocks(n):
                block[:, rows_of] = own @ ranking.rows(rows_of).T
            block += ranking.bias
            if not include_self:
                block[np.arange(len(some)), some] = -np.inf
        last = np.partition(block, n - k, axis=1)[:, n - k, None]
        tolerance = 2 * ranking.tolerance(some, float(np.finfo(np.float64).eps))[:, None]
        above = block > last + tolerance
        level = (block >= last - tolerance) & ~above
        free = k - above.sum(axis=1, keepdims=True)
        share = free / level.sum(axis=1, keepdims=True)
        # The first `free` of the equals, counted along the row, are those of lowest index.
        chosen = above | (level & (np.cumsum(level, axis=1) <= free))
        tied = np.flatnonzero(share < 1.0)
        table = scipy.sparse.csr_array(np.where(level[tied], share[tied], above[tied]))
        yield some, np.nonzero(chosen)[1].reshape(-1, k), (some[tied], table)


def _shares(indices: Index, tied: list[TiedRows]) -> scipy.sparse.csr_array | None:
    """Put the relation together, of rows without ties and of rows with; None without any."""
    rows = np.concatenate([some for some, _ in tied]) if tied else np.empty(0, dtype=np.intp)
    if not len(rows):
        return None
    n, k = indices.shape
    others = np.delete(np.arange(n), rows)
    ends = np.arange(0, len(others) * k + 1, k)
    columns = np.sort(indices[others], axis=1).ravel()
    plain = scipy.sparse.csr_array((np.ones(columns.size), columns, ends), shape=(len(others), n))
    stacked = scipy.sparse.vstack([plain, *(shares for _, shares in tied)], format="csr")
    return scipy.sparse.csr_array(stacked[np.argsort(np.concatenate([others, rows]))])
