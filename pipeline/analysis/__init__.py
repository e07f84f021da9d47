"""Analyses of aligned encoders: competence, alignment, convergence with scale and training."""

from pipeline.analysis.alignment import ALIGNMENT
from pipeline.analysis.analysis import Analysis, Column, ComparisonResults, Inputs
from pipeline.analysis.competence import COMPETENCE
from pipeline.analysis.convergence import CONVERGENCE

ANALYSES: tuple[Analysis, ...] = (COMPETENCE, ALIGNMENT, CONVERGENCE)
"""All analyses, in dependency order: each after those that it needs."""

__all__ = ["ALIGNMENT", "ANALYSES", "Analysis", "Column", "ComparisonResults", "Inputs"]
