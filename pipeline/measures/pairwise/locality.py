"""Measures of how similar each stimulus's neighbours are to it, not only of which they are.

Similarities are computed only where needed; no measure here needs an n × n matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.measures.measure import Parameter
from pipeline.measures.neighbours.lists import (
    N_NEIGHBOURS,
    NEIGHBOUR_CONVENTIONS,
    NEIGHBOUR_INVARIANCES,
    SHARED_PLACES,
    Neighbours,
    find_neighbours,
)
from pipeline.measures.numerics import EPS, power_of_two, unit_rows
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.types import Float64, Index


@dataclass(frozen=True, eq=False)
class NeighbourGram:
    """Similarities with the nearest, and nowhere else: a masked Gram matrix.

    `keys` number the pairs (i, neighbour of i), ascending, and `entries` are their similarities
    times the share of a place that the neighbour has; without ties both are `(n_stimuli · k,)`.
    `norm` is the alignment of the representation with itself, `ties` the number of stimuli whose
    neighbours are tied for the last places.
    """

    keys: Index
    entries: Float64
    n: int
    form: str
    norm: float
    defined: bool
    ties: int


def prepare_cknna(
    values: Float64,
    *,
    k: int = 10,
    form: str = "paper",
    neighbours: str = "cosine",
    by_index: bool = False,
    eps: float = EPS,
) -> NeighbourGram:
    """Prepare the similarities with nearest neighbours that CKNNA compares.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > max(k, 3): all others
        can be neighbours.
    k
        Number of nearest neighbours, at least 2.
    form
        ``"unbiased"`` and ``"biased"`` as in the paper's code, ``"paper"`` as in the paper's
        equations; see `compare_cknna`.
    neighbours
        ``"cosine"`` for the Gram matrix of rows of unit length, ``"inner"`` for that of the rows as
        they are. The nearest are those of largest entries.
    by_index
        Give places for which stimuli are tied to those of lowest index instead of sharing them.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    NeighbourGram
        Not defined if nothing is nearest, or if the alignment of the representation with itself
        is not positive, which the unbiased form does not exclude.
    """
    found = find_neighbours(
        values, eps, neighbours, {k}, include_self=form == "biased", by_index=by_index
    )[k]
    n = len(values)
    keys, row, column, shares = _listed(found)
    if not found.defined:
        return NeighbourGram(keys, np.zeros(keys.size), n, form, 0.0, False, n)
    rows = (
        unit_rows(values) if neighbours == "cosine" else values * power_of_two(np.abs(values).max())
    )
    # K_ij − mean over l of K_il = φ_i · (φ_j − mean φ), without a difference of large numbers.
    others = rows - rows.mean(axis=0) if form == "paper" else rows
    entries = shares * _products(rows, row, others, column)
    gram = NeighbourGram(keys, entries, n, form, 0.0, False, found.ties)
    norm, rounding = _alignment(gram, gram)
    defined = norm > rounding
    return replace(gram, norm=norm if defined else 0.0, defined=defined)


def _listed(near: Neighbours) -> tuple[Index, Index, Index, Float64]:
    """List every pair of a stimulus and a neighbour: as one number, row, column, share."""
    relation = near.relation()
    n = relation.shape[0]
    row = np.repeat(np.arange(n), np.diff(relation.indptr))
    column = relation.indices.astype(np.intp)
    return row * n + column, row, column, relation.data


def _products(x: Float64, rows: Index, y: Float64, columns: Index) -> Float64:
    """Inner products of each x[rows] with its y[columns], `(len(rows),)`; rows ascend."""
    found = np.empty(len(rows))
    starts = np.searchsorted(rows, np.arange(len(x) + 1))
    for own, start, stop in zip(x, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        found[start:stop] = y[columns[start:stop]] @ own
    return found


def _alignment(x: NeighbourGram, y: NeighbourGram) -> tuple[float, float]:
    """Alignment of two masked Gram matrices, and a bound of its rounding error."""
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
    added
        Added to the denominator, in units of HSIC; the paper's code adds 1e-6.

    Returns
    -------
    float
        A(x, y) / sqrt(A(x, x) A(y, y)), 1 for equal arguments.

    Notes
    -----
    With K and L the Gram matrices and M the 0/1 matrix of pairs (i, j) where j is among the k
    nearest of i both in x and in y, and with K' = M∘K, L' = M∘L, in which entries of neighbours
    that are tied for the last places count with the share of a place that each has:

    - form ``"unbiased"``, default of the paper's code: A is Song's unbiased HSIC of K' and L',
      tr(K'L') + 1ᵀK'1 1ᵀL'1/((n−1)(n−2)) − 2/(n−2) 1ᵀK'L'1, zero on the diagonal. K' and L' are
      not symmetric matrices, so 1ᵀK'L'1 ≠ 1ᵀL'K'1 and the score of (x, y) is not quite that of
      (y, x); nor is it bounded by 1.
    - form ``"biased"``, the code's other choice: A = tr(K'HL'H), H = I − 11ᵀ/n, the diagonal
      included, a stimulus being its own neighbour where its product with itself is large enough.
      Symmetric, not bounded by 1.
    - form ``"paper"``: A = Σ M_ij (K_ij − mean_l K_il)(L_ij − mean_l L_il). Symmetric, and from
      −1 to 1 by Cauchy and Schwarz.

    The code divides the unbiased A by n(n−3), which matters only where something is added to the
    denominator. Rows are not centred before Gram matrices are formed, as in the code, so that no
    form is invariant to translation. With k = n − 1 the unbiased form is debiased CKA, though a
    large offset then costs digits.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML, appendix A, eq. 16 to 18, and
    ``cknna`` of its code. Song et al. 2012, JMLR 13, eq. 5.
    """
    if not (x.defined and y.defined):
        return float("nan")
    per_hsic = x.n * (x.n - 3) if x.form == "unbiased" else 1
    return _alignment(x, y)[0] / (float(np.sqrt(x.norm * y.norm)) + added * per_hsic)


