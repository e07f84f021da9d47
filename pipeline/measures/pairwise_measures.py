"""All pairwise measures, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.measures import (
    locality,
    matching,
    neighbourhood,
    regression,
    sampled,
    subspace,
)
from pipeline.measures.pairwise import PairwiseMeasure

PAIRWISE_MEASURES: Mapping[str, PairwiseMeasure] = {
    **neighbourhood.PAIRWISE_MEASURES,
    **locality.PAIRWISE_MEASURES,
    **subspace.PAIRWISE_MEASURES,
    **regression.PAIRWISE_MEASURES,
    **matching.PAIRWISE_MEASURES,
    **sampled.PAIRWISE_MEASURES,
}
