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

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.measures.dense.entries import RelationStorage, strips, whole
from pipeline.measures.dense.exact import add_own, in_steps, joined, slices
from pipeline.types import Float64, Floating, Index, Mask

RelationKey = tuple[str | float, ...]
"""What distinguishes relations: their name, and the parameters that they are formed with, such as
``("linear",)``, ``("rbf", bandwidth)`` or ``("rsa", dissimilarity, comparison)``."""


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
