"""Representational similarity analysis (RSA)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

from pipeline.errors import InputError
from pipeline.measures.dense.entries import DenseTable, Entries, Products, block_of
from pipeline.measures.dense.forming import assembled, constant_relation, distances_of, row_sums
from pipeline.measures.dense.measure import EXACT_PRODUCTS, DenseMeasure
from pipeline.measures.dense.relations import Relation
from pipeline.measures.measure import Parameter
from pipeline.measures.numerics import power_of_two, unit_rows
from pipeline.types import Float64, Floating, Index

MAX_RUN_GAPS = 8.0
"""Values that differ only by rounding errors spread over at most so many of these."""
MAX_RANKED = 8192
"""Most stimuli whose pairs can be ranked: the tables take 512 MiB."""
DIRECTION_TOLERANCE = 4.0
"""Rows of unit length differ if they do by more than this many machine epsilons."""


def form_rsa(
    values: Floating, eps: float, dtype: np.dtype[Any], dissimilarity: str, comparison: str
) -> Relation:
    """Mean-centred dissimilarities of pairs of stimuli, or their ranks; near is high."""
    n = len(values)
    entries: Entries
    bias, unit_of_entries = np.zeros(n), 1.0
    if dissimilarity == "euclidean":
        entries = distances_of(values)
        sums = row_sums(entries, n)
    else:
        units = unit_rows(values.astype(np.float64), centre=dissimilarity == "correlation")
        mean = units.mean(axis=0)
        units -= mean  # z·z' = (z−m)·(z'−m) + m·z + m·z' − m·m, and additive effects are apart
        spread = np.sqrt(np.einsum("ij,ij->", units, units) / n)
        if spread <= DIRECTION_TOLERANCE * eps:  # directions differ by their own rounding
            return constant_relation(n, dtype)
        # Rows with a large feature in common differ little; scaled, float32 still resolves them.
        units, mean = units / spread, mean / spread
        bias, unit_of_entries = units @ mean, float(spread**2)
        entries = Products(units if comparison == "spearman" else units.astype(dtype))
        sums = -np.einsum("ij,ij->i", units, units)  # since rows add up to nothing
    if comparison == "spearman":
        check_rankable(n)
        everyone = slice(0, n)
        table = np.asarray(block_of(entries, everyone, everyone), dtype=np.float64)
        noise = storage_noise(values.astype(np.float64), eps, dissimilarity) / unit_of_entries
        entries, bias = DenseTable(ranked(table + bias[:, None] + bias, noise)), np.zeros(n)
        sums = row_sums(entries, n)
    return assembled(entries, dtype, sums, None, bias)


def ranked(entries: Float64, noise: float) -> Float64:
    """Rank the entries above the diagonal, ties averaged, and scale the ranks to ±1.

    Parameters
    ----------
    entries
        A symmetric `(n, n)` matrix.
    noise
        Error of an entry due to the dtype that the features were stored in. Entries that differ
        by no more than this, or than their own rounding, are tied.

    Returns
    -------
    numpy.ndarray
        `(n, n)`, symmetric with zero diagonal, of mean zero off it.
    """
    n = len(entries)
    above = np.triu_indices(n, k=1)
    flat = entries[above]
    rounding = np.ldexp(np.finfo(float).eps, 7 + int(np.frexp(np.abs(flat).max())[1]))
    ranks = scipy.stats.rankdata(_levels(flat, max(noise, float(rounding))))
    table = np.zeros((n, n))
    table[above] = (2.0 * ranks - len(ranks) - 1.0) / len(ranks)
    table.T[above] = table[above]
    return table


def _levels(values: Float64, apart: float) -> Index:
    """Assign each value to a level: a run of values without a gap is one.

    A long run of values, each close to the next, is cut every `MAX_RUN_GAPS` gaps: ranks within a
    piece do not matter, and the pieces keep their order.
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    starts = np.concatenate([[True], np.diff(ascending) > apart])
    run = np.cumsum(starts) - 1
    piece = np.floor((ascending - ascending[starts][run]) / (MAX_RUN_GAPS * apart))
    fresh = starts | np.concatenate([[False], np.diff(piece) != 0])
    levels = np.empty(len(values), dtype=np.intp)
    levels[order] = np.cumsum(fresh)
    return levels


def storage_noise(values: Float64, eps: float, dissimilarity: str) -> float:
    """Bound the error of a dissimilarity due to the storage dtype, for a typical stimulus.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    eps
        Machine epsilon of the dtype they were stored in: the relative error of a number, and
        of the length of a row, is at most half of it. Subtracting a mean before rows are compared,
        their own or that of all stimuli, keeps the error and makes it larger relative to the rest.
    dissimilarity
        ``"correlation"``, ``"cosine"`` or ``"euclidean"``.

    Returns
    -------
    float
        For correlations and cosines in their units, for Euclidean distances in units of the root
        mean squared distance of stimuli from their mean.
    """
    rows = values * power_of_two(np.abs(values).max())
    whole = np.linalg.norm(rows, axis=1)
    if dissimilarity == "euclidean":
        left = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
        return eps * float(np.sqrt(np.mean(whole**2) / np.mean(left**2)))
    left = whole
    if dissimilarity == "correlation":
        left = np.linalg.norm(rows - rows.mean(axis=1, keepdims=True), axis=1)
    some = left > eps * whole
    return eps * float(np.median(whole[some] / left[some])) if some.any() else eps


def check_rankable(n: int) -> None:
    """Refuse to rank the pairs of too many stimuli."""
    if n > MAX_RANKED:
        raise InputError(
            f"rsa with comparison='spearman' ranks all pairs of stimuli at once, and {n} stimuli "
            f"have too many. Compare a subset of at most {MAX_RANKED}, or use comparison='pearson'."
        )


RSA = DenseMeasure(
    name="rsa",
    version=2,
    changed=EXACT_PRODUCTS + "; values that differ by float32 rounding alone have equal ranks",
    form=form_rsa,
    formed_with=("dissimilarity", "comparison"),
    range=(-1.0, 1.0),
    invariances=("isotropic scaling",),
    parameters=(
        Parameter(
            "dissimilarity",
            "correlation",
            "of the rows of two stimuli",
            choices=("correlation", "cosine", "euclidean"),
        ),
        Parameter(
            "comparison",
            "pearson",
            "correlation of the dissimilarities, or of their ranks",
            choices=("pearson", "spearman"),
        ),
    ),
    conventions=(
        ("pairs", "above the diagonal"),
        ("estimator", "mean-centred"),
        ("euclidean", "distances, not squared"),
        ("ties", "average rank, of what differs by its rounding too"),
    ),
    minimum_stimuli=4,
    reference="Kriegeskorte et al. 2008, Front. Syst. Neurosci. 2:4",
    prose=(
        "Representational similarity analysis: the correlation of two matrices of "
        "dissimilarities between stimuli. With Euclidean dissimilarities also invariant to "
        "translation and orthogonal transformation, with cosine ones to orthogonal "
        "transformation and row scaling, with correlations to shifts and scalings of rows. A "
        "row that is constant has correlation 0 with every other, a row of zeros cosine 0."
    ),
    elsewhere=(
        ("rsatoolbox", "`euclidean` dissimilarities are squared distances"),
        ("ReSi", "dissimilarities are compared by their ranks, comparison='spearman' here"),
    ),
)
