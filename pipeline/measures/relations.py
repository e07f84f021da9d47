"""Gram relations: what every linear CKA needs to know of one representation.

With centred features, K = X Xᵀ has zero row sums, so the row sums of K without its diagonal d are
−d. The U-centred relation, zero on the diagonal, is then

    U_ij = K_ij + (d_i + d_j)/(n−2) − t/((n−1)(n−2)),    t = tr K,  i ≠ j,

and with d̃ = d − t/n both estimators follow from one product:

    debiased:  ⟨U, U'⟩
    biased:    ⟨K, K'⟩ = ⟨U, U'⟩ + n/(n−2) · d̃·d̃' + t t'/(n−1).

The three terms of the second line are orthogonal, so nothing cancels: what float32 must carry is
the small U, not its difference from a large K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipeline.measures.checks import is_constant

Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]

ROWS = 512
"""Rows and columns of the blocks in which one representation's own norm is summed."""


@dataclass(frozen=True, eq=False)
class GramRelation:
    """One representation's U-centred linear Gram matrix, held as features.

    Features are centred and scaled so that the mean of the Gram's diagonal is 1, which no linear
    CKA notices and which keeps float32 far from overflow.
    """

    features: Floating
    shift: Floating
    """What U adds to row i and to column i of K, `(n,)`."""
    diagonal: Float64
    """d̃, the centred diagonal of K, `(n,)`."""
    trace: float
    debiased_norm: float
    """⟨U, U⟩, or 0 where it cannot be told from rounding."""
    biased_norm: float
    """⟨K, K⟩, or 0 for a constant representation."""

    def block(self, rows: slice, columns: slice, out: Floating) -> None:
        """Write U[rows, columns] to `out`; where the diagonal is met it is not yet zeroed."""
        np.matmul(self.features[rows], self.features[columns].T, out=out)
        out += self.shift[rows, None]
        out += self.shift[columns]

    def permuted(self, order: NDArray[np.intp]) -> GramRelation:
        """Reorder the stimuli; norms and trace stay."""
        return replace(
            self,
            features=self.features[order],
            shift=self.shift[order],
            diagonal=self.diagonal[order],
        )


def gram_relation(values: Float64, unit: float, dtype: DTypeLike) -> GramRelation:
    """Prepare the Gram relation of features `(n_stimuli, n_features)`, already checked."""
    n = len(values)
    if is_constant(values, unit):
        nothing = np.zeros((n, 1), dtype=dtype)
        return GramRelation(nothing, nothing[:, 0], np.zeros(n), 0.0, 0.0, 0.0)
    centred = values / np.abs(values).max()  # squares of 1e200 would overflow
    centred -= centred.mean(axis=0)
    centred /= np.abs(centred).max()
    centred -= centred.mean(axis=0)  # what rounding left of an offset
    centred *= np.sqrt(n / np.einsum("ij,ij->", centred, centred))
    features: Floating = np.ascontiguousarray(centred, dtype=dtype)

    # From the rounded features, so that the norm is the norm of what will be multiplied.
    squares: Float64 = np.einsum("ij,ij->i", features, features, dtype=np.float64)
    trace = float(squares.sum())
    diagonal = squares - trace / n
    shift = (squares / (n - 2) - trace / (2 * (n - 1) * (n - 2))).astype(dtype)
    rest = n / (n - 2) * float(diagonal @ diagonal) + trace**2 / (n - 1)
    relation = GramRelation(features, shift, diagonal, trace, 0.0, 0.0)
    debiased = 0.0
    if 2 * features.shape[1] <= n:  # ⟨K, K⟩ = |XᵀX|² is then the quicker way
        exact = features.astype(np.float64)
        covariance = exact.T @ exact
        debiased = float(np.einsum("ij,ij->", covariance, covariance)) - rest
    if debiased <= 1e-8 * rest:  # a small difference of large numbers, or not computed yet
        debiased = _own_product(relation)
    if debiased <= n * (n - 1) * (16 * float(np.finfo(features.dtype).eps)) ** 2:
        debiased = 0.0
    return replace(relation, debiased_norm=debiased, biased_norm=debiased + rest)


def _own_product(relation: GramRelation) -> float:
    """⟨U, U⟩, block by block, twice what lies above the diagonal."""
    n = len(relation.features)
    total = 0.0
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        for begin in range(start, n, ROWS):
            columns = slice(begin, min(begin + ROWS, n))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            block: Floating = np.empty(shape, dtype=relation.features.dtype)
            relation.block(rows, columns, block)
            if begin == start:
                np.fill_diagonal(block, 0.0)
            weight = 1.0 if begin == start else 2.0
            total += weight * float(np.einsum("ij,ij->", block, block, dtype=np.float64))
    return total


def gram_scores(
    estimator: str,
    products: ArrayLike,
    xs: list[GramRelation],
    ys: list[GramRelation],
    diagonals: Float64,
) -> Float64:
    """Turn products ⟨U_x, U_y⟩ into scores; NaN where a norm is zero.

    Parameters
    ----------
    estimator
        ``"biased"`` or ``"debiased"``.
    products
        `(..., len(xs), len(ys))`.
    xs, ys
        The relations.
    diagonals
        d̃_x · d̃_y, of the shape of `products`.
    """
    n = len(xs[0].diagonal)
    scores = np.array(products, dtype=np.float64)
    if estimator == "biased":
        traces = np.outer([x.trace for x in xs], [y.trace for y in ys])
        scores += n / (n - 2) * diagonals + traces / (n - 1)
        norms = np.outer([x.biased_norm for x in xs], [y.biased_norm for y in ys])
    else:
        norms = np.outer([x.debiased_norm for x in xs], [y.debiased_norm for y in ys])
    norms[norms == 0.0] = np.nan
    return np.asarray(scores / np.sqrt(norms))
