"""Run a workflow: plan it whole, refuse what is wrong, then do what is missing, stage by stage."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.cluster import (
    ClusterSpec,
    Executor,
    cpu_count,
    describe_failure,
    executor,
    override,
)
from pipeline.cluster.workers import (
    check_report_file,
    heard,
    performance_report,
    rooms_of,
    rooms_to_be,
    timed,
)
from pipeline.errors import InputError
from pipeline.progress import stage
from pipeline.store.io.lease import Lease, StoreRef, lease
from pipeline.store.io.location import Location, absolute, locate
from pipeline.store.layout import has_parts, open_root
from pipeline.store.writer import StoreWriter
from pipeline.training import TrainingRecipe, train_all
from pipeline.workflow.log import RunLog, at, run_log
from pipeline.workflow.memory import check_memory
from pipeline.workflow.plan import Plan, PlannedStage, plan_workflow
from pipeline.workflow.spec import Workflow
from pipeline.workflow.stages.stage import StageTask


@dataclass
class RunReport:
    """What a run did."""

    store: str
    seconds: float = 0.0
    tasks: dict[str, int] = field(default_factory=dict)
    """Stage → tasks that were run."""
    finished: dict[str, int] = field(default_factory=dict)
    """Stage → tasks among them that came to an end and are kept."""
    failures: dict[str, str] = field(default_factory=dict)
    """What failed → why; the rest was finished and kept."""
    report: Path | None = None
    figures: list[Path] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the findings leave out, and why."""

    @property
    def exit_code(self) -> int:
        """0, or 1 where something failed."""
        return 1 if self.failures else 0

    @property
    def kept(self) -> str:
        """What was finished in this run, stage by stage, in words."""
        parts = [
            f"{stage} {self.finished.get(stage, 0)} of {n}" for stage, n in self.tasks.items() if n
        ]
        return f"tasks finished in this run: {', '.join(parts)}" if parts else ""


