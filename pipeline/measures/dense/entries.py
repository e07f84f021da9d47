"""How relations are stored: computed by blocks when needed, or packed.

A relation is symmetric, with a zero diagonal once it is U-centred, so only what is above the
diagonal is kept. A packed relation consists of strips of `CELL` rows, each from the diagonal on.

The last digits of a matrix product depend on its shape. So entries are always computed in the same
cells, `CELL` × `CELL` from the first stimulus on, whichever part of a relation is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from pipeline.measures.dense.spill import Spilled
from pipeline.types import Float64, Floating, Index

Stored = Floating | Spilled
"""In memory, or in a file."""

CELL = 128
"""Rows of a strip, and rows and columns of a cell."""

Cells = Callable[[slice, slice], Floating]
"""Computes R[rows, columns], `(height, width)`; the diagonal is arbitrary."""


class Entries(Protocol):
    """Off-diagonal entries of a relation, by blocks."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the computed blocks."""

    @property
    def nbytes(self) -> int:
        """Memory they take, in bytes."""

    def within(self, rows: slice, columns: slice) -> Cells:
        """Read what R[rows, columns] needs, and return a function that computes its blocks."""

    def permuted(self, order: Index) -> Self:
        """Reorder the stimuli."""

    def spilled(self, folder: Path) -> Self:
        """Move most of them to a file."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of features `(n, d)`."""

    features: Stored

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the features."""
        return self.features.dtype

    @property
    def nbytes(self) -> int:
        """Memory they take, in bytes."""
        return self.features.nbytes

    def within(self, rows: slice, columns: slice) -> Cells:
        """Read rows, and multiply sets of them."""
        return partial(_multiply, *_read(self.features, rows, columns))

    def permuted(self, order: Index) -> Products:
        """Reorder the stimuli."""
        return Products(self.features[order])

    def spilled(self, folder: Path) -> Products:
        """Keep the features in a file."""
        return Products(Spilled.of(self.features[:], folder))


@dataclass(frozen=True, eq=False)
class Distances:
    """Negative Euclidean distances of features `(n, d)`, or their RBF kernel: near is high.

    In float64, since a small distance is a small difference of large squares.
    """

    features: Stored
    squares: Float64
    """Squared lengths of the rows, `(n,)`."""
    bandwidth: float | None = None
    """With one, the entries are exp(−distance²/(2 bandwidth²))."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float64."""
        return self.features.dtype

    @property
    def nbytes(self) -> int:
        """Memory they take, in bytes."""
        return self.features.nbytes

    def within(self, rows: slice, columns: slice) -> Cells:
        """Read rows, and compute negative distances, or their kernel."""
        return partial(self._apart, *_read(self.features, rows, columns))

    def _apart(self, left: Rows, right: Rows, rows: slice, columns: slice) -> Floating:
        squared = _multiply(left, right, rows, columns)
        squared *= -2.0
        lengths = self.squares[rows, None] + self.squares[columns]
        squared += lengths
        squared[squared <= 64 * np.finfo(np.float64).eps * lengths] = 0.0  # rounding, no distance
        if self.bandwidth is None:
            np.sqrt(squared, out=squared)
            return np.negative(squared, out=squared)
        squared *= -0.5 / self.bandwidth**2
        return np.exp(squared, out=squared)

    def permuted(self, order: Index) -> Distances:
        """Reorder the stimuli."""
        return replace(self, features=self.features[order], squares=self.squares[order])

    def spilled(self, folder: Path) -> Distances:
        """Keep the features in a file."""
        return replace(self, features=Spilled.of(self.features[:], folder))


@dataclass(frozen=True, eq=False)
class DenseTable:
    """Entries as a full table, `(n, n)`: for ranks, which cannot be computed by blocks."""

    values: Stored

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Memory they take, in bytes."""
        return self.values.nbytes

    def within(self, rows: slice, columns: slice) -> Cells:
        """Read rows, and look up."""
        values = self.values[rows]
        return lambda r, c: values[r.start - rows.start : r.stop - rows.start, c].copy()

    def permuted(self, order: Index) -> DenseTable:
        """Reorder the stimuli."""
        return DenseTable(self.values[:][np.ix_(order, order)])

    def spilled(self, folder: Path) -> DenseTable:
        """Keep the table in a file."""
        return DenseTable(Spilled.of(self.values[:], folder))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of features, in memory."""

    values: Floating
    start: int

    def __getitem__(self, rows: slice) -> Floating:
        """Select some by their row number among all."""
        return self.values[rows.start - self.start : rows.stop - self.start]


def _read(features: Stored, rows: slice, columns: slice) -> tuple[Rows, Rows]:
    left = Rows(features[rows], rows.start)
    return left, left if rows == columns else Rows(features[columns], columns.start)


def _multiply(left: Rows, right: Rows, rows: slice, columns: slice) -> Floating:
    """Multiply two sets of rows; a set with itself always by the symmetric product."""
    own = left[rows]
    return np.asarray(own @ (own if rows == columns else right[columns]).T)


def block_of(entries: Entries, rows: slice, columns: slice) -> Floating:
    """Compute R[rows, columns], `(height, width)`; the diagonal is arbitrary."""
    return entries.within(rows, columns)(rows, columns)


