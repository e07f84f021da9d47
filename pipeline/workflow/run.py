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

from pipeline.cluster import Executor, Task, describe_failure, executor, override
from pipeline.errors import ConsilienceError, InputError
from pipeline.progress import stage
from pipeline.registry import Registry, load_registry
from pipeline.schema import STIMULI
from pipeline.stimuli import StimulusSet, Subset, load_stimuli
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import Encoder, in_training_order, tower_encoders
from pipeline.store.grid import Grid, allocate, blocks_of
from pipeline.store.layout import activations_path, create_variable, open_root, sweep_partial
from pipeline.store.lease import lease
from pipeline.training import (
    TrainingRecipe,
    is_trained,
    load_recipes,
    planned_steps,
    train_all,
)
from pipeline.workflow import analyse, calibrate, compare
from pipeline.workflow.extract import (
    ModelPlan,
    extract_tasks,
    plan_model,
    prepare_model,
    step_of,
)
from pipeline.workflow.pairs import Comparison, wanted_pairs, with_text
from pipeline.workflow.spec import Workflow


@dataclass
class Plan:
    """What a workflow has done already and what it will do."""

    workflow: Workflow
    registry: Registry
    stimuli: StimulusSet
    subset: Subset
    untrained: list[TrainingRecipe]
    models: list[ModelPlan]
    comparisons: list[Comparison]
    pairs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Stage → (unordered pairs missing, wanted), over subsets and measures."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Stage → tasks to run."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to compute."""
        return not self.untrained and not any(self.tasks.values())


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


def plan_workflow(
    workflow: Workflow, *, replace: Sequence[str] = (), root: zarr.Group | None = None
) -> Plan:
    """Check a workflow whole and compare it with its store. Writes nothing.

    Raises
    ------
    InputError, StoreError
        For everything that can be known to be wrong before a task runs.
    """
    if root is None and Path(workflow.store).exists():
        root = open_root(workflow.store, "r")
    registry = load_registry(workflow.registry)
    try:
        specs = registry.select(
            sets=workflow.models.sets, ids=workflow.models.ids, families=workflow.models.families
        )
    except InputError as error:
        raise InputError(f"models: {error}") from None
    for model in replace:
        if model not in {spec.id for spec in specs}:
            registry[model]  # says where there is none
            raise InputError(f"--replace {model}: the workflow does not select this model.")
    recipes = [
        r
        for r in (load_recipes(workflow.train) if workflow.train else [])
        if r.model.id in {spec.id for spec in specs}
    ]
    steps = {r.model.id: planned_steps(r) for r in recipes}
    stimuli = load_stimuli(workflow.stimuli)
    subset = stimuli.subset(workflow.subset.n, workflow.subset.seed)
    fewest = max(spec.minimum_stimuli for spec in workflow.compare.specs.values())
    if len(subset) < fewest:
        raise InputError(
            f"subset: {len(subset)} rows are too few for these measures, which need {fewest}. "
            "Raise subset.n, or lower k."
        )
    untrained = [r for r in recipes if not is_trained(r)]
    to_train = {r.model.id for r in untrained}
    models = []
    for spec in specs:
        try:
            models.append(
                plan_model(
                    root,
                    spec,
                    stimuli,
                    # a model about to be trained anew has other weights than those in the store
                    replace=spec.id in replace,
                    planned_steps=steps[spec.id] if spec.id in to_train else (),
                )
            )
        except ConsilienceError as error:
            raise InputError(f"{registry.entries[spec.id].where}: {error}") from None
    plan = Plan(
        workflow,
        registry,
        stimuli,
        subset,
        untrained,
        models,
        comparisons_of(workflow, subset, expected_encoders(root, models, stimuli)),
    )
    plan.tasks["train"] = len(untrained)
    plan.tasks["extract"] = sum(bool(m.missing) for m in models)
    _plan_pairs(plan, root)
    return plan


def expected_encoders(
    root: zarr.Group | None, models: Sequence[ModelPlan], stimuli: StimulusSet
) -> list[Encoder]:
    """Return the encoders that will be in the store once everything is extracted."""
    expected = []
    for model in models:
        steps = {label: step_of(c) for label, c in model.checkpoints.items()}
        ordered = in_training_order(steps.items())
        for tower in model.spec.towers:
            stored = {e.checkpoint: e for e in stored_encoders(root, model, tower, stimuli)}
            layers = (
                model.described[tower].layers
                if model.described is not None
                else next(iter(stored.values())).layers
            )
            expected += [
                stored.get(label)
                or Encoder(
                    model.spec.id,
                    label,
                    tower,
                    steps[label],
                    tuple(layers),
                    initial=steps[label] == 0,
                    final=label == ordered[-1],
                )
                for label in ordered
            ]
    return expected


def stored_encoders(
    root: zarr.Group | None, model: ModelPlan, tower: str, stimuli: StimulusSet
) -> list[Encoder]:
    """Return the complete encoders of a model's tower that the workflow names."""
    path = activations_path(stimuli.key, model.spec.id, tower)
    if root is None or path not in root or model.replace:
        return []
    group = root[path]
    assert isinstance(group, zarr.Group)
    found = tower_encoders(model.spec.id, tower, TowerGroup(group), stimuli.key)
    return [e for e in found if e.checkpoint in model.checkpoints]