CKNNA = PairwiseMeasure(
    name="cknna",
    kind="neighbour",
    version=2,
    changed=SHARED_PLACES,
    prepare=prepare_cknna,
    compare=compare_cknna,
    symmetric=False,
    range=(-1.0, 1.0),
    invariances=NEIGHBOUR_INVARIANCES,
    parameters=(
        replace(N_NEIGHBOURS, minimum=2),
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
    prepares=("k", "form", "neighbours"),
    preset_defaults=(("form", "unbiased"),),
    ratio_of_hsic=True,
    conventions=(*NEIGHBOUR_CONVENTIONS, ("kernel", "linear")),
    minimum_stimuli=4,
    grows_with="k",
    beyond=1,
    of_neighbours=True,
    reference="Huh et al. 2024, ICML, appendix A, eq. 16 to 18, and the paper's code",
    prose=(
        "CKA over the pairs of stimuli that are near in both representations. The forms of the "
        "paper's code differ from its equations: they can leave the range (calibrated scores "
        "are clipped at 1), and `unbiased` is slightly asymmetric."
    ),
)


@dataclass(frozen=True, eq=False)
class CosineNeighbours:
    """Rows of unit length, the nearest by cosine, and the cosines with these.

    `keys` number the pairs (i, neighbour of i), ascending; `shares` are the shares of a place that
    neighbours have and `cosines` what they have with i, in the same order.
    """

    rows: Float64
    keys: Index
    shares: Float64
    cosines: Float64
    defined: bool
    ties: int

    def at(self, keys: Index) -> tuple[Float64, Float64]:
        """Give shares and cosines of any pairs; missing cosines are computed."""
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        missing = self.keys[place] != keys
        shares, cosines = np.where(missing, 0.0, self.shares[place]), self.cosines[place]
        row, column = np.divmod(keys[missing], len(self.rows))
        cosines[missing] = _products(self.rows, row, self.rows, column)
        return shares, cosines


def prepare_second_order_cosine(
    values: Float64, *, k: int = 10, by_index: bool = False, eps: float = EPS
) -> CosineNeighbours:
    """Prepare neighbours by cosine, and the rows that cosines with others' neighbours need.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite, with n_stimuli > k.
    k
        Number of nearest neighbours.
    by_index
        Give places for which stimuli are tied to those of lowest index instead of sharing them.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    CosineNeighbours
        Not defined if all rows point the same way.
    """
    found = find_neighbours(values, eps, "cosine", {k}, by_index=by_index)[k]
    keys, row, column, shares = _listed(found)
    rows = unit_rows(values)
    cosines = _products(rows, row, rows, column)
    return CosineNeighbours(rows, keys, shares, cosines, found.defined, found.ties)


def compare_second_order_cosine(x: CosineNeighbours, y: CosineNeighbours) -> float:
    """Compute how alike the cosines with the nearest neighbours are.

    Returns
    -------
    float
        For each stimulus i the cosine between the vectors of cosines cos(x_i, x_j) and
        cos(y_i, y_j), j running over the k nearest of i in x or in y; averaged over stimuli. From
        −1 to 1. Terms of stimuli that share places count with the greater of their shares in x and
        in y.

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
    keys = np.union1d(x.keys, y.keys)
    (share_x, first), (share_y, second) = x.at(keys), y.at(keys)
    weights = np.maximum(share_x, share_y)
    starts = np.searchsorted(keys, np.arange(n) * n)
    products, of_first, of_second = (
        np.add.reduceat(weights * u * v, starts)
        for u, v in ((first, second), (first, first), (second, second))
    )
    norms = np.sqrt(of_first * of_second)
    cosines: Float64 = np.asarray((of_first == 0) & (of_second == 0), dtype=np.float64)
    positive = norms > 0
    cosines[positive] = products[positive] / norms[positive]
    return float(np.clip(cosines, -1.0, 1.0).mean())


SECOND_ORDER_COSINE = PairwiseMeasure(
    name="second_order_cosine",
    kind="neighbour",
    version=2,
    changed=SHARED_PLACES,
    prepare=prepare_second_order_cosine,
    compare=compare_second_order_cosine,
    symmetric=True,
    range=(-1.0, 1.0),
    invariances=(*NEIGHBOUR_INVARIANCES, "row scaling"),
    parameters=(N_NEIGHBOURS,),
    prepares=("k",),
    conventions=(
        ("neighbours", "cosine"),
        *NEIGHBOUR_CONVENTIONS,
        ("compared", "cosines, not distances"),
    ),
    minimum_stimuli=2,
    grows_with="k",
    beyond=1,
    of_neighbours=True,
    reference="Hamilton et al. 2016, EMNLP; Klabunde et al. 2023, survey",
    prose=(
        "Each stimulus's cosines to the union of its neighbours in both representations, "
        "compared by their cosine, averaged."
    ),
    elsewhere=(
        ("ReSi", "cosine distances are compared, 1 less these cosines, which is another score"),
    ),
)
