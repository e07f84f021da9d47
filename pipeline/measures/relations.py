"""Dense relations: the form of a representation that relational measures compare.

A relation is a symmetric n × n matrix R of how stimuli relate: products of features, kernels,
distances. Without its diagonal and its additive row effects it is the *U-centred* relation

    U_ij = R_ij − (r_i + r_j)/(n−2) + s/((n−1)(n−2)),    i ≠ j,    U_ii = 0,

with r the row sums of the off-diagonal part and s their total. U-centring removes row effects, a
vector ℓ with zero sum, and a grand effect, a number c. The inner product of two doubly centred
relations, diagonals included, or of two mean-centred off-diagonal parts, is

    ⟨R, R'⟩ = ⟨U, U'⟩ + ℓ·ℓ' + c c'.

The terms are orthogonal, so nothing cancels: float32 has to represent the small U, not its
difference from a large R. With W = HRH (H the centring matrix), w = diag W and t = tr W,

    doubly centred:   ℓ = √(n/(n−2)) (w − t/n),             c = t/√(n−1);
    mean-centred:     ℓ = √(2/(n−2)) (r − s/n),             c = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipeline.measures.dissimilarity import check_rankable, ranked, storage_noise
from pipeline.measures.entries import (
    DenseTable,
    Distances,
    Entries,
    LazyRelation,
    PackedRelation,
    Products,
    RelationStorage,
    block_of,
    packed_bytes,
    strips,
    whole,
)
from pipeline.measures.exact import add_own, in_steps, joined, slices, step_of
from pipeline.measures.numerics import is_constant, power_of_two, row_blocks, unit_rows
from pipeline.types import Float64, Floating, Index, Mask

BLOCK_ROWS = 512
"""Rows and columns of the blocks in which sums over one representation are computed."""
DIRECTION_TOLERANCE = 4.0
"""Rows of unit length differ if they do by more than this many machine epsilons."""
ROUNDING_MARGIN = 1.01
"""Factor by which rounding may increase entries beyond their bound."""
CHECKED_ROWS = 32
"""The largest entry is searched among all products of this many longest rows."""
MEDIAN_ROWS = 4096
"""The median distance is taken over all pairs of so many stimuli at most, evenly spaced."""

RelationKey = tuple[str | float, ...]
"""What distinguishes relations: ``("linear",)``, ``("rbf", bandwidth)``, ``("distance",)``,
``("rsa", dissimilarity, comparison)``."""


@dataclass(eq=False)
class SelfProduct:
    """⟨U, U⟩ of one relation above the diagonal, in steps, once it is known.

    The sum is exact, so it does not matter who computed it.
    """

    value: float | None = None


@dataclass(frozen=True, eq=False)
class Relation:
    """The U-centred relation of one representation, and the effects that U-centring removed."""

    storage: RelationStorage
    dtype: np.dtype[Any]
    """Of the blocks that are multiplied."""
    row_effects: Float64
    """ℓ, `(n,)`."""
    grand_effect: float
    """c."""
    feature_scale: float
    """Value, in the original units, of a feature that is 1 after scaling."""
    step: float = 1.0
    """Entries are rounded to integer multiples of it before they are multiplied."""
    self_product: SelfProduct = field(default_factory=SelfProduct, repr=False)

    @property
    def n_stimuli(self) -> int:
        """Rows of the relation."""
        return len(self.row_effects)

    def upper(self, rows: slice, columns: slice, out: Floating) -> None:
        """Write the part of U[rows, columns] above the diagonal to `out`, with zeros elsewhere.

        Columns begin with the rows, or after them.
        """
        self.storage.upper(rows, columns, out)

    def whole(self, out: Floating) -> Floating:
        """Write U to `out`, `(n, n)`."""
        return whole(self.storage, out)

    def permuted(self, order: Index) -> Relation:
        """Reorder the stimuli."""
        storage = self.storage.permuted(order)
        return replace(
            self, storage=storage, row_effects=self.row_effects[order], self_product=SelfProduct()
        )

    def spilled(self, folder: Path) -> Relation:
        """Move most of it to a file; vectors and norms stay in memory."""
        return replace(self, storage=self.storage.spilled(folder))

    def squared_norm(self, *, u_centred_only: bool) -> float:
        """Give ⟨U, U⟩ or ⟨R, R⟩; 0 where it is within rounding error."""
        if self.self_product.value is None:
            self.self_product.value = _self_product(self)
        n = self.n_stimuli
        floor = n * (n - 1) * (16 * float(np.finfo(self.storage.dtype).eps)) ** 2
        norm = float(in_units(np.array([self.self_product.value]), [self], [self])[0, 0])
        if u_centred_only:
            return norm if norm > floor else 0.0
        # as `relation_scores` does, so that a relation is 1 with itself
        norm += float(row_effect_products([self], [self])[0, 0])
        norm += self.grand_effect * self.grand_effect
        return norm if norm > floor else 0.0


def relate(
    values: NDArray[Any], eps: float, keys: Iterable[RelationKey], dtype: DTypeLike
) -> dict[RelationKey, Relation]:
    """Prepare relations of one representation.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, already checked, float32 or float64.
    eps
        Machine epsilon of the dtype they were stored in.
    keys
        The relations wanted.
    dtype
        Of the blocks to be multiplied.

    Returns
    -------
    dict
        By key.

    Raises
    ------
    InputError
        For Spearman's comparison of more stimuli than a table of ranks can have.
    """
    wanted, kind = set(keys), np.dtype(dtype)
    found: dict[RelationKey, Relation] = {}
    if not wanted:
        return found
    if is_constant(values, eps):
        return {key: _nothing(len(values), kind) for key in wanted}
    for key in wanted:
        if key[0] == "linear":
            found[key] = _linear(values, kind)
        elif key[0] in ("rbf", "distance"):
            found[key] = _of_distances(values, None if len(key) == 1 else float(key[1]), kind)
        else:
            found[key] = _of_dissimilarities(values, eps, str(key[1]), str(key[2]), kind)
    return found


def _nothing(n: int, kind: np.dtype[Any]) -> Relation:
    empty = np.zeros((n, 1), dtype=kind)
    return Relation(
        LazyRelation(Products(empty), empty[:, 0]),
        kind,
        np.zeros(n),
        0.0,
        1.0,
        self_product=SelfProduct(0.0),
    )


def _centred(values: Floating, kind: DTypeLike) -> tuple[Floating, Float64, float]:
    """Features centred and scaled to a mean squared length of 1, squared lengths, a length unit.

    No relation depends on the scale, which keeps float32 far from overflow. Arithmetic is in
    float64, a few rows at a time.
    """
    # A power of two rounds nothing; squares of 1e200 would overflow.
    power = power_of_two(max(abs(float(values.max())), abs(float(values.min()))))
    n, d = values.shape
    total = np.zeros(d)
    for rows in row_blocks(n):
        total += (values[rows] * power).sum(axis=0)
    mean = total / n
    features: Floating = np.empty((n, d), dtype=kind)
    squares = np.empty(n)
    rest = np.zeros(d)  # what rounding left of an offset
    for rows in row_blocks(n):
        block = values[rows] * power
        block -= mean
        rest += block.sum(axis=0) / n
        squares[rows] = np.einsum("ij,ij->i", block, block)
        features[rows] = block
    squares += rest @ rest - 2.0 * (features @ rest.astype(kind))
    scale = np.sqrt(n / squares.sum())
    features -= rest.astype(kind)
    features *= scale.astype(kind)
    return features, squares * scale**2, float(1.0 / (power * scale))


def _linear(values: Floating, kind: np.dtype[Any]) -> Relation:
    """Doubly centred Gram matrix: with centred features its row sums are known beforehand."""
    features, squares, scale = _centred(values, kind)
    assembled = _assembled(Products(features), kind, -squares, squares)
    return replace(assembled, feature_scale=scale)


def _distances(values: Floating) -> Distances:
    features: Float64 = _centred(values, np.float64)[0].astype(np.float64, copy=False)
    # From the centred features themselves, so that equal distances stay equal.
    return Distances(features, np.einsum("ij,ij->i", features, features))


def _of_distances(values: Floating, multiple: float | None, kind: np.dtype[Any]) -> Relation:
    """Doubly centred distances, or RBF kernel of a multiple of the median distance."""
    entries = _distances(values)
    if multiple is not None:
        entries = replace(entries, bandwidth=multiple * _median_distance(entries))
    n = len(values)
    own = np.full(n, 0.0 if multiple is None else 1.0)
    return _assembled(entries, kind, _row_sums(entries, n), own)


def _median_distance(entries: Distances) -> float:
    """Median of the distances that are not zero."""
    n = len(entries.features)
    some = np.unique(np.linspace(0, n - 1, min(n, MEDIAN_ROWS)).astype(np.intp))
    chosen = entries.permuted(some)
    parts = []
    for start in range(0, len(some), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(some)))
        block = -block_of(chosen, rows, slice(start, len(some)))
        above = block[np.triu_indices(block.shape[0], k=1, m=block.shape[1])]
        parts.append(above[above > 0])
    return float(np.median(np.concatenate(parts)))


def _of_dissimilarities(
    values: Floating, eps: float, dissimilarity: str, comparison: str, kind: np.dtype[Any]
) -> Relation:
    """Mean-centred dissimilarities of pairs of stimuli, or their ranks; near is high."""
    n = len(values)
    entries: Entries
    bias, unit_of_entries = np.zeros(n), 1.0
    if dissimilarity == "euclidean":
        entries = _distances(values)
        sums = _row_sums(entries, n)
    else:
        units = unit_rows(values.astype(np.float64), centre=dissimilarity == "correlation")
        mean = units.mean(axis=0)
        units -= mean  # z·z' = (z−m)·(z'−m) + m·z + m·z' − m·m, and additive effects are apart
        spread = np.sqrt(np.einsum("ij,ij->", units, units) / n)
        if spread <= DIRECTION_TOLERANCE * eps:  # directions differ by their own rounding
            return _nothing(n, kind)
        # Rows with a large feature in common differ little; scaled, float32 still resolves them.
        units, mean = units / spread, mean / spread
        bias, unit_of_entries = units @ mean, float(spread**2)
        entries = Products(units if comparison == "spearman" else units.astype(kind))
        sums = -np.einsum("ij,ij->i", units, units)  # since rows add up to nothing
    if comparison == "spearman":
        check_rankable(n)
        everyone = slice(0, n)
        table = np.asarray(block_of(entries, everyone, everyone), dtype=np.float64)
        noise = storage_noise(values.astype(np.float64), eps, dissimilarity) / unit_of_entries
        entries, bias = DenseTable(ranked(table + bias[:, None] + bias, noise)), np.zeros(n)
        sums = _row_sums(entries, n)
    return _assembled(entries, kind, sums, None, bias)


def _row_sums(entries: Entries, n: int) -> Float64:
    """Sum the off-diagonal entries of each row."""
    sums = np.empty(n)
    for start in range(0, n, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, n))
        block = block_of(entries, rows, slice(0, n))
        np.fill_diagonal(block[:, start:], 0.0)
        sums[rows] = block.sum(axis=1, dtype=np.float64)
    return sums


def _assembled(
    entries: Entries,
    kind: np.dtype[Any],
    sums: Float64,
    own: Float64 | None,
    bias: Float64 | float = 0.0,
) -> Relation:
    """Put a relation together.

    Parameters
    ----------
    sums
        Row sums of the off-diagonal entries.
    own
        The diagonal, for a doubly centred relation; None for one that is mean-centred off it.
    bias
        An additive row effect that the entries leave out.
    """
    n, total = len(sums), float(sums.sum())
    shift = total / (2 * (n - 1) * (n - 2)) - sums / (n - 2)
    shift = shift.astype(entries.dtype)
    if own is None:
        effects = (sums - total / n) / (n - 2) + bias - np.mean(bias)
        row_effects, grand_effect = np.sqrt(2 * (n - 2)) * effects, 0.0
    else:
        means = (sums + own) / n
        diagonal = own - 2 * means + means.mean()
        trace = float(diagonal.sum())
        row_effects = np.sqrt(n / (n - 2)) * (diagonal - trace / n)
        grand_effect = trace / np.sqrt(n - 1)
    storage: RelationStorage = LazyRelation(entries, shift)
    if packed_bytes(n, kind) <= entries.nbytes:  # smaller, and computed only once
        packed = PackedRelation.of(storage, n, kind)
        storage, largest = packed, packed.largest
    elif isinstance(entries, Products):
        largest = _largest_of_products(entries.features[:], shift)
    else:
        largest = _largest(storage, n, kind)
    step = step_of(largest * ROUNDING_MARGIN, n)
    return Relation(storage, kind, np.asarray(row_effects), float(grand_effect), 1.0, step)


def _largest(storage: RelationStorage, n: int, kind: np.dtype[Any]) -> float:
    """Find the size of the largest entry."""
    largest = 0.0
    for rows in strips(n):
        strip: Floating = np.empty((rows.stop - rows.start, n - rows.start), dtype=kind)
        storage.upper(rows, slice(rows.start, n), strip)
        largest = max(largest, float(strip.max()), -float(strip.min()))
    return largest


def _largest_of_products(features: Floating, shift: Floating) -> float:
    """Bound the entries x_i·x_j + s_i + s_j off the diagonal.

    Lengths alone give too large a bound where a few rows are much longer than all others: the
    square of the longest is on the diagonal, and steps of that size would round away all others.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    order = np.argsort(lengths)[::-1]
    longest, others = order[:CHECKED_ROWS], order[CHECKED_ROWS:]
    entries = features[longest] @ features.T
    entries += shift[longest, None]
    entries += shift
    entries[np.arange(len(longest)), longest] = 0.0
    largest = max(float(entries.max()), -float(entries.min()))
    # bound of the rounding error of an entry, for every order of summation
    terms = float(lengths[order[:2]].prod()) + 2 * float(np.abs(shift).max())
    largest += (features.shape[1] + 2) * float(np.finfo(features.dtype).eps) * terms
    if len(others) > 1:
        bound = float(lengths[others[:2]].prod()) + 2 * float(np.abs(shift[others]).max())
        largest = max(largest, bound)
    return float(largest)


