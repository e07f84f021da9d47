"""Dissimilarities of stimuli, as representational similarity analysis compares them."""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.measures.neighbours import power_of_two

Float64 = NDArray[np.float64]

RANKED = 8192
"""Most stimuli whose pairs are ranked: tables of 512 MiB."""


def unit_rows(values: Float64, *, centre: bool = False) -> Float64:
    """Scale rows to unit length.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    centre
        Whether each row's own mean is taken away first.

    Returns
    -------
    numpy.ndarray
        Of the shape of `values`; rows of zeros, and with `centre` constant rows, are zero.
    """
    # Each by its own largest value first: squares of small rows would underflow.
    rows = values * power_of_two(np.abs(values).max(axis=1, keepdims=True))
    if centre:
        rows -= rows.mean(axis=1, keepdims=True)
        # A constant row, whose mean was not quite that constant.
        rows[np.abs(rows).max(axis=1) <= 4 * np.finfo(float).eps] = 0.0
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows


def ranked(entries: Float64) -> Float64:
    """Rank the entries above the diagonal, ties averaged, and scale the ranks to ±1.

    Parameters
    ----------
    entries
        A symmetric `(n, n)` matrix. Entries that differ by their rounding are ties.

    Returns
    -------
    numpy.ndarray
        `(n, n)`, symmetric with zero diagonal, of mean zero off it.
    """
    n = len(entries)
    above = np.triu_indices(n, k=1)
    flat = entries[above]
    unit = np.ldexp(np.finfo(float).eps, 7 + int(np.frexp(np.abs(flat).max())[1]))
    ranks = scipy.stats.rankdata(np.round(flat / unit))
    table = np.zeros((n, n))
    table[above] = (2.0 * ranks - len(ranks) - 1.0) / len(ranks)
    table.T[above] = table[above]
    return table


def check_rankable(n: int) -> None:
    """Refuse to rank the pairs of too many stimuli."""
    if n > RANKED:
        raise InputError(
            f"rsa with comparison='spearman' ranks all pairs of stimuli at once, and {n} stimuli "
            f"have too many. Compare a subset of at most {RANKED}, or use comparison='pearson'."
        )
