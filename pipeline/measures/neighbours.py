"""Nearest neighbours, exact to double precision at the speed of single.

Three rankings, one form: with z the centred rows (of unit length before centring, for cosine) and
m their former mean, stimulus j is near i when z_i·z_j + b_j is large, where

    inner product, cosine:  b_j = z_j·m
    Euclidean:              b_j = −|z_j|²/2

(what is left out, such as z_i·m + m·m, is the same for all j). So an offset shared by all stimuli
does not swallow the digits of float32. A row whose k-th and next similarity are still too close to
tell is ranked again in float64; a difference within rounding of float64 is a tie, and ties go to
the lowest index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.measures.checks import is_constant

Float64 = NDArray[np.float64]

BLOCK_BYTES = 2**25
"""Size of the block of similarities that is ranked at a time."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest other stimuli of each stimulus.

    `indices` is `(n_stimuli, k)`; within a row the order means nothing. `ties` counts the rows in
    which the k-th neighbour was chosen by index among equals. `defined` is false where all rows are
    the same and nothing is nearest.
    """

    indices: NDArray[np.intp]
    ties: int
    defined: bool

    def permuted(self, order: NDArray[np.intp]) -> Neighbours:
        """Reorder the stimuli: rows move, and so do the names of the neighbours."""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return Neighbours(place[self.indices[order]], self.ties, self.defined)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rows z and biases b that rank neighbours, with what bounds the rounding."""

    rows: Float64
    bias: Float64
    lengths: Float64
    """Of the rows."""
    offset: float
    """Length of what a row was multiplied with to give its bias."""
    blur: float
    """What rounding rows to unit length may have done to a similarity; 0 if they were not."""

    def tolerance(self, rows: slice | NDArray[np.intp], unit: float) -> Float64:
        """Bound the error of a similarity computed with relative precision `unit`, per row."""
        bound = (self.lengths[rows] + self.offset) * self.lengths.max()
        return np.asarray(unit * (4 + np.sqrt(self.rows.shape[1])) * bound + self.blur)


def find_neighbours(
    values: Float64, unit: float, neighbours: str, ks: set[int]
) -> dict[int, Neighbours]:
    """Find the nearest neighbours of every row, for each k.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, float64.
    unit
        Relative spacing of the numbers they were stored in.
    neighbours
        ``"cosine"``, ``"inner"`` or ``"euclidean"``. A row of zeros has cosine 0 with every row.
    ks
        The numbers of neighbours wanted.

    Returns
    -------
    dict
        From k to `Neighbours`.

    Notes
    -----
    Holds a float32 copy of the features and blocks of 32 MiB of similarities at a time, never
    n × n.
    """
    n = len(values)
    ranking = ranking_of(values, unit, neighbours)
    if ranking is None:
        return {k: Neighbours(np.zeros((n, k), dtype=np.intp), n, False) for k in ks}
    single = ranking.rows.astype(np.float32)
    bias = ranking.bias.astype(np.float32)
    indices = {k: np.empty((n, k), dtype=np.intp) for k in ks}
    ties = dict.fromkeys(ks, 0)
    step = max(1, BLOCK_BYTES // (4 * n))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        block = single[rows] @ single.T
        block += bias
        own = np.arange(rows.start, rows.stop)
        block[np.arange(len(own)), own] = -np.inf
        tolerance = ranking.tolerance(rows, float(np.finfo(np.float32).eps))
        for k in ks:
            parted = np.partition(block, n - k, axis=1)
            last = parted[:, n - k]
            unclear = last - parted[:, : n - k].max(axis=1) <= 2 * tolerance
            clear = ~unclear
            chosen = block[clear] >= last[clear, None]
            indices[k][own[clear]] = np.nonzero(chosen)[1].reshape(-1, k)
            if unclear.any():
                found, tied = _rank_exactly(ranking, own[unclear], k)
                indices[k][own[unclear]] = found
                ties[k] += tied
    return {k: Neighbours(indices[k], ties[k], True) for k in ks}


def ranking_of(values: Float64, unit: float, neighbours: str) -> Ranking | None:
    """Rows and biases for one way of ranking; None if all rows are the same."""
    # For cosine, each row by its own largest value: squares of small rows would underflow.
    by_row = neighbours == "cosine"
    rows = values * power_of_two(np.abs(values).max(axis=1 if by_row else None, keepdims=True))
    if by_row:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, norms, out=rows, where=norms > 0)
        unit *= 4  # lengths and quotients are rounded too
    if is_constant(rows, unit):
        return None
    mean = rows.mean(axis=0)
    rows -= mean
    scale = power_of_two(np.abs(rows).max())
    rows *= scale
    mean *= scale
    lengths: Float64 = np.linalg.norm(rows, axis=1)
    if neighbours == "euclidean":
        return Ranking(rows, -(lengths**2) / 2, lengths, float(lengths.max()), 0.0)
    blur = (
        8 * float(np.finfo(np.float64).eps) * float(scale) ** 2 if neighbours == "cosine" else 0.0
    )
    return Ranking(rows, rows @ mean, lengths, float(np.linalg.norm(mean)), blur)


def power_of_two(largest: ArrayLike) -> Float64:
    """Scale that brings `largest` to between ½ and 1, exactly, so that no tie is broken."""
    return np.asarray(np.ldexp(1.0, np.minimum(-np.frexp(largest)[1], 1000)))


def _rank_exactly(
    ranking: Ranking, which: NDArray[np.intp], k: int
) -> tuple[NDArray[np.intp], int]:
    """Neighbours of some rows in float64, and how many rows had a tie for the k-th place."""
    n = len(ranking.rows)
    found = np.empty((len(which), k), dtype=np.intp)
    tied = 0
    step = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, len(which), step):
        some = which[start : start + step]
        block = ranking.rows[some] @ ranking.rows.T + ranking.bias
        block[np.arange(len(some)), some] = -np.inf
        last = np.partition(block, n - k, axis=1)[:, n - k, None]
        tolerance = 2 * ranking.tolerance(some, float(np.finfo(np.float64).eps))[:, None]
        above = block > last + tolerance
        level = (block >= last - tolerance) & ~above
        free = k - above.sum(axis=1, keepdims=True)
        tied += int((level.sum(axis=1, keepdims=True) > free).sum())
        # The first `free` of the equals, counted along the row, are those of lowest index.
        chosen = above | (level & (np.cumsum(level, axis=1) <= free))
        found[start : start + step] = np.nonzero(chosen)[1].reshape(-1, k)
    return found, tied
