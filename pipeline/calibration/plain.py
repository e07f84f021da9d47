"""Calibration of plain arrays, without store, labels or cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pipeline.calibration.aggregate import AGGREGATES, aggregate_layers, best_pair
from pipeline.calibration.analytic import nulls_of
from pipeline.calibration.draws import draw, pair_null
from pipeline.calibration.permutation import permutation_null, permutations
from pipeline.calibration.statistics import calibrate_score, check_level
from pipeline.calibration.tails import tail_bounds
from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.measure import Parameter, Value
from pipeline.measures.pairs import score_pairs
from pipeline.measures.plain import check_defined, prepare_all, resolved
from pipeline.measures.prepared import Prepared
from pipeline.types import Float64


@dataclass(frozen=True, eq=False)
class Calibration:
    """A similarity, and what chance would give.

    `score` is the observed similarity (of the best layers, or the mean over layers), `threshold`
    the τ that chance exceeds with probability α, `calibrated` the position of the score between τ
    and the measure's maximum, 0 if it is not above τ; `p` the p-value, `null` the
    `(n_permutations,)` similarities under chance, `method` how they were computed, and
    `best_layers` the places in `xs` and `ys` of the highest layer score. `flagged` means that
    moments do not determine this null, so that stimuli were permuted although the analytic method
    was asked for.
    """

    score: float
    calibrated: float
    threshold: float
    p: float
    null: Float64
    method: str
    aggregate: str
    best_layers: tuple[int, int]
    flagged: bool = False


def calibrate(
    x: ArrayLike,
    y: ArrayLike,
    measure: str | MeasureSpec = "cka",
    *,
    method: str = "permutation",
    n_permutations: int | None = None,
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
        How the null is computed: ``"permutation"``, the published reference, or ``"analytic"``,
        from exact moments, for measures of relations and of nearest neighbours.
    n_permutations
        K, permutations or draws; by default 199 permutations or 999 draws. Fewer than 1/α − 1 are
        refused, since no p-value could then reach α.
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

    Notes
    -----
    The p-value of the analytic method is a probability under a distribution with the null's exact
    mean and variance. It can be far below 1/(K+1), where it is the upper tail of a Pearson III
    distribution. The third moment is exact for U-centred relations and for neighbours; for others
    it is too, unless the parts of a relation depend so strongly on each other (heavy tails) that
    the model captures only part of it. Where the exact moments show that they do not determine the
    tails, stimuli are permuted instead and the result is `flagged`; so is any pair of fewer than
    ten stimuli.

    References
    ----------
    Gröger et al. 2026; Mantel 1967, Cancer Research 27, for moments of permuted relations.

    Examples
    --------
    Two matrices of noise with more features than stimuli have a high CKA, which calibration shows
    to be chance:

    >>> import numpy as np
    >>> import pipeline
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(30, 100)), rng.normal(size=(30, 100))
    >>> result = pipeline.calibrate(x, y, "cka")
    >>> result.score > 0.7, result.calibrated
    (True, 0.0)
    """
    spec = resolved(measure, parameters)
    names = ["x", "y"]
    prepared = prepare_all([x, y], spec, names, names)
    check_defined(prepared, spec, names)
    return _calibrate(prepared[:1], prepared[1:], spec, "max", method, n_permutations, alpha, seed)