class RelationStorage(Protocol):
    """The entries above the diagonal of a U-centred relation."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype in which they were computed."""

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Write the part of U[rows, columns] above the diagonal to `out`, with zeros elsewhere.

        Columns begin with the rows, or after them.
        """

    def permuted(self, order: Index) -> RelationStorage:
        """Reorder the stimuli."""

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""

    def spilled(self, folder: Path) -> RelationStorage:
        """Move most of it to a file."""


@dataclass(frozen=True, eq=False)
class LazyRelation:
    """A U-centred relation that is computed from entries when needed."""

    entries: Entries
    shift: Floating
    """Added to row i and to column i of R to give U, `(n,)`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the entries."""
        return self.entries.dtype

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Compute it, cell by cell."""
        n = len(self.shift)
        across, down = _cells(n, rows), _cells(n, columns)
        compute = self.entries.within(
            slice(across[0].start, across[-1].stop), slice(down[0].start, down[-1].stop)
        )
        for cell_rows in across:
            for cell_columns in down:
                place = tuple(
                    slice(max(cell.start, asked.start), min(cell.stop, asked.stop))
                    for cell, asked in ((cell_rows, rows), (cell_columns, columns))
                )
                target = out[_moved(place[0], rows), _moved(place[1], columns)]
                if cell_columns.stop <= cell_rows.start:  # below the diagonal
                    target[...] = 0.0
                    continue
                found = compute(cell_rows, cell_columns)
                found += self.shift[cell_rows, None]
                found += self.shift[cell_columns]
                if cell_rows == cell_columns:
                    found[np.tri(len(found), dtype=np.bool_)] = 0.0
                target[...] = found[_moved(place[0], cell_rows), _moved(place[1], cell_columns)]

    def permuted(self, order: Index) -> LazyRelation:
        """Reorder the stimuli."""
        return LazyRelation(self.entries.permuted(order), self.shift[order])

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return self.entries.nbytes

    def spilled(self, folder: Path) -> LazyRelation:
        """Move most of it to a file."""
        return replace(self, entries=self.entries.spilled(folder))


@dataclass(frozen=True, eq=False)
class PackedRelation:
    """A U-centred relation in memory or in a file, strip after strip."""

    values: Stored
    n: int
    dtype: np.dtype[Any]
    """Dtype in which they were computed."""

    @classmethod
    def of(cls, storage: RelationStorage, n: int, dtype: np.dtype[Any]) -> PackedRelation:
        """Pack a relation."""
        values: Floating = np.empty(_packed_size(n), dtype=dtype)
        for rows in strips(n):
            storage.upper(rows, slice(rows.start, n), _strip(values, n, rows.start))
        return cls(values, n, storage.dtype)

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return self.values.nbytes

    @property
    def largest(self) -> float:
        """Size of the largest entry."""
        values = self.values[:]
        return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Look it up."""
        for top in range(rows.start // CELL * CELL, rows.stop, CELL):
            some = slice(max(rows.start, top), min(rows.stop, top + CELL))
            first = max(columns.start, top)
            piece = out[some.start - rows.start : some.stop - rows.start]
            piece[:, : first - columns.start] = 0.0
            piece[:, first - columns.start :] = _strip(self.values, self.n, top)[
                some.start - top : some.stop - top, first - top : columns.stop - top
            ]

    def permuted(self, order: Index) -> PackedRelation:
        """Reorder the stimuli."""
        table = whole(self, np.empty((self.n, self.n), dtype=self.values.dtype))
        moved = DenseTable(table[np.ix_(order, order)])
        nothing = np.zeros(self.n, dtype=self.values.dtype)
        laid = PackedRelation.of(LazyRelation(moved, nothing), self.n, self.values.dtype)
        return replace(laid, dtype=self.dtype)

    def spilled(self, folder: Path) -> PackedRelation:
        """Keep it in a file."""
        return replace(self, values=Spilled.of(self.values[:], folder))


def _cells(n: int, asked: slice) -> list[slice]:
    """Rows, or columns, of the cells that contain those requested."""
    first = asked.start // CELL * CELL
    return [slice(i, min(i + CELL, n)) for i in range(first, asked.stop, CELL)]


def _moved(inner: slice, outer: slice) -> slice:
    """Find a slice in another."""
    return slice(inner.start - outer.start, inner.stop - outer.start)


def strips(n: int) -> Iterator[slice]:
    """Rows of the strips of an n × n relation."""
    for start in range(0, n, CELL):
        yield slice(start, min(start + CELL, n))


def _strip(values: Stored, n: int, top: int) -> Floating:
    """Give the strip of row `top` of a packed relation, `(height, n - top)`."""
    height, start = min(CELL, n - top), _place(n, top)
    return values[start : start + height * (n - top)].reshape(height, n - top)


def _place(n: int, top: int) -> int:
    """Where the strip of row `top` begins: after top rows of n, n − CELL, … columns each."""
    above = top // CELL
    return top * n - CELL * CELL * (above * (above - 1) // 2)


def _packed_size(n: int) -> int:
    last = (n - 1) // CELL * CELL
    return _place(n, last) + (n - last) ** 2


def packed_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Memory that a packed relation takes, in bytes: about half of n² numbers."""
    return _packed_size(n) * dtype.itemsize


def whole(storage: RelationStorage, table: Floating) -> Floating:
    """Write a relation to a table, `(n, n)`."""
    n = len(table)
    for rows in strips(n):
        strip = table[rows, rows.start :]
        storage.upper(rows, slice(rows.start, n), strip)
        corner = strip[:, : rows.stop - rows.start]
        corner += corner.T.copy()
        table[rows.stop :, rows] = strip[:, rows.stop - rows.start :].T
    return table