def comparisons_of(
    workflow: Workflow, subset: Subset, encoders: Sequence[Encoder]
) -> list[Comparison]:
    """Return who meets whom on which rows.

    Image towers meet on the subset. Pairs with a text tower meet on its distinct captions, since
    repeated captions would be exact ties.
    """
    images = [e for e in encoders if e.tower == "image"]
    kinds = workflow.compare.pairs
    of_null = workflow.calibrate.pairs if workflow.calibrate else ()

    def comparison(subset: Subset, some: Sequence[Encoder], only: Any = True) -> Comparison:
        calibrated = wanted_pairs(some, of_null) & ~np.eye(len(some), dtype=bool) & only
        # what is calibrated is also compared: a null says nothing without its score
        return Comparison(subset, some, wanted_pairs(some, kinds) & only | calibrated, calibrated)

    found = [comparison(subset, images)] if images else []
    if any(e.tower == "text" for e in encoders):
        captions = subset.distinct_captions()
        needed = max(spec.minimum_stimuli for spec in workflow.compare.specs.values())
        if len(captions) < needed:
            raise InputError(
                f"subset: its {len(subset)} rows have {len(captions)} distinct captions, too few "
                f"for these measures, which need {needed}. Raise subset.n, or lower k."
            )
        found.append(comparison(captions, encoders, with_text(encoders)))
    return found


def _plan_pairs(plan: Plan, root: zarr.Group | None) -> None:
    specs = plan.workflow.compare.specs
    pairs = {"compare": [0, 0], "calibrate": [0, 0]}
    blocks: dict[str, set[Any]] = {"compare": set(), "calibrate": set()}
    for c in plan.comparisons:
        counts = [len(e.layers) for e in c.encoders]
        of_layers = np.outer(counts, counts)
        for label, spec in specs.items():
            grid = (
                None
                if root is None
                else compare.ensure_grid(root, c.subset, label, spec, create=False)
            )
            digests = compare.digests_of(c.encoders)
            allocation = allocate(grid, digests, compare.CHUNK)
            todo = compare.missing_pairs(grid, allocation, c.encoders, c.wanted)
            pairs["compare"][0] += _unordered(todo)
            pairs["compare"][1] += int(of_layers[np.triu(c.wanted, 1)].sum()) + sum(
                n * (n + 1) // 2 for n, own in zip(counts, c.wanted.diagonal(), strict=True) if own
            )
            key = (c.subset.key, tuple(allocation.members.items()))
            blocks["compare"] |= {(key, b) for b in blocks_of(todo, compare.CHUNK)}
            if plan.workflow.calibrate is None:
                continue
            null = (
                None
                if root is None
                else calibrate.ensure_null(
                    root, c.subset, label, plan.workflow.calibrate, create=False
                )
            )
            allocation = allocate(null, calibrate.digests_of(c), calibrate.CHUNK)
            todo = calibrate.missing_nulls(null, allocation, c)
            pairs["calibrate"][0] += _unordered(todo)
            pairs["calibrate"][1] += int(np.triu(c.calibrated, 1).sum())
            key = (c.subset.key, tuple(allocation.members.items()))
            blocks["calibrate"] |= {(key, b) for b in blocks_of(todo, calibrate.CHUNK)}
    for name, (missing, wanted) in pairs.items():
        plan.pairs[name] = (missing, wanted)
        plan.tasks[name] = len(blocks[name])


def _unordered(mask: Any) -> int:
    return int(np.triu(mask).sum())


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
        if not plan.is_done:
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
        prepare_model(root, model, plan.stimuli, plan.registry)
    extraction = workflow.extract
    tasks = extract_tasks(
        plan.models,
        plan.stimuli,
        workflow.stimuli,
        workflow.store,
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
        for e in stored_encoders(
            root,
            ModelPlan(model.spec, model.checkpoints, None, replace=False),
            tower,
            plan.stimuli,
        )
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
    changed = [
        analyse.write_alignment(root, label, spec, comparisons, workflow.calibrate, competence)
        for label, spec in workflow.compare.specs.items()
    ]
    _report(workflow, comparisons[0].subset.key, any(changed), console, report)


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


def _train(plan: Plan, console: Console) -> None:
    recipes = plan.untrained
    total = sum(r.options.steps for r in recipes)
    from pipeline.cluster import cpu_count

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
            of_subset, specs, c.encoders, missing, workflow.store, c.subset
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
            grids, specs, c.encoders, missing, settings, workflow.store, c.subset
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
    if images.subset.base.labels is None or images.subset.kind != "images":
        return {}
    known = analyse.read_competence(root, images.subset.key)
    missing = analyse.missing_competence(known, images.encoders)
    tasks = analyse.competence_tasks(missing, workflow.store, images.subset)
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
