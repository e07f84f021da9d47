"""The encoders and representations that a store holds, read from its activations groups."""

from __future__ import annotations

from dataclasses import dataclass

import zarr

from pipeline.encoder import Encoder, in_training_order
from pipeline.modality import modality_of
from pipeline.schema import TOWER_GROUP
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import child_groups


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint of a tower."""

    label: str
    step: int
    is_complete: bool
    """Whether all of its activations were extracted."""


def tower_groups(root: zarr.Group, set_key: str) -> list[tuple[str, str, TowerGroup]]:
    """Return (model, tower, group) of every tower stored for a set."""
    return [
        (f"{source}/{name}", tower, TowerGroup(group))
        for source, names in child_groups(root, paths.ACTIVATIONS, set_key).items()
        for name, towers in child_groups(names).items()
        for tower, group in child_groups(towers, mark=TOWER_GROUP.mark).items()
    ]


def tower_encoders(model: str, tower: str, group: TowerGroup, set_key: str) -> list[Encoder]:
    """Return the complete encoders of one tower, in the order of training."""
    steps = group.training_steps
    ordered = in_training_order(steps.items())
    attributes = {**group.attrs, "last_step": max(steps.values(), default=-1)}
    return [
        Encoder(
            model=model,
            checkpoint=label,
            tower=tower,
            step=steps[label],
            layers=tuple(group.layers),
            initial=steps[label] == 0,
            # the last one known, extracted or not: an earlier one must not pass for it
            final=label == ordered[-1],
            digest=group.digest(label),
            weights=group.weights(label).digest,
            set_key=set_key,
            path=group.group.path,
            attributes=attributes,
        )
        for label in ordered
        if group.is_complete(label)
    ]


def encoders(root: zarr.Group, set_key: str) -> list[Encoder]:
    """Return every complete encoder stored for a set."""
    return [
        encoder
        for model, tower, group in tower_groups(root, set_key)
        for encoder in tower_encoders(model, tower, group, set_key)
    ]


def checkpoints(root: zarr.Group, set_key: str) -> dict[tuple[str, str], list[StoredCheckpoint]]:
    """Return (model, modality) → checkpoints in training order, incomplete ones included."""
    found: dict[tuple[str, str], list[StoredCheckpoint]] = {}
    for model, tower, group in tower_groups(root, set_key):
        steps = group.training_steps
        found[model, modality_of(tower)] = [
            StoredCheckpoint(label, steps[label], group.is_complete(label))
            for label in in_training_order(steps.items())
        ]
    return found
