"""Measures of representational similarity, as data, and the engine that compares all pairs."""

from pipeline.measures.catalog import (
    MeasureSpec,
    check_version,
    get_measure,
    list_measures,
    measure_spec,
    recorded_spec,
)
from pipeline.measures.measure import Measure, Parameter
from pipeline.measures.pairs import Scores, score_pairs
from pipeline.measures.permuted import score_permuted
from pipeline.measures.plain import compare, similarity
from pipeline.measures.prepared import Prepared, clip_thresholds, prepare

__all__ = [
    "Measure",
    "MeasureSpec",
    "Parameter",
    "Prepared",
    "Scores",
    "check_version",
    "clip_thresholds",
    "compare",
    "get_measure",
    "list_measures",
    "measure_spec",
    "prepare",
    "recorded_spec",
    "score_pairs",
    "score_permuted",
    "similarity",
]
