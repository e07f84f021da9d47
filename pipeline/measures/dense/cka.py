"""Centred kernel alignment (CKA), with a linear or a Gaussian kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.measures.dense.entries import Distances, Products, block_of
from pipeline.measures.dense.forming import (
    BLOCK_ROWS,
    assembled,
    centred_features,
    distances_of,
    row_sums,
)
from pipeline.measures.dense.measure import EXACT_PRODUCTS, DenseMeasure
from pipeline.measures.dense.relations import Relation
from pipeline.measures.measure import EUCLIDEAN, Parameter
from pipeline.measures.presets import HUH
from pipeline.types import Floating

MEDIAN_ROWS = 4096
"""The median distance is taken over all pairs of so many stimuli at most, evenly spaced."""


def form_linear(values: Floating, _: float, dtype: np.dtype[Any]) -> Relation:
    """Doubly centred Gram matrix: with centred features its row sums are known beforehand."""
    features, squares, scale = centred_features(values, dtype)
    relation = assembled(Products(features), dtype, -squares, squares)
    return replace(relation, feature_scale=scale)


CKA = DenseMeasure(
    name="cka",
    version=2,
    changed=EXACT_PRODUCTS,
    form=form_linear,
    range=(0.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(),
    ratio_of_hsic=True,
    conventions=(("kernel", "linear"), ("estimator", "biased"), ("centring", "features")),
    minimum_stimuli=3,
    reference="Kornblith et al. 2019, ICML, section 3 (HSIC and CKA with a linear kernel)",
    prose=(
        "Linear centred kernel alignment: the cosine between two doubly centred Gram matrices, "
        "diagonals included; the RV coefficient. Inflated when features outnumber stimuli."
    ),
)
CKA_DEBIASED = DenseMeasure(
    name="cka_debiased",
    version=2,
    changed=EXACT_PRODUCTS,
    form=form_linear,
    range=(-1.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(),
    ratio_of_hsic=True,
    conventions=(("kernel", "linear"), ("estimator", "debiased"), ("centring", "features")),
    minimum_stimuli=4,
    reference="Song et al. 2012, JMLR 13, eq. 5; Székely & Rizzo 2014, Ann. Stat. 42, eq. 2.4",
    prose=(
        "Linear CKA from the unbiased estimate of HSIC: the cosine between two U-centred Gram "
        "matrices with zero diagonals. Zero on average when rows do not correspond, so it can "
        "be negative."
    ),
)


def form_rbf(values: Floating, _: float, dtype: np.dtype[Any], bandwidth: float) -> Relation:
    """Doubly centred Gaussian kernel, its σ a multiple of the median distance."""
    entries = distances_of(values)
    entries = replace(entries, bandwidth=bandwidth * _median_distance(entries))
    n = len(values)
    return assembled(entries, dtype, row_sums(entries, n), np.full(n, 1.0))


def _median_distance(entries: Distances) -> float:
    """Median of the distances that are not zero."""
    n = len(entries.features)
    some = np.unique(np.linspace(0, n - 1, min(n, MEDIAN_ROWS)).astype(np.intp))
    chosen = entries.permuted(some)
    parts = []
    for start in range(0, len(some), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(some)))
        block = -block_of(chosen, rows, slice(start, len(some)))
        above = block[np.triu_indices(block.shape[0], k=1, m=block.shape[1])]
        parts.append(above[above > 0])
    return float(np.median(np.concatenate(parts)))


CKA_RBF = DenseMeasure(
    name="cka_rbf",
    version=2,
    changed=EXACT_PRODUCTS,
    form=form_rbf,
    formed_with=("bandwidth",),
    range=(-1.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter(
            "bandwidth",
            1.0,
            "σ of the kernel, as a multiple of the median non-zero distance",
            minimum=0.01,
            maximum=100.0,
        ),
        Parameter(
            "estimator",
            "biased",
            "doubly centred with the diagonal, or U-centred without",
            choices=("biased", "debiased"),
        ),
    ),
    conventions=(
        ("kernel", "exp(-distance²/(2σ²))"),
        (
            "median",
            "of non-zero Euclidean distances between different stimuli, "
            f"{MEDIAN_ROWS} of them at most",
        ),
    ),
    minimum_stimuli=4,
    reference="Kornblith et al. 2019, ICML, section 3 (RBF kernel); Song et al. 2012, eq. 5",
    prose=(
        "CKA with a Gaussian kernel: small bandwidths compare neighbourhoods, large ones give "
        "linear CKA. The biased estimate lies in [0, 1]."
    ),
    elsewhere=(
        (
            "Kornblith et al. 2019, notebook",
            "the median is of squared distances and counts the zeros on the diagonal, n of n², "
            "so that σ is less where stimuli are few",
        ),
        (HUH, "σ is 1 in units of the features, whatever their distances"),
    ),
)
