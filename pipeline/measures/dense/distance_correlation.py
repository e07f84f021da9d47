"""Distance correlation."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.measures.dense.forming import assembled, distances_of, row_sums
from pipeline.measures.dense.measure import EXACT_PRODUCTS, DenseMeasure
from pipeline.measures.dense.relations import Relation
from pipeline.measures.measure import EUCLIDEAN, Parameter
from pipeline.types import Floating


def form_distance(values: Floating, _: float, dtype: np.dtype[Any]) -> Relation:
    """Doubly centred distances."""
    entries, n = distances_of(values), len(values)
    return assembled(entries, dtype, row_sums(entries, n), np.zeros(n))


DISTANCE_CORRELATION = DenseMeasure(
    name="distance_correlation",
    version=2,
    changed=EXACT_PRODUCTS,
    form=form_distance,
    range=(-1.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter(
            "estimator",
            "debiased",
            "U-centred distances, or doubly centred ones with the diagonal (biased)",
            choices=("biased", "debiased"),
        ),
    ),
    conventions=(("distance", "euclidean"), ("statistic", "squared")),
    minimum_stimuli=4,
    reference=(
        "Székely, Rizzo & Bakirov 2007, Ann. Stat. 35, def. 5; Székely & Rizzo 2014, Ann. "
        "Stat. 42, eq. 3.2"
    ),
    prose=(
        "The square of the distance correlation: the cosine between two centred matrices of "
        "distances. 0 in the population only where the two are independent. The biased "
        "estimate lies in [0, 1]; its square root is the R of 2007."
    ),
)
