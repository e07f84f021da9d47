"""How much of the labels a representation makes available: nearest neighbours, linear probe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.measures import measure_spec, prepare

FOLDS = 5
NEIGHBOURS = 10
DIGITS = 9
"""To which votes are equal: shares of votes are rounded, and their sums."""


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

    A ridge classifier (one-hot least squares, penalty 1) on standardised features, five
    stratified folds drawn with `seed`; standardised on the training folds only.

    Returns
    -------
    float
        In [0, 1]. NaN where a class has fewer members than folds.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if np.bincount(labels)[np.unique(labels)].min() < FOLDS or len(np.unique(labels)) < 2:
        return float("nan")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
    predicted = cross_val_predict(probe, x.astype(np.float64), labels, cv=folds)
    return float(np.mean(predicted == labels))
