"""Workflows: the spec, the plan, one module per stage. The sole composer of the rooms above."""

from pipeline.workflow.plan import Plan, plan_workflow
from pipeline.workflow.run import RunReport, run_workflow
from pipeline.workflow.spec import Workflow, load_workflow

__all__ = ["Plan", "RunReport", "Workflow", "load_workflow", "plan_workflow", "run_workflow"]
