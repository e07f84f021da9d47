"""Analyses of aligned encoders: competence, alignment, convergence with scale and training."""

from pipeline.analysis.alignment import ALIGNMENT
from pipeline.analysis.analysis import Analysis, Column, ComparisonResults, Inputs
from pipeline.analysis.competence import COMPETENCE
from pipeline.analysis.convergence import CONVERGENCE

ANALYSES: tuple[Analysis, ...] = (COMPETENCE, ALIGNMENT, CONVERGENCE)
"""All final datasets of a store, those that others need before these."""

__all__ = ["ALIGNMENT", "ANALYSES", "Analysis", "Column", "ComparisonResults", "Inputs"]
