"""Calibrate a similarity against its null distribution.

Raw similarities grow with the number of features and with the number of layers searched, whatever
the representations. Gröger et al. 2026 compare each with its *null*, its distribution when the rows
of Y no longer correspond to those of X, and where the best of several layers is taken, with the
null of that best.
"""

from pipeline.calibration.aggregate import AGGREGATES, BestPair, aggregate_layers, best_pair
from pipeline.calibration.analytic import VERSION, flagged_encoders, nulls_of
from pipeline.calibration.draws import draw
from pipeline.calibration.permutation import permutation_null, permutations
from pipeline.calibration.plain import METHODS, Calibration, calibrate, calibrate_layers
from pipeline.calibration.statistics import benjamini_hochberg, calibrate_score, check_level
from pipeline.calibration.tails import tail_bounds

__all__ = [
    "AGGREGATES",
    "METHODS",
    "VERSION",
    "BestPair",
    "Calibration",
    "aggregate_layers",
    "benjamini_hochberg",
    "best_pair",
    "calibrate",
    "calibrate_layers",
    "calibrate_score",
    "check_level",
    "draw",
    "flagged_encoders",
    "nulls_of",
    "permutation_null",
    "permutations",
    "tail_bounds",
]