def run_workflow(
    workflow: Workflow,
    *,
    cluster: str | None = None,
    replace: Sequence[str] = (),
    console: Console | None = None,
    wait: float | None = None,
    report_file: Path | None = None,
) -> RunReport:
    """Do what a workflow asks and its store lacks.

    Parameters
    ----------
    cluster
        What replaces the workflow's `cluster:`: a scheduler's address, `local`, or a YAML file.
    replace
        Ids of models whose stored activations are dropped and extracted anew, and labels of
        measures whose stored results are dropped and computed anew.
    console
        Where progress goes; default: standard error.
    wait
        Seconds to wait for another run on the store to end; default: the workflow's.
    report_file
        Where to write Dask's performance report of the run, as HTML.

    Returns
    -------
    RunReport
        With what failed; one model that fails does not fail the run.

    Raises
    ------
    ConsilienceError
        For everything that is known to be wrong before a task runs; the store is left as it was.
    KeyboardInterrupt
        Where the run was interrupted; a note says what was finished before.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    report = RunReport(workflow.store)
    location = locate(workflow.store)
    where = override(workflow.cluster, cluster)
    if report_file is not None:
        check_report_file(report_file)

    def told(holder: str) -> None:
        console.print(f"{location} is in use by {holder}: waiting for it to end")

    try:
        with ExitStack() as stack:
            patience = workflow.wait if wait is None else wait
            take = partial(lease, location, wait=patience, on_wait=told)
            held = None
            if not location.is_empty():
                open_root(location)  # what is no store of ours is left alone
                held = stack.enter_context(take())  # a plan is of what no other run is changing
            plan = plan_workflow(workflow, replace=replace)
            if plan.needs:
                check_memory(plan, rooms_to_be(where), where)
            untrained = plan.context.untrained
            if untrained:
                report.tasks["train"] = len(untrained)
                _train(untrained, console)
                report.finished["train"] = len(untrained)
                plan = plan_workflow(workflow, replace=replace)
            pool = stack.enter_context(executor(where))
            if plan.needs_workers:
                client = pool.start()  # a wrong address is known before the store is touched
                _check_shared(location, client)
                check_memory(plan, rooms_of(client), where)
            if held is None:
                open_root(location, "a")
                held = stack.enter_context(take())
                if has_parts(location):  # another run has been quicker
                    plan = plan_workflow(workflow, replace=replace)
            stack.callback(pool.close)  # workers end before the lease does
            if report_file is not None and plan.needs_workers:
                stack.enter_context(performance_report(pool.start(), report_file))
            store = StoreWriter(location, lease=held)
            log = None
            if not plan.is_done:
                log = stack.enter_context(run_log(store, **_about(plan, where, held)))
            _Run(store, plan, pool, console, report, held, log).run_stages()
            if log is not None:
                log.end("failures" if report.failures else "done", failures=report.failures)
    except KeyboardInterrupt as stop:
        if report.kept:
            stop.add_note(report.kept)
        raise
    report.seconds = time.monotonic() - started
    return report


def _check_shared(location: Location, client: Any) -> None:
    if not location.is_shared and {*client.run(os.getpid).values()} != {os.getpid()}:
        raise InputError(
            f"store: {location} is the memory of one process, and the workers are others. Name a "
            "folder, or a URL that all of them see."
        )


def _about(plan: Plan, spec: ClusterSpec, held: Lease) -> dict[str, Any]:
    """Return what the log of a run begins with."""
    return {
        "lock": held.token,
        "workflow": plan.workflow.model_dump(mode="json"),
        "cluster": spec.model_dump(mode="json"),
        "stimuli": plan.context.stimuli.key,
        "subsets": [c.subset.key for c in plan.context.comparisons],
        "tasks": plan.n_tasks,
        "needs": {stage: asdict(needs) for stage, needs in plan.needs.items()},
    }


def _train(recipes: Sequence[TrainingRecipe], console: Console) -> None:
    total = sum(r.options.steps for r in recipes)
    before: dict[str, int] = {}
    with stage(console, "train", total, f"steps of {len(recipes)} models") as shown:

        def show(event: Any) -> None:
            shown.advance(event.step - before.get(event.model, 0))
            before[event.model] = event.step

        train_all(recipes, workers=cpu_count(), on_progress=show)


class _Run:
    """The stages after training, on one store under its lease."""

    def __init__(
        self,
        store: StoreWriter,
        plan: Plan,
        pool: Executor,
        console: Console,
        report: RunReport,
        held: Lease,
        log: RunLog | None,
    ) -> None:
        self.plan, self.pool, self.lease = plan, pool, held
        self.console, self.report, self.log = console, report, log
        self.workflow, self.ctx = plan.workflow, plan.context
        self.store, self.ctx.store, self.ctx.changing = store, store, False
        # workers may stand in another folder
        self.site = StoreRef(absolute(plan.workflow.store), held.token)

    def run_stages(self) -> None:
        ctx = self.ctx
        if not self.plan.is_done:
            self.store.sweep_partial()
        for label in ctx.replaced:
            self.store.drop_measure(label)
        ctx.replaced = frozenset()
        changed = False
        for planned in self.plan.stages.values():
            stage = planned.stage
            # what an earlier stage has written changes what is pending of this one
            now = PlannedStage.of(stage, ctx) if changed else planned
            changed = changed or bool(now.pending)
            stage.create(ctx, now.pending)
            for task, result in self.run_tasks(now):
                for failure in stage.collect(ctx, now.pending, task, result):
                    self.report.failures[failure.what] = failure.why
            stage.finish(ctx, now.pending)
            if not ctx.encoders:  # every model failed: the report names them
                return
        self.write_report()
        if any(self.report.tasks.values()):
            self.store.sweep_partial()  # what workers that died have left

    def run_tasks(self, planned: PlannedStage) -> Iterator[tuple[StageTask, Any]]:
        """Yield (task, result) of those that succeed; note the others as failures."""
        name, tasks, report = planned.stage.name, planned.tasks, self.report
        report.tasks[name] = len(tasks)
        if not tasks:
            return
        total = sum(task.size for task in tasks)
        cost = sum(task.cost for task in tasks)
        self.note("stage", stage=name, tasks=len(tasks))
        topic = f"consilience-{uuid.uuid4().hex[:8]}"
        known = {task.name: task for task in tasks}
        measured = [
            replace(
                task,
                function=timed(task.function, topic, task.name),
                arguments=(self.site, task.job),
            )
            for task in tasks
        ]

        def hear(part: str, done: int) -> None:
            task = known[part]
            shown.within(part, done, task.cost * done / task.size)

        client = self.pool.start()
        with (
            stage(self.console, name, total, planned.stage.unit, cost=cost) as shown,
            heard(client, topic, hear),
        ):
            for outcome in self.pool.run(measured):
                self.lease.check()
                task, before = outcome.task, set(report.failures)
                assert isinstance(task, StageTask)
                if outcome.error is not None:
                    errors = [describe_failure(outcome)]
                    report.failures[task.name] = errors[0]
                else:
                    yield task, outcome.result.result
                    report.finished[name] = report.finished.get(name, 0) + 1
                    errors = [report.failures[each] for each in report.failures.keys() - before]
                shown.advance(task.size, cost=task.cost, failed=len(errors), part=task.name)
                self.note("task", **_record(name, task, outcome.result, errors))

    def note(self, event: str, **what: Any) -> None:
        """Add a line to the log of the run, where it has one."""
        if self.log is not None:
            self.log.write(event, **what)

    def write_report(self) -> None:
        from pipeline.report import default_folder, findings, is_current, notes, write_report
        from pipeline.store import open_store

        store, subset = open_store(self.workflow.store), self.ctx.key
        folder = default_folder(store, subset)
        if not is_current(store, folder, subset):
            with stage(self.console, "report", 1, "page") as shown:
                written = write_report(store, folder, subset=subset)
                shown.advance(1)
            self.report.figures, self.report.report = list(written.figures), written.html
        else:
            self.report.figures = sorted(folder.glob("*.png"))
            self.report.report = folder / "index.html"
        self.report.findings = findings(store, subset=subset)
        self.report.notes = notes(store, subset=subset)


def _record(stage: str, task: StageTask, measured: Any, errors: Sequence[str]) -> dict[str, Any]:
    """Return what the log says of a task."""
    found: dict[str, Any] = {"stage": stage, "name": task.name, "operations": task.cost}
    if measured is not None:
        found |= {
            "worker": measured.worker,
            "started": at(measured.started),
            "ended": at(measured.started + measured.seconds),
            "seconds": round(measured.seconds, 3),
            "read": measured.read,
            "written": measured.written,
            "memory": measured.memory,
        }
    return {**found, "errors": list(errors)}
