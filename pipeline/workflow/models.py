"""What the store holds of each model, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.encoder import Encoder, in_training_order
from pipeline.errors import InputError
from pipeline.extraction.weights import weights_identity
from pipeline.modality import modality_of
from pipeline.schema import rows_per_chunk
from pipeline.stimuli import StimulusTable
from pipeline.store import Store
from pipeline.store.activations import TowerGroup
from pipeline.types import Block

if TYPE_CHECKING:
    from pipeline.sources import TowerInfo


@dataclass
class ModelPlan:
    """What the store holds of one model, and what is missing."""

    spec: ModelSpec
    checkpoints: dict[str, Checkpoint]
    towers: Mapping[str, TowerInfo] | None
    """Described from the architecture; None if nothing is missing."""
    metadata: Mapping[str, Any]
    """The model's metadata in the registry; they may change, unlike the recipe."""
    replace: bool = False
    missing: dict[str, dict[str, list[Block]]] = field(default_factory=dict)
    """Checkpoint → tower → blocks to extract."""
    metadata_changed: bool = False
    """Whether the metadata in the store differ."""

    @property
    def n_missing(self) -> int:
        """Number of blocks to extract, summed over checkpoints and towers."""
        return sum(len(b) for towers in self.missing.values() for b in towers.values())

    def bytes_to_write(self, n_stimuli: int) -> int:
        """Return the bytes of the missing activations."""
        if self.towers is None:
            return 0
        rows = rows_per_chunk(n_stimuli)
        return sum(
            # the last chunk is stored at full length
            4 * rows * len(blocks) * sum(self.towers[tower].widths)
            for towers in self.missing.values()
            for tower, blocks in towers.items()
        )

    def flops(self, n_stimuli: int) -> float:
        """Return the floating-point operations that extract the missing activations."""
        if self.towers is None:
            return 0.0
        rows = rows_per_chunk(n_stimuli)
        return sum(
            self.towers[tower].flops * min(rows * len(blocks), n_stimuli)
            for towers in self.missing.values()
            for tower, blocks in towers.items()
        )


def step_of(checkpoint: Checkpoint) -> int:
    """Return the training step: as given, else 0 for an initialisation, else -1 (unknown)."""
    if checkpoint.step is not None:
        return checkpoint.step
    return 0 if checkpoint.init is not None else -1


def plan_model(
    store: Store | None,
    spec: ModelSpec,
    stimuli: StimulusTable,
    *,
    related: Iterable[str] = (),
    replace: bool = False,
    planned_steps: Sequence[int] = (),
) -> ModelPlan:
    """Compare one model with the store. Reads only.

    Parameters
    ----------
    related
        Ids of the models that were not trained independently of this one.
    replace
        Whether to drop what is stored and extract it again.
    planned_steps
        Steps whose checkpoints a training will write first. Recipe and weights are checked against
        the store only after that training.

    Raises
    ------
    InputError
        If the recipe, the stimuli or the weights under this id have changed, a checkpoint file is
        missing, unreadable or ambiguous or does not fit the architecture, or the library does not
        know the model.
    """
    checkpoints = spec.checkpoint_map(planned_steps)
    metadata = {
        "family": spec.family,
        "metadata": spec.metadata,
        "sets": list(spec.sets),
        "related": sorted(related),
    }
    plan = ModelPlan(spec, checkpoints, None, metadata, replace)
    blocks = _blocks(len(stimuli))
    for tower in spec.towers:
        stimuli.ids(modality_of(tower))  # raises where there are none
        group = None if replace else stored_tower(store, spec, tower, stimuli)
        if group is not None:
            plan.metadata_changed |= {k: group.attrs.get(k) for k in metadata} != metadata
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
        from pipeline.extraction.describe import check_fit, describe

        plan.towers = describe(spec)
        faults: dict[str, InputError] = {}
        for label in plan.missing:
            file = checkpoints[label].file
            if file is not None and Path(file).is_file():
                try:
                    check_fit(spec, checkpoints[label])
                except InputError as error:
                    faults[label] = error
        if faults:
            first, *others = faults
            raise InputError(
                f"{faults[first]}"
                + (f" Nor can these of its checkpoints be used: {_some(others)}." if others else "")
            )
    return plan


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"{', '.join(labels[:5])}{more}"


def _blocks(n: int) -> list[Block]:
    rows = rows_per_chunk(n)
    return [(i, min(i + rows, n)) for i in range(0, n, rows)]


def stored_tower(
    store: Store | None, spec: ModelSpec, tower: str, stimuli: StimulusTable
) -> TowerGroup | None:
    """Return the stored activations of a model's tower, or None."""
    return None if store is None else store.tower(stimuli.key, spec.id, tower)


def _check_unchanged(
    spec: ModelSpec, tower: str, group: TowerGroup, stimuli: StimulusTable
) -> None:
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
            f"recipe: give the new one another `id:`, or extract it again with --replace {spec.id}."
        )
    if attributes["stimuli_fingerprint"] != stimuli.fingerprint_of(modality_of(tower)):
        raise InputError(
            f"model {spec.id}, {tower} tower: the stimuli are not those in the store (other "
            f"content under the same key). Extract it again with --replace {spec.id}."
        )


def _check_weights(spec: ModelSpec, label: str, checkpoint: Checkpoint, group: TowerGroup) -> None:
    stored = group.weights(label)
    now = weights_identity(spec, checkpoint, stored)
    if now.digest != stored.digest:
        were, are = (
            f"{content[:23]} {choice}".rstrip()
            for content, _, choice in (w.digest.partition(" ") for w in (stored, now))
        )
        raise InputError(
            f"model {spec.id}, checkpoint {label}: its weights are not those in the store (were "
            f"{were}, are now {are}). Give the new run another `id:`, or extract it again with "
            f"--replace {spec.id}."
        )


def expected_encoders(
    store: Store | None, models: Sequence[ModelPlan], stimuli: StimulusTable
) -> list[Encoder]:
    """Return the encoders that will be in the store once everything is extracted.

    In the order in which the store will return them: results are stored by this order.
    """
    expected = []
    for model in models:
        steps = {label: step_of(c) for label, c in model.checkpoints.items()}
        for tower in model.spec.towers:
            kept = None if model.replace else store
            group = stored_tower(kept, model.spec, tower, stimuli)
            rows = {} if group is None else group.training_steps
            rows |= {n: steps[n] for n in in_training_order(steps.items()) if n not in rows}
            ordered = in_training_order(rows.items())
            stored = {e.checkpoint: e for e in stored_encoders(kept, model, tower, stimuli)}
            if model.towers is not None:
                layers, widths = model.towers[tower].layers, model.towers[tower].widths
            else:
                known = next(iter(stored.values()))
                layers, widths = known.layers, known.attributes["widths"]
            for label in ordered:
                if label not in steps:
                    continue
                encoder = stored.get(label) or Encoder(
                    model.spec.id,
                    label,
                    tower,
                    rows[label],
                    tuple(layers),
                    initial=rows[label] == 0,
                    final=False,
                    attributes={"widths": widths},
                )
                expected.append(replace(encoder, final=label == ordered[-1]))
    return expected


def stored_encoders(
    store: Store | None, model: ModelPlan, tower: str, stimuli: StimulusTable
) -> list[Encoder]:
    """Return the fully extracted encoders of a model's tower, of the workflow's checkpoints."""
    if store is None:
        return []
    found = store.tower_encoders(stimuli.key, model.spec.id, tower)
    return [e for e in found if e.checkpoint in model.checkpoints]
