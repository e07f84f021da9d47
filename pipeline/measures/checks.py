"""Checks of an array before anything is computed from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.types import Mask


def checked_array(x: ArrayLike, name: str) -> NDArray[Any]:
    """Return `x` as a real, finite, two-dimensional array; raise `InputError` if it is not one."""
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors of some kinds
        raise InputError(
            f"{name} cannot be read as an array: {error}. Give a matrix (n_stimuli, n_features), "
            "rows of one length; of a tensor of torch, x.detach().cpu().float()."
        ) from None
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name} has dtype {array.dtype}; a representation holds real numbers. "
            "Convert it to float32 or float64 first."
        )
    if array.ndim != 2:
        raise InputError(
            f"{name} has shape {array.shape}; a representation is a matrix "
            "(n_stimuli, n_features). Pool or flatten tokens and positions first."
        )
    if array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}: there are no features to compare.")
    if array.dtype.kind == "f":
        finite = np.isfinite(array).all(axis=1)
        if not finite.all():
            wrong = np.flatnonzero(~finite)
            raise InputError(
                f"{name} holds NaN or infinity in {wrong.size} of {len(array)} rows, first in row "
                f"{wrong[0]}. Similarities are defined for finite numbers only: drop these "
                "stimuli from every representation alike, or extract them again."
            )
    return array


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
