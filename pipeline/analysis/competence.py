"""How much of the labels a representation makes available: nearest neighbours, linear probe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.measures import measure_spec, prepare

FOLDS = 5
NEIGHBOURS = 10
DIGITS = 9
"""To which votes are equal: shares of votes are rounded, and their sums."""
PENALTIES = tuple(10 ** (e / 2) for e in range(-4, 11))
"""From 1e-2 to 1e5, two to a power of ten."""


def knn_accuracy(x: NDArray[np.float32], labels: NDArray[np.int64], k: int = NEIGHBOURS) -> float:
    """Return the leave-one-out accuracy of a majority vote of k cosine neighbours.

    Parameters
    ----------
    x
        Activations `(n_stimuli, n_features)`.
    labels
        Class numbers `(n_stimuli,)`.

    Returns
    -------
    float
        In [0, 1]. NaN with fewer than k + 2 stimuli. Neighbours that are tied for the last places
        share their votes. Equal votes go to the lowest class.
    """
    if len(x) < k + 2:
        return float("nan")
    spec = measure_spec("mutual_knn", k=k, neighbours="cosine")
    near = prepare(x, [spec]).neighbours_for(spec).relation()
    votes = near @ np.eye(int(labels.max()) + 1)[labels]
    return float(np.mean(np.round(votes, DIGITS).argmax(axis=1) == labels))


def probe_accuracy(x: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> float:
    """Return the cross-validated accuracy of a linear probe.

    A ridge classifier (one-hot least squares) on standardised features, five stratified folds
    drawn with `seed`. Standardised, and the penalty chosen, on the training folds only: of
    `PENALTIES` the one with the least squared error when each training stimulus is left out. With
    one penalty for all, the accuracy would follow the number of features, and be worst where
    that is about the number of training stimuli.

    Parameters
    ----------
    x
        Activations `(n_stimuli, n_features)`.
    labels
        Class numbers `(n_stimuli,)`.
    seed
        Of the folds.

    Returns
    -------
    float
        In [0, 1]. NaN where a class has fewer members than folds, or there is one class.

    References
    ----------
    Golub, Heath & Wahba (1979). Generalized cross-validation as a method for choosing a good
    ridge parameter. Technometrics 21.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if np.bincount(labels)[np.unique(labels)].min() < FOLDS or len(np.unique(labels)) < 2:
        return float("nan")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES))
    predicted = cross_val_predict(probe, x.astype(np.float64), labels, cv=folds)
    return float(np.mean(predicted == labels))
