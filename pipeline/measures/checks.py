"""Checks of an array before anything is computed from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError


def checked_array(x: ArrayLike, name: str) -> NDArray[Any]:
    """Return `x` as a real, finite, two-dimensional array; raise `InputError` if it is not one."""
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors of some kinds
        raise InputError(
            f"{name} cannot be read as an array: {error}. Pass a matrix (n_stimuli, n_features) "
            "whose rows have equal lengths; for a torch tensor, x.detach().cpu().float()."
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
