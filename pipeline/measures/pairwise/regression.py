"""How well one representation predicts another: cross-validated ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from pipeline.errors import InputError
from pipeline.measures.measure import EUCLIDEAN, Parameter
from pipeline.measures.numerics import EPS
from pipeline.measures.pairwise.centring import CENTRING, Centred, centred
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.measures.pairwise.subspace import decomposed
from pipeline.types import Float64, Index


@dataclass(frozen=True, eq=False)
class Fold:
    """Ridge regression on one fold's training stimuli, for any target.

    Predictions for the held-out stimuli are `readout` @ (`basis`ᵀ @ target), about the training
    mean of the target.
    """

    train: Index
    held_out: Index
    basis: Float64
    """`(n_train, rank)`."""
    readout: Float64
    """`(n_held_out, rank)`."""


@dataclass(frozen=True, eq=False)
class Regression:
    """One representation as predictor and as target.

    `target` has as many columns as needed for all its inner products, `(n_stimuli, ≤ n_features)`.
    `defined` is false for constant features.
    """

    folds: tuple[Fold, ...]
    target: Float64
    defined: bool


def prepare_linear_regression(
    values: Float64, *, folds: int = 5, alpha: float = 0.1, seed: int = 0, eps: float = EPS
) -> Regression:
    """Decompose the training features of every fold.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite.
    folds
        Number of folds: contiguous pieces of the stimuli in an order drawn with `seed`, the first
        ones longer by one where they cannot be equal.
    alpha
        Ridge penalty, as a multiple of the mean eigenvalue of XᵀX of the fold's centred training
        features.
    seed
        Of the order; representations to be compared need the same.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    Regression
        Not defined for constant features.

    Raises
    ------
    InputError
        If there are fewer stimuli than folds.
    """
    n, d = values.shape
    if n < folds:
        raise InputError(
            f"{n} stimuli cannot be held out in {folds} folds. Use more stimuli or fewer folds."
        )
    features = centred(values, eps)
    if features is None:
        return Regression((), np.zeros((n, 0)), False)
    order = np.random.default_rng(seed).permutation(n)
    parts = []
    for held_out in np.array_split(order, folds):
        train = np.setdiff1d(order, held_out)
        parts.append(_fold(features, train, held_out, alpha))
    target = features.features
    if d > n:  # rotating the target does not change squared errors
        u, s, _ = linalg.svd(target, full_matrices=False)
        target = u * s
    return Regression(tuple(parts), target, True)


def _fold(features: Centred, train: Index, held_out: Index, alpha: float) -> Fold:
    """Fit the training stimuli of one fold."""
    mean = features.features[train].mean(axis=0)
    u, s, vt = decomposed(Centred(features.features[train] - mean, features.noise))
    penalty = alpha * float(s @ s) / features.features.shape[1]
    projected = (features.features[held_out] - mean) @ vt.T
    return Fold(train, held_out, u, projected * (s / (s**2 + penalty)))


def compare_linear_regression(x: Regression, y: Regression) -> float:
    """Compute how well the target y is predicted from x by ridge regression, on held-out stimuli.

    Returns
    -------
    float
        R² = 1 − SSE/SST, squared errors summed over features and held-out stimuli of all folds,
        SST about the training mean of the fold. At most 1, 0 for predictions no better than the
        mean, below for worse.

    Notes
    -----
    Not symmetric; swap the arguments for the other direction. Features of y are weighted by their
    variance. Not 1 for equal arguments: the penalty shrinks predictions, and training stimuli may
    lack some directions.

    References
    ----------
    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, table 1
    (linear regression, there without penalty and without held-out stimuli). Yamins et al.
    2014, PNAS 111 (regression on held-out stimuli as a comparison of representations).
    """
    if not (x.defined and y.defined):
        return float("nan")
    errors = total = 0.0
    for fold in x.folds:
        seen = y.target[fold.train]
        about = y.target[fold.held_out] - seen.mean(axis=0)
        errors += float(np.sum((about - fold.readout @ (fold.basis.T @ seen)) ** 2))
        total += float(np.sum(about**2))
    return 1.0 - errors / total


LINEAR_REGRESSION = PairwiseMeasure(
    name="linear_regression",
    kind="subspace",
    prepare=prepare_linear_regression,
    compare=compare_linear_regression,
    symmetric=False,
    range=(float("-inf"), 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter("folds", 5, "number of folds", minimum=2),
        Parameter(
            "alpha",
            0.1,
            "ridge penalty, as a multiple of the mean eigenvalue of XᵀX",
            minimum=0.0,
        ),
        Parameter("seed", 0, "of the order in which stimuli are held out", minimum=0),
    ),
    prepares=("folds", "alpha", "seed"),
    conventions=(*CENTRING, ("direction", "y from x"), ("pooling", "over features and rows")),
    minimum_stimuli=4,
    grows_with="folds",
    beyond=2,
    reference="Kornblith et al. 2019, section 3 (linear regression), cross-validated",
    prose=(
        "R² on held-out stimuli of y predicted from x by ridge regression. Below 1 even for x "
        "with itself, negative where the prediction is worse than the mean."
    ),
)