def calibrate_layers(
    xs: Sequence[ArrayLike],
    ys: Sequence[ArrayLike],
    measure: str | MeasureSpec = "cka",
    *,
    aggregate: str = "max",
    method: str = "permutation",
    n_permutations: int | None = None,
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
        The null is that of the aggregate, so that it accounts for the search over layers.

    Notes
    -----
    By the analytic method, p of the best of several pairs is the share of the K draws that reach
    the score. If none does, it is the sum of the upper tails of all pairs of layers, an upper bound
    of p (Boole), if that is below 1/(K+1). p of the mean is never below 1/(K+1).

    Raises
    ------
    InputError
        As `calibrate`, and if a list of layers is empty or `aggregate` is unknown.

    References
    ----------
    Gröger et al. 2026.

    Examples
    --------
    The second layer of one encoder and the first layer of the other have features in common:

    >>> import numpy as np
    >>> import pipeline
    >>> rng = np.random.default_rng(0)
    >>> common = rng.normal(size=(30, 4))
    >>> xs = [rng.normal(size=(30, 8)), common]
    >>> ys = [common @ rng.normal(size=(4, 6)), rng.normal(size=(30, 6))]
    >>> result = pipeline.calibrate_layers(xs, ys, "cka_debiased")
    >>> result.best_layers, result.p
    ((1, 0), 0.005)
    """
    if len(xs) == 0 or len(ys) == 0:
        raise InputError("There is nothing to calibrate: a list of layers is empty.")
    if aggregate not in AGGREGATES:
        raise InputError(f"There is no aggregate {aggregate!r}; there is {_listed(AGGREGATES)}.")
    spec = resolved(measure, parameters)
    names = [f"xs[{i}]" for i in range(len(xs))] + [f"ys[{j}]" for j in range(len(ys))]
    prepared = prepare_all([*xs, *ys], spec, names, [name[0] for name in names])
    check_defined(prepared, spec, names)
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
    n_permutations: int | None,
    alpha: float,
    seed: int,
) -> Calibration:
    """Calibrate two encoders by the method named."""
    if method not in METHODS:
        raise InputError(
            f"There is no method of calibration {method!r}; there is {_listed(METHODS)}."
        )
    run, default = METHODS[method]
    count = default if n_permutations is None else n_permutations
    for parameter, value in zip(_NUMBERS, (count, seed, alpha), strict=True):
        if not parameter.accepts(value):
            raise InputError(f"{parameter.name} is {value!r}; it must be {parameter.allowed}.")
    check_level(alpha, count)
    return run(xs, ys, spec, aggregate, count, alpha, seed)


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
    of_x, of_y = np.zeros(len(xs), dtype=np.intp), np.zeros(len(ys), dtype=np.intp)
    orders = permutations(xs[0].n_stimuli, n_permutations, seed)
    null = permutation_null(xs, ys, of_x, of_y, {"": spec}, orders)[""][aggregate][0, 0]
    layers = score_pairs(xs, ys, {"": spec})[""].values
    return _against(layers, spec, aggregate, null, alpha, "permutation")


def _by_moments(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    spec: MeasureSpec,
    aggregate: str,
    n_draws: int,
    alpha: float,
    seed: int,
) -> Calibration:
    """Calibrate two encoders by the moments of their null."""
    if spec.measure.engine == "pairwise":
        raise InputError(
            f"The null of {spec} is not known in closed form: it compares no relations. Use "
            "method='permutation'."
        )
    of_x, of_y = np.zeros(len(xs), dtype=np.intp), np.zeros(len(ys), dtype=np.intp)
    null = nulls_of(xs, ys, of_x, of_y, {"": spec})[""]
    if null.flagged.any():
        permuted = _by_permutation(xs, ys, spec, aggregate, n_draws, alpha, seed)
        return replace(permuted, flagged=True)
    drawn = draw(null, of_x, of_y, np.ones((1, 1), bool), n_draws, seed)
    layers = score_pairs(xs, ys, {"": spec})[""].values
    tail = float(tail_bounds(null, of_x, of_y, np.array([[layers.max()]]))[0, 0])
    found = _against(
        layers,
        spec,
        aggregate,
        drawn[aggregate][0, 0],
        alpha,
        "analytic",
        tail if aggregate == "max" else None,
    )
    if len(xs) > 1 or len(ys) > 1:
        return found
    exact = pair_null(null, n_draws, seed)
    tau, p, least = exact.threshold(alpha), exact.sf(found.score), 1 / (n_draws + 1)
    share = (found.score - tau) / (spec.measure.range[1] - tau)
    return replace(
        found,
        calibrated=float(np.clip(share, 0.0, 1.0)),
        threshold=tau,
        # n_draws permutations of the linear part do not resolve anything rarer
        p=p if p >= least else min(least, tail),
    )


def _against(
    layers: Float64,
    spec: MeasureSpec,
    aggregate: str,
    null: Float64,
    alpha: float,
    method: str,
    tail: float | None = None,
) -> Calibration:
    """Compare the observed similarity of the layers of two encoders with values of its null."""
    of_x, of_y = (np.zeros(size, dtype=np.intp) for size in layers.shape)
    observed = aggregate_layers(layers, of_x, of_y)[aggregate][0, 0]
    maximum = spec.measure.range[1]
    calibrated, tau, p = calibrate_score(observed, null, alpha=alpha, maximum=maximum, tail=tail)
    best = best_pair(layers)
    return Calibration(
        score=float(observed),
        calibrated=float(calibrated),
        threshold=float(tau),
        p=float(p),
        null=null,
        method=method,
        aggregate=aggregate,
        best_layers=(best.layer_x, best.layer_y),
    )


_NUMBERS = (
    Parameter("n_permutations", 199, "permutations or draws"),
    Parameter("seed", 0, "of these", minimum=0),
    Parameter("alpha", 0.05, "probability of exceeding the threshold", minimum=0, maximum=1),
)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


METHODS: Mapping[str, tuple[Callable[..., Calibration], int]] = {
    "permutation": (_by_permutation, 199),
    "analytic": (_by_moments, 999),
}
"""Methods by name, with their default number of permutations or draws."""
