"""Workflows: the spec, the plan, one module per stage. The sole composer of the rooms above."""

from pipeline.workflow.memory import check_memory, memory_of_stages
from pipeline.workflow.plan import Plan, plan_workflow
from pipeline.workflow.run import RunReport, run_workflow
from pipeline.workflow.spec import Workflow, load_workflow

__all__ = [
    "Plan",
    "RunReport",
    "Workflow",
    "check_memory",
    "load_workflow",
    "memory_of_stages",
    "plan_workflow",
    "run_workflow",
]
