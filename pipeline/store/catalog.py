"""The encoders and representations that a store holds, read from its activations groups."""

from __future__ import annotations

import zarr

from pipeline.encoder import Encoder, in_training_order
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import child_groups, find_group


def tower_groups(root: zarr.Group, set_key: str) -> list[tuple[str, str, TowerGroup]]:
    """Return (model, tower, group) of every tower stored for a set."""
    found = []
    for source in child_groups(root, paths.ACTIVATIONS, set_key):
        for name in child_groups(root, paths.ACTIVATIONS, set_key, source):
            for tower in child_groups(root, paths.ACTIVATIONS, set_key, source, name):
                model = f"{source}/{name}"
                path = paths.tower(set_key, model, tower)
                group = find_group(root, path, "recipe_digest")
                if group is not None:
                    found.append((model, tower, TowerGroup(group)))
    return found


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
