"""The stages of a run after training, one file each, in the order in which they run."""

from typing import Any

from pipeline.analysis import ANALYSES
from pipeline.workflow.stages.analyse import stage_of
from pipeline.workflow.stages.calibrate import Calibrate
from pipeline.workflow.stages.compare import Compare
from pipeline.workflow.stages.extract import Extract
from pipeline.workflow.stages.stage import Stage

STAGES: tuple[Stage[Any], ...] = (Extract(), Compare(), Calibrate(), *map(stage_of, ANALYSES))

__all__ = ["STAGES", "Stage"]
