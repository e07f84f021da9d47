"""Encoders: the units that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.types import Mask


@dataclass(frozen=True)
class Encoder:
    """One tower of one checkpoint of a model."""

    model: str
    checkpoint: str
    tower: str
    step: int
    """Training step; 0 at initialisation, -1 if unknown."""
    layers: tuple[str, ...]
    """From input to output."""
    initial: bool
    """Whether this is the untrained checkpoint."""
    final: bool
    """Whether this is the model's last checkpoint."""
    digest: str = ""
    """Identity of the activations; empty if they are not extracted yet."""
    set_key: str = ""
    """Key of the stimulus set."""
    path: str = ""
    """Path of the activations in the store."""
    attributes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def modality(self) -> str:
        """Modality of the tower's input: as stored, else the name of the tower."""
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
        """Training stimuli seen up to this checkpoint; NaN if unknown.

        The published figure is that of the final checkpoint; earlier ones get a share of it
        proportional to their training step.
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
    """Return the labels of (label, step) by step; those without one (-1) last, in given order."""
    return [label for label, step in sorted(checkpoints, key=lambda c: (c[1] < 0, c[1]))]


def related(encoders: Sequence[Encoder]) -> Mask:
    """Return which pairs of encoders are related: not trained independently.

    Returns
    -------
    numpy.ndarray
        Symmetric mask `(n_encoders, n_encoders)`, from the relations declared in the registry.
        True for two encoders of one model.
    """
    relatives = {e.model: {e.model, *e.attributes.get("related", ())} for e in encoders}
    models = list(relatives)
    pairs = np.array([[a in relatives[b] or b in relatives[a] for b in models] for a in models])
    at = [models.index(e.model) for e in encoders]
    return np.asarray(pairs[np.ix_(at, at)])
