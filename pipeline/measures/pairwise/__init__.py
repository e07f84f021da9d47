"""Measures that are compared one pair of representations after the other."""

from pipeline.measures.pairwise import (
    locality,
    matching,
    neighbourhood,
    regression,
    sampled,
    subspace,
)
from pipeline.measures.pairwise.measure import PairwiseMeasure

MEASURES: tuple[PairwiseMeasure, ...] = (
    neighbourhood.CYCLE_KNN,
    neighbourhood.JACCARD_KNN,
    neighbourhood.LCS_KNN,
    neighbourhood.EDIT_KNN,
    locality.CKNNA,
    locality.SECOND_ORDER_COSINE,
    subspace.PROCRUSTES,
    subspace.CCA,
    subspace.SVCCA,
    subspace.PWCCA,
    regression.LINEAR_REGRESSION,
    matching.SOFT_MATCHING,
    subspace.GULP,
    sampled.CKA_MINIBATCH,
)
"""Their records, in the order of the documentation."""
