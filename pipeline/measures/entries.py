"""Where the entries of relations come from: computed by blocks, or laid out.

A relation is symmetric, and of zero diagonal once it is U-centred, so what lies above the diagonal
is all there is to it. Laid out, it is kept in strips of `HEIGHT` rows, each from the diagonal on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.measures.spill import Spilled

Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]
Order = NDArray[np.intp]
Stored = Floating | Spilled
"""In memory, or in a file."""

HEIGHT = 128
"""Rows of a strip."""


class Entries(Protocol):
    """Off-diagonal entries of a relation, by blocks."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are computed."""

    @property
    def nbytes(self) -> int:
        """Memory they take."""

    def block(self, rows: slice, columns: slice) -> Floating:
        """Compute R[rows, columns], `(height, width)`; the diagonal means nothing."""

    def permuted(self, order: Order) -> Self:
        """Reorder the stimuli."""

    def spilled(self, folder: Path) -> Self:
        """Keep the bulk of them in a file."""


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
        """Memory they take."""
        return self.features.nbytes

    def block(self, rows: slice, columns: slice) -> Floating:
        """Multiply two sets of rows."""
        product: Floating = self.features[rows] @ self.features[columns].T
        return product

    def permuted(self, order: Order) -> Products:
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
        """Memory they take."""
        return self.features.nbytes

    def block(self, rows: slice, columns: slice) -> Floating:
        """Compute negative distances, or their kernel."""
        squared: Float64 = self.features[rows] @ self.features[columns].T
        squared *= -2.0
        lengths = self.squares[rows, None] + self.squares[columns]
        squared += lengths
        squared[squared <= 64 * np.finfo(np.float64).eps * lengths] = 0.0  # rounding, no distance
        if self.bandwidth is None:
            np.sqrt(squared, out=squared)
            return np.negative(squared, out=squared)
        squared *= -0.5 / self.bandwidth**2
        return np.exp(squared, out=squared)

    def permuted(self, order: Order) -> Distances:
        """Reorder the stimuli."""
        return replace(self, features=self.features[order], squares=self.squares[order])

    def spilled(self, folder: Path) -> Distances:
        """Keep the features in a file."""
        return replace(self, features=Spilled.of(self.features[:], folder))


@dataclass(frozen=True, eq=False)
class Table:
    """Entries written out, `(n, n)`: for ranks, which no block knows of itself."""

    values: Stored

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return self.values.nbytes

    def block(self, rows: slice, columns: slice) -> Floating:
        """Look up."""
        return self.values[rows][:, columns].copy()

    def permuted(self, order: Order) -> Table:
        """Reorder the stimuli."""
        return Table(self.values[:][np.ix_(order, order)])

    def spilled(self, folder: Path) -> Table:
        """Keep the table in a file."""
        return Table(Spilled.of(self.values[:], folder))


class Source(Protocol):
    """Where the entries above the diagonal of a U-centred relation come from."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what they were computed in."""

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Write what of U[rows, columns] lies above the diagonal, and zeros, to `out`.

        Columns begin with the rows, or after them.
        """

    def permuted(self, order: Order) -> Source:
        """Reorder the stimuli."""

    @property
    def nbytes(self) -> int:
        """Memory it takes."""

    def spilled(self, folder: Path) -> Source:
        """Keep the bulk of it in a file."""


@dataclass(frozen=True, eq=False)
class Formed:
    """A U-centred relation, formed from entries when asked for."""

    entries: Entries
    shift: Floating
    """What U adds to row i and to column i of R, `(n,)`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the entries."""
        return self.entries.dtype

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Form it."""
        if isinstance(self.entries, Products) and self.entries.dtype == out.dtype:
            features = self.entries.features
            np.matmul(features[rows], features[columns].T, out=out)
            out += self.shift[rows, None]
            out += self.shift[columns]
        else:
            found = self.entries.block(rows, columns)
            found += self.shift[rows, None]
            found += self.shift[columns]
            out[...] = found
        if columns.start < rows.stop:
            overlap = out[columns.start - rows.start :, : rows.stop - columns.start]
            overlap[np.tri(*overlap.shape, dtype=np.bool_)] = 0.0

    def permuted(self, order: Order) -> Formed:
        """Reorder the stimuli."""
        return Formed(self.entries.permuted(order), self.shift[order])

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.entries.nbytes

    def spilled(self, folder: Path) -> Formed:
        """Keep the bulk of it in a file."""
        return replace(self, entries=self.entries.spilled(folder))


@dataclass(frozen=True, eq=False)
class Laid:
    """A U-centred relation, laid out strip after strip."""

    values: Stored
    n: int
    dtype: np.dtype[Any]
    """Of what they were computed in."""

    @classmethod
    def of(cls, source: Source, n: int, dtype: np.dtype[Any]) -> Laid:
        """Lay out a relation."""
        values: Floating = np.empty(_laid_size(n), dtype=dtype)
        for rows in strips(n):
            source.upper(rows, slice(rows.start, n), _strip(values, n, rows.start))
        return cls(values, n, source.dtype)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.values.nbytes

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Look it up."""
        for top in range(rows.start // HEIGHT * HEIGHT, rows.stop, HEIGHT):
            some = slice(max(rows.start, top), min(rows.stop, top + HEIGHT))
            first = max(columns.start, top)
            piece = out[some.start - rows.start : some.stop - rows.start]
            piece[:, : first - columns.start] = 0.0
            piece[:, first - columns.start :] = _strip(self.values, self.n, top)[
                some.start - top : some.stop - top, first - top : columns.stop - top
            ]

    def permuted(self, order: Order) -> Laid:
        """Reorder the stimuli."""
        table = whole(self, np.empty((self.n, self.n), dtype=self.values.dtype))
        moved = Table(table[np.ix_(order, order)])
        nothing = np.zeros(self.n, dtype=self.values.dtype)
        laid = Laid.of(Formed(moved, nothing), self.n, self.values.dtype)
        return replace(laid, dtype=self.dtype)

    def spilled(self, folder: Path) -> Laid:
        """Keep it in a file."""
        return replace(self, values=Spilled.of(self.values[:], folder))


def strips(n: int) -> Iterator[slice]:
    """Rows of the strips of an n × n relation."""
    for start in range(0, n, HEIGHT):
        yield slice(start, min(start + HEIGHT, n))


def _strip(values: Stored, n: int, top: int) -> Floating:
    """Find the strip of row `top` in a relation laid out: `(height, n - top)`."""
    height, start = min(HEIGHT, n - top), _place(n, top)
    return values[start : start + height * (n - top)].reshape(height, n - top)


def _place(n: int, top: int) -> int:
    """Where the strip of row `top` begins: after top rows of n, n − HEIGHT, … columns each."""
    above = top // HEIGHT
    return top * n - HEIGHT * HEIGHT * (above * (above - 1) // 2)


def _laid_size(n: int) -> int:
    last = (n - 1) // HEIGHT * HEIGHT
    return _place(n, last) + (n - last) ** 2


def laid_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Memory that a relation takes when it is laid out: about half of n² numbers."""
    return _laid_size(n) * dtype.itemsize


def whole(source: Source, table: Floating) -> Floating:
    """Write a relation to a table, `(n, n)`."""
    n = len(table)
    for rows in strips(n):
        strip = table[rows, rows.start :]
        source.upper(rows, slice(rows.start, n), strip)
        corner = strip[:, : rows.stop - rows.start]
        corner += corner.T.copy()
        table[rows.stop :, rows] = strip[:, rows.stop - rows.start :].T
    return table
