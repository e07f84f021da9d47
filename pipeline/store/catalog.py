"""The encoders and representations that a store holds, read from its activations groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.store.activations import TowerGroup
from pipeline.store.layout import child_groups, find_group


@dataclass(frozen=True)
class Encoder:
    """One (model, checkpoint, tower): what is aligned with what.

    `digest` identifies its activations; it is empty where they are not extracted yet.
    """

    model: str
    checkpoint: str
    tower: str
    step: int
    layers: tuple[str, ...]
    initial: bool
    final: bool
    digest: str = ""
    set_key: str = ""
    path: str = ""
    attributes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def modality(self) -> str:
        """What the tower takes: by its group's word, else what the tower is called."""
        return str(self.attributes.get("modality", self.tower))

    @property
    def id(self) -> str:
        """`MODEL@CHECKPOINT#TOWER`."""
        return f"{self.model}@{self.checkpoint}#{self.tower}"

    @property
    def representations(self) -> list[str]:
        """`MODEL@CHECKPOINT#TOWER/LAYER` for each layer, from input to output."""
        return [f"{self.id}/{layer}" for layer in self.layers]

    @property
    def samples_seen(self) -> float:
        """Stimuli seen in training up to this checkpoint; NaN where unknown.

        The published figure belongs to the final checkpoint; before it, the part of the steps
        that were made.
        """
        total = self.attributes.get("metadata", {}).get("samples_seen")
        if self.initial:
            return 0.0
        if total is None:
            return float("nan")
        if self.final:
            return float(total)
        last = self.attributes.get("last_step", -1)
        return float(total) * self.step / last if self.step >= 0 and last > 0 else float("nan")


def in_training_order(checkpoints: Iterable[tuple[str, int]]) -> list[str]:
    """Sort (label, step) by step; labels without a step (-1) come last, in their own order."""
    return [label for label, step in sorted(checkpoints, key=lambda c: (c[1] < 0, c[1]))]


def tower_groups(root: zarr.Group, set_key: str) -> list[tuple[str, str, TowerGroup]]:
    """Return (model, tower, group) of every tower stored for a set."""
    found = []
    for source in child_groups(root, "activations", set_key):
        for name in child_groups(root, "activations", set_key, source):
            for tower in child_groups(root, "activations", set_key, source, name):
                path = f"activations/{set_key}/{source}/{name}/{tower}"
                group = find_group(root, path, "recipe_digest")
                if group is not None:
                    found.append((f"{source}/{name}", tower, TowerGroup(group)))
    return found


def tower_encoders(model: str, tower: str, group: TowerGroup, set_key: str) -> list[Encoder]:
    """Return the complete encoders of one tower, in the order of training."""
    steps = {c: int(s) for c, s in zip(group.checkpoints, group.steps, strict=False)}
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


def related(encoders: Sequence[Encoder]) -> NDArray[np.bool_]:
    """Return which pairs of encoders were not trained apart, by the registry's word as stored."""
    kin = {e.model: {e.model, *e.attributes.get("related", ())} for e in encoders}
    models = list(kin)
    pairs = np.array([[a in kin[b] or b in kin[a] for b in models] for a in models])
    at = [models.index(e.model) for e in encoders]
    return np.asarray(pairs[np.ix_(at, at)])
