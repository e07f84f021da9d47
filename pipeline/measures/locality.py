"""Measures of how similar each stimulus's neighbours are to it, not only of who they are.

Similarities are computed where they are asked for: none needs an n × n matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.measures.dissimilarity import unit_rows
from pipeline.measures.kernel import EPS, Kernel
from pipeline.measures.measure import Parameter
from pipeline.measures.neighbourhood import (
    NeighbourLists,
    is_in,
    pair_keys,
    prepare_neighbours,
    products_at,
)
from pipeline.measures.neighbours import power_of_two

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class NeighbourGram:
    """Similarities with the nearest, and nowhere else: a masked Gram matrix.

    `keys` number the pairs (i, neighbour of i), ascending, and `entries` are what belongs to each,
    both `(n_stimuli · k,)`. `norm` is the alignment of the representation with itself.
    """

    keys: Indices
    entries: Float64
    n: int
    form: str
    norm: float
    defined: bool


def prepare_cknna(
    values: Float64,
    *,
    k: int = 10,
    form: str = "paper",
    neighbours: str = "cosine",
    unit: float = EPS,
) -> NeighbourGram:
    """Prepare the similarities with nearest neighbours that CKNNA compares.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > max(k, 3).
    k
        Number of nearest neighbours, at least 2.
    form
        ``"unbiased"`` and ``"biased"`` as in the paper's code, ``"paper"`` as in the paper's
        equations; see `compare_cknna`.
    neighbours
        ``"cosine"`` for the Gram matrix of rows of unit length, ``"inner"`` for that of the rows as
        they are. The nearest are those of largest entries.
    unit
        Relative spacing of the numbers that the features were stored in.

    Returns
    -------
    NeighbourGram
        Not defined if nothing is nearest, or if the alignment of the representation with itself
        is not positive, which the unbiased form does not exclude.
    """
    lists = prepare_neighbours(
        values, k=k, neighbours=neighbours, include_self=form == "biased", unit=unit
    )
    n = len(values)
    indices = np.sort(lists.indices, axis=1)
    keys = pair_keys(indices, n).ravel()
    if not lists.defined:
        return NeighbourGram(keys, np.zeros(keys.size), n, form, 0.0, False)
    rows = (
        unit_rows(values) if neighbours == "cosine" else values * power_of_two(np.abs(values).max())
    )
    if form == "paper":
        # K_ij − mean over l of K_il = φ_i · (φ_j − mean φ), without a difference of large numbers.
        mean = rows.mean(axis=0)
        entries = _crossed(rows, rows - mean, indices)
    else:
        entries = products_at(rows, indices)
    gram = NeighbourGram(keys, entries.ravel(), n, form, 0.0, False)
    norm, rounding = _alignment(gram, gram)
    defined = norm > rounding
    return NeighbourGram(keys, gram.entries, n, form, norm if defined else 0.0, defined)


def _crossed(rows: Float64, others: Float64, indices: Indices) -> Float64:
    """Inner products of rows[i] with others[indices[i, :]], `(n_stimuli, k)`."""
    n = len(rows)
    stacked = np.concatenate([others, rows])
    return products_at(stacked, indices, np.arange(n, 2 * n))


def _alignment(x: NeighbourGram, y: NeighbourGram) -> tuple[float, float]:
    """Alignment of two masked Gram matrices, and what rounding may have done to it."""
    n = x.n
    common, at_x, at_y = np.intersect1d(x.keys, y.keys, assume_unique=True, return_indices=True)
    u, v = x.entries[at_x], y.entries[at_y]
    if len(common) == 0:
        return 0.0, 0.0
    if x.form == "paper":
        return float(u @ v), 64 * EPS * float(np.abs(u) @ np.abs(v))
    row, column = common // n, common % n
    reverse = column * n + row
    place = np.minimum(np.searchsorted(common, reverse), len(common) - 1)
    mutual = common[place] == reverse
    product = u[mutual] * v[place[mutual]]  # tr(K L): a pair counts if each is near the other
    u_rows, u_columns = (np.bincount(of, weights=u, minlength=n) for of in (row, column))
    v_rows, v_columns = (np.bincount(of, weights=v, minlength=n) for of in (row, column))
    total = float(u.sum()) * float(v.sum())
    if x.form == "unbiased":
        terms = [
            float(product.sum()),
            total / ((n - 1) * (n - 2)),
            -2.0 / (n - 2) * float(u_columns @ v_rows),
        ]
    else:
        terms = [
            float(product.sum()),
            total / n**2,
            -float(u_columns @ v_rows + v_columns @ u_rows) / n,
        ]
    return sum(terms), 64 * EPS * sum(abs(term) for term in terms)


def compare_cknna(x: NeighbourGram, y: NeighbourGram, *, added: float = 0.0) -> float:
    """Compute CKA restricted to pairs of stimuli that are near each other in both.

    Parameters
    ----------
    x, y
        States from `prepare_cknna`, of equal parameters.
    added
        Added to the denominator, in units of HSIC; the paper's code adds 1e-6.

    Returns
    -------
    float
        A(x, y) / sqrt(A(x, x) A(y, y)), 1 for equal arguments. NaN if a state is not defined.

    Notes
    -----
    With K and L the Gram matrices and M the 0/1 matrix of pairs (i, j) where j is among the k
    nearest of i both in x and in y, and with K' = M∘K, L' = M∘L:

    - form ``"unbiased"``, default of the paper's code: A is Song's unbiased HSIC of K' and L',
      tr(K'L') + 1ᵀK'1 1ᵀL'1/((n−1)(n−2)) − 2/(n−2) 1ᵀK'L'1, zero on the diagonal. K' and L' are
      not symmetric matrices, so 1ᵀK'L'1 ≠ 1ᵀL'K'1 and the score of (x, y) is not quite that of
      (y, x); nor is it bounded by 1.
    - form ``"biased"``, the code's other choice: A = tr(K'HL'H), H = I − 11ᵀ/n, the diagonal
      included, a stimulus being its own neighbour where its product with itself is large enough.
      Symmetric, not bounded by 1.
    - form ``"paper"``: A = Σ M_ij (K_ij − mean_l K_il)(L_ij − mean_l L_il). Symmetric, and from
      −1 to 1 by Cauchy and Schwarz.

    In the code the unbiased A is divided by n(n−3), which tells only where
    something is added. Gram matrices are of rows that
    are not centred, as in the code, so that no form is invariant to translation. With k = n − 1
    the unbiased form is debiased CKA, though a large offset then costs digits.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML, appendix A, eq. 16 to 18, and
    ``cknna`` of its code. Song et al. 2012, JMLR 13, eq. 5.
    """
    if not (x.defined and y.defined):
        return float("nan")
    per_hsic = x.n * (x.n - 3) if x.form == "unbiased" else 1
    return _alignment(x, y)[0] / (float(np.sqrt(x.norm * y.norm)) + added * per_hsic)


@dataclass(frozen=True, eq=False)
class CosineNeighbours:
    """Rows of unit length, the nearest by cosine, and the cosines with these `(n_stimuli, k)`."""

    rows: Float64
    lists: NeighbourLists
    cosines: Float64

    @property
    def defined(self) -> bool:
        """Whether anything is nearest."""
        return self.lists.defined


def prepare_second_order_cosine(
    values: Float64, *, k: int = 10, unit: float = EPS
) -> CosineNeighbours:
    """Prepare neighbours by cosine, and the rows that cosines with others' neighbours need.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > k.
    k
        Number of nearest neighbours.
    unit
        Relative spacing of the numbers that the features were stored in.

    Returns
    -------
    CosineNeighbours
        Not defined if all rows point the same way.
    """
    lists = prepare_neighbours(values, k=k, neighbours="cosine", unit=unit)
    rows = unit_rows(values)
    return CosineNeighbours(rows, lists, products_at(rows, lists.indices))


def compare_second_order_cosine(x: CosineNeighbours, y: CosineNeighbours) -> float:
    """Compute how alike the cosines with the nearest neighbours are.

    Parameters
    ----------
    x, y
        States from `prepare_second_order_cosine`, of equal k.

    Returns
    -------
    float
        For each stimulus i the cosine between the vectors of cosines cos(x_i, x_j) and
        cos(y_i, y_j), j running over the k nearest of i in x or in y; averaged over stimuli. From
        −1 to 1. NaN if a state is not defined.

    Notes
    -----
    Where both vectors are zero, as for a row of zeros in both, they count as equal; where one is,
    as orthogonal. Near 1 whatever the representations if all cosines are near 1, as with features
    that share a large offset. The ReSi benchmark's code takes cosine distances in place of
    cosines, which gives other numbers.

    References
    ----------
    Hamilton, Leskovec & Jurafsky 2016, Cultural Shift or Linguistic Drift?, EMNLP, the local
    neighbourhood measure of section 2. Klabunde et al. 2023, Similarity of Neural Network Models,
    section on nearest neighbours (second-order cosine similarity).
    """
    if not (x.defined and y.defined):
        return float("nan")
    n = len(x.rows)
    of_x, of_y = x.lists.indices, y.lists.indices
    fresh = ~is_in(x.lists.keys(), pair_keys(of_y, n))  # so that the union holds each j once
    first = np.concatenate([x.cosines, products_at(x.rows, of_y) * fresh], axis=1)
    second = np.concatenate([products_at(y.rows, of_x), y.cosines * fresh], axis=1)
    products = np.einsum("ij,ij->i", first, second)
    norms: Float64 = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    neither = ~(first.any(axis=1) | second.any(axis=1))
    cosines: Float64 = np.asarray(neither, dtype=np.float64)
    positive = norms > 0
    cosines[positive] = products[positive] / norms[positive]
    return float(np.clip(cosines, -1.0, 1.0).mean())


_K = Parameter("k", 10, "number of nearest neighbours")

KERNELS: Mapping[str, Kernel] = {
    "cknna": Kernel(
        prepare_cknna,
        compare_cknna,
        (
            Parameter("k", 10, "number of nearest neighbours", minimum=2),
            Parameter(
                "form",
                "paper",
                "the alignment: as in the paper's equations, or the two forms of its code",
                choices=("paper", "unbiased", "biased"),
            ),
            Parameter(
                "neighbours",
                "cosine",
                "the Gram matrix: of rows of unit length, or of rows as they are",
                choices=("cosine", "inner"),
            ),
        ),
        ("k", "form", "neighbours"),
    ),
    "second_order_cosine": Kernel(
        prepare_second_order_cosine, compare_second_order_cosine, (_K,), ("k",)
    ),
}
"""By the measure's name."""
