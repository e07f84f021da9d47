"""Encoders: the units that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.linked import linked
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
    weights: str = ""
    """Identity of the weights: digest of a file, a seed, published ones; empty if not known yet."""
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
        Symmetric mask `(n_encoders, n_encoders)`. True for encoders of one model; of models that
        the registry declares as related, or that have a trained checkpoint in common; and for
        initialisations that are the same.
    """
    shared = _by_weights(encoders)
    links = [(e.model, other) for e in encoders for other in e.attributes.get("related", ())]
    links += [
        (a.model, b.model)
        for same in shared
        for a, b in pairwise(same)
        if not a.initial and not b.initial
    ]
    group = linked((e.model for e in encoders), links)
    own = np.array([group[e.model] for e in encoders], dtype=object)
    found = np.asarray(own[:, None] == own)
    for same in shared:
        rows = [i for i, e in enumerate(encoders) if e.weights == same[0].weights]
        found[np.ix_(rows, rows)] = True
    return found


def _by_weights(encoders: Iterable[Encoder]) -> list[list[Encoder]]:
    """Return the encoders of each weights that several of them have."""
    groups: dict[str, list[Encoder]] = {}
    for encoder in encoders:
        if encoder.weights:
            groups.setdefault(encoder.weights, []).append(encoder)
    return [group for group in groups.values() if len(group) > 1]


def equal_weights(encoders: Iterable[Encoder]) -> list[list[str]]:
    """Return the checkpoints, as `MODEL@CHECKPOINT`, of each weights that several of them have."""
    named = [
        list(dict.fromkeys(f"{e.model}@{e.checkpoint}" for e in same))
        for same in _by_weights(encoders)
    ]
    return [names for names in named if len(names) > 1]
