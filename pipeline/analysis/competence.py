"""How well labels can be decoded from a representation: nearest neighbours, linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.analysis import Analysis, Column, Footprint, Inputs
from pipeline.measures import measure_spec, prepare
from pipeline.measures.footprint import DOUBLE, preparing_bytes, preparing_operations
from pipeline.schema import Variable

if TYPE_CHECKING:
    import xarray as xr

FOLDS = 5
NEIGHBOURS = 10
DIGITS = 9
"""Decimals to which votes are compared: sums of shared votes have rounding errors."""
PENALTIES = tuple(10 ** (e / 2) for e in range(-4, 11))
"""From 1e-2 to 1e5, two per power of ten."""


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
        In [0, 1]. NaN with fewer than k + 2 stimuli.

    Notes
    -----
    Neighbours that are tied for the last places share their votes. Ties between classes go to the
    lowest class number.
    """
    if len(x) < k + 2:
        return float("nan")
    spec = measure_spec("mutual_knn", k=k, neighbours="cosine")
    near = prepare(x, [spec]).neighbours_for(spec).relation()
    votes = near @ np.eye(int(labels.max()) + 1)[labels]
    return float(np.mean(np.round(votes, DIGITS).argmax(axis=1) == labels))


def probe_accuracy(x: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> float:
    """Return the cross-validated accuracy of a linear probe.

    A ridge classifier (one-hot least squares) on standardised features, with five stratified
    folds. Features are standardised and the penalty is chosen on the training folds only: the one
    of `PENALTIES` with the least leave-one-out squared error. With a fixed penalty, accuracy would
    depend on the number of features, and be worst when it is close to the number of training
    stimuli.

    Parameters
    ----------
    x
        Activations `(n_stimuli, n_features)`.
    labels
        Class numbers `(n_stimuli,)`.
    seed
        Seed of the folds.

    Returns
    -------
    float
        In [0, 1]. NaN if a class has fewer members than there are folds, or there is one class.

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


COLUMNS = {
    column.variable.name: column
    for column in (
        Column(
            Variable(
                "knn_accuracy",
                ("encoder",),
                "float64",
                "Leave-one-out 10-nearest-neighbour accuracy on the last layer, cosine.",
            ),
            knn_accuracy,
        ),
        Column(
            Variable(
                "probe_accuracy",
                ("encoder",),
                "float64",
                "5-fold cross-validated accuracy of a linear probe on the last layer.",
            ),
            probe_accuracy,
        ),
    )
}
PROBE = "ridge on standardised features, penalty by leave-one-out within the training folds"
"""How `probe_accuracy` is measured; stored with it, so that different probes are never mixed."""


def competence_dataset(inputs: Inputs) -> xr.Dataset:
    """Return the measured columns as a dataset with dimension `encoder`, sorted by id."""
    import xarray as xr

    ids = sorted(inputs.columns)
    return xr.Dataset(
        {
            name: (
                "encoder",
                [inputs.columns[i][name] for i in ids],
                {"description": column.variable.description},
            )
            for name, column in COLUMNS.items()
        },
        coords={"encoder": ids},
    )


def _footprint(n: int, widths: NDArray[np.int64]) -> Footprint:
    spec = {"knn": measure_spec("mutual_knn")}
    rank = np.minimum(n, widths)
    # one decomposition per training fold serves all penalties
    fits = float((FOLDS * (2 * n * widths * rank + 10 * rank**3)).sum())
    widest = int(widths.max())
    probe = DOUBLE * (6.0 * n * widest + 3.0 * min(n, widest) ** 2)
    return Footprint(
        preparing_operations(n, widths, spec) + fits, max(probe, preparing_bytes(n, widest, spec))
    )


COMPETENCE = Analysis(
    name="competence",
    version=1,
    scope="subset",
    variables={name: column.variable for name, column in COLUMNS.items()},
    compute=competence_dataset,
    columns=COLUMNS,
    footprint=_footprint,
    conventions={"probe": PROBE},
)
