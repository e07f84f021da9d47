"""Stage: extract the activations of every model and checkpoint that is not in the store yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

from pipeline.cluster import Device, Task
from pipeline.cluster.workers import report_progress
from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import InputError, LostError, ModelError
from pipeline.modality import modality_of
from pipeline.sources import packages
from pipeline.sources.allocator import own_pages
from pipeline.sources.weights import weights_identity
from pipeline.stimuli import StimuliSpec, StimulusSet, load_stimuli
from pipeline.store.activations import TowerGroup, Weights, rows_per_chunk
from pipeline.store.catalog import in_training_order
from pipeline.store.io.lease import Site
from pipeline.store.layout import activations_path, delete, find_group, open_root
from pipeline.workflow.cost import extract_cost

if TYPE_CHECKING:
    from pipeline.sources import TowerInfo

Block = tuple[int, int]


@dataclass
class ModelPlan:
    """What one model has in the store, and what it lacks."""

    spec: ModelSpec
    checkpoints: dict[str, Checkpoint]
    described: Mapping[str, TowerInfo] | None
    """From the architecture; None where the store has it all."""
    about: Mapping[str, Any]
    """What the registry says of the model; it may change, unlike the recipe."""
    replace: bool = False
    missing: dict[str, dict[str, list[Block]]] = field(default_factory=dict)
    """Checkpoint → tower → blocks to extract."""
    renamed: bool = False
    """Whether the store says something else than `about`."""

    @property
    def n_missing(self) -> int:
        """Blocks to extract, over checkpoints and towers."""
        return sum(len(b) for towers in self.missing.values() for b in towers.values())

    def bytes_to_write(self, n_stimuli: int) -> int:
        """Bytes of activations that are missing."""
        if self.described is None:
            return 0
        rows = rows_per_chunk(n_stimuli)
        return sum(
            # the last chunk is as long as the others
            4 * rows * len(blocks) * sum(self.described[tower].widths)
            for towers in self.missing.values()
            for tower, blocks in towers.items()
        )

    def flops(self, n_stimuli: int) -> float:
        """Floating-point operations of what is missing."""
        if self.described is None:
            return 0.0
        rows = rows_per_chunk(n_stimuli)
        return sum(
            self.described[tower].flops * min(rows * len(blocks), n_stimuli)
            for towers in self.missing.values()
            for tower, blocks in towers.items()
        )


def step_of(checkpoint: Checkpoint) -> int:
    """Return the training step: given, 0 for an initialisation, else -1."""
    if checkpoint.step is not None:
        return checkpoint.step
    return 0 if checkpoint.init is not None else -1


def plan_model(
    root: zarr.Group | None,
    spec: ModelSpec,
    stimuli: StimulusSet,
    *,
    related: Iterable[str] = (),
    replace: bool = False,
    planned_steps: Sequence[int] = (),
) -> ModelPlan:
    """Compare one model with the store. Reads only.

    Parameters
    ----------
    related
        Ids of the models that were not trained apart from this one.
    replace
        Whether what is stored is to be dropped and extracted anew.
    planned_steps
        Steps whose checkpoints a training will write first; they are compared after it.

    Raises
    ------
    InputError
        Where the recipe, the captions or the weights under this id have changed, a checkpoint
        file is missing or does not fit, or the model is unknown.
    """
    checkpoints = spec.checkpoint_map(planned_steps)
    about = {
        "family": spec.family,
        "metadata": spec.metadata,
        "sets": list(spec.sets),
        "related": sorted(related),
    }
    plan = ModelPlan(spec, checkpoints, None, about, replace)
    blocks = _blocks(len(stimuli))
    for tower in spec.towers:
        stimuli.items(modality_of(tower))  # raises where there are none
        group = None if replace else _stored(root, spec, tower, stimuli)
        if group is not None:
            plan.renamed |= {k: group.attrs.get(k) for k in about} != about
            if not planned_steps:
                _check_unchanged(spec, tower, group, stimuli)
        for label, checkpoint in checkpoints.items():
            todo = blocks
            if group is not None and label in group.checkpoints:
                done = group.complete[group.checkpoints.index(label)]
                todo = [b for b, d in zip(blocks, done, strict=True) if not d]
                if done.any() and not planned_steps:
                    _check_weights(spec, label, checkpoint, group)
            if todo:
                plan.missing.setdefault(label, {})[tower] = todo
    if plan.missing:
        from pipeline.sources.torch_describe import check_fit, describe

        plan.described = describe(spec)
        for label in plan.missing:
            file = checkpoints[label].file
            if file is not None and Path(file).is_file():
                check_fit(spec, file)
    return plan


def _blocks(n: int) -> list[Block]:
    rows = rows_per_chunk(n)
    return [(i, min(i + rows, n)) for i in range(0, n, rows)]


def _stored(
    root: zarr.Group | None, spec: ModelSpec, tower: str, stimuli: StimulusSet
) -> TowerGroup | None:
    path = activations_path(stimuli.key, spec.id, tower)
    group = find_group(root, path, "recipe_digest") if root is not None else None
    return None if group is None else TowerGroup(group)


def _check_unchanged(spec: ModelSpec, tower: str, group: TowerGroup, stimuli: StimulusSet) -> None:
    attributes = group.attrs
    if attributes["recipe_digest"] != spec.recipe_digest:
        old, new = attributes["recipe"], spec.recipe
        changes = "; ".join(
            f"{key} was {old.get(key)!r}, is now {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        )
        raise InputError(
            f"model {spec.id}: its recipe is not the one in the store: {changes}. One id is one "
            f"recipe: give the new one another `id:`, or extract it anew with --replace {spec.id}."
        )
    if attributes["stimuli_fingerprint"] != stimuli.fingerprint_of(modality_of(tower)):
        raise InputError(
            f"model {spec.id}, {tower} tower: the stimuli are not those in the store (other "
            f"content under the same key). Extract it anew with --replace {spec.id}."
        )


def _check_weights(spec: ModelSpec, label: str, checkpoint: Checkpoint, group: TowerGroup) -> None:
    stored = group.weights(label)
    now = weights_identity(spec, checkpoint, stored)
    if now.digest != stored.digest:
        raise InputError(
            f"model {spec.id}, checkpoint {label}: its weights are not those in the store (were "
            f"{stored.digest[:23]}, are now {now.digest[:23]}). Give the new run another `id:`, "
            f"or extract it anew with --replace {spec.id}."
        )


def prepare_model(root: zarr.Group, plan: ModelPlan, stimuli: StimulusSet) -> None:
    """Create or grow the groups of one model. Driver only."""
    spec = plan.spec
    steps = {label: step_of(c) for label, c in plan.checkpoints.items()}
    for tower in spec.towers:
        path = activations_path(stimuli.key, spec.id, tower)
        if plan.replace:
            delete(root, path)
        group = _stored(root, spec, tower, stimuli) or _create(root, path, plan, tower, stimuli)
        if plan.renamed:
            group.group.update_attributes(dict(plan.about))
        rows: dict[str, tuple[int, Weights]] = {}
        for label in in_training_order(steps.items()):
            checkpoint = plan.checkpoints[label]
            if label not in group.checkpoints:
                rows[label] = (steps[label], weights_identity(spec, checkpoint))
            elif not group.complete[group.checkpoints.index(label)].any():
                # an attempt that failed: the file may have been mended since
                known = group.weights(label)
                now = weights_identity(spec, checkpoint, known)
                if now != known:
                    group.replace_weights(label, now)
        group.add_checkpoints(rows)


def _create(
    root: zarr.Group,
    path: str,
    plan: ModelPlan,
    tower: str,
    stimuli: StimulusSet,
) -> TowerGroup:
    from importlib.metadata import version

    assert plan.described is not None
    info, spec = plan.described[tower], plan.spec
    return TowerGroup.create(
        root,
        path,
        stimulus_ids=[str(i) for i in stimuli.ids(modality_of(tower))],
        layers=dict(zip(info.layers, info.widths, strict=True)),
        attributes={
            **plan.about,
            "model": spec.id,
            "tower": tower,
            "recipe": spec.recipe,
            "recipe_digest": spec.recipe_digest,
            "n_parameters": info.n_parameters,
            "n_embedding_parameters": info.n_embedding_parameters,
            "flops": info.flops,
            "pooling": info.pooling,
            "preprocessing": info.preprocessing,
            "stimuli_fingerprint": stimuli.fingerprint_of(modality_of(tower)),
            "versions": {name: version(name) for name in ("consilience", *packages())},
        },
    )


@dataclass(frozen=True)
class ExtractJob:
    """What a worker needs to extract one model: specs, never the model."""

    store: Site
    stimuli: StimuliSpec
    set_key: str
    spec: ModelSpec
    checkpoints: Mapping[str, Checkpoint]
    missing: Mapping[str, Mapping[str, Sequence[Block]]]
    batch_size: int
    device: Device


def extract_tasks(
    plans: Sequence[ModelPlan],
    stimuli: StimulusSet,
    stimuli_spec: StimuliSpec,
    store: Site,
    batch_size: int,
    device: Device,
) -> list[Task]:
    """Return one task per model: its missing checkpoints, one after the other.

    Workers may stand in another folder than the driver: their paths are absolute.
    """
    return [
        Task(
            f"extract {plan.spec.id}",
            extract_job,
            (
                ExtractJob(
                    store,
                    stimuli_spec,
                    stimuli.key,
                    plan.spec.absolute(),
                    {label: plan.checkpoints[label].absolute() for label in plan.missing},
                    plan.missing,
                    batch_size,
                    device,
                ),
            ),
            cost=extract_cost(plan, stimuli, batch_size, device).operations,
            device=device,
        )
        for plan in plans
        if plan.missing
    ]


def _check_loaded(spec: ModelSpec, label: str, checkpoint: Checkpoint, group: TowerGroup) -> None:
    """Raise where the weights, loaded by now, need not be those on record."""
    stored = group.weights(label)
    if weights_identity(spec, checkpoint, stored).digest != stored.digest:
        raise ModelError(
            f"model {spec.id}, checkpoint {label}: its weights changed while the run went on. "
            "Once they are written, run again."
        )


@lru_cache(maxsize=2)
def _stimuli(spec: StimuliSpec) -> StimulusSet:
    return load_stimuli(spec)


def extract_job(job: ExtractJob) -> dict[str, str]:
    """Extract one model on a worker; return checkpoint → error for those that failed."""
    with own_pages():
        return _extract(job)


def _extract(job: ExtractJob) -> dict[str, str]:
    import torch

    from pipeline.extraction import extract
    from pipeline.sources.torch_source import load_checkpoint, load_weights, torch_source

    stimuli = _stimuli(job.stimuli)
    if stimuli.key != job.set_key:
        raise InputError(
            f"this worker sees other stimuli ({stimuli.key}) than the driver ({job.set_key}): "
            "put the same files and versions on every machine."
        )
    device = job.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    root = open_root(job.store.place, "r+", lease=job.store.watch())
    errors: dict[str, str] = {}
    done = 0
    source, model = torch_source(job.spec.source), None
    for label, towers in job.missing.items():
        try:
            file = job.checkpoints[label].file
            if model is not None and file is not None:
                load_weights(source, job.spec, model, file)  # replaces every weight, or raises
            else:
                model = load_checkpoint(source, job.spec, job.checkpoints[label]).to(device)
            for tower, blocks in towers.items():
                group = _stored(root, job.spec, tower, stimuli)
                assert group is not None
                _check_loaded(job.spec, label, job.checkpoints[label], group)
                for block, values in extract(
                    job.spec,
                    model,
                    tower,
                    stimuli,
                    blocks,
                    batch_size=job.batch_size,
                    device=device,
                ):
                    group.write_block(label, block, {n: values[n] for n in group.layers})
                    done += block[1] - block[0]
                    report_progress(done)
        except ModelError as error:
            errors[label] = str(error)
        except LostError:
            raise
        except Exception as error:
            # hub clients, image and tokenizer libraries raise what they like: the model fails,
            # the run goes on, and the message says which model
            errors[label] = (
                f"model {job.spec.id}, checkpoint {label}: {type(error).__name__}: {error}"
            )
    return errors
