"""Arithmetic on features that all engines share: exact scaling, unit rows, and constancy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.types import Float64, Mask

EPS = float(np.finfo(np.float64).eps)
"""Machine epsilon of float64."""
CONVERTED_ROWS = 64
"""Rows that are converted to float64 at a time: few enough for the cache."""


def row_blocks(n: int) -> Iterator[slice]:
    """Rows that are converted at a time."""
    for start in range(0, n, CONVERTED_ROWS):
        yield slice(start, min(start + CONVERTED_ROWS, n))


def power_of_two(largest: ArrayLike) -> Float64:
    """Power of two that scales `largest` to between ½ and 1; exact, so that no tie is broken."""
    return np.asarray(np.ldexp(1.0, np.minimum(-np.frexp(largest)[1], 1000)))


def unit_rows(values: Float64, *, centre: bool = False) -> Float64:
    """Scale rows to unit length.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    centre
        Whether each row's own mean is subtracted first.

    Returns
    -------
    numpy.ndarray
        Of the shape of `values`; rows of zeros, and with `centre` constant rows, are zero.
    """
    # Scale each row by its largest value first: squares of small rows would underflow.
    rows = values * power_of_two(np.abs(values).max(axis=1, keepdims=True))
    if centre:
        rows -= rows.mean(axis=1, keepdims=True)
        # Constant rows, whose computed mean differs from the constant.
        rows[np.abs(rows).max(axis=1) <= 4 * np.finfo(float).eps] = 0.0
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows


def storage_eps(array: NDArray[Any]) -> float:
    """Machine epsilon of the dtype that `array` was stored in."""
    return float(np.finfo(array.dtype if array.dtype.kind == "f" else np.float64).eps)


def is_constant(values: NDArray[Any], eps: float) -> bool:
    """Tell whether every feature varies by no more than its own rounding.

    Each feature is tested separately, because transformers often have one huge constant feature
    beside small ones that vary; and by its highest and lowest value, because the computed mean of
    many equal numbers differs from them.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    eps
        Machine epsilon of the dtype they were stored in.
    """
    return bool(constant_features(values, eps).all())


def constant_features(values: NDArray[Any], eps: float) -> Mask:
    """Tell which features vary by no more than their own rounding, `(n_features,)`."""
    high, low = (extreme(axis=0).astype(np.float64) for extreme in (values.max, values.min))
    # Halves, since the range of very large numbers would overflow.
    return np.asarray(high / 2 - low / 2 <= eps * np.maximum(np.abs(high), np.abs(low)))
