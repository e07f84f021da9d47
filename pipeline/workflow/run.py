"""Run a workflow: plan it whole, refuse what is wrong, then do what is missing, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console

from pipeline.cluster import Executor, Task, cpu_count, describe_failure, executor, override
from pipeline.progress import stage
from pipeline.schema import STIMULI
from pipeline.stimuli import StimulusSet
from pipeline.store.grid import Grid, allocate
from pipeline.store.layout import create_variable, open_root, sweep_partial
from pipeline.store.lease import lease
from pipeline.training import train_all
from pipeline.workflow import analyse, calibrate, compare
from pipeline.workflow.extract import extract_tasks, prepare_model
from pipeline.workflow.pairs import Comparison
from pipeline.workflow.plan import Plan, comparisons_of, plan_workflow, stored_encoders
from pipeline.workflow.spec import Workflow


@dataclass
class RunReport:
    """What a run did."""

    store: Path
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
    report = RunReport(Path(workflow.store))
    plan = plan_workflow(workflow, replace=replace)
    if plan.untrained:
        _train(plan, console)
        report.tasks["train"] = len(plan.untrained)
        plan = plan_workflow(workflow, replace=replace)
    path = Path(workflow.store)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    with executor(override(workflow.cluster, cluster)) as pool:
        if plan.needs_workers:
            pool.start()  # a wrong address is known before the store is touched
        root = open_root(path, "a")
        with lease(path):
            _run_stages(plan, root, pool, console, report)
    report.seconds = time.monotonic() - started
    return report


def _run_stages(
    plan: Plan, root: zarr.Group, pool: Executor, console: Console, report: RunReport
) -> None:
    workflow = plan.workflow
    if not plan.is_done:
        sweep_partial(workflow.store)
    write_stimuli(root, plan.stimuli)
    for model in plan.models:
        prepare_model(root, model, plan.stimuli)
    extraction = workflow.extract
    tasks = extract_tasks(
        plan.models,
        plan.stimuli,
        workflow.stimuli,
        _location(workflow),
        extraction.batch_size,
        extraction.device,
    )
    for task, errors in _run(pool, console, report, "extract", "models", tasks):
        for label, error in errors.items():
            report.failures[f"{task.name.removeprefix('extract ')}@{label}"] = error
    encoders = [
        e
        for model in plan.models
        for tower in model.spec.towers
        for e in stored_encoders(root, model, tower, plan.stimuli)
    ]
    if not encoders:  # every model failed: the report names them, and there is nothing to compare
        return
    comparisons = comparisons_of(workflow, plan.subset, encoders)
    base = comparisons[0].subset.key
    for comparison in comparisons:
        compare.ensure_subset(root, comparison.subset, base)
    _compare(root, workflow, comparisons, pool, console, report)
    _calibrate(root, workflow, comparisons, pool, console, report)
    competence = _measure_competence(root, workflow, comparisons, pool, console, report)
    changed = False
    for label, spec in workflow.compare.specs.items():
        known = (root, label, spec, comparisons, workflow.calibrate, competence)
        inputs = analyse.stale_inputs(*known)
        if inputs is not None:
            analyse.write_alignment(*known, inputs)
            changed = True
    _report(workflow, comparisons[0].subset.key, changed, console, report)


def _run(
    pool: Executor,
    console: Console,
    report: RunReport,
    name: str,
    unit: str,
    tasks: Sequence[Task],
) -> Any:
    """Yield (task, result) of those that succeed; note the others as failures."""
    report.tasks[name] = len(tasks)
    if not tasks:
        return
    with stage(console, name, len(tasks), unit) as advance:
        for outcome in pool.run(tasks):
            advance(1)
            if outcome.error is not None:
                report.failures[outcome.task.name] = describe_failure(outcome)
            else:
                yield outcome.task, outcome.result


def _location(workflow: Workflow) -> str:
    """Return where workers find the store: they may stand in another folder."""
    return str(Path(workflow.store).absolute())


def _train(plan: Plan, console: Console) -> None:
    recipes = plan.untrained
    total = sum(r.options.steps for r in recipes)
    before: dict[str, int] = {}
    with stage(console, "train", total, f"steps of {len(recipes)} models") as advance:

        def show(event: Any) -> None:
            advance(event.step - before.get(event.model, 0))
            before[event.model] = event.step

        train_all(recipes, workers=cpu_count(), on_progress=show)


def write_stimuli(root: zarr.Group, stimuli: StimulusSet) -> None:
    """Write ids, captions, labels and, where all have one size, images. Driver only."""
    path = f"stimuli/{stimuli.key}"
    if path in root and "fingerprint" in root[path].attrs:
        return
    group = root.create_group(path, overwrite=True)
    n = len(stimuli)
    columns: dict[str, Any] = {"stimulus": stimuli.image_ids}
    if stimuli.captions is not None:
        columns |= {"caption_id": stimuli.caption_ids, "caption": stimuli.captions}
    if stimuli.labels is not None:
        columns["label"] = stimuli.labels
        if stimuli.label_names:
            columns["label_name"] = [stimuli.label_names[i] for i in stimuli.labels]
    for name, values in columns.items():
        create_variable(group, STIMULI[name], (n,), (n,), values=values)
    if len({image.shape for image in stimuli.images}) == 1:
        pixels = np.stack([np.atleast_3d(image) for image in stimuli.images])
        create_variable(
            group, STIMULI["image"], pixels.shape, (min(n, 1024), *pixels.shape[1:]), values=pixels
        )
    group.attrs.update(
        source=dict(stimuli.source),  # type: ignore[arg-type]
        name=stimuli.name,
        caption_fingerprint=stimuli.caption_fingerprint(),
        fingerprint=stimuli.fingerprint,  # written last: what marks the group as whole
    )


def _compare(
    root: zarr.Group,
    workflow: Workflow,
    comparisons: Sequence[Comparison],
    pool: Executor,
    console: Console,
    report: RunReport,
) -> None:
    specs = workflow.compare.specs
    tasks: list[Task] = []
    grids: dict[str, dict[str, Grid]] = {}
    for c in comparisons:
        of_subset: dict[str, Grid] = {}
        missing = {}
        for label, spec in specs.items():
            grid = compare.ensure_grid(root, c.subset, label, spec)
            assert grid is not None
            digests = compare.digests_of(c.encoders)
            grid.admit(digests)
            missing[label] = compare.missing_pairs(
                grid, allocate(grid, digests, compare.CHUNK), c.encoders, c.wanted
            )
            of_subset[label] = grid
        grids[c.subset.key] = of_subset
        tasks += compare.compare_tasks(
            of_subset, specs, c.encoders, missing, _location(workflow), c.subset
        )
    for task, ties in _run(pool, console, report, "compare", "blocks", tasks):
        compare.record_ties(grids[task.arguments[0].subset], ties)


def _calibrate(
    root: zarr.Group,
    workflow: Workflow,
    comparisons: Sequence[Comparison],
    pool: Executor,
    console: Console,
    report: RunReport,
) -> None:
    settings = workflow.calibrate
    if settings is None:
        return
    specs = workflow.compare.specs
    tasks: list[Task] = []
    for c in comparisons:
        grids, missing = {}, {}
        for label in specs:
            grid = calibrate.ensure_null(root, c.subset, label, settings)
            assert grid is not None
            digests = calibrate.digests_of(c)
            grid.admit(digests)
            missing[label] = calibrate.missing_nulls(
                grid, allocate(grid, digests, calibrate.CHUNK), c
            )
            grids[label] = grid
        tasks += calibrate.null_tasks(
            grids, specs, c.encoders, missing, settings, _location(workflow), c.subset
        )
    for _ in _run(pool, console, report, "calibrate", "blocks", tasks):
        pass


def _measure_competence(
    root: zarr.Group,
    workflow: Workflow,
    comparisons: Sequence[Comparison],
    pool: Executor,
    console: Console,
    report: RunReport,
) -> Mapping[str, Mapping[str, Any]]:
    images = comparisons[0]
    known = analyse.read_competence(root, images.subset.key)
    missing = analyse.missing_competence(known, images)
    tasks = analyse.competence_tasks(missing, _location(workflow), images.subset)
    found = dict(known)
    for _, result in _run(pool, console, report, "competence", "tasks", tasks):
        found |= result
    if tasks:
        analyse.write_competence(root, images.subset.key, found)
    return found


def _report(
    workflow: Workflow, subset_key: str, changed: bool, console: Console, report: RunReport
) -> None:
    from pipeline.report import default_folder, findings, write_report
    from pipeline.store import open_store

    store = open_store(workflow.store)
    folder = default_folder(store, subset_key)
    if changed or not (folder / "index.html").is_file():
        with stage(console, "report", 1, "page") as advance:
            written = write_report(store, folder, subset=subset_key)
            advance(1)
        report.figures = list(written.figures)
        report.report = written.html
    else:
        report.figures = sorted(folder.glob("*.png"))
        report.report = folder / "index.html"
    report.findings = findings(store, subset=subset_key)
