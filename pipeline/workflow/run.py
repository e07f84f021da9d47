"""Run a workflow: plan it whole, refuse what is wrong, then do what is missing, stage by stage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import zarr
from dask.utils import parse_bytes
from rich.console import Console

from pipeline.cluster import Executor, Task, cpu_count, describe_failure, executor, override
from pipeline.errors import InputError
from pipeline.progress import stage
from pipeline.store.catalog import Encoder
from pipeline.store.grid import Grid, Outstanding, outstanding
from pipeline.store.layout import has_parts, open_root, sweep_partial
from pipeline.store.lease import Lease, lease
from pipeline.store.location import Location, absolute, locate
from pipeline.store.stimuli import write_stimuli
from pipeline.training import TrainingRecipe, train_all
from pipeline.workflow import analyse, calibrate, compare
from pipeline.workflow.extract import extract_tasks, prepare_model
from pipeline.workflow.members import Budget
from pipeline.workflow.pairs import Comparison
from pipeline.workflow.plan import Plan, comparisons_of, plan_workflow, stored_encoders
from pipeline.workflow.spec import Workflow


@dataclass
class RunReport:
    """What a run did."""

    store: str
    seconds: float = 0.0
    tasks: dict[str, int] = field(default_factory=dict)
    """Stage → tasks that were run."""
    failures: dict[str, str] = field(default_factory=dict)
    """What failed → why; the rest was finished and kept."""
    report: Path | None = None
    figures: list[Path] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something failed."""
        return 1 if self.failures else 0


