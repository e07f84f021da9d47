"""Plan a whole workflow: check it, and find what is done and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.registry import load_registry
from pipeline.errors import ConsilienceError, InputError
from pipeline.lru import LruCache
from pipeline.stimuli import Progress, StimulusTable, draw, index_stimuli
from pipeline.store import Store, open_store
from pipeline.store.io.location import locate
from pipeline.training import (
    TrainingRecipe,
    is_trained,
    is_trained_otherwise,
    load_recipes,
    planned_steps,
)
from pipeline.workflow.budgets import Needs
from pipeline.workflow.context import Context
from pipeline.workflow.models import expected_encoders, plan_model
from pipeline.workflow.spec import Workflow
from pipeline.workflow.stages import STAGES, Stage
from pipeline.workflow.stages.stage import StageTask


@dataclass
class PlannedStage:
    """The pending work of one stage."""

    stage: Stage[Any]
    is_pending: bool
    n_tasks: int
    n_missing: int
    n_wanted: int
    needs: Needs | None
    """Total cost of its tasks; None without tasks."""
    pending: Any = None
    tasks: Sequence[StageTask] = ()

    @classmethod
    def of(cls, stage: Stage[Any], ctx: Context) -> PlannedStage:
        """Plan a stage. Reads only."""
        pending = stage.pending(ctx)
        tasks = list(stage.tasks(ctx, pending))
        costs = [task.estimate for task in tasks]
        needs = Needs.of(costs, stage.resident(ctx)) if costs else None
        counts = len(tasks), *stage.summary(ctx, pending)
        return cls(stage, bool(pending), *counts, needs, pending, tasks)

    def release(self) -> None:
        """Drop everything but the counts: masks of all pairs take much memory."""
        self.pending, self.tasks = None, ()


@dataclass(frozen=True)
class Plan:
    """What a workflow has done already, and what it will do."""

    context: Context
    stages: Mapping[str, PlannedStage] = field(default_factory=dict)
    """Name → stage, in the order in which they run."""

    @property
    def workflow(self) -> Workflow:
        """The workflow that is planned."""
        return self.context.workflow

    @property
    def n_tasks(self) -> dict[str, int]:
        """Stage → number of tasks to run, training included."""
        return {
            "train": len(self.context.untrained),
            **{name: planned.n_tasks for name, planned in self.stages.items()},
        }

    @property
    def needs(self) -> dict[str, Needs]:
        """Stage → total cost of its tasks; stages without tasks are left out."""
        return {name: p.needs for name, p in self.stages.items() if p.needs is not None}

    @property
    def needs_workers(self) -> bool:
        """Whether any task runs on the cluster."""
        return any(planned.n_tasks for planned in self.stages.values())

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to compute."""
        return not self.context.untrained and not any(p.is_pending for p in self.stages.values())


def plan_workflow(
    workflow: Workflow, *, replace: Sequence[str] = (), progress: Progress | None = None
) -> Plan:
    """Check a whole workflow and compare it with its store. Writes nothing.

    Parameters
    ----------
    replace
        Ids of models, and labels of measures, whose stored results are planned to be dropped and
        computed again.
    progress
        Called with how many stimuli are checked, of how many; not for those that are built in.

    Raises
    ------
    InputError, StoreError
        For every error that can be found before a task runs.
    """
    ctx = read_context(workflow, replace=replace, progress=progress)
    stages: dict[str, PlannedStage] = {}
    is_pending = False
    for stage in STAGES:
        planned = stages[stage.name] = PlannedStage.of(stage, ctx)
        ctx.changing |= set(stage.affected(ctx, planned.pending))
        if is_pending:
            planned.release()  # a run plans it again, once earlier stages have written
        is_pending = is_pending or planned.is_pending
    return Plan(ctx, stages)