def _self_product(relation: Relation) -> float:
    """⟨U, U⟩ above the diagonal, in steps."""
    n, count = relation.n_stimuli, slices(relation.dtype)
    sums = np.zeros((1, count, count), dtype=np.int64)
    for rows in strips(n):
        strip: Floating = np.empty((rows.stop - rows.start, n - rows.start), dtype=relation.dtype)
        relation.upper(rows, slice(rows.start, n), strip)
        whole = np.empty((1, count, strip.size), dtype=np.float32)
        in_steps(strip.ravel(), relation.step, n, whole[0])
        add_own(whole, sums)
    return float(joined(sums, n)[0])


def in_units(products: Float64, xs: Sequence[Relation], ys: Sequence[Relation]) -> Float64:
    """Give products ⟨U_x, U_y⟩, `(..., len(xs), len(ys))`, from those above the diagonal in steps.

    Exact, since a step is a power of two.
    """
    return np.asarray(2.0 * products * np.outer([x.step for x in xs], [y.step for y in ys]))


def row_effect_products(
    xs: Sequence[Relation], ys: Sequence[Relation], order: Index | None = None
) -> Float64:
    """Give ℓ_x · ℓ_y, `(len(xs), len(ys))`, each summed in the same order for any others.

    Parameters
    ----------
    order
        Of the stimuli of Y.
    """
    own, other = (np.stack([r.row_effects for r in side]) for side in (xs, ys))
    other = other if order is None else np.ascontiguousarray(other[:, order])
    return np.asarray(np.einsum("in,jn->ij", own, other))