def run_workflow(
    workflow: Workflow,
    *,
    cluster: str | None = None,
    replace: Sequence[str] = (),
    console: Console | None = None,
    wait: float | None = None,
) -> RunReport:
    """Do what a workflow asks and its store lacks.

    Parameters
    ----------
    cluster
        A scheduler's address that replaces the workflow's `cluster:`, or `local`.
    replace
        Ids whose stored activations are dropped and extracted anew.
    console
        Where progress goes; default: standard error.
    wait
        Seconds to wait for another run on the store to end; default: the workflow's.

    Returns
    -------
    RunReport
        With what failed; one model that fails does not fail the run.

    Raises
    ------
    ConsilienceError
        For everything that is known to be wrong before a task runs; the store is left as it was.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    report = RunReport(workflow.store)
    location = locate(workflow.store)

    def told(holder: str) -> None:
        console.print(f"{location} is in use by {holder}: waiting for it to end")

    with ExitStack() as stack:
        take = partial(lease, location, wait=workflow.wait if wait is None else wait, on_wait=told)
        held = None
        if not location.is_empty():
            open_root(location)  # what is no store of ours is left alone
            held = stack.enter_context(take())  # a plan is of what no other run is changing
        plan = plan_workflow(workflow, replace=replace)
        if plan.untrained:
            _train(plan.untrained, console)
            report.tasks["train"] = len(plan.untrained)
            plan = plan_workflow(workflow, replace=replace)
        pool = stack.enter_context(executor(override(workflow.cluster, cluster)))
        if plan.needs_workers:
            client = pool.start()  # a wrong address is known before the store is touched
            _check_shared(location, client)
        if held is None:
            open_root(location, "a")
            held = stack.enter_context(take())
            if has_parts(location):  # another run has been quicker
                plan = plan_workflow(workflow, replace=replace)
        stack.callback(pool.close)  # workers end before the lease does
        root = open_root(location, "r+", lease=held)
        _Run(root, plan, pool, console, report, held).all_stages()
    report.seconds = time.monotonic() - started
    return report


def _check_shared(location: Location, client: Any) -> None:
    if not location.is_shared and {*client.run(os.getpid).values()} != {os.getpid()}:
        raise InputError(
            f"store: {location} is the memory of one process, and the workers are others. Name a "
            "folder, or a URL that all of them see."
        )


def _train(recipes: Sequence[TrainingRecipe], console: Console) -> None:
    total = sum(r.options.steps for r in recipes)
    before: dict[str, int] = {}
    with stage(console, "train", total, f"steps of {len(recipes)} models") as advance:

        def show(event: Any) -> None:
            advance(event.step - before.get(event.model, 0))
            before[event.model] = event.step

        train_all(recipes, workers=cpu_count(), on_progress=show)


class _Run:
    """The stages after training, on one store under its lease."""

    def __init__(
        self,
        root: zarr.Group,
        plan: Plan,
        pool: Executor,
        console: Console,
        report: RunReport,
        held: Lease,
    ) -> None:
        self.root, self.plan, self.pool, self.lease = root, plan, pool, held
        self.console, self.report = console, report
        self.workflow = plan.workflow
        self.specs = plan.workflow.compare.specs
        self.budget = Budget(
            parse_bytes(plan.workflow.compare.memory), parse_bytes(plan.workflow.compare.scratch)
        )
        # workers may stand in another folder
        self.location = absolute(plan.workflow.store)

    def all_stages(self) -> None:
        if not self.plan.is_done:
            sweep_partial(self.workflow.store)
        write_stimuli(self.root, self.plan.stimuli)
        encoders = self.extract()
        if not encoders:  # every model failed: the report names them; there is nothing to compare
            return
        comparisons = comparisons_of(self.workflow, self.plan.subset, encoders)
        subset = comparisons[0].subset.key
        for comparison in comparisons:
            compare.ensure_subset(self.root, comparison.subset, subset)
        self.compare(comparisons)
        self.calibrate(comparisons)
        competence = self.measure_competence(comparisons[0])
        self.aggregate(comparisons, competence)
        self.write_report(subset)
        if any(self.report.tasks.values()):
            sweep_partial(self.workflow.store)  # what workers that died have left

    def tasks(self, name: str, unit: str, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) of those that succeed; note the others as failures."""
        self.report.tasks[name] = len(tasks)
        if not tasks:
            return
        with stage(self.console, name, len(tasks), unit) as advance:
            for outcome in self.pool.run(tasks):
                advance(1)
                self.lease.check()
                if outcome.error is not None:
                    self.report.failures[outcome.task.name] = describe_failure(outcome)
                else:
                    yield outcome.task, outcome.result

    def extract(self) -> list[Encoder]:
        plan, settings = self.plan, self.workflow.extract
        for model in plan.models:
            prepare_model(self.root, model, plan.stimuli)
        tasks = extract_tasks(
            plan.models,
            plan.stimuli,
            self.workflow.stimuli,
            self.location,
            settings.batch_size,
            settings.device,
        )
        for task, errors in self.tasks("extract", "models", tasks):
            for label, error in errors.items():
                self.report.failures[f"{task.name.removeprefix('extract ')}@{label}"] = error
        return [
            encoder
            for model in plan.models
            for tower in model.spec.towers
            for encoder in stored_encoders(self.root, model, tower, plan.stimuli)
        ]

    def compare(self, comparisons: Sequence[Comparison]) -> None:
        tasks: list[Task] = []
        grids: dict[str, dict[str, Grid]] = {}
        for c in comparisons:
            digests, wanted = compare.wanted_scores(c)
            todo: dict[str, Outstanding] = {}
            grids[c.subset.key] = {}
            for label, spec in self.specs.items():
                grid = compare.ensure_grid(self.root, c.subset, label, spec)
                grid.admit(digests)
                grids[c.subset.key][label] = grid
                todo[label] = compare.outstanding_scores(grid, digests, wanted, spec)
            tasks += compare.compare_tasks(
                todo,
                self.specs,
                c.encoders,
                self.location,
                c.subset,
                self.budget,
                self.workflow.compare.device,
            )
        for task, facts in self.tasks("compare", "blocks", tasks):
            compare.record_facts(grids[task.arguments[0].subset], facts)

    def calibrate(self, comparisons: Sequence[Comparison]) -> None:
        settings = self.workflow.calibrate
        if settings is None:
            return
        tasks: list[Task] = []
        for c in comparisons:
            digests, wanted = calibrate.wanted_nulls(c)
            todo: dict[str, Outstanding] = {}
            for label, spec in self.specs.items():
                grid = calibrate.ensure_null(self.root, c.subset, label, spec, settings)
                grid.admit(digests)
                todo[label] = outstanding(grid, digests, wanted, grid.chunk)
            tasks += calibrate.null_tasks(
                todo, self.specs, c.encoders, settings, self.location, c.subset, self.budget
            )
        for _ in self.tasks("calibrate", "blocks", tasks):
            pass

    def measure_competence(self, images: Comparison) -> Mapping[str, Mapping[str, Any]]:
        known = analyse.read_competence(self.root, images.subset.key)
        missing = analyse.missing_competence(known, images)
        tasks = analyse.competence_tasks(missing, self.location, images.subset)
        found = dict(known)
        for _, result in self.tasks("competence", "tasks", tasks):
            found |= result
        if tasks:
            analyse.write_competence(self.root, images.subset.key, found)
        return found

    def aggregate(
        self, comparisons: Sequence[Comparison], competence: Mapping[str, Mapping[str, Any]]
    ) -> None:
        for label, spec in self.specs.items():
            made_from = (self.root, label, spec, comparisons, self.workflow.calibrate, competence)
            inputs = analyse.stale_inputs(*made_from)
            if inputs is not None:
                analyse.write_alignment(*made_from, inputs)

    def write_report(self, subset: str) -> None:
        from pipeline.report import default_folder, findings, is_current, write_report
        from pipeline.store import open_store

        store = open_store(self.workflow.store)
        folder = default_folder(store, subset)
        if not is_current(store, folder, subset):
            with stage(self.console, "report", 1, "page") as advance:
                written = write_report(store, folder, subset=subset)
                advance(1)
            self.report.figures, self.report.report = list(written.figures), written.html
        else:
            self.report.figures = sorted(folder.glob("*.png"))
            self.report.report = folder / "index.html"
        self.report.findings = findings(store, subset=subset)
