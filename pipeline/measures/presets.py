"""Conventions of published code, applied before a measure sees the features.

``prh`` is what the code of Huh et al. 2024 does with the stacked layers of a model: magnitudes
above τ, the 0.95 quantile of |x| over all layers together, are clipped to τ, then every row of
every layer is scaled to unit length. Its estimates of HSIC are divided by a denominator to which
1e-6 is added. ``prh_rowwise`` takes for τ the mean over stimuli of each stimulus's own quantile,
which is that code's other choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.measures.numerics import unit_rows
from pipeline.types import Float64

HUH = "Huh et al. 2024, code"
"""Whose conventions presets follow."""
PRESETS = ("prh", "prh_rowwise")
"""By name. The empty name is no preset."""
QUANTILE = 0.95
ADDED = 1e-6
"""Added to the denominators of HSIC under a preset."""
CONVENTIONS: dict[str, dict[str, str | float]] = {
    "prh": {"clipping": "|x| at most sorted(|x|)[int(0.95 N)] of all N in the encoder's layers"},
    "prh_rowwise": {"clipping": "|x| at most the mean over stimuli of their 0.95 quantile of |x|"},
}
ROWS_BYTES = 2**26
"""Memory for the rows whose quantiles are taken at a time."""


def clip_threshold(layers: Callable[[], Iterable[NDArray[Any]]], preset: str) -> float:
    """Find the magnitude beyond which a preset clips the activations of an encoder.

    Parameters
    ----------
    layers
        Gives the encoder's layers one after the other, `(n_stimuli, n_features)` each, as often as
        it is called: two or four times for ``prh``. So they need not be in memory together.
    preset
        One of `PRESETS`.

    Returns
    -------
    float
        τ, at least 0.

    References
    ----------
    Huh et al. 2024, The Platonic Representation Hypothesis, ICML: ``remove_outliers`` in the code.
    """
    if preset == "prh":
        return _exact_quantile(layers)
    shapes = [layer.shape for layer in layers()]
    n, width = shapes[0][0], sum(d for _, d in shapes)
    step = max(1, ROWS_BYTES // (8 * width))
    total = 0.0
    for start in range(0, n, step):
        parts = [np.abs(layer[start : start + step].astype(np.float64)) for layer in layers()]
        quantiles = np.quantile(np.concatenate(parts, axis=1), QUANTILE, axis=1)
        total += float(np.sum(quantiles))
    return total / int(n)


def _exact_quantile(layers: Callable[[], Iterable[NDArray[Any]]]) -> float:
    """Give sorted(|x|)[int(0.95 N)] without sorting: magnitudes are ordered as their bits are."""
    wide = any(layer.dtype != np.float32 for layer in layers())
    real, whole, digits = (np.float64, np.uint64, 4) if wide else (np.float32, np.uint32, 2)
    place, known = -1, 0
    for digit in reversed(range(digits)):  # of 16 bits, the highest first
        counts = np.zeros(2**16, dtype=np.int64)
        for layer in layers():
            bits = np.abs(layer.astype(real)).ravel().view(whole)
            if digit < digits - 1:
                bits = bits[bits >> whole(16 * (digit + 1)) == whole(known)]
            places = (bits >> whole(16 * digit)) & whole(0xFFFF)
            counts += np.bincount(places.astype(np.intp), minlength=2**16)
        if place < 0:
            place = int(QUANTILE * int(counts.sum()))
        below = np.cumsum(counts)
        found = int(np.searchsorted(below, place, side="right"))
        place -= int(below[found] - counts[found])
        known = known << 16 | found
    return float(np.array([known], dtype=whole).view(real)[0])


def preset_features(values: NDArray[Any], threshold: float) -> Float64:
    """Clip features at a threshold and scale rows to unit length, in float64.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`.
    threshold
        τ, from `clip_threshold` of the encoder that they are a layer of.

    Returns
    -------
    numpy.ndarray
        `(n_stimuli, n_features)`; rows of zeros stay.
    """
    return unit_rows(np.clip(values.astype(np.float64), -threshold, threshold))
