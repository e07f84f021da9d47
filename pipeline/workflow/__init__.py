"""Workflows: the spec, the plan, the run, and one module per stage.

The only package that brings the others together.
"""

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
