"""Measures that are products of sparse relations: who is among whose nearest neighbours."""

from pipeline.measures.measure import Measure
from pipeline.measures.neighbours import mutual_knn

MEASURES: tuple[Measure, ...] = (mutual_knn.MUTUAL_KNN,)
"""Their records, in the order of the documentation."""