def read_context(
    workflow: Workflow, *, replace: Sequence[str] = (), progress: Progress | None = None
) -> Context:
    """Read and check the files of a workflow, and compare its models with its store.

    Parameters
    ----------
    replace, progress
        As for `plan_workflow`.

    Raises
    ------
    InputError, StoreError
        As `plan_workflow`.
    """
    store = None if locate(workflow.store).is_empty() else open_store(workflow.store)
    registry = load_registry(workflow.registry)
    try:
        specs = registry.select(
            sets=workflow.models.sets, ids=workflow.models.ids, families=workflow.models.families
        )
    except InputError as error:
        raise InputError(f"models: {error}") from None
    replaced = frozenset(replace) & workflow.compare.specs.keys()
    for model in sorted(set(replace) - replaced):
        if model not in {spec.id for spec in specs}:
            if "/" in model:
                registry[model]  # raises, with suggestions, if unknown
                raise InputError(f"--replace {model}: the workflow does not select this model.")
            raise InputError(
                f"--replace {model}: the workflow has no such measure; its measures are "
                f"{', '.join(workflow.compare.specs)}. The id of a model has a slash."
            )
    recipes = [
        r
        for r in (load_recipes(workflow.train) if workflow.train else [])
        if r.model.id in {spec.id for spec in specs}
    ]
    steps = {r.model.id: planned_steps(r) for r in recipes}
    stimuli = _index(workflow, store, progress)
    subset = draw(stimuli, workflow.subset)
    n_required = max(spec.minimum_stimuli for spec in workflow.compare.specs.values())
    if len(subset) < n_required:
        raise InputError(
            f"subset: {len(subset)} rows are too few for these measures, which need {n_required}. "
            "Raise subset.n, or lower k."
        )
    untrained = [r for r in recipes if not is_trained(r)]
    ids_to_train = {r.model.id for r in untrained}
    _check_trainings(workflow, store, stimuli, [r for r in untrained if r.model.id not in replace])
    related_pairs = registry.related()
    models = []
    for spec in specs:
        try:
            models.append(
                plan_model(
                    store,
                    spec,
                    stimuli,
                    related={
                        i for pair in related_pairs if spec.id in pair for i in pair - {spec.id}
                    },
                    replace=spec.id in replace,
                    planned_steps=steps[spec.id] if spec.id in ids_to_train else (),
                )
            )
        except ConsilienceError as error:
            raise InputError(f"{registry.entries[spec.id].where}: {error}") from None
    ctx = Context(
        workflow,
        store,
        registry,
        stimuli,
        subset,
        untrained,
        models,
        replaced,
        changing=set(workflow.compare.specs) if untrained else set(),
    )
    ctx.set_encoders(expected_encoders(store, models, stimuli))
    return ctx


_indexed: LruCache[str, StimulusTable] = LruCache(limit=2)


def _index(workflow: Workflow, store: Store | None, progress: Progress | None) -> StimulusTable:
    """Make the table of the stimuli; what did not change is taken from an earlier one."""
    spec = workflow.stimuli
    key = spec.absolute().model_dump_json()
    known = _indexed.get(key)  # a run plans more than once
    if known is None and store is not None:
        known = store.find_table(spec.recorded())
    table = index_stimuli(spec, known, progress)
    _indexed.put(key, table)
    return table


def _check_trainings(
    workflow: Workflow,
    store: Store | None,
    stimuli: StimulusTable,
    recipes: Sequence[TrainingRecipe],
) -> None:
    """Refuse to retrain models that the store has from another recipe or another seed rule."""
    if store is None:
        return
    changed = [
        r
        for r in recipes
        if is_trained_otherwise(r)
        and any(store.tower(stimuli.key, r.model.id, tower) is not None for tower in r.model.towers)
    ]
    if changed:
        first = changed[0]
        raise InputError(
            f"{workflow.train}: {len(changed)} reference models in {workflow.store} were trained "
            f"with another recipe, or with seeds from an older rule; the first is "
            f"{first.model.id}, in {first.directory}. Training them again gives other weights: "
            f"name another store with --store, or drop each stored model with --replace "
            f"{first.model.id}."
        )
