"""The `stimuli:` section of a workflow: a source and its options."""

from __future__ import annotations

from typing import Literal

from pipeline.config.yaml import Spec
from pipeline.stimuli.base import StimulusSet
from pipeline.stimuli.digits import load_digits


class StimuliSpec(Spec):
    """A source of stimuli and its options."""

    source: Literal["digits"] = "digits"
    """Where the stimuli come from. `digits` is built in."""
    part: Literal["train", "test", "all"] = "test"
    """Which part of them; models trained here never see `test`."""


def load_stimuli(spec: StimuliSpec) -> StimulusSet:
    """Load the base set that a spec names."""
    return load_digits(spec.part)
