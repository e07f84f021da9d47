"""The best soft matching of one set of features to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from pipeline.errors import InputError
from pipeline.measures.numerics import EPS, constant_features
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.types import Float64

MAX_ASSIGNMENT = 4096
"""Most features on a side of an assignment: a matrix of 128 MiB, and seconds."""
MAX_PROGRAM = 2_000_000
"""Most pairs of features in a linear programme: two or three GiB, and about a minute."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """Features that vary, centred and of unit norm, `(n_stimuli, n_varying)`.

    `defined` is false if none does.
    """

    curves: Float64
    defined: bool


def prepare_soft_matching(values: Float64, *, eps: float = EPS) -> Tuning:
    """Centre features and scale each to unit norm; leave out those that are constant.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    Tuning
        Not defined for constant features.
    """
    varying = values[:, ~constant_features(values, eps)]
    # Scale each by its largest value: squares of small features beside large ones would underflow.
    scaled = np.ldexp(varying, -np.frexp(np.abs(varying).max(axis=0))[1])
    scaled -= scaled.mean(axis=0)
    scaled -= scaled.mean(axis=0)  # what rounding left of an offset
    scaled /= np.abs(scaled).max(axis=0)
    return Tuning(scaled / np.linalg.norm(scaled, axis=0), varying.shape[1] > 0)


def compare_soft_matching(x: Tuning, y: Tuning) -> float:
    """Compute the mean correlation of single features, matched as well as can be.

    Returns
    -------
    float
        max over P of Σ_ij P_ij corr(x_i, y_j), where P ≥ 0 has row sums 1/d_x and column sums
        1/d_y: from −1 to 1, and 1 for features that are equal up to order, scale and offset.

    Raises
    ------
    InputError
        If there are too many pairs of features to match.

    Notes
    -----
    For equal numbers of features the best P is a permutation (assignment problem); if the least
    common multiple of the numbers is small, features are repeated to make them equal. Else a linear
    programme (HiGHS) of d_x d_y variables is solved, which takes 3 s for 384 and 500 features, 17 s
    for 768 and 1000. An assignment of m features takes O(m³).

    The squared soft-matching distance of features of unit norm, each weighted 1/d, is 2 minus
    twice this.

    References
    ----------
    Khosla & Williams 2024, Soft Matching Distance: A metric on neural representations that
    captures single-neuron tuning, UniReps (PMLR 243), section 2.
    """
    if not (x.defined and y.defined):
        return float("nan")
    of_x, of_y = x.curves.shape[1], y.curves.shape[1]
    size = math.lcm(of_x, of_y)
    # With many repetitions the assignment takes longer than the linear programme.
    assign = size <= MAX_ASSIGNMENT and size <= 4 * max(of_x, of_y)
    if not assign and of_x * of_y > MAX_PROGRAM:
        raise InputError(
            f"Matching {of_x} features with {of_y} takes too long; up to {MAX_PROGRAM:,} pairs "
            f"of features can be matched, or {MAX_ASSIGNMENT} with as many. Use fewer features "
            "(a random subset, or principal components if the axes do not matter), or procrustes."
        )
    correlations = x.curves.T @ y.curves
    if assign:
        repeated = np.repeat(np.repeat(correlations, size // of_x, 0), size // of_y, 1)
        rows, columns = optimize.linear_sum_assignment(repeated, maximize=True)
        best = float(repeated[rows, columns].mean())
    else:
        best = _transport(correlations)
    return min(1.0, max(-1.0, best))


def _transport(gains: Float64) -> float:
    """Largest mean gain of a plan with equal row sums and equal column sums."""
    of_x, of_y = gains.shape
    common = math.gcd(of_x, of_y)
    # Integer supplies and demands, so that the vertices of the polytope are integers.
    supply, demand = of_y // common, of_x // common
    sums = sparse.vstack(
        [
            sparse.kron(sparse.eye(of_x), np.ones((1, of_y))),
            sparse.kron(np.ones((1, of_x)), sparse.eye(of_y)),
        ],
        format="csc",
    )
    solved = optimize.linprog(
        -gains.ravel(),
        A_eq=sums,
        b_eq=np.concatenate([np.full(of_x, supply), np.full(of_y, demand)]),
        method="highs-ipm",
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        raise RuntimeError(f"HiGHS did not match {of_x} with {of_y} features: {solved.message}")
    return float(-solved.fun / (of_x * supply))


SOFT_MATCHING = PairwiseMeasure(
    name="soft_matching",
    kind="subspace",
    prepare=prepare_soft_matching,
    compare=compare_soft_matching,
    symmetric=True,
    range=(-1.0, 1.0),
    invariances=("translation", "isotropic scaling", "permutation of features"),
    parameters=(),
    conventions=(
        ("correlation", "pearson"),
        ("constant_features", "left out"),
        ("matching", "transport plan, features of equal weight"),
    ),
    minimum_stimuli=3,
    reference="Khosla & Williams 2024, UniReps (soft matching distance)",
    prose=(
        "The highest mean correlation of features under a transport plan between the two sets "
        "of features, each with equal weight."
    ),
    elsewhere=(
        (
            "ReSi",
            "SoftCorrelationMatch is a semi-matching: each feature goes with the one it "
            "correlates with most, several with the same one if so, and the mean over features "
            "is averaged over both directions, so that it is never less than this",
        ),
    ),
)
