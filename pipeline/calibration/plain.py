"""Calibration of plain arrays: without store, labels or cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.calibration.layers import AGGREGATES, aggregate_layers
from pipeline.calibration.permutation import permutation_null, permutations
from pipeline.calibration.statistics import calibrate_score
from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.measure import Value
from pipeline.measures.pairs import score_pairs
from pipeline.measures.plain import prepare_all, resolved
from pipeline.measures.prepared import Prepared

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A similarity beside what chance would give.

    `score` is the observed similarity (of the best layers, or the mean over layers), `threshold`
    the τ that chance exceeds with probability α, `calibrated` the share of the way from τ to the
    measure's maximum, 0 when the score is not above τ; `p` the permutation p-value, `null` the
    `(n_permutations,)` similarities under permutation, and `best_layers` the places in `xs` and
    `ys` of the highest layer score.
    """

    score: float
    calibrated: float
    threshold: float
    p: float
    null: Float64
    method: str
    aggregate: str
    best_layers: tuple[int, int]


def calibrate(
    x: ArrayLike,
    y: ArrayLike,
    measure: str | MeasureSpec = "cka",
    *,
    method: str = "permutation",
    n_permutations: int = 199,
    alpha: float = 0.05,
    seed: int = 0,
    **parameters: Value,
) -> Calibration:
    """Compute the similarity of two representations, calibrated against chance.

    Parameters
    ----------
    x, y
        Activations `(n_stimuli, n_features)` of the same stimuli.
    measure, **parameters
        As for `similarity`.
    method
        How the null is had: ``"permutation"``.
    n_permutations
        K. Fewer than 1/α − 1 could never tell anything from chance, and are refused.
    alpha
        Probability that chance alone exceeds the threshold.
    seed
        Of the permutations.

    Returns
    -------
    Calibration
        Score, calibrated score, threshold, p-value and null.

    Raises
    ------
    InputError
        As `similarity`, and if `method`, `n_permutations` or `alpha` is wrong.

    References
    ----------
    Gröger et al. 2026.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(30, 100)), rng.normal(size=(30, 100))
    >>> result = calibrate(x, y, "cka")
    >>> bool(result.score > 0.7), result.calibrated
    (True, 0.0)
    """
    spec = resolved(measure, parameters)
    prepared = prepare_all([x, y], spec, ["x", "y"])
    return _calibrate(prepared[:1], prepared[1:], spec, "max", method, n_permutations, alpha, seed)


def calibrate_layers(
    xs: Sequence[ArrayLike],
    ys: Sequence[ArrayLike],
    measure: str | MeasureSpec = "cka",
    *,
    aggregate: str = "max",
    method: str = "permutation",
    n_permutations: int = 199,
    alpha: float = 0.05,
    seed: int = 0,
    **parameters: Value,
) -> Calibration:
    """Compute the similarity of two encoders over all their layers, calibrated against chance.

    Parameters
    ----------
    xs, ys
        The layers of each encoder, arrays `(n_stimuli, n_features)` of the same stimuli.
    aggregate
        ``"max"``, the best pair of layers, or ``"mean"``, the mean over all pairs.
    measure, method, n_permutations, alpha, seed, **parameters
        As for `calibrate`.

    Returns
    -------
    Calibration
        The null is that of the aggregate: the search over layers is paid for.

    Raises
    ------
    InputError
        As `calibrate`, and if a list of layers is empty or `aggregate` is unknown.

    References
    ----------
    Gröger et al. 2026.
    """
    if len(xs) == 0 or len(ys) == 0:
        raise InputError("There is nothing to calibrate: a list of layers is empty.")
    if aggregate not in AGGREGATES:
        raise InputError(f"There is no aggregate {aggregate!r}; there is {_listed(AGGREGATES)}.")
    spec = resolved(measure, parameters)
    names = [f"xs[{i}]" for i in range(len(xs))] + [f"ys[{j}]" for j in range(len(ys))]
    prepared = prepare_all([*xs, *ys], spec, names)
    return _calibrate(
        prepared[: len(xs)],
        prepared[len(xs) :],
        spec,
        aggregate,
        method,
        n_permutations,
        alpha,
        seed,
    )


def _calibrate(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    spec: MeasureSpec,
    aggregate: str,
    method: str,
    n_permutations: int,
    alpha: float,
    seed: int,
) -> Calibration:
    """Calibrate two encoders by the method named."""
    if method not in METHODS:
        raise InputError(
            f"There is no method of calibration {method!r}; there is {_listed(METHODS)}."
        )
    if 0 < alpha < 1 and alpha * (n_permutations + 1) < 1 - 1e-9:
        raise InputError(
            f"With n_permutations={n_permutations} the smallest possible p is "
            f"1/{n_permutations + 1}, above alpha={alpha}: nothing could be told from chance. "
            f"Use at least {math.ceil(1 / alpha - 1 - 1e-9)} permutations."
        )
    return METHODS[method](xs, ys, spec, aggregate, n_permutations, alpha, seed)


def _by_permutation(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    spec: MeasureSpec,
    aggregate: str,
    n_permutations: int,
    alpha: float,
    seed: int,
) -> Calibration:
    """Calibrate two encoders by permuting the stimuli of one."""
    specs = {"": spec}
    of_x, of_y = np.zeros(len(xs), dtype=np.intp), np.zeros(len(ys), dtype=np.intp)
    layers = score_pairs(xs, ys, specs)[""].values
    observed = aggregate_layers(layers, of_x, of_y)[aggregate][0, 0]
    orders = permutations(xs[0].n_stimuli, n_permutations, seed)
    null = permutation_null(xs, ys, of_x, of_y, specs, orders)[""][aggregate][0, 0]
    maximum = spec.measure.range[1]
    calibrated, tau, p = calibrate_score(observed, null, alpha=alpha, maximum=maximum)
    best = np.unravel_index(int(layers.argmax()), layers.shape)
    return Calibration(
        score=float(observed),
        calibrated=float(calibrated),
        threshold=float(tau),
        p=float(p),
        null=null,
        method="permutation",
        aggregate=aggregate,
        best_layers=(int(best[0]), int(best[1])),
    )


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


METHODS: Mapping[str, Callable[..., Calibration]] = {"permutation": _by_permutation}
"""How a null is had, by name."""
