"""Measures that are inner products of dense n × n relations."""

from pipeline.measures.dense import cka, distance_correlation, rsa
from pipeline.measures.dense.measure import DenseMeasure

MEASURES: tuple[DenseMeasure, ...] = (
    cka.CKA,
    cka.CKA_DEBIASED,
    cka.CKA_RBF,
    rsa.RSA,
    distance_correlation.DISTANCE_CORRELATION,
)
"""Their records, in the order of the documentation."""