def relation_scores(
    products: ArrayLike,
    effects: Float64,
    xs: Sequence[Relation],
    ys: Sequence[Relation],
    *,
    wanted: Mask,
    u_centred_only: bool,
    added: float = 0.0,
) -> Float64:
    """Turn products ⟨U_x, U_y⟩ into scores; NaN where a norm is zero or a pair is not wanted.

    Parameters
    ----------
    products
        `(..., len(xs), len(ys))`.
    effects
        ℓ_x · ℓ_y, of the shape of `products`.
    xs, ys
        The relations.
    wanted
        Mask `(len(xs), len(ys))`.
    u_centred_only, added
        As for `denominators`.
    """
    scores = np.array(products, dtype=np.float64)
    if not u_centred_only:
        scores += effects
        scores += np.outer([x.grand_effect for x in xs], [y.grand_effect for y in ys])
    scores /= denominators(xs, ys, wanted=wanted, u_centred_only=u_centred_only, added=added)
    return np.clip(scores, -1.0, 1.0, out=scores)  # only the rounding of the quotient can exceed it


def denominators(
    xs: Sequence[Relation],
    ys: Sequence[Relation],
    *,
    wanted: Mask,
    u_centred_only: bool,
    added: float = 0.0,
) -> Float64:
    """Give the denominators of scores, `(len(xs), len(ys))`; NaN where there is no score.

    Parameters
    ----------
    wanted
        Mask `(len(xs), len(ys))`.
    u_centred_only
        Whether only the U-centred relations are compared.
    added
        Number that some code adds to the denominator of CKA, in units of its HSIC: for the biased
        one, the product of doubly centred relations of the unscaled features; for the unbiased
        one, that of U-centred relations over n(n−3).
    """
    of_x, of_y = np.zeros(len(xs)), np.zeros(len(ys))
    for side, of, used in ((xs, of_x, wanted.any(axis=1)), (ys, of_y, wanted.any(axis=0))):
        for i in np.flatnonzero(used).tolist():
            of[i] = side[i].squared_norm(u_centred_only=u_centred_only)
    norms = np.where(wanted, np.outer(of_x, of_y), 0.0)
    norms[norms == 0.0] = np.nan
    found = np.sqrt(norms)
    if added:
        n = xs[0].n_stimuli
        hsic = np.outer([x.feature_scale for x in xs], [y.feature_scale for y in ys]) ** 2
        found += added / hsic * (n * (n - 3) if u_centred_only else 1)
    return np.asarray(found)
