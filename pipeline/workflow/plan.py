"""Plan a workflow whole: what is wrong with it, what is done already, what is left to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from pipeline.config.registry import Registry, load_registry
from pipeline.encoder import Encoder, in_training_order
from pipeline.errors import ConsilienceError, InputError
from pipeline.stimuli import StimulusSet, Subset, load_stimuli
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import tower_encoders
from pipeline.store.grid import PendingPairs, pending_pairs
from pipeline.store.io.lease import StoreRef
from pipeline.store.io.location import locate
from pipeline.store.layout import find_group, open_root
from pipeline.training import (
    TrainingRecipe,
    is_trained,
    is_trained_otherwise,
    load_recipes,
    planned_steps,
)
from pipeline.workflow.comparisons import Comparison, Mask, wanted_pairs, with_text
from pipeline.workflow.cost import (
    Cost,
    Needs,
    compare_cost,
    competence_cost,
    extract_cost,
    kept_by_all,
    null_cost,
)
from pipeline.workflow.spec import Workflow
from pipeline.workflow.stages import analyse, calibrate, compare
from pipeline.workflow.stages.extract import ModelPlan, plan_model, step_of


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
    """Stage → (missing, wanted): unordered pairs over subsets and measures, or encoders."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Stage → tasks to run."""
    needs: dict[str, Needs] = field(default_factory=dict)
    """Stage → what its tasks take; stages with nothing to do are left out."""
    replaced: frozenset[str] = frozenset()
    """Labels of measures of which all that is stored is dropped."""
    stale: list[str] = field(default_factory=list)
    """Labels of the measures whose alignment and convergence are to be made (anew)."""

    @property
    def needs_workers(self) -> bool:
        """Whether there is something to run on a cluster."""
        return any(n for stage, n in self.tasks.items() if stage != "train")

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to compute."""
        return not any(self.tasks.values()) and not self.stale


def plan_workflow(
    workflow: Workflow, *, replace: Sequence[str] = (), root: zarr.Group | None = None
) -> Plan:
    """Check a workflow whole and compare it with its store. Writes nothing.

    Raises
    ------
    InputError, StoreError
        For everything that can be known to be wrong before a task runs.
    """
    if root is None and not locate(workflow.store).is_empty():
        root = open_root(workflow.store, "r")
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
                registry[model]  # says where there is none
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
    _check_trainings(workflow, root, stimuli, [r for r in untrained if r.model.id not in replace])
    kin = registry.related()
    models = []
    for spec in specs:
        try:
            models.append(
                plan_model(
                    root,
                    spec,
                    stimuli,
                    related={i for pair in kin if spec.id in pair for i in pair - {spec.id}},
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
        replaced=replaced,
    )
    plan.tasks["train"] = len(untrained)
    plan.tasks["extract"] = sum(bool(m.missing) for m in models)
    settings = workflow.extract
    costs = [
        extract_cost(m, stimuli, settings.batch_size, settings.device) for m in models if m.missing
    ]
    _add_needs(plan, "extract", costs)
    _plan_pairs(plan, root)
    _plan_results(plan, root)
    return plan


def _check_trainings(
    workflow: Workflow,
    root: zarr.Group | None,
    stimuli: StimulusSet,
    recipes: Sequence[TrainingRecipe],
) -> None:
    """Refuse to train anew what the store has as another recipe, or older seeds, made it."""
    if root is None:
        return
    changed = [
        r
        for r in recipes
        if is_trained_otherwise(r)
        and any(
            find_group(root, paths.tower(stimuli.key, r.model.id, tower), "recipe_digest")
            is not None
            for tower in r.model.towers
        )
    ]
    if changed:
        first = changed[0]
        raise InputError(
            f"{workflow.train}: {len(changed)} reference models in {workflow.store} were trained "
            f"by another recipe, or with seeds by an older rule; the first is {first.model.id}, in "
            f"{first.directory}. Trained anew they get other weights: name another store with "
            f"--store, or drop what is stored of each with --replace {first.model.id}."
        )


def expected_encoders(
    root: zarr.Group | None, models: Sequence[ModelPlan], stimuli: StimulusSet
) -> list[Encoder]:
    """Return the encoders that will be in the store once everything is extracted."""
    expected = []
    for model in models:
        steps = {label: step_of(c) for label, c in model.checkpoints.items()}
        ordered = in_training_order(steps.items())
        for tower in model.spec.towers:
            stored = {
                e.checkpoint: e
                for e in stored_encoders(None if model.replace else root, model, tower, stimuli)
            }
            if model.described is not None:
                layers, widths = model.described[tower].layers, model.described[tower].widths
            else:
                known = next(iter(stored.values()))
                layers, widths = known.layers, known.attributes["widths"]
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
                    attributes={"widths": widths},
                )
                for label in ordered
            ]
    return expected


def stored_encoders(
    root: zarr.Group | None, model: ModelPlan, tower: str, stimuli: StimulusSet
) -> list[Encoder]:
    """Return the complete encoders of a model's tower that the workflow names."""
    path = paths.tower(stimuli.key, model.spec.id, tower)
    group = find_group(root, path, "recipe_digest") if root is not None else None
    if group is None:
        return []
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
    """Count what is missing of similarities and nulls, by the tasks that a run would make."""
    workflow, specs = plan.workflow, plan.workflow.compare.specs
    roots = {label: None if label in plan.replaced else root for label in specs}
    settings, device = workflow.calibrate, workflow.compare.device
    budget = workflow.compare.budget
    pairs = {"compare": [0, 0], "calibrate": [0, 0]}
    costs: dict[str, list[Cost]] = {"compare": [], "calibrate": []}
    kept = 0.0

    def count(stage: str, todo: Mapping[str, PendingPairs], wanted: Mask) -> None:
        pairs[stage][0] += sum(each.n_pairs for each in todo.values())
        pairs[stage][1] += len(todo) * int(np.triu(wanted).sum())

    for c in plan.comparisons:
        digests, wanted = compare.wanted_scores(c)
        todo = {
            label: compare.outstanding_scores(
                compare.find_grid(roots[label], c.subset, label, spec), digests, wanted, spec
            )
            for label, spec in specs.items()
        }
        count("compare", todo, wanted)
        tasks = compare.compare_tasks(
            todo, specs, c.encoders, StoreRef(workflow.store), c.subset, budget, device
        )
        costs["compare"] += [compare_cost(task.arguments[0], c.subset) for task in tasks]
        kept += kept_by_all(c.encoders, c.subset, specs)
        if settings is None:
            continue
        digests, wanted = calibrate.wanted_nulls(c)
        todo = {
            label: pending_pairs(
                calibrate.find_null(roots[label], c.subset, label, spec, settings),
                digests,
                wanted,
                calibrate.CHUNK,
            )
            for label, spec in specs.items()
        }
        count("calibrate", todo, wanted)
        tasks = calibrate.null_tasks(
            todo, specs, c.encoders, settings, StoreRef(workflow.store), c.subset, budget
        )
        costs["calibrate"] += [null_cost(task.arguments[0], c.subset) for task in tasks]
    for name, (n_missing, n_wanted) in pairs.items():
        plan.pairs[name] = (n_missing, n_wanted)
        plan.tasks[name] = len(costs[name])
        # a worker keeps what it has prepared, for other tasks too
        _add_needs(plan, name, costs[name], at_least=min(float(budget.memory), kept))


def _add_needs(plan: Plan, stage: str, costs: Sequence[Cost], *, at_least: float = 0.0) -> None:
    if costs:
        plan.needs[stage] = Needs.of(costs, at_least)


def _plan_results(plan: Plan, root: zarr.Group | None) -> None:
    workflow, images = plan.workflow, plan.comparisons[0]
    known = {} if root is None else analyse.read_competence(root, images.subset.key)
    unmeasured = analyse.missing_competence(known, images)
    plan.pairs["competence"] = len(unmeasured), len(analyse.missing_competence({}, images))
    parts = analyse.competence_parts(unmeasured)
    plan.tasks["competence"] = len(parts)
    _add_needs(plan, "competence", [competence_cost(part, images.subset) for part in parts])
    changing = plan.needs_workers or plan.untrained or any(m.renamed for m in plan.models)
    plan.stale = [
        label
        for label, spec in workflow.compare.specs.items()
        if root is None
        or changing
        or label in plan.replaced
        or analyse.stale_inputs(root, label, spec, plan.comparisons, workflow.calibrate, known)
    ]
