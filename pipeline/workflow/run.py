"""Run a workflow: plan it, refuse what is wrong, then compute what is missing, stage by stage."""

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
    performance_report,
    planned_worker_resources,
    subscribe_progress,
    timed,
    worker_resources,
)
from pipeline.errors import InputError
from pipeline.progress import counted, stage
from pipeline.store import Store
from pipeline.store.io.lease import Lease, StoreRef, lease
from pipeline.store.io.location import Location, absolute, locate
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
    """Stage → number of tasks submitted."""
    finished: dict[str, int] = field(default_factory=dict)
    """Stage → number of tasks that finished; their results are kept."""
    failures: dict[str, str] = field(default_factory=dict)
    """What failed → why; everything else was finished and kept."""
    report: Path | None = None
    figures: list[Path] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the findings leave out, and why."""

    @property
    def exit_code(self) -> int:
        """0, or 1 if something failed."""
        return 1 if self.failures else 0

    @property
    def kept(self) -> str:
        """Message with the finished tasks of this run, by stage; empty if there were none."""
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
    """Compute what a workflow asks for and its store does not hold yet.

    Parameters
    ----------
    cluster
        Replaces the workflow's `cluster:`: a scheduler's address, `local`, or a YAML file.
    replace
        Ids of models whose stored activations are dropped and extracted again, and labels of
        measures whose stored results are dropped and computed again.
    console
        Where progress is printed; default: standard error.
    wait
        Seconds to wait for another run on the store to end; default: the workflow's.
    report_file
        Where to write Dask's performance report of the run, as HTML.

    Returns
    -------
    RunReport
        Failures included: a model that fails does not stop the run.

    Raises
    ------
    ConsilienceError
        For every error that is found before a task runs; the store is then unchanged.
    KeyboardInterrupt
        If the run is interrupted; a note on it says what was finished.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    report = RunReport(workflow.store)
    location = locate(workflow.store)
    cluster_spec = override(workflow.cluster, cluster)
    if report_file is not None:
        check_report_file(report_file)

    def on_wait(holder: str) -> None:
        console.print(f"{location} is in use by {holder}: waiting for it to end")

    try:
        with ExitStack() as stack:
            wait_seconds = workflow.wait if wait is None else wait
            take_lease = partial(lease, location, wait=wait_seconds, on_wait=on_wait)
            held_lease = None
            if not location.is_empty():
                Store(location)  # refuses a folder that is not a store
                # taken before planning: no other run may change the store meanwhile
                held_lease = stack.enter_context(take_lease())
            with counted(console, "stimuli", "items") as progress:
                plan = plan_workflow(workflow, replace=replace, progress=progress)
            if plan.needs:
                check_memory(plan, planned_worker_resources(cluster_spec), cluster_spec)
            untrained = plan.context.untrained
            if untrained:
                report.tasks["train"] = len(untrained)
                _train(untrained, console)
                report.finished["train"] = len(untrained)
                plan = plan_workflow(workflow, replace=replace)
            pool = stack.enter_context(executor(cluster_spec))
            if plan.needs_workers:
                client = pool.start()  # a wrong address raises before the store is created
                _check_shared(location, client)
                check_memory(plan, worker_resources(client), cluster_spec)
            if held_lease is None:
                created = StoreWriter(location, create=True)
                held_lease = stack.enter_context(take_lease())
                if created.has_parts:  # another run filled it meanwhile
                    plan = plan_workflow(workflow, replace=replace)
            stack.callback(pool.close)  # workers end before the lease does
            if report_file is not None and plan.needs_workers:
                stack.enter_context(performance_report(pool.start(), report_file))
            store = StoreWriter(location, lease=held_lease)
            log = None
            if not plan.is_done:
                log = stack.enter_context(
                    run_log(store, **_log_header(plan, cluster_spec, held_lease))
                )
            _Run(store, plan, pool, console, report, held_lease, log).run_stages()
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
            f"store: {location} is the memory of one process, but the workers are other processes. "
            "Name a folder, or a URL that every worker can reach."
        )


