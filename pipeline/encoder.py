"""Encoders: what is aligned with what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.types import Mask


@dataclass(frozen=True)
class Encoder:
    """One tower of one checkpoint of a model.

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
        """What the tower takes: as recorded, else what the tower is called."""
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

        The published figure belongs to the final checkpoint; an earlier one gets the fraction of
        it that its share of the training steps makes.
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


def related(encoders: Sequence[Encoder]) -> Mask:
    """Return which pairs of encoders were not trained independently, as the registry recorded."""
    kin = {e.model: {e.model, *e.attributes.get("related", ())} for e in encoders}
    models = list(kin)
    pairs = np.array([[a in kin[b] or b in kin[a] for b in models] for a in models])
    at = [models.index(e.model) for e in encoders]
    return np.asarray(pairs[np.ix_(at, at)])
