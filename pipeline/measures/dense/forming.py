"""Steps in forming any relation: centred features, distances, row sums, U-centring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pipeline.measures.dense.entries import (
    Distances,
    Entries,
    LazyRelation,
    PackedRelation,
    Products,
    RelationStorage,
    block_of,
    packed_bytes,
    strips,
)
from pipeline.measures.dense.exact import step_of
from pipeline.measures.dense.relations import Relation, SelfProduct
from pipeline.measures.numerics import power_of_two, row_blocks
from pipeline.types import Float64, Floating

BLOCK_ROWS = 512
"""Rows and columns of the blocks in which sums over one representation are computed."""
ROUNDING_MARGIN = 1.01
"""Factor by which rounding may increase entries beyond their bound."""
CHECKED_ROWS = 32
"""The largest entry is searched among all products of this many longest rows."""


def constant_relation(n: int, dtype: np.dtype[Any]) -> Relation:
    """Give the relation of stimuli that are all alike: zero."""
    empty = np.zeros((n, 1), dtype=dtype)
    return Relation(
        LazyRelation(Products(empty), empty[:, 0]),
        dtype,
        np.zeros(n),
        0.0,
        1.0,
        self_product=SelfProduct(0.0),
    )


def centred_features(values: Floating, dtype: DTypeLike) -> tuple[Floating, Float64, float]:
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
    features: Floating = np.empty((n, d), dtype=dtype)
    squares = np.empty(n)
    rest = np.zeros(d)  # what rounding left of an offset
    for rows in row_blocks(n):
        block = values[rows] * power
        block -= mean
        rest += block.sum(axis=0) / n
        squares[rows] = np.einsum("ij,ij->i", block, block)
        features[rows] = block
    squares += rest @ rest - 2.0 * (features @ rest.astype(dtype))
    scale = np.sqrt(n / squares.sum())
    features -= rest.astype(dtype)
    features *= scale.astype(dtype)
    return features, squares * scale**2, float(1.0 / (power * scale))


def distances_of(values: Floating) -> Distances:
    """Euclidean distances of centred features, in float64; near is high, so they are negative."""
    features: Float64 = centred_features(values, np.float64)[0].astype(np.float64, copy=False)
    # From the centred features themselves, so that equal distances stay equal.
    return Distances(features, np.einsum("ij,ij->i", features, features))


def row_sums(entries: Entries, n: int) -> Float64:
    """Sum the off-diagonal entries of each row."""
    sums = np.empty(n)
    for start in range(0, n, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, n))
        block = block_of(entries, rows, slice(0, n))
        np.fill_diagonal(block[:, start:], 0.0)
        sums[rows] = block.sum(axis=1, dtype=np.float64)
    return sums


def assembled(
    entries: Entries,
    dtype: np.dtype[Any],
    sums: Float64,
    own: Float64 | None,
    bias: Float64 | float = 0.0,
) -> Relation:
    """U-centre entries, and keep the effects that this removes.

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
    if packed_bytes(n, dtype) <= entries.nbytes:  # smaller, and computed only once
        packed = PackedRelation.of(storage, n, dtype)
        storage, largest = packed, packed.largest
    elif isinstance(entries, Products):
        largest = _largest_of_products(entries.features[:], shift)
    else:
        largest = _largest(storage, n, dtype)
    step = step_of(largest * ROUNDING_MARGIN, n)
    return Relation(storage, dtype, np.asarray(row_effects), float(grand_effect), 1.0, step)


def _largest(storage: RelationStorage, n: int, dtype: np.dtype[Any]) -> float:
    """Find the size of the largest entry."""
    largest = 0.0
    for rows in strips(n):
        strip: Floating = np.empty((rows.stop - rows.start, n - rows.start), dtype=dtype)
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
