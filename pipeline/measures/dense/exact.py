"""Exact inner products of relations, as sums of integers.

The last digits of a floating-point sum depend on its order, which BLAS chooses by the shapes of
the matrices: a score would depend on what else is compared. So the entries of a relation are
rounded once, to integer multiples of a step, a power of two of its own. Products and sums of these
are exact in float64 below 2⁵³, and beyond that in 64-bit integers, so that every order of
summation gives the same result.

With b bits, the entries u of a relation lie within ±2ᵇ steps. Rounding them, as if independently,
changes ⟨U, U'⟩ by about step/√12 · ‖U'‖. With the 21 bits of 1,024 stimuli, and largest entries of
twenty times the root mean square, that is 1e-9 of ‖U‖‖U'‖; where a few entries dominate U, about
1e-7. So the step must come from entries off the diagonal, and not from bounds that a single long
row makes large. Entries in float64 are the sum of two such integers, the second of which represents
the remainder of the first.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from pipeline.types import Float32, Float64, Floating, Int64

MAX_TERMS = 2**11
"""Products that are added in float64 before the sum is converted to integers."""
MAX_BITS = 21
"""2 · 21 bits of a product and 11 of its sum: 53, what float64 holds exactly."""


def bits(n: int) -> int:
    """Give b for n stimuli: sums over all pairs must fit 63 bits."""
    return min(MAX_BITS, (64 - math.ceil(2 * math.log2(n))) // 2)


def slices(dtype: DTypeLike) -> int:
    """Give the number of integers that represent one entry of a relation in `dtype`."""
    return 1 if np.dtype(dtype) == np.float32 else 2


def step_of(largest: float, n: int) -> float:
    """Give the step of a relation of n stimuli whose entries are at most `largest` in magnitude."""
    return math.ldexp(1.0, math.frexp(largest)[1] - bits(n)) if largest > 0 else 1.0


def in_steps(values: Floating, step: float, n: int, out: Float32) -> None:
    """Round entries to integer multiples of the step.

    Parameters
    ----------
    values
        `(size,)`; overwritten.
    step
        Of the relation.
    n
        Number of stimuli.
    out
        `(slices, size)`. Integers up to 2²⁴ are exact in float32.
    """
    values *= 1.0 / step
    np.rint(values, out=out[0], casting="same_kind")
    if len(out) > 1:
        values -= out[0]
        values *= 2.0 ** bits(n)
        np.rint(values, out=out[1], casting="same_kind")


def add_products(left: Floating, right: Floating, sums: Int64) -> None:
    """Add left @ rightᵀ, of integers `(rows, size)` and `(columns, size)`, to sums."""
    for start in range(0, left.shape[1], MAX_TERMS):
        part = slice(start, start + MAX_TERMS)
        first = left[:, part].astype(np.float64)
        second = first if left is right else right[:, part].astype(np.float64)
        sums += (first @ second.T).astype(np.int64)


def add_own(values: Floating, sums: Int64) -> None:
    """Add the product of each of `(M, slices, size)` with itself to sums `(M, slices, slices)`."""
    for start in range(0, values.shape[2], MAX_TERMS):
        part = values[:, :, start : start + MAX_TERMS].astype(np.float64)
        sums += (part @ part.swapaxes(1, 2)).astype(np.int64)


def joined(sums: Int64, n: int) -> Float64:
    """Combine the products of integers into those of relations, in steps.

    Parameters
    ----------
    sums
        `(..., slices, slices)`.
    n
        Number of stimuli.
    """
    if sums.shape[-1] == 1:
        return sums[..., 0, 0].astype(np.float64)
    small = 2.0 ** -bits(n)
    mixed = (sums[..., 0, 1] + sums[..., 1, 0]).astype(np.float64)
    least = sums[..., 1, 1].astype(np.float64)
    return np.asarray(sums[..., 0, 0].astype(np.float64) + small * (mixed + small * least))
