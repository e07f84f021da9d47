"""How much of the labels a representation makes available: nearest neighbours, linear probe."""

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
"""How `probe_accuracy` is measured; recorded with it, so that no other kind is mixed with it."""


def competence_dataset(inputs: Inputs) -> xr.Dataset:
    """Put what was measured of encoders into one dataset, `(encoder,)`."""
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
    least = np.minimum(n, widths)
    # a decomposition of each fold's training part serves all penalties
    fits = float((FOLDS * (2 * n * widths * least + 10 * least**3)).sum())
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
