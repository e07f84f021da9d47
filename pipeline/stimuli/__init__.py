"""Ordered, content-addressed stimuli from several sources, and subsets of them."""

from pipeline.stimuli.ids import content_id
from pipeline.stimuli.source import (
    Progress,
    SourceSpec,
    StimulusReader,
    StimulusSource,
)
from pipeline.stimuli.spec import SOURCES, StimuliSpec, index_stimuli, open_stimuli
from pipeline.stimuli.subset import Subset, SubsetSpec, draw
from pipeline.stimuli.table import StimulusRows, StimulusTable

__all__ = [
    "SOURCES",
    "Progress",
    "SourceSpec",
    "StimuliSpec",
    "StimulusReader",
    "StimulusRows",
    "StimulusSource",
    "StimulusTable",
    "Subset",
    "SubsetSpec",
    "content_id",
    "draw",
    "index_stimuli",
    "open_stimuli",
]
