"""Ordered, content-addressed stimuli from several sources, and subsets of them."""

from pipeline.stimuli.base import StimulusSet, Subset, content_id
from pipeline.stimuli.spec import StimuliSpec, load_stimuli

__all__ = ["StimuliSpec", "StimulusSet", "Subset", "content_id", "load_stimuli"]