def _log_header(plan: Plan, spec: ClusterSpec, held_lease: Lease) -> dict[str, Any]:
    """Return the fields of the first line of a run's log."""
    return {
        "lock": held_lease.token,
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
    with stage(console, "train", total, f"steps of {len(recipes)} models") as bar:

        def show(event: Any) -> None:
            bar.advance(event.step - before.get(event.model, 0))
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
        held_lease: Lease,
        log: RunLog | None,
    ) -> None:
        self.plan, self.pool, self.lease = plan, pool, held_lease
        self.console, self.report, self.log = console, report, log
        self.workflow, self.ctx = plan.workflow, plan.context
        self.store, self.ctx.store, self.ctx.changing = store, store, set()
        # workers may have another working directory
        self.store_ref = StoreRef(absolute(plan.workflow.store), held_lease.token)

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
            # results of an earlier stage change what is pending in this one
            now = PlannedStage.of(stage, ctx) if changed else planned
            changed = changed or now.is_pending
            stage.create(ctx, now.pending)
            for task, result in self.run_tasks(now):
                for failure in stage.collect(ctx, now.pending, task, result):
                    self.report.failures[failure.what] = failure.why
            stage.finish(ctx, now.pending)
            now.release()
            if not ctx.encoders:  # every model failed, and is listed in the failures
                return
        self.write_report()
        if any(self.report.tasks.values()):
            self.store.sweep_partial()  # files left by workers that died

    def run_tasks(self, planned: PlannedStage) -> Iterator[tuple[StageTask, Any]]:
        """Yield (task, result) of each task that succeeds; record the others as failures."""
        name, tasks, report = planned.stage.name, planned.tasks, self.report
        report.tasks[name] = len(tasks)
        if not tasks:
            return
        total = sum(task.size for task in tasks)
        cost = sum(task.cost for task in tasks)
        self.note("stage", stage=name, tasks=len(tasks))
        topic = f"consilience-{uuid.uuid4().hex[:8]}"
        by_name = {task.name: task for task in tasks}
        timed_tasks = [
            replace(
                task,
                function=timed(task.function, topic, task.name),
                arguments=(self.store_ref, task.job),
            )
            for task in tasks
        ]

        def on_progress(task_name: str, done: int) -> None:
            task = by_name[task_name]
            bar.within(task_name, done, task.cost * done / task.size)

        client = self.pool.start()
        with (
            stage(self.console, name, total, planned.stage.unit, cost=cost) as bar,
            subscribe_progress(client, topic, on_progress),
        ):
            for outcome in self.pool.run(timed_tasks):
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
                bar.advance(task.size, cost=task.cost, failed=len(errors), part=task.name)
                self.note("task", **_task_fields(name, task, outcome.result, errors))

    def note(self, event: str, **fields: Any) -> None:
        """Add a line to the log of the run, if it has one."""
        if self.log is not None:
            self.log.write(event, **fields)

    def write_report(self) -> None:
        from pipeline.report import default_folder, findings, is_current, notes, write_report
        from pipeline.store import open_store

        store, subset = open_store(self.workflow.store), self.ctx.key
        folder = default_folder(store, subset)
        if not is_current(store, folder, subset):
            with stage(self.console, "report", 1, "page") as bar:
                written = write_report(store, folder, subset=subset)
                bar.advance(1)
            self.report.figures, self.report.report = list(written.figures), written.html
        else:
            self.report.figures = sorted(folder.glob("*.png"))
            self.report.report = folder / "index.html"
        self.report.findings = findings(store, subset=subset)
        self.report.notes = notes(store, subset=subset)


def _task_fields(
    stage: str, task: StageTask, timed_result: Any, errors: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of a task's line in the log."""
    found: dict[str, Any] = {"stage": stage, "name": task.name, "operations": task.cost}
    if timed_result is not None:
        found |= {
            "worker": timed_result.worker,
            "started": at(timed_result.started),
            "ended": at(timed_result.started + timed_result.seconds),
            "seconds": round(timed_result.seconds, 3),
            "read": timed_result.read,
            "written": timed_result.written,
            "memory": timed_result.memory,
        }
    return {**found, "errors": list(errors)}
